"""Matching against a naive twin that tries every query at every place, and queries that other matchers lose."""

import hashlib
import pickle
import random
import unicodedata
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.content.text import normal_form
from pipeline.contracts.errors import InputError
from pipeline.match import Matcher, load_queries

_SCRIPTS = (
    "CJK UNIFIED",
    "CJK COMPATIBILITY IDEOGRAPH",
    "HIRAGANA",
    "KATAKANA",
    "THAI",
    "LAO",
    "KHMER",
    "MYANMAR",
    "TIBETAN",
)


def _spaceless(char: str) -> bool:
    return unicodedata.name(char, "").startswith(_SCRIPTS)


def _naive(caption: str, queries: list[str]) -> list[int]:
    """Every occurrence of every query, kept where both of its ends are word ends."""
    text, found = normal_form(caption), []
    for index, query in enumerate(map(normal_form, queries)):
        place = text.find(query) if query else -1
        while place >= 0:
            end = place + len(query)
            starts = place == 0 or text[place - 1] == " " or _spaceless(text[place - 1]) or _spaceless(text[place])
            ends = end == len(text) or text[end] == " " or _spaceless(text[end]) or _spaceless(text[end - 1])
            if starts and ends:
                found.append(index)
                break
            place = text.find(query, place + 1)
    return found


_WORDS = ["dog", "dogs", "red", "St. Louis", "(dog)", "C++", "C", "new", "york", "AT&T", "50%", "café", "ＣＡＦÉ", "ß"]
_WORDS += ["狗", "红色", "红", "東京タワー", "タワー", "東京", "แมว", "แมวน้ำ", "🐕", "it's", "x-ray", "Ünder"]


@pytest.mark.parametrize(("mode", "in_empty"), [("normalised", []), ("metaclip", [0])])
def test_a_null_matches_nothing(mode: Literal["normalised", "metaclip"], in_empty: list[int]) -> None:
    """Unlike an empty caption, in which MetaCLIP finds an empty entry."""
    captions = pa.array([None, "a dog", "", None], pa.string())
    matcher = Matcher(["", "dog"], mode)
    for column in (captions, pa.chunked_array([captions[:1], captions[1:]])):
        assert matcher.match(column).to_pylist() == [[], [1], in_empty, []]


def test_equals_the_naive_twin_on_random_captions() -> None:
    random_ = random.Random(4)
    queries = _WORDS + ["".join(random_.choices(_WORDS, k=2)) for _ in range(40)]
    queries += [" ".join(random_.choices(_WORDS, k=random_.randint(2, 4))) for _ in range(120)]
    captions = [
        "".join(
            random_.choice(_WORDS) + random_.choice(["", " ", " ", ", ", "-", "/"])
            for _ in range(random_.randint(0, 9))
        )
        for _ in range(1500)
    ]
    found = Matcher(queries).match(pa.array(captions)).to_pylist()
    assert found == [_naive(caption, queries) for caption in captions]
    assert sum(map(len, found)) > 5000


def _spacing(text: str) -> str:
    """What MetaCLIP does to a caption before it looks for entries in it, said in str.replace."""
    text = f" {text} "
    for mark in [",", ".", ";", ":", "?", "!", "`"]:
        text = text.replace(mark, f" {mark} ")
    for blank in ["\t", "\n", "\r"]:
        text = text.replace(blank, " ")
    return text


def test_mode_metaclip_equals_plain_substring_search() -> None:
    random_ = random.Random(5)
    parts = [
        "dog",
        "Dog",
        "St. Louis",
        "(dog)",
        "a",
        ",",
        ".",
        "!",
        "`",
        " ",
        "  ",
        "\t",
        "\n",
        "狗",
        "é",
        ";:",
        "red",
        "-",
    ]
    entries = sorted({"".join(random_.choices(parts, k=random_.randint(1, 5))) for _ in range(1500)})
    captions = ["".join(random_.choices(parts, k=random_.randint(0, 14))) for _ in range(1500)]
    found = Matcher(entries, mode="metaclip").match(pa.array(captions)).to_pylist()
    spaced = [f" {entry} " for entry in entries]
    assert found == [[i for i, entry in enumerate(spaced) if entry in _spacing(caption)] for caption in captions]
    assert sum(map(len, found)) > 5000


def test_long_queries_long_captions_and_many_matches() -> None:
    words = [f"w{number}" for number in range(120)]
    queries = [" ".join(words[first : first + size]) for first in range(60) for size in (1, 2, 31, 32, 33, 40, 60)]
    captions = [" ".join(words), " ".join(words[::-1]), " ".join(words[:45]), " ".join(words * 30), "狗" * 5000]
    queries += ["狗" * size for size in (1, 31, 32, 40, 64)]
    found = Matcher(queries).match(pa.array(captions)).to_pylist()
    assert found == [_naive(caption, queries) for caption in captions]
    assert len(found[0]) == len(found[3]) == len(queries) - 5
    assert len(found[4]) == 5


def test_texts_whose_hashes_collide_are_told_apart() -> None:
    # Modulo 2**64 a polynomial hash cannot tell the Thue-Morse word of 2048 letters from its complement, whatever its base.
    word = "".join("ab"[bin(number).count("1") % 2] for number in range(2048))
    other = word.translate(str.maketrans("ab", "ba"))
    queries = [word, other, f"{word} x", f"{other} x", "x"]
    matcher = Matcher(queries)
    captions = [word, other, f"{word} x", f"{other} x", f"y {other} {word} x"]
    assert matcher.match(pa.array(captions)).to_pylist() == [[0], [1], [0, 2, 4], [1, 3, 4], [0, 1, 2, 4]]


def test_a_matcher_comes_through_pickle_without_copies() -> None:
    matcher = Matcher(_WORDS)
    buffers: list[pickle.PickleBuffer] = []
    small = pickle.dumps(matcher, protocol=5, buffer_callback=buffers.append)
    assert len(small) < 2000
    again = pickle.loads(small, buffers=buffers)
    assert again.match(pa.array(["a red dog"])).equals(matcher.match(pa.array(["a red dog"])))


_ALONE = ["St. Louis", "(dog)", "C++", "C#", "AT&T", "U.S.", "dog's", "dog/cat", "A+", "100%", "红色的狗", "東京タワー"]
_ALONE += ["แมวน้ำ", "ព្រះ", "ÀÉ", "ﬁre", "🐕", "日本 Tokyo", "ｆｕｌｌ　ｗｉｄｔｈ", "İstanbul", "ὈΔΥΣΣΕΎΣ"]


@pytest.mark.parametrize("query", _ALONE)
def test_every_query_matches_itself_and_inside_a_sentence(query: str) -> None:
    matcher = Matcher(["unrelated", query])
    captions = [query, f"a photo of {query} today", query.upper(), f"“{query}”", f"({query}), seen"]
    assert matcher.match(pa.array(captions)).to_pylist() == [[1]] * len(captions)


def test_spaceless_scripts_match_inside_a_run_and_words_do_not() -> None:
    matcher = Matcher(["狗", "แมว", "タワー", "dog", "iphone"])
    captions = ["一只红色的狗在跑", "รูปแมวน่ารัก", "東京タワーの夜", "hotdog dogma", "新iPhone手机", None, ""]
    assert matcher.match(pa.array(captions)).to_pylist() == [[0], [1], [2], [], [4], [], []]


def test_overlapping_and_repeated_queries_all_match() -> None:
    matcher = Matcher(["new york", "york", "new york city", "New York", "city", "!!!"])
    assert matcher.match_one("In NEW YORK CITY") == [0, 1, 2, 3, 4]
    chunked = pa.chunked_array([["york"], ["york", "paris"]])
    assert matcher.match(chunked).to_pylist() == [[1], [1], []]
    assert matcher.match(pa.array([], pa.string())).type == pa.list_(pa.int32())
    with pytest.raises(InputError, match="mode"):
        Matcher([], mode="other")  # type: ignore[arg-type]


def test_query_lists(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    text = tmp_path / "queries.txt"
    text.write_text("red dog\n\n  Cat \r\ncat\n???\nSt. Louis\n", encoding="utf-8")
    found = load_queries(str(text))
    assert found.queries == ["red dog", "Cat", "St. Louis"]
    assert caplog.messages == [f"{text}: 3 queries; left out 1 without letters, 1 repeated"]
    table = tmp_path / "queries.parquet"
    for column in ("query", "text"):
        pq.write_table(pa.table({column: ["red dog", "Cat", None, "St. Louis"], "score": [1, 2, 3, 4]}), table)
        assert load_queries(str(table)) == found
    assert len(caplog.messages) == 1
    cased = load_queries(str(text), "metaclip")
    assert cased.queries == ["red dog", "Cat", "cat", "???", "St. Louis"]
    assert cased.digest != found.digest
    parts = b"".join(len(query.encode()).to_bytes(8, "little") + query.encode() for query in found.queries)
    assert found.digest == hashlib.sha256(parts).hexdigest()


def test_bad_query_lists_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n ??? \n")
    with pytest.raises(InputError, match=r"empty\.txt: no query"):
        load_queries(str(empty))
    corrupt = tmp_path / "corrupt.parquet"
    corrupt.write_bytes(b"PAR1 not really")
    with pytest.raises(InputError, match="not a parquet file"):
        load_queries(str(corrupt))
    pq.write_table(pa.table({"name": ["dog"]}), tmp_path / "other.parquet")
    with pytest.raises(InputError, match="no column 'query' or 'text'"):
        load_queries(str(tmp_path / "other.parquet"))
    with pytest.raises(InputError, match="no such file"):
        load_queries(str(tmp_path / "absent.txt"))
    monkeypatch.setattr("pipeline.match.MAX_QUERIES", 2)
    long = tmp_path / "long.txt"
    long.write_text("a\nb\nc\n")
    with pytest.raises(InputError, match="3 queries, more than"):
        load_queries(str(long))
