"""X-Robots-Tag values with what they mean written beside them by hand, from the search engines' documentation of the header.

The first nine are those that img2dataset was measured on; it lets four of them pass that opt out.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.crawl.opt_out import OPT_OUT_DIRECTIVES, directive_against_us

CASES: list[tuple[list[str], str | None]] = [
    (["noai"], "noai"),
    (["noindex, noimageai"], "noindex"),
    (["img2dataset: noindex"], "noindex"),
    (["otherbot: noai"], None),
    (["nofollow"], None),
    (["unavailable_after: 25 Jun 2010 15:00:00 PST, noai"], "noai"),
    (["googlebot: nofollow, img2dataset: noindex"], "noindex"),
    (["max-image-preview:large, noai"], "noai"),
    (["none"], "none"),
    # Several header lines, each for itself.
    (["nofollow", "noml"], "noml"),
    (["otherbot: nofollow", "noai"], "noai"),
    (["otherbot: noai", "nofollow"], None),
    (["img2dataset: nofollow", "otherbot: noai"], None),
    # An agent's name holds until the next one.
    (["otherbot: noai, noindex"], None),
    (["otherbot: nofollow, noai"], None),
    (["img2dataset: nofollow, noai"], "noai"),
    (["otherbot: noai, img2dataset: nofollow"], None),
    (["img2dataset: nofollow, otherbot: noai"], None),
    (["noai, otherbot: nofollow"], "noai"),
    (["a: noai, b: noai, img2dataset: noimageindex"], "noimageindex"),
    (["*: noai"], "noai"),
    (["otherbot: nofollow, *: noai"], "noai"),
    (["IMG2Dataset: NoAI"], "noai"),
    (["img2dataset/1.47: noai"], "noai"),
    (["img2dataset : noai"], "noai"),
    (["img2dataset2: noai"], None),
    (["myimg2dataset: noai"], None),
    # Values with colons, commas and dates.
    (["unavailable_after: Fri, 25 Jun 2010 15:00:00 GMT, noai"], "noai"),
    (["unavailable_after: Friday, 25-Jun-10 15:00:00 UTC, noimageai"], "noimageai"),
    (["unavailable_after: 2010-06-25T15:00:00+02:00, noml"], "noml"),
    (["unavailable_after: 25 Jun 2010 15:00:00 PST"], None),
    (["otherbot: unavailable_after: 25 Jun 2010 15:00:00 PST, noai"], None),
    (["img2dataset: unavailable_after: 25 Jun 2010 15:00:00 PST, noai"], "noai"),
    (["max-snippet:-1, max-image-preview:none, max-video-preview:0"], None),
    (["max-snippet: 20 , noindex"], "noindex"),
    # Spelling.
    (["  NOAI  "], "noai"),
    (["nofollow;noai"], "noai"),
    (["nofollow noai"], "noai"),
    (["noairplanes, noindexes, nonesuch"], None),
    (["all"], None),
    ([""], None),
    ([",,,:,"], None),
    ([], None),
]


@pytest.mark.parametrize(("values", "directive"), CASES)
def test_what_each_value_means(values: list[str], directive: str | None) -> None:
    assert directive_against_us(values, "img2dataset") == directive


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["", "otherbot", "ourbot"]),
            st.lists(st.sampled_from(["noai", "none", "nofollow", "max-snippet: 3", "all"]), min_size=1, max_size=3),
        ),
        max_size=4,
    )
)
def test_lines_written_from_their_meaning_are_read_back(lines: list[tuple[str, list[str]]]) -> None:
    """Each line is written with at most one agent, so that there is one meaning; folding those that name one changes nothing."""
    values = [f"{agent}: {', '.join(words)}" if agent else ", ".join(words) for agent, words in lines]
    against = [word for agent, words in lines if agent != "otherbot" for word in words if word in OPT_OUT_DIRECTIVES]
    assert directive_against_us(values, "OurBot") == (against[0] if against else None)
    named = [(agent, value) for (agent, _), value in zip(lines, values, strict=True) if agent]
    folded = ", ".join(value for _, value in named)
    assert directive_against_us([folded], "OurBot") == directive_against_us([value for _, value in named], "OurBot")


@given(st.text(max_size=200))
def test_no_value_breaks_it(value: str) -> None:
    directive_against_us([value], "ourbot")


def test_of_a_long_value_only_the_beginning_is_read() -> None:
    assert directive_against_us(["x" * 10_000_000 + ", noai"], "ourbot") is None
