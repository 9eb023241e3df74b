"""What a user can get wrong with `evaluation overlap`: one sentence with place, value and next step, exit code 2, nothing written."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tomli_w

from evaluation.__main__ import main
from evaluation.config import Thresholds
from evaluation.overlap.job import _JoinWork
from evaluation.overlap.join import EvalCodes
from pipeline.contracts import manifest
from pipeline.contracts.config import to_toml
from pipeline.contracts.errors import InputError
from pipeline.engine import Unit
from tests.evaluation import planted


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> planted.Planted:
    return planted.plant(tmp_path_factory.mktemp("small"), examples=6, leaks=2, others=4)


Change = Callable[[Path, dict[str, object]], list[str]]


def edit_manifest(folder: Path, **values: object) -> None:
    place = folder / "corpus" / "manifest.json"
    place.write_text(json.dumps({**json.loads(place.read_bytes()), **values}), "utf-8")


def bad_predictions(folder: Path) -> str:
    pq.write_table(pa.table({"eval_id": ["x"], "sha256": [bytes(32)], "correct": [True]}), folder / "p.parquet")
    return str(folder / "p.parquet")


ROWS: dict[str, tuple[Change, str]] = {
    "unknown key": (lambda folder, one: ["match.pdq_distanse=3"], "did you mean 'pdq_distance'"),
    "wrong type": (lambda folder, one: ["match.pdq_distance=near"], "match.pdq_distance"),
    "threshold out of range": (lambda folder, one: ["match.pdq_distance=200"], "match.pdq_distance"),
    "evidence": (lambda folder, one: ["report.evidence=some"], "report.evidence"),
    "no sets": (lambda folder, one: ["sets=[]"], "sets"),
    "no corpus": (lambda folder, one: ["corpus.manifest=nowhere"], "nowhere/manifest.json: no such file"),
    "other version": (lambda folder, one: edit_manifest(folder, format_version=9) or [], "format version 9"),
    "other hashes": (
        lambda folder, one: edit_manifest(folder, hashes={"pdq256": "old"}) or [],
        "hashes.pdq256 is 'old'",
    ),
    "no set": (lambda folder, one: one.update(path=str(folder / "no.parquet")) or [], "no.parquet: no such file"),
    "set name": (lambda folder, one: one.update(name="a/../b") or [], "sets.0.name"),
    "limit": (lambda folder, one: one.update(limit=2) or [], "sets.0.limit"),
    "label column": (lambda folder, one: one.update(label="lable") or [], "no column 'lable'"),
    "empty set": (lambda folder, one: one.update(where={"id": "zzz"}) or [], "has no picture where"),
    "predictions of another set": (
        lambda folder, one: one.update(predictions=bad_predictions(folder)) or [],
        "example 'x' is not in the set",
    ),
    "no predictions file": (
        lambda folder, one: one.update(predictions="gone.parquet") or [],
        "gone.parquet: no such file",
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_bad_input(small: planted.Planted, tmp_path: Path, name: str) -> None:
    change, said = ROWS[name]
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for part in small.corpus.iterdir():
        (corpus / part.name).write_bytes(part.read_bytes())
    one: dict[str, object] = {"name": "scenes", "path": str(small.evaluation), "id": "id", "label": "label"}
    overrides = change(tmp_path, one)
    values = {"corpus": {"manifest": str(corpus)}, "report": {"dir": str(tmp_path / "report")}, "sets": [one]}
    config = tmp_path / "overlap.toml"
    config.write_text(tomli_w.dumps(values), "utf-8")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError) as caught:
        main(["overlap", "--config", str(config), *overrides])
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.exit_code == 2
    assert sorted(tmp_path.rglob("*")) == before


def test_a_missing_hash_column_of_a_shard(small: planted.Planted, tmp_path: Path) -> None:
    """A shard's index without hashes is refused by the worker's read."""
    shard = manifest.load(str(small.corpus)).shards[0]
    table = pq.read_table(small.corpus / shard.index_path).drop_columns(["pdq256"])
    pq.write_table(table, tmp_path / shard.index_path)
    work = _JoinWork(str(tmp_path / "manifest.json"), EvalCodes([], []), [Thresholds()])
    with pytest.raises(InputError, match="column 'pdq256' is missing; rebuild the corpus"):
        work.read(Unit("0", (), {"shard": shard.path, "index": shard.index_path}))


def test_two_sets_of_one_name(small: planted.Planted, tmp_path: Path) -> None:
    config = tmp_path / "overlap.toml"
    config.write_text(to_toml(planted.overlap_config(small, tmp_path / "report")), "utf-8")
    one = f"{{name='scenes', path='{small.evaluation}'}}"
    with pytest.raises(InputError, match="the name 'scenes' is used twice"):
        main(["overlap", "--config", str(config), f"sets=[{one}, {one}]"])


def test_check_touches_nothing(small: planted.Planted, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "overlap.toml"
    config.write_text(to_toml(planted.overlap_config(small, tmp_path / "report")), "utf-8")
    assert main(["overlap", "--config", str(config), "--check"]) is None
    said = capsys.readouterr().out
    assert "# digest " in said
    assert "units of one shard each" in said
    assert [path.name for path in tmp_path.iterdir()] == ["overlap.toml"]
