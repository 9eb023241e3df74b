"""`python -m evaluation groups PLACE …`: the worst subgroup of a set, how far it is behind the best, and whether that is more than luck.

Of many equal groups one is always the worst, and the smaller the groups the further it lies behind. So three things stand beside each
other: every group's accuracy with an interval that holds for all of them at once (Clopper-Pearson at Bonferroni's level), the interval
of the worst and of the gap by bootstrap of the examples of each group, and what a gap of this size would say if the groups did not
matter: the answers are dealt out to the groups anew, at random, and the gaps that this gives are counted.

The bootstrap's worst lies lower than the true one on average, because each draw chooses its own worst; its interval is therefore wider
on that side.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evaluation.intervals import DRAWS, Interval, clopper_pearson
from evaluation.predictions import Predictions
from pipeline.contracts.config import Json

_SEED = 0


@dataclasses.dataclass(frozen=True)
class Group:
    """One subgroup's accuracy; the interval holds for all groups together."""

    name: str
    n: int
    hits: int
    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class WorstGroup:
    """`gap` is best minus worst. `gap_by_luck` is the mean gap when groups do not matter, `p` how often it is then as large as seen."""

    groups: list[Group]
    worst: str
    best: str
    worst_accuracy: Interval
    gap: Interval
    gap_by_luck: float
    p: float


def worst_group(correct: NDArray[np.bool_], groups: Sequence[str | None], confidence: float) -> WorstGroup:
    """From outcomes bool[n] and the group of each example; examples without a group are left out.

    Raises ValueError for fewer than two groups.
    """
    names = sorted({group for group in groups if group is not None})
    if len(names) < 2:
        raise ValueError(f"{len(names)} groups; a worst one needs two")
    place = {name: number for number, name in enumerate(names)}
    kept = np.array([group is not None for group in groups])
    number = np.array([place[group] for group in groups if group is not None])
    n = np.bincount(number)
    hits = np.bincount(number, weights=correct[kept]).astype(np.int64)
    rates = hits / n
    level = 1 - (1 - confidence) / len(names)
    found = [
        Group(name, int(n[k]), int(hits[k]), float(rates[k]), *clopper_pearson(int(hits[k]), int(n[k]), level))
        for k, name in enumerate(names)
    ]
    random = np.random.default_rng(_SEED)
    drawn = random.binomial(n, rates, size=(DRAWS, len(names))) / n
    dealt = random.multivariate_hypergeometric(n, int(hits.sum()), size=DRAWS) / n
    by_luck = np.ptp(dealt, axis=1)
    gap = float(np.ptp(rates))
    return WorstGroup(
        groups=found,
        worst=names[int(rates.argmin())],
        best=names[int(rates.argmax())],
        worst_accuracy=_interval(float(rates.min()), drawn.min(axis=1), confidence),
        gap=_interval(gap, np.ptp(drawn, axis=1), confidence),
        gap_by_luck=float(by_luck.mean()),
        p=float((1 + (by_luck >= gap - 1e-12).sum()) / (1 + DRAWS)),
    )


def of_predictions(one: Predictions, confidence: float) -> WorstGroup | None:
    """The worst subgroup of a prediction file, a picture counted once; None where it has fewer than two groups."""
    units = one.units()
    groups = [] if one.subgroups is None else [one.subgroups[row] for row in units]
    if len({group for group in groups if group is not None}) < 2:
        return None
    return worst_group(one.correct[units], groups, confidence)


def describe(name: str, found: WorstGroup) -> str:
    """The lines for the terminal."""
    lines = [f"{name}: {len(found.groups)} groups"]
    lines += [
        f"  {group.name:24} {group.value:7.2%}  ({group.low:.2%} to {group.high:.2%})   {group.n:,} pictures"
        for group in found.groups
    ]
    if found.gap.value:
        lines.append(
            f"  worst: {found.worst!r} {_said(found.worst_accuracy)}; behind {found.best!r} by {_said(found.gap)}"
        )
    else:
        lines.append(f"  none is behind another: all have {found.worst_accuracy.value:.2%}; gap {_said(found.gap)}")
    lines.append(
        f"  if the groups did not matter: a gap of {found.gap_by_luck:.2%} on average, one as large as this with probability {found.p:.3g}"
    )
    return "\n".join(lines)


def as_json(found: WorstGroup) -> dict[str, Json]:
    """The same figures for machines."""
    plain: dict[str, Json] = dataclasses.asdict(found)
    return plain


def _interval(value: float, draws: NDArray[np.float64], confidence: float) -> Interval:
    if np.ptp(draws) == 0:
        return Interval(value, None, None)
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, float(low), float(high))


def _said(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return f"{interval.value:.2%} (no interval)"
    return f"{interval.value:.2%} ({interval.low:.2%} to {interval.high:.2%})"
