"""The normal form written out case by case, its laws by hypothesis, and cleaning against ftfy and the standard library."""

import html
import os
import unicodedata
from pathlib import Path

import ftfy
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.content.text import MAX_CAPTION_CHARS, clean, normal_form, shingles

REAL_DATA = Path(os.environ.get("REAL_DATA", Path(__file__).parents[4] / "shared" / "data"))
ANY_TEXT = st.text(st.characters(codec=None, categories=None), max_size=60)
_TRICKY_CHARS = (
    "aA9 +#&%.-_'|$\u20ac\u2019\u00b4\u00a8\u0301\u3099\u200d\u200b\ufe0f\u2764\U0001f468\u2122\u00bd\u4e2d\u30ab"
    "\u1f88\u0345\u03c2\u0130\u00df\ufb01\uff21\uff0b\u0e01\u0e35\u1100\u1161"
)
TRICKY = st.text(st.sampled_from(_TRICKY_CHARS), max_size=24)


@pytest.mark.parametrize(
    ("caption", "form"),
    [
        ("St. Louis", "st louis"),
        ("(dog)", "dog"),
        ('"dog"', "dog"),
        ("dog/cat", "dog cat"),
        ("dog's", "dog s"),
        ("dog\u2019s", "dog s"),
        ("Hawai\u02bbi", "hawai i"),
        ("U.S.", "u s"),
        ("C++", "c++"),
        ("C++11, C++", "c 11 c++"),
        ("C# and F#", "c# and f#"),
        ("#dog +cat", "dog cat"),
        ("rock+roll", "rock roll"),
        ("Grade A+", "grade a+"),
        ("AT&T", "at & t"),
        ("H & M", "h & m"),
        ("100% cotton", "100 % cotton"),
        ("$5 \u20ac7", "$ 5 \u20ac 7"),
        ("Title | Site - Part_2", "title site part 2"),
        ("Nike\u2122 Air\u00ae", "nike air"),
        ("\u00bd cup", "1 2 cup"),
        ("1/2 cup", "1 2 cup"),
        ("\uff21\uff22\uff23\uff0b\uff0b", "abc++"),
        ("Stra\u00dfe", "strasse"),
        ("\u039f\u0394\u039f\u03a3", "\u03bf\u03b4\u03bf\u03c3"),
        ("cafe\u0301", "caf\u00e9"),
        ("I \u2764\ufe0f NY", "i \u2764 ny"),
        ("\U0001f468\u200d\U0001f469", "\U0001f468 \U0001f469"),
        ("\u72ac\u3068\u732b\u30fb\u5199\u771f\u3002", "\u72ac\u3068\u732b \u5199\u771f"),
        ("\u300a\u7ea2\u697c\u68a6\u300b", "\u7ea2\u697c\u68a6"),
        ("\u0e01\u0e35\u0e2c\u0e32", "\u0e01\u0e35\u0e2c\u0e32"),
        ("\uff76\uff9e", "\u30ac"),
        ("so\u00adft hy\u200bphen", "soft hyphen"),
        ("a\u3000b\u00a0c\nd\te\x00f", "a b c d e f"),
        ("\u00b4x \u00a8", "x"),
        ("...", ""),
        ("", ""),
        ("++ ##", ""),
    ],
)
def test_the_normal_form_by_example(caption: str, form: str) -> None:
    assert normal_form(caption) == form
    assert normal_form(form) == form


@settings(max_examples=600, deadline=None)
@given(st.one_of(ANY_TEXT, TRICKY))
@example("\u0345\u1f88")
@example("\u212b\u0327 \u1e9e")
@example("\u2474 \u33a1 \ufdfa")
def test_laws_of_the_normal_form(caption: str) -> None:
    form = normal_form(caption)
    assert normal_form(form) == form
    assert form == " ".join(form.split())
    assert unicodedata.is_normalized("NFKC", form)
    assert normal_form(f"  ({caption})!  ") == normal_form(f"({caption})")
    form.encode()


@settings(max_examples=300, deadline=None)
@given(TRICKY, TRICKY)
def test_the_form_of_a_list_of_words_is_the_list_of_forms(left: str, right: str) -> None:
    """So a phrase is found inside a caption by comparing whole words, wherever it stands."""
    assert normal_form(f"{left}, {right}").split() == normal_form(left).split() + normal_form(right).split()


def test_every_code_point_alone_is_stable() -> None:
    for code in range(0x10000):
        if 0xD800 <= code < 0xE000:
            continue
        form = normal_form(f"a{chr(code)}b")
        assert normal_form(form) == form, hex(code)


def test_the_short_way_for_ascii_is_the_long_way() -> None:
    for code in range(128):
        caption = f"x{chr(code)}Y {chr(code)}z C{chr(code)}"
        assert normal_form(f"{caption} \u732b") == f"{normal_form(caption)} \u732b", hex(code)


def test_case_and_width_do_not_matter() -> None:
    for code in range(0x21, 0x7F):
        narrow, wide = f"x{chr(code)}", f"x{chr(code + 0xFEE0)}"
        assert normal_form(narrow) == normal_form(wide) == normal_form(narrow.upper()), narrow


@given(st.one_of(ANY_TEXT, TRICKY))
@settings(deadline=None)
def test_shingles_are_the_five_grams_of_the_padded_form(caption: str) -> None:
    grams = [gram.decode() for gram in shingles(caption)]
    assert grams
    assert len(set(grams)) == len(grams)
    assert all(len(gram) == 5 for gram in grams)
    padded = f" {normal_form(caption)} "
    padded += " " * (5 - len(padded))
    assert set(grams) == {padded[at : at + 5] for at in range(len(padded) - 4)}


def test_shingles_by_example() -> None:
    assert shingles("") == shingles("?!") == [b"     "]
    assert shingles("A") == [b" a   "]
    assert shingles("dog cat") == [b" dog ", b"dog c", b"og ca", b"g cat", b" cat "]
    assert shingles("\u732b") == [" \u732b   ".encode()]


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("  two\n\tlines\r\n", "two lines"),
        ("sch\u00c3\u00b6n", "sch\u00f6n"),
        ("Tom &amp; Jerry", "Tom & Jerry"),
        ("Tom &amp;amp; Jerry &#39;s &lt;b&gt;", "Tom & Jerry 's <b>"),
        ("a\x00b\x07c\x1b[31md", "abcd"),
        ("cafe\u0301", "caf\u00e9"),
        ("zero\u200bwidth \ufeffbom \u202eturned", "zerowidth bom turned"),
        ("Keep C++, \u201cquotes\u201d & CASE!", "Keep C++, \u201cquotes\u201d & CASE!"),
        ("\U0001f468\u200d\U0001f469 \u2764\ufe0f", "\U0001f468\u200d\U0001f469 \u2764\ufe0f"),
        ("broken \ud800 half", "broken \ufffd half"),
        ("\u72ac\u3000\u732b", "\u72ac \u732b"),
        ("", ""),
        ("&nbsp;", ""),
    ],
)
def test_cleaning_by_example(raw: str, cleaned: str) -> None:
    assert clean(raw) == cleaned


@settings(max_examples=300, deadline=None)
@given(ANY_TEXT)
def test_laws_of_cleaning(raw: str) -> None:
    text = clean(raw)
    text.encode()
    assert text == " ".join(text.split())
    assert unicodedata.is_normalized("NFC", text)
    assert not any(unicodedata.category(char) in ("Cc", "Cs") for char in text)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters="&"), max_size=80))
@settings(deadline=None)
def test_the_short_way_for_plain_text_changes_nothing(raw: str) -> None:
    assert clean(raw) == " ".join(ftfy.fix_text(html.unescape(raw), uncurl_quotes=False).split())


def test_length_is_bounded_without_cutting_a_letter_in_two() -> None:
    assert len(clean("word " * 9_000)) <= MAX_CAPTION_CHARS
    accented = "e\u0323\u0301" * 3_000  # no single code point holds both marks
    text = clean(accented)
    assert MAX_CAPTION_CHARS - 3 <= len(text) <= MAX_CAPTION_CHARS
    assert clean(text) == text
    assert unicodedata.normalize("NFC", accented).startswith(text)
    assert unicodedata.combining(unicodedata.normalize("NFC", accented)[len(text)]) == 0


def test_real_captions_keep_their_words() -> None:
    path = REAL_DATA / "tables" / "laion_10k.parquet"
    if not path.exists():
        pytest.skip(f"no real data at {path}")
    captions = [text for text in pq.read_table(path, columns=["TEXT"])["TEXT"].to_pylist() if text]
    empty = 0
    for raw in captions:
        form = normal_form(clean(raw))
        assert normal_form(form) == form
        assert shingles(raw)
        empty += not form
    assert empty < 0.01 * len(captions)
