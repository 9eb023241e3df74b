"""Row identities and choice keys as numpy words, for the stages that sort, compare and look rows up by them.

A uid and a choice key are 16 bytes, compared as big-endian numbers. numpy has no such type, so each becomes two uint64 words (high, low):
`np.lexsort` over the words sorts like the bytes, and equality of both words is equality of the bytes.
"""

from typing import cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.contracts.schema import choice_key

Words = npt.NDArray[np.uint64]
"""Shape (n, 2): the high and the low half of n 16-byte keys, in native byte order."""

Indices = npt.NDArray[np.int64]


def one_array(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """The column as one contiguous array."""
    if isinstance(column, pa.ChunkedArray):
        return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    return column


def fixed_bytes(column: pa.Array | pa.ChunkedArray, width: int) -> npt.NDArray[np.uint8]:
    """uint8 of shape (n, width) over a fixed_size_binary(width) column; null rows hold zeros."""
    array = one_array(column)
    if len(array) == 0:
        return np.zeros((0, width), np.uint8)
    raw = np.frombuffer(array.buffers()[1], np.uint8)
    rows = raw[array.offset * width : (array.offset + len(array)) * width].reshape(-1, width)
    if array.null_count:
        rows = np.where(np.asarray(array.is_valid())[:, None], rows, np.uint8(0))
    return rows


def words(column: pa.Array | pa.ChunkedArray) -> Words:
    """A fixed_size_binary(16) column as words."""
    rows = np.ascontiguousarray(fixed_bytes(column, 16))
    return cast(Words, rows.view(">u8").astype(np.uint64))


def to_binary(keys: Words) -> pa.Array:
    """Words as a fixed_size_binary(16) column: the inverse of `words`."""
    data = np.ascontiguousarray(keys.astype(">u8")).tobytes()
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(keys), [None, pa.py_buffer(data)])


def choice_words(uids: Words, seed: int, purpose: str) -> Words:
    """`choice_key` of every uid, as words."""
    raw = uids.astype(">u8").tobytes()
    chosen = b"".join(choice_key(raw[at : at + 16], seed, purpose) for at in range(0, len(raw), 16))
    return np.frombuffer(chosen, ">u8").astype(np.uint64).reshape(-1, 2)


def sort_order(keys: Words, *before: npt.NDArray[np.generic]) -> Indices:
    """Indices that sort rows by the arrays `before` (first one first), then by the key."""
    return np.lexsort((keys[:, 1], keys[:, 0], *reversed(before)))


def find(needles: Words, haystack: Words) -> Indices:
    """For each needle its index in `haystack` (unique keys, any order), or -1."""
    if not len(needles) or not len(haystack):
        return np.full(len(needles), -1, np.int64)
    both = np.concatenate([haystack, needles])
    order = sort_order(both, np.zeros(len(both), np.uint8))
    ordered = both[order]
    # Equal keys stand together; lexsort is stable, so the haystack's row leads its run.
    starts = np.concatenate([[True], (ordered[1:] != ordered[:-1]).any(axis=1)])
    leader = order[np.flatnonzero(starts)[np.cumsum(starts) - 1]]
    found = np.empty(len(both), np.int64)
    found[order] = np.where(leader < len(haystack), leader, -1)
    return found[len(haystack) :]
