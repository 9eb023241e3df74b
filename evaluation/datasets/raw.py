"""Pixels that a dataset keeps as numbers become a PNG, always the same one.

Everything downstream (hashes, the overlap job, a model) takes encoded pictures, and an example is known by the SHA-256 of its bytes. So
the bytes may depend on the pixels alone: the PNG is written without compression, by hand, because what zlib makes of the same pixels
differs between its versions.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.contracts.errors import InputError

_STORED = 0xFFFF  # bytes of a deflate block that is not compressed
_PPM = re.compile(rb"P6(?:\s|#[^\n]*\n)+(\d{1,6})(?:\s|#[^\n]*\n)+(\d{1,6})\s+255\s")


@dataclass(frozen=True)
class Arrays:
    """Pictures of an array uint8[n, height, width] (grey) or [n, height, width, 3]; `load` reads it again, it is not kept."""

    load: Callable[[], NDArray[np.uint8]]

    def read(self, rows: Sequence[int]) -> Iterator[bytes]:
        pixels = self.load()
        return (png(pixels[row]) for row in rows if row < len(pixels))


def png(pixels: NDArray[np.uint8]) -> bytes:
    """uint8[height, width] or [height, width, 3] as a PNG whose bytes are the same with every version of every library."""
    height, width = pixels.shape[:2]
    rows = np.zeros((height, 1 + pixels[0].size), np.uint8)  # each row behind its filter byte: 0, none
    rows[:, 1:] = pixels.reshape(height, -1)
    raw = rows.tobytes()
    body = bytearray(b"\x78\x01")
    for start in range(0, len(raw), _STORED):
        piece = raw[start : start + _STORED]
        last = start + _STORED >= len(raw)
        body += struct.pack("<BHH", last, len(piece), len(piece) ^ 0xFFFF) + piece
    body += struct.pack(">I", zlib.adler32(raw))
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if pixels.ndim == 3 else 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", bytes(body)) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def picture(data: bytes) -> bytes:
    """An encoded picture as it is; a binary PPM, which the corpus's decoder does not read, as a PNG."""
    if not data.startswith(b"P6"):
        return data
    head = _PPM.match(data)
    if head is None:
        raise InputError(f"a PPM picture that begins with {data[:20]!r} is not of 8 bits a colour; convert it to PNG")
    width, height = int(head[1]), int(head[2])
    if not width or not height or len(data) - head.end() < 3 * width * height:
        raise InputError(
            f"a PPM picture of {width} x {height} has {len(data) - head.end():,} bytes of pixels; replace the file"
        )
    return png(np.frombuffer(data, np.uint8, 3 * width * height, head.end()).reshape(height, width, 3))
