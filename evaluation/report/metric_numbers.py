"""The figures of a set's own metric, where that is no proportion: from its scored examples to what `report.json` says of it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from evaluation.config import Metric, StatisticsConfig
from evaluation.metrics import METRICS, Answers
from evaluation.overlap import own_metric, statistics
from evaluation.report.schema import MetricEffect, Value


class OwnMetric(NamedTuple):
    """What the verdict reads, and what the report says."""

    inflation: statistics.Inflation
    figures: MetricEffect


def own_figures(metric: Metric, scored: pa.Table, levels: StatisticsConfig, tests: int) -> OwnMetric | None:
    """All figures of the scored examples (`overlap.examples`); None where the metric is accuracy, or nothing was scored."""
    if metric == "accuracy" or not scored.num_rows:
        return None
    answers, overlap = own_metric.answers_of(metric, scored), np.asarray(scored["in_overlap"], np.bool_)
    tested = statistics.inflation(
        METRICS[metric](answers),
        overlap,
        np.asarray(scored["cluster"], np.int64),
        alpha=levels.alpha,
        tests=tests,
        confidence=levels.confidence,
        draws=levels.draws,
        seed=levels.seed,
    )
    figures = MetricEffect(
        all=_value(metric, answers, np.ones_like(overlap)),
        clean=_value(metric, answers, ~overlap),
        overlap=_value(metric, answers, overlap),
        clean_units=tested.clean_units,
        overlap_units=tested.overlap_units,
        all_minus_clean=tested.value,
        low=tested.low,
        high=tested.high,
        least=tested.least,
        drawn=tested.drawn,
        p_value=tested.p_value,
        detectable_gain=tested.detectable_gain,
    )
    return OwnMetric(tested, figures)


def _value(metric: Metric, answers: Answers, chosen: NDArray[np.bool_]) -> Value:
    why = own_metric.undefined(metric, answers, chosen)
    return Value(
        n=int(chosen.sum()),
        classes=own_metric.classes_seen(metric, answers, chosen),
        value=own_metric.value(metric, answers, chosen) if why is None else None,
        undefined=why,
    )
