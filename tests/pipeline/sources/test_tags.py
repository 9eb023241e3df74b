"""Tags with too many attributes: the parser itself says how many are left, over texts whose tags only a parser can tell."""

import random
import time

import pytest
from resiliparse.parse.html import HTMLTree

from pipeline.sources.tags import MAX_ATTRIBUTES, bounded

_PIECES = (
    "<img", "<p", "<P/", "<br", "</p", ">", ">", " ", "\n", "\t", "/", "=", "=", '"', '"', "'", "'", "<script>", "</script>", "<!--", "-->",
    "<title>", "</title>", "<svg>", "<![CDATA[", "<textarea", "</textarea>", "<template>", "é", "日", "<", "&lt;", "\0",
    "<3", "<plaintext", "a<b",
)  # fmt: skip


def _most_attributes(text: str) -> int:
    document = HTMLTree.parse(text).document
    assert document is not None
    return max(len(element.attrs) for element in document.query_selector_all("*").values())


@pytest.mark.parametrize("most", [1, 2, 5])
def test_no_element_of_any_text_has_more(most: int) -> None:
    """Whatever hides a tag from a reader that goes from left to right: quotes, comments, scripts, foreign elements."""
    chance = random.Random(most)
    longest = 0
    for _ in range(4000):
        text = "".join(
            chance.choice(_PIECES) if chance.random() < 0.5 else f"{chance.choice(' /')}a{chance.randrange(50)}"
            for _ in range(60)
        )
        longest = max(longest, _most_attributes(text))
        assert _most_attributes(bounded(text, most)) <= most, text
        assert bounded(text) is text
    assert longest > 10  # otherwise nothing was tried


def test_the_first_attributes_stay_and_other_pages_are_left_alone() -> None:
    many = " ".join(f"é{number}='>'" for number in range(MAX_ATTRIBUTES - 2))
    text = f"<!-- a<b {many} --><script>a<b {many}</script><p {many}><img {many} src=a.jpg alt='x > y'>"
    assert bounded(text) is text
    cut = bounded(f"<img src=a.jpg {many} alt=two été='3' four=4><b>bold</b>")
    assert cut == f"<img src=a.jpg {many} alt=two>été='3' four=4><b>bold</b>"
    assert bounded("<p a='1'b=2 c>", 1) == "<p a='1'>=2 c>"
    assert bounded("<p a='1'日=2 c>", 1) == "<p a='1'>  =2 c>"
    script = f"<script>if (a<b) {'x ' * MAX_ATTRIBUTES}</script><img src=a.jpg>"
    assert len(HTMLTree.parse(bounded(script)).document.get_elements_by_tag_name("img").values()) == 1  # type: ignore[union-attr]


def test_attributes_of_further_html_and_body_elements_are_not_merged_without_end() -> None:
    for name in ("html", "BODY"):
        text = "<html><body>" + "".join(f"<{name} a{number}>" for number in range(100)) + "<img src=a.jpg>"
        assert _most_attributes(text) > 90
        assert 8 <= _most_attributes(bounded(text)) <= 9
        few = "<!--[if IE]><html class=ie><![endif]-->" * 4 + "<html lang=en><body class=x><img src=a.jpg>"
        assert bounded(few) is few


@pytest.mark.parametrize(
    "text",
    [
        "<img " + " ".join(f"a{number}" for number in range(600_000)) + " src=a alt=b>",
        "<img " + " ".join(f"a{number}='>'" for number in range(300_000)) + ">",
        "<script>a<b c=\"</script><img " + " ".join(f"a{number}" for number in range(600_000)) + ">",
        "".join(f"<html a{number}>" for number in range(100_000)),
        ("<p " + " ".join(f"a{number}" for number in range(1000)) + ">") * 700,
    ],
)  # fmt: skip
def test_four_megabytes_of_attributes_are_parsed_in_seconds(text: str) -> None:
    before = time.process_time()
    HTMLTree.parse(bounded(text))
    assert time.process_time() - before < 15
