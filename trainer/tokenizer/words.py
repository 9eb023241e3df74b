"""From a caption to the words that byte pairs are merged in: cleaning, splitting, and bytes as printable
characters.

All of it is openai/CLIP's rule (clip/simple_tokenizer.py), to the letter: ftfy, HTML entities undone twice,
runs of whitespace to one space, lower case; then end marks, English contractions, runs of letters, single
digits, runs of anything else. Repairing text is the slow step, and plain printable ASCII without an
ampersand passes it unchanged, so such captions skip it.
"""

import html

import ftfy
import regex

START_TEXT = "<|startoftext|>"
END_TEXT = "<|endoftext|>"

_WORD = regex.compile(
    r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+""",
    regex.IGNORECASE,
)
_SPACE = regex.compile(r"\s+")


def clean(text: str) -> str:
    """The caption as the vocabulary sees it: repaired, entities undone, single spaces, lower case."""
    if not (text.isascii() and text.isprintable() and "&" not in text):
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
        return str(_SPACE.sub(" ", text)).strip().lower()
    return " ".join(text.split()).lower()


def split_words(cleaned: str) -> list[str]:
    """The words of a cleaned caption, in order; what is between them is whitespace."""
    words: list[str] = _WORD.findall(cleaned)
    return words


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
