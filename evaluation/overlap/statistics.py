"""Did the overlap change the score? The arithmetic of section 5 of the CLIP paper, and nothing else.

An evaluation set is cut in two: Overlap (examples with a near-duplicate in the corpus) and Clean (the rest). The paper asks
whether Overlap scores better than Clean would let one expect: a one-tailed binomial test with the Clean accuracy as its null,
and a 99.5 % Clopper-Pearson interval for the accuracy on Overlap. The main figure is `All - Clean`, the estimated inflation,
which is identical to `|Overlap| / |All| * (accuracy on Overlap - accuracy on Clean)`.

Everything is computed from the regularised incomplete beta function and its inverse: the interval is always the two-sided one (a
trap: scipy's `binomtest(..., alternative="greater").proportion_ci` is one-sided, its upper end is always 1). `p` treats the
Clean accuracy as known, as the paper does. A small Overlap decides nothing, whatever its p: `detectable_gain` says which gain
would have been found with 80 % power, and `verdict` says "not testable" where only a large one would.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, betaincinv

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
class Analysis:
    """One evaluation set: its three splits, the difference, the test. Probabilities and accuracies in 0..1."""

    all: SplitScore
    clean: SplitScore
    overlap: SplitScore
    all_minus_clean: float | None
    p_value: float | None
    alpha: float
    detectable_gain: float | None


def clopper_pearson(correct: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The exact two-sided interval for a proportion (Clopper and Pearson, 1934); (0, 1) where `n` is 0."""
    if n == 0:
        return 0.0, 1.0
    tail = (1.0 - confidence) / 2.0
    low = 0.0 if correct == 0 else float(betaincinv(correct, n - correct + 1, tail))
    high = 1.0 if correct == n else float(betaincinv(correct + 1, n - correct, 1.0 - tail))
    return low, high


def binomial_p_greater(correct: int, n: int, null: float) -> float:
    """P[X >= correct] for X ~ Binomial(n, null): how often luck alone would do this well or better."""
    if correct == 0:
        return 1.0
    return float(betainc(correct, n - correct + 1, null))


def score(correct: int, n: int, confidence: float = CONFIDENCE) -> SplitScore:
    """Accuracy and interval of one split."""
    low, high = clopper_pearson(correct, n, confidence)
    return SplitScore(n, correct, correct / n if n else None, low, high)


def detectable_gain(n: int, null: float, alpha: float, power: float = POWER) -> float | None:
    """The smallest gain over `null` that the one-tailed test would find with `power`; None where no gain can be found.

    The test rejects from `k` correct answers on; the true accuracy at which `k` or more come with probability `power` is
    the `power` quantile of Beta(k, n - k + 1).
    """
    if n == 0:
        return None
    counts = np.arange(1, n + 1)
    tails = betainc(counts, n - counts + 1, null)
    rejecting = np.flatnonzero(tails <= alpha)
    if not len(rejecting):
        return None
    k = int(counts[rejecting[0]])
    return max(0.0, float(betaincinv(k, n - k + 1, power)) - null)


def analyse(
    correct: NDArray[np.bool_],
    overlap: NDArray[np.bool_],
    *,
    alpha: float = ALPHA,
    tests: int = 1,
    confidence: float = CONFIDENCE,
) -> Analysis:
    """Split per-example outcomes by `overlap` (both bool[n]) and test Overlap against Clean.

    `alpha` is divided by `tests`, the number of evaluation sets tested together (Bonferroni). Without Clean examples there is
    no null and without Overlap examples nothing to test: the p value is None then.
    """
    if correct.shape != overlap.shape or correct.ndim != 1:
        raise ValueError(f"correct has shape {correct.shape}, overlap {overlap.shape}; both must be bool[n]")
    n, k = len(correct), int(correct.sum())
    n_overlap, k_overlap = int(overlap.sum()), int((correct & overlap).sum())
    n_clean, k_clean = n - n_overlap, k - k_overlap
    level = alpha / max(tests, 1)
    testable = n_clean > 0 and n_overlap > 0
    null = k_clean / n_clean if n_clean else 0.0
    return Analysis(
        all=score(k, n, confidence),
        clean=score(k_clean, n_clean, confidence),
        overlap=score(k_overlap, n_overlap, confidence),
        all_minus_clean=k / n - null if n_clean else None,
        p_value=binomial_p_greater(k_overlap, n_overlap, null) if testable else None,
        alpha=level,
        detectable_gain=detectable_gain(n_overlap, null, level) if testable else None,
    )


def verdict(analysis: Analysis | None, overlapping: int) -> Verdict:
    """What may be said about one set, in one place.

    No overlapping example: clean. No predictions: overlap, not scored. p at or below the corrected alpha: overlap, effect. Else
    the set is not testable when Clean or Overlap is empty or when a gain of more than 10 points (or none at all) would have
    been needed to be seen with 80 % power; and only otherwise no effect was seen.
    """
    if overlapping == 0:
        return "clean"
    if analysis is None:
        return "overlap, not scored"
    if analysis.p_value is not None and analysis.p_value <= analysis.alpha:
        return "overlap, effect"
    if analysis.p_value is None or analysis.detectable_gain is None or analysis.detectable_gain > LARGEST_BLIND_GAIN:
        return "not testable"
    return "overlap, no effect seen"
