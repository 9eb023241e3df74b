"""Bicubic resizing as Pillow does it, bit for bit, of one window of the result, straight into planes.

`window` gives what `Image.resize((width, height), BICUBIC, box=box)` followed by `Image.crop` gives in Pillow 13, but without the pixels
outside the window, without copies between Pillow and numpy, and as [3, rows, columns]: in a quarter of the time. Pillow's arithmetic is
kept: weights in doubles, rounded to 22 binary places, two passes, each rounded to a byte, halves up. So is its order: across, then down,
but down first where the height shrinks by more than twice as much as the width (older versions always go across first).

Across, a weight belongs to a column, and the bytes of a column are what a picture has least together. So bands of rows are turned on their
side, go across, and are turned back; then every inner loop runs over neighbouring bytes with one weight, which the compiler makes into
vector instructions. Bands are small enough for a second-level cache, and bound what is held beside the picture.
"""

import math

import numpy as np
import numpy.typing as npt

from pipeline.content.kernels import compiled

UInt8s = npt.NDArray[np.uint8]
_Int32s = npt.NDArray[np.int32]
_Int64s = npt.NDArray[np.int64]
_Words = npt.NDArray[np.uint64]

_BAND = 256
"""At most so many rows go across at a time; a multiple of 8."""
_BITS = np.int32(22)
_HALF = np.int32(1 << 21)
_AT_ONCE = 6
"""Lines that `_mix` adds up without a way to memory and back; more are only needed where a side shrinks to less than two thirds."""
_REACH = 2.0
"""How far the bicubic filter reaches to each side of its middle, in pixels of the smaller of the two pictures."""


def window(
    rgb: UInt8s, box: tuple[int, int, int, int], size: tuple[int, int], corner: tuple[int, int], into: UInt8s
) -> None:
    """Resize the part `box` (left, top, right, bottom) of a picture, uint8 [h, w, 3], to `size` (width, height), and write the window of it
    whose left top corner is `corner` (left, top) to `into`, uint8 [3, rows, columns], which says how large the window is.

    As in Pillow, pixels just outside the box are looked at where the filter reaches over its edge.
    """
    left, top, right, bottom = box
    width, height = size
    if not (0 <= left < right <= rgb.shape[1] and 0 <= top < bottom <= rgb.shape[0]):
        raise ValueError(f"the box {box} does not lie in a picture of {rgb.shape[1]} x {rgb.shape[0]}")
    rows, columns = into.shape[1:]
    if not (0 <= corner[0] <= width - columns and 0 <= corner[1] <= height - rows):
        raise ValueError(f"a window of {columns} x {rows} at {corner} does not lie in a picture of {width} x {height}")
    pixels = np.ascontiguousarray(rgb).view()
    pixels.setflags(write=False)  # numba compiles anew for writeable arrays; a decoded picture is none
    _window(pixels.reshape(rgb.shape[0], -1), left, top, right, bottom, width, height, *corner, into)


@compiled
def _weights(
    source: int, begin: int, end: int, target: int, first: int, count: int
) -> tuple[_Int64s, _Int64s, _Int32s]:
    """The pixels of a line of `source` that each of `count` pixels is made of, when its part from `begin` to `end` becomes `target` pixels
    and the first one wanted is `first`: the first pixel of each, how many there are, and their weights times 2**22.

    The filter is Keys' (1981) with a = -1/2; shrinking stretches it. Pillow: Resample.c, precompute_coeffs and normalize_coeffs_8bpc.
    """
    scale = (end - begin) / target
    stretch = max(scale, 1.0)
    reach = _REACH * stretch
    starts, lengths = np.empty(count, np.int64), np.empty(count, np.int64)
    weights = np.zeros((count, max(math.ceil(reach) * 2 + 1, _AT_ONCE)), np.int32)
    exact = np.empty(weights.shape[1])
    for place in range(count):
        middle = begin + (first + place + 0.5) * scale
        start, stop = max(int(middle - reach + 0.5), 0), min(int(middle + reach + 0.5), source)
        total = 0.0
        for x in range(start, stop):
            away = abs((x - middle + 0.5) * (1.0 / stretch))
            if away < 1.0:
                weight = ((-0.5 + 2.0) * away - (-0.5 + 3.0)) * away * away + 1.0
            elif away < 2.0:
                weight = (((away - 5.0) * away + 8.0) * away - 4.0) * -0.5
            else:
                weight = 0.0
            exact[x - start] = weight
            total += weight
        for x in range(stop - start):
            weight = exact[x] / total * (1 << 22)
            weights[place, x] = int(weight - 0.5) if weight < 0 else int(weight + 0.5)
        starts[place], lengths[place] = start, stop - start
    return starts, lengths, weights[:, : max(lengths.max(), _AT_ONCE)]


@compiled
def _mix(source: UInt8s, step: int, skip: int, starts: _Int64s, weights: _Int32s, width: int, target: UInt8s) -> None:
    """The first `width` bytes of each line of `target` become a weighted sum of lines of `source`, rounded: line i of as many as there are
    weights, every `step`-th from `step` * `starts`[i] - `skip` on. What lies beyond the last line of `source` has a weight of 0.

    All sums are of 32 bits, which hold 255 times any sum of weights; numba would widen to 64 by itself.
    """
    last = source.shape[0] - 1
    sums = np.empty(width, np.int32)
    for i in range(len(starts)):
        line, mixed = step * starts[i] - skip, target[i]
        if weights.shape[1] == _AT_ONCE:
            a, b, c, d, e, f = weights[i, 0], weights[i, 1], weights[i, 2], weights[i, 3], weights[i, 4], weights[i, 5]
            p, q, r = source[line], source[min(line + step, last)], source[min(line + 2 * step, last)]
            s, t = source[min(line + 3 * step, last)], source[min(line + 4 * step, last)]
            u = source[min(line + 5 * step, last)]
            for x in range(width):
                first = np.int32(np.int32(_HALF + np.int32(a * p[x])) + np.int32(b * q[x]))
                second = np.int32(np.int32(c * r[x]) + np.int32(d * s[x]))
                third = np.int32(np.int32(e * t[x]) + np.int32(f * u[x]))
                total = np.int32(np.int32(first + second) + third)
                mixed[x] = np.uint8(min(max(np.int32(total >> _BITS), np.int32(0)), np.int32(255)))
            continue
        for x in range(width):
            sums[x] = _HALF
        for k in range(weights.shape[1]):
            weight, values = weights[i, k], source[min(line + step * k, last)]
            for x in range(width):
                sums[x] = np.int32(sums[x] + np.int32(weight * values[x]))
        for x in range(width):
            mixed[x] = np.uint8(min(max(np.int32(sums[x] >> _BITS), np.int32(0)), np.int32(255)))


@compiled
def _turn(source: _Words, target: _Words) -> None:
    """Transpose a matrix of bytes; both sides are given as words of eight bytes of a row. Blocks of 8 x 8 are turned in eight words, by
    exchanging bytes, pairs and fours of neighbouring rows (Warren, "Hacker's Delight", section 7-3, with bytes for bits).
    """
    one, two, four = np.uint64(8), np.uint64(16), np.uint64(32)
    bytes_, pairs, fours = np.uint64(0x00FF00FF00FF00FF), np.uint64(0x0000FFFF0000FFFF), np.uint64(0x00000000FFFFFFFF)
    for j in range(source.shape[1]):
        turned = target[8 * j : 8 * j + 8]
        for i in range(source.shape[0] // 8):
            rows = source[8 * i : 8 * i + 8]
            a, b, c, d = rows[0, j], rows[1, j], rows[2, j], rows[3, j]
            e, f, g, h = rows[4, j], rows[5, j], rows[6, j], rows[7, j]
            t = ((a >> one) ^ b) & bytes_
            a, b = a ^ (t << one), b ^ t
            t = ((c >> one) ^ d) & bytes_
            c, d = c ^ (t << one), d ^ t
            t = ((e >> one) ^ f) & bytes_
            e, f = e ^ (t << one), f ^ t
            t = ((g >> one) ^ h) & bytes_
            g, h = g ^ (t << one), h ^ t
            t = ((a >> two) ^ c) & pairs
            a, c = a ^ (t << two), c ^ t
            t = ((b >> two) ^ d) & pairs
            b, d = b ^ (t << two), d ^ t
            t = ((e >> two) ^ g) & pairs
            e, g = e ^ (t << two), g ^ t
            t = ((f >> two) ^ h) & pairs
            f, h = f ^ (t << two), h ^ t
            t = ((a >> four) ^ e) & fours
            a, e = a ^ (t << four), e ^ t
            t = ((b >> four) ^ f) & fours
            b, f = b ^ (t << four), f ^ t
            t = ((c >> four) ^ g) & fours
            c, g = c ^ (t << four), g ^ t
            t = ((d >> four) ^ h) & fours
            d, h = d ^ (t << four), h ^ t
            turned[0, i], turned[1, i], turned[2, i], turned[3, i] = a, b, c, d
            turned[4, i], turned[5, i], turned[6, i], turned[7, i] = e, f, g, h


@compiled
def _window(
    pixels: UInt8s,
    left: int,
    top: int,
    right: int,
    bottom: int,
    width: int,
    height: int,
    first_column: int,
    first_row: int,
    into: UInt8s,
) -> None:
    rows, columns = into.shape[1], into.shape[2]
    from_x, count_x, weights_x = _weights(pixels.shape[1] // 3, left, right, width, first_column, columns)
    from_y, count_y, weights_y = _weights(pixels.shape[0], top, bottom, height, first_row, rows)
    x0, x1 = from_x[0], from_x[-1] + count_x[-1]
    y0, y1 = from_y[0], from_y[-1] + count_y[-1]

    down_first = pixels.shape[0] - height > max(0, 2 * (pixels.shape[1] // 3 - width))
    if down_first:
        x0, x1, lines = 0, pixels.shape[1] // 3, rows
    else:
        lines = y1 - y0
    # Whole words of eight bytes are turned, so sides are rounded up to a multiple of eight.
    used = 3 * (x1 - x0)
    padded, padded_columns = (used + 7) // 8 * 8, (columns + 7) // 8 * 8
    bands = (lines + _BAND - 1) // _BAND
    depth = (lines + 8 * bands - 1) // (8 * bands) * 8
    band = np.empty((depth, padded), np.uint8)
    on_its_side = np.empty((padded, depth), np.uint8)
    across = np.empty((padded_columns, depth), np.uint8)
    narrow = np.empty((3, bands * depth, padded_columns), np.uint8)
    for first in range(0, lines, depth):
        here = min(depth, lines - first)
        if down_first:
            part = slice(first, first + here)
            _mix(pixels, 1, 0, from_y[part], weights_y[part], used, band)
        else:
            for row in range(here):
                line, kept = pixels[y0 + first + row, 3 * x0 : 3 * x1], band[row]
                for x in range(used):
                    kept[x] = line[x]
        _turn(band.view(np.uint64), on_its_side.view(np.uint64))
        for channel in range(3):
            _mix(on_its_side, 3, 3 * x0 - channel, from_x, weights_x, depth, across)
            _turn(across.view(np.uint64), narrow[channel, first : first + depth].view(np.uint64))
    for channel in range(3):
        if down_first:
            into[channel] = narrow[channel, :rows, :columns]
        else:
            _mix(narrow[channel], 1, y0, from_y, weights_y, columns, into[channel])
