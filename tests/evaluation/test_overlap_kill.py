"""The overlap job ended by `kill -9`, then run again: the same report, byte for byte, as one worker makes it undisturbed.

The driver is killed after each step of a unit's commit and of publishing (`tests/e2e/kill_point` puts these there from outside) and at
ten random moments; a Ray worker is killed in the middle of a unit of each stage. Every kill is counted, and only when it hit.
"""

import dataclasses
import itertools
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

KILLS = 10
OTHERS = 420  # pictures that make the corpus ten shards and so the join ten units
STEPS = ("temporary", "renamed", "record")
PUBLISHED = (
    "classes.parquet",
    "text_pairs.parquet",
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
    """A planted corpus and what an uninterrupted run with one worker made of it, and in which time."""

    config: Path
    folder: Path
    env: dict[str, str]
    launches: list[pipelines.Launch]
    seconds: float = 0.0

    def start(self, name: str, workers: int = 2, **more: str) -> pipelines.Launch:
        arguments = command(self.config, self.folder / name, workers)
        self.launches.append(pipelines.start(arguments, self.folder / f"{name}.log", {**self.env, **more}))
        return self.launches[-1]

    def records(self, name: str, stage: str = "*") -> list[Path]:
        """The committed units of a stage, in order."""
        return sorted((self.folder / f"{name}.work").glob(f"{stage}/????????????/*.json"))

    def finish_and_compare(self, name: str) -> None:
        assert self.start(name).wait() == 0, self.launches[-1].text()
        self.compare(name)

    def compare(self, name: str) -> None:
        assert contents(self.folder / name) == contents(self.folder / "whole")
        assert verify(str(self.folder / name)) == []


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    folder = tmp_path_factory.mktemp("overlap-kill")
    config = folder / "overlap.toml"
    made = planted.plant(folder, others=OTHERS)
    one = planted.set_table(made, caption="caption")
    config.write_text(to_toml(planted.overlap_config(made, folder / "unused", sets=[one])), "utf-8")
    with pipelines.ray_folder() as ray:
        found = Ground(config, folder, pipelines.environment(ray), [])
        started = time.monotonic()
        assert found.start("whole", workers=1).wait() == 0, found.launches[-1].text()
        found.seconds = time.monotonic() - started
        yield found
        for launch in found.launches:
            launch.end()


# ---- between the steps


def kill_at(found: Ground, name: str, point: str) -> int:
    """Launch with the kill point armed; the launch must die there, having left what the protocol says. Returns the units committed."""
    hook = str(ROOT / "tests" / "e2e" / "kill_point")
    path = os.pathsep.join([hook, found.env["PYTHONPATH"]])
    launch = found.start(name, workers=1, PYTHONPATH=path, KILL_POINT=point)
    code = launch.wait()
    assert code == -signal.SIGKILL, f"{point}: ended with {code}: {launch.text()}"
    stage, unit, step = point.split("/")
    report = found.folder / name
    if step == "file":
        assert (report / unit).exists()
        assert (report / "manifest.json").exists() == (unit == "manifest.json")
        return len(found.records(name))
    [folder] = (found.folder / f"{name}.work" / stage).iterdir()
    assert list(folder.glob(f".tmp-*-{unit}.parquet")) or step != "temporary", point
    assert list(folder.glob(f"{unit}-????????????.parquet")) or step == "temporary", point
    assert (folder / f"{unit}.json").exists() == (step == "record"), point
    return len(found.records(name))


@pytest.mark.prove
@pytest.mark.timeout(1800)
def test_killed_after_every_step(ground: Ground) -> None:
    """One output is killed again and again, each launch a step later; one worker commits in order, so it is known what stands at each."""
    unit = {stage: ground.records("whole", stage)[-2:][0].stem for stage in ("codes", "join", "text")}
    points = [f"{stage}/{name}/{step}" for stage, name in unit.items() for step in STEPS]
    points += [f"publish/{name}/file" for name in PUBLISHED]
    committed = [kill_at(ground, "steps", point) for point in points]
    total, joined = len(ground.records("whole")), 1 + len(ground.records("whole", "join"))
    assert committed == [
        *(0, 0, 1),
        *(joined - 2, joined - 2, joined - 1),
        *(total - 2, total - 2, total - 1),
        *(total, total, total),
    ]
    ground.finish_and_compare("steps")


# ---- at any moment


def kill_at_random(found: Ground, kills: int, seed: int) -> list[int]:
    """Kill living drivers at seeded moments until `kills` of them were hit; returns the units committed at each.

    A moment is a number of committed units, one in each of `kills` equal parts of a whole run, and a fraction of a second. A launch
    that finds more units than that is killed by the clock, at any time of a run's duration. One that ends before its moment is
    compared, and the next one starts an output of its own.
    """
    dice = random.Random(seed)
    total = len(found.records("whole"))
    hit: list[int] = []
    place = 0
    while len(hit) < kills:
        name = f"random-{place}"
        units = round(total * (len(hit) + dice.random()) / kills)
        delay = dice.uniform(0, 0.05) if len(found.records(name)) < units else dice.uniform(0, found.seconds)
        launch = found.start(name, workers=1)
        while len(found.records(name)) < units and launch.process.poll() is None:
            time.sleep(0.005)
        try:
            launch.process.wait(delay)
        except subprocess.TimeoutExpired:
            launch.kill(group=len(hit) % 2 == 0)
        # The code tells, not the clock: a driver may end in the instant before the kill.
        if launch.process.returncode == -signal.SIGKILL:
            hit.append(len(found.records(name)))
        else:
            assert launch.wait() == 0, launch.text()
            found.compare(name)
            place += 1
    found.finish_and_compare(name)
    return hit


@pytest.mark.prove
@pytest.mark.timeout(1800)
def test_killed_at_ten_random_moments(ground: Ground) -> None:
    hit = kill_at_random(ground, KILLS, seed=3)
    print("units committed at each kill:", hit)
    assert len(hit) == KILLS


# ---- a worker


def kill_a_worker(found: Ground, name: str, stage: str) -> tuple[pipelines.Launch, bool]:
    """Launch, and SIGKILL the worker that is in the first unit of `stage`; returns the launch and whether it was hit."""
    launch = found.start(name, workers=1)
    while launch.process.poll() is None and not found.records(name, stage):
        worker = pipelines.stop_amid_a_unit(launch.members())
        if worker is not None:
            hit = not found.records(name, stage)  # nor will there be while it is stopped
            os.kill(worker, signal.SIGKILL if hit else signal.SIGCONT)
            if hit:
                return launch, True
    return launch, False


@pytest.mark.prove
@pytest.mark.timeout(900)
@pytest.mark.parametrize("stage", ["codes", "join", "text"])
def test_a_worker_killed_in_a_unit_is_replaced(ground: Ground, stage: str) -> None:
    """A unit that ended before we saw its worker is no hit: then the same again on an output of its own."""
    for attempt in itertools.count():
        name = f"worker-{stage}-{attempt}"
        before = {"join": "codes", "text": "copies"}.get(stage)
        if before:
            # A launch that starts with this stage: its first unit loads the libraries, which takes a while.
            kill_at(ground, name, f"{before}/{ground.records('whole', before)[-1].stem}/record")
        launch, hit = kill_a_worker(ground, name, stage)
        assert launch.wait() == 0, launch.text()
        ground.compare(name)
        if hit:
            break
    unit = ground.records("whole", stage)[0].stem
    assert f"{stage}: unit {unit} lost its worker (WorkerCrashedError)" in launch.text()


# ---- on S3


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
