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


def clusters(codes: pa.Table, limits: Thresholds) -> NDArray[np.int64]:
    """For each row of a set's CODE_SCHEMA table the first row of its cluster: int64[n]."""
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
    left, right, _ = HammingIndex(pdq[textured]).search(pdq[textured], limits.pdq_distance)
    edges.append((textured[left], textured[right]))
    left, right, _ = HammingIndex(short[textured]).search(short[textured], limits.phash_distance)
    left, right = textured[left], textured[right]
    agreed = hamming(pdq[left], pdq[right]) <= limits.phash_pdq_distance
    edges.append((left[agreed], right[agreed]))
    one, other = (np.concatenate([edge[side] for edge in edges]) for side in (0, 1))
    graph = coo_array((np.ones(len(one), np.int8), (one, other)), shape=(len(pdq), len(pdq)))
    if not len(pdq):
        return np.empty(0, np.int64)
    _, member = connected_components(graph, directed=False)
    _, first, place = np.unique(member, return_index=True, return_inverse=True)
    return first[place].astype(np.int64)


def _same_bytes(digests: list[bytes]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each row with the first of its digest."""
    first: dict[bytes, int] = {}
    rows = np.arange(len(digests), dtype=np.int64)
    return np.array([first.setdefault(digest, row) for row, digest in enumerate(digests)], np.int64), rows
