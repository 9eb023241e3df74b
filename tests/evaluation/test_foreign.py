"""The audit of corpora that others wrote: the same pictures in any layout give the same matches as in our own shards."""

import json
import logging
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray

from evaluation.__main__ import main
from evaluation.config import OverlapConfig, Thresholds
from evaluation.overlap import corpus as corpora
from evaluation.overlap import job
from evaluation.overlap.join import EvalCodes, join_shard
from evaluation.report import files, verify
from evaluation.report.files import read_report
from pipeline.content import readers
from pipeline.content.labelled import open_set
from pipeline.contracts.config import to_toml
from pipeline.contracts.errors import InputError
from pipeline.contracts.schema import uid
from pipeline.engine import EngineConfig, Run
from tests.evaluation import foreign, planted
from trainer.data import tars

TOO_WIDE = (
    b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR" + struct.pack(">II", 60_000, 60_000) + b"\x08\x02\x00\x00\x00" + bytes(4)
)
"""The beginning of a PNG that says it is 60,000 pixels wide and high."""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> planted.Planted:
    return planted.plant(tmp_path_factory.mktemp("small"), examples=10, leaks=5, others=12)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    yield
    ray.shutdown()


def config_of(made: planted.Planted, corpus: dict[str, Any], report: Path) -> OverlapConfig:
    """A config that asks for pictures, captions and class names."""
    one = planted.set_table(made, caption="caption", classes=list(planted.CLASSES), absent_classes=True)
    return planted.overlap_config(made, report, corpus=corpus, sets=[one])


def codes_of(made: planted.Planted) -> EvalCodes:
    labelled = open_set(planted.overlap_config(made, made.corpus).sets[0])
    return EvalCodes(["scenes"], [job.hash_pictures(labelled, list(range(len(labelled))))])


# ---- the same pairs


@pytest.mark.parametrize("layout", foreign.LAYOUTS)
def test_the_same_matches_as_in_our_own_shards(small: planted.Planted, tmp_path: Path, layout: str) -> None:
    """Without Ray: what the stages do, file by file, against the join of our own indexes."""
    codes = codes_of(small)
    own = corpora.of_manifest(str(small.corpus))
    expected = set()
    for index in own.indexes:
        table = corpora.read_index(own.folder, index.path, withhold=False)
        expected |= foreign.by_picture(join_shard(table, index.shard, codes, [Thresholds()]).pairs.to_pylist())
    assert {name for name, _ in expected} == set(small.answers)
    pairs = foreign.pairs_of(small)
    config = config_of(small, foreign.LAYOUTS[layout](tmp_path / "in", pairs), tmp_path / "report").corpus
    columns = corpora._columns(config)
    found, seen = [], 0
    for file in corpora.find_files(config):
        listing = readers.list_file(corpora._layout(config), file, columns)
        made = corpora.hash_rows(
            readers.read_file(corpora._layout(config), file, listing.rows, columns), withhold=False
        )
        assert made.rejected is not None
        assert made.rows.num_rows + made.rejected.num_rows == listing.rows.num_rows
        seen += made.rows.num_rows
        rows = made.rows.sort_by("uid").combine_chunks()
        found += corpora.keyed(join_shard(rows, file.name, codes, [Thresholds()]).pairs, rows).to_pylist()
        if layout == "webdataset":
            assert set(made.rows["uid"].to_pylist()) <= {uid(pair.url, pair.caption) for pair in pairs}
    assert foreign.by_picture(found) == expected
    assert seen == len(pairs)
    for row in found:  # the row and the key name the picture in the file
        number = int("".join(sign for sign in row["key"].rpartition("/")[2] if sign.isdigit()))
        assert foreign.sha256(pairs[number].image) == row["image_sha256"]
    stated = {row["method"] for row in found if row["source_exact"]}
    assert stated == (set() if layout == "struct_parquet" else {"source_sha256"})


def test_texts_that_no_table_can_hold(small: planted.Planted) -> None:
    """A lone surrogate, an endless caption; without a URL the uid is of the place."""
    entry = readers.Entry(4, "x.tar#4", "4", planted.flat(90), "https://e.org/\udc80", "y" * 10_000 + "\ud800")
    [row] = corpora.hash_rows([entry], withhold=False).rows.to_pylist()
    assert (row["url"], row["caption"]) == ("https://e.org/\\udc80", "y" * 8192)
    assert row["uid"] == uid("https://e.org/\udc80", "y" * 10_000 + "\ud800")
    page = "A man&#39;s dog &amp; a caf&eacute;"
    [row] = corpora.hash_rows([entry._replace(caption=page)], withhold=False).rows.to_pylist()
    assert (row["caption"], row["uid"]) == ("A man's dog & a caf\u00e9", uid("https://e.org/\udc80", page))
    [row] = corpora.hash_rows([entry._replace(url=None)], withhold=True).rows.to_pylist()
    assert (row["url"], row["caption"], row["uid"]) == (None, None, uid("x.tar#4", ""))


# ---- the whole job


def plant_rejects(folder: Path, pairs: list[foreign.Pair]) -> dict[str, Any]:
    """Two tars: one with a sample of each kind that cannot be used, one that is cut in its last sample."""
    folder.mkdir()
    bad = [
        ("x0.jpg", b"<html>404</html>"),
        ("x1.txt", b"no picture"),
        ("x2.png", TOO_WIDE),
        ("x3.jpg", pairs[0].image[:-200]),
    ]
    half = len(pairs) // 2
    (folder / "00000.tar").write_bytes(foreign.tar_bytes([*foreign.members_of(pairs[:half]), *bad]))
    cut = foreign.tar_bytes([*foreign.members_of(pairs[half:], half), ("z.jpg", bytes(3000)), ("zz.jpg", bytes(3000))])
    place = cut.index(b"zz.jpg")
    (folder / "00001.tar").write_bytes(cut[: place + 1000])
    return {"files": f"{folder}/*.tar", "layout": "webdataset"}


@pytest.mark.usefixtures("cluster")
def test_the_job_on_tars(small: planted.Planted, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Figures, rejects, evidence, removal list, `verify`, the trainer's root; the same bytes again, from another place."""
    pairs = foreign.pairs_of(small)
    corpus = plant_rejects(tmp_path / "in", pairs)
    config = tmp_path / "overlap.toml"
    report = tmp_path / "report"
    config.write_text(to_toml(config_of(small, corpus, report)), "utf-8")
    assert main(["overlap", "--config", str(config), "--check"]) is None
    assert "2 webdataset files, " in capsys.readouterr().out
    assert not report.exists()
    assert main(["overlap", "--config", str(config)]) is None
    said = capsys.readouterr().out
    told = read_report(str(report))
    assert told.corpus.rejected == {
        "image_too_large": 1,
        "image_truncated": 1,
        "no_image": 1,
        "not_an_image": 1,
    }
    assert (told.corpus.rows, told.corpus.shards, told.corpus.damaged_files) == (len(pairs), 2, 1)
    assert (
        f"{len(pairs)} rows in 2 webdataset files; not searched: 1 image too large, 1 image truncated, 1 no image, "
        "1 not an image; 1 damaged, searched up to the damage" in said
    )
    assert {row["eval_id"] for row in read_split(report) if row["in_overlap"]} == set(small.answers)
    assert {row["eval_id"]: row["text_method"] for row in read_split(report) if row["text_method"]} == small.texts
    matched = pq.read_table(report / files.PAIRS).to_pylist()
    assert {row["eval_id"] for row in matched if row["names_label"]} == {"e001"}, (
        "the other name is Chinese, and not given here"
    )
    lines = (report / files.REMOVAL).read_text("utf-8").splitlines()
    assert lines == [
        "\t".join(map(str, place)) for place in sorted((row["shard"], row["row"], row["key"]) for row in matched)
    ]
    assert all(foreign.sha256(pairs[int(row["key"])].image) == row["image_sha256"] for row in matched)
    misses = [row for row in pq.read_table(report / files.NEAREST).to_pylist() if row["eval_id"] not in small.answers]
    cards = len(small.answers) + len(misses)
    assert (report / files.PAGE).read_text("utf-8").count("data:image/jpeg;base64,") == 2 * cards
    assert verify(str(report)) == []
    # The trainer reads the same rows of the same tars, and calls them by the same root.
    trained = tars.open_tars(tars.find(str(corpus["files"])), str(tmp_path), rank=0, world_size=1, wait=lambda: None)
    assert trained.content_root == told.corpus.content_root
    assert trained.rows == told.corpus.rows + sum(told.corpus.rejected.values())
    # Touched and moved: listed again, not decoded again, and the same report.
    (tmp_path / "in").rename(tmp_path / "moved")
    os.utime(tmp_path / "moved" / "00000.tar", (1, 1))
    records = sorted((tmp_path / "report.work" / "index").rglob("*.json"))
    decoded = [path.stat().st_mtime_ns for path in records]
    before = contents(report)
    assert main(["overlap", "--config", str(config), f"corpus.files={tmp_path}/moved/*.tar"]) is None
    assert contents(report) == before
    assert [path.stat().st_mtime_ns for path in records] == decoded
    # Another corpus: refused, because evidence is not overwritten.
    (tmp_path / "moved" / "00001.tar").unlink()
    with pytest.raises(InputError, match="already holds a report with another corpus_content_root"):
        main(["overlap", "--config", str(config), f"corpus.files={tmp_path}/moved/*.tar"])


def read_split(report: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(report / "splits" / "scenes.parquet").to_pylist()
    return rows


def contents(folder: Path) -> dict[str, bytes]:
    return {str(one.relative_to(folder)): one.read_bytes() for one in sorted(folder.rglob("*")) if one.is_file()}


@pytest.mark.usefixtures("cluster")
def test_hash_only_keeps_no_text_of_a_folder(small: planted.Planted, tmp_path: Path) -> None:
    pairs = foreign.pairs_of(small)
    corpus = foreign.write_folder(tmp_path / "in", pairs)
    config = config_of(small, corpus, tmp_path / "report")
    config = config.model_copy(update={"report": config.report.model_copy(update={"evidence": "hash-only"})})
    told = job.run(config)
    assert {row["eval_id"] for row in read_split(tmp_path / "report") if row["in_overlap"]} == set(small.answers)
    said = {pair.caption for number, pair in enumerate(pairs) if number % 3}  # others have no texts beside them
    expected = small.texts if planted.sentence(0).upper() in said else {}
    assert {
        row["eval_id"]: row["text_method"] for row in read_split(tmp_path / "report") if row["text_method"]
    } == expected
    assert (told.corpus.kind, told.corpus.content_root.partition(":")[0]) == ("folder", "folder")
    assert verify(str(tmp_path / "report")) == []
    for path in (path for path in tmp_path.rglob("*.parquet") if "evaluation" not in path.name):
        for name in {"url", "caption", "caption_raw"} & set(pq.read_schema(path).names):
            assert pq.read_table(path)[name].null_count == pq.read_metadata(path).num_rows, path


@pytest.mark.usefixtures("cluster")
def test_a_report_with_another_list_of_rows_is_caught(small: planted.Planted, tmp_path: Path) -> None:
    """The files resealed, as one would who wants a row to stay: `verify` names the list; and so with counts that no corpus has."""
    corpus = foreign.write_struct_parquet(tmp_path / "in", foreign.pairs_of(small))
    job.run(config_of(small, corpus, tmp_path / "report"))
    assert verify(str(tmp_path / "report")) == []
    seal = files.read_seal(str(tmp_path / "report"))
    whole = {name: (tmp_path / "report" / name).read_bytes() for name in seal.files}
    lines = whole[files.REMOVAL].splitlines(keepends=True)
    told = json.loads(whole[files.REPORT])
    told["corpus"]["rejected"] = {"bad_luck": 1}
    for changed, words in (
        ({files.REMOVAL: b"".join(lines[1:])}, "removal_ids.txt: is not the list of rows that the pairs give"),
        ({files.REPORT: files.canonical(told)}, "corpus.rejected is {'bad_luck': 1}"),
    ):
        files.publish(str(tmp_path / "report"), {**whole, **changed}, seal.inputs)
        assert any(words in problem for problem in verify(str(tmp_path / "report")))


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("layout", foreign.LAYOUTS)
def test_withheld_texts_are_read_from_the_files(small: planted.Planted, tmp_path: Path, layout: str) -> None:
    """What hash-only keeps out of its indexes the search for words still sees; and a finished search knows the pictures again."""
    pairs = foreign.pairs_of(small)
    config = config_of(small, foreign.LAYOUTS[layout](tmp_path / "in", pairs), tmp_path / "report").corpus
    found = corpora.find_files(config)
    texts = []
    for withhold in (False, True):
        with Run(str(tmp_path / f"work-{withhold}"), EngineConfig(), {}, "") as driver:
            corpus = corpora.of_files(driver, found, config, withhold=withhold)
        read = [
            (corpus.texts(one.shard, one.path), corpora.read_index(corpus.folder, one.path, withhold=False))
            for one in corpus.indexes
        ]
        assert all((table["caption"].null_count == table.num_rows) == withhold for _, table in read)
        texts.append([table.to_pylist() for table, _ in read])
    assert texts[0] == texts[1]
    assert sum(map(len, texts[0])) == len(pairs)
    places = [(index.shard, row["row"]) for index, rows in zip(corpus.indexes, texts[0], strict=True) for row in rows]
    again = corpora.pictures_of(config, str(tmp_path / "work-True"))(places)
    assert {foreign.sha256(data or b"") for data in again.values()} == {foreign.sha256(pair.image) for pair in pairs}
    assert again == corpus.pictures(places)
    # Whoever looks at every picture gets it with its place in the index.
    for index, rows in zip(corpus.indexes, texts[0], strict=True):
        stored = dict(corpus.stored(index.shard, index.path))
        assert [stored[place] for place in range(len(rows))] == [again[index.shard, row["row"]] for row in rows]
    with pytest.raises(InputError, match=r"has no listing of .* run `overlap` again"):
        corpora.pictures_of(config, str(tmp_path / "elsewhere"))


# ---- bad input


BAD = {
    "neither": ({}, "give manifest (a corpus of this project) or files"),
    "both": ({"manifest": "m", "files": "f", "layout": "folder"}, "give manifest (a corpus of this project) or files"),
    "no layout": ({"files": "f"}, "files and layout belong together"),
    "no file": ({"files": "[]", "layout": "folder"}, "files is [], which names nothing; name files"),
    "unknown layout": ({"files": "f", "layout": "zip"}, "corpus.layout"),
    "columns of tars": ({"files": "f", "layout": "webdataset", "image": "x"}, "which only the layout parquet has"),
    "nothing there": ({"files": "{folder}/none", "layout": "folder"}, "names no picture"),
    "no tar": ({"files": "{folder}/bad.tar", "layout": "webdataset"}, "bad.tar: has a header with the number"),
    "no row": ({"files": "{folder}/empty.tar", "layout": "webdataset"}, "holds no row at all"),
}


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("name", BAD)
def test_bad_input(small: planted.Planted, tmp_path: Path, name: str) -> None:
    table, said = BAD[name]
    (tmp_path / "bad.tar").write_bytes(b"<html>" * 200)
    (tmp_path / "empty.tar").write_bytes(foreign.tar_bytes([]))
    corpus = {key: value.format(folder=tmp_path) for key, value in table.items()}
    config = tmp_path / "overlap.toml"
    values = planted.overlap_config(small, tmp_path / "report").model_dump(exclude_none=True)
    config.write_text(
        to_toml(OverlapConfig.model_validate(values)).replace(f'manifest = "{small.corpus}"', ""), "utf-8"
    )
    overrides = [f"corpus.{key}={value}" for key, value in corpus.items()]
    with pytest.raises(InputError) as caught:
        main(["overlap", "--config", str(config), *overrides])
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.exit_code == 2
    assert not (tmp_path / "report").exists()
