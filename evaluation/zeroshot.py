"""Zero-shot classification as CLIP does it: class names become a classifier, no example of the set is learned from.

Per class, every prompt template is filled with the class name and embedded; the embeddings are normalised, averaged, and the average is
normalised again (the ensemble lives in embedding space, so one matrix serves the whole set). A picture's normalised embedding is
compared with each class; the largest wins, and of equal scores the lower class number. Beside every accuracy stand what
guessing would reach (`chance`) and what always answering the largest class would (`constant`), because on unbalanced sets plain
accuracy flatters; the mean per class does not.

Source: CLIP paper 3.1.2-3.1.4, and openai/CLIP notebooks/Prompt_Engineering_for_ImageNet.ipynb.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from evaluation.calibration import with_probabilities
from evaluation.features import Encoder, normalise
from evaluation.intervals import clopper_pearson
from pipeline.content.labelled import UNLABELLED, LabelledSet
from pipeline.contracts.errors import InputError

TOP = 5
_RESAMPLES = 1000
_FLAT = 1e-12  # narrower than this, the draws differ by rounding only
_SEED = 0  # of the resampling behind the interval of the mean per class

PREDICTION_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("eval_id", pa.string(), nullable=False),
        pa.field("sha256", pa.binary(32), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("prediction", pa.int32(), nullable=False),
        pa.field("top5", pa.list_(pa.int32()), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("correct", pa.bool_(), nullable=False),
        pa.field("subgroup", pa.string()),
        pa.field("scores", pa.list_(pa.float32())),
        pa.field("p", pa.float32()),
        pa.field("p_label", pa.float32()),
    ]
)
"""One row per labelled example; `score` is the cosine of the predicted class, `scores` those of all, where they are kept. `p` and
`p_label` are the probabilities of the predicted class and of the label at the model's logit scale, null where it has none.
"""


@dataclass(frozen=True)
class Rate:
    """A share with its interval (None: none can be given); `n` and `hits` are None for a mean that is no proportion."""

    value: float
    low: float | None
    high: float | None
    n: int | None = None
    hits: int | None = None


@dataclass(frozen=True)
class GroupScore:
    """Plain accuracy of one subgroup."""

    name: str
    top1: Rate


@dataclass(frozen=True)
class Scores:
    """What one labelled set gave. `chance` and `constant` are plain accuracies, `classes_seen` the classes with an example."""

    n: int
    unlabelled: int
    classes: int
    classes_seen: int
    top1: Rate
    top5: Rate
    mean_per_class: Rate
    chance: float
    constant: float
    constant_class: str
    constant_mean_per_class: float
    subgroups: list[GroupScore]


def classifier(encoder: Encoder, class_texts: Sequence[str], templates: Sequence[str]) -> NDArray[np.float32]:
    """The weight matrix float32[classes, d]: per class the re-normalised mean of its normalised prompt embeddings."""
    sentences = [template.replace("{}", text) for text in class_texts for template in templates]
    embedded = normalise(encoder.texts(sentences))
    return normalise(embedded.reshape(len(class_texts), len(templates), -1).mean(axis=1))


def predict(images: NDArray[np.float32], weights: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The best `min(5, classes)` classes of each picture, best first (int32[n, k]), and the best one's cosine (float32[n])."""
    scores = images @ weights.T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :TOP].astype(np.int32)
    return order, np.take_along_axis(scores, order[:, :1], axis=1)[:, 0].astype(np.float32)


def evaluate(
    encoder: Encoder,
    labelled: LabelledSet,
    templates: Sequence[str],
    *,
    confidence: float = 0.95,
    logit_scale: float | None = None,
    keep_scores: bool = False,
) -> tuple[Scores, pa.Table]:
    """Score one set; returns the figures and one PREDICTION_SCHEMA row per labelled example.

    `logit_scale` is what the model multiplies cosines by; None: the rows have no probabilities. `keep_scores`: they have every class's
    cosine. Raises InputError when the set has no labels or fewer than two classes.
    """
    rows = np.flatnonzero(labelled.labels != UNLABELLED)
    if not len(rows) or len(labelled.classes) < 2:
        raise InputError(
            f"set {labelled.name!r} ({labelled.path}) has {len(rows)} labelled pictures of {len(labelled.classes)} classes; "
            "zero-shot needs at least two classes: name the column with `label`"
        )
    weights = classifier(encoder, labelled.class_texts, templates)
    images = normalise(encoder.images(labelled, rows.tolist()))
    best, score = predict(images, weights)
    labels = labelled.labels[rows]
    groups = None if labelled.subgroups is None else [labelled.subgroups[row] for row in rows]
    table = pa.table(
        [
            pa.array(rows, pa.int64()),
            pa.array([labelled.ids[row] for row in rows], pa.string()),
            pa.array([labelled.sha256[row] for row in rows], pa.binary(32)),
            pa.array(labels, pa.int32()),
            pa.array(best[:, 0], pa.int32()),
            pa.array(best.tolist(), pa.list_(pa.int32())),
            pa.array(score, pa.float32()),
            pa.array(best[:, 0] == labels),
            pa.array(groups if groups is not None else [None] * len(rows), pa.string()),
            pa.nulls(len(rows), pa.list_(pa.float32())),
            pa.nulls(len(rows), pa.float32()),
            pa.nulls(len(rows), pa.float32()),
        ],
        schema=PREDICTION_SCHEMA,
    )
    table = with_probabilities(table, images @ weights.T, logit_scale, keep_scores=keep_scores)
    return summarise(labels, best, labelled.classes, groups, len(labelled) - len(rows), confidence), table


def summarise(
    labels: NDArray[np.int32],
    best: NDArray[np.int32],
    classes: Sequence[str],
    groups: Sequence[str | None] | None,
    unlabelled: int,
    confidence: float,
) -> Scores:
    """The figures of one set from labels int32[n] and ranked answers int32[n, k]."""
    hit = best[:, 0] == labels
    sizes = np.bincount(labels, minlength=len(classes))
    largest = int(sizes.argmax())
    seen = int((sizes > 0).sum())
    return Scores(
        n=len(labels),
        unlabelled=unlabelled,
        classes=len(classes),
        classes_seen=seen,
        top1=rate(hit, confidence),
        top5=rate((best == labels[:, None]).any(axis=1), confidence),
        mean_per_class=_mean_per_class(hit, labels, sizes, confidence),
        chance=1.0 / len(classes),
        constant=float(sizes[largest] / len(labels)),
        constant_class=classes[largest],
        constant_mean_per_class=1.0 / seen,
        subgroups=[
            GroupScore(name, rate(hit[np.array([group == name for group in groups])], confidence))
            for name in sorted({group for group in groups or [] if group is not None})
        ]
        if groups is not None
        else [],
    )


def rate(hits: NDArray[np.bool_], confidence: float) -> Rate:
    """A share of hits with its Clopper-Pearson interval."""
    k, n = int(hits.sum()), len(hits)
    low, high = clopper_pearson(k, n, confidence)
    return Rate(k / n, low, high, n, k)


def _mean_per_class(
    hit: NDArray[np.bool_], labels: NDArray[np.int32], sizes: NDArray[np.int64], confidence: float
) -> Rate:
    """Mean of the classes' accuracies; its interval draws whole sets of examples, across classes (seeded percentile bootstrap).

    A class without an example in a draw is left out of that draw's mean. Resampling inside each class would take a class of one example
    for perfectly known. Where the draws do not vary (every example right, or every class all right or all wrong) nothing can be
    said by resampling, and there is no interval.
    """
    present = sizes > 0
    hits = np.bincount(labels, weights=hit, minlength=len(sizes))[present]
    n = sizes[present]
    rates = hits / n
    # n examples drawn with replacement put a multinomial number into the classes, and a binomial number of these are hits.
    draws = np.random.default_rng(_SEED)
    counts = draws.multinomial(len(labels), n / len(labels), size=_RESAMPLES)
    drawn = draws.binomial(counts, rates) / np.maximum(counts, 1)
    means = drawn.sum(axis=1) / (counts > 0).sum(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    if high - low < _FLAT:
        return Rate(float(rates.mean()), None, None)
    return Rate(float(rates.mean()), float(low), float(high))
