"""How sure a figure is: intervals and tests that every score of the package uses, and nothing about pictures.

Proportions have exact intervals (Clopper-Pearson; of examples in clusters with their effective number), differences of two proportions
Newcombe's, everything else (a mean over classes, an average precision, a difference of such) is bootstrapped over independent units, which
are examples, or clusters of examples that are no independent evidence. Two models on the same examples are compared in pairs. Many tests
together are corrected by Holm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, betaincinv, gammaln, ndtr, ndtri, stdtrit

DRAWS = 2000
_JACKKNIFE_GROUPS = 200
_SEED = 0
FLAT = 1e-12
"""Of a bootstrap: draws that are nearer to each other than this differ by rounding only."""


@dataclass(frozen=True)
class Interval:
    """A figure and the ends of its interval; None where nothing can be said of them."""

    value: float
    low: float | None
    high: float | None


def clopper_pearson(hits: float, n: float, confidence: float) -> tuple[float, float]:
    """The exact two-sided interval for a proportion (Clopper and Pearson, 1934), of counts or effective numbers; (0, 1) where `n` is 0."""
    if n == 0:
        return 0.0, 1.0
    tail = (1.0 - confidence) / 2.0
    low = 0.0 if hits == 0 else float(betaincinv(hits, n - hits + 1, tail))
    high = 1.0 if hits == n else float(betaincinv(hits + 1, n - hits, 1.0 - tail))
    return low, high


def clustered(hit: NDArray[np.bool_], units: NDArray[np.int64], confidence: float) -> tuple[float, float]:
    """The two-sided interval for the share of `hit` (bool[n]), whose examples are drawn in clusters: `units` int64[n] numbers them from 0.

    Clopper and Pearson's with the effective number of examples (Korn and Graubard, 1998): n over the design effect, with their correction
    for few clusters, and at most n. Where each example is a cluster it is the exact interval; so it is, of the clusters, where these have
    one size and are hit whole, because then they repeat one example each. Where all are hits, or none, nothing shows how far the examples
    of a cluster agree, and a cluster counts as one.
    """
    n, clusters = len(hit), len(np.unique(units))
    if clusters == n:
        return clopper_pearson(int(hit.sum()), n, confidence)
    share = float(hit.mean())
    sizes, hits = np.bincount(units), np.bincount(units, weights=hit)
    whole = bool(((hits == 0) | (hits == sizes)).all()) and len(np.unique(sizes[sizes > 0])) == 1
    away = np.bincount(units, weights=hit - share)
    spread = float((away**2).sum()) / n**2
    if share in (0.0, 1.0) or clusters == 1 or whole:
        effective = float(clusters)
    elif spread < FLAT**2:  # every cluster has the same share
        effective = float(n)
    else:
        tail = 0.5 + confidence / 2.0
        few = float((stdtrit(n - 1, tail) / stdtrit(clusters - 1, tail)) ** 2)
        effective = min(float(n), few * share * (1.0 - share) * (clusters - 1) / clusters / spread)
    return clopper_pearson(share * effective, effective, confidence)


def wilson(hits: int, n: int, confidence: float) -> tuple[float, float]:
    """The score interval for a proportion (Wilson, 1927), without continuity correction; (0, 1) where `n` is 0."""
    if n == 0:
        return 0.0, 1.0
    z = float(ndtri(0.5 + confidence / 2.0))
    share, spread = hits / n, z * z / n
    middle = share + spread / 2.0
    half = z * np.sqrt(share * (1.0 - share) / n + spread / (4.0 * n))
    low = 0.0 if hits == 0 else float((middle - half) / (1.0 + spread))
    high = 1.0 if hits == n else float((middle + half) / (1.0 + spread))
    return low, high


def newcombe(first: tuple[int, int], second: tuple[int, int], confidence: float) -> Interval | None:
    """First minus second, each (hits, n), with the hybrid score interval (Newcombe, 1998, method 10); None where one is empty."""
    if not first[1] or not second[1]:
        return None
    one, two = first[0] / first[1], second[0] / second[1]
    (one_low, one_high), (two_low, two_high) = wilson(*first, confidence), wilson(*second, confidence)
    difference = one - two
    below = float(np.hypot(one - one_low, two_high - two))
    above = float(np.hypot(one_high - one, two - two_low))
    return Interval(difference, max(-1.0, difference - below), min(1.0, difference + above))


def paired_difference(wins: int, losses: int, n: int, confidence: float) -> Interval:
    """Difference of two models' accuracies on the same `n` examples: `wins` only the first got right, `losses` only the second.

    The score interval of Tango (1998): all differences that a score test with the other parameter at its likeliest value does not reject.
    It keeps its level where few examples tell the models apart, and has a width where none does.
    """
    difference = (wins - losses) / n
    z2 = float(ndtri(0.5 + confidence / 2.0)) ** 2

    def accepted(delta: float) -> bool:
        linear = (2 * n - wins + losses) * delta - (wins + losses)
        root = max(0.0, linear**2 + 8.0 * n * losses * delta * (1.0 - delta)) ** 0.5
        lost = (root - linear) / (4.0 * n)  # the likeliest share of examples that only the second got right
        variance = max(0.0, 2.0 * lost + delta * (1.0 - delta))
        return bool((wins - losses - n * delta) ** 2 <= z2 * n * variance)

    ends = []
    for rejected in (-1.0, 1.0):
        inside, outside = difference, rejected
        for _ in range(60):
            middle = (inside + outside) / 2.0
            inside, outside = (middle, outside) if accepted(middle) else (inside, middle)
        ends.append(inside if abs(inside - rejected) > FLAT else rejected)
    return Interval(difference, ends[0], ends[1])


def binomial_p_greater(hits: int, n: int, null: float) -> float:
    """P[X >= hits] for X ~ Binomial(n, null): how often luck alone would do this well or better."""
    return 1.0 if hits == 0 else float(betainc(hits, n - hits + 1, null))


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Whether two models with these outcomes (both bool[n], same examples) could be equally good: the exact two-sided p.

    Only examples that one got right and the other wrong say anything; under the null each is a coin's throw.
    """
    wins, losses = int((first & ~second).sum()), int((second & ~first).sum())
    return min(1.0, 2.0 * binomial_p_greater(max(wins, losses), wins + losses, 0.5))


def signs(differences: NDArray[np.int64]) -> float:
    """Whether two models whose right answers differ so, int64[n], unit by unit, could be equally good: the exact two-sided p.

    Under the null every unit's difference is as likely as its opposite, whatever its size; p is the chance that they add up to as much. Of
    units of one example (-1, 0 or 1) this is McNemar's exact test; a unit of several, like the captions of one picture, changes sides as
    a whole (the randomization test of matched pairs, Fisher, 1935, of which all cases are counted here).
    """
    sizes, counts = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    chances = np.ones(1)  # of what the positive ones add up to
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        heads = np.arange(count + 1)
        log = gammaln(count + 1) - gammaln(heads + 1) - gammaln(count - heads + 1) - count * np.log(2.0)
        part = np.zeros(size * count + 1)
        part[::size] = np.exp(log)
        chances = np.convolve(chances, part)
    positive = int(differences[differences > 0].sum())
    reached = max(positive, len(chances) - 1 - positive)
    return min(1.0, 2.0 * float(chances[reached:].sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values of Holm's step-down procedure (1979): never larger than Bonferroni's, under the same guarantee."""
    adjusted = [0.0] * len(p_values)
    reached = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        reached = max(reached, min(1.0, p_values[place] * (len(p_values) - rank)))
        adjusted[place] = reached
    return adjusted


@dataclass(frozen=True)
class Resampled:
    """A figure, and what it is on sets `drawn` with replacement and, for the acceleration, on sets `without` a part of the units.

    Both are float64, less the sets on which the figure has no value.
    """

    value: float
    drawn: NDArray[np.float64]
    without: NDArray[np.float64]

    def end(self, level: float) -> float | None:
        """The BCa quantile (Efron, 1987) at `level` of 0..1: the end of a one-sided interval, or one end of a two-sided one.

        None where the draws do not vary, or the value lies beyond all of them.
        """
        below = (self.drawn < self.value - FLAT).sum() + 0.5 * (np.abs(self.drawn - self.value) <= FLAT).sum()
        if not 0.0 < below < len(self.drawn) or np.ptp(self.drawn) < FLAT:
            return None
        bias = float(ndtri(below / len(self.drawn)))
        tail = float(ndtri(level)) + bias
        return float(np.quantile(self.drawn, ndtr(bias + tail / (1.0 - _acceleration(self.without) * tail))))


def resample(
    metric: Callable[[NDArray[np.int64]], float], units: NDArray[np.int64], *, draws: int = DRAWS, seed: int = _SEED
) -> Resampled:
    """The value of `metric` over all rows, and over the rows of whole units drawn with replacement, `draws` times.

    `units` int64[n] numbers each row's unit from 0 on; `metric` takes rows int64[m], some of them repeated, and may return nan for a draw
    on which it has no value, which is left out. The jackknife leaves out one of at most 200 groups of units (by number, modulo), so that
    its cost does not grow with the set. Of fewer than two units there is nothing to draw.
    """
    rows_of, starts, sizes = _grouped(units)
    count = len(sizes)
    value = metric(np.arange(len(units), dtype=np.int64))
    if count < 2:
        return Resampled(value, np.empty(0), np.empty(0))
    random = np.random.default_rng(seed)
    drawn = np.array([metric(_rows(random.integers(0, count, count), rows_of, starts, sizes)) for _ in range(draws)])
    groups = min(count, _JACKKNIFE_GROUPS)
    without = np.array(
        [
            metric(_rows(np.flatnonzero(np.arange(count) % groups != group), rows_of, starts, sizes))
            for group in range(groups)
        ]
    )
    return Resampled(value, drawn[~np.isnan(drawn)], without[~np.isnan(without)])


def bootstrap(
    metric: Callable[[NDArray[np.int64]], float],
    units: NDArray[np.int64],
    *,
    confidence: float,
    draws: int = DRAWS,
    seed: int = _SEED,
) -> Interval:
    """The value of `metric` over all rows with its BCa interval; the arguments are those of `resample`."""
    found = resample(metric, units, draws=draws, seed=seed)
    return Interval(found.value, found.end((1.0 - confidence) / 2.0), found.end((1.0 + confidence) / 2.0))


def _acceleration(without: NDArray[np.float64]) -> float:
    """Efron's skewness of the jackknife's values."""
    away = without.mean() - without if len(without) else without
    spread = float((away**2).sum())
    return 0.0 if spread < FLAT**2 else float((away**3).sum() / (6.0 * spread**1.5))


def _grouped(units: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Rows sorted by unit; where each unit's begin there, and how many it has."""
    sizes = np.bincount(units).astype(np.int64)
    return np.argsort(units, kind="stable").astype(np.int64), np.cumsum(sizes) - sizes, sizes


def _rows(
    drawn: NDArray[np.int64], rows_of: NDArray[np.int64], starts: NDArray[np.int64], sizes: NDArray[np.int64]
) -> NDArray[np.int64]:
    """All rows of the drawn units, repeated as they were drawn."""
    counts = sizes[drawn]
    ends = np.cumsum(counts)
    offsets = np.arange(int(ends[-1]) if len(ends) else 0, dtype=np.int64) - np.repeat(ends - counts, counts)
    found: NDArray[np.int64] = rows_of[np.repeat(starts[drawn], counts) + offsets]
    return found
