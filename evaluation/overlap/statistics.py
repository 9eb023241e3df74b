"""Did the overlap change the score? The arithmetic of section 5 of the CLIP paper, and what a hostile reader would ask next.

An evaluation set is cut in two: Overlap (examples with a near-duplicate in the corpus) and Clean (the rest). The paper asks
whether Overlap scores better than Clean would let one expect: a one-tailed binomial test with the Clean accuracy as its null,
and a 99.5 % Clopper-Pearson interval for the accuracy on Overlap. The main figure is `All - Clean`, the estimated inflation,
which is identical to `|Overlap| / |All| * (accuracy on Overlap - accuracy on Clean)`.

Four things are added to the paper's.

- **Clusters.** Repeats inside an evaluation set are no independent evidence. Accuracies count every example, as published scores do; tests
  count one unit for each cluster of repeats: its first example, in Overlap if any of the cluster is.
- **Clean is a sample too.** The paper's test takes its accuracy as known. `exact_p` does not (Fisher's test), and the difference of the two
  accuracies has Newcombe's interval. Without `exact_p` too there is no effect, and without as many Clean units as Overlap has no "none".
- **Classes.** Overlap may consist of easier classes. `by_class` compares within classes only: the Mantel-Haenszel difference with Sato's
  interval, and the exact test of the same comparison (Fisher's, over all strata at once).
- **Power.** A small Overlap decides nothing, whatever its p: `detectable_gain` says which gain both tests together would have found with
  80 % power, Clean being a sample, and `verdict` says "not testable" where only a large one would.

A metric that is no proportion (a mean over classes, an average precision, an area under a curve) has no binomial test: `inflation` draws
its All − Clean anew, by a bootstrap over clusters and by placements of Overlap at random, and these decide instead.

Binomial tails and intervals come from the regularised incomplete beta function and its inverse: the interval is always the two-sided one (a
trap: scipy's `binomtest(..., alternative="greater").proportion_ci` is one-sided, its upper end is always 1).
"""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import betainc, gammaln, ndtri, xlog1py, xlogy

from evaluation import intervals
from evaluation.intervals import Interval

CONFIDENCE = 0.995  # the paper's interval on Overlap
ALPHA = 0.05  # before Bonferroni
POWER = 0.8
LARGEST_BLIND_GAIN = 0.1  # a test that would miss a gain of 10 points may not say "no effect seen"

Verdict = Literal["clean", "overlap, not scored", "not testable", "overlap, no effect seen", "overlap, effect"]


@dataclass(frozen=True)
class SplitScore:
    """`correct` of `n` examples; `accuracy` is None for an empty split, and `low`, `high` are the interval's ends."""

    n: int
    correct: int
    accuracy: float | None
    low: float
    high: float


@dataclass(frozen=True)
class ByClass:
    """Overlap minus Clean within classes, of the `units` in the `classes` that have units on both sides; all others say nothing.

    `difference` is None where no class has both, and `p_value` is 1 then.
    """

    classes: int
    units: int
    difference: Interval | None
    p_value: float


@dataclass(frozen=True)
class Analysis:
    """One evaluation set: its three splits, the difference, the tests. Probabilities and accuracies in 0..1.

    `all`, `clean` and `overlap` count examples, `clean_units` and `overlap_units` what the tests count: clusters. `p_value` is the paper's
    test, `exact_p` Fisher's; `alpha` the level that they are held against. None: one side is empty, or classes are not known.
    """

    all: SplitScore
    clean: SplitScore
    overlap: SplitScore
    all_minus_clean: float | None
    clean_units: SplitScore
    overlap_units: SplitScore
    p_value: float | None
    alpha: float
    detectable_gain: float | None
    difference: Interval | None
    exact_p: float | None
    by_class: ByClass | None


# ---- one set


def analyse(
    correct: NDArray[np.bool_],
    overlap: NDArray[np.bool_],
    *,
    classes: NDArray[np.int64] | Sequence[int] | None = None,
    clusters: NDArray[np.int64] | Sequence[int] | None = None,
    alpha: float = ALPHA,
    tests: int = 1,
    confidence: float = CONFIDENCE,
) -> Analysis:
    """Split per-example outcomes by `overlap` (both bool[n]) and test Overlap against Clean.

    `classes` int[n] are the examples' right classes, `clusters` int[n] give the repeats of one picture the same number. `alpha` is divided
    by `tests`, the number of evaluation sets tested together (Bonferroni). Without Clean examples there is no null and without Overlap
    examples nothing to test: the p values are None then. Raises ValueError where lengths differ, an outcome is neither true nor false, a
    number of a class or cluster is no integer, and for levels outside of 0..1 or fewer than one test.
    """
    level = _level(alpha, tests, confidence)
    correct, overlap = (_outcomes(name, given) for name, given in (("correct", correct), ("overlap", overlap)))
    if correct.shape != overlap.shape or correct.ndim != 1:
        raise ValueError(f"correct has shape {correct.shape}, overlap {overlap.shape}; both must be bool[n]")
    labels, groups = (
        None if given is None else _integers(name, given, len(correct))
        for name, given in (("classes", classes), ("clusters", clusters))
    )
    units, touched = collapse(overlap, groups)
    outcome = correct[units]
    k_overlap, n_overlap = int((outcome & touched).sum()), int(touched.sum())
    k_clean, n_clean = int(outcome.sum()) - k_overlap, len(units) - n_overlap
    testable = n_clean > 0 and n_overlap > 0
    null = k_clean / n_clean if n_clean else 0.0
    on_clean = score(correct[~overlap], confidence)
    return Analysis(
        all=score(correct, confidence),
        clean=on_clean,
        overlap=score(correct[overlap], confidence),
        all_minus_clean=None if on_clean.accuracy is None else float(correct.mean()) - on_clean.accuracy,
        clean_units=score(outcome[~touched], confidence),
        overlap_units=score(outcome[touched], confidence),
        p_value=intervals.binomial_p_greater(k_overlap, n_overlap, null) if testable else None,
        alpha=level,
        detectable_gain=detectable_gain(n_overlap, n_clean, null, level) if testable else None,
        difference=intervals.newcombe((k_overlap, n_overlap), (k_clean, n_clean), confidence),
        exact_p=exact_p([[k_overlap, n_overlap - k_overlap, k_clean, n_clean - k_clean]]) if testable else None,
        by_class=by_class(outcome, touched, labels[units], confidence) if testable and labels is not None else None,
    )


def collapse(
    overlap: NDArray[np.bool_], clusters: NDArray[np.int64] | None
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The units of a test: the first row of each cluster (int64[m], rising), and whether any of the cluster is in Overlap (bool[m])."""
    if clusters is None:
        return np.arange(len(overlap), dtype=np.int64), overlap
    _, first, unit = np.unique(clusters, return_index=True, return_inverse=True)
    touched = np.bincount(unit, weights=overlap, minlength=len(first)) > 0
    order = np.argsort(first)
    return first[order].astype(np.int64), touched[order]


def _outcomes(name: str, given: NDArray[np.bool_] | Sequence[bool]) -> NDArray[np.bool_]:
    """As bool; nan and 0.4 would be taken for right answers."""
    found = np.asarray(given)
    if found.dtype != np.bool_ and not np.isin(found, (0, 1)).all():
        raise ValueError(f"{name} has values that are neither true nor false; it must be bool[n]")
    return found.astype(np.bool_)


def _integers(name: str, given: NDArray[np.int64] | Sequence[int], n: int) -> NDArray[np.int64]:
    """As int64; 0.2 and 0.7 would be taken for one number."""
    found = np.asarray(given)
    if found.shape != (n,):
        raise ValueError(f"{name} has shape {found.shape}; there are {n} examples, and it must be int[n]")
    if n and found.dtype.kind not in "iu":
        raise ValueError(f"{name} is an array of {found.dtype}; it must be int[n]")
    return found.astype(np.int64)


def _level(alpha: float, tests: int, confidence: float) -> float:
    """What each of `tests` p values is held against."""
    for name, given in (("alpha", alpha), ("confidence", confidence)):
        if not 0 < given < 1:
            raise ValueError(f"{name} is {given!r}; it must be between 0 and 1")
    if tests < 1:
        raise ValueError(f"tests is {tests!r}; it must be 1 or more")
    return alpha / tests


def score(correct: NDArray[np.bool_], confidence: float = CONFIDENCE) -> SplitScore:
    """Accuracy and interval of one split, from its outcomes bool[n]."""
    k, n = int(correct.sum()), len(correct)
    low, high = intervals.clopper_pearson(k, n, confidence)
    return SplitScore(n, k, k / n if n else None, low, high)


@functools.lru_cache(maxsize=4096)  # most steps of a sweep move no example from one side to the other
def detectable_gain(n_overlap: int, n_clean: int, null: float, alpha: float, power: float = POWER) -> float | None:
    """The smallest gain on Overlap that the rule for an effect would find with `power`; None where it would find none.

    The rule wants the paper's p and Fisher's at or below `alpha`. Clean is drawn too, with `null` as its true accuracy: of `c` right
    answers there, Overlap needs `least(c)` of its own, which never falls as `c` grows. So the power at an accuracy on Overlap is a sum over
    `c` of binomial tails, exact but for the `c` beyond eight standard deviations; the gain is where it reaches `power`.
    """
    if not n_overlap or not n_clean:
        return None
    half = 8 * (n_clean * null * (1 - null)) ** 0.5 + 40
    first, last = max(0, int(n_clean * null - half)), min(n_clean, int(n_clean * null + half) + 1)
    clean = np.arange(first, last + 1)
    weight = np.exp(_log_choose(n_clean, clean) + xlogy(clean, null) + xlog1py(n_clean - clean, -null))
    least = _least_right(n_overlap, n_clean, clean, alpha)
    reached = least <= n_overlap
    least, weight = least[reached], weight[reached]

    def lacking(accuracy: float) -> float:
        return power - float((weight * betainc(least, n_overlap - least + 1, accuracy)).sum())

    if lacking(1.0) > 0:
        return None
    return float(brentq(lacking, null, 1.0, xtol=1e-13)) - null if lacking(null) > 0 else 0.0


def _least_right(n_overlap: int, n_clean: int, clean: NDArray[np.int64], alpha: float) -> NDArray[np.int64]:
    """For each number of right answers on Clean (rising), how many on Overlap make an effect; n_overlap + 1: no number does."""

    def least(right: int, low: int, high: int) -> int:
        """`high`, if none below it is enough."""

        def is_effect(k: int) -> bool:
            p_value = intervals.binomial_p_greater(k, n_overlap, right / n_clean)
            return p_value <= alpha and _fisher_p(k, n_overlap, right, n_clean) <= alpha

        return low + bisect_left(range(low, high), True, key=is_effect)

    found = np.empty(len(clean), np.int64)
    found[0] = least(int(clean[0]), 1, n_overlap + 1)
    found[-1] = least(int(clean[-1]), int(found[0]), n_overlap + 1)
    spans = [(0, len(clean) - 1)]
    while spans:  # A span whose ends are the same is all the same: with a small Overlap there are few steps.
        start, end = spans.pop()
        if found[start] == found[end]:
            found[start:end] = found[start]
        elif end - start > 1:
            middle = (start + end) // 2
            found[middle] = least(int(clean[middle]), int(found[start]), int(found[end]))
            spans += [(start, middle), (middle, end)]
    return found


def _fisher_p(k_overlap: int, n_overlap: int, k_clean: int, n_clean: int) -> float:
    """`exact_p` of one table, without the terms that are more than twelve standard deviations further out than `k_overlap`."""
    right, n = k_overlap + k_clean, n_overlap + n_clean
    spread = (n_overlap * n_clean * right * (n - right)) ** 0.5 / n**1.5
    counts = np.arange(k_overlap, min(n_overlap, right, k_overlap + int(12 * spread) + 40) + 1)
    log = _log_choose(n_overlap, counts) + _log_choose(n_clean, right - counts) - _log_choose(n, right)
    return float(np.exp(log).sum())


def possible_inflation(share: float, difference_high: float, *, precision: float = 1.0, recall: float = 1.0) -> float:
    """The most that overlap may have added to a score: the share of examples that it truly has, times the upper end of its advantage.

    A detector that finds `recall` of the true copies, and of whose finds `precision` are true, has seen `share` where there are about
    `share * precision / recall`.
    """
    return min(1.0, share * precision / recall) * max(0.0, difference_high)


# ---- within classes


def by_class(
    correct: NDArray[np.bool_], overlap: NDArray[np.bool_], classes: NDArray[np.int64], confidence: float
) -> ByClass:
    """Overlap against Clean in classes of their own, put together as Mantel and Haenszel (1959) do."""
    names, stratum = np.unique(classes, return_inverse=True)
    a, b, c, d = (
        np.bincount(stratum, weights=side & outcome, minlength=len(names))
        for side in (overlap, ~overlap)
        for outcome in (correct, ~correct)
    )
    both = (a + b > 0) & (c + d > 0)
    tables = np.stack([a, b, c, d], axis=1)[both].astype(np.int64)
    return ByClass(int(both.sum()), int(tables.sum()), common_difference(tables, confidence), exact_p(tables))


def common_difference(tables: NDArray[np.int64], confidence: float) -> Interval | None:
    """The Mantel-Haenszel difference of two accuracies over 2 x 2 tables [strata, 4]: overlap right, wrong, clean right, wrong.

    The interval's variance is Sato's (1989), which holds for few large strata and for many small ones.
    """
    if not len(tables):
        return None
    a, b, c, d = tables.T.astype(np.float64)
    n_overlap, n_clean = a + b, c + d
    n = n_overlap + n_clean
    weight = float((n_overlap * n_clean / n).sum())
    value = float(((a * n_clean - c * n_overlap) / n).sum()) / weight
    p = (n_overlap**2 * c - n_clean**2 * a + n_overlap * n_clean * (n_clean - n_overlap) / 2.0) / n**2
    q = (a * (n_clean - c) + c * (n_overlap - a)) / (2.0 * n)
    half = float(ndtri(0.5 + confidence / 2.0)) * max(0.0, value * float(p.sum()) + float(q.sum())) ** 0.5 / weight
    return Interval(value, max(-1.0, value - half), min(1.0, value + half))


def exact_p(tables: NDArray[np.int64] | Sequence[Sequence[int]]) -> float:
    """The one-sided exact p over 2 x 2 tables [strata, 4]: overlap right, wrong, clean right, wrong. One stratum: Fisher's test.

    With each stratum's sums given, its overlap's right answers are hypergeometric where the side makes no difference; their total over the
    strata has the convolution of these, and p is its share at or above what was seen (Gart, 1970).
    """
    total = np.ones(1)
    lowest = seen = 0
    for a, b, c, d in np.asarray(tables, np.int64).reshape(-1, 4):
        n_overlap, right, n = a + b, a + c, a + b + c + d
        first, last = max(0, right - (c + d)), min(n_overlap, right)
        counts = np.arange(first, last + 1)
        log = _log_choose(n_overlap, counts) + _log_choose(n - n_overlap, right - counts) - _log_choose(n, right)
        total = np.convolve(total, np.exp(log))
        lowest, seen = lowest + int(first), seen + int(a)
    return min(1.0, float(total[seen - lowest :].sum() / total.sum()))


def _log_choose(n: np.int64 | int, k: NDArray[np.int64] | np.int64 | int) -> NDArray[np.float64]:
    chosen: NDArray[np.float64] = gammaln(n + 1.0) - gammaln(k + 1.0) - gammaln(n - k + 1.0)
    return chosen


# ---- scores that are no proportions, and other thresholds


@dataclass(frozen=True)
class Inflation:
    """All − Clean of a metric that is no proportion, and whether it is more than luck. Figures in units of the metric (0..1).

    `value` counts every example; `low`, `high` are its two-sided BCa interval, `least` the lower end of the one-sided interval at level
    `alpha`, all over clusters drawn with replacement. `p_value` is of another question, which needs no large Overlap: how often would as
    many units, chosen at random, have moved the score as much? `detectable_gain` is the gain on Overlap that would be seen. `drawn` says
    how many draws of the bootstrap had a value. None: one side is empty, or the metric is not defined on it.
    """

    value: float | None
    low: float | None
    high: float | None
    least: float | None
    p_value: float | None
    alpha: float
    detectable_gain: float | None
    drawn: int
    clean_units: int
    overlap_units: int


def inflation(
    metric: Callable[[NDArray[np.int64]], float],
    overlap: NDArray[np.bool_],
    clusters: NDArray[np.int64] | Sequence[int] | None = None,
    *,
    alpha: float = ALPHA,
    tests: int = 1,
    confidence: float = CONFIDENCE,
    draws: int = intervals.DRAWS,
    seed: int = 0,
) -> Inflation:
    """All − Clean of any metric (a mean over classes, an average precision, an area under a curve), from two resamplings.

    `metric` takes how often each example counts, int64[n], and may return nan. Two questions, because one is not enough: the bootstrap over
    clusters says how far the estimate could be off, but believes an Overlap of three right answers to be always right; the placement test
    (units dealt out to Overlap at random, as many as there are) is exact for any size. Both draw `draws` times: the bootstrap from
    `default_rng(seed)`, clusters numbered in the order in which they come; the placements from `default_rng((seed, 1))`, the first of a
    permutation of the units. A placement on which the metric has no value counts against the effect.

    The detectable gain: All − Clean must exceed what all but `alpha` of the placements reach, by as many standard errors of the bootstrap
    as give 80 % power; divided by Overlap's share of the units it is a gain on Overlap. Raises ValueError as `analyse`.
    """
    level = _level(alpha, tests, confidence)
    n = len(overlap)
    groups = None if clusters is None else _integers("clusters", clusters, n)
    units, touched = collapse(overlap, groups)
    k, m = int(touched.sum()), len(units)

    def difference(counts: NDArray[np.int64], side: NDArray[np.bool_]) -> float:
        clean = np.where(side, 0, counts)
        return metric(counts) - metric(clean) if clean.any() else float("nan")

    value = difference(np.ones(n, np.int64), overlap) if n else float("nan")
    if not 0 < k < m or np.isnan(value):
        return Inflation(None if np.isnan(value) else value, None, None, None, None, level, None, 0, m - k, k)
    numbers = np.arange(n) if groups is None else _in_order_of_appearance(groups)
    found = intervals.resample(
        lambda rows: difference(np.bincount(rows, minlength=n), overlap), numbers, draws=draws, seed=seed
    )
    once = np.zeros(n, np.int64)
    once[units] = 1
    whole = metric(once)

    def placed(rows: NDArray[np.int64]) -> float:
        clean = once.copy()
        clean[rows] = 0
        return whole - metric(clean)

    random = np.random.default_rng((seed, 1))
    by_chance = np.array([placed(units[random.permutation(m)[:k]]) for _ in range(draws)])
    by_chance = np.sort(np.where(np.isnan(by_chance), np.inf, by_chance))[::-1]
    seen = placed(units[touched])
    p_value = (1 + int((by_chance >= seen - intervals.FLAT).sum())) / (draws + 1)
    allowed = int(level * (draws + 1)) - 1  # so many placements may reach what is called an effect
    limit = float(by_chance[allowed]) if 0 <= allowed < draws else np.inf
    gain = (limit + float(ndtri(POWER)) * float(found.drawn.std(ddof=1))) * m / k if len(found.drawn) > 1 else np.inf
    return Inflation(
        value=value,
        low=found.end((1.0 - confidence) / 2.0),
        high=found.end((1.0 + confidence) / 2.0),
        least=found.end(level),
        p_value=None if np.isnan(seen) else p_value,
        alpha=level,
        detectable_gain=gain if np.isfinite(gain) else None,
        drawn=len(found.drawn),
        clean_units=m - k,
        overlap_units=k,
    )


def _in_order_of_appearance(clusters: NDArray[np.int64]) -> NDArray[np.int64]:
    """Clusters numbered from 0 on as they come, int64[n]."""
    _, first, number = np.unique(clusters, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[number].astype(np.int64)


def sweep(
    correct: NDArray[np.bool_],
    distance: NDArray[np.float64],
    limits: Sequence[float],
    *,
    clusters: NDArray[np.int64] | None = None,
    alpha: float = ALPHA,
    tests: int = 1,
    confidence: float = CONFIDENCE,
) -> list[Analysis]:
    """The analysis as it would be under other thresholds: Overlap is what lies within each limit. `distance` float[n], inf: no match."""
    return [
        analyse(correct, distance <= limit, clusters=clusters, alpha=alpha, tests=tests, confidence=confidence)
        for limit in limits
    ]


# ---- in words


def verdict(analysis: Analysis | None, overlapping: int, own: Inflation | None = None) -> Verdict:
    """What may be said about one set, in one place. `own`: the set's own metric, where it is no proportion.

    No overlapping example: clean. No predictions: overlap, not scored. An effect is, of a set that is scored by accuracy, the paper's p
    (one-tailed binomial, over units) and Fisher's at or below the corrected alpha: the paper's takes the accuracy on Clean as known, and of
    five Clean examples it is not. Of one with another metric, the one-sided BCa interval of All − Clean at the corrected alpha above zero,
    and the p of the placements at or below it. Else the set is not testable when Clean or Overlap is empty, the metric is not defined, a
    gain of more than 10 points (or none at all) would have been needed for an effect to be seen with 80 % power, or an accuracy is held
    against a Clean of fewer units than Overlap has; and only otherwise no effect was seen. The other tests do not decide: they say how
    an effect is to be read.
    """
    if overlapping == 0:
        return "clean"
    if analysis is None:
        return "overlap, not scored"
    test = analysis if own is None else own
    if own is not None:
        sure, expected = own.least is not None and own.least > 0, True
    else:
        sure = analysis.exact_p is not None and analysis.exact_p <= analysis.alpha
        expected = analysis.clean_units.n >= analysis.overlap_units.n
    if test.p_value is not None and test.p_value <= test.alpha and sure:
        return "overlap, effect"
    blind = test.p_value is None or test.detectable_gain is None or test.detectable_gain > LARGEST_BLIND_GAIN
    if blind or not expected:
        return "not testable"
    return "overlap, no effect seen"
