"""Wikitext to prose: what each kind of markup becomes, on planted pages and on the genuine ones."""

import re

import pytest

from pipeline.queries.dump import read_pages
from pipeline.queries.markup import BREAK, TooDeep, plain_lines
from tests.pipeline.queries.making import real_data

NAMESPACES = frozenset({"category", "file", "image"})


@pytest.mark.parametrize(
    ("wikitext", "lines"),
    [
        ("plain text", ["plain text"]),
        ("'''Dogs''' are ''good'' animals", ["Dogs are good animals"]),
        ("a [[dog]] and [[cat|two cats]] and [[wolf]]s", ["a dog and two cats and wolfs"]),
        ("see [http://x.org/a?b the page] or http://x.org/c now", [f"see  the page or {BREAK} now"]),
        ("one {{template|with [[link]]|a={{inner|x}}}} two", [f"one {BREAK} two"]),
        ("{{Infobox\n| name = Rex\n| breed = [[Dog]]\n}}\nRex is a dog", ["Rex is a dog"]),
        ("a<!-- hidden --> b", ["a b"]),
        ("a <!-- never closed b", ["a "]),
        ("state,<ref name=x>Smith 1999</ref> although<ref name=x /> small", ["state, although small"]),
        ("where <math>x^2</math> is", [f"where {BREAK} is"]),
        ("use <code>int main</code> here", [f"use {BREAK} here"]),
        ("H<sub>2</sub>O is <b>wet</b>", ["H2O is wet"]),
        ("first<br/>second", [f"first{BREAK}second"]),
        ("a < b and c > d", [f"a {BREAK} b and c > d"]),
        ("<ref>never closed", ["never closed"]),
        ("[[File:a.jpg|thumb|upright|A [[dog]] at 5px]] text", [f"{BREAK} text"]),
        ("[[Category:Dogs]]\ntext [[:category:Dogs|the dogs]]", ["text the dogs"]),
        ("== Early life ==\n* one\n** two\n# three\n: four", [" Early life ", "one", "two", "three", "four"]),
        ('{| class="wikitable"\n! head\n|-\n| cell || cell\n|}\nafter', ["after"]),
        ("{|\n| outer\n{|\n| inner\n|}\n| outer\n|}\nafter", ["after"]),
        ("{|\n| never closed\n== Next ==\ntext", [" Next ", "text"]),
        ("| a row without its table\ntext", ["text"]),
        ("caf&eacute;&nbsp;&amp;&#32;bar", ["café\xa0& bar"]),
        ("__NOTOC__text __TOC__", ["text "]),
        ("{{open [[and not closed", [f"{BREAK}open {BREAK}and not closed"]),
        ("{{a [[b }} c ]] d", [f"{BREAK} c ]] d"]),
        ("{{{parameter|default}}} text", [f"{BREAK} text"]),
        ("{{{{{nested}}}}} text", [f"{BREAK} text"]),
        ("{{a|{{{b}}}}} text", [f"{BREAK} text"]),
        ("{{{a}} text", [f"{BREAK} text"]),
        ("<gallery>\nFile:a.jpg|caption\n</gallery>text", ["text"]),
        ("the river[[File:a.jpg|thumb|x]] flows {{convert|10|km}} north", [f"the river{BREAK} flows {BREAK} north"]),
        ("{{a}}{{b}}\n{{c}}| a row without its table", []),
    ],
)
def test_what_becomes_of_markup(wikitext: str, lines: list[str]) -> None:
    assert plain_lines(wikitext, NAMESPACES) == lines


def test_depth_is_bounded() -> None:
    assert plain_lines("{{a|" * 30 + "x" + "}}" * 30 + " text", NAMESPACES) == [f"{BREAK} text"]
    with pytest.raises(TooDeep):
        plain_lines("{{a|" * 31 + "x" + "}}" * 31, NAMESPACES)
    # What is only opened is not deep.
    assert plain_lines("{{" * 5000 + "text", NAMESPACES) == [BREAK * 5000 + "text"]


_WHOLE = 600_000
"""Letters of a hostile text."""
_HOSTILE = [
    "{{",
    "[[",
    "[[a|",
    "<ref>",
    "<a ",
    "{|\n",
    "<!--",
    "[http://a ",
    "<b>",
    "'''a ''b ",
    "[[File:a|",
    "{{#if:",
    "}}",
    "#*:;",
    "&#",
    "{{{",
    "\n{{{|",
    "[[{|\n",
    "[{|//\n",
]
_READ = ["}}{{{x|", "{{{x}} ", "{{a|" * 20 + "}}" * 20]
"""Templates and parameters that the parser does read: in time linear in them, but in seconds."""


@pytest.mark.parametrize(
    ("unit", "letters"),
    [
        *((unit, _WHOLE) for unit in _HOSTILE),
        *((unit, _WHOLE // 6) for unit in _READ),
        *(pytest.param(unit, _WHOLE, marks=pytest.mark.prove) for unit in _READ),
    ],
)
@pytest.mark.timeout(60)  # they took the parsers minutes; here they take a fraction of a second
def test_hostile_markup_ends(unit: str, letters: int) -> None:
    lines = plain_lines(unit * min(50_000, letters // len(unit)) + "\nend of the text", NAMESPACES)
    assert unit == "<!--" or lines[-1:] == ["end of the text"] or unit == "{|\n"


@pytest.mark.timeout(60)
def test_an_address_without_end_ends() -> None:
    assert plain_lines("[//" + "a" * 500_000, NAMESPACES) == [BREAK + "//" + "a" * 500_000]
    assert plain_lines("[//" + "a b" * 500_000 + "\nend", NAMESPACES)[-1] == "end"


def test_nothing_of_the_markup_is_left_of_the_genuine_articles() -> None:
    """111 articles with templates, tables, pictures and references; a few signs are the articles' own text."""
    namespaces = frozenset({"category", "file", "image", "media"})
    found = [
        line
        for path in sorted(real_data().glob("enwiki-*.bz2"))
        for page in read_pages(str(path), 0, 1 << 40, namespaces, 8 << 20)
        if page.kind == "article"
        for line in plain_lines(page.text, namespaces)
    ]
    assert len(found) > 10_000
    for sign in (
        "{{",
        "}}",
        "{|",
        "''",
        "thumb|",
        "px|",
        "class=",
        "style=",
        "http://",
        "Category:",
        "File:",
        "&nbsp;",
        "<ref",
        "</",
    ):
        assert [line for line in found if sign in line] == []
    assert sum("[[" in line for line in found) <= 1  # a title in three brackets
    prose = "Autism is a neurodevelopmental disorder characterized by impaired social interaction"
    assert any(re.match(prose, line) for line in found)
