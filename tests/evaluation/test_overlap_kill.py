"""The overlap job ended by `kill -9`, then run again: the same report, byte for byte, as one worker makes it undisturbed.

Every kill is counted and hits a living driver: after each step of a unit's commit and of publishing (`tests/e2e/kill_point` puts them
there from outside), and at moments spread over the run by the units it has committed.
"""

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from evaluation.config import OverlapConfig
from evaluation.report import verify
from pipeline.contracts import storage
from pipeline.contracts.config import to_toml
from tests.conftest import ROOT
from tests.e2e import pipelines
from tests.evaluation import planted

MOMENTS = 4
STEPS = ("temporary", "renamed", "record")
PUBLISHED = (
    "pairs.parquet",
    "summary.csv",
    "manifest.json",
)  # the first file of a report, the last before its seal, the seal


def command(config: Path, report: Path, workers: int = 2) -> list[str]:
    overrides = (f"report.dir={report}", f"engine.workers={workers}")
    return [sys.executable, "-m", "evaluation", "overlap", "--config", str(config), *overrides]


def contents(folder: Path) -> dict[str, bytes]:
    files = (one for one in folder.rglob("*") if one.is_file() and ".tmp-" not in one.name)
    return {str(one.relative_to(folder)): one.read_bytes() for one in files}


@dataclasses.dataclass
class Ground:
    """A planted corpus, what an uninterrupted run with one worker made of it, and the kills so far: units committed at each."""

    config: Path
    folder: Path
    env: dict[str, str]
    launches: list[pipelines.Launch]
    kills: list[int]

    def start(self, name: str, workers: int = 2, **more: str) -> pipelines.Launch:
        arguments = command(self.config, self.folder / name, workers)
        self.launches.append(pipelines.start(arguments, self.folder / f"{name}.log", {**self.env, **more}))
        return self.launches[-1]

    def records(self, name: str, stage: str = "*") -> list[Path]:
        """The committed units of a stage, in order."""
        return sorted((self.folder / f"{name}.work").glob(f"{stage}/????????????/*.json"))

    def finish_and_compare(self, name: str) -> None:
        assert self.start(name).wait() == 0, self.launches[-1].text()
        assert contents(self.folder / name) == contents(self.folder / "whole")
        assert verify(str(self.folder / name)) == []


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    folder = tmp_path_factory.mktemp("overlap-kill")
    config = folder / "overlap.toml"
    config.write_text(to_toml(planted.overlap_config(planted.plant(folder), folder / "unused")), "utf-8")
    with pipelines.ray_folder() as ray:
        found = Ground(config, folder, pipelines.environment(ray), [], [])
        assert found.start("whole", workers=1).wait() == 0, found.launches[-1].text()
        yield found
        for launch in found.launches:
            launch.end()


def kill_at(found: Ground, name: str, point: str) -> None:
    """Launch with the kill point armed; the launch must die there, having left what the protocol says."""
    hook = str(ROOT / "tests" / "e2e" / "kill_point")
    path = os.pathsep.join([hook, found.env["PYTHONPATH"]])
    launch = found.start(name, workers=1, PYTHONPATH=path, KILL_POINT=point)
    code = launch.wait()
    assert code == -signal.SIGKILL, f"{point}: ended with {code}: {launch.text()}"
    found.kills.append(len(found.records(name)))
    stage, unit, step = point.split("/")
    report = found.folder / name
    if step == "file":
        assert (report / unit).exists()
        assert (report / "manifest.json").exists() == (unit == "manifest.json")
        return
    [folder] = (found.folder / f"{name}.work" / stage).iterdir()
    assert list(folder.glob(f".tmp-*-{unit}.parquet")) or step != "temporary", point
    assert list(folder.glob(f"{unit}-????????????.parquet")) or step == "temporary", point
    assert (folder / f"{unit}.json").exists() == (step == "record"), point


def kill_when(found: Ground, name: str, units: int, delay: float, *, group: bool) -> None:
    """Launch, and SIGKILL the living driver (or its group) when `units` are committed and `delay` seconds have passed."""
    before = found.records(name)
    launch = found.start(name, workers=1)
    until = time.monotonic() + 300
    while len(found.records(name)) < max(units, len(before)):
        assert launch.process.poll() is None, launch.text()
        assert time.monotonic() < until, launch.text()
        time.sleep(0.005)
    time.sleep(delay)
    assert launch.process.poll() is None, "the driver had ended before the kill"
    launch.kill(group=group)
    assert launch.process.returncode == -signal.SIGKILL
    found.kills.append(len(found.records(name)))


@pytest.mark.prove
@pytest.mark.timeout(1800)
def test_killed_everywhere_and_run_again(ground: Ground) -> None:
    """One output is killed after every step of a commit and of publishing, another at moments spread over the units."""
    unit = {stage: ground.records("whole", stage)[-2:][0].stem for stage in ("codes", "join")}
    points = [f"{stage}/{name}/{step}" for stage, name in unit.items() for step in STEPS]
    for point in [*points, *(f"publish/{name}/file" for name in PUBLISHED)]:
        kill_at(ground, "steps", point)
    ground.finish_and_compare("steps")
    draws = random.Random(3)
    total = len(ground.records("whole"))
    for number in range(MOMENTS):
        kill_when(ground, "moments", number * total // MOMENTS, draws.uniform(0, 0.05), group=number % 2 == 0)
    ground.finish_and_compare("moments")
    print("units committed at each kill:", ground.kills)
    assert len(ground.kills) == len(points) + len(PUBLISHED) + MOMENTS >= 10
    assert {0, 1, total - 1, total} <= set(ground.kills)


@pytest.mark.prove
@pytest.mark.timeout(600)
def test_on_s3_as_on_the_disk(tmp_path: Path, s3_endpoint: str) -> None:
    """Corpus, set and report on an S3 server: the same bytes as locally, and `verify` reads them there."""
    made = planted.plant(tmp_path, examples=12, leaks=5, others=20)
    boto3.client("s3").create_bucket(Bucket="audit")
    for one in (path for path in tmp_path.rglob("*") if path.is_file()):
        storage.write_atomic(f"s3://audit/{one.relative_to(tmp_path)}", one.read_bytes())
    settings = planted.overlap_config(made, tmp_path / "report").model_dump(mode="json", exclude_none=True)
    config = tmp_path / "overlap.toml"
    config.write_text(to_toml(OverlapConfig.model_validate(settings)), "utf-8")
    here = subprocess.run(command(config, tmp_path / "report"), cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert here.returncode == 0, here.stderr
    settings["corpus"]["manifest"] = "s3://audit/corpus"
    settings["sets"][0]["path"] = "s3://audit/evaluation.parquet"
    settings["report"]["dir"] = "s3://audit/report"
    remote = tmp_path / "remote.toml"
    remote.write_text(to_toml(OverlapConfig.model_validate(settings)), "utf-8")
    there = [sys.executable, "-m", "evaluation", "overlap", "--config", str(remote)]
    result = subprocess.run(there, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    local = contents(tmp_path / "report")
    assert {name: storage.read_bytes(f"s3://audit/report/{name}") for name in local} == local
    assert verify("s3://audit/report") == []
