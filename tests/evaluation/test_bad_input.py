"""What a user can get wrong with `evaluation overlap`: one sentence with place, value and next step, exit code 2, nothing written."""

import dataclasses
import json
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tomli_w

from evaluation.__main__ import main
from evaluation.config import BiasConfig, FewshotConfig, ProbeConfig, Thresholds, ZeroshotConfig
from evaluation.descriptor.search import Index
from evaluation.overlap.join import EvalCodes
from evaluation.overlap.join_stage import JoinWork
from evaluation.overlap.tables import VECTOR_SCHEMA
from pipeline.commit import Unit
from pipeline.contracts import manifest, storage
from pipeline.contracts.config import StrictModel, to_toml
from pipeline.contracts.errors import InputError
from tests.evaluation import planted


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> planted.Planted:
    return planted.plant(tmp_path_factory.mktemp("small"), examples=6, leaks=2, others=4)


class Wrong(NamedTuple):
    """What is wrong: an override, keys of the set, keys of the manifest, files of names; and what the sentence must say."""

    said: str
    override: str | None = None
    one: dict[str, object] | None = None
    manifest: dict[str, object] | None = None
    names: tuple[str, ...] = ()


ROWS = {
    "unknown key": Wrong("did you mean 'pdq_distance'", "match.pdq_distanse=3"),
    "wrong type": Wrong("match.pdq_distance", "match.pdq_distance=near"),
    "threshold out of range": Wrong("match.pdq_distance", "match.pdq_distance=200"),
    "evidence": Wrong("report.evidence", "report.evidence=some"),
    "no sets": Wrong("sets", "sets=[]"),
    "no corpus": Wrong("nowhere/manifest.json: no such file", "corpus.manifest=nowhere"),
    "other version": Wrong("format version 9", manifest={"format_version": 9}),
    "other hashes": Wrong("hashes.pdq256 is 'old'", manifest={"hashes": {"pdq256": "old"}}),
    "no set": Wrong("no.parquet: no such file", one={"path": "no.parquet"}),
    "set name": Wrong("sets.0.name", one={"name": "a/../b"}),
    "limit": Wrong("sets.0.limit", one={"limit": 2}),
    "limit that is no number": Wrong("sets.0.limit: should be a number (got True)", one={"limit": True}),
    "label column": Wrong("no column 'lable'", one={"label": "lable"}),
    "text rule": Wrong("text.similarity", "text.similarity=0"),
    "text rule of a set": Wrong("sets.0.text.run", one={"text": {"run": 0}}),
    "no descriptor": Wrong("nowhere/card.json: no such file", "descriptor.weights=nowhere"),
    "a score without a descriptor": Wrong(
        "match.descriptor_score is 0.5 and there is no table [descriptor]", "match.descriptor_score=0.5"
    ),
    "a score of a set": Wrong(
        "scenes.thresholds.descriptor_score is 0.5", one={"thresholds": {"descriptor_score": 0.5}}
    ),
    "labels by no descriptor": Wrong(
        "labelling.by is 'descriptor' and there is no table [descriptor]", "labelling.by=descriptor"
    ),
    "score out of range": Wrong("match.descriptor_score", "match.descriptor_score=0"),
    "unknown view": Wrong("descriptor.views.0", "descriptor={weights='x', views=['thirds']}"),
    "a view twice": Wrong("names one twice", "descriptor={weights='x', views=['whole', 'whole']}"),
    "no view of a square picture": Wrong(
        "shows nothing of a square picture", "descriptor={weights='x', views=['mirrored', 'square']}"
    ),
    "other card": Wrong("card.json: not a card of this program's descriptors", "descriptor.weights={folder}"),
    "no file of names": Wrong("gone.txt: no such file", names=("gone.txt",)),
    "names of other classes": Wrong("names.txt: names 2 classes, set 'scenes' has 7", names=("{folder}/names.txt",)),
    "empty set": Wrong("has no picture where", one={"where": {"id": "zzz"}}),
    "predictions of another set": Wrong("example 'x' is not in the set", one={"predictions": "{folder}/p.parquet"}),
    "no predictions file": Wrong("gone.parquet: no such file", one={"predictions": "gone.parquet"}),
}


@pytest.mark.parametrize("name", ROWS)
def test_bad_input(small: planted.Planted, tmp_path: Path, name: str) -> None:
    wrong = ROWS[name]
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for part in small.corpus.iterdir():
        (corpus / part.name).write_bytes(part.read_bytes())
    place = corpus / "manifest.json"
    place.write_text(json.dumps({**json.loads(place.read_bytes()), **(wrong.manifest or {})}), "utf-8")
    other = pa.table({"eval_id": ["x"], "sha256": [bytes(32)], "label": [0], "correct": [True]})
    pq.write_table(other, tmp_path / "p.parquet")
    one = {"name": "scenes", "path": str(small.evaluation), "id": "id", "label": "label", **(wrong.one or {})}
    if "predictions" in one:
        one["predictions"] = str(one["predictions"]).format(folder=tmp_path)
    (tmp_path / "card.json").write_text('{"format_version": 9}', "utf-8")
    (tmp_path / "names.txt").write_text("wren\ntit\n", "utf-8")
    if wrong.names:
        one["names"] = [place.format(folder=tmp_path) for place in wrong.names]
    values = {"corpus": {"manifest": str(corpus)}, "report": {"dir": str(tmp_path / "report")}, "sets": [one]}
    config = tmp_path / "overlap.toml"
    config.write_text(tomli_w.dumps(values), "utf-8")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError) as caught:
        main(
            [
                "overlap",
                "--config",
                str(config),
                *([wrong.override.replace("{folder}", str(tmp_path))] if wrong.override else []),
            ]
        )
    assert wrong.said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.exit_code == 2
    assert sorted(tmp_path.rglob("*")) == before


def test_a_missing_hash_column_of_a_shard(small: planted.Planted, tmp_path: Path) -> None:
    """A shard's index without hashes is refused by the worker's read."""
    shard = manifest.load(str(small.corpus)).shards[0]
    table = pq.read_table(small.corpus / shard.index_path).drop_columns(["pdq256"])
    pq.write_table(table, tmp_path / shard.index_path)
    work = JoinWork(str(tmp_path), EvalCodes([], []), np.empty(0, np.int64), [Thresholds()], 1, withhold=False)
    with pytest.raises(InputError, match="column 'pdq256' is missing; rebuild the corpus"):
        work.read(Unit("0", (), {"shard": shard.path, "index": shard.index_path}))


def test_a_table_that_was_changed_after_its_commit(small: planted.Planted, tmp_path: Path) -> None:
    """An index without the hashes of its pictures, under the manifest's name, would be a clean report under the corpus's root."""
    shard = manifest.load(str(small.corpus)).shards[0]
    unit = Unit("0", (shard.index_sha256,), {"shard": shard.path, "index": shard.index_path, "vectors": "v.parquet"})
    work = JoinWork(str(tmp_path), EvalCodes([], []), np.empty(0, np.int64), [Thresholds()], 1, withhold=False)
    (tmp_path / shard.index_path).write_bytes((small.corpus / shard.index_path).read_bytes())
    index = work.read(unit)
    uids = index["uid"]
    vectors = pa.array([bytes(8)] * index.num_rows, pa.binary())
    pq.write_table(pa.table([uids, vectors], schema=VECTOR_SCHEMA), tmp_path / "v.parquet")
    views = Index(np.zeros((0, 8), np.int8), np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    seeing = dataclasses.replace(work, views=views, vectors=str(tmp_path))
    committed = storage.sha256_file(str(tmp_path / "v.parquet"))
    assert seeing.read(dataclasses.replace(unit, inputs=(*unit.inputs, committed)))["vector"].equals(
        pa.chunked_array([vectors])
    )
    with pytest.raises(InputError, match=r"v\.parquet: its sha256 is not 000"):
        seeing.read(dataclasses.replace(unit, inputs=(*unit.inputs, "000")))
    place = index.column_names.index("pdq256")
    changed = index.set_column(place, "pdq256", pa.nulls(index.num_rows, pa.binary(32)))
    pq.write_table(changed, tmp_path / shard.index_path)
    with pytest.raises(
        InputError, match=r"its sha256 is not .*, that of the table which was committed there; restore it"
    ):
        work.read(unit)


def test_two_sets_of_one_name(small: planted.Planted, tmp_path: Path) -> None:
    config = tmp_path / "overlap.toml"
    config.write_text(to_toml(planted.overlap_config(small, tmp_path / "report")), "utf-8")
    one, other = (f"{{name='{name}', path='{small.evaluation}'}}" for name in ("scenes", "Scenes"))
    with pytest.raises(InputError, match="override 'sets': the name 'scenes' is used twice; each set needs its own"):
        main(["overlap", "--config", str(config), f"sets=[{one}, {other}]"])


@pytest.mark.parametrize("model", [BiasConfig, FewshotConfig, ProbeConfig, ZeroshotConfig])
def test_two_sets_of_one_name_elsewhere(model: type[StrictModel]) -> None:
    one = {"name": "a", "path": "p", "label": "label"}
    kinds = {BiasConfig: {"probe": "race", "subgroup": "group"}, ZeroshotConfig: {}}
    whole = {**one, **kinds[model]} if model in kinds else {"name": "a", "train": one, "test": one}
    table = {"model": "m", "out": "o", "sets": [whole]}
    model.model_validate(table)
    with pytest.raises(ValueError, match="the name 'a' is used twice"):
        model.model_validate({**table, "sets": [whole, {**whole, "name": "A"}]})


@pytest.mark.parametrize("name", ["no corpus", "other version", "other hashes"])
def test_check_refuses_a_corpus_that_the_audit_would_refuse(small: planted.Planted, tmp_path: Path, name: str) -> None:
    wrong = ROWS[name]
    config, place = tmp_path / "overlap.toml", tmp_path / "manifest.json"
    config.write_text(to_toml(planted.overlap_config(small, tmp_path / "report")), "utf-8")
    place.write_text(json.dumps(json.loads((small.corpus / "manifest.json").read_bytes()) | (wrong.manifest or {})))
    override = wrong.override or f"corpus.manifest={place}"
    with pytest.raises(InputError, match=re.escape(wrong.said)) as caught:
        main(["overlap", "--config", str(config), "--check", override])
    assert caught.value.exit_code == 2


def test_check_touches_nothing(small: planted.Planted, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "overlap.toml"
    config.write_text(to_toml(planted.overlap_config(small, tmp_path / "report")), "utf-8")
    assert main(["overlap", "--config", str(config), "--check"]) is None
    said = capsys.readouterr().out
    assert "# digest " in said
    assert "units of one shard each" in said
    assert [path.name for path in tmp_path.iterdir()] == ["overlap.toml"]
