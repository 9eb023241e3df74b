"""The second hand for a set's own metric: its columns in the split, its three values, and All − Clean drawn anew."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from evaluation.report import metric_twin
from evaluation.report.differences import differ
from evaluation.report.schema import Effect, Report, SetReport
from evaluation.report.twin import Row


def check_metric(
    place: str, report: Report, one: SetReport, effect: Effect, split: list[Row], scored: list[Row]
) -> Iterator[str]:
    """Every figure of `effect.own`, and the columns of the split that it is of; `scored` are the examples with an outcome."""
    name = f"sets.{one.name}.effect.own"
    if one.metric == "accuracy" or effect.own is None:
        yield from differ(place, f"{name} (of {one.metric})", effect.own is None, one.metric == "accuracy")
        return
    rows = [row for row in split if row["correct"] is not None]
    for row in rows:
        problem = metric_twin.broken(one.metric, row, rows[0])
        if problem is not None:
            yield f"{place}: set {one.name!r}: example {row['eval_id']!r}: {problem}; write the report again"
            return
    sides = {
        "all": scored,
        "clean": [row for row in scored if not row["in_overlap"]],
        "overlap": [row for row in scored if row["in_overlap"]],
    }
    for key, chosen in sides.items():
        stated = getattr(effect.own, key)
        value = metric_twin.function(one.metric, chosen)(np.ones(len(chosen), np.int64))
        yield from differ(place, f"{name}.{key}.n", stated.n, len(chosen))
        yield from differ(place, f"{name}.{key}.classes", stated.classes, metric_twin.classes(one.metric, chosen))
        yield from differ(place, f"{name}.{key}.value", stated.value, value)
        why = None if value is not None else metric_twin.missing(one.metric, chosen)
        yield from differ(place, f"{name}.{key}.undefined", stated.undefined, why)
    levels = report.statistics
    computed = metric_twin.inflation(
        one.metric,
        scored,
        alpha=levels.alpha / levels.tests,
        confidence=levels.confidence,
        draws=levels.draws,
        seed=levels.seed,
    )
    for key, figure in computed.items():
        yield from differ(place, f"{name}.{key}", getattr(effect.own, key), figure)
