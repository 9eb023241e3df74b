"""Row identities and choice keys as numpy words, for the stages that sort, compare and look rows up by them; rows taken by their numbers.

A uid and a choice key are 16 bytes, compared as big-endian numbers. numpy has no such type, so each becomes two uint64 words (high, low):
`np.lexsort` over the words sorts like the bytes, and equality of both words is equality of the bytes.
"""

from typing import cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.contracts.schema import choice_key

Words = npt.NDArray[np.uint64]
"""Shape (n, 2): the high and the low half of n 16-byte keys, in native byte order."""

Indices = npt.NDArray[np.int64]


def one_array(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """The column as one contiguous array."""
    if isinstance(column, pa.ChunkedArray):
        return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    return column


_MOST_BYTES = 1 << 30  # of one array of 32-bit offsets that `take_rows` makes; Arrow's end is 2 GiB


def take_rows(table: pa.Table, at: Indices, most_bytes: int = _MOST_BYTES) -> pa.Table:
    """`table.take(at)` for tables whose pictures may exceed the 2 GiB that one Arrow array of 32-bit offsets holds, where `take` fails.

    `at` names no row twice. A column of more than `most_bytes` comes in chunks of about as many; one of less as `take` gives it.
    """
    columns = [
        column.take(pa.array(at)) if column.nbytes <= most_bytes else _take_in_chunks(column, at, most_bytes)
        for column in table.columns
    ]
    return pa.table(columns, schema=table.schema)


def _take_in_chunks(column: pa.ChunkedArray, at: Indices, most_bytes: int) -> pa.ChunkedArray:
    starts = np.cumsum([0, *(len(chunk) for chunk in column.chunks)])
    chunk_of = np.searchsorted(starts, at, side="right") - 1
    sizes = np.concatenate([_value_bytes(chunk) for chunk in column.chunks])[at]
    piece_of = np.cumsum(sizes) // most_bytes
    pieces = []
    for rows in np.split(np.arange(len(at)), np.flatnonzero(piece_of[1:] != piece_of[:-1]) + 1):
        rows = rows[np.argsort(chunk_of[rows], kind="stable")]
        parts = [
            column.chunk(number).take(pa.array(at[rows[chunk_of[rows] == number]] - starts[number]))
            for number in np.unique(chunk_of[rows])
        ]
        joined = pa.concat_arrays(parts) if parts else pa.array([], column.type)
        pieces.append(joined.take(pa.array(np.argsort(rows))))
    return pa.chunked_array(pieces, column.type)


def _value_bytes(array: pa.Array) -> Indices:
    """Bytes of each value, int64 [n]; of lists and of values of one width, as if all had the same."""
    if pa.types.is_binary(array.type) or pa.types.is_string(array.type):
        return cast(Indices, pc.fill_null(pc.binary_length(array), 0).to_numpy(zero_copy_only=False).astype(np.int64))
    return np.full(len(array), array.nbytes // max(1, len(array)), np.int64)


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
