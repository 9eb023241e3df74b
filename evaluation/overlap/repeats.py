"""Repeats inside an evaluation set: which of its examples show one picture, and so are one piece of evidence.

Many published sets have them (a tenth of PatchCamelyon's test pictures are repeats, bit for bit). The rule is the one that finds examples
in the corpus: the same bytes, or PDQ or pHash within the set's thresholds. Repeats of repeats are one cluster, which can only make the
tests more careful.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from evaluation.config import Thresholds
from evaluation.overlap.index import HammingIndex
from pipeline.content.hashes import as_codes, hamming

Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]
_QUERIES = 4096  # pictures whose neighbours are in memory at once


def clusters(codes: pa.Table, limits: Thresholds) -> NDArray[np.int64]:
    """For each row of a set's CODE_SCHEMA table the first row of its cluster: int64[n]."""
    member = np.arange(codes.num_rows)
    for one, other in _same(codes, limits):
        if len(one):
            graph = coo_array((np.ones(len(one), np.bool_), (member[one], member[other])), shape=(len(member),) * 2)
            member = connected_components(graph, directed=False)[1][member]
    _, first, place = np.unique(member, return_index=True, return_inverse=True)
    return first[place].astype(np.int64)


def _same(codes: pa.Table, limits: Thresholds) -> Iterator[Pairs]:
    """Rows that show one picture, some at a time: the frames of a film are as many pairs as their number squared."""
    yield _same_bytes(codes["sha256"].to_pylist())
    pdq = as_codes(codes["pdq256"].to_pylist())
    short = np.ascontiguousarray(codes["phash64"], np.uint64).view(np.uint8).reshape(-1, 8)
    textured = np.flatnonzero(np.asarray(codes["pdq_quality"], np.uint8) >= limits.pdq_quality)
    if not len(textured):
        return
    # Of pictures that hash alike one is searched.
    both = np.concatenate([pdq, short], axis=1)[textured]
    _, first, same = np.unique(both, axis=0, return_index=True, return_inverse=True)
    yield textured, textured[first[same.reshape(-1)]]
    distinct = textured[first]
    near, alike = HammingIndex(pdq[distinct]), HammingIndex(short[distinct])
    for start in range(0, len(distinct), _QUERIES):
        asked = distinct[start : start + _QUERIES]
        left, right, _ = near.search(pdq[asked], limits.pdq_distance)
        yield asked[left], distinct[right]
        left, right, _ = alike.search(short[asked], limits.phash_distance)
        left, right = asked[left], distinct[right]
        agreed = hamming(pdq[left], pdq[right]) <= limits.phash_pdq_distance
        yield left[agreed], right[agreed]


def _same_bytes(digests: list[bytes]) -> Pairs:
    """Each row with the first of its digest."""
    first: dict[bytes, int] = {}
    rows = np.arange(len(digests), dtype=np.int64)
    return np.array([first.setdefault(digest, row) for row, digest in enumerate(digests)], np.int64), rows
