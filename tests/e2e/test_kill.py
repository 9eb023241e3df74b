"""`kill -9` of the pipeline, and the same command again: not a byte of the corpus may differ.

Real SIGKILLs to real processes: to the driver's process group, to the driver alone (Ray's processes must follow it), to a Ray worker in
the middle of a crawl unit, and, from the worker that commits, between the steps of the commit protocol (`kill_point/` puts them there
from outside; the product has no hook). The truth is an uninterrupted run with one worker against the same server. After every kill the
tests wait until nothing of the launch is left, which is a claim of its own: a dead driver leaves no process behind.

Every optional stage is switched on; the second way to balance has an output of its own.
"""

import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline import status
from pipeline.contracts import manifest
from pipeline.records import STAGES
from tests.e2e import pipelines
from tests.web import server
from tests.web.site import Web

PAIRS = 160
KILLS = 10
SMALL_PAIRS = 60
STEPS = ("temporary", "renamed", "record")
EVERY_STAGE = ("dedup.exact=['url', 'caption', 'source']", "policy=[{name='pii', hook='pipeline.policy.pii:captions'}]")
DRAWN = ("balance.mode='metaclip'",)


@dataclasses.dataclass(frozen=True)
class Ground:
    """A served web, its configuration, what an uninterrupted run with one worker made of it, and how long a run takes."""

    web: Web
    config: Path
    overrides: tuple[str, ...]
    folder: Path
    env: dict[str, str]
    reference: Path
    corpus: dict[str, str]
    seconds: float
    launches: list[pipelines.Launch]

    def start(self, out: Path, *command: str, **more: str) -> pipelines.Launch:
        """`python -m pipeline COMMAND...`, by default the run into `out`."""
        words = [sys.executable, "-m", "pipeline", *command] if command else self.run_command(out)
        self.launches.append(pipelines.start(words, self.folder / f"{out.name}.log", {**self.env, **more}))
        return self.launches[-1]

    def run_command(self, out: Path) -> list[str]:
        return pipelines.command(self.config, str(out), *self.overrides)

    def finish(self, out: Path, *command: str) -> None:
        launch = self.start(out, *command)
        assert launch.wait() == 0, launch.text()

    def finish_and_compare(self, out: Path) -> None:
        """The same command to its end: the same bytes, and everything as it was recorded."""
        self.finish(out)
        assert pipelines.corpus(str(out)) == self.corpus
        assert status.verify(str(out)) == []
        assert status.story(str(out))["state"] == "done"


def ground(folder: Path, pairs: int, *overrides: str, patient: bool) -> Iterator[Ground]:
    """patient: at the end, wait until Ray's agents of killed runs have gone by themselves, a minute; else end them."""
    with server.running(11, pairs, pipelines.NO_WAITING) as web, pipelines.ray_folder() as ray:
        pipelines.write_inputs(web, folder)
        config = pipelines.write_config(web, str(folder), folder / "config.toml", shard_rows=pairs // 4)
        env = pipelines.environment(ray)
        out = folder / "reference"
        seconds = pipelines.finish(config, str(out), folder / "reference.log", env, "engine.workers=1", *overrides)
        corpus = pipelines.corpus(str(out))
        assert len(corpus) > 3
        found = Ground(web, config, overrides, folder, env, out, corpus, seconds, [])
        yield found
        for launch in found.launches:
            if patient:
                launch.members_end()
            else:
                launch.end()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    yield from ground(tmp_path_factory.mktemp("kill"), PAIRS, *EVERY_STAGE, patient=True)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    yield from ground(tmp_path_factory.mktemp("kill"), SMALL_PAIRS, patient=False)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    yield from ground(tmp_path_factory.mktemp("kill"), PAIRS, *DRAWN, patient=False)


# ---- at any moment


def kill_at_random(found: Ground, kills: int, seed: int) -> list[str]:
    """Kill launches at seeded moments until `kills` of them were hit, each on what the one before left; returns where each was.

    Moments by the clock would nearly all fall into the start of Ray and the crawl, so a moment is a number of committed units, one
    in each of `kills` equal parts of a whole run, and a fraction of a second. A launch that finds more units than that is killed
    by the clock, at any time of a run's duration. One that ends before its moment is compared, and the next one starts an output of
    its own.
    """
    dice = random.Random(seed)
    total = committed(found.reference)
    hit: list[str] = []
    place = 0
    while len(hit) < kills:
        out = found.folder / f"random-{seed}-{place}"
        units = round(total * (len(hit) + dice.random()) / kills)
        delay = dice.uniform(0, 0.5) if committed(out) < units else dice.uniform(0, found.seconds)
        launch = found.start(out)
        while committed(out) < units and launch.process.poll() is None:
            time.sleep(0.01)
        try:
            launch.process.wait(delay)
        except subprocess.TimeoutExpired:
            launch.kill(group=len(hit) % 2 == 0)
            hit.append(where(out))
        else:
            assert launch.wait() == 0, launch.text()
            assert pipelines.corpus(str(out)) == found.corpus
            place += 1
    found.finish_and_compare(out)
    return hit


def committed(out: Path) -> int:
    """Units with a record, over all stages."""
    return sum(1 for _ in out.glob("*/????????????/[0-9]*.json")) + sum(1 for _ in out.glob("*/????????????/all.json"))


def where(out: Path) -> str:
    """How far a killed run was."""
    if not (out / "run.json").exists():
        return "before run.json"
    stages = status.stages(str(out))
    return "before the first stage" if not stages else f"{stages[-1].name} {len(stages[-1].records)}/{stages[-1].units}"


@pytest.mark.prove
@pytest.mark.timeout(3600)
def test_killed_at_ten_random_moments(large: Ground) -> None:
    hit = kill_at_random(large, KILLS, seed=3)
    print("killed in:", "; ".join(hit))
    assert len(hit) == KILLS


# ---- told to end at any moment


def has_begun(out: Path, launch: pipelines.Launch) -> bool:
    """Whether run.json is of this launch."""
    owner = status.story(str(out))["owner"] if (out / "run.json").exists() else None
    return isinstance(owner, dict) and owner["pid"] == launch.process.pid


GRACE_S = 30  # what Slurm and Kubernetes give a job
ENDED_BY_RAY = (1, -signal.SIGABRT)


def tell_the_driver(launch: pipelines.Launch, number: signal.Signals) -> None:
    """As Ray and Kubernetes do it."""
    launch.process.send_signal(number)


def tell_its_group(launch: pipelines.Launch, number: signal.Signals) -> None:
    """As a terminal does it: Ray's processes are told too, but not its workers."""
    os.killpg(launch.process.pid, number)


@pytest.mark.prove
@pytest.mark.timeout(1800)
def test_interrupted_at_ten_random_moments(large: Ground) -> None:
    """Each time the driver says so in one sentence, ends with 130 and leaves nothing behind.

    Moments count from when run.json has it. A SIGTERM that Ray's own processes hear too is a race: where its node has ended first, Ray
    ends the driver, which may not have said all.
    """
    dice = random.Random(7)
    interrupted = place = told_in_time = 0
    while interrupted < KILLS:
        assert place < KILLS, (
            "nearly all runs come to their end: they do not hear, or are over before the moments chosen"
        )
        out = large.folder / f"interrupted-{place}"
        launch = large.start(out)
        said = len(launch.text())
        while launch.process.poll() is None and not has_begun(out, launch):
            time.sleep(0.01)
        try:
            launch.process.wait(dice.uniform(0, large.seconds))
        except subprocess.TimeoutExpired:
            tell = (tell_the_driver, tell_its_group, pipelines.Launch.tell_all)[interrupted % 3]
            number = (signal.SIGTERM, signal.SIGINT)[interrupted // 3 % 2]  # Ray's own are deaf to SIGINT
            tell(launch, number)
            launch.wait(GRACE_S)
        code, state = launch.wait(), status.story(str(out))["state"]
        if state == "done":  # heard between that and its last word; what comes after the last word has no answer
            assert code in (0, 130, -signal.SIGINT, -signal.SIGTERM)
            assert pipelines.corpus(str(out)) == large.corpus
            place += 1
            continue
        interrupted += 1
        words = launch.text()[said:]
        assert "Traceback" not in words
        is_race = number == signal.SIGTERM and tell is not tell_the_driver
        if is_race and code in ENDED_BY_RAY:
            assert words.count("error: ") == words.count("error: interrupted; ") <= 1, words
            continue
        told_in_time += is_race
        assert code == 130, words
        assert words.count("error: ") == words.count("error: interrupted; the same command again resumes") == 1, words
        assert (state, status.story(str(out))["exit_code"]) == ("failed", 130)
    assert told_in_time
    large.finish_and_compare(out)


# ---- between the steps of the commit protocol


def kill_points(found: Ground) -> list[str]:
    """Every step of one unit of each stage whose rows are pairs, one step of each helper, and the manifest's moment.

    The unit is the one with most rows.
    """
    points = []
    for number, stage in enumerate(status.stages(str(found.reference))):
        unit = max(stage.records, key=lambda record: record.rows_in).unit
        steps = STEPS if stage.name in STAGES else (STEPS[number % 3],)
        points += [f"{stage.name}/{unit}/{step}" for step in steps]
    return [*points, "publish/-/manifest"]


def kill_at(found: Ground, out: Path, point: str, *command: str) -> None:
    """Launch the run (or another command) with the kill point armed; check that it died there and left exactly what the protocol says."""
    hook = str(Path(__file__).parent / "kill_point")
    path = os.pathsep.join([hook, found.env["PYTHONPATH"]])
    launch = found.start(out, *command, PYTHONPATH=path, KILL_POINT=point)
    code = launch.wait()
    assert code == -signal.SIGKILL, f"{point}: ended with {code}: {launch.text()}"
    stage, unit, step = point.split("/")
    if step == "manifest":
        assert len(list((out / "shards").glob("manifest-*.json"))) == 1
        assert not (out / "shards" / "manifest.json").exists()
        return
    [folder] = (out / stage).iterdir()
    assert list(folder.glob(f".tmp-*-{unit}.parquet")) or step != "temporary", point
    assert list(folder.glob(f"{unit}-????????????.parquet")) or step == "temporary", point
    assert (folder / f"{unit}.json").exists() == (step == "record"), point


@pytest.mark.prove
@pytest.mark.timeout(3600)
def test_killed_after_every_step_of_a_commit(large: Ground) -> None:
    """One output is killed again and again, each launch a step later."""
    out = large.folder / "steps"
    points = kill_points(large)
    assert {point.split("/")[0] for point in points} >= set(STAGES)
    for point in points:
        kill_at(large, out, point)
    large.finish_and_compare(out)


@pytest.mark.prove
@pytest.mark.timeout(3600)
def test_killed_after_every_step_of_the_draw(drawn: Ground) -> None:
    """`metaclip` has steps and stages of its own on both sides of the crawl."""
    out = drawn.folder / "steps"
    points = [point for point in kill_points(drawn) if point.startswith(("precap", "balance", "ledger"))]
    assert {point.split("/")[0] for point in points} > {"precap", "balance", "ledger"}
    for point in points:
        kill_at(drawn, out, point)
    drawn.finish_and_compare(out)


@pytest.mark.prove
@pytest.mark.timeout(1800)
def test_exclude_killed_after_every_step(large: Ground) -> None:
    corpus = large.reference / "shards"
    rows = pq.read_table(manifest.shard_uri(str(corpus), manifest.load(str(corpus)).shards[0]), columns=["uid"])
    ids = large.folder / "ids.txt"
    ids.write_text("".join(f"{uid.hex()}\n" for uid in rows["uid"].to_pylist()[::7]))
    whole, killed = large.folder / "excluded", large.folder / "excluded-killed"
    command = ("exclude", f"corpus={corpus}", f"ids={ids}")
    large.finish(whole, *command, f"out={whole}")
    for step in STEPS:
        kill_at(large, killed, f"exclude/00000/{step}", *command, f"out={killed}")
    large.finish(killed, *command, f"out={killed}")
    assert status.verify(str(killed)) == []
    assert (killed / "manifest.json").read_bytes() == (whole / "manifest.json").read_bytes()
    assert manifest.load(str(killed)).rows == manifest.load(str(corpus)).rows - len(rows["uid"].to_pylist()[::7])


@pytest.mark.prove
@pytest.mark.timeout(1800)
def test_retry_killed_after_every_step(large: Ground) -> None:
    """Of two copies of the finished run one is retried undisturbed; then both are run again."""
    whole, killed = large.folder / "retried", large.folder / "retried-killed"
    for out in (whole, killed):
        shutil.copytree(large.reference, out)
    large.finish(whole, "retry", str(whole), "--reason", "http_status")
    stages = {stage.name: stage for stage in status.stages(str(whole))}
    points = []
    for name in ("retry-1-rows", "retry-1"):
        unit = max(stages[name].records, key=lambda record: record.rows_in).unit
        points += [f"{name}/{unit}/{step}" for step in STEPS]
    for point in points:
        kill_at(large, killed, point, "retry", str(killed), "--reason", "http_status")
    again = next(stage for stage in status.stages(str(killed)) if stage.name == "retry-1")
    if (
        len(again.records) < again.units
    ):  # else all was fetched when the last kill came, and to ask again would be a generation 2
        large.finish(killed, "retry", str(killed), "--reason", "http_status")
    for out in (whole, killed):
        large.finish(out)
        assert status.verify(str(out)) == []
    assert pipelines.corpus(str(killed)) == pipelines.corpus(str(whole))


# ---- a worker


@pytest.mark.prove
@pytest.mark.timeout(900)
def test_a_worker_killed_in_a_crawl_unit_is_replaced(large: Ground) -> None:
    out = large.folder / "worker"
    launch = large.start(out)
    before = sum(server.hits(large.web).values())
    until = time.monotonic() + 300
    while sum(server.hits(large.web).values()) < before + 10:
        assert launch.process.poll() is None, launch.text()
        assert time.monotonic() < until, launch.text()
        time.sleep(0.05)
    assert where(out).startswith("crawl ")
    while (worker := pipelines.stop_amid_a_unit(launch.members())) is None:
        assert launch.process.poll() is None, launch.text()
    os.kill(worker, signal.SIGKILL)
    assert launch.wait() == 0, launch.text()
    assert "lost its worker (WorkerCrashedError)" in launch.text()
    assert pipelines.corpus(str(out)) == large.corpus
    assert status.verify(str(out)) == []


# ---- the short version, for every change


@pytest.mark.timeout(900)
def test_killed_once_at_random_and_once_in_a_commit(small: Ground) -> None:
    assert len(kill_at_random(small, 1, seed=5)) == 1
    [point] = [point for point in kill_points(small) if point.startswith("balance/") and point.endswith("/renamed")]
    out = small.folder / "commit"  # its own: what was killed at random may have come past this point
    kill_at(small, out, point)
    small.finish_and_compare(out)
