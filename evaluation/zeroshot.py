"""Zero-shot classification as CLIP does it: class names become a classifier, no example of the set is learned from.

Per class, every prompt template is filled with every name of the class and embedded; the embeddings are normalised, averaged, and the
average is normalised again (the ensemble lives in embedding space, so one matrix serves the whole set). A picture's normalised embedding
is compared with each class; the largest wins, and of equal scores the lower class number. Of a video, the frames' class probabilities
(softmax of 100 x cosine) are averaged, and the video is one example (appendix E.3).

The headline is the dataset's own metric. Beside every accuracy stand what guessing would reach (`chance`) and what always answering the
largest class would (`constant`), because on unbalanced sets plain accuracy flatters; the mean per class does not. And beside the headline
stands the guard: what the same features reach with shuffled class names, and with the best one-to-one renaming of the classes. A score
that does not beat the first says nothing, and a much better second is a class list in another order than the labels.

Source: CLIP paper 3.1.2-3.1.4, and openai/CLIP notebooks/Prompt_Engineering_for_ImageNet.ipynb.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from evaluation import metrics
from evaluation.calibration import probabilities, with_probabilities
from evaluation.config import Metric
from evaluation.features import Encoder, normalise
from evaluation.metrics import TOP, Answers, Rate
from evaluation.overlap.tables import PREDICTION_SCHEMA
from pipeline.content.labelled import UNLABELLED, LabelledSet
from pipeline.contracts.errors import InputError

LOGIT_SCALE = 100.0
"""What CLIP's cosines are multiplied by before the softmax; trained models end at this bound."""
_SHUFFLES = 20
_SEED = 0  # of the shuffled class names
_BLOCK = 4096  # frames whose probabilities are held at a time
_REORDERED = 0.2  # points by which another order of the classes must be better to be spoken of
_ENOUGH = 10  # examples a class, below which the best of all orders is luck


@dataclass(frozen=True)
class GroupScore:
    """Plain accuracy of one subgroup."""

    name: str
    top1: Rate


@dataclass(frozen=True)
class Guard:
    """The headline metric under wrong names: mean and largest of some shuffles in which no class keeps its name.

    `reordered`: plain accuracy after the best one-to-one renaming of the classes; None for several labels an example.
    """

    shuffles: int
    mean: float
    largest: float
    reordered: float | None
    warnings: list[str]


@dataclass(frozen=True)
class Scores:
    """What one labelled set gave; `n` examples (videos). `chance` and `constant` are top-1 accuracies, `classes_seen` the classes with an
    example.

    `mean_per_class` is None for several labels an example.
    """

    n: int
    unlabelled: int
    classes: int
    classes_seen: int
    metric: Metric
    headline: Rate
    headline_chance: float
    guard: Guard
    top1: Rate
    top5: Rate
    mean_per_class: Rate | None
    chance: float
    chance_top5: float
    constant: float
    constant_class: str
    constant_mean_per_class: float
    subgroups: list[GroupScore] = field(default_factory=list)


def classifier(
    encoder: Encoder, class_names: Sequence[str | Sequence[str]], templates: Sequence[str]
) -> NDArray[np.float32]:
    """The weight matrix float32[classes, d]: per class the re-normalised mean over names x templates of its normalised prompt
    embeddings.
    """
    names = [[one] if isinstance(one, str) else list(one) for one in class_names]
    sentences = [template.replace("{}", name) for several in names for name in several for template in templates]
    embedded = normalise(encoder.texts(sentences))
    ends = np.cumsum([len(several) * len(templates) for several in names])
    return normalise(np.stack([part.mean(axis=0) for part in np.split(embedded, ends[:-1])]))


def rank(scores: NDArray[np.floating]) -> NDArray[np.int32]:
    """The best `min(5, classes)` classes by scores float32[n, classes], best first, of equal scores the lower number; int32[n, k]."""
    found: NDArray[np.int32] = np.argsort(-scores, axis=1, kind="stable")[:, :TOP].astype(np.int32)
    return found


def evaluate(
    encoder: Encoder,
    labelled: LabelledSet,
    templates: Sequence[str],
    *,
    class_names: Sequence[Sequence[str]] | None = None,
    metric: Metric = "accuracy",
    confidence: float = 0.95,
    logit_scale: float | None = None,
    keep_scores: bool = False,
) -> tuple[Scores, pa.Table]:
    """Score one set; returns the figures and one PREDICTION_SCHEMA row per labelled example (frame).

    `class_names`: one list a class; None: the set's own names. `logit_scale` is what the model multiplies cosines by; None: the rows
    have no probabilities. `keep_scores`: they have the scores of every class. Raises InputError when the set has no labels or fewer
    than two classes, its labels do not fit the metric, or the frames of a video have different labels.
    """
    rows = labelled_rows(labelled)
    _check(labelled, rows, metric)
    weights = classifier(encoder, class_names or labelled.class_texts, templates)
    images = normalise(encoder.images(labelled, rows.tolist()))
    scores, example = images @ weights.T, np.arange(len(rows))
    if labelled.groups is not None:
        example, scores = _videos(labelled, rows, scores, logit_scale or LOGIT_SCALE)
    first = np.unique(example, return_index=True)[1]
    labels = labelled.labels[rows]
    other = labels != labels[first][example]
    if labelled.marks is not None:
        other = (labelled.marks[rows] != labelled.marks[rows][first][example]).any(axis=1)
    if other.any():
        raise InputError(
            f"set {labelled.name!r} ({labelled.path}): frame {labelled.ids[int(rows[other.argmax()])]!r} has another label than its video; "
            "mend the labels"
        )
    answers = answers_of(labelled, rows[first], scores)
    figures = summarise(
        answers,
        labelled.classes,
        groups=groups_of(labelled, rows[first]),
        unlabelled=len(labelled) - len(rows),
        metric=metric,
        confidence=confidence,
        place=f"set {labelled.name!r} ({labelled.path})",
    )
    every_class = keep_scores or metric in ("map11", "roc_auc")
    table = prediction_table(labelled, rows, answers, example, keep_scores=every_class)
    if logit_scale is not None:  # the scores of a video are probabilities already
        table = with_probabilities(table, scores[example], None if labelled.groups is not None else logit_scale)
    return figures, table


def labelled_rows(labelled: LabelledSet) -> NDArray[np.int64]:
    """The rows of a set that have a label, or marks, int64[n]."""
    if labelled.marks is not None:
        return np.arange(len(labelled), dtype=np.int64)
    return np.flatnonzero(labelled.labels != UNLABELLED)


def _check(labelled: LabelledSet, rows: NDArray[np.int64], metric: Metric) -> None:
    place = f"set {labelled.name!r} ({labelled.path})"
    if not len(rows) or len(labelled.classes) < 2:
        raise InputError(
            f"{place} has {len(rows)} labelled pictures of {len(labelled.classes)} classes; "
            "zero-shot needs at least two classes: name the column with `label`"
        )
    metrics.check(metric, place, len(labelled.classes), labelled.marks is not None)


def answers_of(labelled: LabelledSet, rows: NDArray[np.int64], scores: NDArray[np.floating]) -> Answers:
    """What was said of some rows of a set, one an example: scores float[n, classes]. Rows with the same picture are drawn together, and
    so are videos with the same frames.
    """
    return Answers(
        scores=scores.astype(np.float32, copy=False),
        best=rank(scores),
        labels=labelled.labels[rows],
        marks=None if labelled.marks is None else labelled.marks[rows],
        units=_units(labelled, rows),
    )


def _units(labelled: LabelledSet, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which of these examples are the same picture, or have the same labelled frames: int64[n], numbered from 0."""
    if labelled.groups is None:
        pictures = np.array([labelled.sha256[row].hex() for row in rows])
        return np.unique(pictures, return_inverse=True)[1].astype(np.int64)
    frames: dict[str, list[bytes]] = {}
    for row in labelled_rows(labelled).tolist():
        frames.setdefault(labelled.groups[row], []).append(labelled.sha256[row])
    number: dict[tuple[bytes, ...], int] = {}
    return np.array([number.setdefault(tuple(frames[labelled.groups[row]]), len(number)) for row in rows], np.int64)


def _videos(
    labelled: LabelledSet, rows: NDArray[np.int64], scores: NDArray[np.float32], scale: float
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Each row's video, numbered in the order in which they come, and the mean class probabilities of each, float32[videos, classes]."""
    if labelled.groups is None:
        raise ValueError("the set has no groups")
    number: dict[str, int] = {}
    video = np.array([number.setdefault(labelled.groups[row], len(number)) for row in rows], np.int64)
    sums = np.zeros((len(number), scores.shape[1]))
    for start in range(0, len(scores), _BLOCK):
        block = slice(start, start + _BLOCK)
        np.add.at(sums, video[block], probabilities(scores[block], scale))
    return video, (sums / np.bincount(video)[:, None]).astype(np.float32)


def prediction_table(
    labelled: LabelledSet,
    rows: NDArray[np.int64],
    answers: Answers,
    example: NDArray[np.int64] | None = None,
    *,
    keep_scores: bool = False,
) -> pa.Table:
    """One PREDICTION_SCHEMA row for each of `rows` int64[n]. `example` int64[n] is each row's place in the answers; None: its own."""
    example = np.arange(len(rows)) if example is None else example
    best = answers.best[example]
    score = np.take_along_axis(answers.scores, answers.best[:, :1], axis=1)[:, 0].astype(np.float32)[example]
    return pa.table(
        [
            pa.array(rows, pa.int64()),
            pa.array([labelled.ids[row] for row in rows], pa.string()),
            pa.array([labelled.sha256[row] for row in rows], pa.binary(32)),
            pa.array(labelled.labels[rows], pa.int32()),
            pa.array(best[:, 0], pa.int32()),
            pa.array(best.tolist(), pa.list_(pa.int32())),
            pa.array(score, pa.float32()),
            pa.array(answers.hit[example]),
            _column(labelled.subgroups, rows),
            _column(labelled.groups, rows),
            _scores(answers.scores, example) if keep_scores else pa.nulls(len(rows), pa.list_(pa.float32())),
            pa.nulls(len(rows), pa.float32()),
            pa.nulls(len(rows), pa.float32()),
        ],
        schema=PREDICTION_SCHEMA,
    )


def _scores(scores: NDArray[np.float32], example: NDArray[np.int64]) -> pa.ChunkedArray:
    """scores float32[examples, classes] of each row's example as a column of lists, without an object for each number."""
    classes = scores.shape[1]
    blocks = [example[start : start + _BLOCK] for start in range(0, len(example), _BLOCK)]
    return pa.chunked_array(
        [
            pa.ListArray.from_arrays(
                pa.array(np.arange(len(block) + 1, dtype=np.int32) * classes), pa.array(scores[block].reshape(-1))
            )
            for block in blocks
        ],
        pa.list_(pa.float32()),
    )


def groups_of(labelled: LabelledSet, rows: NDArray[np.int64]) -> list[str | None] | None:
    """The subgroup of each of `rows`, where the set has any."""
    return None if labelled.subgroups is None else [labelled.subgroups[row] for row in rows]


def _column(values: Sequence[str | None] | None, rows: NDArray[np.int64]) -> pa.Array:
    return pa.array([None if values is None else values[row] for row in rows], pa.string())


def summarise(
    answers: Answers,
    classes: Sequence[str],
    *,
    groups: Sequence[str | None] | None = None,
    unlabelled: int = 0,
    metric: Metric = "accuracy",
    confidence: float = 0.95,
    place: str = "answers",
) -> Scores:
    """The figures of one set from what the model said of its examples; `place` names the set in messages.

    Raises InputError where the metric has no value on these examples.
    """
    hit, n = answers.hit, len(answers.best)
    several = answers.marks is not None
    sizes = (
        np.bincount(answers.labels, minlength=len(classes))
        if answers.marks is None
        else (answers.marks == 1).sum(axis=0)
    )
    largest = int(sizes.argmax())
    seen = int((sizes > 0).sum())
    if not seen or math.isnan(metrics.value(metric, answers)):
        raise InputError(
            f"{place}: {metric} has no value on it, no class has both examples and counterexamples; score it by another metric or give "
            "the whole set"
        )
    headline = metrics.measure(metric, answers, confidence)
    return Scores(
        n=n,
        unlabelled=unlabelled,
        classes=len(classes),
        classes_seen=seen,
        metric=metric,
        headline=headline,
        headline_chance=metrics.chance(metric, answers),
        guard=guard(metric, answers, headline),
        top1=metrics.rate(hit, confidence, answers.units),
        top5=metrics.rate(answers.hit5, confidence, answers.units),
        mean_per_class=None if several else metrics.measure("mean_per_class", answers, confidence),
        chance=metrics.chance("accuracy", answers),
        chance_top5=metrics.chance_top5(answers),
        constant=float(sizes[largest] / n),
        constant_class=classes[largest],
        constant_mean_per_class=1.0 / seen,
        subgroups=[] if groups is None else _subgroups(answers, groups, confidence),
    )


def _subgroups(answers: Answers, groups: Sequence[str | None], confidence: float) -> list[GroupScore]:
    found = []
    for name in sorted({group for group in groups if group is not None}):
        inside = np.array([group == name for group in groups])
        units = None if answers.units is None else answers.units[inside]
        found.append(GroupScore(name, metrics.rate(answers.hit[inside], confidence, units)))
    return found


def guard(metric: Metric, answers: Answers, headline: Rate) -> Guard:
    """The same scores under wrong names. A shuffle is a cycle through all classes in a random order, so no class keeps its name."""
    classes = answers.scores.shape[1]
    draws = np.random.default_rng(_SEED)
    shuffled = []
    for _ in range(_SHUFFLES if classes > 2 else 1):
        order, cycle = np.empty(classes, np.int64), draws.permutation(classes)
        order[cycle] = np.roll(cycle, 1)
        shuffled.append(metrics.value(metric, answers.renamed(order)))
    reordered = None if answers.marks is not None else _best_order(answers)
    top1 = float(answers.hit.mean())
    said = []
    if headline.value <= max(shuffled):
        said.append(
            f"no better than with shuffled class names ({max(shuffled):.2%} in the best of {len(shuffled)} shuffles): the names say "
            "nothing to this model, or belong to other labels"
        )
    if reordered is not None and reordered > top1 + _REORDERED and len(answers.best) >= _ENOUGH * classes:
        said.append(
            f"with the class names in another order top-1 would be {reordered:.2%} instead of {top1:.2%}: the class list is probably not "
            "in the order of the labels"
        )
    return Guard(len(shuffled), float(np.mean(shuffled)), float(max(shuffled)), reordered, said)


def _best_order(answers: Answers) -> float:
    """Accuracy under the one-to-one renaming of the classes that suits the labels best (an assignment problem on the confusion
    matrix)."""
    classes = answers.scores.shape[1]
    pairs = answers.labels.astype(np.int64) * classes + answers.best[:, 0]
    confusion = np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)
    rows, columns = linear_sum_assignment(confusion, maximize=True)
    return float(confusion[rows, columns].sum() / len(answers.best))
