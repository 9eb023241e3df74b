"""The arithmetic of section 5, against published vectors and against scipy's other implementation."""

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from evaluation.overlap.statistics import analyse, binomial_p_greater, clopper_pearson, detectable_gain, verdict
from evaluation.report import checking

VECTORS = [
    (119, 224, 0.483, 0.0840955401591, 0.435602774099, 0.625306959321),
    (1376, 4537, 0.294, 0.087790497486, 0.284270087653, 0.322786164553),
    (30, 40, 0.6, 0.0352224801142, 0.520213413636, 0.909285814637),
    (0, 12, 0.5, 1.0, 0.0, 0.393037768997),
    (12, 12, 0.5, 2.44140625e-4, 0.606962231003, 1.0),
    (7, 10, 0.5, 0.171875, 0.236726833648, 0.971044246592),
]


@pytest.mark.parametrize(("k", "n", "null", "p", "low", "high"), VECTORS)
def test_vectors(k: int, n: int, null: float, p: float, low: float, high: float) -> None:
    assert binomial_p_greater(k, n, null) == pytest.approx(p, abs=1e-11)
    assert clopper_pearson(k, n) == pytest.approx((low, high), abs=1e-11)


def test_against_scipy_on_random_cases() -> None:
    draws = np.random.default_rng(5)
    for _ in range(300):
        n = int(draws.integers(1, 3000))
        k, null, confidence = int(draws.integers(0, n + 1)), float(draws.uniform(0.001, 0.999)), 0.995
        assert binomial_p_greater(k, n, null) == pytest.approx(
            binomtest(k, n, null, alternative="greater").pvalue, rel=1e-9, abs=1e-300
        )
        interval = binomtest(k, n).proportion_ci(confidence, method="exact")
        assert clopper_pearson(k, n, confidence) == pytest.approx((interval.low, interval.high), abs=1e-10)


def test_the_interval_is_the_two_sided_one() -> None:
    one_sided = binomtest(119, 224, 0.483, alternative="greater").proportion_ci(0.995)
    assert one_sided.high == 1.0
    assert clopper_pearson(119, 224)[1] < 0.63


def test_analyse_counts_and_identity() -> None:
    draws = np.random.default_rng(6)
    correct, overlap = draws.random(500) < 0.6, draws.random(500) < 0.2
    found = analyse(correct, overlap, tests=35)
    assert (found.overlap.n, found.overlap.correct) == (overlap.sum(), (correct & overlap).sum())
    assert found.alpha == pytest.approx(0.05 / 35)
    accuracy = (found.overlap.accuracy, found.clean.accuracy, found.all_minus_clean)
    assert None not in accuracy
    on_overlap, on_clean, inflation = (value or 0.0 for value in accuracy)
    assert inflation == pytest.approx(overlap.mean() * (on_overlap - on_clean), abs=1e-15)
    assert found.p_value == pytest.approx(
        binomtest(found.overlap.correct, found.overlap.n, on_clean, alternative="greater").pvalue, abs=1e-12
    )


@pytest.mark.parametrize("n", [20, 50, 100, 200, 500, 1000, 5000])
def test_the_detectable_gain_is_found_four_times_in_five(n: int) -> None:
    gain = detectable_gain(n, 0.6, 0.05 / 35)
    assert gain is not None
    first = next(k for k in range(n + 1) if binom.sf(k - 1, n, 0.6) <= 0.05 / 35)
    assert binom.sf(first - 1, n, 0.6 + gain) == pytest.approx(0.8, abs=1e-9)


def test_the_check_of_the_gain_is_of_another_hand_and_agrees() -> None:
    draws = np.random.default_rng(9)
    nulls = [0.0, 1.0, 0.999, *draws.uniform(0, 1, 40)]
    cases = [(int(draws.integers(1, 400)), float(null), float(10 ** draws.uniform(-5, -1))) for null in nulls]
    for n, null, alpha in [(1, 0.5, 0.001), *cases]:
        assert checking.detectable_gain(n, null, alpha) == pytest.approx(detectable_gain(n, null, alpha), abs=1e-10)
    assert checking.detectable_gain(1, 0.5, 0.001) is None


def test_empty_sides_are_not_tested() -> None:
    correct = np.array([True, False, True])
    everything = analyse(correct, np.ones(3, np.bool_))
    assert (everything.p_value, everything.all_minus_clean) == (None, None)
    nothing = analyse(correct, np.zeros(3, np.bool_))
    assert (nothing.p_value, nothing.all_minus_clean) == (None, 0.0)
    assert nothing.overlap.accuracy is None


def test_verdicts() -> None:
    draws = np.random.default_rng(7)
    correct, overlap = draws.random(20_000) < 0.5, draws.random(20_000) < 0.3
    assert verdict(None, 0) == "clean"
    assert verdict(None, 3) == "overlap, not scored"
    assert verdict(analyse(correct, overlap), int(overlap.sum())) == "overlap, no effect seen"
    assert verdict(analyse(correct | overlap, overlap), int(overlap.sum())) == "overlap, effect"
    assert verdict(analyse(correct[:30], overlap[:30]), 3) == "not testable"
