"""One report, made by the real command, in which a picture and a caption stand in more corpus rows than the tables hold, and in which every
metric that is no proportion has a set, and videos that are scored by accuracy have one: the figures, what `verify` computes again, and what
it finds when they are forged."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import binomtest

from evaluation import scoring, zeroshot
from evaluation.config import Metric, OverlapConfig
from evaluation.datasets import open_set
from evaluation.metrics import METRICS, Answers
from evaluation.overlap.exposure import Training
from evaluation.report import files, verify
from evaluation.report.files import read_report
from evaluation.report.metric_twin import broken
from evaluation.report.removal_check import check_removal
from evaluation.report.schema import Report, SetReport
from pipeline.content.hashes import HASH_VERSION
from pipeline.contracts import manifest
from pipeline.contracts.config import to_toml
from pipeline.contracts.schema import SHARD_SCHEMA
from tests.evaluation import planted
from tests.evaluation.forging import restate
from tests.evaluation.made import command
from tests.evaluation.test_report import contents, reseal

Row = dict[str, Any]
TRAINING = Training(samples_seen=15, seed=5, window_row_groups=2)
"""Half an epoch; the model of `clips` was trained on this corpus."""
N, LEAKED, KEPT = 24, 8, 2
_METRICS: dict[str, Metric] = {
    "words": "mean_per_class",
    "two": "roc_auc",
    "several": "map11",
    "videos": "mean_top1_top5",
}
CLIP = (np.arange(N) + 1) // 2
"""The video that each picture of the set `clips` is of: the first and the last have one frame, the fourth one that leaked and one that did
not. The frame of the last shows the picture of row 10."""


class Many:
    """The folder, the planted answers, and the report. Examples 0 to 7 leaked; picture 0 stands in seven rows, caption 9 in six."""

    def __init__(self, folder: Path) -> None:
        pictures = [planted.picture(k, "evaluation", 1 + k % 12) for k in range(N)]
        rows = [(planted.reencoded(pictures[k], "JPEG", 0.9, 60), f"picture number {k}") for k in range(LEAKED)]
        rows += [(planted.reencoded(pictures[0], "JPEG", 1.0, 40 + 5 * k), planted.sentence(8)) for k in range(6)]
        rows += [(planted.reencoded(pictures[1], "JPEG", 0.8, 90), planted.sentence(1))]
        rows += [(planted.picture(900 + k, "web"), f"{k}: {planted.sentence(9)}") for k in range(6)]
        rows += [(planted.picture(950 + k, "web"), f"picture number {950 + k}") for k in range(9)]
        corpus: list[Row] = [
            planted.corpus_row(number, data, caption=caption) for number, (data, caption) in enumerate(rows)
        ]
        self.removed = {bytes(row["uid"]).hex() for row in corpus[: LEAKED + 7]}
        self.by_words = {bytes(row["uid"]).hex() for row in corpus[LEAKED + 7 : LEAKED + 13]}
        pieces = [pa.Table.from_pylist(corpus, schema=SHARD_SCHEMA)]
        manifest.write_corpus(str(folder / "corpus"), pieces, rows_per_shard=8, hashes=HASH_VERSION)
        draws = np.random.default_rng(4)
        labels = {
            "words": pa.array([k % 3 for k in range(N)], pa.int32()),
            "two": pa.array([k // 2 % 2 for k in range(N)], pa.int32()),
            "several": pa.array([[k % 3, 2] if k % 5 else [k % 3] for k in range(N)], pa.list_(pa.int32())),
            "videos": pa.array([k // 2 % 6 for k in range(N)], pa.int32()),
            "clips": pa.array(CLIP % 6, pa.int32()),
        }
        sets = []
        for name, column in labels.items():
            classes = {"two": 2, "videos": 7, "clips": 7}.get(name, 3)
            table = {
                "id": [f"{name}{k:02d}" for k in range(N)],
                "image": pictures if name != "clips" else [*pictures[:-1], pictures[10]],
                "label": column,
                "caption": [planted.sentence(k) for k in range(N)],
                "video": [f"v{clip}" for clip in (CLIP if name == "clips" else np.arange(N) // 2)],
            }
            pq.write_table(pa.table(table), folder / f"{name}.parquet")
            columns: dict[str, Row] = {
                "words": {"caption": "caption"},
                "videos": {"group": "video", "absent_classes": True},
                "clips": {"group": "video", "absent_classes": True},
            }
            one: Row = {
                "name": name,
                "path": str(folder / f"{name}.parquet"),
                "id": "id",
                "label": "label",
                "limit": 1.0,
            }
            one |= {
                "classes": [f"class {k}" for k in range(classes)],
                "metric": _METRICS.get(name, "accuracy"),
                **columns.get(name, {}),
            }
            sets.append({**one, "predictions": str(folder / "out" / "predictions" / f"{name}.parquet")})
        values = {
            "corpus": {"manifest": str(folder / "corpus")},
            "sets": sets,
            "report": {"dir": str(folder / "report"), "pairs_kept": KEPT},
            "engine": {"workers": 2},
            "copies": {"examples": 0},
            "nearest": {"examples": 4},
            "statistics": {"draws": 300, "seed": 7},
        }
        config = OverlapConfig.model_validate(values)
        self.answers: dict[str, Answers] = {}
        for one_set in config.sets:
            labelled = open_set(one_set)
            classes = len(labelled.classes)
            truth = labelled.marks == 1 if labelled.marks is not None else np.eye(classes, dtype=bool)[labelled.labels]
            sure = 3.0 * truth * (np.arange(N) < LEAKED)[:, None]
            scores = (draws.integers(0, 6, (N, classes)) + sure).astype(np.float32)
            if labelled.groups is not None:
                scores = scores[[labelled.groups.index(video) for video in labelled.groups]]
            answers = Answers(scores, zeroshot.rank(scores), labelled.labels, labelled.marks)
            self.answers[labelled.name] = answers
            predicted = zeroshot.prediction_table(labelled, np.arange(N), answers, keep_scores=True)
            root = manifest.load(str(folder / "corpus")).content_root if labelled.name == "clips" else None
            model = scoring.ModelIdentity("ab" * 32, root, training=TRAINING)
            scoring.write_predictions(str(folder / "out"), labelled, predicted, model)
        self.config, self.folder = folder / "many.toml", folder / "report"
        self.config.write_text(to_toml(config), "utf-8")
        self.result = command("overlap", "--config", str(self.config))


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Many:
    return Many(tmp_path_factory.mktemp("many"))


@pytest.fixture
def copy(many: Many, tmp_path: Path) -> Path:
    return Path(shutil.copytree(many.folder, tmp_path / "copy"))


def of(report: Report, name: str) -> SetReport:
    return next(one for one in report.sets if one.name == name)


def test_verify_finds_nothing(many: Many) -> None:
    assert many.result.returncode == 0, many.result.stderr
    assert verify(str(many.folder)) == []


def test_counts_are_of_all_and_tables_hold_two(many: Many) -> None:
    words = of(read_report(str(many.folder)), "words")
    split = pq.read_table(many.folder / "splits" / "words.parquet").to_pylist()
    assert [row["pairs"] for row in split] == [7, 2, *[1] * 6, *[0] * 16]
    assert (words.found.share.hits, words.found.pairs, words.found.corpus_rows) == (8, 15, 15)
    pairs = [row for row in pq.read_table(many.folder / "pairs.parquet").to_pylist() if row["set"] == "words"]
    held = [row for row in pairs if row["eval_row"] == 0]
    assert words.found.pairs_held == len(pairs) < 15
    assert split[0]["pdq_distance"] == min(row["pdq_distance"] for row in held)
    methods = {method: sum(row["method"] == method for row in held) for method in ("pdq", "phash")}
    assert max(methods.values()) == KEPT
    assert set((many.folder / "removal_ids.txt").read_text().split()) == many.removed


def test_words_are_counted_and_listed_too(many: Many) -> None:
    """Caption 8 stands beside picture 0 six times, caption 9 in six rows of its own, caption 1 beside its own picture."""
    report = read_report(str(many.folder))
    captions = of(report, "words").text.captions
    assert captions is not None
    assert (captions.share.hits, captions.pairs, captions.corpus_rows, captions.with_picture) == (3, 13, 13, 1)
    table = pq.read_table(many.folder / "text_pairs.parquet").to_pylist()
    assert sorted((row["text"], row["method"], row["with_picture"]) for row in table) == [
        (1, "exact", True), (8, "exact", False), (8, "exact", False), (9, "contained", False), (9, "contained", False),
    ]  # fmt: skip
    assert captions.pairs_held == 5
    assert set((many.folder / "removal_ids_text.txt").read_text().split()) == many.by_words
    assert (report.removal.pictures, report.removal.captions) == (15, 6)


def test_every_metric_is_the_one_of_the_predictions(many: Many) -> None:
    report = read_report(str(many.folder))
    assert report.statistics.tests == 5
    for name, metric in _METRICS.items():
        one, answers = of(report, name), many.answers[name]
        assert one.metric == metric
        assert one.effect is not None
        own = one.effect.own
        assert own is not None
        step = 2 if name == "videos" else 1
        some = np.arange(0, N, step)
        counts = {
            "all": np.isin(np.arange(N), some).astype(np.int64),
            "clean": np.isin(np.arange(N), some[some >= LEAKED]).astype(np.int64),
            "overlap": np.isin(np.arange(N), some[some < LEAKED]).astype(np.int64),
        }
        for side, chosen in counts.items():
            assert getattr(own, side).n == chosen.sum()
            assert getattr(own, side).value == pytest.approx(METRICS[metric](answers)(chosen), abs=1e-12)
        assert own.all_minus_clean == pytest.approx((own.all.value or 0) - (own.clean.value or 0), abs=1e-15)
        assert own.overlap_units == LEAKED // step
        assert one.effect.holm_p is not None
        assert own.p_value is not None
        assert one.effect.holm_p >= own.p_value
        assert one.verdict in ("overlap, effect", "not testable")
        assert (one.effect.by_class is None) == (metric == "map11"), "several labels are no classes"


def test_of_videos_scored_by_accuracy_a_video_is_the_example(many: Many) -> None:
    """Worked out from the plan: a video is in Overlap if a frame of it leaked, and those of rows 10 and 23 are one unit."""
    clips = of(read_report(str(many.folder)), "clips")
    assert (clips.examples, clips.frames, clips.repeated_pictures, clips.clusters) == (13, 24, 1, 12)
    assert (clips.found.share.hits, clips.found.share.n) == (5, 13)
    assert sum(clips.found.by_method.values()) == 5
    assert clips.found.pairs == 15, "pairs are of pictures"
    answers, first = many.answers["clips"], np.unique(CLIP, return_index=True)[1]
    right = answers.hit[first]
    effect = clips.effect
    assert effect is not None
    assert effect.own is None
    for share, chosen in ((effect.all, right), (effect.clean, right[5:]), (effect.overlap, right[:5])):
        assert (share.hits, share.n) == (chosen.sum(), len(chosen))
    assert (effect.clean_units.hits, effect.clean_units.n) == (right[5:12].sum(), 7)
    assert (effect.overlap_units.hits, effect.overlap_units.n) == (right[:5].sum(), 5)
    null = right[5:12].mean()
    assert effect.p_value == pytest.approx(binomtest(int(right[:5].sum()), 5, null, alternative="greater").pvalue)
    assert effect.all_minus_clean == pytest.approx(right.mean() - right[5:].mean())
    assert effect.by_class is not None
    assert effect.by_class.units <= 12
    widest = clips.sweep[-1]
    split = pq.read_table(many.folder / "splits" / "clips.parquet").to_pylist()
    assert {row["group"] for row in split if row["in_overlap"]} == {f"v{clip}" for clip in range(5)}
    assert [row["in_overlap"] for row in split] == [True] * 8 + [False] * 16, "a split has a row for each picture"
    alone = {row["group"] for row in split if row["method"] in ("source_sha256", "image_sha256", "pdq")}
    assert widest.overlapping == widest.scored == len(alone)
    seen = {row["group"] for row in split if row["seen"]}
    assert clips.exposure is not None
    assert (clips.exposure.share.hits, clips.exposure.share.n) == (len(seen), 5)
    assert clips.exposure.seen.n + clips.exposure.unseen.n == 5
    assert clips.text.labels is not None
    assert clips.text.labels.named.n == 5, "every matched picture has a caption beside it"


def test_the_page_and_the_summary_show_them(many: Many) -> None:
    text = (many.folder / "report.html").read_text("utf-8")
    for said in (
        "mean per class",
        "11-point mAP",
        "ROC AUC",
        "mean of top-1, top-5",
        "300 times from seed 7",
        "in the table",
    ):
        assert said in text
    assert re.search(r"they move the ROC AUC by [+−][0-9.]+ points", many.result.stdout)
    columns = list(csv.DictReader((many.folder / "summary.csv").read_text().splitlines()))
    assert [row["metric"] for row in columns] == [*_METRICS.values(), "accuracy"]
    assert all(float(row["metric_all"]) > 0 for row in columns[:4])
    assert [row["frames"] for row in columns] == ["", "", "", "24", "24"]
    assert "clips: 5 of 13 videos (38.46 %) are in the corpus" in many.result.stdout
    assert "videos of 24 frames" in text
    assert (columns[0]["pairs"], columns[0]["corpus_rows"]) == ("15", "15")


@pytest.mark.prove
def test_one_worker_holds_the_same(many: Many, tmp_path: Path) -> None:
    again = tmp_path / "again"
    result = command("overlap", "--config", str(many.config), f"report.dir={again}", "engine.workers=1")
    assert result.returncode == 0, result.stderr
    assert contents(again) == contents(many.folder)


FORGED: list[dict[tuple[str | int, ...], object]] = [
    {
        ("sets", 0, "effect", "own", "all", "value"): 0.99,
        ("sets", 0, "effect", "own", "clean", "classes"): 2,
        ("sets", 0, "effect", "own", "drawn"): 299_999,
        ("sets", 0, "found", "pairs"): 14,
        ("sets", 0, "found", "pairs_held"): 15,
        ("sets", 0, "text", "captions", "pairs"): 12,
        ("sets", 0, "text", "captions", "pairs_held"): 13,
        ("sets", 1, "effect", "own", "overlap", "value"): 0.5,
        ("sets", 1, "effect", "own", "all_minus_clean"): 0.0,
        ("sets", 1, "effect", "own", "low"): 0.0,
        ("sets", 1, "found", "corpus_rows"): 16,
        ("sets", 2, "effect", "own", "high"): 0.9,
        ("sets", 2, "effect", "own", "least"): 0.5,
        ("sets", 2, "effect", "own", "p_value"): 0.9,
        ("sets", 3, "effect", "own", "detectable_gain"): 0.01,
        ("sets", 3, "effect", "own", "all", "n"): 24,
        ("sets", 3, "effect", "own", "overlap_units"): 8,
        ("sets", 3, "effect", "own", "overlap", "undefined"): "no example",
        ("sets", 3, "effect", "holm_p"): 1.5,
        ("sets", 3, "verdict"): "clean",
        ("sets", 4, "examples"): 24,
        ("sets", 4, "frames"): None,
        ("sets", 4, "clusters"): 23,
        ("sets", 4, "found", "share", "n"): 24,
        ("sets", 4, "effect", "all", "n"): 24,
        ("sets", 4, "effect", "overlap_units", "n"): 8,
        ("sets", 4, "effect", "detectable_gain"): 0.1,
        ("sets", 4, "exposure", "share", "n"): 8,
        ("removal", "pictures"): 14,
        ("removal", "captions"): 7,
    },
    {
        ("sets", 0, "metric"): "accuracy",
        ("sets", 0, "text", "captions", "corpus_rows"): 14,
        ("sets", 1, "effect", "own"): None,
        ("statistics", "draws"): 200,
        ("statistics", "seed"): 8,
        ("pairs_kept",): 3,
    },
]


@pytest.mark.parametrize("forged", FORGED, ids=["figures", "settings"])
def test_every_forged_figure_is_found(many: Many, copy: Path, forged: dict[tuple[str | int, ...], object]) -> None:
    report = json.loads((copy / "report.json").read_bytes())
    for path, value in forged.items():
        restate(report, path, value)
    reseal(copy, "report.json", files.canonical(report))
    problems = verify(str(copy))
    for path in forged:
        named = [f"sets.{report['sets'][path[1]]['name']}", *path[2:]] if path[0] == "sets" else path
        said = ".".join(str(key) for key in named)
        assert any("report.json" in problem and said in problem for problem in problems), (said, problems)


EDITS: dict[str, list[tuple[Callable[[list[Row]], object], str]]] = {
    "splits/words.parquet": [
        (lambda rows: rows[0].update(pairs=1), "has 2 pairs, its split says 1"),
        (lambda rows: rows[3].update(pairs=4), "has 1 pairs, its split says 4"),
        (lambda rows: rows[1].update(phash_distance=60), "the least phash_distance of its pairs"),
        (lambda rows: rows[9].update(text_pairs=1), "example 'words09': its text pairs give"),
        (lambda rows: rows[1].update(text_pairs=2), "example 'words01': its text pairs give"),
    ],
    "splits/two.parquet": [
        (lambda rows: rows[5].update(scores=[0.0, None]), "has a list with what is no number"),
        (lambda rows: rows[6].update(scores=[2 * one for one in rows[6]["scores"]]), "example 'two06': scores are ["),
    ],
    "splits/several.parquet": [(lambda rows: rows[6].update(marks=[7, 0, 0]), "has not one mark for each score")],
    "splits/videos.parquet": [
        (lambda rows: rows[7].update(top5=[9, *rows[7]["top5"][1:]]), "gives another answer than `correct`")
    ],
    "splits/clips.parquet": [
        (lambda rows: rows[9].update(group="v11"), "is a frame of video 'v5', its split says 'v11'"),
        (
            lambda rows: rows[12].update(correct=not rows[12]["correct"]),
            "another label or answer than the frames of its",
        ),
        (lambda rows: rows[15].update(group=None), "has pictures that are frames of a video and others"),
    ],
    "text_pairs.parquet": [
        (lambda rows: rows[0].update(with_picture=False), "with_picture is not what the pictures say"),
        (lambda rows: rows.append({**rows[-1], "row": 7_000}), "more than the 2 that the table holds"),
    ],
    "pairs.parquet": [
        (lambda rows: rows.append({**rows[-1], "row": 7_000}), "has 2 pairs, its split says 1"),
    ],
}


def test_every_forged_table_is_found(copy: Path) -> None:
    for name, edits in EDITS.items():
        table = pq.read_table(copy / name)
        rows = table.to_pylist()
        for edit, _ in edits:
            edit(rows)
        pq.write_table(pa.Table.from_pylist(rows, table.schema), copy / name)
        reseal(copy, name, (copy / name).read_bytes())
    problems = verify(str(copy))
    for name, edits in EDITS.items():
        for _, said in edits:
            assert any(said in problem for problem in problems), (name, said, problems)


def test_a_list_of_another_kind_is_no_score() -> None:
    """What `verify` says of the lists of a scored row, one by one."""
    two: Row = {"top5": None, "scores": [0.5, 0.25], "marks": None, "label": 0, "correct": True}
    for change, said in (
        ({}, None),
        ({"scores": None}, "has a list of another length"),
        ({"top5": [0, 1]}, "has a list of another length"),
        ({"scores": [0.5, 0.75]}, "gives another answer"),
        ({"scores": [0.5, 0.5]}, None),
        ({"label": None}, "has an outcome and no label"),
        ({"scores": [0.5, float("nan")]}, "what is no number"),
    ):
        found = broken("roc_auc", {**two, **change}, two)
        assert found is None if said is None else said in (found or ""), change
    for scores, said in ((None, "has not just scores"), ([], "has no score")):
        assert said in (broken("roc_auc", {**two, "scores": scores}, {**two, "scores": scores}) or "")
    three: Row = {**two, "scores": [0.5, 0.25, 0.1]}
    assert "3 scores of two classes" in (broken("roc_auc", three, three) or "")
    assert "has not just no list" in (broken("mean_per_class", two, two) or "")


@pytest.mark.parametrize("name", [files.REMOVAL, files.REMOVAL_TEXT])
def test_a_forged_list_is_found(copy: Path, name: str) -> None:
    report = read_report(str(copy))
    pairs, words = (pq.read_table(copy / table).to_pylist() for table in (files.PAIRS, files.TEXT_PAIRS))
    assert list(check_removal(str(copy), report, pairs, words)) == []
    lines = (copy / name).read_text().splitlines()
    held = {row["uid"].hex() for row in (pairs if name == files.REMOVAL else words)}
    shown = next(line for line in lines if line in held)
    unseen = next(line for line in lines if line not in held)
    for forged, said in (
        ([line for line in lines if line != shown], "is not the list of uids"),
        ([line for line in lines if line != unseen], "removal."),
        (sorted([*lines, "00" * 16]), "removal."),
        (lines[::-1], "is not the list of uids"),
        (sorted([*lines, shown]), "is not the list of uids"),
        ([*lines[:-1], "z" * 32], "is not the list of uids"),
    ):
        (copy / name).write_text("".join(f"{line}\n" for line in forged))
        assert any(said in problem for problem in check_removal(str(copy), report, pairs, words)), forged
