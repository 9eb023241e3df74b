"""The order in which a run sees the rows of its corpus: a pure function of (seed, epoch, manifest).

Sample k of a run is row `perm(k div N)[k mod N]`, so batches straddle epochs and each row comes exactly once an epoch, whatever the number
of processes or workers, and a resumed run finds its place by arithmetic. No array of N entries exists anywhere:

1. the row groups of the corpus are put in random order (a keyed permutation of their numbers);
2. consecutive ones form windows of `window_row_groups`;
3. the rows of a window are permuted by a keyed permutation of [0, n), evaluated only where it is asked for.

Shards are ordered by uid, which is a hash, so that a row group is already a fair sample of the corpus and a window of many of them
is a fair, bounded shuffle. The permutation is a Feistel network over the next even number of bits, walked along its cycle until
it lands inside [0, n) (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).
"""

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]

_ROUNDS = 6


def round_keys(*parts: int | str) -> UInt64s:
    """`_ROUNDS` 64-bit keys from anything that names a permutation."""
    text = "\x1f".join(str(part) for part in parts).encode()
    return np.frombuffer(hashlib.blake2b(text, digest_size=8 * _ROUNDS).digest(), dtype="<u8")


def _mix(values: UInt64s) -> UInt64s:
    """The finaliser of splitmix64 (Steele, Lea and Flood, 2014): each input bit reaches each output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def permute(places: Int64s, n: int, keys: UInt64s) -> Int64s:
    """Where the permutation of [0, n) named by `keys` sends each of `places` (int64, each in [0, n)); any shape, O(1) a place."""
    return _walk(places, n, keys, backwards=False)


def unpermute(places: Int64s, n: int, keys: UInt64s) -> Int64s:
    """What `permute` sends to each of `places`: the same cycle, walked backwards."""
    return _walk(places, n, keys, backwards=True)


def _walk(places: Int64s, n: int, keys: UInt64s, *, backwards: bool) -> Int64s:
    if n < 2:
        return places.copy()
    half = np.uint64((max(2, (n - 1).bit_length()) + 1) // 2)
    mask = np.uint64((1 << int(half)) - 1)
    result = places.astype(np.uint64)
    outside = np.ones(result.shape, dtype=bool)
    while outside.any():
        walking = result[outside]
        left, right = walking >> half, walking & mask
        for key in keys[::-1] if backwards else keys:
            if backwards:
                left, right = right ^ (_mix(left + key) & mask), left
            else:
                left, right = right, left ^ (_mix(right + key) & mask)
        result[outside] = (left << half) | right
        outside = result >= np.uint64(n)
    return result.astype(np.int64)


class SampleOrder:
    """The order of one run over one corpus.

    `group_rows` are the row counts of the corpus's row groups, shard after shard as the manifest lists them; rows are numbered in that
    order from 0. Memory is a few words for each row group; nothing is kept for each row.
    """

    def __init__(self, group_rows: Sequence[int], *, seed: int, window_row_groups: int) -> None:
        self._group_rows = np.asarray(group_rows, dtype=np.int64)
        self._group_start = np.concatenate([[0], np.cumsum(self._group_rows)])
        self._seed = seed
        self._window = window_row_groups
        self.rows_per_epoch = int(self._group_start[-1])
        self._epoch: int | None = None

    def rows(self, samples: Int64s) -> Int64s:
        """Row numbers of the given samples of the run (int64 [n], counted from the start of the run)."""
        result = np.empty(samples.shape, dtype=np.int64)
        epochs, places = np.divmod(samples, self.rows_per_epoch)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            result[here] = self._rows_of_epoch(int(epoch), places[here])
        return result

    def first_samples(self, rows: Int64s) -> Int64s:
        """When the run comes to each of these rows first: its sample of the first epoch (int64 [n]); the inverse of `rows` there.

        So a run has seen a row when its number of samples is above this.
        """
        self._prepare(0)
        slot_of = np.empty(len(self._group_rows), dtype=np.int64)
        slot_of[self._group_at] = np.arange(len(self._group_at))
        group = np.searchsorted(self._group_start, rows, side="right") - 1
        shuffled = self._slot_start[slot_of[group]] + rows - self._group_start[group]
        windows = np.searchsorted(self._window_start, shuffled, side="right") - 1
        result = np.empty(rows.shape, dtype=np.int64)
        for window in np.unique(windows):
            here = windows == window
            start, end = int(self._window_start[window]), int(self._window_start[window + 1])
            keys = round_keys("rows", self._seed, 0, int(window))
            result[here] = start + unpermute(shuffled[here] - start, end - start, keys)
        return result

    def group_of(self, row: int) -> tuple[int, int]:
        """The first row of the group that `row` is in, and the first after it."""
        after = int(np.searchsorted(self._group_start, row, side="right"))
        return int(self._group_start[after - 1]), int(self._group_start[after])

    def _rows_of_epoch(self, epoch: int, places: Int64s) -> Int64s:
        self._prepare(epoch)
        windows = np.searchsorted(self._window_start, places, side="right") - 1
        result = np.empty(places.shape, dtype=np.int64)
        for window in np.unique(windows):
            here = windows == window
            start, end = int(self._window_start[window]), int(self._window_start[window + 1])
            keys = round_keys("rows", self._seed, epoch, int(window))
            shuffled = start + permute(places[here] - start, end - start, keys)
            slot = np.searchsorted(self._slot_start, shuffled, side="right") - 1
            result[here] = self._group_start[self._group_at[slot]] + shuffled - self._slot_start[slot]
        return result

    def _prepare(self, epoch: int) -> None:
        """Row groups in the order of `epoch`: which group is at each slot, and where slots and windows start."""
        if self._epoch == epoch:
            return
        filled = np.flatnonzero(self._group_rows)  # an empty row group would make two slots start at one place
        keys = round_keys("row groups", self._seed, epoch)
        self._group_at = filled[permute(np.arange(len(filled), dtype=np.int64), len(filled), keys)]
        self._slot_start = np.concatenate([[0], np.cumsum(self._group_rows[self._group_at])])
        windows = math.ceil(len(filled) / self._window)
        first_slots = np.minimum(np.arange(windows + 1) * self._window, len(filled))
        self._window_start = self._slot_start[first_slots]
        self._epoch = epoch


REPLACEMENT_TRIES = 32
"""Attempts at a row, itself counted as attempt 0, before a run gives up."""
OWN_GROUP_TRIES = 8
"""So many rows stand in for a bad one from its own group before others are asked: that group is in memory."""


def replacement_row(row: int, attempt: int, *, seed: int, rows: int, group: tuple[int, int]) -> int:
    """The row that stands in for an unusable `row`: chosen by hash, so that every process and every resumed run agrees.

    Attempts are counted from 1. The first OWN_GROUP_TRIES take one of the other rows of the row's group, [start, stop), if it has any; the
    later ones take any of the corpus's `rows`.
    """
    text = f"replacement\x1f{seed}\x1f{row}\x1f{attempt}".encode()
    draw = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
    start, stop = group
    if attempt > OWN_GROUP_TRIES or stop - start < 2:
        return draw % rows
    return start + (row - start + 1 + draw % (stop - start - 1)) % (stop - start)
