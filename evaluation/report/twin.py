"""The second hand: what `overlap.examples`, `overlap.statistics`, `overlap.repeats` and `overlap.thresholds` compute, computed another way
for `verify`.

Nothing here may call them. Where the first hand has closed forms, this one searches roots and sums over rows; it is slower and does not
need to be fast.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import bisect, brentq
from scipy.stats import beta, binom, binomtest, hypergeom, norm

from evaluation.overlap.tables import METHODS

Row = dict[str, object]
Table = tuple[int, int, int, int]
"""One stratum: Overlap right and wrong, Clean right and wrong."""
_BLOCK = 512


def in_hex(digest: object) -> str:
    """A digest as reports print it; nothing where a row has none."""
    return digest.hex() if isinstance(digest, bytes) else ""


def examples(split: Sequence[Row]) -> list[Row]:
    """One row a video: its first scored frame, in Overlap if any frame is, by the strongest match, seen if any was, its cluster told by the
    first cluster that it hangs together with. Rows of no video are examples as they are.
    """
    if not split or split[0]["group"] is None:
        return list(split)
    above: dict[object, object] = {}

    def top(node: object) -> object:
        while above.setdefault(node, node) != node:
            above[node] = above[above[node]]
            node = above[node]
        return node

    videos: dict[object, list[Row]] = {}
    for row in split:
        videos.setdefault(row["group"], []).append(row)
        above[top(("video", row["group"]))] = top(("picture", row["cluster"]))
    found: list[Row] = []
    for video, frames in videos.items():
        methods = [METHODS.index(str(row["method"])) for row in frames if row["method"] in METHODS]
        told = [row["seen"] for row in frames if row["seen"] is not None]
        found.append(
            {
                **next((row for row in frames if row["correct"] is not None), frames[0]),
                "in_overlap": any(row["in_overlap"] is True for row in frames),
                "method": METHODS[min(methods)] if methods else None,
                "seen": any(told) if told else None,
                "cluster": top(("video", video)),
            }
        )
    return found


def units(scored: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """(Clean, Overlap) of the first scored example of each cluster; a cluster is in Overlap if any of it is."""
    touched = {row["cluster"] for row in scored if row["in_overlap"]}
    first: dict[object, Row] = {}
    for row in scored:
        first.setdefault(row["cluster"], row)
    return (
        [row for cluster, row in first.items() if cluster not in touched],
        [row for cluster, row in first.items() if cluster in touched],
    )


def right_of(rows: Sequence[Row]) -> tuple[int, int]:
    """How many are right, of how many."""
    return sum(row["correct"] is True for row in rows), len(rows)


def detectable_gain(n_overlap: int, n_clean: int, null: float, alpha: float) -> float | None:
    """The gain at which both tests reject four times in five, Clean drawn too; None where they reject less often at any.

    Right answers on Clean go up one by one, and with them how many Overlap needs; Fisher's tails are sums of ratios of neighbours.
    """
    ends = binom.ppf([1e-15, 1 - 1e-15], n_clean, null)
    clean = np.arange(int(ends[0]), min(n_clean, int(ends[1]) + 1) + 1)
    needed, k = [], 1
    for right in clean:
        while k <= n_overlap and not _both_reject(k, n_overlap, int(right), n_clean, alpha):
            k += 1
        needed.append(k)
    weights = binom.pmf(clean, n_clean, null)

    def power(accuracy: float) -> float:
        return float(weights @ binom.sf(np.array(needed) - 1, n_overlap, accuracy))

    if power(1.0) < 0.8:
        return None
    return (
        float(bisect(lambda accuracy: power(accuracy) - 0.8, null, 1.0, xtol=1e-13)) - null
        if power(null) < 0.8
        else 0.0
    )


def _both_reject(k: int, n_overlap: int, right: int, n_clean: int, alpha: float) -> bool:
    if binom.sf(k - 1, n_overlap, right / n_clean) > alpha:
        return False
    above = np.arange(k, min(n_overlap, k + right))
    ratios = (n_overlap - above) * (k + right - above) / ((above + 1.0) * (n_clean - k - right + above + 1.0))
    at_k = float(hypergeom.pmf(k, n_overlap + n_clean, k + right, n_overlap))
    return at_k * (1 + float(np.cumprod(ratios).sum())) <= alpha


def difference(overlap: tuple[int, int], clean: tuple[int, int], confidence: float) -> tuple[float, float, float]:
    """Overlap minus Clean with Newcombe's interval: the ends are as far away as the two score intervals' ends are together."""
    one, two = (binomtest(*side).proportion_ci(confidence, method="wilson") for side in (overlap, clean))
    p, q = overlap[0] / overlap[1], clean[0] / clean[1]
    below = ((p - one.low) ** 2 + (two.high - q) ** 2) ** 0.5
    above = ((one.high - p) ** 2 + (q - two.low) ** 2) ** 0.5
    return p - q, max(-1.0, p - q - below), min(1.0, p - q + above)


def strata(clean: Sequence[Row], overlap: Sequence[Row]) -> list[Table]:
    """One table for each class that has units on both sides."""
    counts = Counter((row["label"], side, row["correct"]) for side, rows in enumerate((overlap, clean)) for row in rows)
    tables = [
        (counts[label, 0, True], counts[label, 0, False], counts[label, 1, True], counts[label, 1, False])
        for label in {label for label, _, _ in counts}
    ]
    return [(a, b, c, d) for a, b, c, d in tables if a + b and c + d]


def common_difference(tables: Sequence[Table], confidence: float) -> tuple[float, float, float] | None:
    """Mantel and Haenszel's difference with Sato's interval, stratum by stratum."""
    if not tables:
        return None
    weight = top = p = q = 0.0
    for a, b, c, d in tables:
        x, y = a + b, c + d
        share = x * y / (x + y)
        weight += share
        top += share * (a / x - c / y)
        p += (c * x**2 - a * y**2 + x * y * (y - x) / 2) / (x + y) ** 2
        q += (a * d + c * b) / (2 * (x + y))
    value = top / weight
    half = float(norm.ppf((1 + confidence) / 2)) * max(0.0, value * p + q) ** 0.5 / weight
    return value, max(-1.0, value - half), min(1.0, value + half)


def exact_p(tables: Sequence[Table]) -> float:
    """The exact test over strata: the law of the sum, the strata's laws taken in pairs, the pairs in pairs, and so on.

    By sums of what is not negative, so that a tiny p is as good as a large one: a Fourier transform is off by 1e-17 and more.
    """
    seen = sum(table[0] for table in tables)
    laws = [hypergeom(a + b + c + d, a + c, a + b).pmf(np.arange(min(a + b, a + c) + 1)) for a, b, c, d in tables] or [
        np.ones(1)
    ]
    while len(laws) > 1:
        pairs = [np.convolve(*laws[at : at + 2]) for at in range(0, len(laws) - 1, 2)]
        laws = pairs + laws[2 * len(pairs) :]
    return float(min(1.0, laws[0][seen:].sum()))


def clusters(split: Sequence[Row], pdq_distance: int, quality: int, phash_distance: int, phash_pdq: int) -> list[int]:
    """The first row of each row's cluster, by a product of all bits with all bits; clusters that a row's neighbours are in become one."""
    pdq, phash = (_signs([_bytes(row[name]) for row in split]) for name in ("pdq256", "phash64"))
    textured = np.array([int(str(row["pdq_quality"])) >= quality for row in split], np.bool_)
    digests: dict[object, int] = {}
    first = np.array([digests.setdefault(row["sha256"], number) for number, row in enumerate(split)], np.int64)
    for start in range(0, len(split), _BLOCK):
        block = slice(start, start + _BLOCK)
        far, bits = ((side.shape[1] - side[block] @ side[start:].T) / 2 for side in (pdq, phash))
        near = (far <= pdq_distance) | ((bits <= phash_distance) & (far <= phash_pdq))
        near &= textured[block, None] & textured[None, start:]
        for one in np.flatnonzero(near.sum(axis=1) > 1):
            together = np.unique(first[start:][near[one]])
            if len(together) > 1:
                first[np.isin(first, together)] = together[0]
    return [int(number) for number in first]


def sample(split: Sequence[Row], quality: int, count: int) -> list[int]:
    """The rows whose nearest picture is looked for: of those with enough texture the `count` whose ids have the lowest keyed hash."""
    textured = [row for row in split if int(str(row["pdq_quality"])) >= quality]
    keyed = [
        (blake2b(str(row["eval_id"]).encode("utf-8", "surrogatepass"), digest_size=16, key=b"nearest").hexdigest(), row)
        for row in textured
    ]
    lowest = sorted((name, int(str(row["eval_row"]))) for name, row in keyed)[:count]
    return sorted(row for _, row in lowest)


def calibration(answers: Sequence[Row], near: Sequence[Row], by: str = "pdq") -> dict[str, Any]:
    """What labels say of a set by a measure: `raters`, `answers`, `kappa`, `curve` (a row for each `distance`, or `score`), `chosen`,
    `band`; pair by pair."""
    pairs: dict[object, list[Row]] = {}
    for row in answers:
        if row["measure"] == by:
            pairs.setdefault(row["eval_row"], []).append(row)
    kind, width, loosest = ("distance", 8, 128) if by == "pdq" else ("score", 50, 999)
    bins = Counter(distance(row, by) // width for row in near if row["measure"] == by)
    asked = Counter(distance(given[0], by) // width for given in pairs.values())
    judged = [
        (
            distance(given[0], by),
            all(row["answer"] == "same" for row in given),
            bins[distance(given[0], by) // width] / asked[distance(given[0], by) // width],
        )
        for given in pairs.values()
    ]
    distances = sorted({far for far, _, _ in judged})
    curve: list[dict[str, Any]] = []
    for limit in distances:
        precision = _weighted([(same, weight) for far, same, weight in judged if far <= limit])
        recall = _weighted([(far <= limit, weight) for far, same, weight in judged if same])
        curve.append(
            {
                kind: _threshold(limit, by),
                "answers": sum(far <= limit for far, _, _ in judged),
                "precision": precision[0],
                "precision_low": precision[1],
                "recall": recall[0],
                "recall_low": recall[1],
            }
        )
    same = [far for far, is_same, _ in judged if is_same]
    doubted = min((far for far, is_same, _ in judged if not is_same), default=1001)
    certain = max((far for far in distances if far < doubted), default=0)
    chosen = [
        limit for limit, row in zip(distances, curve, strict=True) if row["precision_low"] >= 0.95 and limit <= loosest
    ]
    return {
        "raters": sorted({str(row["rater"]) for given in pairs.values() for row in given}),
        "answers": len(pairs),
        "kappa": _kappa(list(pairs.values())),
        "curve": curve,
        "chosen": _threshold(max(chosen), by) if chosen else None,
        "band": (_threshold(certain, by), _threshold(max(same), by)) if same else None,
    }


def distance(row: Row, by: str) -> int:
    """In bits; of a score the thousandths that it lacks of 1, at most all of them: 1000 less the largest k with k / 1000 not above it."""
    if by == "pdq":
        return int(str(row["pdq_distance"]))
    score = float(str(row["descriptor_score"]))
    near = math.floor(score * 1000)  # the product may be rounded
    reached = max(k for k in (near - 1, near, near + 1) if k / 1000 <= score)
    return 1000 - min(1000, max(0, reached))


def _threshold(far: int, by: str) -> int | float:
    return far if by == "pdq" else (1000 - far) / 1000


def _weighted(rows: Sequence[tuple[bool, float]]) -> tuple[float | None, float | None]:
    """A weighted share with the lower bound at which as many hits of the effective number come one time in twenty, by root finding."""
    total = sum(weight for _, weight in rows)
    if not total:
        return None, None
    share = sum(weight for hit, weight in rows if hit) / total
    n = total**2 / sum(weight**2 for _, weight in rows)
    if not share:
        return 0.0, 0.0
    low = brentq(lambda truth: float(beta.cdf(truth, share * n, n - share * n + 1)) - 0.05, 0.0, 1.0, xtol=1e-13)
    return share, float(low)


def _kappa(pairs: Sequence[Sequence[Row]]) -> float | None:
    """The mean over two raters at a time of their agreement beyond chance, from the table of their common answers."""
    says = [{str(row["rater"]): row["answer"] == "same" for row in given} for given in pairs]
    raters = sorted({rater for given in says for rater in given})
    found = []
    for place, one in enumerate(raters):
        for other in raters[place + 1 :]:
            table = Counter((given[one], given[other]) for given in says if one in given and other in given)
            n = sum(table.values())
            if not n:
                continue
            yes, too = table[True, True] + table[True, False], table[True, True] + table[False, True]
            chance = (yes * too + (n - yes) * (n - too)) / n**2
            if chance < 1:
                found.append(((table[True, True] + table[False, False]) / n - chance) / (1 - chance))
    return sum(found) / len(found) if found else None


def _bytes(code: object) -> bytes:
    return code if isinstance(code, bytes) else int(str(code)).to_bytes(8)


def _signs(codes: Sequence[bytes]) -> NDArray[np.float32]:
    """Bits as -1 and 1: the product of two codes is their length less twice their distance. float32[n, bits]."""
    if not codes:
        return np.empty((0, 8), np.float32)
    bits = np.unpackbits(np.frombuffer(b"".join(codes), np.uint8).reshape(len(codes), -1), axis=1)
    return bits.astype(np.float32) * 2 - 1
