"""The normal form of a whole Arrow column at once: `normal_forms(captions)` is `text.normal_form` of each, thirty times faster.

`text.py` defines the normal form; nothing here adds a rule. What makes a column fast is that nearly every character folds the same way
wherever it stands. For such a character `_fold_point` asks the definition once and keeps the answer; a compiled loop copies answers and
joins words. Characters that act on their neighbours (combining marks, Hangul jamo) and those whose folded form folds again are not
"simple", and a caption that has one goes through `text.normal_form` itself. Tests compare the two over every code point there is.
"""

import threading
import unicodedata
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.content.kernels import Bytes, Text, code_point, compiled, text_buffers
from pipeline.content.text import fold_once, normal_form

_SPACE, _WORD, _OTHER, _PLUS, _WITHIN = range(5)
"""What a byte of an answer is: a space; the first byte of a letter or digit, of a symbol, `+` or `#`; a later byte of a character."""
_UNKNOWN, _NOT_SIMPLE = -1, -2
_JAMO = (("\u1100", "\u11ff"), ("\ua960", "\ua97f"), ("\ud7b0", "\ud7ff"))
_WORST = 20
"""Bytes of normal form that one byte of caption may become: U+FDFA, 3 bytes, folds to 33 and the spaces around it."""


def normal_forms(captions: pa.Array | pa.ChunkedArray) -> pa.Array:
    """`text.normal_form` of every caption: a string array of the same length; null stays null.

    Raises OverflowError where the forms take more than the 2 GiB that one Arrow string array holds: give it a batch at a time.
    """
    text = text_buffers(captions)
    rows = len(text.starts) - 1
    folded = _POINTS.folded(text)
    data, starts = (
        np.empty(2 * (int(text.starts[-1]) - int(text.starts[0])) + 4096, np.uint8),
        np.zeros(rows + 1, np.int64),
    )
    simple = np.ones(rows, np.bool_)
    row = 0
    while (row := _join(text.data, text.starts, *folded, row, data, starts, simple)) < rows:
        data = np.concatenate(
            [data, np.empty(len(data) + _WORST * int(text.starts[row + 1] - text.starts[row]), np.uint8)]
        )
    if starts[-1] >= 1 << 31:
        raise OverflowError(f"{rows:,} captions have more than 2 GiB of normal form")
    found = pa.StringArray.from_buffers(rows, pa.py_buffer(starts.astype(np.int32)), pa.py_buffer(data[: starts[-1]]))
    if not simple.all():
        mask = pa.array(~simple)
        slow = [normal_form(caption) for caption in captions.filter(mask).to_pylist()]
        found = pc.replace_with_mask(found, mask, pa.array(slow, pa.string()))
    return pc.if_else(captions.is_valid(), found, None) if captions.null_count else found


# ---- what becomes of a code point


class _Folded(NamedTuple):
    """Answers by code point, as arrays that the loop reads.

    `entries[pages[point >> 8], point & 255]` is `start << 8 | length` of its answer in `pool`, or _UNKNOWN, or _NOT_SIMPLE.
    """

    pages: npt.NDArray[np.int32]
    entries: npt.NDArray[np.int32]
    pool: Bytes
    kinds: Bytes


class _Points:
    """The code points that have turned up in this process, with their answers: a million exist, a corpus uses a few thousand."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        unknown = np.full((1, 256), _UNKNOWN, np.int32)
        self._folded = _Folded(np.zeros(0x1100, np.int32), unknown, np.zeros(0, np.uint8), np.zeros(0, np.uint8))

    def folded(self, text: Text) -> _Folded:
        """The answers for (at least) every code point of `text`."""
        with self._lock:
            unknown = _unknown_points(text.data, text.starts, self._folded.pages, self._folded.entries)
            if len(unknown):
                self._learn(sorted({*range(128), *unknown.tolist()}))
            return self._folded

    def _learn(self, points: list[int]) -> None:
        pages, entries, pool, kinds = self._folded
        pages, added, at = pages.copy(), [entries], len(pool)
        answers, answer_kinds = [], []
        for page in sorted({point >> 8 for point in points}):
            if not pages[page]:
                pages[page] = sum(map(len, added))
                added.append(np.full((1, 256), _UNKNOWN, np.int32))
        entries = np.concatenate(added)
        for point in points:
            answer = _fold_point(chr(point))
            if answer is None:
                entries[pages[point >> 8], point & 255] = _NOT_SIMPLE
                continue
            for char in answer:
                raw = char.encode()
                answers.append(raw)
                answer_kinds.append(bytes([_kind(char)] + [_WITHIN] * (len(raw) - 1)))
            size = len(answer.encode())
            entries[pages[point >> 8], point & 255] = at << 8 | size
            at += size
        pool = np.concatenate([pool, np.frombuffer(b"".join(answers), np.uint8)])
        kinds = np.concatenate([kinds, np.frombuffer(b"".join(answer_kinds), np.uint8)])
        self._folded = _Folded(pages, entries, pool, kinds)


_POINTS = _Points()


def _fold_point(char: str) -> str | None:
    """What one round of folding makes of a character, words not yet joined, or None when it is not simple."""
    if 0xD800 <= ord(char) < 0xE000:
        return None
    steps = fold_once(char)
    if any(_acts_on_neighbours(part) for step in steps for part in step):
        return None
    folded = steps[-1]
    return folded if fold_once(folded)[-1].split() == folded.split() else None


def _acts_on_neighbours(char: str) -> bool:
    """Whether a character may compose with one beside it, or is reordered: all combining marks, and the conjoining jamo."""
    return unicodedata.category(char)[0] == "M" or any(first <= char <= last for first, last in _JAMO)


def _kind(char: str) -> int:
    if char == " ":
        return _SPACE
    if char in "+#":
        return _PLUS
    return _WORD if char.isalnum() else _OTHER


# ---- kernels


@compiled
def _unknown_points(
    data: Bytes, starts: npt.NDArray[np.int64], pages: npt.NDArray[np.int32], entries: npt.NDArray[np.int32]
) -> npt.NDArray[np.int64]:
    """The distinct code points of the text that have no answer yet; the ASCII ones are known or unknown together."""
    seen = np.zeros(0x110000, np.bool_)
    count = 0
    if entries[pages[0], 0] == -1:
        seen[0], count = True, 1
    at, end = starts[0], starts[-1]
    while at < end:
        if data[at] < 0x80:
            at += 1
            continue
        point, length = code_point(data, at, end)
        at += length
        if not seen[point] and entries[pages[point >> 8], point & 255] == -1:
            seen[point] = True
            count += 1
    found = np.empty(count, np.int64)
    count = 0
    if len(found):
        for point in range(len(seen)):
            if seen[point]:
                found[count] = point
                count += 1
    return found


@compiled
def _join(
    data: Bytes,
    starts: npt.NDArray[np.int64],
    pages: npt.NDArray[np.int32],
    entries: npt.NDArray[np.int32],
    pool: Bytes,
    kinds: Bytes,
    row: int,
    out: Bytes,
    out_starts: npt.NDArray[np.int64],
    simple: npt.NDArray[np.bool_],
) -> int:
    """Write the normal forms of rows `row`.. into `out`; returns the row that found no room, or the number of rows.

    Words are joined as `text._join_words` does: one space between them, and a run of `+` and `#` stays only behind a letter or digit
    and not in front of one.
    """
    ascii_entries = entries[pages[0]]
    # What an ASCII character becomes that is one letter or digit (its byte) or one space (0); 255 for any other.
    plain = np.full(128, 255, np.uint8)
    for byte in range(128):
        if ascii_entries[byte] & 255 == 1 and kinds[ascii_entries[byte] >> 8] <= 1:
            piece = ascii_entries[byte] >> 8
            plain[byte] = pool[piece] if kinds[piece] == 1 else 0
    at = out_starts[row]
    while row < len(starts) - 1:
        place, end, begin = starts[row], starts[row + 1], at
        if at + 20 * (end - place) > len(out):
            return row
        before, gap, run = 0, 0, at
        while place < end:
            byte = data[place]
            if byte < 0x80:
                if before != 3 and plain[byte] != 255:
                    # Most characters, in words of unforeseeable length: no branch on which of the two it is.
                    before = int(plain[byte] != 0)
                    out[at] = 32
                    at += before & gap
                    out[at] = plain[byte]
                    at += before
                    gap = (1 - before) & int(at > begin)
                    place += 1
                    continue
                entry = ascii_entries[byte]
                place += 1
            else:
                point, length = code_point(data, place, end)
                entry = entries[pages[point >> 8], point & 255]
                place += length
                if entry < 0:
                    simple[row] = False
                    at = begin
                    break
            for piece in range(entry >> 8, (entry >> 8) + (entry & 255)):
                kind = kinds[piece]
                if kind == 1:  # a letter or digit
                    if before == 3:
                        at, gap = run, 1
                    if gap:
                        out[at] = 32
                        at += 1
                    gap = 0
                    before = 1
                    out[at] = pool[piece]
                    at += 1
                elif kind == 0:
                    gap = int(at > begin)
                    before = 0
                elif kind == 4:
                    out[at] = pool[piece]
                    at += 1
                elif kind == 3:  # + or #
                    if before == 1:
                        run = at
                        before = 3
                    if before == 3:
                        out[at] = pool[piece]
                        at += 1
                    else:
                        gap = int(at > begin)
                        before = 0
                else:
                    if gap:
                        out[at] = 32
                        at += 1
                    gap = 0
                    before = 2
                    out[at] = pool[piece]
                    at += 1
        row += 1
        out_starts[row] = at
    return row
