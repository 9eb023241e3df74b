"""Image-text retrieval: does a picture find its caption, and a caption its picture?

Recall at k, both ways, over the whole set. Several pictures may share a caption (names often do), and a picture may have several captions
(COCO's have five): a text query counts as answered when any picture that carries exactly this text is among its k best, and a picture's
query when any of its texts is. Whose pictures are one is for the caller to say. Ties are counted
against the model: every wrong candidate with the same score as the right one is ranked before it, so that a model that gives
all candidates one score finds nothing. The recall that a random order would reach is printed beside each figure. The captions of one
picture ask together: the interval of their recall counts them as a cluster (`intervals.clustered`; one that several share is the first's).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import lgamma
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from evaluation.intervals import clustered

Value = TypeVar("Value", bound=Hashable)

CUTOFFS = (1, 5, 10)
RANK_SCHEMA = pa.schema(
    [
        pa.field("direction", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("eval_id", pa.string(), nullable=False),
        pa.field("sha256", pa.binary(32), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("rank", pa.int64(), nullable=False),
    ]
)
"""One row per query: `image_to_text` asks with the picture of a row of the set, `text_to_image` with its caption (the first row with that
picture or caption). `rank` is that of the best right answer, 0 is first."""
_BLOCK = 1024
_MOST_SCORES = 1 << 26  # held at a time


@dataclass(frozen=True)
class Recall:
    """Recall at `k` of `n` queries: share `value` with its interval, and `chance` for a random order."""

    k: int
    n: int
    found: int
    value: float
    low: float
    high: float
    chance: float


@dataclass(frozen=True)
class Retrieval:
    """Both directions, and the rank (0 is first) of the best right answer for every query."""

    texts: list[str]
    image_to_text: list[Recall]
    text_to_image: list[Recall]
    image_ranks: NDArray[np.int64]
    text_ranks: NDArray[np.int64]


def distinct(values: Sequence[Value]) -> tuple[list[Value], NDArray[np.int64]]:
    """The different values in order of first appearance, and for each row the place of its own: int64[n]."""
    place: dict[Value, int] = {}
    rows = [place.setdefault(value, len(place)) for value in values]
    return list(place), np.array(rows, np.int64)


def retrieve(
    images: NDArray[np.float32],
    texts: NDArray[np.float32],
    pictures: Sequence[Hashable],
    captions: Sequence[str],
    *,
    confidence: float = 0.95,
) -> Retrieval:
    """Recall both ways. Row i of a set says that `captions[i]` stands beside `pictures[i]`, which is any name of a picture, like a digest.

    `images` float32[n, d] and `texts` float32[m, d] normalised, in the order of `distinct(pictures)` and `distinct(captions)`.
    """
    names, text_of_row = distinct(captions)
    _, image_of_row = distinct(pictures)
    right = np.unique(np.stack([image_of_row, text_of_row], axis=1), axis=0)
    image_ranks, text_ranks = ranks(images, texts, right), ranks(texts, images, right[:, ::-1])
    texts_of, images_of = np.bincount(right[:, 0]), np.bincount(right[:, 1])
    picture_of_text = image_of_row[np.unique(text_of_row, return_index=True)[1]]
    return Retrieval(
        names,
        [_recall(image_ranks, k, len(texts), texts_of, np.arange(len(images)), confidence) for k in CUTOFFS],
        [_recall(text_ranks, k, len(images), images_of, picture_of_text, confidence) for k in CUTOFFS],
        image_ranks,
        text_ranks,
    )


def ranks(queries: NDArray[np.float32], candidates: NDArray[np.float32], right: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each query, how many wrong candidates score at least as high as its best right one: int64[queries].

    right: int64[pairs, 2], which candidate answers which query, each pair once; every query has one. Scores of a block of queries are held.
    """
    out = np.empty(len(queries), np.int64)
    right = right[np.argsort(right[:, 0], kind="stable")]
    size = max(1, min(_BLOCK, _MOST_SCORES // len(candidates)))
    for start in range(0, len(queries), size):
        scores = queries[start : start + size] @ candidates.T
        first, last = np.searchsorted(right[:, 0], [start, start + len(scores)])
        query, candidate = right[first:last, 0] - start, right[first:last, 1]
        own = scores[query, candidate]
        best = np.full(len(scores), -np.inf, scores.dtype)
        np.maximum.at(best, query, own)
        # Of those at or above the best right one, the right ones themselves do not count.
        out[start : start + size] = (scores >= best[:, None]).sum(axis=1)
        np.subtract.at(out, start + query, own >= best[query])
    return out


def chance_recall(candidates: int, right: int, k: int) -> float:
    """Probability that at least one of `right` answers is among the first `k` of a random order of `candidates`."""
    k = min(k, candidates)
    if candidates - right < k:
        return 1.0
    log_miss = (
        lgamma(candidates - right + 1)
        - lgamma(candidates - right - k + 1)
        - lgamma(candidates + 1)
        + lgamma(candidates - k + 1)
    )
    return float(1.0 - np.exp(log_miss))


def _recall(
    rank: NDArray[np.int64],
    k: int,
    candidates: int,
    right: NDArray[np.int64],
    units: NDArray[np.int64],
    confidence: float,
) -> Recall:
    found, n = int((rank < k).sum()), len(rank)
    low, high = clustered(rank < k, units, confidence)
    counts, repeats = np.unique(right, return_counts=True)
    chance = sum(chance_recall(candidates, int(m), k) * int(r) for m, r in zip(counts, repeats, strict=True)) / n
    return Recall(k, n, found, found / n, low, high, chance)
