"""Several Ray nodes on this machine, one of them killed in the middle of the crawl: the bytes of a run on one worker.

`ray.cluster_utils.Cluster` starts a head and two nodes, every one with its own raylet, object store and workers, as three machines
would (three_nodes.py). The pipeline joins them by `engine.address`, as a user's does.
"""

import secrets
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import status
from tests.e2e import pipelines
from tests.web import server

PAIRS = 160


@pytest.mark.prove
def test_a_node_that_dies_in_the_crawl_changes_no_byte(tmp_path: Path) -> None:
    with server.running(11, PAIRS, pipelines.NO_WAITING) as web, pipelines.ray_folder() as ray:
        pipelines.write_inputs(web, tmp_path)
        config = pipelines.write_config(web, str(tmp_path), tmp_path / "config.toml", crawl_units=6)
        env = pipelines.environment(ray, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)})
        alone, spread = tmp_path / "alone", tmp_path / "spread"
        pipelines.finish(config, str(alone), tmp_path / "alone.log", env, "engine.workers=1")

        nodes = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.three_nodes"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=pipelines.ROOT, env=env, start_new_session=True,
        )  # fmt: skip
        cluster = pipelines.Launch(nodes, tmp_path / "nodes.log")  # type: ignore[arg-type]  # its pipes hold text
        try:
            assert nodes.stdin is not None
            assert nodes.stdout is not None
            command = pipelines.command(config, str(spread), f"engine.address={nodes.stdout.readline().strip()}")
            launch = pipelines.start(command, tmp_path / "spread.log", env)
            while not list(spread.glob("crawl/*/*.json")) and launch.process.poll() is None:
                time.sleep(0.005)
            assert launch.process.poll() is None, launch.text()
            print("kill a node", file=nodes.stdin, flush=True)
            assert nodes.stdout.readline() == "killed\n"
            assert launch.process.wait(400) == 0, launch.text()
            assert "lost its worker" in launch.text(), launch.text()
            nodes.communicate(timeout=60)  # closes its input, and so ends it
        finally:
            cluster.end()
        assert pipelines.corpus(str(spread)) == pipelines.corpus(str(alone))
        assert status.verify(str(spread)) == []
