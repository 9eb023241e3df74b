"""Exact Hamming search over 256-bit codes: the evaluation side sits in memory, the corpus streams past it.

The evaluation codes are the small side (a million codes are 32 MB), so they are what is indexed, and every worker holds them
all. The search is exact brute force in blocks: XOR of four 64-bit words and a hardware popcount, compiled, no approximate
neighbour is ever lost. A whole distance is rarely needed: a pair whose first two words differ in more than the threshold is
dropped before the other two are looked at, which is what makes unrelated codes cheap (two random words differ in 64 of 128 bits).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

CODE_BYTES = 32


_P = ParamSpec("_P")
_R = TypeVar("_R")


class HammingIndex:
    """`HammingIndex(codes).search(queries, distance)`: all pairs within a distance, found exactly.

    `codes` is uint8[n, 32] (or uint8[n, 8] for 64-bit hashes); bits are compared in place, so that both sides must have
    been packed the same way.
    """

    def __init__(self, codes: NDArray[np.uint8]) -> None:
        self._width = codes.shape[1] if codes.ndim == 2 else 0
        if codes.dtype != np.uint8 or self._width not in (8, CODE_BYTES):
            raise ValueError(f"codes must be uint8[n, 32] or uint8[n, 8], not {codes.dtype}{list(codes.shape)}")
        self._words = as_words(codes)

    def __len__(self) -> int:
        return len(self._words)

    def search(
        self, queries: NDArray[np.uint8], distance: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
        """Pairs (query row, code row, distance) with at most `distance` differing bits, ordered by query row, then code row."""
        if queries.dtype != np.uint8 or queries.ndim != 2 or queries.shape[1] != self._width:
            raise ValueError(f"queries must be uint8[n, {self._width}], not {queries.dtype}{list(queries.shape)}")
        words = as_words(queries)
        counts = np.zeros(len(words), np.int64)
        _count(words, self._words, distance, counts)
        starts = np.zeros(len(words) + 1, np.int64)
        np.cumsum(counts, out=starts[1:])
        total = int(starts[-1])
        found_query = np.repeat(np.arange(len(words), dtype=np.int64), counts)
        found_code = np.empty(total, np.int64)
        found_distance = np.empty(total, np.int32)
        _fill(words, self._words, distance, counts, starts, found_code, found_distance)
        return found_query, found_code, found_distance


def as_words(codes: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """uint8[n, 8 * w] as uint64[n, w], without a copy where the rows are contiguous."""
    return np.ascontiguousarray(codes).view(np.uint64).reshape(len(codes), codes.shape[1] // 8)


def _compiled(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """numba.njit with the function's own type kept: numba ships no annotations."""
    return cast(Callable[_P, _R], numba.njit(cache=True, nogil=True)(function))


@_compiled
def _popcount(word: np.uint64) -> np.int64:
    # The usual parallel sum; LLVM recognises it and emits the processor's own instruction.
    word = word - ((word >> np.uint64(1)) & np.uint64(0x5555555555555555))
    word = (word & np.uint64(0x3333333333333333)) + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((word * np.uint64(0x0101010101010101)) >> np.uint64(56))


@_compiled
def _distance(left: NDArray[np.uint64], right: NDArray[np.uint64], limit: int) -> np.int64:
    """Differing bits of two codes, or any number above `limit` as soon as it is passed."""
    total = np.int64(0)
    for word in range(left.shape[0]):
        total += _popcount(left[word] ^ right[word])
        if total > limit:
            break
    return total


@_compiled
def _count(queries: NDArray[np.uint64], codes: NDArray[np.uint64], limit: int, counts: NDArray[np.int64]) -> None:
    for query in range(queries.shape[0]):
        for code in range(codes.shape[0]):
            if _distance(queries[query], codes[code], limit) <= limit:
                counts[query] += 1


@_compiled
def _fill(
    queries: NDArray[np.uint64],
    codes: NDArray[np.uint64],
    limit: int,
    counts: NDArray[np.int64],
    starts: NDArray[np.int64],
    found_code: NDArray[np.int64],
    found_distance: NDArray[np.int32],
) -> None:
    for query in range(queries.shape[0]):
        if counts[query] == 0:
            continue
        place = starts[query]
        for code in range(codes.shape[0]):
            bits = _distance(queries[query], codes[code], limit)
            if bits <= limit:
                found_code[place] = code
                found_distance[place] = bits
                place += 1
