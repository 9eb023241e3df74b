"""Exact Hamming search: the evaluation side sits in memory, the corpus streams past it.

The evaluation codes are the small side (a million of 256 bits are 32 MB, their tables 68 MB), so they are what is indexed, and every worker
holds them all. No neighbour is ever lost: the search is multi-index hashing (Norouzi, Punjani and Fleet 2014), whose candidates are all
verified.

A code is cut into m slots of 16 bits, and each slot has a table from its 65,536 values to the codes that have it there. Two codes that
differ in at most d bits, d = m r + a, differ in at most r bits in one of the first a + 1 slots, or in at most r - 1 in one of the rest:
were it otherwise, they would differ in (a + 1)(r + 1) + (m - a - 1) r = d + 1 bits. So a query looks up, in each slot, all values within
that slot's radius (1, 17 or 137 of them), and compares whole codes with what it finds. At d = 31 of 256 bits that is 272 values and 0.4 %
of random codes. A slot is every m-th bit of the code, for neighbouring bits of a perceptual hash depend on each other and would fill its
values unevenly. Where more values would have to be looked up than there are codes, or the radius would be 3, every code is compared.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pipeline.content.kernels import compiled

CODE_BYTES = 32
_SLOT_BITS = 16
_VALUES = 1 << _SLOT_BITS
_FLIPS = np.array(
    sorted(
        {(1 << one) | (1 << other) for one in range(_SLOT_BITS) for other in range(_SLOT_BITS)} | {0},
        key=lambda flip: (flip.bit_count(), flip),
    ),
    np.int64,
)
"""What a value is XORed with to reach all within 2 bits: itself, 16 at one, 120 at two."""
_WITHIN = (1, 17, 137)
"""How many of these are within 0, 1 and 2 bits."""
_ROOM = 1 << 16

Found = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]


class HammingIndex:
    """`HammingIndex(codes).search(queries, distance)`: all pairs within a distance, found exactly.

    `codes` is uint8[n, 32] (or uint8[n, 8] for 64-bit hashes), n below 2**31; bits are compared in place, so that both sides must have
    been packed the same way. The tables are built at the first search that uses them.
    """

    def __init__(self, codes: NDArray[np.uint8]) -> None:
        self._width = codes.shape[1] if codes.ndim == 2 else 0
        if codes.dtype != np.uint8 or self._width not in (8, CODE_BYTES):
            raise ValueError(f"codes must be uint8[n, 32] or uint8[n, 8], not {codes.dtype}{list(codes.shape)}")
        self._words = as_words(codes)

    def __len__(self) -> int:
        return len(self._words)

    def search(self, queries: NDArray[np.uint8], distance: int) -> Found:
        """Pairs (query row, code row, distance) with at most `distance` differing bits, ordered by query row, then code row."""
        if queries.dtype != np.uint8 or queries.ndim != 2 or queries.shape[1] != self._width:
            raise ValueError(f"queries must be uint8[n, {self._width}], not {queries.dtype}{list(queries.shape)}")
        words = as_words(queries)
        probes = _probes(self._width * 8 // _SLOT_BITS, distance)
        if probes is None or int(probes.sum()) >= len(self):
            return _collect(functools.partial(_scan, words, self._words, distance), len(words))
        look_up = functools.partial(
            _look_up, words, _slots(words), self._words, *self._tables, probes, _FLIPS, distance
        )
        return _collect(look_up, len(words))

    @functools.cached_property
    def _tables(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """`starts` and `members`: codes with a value in a slot are at starts[slot, value] .. starts[slot, value + 1] of members[slot]."""
        slots = _slots(self._words)
        starts = np.zeros((slots.shape[1], _VALUES + 1), np.int32)
        members = np.empty((slots.shape[1], len(slots)), np.int32)
        for slot in range(slots.shape[1]):
            np.cumsum(np.bincount(slots[:, slot], minlength=_VALUES), out=starts[slot, 1:])
            members[slot] = np.argsort(slots[:, slot], kind="stable")
        return starts, members


def _collect(step: Callable[..., tuple[int, int]], queries: int) -> Found:
    """`step(first, *out)` fills `out` from query `first` on and says where it stopped and how many pairs are in it; until all are done."""
    found = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int32))]
    first, room = 0, _ROOM
    while first < queries:
        query, code, bits = np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room, np.int32)
        until, count = step(first, query, code, bits)
        found.append((query[:count].copy(), code[:count].copy(), bits[:count].copy()))
        if until == first:  # this query alone has more neighbours than there is room
            room *= 2
        first = until
    query, code, bits = (np.concatenate([piece[side] for piece in found]) for side in range(3))
    return query, code, bits


def as_words(codes: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """uint8[n, 8 * w] as uint64[n, w], without a copy where the rows are contiguous."""
    return np.ascontiguousarray(codes).view(np.uint64).reshape(len(codes), codes.shape[1] // 8)


def _probes(slots: int, distance: int) -> NDArray[np.int64] | None:
    """How many values to look up in each slot; None where a radius would be more than 2."""
    radius, rest = divmod(distance, slots)
    if distance < 0 or radius >= len(_WITHIN):
        return None
    return np.array(
        [_WITHIN[radius] if slot <= rest else (_WITHIN[radius - 1] if radius else 0) for slot in range(slots)], np.int64
    )


def _slots(words: NDArray[np.uint64]) -> NDArray[np.uint16]:
    """The slots of codes, uint16[n, m]: slot s has bits s, s + m, s + 2 m … of the code."""
    bits = np.unpackbits(words.view(np.uint8).reshape(len(words), -1), axis=1)
    slots = bits.shape[1] // _SLOT_BITS
    packed = np.packbits(bits.reshape(len(words), _SLOT_BITS, slots).transpose(0, 2, 1), axis=2)
    return np.ascontiguousarray(packed).view(np.uint16).reshape(len(words), slots)


@compiled
def popcount(word: np.uint64) -> np.int64:
    """Bits that are set."""
    # The usual parallel sum; LLVM recognises it and emits the processor's own instruction.
    word = word - ((word >> np.uint64(1)) & np.uint64(0x5555555555555555))
    word = (word & np.uint64(0x3333333333333333)) + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((word * np.uint64(0x0101010101010101)) >> np.uint64(56))


@compiled
def _distance(query: NDArray[np.uint64], codes: NDArray[np.uint64], code: int, limit: int) -> np.int64:
    """Differing bits of two codes, or any number above `limit`.

    A long one is looked at in halves: half of two unrelated codes passes the limit nearly always, so that the branch is foreseen.
    """
    total: np.int64 = popcount(query[0] ^ codes[code, 0])
    if query.shape[0] > 1:
        total += popcount(query[1] ^ codes[code, 1])
        if total <= limit:
            total += popcount(query[2] ^ codes[code, 2]) + popcount(query[3] ^ codes[code, 3])
    return total


@compiled
def _scan(
    queries: NDArray[np.uint64],
    codes: NDArray[np.uint64],
    limit: int,
    first: int,
    found_query: NDArray[np.int64],
    found_code: NDArray[np.int64],
    found_distance: NDArray[np.int32],
) -> tuple[int, int]:
    """Compare all codes with queries from `first` on, as many as there is room for: where it stopped, and how many pairs there are."""
    count = 0
    for query in range(first, queries.shape[0]):
        begun = count
        words = queries[query]
        for code in range(codes.shape[0]):
            bits = _distance(words, codes, code, limit)
            if bits <= limit:
                if count == found_code.shape[0]:
                    return query, begun
                found_query[count] = query
                found_code[count] = code
                found_distance[count] = bits
                count += 1
    return queries.shape[0], count


@compiled
def _look_up(
    queries: NDArray[np.uint64],
    slots: NDArray[np.uint16],
    codes: NDArray[np.uint64],
    starts: NDArray[np.int32],
    members: NDArray[np.int32],
    probes: NDArray[np.int64],
    flips: NDArray[np.int64],
    limit: int,
    first: int,
    found_query: NDArray[np.int64],
    found_code: NDArray[np.int64],
    found_distance: NDArray[np.int32],
) -> tuple[int, int]:
    """As `_scan`, by the tables.

    In three passes over what a query asks for: the places of all values, their members, the members' codes. Each pass is loads that do not
    wait for each other, and what decides a branch is at hand by then; in one nested loop each would wait for memory. A neighbour is found
    in several slots, but a stranger hardly ever: repeats are dropped at the end.
    """
    count = 0
    asked = probes.sum()
    begin, end = np.empty(asked, np.int32), np.empty(asked, np.int32)
    candidates = np.empty(4096, np.int32)
    for query in range(first, queries.shape[0]):
        begun = count
        words = queries[query]
        looked = total = 0
        for slot in range(probes.shape[0]):
            value = np.int64(slots[query, slot])
            for probe in range(probes[slot]):
                reached = value ^ flips[probe]
                begin[looked] = starts[slot, reached]
                end[looked] = starts[slot, reached + 1]
                total += end[looked] - begin[looked]
                looked += 1
        if total > candidates.shape[0]:
            candidates = np.empty(2 * total, np.int32)
        looked = total = 0
        for slot in range(probes.shape[0]):
            for _ in range(probes[slot]):
                for place in range(begin[looked], end[looked]):
                    candidates[total] = members[slot, place]
                    total += 1
                looked += 1
        for place in range(total):
            bits = _distance(words, codes, candidates[place], limit)
            if bits <= limit:
                if count == found_code.shape[0]:
                    return query, begun
                found_code[count] = candidates[place]
                found_distance[count] = bits
                count += 1
        if count > begun:
            order = begun + np.argsort(found_code[begun:count])
            by_code, distances = found_code[order], found_distance[order]
            count = begun
            for place in range(by_code.shape[0]):
                if place == 0 or by_code[place] != by_code[place - 1]:
                    found_query[count] = query
                    found_code[count] = by_code[place]
                    found_distance[count] = distances[place]
                    count += 1
    return queries.shape[0], count
