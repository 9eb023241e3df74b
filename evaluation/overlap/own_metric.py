"""A set's own metric where that is no proportion: what it needs of a predictions file, and its value over some of the examples.

Most sets are scored by accuracy, and `correct` says all. The paper's others need more: which classes came first (`top5`), every class's
score, every class's mark. These columns are checked here when they come in, go into the split table (`tables.SCORE_COLUMNS`), and are read
from there, so that whoever has the report has what its figures were computed from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from evaluation.config import Metric
from evaluation.metrics import METRICS, TOP, Answers
from evaluation.overlap.tables import SCORE_COLUMNS
from pipeline.content.labelled import LabelledSet
from pipeline.contracts.errors import InputError

_NEEDS: dict[Metric, str] = {"mean_top1_top5": "top5", "roc_auc": "scores", "map11": "scores"}


# ---- from the predictions into the split


def score_columns(
    place: str, table: pa.Table, rows: Sequence[int | None], labelled: LabelledSet, metric: Metric
) -> pa.Table:
    """SCORE_COLUMNS for every example, from a predictions file; `rows` are the examples' rows in it, None where they have none.

    Raises InputError where the column that the metric needs is missing, of another type, has an entry that is no list of a number for each
    class (for each of the best five), or gives another answer than `correct`.
    """
    columns: dict[str, pa.Array] = {field.name: pa.nulls(len(rows), field.type) for field in SCORE_COLUMNS}
    name = _NEEDS.get(metric)
    if name is not None:
        columns[name] = _checked(place, table, rows, labelled, name)
    if metric == "map11" and labelled.marks is not None:
        columns["marks"] = pa.array(labelled.marks.tolist(), columns["marks"].type)
    return pa.table(columns, schema=pa.schema(SCORE_COLUMNS))


def _checked(
    place: str, table: pa.Table, rows: Sequence[int | None], labelled: LabelledSet, name: str
) -> pa.ChunkedArray:
    kind, classes = pa.schema(SCORE_COLUMNS).field(name).type, len(labelled.classes)
    if name not in table.column_names or table[name].type != kind:
        found = "missing" if name not in table.column_names else f"{table[name].type}, not {kind}"
        raise InputError(f"{place}: column {name!r} is {found}; the set's metric needs it: score the set again")
    length = classes if name == "scores" else min(TOP, classes)
    column = table[name]
    lengths = pc.list_value_length(column)
    if column.null_count or not pc.all(pc.equal(lengths, length)).as_py():
        raise InputError(
            f"{place}: column {name!r} has not {length} entries in every row, which the set's metric needs; score the set again"
        )
    values = np.asarray(pc.list_flatten(column)).reshape(-1, length)
    if pc.list_flatten(column).null_count or not np.isfinite(values).all():
        raise InputError(f"{place}: column {name!r} has values that are no numbers; score the set again")
    if name == "top5" and not ((values >= 0) & (values < classes)).all():
        raise InputError(f"{place}: column 'top5' names a class that the set has not; score the set again")
    first = values[:, 0] if name == "top5" else np.argmax(values, axis=1)
    known = [(example, row) for example, row in enumerate(rows) if row is not None]
    examples, places = (np.array(side, np.int64) for side in zip(*known, strict=True))
    right = labelled.labels[examples] == first[places]
    if labelled.marks is not None:
        right = labelled.marks[examples, first[places]] == 1
    stated = np.asarray(table["correct"], np.bool_)[places]
    if (right != stated).any():
        odd = labelled.ids[int(examples[np.flatnonzero(right != stated)[0]])]
        raise InputError(f"{place}: example {odd!r}: `correct` does not follow from {name!r}; score the set again")
    return column.take(pa.array(rows, pa.int64()))


# ---- from the split to the answers


def answers_of(metric: Metric, scored: pa.Table) -> Answers:
    """What the metric's function reads of the scored examples; what it does not is left empty."""
    n = scored.num_rows
    if metric == "map11":
        marks = _lists(scored["marks"]).astype(np.int8)
        return Answers(_lists(scored["scores"]), np.zeros((n, 1), np.int32), np.full(n, -1, np.int32), marks)
    labels = np.asarray(scored["label"], np.int32)
    if metric == "roc_auc":
        return Answers(_lists(scored["scores"]), np.zeros((n, 1), np.int32), labels)
    right = np.asarray(scored["correct"], np.bool_)
    best = _lists(scored["top5"]) if metric == "mean_top1_top5" else np.where(right, labels, -1)[:, None]
    classes = int(labels.max(initial=0)) + 1
    return Answers(np.broadcast_to(np.float32(0), (n, classes)), best.astype(np.int32), labels)


def _lists(column: pa.ChunkedArray) -> NDArray[Any]:
    """Lists of one length as an array [n, length]."""
    return np.asarray(pc.list_flatten(column)).reshape(len(column), -1)


# ---- a metric over some of them


def value(metric: Metric, answers: Answers, chosen: NDArray[np.bool_]) -> float:
    """The metric over the chosen examples bool[n], of which `undefined` says nothing."""
    return METRICS[metric](answers)(chosen.astype(np.int64))


def undefined(metric: Metric, answers: Answers, chosen: NDArray[np.bool_]) -> str | None:
    """Why the metric has no value over the chosen examples bool[n]; None where it has one."""
    if not chosen.any():
        return "no example"
    if metric == "roc_auc":
        return next((f"no example of class {k}" for k in (0, 1) if not (answers.labels[chosen] == k).any()), None)
    if metric == "map11" and not classes_seen(metric, answers, chosen):
        return "no class has an example"
    return None


def classes_seen(metric: Metric, answers: Answers, chosen: NDArray[np.bool_]) -> int | None:
    """How many classes the metric is a mean over; None where it is no such mean."""
    if metric == "map11" and answers.marks is not None:
        return int((answers.marks[chosen] == 1).any(axis=0).sum())
    return len(np.unique(answers.labels[chosen])) if metric == "mean_per_class" else None
