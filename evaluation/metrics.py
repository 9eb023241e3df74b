"""The metrics of the CLIP paper's datasets, each with an interval and with what guessing would reach.

Which dataset takes which is data (`datasets/catalogue.toml`). A proportion has the exact interval of Clopper and Pearson, in which
the repeats of a picture are a cluster (`intervals.clustered`); the others are bootstrapped over independent examples (pictures, if some are
repeated; videos, where frames were averaged). Every metric is a function of how often each example counts, so that a resampled set costs
no second sort.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.config import Metric
from evaluation.intervals import bootstrap, clopper_pearson, clustered
from evaluation.retrieval import chance_recall
from pipeline.content.labelled import IGNORED
from pipeline.contracts.errors import InputError

Counts = NDArray[np.int64]
"""int64[n]: how often each example is in the (resampled) set."""

TOP = 5
_SEED, _GUESSES = 0, 20  # of the random rankings

TITLES: dict[Metric, str] = {
    "accuracy": "top-1",
    "mean_per_class": "mean per class",
    "map11": "11-point mAP",
    "roc_auc": "ROC AUC",
    "mean_top1_top5": "mean of top-1, top-5",
}


@dataclass(frozen=True)
class Rate:
    """A share with its interval (None: none can be given); `n` and `hits` are None for a mean that is no proportion."""

    value: float
    low: float | None
    high: float | None
    n: int | None = None
    hits: int | None = None


@dataclass(frozen=True)
class Answers:
    """What a model said of n examples: scores float32[n, classes] (higher is nearer), its best classes int32[n, k], and the truth:
    `labels` int32[n], or `marks` int8[n, classes] where an example has several. `units` int64[n] numbers the pictures (videos) from 0 on,
    where some examples are the same one: those are drawn together.
    """

    scores: NDArray[np.float32]
    best: NDArray[np.int32]
    labels: NDArray[np.int32]
    marks: NDArray[np.int8] | None = None
    units: NDArray[np.int64] | None = None

    @property
    def hit(self) -> NDArray[np.bool_]:
        """Whether the best class is right (one of the right ones); bool[n]."""
        return self._hits(1)

    @property
    def hit5(self) -> NDArray[np.bool_]:
        """Whether one of the best classes is right; bool[n]."""
        return self._hits(self.best.shape[1])

    def _hits(self, k: int) -> NDArray[np.bool_]:
        best = self.best[:, :k]
        right = (
            best == self.labels[:, None] if self.marks is None else np.take_along_axis(self.marks, best, axis=1) == 1
        )
        found: NDArray[np.bool_] = right.any(axis=1)
        return found

    def renamed(self, order: NDArray[np.int64]) -> Answers:
        """The same answers with class k called `order[k]`."""
        scores = np.empty_like(self.scores)
        scores[:, order] = self.scores
        return dataclasses.replace(self, scores=scores, best=order[self.best].astype(np.int32))


def check(metric: Metric, place: str, classes: int, several: bool) -> None:
    """Raises InputError where a metric does not go with a set of so many classes, with one label an example or `several`."""
    if (metric == "map11") != several and metric != "accuracy":
        kind = "several labels" if several else "one label"
        raise InputError(
            f"{place}: {metric} does not go with {kind} an example; give the labels that belong to this dataset"
        )
    if metric == "roc_auc" and classes != 2:
        raise InputError(f"{place}: roc_auc needs two classes, there are {classes}; check `dataset`")


def rate(hits: NDArray[np.bool_], confidence: float, units: NDArray[np.int64] | None = None) -> Rate:
    """A share of hits with its Clopper-Pearson interval; `units` int64[n] as in Answers, None where no example is another's repeat."""
    k, n = int(hits.sum()), len(hits)
    low, high = clopper_pearson(k, n, confidence) if units is None else clustered(hits, units, confidence)
    return Rate(k / n, low, high, n, k)


def measure(metric: Metric, answers: Answers, confidence: float) -> Rate:
    """The value of a metric with its interval."""
    if metric == "accuracy":
        return rate(answers.hit, confidence, answers.units)
    function = METRICS[metric](answers)
    n = len(answers.best)

    def of_rows(rows: NDArray[np.int64]) -> float:
        return function(np.bincount(rows, minlength=n).astype(np.int64))

    units = np.arange(n, dtype=np.int64) if answers.units is None else answers.units
    found = bootstrap(of_rows, units, confidence=confidence)
    return Rate(found.value, found.low, found.high)


def value(metric: Metric, answers: Answers) -> float:
    """The value alone."""
    return METRICS[metric](answers)(np.ones(len(answers.best), np.int64))


def chance(metric: Metric, answers: Answers) -> float:
    """What a guess without a look at the pictures reaches; of an average precision the mean of some random rankings, a little above the
    share of positives.
    """
    n, classes = len(answers.scores), int(answers.scores.shape[1])
    if metric == "roc_auc":
        return 0.5
    if metric == "mean_top1_top5":
        return (1 / classes + min(1.0, TOP / classes)) / 2
    if metric != "map11":
        return 1 / classes if answers.marks is None else float((answers.marks == 1).mean())
    draws = np.random.default_rng(_SEED)
    guesses = [dataclasses.replace(answers, scores=draws.random((n, classes), np.float32)) for _ in range(_GUESSES)]
    return float(np.mean([value(metric, guess) for guess in guesses]))


def chance_top5(answers: Answers) -> float:
    """How often one of five (or all) classes, taken at random, is right."""
    classes = int(answers.scores.shape[1])
    if answers.marks is None:
        return min(1.0, TOP / classes)
    rights = (answers.marks == 1).sum(axis=1)
    return float(np.mean([chance_recall(classes, int(right), TOP) if right else 0.0 for right in rights]))


# ---- the metrics, as functions of the counts


def accuracy(answers: Answers) -> Callable[[Counts], float]:
    """Share of examples whose best class is right."""
    hit = answers.hit
    return lambda counts: float(counts[hit].sum() / counts.sum())


def mean_top1_top5(answers: Answers) -> Callable[[Counts], float]:
    """The mean of top-1 and top-5 accuracy (Kinetics-700)."""
    points = (answers.hit.astype(np.float64) + answers.hit5) / 2
    return lambda counts: float(points @ counts / counts.sum())


def mean_per_class(answers: Answers) -> Callable[[Counts], float]:
    """Mean of the classes' accuracies; a class without an example is left out. nan for several labels an example."""
    hit, labels = answers.hit, answers.labels
    classes = answers.scores.shape[1]

    def of(counts: Counts) -> float:
        if answers.marks is not None:
            return float("nan")
        hits = np.bincount(labels, weights=counts * hit, minlength=classes)
        sizes = np.bincount(labels, weights=counts, minlength=classes)
        present = sizes > 0
        return float((hits[present] / sizes[present]).mean())

    return of


def roc_auc(answers: Answers) -> Callable[[Counts], float]:
    """Area under the curve of class 1 against class 0: how often a positive scores above a negative, ties counting half. nan where one is
    missing.

    Scores are the differences of the two classes', of which any monotone function (a probability) has the same area.
    """
    margin = answers.scores[:, 1].astype(np.float64) - answers.scores[:, 0]
    _, level = np.unique(margin, return_inverse=True)
    positive = answers.labels == 1

    def of(counts: Counts) -> float:
        above = np.bincount(level, weights=counts * positive)
        below = np.bincount(level, weights=counts * ~positive)
        pairs = above.sum() * below.sum()
        if not pairs:
            return float("nan")
        return float((above * (np.cumsum(below) - below / 2)).sum() / pairs)

    return of


def map11(answers: Answers) -> Callable[[Counts], float]:
    """Mean over the classes of VOC2007's average precision: the largest precision at a recall of at least 0, 0.1, …, 1, averaged.

    Examples whose mark is IGNORED take no part in that class; a class without a positive is left out. Equal scores are taken in the order
    of the examples, as the development kit's sort does. Recalls are compared as fractions, so 3 of 10 reach 0.3.
    """
    marks = (
        answers.marks if answers.marks is not None else np.eye(answers.scores.shape[1], dtype=np.int8)[answers.labels]
    )
    orders = [
        np.flatnonzero(marks[:, k] != IGNORED)[np.argsort(-answers.scores[marks[:, k] != IGNORED, k], kind="stable")]
        for k in range(marks.shape[1])
    ]
    rights = [marks[order, k] == 1 for k, order in enumerate(orders)]

    def of(counts: Counts) -> float:
        found = [_average_precision(counts[order], right) for order, right in zip(orders, rights, strict=True)]
        known = [one for one in found if one is not None]
        return float(np.mean(known)) if known else float("nan")

    return of


def _average_precision(counts: Counts, right: NDArray[np.bool_]) -> float | None:
    """11-point average precision of a ranked list in which entry i stands `counts[i]` times. None without a positive.

    Only the ends of entries can hold the largest precision from some recall on: along the copies of a right one it grows, along those of
    a wrong one it falls.
    """
    hits = np.cumsum(counts * right)
    positives = int(hits[-1]) if len(hits) else 0
    if not positives:
        return None
    there = counts > 0
    hits, seen = hits[there], np.cumsum(counts)[there]
    best = np.maximum.accumulate((hits / seen)[::-1])[::-1]
    # hits grow along the list: the first place that reaches the recall has the largest precision from there on.
    places = np.searchsorted(10 * hits, np.arange(11) * positives, side="left")
    return float(best[places].mean())


METRICS: dict[Metric, Callable[[Answers], Callable[[Counts], float]]] = {
    "accuracy": accuracy,
    "mean_per_class": mean_per_class,
    "map11": map11,
    "roc_auc": roc_auc,
    "mean_top1_top5": mean_top1_top5,
}
