"""Caption → shingles → MinHash signature → band keys.

Shingles are the character 5-grams of the padded normal form (as UTF-8): they work without word spaces, and a caption of one
short word has at least one, so that no two captions fall together for being short. Signatures are bit-identical to
`datasketch.MinHash(num_perm, seed, scheme="affine32")` over the same shingles, which stays the oracle, but are computed for a
batch at once: every distinct shingle is hashed once, and the permutations are one compiled loop. The number of bands and
their rows come from datasketch's own optimum.
"""

import functools
import hashlib
from typing import cast

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.content.text import shingles

__all__ = ["band_keys", "bands_and_rows", "minhash", "minhash_texts", "mix64", "permutations", "shingles"]

_BATCH = 16_384  # captions whose shingles are held at once


def minhash(captions: pa.Array | pa.ChunkedArray, num_perm: int = 128, seed: int = 1) -> npt.NDArray[np.uint32]:
    """Signatures, uint32 of shape (n, num_perm), equal to datasketch's `affine32` over `shingles(caption)`.

    `shingles` is `pipeline.content.text.shingles`; null is taken as the empty caption.
    """
    return minhash_texts(["" if caption is None else caption for caption in captions.to_pylist()], num_perm, seed)


def minhash_texts(texts: list[str], num_perm: int, seed: int) -> npt.NDArray[np.uint32]:
    """`minhash` of captions or of their normal forms (which have the same shingles)."""
    signatures = np.empty((len(texts), num_perm), np.uint32)
    for start in range(0, len(texts), _BATCH):
        sets = [shingles(text) for text in texts[start : start + _BATCH]]
        signatures[start : start + len(sets)] = _minhash_sets(sets, num_perm, seed)
    return signatures


def _minhash_sets(sets: list[list[bytes]], num_perm: int, seed: int) -> npt.NDArray[np.uint32]:
    result = np.empty((len(sets), num_perm), np.uint32)
    sizes = np.array([len(grams) for grams in sets], np.int64)  # never 0: `shingles` is never empty
    code: dict[bytes, int] = {}
    codes = np.array([code.setdefault(gram, len(code)) for grams in sets for gram in grams], np.int64)
    digests = b"".join(hashlib.sha1(gram, usedforsecurity=False).digest()[:4] for gram in code)
    hashes = _fmix32(np.frombuffer(digests, "<u4"))
    starts = np.concatenate([[0], np.cumsum(sizes)])
    multipliers, addends = permutations(num_perm, seed)
    _least(hashes[codes], starts, multipliers, addends, result)
    return result


@numba.njit(cache=True)
def _least(
    hashes: npt.NDArray[np.uint32],
    starts: npt.NDArray[np.int64],
    multipliers: npt.NDArray[np.uint32],
    addends: npt.NDArray[np.uint32],
    result: npt.NDArray[np.uint32],
) -> None:
    """For each set `hashes[starts[i]:starts[i + 1]]` and permutation h -> a h + b mod 2**32 the least value, into `result[i]`."""
    for row in range(len(starts) - 1):
        least = np.full(len(addends), np.uint32(0xFFFFFFFF))
        for at in range(starts[row], starts[row + 1]):
            for place in range(len(addends)):
                value = np.uint32(hashes[at] * multipliers[place] + addends[place])
                least[place] = min(least[place], value)
        result[row] = least


@functools.cache
def permutations(num_perm: int, seed: int) -> npt.NDArray[np.uint32]:
    """The odd multipliers and the addends of datasketch's `affine32`, uint32 of shape (2, num_perm)."""
    from datasketch import MinHash  # brings scipy along, which reading a configuration must not wait for

    return cast(npt.NDArray[np.uint32], MinHash(num_perm=num_perm, seed=seed, scheme="affine32").permutations)


def _fmix32(values: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """The finalizer of MurmurHash3 (A. Appleby, public domain), which datasketch's affine schemes apply before permuting."""
    values = values ^ (values >> np.uint32(16))
    values = values * np.uint32(0x85EBCA6B)
    values = values ^ (values >> np.uint32(13))
    values = values * np.uint32(0xC2B2AE35)
    return values ^ (values >> np.uint32(16))


@functools.cache
def bands_and_rows(threshold: float, num_perm: int) -> tuple[int, int]:
    """Bands and rows per band of datasketch's MinHashLSH, nine tenths of the weight on not missing a pair."""
    from datasketch import MinHashLSH  # as above

    lsh = MinHashLSH(threshold=threshold, num_perm=num_perm, weights=(0.1, 0.9))
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
