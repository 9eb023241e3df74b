"""`python -m evaluation calibration PLACE …`: does a model that says 80 % turn out right in 80 of 100 cases?

A model's probability of a class is the softmax of its cosines at its own logit scale, which is what it was trained with (a bias, as
sigmoid losses have one, is the same for every class and falls out). Of a set of answers stand here

    ECE        expected calibration error: the mean distance of confidence and accuracy over bins of confidence, weighted by their sizes;
               once in 15 bins of equal width, as in Guo et al. (2017), once in 15 of equal size. It is never negative, so that a
               perfectly calibrated model has one, too: `ece_by_luck` is what it would have with these confidences and this many
               examples
    log loss   mean of -ln p(label)
    Brier      mean of the squared distance between the probabilities of all classes and the truth (0 to 2); and that between the
               answer's probability and its outcome alone (0 to 1)

with bootstrap intervals over different pictures, and a reliability table, whose shares have exact ones that take a picture's repeats
for a cluster (`intervals.clustered`). Where the file holds the scores of every class (`keep_scores` of `zeroshot`), one temperature is
fitted: on one half of the pictures, chosen by the hash of their bytes (of videos, by that of their frames), and reported on the other
half, before and after.
"""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from evaluation.intervals import Interval, bootstrap, clustered
from evaluation.predictions import Predictions
from pipeline.contracts.config import Json

BINS = 15
_DRAWS = 1000
_LUCK_DRAWS = 200
_SEED = 0
_SMALLEST = float(np.finfo(np.float32).smallest_subnormal)  # below it a probability is written as 0
_STEEPEST = 8.0  # ln of the largest factor by which a temperature may change the scale
_BLOCK = 4096

Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Bin:
    """Answers whose confidence lies in (above, upto]; the interval of their accuracy is `clustered`."""

    above: float
    upto: float
    n: int
    confidence: float
    accuracy: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Figures of n answers; `brier` is None where the probabilities of the other classes are not known. `confidence` is the mean of what
    the answers said, `low` and `high` the accuracy's interval (`clustered`)."""

    n: int
    accuracy: float
    low: float
    high: float
    confidence: float
    ece: Interval
    ece_equal_mass: Interval
    ece_by_luck: float
    log_loss: Interval
    brier: Interval | None
    brier_answer: Interval
    table: list[Bin]


@dataclasses.dataclass(frozen=True)
class Tempered:
    """The temperature that has the least log loss on `fitted` examples, and the other examples before and after it."""

    temperature: float
    fitted: int
    before: Calibration
    after: Calibration


def probabilities(cosines: NDArray[np.float32], scale: float) -> Floats:
    """The softmax of `scale` times cosines float32[n, classes]: float64[n, classes], rows that sum to 1."""
    logits = scale * cosines.astype(np.float64)
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: Floats = exponents / exponents.sum(axis=1, keepdims=True)
    return shares


def with_probabilities(table: pa.Table, scores: NDArray[np.float32], scale: float | None) -> pa.Table:
    """A table of predictions with `p` and `p_label` filled in, of scores float32[n, classes] in its order.

    `scale` multiplies cosines before the softmax; None: the scores are probabilities. `p_label` stays null where an example has no one
    label.
    """
    answers, labels = (np.asarray(table[name]) for name in ("prediction", "label"))
    found = np.empty((2, len(answers)), np.float32)
    for start in range(0, len(answers), _BLOCK):
        block = slice(start, start + _BLOCK)
        shares = scores[block] if scale is None else probabilities(scores[block], scale)
        for row, classes in enumerate((answers[block], np.maximum(labels[block], 0))):
            found[row, block] = np.take_along_axis(shares, classes[:, None].astype(np.int64), axis=1)[:, 0]
    for name, values in (("p", pa.array(found[0])), ("p_label", pa.array(found[1], mask=labels < 0))):
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), values)
    return table


# ---- the figures


def expected_error(p: Floats, correct: NDArray[np.bool_], edges: Floats) -> float:
    """The expected calibration error of confidences float64[n] in bins (edges[i], edges[i + 1]]."""
    place = _bin(p, edges)
    away = np.bincount(place, weights=correct - p, minlength=len(edges) - 1)
    return float(np.abs(away).sum() / len(p))


def _bin(p: Floats, edges: Floats) -> NDArray[np.int64]:
    return np.clip(np.searchsorted(edges, p, side="left") - 1, 0, len(edges) - 2).astype(np.int64)


def equal_width() -> Floats:
    """The edges of 15 bins of equal width."""
    return np.linspace(0.0, 1.0, BINS + 1)


def equal_mass(p: Floats) -> Floats:
    """The edges of 15 bins that hold as many of the confidences each, as nearly as ties allow."""
    inner = np.sort(p)[(np.arange(1, BINS) * len(p)) // BINS - 1] if len(p) >= BINS else np.sort(p)[:-1]
    return np.concatenate([[0.0], np.unique(inner[inner < 1.0]), [1.0]])


def measure(
    p: Floats,
    p_label: Floats,
    correct: NDArray[np.bool_],
    clusters: NDArray[np.int64],
    confidence: float,
    brier: Floats | None = None,
) -> Calibration:
    """The figures of answers with probability `p`, whose labels had `p_label` (both float64[n]).

    `clusters` int64[n] numbers the pictures, from 0 on without gaps; `brier` float64[n] are each example's squared distances over all
    classes.
    """
    width, mass = equal_width(), equal_mass(p)
    loss = -np.log(np.maximum(p_label, _SMALLEST))
    answer = (p - correct) ** 2

    def mean_of(values: Floats) -> Interval:
        return bootstrap(
            lambda rows: float(values[rows].mean()), clusters, confidence=confidence, draws=_DRAWS, seed=_SEED
        )

    def error_in(edges: Floats) -> Interval:
        return bootstrap(
            lambda rows: expected_error(p[rows], correct[rows], edges),
            clusters,
            confidence=confidence,
            draws=_DRAWS,
            seed=_SEED,
        )

    random = np.random.default_rng(_SEED)
    by_luck = [expected_error(p, random.random(len(p)) < p, width) for _ in range(_LUCK_DRAWS)]
    low, high = clustered(correct, clusters, confidence)
    return Calibration(
        n=len(p),
        accuracy=float(correct.mean()),
        low=low,
        high=high,
        confidence=float(p.mean()),
        ece=error_in(width),
        ece_equal_mass=error_in(mass),
        ece_by_luck=float(np.mean(by_luck)),
        log_loss=mean_of(loss),
        brier=None if brier is None else mean_of(brier),
        brier_answer=mean_of(answer),
        table=_reliability(p, correct, clusters, width, confidence),
    )


def _reliability(
    p: Floats, correct: NDArray[np.bool_], clusters: NDArray[np.int64], edges: Floats, confidence: float
) -> list[Bin]:
    place = _bin(p, edges)
    table = []
    for number in np.unique(place):
        inside = place == number
        n, hits = int(inside.sum()), int(correct[inside].sum())
        low, high = clustered(correct[inside], clusters[inside], confidence)
        table.append(
            Bin(float(edges[number]), float(edges[number + 1]), n, float(p[inside].mean()), hits / n, low, high)
        )
    return table


def calibrate(one: Predictions, confidence: float) -> tuple[Calibration, Tempered | None] | None:
    """The figures of a prediction file, and its temperature where the file has the scores of every class.

    None where the file has no probabilities: the model has no logit scale, or its examples several labels.
    """
    if one.p is None or one.p_label is None or one.logit_scale is None:
        return None
    clusters = one.clusters()
    if one.scores is None:
        return measure(one.p, one.p_label, one.correct, clusters, confidence), None
    whole = _of_scores(one.scores, one.labels, one.logit_scale, clusters, confidence)
    fitting = halves(one.sha256)
    if not 0 < fitting.sum() < len(fitting):
        return whole, None
    temperature = fit_temperature(one.scores[fitting], one.labels[fitting], one.logit_scale)
    rest = np.unique(clusters[~fitting], return_inverse=True)[1].astype(np.int64)
    before, after = (
        _of_scores(one.scores[~fitting], one.labels[~fitting], one.logit_scale / divisor, rest, confidence)
        for divisor in (1.0, temperature)
    )
    return whole, Tempered(temperature, int(fitting.sum()), before, after)


def _of_scores(
    scores: NDArray[np.float32],
    labels: NDArray[np.int32],
    scale: float,
    clusters: NDArray[np.int64],
    confidence: float,
) -> Calibration:
    p, p_label, brier = np.empty(len(scores)), np.empty(len(scores)), np.empty(len(scores))
    answers = scores.argmax(axis=1)
    for start in range(0, len(scores), _BLOCK):
        block = slice(start, start + _BLOCK)
        shares = probabilities(scores[block], scale)
        rows = np.arange(len(shares))
        p[block], p_label[block] = shares[rows, answers[block]], shares[rows, labels[block]]
        brier[block] = (shares**2).sum(axis=1) - 2 * p_label[block] + 1
    return measure(p, p_label, answers == labels, clusters, confidence, brier)


def halves(sha256: list[bytes]) -> NDArray[np.bool_]:
    """Which pictures a temperature is fitted on, bool[n]: half of them by a hash of their bytes, the same in every set and for every
    model."""
    return np.array([hashlib.blake2b(digest, key=b"temperature").digest()[0] & 1 for digest in sha256], bool)


def fit_temperature(scores: NDArray[np.float32], labels: NDArray[np.int32], scale: float) -> float:
    """The temperature T whose softmax of scale / T times the scores float32[n, classes] has the least log loss on int32[n] labels.

    The loss is convex in 1 / T. Where it falls without end (every answer right, or worse than none), T is the end of the searched range,
    e^-8 or e^8.
    """
    own = np.take_along_axis(scores, labels[:, None].astype(np.int64), axis=1).astype(np.float64)

    def loss(log_inverse: float) -> float:
        factor, total = scale * float(np.exp(log_inverse)), 0.0
        for start in range(0, len(scores), _BLOCK):
            block = slice(start, start + _BLOCK)
            total += float(logsumexp(factor * (scores[block] - own[block]), axis=1).sum())
        return total / len(scores)

    found = minimize_scalar(loss, bounds=(-_STEEPEST, _STEEPEST), method="bounded", options={"xatol": 1e-8})
    return float(np.exp(-found.x))


# ---- what is said


def describe(name: str, found: Calibration, tempered: Tempered | None) -> str:
    """The lines for the terminal."""
    lines = [
        f"{name}: {found.n:,} examples, accuracy {found.accuracy:.2%} ({found.low:.2%} to {found.high:.2%}), mean confidence "
        f"{found.confidence:.2%}"
    ]
    lines += _lines(found)
    lines.append("  confidence          n  said     right")
    lines += [
        f"  {one.above:5.1%} to {one.upto:6.1%} {one.n:6,}  {one.confidence:6.2%}  {one.accuracy:6.2%}  ({one.low:.2%} to {one.high:.2%})"
        for one in found.table
    ]
    if tempered is None:
        lines.append("  no temperature: it needs the scores of every class; score the set with keep_scores=true")
        return "\n".join(lines)
    lines.append(
        f"  temperature {tempered.temperature:.4f}, fitted on {tempered.fitted:,} examples; on the other {tempered.after.n:,}, before"
    )
    lines += _lines(tempered.before)
    lines.append("  and after")
    return "\n".join(lines + _lines(tempered.after))


def _lines(found: Calibration) -> list[str]:
    lines = [
        f"  ECE             {_said(found.ece)}   in {BINS} bins of equal width; of a perfectly calibrated model {found.ece_by_luck:.4f}",
        f"  ECE, equal mass {_said(found.ece_equal_mass)}",
        f"  log loss        {_said(found.log_loss)}",
        f"  Brier, answer   {_said(found.brier_answer)}",
    ]
    return lines if found.brier is None else [*lines, f"  Brier           {_said(found.brier)}"]


def _said(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return f"{interval.value:.4f} (no interval)"
    return f"{interval.value:.4f} ({interval.low:.4f} to {interval.high:.4f})"


def as_json(found: Calibration, tempered: Tempered | None) -> dict[str, Json]:
    """The same figures for machines."""
    plain: dict[str, Json] = dataclasses.asdict(found)
    plain["temperature"] = None if tempered is None else dataclasses.asdict(tempered)
    return plain
