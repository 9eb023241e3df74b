"""The second hand for metrics that are no proportions: what `metrics`, `overlap.own_metric` and `overlap.statistics.inflation` compute,
computed another way for `verify`.

Nothing here may call them. What is shared is the random numbers, which are part of what a report states (seed and number of draws):
clusters from numpy's `default_rng(seed)`, placements from `default_rng((seed, 1))`. What is done with them is of another hand: every figure
is a function of weights (how often each example counts), areas come from ranks among the negatives, precisions are looked at where a right
answer stands, means over classes are sums over sorted rows, quantiles are read off a sorted list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from evaluation.report.twin import Row, units

Weights = NDArray[np.int64]
Metric = Callable[[Weights], float | None]
_SAME = 1e-12
_POWER = 0.8
_PARTS = 200


def broken(metric: str, row: Row, first: Row) -> str | None:
    """What is wrong with what a scored row says of its answer, as the end of a sentence; `first` is the set's first scored row."""
    lists = {name: row[name] for name in ("top5", "scores", "marks")}
    if any(not isinstance(one, (int, float)) or one != one for found in lists.values() for one in _list(found)):
        return "has a list with what is no number"
    if not isinstance(row["label"], int) and metric != "map11":
        return "has an outcome and no label"
    needed = {"mean_top1_top5": {"top5"}, "roc_auc": {"scores"}, "map11": {"scores", "marks"}}.get(metric, set())
    if any(len(_list(row[name])) != len(_list(first[name])) for name in lists):
        return "has a list of another length than the first example"
    if {name for name, found in lists.items() if found is not None} != needed:
        return f"has not just {' and '.join(sorted(needed)) or 'no list'}, as {metric} needs"
    top5, scores, marks = lists.values()
    best = top5[0] if isinstance(top5, list) else None
    if isinstance(scores, list):
        if not scores:
            return "has no score"
        if metric == "roc_auc" and len(scores) != 2:
            return f"has {len(scores)} scores of two classes"
        best = max(range(len(scores)), key=lambda k: (scores[k], -k))
    if isinstance(marks, list):
        if len(marks) != len(scores if isinstance(scores, list) else []) or not set(marks) <= {-1, 0, 1}:
            return "has not one mark for each score"
        right = marks[best if isinstance(best, int) else 0] == 1
    else:
        right = best == row["label"] if best is not None else row["correct"] is True
    return None if right == row["correct"] else "its list gives another answer than `correct`"


# ---- the metrics, as functions of weights; None where there is no value


def function(metric: str, rows: Sequence[Row]) -> Metric:
    """A metric over examples, which count as often as their weight says."""
    return {"mean_per_class": _per_class, "mean_top1_top5": _top1_top5, "roc_auc": _area, "map11": _precision}[metric](
        rows
    )


def missing(metric: str, rows: Sequence[Row]) -> str:
    """Why there is no value over these rows, in the report's words."""
    if not rows:
        return "no example"
    if metric == "map11":
        return "no class has an example"
    return f"no example of class {1 if all(row['label'] == 0 for row in rows) else 0}"


def classes(metric: str, rows: Sequence[Row]) -> int | None:
    """How many classes a mean over classes is over."""
    if metric == "mean_per_class":
        return len({row["label"] for row in rows})
    if metric == "map11":
        return len({k for row in rows for k, mark in enumerate(_list(row["marks"])) if mark == 1})
    return None


def _per_class(rows: Sequence[Row]) -> Metric:
    labels = np.array([row["label"] for row in rows], np.int64)
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1)) if len(rows) else np.empty(0, np.int64)
    right = np.array([row["correct"] is True for row in rows], np.int64)[order]

    def of(weights: Weights) -> float | None:
        if not weights.any():
            return None
        sizes, hits = (np.add.reduceat(weights[order] * side, starts) for side in (1, right))
        return float(np.mean([hit / size for hit, size in zip(hits.tolist(), sizes.tolist(), strict=True) if size]))

    return of


def _top1_top5(rows: Sequence[Row]) -> Metric:
    points = np.array([(row["correct"] is True) + (row["label"] in _list(row["top5"])) for row in rows], np.int64)

    def of(weights: Weights) -> float | None:
        return int(weights @ points) / (2 * int(weights.sum())) if weights.any() else None

    return of


def _area(rows: Sequence[Row]) -> Metric:
    """Of every positive: the negatives that lie below it, and half of those beside it."""
    margin = np.array([float(_list(row["scores"])[1]) - float(_list(row["scores"])[0]) for row in rows])
    positive = np.array([row["label"] == 1 for row in rows], np.bool_)
    places = np.flatnonzero(~positive)
    places = places[np.argsort(margin[places], kind="stable")]
    below, beside = (np.searchsorted(margin[places], margin[positive], side) for side in ("left", "right"))

    def of(weights: Weights) -> float | None:
        negatives = np.concatenate([[0], np.cumsum(weights[places])])
        positives = weights[positive]
        if not positives.any() or not negatives[-1]:
            return None
        twice = int(positives @ (negatives[below] + negatives[beside]))
        return twice / (2 * int(positives.sum()) * int(negatives[-1]))

    return of


def _precision(rows: Sequence[Row]) -> Metric:
    """Of every class the examples that count, from the highest score down (equal ones as they come), and where the right ones stand."""
    ranked = []
    for k in range(max((len(_list(row["marks"])) for row in rows), default=0)):
        counted = [n for n, row in enumerate(rows) if _list(row["marks"])[k] != -1]
        counted.sort(key=lambda n: -_list(rows[n]["scores"])[k])
        right = [place for place, n in enumerate(counted) if _list(rows[n]["marks"])[k] == 1]
        ranked.append((np.array(counted, np.int64), np.array(right, np.int64)))

    def of(weights: Weights) -> float | None:
        found = []
        for order, right in ranked:
            listed = weights[order]
            hits = np.cumsum(listed[right])
            if not len(hits) or not hits[-1]:
                continue
            there = listed[right] > 0
            hits, seen = hits[there], np.cumsum(listed)[right][there]
            precision = hits / seen
            found.append(sum(float(precision[10 * hits >= tenths * hits[-1]].max()) for tenths in range(11)) / 11)
        return sum(found) / len(found) if found else None

    return of


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


# ---- All − Clean, drawn anew


def inflation(
    metric: str, rows: Sequence[Row], *, alpha: float, confidence: float, draws: int, seed: int
) -> dict[str, float | int | None]:
    """The figures of `schema.MetricEffect` beside its three values, for the corrected `alpha`."""
    overlap = np.array([row["in_overlap"] is True for row in rows], np.bool_)
    clean_units, overlap_units = units(rows)
    m, k = len(clean_units) + len(overlap_units), len(overlap_units)
    counted = function(metric, rows)

    def difference(weights: Weights, side: NDArray[np.bool_]) -> float | None:
        whole, rest = counted(weights), counted(weights * ~side)
        return None if whole is None or rest is None else whole - rest

    value = difference(np.ones(len(rows), np.int64), overlap)
    empty = dict.fromkeys(("low", "high", "least", "p_value", "detectable_gain"))
    found: dict[str, float | int | None] = {"clean_units": m - k, "overlap_units": k, "all_minus_clean": value}
    if not 0 < k < m or value is None:
        return {**found, **empty, "drawn": 0}
    number: dict[object, int] = {}
    unit = np.array([number.setdefault(row["cluster"], len(number)) for row in rows], np.int64)
    random = np.random.default_rng(seed)
    drawn = [difference(np.bincount(random.integers(0, m, m), minlength=m)[unit], overlap) for _ in range(draws)]
    parts = min(m, _PARTS)
    without = [difference((unit % parts != part).astype(np.int64), overlap) for part in range(parts)]
    known = sorted(one for one in drawn if one is not None)
    quantile = _bca(value, known, [one for one in without if one is not None])

    first = _firsts(unit, m)
    once = np.zeros(len(rows), np.int64)
    once[first] = 1
    dealt = np.random.default_rng((seed, 1))
    place_of = {id(row): n for n, row in enumerate(rows)}
    seen = difference(once, _marked(len(rows), [place_of[id(row)] for row in overlap_units]))
    chance = [difference(once, _marked(len(rows), first[dealt.permutation(m)[:k]])) for _ in range(draws)]
    reached = sorted((float("inf") if one is None else one for one in chance), reverse=True)
    p_value = None if seen is None else (1 + sum(one >= seen - _SAME for one in reached)) / (draws + 1)
    allowed = int(alpha * (draws + 1)) - 1
    gain = None
    if 0 <= allowed < draws and reached[allowed] < float("inf") and len(known) > 1:
        mean = sum(known) / len(known)
        error = (sum((one - mean) ** 2 for one in known) / (len(known) - 1)) ** 0.5
        gain = (reached[allowed] + float(norm.ppf(_POWER)) * error) * m / k
    return {
        **found,
        "low": quantile((1 - confidence) / 2),
        "high": quantile((1 + confidence) / 2),
        "least": quantile(alpha),
        "drawn": len(known),
        "p_value": p_value,
        "detectable_gain": gain,
    }


def _firsts(unit: NDArray[np.int64], m: int) -> NDArray[np.int64]:
    """The first row of each unit."""
    first = np.full(m, len(unit), np.int64)
    np.minimum.at(first, unit, np.arange(len(unit)))
    return first


def _marked(n: int, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[np.bool_]:
    marked = np.zeros(n, np.bool_)
    marked[np.asarray(rows, np.int64)] = True
    return marked


def _bca(value: float, drawn: Sequence[float], without: Sequence[float]) -> Callable[[float], float | None]:
    """Efron's (1987) quantile at a level; None everywhere where the draws are all alike or all on one side of the value."""
    below = sum(one < value - _SAME for one in drawn) + sum(abs(one - value) <= _SAME for one in drawn) / 2
    if not 0 < below < len(drawn) or drawn[-1] - drawn[0] < _SAME:
        return lambda level: None
    bias = float(norm.ppf(below / len(drawn)))
    middle = sum(without) / len(without)
    spread = sum((middle - one) ** 2 for one in without)
    skewness = sum((middle - one) ** 3 for one in without) / (6 * spread**1.5) if spread >= _SAME**2 else 0.0

    def at(level: float) -> float:
        moved = bias + float(norm.ppf(level))
        place = float(norm.cdf(bias + moved / (1 - skewness * moved))) * (len(drawn) - 1)
        lower = min(int(place), len(drawn) - 2)
        return drawn[lower] + (place - lower) * (drawn[lower + 1] - drawn[lower])

    return at
