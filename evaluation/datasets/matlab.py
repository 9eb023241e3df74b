"""Variables of a MATLAB 5 file, as the datasets of Oxford, Stanford and ImageNet keep their labels. Nothing in such a file is executed.

Compressed variables are inflated here, up to a bound, before scipy sees them: a file of a megabyte could otherwise ask for a thousand
times its size. MATLAB 7.3 files are HDF5 and are not read.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from typing import Any

from pipeline.contracts.errors import InputError

_HEADER = 128
_COMPRESSED = 15  # tag of a compressed element (MAT-File Format, table 1-1)


def read_matlab(data: bytes, place: str, *, most: int = 256 << 20) -> dict[str, Any]:
    """The variables by name as `scipy.io.loadmat(squeeze_me=True)` gives them. Raises InputError where it is no such file or holds more
    than `most` bytes.
    """
    import scipy.io  # 0.2 s, paid by those who have such a file

    if data.startswith(b"MATLAB 7.3") or data.startswith(b"\x89HDF"):
        raise InputError(f"{place}: a MATLAB 7.3 file (HDF5), which is not read; save it again with -v7")
    if len(data) < _HEADER or data[126:128] not in (b"IM", b"MI"):
        raise InputError(f"{place}: no MATLAB 5 file; restore it")
    try:
        flat = io.BytesIO(_inflated(data, most))
        with warnings.catch_warnings(action="ignore"):
            found: dict[str, Any] = scipy.io.loadmat(flat, squeeze_me=True)
    # scipy's reader answers broken input with these, and with what numpy says of impossible shapes.
    except (
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        OverflowError,
        MemoryError,
        OSError,
        EOFError,
        NotImplementedError,
        AttributeError,
        zlib.error,
        struct.error,
    ) as error:
        raise InputError(f"{place}: a damaged MATLAB file ({str(error)[:150]}); restore it") from None
    return {name: value for name, value in found.items() if not name.startswith("__")}


def _inflated(data: bytes, most: int) -> bytes:
    """The same file with its compressed elements inflated."""
    order = "<" if data[126:128] == b"IM" else ">"
    parts, place, room = [data[:_HEADER]], _HEADER, most
    while place + 8 <= len(data):
        kind, size = struct.unpack(order + "II", data[place : place + 8])
        if size > len(data) - place - 8:
            raise ValueError("an element that is longer than the file")
        element = data[place : place + 8 + size]
        if kind == _COMPRESSED:
            inflater = zlib.decompressobj()
            element = inflater.decompress(element[8:], max(1, room))
            if inflater.unconsumed_tail:
                raise ValueError(f"more than {most:,} bytes of variables")
            element += bytes(-len(element) % 8)
        room -= len(element)
        if room < 0:
            raise ValueError(f"more than {most:,} bytes of variables")
        parts.append(element)
        place += 8 + size
    return b"".join(parts)
