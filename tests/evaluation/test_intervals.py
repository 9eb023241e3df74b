"""Intervals and tests against published values and against scipy's implementations, which are of another hand."""

import functools

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from evaluation.intervals import (
    binomial_p_greater,
    bootstrap,
    clopper_pearson,
    clustered,
    holm,
    mcnemar,
    newcombe,
    wilson,
)

# Hits, n, null; the one-tailed p and the two-sided 99.5 % interval.
VECTORS = [
    (119, 224, 0.483, 0.0840955401591, 0.435602774099, 0.625306959321),
    (1376, 4537, 0.294, 0.087790497486, 0.284270087653, 0.322786164553),
    (30, 40, 0.6, 0.0352224801142, 0.520213413636, 0.909285814637),
    (0, 12, 0.5, 1.0, 0.0, 0.393037768997),
    (12, 12, 0.5, 2.44140625e-4, 0.606962231003, 1.0),
    (7, 10, 0.5, 0.171875, 0.236726833648, 0.971044246592),
]

# Newcombe 1998, table II, method 10, at 95 %.
DIFFERENCES = [
    ((56, 70), (48, 80), 0.0524, 0.3339),
    ((9, 10), (3, 10), 0.1705, 0.8090),
    ((6, 7), (2, 7), 0.0582, 0.8062),
    ((5, 56), (0, 29), -0.0381, 0.1926),
    ((0, 10), (0, 20), -0.1611, 0.2775),
    ((0, 10), (0, 10), -0.2775, 0.2775),
    ((10, 10), (0, 20), 0.6791, 1.0),
    ((10, 10), (0, 10), 0.6075, 1.0),
]


@pytest.mark.parametrize(("k", "n", "null", "p", "low", "high"), VECTORS)
def test_vectors(k: int, n: int, null: float, p: float, low: float, high: float) -> None:
    assert binomial_p_greater(k, n, null) == pytest.approx(p, abs=1e-11)
    assert clopper_pearson(k, n, 0.995) == pytest.approx((low, high), abs=1e-11)


def test_against_scipy_on_ten_thousand_random_cases() -> None:
    """The tail and the quantile by scipy's distributions; its `binomtest` on every tenth, and the interval that it searches by root finding
    on every fiftieth."""
    draws = np.random.default_rng(5)
    cases = []
    for _ in range(10_000):
        n = int(10 ** draws.uniform(0, 4.7))
        k, null = int(draws.integers(0, n + 1)), float(draws.uniform(0.001, 0.999))
        cases.append((k, n, null, float(draws.choice([0.9, 0.95, 0.995, 0.9999]))))
    p_values = np.array([binomial_p_greater(k, n, null) for k, n, null, _ in cases])
    ends = np.array([clopper_pearson(k, n, confidence) for k, n, _, confidence in cases])
    hits, of, nulls, confidences = (np.array(column) for column in zip(*cases, strict=True))
    tails = (1 - confidences) / 2
    # Scipy's distributions of all cases at once: a call for each would take longer than the rest of this test.
    assert p_values == pytest.approx(stats.binom.sf(hits - 1, of, nulls), rel=1e-8, abs=1e-11)
    low = np.where(hits > 0, stats.beta.ppf(tails, hits, of - hits + 1), 0.0)
    high = np.where(hits < of, stats.beta.isf(tails, hits + 1, of - hits), 1.0)
    assert ends == pytest.approx(np.stack([low, high], axis=1), abs=1e-11)
    for (k, n, null, _), p_value in zip(cases[::10], p_values[::10], strict=True):
        assert p_value == pytest.approx(stats.binomtest(k, n, null, alternative="greater").pvalue, rel=1e-8, abs=1e-11)
    for (k, n, _, confidence), found in zip(cases[::50], ends[::50], strict=True):
        two_sided = stats.binomtest(k, n).proportion_ci(confidence, method="exact")
        assert tuple(found) == pytest.approx((two_sided.low, two_sided.high), abs=1e-10)


def test_the_interval_is_the_two_sided_one() -> None:
    one_sided = stats.binomtest(119, 224, 0.483, alternative="greater").proportion_ci(0.995)
    assert one_sided.high == 1.0
    assert clopper_pearson(119, 224, 0.995)[1] < 0.63


def test_wilson_is_scipys() -> None:
    draws = np.random.default_rng(6)
    for _ in range(300):
        n = int(draws.integers(1, 3000))
        k, confidence = int(draws.choice(np.array([0, n, draws.integers(0, n + 1)]))), float(draws.uniform(0.5, 0.999))
        theirs = stats.binomtest(k, n).proportion_ci(confidence, method="wilson")
        assert wilson(k, n, confidence) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert wilson(0, 0, 0.9) == (0.0, 1.0)


@pytest.mark.parametrize(("first", "second", "low", "high"), DIFFERENCES)
def test_newcombes_table(first: tuple[int, int], second: tuple[int, int], low: float, high: float) -> None:
    found = newcombe(first, second, 0.95)
    assert found is not None
    assert found.value == pytest.approx(first[0] / first[1] - second[0] / second[1], abs=1e-15)
    assert (found.low, found.high) == pytest.approx((low, high), abs=6e-5)


def test_a_difference_needs_both_sides() -> None:
    assert newcombe((0, 0), (1, 2), 0.95) is None
    assert newcombe((1, 2), (0, 0), 0.95) is None


def test_mcnemar_is_a_coins_test_of_the_examples_on_which_two_models_differ() -> None:
    draws = np.random.default_rng(7)
    for _ in range(100):
        first, second = draws.random((2, 60)) < [[0.6], [0.5]]
        wins, losses = int((first & ~second).sum()), int((~first & second).sum())
        assert mcnemar(first, second) == pytest.approx(stats.binomtest(wins, wins + losses).pvalue, rel=1e-9)
    same = np.array([True, False])
    assert mcnemar(same, same) == 1.0


def test_corrections_for_many_tests() -> None:
    p_values = [0.01, 0.04, 0.03, 0.005]  # Holm 1979: sorted, times 4, 3, 2, 1, and never falling
    assert holm(p_values) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.5, 0.9]) == [1.0, 1.0]


def test_holm_never_rejects_less_than_bonferroni_and_by_its_own_rule() -> None:
    draws = np.random.default_rng(8)
    for _ in range(200):
        p_values = (draws.random(int(draws.integers(1, 36))) ** 4).tolist()
        rejected: set[int] = set()
        for rank, place in enumerate(np.argsort(p_values)):  # the step-down procedure as it is told
            if p_values[place] > 0.05 / (len(p_values) - rank):
                break
            rejected.add(int(place))
        assert {place for place, p in enumerate(holm(p_values)) if p <= 0.05} == rejected
        assert rejected >= {place for place, p in enumerate(p_values) if p * len(p_values) <= 0.05}


def mean_of(values: NDArray[np.float64], rows: NDArray[np.int64]) -> float:
    return float(values[rows].mean())


def test_bootstrap_is_scipys_bca() -> None:
    """Of a skewed mean, where BCa and percentiles differ: each by its own draws, 40,000 of them."""
    values = np.random.default_rng(9).lognormal(size=80)
    ours = bootstrap(lambda rows: float(values[rows].mean()), np.arange(80), confidence=0.95, draws=40_000)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=40_000, method="BCa", rng=1).confidence_interval
    plain = stats.bootstrap((values,), np.mean, n_resamples=40_000, method="percentile", rng=1).confidence_interval
    assert ours.value == values.mean()
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=0.01)
    assert abs(theirs.high - plain.high) > 0.02 * plain.high


def test_bootstrap_of_clusters_draws_whole_ones() -> None:
    """Ten copies of each example say no more than one: the interval is that of the examples, and a third of it without clusters."""
    values = np.random.default_rng(10).normal(size=60)
    copies, units = np.repeat(values, 10), np.repeat(np.arange(60), 10)

    def width(metric: NDArray[np.float64], clusters: NDArray[np.int64]) -> float:
        found = bootstrap(lambda rows: float(metric[rows].mean()), clusters, confidence=0.95)
        assert found.low is not None
        assert found.high is not None
        return found.high - found.low

    assert width(copies, units) == pytest.approx(width(values, np.arange(60)), rel=1e-9)
    assert width(copies, np.arange(600)) < width(copies, units) / 3
    shuffled = np.random.default_rng(11).permutation(600)
    assert width(copies[shuffled], units[shuffled]) == pytest.approx(width(copies, units), rel=1e-9)


def test_bootstrap_says_nothing_where_nothing_varies() -> None:
    always = bootstrap(lambda rows: 1.0, np.arange(50), confidence=0.95)
    assert (always.value, always.low, always.high) == (1.0, None, None)
    one = bootstrap(lambda rows: float(len(rows)), np.zeros(9, np.int64), confidence=0.95)
    assert (one.value, one.low, one.high) == (9.0, None, None)
    undefined = bootstrap(lambda rows: float("nan") if len(set(rows)) < 50 else 1.0, np.arange(50), confidence=0.95)
    assert (undefined.low, undefined.high) == (None, None)


def test_bootstrap_covers_what_it_should() -> None:
    """Of 300 samples of a skewed law, the 90 % interval holds the truth in nine of ten, as nearly as 300 can tell."""
    draws = np.random.default_rng(12)
    held = 0
    for seed in range(300):
        values = draws.exponential(size=60)
        found = bootstrap(functools.partial(mean_of, values), np.arange(60), confidence=0.9, draws=200, seed=seed)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 1.0 <= found.high
    assert 0.84 <= held / 300 <= 0.95


def test_a_share_of_clusters_covers_and_is_the_exact_one_where_all_are_alone() -> None:
    """Five captions of a picture mostly stand or fall together: the exact interval of captions often misses the truth, this one rarely."""
    draws = np.random.default_rng(4)
    units, truth = np.repeat(np.arange(80), 5), 0.3
    missed = naive = 0
    for _ in range(400):
        agreed, own = draws.random(80)[units] < truth, draws.random(400) < truth
        hit = np.where(draws.random(400) < 0.8, agreed, own)
        ends = clustered(hit, units, 0.95), clopper_pearson(int(hit.sum()), 400, 0.95)
        missed += not ends[0][0] <= truth <= ends[0][1]
        naive += not ends[1][0] <= truth <= ends[1][1]
    assert missed <= 0.05 * 400 + 13  # three standard deviations
    assert naive > 0.15 * 400
    alone = draws.random(50) < truth
    assert clustered(alone, np.arange(50), 0.9) == clopper_pearson(int(alone.sum()), 50, 0.9)


def test_a_share_of_clusters_by_hand() -> None:
    """Korn and Graubard's number from sums over clusters, one at a time; the ends from scipy's quantiles of beta."""
    hit = np.array([1, 1, 0, 1, 0, 0, 0, 1, 1, 1, 0], np.bool_)
    units = np.array([0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 4])
    n, clusters, share = 11, 5, 6 / 11
    spread = sum(
        (sum(bool(h) - share for h, unit in zip(hit, units, strict=True) if unit == one)) ** 2 for one in range(5)
    )
    few = (stats.t.ppf(0.975, n - 1) / stats.t.ppf(0.975, clusters - 1)) ** 2
    effective = min(n, few * share * (1 - share) / (clusters / (clusters - 1) * spread / n**2))
    low, high = clustered(hit, units, 0.95)
    assert low == pytest.approx(stats.beta.ppf(0.025, share * effective, effective * (1 - share) + 1), rel=1e-9)
    assert high == pytest.approx(stats.beta.ppf(0.975, share * effective + 1, effective * (1 - share)), rel=1e-9)
    every, none = np.ones(11, np.bool_), np.zeros(11, np.bool_)
    assert clustered(every, units, 0.95) == clopper_pearson(5, 5, 0.95)
    assert clustered(none, units, 0.95) == clopper_pearson(0, 5, 0.95)
    assert clustered(hit, np.zeros(11, np.int64), 0.95) == clopper_pearson(share, 1.0, 0.95)
    once = np.array([1, 0, 0, 1, 0, 0, 0], np.bool_)
    for times in (2, 20):  # each example repeated: nothing is known that was not
        ends = clustered(np.repeat(once, times), np.repeat(np.arange(7), times), 0.95)
        assert ends == pytest.approx(clopper_pearson(2, 7, 0.95), rel=1e-12)
    half = np.array([1, 0] * 5, np.bool_)
    assert clustered(half, np.repeat(np.arange(5), 2), 0.95) == clopper_pearson(5.0, 10.0, 0.95)
