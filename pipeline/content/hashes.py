"""Hashes by which the same bytes, or nearly the same picture, are found again; with the version that names each rule.

Three hashes go into every shard row: SHA-256 of bytes, a 64-bit perceptual hash (`phash64`, the DCT hash of the ImageHash
library) and Meta's PDQ, 256 bits with a quality. Both perceptual hashes are taken by one function, `picture_hashes`, from
the upright picture before any crop: measured on 400 photographs, PDQ at distance 31 finds 99 % of recompressed and halved
copies of a whole picture, but 6 % of them after the usual centre crop.

PDQ is written here from its published description (Dalins, Wilson, Boudry: "PDQ & TMK + PDQF", 2019): luma, two passes of
box filters in each direction, 64 x 64 samples, the 16 x 16 lowest frequencies without the constant one, one bit each for
above the median. Its sums run in float32 in the order of the reference, so the bits equal those of `pdqhash`, the
reference's Python package; the second pass is computed only where it is sampled. The kernels are compiled without
fast-math: same pixels, same bits, on every machine.
"""

import hashlib
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from pipeline.content.grey import grey_32
from pipeline.content.image import RGB, Picture
from pipeline.content.kernels import compiled

HASH_SHORT_SIDE = 512
"""Pictures are decoded for hashing to a short side of at least this, where the source has that many pixels."""

HASH_VERSION: dict[str, str] = {
    "sha256": "1",
    "phash64": "imagehash-phash-8x8 short-side-256-by-halves",
    "pdq256": "pdq-2019 short-side-256-by-halves",
}
"""Name of each hash to its version. Written into every manifest; hashes of different versions are never compared."""

_Float32s = npt.NDArray[np.float32]
_Float64s = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PictureHashes:
    """`phash64` 0..2^64-1, `pdq256` 32 bytes, `pdq_quality` 0..100 (below 50 a PDQ match means little)."""

    phash64: int
    pdq256: bytes
    pdq_quality: int


def sha256(data: bytes) -> bytes:
    """The 32 bytes of SHA-256."""
    return hashlib.sha256(data).digest()


def picture_hashes(picture: Picture) -> PictureHashes:
    """Both perceptual hashes of a decoded picture, by the one rule of the corpus.

    The picture must be whole and decoded at a short side of at least HASH_SHORT_SIDE, or at its full size when that is
    smaller: `decode(data, min_short_side=512)`. It is halved by box averages until its short side is below that, so every
    picture is hashed at a short side of 256 to 511 or, where it is smaller, at its own: four times cheaper than at 512 to
    1023, and both hashes look at 64 x 64 samples or fewer. A full decode costs little more and lands within a few bits.
    Raises ValueError for a picture decoded smaller than that.
    """
    height, width = picture.rgb.shape[:2]
    needed = min(HASH_SHORT_SIDE, picture.original_width, picture.original_height)
    if min(height, width) < needed:
        raise ValueError(f"hashes need a short side of {needed}, this picture was decoded to {width} x {height}")
    rgb = picture.rgb
    while min(rgb.shape[:2]) >= HASH_SHORT_SIDE:
        rgb = halve(rgb)
    bits, quality = pdq(rgb)
    return PictureHashes(phash64(rgb), bits, quality)


def halve(rgb: RGB) -> RGB:
    """uint8[h, w, 3] to half its sides, each pixel the mean of two by two, halves rounded up; what Pillow's `reduce(2)` gives.

    An odd last row or column is taken by itself.
    """
    pixels = np.ascontiguousarray(rgb).view()
    pixels.setflags(write=False)  # numba compiles anew for writeable arrays; a decoded picture is none
    return cast(RGB, _halve(pixels))


def phash64(rgb: RGB) -> int:
    """64-bit DCT hash of uint8[h, w, 3], bit for bit `imagehash.phash(image)` read as one number, first bit highest.

    Coefficients are rounded to 1e-6 first. A flat or mirrored picture has coefficients that are zero up to rounding
    noise, and there ImageHash's bits are those of the noise; ours are the same everywhere.
    """
    low = _dct_low8(grey_32(rgb).astype(np.float64)).ravel()
    low = np.round(low, 6) + 0.0
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")


def pdq(image: RGB) -> tuple[bytes, int]:
    """PDQ hash (32 bytes, as Meta prints them in hex) and quality 0..100 of uint8[h, w, 3].

    As the reference does, a picture under 5 pixels a side gives a zero hash of quality 0.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"pdq needs uint8[h, w, 3], got {image.dtype}{list(image.shape)}")
    height, width = image.shape[:2]
    if min(height, width) < 5:
        return bytes(32), 0
    pixels = np.ascontiguousarray(image).view()
    pixels.setflags(write=False)  # numba compiles anew for writeable arrays; a decoded picture is none
    samples = _jarosz_64(pixels)
    coefficients = _dct_16(samples, _PDQ_DCT).ravel()
    median = np.partition(coefficients, 127)[127]  # the lower median of 256, as the reference takes it
    bits = np.packbits((coefficients > median)[::-1])
    return bits.tobytes(), int(_gradient_quality(samples))


def hamming(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Number of differing bits between codes, with numpy's broadcasting.

    64-bit codes are uint64[...], longer ones uint8[..., bytes] (32 for PDQ: see `as_codes`); the last axis is summed away.
    `hamming(x[:, None], y[None, :])` is the whole table. Raises ValueError when the two kinds are mixed.
    """
    if a.dtype != b.dtype or a.dtype not in (np.uint64, np.uint8):
        raise ValueError(f"hamming needs two uint64 or two uint8 arrays, got {a.dtype} and {b.dtype}")
    if a.dtype == np.uint8 and a.shape[-1] == b.shape[-1] and a.shape[-1] % 8 == 0:
        a, b = np.ascontiguousarray(a).view(np.uint64), np.ascontiguousarray(b).view(np.uint64)
    else:
        a, b = (a, b) if a.dtype == np.uint8 else (a[..., None], b[..., None])
    return np.asarray(np.bitwise_count(a ^ b).sum(axis=-1, dtype=np.int64))


def as_codes(codes: list[bytes]) -> npt.NDArray[np.uint8]:
    """Codes of equal length as uint8[n, bytes], the form that `hamming` takes (one empty list gives uint8[0, 32])."""
    if not codes:
        return np.empty((0, 32), np.uint8)
    return np.frombuffer(b"".join(codes), np.uint8).reshape(len(codes), len(codes[0]))


# ---------------------------------------------------------------- kernels


def _dct_rows(first: int, rows: int, size: int) -> _Float64s:
    """Rows first .. first + rows of the DCT-II matrix without its scale: cos(pi * k * (2n + 1) / (2 * size))."""
    k = np.arange(first, first + rows)[:, None]
    n = np.arange(size)[None, :]
    return np.asarray(np.cos(np.pi / 2 / size * k * (2 * n + 1)), np.float64)


_PHASH_DCT = _dct_rows(0, 8, 32) * 2.0
_PDQ_DCT: _Float32s = (np.float32(np.sqrt(2.0 / 64.0)) * _dct_rows(1, 16, 64)).astype(np.float32)


def _dct_low8(pixels: _Float64s) -> _Float64s:
    """The 8 x 8 lowest DCT coefficients of float64[32, 32]."""
    # einsum without optimize is a plain loop: no BLAS, whose order of sums differs between machines.
    return np.asarray(np.einsum("ik,kl,jl->ij", _PHASH_DCT, pixels, _PHASH_DCT, optimize=False))


@compiled
def _halve(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    height, width = rgb.shape[0], rgb.shape[1]
    half = np.empty(((height + 1) // 2, (width + 1) // 2, 3), np.uint8)
    flat = rgb.reshape(height, width * 3)
    pair = np.empty(width * 3, np.uint16)
    for row in range(half.shape[0]):
        upper, lower = flat[2 * row], flat[min(2 * row + 1, height - 1)]
        for x in range(width * 3):
            pair[x] = np.uint16(upper[x]) + np.uint16(lower[x])
        for x in range(width // 2):
            for k in range(3):
                half[row, x, k] = (pair[6 * x + k] + pair[6 * x + 3 + k] + 2) >> 2
        if width % 2:
            for k in range(3):
                half[row, width // 2, k] = (pair[3 * (width - 1) + k] + 1) >> 1
    return half


@compiled
def _luma(rgb: npt.NDArray[np.uint8], target: _Float32s) -> None:
    """Luma of uint8[n, w, 3] into float32[>= n, >= w].

    The reference adds the three products in float64 and rounds to float32. Here the sum is a whole number below 2^24, so exact, and the
    division rounds once: the same number, because no thousandth is as near to the middle between two float32 as float64's errors reach.
    """
    lines = rgb.reshape(rgb.shape[0], rgb.shape[1] * 3)
    for i in range(rgb.shape[0]):
        line, out = lines[i], target[i]
        for j in range(rgb.shape[1]):
            thousandths = (
                np.float32(line[3 * j]) * np.float32(299)
                + np.float32(line[3 * j + 1]) * np.float32(587)
                + np.float32(line[3 * j + 2]) * np.float32(114)
            )
            out[j] = thousandths / np.float32(1000)


@compiled
def _turn(source: _Float32s, target: _Float32s) -> None:
    """`target` becomes `source` turned over its diagonal; all sides are multiples of 16. By tiles: their lines stay in the cache."""
    for top in range(0, source.shape[0], 16):
        for left in range(0, source.shape[1], 16):
            tile, turned = source[top : top + 16, left : left + 16], target[left : left + 16, top : top + 16]
            for j in range(16):
                for i in range(16):
                    turned[j, i] = tile[i, j]


@compiled
def _box_down(source: _Float32s, target: _Float32s, window: int, picked: npt.NDArray[np.int64]) -> None:
    """Box filter down the columns of float32[n, m]: running sums, shorter at both ends; only the `picked` rows (rising) are written.

    Whole lines are added to a line of sums, which becomes vector instructions without changing the order of any sum.
    """
    n, m = source.shape
    ahead = (window + 2) // 2 - 1  # rows read before the first is written
    total = np.zeros(m, np.float32)
    count = np.float32(0)
    for i in range(ahead):
        for j in range(m):
            total[j] += source[i, j]
        count += np.float32(1)
    written = 0
    for i in range(n):
        enters, leaves = i + ahead, i + ahead - window
        if enters < n and leaves >= 0:
            new, old = source[enters], source[leaves]
            for j in range(m):
                total[j] = total[j] + new[j] - old[j]
        elif enters < n:
            new = source[enters]
            for j in range(m):
                total[j] += new[j]
            count += np.float32(1)
        elif leaves >= 0:
            old = source[leaves]
            for j in range(m):
                total[j] -= old[j]
            count -= np.float32(1)
        while written < len(picked) and picked[written] == i:
            out = target[written]
            for j in range(m):
                out[j] = total[j] / count
            written += 1


@compiled
def _sampled(length: int) -> npt.NDArray[np.int64]:
    """The 64 places of a line that are sampled."""
    places = np.empty(64, np.int64)
    for i in range(64):
        places[i] = int((i + 0.5) * length / 64)
    return places


@compiled
def _jarosz_64(rgb: npt.NDArray[np.uint8]) -> _Float32s:
    """Luma of uint8[h, w, 3], tent-filtered and sampled to float32[64, 64].

    Box filters along rows, down columns, along rows, down columns, as the reference has them. Along rows 64 rows are turned at a time: they
    stay in the cache, and are filtered down. What is not sampled is not written by the last two.
    """
    height, width = rgb.shape[0], rgb.shape[1]
    samples = np.empty((64, 64), np.float32)
    if height == 64 and width == 64:
        _luma(rgb, samples)
        return samples
    along_row, along_column = (width + 127) // 128, (height + 127) // 128
    # Whole tiles; an odd number of them across, so that the lines of one do not compete for a place in the cache.
    rows, columns = -(-height // 64) * 64, (-(-width // 32) * 2 + 1) * 16
    above = along_column - along_column // 2
    memory = np.empty((above + rows, columns), np.float32)
    plane = memory[above:]
    plane[height:] = 0.0
    turned, turned_filtered = np.empty((columns, 64), np.float32), np.zeros((columns, 64), np.float32)
    for top in range(0, height, 64):
        strip = plane[top : top + 64]
        _luma(rgb[top : top + 64], strip)
        _turn(strip, turned)
        _box_down(turned[:width], turned_filtered, along_row, np.arange(width))
        _turn(turned_filtered, strip)

    # Each row is written over the one that has just left the sums, `above` rows before it: one plane is enough.
    _box_down(plane[:height], memory, along_column, np.arange(height))

    across, narrow = np.empty((64, 64), np.float32), np.empty((rows, 64), np.float32)
    for top in range(0, height, 64):
        _turn(memory[top : top + 64], turned)
        _box_down(turned[:width], across, along_row, _sampled(width))
        _turn(across, narrow[top : top + 64])
    _box_down(narrow[:height], samples, along_column, _sampled(height))
    return samples


@compiled
def _dct_16(samples: _Float32s, matrix: _Float32s) -> _Float32s:
    """matrix @ samples @ matrix.T in float32, summed in index order."""
    half = np.zeros((16, 64), np.float32)
    for i in range(16):
        for k in range(64):
            for j in range(64):
                half[i, j] += matrix[i, k] * samples[k, j]
    turned = np.ascontiguousarray(matrix.T)
    out = np.zeros((16, 16), np.float32)
    for i in range(16):
        for k in range(64):
            for j in range(16):
                out[i, j] += half[i, k] * turned[k, j]
    return out


@compiled
def _gradient_quality(samples: _Float32s) -> int:
    """Sum of the steps between neighbours of float32[64, 64], in whole percents of 255, over 90; at most 100."""
    total = 0
    for i in range(63):
        for j in range(64):
            total += abs(int((samples[i, j] - samples[i + 1, j]) * np.float32(100) / np.float32(255)))
            total += abs(int((samples[j, i] - samples[j, i + 1]) * np.float32(100) / np.float32(255)))
    return min(100, total // 90)
