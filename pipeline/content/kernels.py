"""What the compiled loops of the house share: the decorator, string columns as buffers, and UTF-8.

Hot loops are numba functions over Arrow's buffers, compiled once a machine and cached on disk: beside the source, in the user's cache, or
where NUMBA_CACHE_DIR says (where nothing can be written, each process compiles for itself). They release the GIL and never use fast-math:
same input, same bits, on every machine.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

log = logging.getLogger("pipeline")

Bytes = npt.NDArray[np.uint8]


def compiled(function: Callable[..., Any], *, nogil: bool = True) -> Callable[..., Any]:
    """numba.njit, cached and without the GIL. Its calls are not type-checked: numba's own types are none that Python knows."""
    try:
        return cast(Callable[..., Any], numba.njit(cache=True, nogil=nogil)(function))
    except RuntimeError:  # no folder can be written: files that are read-only, and a user without a home
        _warn_once()
        return cast(Callable[..., Any], numba.njit(nogil=nogil)(function))


@functools.cache
def _warn_once() -> None:
    log.warning(
        "compiled loops cannot be kept on disk here, and each process spends seconds to compile them again; "
        "name a folder that can be written in NUMBA_CACHE_DIR"
    )


class Text(NamedTuple):
    """A string column as its buffers: row i is `data[starts[i]:starts[i + 1]]`, UTF-8."""

    data: Bytes
    starts: npt.NDArray[np.int64]


def text_buffers(column: pa.Array | pa.ChunkedArray) -> Text:
    """The buffers of a string column (a null is an empty string)."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    large = array.type == pa.large_string()
    if array.null_count:
        array = pc.fill_null(array, "")
    if not len(array):
        return Text(np.zeros(0, np.uint8), np.zeros(1, np.int64))
    starts = np.frombuffer(array.buffers()[1], np.int64 if large else np.int32)[array.offset :][: len(array) + 1]
    raw = array.buffers()[2]
    data = np.frombuffer(raw, np.uint8) if raw is not None else np.zeros(0, np.uint8)
    return Text(data, starts.astype(np.int64))


@compiled
def code_point(data: Bytes, at: int, end: int) -> tuple[np.int64, int]:
    """(code point, bytes) of the character at `at`; of a sequence that `end` cuts off, (0, bytes left). Arrow's strings are valid UTF-8."""
    first = np.int64(data[at])
    if first < 0x80:
        return first, 1
    length = 2 if first < 0xE0 else 3 if first < 0xF0 else 4
    if at + length > end:
        return np.int64(0), end - at
    point = first & (0xFF >> (length + 1))
    for more in range(1, length):
        point = point << 6 | (np.int64(data[at + more]) & 0x3F)
    return np.int64(min(point, np.int64(0x10FFFF))), length
