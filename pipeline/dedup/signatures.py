"""Caption → shingles → MinHash signature → band keys.

Shingles are the character 5-grams of the padded normal form (as UTF-8): they work without word spaces, and a caption of one
short word has at least one, so that no two captions fall together for being short. Signatures are bit-identical to
`datasketch.MinHash(num_perm, seed, scheme="affine32")` over the same shingles, which stays the oracle. The number of bands and
their rows come from datasketch's own optimum, but are never fewer than two bands.

datasketch hashes a shingle with SHA-1 and keeps its first four bytes, so what a caption costs is sixty SHA-1s. They are computed 64 at a
time, one round of all of them after the other, which the compiler turns into vector instructions: 16 ns each, where hashlib takes 500.
A shingle that a caption repeats is hashed again; the least value does not mind.
"""

import functools
from typing import cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.content.forms import normal_forms
from pipeline.content.kernels import Bytes, Text, compiled, text_buffers
from pipeline.content.text import shingles

__all__ = [
    "band_keys",
    "bands_and_rows",
    "minhash",
    "minhash_forms",
    "mix64",
    "permutations",
    "shingle_sets",
    "shingles",
]

Words32 = npt.NDArray[np.uint32]

_BATCH = 4096  # captions whose shingles are hashed together
_CHARACTERS = 5  # of a shingle


def minhash(captions: pa.Array | pa.ChunkedArray, num_perm: int = 128, seed: int = 1) -> npt.NDArray[np.uint32]:
    """Signatures, uint32 of shape (n, num_perm), equal to datasketch's `affine32` over `shingles(caption)`.

    `shingles` is `pipeline.content.text.shingles`; null is taken as the empty caption.
    """
    signatures = np.empty((len(captions), num_perm), np.uint32)
    for start in range(0, len(captions), _BATCH):
        forms = normal_forms(captions.slice(start, _BATCH))
        signatures[start : start + len(forms)] = minhash_forms(forms, num_perm, seed)
    return signatures


def minhash_forms(forms: pa.Array | pa.ChunkedArray, num_perm: int, seed: int) -> npt.NDArray[np.uint32]:
    """`minhash` of captions that are in normal form already."""
    multipliers, addends = permutations(num_perm, seed)
    signatures = np.empty((len(forms), num_perm), np.uint32)
    for start in range(0, len(forms), _BATCH):
        text = text_buffers(forms.slice(start, _BATCH))
        hashes, starts = shingle_hashes(text)
        _least(hashes, starts, multipliers, addends, signatures[start : start + len(starts) - 1])
    return signatures


def shingle_hashes(forms: Text) -> tuple[Words32, npt.NDArray[np.int64]]:
    """The 32-bit hashes of the shingles of captions in normal form, as datasketch's affine schemes see them (SHA-1, then fmix32):
    those of caption i are `hashes[starts[i]:starts[i + 1]]`, in the order of the text, repeated ones repeated."""
    return cast(tuple[Words32, npt.NDArray[np.int64]], _shingle_hashes(forms.data, forms.starts))


def shingle_sets(forms: Text) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    """The shingle sets of captions in normal form, to be compared with each other: that of caption i is `sets[starts[i]:starts[i + 1]]`,
    ascending. A shingle is a 64-bit hash of its bytes: two different ones are taken for one in 2**64."""
    return cast(tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]], _shingle_sets(forms.data, forms.starts))


@functools.cache
def permutations(num_perm: int, seed: int) -> npt.NDArray[np.uint32]:
    """The odd multipliers and the addends of datasketch's `affine32`, uint32 of shape (2, num_perm)."""
    from datasketch import MinHash  # brings scipy along, which reading a configuration must not wait for

    return cast(Words32, MinHash(num_perm=num_perm, seed=seed, scheme="affine32").permutations)


@functools.cache
def bands_and_rows(threshold: float, num_perm: int) -> tuple[int, int]:
    """Bands and rows per band of datasketch's MinHashLSH, nine tenths of the weight on not missing a pair.

    Near threshold 1 (from 0.995 with 128 permutations) its optimum is one band, which it refuses: there it is two, of half the values each.
    A pair that is equal in all its shingles meets in both.
    """
    from datasketch import MinHashLSH  # as above

    try:
        lsh = MinHashLSH(threshold=threshold, num_perm=num_perm, weights=(0.1, 0.9))
    except ValueError:  # of what a DedupConfig allows, it refuses one band and nothing else
        return 2, num_perm // 2
    return int(lsh.b), int(lsh.r)


def band_keys(signatures: npt.NDArray[np.uint32], bands: int, rows: int) -> npt.NDArray[np.uint64]:
    """One key per band, uint64 of shape (n, bands): a mix of the band's number and its `rows` values.

    Two captions have equal keys where the band's values are equal, and else with a chance of 2**-64 per band: harmless, since
    every pair is verified.
    """
    keys = np.empty((len(signatures), bands), np.uint64)
    for band in range(bands):
        mixed = np.full(len(signatures), mix64(np.array([band + 1], np.uint64))[0], np.uint64)
        for place in range(band * rows, (band + 1) * rows):
            mixed = mix64(mixed ^ signatures[:, place].astype(np.uint64))
        keys[:, band] = mixed
    return keys


def mix64(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The output function of SplitMix64 (S. Vigna, public domain): a bijection on 64-bit words that mixes every bit."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


# ---- kernels

_LANES = 64
_U = np.uint32


@compiled
def _rotated(word: np.uint32, bits: int) -> np.uint32:
    return _U(_U(word << _U(bits)) | _U(word >> _U(32 - bits)))


@compiled
def _function(kind: int, b: np.uint32, c: np.uint32, d: np.uint32) -> np.uint32:
    """Ch (0), Parity (1) or Maj (2) of FIPS 180-4, 4.1.1."""
    if kind == 0:
        return _U(d ^ (b & (c ^ d)))
    if kind == 1:
        return _U(b ^ c ^ d)
    return _U((b & c) | (d & (b | c)))


@compiled
def _five_rounds(kind: int, constant: np.uint32, words: Words32, state: Words32, first: int) -> None:
    """Rounds first to first + 4 of SHA-1 (FIPS 180-4, 6.1.2), all lanes. After five rounds each variable is back in its own place."""
    for lane in range(_LANES):
        a, b, c, d, e = state[0, lane], state[1, lane], state[2, lane], state[3, lane], state[4, lane]
        e = _U(e + _rotated(a, 5) + _function(kind, b, c, d) + constant + words[first, lane])
        b = _rotated(b, 30)
        d = _U(d + _rotated(e, 5) + _function(kind, a, b, c) + constant + words[first + 1, lane])
        a = _rotated(a, 30)
        c = _U(c + _rotated(d, 5) + _function(kind, e, a, b) + constant + words[first + 2, lane])
        e = _rotated(e, 30)
        b = _U(b + _rotated(c, 5) + _function(kind, d, e, a) + constant + words[first + 3, lane])
        d = _rotated(d, 30)
        a = _U(a + _rotated(b, 5) + _function(kind, c, d, e) + constant + words[first + 4, lane])
        c = _rotated(c, 30)
        state[0, lane], state[1, lane], state[2, lane], state[3, lane], state[4, lane] = a, b, c, d, e


@compiled
def _hash_lanes(words: Words32, state: Words32, hashes: Words32) -> None:
    """`words[:16]` holds a padded block for each lane; `hashes` gets fmix32 of the first four bytes of its SHA-1, read little-endian."""
    for at in range(16, 80):
        for lane in range(_LANES):
            words[at, lane] = _rotated(
                _U(words[at - 3, lane] ^ words[at - 8, lane] ^ words[at - 14, lane] ^ words[at - 16, lane]), 1
            )
    for lane in range(_LANES):
        state[0, lane], state[1, lane], state[2, lane] = _U(0x67452301), _U(0xEFCDAB89), _U(0x98BADCFE)
        state[3, lane], state[4, lane] = _U(0x10325476), _U(0xC3D2E1F0)
    for first in range(0, 20, 5):
        _five_rounds(0, _U(0x5A827999), words, state, first)
    for first in range(20, 40, 5):
        _five_rounds(1, _U(0x6ED9EBA1), words, state, first)
    for first in range(40, 60, 5):
        _five_rounds(2, _U(0x8F1BBCDC), words, state, first)
    for first in range(60, 80, 5):
        _five_rounds(1, _U(0xCA62C1D6), words, state, first)
    for lane in range(_LANES):
        big = _U(state[0, lane] + _U(0x67452301))
        h = _U(
            _U(big >> _U(24)) | (_U(big >> _U(8)) & _U(0xFF00)) | (_U(big << _U(8)) & _U(0xFF0000)) | _U(big << _U(24))
        )
        # The finalizer of MurmurHash3 (A. Appleby, public domain), which datasketch's affine schemes apply before permuting.
        h = _U(h ^ (h >> _U(16)))
        h = _U(h * _U(0x85EBCA6B))
        h = _U(h ^ (h >> _U(13)))
        h = _U(h * _U(0xC2B2AE35))
        hashes[lane] = _U(h ^ (h >> _U(16)))


@compiled
def _cut(data: Bytes, start: int, end: int, padded: Bytes, places: npt.NDArray[np.int64]) -> int:
    """The number of shingles of a normal form: shingle i is `padded[places[i]:places[i + _CHARACTERS]]`.

    `padded` has room for the form and 7 bytes more, `places` for one number more than that.
    """
    size = end - start
    padded[0] = 32
    padded[1 : size + 1] = data[start:end]
    padded[size + 1 : size + 2 + _CHARACTERS] = 32
    characters, at = 0, 0
    while at < size + 2 or characters < _CHARACTERS:
        if padded[at] & 0xC0 != 0x80:
            places[characters] = at
            characters += 1
        at += 1
    places[characters] = at
    return characters - _CHARACTERS + 1


@compiled
def _shingle_sets(data: Bytes, starts: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    rows = len(starts) - 1
    sets = np.empty(starts[-1] - starts[0] + rows, np.uint64)
    set_starts = np.zeros(rows + 1, np.int64)
    longest = 0
    for row in range(rows):
        longest = max(longest, starts[row + 1] - starts[row])
    padded, places = np.empty(longest + 2 + _CHARACTERS, np.uint8), np.empty(longest + 3 + _CHARACTERS, np.int64)
    count = 0
    for row in range(rows):
        begun = count
        for first in range(_cut(data, starts[row], starts[row + 1], padded, places)):
            number = np.uint64(0)
            for place in range(places[first], places[first + _CHARACTERS]):
                number = number * np.uint64(0x9E3779B97F4A7C15) + np.uint64(padded[place]) + np.uint64(1)
            sets[count] = number ^ (number >> np.uint64(32))
            count += 1
        sets[begun:count] = np.sort(sets[begun:count])
        kept = begun
        for place in range(begun, count):
            if place == begun or sets[place] != sets[kept - 1]:
                sets[kept] = sets[place]
                kept += 1
        count = kept
        set_starts[row + 1] = count
    return sets[:count].copy(), set_starts


@compiled
def _fill_words(padded: Bytes, begin: int, length: int, words: Words32, lane: int) -> None:
    """A shingle of any length (5 to 20 bytes), padded as SHA-1 wants it, into the first six words of a lane."""
    for word in range(6):
        words[word, lane] = 0
    for place in range(length):
        words[place >> 2, lane] |= _U(padded[begin + place]) << _U(24 - 8 * (place & 3))
    words[length >> 2, lane] |= _U(0x80) << _U(24 - 8 * (length & 3))


@compiled
def _shingle_hashes(data: Bytes, starts: npt.NDArray[np.int64]) -> tuple[Words32, npt.NDArray[np.int64]]:
    rows = len(starts) - 1
    hashes = np.empty(
        starts[-1] - starts[0] + rows + _LANES, np.uint32
    )  # a shingle begins at each character, and one before
    hash_starts = np.zeros(rows + 1, np.int64)
    longest = 0
    for row in range(rows):
        longest = max(longest, starts[row + 1] - starts[row])
    padded, places = np.empty(longest + 2 + _CHARACTERS, np.uint8), np.empty(longest + 3 + _CHARACTERS, np.int64)
    words, state = np.zeros((80, _LANES), np.uint32), np.empty((5, _LANES), np.uint32)
    was_longer = np.zeros(_LANES, np.bool_)  # lanes whose words beyond the second are not zero
    count = 0
    for row in range(rows):
        for first in range(_cut(data, starts[row], starts[row + 1], padded, places)):
            lane = count % _LANES
            begin, length = places[first], places[first + _CHARACTERS] - places[first]
            head = padded[begin : begin + _CHARACTERS]
            words[0, lane] = _U(head[0]) << _U(24) | _U(head[1]) << _U(16) | _U(head[2]) << _U(8) | _U(head[3])
            words[1, lane] = _U(head[4]) << _U(24) | _U(0x800000)
            words[15, lane] = 8 * length
            if length > _CHARACTERS or was_longer[lane]:
                _fill_words(padded, begin, length, words, lane)
                was_longer[lane] = length > _CHARACTERS
            count += 1
            if lane == _LANES - 1:
                _hash_lanes(words, state, hashes[count - _LANES : count])
        hash_starts[row + 1] = count
    begun = count - count % _LANES
    _hash_lanes(words, state, hashes[begun : begun + _LANES])
    return hashes[:count], hash_starts


@compiled
def _least(
    hashes: Words32,
    starts: npt.NDArray[np.int64],
    multipliers: Words32,
    addends: Words32,
    result: Words32,
) -> None:
    """For each set `hashes[starts[i]:starts[i + 1]]` and permutation h → a h + b mod 2**32 the least value, into `result[i]`.

    Four hashes at a time, so that the permutations are read once for the four. A set is never empty; the last hash stands in for those
    that the last four lack.
    """
    for row in range(len(starts) - 1):
        last = starts[row + 1] - 1
        for place in range(len(multipliers)):
            result[row, place] = 0xFFFFFFFF
        for at in range(starts[row], last + 1, 4):
            h0, h1, h2, h3 = hashes[at], hashes[min(at + 1, last)], hashes[min(at + 2, last)], hashes[min(at + 3, last)]
            for place in range(len(multipliers)):
                a, b = multipliers[place], addends[place]
                low = min(_U(h0 * a + b), _U(h1 * a + b))
                high = min(_U(h2 * a + b), _U(h3 * a + b))
                result[row, place] = min(result[row, place], min(low, high))
