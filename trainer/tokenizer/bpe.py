"""Byte-pair encoding with end-of-word marks, as openai/CLIP uses it: captions in, rows of ids out.

Ids 0 to 255 are bytes, 256 to 511 bytes that end a word, then one id for each merge in order of rank, then
the two end marks. The end mark is therefore the largest id, which is how the text tower finds the place of
its feature. Within a word the merge of the lowest rank is applied first, everywhere from the left, until no
merge applies. Captions repeat their words, so the ids of short words are kept in a table of fixed size.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from pipeline.content.kernels import Bytes, Text, compiled, text_buffers
from pipeline.contracts.errors import InputError
from trainer.tokenizer.words import (
    BYTE_OF_CHARACTER,
    CHARACTER_OF_BYTE,
    START_MARK,
    VOCABULARY_ORDER,
    character_classes,
    clean,
    next_word,
)

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]

END_OF_WORD = "</w>"
FIXED_IDS = 256 + 256 + 2
"""Ids that every vocabulary has: bytes, bytes at a word's end, and the two end marks."""


class Tokenizer:
    """A vocabulary of byte pairs; calling it gives rows of ids with both end marks, cut and padded to one
    length.

    merges: pairs of pieces in order of rank, in printable characters, "</w>" at the end of pieces that end
    a word. Raises InputError (naming `source`) for a merge whose pieces no earlier merge has made, or that
    repeats one.
    """

    def __init__(self, merges: Sequence[tuple[str, str]], *, context_length: int = 77, source: str = "vocabulary"):
        if context_length < 3:
            raise InputError(
                f"tokenizer context_length: {context_length!r} has no room between the two end marks; use 3 or more"
            )
        pieces = first_pieces()
        ids = {piece: place for place, piece in enumerate(pieces)}
        joined = np.empty((len(merges), 2), np.int64)
        for rank, (left, right) in enumerate(merges):
            merged = left + right
            if left not in ids or right not in ids or left.endswith(END_OF_WORD) or merged in ids:
                raise InputError(
                    f"{source}: merge {rank + 1} is {(left[:40], right[:40])!r}, which does not follow from the merges before it; "
                    "give the vocabulary file as it was published"
                )
            joined[rank] = ids[left], ids[right]
            ids[merged] = len(pieces)
            pieces.append(merged)
        self.context_length = context_length
        self.vocab_size = len(pieces) + 2
        self.sot = len(pieces)
        self.eot = len(pieces) + 1
        self._pieces = pieces
        self._tables = _tables(joined)
        self._memory = _empty_memory()

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """int64[n, context_length]: start mark, ids, end mark, zeros. A caption too long keeps its end mark last."""
        captions = [texts] if isinstance(texts, str) else texts
        return torch.from_numpy(self._rows([clean(caption) for caption in captions], self.context_length)[0])

    def encode(self, text: str) -> list[int]:
        """All ids of one caption, without end marks and without a limit."""
        cleaned = clean(text)
        rows, lengths = self._rows([cleaned], len(cleaned.encode()) + 2)
        ids: list[int] = rows[0, 1 : lengths[0] - 1].tolist()
        return ids

    def decode(self, ids: Iterable[int] | Tensor) -> str:
        """The cleaned text that `ids` stand for, up to the first end mark; words are parted by single spaces."""
        found: list[bytes] = []
        for number in ids.tolist() if isinstance(ids, Tensor) else ids:
            if number == self.eot:
                break
            if number == self.sot:
                continue
            if not 0 <= number < len(self._pieces):
                raise ValueError(f"id {number!r} is outside the vocabulary of {self.vocab_size}")
            found.append(_as_bytes(self._pieces[number]))
        return b"".join(found).decode("utf-8", errors="replace").strip()

    def _rows(self, cleaned: list[str], room: int) -> tuple[Int64s, Int64s]:
        """(int64[n, room]: rows of ids, int64[n]: how many of each are not padding)."""
        rows = np.zeros((len(cleaned), room), np.int64)
        lengths = np.empty(len(cleaned), np.int64)
        text = text_buffers(pa.array(cleaned, pa.large_string()))
        _encode(text, character_classes(), self.sot, self._tables, self._memory, rows, lengths)
        return rows, lengths


def first_pieces() -> list[str]:
    """The pieces of ids 0 to 511: every byte, and every byte at a word's end."""
    pieces = [CHARACTER_OF_BYTE[byte] for byte in VOCABULARY_ORDER]
    return pieces + [piece + END_OF_WORD for piece in pieces]


def _as_bytes(piece: str) -> bytes:
    ends = piece.endswith(END_OF_WORD)
    text = piece.removesuffix(END_OF_WORD) if ends else piece
    return bytes(BYTE_OF_CHARACTER[character] for character in text) + (b" " if ends else b"")


# ---- compiled
#
# Arrays are handed over one by one and rows of arrays by number: taking one from a tuple, or a view of a part, counts references with
# locked instructions, which costs more than the work on a word.

_EMPTY = np.int64(-1)
_MIX = np.uint64(0x9E3779B97F4A7C15)


class _Tables(NamedTuple):
    """The vocabulary in the form that encoding looks up."""

    merges: Int64s
    """int64[slots, 2], an open-addressing table: left << 32 | right (-1 where the slot is empty), and the id that they make."""
    id_of_byte: Int32s


class _Memory(NamedTuple):
    """Ids of words met before. A word has one slot and the newest word of a slot stays, so the size (4 MB) is fixed whatever comes."""

    words: npt.NDArray[np.uint64]
    """uint64[slots, 8]: up to 31 bytes and their number; then the ids, which `ids` shows."""
    ids: Int32s
    """int32[slots, 16], the same memory: from 8 on, how many ids and up to 7 ids."""


_REMEMBERED = 1 << 16
_KEPT_BYTES, _KEPT_IDS = 31, 7
_FIRST_ID = 9


def _tables(joined: Int64s) -> _Tables:
    """joined: int64[merges, 2], the two ids of each merge in order of rank."""
    merges = np.full((1 << max(4, (2 * len(joined)).bit_length()), 2), _EMPTY, np.int64)
    _fill(joined, merges)
    id_of_byte = np.empty(256, np.int32)
    id_of_byte[VOCABULARY_ORDER] = np.arange(256)
    return _Tables(merges, id_of_byte)


def _empty_memory() -> _Memory:
    words = np.zeros((_REMEMBERED, 8), np.uint64)
    return _Memory(words, words.view(np.int32))


@compiled
def _fill(joined: Int64s, merges: Int64s) -> None:
    for rank in range(len(joined)):
        key = joined[rank, 0] << 32 | joined[rank, 1]
        slot = _slot(key, merges)
        merges[slot, 0], merges[slot, 1] = key, FIXED_IDS - 2 + rank


@compiled
def _slot(key: np.int64, merges: Int64s) -> np.int64:
    """Where `key` is, or the empty slot where it would be."""
    slot = np.int64(np.uint64(key) * _MIX >> np.uint64(32)) & (len(merges) - 1)
    while merges[slot, 0] != key and merges[slot, 0] != _EMPTY:
        slot = (slot + 1) & (len(merges) - 1)
    return slot


@compiled
def _joined(left: int, right: int, merges: Int64s) -> int:
    """The id that two neighbours make, -1 where they do not merge."""
    joined: int = merges[_slot(np.int64(left) << 32 | np.int64(right), merges), 1]
    return joined


@compiled
def _merge(
    data: Bytes, start: int, stop: int, merges: Int64s, id_of_byte: Int32s, scratch: Int32s, heap: Int64s
) -> int:
    """Write the ids of the word data[start:stop] to the front of scratch[0] and give their number; n log n in the word's length.

    The heap is ordered by the id that a merge makes, which grows with its rank, then by place. That is the rule (lowest rank first,
    everywhere from the left), because a pair that holds a merged piece always ranks after the merge that made the piece.
    scratch: the ids, and for each place that is still there those before and after it.
    """
    length, waiting = stop - start, 0
    for place in range(length):
        scratch[0, place] = id_of_byte[data[start + place]]
        scratch[1, place], scratch[2, place] = place - 1, place + 1
    scratch[0, length - 1] += 256
    for place in range(length - 1):
        waiting = _offer(place, place + 1, merges, scratch, heap, waiting)
    while waiting:
        best = heap[0]
        waiting -= 1
        _take_first(heap, waiting)
        made, left = best >> 32, best & 0xFFFFFFFF
        right = np.int64(scratch[2, left])
        if scratch[0, left] < 0 or right == length or _joined(scratch[0, left], scratch[0, right], merges) != made:
            continue  # one of the two has merged with another meanwhile
        scratch[0, left], scratch[0, right] = made, -1
        before, after = np.int64(scratch[1, left]), np.int64(scratch[2, right])
        scratch[2, left] = after
        if after < length:
            scratch[1, after] = left
            waiting = _offer(left, after, merges, scratch, heap, waiting)
        if before >= 0:
            waiting = _offer(before, left, merges, scratch, heap, waiting)
    count = 0
    for place in range(length):
        if scratch[0, place] >= 0:
            scratch[0, count] = scratch[0, place]
            count += 1
    return count


@compiled
def _offer(left: int, right: int, merges: Int64s, scratch: Int32s, heap: Int64s, waiting: int) -> int:
    """Put the merge of the pieces at two neighbouring places into the heap, if there is one; gives the heap's size."""
    made = _joined(scratch[0, left], scratch[0, right], merges)
    if made == _EMPTY:
        return waiting
    entry, place = made << 32 | np.int64(left), waiting
    while place and heap[(place - 1) >> 1] > entry:
        heap[place] = heap[(place - 1) >> 1]
        place = (place - 1) >> 1
    heap[place] = entry
    return waiting + 1


@compiled
def _take_first(heap: Int64s, size: int) -> None:
    """Take the heap's first entry away: the entry at `size`, its last, takes its place and sinks."""
    entry, place = heap[size], 0
    while 2 * place + 1 < size:
        child = 2 * place + 1
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= entry:
            break
        heap[place] = heap[child]
        place = child
    heap[place] = entry


@compiled
def _packed(data: Bytes, at: int, stop: int) -> np.uint64:
    """data[at:stop], of which the first 8 bytes count, as a number."""
    value = np.uint64(0)
    for place in range(min(8, stop - at)):
        value |= np.uint64(data[at + place]) << np.uint64(place << 3)
    return value


@compiled
def _mixed(value: np.uint64, part: np.uint64) -> np.uint64:
    value = (value ^ part) * _MIX
    return value ^ (value >> np.uint64(32))


def _whole(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled, but holding the GIL: threads that share a tokenizer must not meet in its memory."""
    return compiled(function, nogil=False)


@_whole
def _encode(
    text: Text, classes: Bytes, sot: int, tables: _Tables, memory: _Memory, rows: Int64s, lengths: Int64s
) -> None:
    """Fill `rows` (zeros before) and `lengths` from cleaned captions. A row that is full ends its caption's work."""
    data, starts, merges, id_of_byte = text.data, text.starts, tables.merges, tables.id_of_byte
    words, ids = memory.words, memory.ids
    longest = 1
    for row in range(len(rows)):
        longest = max(longest, starts[row + 1] - starts[row])
    scratch, heap = np.empty((3, longest), np.int32), np.empty(3 * longest, np.int64)
    room = rows.shape[1]
    for row in range(len(rows)):
        at, end = starts[row], starts[row + 1]
        rows[row, 0] = sot
        filled = np.int64(1)
        while filled < room:
            start, at, mark = next_word(data, at, end, classes)
            if start == at:
                break
            if mark:
                rows[row, filled] = sot if mark == START_MARK else sot + 1
                filled += 1
                continue
            first, second = _packed(data, start, at), _packed(data, start + 8, at)
            third, fourth = _packed(data, start + 16, at), _packed(data, start + 24, at)
            fourth |= np.uint64(at - start) << np.uint64(56)
            mixed = _mixed(_mixed(_mixed(_mixed(np.uint64(0), first), second), third), fourth)
            slot = np.int64(mixed & np.uint64(_REMEMBERED - 1))
            if (
                at - start <= _KEPT_BYTES
                and words[slot, 0] == first
                and words[slot, 1] == second
                and words[slot, 2] == third
                and words[slot, 3] == fourth
            ):
                known = np.int64(ids[slot, _FIRST_ID - 1])
                for place in range(min(known, room - filled)):
                    rows[row, filled + place] = ids[slot, _FIRST_ID + place]
                filled += known
                continue
            count = _merge(data, start, at, merges, id_of_byte, scratch, heap)
            for place in range(min(count, room - filled)):
                rows[row, filled + place] = scratch[0, place]
            filled += count
            if at - start <= _KEPT_BYTES and count <= _KEPT_IDS:
                words[slot, 0], words[slot, 1], words[slot, 2], words[slot, 3] = first, second, third, fourth
                ids[slot, _FIRST_ID - 1] = count
                for place in range(count):
                    ids[slot, _FIRST_ID + place] = scratch[0, place]
        filled = min(filled, room - 1)
        rows[row, filled] = sot + 1
        lengths[row] = filled + 1
