"""Exact Hamming search: the evaluation side sits in memory, the corpus streams past it.

The evaluation codes are the small side (a million of 256 bits are 32 MB, their tables 132 MB), so they are what is indexed, and every
worker holds them all. No neighbour is ever lost: the search is multi-index hashing (Norouzi, Punjani and Fleet 2014), narrowed as in
"Pigeonring" (Qin and Xiao 2018), and what both leave is compared in full.

A code is cut into m slots of 16 bits, and each slot has a table from its 65,536 values to the codes that have it there. With d = m r + a,
let t be r in the first a + 1 slots and r - 1 in the rest: the sum of all t + 1 is d + 1. Two codes that differ in at most d bits, in x of
each slot, have x <= t in one slot at least: were it otherwise, the x would sum to d + 1. So a query looks up, in each slot, all values
within t of its own (1, 17 or 137 of them; none where t is -1). At d = 31 of 256 bits that is 272 values and 0.4 % of random codes.

More than that holds. Lay the slots in a ring and walk round it adding up x - (t + 1), which is below zero in total: a walk that starts
behind the last peak of these sums stays below zero all the way. So one of the slots with x <= t is such that it and the next two together
differ in at most the sum of their t + 1, less 1: at d = 31 in 5 bits of 48. The bits of those next two slots lie in the table as well, one
word a code in the order in which it is read. Of a million random codes with a value that is looked up ten pass. Only for these is the code
itself fetched from wherever it lies in memory, which is what a search would otherwise wait for.

A slot is every m-th bit of the code, for neighbouring bits of a perceptual hash depend on each other and would fill its values unevenly.
Where more values would have to be looked up than there are codes, or the radius would be 3, every code is compared.
"""

from __future__ import annotations

import functools
import operator
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
_FLIPPED = np.bitwise_count(_FLIPS).astype(np.int64)
_WITHIN = (1, 17, 137)
"""How many of these are within 0, 1 and 2 bits."""
_LONG = 4  # codes a value, from which on the lists of a table are in no cache
_ROOM = 1 << 16

Found = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]
Tables = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.uint32]]


class HammingIndex:
    """`HammingIndex(codes).search(queries, distance)`: all pairs within a distance, found exactly.

    `codes` is uint8[n, 32] (or uint8[n, 8] for 64-bit hashes), n below 2**31; bits are compared in place, so that both sides must have
    been packed the same way. Tables are built at the first search that needs them, and only of the slots that it looks into: at distance
    0, one.
    """

    def __init__(self, codes: NDArray[np.uint8]) -> None:
        self._width = codes.shape[1] if codes.ndim == 2 else 0
        if codes.dtype != np.uint8 or self._width not in (8, CODE_BYTES):
            raise ValueError(f"codes must be uint8[n, 32] or uint8[n, 8], not {codes.dtype}{list(codes.shape)}")
        self._words = as_words(codes)
        self._built: Tables | None = None

    def __len__(self) -> int:
        return len(self._words)

    def search(self, queries: NDArray[np.uint8], distance: int) -> Found:
        """Pairs (query row, code row, distance) with at most `distance` differing bits, ordered by query row, then code row."""
        if queries.dtype != np.uint8 or queries.ndim != 2 or queries.shape[1] != self._width:
            raise ValueError(f"queries must be uint8[n, {self._width}], not {queries.dtype}{list(queries.shape)}")
        words, distance = as_words(queries), operator.index(distance)
        radii = _radii(self._width * 8 // _SLOT_BITS, distance)
        probes = np.array([_WITHIN[radius] if radius >= 0 else 0 for radius in radii or ()], np.int64)
        if radii is None or int(probes.sum()) >= len(self):
            return _collect(functools.partial(_scan, words, self._words, distance), len(words))
        ring = np.array(radii, np.int64) + 1
        rooms = ring + np.roll(ring, -1) + np.roll(ring, -2) - 1
        tables = self._tables(int(np.count_nonzero(probes)))
        look_up = functools.partial(
            _look_up, words, _slots(words), self._words, *tables, probes, rooms, _FLIPS, _FLIPPED, distance
        )
        return _collect(look_up, len(words))

    def _tables(self, slots: int) -> Tables:
        """`starts`, `members`, `following` of (at least) the first `slots` slots.

        The codes with a value in a slot are at starts[slot, value] .. starts[slot, value + 1] of members[slot]; what the same places of
        following[slot] hold is their next two slots.
        """
        if self._built is None or len(self._built[0]) < slots:
            self._built = _build(_slots(self._words), slots)
        return self._built


def _build(values: NDArray[np.uint16], slots: int) -> Tables:
    starts = np.zeros((slots, _VALUES + 1), np.int32)
    members = np.empty((slots, len(values)), np.int32)
    following = np.empty((slots, len(values)), np.uint32)
    for slot in range(slots):
        np.cumsum(np.bincount(values[:, slot], minlength=_VALUES), out=starts[slot, 1:])
        members[slot] = np.argsort(values[:, slot], kind="stable")
        one, two = (values[members[slot], (slot + step) % values.shape[1]].astype(np.uint32) for step in (1, 2))
        following[slot] = one << np.uint32(_SLOT_BITS) | two
    return starts, members, following


def _collect(step: Callable[..., tuple[int, int]], queries: int) -> Found:
    """All pairs in order. `step(first, *out)` fills `out` from query `first` on and says where it stopped and how many pairs are in it."""
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
    order = np.lexsort((code, query))
    return query[order], code[order], bits[order]


def as_words(codes: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """uint8[n, 8 * w] as uint64[n, w], without a copy where the rows are contiguous."""
    words = np.ascontiguousarray(codes).view(np.uint64).reshape(len(codes), codes.shape[1] // 8)
    words.flags.writeable = False  # numba compiles anew for writeable arrays; what Arrow gives is none
    return words


def _radii(slots: int, distance: int) -> list[int] | None:
    """How many bits may differ in each slot, -1 where it is not looked at; None where that would be more than 2."""
    radius, rest = divmod(distance, slots)
    if distance < 0 or radius >= len(_WITHIN):
        return None
    return [radius if slot <= rest else radius - 1 for slot in range(slots)]


@compiled
def _slots(words: NDArray[np.uint64]) -> NDArray[np.uint16]:
    """The slots of codes, uint16[n, m]: slot s has bits s, s + m, s + 2 m … of the code."""
    slots = words.shape[1] * 64 // _SLOT_BITS
    values = np.empty((words.shape[0], slots), np.uint16)
    for row in range(words.shape[0]):
        for slot in range(slots):
            value = np.uint64(0)
            for bit in range(_SLOT_BITS):
                place = slot + bit * slots
                value |= (words[row, place >> 6] >> np.uint64(place & 63) & np.uint64(1)) << np.uint64(bit)
            values[row, slot] = value
    return values


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
    following: NDArray[np.uint32],
    probes: NDArray[np.int64],
    rooms: NDArray[np.int64],
    flips: NDArray[np.int64],
    flipped: NDArray[np.int64],
    limit: int,
    first: int,
    found_query: NDArray[np.int64],
    found_code: NDArray[np.int64],
    found_distance: NDArray[np.int32],
) -> tuple[int, int]:
    """As `_scan`, by the tables; `rooms` is what a slot and the next two together may differ in.

    Two passes over what a query asks of a slot: the places of all values, then what stands there. Each is loads that do not wait for each
    other, and what decides a branch is at hand by then; in one loop inside another each would wait for memory. Where lists are long there
    is a pass between: it reads both ends of each list and makes no use of them, for then the processor fetches many lists at once. A
    neighbour is met in several slots and taken in the first: `met` has the last query that a code was compared with.
    """
    count = 0
    long = members.shape[1] > _LONG * _VALUES
    ends = np.empty(flips.shape[0], np.uint32)
    begin, end = np.empty(flips.shape[0], np.uint64), np.empty(flips.shape[0], np.uint64)
    met = np.full(codes.shape[0], -1, np.int64)
    for query in range(first, queries.shape[0]):
        begun = count
        words = queries[query]
        for slot in range(probes.shape[0]):
            value = np.int64(slots[query, slot])
            for probe in range(probes[slot]):
                reached = np.uint64(
                    value ^ flips[probe]
                )  # unsigned: a place that may be negative costs numba a comparison
                begin[probe] = starts[slot, reached]
                end[probe] = starts[slot, reached + np.uint64(1)]
            one, two = slots[query, (slot + 1) % probes.shape[0]], slots[query, (slot + 2) % probes.shape[0]]
            next_two = np.uint32(one) << np.uint32(_SLOT_BITS) | np.uint32(two)
            if long:
                for probe in range(probes[slot]):
                    if begin[probe] < end[probe]:
                        ends[probe] = following[slot, begin[probe]] ^ following[slot, end[probe] - np.uint64(1)]
            for probe in range(probes[slot]):
                room = rooms[slot] - flipped[probe]
                for place in range(begin[probe], end[probe]):
                    if popcount(np.uint64(following[slot, place] ^ next_two)) > room:
                        continue
                    code = members[slot, place]
                    if met[code] == query:
                        continue
                    met[code] = query
                    bits = _distance(words, codes, code, limit)
                    if bits <= limit:
                        if count == found_code.shape[0]:
                            return query, begun
                        found_query[count] = query
                        found_code[count] = code
                        found_distance[count] = bits
                        count += 1
    return queries.shape[0], count
