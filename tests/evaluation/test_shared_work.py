"""Audits that share a working folder: whatever another one left there, the report is that of a folder of its own, byte for byte."""

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray

from evaluation.config import OverlapConfig
from evaluation.overlap.job import run
from evaluation.report import verify
from pipeline.contracts import manifest
from pipeline.tools.exclude import ExcludeConfig, exclude
from tests.evaluation import planted

CHANGES: dict[str, dict[str, object]] = {
    "nothing": {},
    "stricter pictures": {"match": {"pdq_distance": 0, "phash_distance": 0}},
    "other texts": {"text": {"similarity": 0.6, "least": 2}},
    "no captions": {"sets": [{}]},
    "another name": {"sets": [{"name": "others", "caption": "caption"}]},
    "another set before it": {"sets": [{"name": "blind", "where": {"label": 3}}, {"caption": "caption"}]},
    "a set with thresholds of its own": {"sets": [{"caption": "caption", "thresholds": {"pdq_distance": 8}}]},
    "hash-only": {"report": {"evidence": "hash-only"}},
    "one pair of each": {"report": {"pairs_kept": 1}},
    "fewer examples": {"nearest": {"examples": 3}, "copies": {"examples": 1}},
    "a corpus less a row": {"corpus": "less"},
    "a corpus in other shards": {"corpus": "others"},
}


@dataclasses.dataclass(frozen=True)
class Ground:
    """A planted set, a corpus in three versions, and what a first audit left in `work`."""

    made: planted.Planted
    folder: Path

    def audit(self, report: Path, work: Path, change: dict[str, object]) -> dict[str, bytes]:
        """The files of the report; `change` replaces tables of the first audit's config, or adds keys to `report`."""
        few: dict[str, object] = {"copies": {"examples": 2}, "nearest": {"examples": 6}}
        given = few | {"sets": [{"caption": "caption"}], "report": {}} | change
        sets, told, corpus = given.pop("sets"), given.pop("report"), given.pop("corpus", "corpus")
        assert isinstance(sets, list)
        assert isinstance(told, dict)
        values = {
            "corpus": {"manifest": str(self.folder / str(corpus))},
            "sets": [planted.set_table(self.made, **one) for one in sets],
            "report": {"dir": str(report), "work": str(work), **told},
            "engine": {"workers": 2},
        }
        run(OverlapConfig.model_validate(values | given))
        return {str(path.relative_to(report)): path.read_bytes() for path in report.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    folder = tmp_path_factory.mktemp("shared-work")
    found = Ground(planted.plant(folder, examples=25, leaks=10, others=30), folder)
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    rows = [pq.read_table(found.made.corpus / one.path) for one in manifest.load(str(found.made.corpus)).shards]
    (folder / "ids.txt").write_text(rows[0]["uid"][0].as_py().hex() + "\n")
    less = {"corpus": str(found.made.corpus), "out": str(folder / "less"), "ids": str(folder / "ids.txt")}
    exclude(ExcludeConfig.model_validate(less))
    manifest.write_corpus(
        str(folder / "others"), rows, rows_per_shard=20, hashes=manifest.load(str(found.made.corpus)).hashes
    )
    found.audit(folder / "first", folder / "work", {})
    yield found
    ray.shutdown()


@pytest.mark.parametrize("name", CHANGES)
def test_as_in_a_folder_of_its_own(ground: Ground, tmp_path: Path, name: str) -> None:
    shared = ground.audit(tmp_path / "shared", ground.folder / "work", CHANGES[name])
    assert shared == ground.audit(tmp_path / "own", tmp_path / "work", CHANGES[name])
    assert verify(str(tmp_path / "shared")) == []


def test_a_shard_that_a_takedown_left_alone_is_the_same_index_elsewhere(ground: Ground) -> None:
    """Or the corpus less a row would show nothing: what a unit made of an index has the name of its shard in it."""
    old, new = (manifest.load(str(ground.folder / name)).shards for name in ("corpus", "less"))
    assert {one.index_sha256 for one in old} & {one.index_sha256 for one in new}
    assert not {one.index_path for one in old} & {one.index_path for one in new}
