"""The overlap job with a learned descriptor: it finds what hashes lose and no look-alike, looks at the corpus once, and is checked."""

import csv
import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from numpy.typing import NDArray

from evaluation.__main__ import main
from evaluation.config import OverlapConfig
from evaluation.descriptor import train
from evaluation.descriptor.config import AugmentationConfig
from evaluation.overlap import job
from evaluation.overlap.measures import DESCRIPTOR, PDQ
from evaluation.overlap.tables import LABEL_SCHEMA, NEAREST_SCHEMA
from evaluation.overlap.thresholds import calibrate
from evaluation.report import files, verify
from evaluation.report.descriptor_check import check_scores, impossible_scores
from evaluation.report.schema import Report
from evaluation.report.summary import calibration_lines
from pipeline.contracts.config import to_toml
from tests.conftest import ROOT
from tests.e2e import pipelines
from tests.evaluation import foreign, planted
from tests.evaluation.descriptor_cases import tiny, write_set

SCORE = 0.998
"""Far above what would do for a descriptor that learned for longer: this one takes any two quiet pictures for alike."""


@dataclass(frozen=True)
class Looked:
    """A planted corpus, a descriptor that was trained in seconds, the job's configuration and its report."""

    planted: planted.Planted
    weights: Path
    config: OverlapConfig
    report: Path
    told: Report


def train_for_seconds(folder: Path) -> Path:
    """A descriptor of scenes that are neither in the set nor in the corpus."""
    write_set(folder / "others.parquet", [planted.picture(20_000 + k, "web") for k in range(80)])
    how = tiny(folder / "others.parquet", folder / "weights", steps=30, rate=1e-2, batch=32, small=1.0)
    easy = dict.fromkeys(AugmentationConfig.model_fields, 0.0) | {
        "crop": 0.5,
        "flip": 0.5,
        "border": 0.4,
        "jpeg": 0.3,
    }
    train.train(how.model_copy(update={"augmentation": AugmentationConfig.model_validate(easy)}))
    return folder / "weights"


def config_of(made: planted.Planted, weights: Path, report: Path, **more: object) -> OverlapConfig:
    """`scenes` by the descriptor too, `blind` (some of the same examples) without it deciding."""
    sets = [
        planted.set_table(made, thresholds={"descriptor_score": SCORE}),
        planted.set_table(made, name="blind", where={"label": 7}),
    ]
    looks = {"weights": str(weights), "beta": 0.0, "part_margin": 0.0}
    tables = {"sets": sets, "descriptor": looks, "nearest": {"examples": 20}}
    return planted.overlap_config(made, report, **{**tables, **more})


@pytest.fixture(scope="module")
def looked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Looked]:
    folder = tmp_path_factory.mktemp("looked")
    made = planted.plant(folder, examples=12, leaks=5, others=30, changed=True)
    weights = train_for_seconds(folder)
    config = config_of(made, weights, folder / "report")
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    yield Looked(made, weights, config, folder / "report", job.run(config))
    ray.shutdown()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(one.relative_to(folder)): one.read_bytes() for one in sorted(folder.rglob("*")) if one.is_file()}


def rows_of(folder: Path, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder / name).to_pylist()
    return rows


def test_it_finds_what_hashes_lose_and_no_look_alike(looked: Looked) -> None:
    scenes, blind = looked.told.sets
    found = {
        row["eval_id"]: row["method"] for row in rows_of(looked.report, "splits/scenes.parquet") if row["in_overlap"]
    }
    assert {name for name, method in found.items() if method != "descriptor"} == set(looked.planted.answers)
    assert {name for name, method in found.items() if method == "descriptor"} == set(looked.planted.changed)
    assert scenes.found.by_method["descriptor"] == len(looked.planted.changed) == 7
    assert blind.found.by_method["descriptor"] == blind.found.share.hits == 0, "its threshold is not set"
    pairs = rows_of(looked.report, files.PAIRS)
    assert len(pairs) == len(found), "no look-alike"
    rows = {
        row["uid"]: row
        for shard in looked.planted.corpus.glob("*.index.parquet")
        for row in pq.read_table(shard).to_pylist()
    }
    for pair in pairs:
        if pair["method"] == "descriptor":
            number = int(pair["eval_id"][1:])
            assert rows[pair["uid"]]["source"] == f"planted#{4000 + number}"
            assert pair["pdq_distance"] > 31
        assert pair["descriptor_score"] == pair["descriptor_cosine"] >= SCORE, "what hashes found has its score too"


def test_the_report_says_which_descriptor_looked(looked: Looked) -> None:
    card = json.loads((looked.weights / "card.json").read_bytes())
    about = looked.told.descriptor
    assert about is not None
    assert json.loads(about.card.model_dump_json()) == card
    assert about.rows_without_vector == 3, "the blank frames"
    seal = files.read_seal(str(looked.report))
    assert seal.inputs["descriptor_sha256"] == card["weights_sha256"]
    page = (looked.report / files.PAGE).read_text("utf-8")
    for said in (
        card["weights_sha256"],
        "a changed copy, by the learned descriptor",
        "with half of it, middle",
        "Descriptor score at least",
    ):
        assert said in page
    assert "were cropped, rotated, mirrored or framed" in " ".join(looked.told.not_checked), (
        "of `blind` it is still true"
    )
    with (looked.report / files.SUMMARY).open() as lines:
        assert [line["descriptor"] for line in csv.DictReader(lines)] == ["7", "0"]
    scenes, blind = looked.told.sets
    recalls = {recall.transform: recall for recall in scenes.copies}
    for change in planted.CHANGES:
        assert (recalls[change].pdq, recalls[change].phash, recalls[change].descriptor) == (0, 0, 3), change
        assert recalls[change].found.hits == 3
    assert {recall.descriptor for recall in blind.copies} == {0}
    scores = [step.score for step in scenes.score_sweep]
    assert (scores[0], scores[4], scores[-1], len(scores)) == (SCORE, 0.999, 1.0, 9)
    counts = [step.overlapping for step in scenes.score_sweep]
    assert (counts[0], counts[-1]) == (12, 5)
    assert counts == sorted(counts, reverse=True)
    assert blind.score_sweep == []


def test_verify_is_silent_and_removal_has_the_copies(looked: Looked) -> None:
    assert verify(str(looked.report)) == []
    removed = (looked.report / files.REMOVAL).read_text().split()
    assert removed == sorted(
        pair["uid"].hex() for pair in rows_of(looked.report, files.PAIRS) if pair["set"] == "scenes"
    )


def test_the_nearest_by_score_is_that_of_comparing_all(looked: Looked) -> None:
    """By the committed vectors (beta is 0): the planted copy of each example, which PDQ loses; where nothing decides, a near miss."""
    [looks] = Path(f"{looked.report}.work").glob("views/*/0000-*.parquet")
    views = pq.read_table(looks).to_pylist()
    sides = sorted(looked.planted.corpus.glob("derived/vectors/*/*.parquet"))
    rows = [
        (row["uid"], side["vector"])
        for index, vectors in zip(sorted(looked.planted.corpus.glob("*.index.parquet")), sides, strict=True)
        for row, side in zip(pq.read_table(index).to_pylist(), pq.read_table(vectors).to_pylist(), strict=True)
        if side["vector"] is not None and row["pdq_quality"] >= 50
    ]

    def directions(vectors: list[bytes]) -> NDArray[np.float64]:
        wide = np.stack([np.frombuffer(vector, np.int8) for vector in vectors]).astype(float)
        lengths: NDArray[np.float64] = np.linalg.norm(wide, axis=1, keepdims=True)
        return wide / lengths

    theirs = directions([vector for _, vector in rows])
    near = rows_of(looked.report, files.NEAREST)
    scenes = [row for row in near if row["set"] == "scenes"]
    by_score = [row for row in scenes if row["measure"] == "descriptor"]
    assert [row["eval_row"] for row in by_score] == [row["eval_row"] for row in scenes if row["measure"] == "pdq"]
    for row in by_score:
        ours = directions([view["vector"] for view in views if view["eval_row"] == row["eval_row"]])
        table = (ours @ theirs.T).max(axis=0)
        assert row["descriptor_score"] == row["descriptor_cosine"] == pytest.approx(table.max(), abs=1e-12)
        assert row["uid"] == rows[int(table.argmax())][0]
    pairs = {(pair["eval_id"], pair["uid"]): pair for pair in rows_of(looked.report, files.PAIRS)}
    for row in by_score:
        pair = pairs[row["eval_id"], row["uid"]]
        assert [pair[name] for name in ("descriptor_score", "descriptor_view", "pdq_distance")] == [
            row[name] for name in ("descriptor_score", "descriptor_view", "pdq_distance")
        ]
    lost = {row["eval_id"] for row in scenes if row["measure"] == "pdq" and (row["eval_id"], row["uid"]) not in pairs}
    assert lost, "PDQ's nearest of a cropped picture is a stranger"
    assert lost <= set(looked.planted.changed)
    told, blind = looked.told.sets
    assert told.score_nearest is not None
    assert (told.score_nearest.sampled, told.score_nearest.counts[0]) == (12, 12)
    assert told.score_nearest.median == pytest.approx(np.median([row["descriptor_score"] for row in by_score]))
    assert (told.calibration, told.score_calibration) == (None, None)
    assert blind.score_nearest is not None
    page = (looked.report / files.PAGE).read_text("utf-8")
    for said in (
        "scenes, by PDQ: 0 of 0 sampled pictures",
        f"blind, by the descriptor: {blind.score_nearest.sampled} of {blind.score_nearest.sampled} sampled pictures",
        "The same by the descriptor: the score of the corpus picture that it finds nearest: for 12 pictures of scenes (median",
        "labelling.by=descriptor",
    ):
        assert said in page, said


def answers_to(looked: Looked, measure: str, rater: str) -> str:
    """What a person says who sees what is planted, of the nearest pictures by a measure: lines of a labels file."""
    pairs = {(pair["eval_id"], pair["uid"]) for pair in rows_of(looked.report, files.PAIRS)}
    lines = [
        {
            "set": row["set"],
            "measure": measure,
            "eval_id": row["eval_id"],
            "uid": row["uid"].hex(),
            "rater": rater,
            "answer": "same" if (row["eval_id"], row["uid"]) in pairs else "different",
        }
        for row in rows_of(looked.report, files.NEAREST)
        if row["measure"] == measure and row["set"] == "scenes"
    ]
    return "".join(json.dumps(line) + "\n" for line in lines)


def test_people_label_along_the_score_too(looked: Looked, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pages by either measure, what `thresholds` says of both kinds of answers, and a report that holds them and is checked."""
    config = tmp_path / "overlap.toml"
    config.write_text(to_toml(looked.config), "utf-8")
    for by in ("pdq", "descriptor"):
        assert main(["label", "--config", str(config), f"labelling.dir={tmp_path}/pages", f"labelling.by={by}"]) is None
        (tmp_path / f"{by}.jsonl").write_text(answers_to(looked, by, "Ada"), "utf-8")
    asked = {path: path.read_text("utf-8") for path in (tmp_path / "pages").rglob("*.html")}
    assert sorted(str(path.relative_to(tmp_path / "pages")) for path in asked) == [
        "blind.html",
        "descriptor/blind.html",
        "descriptor/scenes.html",
        "scenes.html",
    ]
    for path, page in asked.items():
        assert f'"measure": "{path.parent.name if path.parent.name == "descriptor" else "pdq"}"' in page
    by_score = asked[tmp_path / "pages" / "descriptor" / "scenes.html"]
    near = [row for row in rows_of(looked.report, files.NEAREST) if row["set"] == "scenes"]
    assert {row["uid"].hex() in by_score for row in near if row["measure"] == "descriptor"} == {True}
    capsys.readouterr()
    labels = [str(tmp_path / f"{by}.jsonl") for by in ("pdq", "descriptor")]
    assert main(["thresholds", str(looked.report), *labels]) is None
    told = capsys.readouterr().out
    for said in ("scenes: 12 pairs by 1 raters", "scenes by the descriptor: 12 pairs by 1 raters", "blind: no labels"):
        assert said in told
    assert "no score has a precision of 95% by its lower bound; label more pairs, or keep 0.998 as a convention" in told
    shutil.copytree(f"{looked.report}.work", tmp_path / "report.work")
    place = looked.config.report.model_copy(update={"dir": str(tmp_path / "report")})
    scenes, blind = job.run(looked.config.model_copy(update={"labels": labels, "report": place})).sets
    assert scenes.calibration is not None
    assert scenes.score_calibration is not None
    assert (scenes.score_calibration.answers, scenes.score_calibration.chosen) == (12, None)
    last = scenes.score_calibration.curve[-1]
    assert (last.answers, last.precision, last.recall) == (12, 1.0, 1.0)
    assert last.score >= SCORE
    assert scenes.calibration.curve[-1].precision < 1
    assert blind.score_calibration is None
    assert "By the descriptor's score" in (tmp_path / "report" / files.PAGE).read_text("utf-8")
    assert verify(str(tmp_path / "report")) == []
    report = json.loads((tmp_path / "report" / files.REPORT).read_bytes())
    forged = report["sets"][0]["score_calibration"]
    forged |= {"chosen": 0.5, "band": [1.0, 0.2], "answers": 100, "raters": ["Bo"]}
    forged["curve"][-1] |= {"precision_low": 0.99, "recall_low": 0.99}
    report["sets"][1]["score_calibration"] = forged
    (tmp_path / "report" / files.REPORT).write_bytes(files.canonical(report))
    reseal(tmp_path / "report")
    problems = "\n".join(verify(str(tmp_path / "report")))
    for name in (
        "chosen",
        "band",
        "answers",
        "raters",
        f"curve.{last.score}.precision_low",
        f"curve.{last.score}.recall_low",
    ):
        assert f"sets.scenes.score_calibration.{name} is" in problems, name
    assert "sets.blind.score_calibration is False" in problems


def test_a_chosen_score_is_told_with_the_copies_that_it_finds(looked: Looked) -> None:
    row = {"set": "scenes", "measure": "descriptor", "pdq_distance": 90, "uid": bytes(16), "shard": "", "row": 0}
    near = [
        {**row, "eval_row": number, "eval_id": "", "descriptor_score": 0.9, "pdq256": bytes(32), "pdq_quality": 90}
        for number in range(80)
    ]
    given = [{**one, "rater": "Ada", "answer": "same"} for one in near]
    closest, labels = (
        pa.Table.from_pylist(rows, schema) for rows, schema in ((near, NEAREST_SCHEMA), (given, LABEL_SCHEMA))
    )
    found = calibrate(labels, closest, DESCRIPTOR)
    assert found is not None
    copies = pq.read_table(looked.report / files.COPIES, filters=[("set", "=", "scenes")])
    lines = calibration_lines(looked.told.sets[0], found, copies, DESCRIPTOR)
    assert "  chosen: thresholds = { descriptor_score = 0.9 }   (the report used 0.998)" in lines
    assert lines[-1].startswith("  planted copies within it: recompressed, JPEG q10 3 of 3, ")
    assert "crop, half of the area 3 of 3" in lines[-1]
    assert calibrate(labels, closest, PDQ) is None


def test_another_audit_looks_at_no_picture_of_the_corpus_and_ends_with_the_same_bytes(
    looked: Looked, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One worker, another folder: the vectors beside the shards are as they were."""
    derived = looked.planted.corpus / "derived" / "vectors"
    before = {path: path.stat().st_mtime_ns for path in derived.rglob("*") if path.is_file()}
    shards = len(list(looked.planted.corpus.glob("*.index.parquet")))
    assert len(before) == 2 * shards
    config = tmp_path / "overlap.toml"
    config.write_text(to_toml(looked.config), "utf-8")
    overrides = [f"report.dir={tmp_path}/again", "engine.workers=1"]
    assert main(["overlap", "--config", str(config), "--check", *overrides]) is None
    assert (
        f"its vectors are kept in {looked.planted.corpus}/derived ({shards} of {shards} shards are there)"
        in capsys.readouterr().out
    )
    assert not (tmp_path / "again").exists()
    assert main(["overlap", "--config", str(config), *overrides]) is None
    assert contents(tmp_path / "again") == contents(looked.report)
    assert {path: path.stat().st_mtime_ns for path in derived.rglob("*") if path.is_file()} == before


# ---- forgeries


@pytest.fixture
def copy(looked: Looked, tmp_path: Path) -> Path:
    return Path(shutil.copytree(looked.report, tmp_path / "copy"))


def reseal(folder: Path) -> None:
    """What a forger would do at last: every hash that names a changed file."""
    seal = files.read_seal(str(folder))
    inside = {one: (folder / one).read_bytes() for one in seal.files}
    (folder / files.MANIFEST).write_bytes(files.seal(inside, seal.inputs))


def forge(folder: Path, name: str, changes: dict[str, dict[str, object]]) -> None:
    """Columns of the rows of examples."""
    table = pq.read_table(folder / name)
    rows = table.to_pylist()
    for row in rows:
        row |= changes.get(row["eval_id"], {})
    pq.write_table(pa.Table.from_pylist(rows, table.schema), folder / name)


def test_forged_scores_and_methods_are_found(copy: Path) -> None:
    """Each of another example: a score below the threshold, methods that are not the strongest, a split with another score or side."""
    changes: dict[str, dict[str, object]] = {
        "e002": {"method": "descriptor"},
        "e005": {"descriptor_score": 0.5, "descriptor_cosine": 0.5},
        "e006": {"method": "pdq"},
    }
    sides: dict[str, dict[str, object]] = {
        "e007": {"descriptor_score": 0.9981},
        "e008": {"method": "phash"},
        "e009": {"in_overlap": False, "method": None},
    }
    forge(copy, files.PAIRS, changes)
    forge(copy, files.split_name("scenes"), sides)
    forge(copy, files.COPIES, {row["eval_id"]: {"descriptor_score": None} for row in rows_of(copy, files.COPIES)})
    reseal(copy)
    problems = "\n".join(verify(str(copy)))
    for said in (
        "is a match by pdq, not by descriptor",
        "is a match by no method, not by descriptor",
        "is a match by descriptor, not by pdq",
        "example 'e005': the largest descriptor_score of its pairs is 0.5",
        "its split says 0.9981",
        "example 'e008': its pairs say descriptor, its split phash",
        "example 'e009': its pairs say descriptor, its split None",
        "sets.scenes.copies.crop, half of the area.descriptor is 3, the tables give 0",
        "sets.scenes.found.by_method",
        "sets.scenes.score_sweep.0.998.overlapping is 12, the tables give 11",
    ):
        assert said in problems, said


def test_forged_nearest_pictures_by_score_are_found(copy: Path) -> None:
    """One that is not as near as its pair, one of another score than its pair, one left out, one whose pair was taken out, one further."""
    table, pairs = pq.read_table(copy / files.NEAREST), pq.read_table(copy / files.PAIRS)
    rows = []
    for row in table.to_pylist():
        key = (row["set"], row["measure"], row["eval_id"])
        if key == ("scenes", "descriptor", "e005"):
            row |= {"descriptor_score": 0.9, "descriptor_cosine": 0.9}
        if key == ("scenes", "descriptor", "e006"):
            row |= {"descriptor_score": 1.0, "descriptor_cosine": 1.0}
        if key == ("scenes", "pdq", "e008"):
            row |= {"pdq_distance": row["pdq_distance"] + 1}
        if key != ("scenes", "descriptor", "e007"):
            rows.append(row)
    pq.write_table(pa.Table.from_pylist(rows, table.schema), copy / files.NEAREST)
    left = [row for row in pairs.to_pylist() if row["eval_id"] != "e009"]
    pq.write_table(pa.Table.from_pylist(left, pairs.schema), copy / files.PAIRS)
    reseal(copy)
    problems = "\n".join(verify(str(copy)))
    for said in (
        "example 'e005': a pair of it is nearer than the nearest picture by descriptor",
        "example 'e006': the descriptor says [1.0, 1.0, ",
        "example 'e007': has pairs with descriptor_score, and no nearest picture by it",
        "example 'e008': its distance is not that of its hashes",
        "example 'e009': its nearest picture is within the threshold and not among its pairs",
        "sets.scenes.score_nearest.sampled is 12, the tables give 11",
        "sets.scenes.score_nearest.counts is",
    ):
        assert said in problems, said
    for change, said in (
        ({"measure": "phash"}, "names a measure 'phash' that report.json does not have"),
        ({"measure": "descriptor", "descriptor_score": None}, "is named by descriptor and has no descriptor_score"),
        ({"descriptor_view": 40}, "with view 40"),
    ):
        pq.write_table(pa.Table.from_pylist([rows[0] | change, *rows[1:]], table.schema), copy / files.NEAREST)
        reseal(copy)
        assert any(files.NEAREST in problem and said in problem for problem in verify(str(copy))), said


FORGED: dict[str, tuple[tuple[str | int, ...], object]] = {
    "descriptor.beta is 1.0": (("descriptor", "beta"), 1.0),
    "descriptor.part_margin is 0.5": (("descriptor", "part_margin"), 0.5),
    "descriptor.rows_without_vector is 10000 of": (("descriptor", "rows_without_vector"), 10_000),
    "descriptor_sha256 is": (("descriptor", "card", "weights_sha256"), "00" * 32),
    "descriptor.views is": (("descriptor", "views"), ["mirrored", "quarters", "halves", "square", "whole"]),
    "sets: name, limit, thresholds, text": (("sets", 1, "thresholds", "descriptor_score"), 0.8),
    "sets.blind.score_sweep.score": (("sets", 1, "thresholds", "descriptor_score"), 0.8),
    ".score_sweep.0.9985.overlapping is 1, the tables give 12": (("sets", 0, "score_sweep", 2, "overlapping"), 1),
    "sets.scenes.score_sweep.score": (("sets", 0, "score_sweep", 1, "score"), 0.9981),
    "sets.scenes.score_nearest.median is 0.5": (("sets", 0, "score_nearest", "median"), 0.5),
    "sets.blind.score_nearest is null": (("sets", 1, "score_nearest"), None),
    "sets.scenes.found.by_method": (("sets", 0, "found", "by_method", "descriptor"), 3),
    "sets.scenes.copies.crop, half of the area.descriptor is 0": (("sets", 0, "copies", 14, "descriptor"), 0),
}
"""What `verify` says of a figure in report.json that was set to another value; all of them at once."""


def test_forged_figures_are_found(copy: Path) -> None:
    report = json.loads((copy / files.REPORT).read_bytes())
    for path, value in FORGED.values():
        place = report
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
    (copy / files.REPORT).write_bytes(files.canonical(report))
    reseal(copy)
    problems = "\n".join(verify(str(copy)))
    for said in FORGED:
        assert said in problems, said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"descriptor_score": 0.9985}, "score 0.9985 with view"),
        ({"descriptor_score": float("nan")}, "score nan with view"),
        ({"descriptor_score": 3.0, "descriptor_cosine": 3.0}, "cosine 3.0"),
        ({"descriptor_view": 32}, "with view 32"),
        ({"descriptor_view": None}, "with view None"),
        ({"descriptor_cosine": None}, "has cosine None"),
    ],
)
def test_columns_that_no_descriptor_gives(looked: Looked, change: dict[str, object], said: str) -> None:
    pairs = rows_of(looked.report, files.PAIRS)
    assert impossible_scores(looked.told, pairs) is None
    bare = looked.told.model_copy(update={"descriptor": None})
    assert "report.json names no descriptor" in str(impossible_scores(bare, pairs))
    found = impossible_scores(looked.told, [*pairs[:3], {**pairs[3], **change}])
    assert found is not None
    assert said in found


def test_a_view_has_one_lowering(looked: Looked) -> None:
    """With `beta`, two pairs of one view whose scores are lowered by different amounts: one of them is forged."""
    [pair, *_], split = rows_of(looked.report, files.PAIRS), rows_of(looked.report, files.split_name("scenes"))
    one = {**pair, "descriptor_cosine": 0.8, "descriptor_score": 0.6}
    other = {**pair, "descriptor_cosine": 0.9, "descriptor_score": 0.6, "row": 999}
    problems = list(check_scores("here", looked.told.sets[0], [one, other], split[:1]))
    assert len(problems) == 2
    assert "in row 999" in problems[0]
    assert "another of the same view by" in problems[0]
    assert "the largest descriptor_score of its pairs is 0.6" in problems[1]


# ---- other settings, other corpora


@pytest.mark.prove
def test_normalised_scores_and_whole_pictures(looked: Looked, tmp_path: Path) -> None:
    """`beta` lowers scores, and `whole` alone loses what is a part: another report, another folder of vectors, and `verify` follows."""
    descriptor = {
        "weights": str(looked.weights),
        "beta": 0.5,
        "part_margin": 0.0,
        "views": ["whole"],
        "vectors": str(tmp_path / "vectors"),
    }
    config = config_of(looked.planted, looked.weights, tmp_path / "report", descriptor=descriptor)
    told = job.run(config)
    assert told.descriptor is not None
    assert (told.descriptor.beta, told.descriptor.views) == (0.5, ["whole"])
    assert verify(str(tmp_path / "report")) == []
    pairs, before = (
        {(row["set"], row["eval_row"], row["uid"]): row for row in rows_of(folder, files.PAIRS)}
        for folder in (tmp_path / "report", looked.report)
    )
    for key, pair in pairs.items():
        assert pair["descriptor_view"] == 0
        assert pair["descriptor_score"] < pair["descriptor_cosine"] <= before[key]["descriptor_cosine"]
    made, kept = (
        sorted(path.name for path in place.rglob("*.parquet"))
        for place in (tmp_path / "vectors", looked.planted.corpus / "derived")
    )
    assert made == kept, "named by their bytes"


@pytest.mark.prove
def test_parts_have_a_margin(looked: Looked, tmp_path: Path) -> None:
    """What a part finds scores less by `part_margin`, what the whole picture finds does not; `verify` knows a view with the other's."""
    descriptor = {"weights": str(looked.weights), "beta": 0.0, "part_margin": 0.001}
    told = job.run(config_of(looked.planted, looked.weights, tmp_path / "report", descriptor=descriptor))
    assert told.descriptor is not None
    assert told.descriptor.part_margin == 0.001
    assert verify(str(tmp_path / "report")) == []
    rows = rows_of(tmp_path / "report", files.NEAREST) + rows_of(tmp_path / "report", files.PAIRS)
    scored = [row for row in rows if row["descriptor_score"] is not None]
    assert {row["descriptor_view"] == 0 for row in scored} == {True, False}
    for row in scored:
        margin = 0.0 if row["descriptor_view"] == 0 else 0.001
        assert row["descriptor_cosine"] - row["descriptor_score"] == pytest.approx(margin, abs=1e-12)
        other = {**row, "descriptor_view": 3 if row["descriptor_view"] == 0 else 0}
        assert f"with view {other['descriptor_view']} at beta = 0.0" in str(impossible_scores(told, [other]))


@pytest.mark.prove
@pytest.mark.parametrize("layout", ["webdataset", "folder"])
def test_a_corpus_of_others(looked: Looked, tmp_path: Path, layout: str) -> None:
    """The same pictures in files that others wrote: the same matches with the same scores; nothing is written beside the files."""
    pairs = foreign.pairs_of(looked.planted)
    corpus = foreign.LAYOUTS[layout](tmp_path / "in", pairs)
    before = contents(tmp_path / "in")
    job.run(config_of(looked.planted, looked.weights, tmp_path / "report", corpus=corpus))
    assert contents(tmp_path / "in") == before
    assert (tmp_path / "report.work" / "derived" / "vectors").is_dir()
    ours, theirs = (
        sorted(
            (row["eval_id"], row["method"] == "descriptor", row["image_sha256"], row["descriptor_score"])
            for row in rows_of(folder, files.PAIRS)
        )
        for folder in (tmp_path / "report", looked.report)
    )
    assert ours == theirs
    assert verify(str(tmp_path / "report")) == []


# ---- kills


@pytest.mark.prove
@pytest.mark.timeout(900)
def test_killed_while_it_looks(looked: Looked, tmp_path: Path) -> None:
    """One output is killed after every step of a unit's commit, of the corpus's vectors, of the sets' and of the join; then it goes on."""
    derived, work = looked.planted.corpus / "derived" / "vectors", Path(f"{looked.report}.work")
    units = {
        stage: sorted(folder.glob("????????????/*.json"))[-1].stem
        for stage, folder in (("vectors", derived), ("views", work / "views"), ("join", work / "join"))
    }
    config = tmp_path / "overlap.toml"
    config.write_text(to_toml(looked.config), "utf-8")
    places = [f"report.dir={tmp_path}/report", f"descriptor.vectors={tmp_path}/derived", "engine.workers=1"]
    command = [sys.executable, "-m", "evaluation", "overlap", "--config", str(config), *places]
    with pipelines.ray_folder() as folder:
        usual = pipelines.environment(folder)
        path = os.pathsep.join([str(ROOT / "tests" / "e2e" / "kill_point"), usual["PYTHONPATH"]])
        for stage, unit in units.items():
            for step in ("temporary", "renamed", "record"):
                armed = {**usual, "PYTHONPATH": path, "KILL_POINT": f"{stage}/{unit}/{step}"}
                launch = pipelines.start(command, tmp_path / "log", armed)
                assert launch.wait() == -signal.SIGKILL, launch.text()
                [inside] = tmp_path.rglob(f"{stage}/????????????")
                assert (inside / f"{unit}.json").exists() == (step == "record")
        launch = pipelines.start(command, tmp_path / "log", usual)
        assert launch.wait() == 0, launch.text()
    assert contents(tmp_path / "report") == contents(looked.report)
    kept, made = (
        {path.name: path.read_bytes() for path in place.rglob("*.parquet") if not path.name.startswith(".tmp-")}
        for place in (derived, tmp_path / "derived" / "vectors")
    )
    assert made == kept
