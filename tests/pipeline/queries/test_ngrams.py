"""Words, bigrams, PMI. Truth is a naive count over text that needs no normal form, and the matcher itself."""

import itertools
import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.content.scripts import is_spaceless
from pipeline.content.text import normal_form
from pipeline.match import Matcher
from pipeline.queries.markup import BREAK
from pipeline.queries.ngrams import Tally, pmi


def tally(*lines: str, numbers: bool = False) -> Tally:
    found = Tally(numbers=numbers)
    found.add(lines)
    return found


def test_counts_are_those_of_a_naive_twin() -> None:
    dice = random.Random(11)
    sentences = [
        [dice.choice(["dog", "cat", "bird", "tree", "sky", "sea"]) for _ in range(dice.randrange(1, 9))]
        for _ in range(500)
    ]
    lines = [". ".join(" ".join(sentence) for sentence in sentences[at : at + 5]) for at in range(0, 500, 5)]
    found = tally(*lines)
    assert found.words == Counter(itertools.chain.from_iterable(sentences))
    assert found.bigrams == Counter(" ".join(pair) for one in sentences for pair in itertools.pairwise(one))
    assert found.tokens == sum(map(len, sentences))


@pytest.mark.parametrize(
    ("line", "words", "bigrams"),
    [
        ("A dog, a cat", "a dog a cat", ["a dog", "a cat"]),
        ("well-known C++, C# book", "well known c++ c# book", ["well known", "known c++", "c# book"]),
        ("the dog's tail they're here", "the dog tail they here", ["the dog", "tail they"]),
        ("O'Neil said 'hello world'", "o neil said hello world", ["o neil", "neil said", "hello world"]),
        ("in 1984 war", "in war", []),
        ("mp3 and 3d", "mp3 and 3d", ["mp3 and", "and 3d"]),
        ("rock & roll $ money", "rock roll money", []),
        ("Paris–Dakar race – now", "paris dakar race now", ["dakar race"]),
        ("Straße ﬁne", "strasse fine", ["strasse fine"]),
        (f"one{BREAK}two three", "one two three", ["two three"]),
        ("ends. Begins; goes", "ends begins goes", []),
        ("visit 東京都 today", "visit today", []),
        ("x" * 300 + " long", "long", []),
    ],
)  # fmt: skip
def test_what_a_word_is(line: str, words: str, bigrams: list[str]) -> None:
    found = tally(line)
    assert sorted(found.words.elements()) == sorted(words.split())
    assert sorted(found.bigrams.elements()) == sorted(bigrams)


def test_numbers_are_words_when_wanted_and_scripts_without_spaces_are_counted_apart() -> None:
    assert tally("in 1984 war", numbers=True).bigrams == {"in 1984": 1, "1984 war": 1}
    found = tally("犬と猫 ไทย dog")
    assert (found.unsegmented, found.tokens) == (2, 1)


@settings(deadline=None)  # the first call compiles the matcher
@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=60))
def test_what_is_counted_matches_the_text_it_was_counted_in(text: str) -> None:
    found = tally(text)
    queries = [*found.words, *found.bigrams]
    assert all(normal_form(query) == query for query in queries)
    assert Matcher(queries).match_one(text) == list(range(len(queries)))


@pytest.mark.parametrize("script", ["中", "あ", "ア", "ㄅ", "ก", "ລ", "ཀ", "က", "ក", "a", "я", "ع", "한", "ह"])
def test_the_matcher_cuts_the_same_scripts(script: str) -> None:
    cut = Matcher([script]).match_one(script * 3) == [0]
    assert is_spaceless(script) == cut


def test_pmi_is_the_formula() -> None:
    dice = random.Random(5)
    rows = [(dice.randrange(1, 50), dice.randrange(50, 900), dice.randrange(50, 900)) for _ in range(200)]
    both, first, second = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    truth = [math.log2(pair * 10**9 / (one * other)) for pair, one, other in rows]
    assert pmi(both, first, second, 10**9) == pytest.approx(truth, abs=1e-6)
    assert pmi(np.array([4]), np.array([8]), np.array([16]), 1024).tolist() == [5.0]
