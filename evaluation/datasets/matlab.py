"""Variables of a MATLAB 5 file, as the datasets of Oxford, Stanford and ImageNet keep their labels.

Such a file comes from a stranger, and scipy's reader of it is compiled code that trusts what it is told: a few changed bytes end the
process. So the few kinds of value that datasets use are read here, every size held against the bytes that are there, compressed variables
inflated up to a bound. MATLAB 7.3 files are HDF5 and are not read. Format: MathWorks, "MAT-File Format", level 5.
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.contracts.errors import InputError

_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_NUMERIC = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_TEXT = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
_CELL, _STRUCT, _CHAR = 1, 2, 4
_COMPLEX = 0x0800
_DEEPEST = 8
_MOST_DIMENSIONS = 32


class _Damaged(Exception):
    """What is wrong with the file."""


@dataclass
class _Elements:
    """A run of data elements; `place` is the next one's."""

    data: memoryview
    order: str
    place: int = 0

    def more(self) -> bool:
        return self.place + 8 <= len(self.data)

    def next(self) -> tuple[int, memoryview]:
        """Type and bytes of the next element. Up to four bytes are packed into its tag; what follows a longer one is padded to eight."""
        if not self.more():
            raise _Damaged("it ends early")
        first, size = struct.unpack_from(self.order + "II", self.data, self.place)
        if first >> 16:
            kind, size, start, end = first & 0xFFFF, first >> 16, self.place + 4, self.place + 8
            if size > 4:
                raise _Damaged(f"a packed element of {size} bytes")
        else:
            kind, start = first, self.place + 8
            end = start + size + (0 if kind == _COMPRESSED else -size % 8)
        if size > len(self.data) - start:
            raise _Damaged(f"an element of {size:,} bytes where {len(self.data) - start:,} are left")
        self.place = end
        return kind, self.data[start : start + size]

    def integers(self) -> list[int]:
        """The next element as whole numbers."""
        numbers = self.numbers()
        if numbers.dtype.kind not in "iu":
            raise _Damaged("fractions where whole numbers belong")
        return [int(number) for number in numbers]

    def numbers(self) -> Any:
        """The next element as an array of one dimension."""
        kind, data = self.next()
        if kind not in _STORED or len(data) % int(_STORED[kind][1]):
            raise _Damaged(f"{len(data):,} bytes of type {kind} for numbers")
        return np.frombuffer(data, np.dtype(self.order + _STORED[kind]))


def read_matlab(data: bytes, place: str, *, most: int = 256 << 20) -> dict[str, Any]:
    """The variables by name: an array without its dimensions of 1, a text, of a cell array a list, of a struct array a list of tables (both
    by columns). Raises InputError where it is no such file, is damaged, holds another kind of value or more than `most` bytes.
    """
    if data.startswith(b"MATLAB 7.3") or data.startswith(b"\x89HDF"):
        raise InputError(f"{place}: a MATLAB 7.3 file (HDF5), which is not read; save it again with -v7")
    if len(data) < _HEADER or data[126:128] not in (b"IM", b"MI"):
        raise InputError(f"{place}: no MATLAB 5 file; restore it")
    order = "<" if data[126:128] == b"IM" else ">"
    found: dict[str, Any] = {}
    try:
        elements, room = _Elements(memoryview(data)[_HEADER:], order), most
        while elements.more():
            kind, content = elements.next()
            if kind == _COMPRESSED:
                inflater = zlib.decompressobj()
                inner = _Elements(memoryview(inflater.decompress(content, room + 1)), order)
                if len(inner.data) > room:
                    raise _Damaged(f"more than {most:,} bytes of variables")
                kind, content = inner.next()
            room -= len(content)
            if room < 0:
                raise _Damaged(f"more than {most:,} bytes of variables")
            if kind == _MATRIX and len(content):
                name, value = _matrix(_Elements(content, order), 0)
                found[name] = value
    except (_Damaged, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"{place}: a damaged MATLAB file ({str(error)[:150]}); restore it") from None
    return found


def _matrix(elements: _Elements, depth: int) -> tuple[str, Any]:
    """Name and value of a variable, or of a part of one (which has no name)."""
    flags, shape = elements.integers(), elements.integers()
    name = bytes(elements.next()[1]).decode("latin-1")
    if len(flags) != 2 or not 0 < len(shape) <= _MOST_DIMENSIONS or min(shape) < 0:
        raise _Damaged("a variable without its kind or shape")
    kind, count = flags[0] & 0xFF, math.prod(shape)
    if flags[0] & _COMPLEX or depth > _DEEPEST:
        raise _Damaged("complex numbers" if depth <= _DEEPEST else "values in values, deeper than any dataset's")
    if kind in _NUMERIC:
        numbers = elements.numbers()
        if len(numbers) != count:
            raise _Damaged(f"{len(numbers):,} numbers for the shape {shape}")
        return name, numbers.astype(_NUMERIC[kind], copy=False).reshape(shape, order="F").squeeze()
    if kind == _CHAR:
        stored, data = elements.next()
        if stored not in _TEXT:
            raise _Damaged(f"a text of type {stored}")
        return name, bytes(data).decode(_codec(_TEXT[stored], elements.order))
    if kind == _CELL:
        return name, [_part(elements, depth) for _ in range(count)]
    if kind == _STRUCT:
        width = elements.integers()
        names = bytes(elements.next()[1])
        if len(width) != 1 or width[0] < 1 or len(names) % width[0]:
            raise _Damaged("a struct without the names of its fields")
        size = width[0]
        fields = [
            names[start : start + size].partition(b"\0")[0].decode("latin-1") for start in range(0, len(names), size)
        ]
        if not fields and count:
            raise _Damaged("a struct without fields")
        return name, [{key: _part(elements, depth) for key in fields} for _ in range(count)]
    raise _Damaged(f"a value of kind {kind} (an object, a function or a sparse matrix)")


def _part(elements: _Elements, depth: int) -> Any:
    kind, content = elements.next()
    if kind != _MATRIX:
        raise _Damaged(f"an element of type {kind} in a cell or a field")
    return _matrix(_Elements(content, elements.order), depth + 1)[1] if len(content) else None


def _codec(name: str, order: str) -> str:
    return name if not name.startswith("utf-") or name == "utf-8" else f"{name}-{'le' if order == '<' else 'be'}"
