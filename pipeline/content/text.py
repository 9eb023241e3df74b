"""What a caption is: how a raw alt text is cleaned for storage, and the one normal form in which captions are compared.

`clean` makes the `caption` column: mojibake repaired, HTML entities resolved, control characters out, one line, bounded.
It keeps case, punctuation and script, because a tokenizer reads it.

`normal_form` is what matching and deduplication see, and the only definition of "the same caption" in the house. Query
and caption go through the same function, so a query always finds itself. Exactly, until nothing changes any more:

1. ZERO WIDTH and other ignorable characters (Cf, variation selectors, U+034F, Hangul fillers) vanish; the marks TM, SM,
   (R), (C), apostrophe letters and spacing accents become spaces.
2. Unicode NFKC and casefold: full-width becomes narrow, "ß" becomes "ss", "½" becomes "1/2".
3. Punctuation, controls, private use, and the ASCII symbols | ~ < > ^ ` = (separators in alt texts) become spaces. So
   "St. Louis" is "st louis", "(dog)" is "dog", "dog's" is "dog s", "dog/cat" is "dog cat".
4. `&`, `%` and every other symbol (currency, emoji, arrows) stay, each as a word of its own: "AT&T" is "at & t".
5. `+` and `#` stay where they end a word: "C++", "C#", "A+", "18+". In front of or inside a word they are spaces.
6. Letters, digits and their combining marks stay. Scripts written without spaces (Chinese, Japanese, Thai) are not cut.
7. Words are joined by one space; a word that would begin with a combining mark loses it.

A caption of nothing but punctuation has the empty normal form: it matches no query, and two such captions are not the
same caption for that reason (callers must not group by the empty string).

Characters that Python's Unicode tables do not know yet count as symbols, which is what new code points mostly are (emoji).
"""

import html
import re
import unicodedata
from collections.abc import Callable

import ftfy

MAX_RAW_CHARS = 20_000
"""Longer raw texts are cut before cleaning: nobody's alt text, and the repair is not linear in everything."""

MAX_CAPTION_CHARS = 2_000
"""Length of a cleaned caption in code points; the text encoders read 77 tokens."""

_FTFY = ftfy.TextFixerConfig(unescape_html=False, uncurl_quotes=False, explain=False)
_SPACE_PUNCTUATION = frozenset("|~<>^`=\u2044")  # symbols by category, separators by use
_OWN_WORD_PUNCTUATION = frozenset("&%")  # punctuation by category, words by use
_SPACE_LETTERS = frozenset("\u02b9\u02bb\u02bc\u02bd")  # letters by category, apostrophes by use
_LEGAL_MARKS = frozenset("\u2122\u2120\u00ae\u00a9")
_FILLERS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0")
_HALF = re.compile("[\ud800-\udfff]")
_LOOSE_ENDS = re.compile(r"(?<![\w+#])[+#]+|[+#]+(?=\w)")
_ASCII_TABLE = {code: " " for code in range(128) if not chr(code).isalnum() and chr(code) not in "+#&%$"}
_ASCII_TABLE |= {ord(symbol): f" {symbol} " for symbol in "&%$"}


def clean(caption_raw: str) -> str:
    """The caption as it is stored: repaired, unescaped, NFC, one line, at most MAX_CAPTION_CHARS; may be empty."""
    text = repaired(caption_raw[:MAX_RAW_CHARS])
    if len(text) > MAX_CAPTION_CHARS:
        end = MAX_CAPTION_CHARS
        while end and (unicodedata.combining(text[end]) or text[end] in "\u200d\ufe0f"):
            end -= 1  # not between a letter and its accent, nor inside a joined emoji
        text = text[:end].rstrip()
    return text


def has_half(text: str) -> bool:
    """Whether there is half of a surrogate pair in it, as JSON can say it: no character, and UTF-8 cannot write it."""
    return _HALF.search(text) is not None


def repaired(text: str) -> str:
    """What `clean` makes of a text but for its length: for texts that are compared with stored captions, and are none."""
    if not (text.isascii() and text.isprintable() and "&" not in text):
        for _ in range(3):  # some pages escape twice, a few three times
            unescaped = html.unescape(text)
            if unescaped == text:
                break
            text = unescaped
        text = ftfy.fix_text(text, _FTFY)
        text = unicodedata.normalize("NFC", text.translate(_CLEAN_TABLE))
    return " ".join(text.split())


def normal_form(caption: str) -> str:
    """The form in which captions are compared; idempotent. See the top of this file for the exact rules."""
    if caption.isascii():
        return _join_words(caption.lower().translate(_ASCII_TABLE))
    text = caption
    # One round is enough but for rare code points whose folded form folds again; four have never been needed.
    for _ in range(8):
        folded = _fold(text)
        if folded == text:
            break
        text = folded
    return text


def shingles(caption: str) -> list[bytes]:
    """Distinct character 5-grams of the padded normal form, as UTF-8, in order of first appearance; never empty.

    The padding is one space on either side, and more on the right up to five characters: a one-letter caption, and the
    empty one, have one shingle.
    """
    padded = f" {normal_form(caption)} ".ljust(5)
    return [gram.encode() for gram in dict.fromkeys(padded[at : at + 5] for at in range(len(padded) - 4))]


def fold_once(text: str) -> tuple[str, str, str, str]:
    """The steps of one round before words are joined: with rule 1 applied, in NFKC, casefolded, with rules 3, 4 and 6 applied."""
    before = text.translate(_BEFORE_TABLE)
    composed = unicodedata.normalize("NFKC", before)
    folded = unicodedata.normalize("NFKC", composed.casefold())
    return before, composed, folded, folded.translate(_AFTER_TABLE)


def _fold(text: str) -> str:
    words = _join_words(fold_once(text)[-1]).split(" ")
    return " ".join(filter(None, (_without_leading_marks(word) for word in words)))


def _join_words(text: str) -> str:
    if "+" in text or "#" in text:
        text = _LOOSE_ENDS.sub(" ", text)
    return " ".join(text.split())


def _without_leading_marks(word: str) -> str:
    at = 0
    while at < len(word) and unicodedata.category(word[at])[0] == "M":
        at += 1
    return word[at:]


# ---------------------------------------------------------------- what becomes of a character


class _Table(dict[int, str]):
    """A `str.translate` table filled in by `rule` as characters turn up: a million code points, of which a corpus uses few."""

    def __init__(self, rule: Callable[[str], str]) -> None:
        super().__init__()
        self._rule = rule

    def __missing__(self, code: int) -> str:
        self[code] = value = self._rule(chr(code))
        return value


def _when_cleaning(char: str) -> str:
    """Controls, surrogates and invisible formatting vanish; white space of every kind becomes a space."""
    category = unicodedata.category(char)
    if char.isspace() or category in ("Zl", "Zp", "Zs"):
        return " "
    if category in ("Cc", "Cs") or (category == "Cf" and char not in "\u200c\u200d"):
        return ""
    return char


def _before_folding(char: str) -> str:
    """Before NFKC: what it would turn into something misleading (a trade mark into the letters "tm")."""
    if char in _LEGAL_MARKS or char in _SPACE_LETTERS:
        return " "
    if unicodedata.category(char) == "Cf" or char in _FILLERS or _is_variation_selector(char):
        return ""
    # A spacing accent decomposes into a space and a loose combining mark.
    spaced = unicodedata.normalize("NFKC", char)
    return " " if len(spaced) > 1 and spaced[0] == " " else char


def _after_folding(char: str) -> str:
    """Keep, make a space, or set apart as a word."""
    category = unicodedata.category(char)
    if char in "+#":
        return char
    if char in _OWN_WORD_PUNCTUATION:
        return f" {char} "
    if category[0] in "PZ" or category in ("Cc", "Cs", "Co") or char in _SPACE_PUNCTUATION or char.isspace():
        return " "
    if char in _SPACE_LETTERS:
        return " "
    if category[0] == "S" or category == "Cn":
        return f" {char} "
    return char


def _is_variation_selector(char: str) -> bool:
    return "\ufe00" <= char <= "\ufe0f" or "\U000e0100" <= char <= "\U000e01ef"


_CLEAN_TABLE, _BEFORE_TABLE, _AFTER_TABLE = _Table(_when_cleaning), _Table(_before_folding), _Table(_after_folding)
