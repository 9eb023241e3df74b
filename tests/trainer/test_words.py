"""Cleaning and splitting against ftfy, html and the regular expression themselves: on every character, and on whatever hypothesis finds."""

import itertools
import random
import time

import ftfy
import numpy as np
import pytest
import regex
from ftfy.badness import MOJIBAKE_CATEGORIES, is_bad
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.trainer.naive_tokenizer import ANYTHING, PATTERN, naive_clean, naive_words
from trainer.tokenizer import words
from trainer.tokenizer.words import END_TEXT, START_TEXT, character_classes, clean, next_word

EVERY_CHARACTER = [chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000]


def split(cleaned: str) -> list[str]:
    """The words of a cleaned text, by the compiled loop."""
    data = np.frombuffer(cleaned.encode(), np.uint8)
    found: list[str] = []
    at = 0
    while True:
        start, at, mark = next_word(data, at, len(data), character_classes())
        if start == at:
            assert at == len(data)
            return found
        word = data[start:at].tobytes().decode()
        assert mark == {START_TEXT: words.START_MARK, END_TEXT: words.END_MARK}.get(word, 0)
        found.append(word)


@given(ANYTHING)
@settings(max_examples=600, deadline=None)
@example("A\u00e9\u2019S")
@example("\u00c3 la mode")
@example("<|endoftext|>'s<|STARTOFTEXT|>1\u00bdx")
def test_any_text_is_cleaned_and_split_as_openai_does(text: str) -> None:
    cleaned = clean(text)
    assert cleaned == naive_clean(text)
    assert split(cleaned) == naive_words(text)


MOJIBAKE = "".join(MOJIBAKE_CATEGORIES.values()).replace("-", "") + "\u0413\u045e\u0412\u201a\u00c3\u00c2\u0152\u0153"


@given(st.lists(st.sampled_from([*MOJIBAKE, *"aAz .0'-\u2018\u2019\u201c\u201d\u2013"]), max_size=8).map("".join))
@settings(max_examples=1500, deadline=None)
def test_text_in_a_wrong_encoding_is_still_repaired(text: str) -> None:
    assert clean(text) == naive_clean(text)


def test_every_character_is_cleaned_as_ftfy_does() -> None:
    """Between spaces, sixteen at a time, so that few share a text with one that goes the long way."""
    known = [character for character in EVERY_CHARACTER if ord(character) < 0x20000]
    for start in range(0, len(known), 16):
        text = " ".join(known[start : start + 16])
        assert clean(text) == naive_clean(text), hex(start)


def test_what_is_taken_for_sound_is_not_repaired_in_any_company() -> None:
    """ftfy's search looks at one or two characters on either side of a suspicious one."""
    letters = [chr(point) for point in range(0xDF, 0x100) if chr(point) != "\u00f7"]
    outer = "aA .0'\u2013\u2014\u2018\u2019\u201c\u201d\u2026\u00e9"
    tried = 0
    for letter, first, before, after, last in itertools.product(letters, outer, "aA .", "aA .", outer):
        text = first + before + letter + after + last
        assert words._SOUND.fullmatch(text)
        assert not is_bad(text), text
        tried += 1
    for text in map("".join, itertools.product(outer[:-1], repeat=4)):
        assert words._SOUND.fullmatch(text)
        assert not is_bad(text), text
        tried += 1
    assert tried > 100_000
    for text in ("\u00e9\u00e8", "\u00e9\u2019", "\u2019\u00e9", "\u00c3", "\u00a9", "\u00f7", "\x1b", "x\u0153"):
        assert not words._SOUND.fullmatch(text)


def test_the_classes_are_the_expressions_in_any_order_of_characters() -> None:
    """Every character there is, lower case, in three random orders: the expression's words are the loop's words."""
    for seed in range(3):
        characters = list(EVERY_CHARACTER)
        random.Random(seed).shuffle(characters)
        text = "".join(characters[:400_000]).lower()
        assert split(text) == PATTERN.findall(text)


def test_the_long_s_alone_is_another_case_of_an_ascii_letter() -> None:
    """What `next_word` has to know of case: of all that lower() leaves as it is, one character matches a letter of the marks."""
    letter = regex.compile("[a-z]", regex.IGNORECASE)
    left = {lower for character in EVERY_CHARACTER[128:] for lower in character.lower() if letter.match(lower)}
    assert {character for character in left if not character.isascii()} == {"\u017f"}
    assert split("'\u017f '\u017fx") == PATTERN.findall("'\u017f '\u017fx") == ["'\u017f", "'\u017f", "x"]


@pytest.mark.parametrize("text", ["a" * 2_000_000, "&" * 300_000, "\u00e9" * 200_000, "<|" * 300_000, " \t" * 300_000])
def test_endless_captions_are_quick(text: str) -> None:
    split("a")  # compiles, where no other test has
    started = time.process_time()
    cleaned = clean(text)
    assert len(split(cleaned)) <= 1
    assert time.process_time() - started < 5
    assert cleaned == ftfy.fix_text(text).strip().lower()
