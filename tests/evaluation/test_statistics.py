"""The arithmetic of section 5, against scipy's other implementations, exact fractions and simulations with a planted truth."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binom, binomtest, fisher_exact

from evaluation.overlap.statistics import (
    analyse,
    by_class,
    collapse,
    common_difference,
    detectable_gain,
    exact_p,
    inflation,
    possible_inflation,
    sweep,
    verdict,
)
from evaluation.report import twin


def outcomes(seed: int, n: int, accuracy: float, share: float) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """`correct` and `overlap` that have nothing to do with each other."""
    draws = np.random.default_rng(seed)
    return draws.random(n) < accuracy, draws.random(n) < share


# ---- the paper's


def test_analyse_counts_and_identity() -> None:
    correct, overlap = outcomes(6, 500, 0.6, 0.2)
    found = analyse(correct, overlap, tests=35)
    assert (found.overlap.n, found.overlap.correct) == (overlap.sum(), (correct & overlap).sum())
    assert found.alpha == pytest.approx(0.05 / 35)
    accuracy = (found.overlap.accuracy, found.clean.accuracy, found.all_minus_clean)
    assert None not in accuracy
    on_overlap, on_clean, inflated = (value or 0.0 for value in accuracy)
    assert inflated == pytest.approx(overlap.mean() * (on_overlap - on_clean), abs=1e-15)
    assert found.p_value == pytest.approx(
        binomtest(found.overlap.correct, found.overlap.n, on_clean, alternative="greater").pvalue, abs=1e-12
    )
    assert (found.clean_units, found.overlap_units) == (found.clean, found.overlap), "no clusters: examples are units"
    assert found.difference is not None
    assert found.difference.value == pytest.approx(on_overlap - on_clean, abs=1e-15)


def test_birdsnap_as_it_can_be_reconstructed_from_the_paper() -> None:
    """n = 224, k = 119, accuracy on Clean .483: p = .0840955401591, no effect after Bonferroni over 35."""
    correct = np.concatenate([np.arange(224) < 119, np.arange(1000) < 483])
    overlap = np.arange(1224) < 224
    found = analyse(correct, overlap, tests=35)
    assert found.p_value == pytest.approx(0.0840955401591, abs=1e-11)
    assert (found.overlap.low, found.overlap.high) == pytest.approx((0.435602774099, 0.625306959321), abs=1e-11)
    assert found.p_value is not None
    assert found.exact_p is not None
    assert found.exact_p > found.p_value, "Clean is a sample too"
    assert verdict(found, 224) == "not testable", "13 points would have been needed"


# The smallest gain over .6 that the paper's test sees with 80 % power at .05 / 35 where Clean is known, in points; from another program.
GAINS = {20: 36, 50: 25.5, 100: 18, 200: 13, 500: 8.5, 1000: 6, 5000: 3}


@pytest.mark.parametrize("n", GAINS)
def test_with_a_large_clean_side_the_detectable_gain_is_that_of_the_papers_test(n: int) -> None:
    gain = detectable_gain(n, 3_000_000, 0.6, 0.05 / 35)
    assert gain is not None
    assert 100 * gain == pytest.approx(GAINS[n], abs=0.5)


@pytest.mark.parametrize(
    ("n_overlap", "n_clean", "null", "alpha"),
    [(30, 30, 0.5, 0.05), (25, 60, 0.7, 0.01), (60, 25, 0.3, 0.05), (60, 90, 0.8, 0.2), (40, 7, 0.1, 0.05)],
)
def test_the_detectable_gain_is_found_four_times_in_five(
    n_overlap: int, n_clean: int, null: float, alpha: float
) -> None:
    """Every outcome of both sides, by scipy's tests."""
    gain = detectable_gain(n_overlap, n_clean, null, alpha)
    assert gain is not None
    power = 0.0
    for k, c in itertools.product(range(n_overlap + 1), range(n_clean + 1)):
        chance = binom.pmf(k, n_overlap, null + gain) * binom.pmf(c, n_clean, null)
        if chance > 1e-14 and binomtest(k, n_overlap, c / n_clean, alternative="greater").pvalue <= alpha:
            table = [[k, n_overlap - k], [c, n_clean - c]]
            power += chance * (fisher_exact(table, alternative="greater").pvalue <= alpha)
    assert power == pytest.approx(0.8, abs=1e-9)


@pytest.mark.parametrize("null", [0.5, 0.7, 0.8])
def test_no_effect_seen_is_said_of_a_gain_of_ten_points_once_in_five_times_at_most(null: float) -> None:
    """Sides of equal size, the worst that a verdict is given for; as large as they must be, and smaller."""
    draws, times = np.random.default_rng(41), 300
    needed = next(n for n in range(100, 1000, 20) if (detectable_gain(n, n, null, 0.05) or 1.0) <= 0.1)
    for n in (needed, needed * 3 // 4, needed // 2):
        said = []
        for _ in range(times):
            right = draws.random(2 * n) < np.repeat([null + 0.1, null], n)
            said.append(verdict(analyse(right, np.arange(2 * n) < n), n))
        assert said.count("overlap, no effect seen") <= 0.2 * times + 3 * (0.16 * times) ** 0.5, n
        assert n < needed or said.count("overlap, effect") >= 0.8 * times - 3 * (0.16 * times) ** 0.5


def test_the_check_of_the_gain_is_of_another_hand_and_agrees() -> None:
    draws = np.random.default_rng(9)
    nulls = [0.0, 1.0, 0.999, *draws.uniform(0, 1, 40)]
    cases = [
        (int(draws.integers(1, 400)), int(draws.integers(1, 400)), float(null), float(10 ** draws.uniform(-5, -0.01)))
        for null in nulls
    ]
    for case in [(1, 10, 0.5, 0.001), (3000, 2900, 0.4, 0.001), (40, 20_000, 0.6, 0.01), (9, 9, 0.5, 0.95), *cases]:
        assert twin.detectable_gain(*case) == pytest.approx(detectable_gain(*case), abs=1e-10), case
    assert detectable_gain(1, 10, 0.5, 0.001) is None
    assert detectable_gain(0, 10, 0.5, 0.05) is None


def test_empty_sides_are_not_tested() -> None:
    correct = np.array([True, False, True])
    everything = analyse(correct, np.ones(3, np.bool_), classes=[0, 0, 1])
    assert (everything.p_value, everything.all_minus_clean, everything.exact_p) == (None, None, None)
    assert (everything.difference, everything.by_class) == (None, None)
    nothing = analyse(correct, np.zeros(3, np.bool_))
    assert (nothing.p_value, nothing.all_minus_clean) == (None, 0.0)
    assert nothing.overlap.accuracy is None
    none = analyse(np.zeros(0, np.bool_), np.zeros(0, np.bool_), classes=[], clusters=[])
    assert (none.all.n, none.all_minus_clean, none.p_value) == (0, None, None)


def test_lengths_that_differ_are_refused() -> None:
    three = np.ones(3, np.bool_)
    with pytest.raises(ValueError, match=r"classes has shape .*; there are 3 examples"):
        analyse(three, three, classes=[1, 2])
    with pytest.raises(ValueError, match=r"clusters has shape .*; there are 3 examples"):
        analyse(three, three, clusters=np.zeros((3, 1), np.int64))
    with pytest.raises(ValueError, match="both must be bool"):
        analyse(np.ones(3, np.bool_), np.ones(4, np.bool_))


def test_verdicts() -> None:
    correct, overlap = outcomes(7, 20_000, 0.5, 0.3)
    assert verdict(None, 0) == "clean"
    assert verdict(None, 3) == "overlap, not scored"
    assert verdict(analyse(correct, overlap), int(overlap.sum())) == "overlap, no effect seen"
    assert verdict(analyse(correct | overlap, overlap), int(overlap.sum())) == "overlap, effect"
    assert verdict(analyse(correct[:30], overlap[:30]), 3) == "not testable"


def test_a_clean_side_that_is_too_small_decides_nothing() -> None:
    """Of few Clean examples the accuracy is not known: the paper's test alone would call a third of such sets an effect, and none is."""
    one = analyse(np.arange(40) < 20, np.arange(40) < 39)
    assert one.p_value == 0.0, "the only Clean example is wrong, so that nothing is expected of Overlap"
    assert verdict(one, 39) == "not testable"
    draws = np.random.default_rng(31)
    overlap = np.arange(105) < 100
    said = [verdict(analyse(draws.random(105) < 0.5, overlap), 100) for _ in range(400)]
    assert said.count("overlap, effect") <= 400 * 0.05 + 3 * (400 * 0.05 * 0.95) ** 0.5
    assert "overlap, no effect seen" not in said
    many = np.arange(3000) < 2000
    assert verdict(analyse(np.arange(3000) % 2 == 0, many), 2000) == "not testable", (
        "Clean has fewer units than Overlap"
    )
    assert verdict(analyse((np.arange(3000) % 2 == 0) | many, many), 2000) == "overlap, effect", (
        "and is enough to see one"
    )


def test_what_is_neither_right_nor_wrong_is_refused() -> None:
    overlap = np.arange(4) < 2
    for odd in ([float("nan"), 1.0, 0.0, 1.0], [0.4, 1.0, 0.0, 1.0], [2, 1, 0, 1]):
        with pytest.raises(ValueError, match="correct has values that are neither true nor false"):
            analyse(np.array(odd), overlap)
    assert analyse(np.array([1, 1, 0, 1]), overlap) == analyse(np.array([True, True, False, True]), overlap)


def test_numbers_and_levels_that_are_none_are_refused() -> None:
    """0.2 and 0.7 would be one cluster, nan a class, and alpha = 2 would call everything an effect."""
    right, overlap = np.ones(3, np.bool_), np.arange(3) < 1
    for odd in ([0.2, 0.7, 1.5], [0.0, 1.0, float("nan")], ["0", "1", "2"]):
        with pytest.raises(ValueError, match=r"classes is an array of .*; it must be int"):
            analyse(right, overlap, classes=np.array(odd))
        with pytest.raises(ValueError, match=r"clusters is an array of .*; it must be int"):
            analyse(right, overlap, clusters=np.array(odd))
    levels: list[dict[str, Any]] = [
        {"alpha": 2},
        {"alpha": 0},
        {"alpha": float("nan")},
        {"confidence": 1.0},
        {"tests": -3},
        {"tests": 0},
    ]
    for level in levels:
        ((name, value),) = level.items()
        with pytest.raises(ValueError, match=rf"{name} is {value}; it must be"):
            analyse(right, overlap, **level)
        with pytest.raises(ValueError, match=rf"{name} is {value}; it must be"):
            inflation(accuracy_of(right), overlap, **level)


# ---- clusters


def test_a_cluster_counts_once_and_overlaps_if_any_of_it_does() -> None:
    overlap = np.array([False, False, True, False, True, False])
    units, touched = collapse(overlap, np.array([7, 3, 7, 3, 9, 1]))
    assert units.tolist() == [0, 1, 4, 5]
    assert touched.tolist() == [True, False, True, False]


def test_repeats_make_no_evidence() -> None:
    """A set in which every example stands four times: the tests say what they say of the set without repeats."""
    correct, overlap = outcomes(13, 300, 0.5, 0.3)
    classes = np.random.default_rng(14).integers(0, 5, 300)
    once = analyse(correct, overlap, classes=classes)
    order = np.random.default_rng(15).permutation(1200)
    four = analyse(
        np.tile(correct, 4)[order],
        np.tile(overlap, 4)[order],
        classes=np.tile(classes, 4)[order],
        clusters=np.tile(np.arange(300), 4)[order],
    )
    assert four.all.n == 1200
    assert four.all.accuracy == once.all.accuracy
    assert four.all_minus_clean == pytest.approx(once.all_minus_clean, abs=1e-15)
    for name in ("clean_units", "overlap_units", "p_value", "exact_p", "detectable_gain", "difference", "by_class"):
        assert getattr(four, name) == getattr(once, name), name
    blind = analyse(np.tile(correct, 4), np.tile(overlap, 4))
    assert blind.p_value != pytest.approx(once.p_value, rel=0.1), (
        "without clusters the same data would say something else"
    )


# ---- classes


def test_one_stratum_is_fishers_test() -> None:
    draws = np.random.default_rng(16)
    for _ in range(300):
        table = draws.integers(0, 10 ** draws.integers(1, 4), 4)
        ours, theirs = exact_p([table.tolist()]), fisher_exact(table.reshape(2, 2), alternative="greater").pvalue
        assert ours == pytest.approx(theirs, rel=1e-7, abs=1e-12), table


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 9)] * 4), min_size=0, max_size=5))
def test_the_exact_test_over_strata_is_a_count_of_all_arrangements(tables: list[tuple[int, int, int, int]]) -> None:
    total: dict[int, Fraction] = {0: Fraction(1)}
    for a, b, c, d in tables:
        arrangements = {
            k: Fraction(math.comb(a + b, k) * math.comb(c + d, a + c - k), math.comb(a + b + c + d, a + c))
            for k in range(a + c + 1)
            if k <= a + b and a + c - k <= c + d
        }
        grown: dict[int, Fraction] = {}
        for before, weight in total.items():
            for k, share in arrangements.items():
                grown[before + k] = grown.get(before + k, Fraction(0)) + weight * share
        total = grown
    seen = sum(table[0] for table in tables)
    assert exact_p([list(table) for table in tables]) == pytest.approx(
        float(sum(share for k, share in total.items() if k >= seen)), abs=1e-12
    )


def test_an_advantage_that_is_only_the_mix_of_classes_is_seen_as_one() -> None:
    """Overlap has the easy classes. The paper's test calls it an effect; within classes there is none."""
    draws = np.random.default_rng(17)
    classes = draws.integers(0, 20, 20_000)
    correct = draws.random(20_000) < np.where(classes < 10, 0.9, 0.4)
    overlap = draws.random(20_000) < np.where(classes < 10, 0.15, 0.02)
    found = analyse(correct, overlap, classes=classes)
    assert found.p_value is not None
    assert found.p_value < 1e-9
    assert found.by_class is not None
    assert found.by_class.p_value > 0.01
    adjusted = found.by_class.difference
    assert adjusted is not None
    assert adjusted.low is not None
    assert adjusted.high is not None
    assert adjusted.low < 0.0 < adjusted.high
    assert found.difference is not None
    assert found.difference.value > 0.15

    leaked = analyse(correct | (overlap & (draws.random(20_000) < 0.5)), overlap, classes=classes)
    assert leaked.by_class is not None
    assert leaked.by_class.p_value < 1e-9, "a real effect is still seen"


def test_one_class_is_the_plain_difference_and_classes_of_one_side_say_nothing() -> None:
    correct, overlap = outcomes(18, 400, 0.7, 0.3)
    plain = analyse(correct, overlap, classes=np.zeros(400, np.int64))
    assert plain.by_class is not None
    assert plain.by_class.difference is not None
    assert plain.difference is not None
    assert plain.by_class.difference.value == pytest.approx(plain.difference.value, abs=1e-14)
    assert plain.by_class.p_value == pytest.approx(plain.exact_p, abs=1e-14)
    more = analyse(
        np.concatenate([correct, np.ones(50, np.bool_)]),
        np.concatenate([overlap, np.arange(50) < 25]),
        classes=np.concatenate([np.zeros(400, np.int64), np.where(np.arange(50) < 25, 1, 2)]),
    )
    assert more.by_class is not None
    assert (more.by_class.classes, more.by_class.units) == (1, 400)
    assert more.by_class.difference == plain.by_class.difference
    apart = by_class(correct, overlap, overlap.astype(np.int64), 0.95)
    assert (apart.classes, apart.units, apart.difference, apart.p_value) == (0, 0, None, 1.0)


@pytest.mark.parametrize(("strata", "per_side"), [(2, (60, 200)), (150, (1, 3))], ids=["few large", "many small"])
def test_the_adjusted_interval_covers_what_it_should(strata: int, per_side: tuple[int, int]) -> None:
    """Of 1,000 sets with a planted advantage of 10 points in every class, the 90 % interval holds it in nine of ten."""
    draws = np.random.default_rng(19)
    base = draws.uniform(0.2, 0.8, strata)
    held = 0
    for _ in range(1000):
        right = draws.binomial(per_side[0], base + 0.1), draws.binomial(per_side[1], base)
        tables = np.stack([right[0], per_side[0] - right[0], right[1], per_side[1] - right[1]], axis=1)
        found = common_difference(tables, 0.9)
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0.1 <= found.high
    assert 0.87 <= held / 1000 <= 0.93


# ---- other metrics, other thresholds


def accuracy_of(correct: NDArray[np.bool_]) -> Callable[[NDArray[np.int64]], float]:
    return lambda counts: float(counts[correct].sum() / counts.sum())


def test_inflation_of_an_accuracy_is_all_minus_clean_and_of_classes_their_mean() -> None:
    correct, overlap = outcomes(20, 400, 0.6, 0.3)
    found = inflation(accuracy_of(correct), overlap)
    assert found.value == pytest.approx(analyse(correct, overlap).all_minus_clean, abs=1e-15)
    assert (found.clean_units, found.overlap_units) == ((~overlap).sum(), overlap.sum())
    assert None not in (found.low, found.high, found.least)
    assert (found.low or 1) < (found.least or 1) < (found.value or 0) < (found.high or 0)

    classes = np.random.default_rng(21).integers(0, 4, 400)

    def mean_per_class(counts: NDArray[np.int64]) -> float:
        sizes = np.bincount(classes, counts, 4)
        return float(np.mean((np.bincount(classes, counts * correct, 4) / np.maximum(sizes, 1))[sizes > 0]))

    by_hand = np.mean([correct[classes == c].mean() for c in range(4)]) - np.mean(
        [correct[(classes == c) & ~overlap].mean() for c in range(4)]
    )
    assert inflation(mean_per_class, overlap, draws=100).value == pytest.approx(by_hand, abs=1e-15)


def test_the_placements_of_an_accuracy_are_fishers_test() -> None:
    """All − Clean rises with the right answers among Overlap, so dealing Overlap out at random is the hypergeometric law."""
    draws = 4000
    for seed, n, share in ((1, 30, 0.2), (2, 200, 0.1), (3, 60, 0.5)):
        correct, overlap = outcomes(seed, n, 0.6, share)
        right = correct[overlap].sum(), correct[~overlap].sum()
        exact = fisher_exact(
            [[right[0], overlap.sum() - right[0]], [right[1], (~overlap).sum() - right[1]]], alternative="greater"
        ).pvalue
        found = inflation(accuracy_of(correct), overlap, draws=draws)
        assert found.p_value == pytest.approx(exact, abs=4 * (exact * (1 - exact) / draws) ** 0.5 + 1 / draws)


def test_three_right_answers_are_no_effect() -> None:
    """The bootstrap alone would believe them: it draws nothing but right answers from them."""
    correct = np.arange(60) % 2 == 0
    overlap = np.isin(np.arange(60), [0, 2, 4])
    found = inflation(accuracy_of(correct), overlap)
    assert found.least is not None
    assert found.least > 0
    assert found.p_value == pytest.approx(1 / 8, abs=0.04)
    assert found.detectable_gain is not None
    assert found.detectable_gain > 0.3
    assert verdict(analyse(correct, overlap), 3, found) == "not testable"


def test_inflation_counts_a_cluster_once() -> None:
    """Every example four times: the same units, the same placements, the same interval as without repeats."""
    correct, overlap = outcomes(24, 150, 0.5, 0.3)
    once = inflation(accuracy_of(correct), overlap, draws=300)
    four = inflation(accuracy_of(np.tile(correct, 4)), np.tile(overlap, 4), np.tile(np.arange(150), 4), draws=300)
    assert dataclasses.astuple(four) == pytest.approx(dataclasses.astuple(once), abs=1e-12)
    blind = inflation(accuracy_of(np.tile(correct, 4)), np.tile(overlap, 4), draws=300)
    assert (blind.high or 0) - (blind.low or 0) < 0.7 * ((once.high or 0) - (once.low or 0))


def test_the_verdict_of_another_metric_is_as_often_wrong_as_alpha_says_and_sees_a_planted_gain() -> None:
    draws = np.random.default_rng(25)

    def judged(gain: float) -> str:
        overlap = draws.random(300) < 0.3
        correct = draws.random(300) < 0.5 + gain * overlap
        found = inflation(accuracy_of(correct), overlap, alpha=0.1, draws=150)
        return verdict(analyse(correct, overlap), int(overlap.sum()), found)

    assert sum(judged(0.0) == "overlap, effect" for _ in range(60)) <= 60 * 0.1 + 3 * (60 * 0.09) ** 0.5
    assert sum(judged(0.35) == "overlap, effect" for _ in range(10)) >= 9
    seen = inflation(accuracy_of(np.ones(40_000, np.bool_)), np.arange(40_000) % 2 == 0, draws=100)
    assert seen.least is None, "draws that do not vary say nothing"
    assert verdict(analyse(np.ones(4, np.bool_), np.arange(4) < 2), 2, seen) != "overlap, effect"


@pytest.mark.prove
def test_the_detectable_gain_of_another_metric_is_found_about_four_times_in_five() -> None:
    draws = np.random.default_rng(26)
    overlap = draws.random(1000) < 0.3
    gain = inflation(accuracy_of(draws.random(1000) < 0.5), overlap, draws=1000).detectable_gain
    assert gain is not None
    found = [inflation(accuracy_of(draws.random(1000) < 0.5 + gain * overlap), overlap, draws=1000) for _ in range(300)]
    seen = sum(one.p_value is not None and one.p_value <= 0.05 and (one.least or 0) > 0 for one in found)
    assert 0.72 <= seen / 300 <= 0.88


def test_inflation_where_there_is_nothing_to_compare() -> None:
    everything = inflation(accuracy_of(np.ones(30, np.bool_)), np.ones(30, np.bool_))
    assert (everything.value, everything.low, everything.p_value, everything.drawn) == (None, None, None, 0)
    nothing = inflation(accuracy_of(np.ones(30, np.bool_)), np.zeros(30, np.bool_))
    assert (nothing.value, nothing.least, nothing.p_value, nothing.detectable_gain) == (0.0, None, None, None)
    never = inflation(lambda counts: float("nan"), np.arange(30) < 9)
    assert (never.value, never.p_value) == (None, None)
    assert verdict(analyse(np.ones(30, np.bool_), np.arange(30) < 9), 9, never) == "not testable"
    with pytest.raises(ValueError, match=r"clusters has shape"):
        inflation(accuracy_of(np.ones(3, np.bool_)), np.arange(3) < 1, [1, 2])


def test_a_sweep_is_one_analysis_a_limit() -> None:
    correct, overlap = outcomes(22, 300, 0.6, 0.4)
    distance = np.where(overlap, np.random.default_rng(23).integers(0, 60, 300), np.inf)
    found = sweep(correct, distance, [0, 31, 63], tests=3)
    assert [one.overlap.n for one in found] == [int((distance <= limit).sum()) for limit in (0, 31, 63)]
    assert found[1] == analyse(correct, distance <= 31, tests=3)


def test_what_was_missed_may_have_added_too() -> None:
    assert possible_inflation(0.04, 0.05) == pytest.approx(0.002)
    assert possible_inflation(0.04, 0.05, precision=0.5, recall=0.25) == pytest.approx(0.004)
    assert possible_inflation(0.04, -0.05) == 0.0
    assert possible_inflation(0.5, 0.1, recall=0.25) == pytest.approx(0.1), "no more than everything"
