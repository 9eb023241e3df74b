"""X-Robots-Tag values with what they mean written beside them by hand, from the search engines' documentation of the header.

The first nine are those that img2dataset was measured on; it lets four of them pass that opt out.
"""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.content.opt_out import DIRECTIVES, in_headers, in_meta

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
    (["max-image-preview: none"], None),
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
    assert in_headers(values, ["img2dataset"]) == directive


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["", "otherbot", "ourbot"]),
            st.lists(st.sampled_from(["noai", "none", "nofollow", "max-snippet: 3", "all"]), min_size=1, max_size=3),
        ),
        max_size=4,
    )
)
@settings(deadline=None)
def test_lines_written_from_their_meaning_are_read_back(lines: list[tuple[str, list[str]]]) -> None:
    """Each line is written with at most one agent, so that there is one meaning; folding those that name one changes nothing."""
    values = [f"{agent}: {', '.join(words)}" if agent else ", ".join(words) for agent, words in lines]
    against = [word for agent, words in lines if agent != "otherbot" for word in words if word in DIRECTIVES]
    assert in_headers(values, ["OurBot"]) == (against[0] if against else None)
    named = [(agent, value) for (agent, _), value in zip(lines, values, strict=True) if agent]
    folded = ", ".join(value for _, value in named)
    assert in_headers([folded], ["OurBot"]) == in_headers([value for _, value in named], ["OurBot"])


@given(st.text(max_size=200))
@settings(deadline=None)
def test_no_value_breaks_it(value: str) -> None:
    in_headers([value], ["ourbot"])


def test_of_a_long_value_only_the_beginning_is_read() -> None:
    assert in_headers(["x" * 10_000_000 + ", noai"], ["ourbot"]) is None


def test_of_many_lines_only_as_much_is_read() -> None:
    """A hundred lines of 8 kB, the most that an answer may have, in the time of one: every colon of them could follow a name."""
    lines = ["x" * 4000, "y" * 4000, "z" * 4000 + ", noai"]
    assert in_headers([*lines[:2], "noai"], ["ourbot"]) == "noai"
    assert in_headers(lines, ["ourbot"]) is None
    began = time.process_time()
    for line in ("a:" * 4000, "a," * 4000, "a:" * 4000 + "a b," * 10):
        assert in_headers([line] * 100, ["ourbot"]) is None
    assert time.process_time() - began < 0.2


def test_several_names_may_be_ours_and_none_need_be() -> None:
    assert in_headers(["otherbot: noindex, ourbot: nofollow, noml"], ["first", "OurBot"]) == "noml"
    assert in_headers(["otherbot: noindex", "noimageindex"], []) == "noimageindex"
    assert in_headers(["ourbot: noai"], []) is None


def test_meta_elements() -> None:
    assert in_meta("ROBOTS", "index, NoAI", []) == "noai"
    assert in_meta("robots", "index, follow, max-image-preview:large", []) is None
    assert in_meta("robots", "max-image-preview:none", []) is None
    assert in_meta("robots", "nofollow noml", []) == "noml"
    assert in_meta("ccbot", "none", []) is None
    assert in_meta("CCBot", "none", ["ccbot"]) == "none"
    assert in_meta("ccbot", "none", ["CCBot"]) == "none"
    assert in_meta("description", "noai", []) is None
