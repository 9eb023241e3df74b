"""Linear probes of pictures with several labels (VOC2007): for each class a classifier of its own against the rest, all of one strength.

A.3 of the paper says that VOC2007 was probed and scored by 11-point mAP, and not how several labels were learned; this is our reading. The
search is that of `probe`, its score the mAP on validation. What comes back is a `Probe` whose logits are the classes' own log-odds: to be
compared along a class, not across classes. Its objective and evaluations are sums over the classes, its gradient is the largest.

Marks are int8[n, classes] as in a labelled set: 1, 0, and IGNORED where a picture does not count for a class.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from evaluation import metrics
from evaluation.metrics import Answers
from evaluation.probe import SEARCH_TOLERANCE, TOLERANCE, Features, Probe, Problem, Search, searched
from pipeline.content.labelled import IGNORED
from pipeline.contracts.errors import InputError

Marks = NDArray[np.int8]


def fit(
    features: NDArray[np.float32],
    marks: Marks,
    strength: float,
    *,
    tolerance: float = TOLERANCE,
    start: Probe | None = None,
    device: str = "cpu",
) -> Probe:
    """The classifiers of one strength λ. Raises as `probe.fit`, and InputError for a class without examples or without counterexamples."""
    return _fitted(_problems(features, marks, device), strength, tolerance, start)


def search(
    features: NDArray[np.float32],
    marks: Marks,
    validation: Features,
    validation_marks: Marks,
    *,
    tolerance: float = SEARCH_TOLERANCE,
    device: str = "cpu",
) -> Search:
    """The 15-fit search for the strength that all classes share. Raises as `fit`, and InputError where validation has no example."""
    problems = _problems(features, marks, device)
    return searched(
        lambda strength, start: _fitted(problems, strength, tolerance, start),
        lambda found: mean_precision(found.logits(validation), validation_marks),
    )


def mean_precision(logits: NDArray[np.float64], marks: Marks) -> float:
    """11-point mAP of logits float64[n, classes]. Raises InputError where no class has an example."""
    unknown = np.full(len(logits), -1, np.int32)
    found = metrics.value(
        "map11", Answers(logits.astype(np.float32), np.zeros((len(logits), 1), np.int32), unknown, marks)
    )
    if math.isnan(found):
        raise InputError(
            f"validation: {len(logits):,} pictures without an example; give a larger share or a set of its own"
        )
    return found


def _problems(features: NDArray[np.float32], marks: Marks, device: str) -> list[Problem]:
    found = []
    for number, column in enumerate(marks.T):
        counts = column != IGNORED
        if len(np.unique(column[counts])) < 2:
            raise InputError(
                f"labels: class {number} has {int((column == 1).sum())} examples among {int(counts.sum()):,} pictures to learn from; a "
                "probe needs examples and counterexamples, give more pictures or fewer classes"
            )
        found.append(Problem(features[counts], column[counts].astype(np.int64), 2, device))
    return found


def _fitted(problems: list[Problem], strength: float, tolerance: float, start: Probe | None) -> Probe:
    found = [
        problem.fit(strength, tolerance, None if start is None else _of_class(start, number))
        for number, problem in enumerate(problems)
    ]
    return Probe(
        strength,
        np.stack([one.weights[1] - one.weights[0] for one in found]),
        np.array([one.intercepts[1] - one.intercepts[0] for one in found]),
        sum(one.objective for one in found),
        max(one.gradient for one in found),
        sum(one.evaluations for one in found),
        all(one.converged for one in found),
    )


def _of_class(joined: Probe, number: int) -> Probe:
    """The two rows that `probe` has for one class and the rest: to start from."""
    half = joined.weights[number] / 2, joined.intercepts[number] / 2
    return Probe(joined.strength, np.stack([-half[0], half[0]]), np.array([-half[1], half[1]]), 0.0, 0.0, 0, False)
