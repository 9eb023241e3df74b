"""From a caption to the words that byte pairs are merged in: cleaning, splitting, and bytes as printable
characters.

All of it is openai/CLIP's rule (clip/simple_tokenizer.py), to the letter: ftfy, HTML entities undone twice,
runs of whitespace to one space, lower case; then end marks, English contractions, runs of letters, single
digits, runs of anything else. Two things make it quick. Repairing text is the slow step, and most captions
can be seen to pass it unchanged, so that they skip it (`clean`). And what the rule's regular expression
calls a letter, a digit or whitespace is asked of the `regex` package itself, once for every character, so that
a compiled loop can split as the expression does (`next_word`).
"""

import functools
import html
import re
import unicodedata

import ftfy
import numpy as np
import regex
from ftfy.badness import is_bad

from pipeline.content.kernels import Bytes, code_point, compiled

START_TEXT = "<|startoftext|>"
END_TEXT = "<|endoftext|>"

WORD = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
"""OpenAI's expression for a word, matched without regard to case; `next_word` is its compiled form."""

# ---- cleaning

# Text in which ftfy finds no wrong encoding and changes quotation marks at most: printable ASCII, the punctuation of typesetters, and
# small letters of Latin-1 that have ASCII on both sides.
_SOUND = re.compile(
    "(?:[\t -~\u2013\u2014\u2018\u2019\u201c\u201d\u2026]++|(?<![^\t -~])[\u00df-\u00f6\u00f8-\u00ff](?![^\t -~]))*+"
)
# What ftfy's steps for single characters change: control characters, ligatures, quotation marks, line breaks, surrogates,
# full and half width.
_CHANGED = re.compile(
    "[\x00-\x08\x0a-\x1f\x7f-\x9f\u0132\u0133\u0149\u01c4-\u01cc\u01f1-\u01f3\u02bc\u2018-\u201f\u2028\u2029\u206a-\u206f\u3000"
    "\ud800-\udfff\ufb00-\ufb06\ufeff\uff01-\uffef\ufff9-\ufffc]"
)
# ftfy works through longer text in pieces.
_ONE_PIECE = 100_000


def clean(text: str) -> str:
    """The caption as the vocabulary sees it: repaired, entities undone, single spaces, lower case."""
    if not text.isascii() or not text.isprintable() or "&" in text:
        text = html.unescape(html.unescape(_repair(text)))
    # No control characters are left, so str.split knows the same whitespace as OpenAI's expression; of it, only the space is printable.
    if "  " in text or not text.isprintable():
        text = " ".join(text.split())
    return text.strip().lower()


def _repair(text: str) -> str:
    """`ftfy.fix_text(text)`, which takes 50 µs, by a shorter way where it can be seen that at most quotation marks change."""
    if len(text) >= _ONE_PIECE or ("&" in text and ";" in text):
        return ftfy.fix_text(text)
    straight = text.replace("\u2018", "'").replace("\u2019", "'").replace("\u201c", '"').replace("\u201d", '"')
    if _SOUND.fullmatch(text):
        return straight
    if (
        not _CHANGED.search(straight)
        and unicodedata.is_normalized("NFC", straight)
        and not is_bad(text)
        and not (straight != text and is_bad(straight))
    ):
        return straight
    return ftfy.fix_text(text)


# ---- splitting

LETTER, NUMBER, OTHER = 1, 2, 4
START_MARK, END_MARK = 1, 2
_EVERY_CHARACTER = 0x110000


@functools.cache
def character_classes() -> Bytes:
    """uint8[0x110000]: for each code point LETTER, NUMBER or OTHER where the expression takes it for that, 0 where it is skipped."""
    every = np.arange(_EVERY_CHARACTER, dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")
    classes = np.zeros(_EVERY_CHARACTER, np.uint8)
    for bit, expression in ((LETTER, r"[\p{L}]+"), (NUMBER, r"[\p{N}]+"), (OTHER, r"[^\s\p{L}\p{N}]+")):
        for run in regex.compile(expression, regex.IGNORECASE).finditer(every):
            classes[run.start() : run.end()] |= bit
    return classes


@compiled
def next_word(data: Bytes, at: int, end: int, classes: Bytes) -> tuple[int, int, int]:
    """The next word of the cleaned UTF-8 text data[at:end]: (start, stop, mark); start == stop == end where there is none.

    mark is START_MARK or END_MARK where the word is that mark, else 0.
    """
    kind, size = np.uint8(0), 1
    while at < end and not kind:
        if data[at] < 0x80:
            kind, size = classes[data[at]], 1
        else:
            point, size = code_point(data, at, end)
            kind = classes[point]
        at += size
    if not kind:
        return end, end, 0
    start = at - size
    if data[start] == ord("<") or data[start] == ord("'"):
        stop, mark = _special(data, start, end)
        if stop > start:
            return start, stop, mark
    if kind & NUMBER:
        return start, at, 0
    run = LETTER if kind & LETTER else OTHER
    while at < end:
        if data[at] < 0x80:
            kind, size = classes[data[at]], 1
        else:
            point, size = code_point(data, at, end)
            kind = classes[point]
        if not kind & run:
            break
        at += size
    return start, at, 0


_START_BYTES = np.frombuffer(START_TEXT.encode(), np.uint8)
_END_BYTES = np.frombuffer(END_TEXT.encode(), np.uint8)
_CONTRACTIONS = np.array(
    [list(ending.ljust(2).encode()) for ending in ("s", "t", "re", "ve", "m", "ll", "d")], np.uint8
)


@compiled
def _special(data: Bytes, at: int, end: int) -> tuple[int, int]:
    """(stop, mark) of the end mark or contraction at `at`; (at, 0) where there is none."""
    if data[at] == ord("<"):
        stop = _matched(data, at, end, _START_BYTES)
        if stop > at:
            return stop, START_MARK if stop - at == len(_START_BYTES) else 0
        stop = _matched(data, at, end, _END_BYTES)
        return stop, END_MARK if stop > at else 0
    for row in range(len(_CONTRACTIONS)):
        ending = _CONTRACTIONS[row]
        stop = _matched(data, at + 1, end, ending if ending[1] != ord(" ") else ending[:1])
        if stop > at + 1:
            return stop, 0
    return at, 0


@compiled
def _matched(data: Bytes, at: int, end: int, wanted: Bytes) -> int:
    """Where data[at:end] has gone on after `wanted` (ASCII), in any case; `at` where it does not begin with it.

    In text of lower case one character still matches another: the long s (U+017F, bytes C5 BF) is an s of another case.
    """
    place = at
    for byte in wanted:
        if place < end and data[place] == byte:
            place += 1
        elif byte == ord("s") and place + 1 < end and data[place] == 0xC5 and data[place + 1] == 0xBF:
            place += 2
        else:
            return at
    return place


# ---- bytes as characters


def _byte_characters() -> list[str]:
    """A printable character for each of the 256 bytes, in the order of the vocabulary (GPT-2's table).

    Bytes that print stand for themselves; the others take the characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    character = {byte: chr(byte) for byte in printable}
    character |= {byte: chr(0x100 + place) for place, byte in enumerate(others)}
    return [character[byte] for byte in range(256)]


CHARACTER_OF_BYTE: list[str] = _byte_characters()
"""byte -> its printable character."""
BYTE_OF_CHARACTER: dict[str, int] = {character: byte for byte, character in enumerate(CHARACTER_OF_BYTE)}
"""printable character -> its byte."""
VOCABULARY_ORDER: list[int] = [
    *range(0x21, 0x7F),
    *range(0xA1, 0xAD),
    *range(0xAE, 0x100),
    *range(0x21),
    *range(0x7F, 0xA1),
    0xAD,
]
"""The bytes in the order of their ids: those that print first."""
