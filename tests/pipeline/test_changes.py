"""One output folder under settings that change by chance: the corpus is always the one that a fresh folder gets, byte for byte.

What earlier settings left there is either taken up (the same input, by content) or lies beside. Which pairs of settings share a stage's
folder, and which only its input, is what nobody thinks of; hence chance.
"""

import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray

from pipeline import __main__ as cli
from pipeline.contracts import manifest
from tests.e2e.pipelines import NO_WAITING, corpus, write_config, write_inputs
from tests.web import server
from tests.web.site import Kind

pytestmark = [pytest.mark.prove, pytest.mark.timeout(900)]

PAIRS, STEPS, SEEDS = 220, 10, range(3)
SETTINGS: dict[str, tuple[str, ...]] = {
    "run.seed": ("17", "18"),
    "sources.rows_per_unit": ("100", "37"),
    "sources.max_caption_bytes": ("8192", "8193", "60"),
    "quality": ("{}", "{max_words=199}", "{min_words=5}", "{languages=['en']}"),
    "filter.mode": ("normalised", "metaclip"),
    "filter.queries": ("{folder}/queries.txt", "{folder}/fewer.txt"),
    "precap.per_query": ("100000", "100001", "8"),
    "crawl.units": ("4", "3"),
    "crawl.host_split": ("4", "3"),
    "crawl.image_size": ("256", "96"),
    "policy": ("[]", "[{name='pii', hook='pipeline.policy.pii:captions'}]"),
    "dedup": (
        "{}", "{image_quality=49}", "{by='caption'}", "{by='image', threshold=0.9}", "{exact=['url']}", "{exact=['caption', 'source']}",
    ),
    "balance": ("{cap=6}", "{cap=7}", "{cap=2}", "{cap=6, mode='metaclip'}", "{cap=2, mode='metaclip'}"),
    "shard": ("{rows=40}", "{rows=41}", "{bytes=300000}"),
    "engine.workers": ("1", "2"),
}  # fmt: skip
"""Values that change rows, and most with one beside them that changes none."""


@dataclass(frozen=True)
class Ground:
    config: Path
    folder: Path


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    folder = tmp_path_factory.mktemp("changes")
    with server.running(9, PAIRS, {**NO_WAITING, Kind.SECOND_CAPTION: 0.12}) as web:
        write_inputs(web, folder)
        lines = (folder / "queries.txt").read_text().splitlines(keepends=True)
        (folder / "fewer.txt").write_text("".join(lines[::2]))
        config = write_config(web, str(folder), folder / "config.toml")
        ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
        yield Ground(config, folder)
        ray.shutdown()


def run(ground: Ground, out: Path, settings: dict[str, str], until: str = "run") -> None:
    given = [
        f"{key}={value.format(folder=ground.folder) if 'folder' in value else value}" for key, value in settings.items()
    ]
    cli.main([until, "--config", str(ground.config), f"run.out={out}", *given])


def shown(out: Path, place: float, capsys: pytest.CaptureFixture[str]) -> str:
    """What `show` says of the row at `place` (0 to 1) of the corpus."""
    found = manifest.load(str(out / "shards"))
    uids = [
        uid
        for one in found.shards
        for uid in pq.read_table(out / "shards" / one.path, columns=["uid"])["uid"].to_pylist()
    ]
    capsys.readouterr()
    cli.main(["show", str(out), uids[int(place * len(uids))].hex()])
    return capsys.readouterr().out


@pytest.mark.parametrize("seed", SEEDS)
def test_one_folder_under_changing_settings_gives_what_a_fresh_one_gives(
    ground: Ground, tmp_path: Path, capsys: pytest.CaptureFixture[str], seed: int
) -> None:
    chance = random.Random(seed)
    settings = {key: values[0] for key, values in SETTINGS.items()}
    for step in range(STEPS):
        for key in chance.sample(list(SETTINGS), 1 if step % 2 else 3):
            settings[key] = chance.choice(SETTINGS[key])
        if chance.random() < 0.3:  # a run that was stopped on the way, under settings that may never be finished
            run(ground, tmp_path / "one", settings | {"quality": "{max_characters=40}"}, until="filter")
        run(ground, tmp_path / "one", settings)
        cli.main(["verify", str(tmp_path / "one")])
        cli.main(["status", str(tmp_path / "one")])
        assert "leads to the content root" in shown(tmp_path / "one", chance.random(), capsys)
        run(ground, tmp_path / f"fresh-{step}", settings | {"engine.workers": "2"})
        assert corpus(str(tmp_path / "one")) == corpus(str(tmp_path / f"fresh-{step}")), (step, settings)
    assert len(list((tmp_path / "one" / "crawl").iterdir())) < STEPS, "each step had a crawl of its own"
