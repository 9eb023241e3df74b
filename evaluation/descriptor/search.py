"""Exact search among vectors: every pair whose score reaches a threshold, the same pairs on every machine.

Vectors are int8. A sum of d products of two such numbers is at most 127² d, below 2^24 for d <= 1,040: every partial sum is a whole number
that float32 holds, so a float32 matrix product gives the exact integer whatever order its library adds in. What is left, one division by
the lengths, is float64. So blocks go through the fastest product there is, nothing has to be computed again, and the result equals
comparing one pair at a time, bit for bit.

The indexed side (views of evaluation pictures) is held in memory; the other side (a corpus) passes once. The same products say which of it
is nearest to a sample of pictures, however far that is. A view's threshold may be raised by how near it lies to everything: SSCD's score
normalisation (Pizzi et al. 2022, equation 8), score = cosine − β · mean cosine to its n-th nearest background vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.content.kernels import compiled
from pipeline.contracts.errors import InputError

Int8s = NDArray[np.int8]
Int64s = NDArray[np.int64]
Float64s = NDArray[np.float64]
Bools = NDArray[np.bool_]
Columns = list[Int64s | Float64s]
"""Picture, query, view, cosine, score and place of hits, arrays of one length."""

LARGEST_DIMENSION = (1 << 24) // 127**2
"""Up to it a dot product of two vectors is exact in float32: 1,040."""
_BLOCK = 4096  # vectors of either side at a time: 64 MB of dot products
_MOST_HITS = 1 << 24  # of one search: what a threshold that means nothing would find is more than a machine holds
_ROOM = 1e-9  # in cosine: what no rounding of two float64 products comes to
_LOOSER = 1e-5  # in cosine: a block is compared in float32 with a bound so much lower, then each pair by its own float64 score


@dataclass(frozen=True)
class Index:
    """Views in memory: int8[m, d], picture (int64[m], not descending) and number of each view, and what its score is lowered by."""

    vectors: Int8s
    picture: Int64s
    view: Int64s
    lowered: Float64s


@dataclass(frozen=True)
class Hits:
    """Pairs of a picture and a query, by picture and then query: the view of the picture with the highest score (the first of equals)."""

    picture: Int64s
    query: Int64s
    view: Int64s
    cosine: Float64s
    score: Float64s


def cosines(left: Int8s, right: Int8s) -> Float64s:
    """The whole table float64[n, m] of int8[n, d] and int8[m, d]; zero where a vector is. Raises ValueError above LARGEST_DIMENSION."""
    lengths = _lengths(left)[:, None] * _lengths(right)[None, :]
    return _dots(left, right).astype(np.float64) / lengths


def normalisation(vectors: Int8s, background: Int8s, *, beta: float, nearest: tuple[int, int] = (1, 3)) -> Float64s:
    """What each view's score is lowered by, float64[n]: beta times the mean cosine to its nearest[0]-th to nearest[1]-th of the background.

    Zeros where beta is 0. Raises ValueError when the background has fewer vectors than that.
    """
    if beta == 0:
        return np.zeros(len(vectors))
    first, last = nearest
    if not 1 <= first <= last <= len(background):
        raise ValueError(f"nearest {first} to {last} of {len(background)} background vectors")
    lowered = np.empty(len(vectors))
    for start in range(0, len(vectors), _BLOCK):
        table = cosines(vectors[start : start + _BLOCK], background)
        descending = -np.sort(-table, axis=1)[:, first - 1 : last]
        lowered[start : start + _BLOCK] = beta * descending.mean(axis=1)
    return lowered


def search(index: Index, queries: Int8s, thresholds: Float64s, sampled: Bools | None = None) -> tuple[Hits, Hits]:
    """All pairs of a picture and a query, int8[n, d], where some view's score is at least the picture's threshold (float64[m], one a view);
    and of each picture whose views are `sampled` (bool[m]) the query with the highest score, the first of equals.

    A query that is zero (a picture without a vector) matches nothing and is nearest to nothing, and a view whose threshold is infinite is
    matched by nothing; only views that something is asked of are multiplied. Raises ValueError above LARGEST_DIMENSION, and InputError
    where the thresholds are so low that the pairs would not fit into memory.
    """
    known = np.flatnonzero(queries.any(axis=1))
    wanted = np.zeros(len(index.vectors), np.bool_) if sampled is None else sampled
    asked = np.flatnonzero(wanted | ~np.isinf(thresholds))
    best, nearest = np.full(len(index.vectors), -np.inf), np.full(len(index.vectors), -1, np.int64)
    columns: list[Columns] = []
    total = 0
    for at in range(0, len(asked), _BLOCK):
        views = asked[at : at + _BLOCK]
        vectors, lowered, limits = index.vectors[views], index.lowered[views], thresholds[views]
        bound = limits + lowered
        lengths = _lengths(vectors)
        decides, inside = not np.isinf(limits).all(), np.flatnonzero(wanted[views])
        for start in range(0, len(known), _BLOCK):
            rows = known[start : start + _BLOCK]
            other = _lengths(queries[rows])
            dots = _dots(vectors, queries[rows])
            if len(inside):
                _raise_best(dots, inside, lengths, other, lowered, views, rows, best, nearest)
            if not decides:
                continue
            least = ((bound - _LOOSER) * lengths).astype(np.float32)[:, None] * other.astype(np.float32)[None, :]
            left, right = np.nonzero(dots >= least)
            cosine = dots[left, right].astype(np.float64) / (lengths[left] * other[right])
            score = cosine - lowered[left]
            kept = score >= limits[left]
            place = views[left[kept]]
            total += len(place)
            if total > _MOST_HITS:
                least_score = float(thresholds[np.isfinite(thresholds)].min())
                raise InputError(
                    f"descriptor_score: {least_score:g} and more is the score of over {_MOST_HITS:,} views with rows of one shard; raise it"
                )
            columns.append(
                [index.picture[place], rows[right[kept]], index.view[place], cosine[kept], score[kept], place]
            )
    return _best(columns), score_pairs(index, queries, *_nearest_of_pictures(index.picture, best, nearest))


def score_pairs(index: Index, queries: Int8s, picture: Int64s, query: Int64s) -> Hits:
    """What given pairs (each once) score, however little, to the bit as `search` has it: int64[n] pictures and queries.

    Pairs of a picture without views, or of a query that is zero, are left out.
    """
    first, stop = (np.searchsorted(index.picture, picture, side) for side in ("left", "right"))
    known = np.any(queries != 0, axis=1)
    views = np.where(known[query], stop - first, 0)
    columns: list[Columns] = []
    starts = np.cumsum(views) - views
    for at in range(0, int(views.sum()), _BLOCK):
        counted = np.arange(at, min(at + _BLOCK, int(views.sum())))
        pair = np.searchsorted(starts + views, counted, "right")
        place, row = first[pair] + counted - starts[pair], query[pair]
        ours, theirs = index.vectors[place], queries[row]
        dots = np.einsum("nd,nd->n", ours.astype(np.int32), theirs.astype(np.int32))
        cosine = dots.astype(np.float64) / (_lengths(ours) * _lengths(theirs))
        columns.append([picture[pair], row, index.view[place], cosine, cosine - index.lowered[place], place])
    return _best(columns)


def _best(columns: list[Columns]) -> Hits:
    """Of the hits of every view the best one of each pair."""
    empty: Columns = [np.zeros(0, np.int64)] * 3 + [np.zeros(0)] * 2 + [np.zeros(0, np.int64)]
    picture, query, view, cosine, score, place = (np.concatenate(parts) for parts in zip(empty, *columns, strict=True))
    order = np.lexsort((place, -score, query, picture))
    picture, query = picture[order].astype(np.int64), query[order].astype(np.int64)
    first = np.ones(len(order), np.bool_)
    first[1:] = (picture[1:] != picture[:-1]) | (query[1:] != query[:-1])
    return Hits(
        picture[first],
        query[first],
        view[order][first].astype(np.int64),
        cosine[order][first].astype(np.float64),
        score[order][first].astype(np.float64),
    )


def _nearest_of_pictures(picture: Int64s, best: Float64s, nearest: Int64s) -> tuple[Int64s, Int64s]:
    """From the best score of each view and the first query that has it (-1: none) to pictures, ascending, and the query of each."""
    found = np.flatnonzero(nearest >= 0)
    order = found[np.lexsort((nearest[found], -best[found], picture[found]))]
    pictures, first = np.unique(picture[order], return_index=True)
    return pictures, nearest[order][first]


@compiled
def _raise_best(
    dots: NDArray[np.float32],
    inside: Int64s,
    lengths: Float64s,
    other: Float64s,
    lowered: Float64s,
    views: Int64s,
    rows: Int64s,
    best: Float64s,
    nearest: Int64s,
) -> None:
    """best[v] and nearest[v] of the views `inside` a block, from its dot products: the highest score so far, and the first row that has it.

    Nearly all products fall to one multiplication and a comparison (with room for its rounding); only the rest is divided.
    """
    for number in range(inside.shape[0]):
        view = inside[number]
        place = views[view]
        length, less, high, row = lengths[view], lowered[view], best[place], nearest[place]
        bound = high + less - _ROOM
        for query in range(other.shape[0]):
            scale = length * other[query]
            if dots[view, query] >= bound * scale:
                score = dots[view, query] / scale - less
                if score > high:
                    high, row = score, rows[query]
                    bound = high + less - _ROOM
        best[place], nearest[place] = high, row


def _lengths(vectors: Int8s) -> Float64s:
    """float64[n]; of a zero vector 1, so that its cosines are 0."""
    wide = vectors.astype(np.int64)
    squares = np.einsum("nd,nd->n", wide, wide).astype(np.float64)
    lengths: Float64s = np.sqrt(np.where(squares > 0, squares, 1.0))
    return lengths


def _dots(left: Int8s, right: Int8s) -> NDArray[np.float32]:
    """Exact dot products, float32[n, m]."""
    if left.shape[1] != right.shape[1] or left.shape[1] > LARGEST_DIMENSION:
        raise ValueError(f"vectors of {left.shape[1]} and {right.shape[1]} dimensions (at most {LARGEST_DIMENSION})")
    product: NDArray[np.float32] = left.astype(np.float32) @ right.astype(np.float32).T
    return product
