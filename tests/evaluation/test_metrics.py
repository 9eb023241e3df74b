"""The datasets' metrics against slow twins in fractions, their intervals against simulated worlds, the guard against wrong names."""

import dataclasses
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest

from evaluation import metrics, zeroshot
from evaluation.config import Metric
from evaluation.metrics import Answers
from pipeline.content.labelled import IGNORED
from tests.evaluation.answers import ends_of_repeats


def answers(seed: int, n: int = 40, classes: int = 6, *, marks: bool = False, levels: int = 9) -> Answers:
    """Scores of few levels, so that many are equal, pulled towards the truth."""
    draws = np.random.default_rng(seed)
    labels = draws.integers(0, classes, n).astype(np.int32)
    table = draws.choice(np.array([1, 0, IGNORED], np.int8), (n, classes), p=[0.3, 0.6, 0.1]) if marks else None
    truth = table == 1 if table is not None else np.eye(classes, dtype=bool)[labels]
    scores = (draws.integers(0, levels, (n, classes)) + 2 * truth).astype(np.float32)
    return Answers(scores, zeroshot.rank(scores), np.full(n, -1, np.int32) if marks else labels, table)


def devkit_ap(scores: list[float], marks: list[int]) -> Fraction | None:
    """VOC2007's VOCevalcls, line by line: sort, count true and false positives, eleven recalls."""
    ranked = sorted((row for row in range(len(scores)) if marks[row] != IGNORED), key=lambda row: (-scores[row], row))
    positives = sum(marks[row] == 1 for row in ranked)
    if not positives:
        return None
    points, right = [], 0
    for seen, row in enumerate(ranked, start=1):
        right += marks[row] == 1
        points.append((Fraction(right, positives), Fraction(right, seen)))
    at = [
        max((precision for recall, precision in points if recall >= Fraction(t, 10)), default=Fraction(0))
        for t in range(11)
    ]
    return sum(at, Fraction(0)) / 11


def repeated(given: Answers, rows: NDArray[np.int64]) -> Answers:
    return Answers(
        given.scores[rows], given.best[rows], given.labels[rows], None if given.marks is None else given.marks[rows]
    )


def slow(metric: Metric, given: Answers) -> float:
    """From the definitions, example by example."""
    n, classes = given.scores.shape
    if metric == "map11":
        assert given.marks is not None
        aps = [devkit_ap(given.scores[:, k].tolist(), given.marks[:, k].tolist()) for k in range(classes)]
        known = [ap for ap in aps if ap is not None]
        return float(sum(known, Fraction(0)) / len(known))
    if metric == "roc_auc":
        margin = [float(row[1]) - float(row[0]) for row in given.scores]
        pairs = [(a, b) for a in range(n) for b in range(n) if given.labels[a] == 1 and given.labels[b] == 0]
        return float(
            sum(Fraction(1 + (margin[a] > margin[b]) - (margin[a] < margin[b]), 2) for a, b in pairs) / len(pairs)
        )
    ranked = [sorted(range(classes), key=lambda k: (-given.scores[row, k], k)) for row in range(n)]
    hit = [ranked[row][0] == given.labels[row] for row in range(n)]
    if metric == "accuracy":
        return float(np.mean(hit))
    if metric == "mean_top1_top5":
        return float(np.mean(hit) + np.mean([given.labels[row] in ranked[row][:5] for row in range(n)])) / 2
    rates = [[hit[row] for row in range(n) if given.labels[row] == k] for k in range(classes)]
    return float(np.mean([np.mean(one) for one in rates if one]))


@pytest.mark.parametrize("metric", ["accuracy", "mean_per_class", "map11", "roc_auc", "mean_top1_top5"])
def test_against_a_slow_twin(metric: Metric) -> None:
    """Also of resampled sets, whose value is computed from how often each example was drawn."""
    for seed in range(30):
        given = answers(seed, classes=2 if metric == "roc_auc" else 6, marks=metric == "map11")
        assert metrics.value(metric, given) == pytest.approx(slow(metric, given), abs=1e-12)
        rows = np.sort(np.random.default_rng(seed).integers(0, 40, 40))
        counts = np.bincount(rows, minlength=40).astype(np.int64)
        assert metrics.METRICS[metric](given)(counts) == pytest.approx(slow(metric, repeated(given, rows)), abs=1e-12)


def test_known_values() -> None:
    """By hand: positives at ranks 1 and 3 of 4; a classifier without ties and with all tied."""
    scores = np.array([[0.9], [0.8], [0.7], [0.6]], np.float32)
    marks = np.array([[1], [0], [1], [0]], np.int8)
    one = Answers(scores, zeroshot.rank(scores), np.full(4, -1, np.int32), marks)
    assert metrics.value("map11", one) == pytest.approx((6 * 1 + 5 * Fraction(2, 3)) / 11)
    marks[1] = IGNORED
    assert metrics.value("map11", one) == 1.0
    for margin, area in (([3, 2, 1, 0], 1.0), ([0, 1, 2, 3], 0.0), ([1, 1, 1, 1], 0.5)):
        two = np.stack([np.zeros(4), margin], axis=1).astype(np.float32)
        assert metrics.value("roc_auc", Answers(two, zeroshot.rank(two), np.array([1, 1, 0, 0], np.int32))) == area


def share_covered(metric: Metric, worlds: int) -> float:
    """How many worlds of 150 examples have the large-sample value inside of their 95 % interval."""
    classes = 2 if metric == "roc_auc" else 4
    truth = metrics.value(metric, answers(999, 40_000, classes, marks=metric == "map11", levels=5))
    covered = 0
    for seed in range(worlds):
        found = metrics.measure(metric, answers(seed, 150, classes, marks=metric == "map11", levels=5), 0.95)
        assert found.low is not None
        assert found.high is not None
        assert found.low <= found.value <= found.high
        covered += found.low <= truth <= found.high
    return covered / worlds


BOOTSTRAPPED: tuple[Metric, ...] = ("mean_per_class", "map11", "roc_auc", "mean_top1_top5")


@pytest.mark.parametrize("metric", BOOTSTRAPPED)
def test_intervals_hold_the_truth(metric: Metric) -> None:
    assert share_covered(metric, 3) >= 2 / 3


@pytest.mark.prove
@pytest.mark.parametrize("metric", BOOTSTRAPPED)
def test_intervals_cover_the_truth(metric: Metric) -> None:
    assert 0.89 <= share_covered(metric, 200) <= 0.99


def test_a_repeated_picture_is_no_further_evidence() -> None:
    """Each example twice, known as the same picture: the interval of the set without repeats; not known: a narrower one."""
    once = answers(3, 150, 4)
    twice = repeated(once, np.repeat(np.arange(150), 2))
    found = metrics.measure("mean_per_class", once, 0.95)
    together = metrics.measure("mean_per_class", dataclasses.replace(twice, units=np.repeat(np.arange(150), 2)), 0.95)
    apart = metrics.measure("mean_per_class", twice, 0.95)
    assert None not in (found.low, found.high, apart.low, apart.high)
    assert (together.low, together.high) == pytest.approx((found.low, found.high), abs=1e-12)
    assert (apart.high or 0) - (apart.low or 0) < 0.8 * ((found.high or 0) - (found.low or 0))


def test_shares_of_repeated_pictures_are_as_sure_as_the_pictures() -> None:
    """Each example three times is the set without repeats; repeated unevenly, the interval is the twin's and wider than of examples."""
    once = answers(3, 50, 4)
    thrice = dataclasses.replace(repeated(once, np.repeat(np.arange(50), 3)), units=np.repeat(np.arange(50), 3))
    one = zeroshot.summarise(thrice, list("abcd"), groups=["all"] * 150)
    assert (one.top1.hits, one.top1.n) == (3 * int(once.hit.sum()), 150)
    exact = binomtest(int(once.hit.sum()), 50).proportion_ci(0.95)
    for rate in (one.top1, one.headline, one.subgroups[0].top1):
        assert (rate.low, rate.high) == pytest.approx((exact.low, exact.high))
    rows = np.repeat(np.arange(50), 1 + np.arange(50) % 4)
    uneven = dataclasses.replace(repeated(once, rows), units=rows)
    found = metrics.measure("accuracy", uneven, 0.95)
    assert [found.low, found.high] == pytest.approx(ends_of_repeats(uneven.hit.tolist(), rows.tolist()))
    apart = metrics.measure("accuracy", dataclasses.replace(uneven, units=None), 0.95)
    assert (found.high or 0) - (found.low or 0) > 1.2 * ((apart.high or 0) - (apart.low or 0))


def test_five_guesses_reach_what_chance_says() -> None:
    """Of several labels not five times what one guess reaches: the guesses are different classes."""
    draws = np.random.default_rng(9)
    for marks in (False, True):
        given = answers(3, classes=9, marks=marks)
        truth = given.marks == 1 if given.marks is not None else np.eye(9, dtype=bool)[given.labels]
        hits = [truth[row, draws.permutation(9)[:5]].any() for _ in range(500) for row in range(len(truth))]
        assert metrics.chance_top5(given) == pytest.approx(np.mean(hits), abs=0.01)


def test_guessing_reaches_what_chance_says() -> None:
    draws = np.random.default_rng(5)
    guesses = draws.random((30_000, 6)).astype(np.float32)
    for metric in ("accuracy", "mean_per_class", "mean_top1_top5", "map11"):
        given = answers(1, 30_000, 6, marks=metric == "map11")
        guessed = Answers(guesses, zeroshot.rank(guesses), given.labels, given.marks)
        assert metrics.value(metric, guessed) == pytest.approx(metrics.chance(metric, guessed), abs=0.015)
    two = answers(1, 30_000, 2)
    guessed = Answers(guesses[:, :2], zeroshot.rank(guesses[:, :2]), two.labels)
    assert metrics.value("roc_auc", guessed) == pytest.approx(metrics.chance("roc_auc", guessed), abs=0.015)


def figures(given: Answers, metric: Metric = "accuracy") -> zeroshot.Scores:
    names = [str(k) for k in range(given.scores.shape[1])]
    return zeroshot.summarise(given, names, metric=metric)


@pytest.mark.parametrize("metric", ["accuracy", "mean_per_class", "map11", "roc_auc", "mean_top1_top5"])
def test_the_guard_sees_names_in_another_order(metric: Metric) -> None:
    """A good model passes; the same model with its class names moved by one does not, and the order that would be right is spoken of."""
    given = answers(2, 400, 2 if metric == "roc_auc" else 10, marks=metric == "map11", levels=3)
    good = figures(given, metric)
    assert good.guard.warnings == []
    assert good.guard.largest < good.headline.value
    classes = given.scores.shape[1]
    wrong = figures(given.renamed(np.roll(np.arange(classes), 1)), metric)
    assert wrong.headline.value < good.headline.value
    if given.marks is None:
        assert wrong.guard.reordered == pytest.approx(good.top1.value)
        assert any("not in the order of the labels" in said for said in wrong.guard.warnings)
    else:
        assert any("no better than with shuffled class names" in said for said in wrong.guard.warnings)


def test_the_guard_sees_a_model_that_knows_nothing() -> None:
    draws = np.random.default_rng(7)
    scores = draws.random((2000, 10)).astype(np.float32)
    labels = draws.integers(0, 10, 2000).astype(np.int32)
    given = figures(Answers(scores, zeroshot.rank(scores), labels))
    assert given.guard.mean == pytest.approx(0.1, abs=0.01)
    assert given.guard.warnings
    assert all("another order" not in said for said in given.guard.warnings)


def test_shuffles_leave_no_class_its_name() -> None:
    """A perfect model scores zero in every shuffle."""
    labels = np.arange(30).astype(np.int32) % 3
    scores = np.eye(3, dtype=np.float32)[labels]
    given = figures(Answers(scores, zeroshot.rank(scores), labels))
    assert (given.guard.largest, given.guard.mean, given.headline.value) == (0.0, 0.0, 1.0)
