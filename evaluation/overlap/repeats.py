"""Repeats inside an evaluation set: which of its examples show one picture, and so are one piece of evidence.

Many published sets have them (a tenth of PatchCamelyon's test pictures are repeats, bit for bit). The rule is the one that finds examples
in the corpus: the same bytes, or PDQ or pHash within the set's thresholds. Repeats of repeats are one cluster, which can only make the
tests more careful.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from evaluation.config import Thresholds
from evaluation.overlap.index import HammingIndex
from pipeline.content.hashes import as_codes, hamming

_BLOCK = 1024  # pictures searched at once


def clusters(codes: pa.Table, limits: Thresholds, *, block: int = _BLOCK) -> NDArray[np.int64]:
    """For each row of a set's CODE_SCHEMA table the first row of its cluster: int64[n]. The pairs of `block` rows are in memory at once."""
    pdq = as_codes(codes["pdq256"].to_pylist())
    phash = np.ascontiguousarray(codes["phash64"], np.uint64)
    short = phash.view(np.uint8).reshape(-1, 8)
    textured = np.flatnonzero(np.asarray(codes["pdq_quality"], np.uint8) >= limits.pdq_quality)
    edges = [_same_bytes(codes["sha256"].to_pylist())]
    if len(
        textured
    ):  # pictures of which every pair is alike would be as many pairs as their number squared: one of them is searched
        both = np.concatenate([pdq, short], axis=1)[textured]
        _, first, same = np.unique(both, axis=0, return_index=True, return_inverse=True)
        edges.append((textured, textured[first[same.reshape(-1)]]))
        textured = textured[first]
    by_pdq, by_phash = HammingIndex(pdq[textured]), HammingIndex(short[textured])
    first = _joined(len(pdq), edges)
    for start in range(0, len(textured), block):  # thousands of frames that are nearly alike have millions of pairs
        asked = textured[start : start + block]
        left, right, _ = by_pdq.search(pdq[asked], limits.pdq_distance)
        edges = [(np.arange(len(pdq)), first), (asked[left], textured[right])]
        left, right, _ = by_phash.search(short[asked], limits.phash_distance)
        left, right = asked[left], textured[right]
        agreed = hamming(pdq[left], pdq[right]) <= limits.phash_pdq_distance
        first = _joined(len(pdq), [*edges, (left[agreed], right[agreed])])
    return first


def _joined(rows: int, edges: list[tuple[NDArray[np.int64], NDArray[np.int64]]]) -> NDArray[np.int64]:
    """The first row of what each of `rows` rows hangs together with; int64[rows]."""
    if not rows:
        return np.empty(0, np.int64)
    one, other = (np.concatenate([edge[side] for edge in edges]) for side in (0, 1))
    graph = coo_array((np.ones(len(one), np.int8), (one, other)), shape=(rows, rows))
    _, member = connected_components(graph, directed=False)
    _, first, place = np.unique(member, return_index=True, return_inverse=True)
    return first[place].astype(np.int64)


def _same_bytes(digests: list[bytes]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each row with the first of its digest."""
    first: dict[bytes, int] = {}
    rows = np.arange(len(digests), dtype=np.int64)
    return np.array([first.setdefault(digest, row) for row, digest in enumerate(digests)], np.int64), rows
