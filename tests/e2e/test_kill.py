"""`kill -9` of the pipeline, and the same command again: not a byte of the corpus may differ.

Real SIGKILLs to real processes: to the driver's process group, to the driver alone (Ray's processes must follow it), to a Ray worker in
the middle of a crawl unit, and, from the worker that commits, between the steps of the commit protocol (`kill_point/` puts them there
from outside; the product has no hook). The truth is an uninterrupted run with one worker against the same server. After every kill the
tests wait until nothing of the launch is left, which is a claim of its own: a dead driver leaves no process behind.
"""

import dataclasses
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline import status
from pipeline.run import STAGES
from tests.e2e import pipelines
from tests.web import server
from tests.web.site import Web

PAIRS = 240
KILLS = 10
SMALL_PAIRS = 60
HELPER_STEPS = ("temporary", "renamed", "record")


@dataclasses.dataclass(frozen=True)
class Ground:
    """A served web, its configuration, what an uninterrupted run with one worker made of it, and how long a run takes."""

    web: Web
    config: Path
    folder: Path
    env: dict[str, str]
    reference: Path
    corpus: dict[str, str]
    seconds: float

    def start(self, out: Path, **more: str) -> pipelines.Launch:
        return pipelines.start(
            pipelines.command(self.config, str(out)), self.folder / f"{out.name}.log", {**self.env, **more}
        )

    def finish_and_compare(self, out: Path) -> None:
        """The same command to its end: the same bytes, and everything as it was recorded."""
        pipelines.finish(self.config, str(out), self.folder / f"{out.name}.log", self.env)
        assert pipelines.corpus(str(out)) == self.corpus
        assert status.verify(str(out)) == []
        assert status.story(str(out))["state"] == "done"


def ground(folder: Path, pairs: int) -> Iterator[Ground]:
    with server.running(11, pairs, pipelines.NO_WAITING) as web, pipelines.ray_folder() as ray:
        pipelines.write_inputs(web, folder)
        config = pipelines.write_config(web, str(folder), folder / "config.toml", shard_rows=pairs // 4)
        env = pipelines.environment(ray)
        out = folder / "reference"
        seconds = pipelines.finish(config, str(out), folder / "reference.log", env, "engine.workers=1")
        corpus = pipelines.corpus(str(out))
        assert len(corpus) > 3
        yield Ground(web, config, folder, env, out, corpus, seconds)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    yield from ground(tmp_path_factory.mktemp("kill"), PAIRS)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    yield from ground(tmp_path_factory.mktemp("kill"), SMALL_PAIRS)


# ---- at any moment


def kill_at_random(found: Ground, kills: int, seed: int) -> list[str]:
    """Kill launches at seeded moments until `kills` of them were hit, each on what the one before left; returns where each was.

    A launch that ends before its moment is compared, and the next one starts an output of its own.
    """
    dice = random.Random(seed)
    # One moment in each of `kills` equal parts of a run's duration, in any order: the whole run is covered.
    moments = [found.seconds * (part + dice.random()) / kills for part in range(kills)]
    dice.shuffle(moments)
    hit: list[str] = []
    place = 0
    while len(hit) < kills:
        out = found.folder / f"random-{seed}-{place}"
        launch = found.start(out)
        try:
            launch.process.wait(moments[len(hit)])
        except Exception as error:
            if type(error).__name__ != "TimeoutExpired":
                raise
            launch.kill(group=len(hit) % 2 == 0)
            hit.append(where(out))
        else:
            assert launch.wait() == 0, launch.text()
            assert pipelines.corpus(str(out)) == found.corpus
            place += 1
    found.finish_and_compare(out)
    return hit


def where(out: Path) -> str:
    """How far a killed run was."""
    if not (out / "run.json").exists():
        return "before run.json"
    stages = status.stages(str(out))
    return "before the first stage" if not stages else f"{stages[-1].name} {len(stages[-1].records)}/{stages[-1].units}"
