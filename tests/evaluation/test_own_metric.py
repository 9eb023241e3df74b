"""Metrics that are no proportions in the overlap report: against scikit-learn, against the hand of `verify`, and what is refused."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import recall_score, roc_auc_score, top_k_accuracy_score

from evaluation import scoring, zeroshot
from evaluation.config import Metric, OverlapSet, StatisticsConfig
from evaluation.metrics import Answers
from evaluation.overlap.examples import examples
from evaluation.overlap.splits import read_predictions
from evaluation.overlap.tables import SCORE_COLUMNS
from evaluation.report import metric_twin, twin
from evaluation.report.metric_numbers import own_figures
from evaluation.report.schema import MetricEffect
from pipeline.content.labelled import LabelledSet, open_set
from pipeline.contracts.errors import InputError
from tests.evaluation.test_metrics import devkit_ap

LEVELS = StatisticsConfig(draws=200)
_MOST = 9  # classes
OTHERS: list[Metric] = ["mean_per_class", "mean_top1_top5", "roc_auc", "map11"]
_SCORED = pa.schema(
    [
        pa.field("in_overlap", pa.bool_()),
        pa.field("cluster", pa.int64()),
        pa.field("label", pa.int32()),
        pa.field("correct", pa.bool_()),
        pa.field("group", pa.string()),
        pa.field("method", pa.string()),
        pa.field("seen", pa.bool_()),
        *SCORE_COLUMNS,
    ]
)


def scored(metric: Metric, seed: int, *, videos: bool = False) -> pa.Table:
    """The scored rows of a split: scores of few levels, so that many are equal, clusters of several, some in Overlap."""
    draws = np.random.default_rng(seed)
    n, classes = int(draws.integers(30, 250)), 2 if metric == "roc_auc" else int(draws.integers(3, _MOST))
    group = [f"v{number}" for number in draws.integers(0, max(8, n // 3), n)] if videos else None
    spoken = draws.integers(0, n, n) if group is None else np.unique(group, return_index=True, return_inverse=True)[2]
    labels = draws.integers(0, classes, n).astype(np.int32)[spoken % n if videos else slice(None)]
    marks = draws.choice(np.array([1, 0, -1], np.int8), (n, classes), p=[0.3, 0.6, 0.1])
    truth = marks == 1 if metric == "map11" else np.eye(classes, dtype=bool)[labels]
    scores = (draws.integers(0, 9, (n, classes)) + 2 * truth).astype(np.float32)
    scores = (
        scores[np.unique(spoken, return_index=True)[1]][np.unique(spoken, return_inverse=True)[1]] if videos else scores
    )
    best = zeroshot.rank(scores)
    right = np.take_along_axis(marks == 1, best[:, :1], 1)[:, 0] if metric == "map11" else best[:, 0] == labels
    lists = {
        "top5": best.tolist() if metric == "mean_top1_top5" else None,
        "scores": scores.tolist() if metric in ("roc_auc", "map11") else None,
        "marks": marks.tolist() if metric == "map11" else None,
        "group": group,
        "method": None,
        "seen": None,
    }
    return pa.table(
        {
            "in_overlap": draws.random(n) < 0.3,
            "cluster": draws.integers(0, 9 * n if videos else n, n),
            "label": pa.array(labels, pa.int32(), mask=np.full(n, metric == "map11")),
            "correct": right,
            **{name: [None] * n if one is None else one for name, one in lists.items()},
        },
        schema=pa.schema([_SCORED.field(name) for name in ("in_overlap", "cluster", "label", "correct", *lists)]),
    )


def value(metric: Metric, rows: list[dict[str, Any]]) -> float:
    """By scikit-learn, or by the development kit's definition."""
    labels, right = [row["label"] for row in rows], [row["correct"] for row in rows]
    scores = np.array([row["scores"] for row in rows]) if metric in ("roc_auc", "map11") else np.zeros((0, 0))
    if metric == "roc_auc":
        return float(roc_auc_score(labels, scores[:, 1] - scores[:, 0]))
    if metric == "map11":
        marks = np.array([row["marks"] for row in rows])
        found = [devkit_ap(scores[:, k].tolist(), marks[:, k].tolist()) for k in range(marks.shape[1])]
        known = [float(one) for one in found if one is not None]
        return sum(known) / len(known)
    if metric == "mean_per_class":
        said = [label if hit else -1 for label, hit in zip(labels, right, strict=True)]
        return float(recall_score(labels, said, labels=sorted(set(labels)), average="macro", zero_division=0))
    listed = [row["top5"] for row in rows]
    ranks = np.zeros((len(rows), _MOST))
    for row, best in enumerate(listed):
        ranks[row, best] = np.arange(len(best), 0, -1)
    top = [top_k_accuracy_score(labels, ranks, k=k, labels=np.arange(_MOST)) for k in (1, 5)]
    return float(np.mean(top))


def figures(metric: Metric, table: pa.Table) -> MetricEffect:
    found = own_figures(metric, examples(table).table, LEVELS, 2)
    assert found is not None
    return found.figures


@pytest.mark.parametrize("metric", OTHERS)
def test_all_clean_and_overlap_are_what_scikit_learn_says(metric: Metric) -> None:
    for seed in range(4):
        table = scored(metric, seed)
        rows = table.to_pylist()
        found = figures(metric, table)
        for side, chosen in (
            (found.all, rows),
            (found.clean, [row for row in rows if not row["in_overlap"]]),
            (found.overlap, [row for row in rows if row["in_overlap"]]),
        ):
            assert side.n == len(chosen)
            assert side.value == pytest.approx(value(metric, chosen), abs=1e-6 if metric == "map11" else 1e-12)
        assert found.all_minus_clean == pytest.approx((found.all.value or 0) - (found.clean.value or 0), abs=1e-15)


@pytest.mark.parametrize("videos", [False, True])
@pytest.mark.parametrize("metric", OTHERS)
def test_both_hands_agree(metric: Metric, videos: bool) -> None:
    """Every figure, draws and all; also of videos that share pictures."""
    for seed in range(2):
        table = scored(metric, 100 + seed, videos=videos)
        found = figures(metric, table)
        rows = twin.examples(table.to_pylist())
        theirs = metric_twin.inflation(metric, rows, alpha=0.025, confidence=0.995, draws=200, seed=0)
        for name, figure in theirs.items():
            assert getattr(found, name) == pytest.approx(figure, abs=1e-11), (seed, name)
        assert found.all.n == len(rows) == (len(set(table["group"].to_pylist())) if videos else table.num_rows)
        assert found.low is not None
        for side, chosen in ((found.clean, False), (found.overlap, True)):
            some = [row for row in rows if row["in_overlap"] == chosen]
            assert side.value == pytest.approx(
                metric_twin.function(metric, some)(np.ones(len(some), np.int64)), abs=1e-12
            )
            assert side.classes == metric_twin.classes(metric, some)


def test_what_has_no_value_says_why() -> None:
    table = scored("roc_auc", 7)
    one_class = pa.array(np.where(table["in_overlap"], 1, table["label"]), pa.int32())
    found = figures("roc_auc", table.set_column(2, "label", one_class))
    assert (found.overlap.value, found.overlap.undefined) == (None, "no example of class 0")
    assert found.all_minus_clean is not None, "Clean has both classes"
    everything = figures(
        "map11", scored("map11", 8).set_column(0, "in_overlap", pa.array([True] * scored("map11", 8).num_rows))
    )
    assert (everything.clean.undefined, everything.clean.classes) == ("no example", 0)
    assert (everything.all_minus_clean, everything.low, everything.p_value) == (None, None, None)
    for metric in OTHERS:
        assert own_figures(metric, scored(metric, 9).slice(0, 0), LEVELS, 1) is None
    assert own_figures("accuracy", scored("mean_per_class", 9), LEVELS, 1) is None


# ---- what comes in


def a_set(folder: Path, label: pa.Array, **more: object) -> LabelledSet:
    """Ten pictures (bytes that no one opens) of two classes."""
    data = [f"picture {number}".encode() for number in range(10)]
    pq.write_table(
        pa.table({"id": [f"e{n}" for n in range(10)], "image": data, "label": label}), folder / "set.parquet"
    )
    values = {
        "name": "set",
        "path": str(folder / "set.parquet"),
        "id": "id",
        "label": "label",
        "classes": ["no", "yes"],
    }
    return open_set(OverlapSet.model_validate({**values, **more}))


def predicted(folder: Path, labelled: LabelledSet, scores: np.ndarray, *, keep: bool = True) -> str:
    rows = np.arange(len(labelled))
    answers = Answers(scores, zeroshot.rank(scores), labelled.labels, labelled.marks)
    table = zeroshot.prediction_table(labelled, rows, answers, keep_scores=keep)
    return scoring.write_predictions(str(folder / "out"), labelled, table, scoring.ModelIdentity("aa" * 32, None))


def test_scores_come_into_the_split(tmp_path: Path) -> None:
    labelled = a_set(tmp_path, pa.array([0, 1] * 5, pa.int32()))
    scores = np.random.default_rng(3).random((10, 2)).astype(np.float32)
    place = predicted(tmp_path, labelled, scores)
    found = read_predictions(place, labelled, "hash", "roc_auc")
    assert found.scores["scores"].to_pylist() == scores.tolist()
    assert found.scores["marks"].null_count == found.scores["top5"].null_count == 10
    plain = read_predictions(place, labelled, "hash").scores
    assert all(plain[name].null_count == 10 for name in plain.column_names), "accuracy needs nothing"


@pytest.mark.parametrize(
    ("metric", "change", "said"),
    [
        ("map11", None, "map11 does not go with one label an example"),
        ("roc_auc", {"scores": None}, "column 'scores' is missing; the set's metric needs it"),
        ("roc_auc", {"scores": [[0.5]] * 10}, "column 'scores' has not 2 entries in every row"),
        ("roc_auc", {"scores": [None] * 10}, "column 'scores' has not 2 entries in every row"),
        ("roc_auc", {"scores": [[0.5, None]] * 10}, "column 'scores' has values that are no numbers"),
        ("roc_auc", {"scores": [[0.5, float("nan")]] * 10}, "column 'scores' has values that are no numbers"),
        ("roc_auc", {"scores": [[0.0, 1.0]] * 10}, "`correct` does not follow from 'scores'"),
        ("mean_top1_top5", {"top5": [[0, 7]] * 10}, "column 'top5' names a class that the set has not"),
        ("mean_top1_top5", {"top5": [[0, 1]] * 10}, "`correct` does not follow from 'top5'"),
        ("mean_top1_top5", {"top5": ["no"] * 10}, "has a column 'top5' of string, which no predictions have"),
    ],
)
def test_predictions_that_do_not_carry_the_metric(
    tmp_path: Path, metric: Metric, change: dict[str, list[object] | None] | None, said: str
) -> None:
    labelled = a_set(tmp_path, pa.array([0, 1] * 5, pa.int32()))
    scores = np.eye(2, dtype=np.float32)[np.arange(10) // 3 % 2]
    place = predicted(tmp_path, labelled, scores)
    table = pq.read_table(place)
    for name, values in (change or {}).items():
        field = table.schema.field(name)
        kind = pa.string() if values is not None and isinstance(values[0], str) else field.type
        number = table.column_names.index(name)
        table = table.drop_columns([name]) if values is None else table.set_column(number, name, pa.array(values, kind))
    pq.write_table(table, place)
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        read_predictions(place, labelled, "hash", metric)
    assert len(str(caught.value).splitlines()) == 1
