"""`ray job submit` for real: a Ray head with its job server on the loopback, token authentication on, the command line of the README.

The head is `ray start --head --block` in a session of its own with its own ports and folder, so that other Ray clusters on the machine
live on; it is ended by its process, never by `ray stop`, which would end theirs too.
"""

import contextlib
import dataclasses
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from evaluation.report import verify
from pipeline import status
from tests.conftest import wait_for
from tests.e2e import pipelines
from tests.evaluation.made import Made
from tests.ports import free_port
from tests.web import server

RAY = str(Path(sys.executable).parent / "ray")


@dataclasses.dataclass(frozen=True)
class Head:
    """A running head: its job server, and the environment of a user who has the token."""

    url: str
    env: dict[str, str]
    log: Path


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    home = tmp_path / "home"
    home.mkdir()
    with pipelines.ray_folder() as folder:
        env = pipelines.environment(folder, {"RAY_AUTH_MODE": "token", "HOME": str(home)})
        env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
        del env["PYTHONPATH"]  # the code comes with the job, not from here
        ray(env, "get-auth-token", "--generate")
        assert (home / ".ray" / "auth_token").stat().st_size >= 32
        port = free_port()
        launch = pipelines.start(head_command(port, folder), tmp_path / "head.log", env)
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(url, 180)
            yield Head(url, {**env, "RAY_API_SERVER_ADDRESS": url}, launch.log)
        finally:
            launch.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                launch.process.wait(60)
            launch.end()


def head_command(job_port: int, folder: Path) -> list[str]:
    """Free ports instead of the usual ones, all on the loopback."""
    ports = {
        "--port": free_port(),
        "--dashboard-port": job_port,
        "--dashboard-agent-listen-port": free_port(),
        "--dashboard-agent-grpc-port": free_port(),
        "--runtime-env-agent-port": free_port(),
        "--metrics-export-port": free_port(),
        "--ray-client-server-port": free_port(),
        "--min-worker-port": 0,
        "--max-worker-port": 0,
    }
    options = [f"{name}={value}" for name, value in ports.items()]
    options += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", "--num-cpus=2", f"--temp-dir={folder}"]
    return [RAY, "start", "--head", "--block", "--disable-usage-stats", "--object-store-memory=200000000", *options]


def ray(env: Mapping[str, str], *arguments: str, fine: bool = True) -> subprocess.CompletedProcess[str]:
    ended = subprocess.run(
        [RAY, *arguments], cwd=pipelines.ROOT, env=dict(env), capture_output=True, text=True, timeout=600
    )
    assert (ended.returncode == 0) == fine, ended.stdout + ended.stderr
    return ended


def submit(head_env: Mapping[str, str], *entrypoint: str, name: str, fine: bool = True) -> str:
    """The README's command line."""
    options = [
        "--working-dir",
        ".",
        "--runtime-env",
        "infra/ray/runtime_env.yaml",
        "--submission-id",
        name,
        "--no-wait",
    ]
    ended = ray(head_env, "job", "submit", *options, "--", *entrypoint, fine=fine)
    return ended.stdout + ended.stderr


@pytest.mark.prove
@pytest.mark.timeout(1800)
def test_a_submitted_job_gives_the_bytes_of_a_local_run(head: Head, tmp_path: Path) -> None:
    with server.running(17, 120, pipelines.NO_WAITING) as web:
        pipelines.write_inputs(web, tmp_path)
        config = pipelines.write_config(web, str(tmp_path), tmp_path / "config.toml", shard_rows=30)
        with pipelines.ray_folder() as folder:
            log = tmp_path / "local.log"
            pipelines.finish(config, str(tmp_path / "local"), log, pipelines.environment(folder))

        out = tmp_path / "job"
        command = ["python", "-m", "pipeline", "run", "--config", str(config)]
        submit(head.env, *command, f"run.out={out}", name="web-v1")
        logs = ray(head.env, "job", "logs", "--follow", "web-v1").stdout
        assert "crawl: " in logs
        assert f"next: python -m pipeline verify {out}/shards/manifest.json" in logs
        assert "succeeded" in ray(head.env, "job", "status", "web-v1").stdout.lower()
        assert pipelines.corpus(str(out)) == pipelines.corpus(str(tmp_path / "local"))
        assert status.verify(str(out)) == []
        assert status.story(str(out))["exit_code"] == 0

        # The same command resumes; the user's mistake is one line of the job's log and a job that failed.
        hits = server.hits(web)
        submit(head.env, *command, f"run.out={out}", name="web-v1-again")
        assert "state: done" in ray(head.env, "job", "logs", "--follow", "web-v1-again").stdout
        assert server.hits(web) == hits
        submit(head.env, *command, f"run.out={out}", "balance.cup=3", name="web-v1-wrong")
        logs = ray(head.env, "job", "logs", "--follow", "web-v1-wrong").stdout
        assert "did you mean 'cap'?" in logs
        assert "Traceback" not in logs
        assert "exit code 2" in ray(head.env, "job", "status", "web-v1-wrong").stdout


@pytest.mark.prove
@pytest.mark.timeout(900)
def test_a_submitted_audit_gives_the_report_of_a_local_one(head: Head, tmp_path: Path) -> None:
    """A limit that is passed is no failure of `overlap`: the job succeeds, and `report` says 3."""
    (tmp_path / "made").mkdir()
    made = Made(tmp_path / "made")
    assert made.result.returncode == 0, made.result.stderr
    command = ["python", "-m", "evaluation", "overlap", "--config", str(made.config)]
    elsewhere = tmp_path / "submitted"
    submit(head.env, *command, f"report.dir={elsewhere}", name="audit-v1")
    logs = ray(head.env, "job", "logs", "--follow", "audit-v1").stdout
    assert f"next: python -m evaluation report {elsewhere}" in logs
    assert "succeeded" in ray(head.env, "job", "status", "audit-v1").stdout.lower()
    assert files_below(elsewhere) == files_below(made.report)
    assert verify(str(elsewhere)) == []
    submit(head.env, *command, f"report.dir={elsewhere}", "match.pdq_distanse=3", name="audit-v1-wrong")
    logs = ray(head.env, "job", "logs", "--follow", "audit-v1-wrong").stdout
    assert "did you mean 'pdq_distance'?" in logs
    assert "Traceback" not in logs
    assert "exit code 2" in ray(head.env, "job", "status", "audit-v1-wrong").stdout
    assert files_below(elsewhere) == files_below(made.report)


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.prove
@pytest.mark.timeout(600)
def test_without_the_token_nothing_is_submitted(head: Head, tmp_path: Path) -> None:
    stranger = {**head.env, "HOME": str(tmp_path)}
    marker = tmp_path / "ran"
    entrypoint = ["touch", str(marker)]
    told = submit({**stranger, "RAY_AUTH_MODE": "token"}, *entrypoint, name="none", fine=False)
    assert "token" in told.lower()
    told = submit({**stranger, "RAY_AUTH_MODE": "disabled"}, *entrypoint, name="off", fine=False)
    assert "token" in told.lower()
    told = submit({**stranger, "RAY_AUTH_TOKEN": "0" * 32}, *entrypoint, name="wrong", fine=False)
    assert "token" in told.lower()
    for headers in ({}, {"Authorization": "Bearer " + "0" * 32}):
        request = urllib.request.Request(f"{head.url}/api/jobs/", headers=headers)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=30)
        with refused.value:
            assert refused.value.code in (401, 403)
    assert not marker.exists()
