"""The small grey picture that pHash looks at, as Pillow makes it, to the bit: `convert("L").resize((32, 32), LANCZOS)`.

Pillow's weights are whole numbers (of 2^-22), and each direction ends in bytes, so that a sum is the same in any order: here it becomes
vector instructions. Which direction comes first changes bits; Pillow 13 begins with the columns of tall pictures, versions before it always
with the rows. A hash must not change with a library: here it is the way of Pillow 13. Written from the published behaviour, and held equal
to Pillow by tests.
"""

import functools
import math
from typing import cast

import numpy as np
import numpy.typing as npt

from pipeline.content.kernels import compiled

SIDE = 32

_Bytes = npt.NDArray[np.uint8]
_Int32s = npt.NDArray[np.int32]
_Int64s = npt.NDArray[np.int64]
_LOBES = 3.0  # of the Lanczos window, to each side
_BITS = 22  # of a weight, behind the point
_KEPT = 1024  # the longest side whose weights are kept: 24 bytes a pixel of it


def grey_32(rgb: _Bytes) -> _Bytes:
    """uint8[h, w, 3] to the luma of it (ITU-R 601) as uint8[32, 32]."""
    height, width = rgb.shape[:2]
    pixels = np.ascontiguousarray(rgb).view()
    pixels.setflags(write=False)  # numba compiles anew for writeable arrays; a decoded picture is none
    grey = _luma(pixels)
    if height > SIDE and 2 * width < height + SIDE:
        return cast(_Bytes, _along_rows(_down_columns(grey, *weights(height)), *weights(width)))
    return cast(_Bytes, _down_columns(_along_rows(grey, *weights(width)), *weights(height)))


def weights(length: int) -> tuple[_Int64s, _Int64s, _Int32s]:
    """For each of 32 pixels of a line that is made of `length`: the first one it covers, how many, and their weights."""
    return _kept_weights(length) if length <= _KEPT else cast(tuple[_Int64s, _Int64s, _Int32s], _weights(length))


@functools.lru_cache(maxsize=_KEPT)
def _kept_weights(length: int) -> tuple[_Int64s, _Int64s, _Int32s]:
    return cast(tuple[_Int64s, _Int64s, _Int32s], _weights(length))


# ---------------------------------------------------------------- kernels


@compiled
def _lanczos(x: float) -> float:
    if x < -_LOBES or x >= _LOBES:
        return 0.0
    if x == 0.0:
        return 1.0
    wide, narrow = x * math.pi, x / _LOBES * math.pi
    return math.sin(wide) / wide * (math.sin(narrow) / narrow)


@compiled
def _weights(length: int) -> tuple[_Int64s, _Int64s, _Int32s]:
    scale = length / SIDE
    stretch = max(scale, 1.0)
    support = _LOBES * stretch
    first, count = np.empty(SIDE, np.int64), np.empty(SIDE, np.int64)
    found = np.zeros((SIDE, math.ceil(support) * 2 + 1), np.int32)
    line = np.empty(found.shape[1], np.float64)
    for place in range(SIDE):
        centre = (place + 0.5) * scale
        begin = max(int(centre - support + 0.5), 0)
        end = min(int(centre + support + 0.5), length)
        total = 0.0
        for x in range(end - begin):
            line[x] = _lanczos((x + begin - centre + 0.5) * (1.0 / stretch))
            total += line[x]
        for x in range(end - begin):
            weight = line[x] / total * (1 << _BITS)
            found[place, x] = int(weight - 0.5) if weight < 0 else int(weight + 0.5)
        first[place], count[place] = begin, end - begin
    return first, count, found


@compiled
def _byte(total: int) -> int:
    return min(max(total >> _BITS, 0), 255)


@compiled
def _luma(rgb: _Bytes) -> _Bytes:
    height, width = rgb.shape[0], rgb.shape[1]
    lines = rgb.reshape(height, width * 3)
    grey = np.empty((height, width), np.uint8)
    for row in range(height):
        line, out = lines[row], grey[row]
        for x in range(width):
            red, green, blue = np.uint32(line[3 * x]), np.uint32(line[3 * x + 1]), np.uint32(line[3 * x + 2])
            out[x] = np.uint32(np.uint32(19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16)
    return grey


@compiled
def _along_rows(grey: _Bytes, first: _Int64s, count: _Int64s, found: _Int32s) -> _Bytes:
    small = np.empty((grey.shape[0], SIDE), np.uint8)
    for row in range(grey.shape[0]):
        for place in range(SIDE):
            weight, covered = found[place, : count[place]], grey[row, first[place] :]
            total = np.int32(1 << (_BITS - 1))
            for x in range(len(weight)):
                total = np.int32(total + np.int32(covered[x]) * weight[x])
            small[row, place] = _byte(total)
    return small


@compiled
def _down_columns(grey: _Bytes, first: _Int64s, count: _Int64s, found: _Int32s) -> _Bytes:
    width = grey.shape[1]
    small = np.empty((SIDE, width), np.uint8)
    total = np.empty(width, np.int32)
    for place in range(SIDE):
        total[:] = 1 << (_BITS - 1)
        for y in range(count[place]):
            weight, line = found[place, y], grey[first[place] + y]
            for x in range(width):
                total[x] += np.int32(line[x]) * weight
        for x in range(width):
            small[place, x] = _byte(total[x])
    return small
