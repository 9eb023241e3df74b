"""The pipeline with everything in an object store: sources, query list and output on `s3://` of moto's server, which is real HTTP.

Killed once with SIGKILL and resumed; then every shard and the manifest have the bytes of a run on the local disk, because places are not
part of any digest.
"""

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline import status
from pipeline.contracts import manifest, s3, storage
from tests.conftest import s3_environment
from tests.e2e import pipelines
from tests.ports import free_port
from tests.web import server
from tests.web.site import Web

BUCKET = "s3://corpora"


@pytest.fixture
def web() -> Iterator[Web]:
    with server.running(13, 120, pipelines.NO_WAITING) as found:
        yield found


@pytest.fixture
def ray() -> Iterator[Path]:
    with pipelines.ray_folder() as folder:
        yield folder


def make_bucket() -> None:
    """What a user does once."""
    s3.client().create_bucket(Bucket=BUCKET.removeprefix("s3://"))


@pytest.mark.prove
@pytest.mark.timeout(1800)
def test_an_object_store_gives_the_bytes_of_a_local_disk(web: Web, ray: Path, s3_endpoint: str, tmp_path: Path) -> None:
    pipelines.write_inputs(web, tmp_path)
    local = pipelines.write_config(web, str(tmp_path), tmp_path / "local.toml", shard_rows=30)
    env = pipelines.environment(ray)
    seconds = pipelines.finish(local, str(tmp_path / "out"), tmp_path / "local.log", env)
    expected = pipelines.corpus(str(tmp_path / "out"))

    make_bucket()
    inputs, out = f"{BUCKET}/inputs", f"{BUCKET}/web/v1"
    for path in sorted((tmp_path / "lists").iterdir()):
        storage.write_atomic(f"{inputs}/lists/{path.name}", path.read_bytes())
    storage.write_atomic(f"{inputs}/queries.txt", (tmp_path / "queries.txt").read_bytes())
    config = pipelines.write_config(web, inputs, tmp_path / "s3.toml", shard_rows=30)

    launch = pipelines.start(pipelines.command(config, out), tmp_path / "killed.log", env)
    wait_for_stage(launch, out, "crawl", seconds=300)
    launch.kill(group=True)
    assert not storage.exists(f"{out}/shards/manifest.json")
    done = {stage.name: len(stage.records) for stage in status.stages(out)}
    assert done["filter"] > 0
    print(f"local {seconds:.0f} s; on s3 killed with {done}")

    took = pipelines.finish(config, out, tmp_path / "s3.log", env)
    print(f"resumed on s3 in {took:.0f} s")
    assert pipelines.corpus(out) == expected
    roots = {manifest.load(storage.join(place, "shards")).content_root for place in (out, str(tmp_path / "out"))}
    assert len(roots) == 1
    assert status.verify(out) == []
    assert not [uri for uri in storage.list_files(f"{out}/shards", recursive=True) if ".tmp-" in uri]
    the_tools_do_the_same(str(tmp_path / "out"), out, tmp_path, env)


def the_tools_do_the_same(local: str, remote: str, folder: Path, env: Mapping[str, str]) -> None:
    """Every command that reads or changes a finished run, on the disk and on the store."""
    uids = pq.read_table(manifest.shard_uri(f"{local}/shards", manifest.load(f"{local}/shards").shards[0]))[
        "uid"
    ].to_pylist()
    (folder / "ids.txt").write_text("".join(f"{uid.hex()}\n" for uid in uids[:5]))
    storage.write_atomic(f"{BUCKET}/inputs/ids.txt", (folder / "ids.txt").read_bytes())
    told = []
    for place, ids in ((local, str(folder / "ids.txt")), (remote, f"{BUCKET}/inputs/ids.txt")):
        sheet = storage.join(storage.parent(place), "sheet.html")
        tool(env, "exclude", f"corpus={place}/shards", f"out={place}-less", f"ids={ids}")
        tool(env, "contact-sheet", place, "--out", sheet)
        shown = tool(env, "show", place, uids[7].hex())
        tool(env, "retry", place, "--reason", "http_status")
        tool(env, "run", "--config", str(folder / ("s3.toml" if place == remote else "local.toml")), f"run.out={place}")
        assert status.verify(place) == []
        assert status.verify(f"{place}-less") == []
        told.append((shown, storage.read_bytes(sheet), pipelines.corpus(place), manifest.load(f"{place}-less")))
    assert told[0] == told[1]
    assert told[0][3].rows == manifest.load(f"{local}/shards").rows - 5


def tool(env: Mapping[str, str], *command: str) -> str:
    """What `python -m pipeline COMMAND` prints; it must end well."""
    words = [sys.executable, "-m", "pipeline", *command]
    ended = subprocess.run(words, env=env, cwd=pipelines.ROOT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def wait_for_stage(launch: pipelines.Launch, out: str, name: str, seconds: float) -> None:
    """Until the run in `out` has begun the stage."""
    until = time.monotonic() + seconds
    while not (storage.exists(f"{out}/run.json") and name in str(status.story(out)["stages"])):
        assert launch.process.poll() is None, launch.text()
        assert time.monotonic() < until, launch.text()
        time.sleep(0.1)


@pytest.mark.prove
@pytest.mark.timeout(300)
@pytest.mark.parametrize("place", ["run.out", "filter.queries"])
def test_a_wrong_endpoint_is_one_sentence(tmp_path: Path, ray: Path, place: str) -> None:
    folder = tmp_path / "lists"
    folder.mkdir()
    (folder / "list.csv").write_text("url,caption\nhttp://127.0.0.2/1.jpg,a red circle\n")
    (tmp_path / "queries.txt").write_text("red circle\n")
    config = pipelines.write_config(Web(1, 20), str(tmp_path), tmp_path / "config.toml")
    env = pipelines.environment(ray, s3_environment(f"http://127.0.0.1:{free_port()}"))
    command = [*pipelines.command(config, str(tmp_path / "out")), f"{place}={BUCKET}/x"]
    ended = subprocess.run(command, env=env, cwd=pipelines.ROOT, capture_output=True, text=True, timeout=200)
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert (ended.returncode, len(errors)) == (2, 1), ended.stderr
    assert f"{BUCKET}/x" in errors[0]
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "out").exists()
