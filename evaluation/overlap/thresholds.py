"""From people's labels to a threshold: how often a picture at a given distance is the same one, and which distance the rule would pick.

The paper's authors looked at the nearest neighbours they had found and set each set's threshold by hand, for high precision. Here this is
a sample, a rule and an interval, for PDQ's distance and for the descriptor's score alike (`measures`; "within t" is at most t bits, or a
score of at least t). The sampled pictures of a set with their nearest corpus pictures (`nearest`) lie in bins of eight PDQ bits, or of a
twentieth in score; of each bin some are shown to people who do not see the distance (`report.labelling`). A pair counts as the same picture
only when every rater said so. Each answer stands for its bin: it is weighted by the bin's size over its number of answers (Horvitz and
Thompson, 1952), so that the figures are those of the whole sample. An answer counts for the measure that chose the pair, and no other.

- **Precision** at t: of the examples whose nearest picture lies within t, the share where it is the same picture.
- **Recall** at t: of the examples whose nearest picture is the same one, the share that lies within t.
- Intervals are Clopper and Pearson's with the effective number of answers, (sum w)^2 / sum w^2 (Korn and Graubard, 1998).
- **The rule**: the loosest t whose precision has a one-sided 95 % lower bound of at least 0.95. About 59 pairs, all the same, are the least
  that can show it. With fewer there is no choice, and the threshold in the configuration is only a convention.
- **The ambiguous band**: from the last t up to which every answer was "same" to the last with any.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.special import betaincinv

from evaluation.overlap.measures import MEASURES, PDQ, Measure
from evaluation.overlap.tables import LABEL_SCHEMA
from pipeline.contracts import storage
from pipeline.contracts.errors import InputError

LEAST_PRECISION = 0.95
CONFIDENCE = 0.95  # one-sided
ANSWERS = ("same", "different", "unsure")
_LIMIT = 64 << 20  # bytes of a labels file: some hundred thousand answers


@dataclass(frozen=True)
class Point:
    """Precision and recall within a threshold, with their one-sided lower bounds; `answers` are the labelled pairs within it."""

    threshold: int | float
    answers: int
    precision: float
    precision_low: float
    recall: float | None
    recall_low: float | None


@dataclass(frozen=True)
class Calibration:
    """What the labels of one set say by a measure. `chosen` is None where no threshold satisfies the rule; `band` None where nothing is
    the same.

    `kappa` is Cohen's agreement of the raters (the mean over pairs of raters), None with one rater or where chance alone would agree.
    """

    raters: list[str]
    answers: int
    kappa: float | None
    curve: list[Point]
    chosen: int | float | None
    band: tuple[int | float, int | float] | None


# ---- reading


def read_labels(places: Sequence[str], closest: pa.Table) -> pa.Table:
    """LABEL_SCHEMA rows of the files that the labelling page exports, in the order of `closest` (NEAREST_SCHEMA), then by rater.

    A line without a `measure` is of PDQ's.

    Raises InputError for a line that is no answer, a pair that is not among the nearest pictures (labels of another sample, corpus or
    set), and a rater who answered the same pair twice in different ways.
    """
    known = {
        (row["measure"], row["set"], row["eval_id"], row["uid"].hex()): number
        for number, row in enumerate(closest.select(["measure", "set", "eval_id", "uid"]).to_pylist())
    }
    given: dict[tuple[int, str], str] = {}
    for place in places:
        for number, line in enumerate(storage.read_bytes(place, limit=_LIMIT).splitlines(), 1):
            where = f"{place}: line {number}"
            answer = _answer(where, line)
            row = known.get((answer["measure"], answer["set"], answer["eval_id"], answer["uid"]))
            if row is None:
                raise InputError(
                    f"{where}: example {answer['eval_id']!r} of set {answer['set']!r} with {answer['uid']!r} is not among the nearest "
                    f"pictures of this report by {answer['measure']}; give labels that were made from it"
                )
            before = given.setdefault((row, answer["rater"]), answer["answer"])
            if before != answer["answer"]:
                raise InputError(
                    f"{where}: {answer['rater']!r} says {answer['answer']!r} here and {before!r} before of example {answer['eval_id']!r}; "
                    "keep one of the two"
                )
    ordered = sorted(given.items())
    kept = [name for name in LABEL_SCHEMA.names if name in closest.column_names]
    rows = closest.select(kept).take(pa.array([row for (row, _), _ in ordered], pa.int64()))
    raters = pa.array([rater for (_, rater), _ in ordered], pa.string())
    answers = pa.array([answer for _, answer in ordered], pa.string())
    return pa.table([*rows.columns, raters, answers], schema=LABEL_SCHEMA)


def _answer(where: str, line: bytes) -> Mapping[str, str]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    keys = ("set", "eval_id", "uid", "rater", "answer", "measure")
    if isinstance(found, dict):
        found = {"measure": PDQ.name, **found}
    if not isinstance(found, dict) or not all(isinstance(found.get(key), str) for key in keys):
        raise InputError(f"{where}: is no answer of the labelling page; give the file that it exports")
    if found["measure"] not in MEASURES:
        raise InputError(f"{where}: measure {found['measure']!r}; it must be one of {', '.join(MEASURES)}")
    if found["answer"] not in ANSWERS:
        raise InputError(f"{where}: answer {found['answer']!r}; it must be one of {', '.join(ANSWERS)}")
    try:
        found["rater"].encode()
    except UnicodeEncodeError:
        raise InputError(f"{where}: the rater's name {found['rater']!r} is no text; write it in letters") from None
    if not found["rater"].strip():
        raise InputError(f"{where}: the rater has no name; fill it in, so that two people can be told apart")
    return found


# ---- one set


def calibrate(labels: pa.Table, closest: pa.Table, measure: Measure = PDQ) -> Calibration | None:
    """What the labels (LABEL_SCHEMA) of one set say by `measure`, of which `closest` (NEAREST_SCHEMA) are the sampled examples; None
    without labels. Rows of other measures do not count."""
    answered, closest = (table.filter(pc.equal(table["measure"], measure.name)) for table in (labels, closest))
    if not answered.num_rows:
        return None
    by_pair: dict[int, dict[str, str]] = {}
    steps_of: dict[int, int] = {}
    steps = measure.steps(np.asarray(answered[measure.column])).tolist()
    for row, distance in zip(answered.to_pylist(), steps, strict=True):
        by_pair.setdefault(row["eval_row"], {})[row["rater"]] = row["answer"]
        steps_of[row["eval_row"]] = distance
    pairs = sorted(by_pair, key=lambda pair: (steps_of[pair], pair))
    far = np.array([steps_of[pair] for pair in pairs], np.int64)
    same = np.array([set(by_pair[pair].values()) == {"same"} for pair in pairs], np.bool_)
    sizes = np.array(histogram(closest, measure))
    weight = sizes[far // measure.bin] / np.bincount(far // measure.bin, minlength=len(sizes))[far // measure.bin]
    limits = np.unique(far).tolist()
    curve = [_point(measure.value(limit), far <= limit, same, weight) for limit in limits]
    fitting = [
        limit
        for limit, point in zip(limits, curve, strict=True)
        if point.precision_low >= LEAST_PRECISION and limit <= measure.loosest
    ]
    band = _band(far, same)
    return Calibration(
        raters=sorted({rater for given in by_pair.values() for rater in given}),
        answers=len(pairs),
        kappa=kappa(list(by_pair.values())),
        curve=curve,
        chosen=measure.value(fitting[-1]) if fitting else None,
        band=None if band is None else (measure.value(band[0]), measure.value(band[1])),
    )


def histogram(closest: pa.Table, measure: Measure) -> list[int]:
    """How many nearest pictures by `measure` (NEAREST_SCHEMA rows, other ones do not count) lie in each of its bins, the nearest first."""
    own = closest.filter(pc.equal(closest["measure"], measure.name))
    steps = measure.steps(np.asarray(own[measure.column]))
    counts: list[int] = np.bincount(steps // measure.bin, minlength=measure.bins).tolist()
    return counts


def _point(
    threshold: int | float, within: NDArray[np.bool_], same: NDArray[np.bool_], weight: NDArray[np.float64]
) -> Point:
    precision, precision_low = _share(same[within], weight[within])
    recall, recall_low = _share(within[same], weight[same]) if same.any() else (None, None)
    return Point(threshold, int(within.sum()), precision, precision_low, recall, recall_low)


def _share(hit: NDArray[np.bool_], weight: NDArray[np.float64]) -> tuple[float, float]:
    """The weighted share of hits and its one-sided lower bound."""
    total = float(weight.sum())
    share = float(weight[hit].sum()) / total
    effective = total**2 / float((weight**2).sum())
    hits = share * effective
    low = float(betaincinv(hits, effective - hits + 1.0, 1.0 - CONFIDENCE)) if hit.any() else 0.0
    return share, low


def _band(far: NDArray[np.int64], same: NDArray[np.bool_]) -> tuple[int, int] | None:
    """(last step up to which all are the same, last step with any); None where nothing is the same."""
    if not same.any():
        return None
    doubted = far[~same]
    certain = far if not len(doubted) else far[far < doubted.min()]
    return int(certain.max(initial=0)), int(far[same].max())


def kappa(pairs: Sequence[Mapping[str, str]]) -> float | None:
    """Cohen's kappa of "same" against anything else, the mean over all pairs of raters who answered some of the same questions."""
    raters = sorted({rater for given in pairs for rater in given})
    found = []
    for one, other in combinations(raters, 2):
        both = [(given[one] == "same", given[other] == "same") for given in pairs if one in given and other in given]
        if not both:
            continue
        agreed = sum(a == b for a, b in both) / len(both)
        a, b = (sum(side) / len(both) for side in zip(*both, strict=True))
        chance = a * b + (1 - a) * (1 - b)
        if chance < 1:
            found.append((agreed - chance) / (1 - chance))
    return sum(found) / len(found) if found else None
