"""Scripts that are written without spaces between words: Han, Kana, Bopomofo, Thai, Lao, Tibetan, Burmese, Khmer and their extensions.

Where words have no visible ends, every character's end is one: the matcher looks for a query at each of them, and rules that count words
count characters.
"""

import functools
import re

import numpy as np
import numpy.typing as npt

RANGES = (
    (0x0E00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x19E0, 0x19FF), (0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3021, 0x3029),
    (0x3031, 0x3035), (0x303B, 0x303B), (0x3040, 0x312F), (0x31A0, 0x31BF), (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF),
    (0xA9E0, 0xA9FF), (0xAA60, 0xAA7F), (0xF900, 0xFAFF), (0xFF66, 0xFF9F), (0x1B000, 0x1B16F), (0x20000, 0x3FFFF),
)  # fmt: skip
"""First and last code points."""

_CLASS = "".join(f"{chr(first)}-{chr(last)}" for first, last in RANGES)
_SPACELESS = re.compile(f"[{_CLASS}]")
_TOKEN = re.compile(f"[{_CLASS}]|[^ {_CLASS}]+")


def is_spaceless(text: str) -> bool:
    """Whether any character is of a script without spaces."""
    return not text.isascii() and _SPACELESS.search(text) is not None


def tokens(form: str) -> list[str]:
    """A normal form cut into tokens: what stands between two spaces, and every character of a script without spaces by itself."""
    return _TOKEN.findall(form)


@functools.cache
def spaceless_points() -> npt.NDArray[np.bool_]:
    """By code point, bool[0x110000], whether its script writes no spaces; read-only."""
    table = np.zeros(0x110000, np.bool_)
    for first, last in RANGES:
        table[first : last + 1] = True
    table.setflags(write=False)
    return table
