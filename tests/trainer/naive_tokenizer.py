"""A twin of the tokenizer that follows OpenAI's description with strings and no shortcut, one of its training, and texts to try both on."""

import html
import itertools
from collections import Counter

import ftfy
import regex
from hypothesis import strategies as st

from trainer.tokenizer.words import CHARACTER_OF_BYTE, END_TEXT, START_TEXT, VOCABULARY_ORDER

PATTERN = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", regex.IGNORECASE
)


def naive_clean(text: str) -> str:
    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return str(regex.sub(r"\s+", " ", text)).strip().lower()


def naive_words(text: str) -> list[str]:
    return [str(word) for word in PATTERN.findall(naive_clean(text))]


def naive_pieces(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """Merge the neighbours of the lowest rank, everywhere from the left, until none has a rank."""
    pieces = [CHARACTER_OF_BYTE[byte] for byte in word.encode()]
    pieces[-1] += "</w>"
    while True:
        ranked = [pair for pair in itertools.pairwise(pieces) if pair in ranks]
        if not ranked:
            return pieces
        best = min(ranked, key=lambda pair: ranks[pair])
        place = 0
        while place < len(pieces) - 1:
            if (pieces[place], pieces[place + 1]) == best:
                pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]
            place += 1


class NaiveTokenizer:
    """Ids of a caption without end marks."""

    def __init__(self, merges: list[tuple[str, str]]) -> None:
        singles = [CHARACTER_OF_BYTE[byte] for byte in VOCABULARY_ORDER]
        vocabulary = [*singles, *(single + "</w>" for single in singles), *(a + b for a, b in merges)]
        self.numbers = {piece: place for place, piece in enumerate([*vocabulary, "<|startoftext|>", "<|endoftext|>"])}
        self.ranks = {pair: place for place, pair in enumerate(merges)}

    def encode(self, text: str) -> list[int]:
        found = []
        for word in naive_words(text):
            if word in ("<|startoftext|>", "<|endoftext|>"):
                found.append(self.numbers[word])
            else:
                found += [self.numbers[piece] for piece in naive_pieces(word, self.ranks)]
        return found


def naive_merges(counts: Counter[str], wanted: int) -> list[tuple[str, str]]:
    """Count every pair anew for every merge."""
    words = {word: naive_pieces(word, {}) for word in counts}
    merges: list[tuple[str, str]] = []
    made = {piece for byte in CHARACTER_OF_BYTE for piece in (byte, byte + "</w>")}
    while len(merges) < wanted:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, pieces in words.items():
            for pair in itertools.pairwise(pieces):
                if pair[0] + pair[1] not in made:
                    pairs[pair] += counts[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        if pairs[best] < 2:
            break
        merges.append(best)
        made.add(best[0] + best[1])
        # A pair that only another route could have made stays apart, as in the tokenizer.
        ranks = {pair: place for place, pair in enumerate(merges)}
        words = {word: naive_pieces(word, ranks) for word in counts}
    return merges


# ---- texts

FRAGMENTS = [
    *(START_TEXT, END_TEXT, START_TEXT.upper(), "<|endoftext", "<|endoftext|", "<|\u017ftartoftext|>", "<|", "|>", "<"),
    *("'s", "'S", "'\u017f", "'RE", "'ve", "'LL", "'l", "'d", "'D", "'m", "'t", "'", "''", "\u2019s", "\u2018ll", "\u02bcs"),
    *("\u212a", "\u0130", "\u0131", "\u00df", "\u1e9e", "\u03a3", "\u03c3", "\ufb06", "\ufb01", "\u01c6", "\u0149", "\u0345", "\u03b9"),
    *("&", "&amp;", "&amp;amp;", "&amp;amp;amp;", "&lt;", "&gt;", "&#39;", "&#x27;", "&#28;", "&#133;", "&#xd800;", "&amp", ";"),
    *("&eacute;", "&NTILDE;", "&nbsp;", "&#160;", "&lt;|endoftext|&gt;", "&\uff06", "\uff06amp;", "&#0;", "&notanentity;", "&copy"),
    *(" ", "  ", "\t", "\n", "\r\n", "\x0b", "\x0c", "\x1c", "\x1f", "\x85", "\xa0", "\u1680", "\u2003", "\u2028", "\u2029", "\u3000"),
    *("\x00", "\x1b[31m", "\x1b", "\x7f", "\u200b", "\u200d", "\ufeff", "\ufffd", "\ufffc", "\u206a", "\ud800", "\udc00", "\ud83d\ude00"),
    *("\u00e9", "e\u0301", "\u00c3\u00a9", "\u00c3 ", "\u00e2\u20ac\u2122", "\u00c2\u00a0", "\u2013", "\u2014", "\u2026", "\u201cx\u201d"),
    *("\u65e5\u672c", "\uff71", "\uff21", "\u0e01\u0e33", "\u0915\u094d", "\U0001f468\u200d\U0001f469", "\U000e0067", "\uac00"),
    *("\u1100\u1161", "a", "Bc", "1", "42", "\u00bd", "\u2167", "\u0663", "\u2460", ".", "...", "!", "-", "_", "\\", "a" * 40),
]  # fmt: skip
CORPUS = [
    "a red circle left of a blue square",
    "two blue circles above the red square",
    "the reddest of all squares isn't square",
    "Größe 42 &amp; naïve café 日本語 日本語 日本語",
    "photo_photo_photo no.7 of 100 circles!!! !!!",
]
ANYTHING = (
    st.text(st.characters(codec=None, exclude_categories=()), max_size=40)
    | st.text(st.characters(max_codepoint=0x2FF), max_size=40)
    | st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join)
)
