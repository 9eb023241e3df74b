"""What the learned descriptor says of one shard: one pass over its vectors gives every pair whose score reaches its set's threshold, and
the row that is nearest to each sampled example; any other pair can be asked for its score.

As with hashes, only pictures with enough texture are compared, by the quality threshold of the set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.config import Thresholds
from evaluation.descriptor.search import Float64s, Hits, Index, Int8s, Int64s, score_pairs, search

_NOTHING = np.zeros(0, np.int64)


class Learned(NamedTuple):
    """What the descriptor has seen: views of all sets, whose pictures are places in EvalCodes, and a shard's vectors int8[rows, d], zero
    where a row has none. `sample`: the places (with enough texture) whose nearest row is wanted."""

    views: Index
    vectors: Int8s
    sample: Int64s = _NOTHING


class Compared(NamedTuple):
    """What it says of a shard: the pairs that reach their set's threshold, and the nearest row of each sampled place that has any."""

    pairs: Hits
    nearest: Hits


class Likeness(NamedTuple):
    """What it says of pairs: cosine, score and view (of no meaning where the others are nan: no vector, or no descriptor)."""

    cosine: Float64s
    score: Float64s
    view: Int64s


def compare(
    learned: Learned, texture: Int64s, set_number: NDArray[np.int32], thresholds: Sequence[Thresholds]
) -> Compared:
    """Look at a shard once. `texture` int64[rows] is the rows' PDQ quality (-1: not known), `set_number` says of which set a place is."""
    views, vectors, sample = learned
    sets = set_number[views.picture]
    least = np.array([one.pdq_quality for one in thresholds], np.int64)[sets]
    limits, sampled = least_scores(thresholds)[sets], np.isin(views.picture, sample)
    found = []
    for level in sorted({one.pdq_quality for one in thresholds}):
        own, enough, textured = least == level, texture >= level, np.zeros_like(vectors)
        textured[enough] = vectors[enough]
        found.append(search(views, textured, np.where(own, limits, np.inf), sampled & own))
    return Compared(*(_together(parts) for parts in zip(*found, strict=True)))


def least_scores(thresholds: Sequence[Thresholds]) -> Float64s:
    """The score from which on the descriptor decides, for each set; infinite where it does not."""
    return np.array([np.inf if one.descriptor_score is None else one.descriptor_score for one in thresholds])


def likeness_of(learned: Learned | None, left: Int64s, right: Int64s) -> Likeness:
    """Of pairs that come by evaluation place and shard row, each once."""
    unknown = Likeness(np.full(len(left), np.nan), np.full(len(left), np.nan), np.zeros(len(left), np.int64))
    if learned is None:
        return unknown
    hits = score_pairs(learned.views, learned.vectors, left, right)
    rows = max(len(learned.vectors), 1)
    found = np.searchsorted(left * rows + right, hits.picture * rows + hits.query)
    for values, known in zip(unknown, (hits.cosine, hits.score, hits.view), strict=True):
        values[found] = known
    return unknown


def _together(parts: Sequence[Hits]) -> Hits:
    """Hits of different pictures as one, by picture and then query."""
    columns = [np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Hits)]
    order = np.lexsort((columns[1], columns[0]))
    return Hits(*(column[order] for column in columns))
