"""Byte-pair encoding with end-of-word marks, as openai/CLIP uses it: captions in, rows of ids out.

Ids 0 to 255 are bytes, 256 to 511 bytes that end a word, then one id for each merge in order of rank, then
the two end marks. The end mark is therefore the largest id, which is how the text tower finds the place of
its feature. Within a word the merge of the lowest rank is applied first, everywhere from the left, until no
merge applies; each word's ids are remembered, since captions repeat their words.
"""

import heapq
import itertools
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from pipeline.contracts.errors import InputError
from trainer.tokenizer.words import (
    BYTE_OF_CHARACTER,
    CHARACTER_OF_BYTE,
    END_TEXT,
    START_TEXT,
    VOCABULARY_ORDER,
    clean,
    split_words,
)

END_OF_WORD = "</w>"
FIXED_IDS = 256 + 256 + 2
"""Ids that every vocabulary has: bytes, bytes at a word's end, and the two end marks."""
_REMEMBERED_WORDS = 1 << 20
_LONG_WORD = 64


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
        pieces = [CHARACTER_OF_BYTE[byte] for byte in VOCABULARY_ORDER]
        pieces += [piece + END_OF_WORD for piece in pieces]
        ids = {piece: place for place, piece in enumerate(pieces)}
        joined: dict[tuple[int, int], int] = {}
        for rank, (left, right) in enumerate(merges):
            merged = left + right
            if left not in ids or right not in ids or left.endswith(END_OF_WORD) or merged in ids:
                raise InputError(
                    f"{source}: merge {rank + 1} is {(left, right)!r}, which does not follow from the merges before it; "
                    "give the vocabulary file as it was published"
                )
            ids[merged] = len(pieces)
            joined[ids[left], ids[right]] = len(pieces)
            pieces.append(merged)
        self.context_length = context_length
        self.vocab_size = len(pieces) + 2
        self.sot = len(pieces)
        self.eot = len(pieces) + 1
        self._bytes_of_id = [_as_bytes(piece) for piece in pieces]
        self._id_of_byte = {byte: place for place, byte in enumerate(VOCABULARY_ORDER)}
        self._joined = joined
        self._remembered: dict[str, tuple[int, ...]] = {}
        self._marks = {START_TEXT: (self.sot,), END_TEXT: (self.eot,)}

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """int64[n, context_length]: start mark, ids, end mark, zeros. A caption too long keeps its end mark last."""
        captions = [texts] if isinstance(texts, str) else texts
        room = self.context_length
        rows = []
        for caption in captions:
            row = [self.sot, *self.encode(caption), self.eot]
            if len(row) > room:
                row[room - 1 :] = [self.eot]
            rows.append(row + [0] * (room - len(row)))
        return torch.tensor(rows, dtype=torch.int64).view(len(captions), room)

    def encode(self, text: str) -> list[int]:
        """All ids of one caption, without end marks and without a limit."""
        ids: list[int] = []
        remembered = self._remembered
        for word in split_words(clean(text)):
            known = remembered.get(word)
            if known is None:
                known = self._marks.get(word) or self._merge(word.encode())
                if len(remembered) < _REMEMBERED_WORDS and len(word) <= _LONG_WORD:
                    remembered[word] = known
            ids.extend(known)
        return ids

    def decode(self, ids: Iterable[int] | Tensor) -> str:
        """The cleaned text that `ids` stand for, up to the first end mark; words are parted by single spaces."""
        found: list[bytes] = []
        for number in ids.tolist() if isinstance(ids, Tensor) else ids:
            if number == self.eot:
                break
            if number == self.sot:
                continue
            if not 0 <= number < len(self._bytes_of_id):
                raise ValueError(f"id {number!r} is outside the vocabulary of {self.vocab_size}")
            found.append(self._bytes_of_id[number])
        return b"".join(found).decode("utf-8", errors="replace").strip()

    def _merge(self, word: bytes) -> tuple[int, ...]:
        """The ids of one word: the pair of the lowest rank first, each from the left, until none is left."""
        ids = [self._id_of_byte[byte] for byte in word]
        ids[-1] += 256
        if len(ids) > _LONG_WORD:
            return tuple(_merge_long(ids, self._joined))
        joined = self._joined
        while len(ids) > 1:
            # The id of a merged pair grows with its rank, so that the least id is the merge to do.
            best = min(joined.get(pair, _NONE) for pair in itertools.pairwise(ids))
            if best == _NONE:
                break
            place = 0
            merged = []
            while place < len(ids):
                if place + 1 < len(ids) and joined.get((ids[place], ids[place + 1])) == best:
                    merged.append(best)
                    place += 2
                else:
                    merged.append(ids[place])
                    place += 1
            ids = merged
        return tuple(ids)


_NONE = 1 << 62


def _merge_long(ids: list[int], joined: dict[tuple[int, int], int]) -> list[int]:
    """The same merges with a heap: n log n, so that a caption of one endless word does not take minutes.

    Equal to the plain loop because a pair that holds a merged piece always ranks after the merge that made
    the piece.
    """
    ids = list(ids)
    following = [*range(1, len(ids)), -1]
    preceding = list(range(-1, len(ids) - 1))
    heap = [(joined[pair], place) for place, pair in enumerate(itertools.pairwise(ids)) if pair in joined]
    heapq.heapify(heap)
    while heap:
        made, left = heapq.heappop(heap)
        right = following[left]
        if right < 0 or ids[left] < 0 or joined.get((ids[left], ids[right])) != made:
            continue
        after = following[right]
        ids[left], ids[right] = made, -1
        following[left] = after
        if after >= 0:
            preceding[after] = left
        for first, second in ((preceding[left], left), (left, after)):
            if first >= 0 and second >= 0 and (pair := (ids[first], ids[second])) in joined:
                heapq.heappush(heap, (joined[pair], first))
    return [number for number in ids if number >= 0]


def _as_bytes(piece: str) -> bytes:
    ends = piece.endswith(END_OF_WORD)
    text = piece.removesuffix(END_OF_WORD) if ends else piece
    return bytes(BYTE_OF_CHARACTER[character] for character in text) + (b" " if ends else b"")
