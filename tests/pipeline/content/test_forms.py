"""The normal form of columns against the normal form of each caption: every character in several neighbourhoods, and random text."""

import itertools
import random
import unicodedata
from collections.abc import Iterable

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.content.forms import normal_forms
from pipeline.content.kernels import text_buffers
from pipeline.content.text import normal_form
from tests.pipeline.content.test_text import ANY_TEXT, TRICKY


def _neighbourhoods(points: Iterable[int]) -> list[str]:
    chars = [chr(point) for point in points]
    return [f"a{char}b {char} x a+{char}+b {char}{char}1 {char}#" for char in chars]


def _agree(captions: list[str]) -> None:
    found = normal_forms(pa.array(captions, pa.string())).to_pylist()
    assert [
        (caption, form) for caption, form in zip(captions, found, strict=True) if form != normal_form(caption)
    ] == []


def test_every_letter_mark_number_and_sign_among_others() -> None:
    known = [point for point in range(0x30000) if unicodedata.category(chr(point)) not in ("Cn", "Co", "Cs", "Lo")]
    ideographs = random.Random(1).sample([p for p in range(0x30000) if unicodedata.category(chr(p)) == "Lo"], 6000)
    assert len(known) > 15_000
    _agree(_neighbourhoods(known + ideographs))


@pytest.mark.prove
def test_every_code_point_among_others() -> None:
    points = [point for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    for start in range(0, len(points), 100_000):
        _agree(_neighbourhoods(points[start : start + 100_000]))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.text(max_size=60), TRICKY), max_size=8))
def test_random_captions(captions: list[str]) -> None:
    _agree(captions)


@settings(max_examples=300, deadline=None)
@given(ANY_TEXT)
def test_any_text_that_utf8_can_hold(caption: str) -> None:
    _agree([caption.encode("utf-8", "replace").decode()])


def test_nulls_slices_chunks_and_large_strings() -> None:
    captions = ["Ein HUND", None, "e\u0301 C++", "", "\ufdfa" * 500, "犬", None, "x" * 5000]
    expected = [None if caption is None else normal_form(caption) for caption in captions]
    column = pa.array(captions, pa.string())
    assert normal_forms(column).to_pylist() == expected
    assert normal_forms(column.slice(2, 4)).to_pylist() == expected[2:6]
    assert normal_forms(pa.chunked_array([column.slice(1, 3), column.slice(4)])).to_pylist() == expected[1:]
    assert normal_forms(column.cast(pa.large_string()).slice(1)).to_pylist() == expected[1:]
    assert normal_forms(pa.array([], pa.string())).to_pylist() == []
    assert normal_forms(pa.array([None], pa.string())).to_pylist() == [None]


def test_buffers_of_a_slice_are_its_rows() -> None:
    data, starts = text_buffers(pa.array(["ab", None, "", "cde", "f"]).slice(1, 3))
    assert [bytes(data[start:end]) for start, end in itertools.pairwise(starts)] == [b"", b"", b"cde"]
