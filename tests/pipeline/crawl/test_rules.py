"""robots.txt: what is allowed to whom, and what a hostile one costs.

Truth: the examples of RFC 9309 (sections 2.2 and 5), those of Google's "How Google interprets the robots.txt specification", and a
naive reader and matcher written out below.
"""

import asyncio
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.crawl.outcome import Refused
from pipeline.crawl.robots import _KEPT_OCTETS, MAX_BYTES, Robots
from pipeline.crawl.rules import MOST_WILDCARDS, read
from pipeline.crawl.urls import Target, parse

AGENT = "corpus-and-clip"


def allowed(text: str, agent: str, path: str) -> bool:
    return read(text.encode(), agent).allow(path)


def group(*rules: str) -> str:
    return "\n".join(["User-agent: foobot", *rules])


# ---- the RFC's and Google's examples

RFC_5_1 = """User-Agent: *
Disallow: *.gif$
Disallow: /example/
Allow: /publications/

User-Agent: foobot
Disallow:/
Allow:/example/page.html
Allow:/example/allowed.gif

User-Agent: barbot
User-Agent: bazbot
Disallow: /example/page.html

User-Agent: quxbot

EOF
"""


@pytest.mark.parametrize(
    ("agent", "open_to_it", "closed_to_it"),
    [
        ("other", ["/", "/publications/", "/a.gif?x", "/publications/a.html"], ["/a.gif", "/example/", "/example/page.html"]),
        ("foobot", ["/example/page.html", "/example/allowed.gif"], ["/", "/example/", "/publications/", "/a.gif"]),
        ("barbot", ["/", "/a.gif", "/example/", "/example/other.html"], ["/example/page.html"]),
        ("BazBot", ["/", "/a.gif", "/example/", "/example/other.html"], ["/example/page.html"]),
        ("quxbot", ["/", "/a.gif", "/example/", "/example/page.html"], []),
    ],
)  # fmt: skip
def test_rfc_5_1(agent: str, open_to_it: list[str], closed_to_it: list[str]) -> None:
    rules = read(RFC_5_1.encode(), agent)
    assert [path for path in (*open_to_it, *closed_to_it) if rules.allow(path)] == open_to_it


def test_rfc_5_2_the_longest_rule_decides() -> None:
    text = group("Allow: /example/page/", "Disallow: /example/page/disallowed.gif")
    assert not allowed(text, "foobot", "/example/page/disallowed.gif")
    assert allowed(text, "foobot", "/example/page/allowed.gif")


@pytest.mark.parametrize(
    ("rule", "path", "matches"),
    [
        # RFC 9309, 2.2.2: the path of a rule, of a URL, in one spelling.
        ("/foo/bar?baz=quz", "/foo/bar?baz=quz", True),
        ("/foo/bar?baz=https://foo.bar", "/foo/bar?baz=https://foo.bar", True),
        ("/foo/bar/ツ", "/foo/bar/%E3%83%84", True),
        ("/foo/bar/%E3%83%84", "/foo/bar/%e3%83%84", True),
        ("/foo/bar/%62%61%7A", "/foo/bar/baz", True),
        ("/foo/bar/baz", "/foo/bar/%62%61%7A", True),
        ("/a/b", "/a%2Fb", False),
        ("/a%2fb", "/a%2Fb", True),
        ("/a b", "/a%20b", True),
        ("/100%", "/100%", True),
        # 2.2.3: special characters, and how to write them themselves.
        ("/this/path/exactly$", "/this/path/exactly", True),
        ("/this/path/exactly$", "/this/path/exactly/not", False),
        ("/this/*/exactly", "/this/is/it/exactly", True),
        ("/path/file-with-a-%2A.html", "/path/file-with-a-*.html", True),
        ("/path/file-with-a-%2A.html", "/path/file-with-a-b.html", False),
        ("/path/foo-%24", "/path/foo-$", True),
        ("/path/foo-%24", "/path/foo-", False),
        ("/path/foo-$bar", "/path/foo-$bar", True),
        ("/path/foo-$bar", "/path/foo-", False),
        # Google, "URL matching based on path values".
        *[("/", path, True) for path in ("/", "/any", "/any/lower")],
        *[("/*", path, True) for path in ("/", "/any", "/any/lower")],
        ("/$", "/", True),
        ("/$", "/any", False),
        *[
            (rule, path, True)
            for rule in ("/fish", "/fish*")
            for path in ("/fish", "/fish.html", "/fish/salmon.html", "/fishheads", "/fishheads/yummy.html", "/fish.php?id=a")
        ],
        *[
            (rule, path, False)
            for rule in ("/fish", "/fish*")
            for path in ("/Fish.asp", "/catfish", "/?id=fish", "/desert/fish")
        ],
        *[("/fish/", path, True) for path in ("/fish/", "/fish/?id=anything", "/fish/salmon.htm")],
        *[("/fish/", path, False) for path in ("/fish", "/fish.html", "/animals/fish/", "/Fish/Salmon.asp")],
        *[
            ("/*.php", path, True)
            for path in ("/index.php", "/folder/filename.php?parameters", "/folder/any.php.file.html", "/filename.php/")
        ],
        *[("/*.php", path, False) for path in ("/", "/windows.PHP")],
        *[("/*.php$", path, True) for path in ("/filename.php", "/folder/filename.php")],
        *[
            ("/*.php$", path, False)
            for path in ("/filename.php?parameters", "/filename.php/", "/filename.php5", "/windows.PHP")
        ],
        *[("/fish*.php", path, True) for path in ("/fish.php", "/fishheads/catfish.php?parameters")],
        ("/fish*.php", "/Fish.PHP", False),
    ],
)  # fmt: skip
def test_one_rule(rule: str, path: str, matches: bool) -> None:
    assert allowed(group(f"Disallow: {rule}"), "foobot", path) == (not matches)
    assert allowed(group("Disallow: /", f"Allow: {rule}"), "foobot", path) == matches


@pytest.mark.parametrize(
    ("rules", "path", "open_to_it"),
    [
        # Google, "Order of precedence for rules".
        (("allow: /p", "disallow: /"), "/page", True),
        (("allow: /folder", "disallow: /folder"), "/folder/page", True),
        (("allow: /page", "disallow: /*.htm"), "/page.htm", False),
        (("allow: /page", "disallow: /*.ph"), "/page.php5", True),
        (("allow: /$", "disallow: /"), "/", True),
        (("allow: /$", "disallow: /"), "/page.htm", False),
        (("disallow:", "allow:"), "/x", True),
        (("disallow: /",), "/robots.txt", True),
    ],
)
def test_precedence(rules: tuple[str, ...], path: str, open_to_it: bool) -> None:
    assert allowed(group(*rules), "foobot", path) == open_to_it
    assert allowed(group(*rules[::-1]), "foobot", path) == open_to_it


# ---- whom a group is for

CLOSED = "User-agent: *\nDisallow: /\n"


@pytest.mark.parametrize(
    "name",
    ["corpus-and-clip", "Corpus-And-CLIP", "corpus-and-clip/0.1", "corpus-and-clip*", "corpus-and-clip 0.1 (+https://x)",
     "corpus-and-clip # us"],
)  # fmt: skip
def test_a_line_that_names_us(name: str) -> None:
    assert allowed(f"{CLOSED}User-agent: {name}\nAllow: /\n", AGENT, "/x")
    assert not allowed(f"User-agent: {name}\nDisallow: /\n", AGENT, "/x")


@pytest.mark.parametrize(
    "name", ["corpus", "corpus-and", "corpus-and-clip-2", "and-clip", "clip", "c", "", "corpus*", "**", "Mozilla/5.0 corpus-and-clip"]
)  # fmt: skip
def test_a_line_that_names_another(name: str) -> None:
    assert not allowed(f"{CLOSED}User-agent: {name}\nAllow: /\n", AGENT, "/x")
    assert allowed(f"User-agent: {name}\nDisallow: /\n", AGENT, "/x")


def test_groups_of_one_agent_count_together_and_not_with_those_of_everybody() -> None:
    """Google, "Grouping of rules"."""
    news = "user-agent: googlebot-news\ndisallow: "
    text = f"{news}/fish\n\nuser-agent: *\ndisallow: /carrots\n\n{news}/shrimp\n"
    paths = ["/fish", "/carrots", "/shrimp"]
    assert [allowed(text, "googlebot-news", path) for path in paths] == [False, True, False]
    assert [allowed(text, "other", path) for path in paths] == [True, False, True]


@pytest.mark.parametrize(
    "record", ["Sitemap: https://example.com/sitemap.xml", "Crawl-delay: 3", "Noindex: /", "Host: a", "", "# x", "nonsense", ":"]
)  # fmt: skip
def test_other_records_end_no_group(record: str) -> None:
    """RFC 9309, 2.2.4, and Google's example with a sitemap between two agents."""
    text = f"user-agent: {AGENT}\n{record}\n\nuser-agent: b\ndisallow: /\n"
    assert not allowed(text, AGENT, "/x")
    assert not allowed(text, "b", "/x")
    assert not allowed(f"user-agent: {AGENT}\n{record}\ndisallow: /a\n{record}\ndisallow: /b\n", AGENT, "/b")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_as_people_write_them(end: str) -> None:
    lines = [
        "Disallow: /before-any-group",
        "USER AGENT : FooBot",
        "  disalow:/typo",
        "Disallow /no-colon",
        "DISALLOW: /a # /b",
        "Allow: /typo/x",
    ]
    body = b"\xef\xbb\xbf" + end.join(lines).encode()
    rules = read(body, "foobot")
    paths = ["/before-any-group", "/typo", "/no-colon", "/a", "/b", "/typo/x"]
    assert [rules.allow(path) for path in paths] == [True, False, False, False, True, True]


def test_bytes_that_are_no_utf_8_are_compared_as_they_are() -> None:
    rules = read(b"User-agent: *\nDisallow: /caf\xe9\n", AGENT)
    assert [rules.allow(path) for path in ("/caf%E9", "/caf%e9/x", "/caf%C3%A9")] == [False, False, True]


@pytest.mark.parametrize(
    ("text", "delay"),
    [
        ("User-agent: *\nCrawl-delay: 2.5\nDisallow:\n", 2.5),
        ("User-agent: *\nDisallow:\nCrawl-delay: 2\nCrawl-delay: 3\n", 3.0),
        ("User-agent: *\nCrawl-delay: 2\nUser-agent: foobot\nDisallow: /x\n", 0.0),  # it stands above foobot
        ("User-agent: *\nUser-agent: foobot\nCrawl-delay: 2\nDisallow: /x\n", 2.0),
        ("User-agent: *\nCrawl-delay: 9\n\nUser-agent: foobot\nDisallow:\nCrawl-delay: 1\n", 1.0),
        *[
            (f"User-agent: foobot\nCrawl-delay: {value}\n", 0.0)
            for value in ("-1", "nan", "inf", "1e999", "soon", "", "0")
        ],
    ],
)
def test_crawl_delay(text: str, delay: float) -> None:
    assert read(text.encode(), "foobot").delay_s == delay


# ---- naive twins


def naive_match(rule: str, path: str) -> bool:
    """Letter by letter, every way that a star can be taken."""
    if rule in ("", "$"):
        return rule == "" or path == ""
    if rule[0] == "*":
        return naive_match(rule[1:], path) or (path != "" and naive_match(rule, path[1:]))
    return path[:1] == rule[0] and naive_match(rule[1:], path[1:])


def naive_allowed(lines: list[tuple[str, str]], agent: str, path: str) -> bool:
    groups: list[tuple[list[str], list[tuple[str, str]]]] = []
    for name, value in lines:
        if name == "user-agent":
            if not groups or groups[-1][1]:
                groups.append(([], []))
            groups[-1][0].append(value.lower())
        elif name in ("allow", "disallow") and groups:
            groups[-1][1].append((name, value))
    named = any(agent in agents for agents, _ in groups)
    rules = [rule for agents, its in groups if (agent if named else "*") in agents for rule in its]
    matching = [(len(value), name == "allow") for name, value in rules if value and naive_match(value, path)]
    return max(matching, default=(0, True))[1]


LETTERS = "ab/*$"
LINES = st.lists(
    st.one_of(
        st.tuples(st.just("user-agent"), st.sampled_from(["foobot", "FooBot", "foo", "*", "bar"])),
        st.tuples(
            st.sampled_from(["allow", "disallow"]),
            st.text(LETTERS, max_size=6).map(lambda text: text and "/" + text).filter(lambda text: "**" not in text),
        ),
        st.tuples(st.sampled_from(["sitemap", "noindex"]), st.just("/")),
    ),
    max_size=14,
)


@settings(max_examples=1500, deadline=None)
@given(LINES, st.text("ab/", max_size=8))
def test_a_file_says_what_the_naive_reader_says(lines: list[tuple[str, str]], path: str) -> None:
    text = "\n".join(f"{name}: {value}" for name, value in lines)
    assert allowed(text, "foobot", "/" + path) == naive_allowed(lines, "foobot", "/" + path)


@settings(max_examples=1500, deadline=None)
@given(st.text(LETTERS, max_size=10), st.text("ab/$", max_size=12))
def test_a_rule_matches_what_the_naive_matcher_matches(rule: str, path: str) -> None:
    assert allowed(group(f"Disallow: /{rule}"), "foobot", f"/{path}") == (not naive_match(f"/{rule}", f"/{path}"))


# ---- what a hostile one costs


def filled(line: str) -> bytes:
    return (line * (MAX_BYTES // len(line.encode()) + 1)).encode()[:MAX_BYTES]


HOSTILE = {
    "agents times rules": b"".join(b"User-agent: a%d\n" % n for n in range(15_000))
    + b"".join(b"Disallow: /%d\n" % n for n in range(15_000)),
    "everybody times rules": b"User-agent: *\n" * 18_000 + b"".join(b"Disallow: /%d\n" % n for n in range(15_000)),
    "groups": filled("User-agent: *\nDisallow: /a\n"),
    "lengths": b"User-agent: *\n" + b"".join(b"Disallow: /%s\n" % (b"a" * n) for n in range(1000)),
    "wildcards": b"User-agent: *\n" + b"".join(b"Disallow: /*x%d\n" % n for n in range(25_000)),
    "wildcards, as many as count": b"User-agent: *\n"
    + b"".join(b"Disallow: /*%s%db\n" % (b"a" * 50, n) for n in range(MOST_WILDCARDS // 60)),
    "stars": b"User-agent: *\n" + b"Disallow: /" + b"*a" * 16_000 + b"b\n",
    "no letters but stars": b"User-agent: *\nDisallow: /" + b"*" * 500_000,
    "ends": b"User-agent: *\n" + b"".join(b"Disallow: /%d$\n" % n for n in range(28_000)),
    "one line": b"User-agent: *\nDisallow: /" + b"a" * 500_000,
    "encoded": b"User-agent: *\nDisallow: /" + b"%41" * 160_000,
    "beyond ASCII": b"User-agent: *\nDisallow: /" + "é".encode() * 240_000,
    "empty lines": b"\n" * MAX_BYTES,
    "colons": filled(":\n"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_costs_little(kind: str) -> None:
    """Bounds are wide, for processors that others use too; what they forbid took minutes and gigabytes."""
    body = HOSTILE[kind][:MAX_BYTES]
    began = time.thread_time()
    rules = read(body, AGENT)
    assert time.thread_time() - began < 3
    began = time.thread_time()
    for path in ("/", "/" + "a" * 4000, "/x" * 2000):
        rules.allow(path)
    assert time.thread_time() - began < 1
    tracemalloc.start()
    try:
        read(body, AGENT)
        assert tracemalloc.get_traced_memory()[1] < 40_000_000
    finally:
        tracemalloc.stop()


def test_more_wildcards_than_can_be_tried_close_the_origin() -> None:
    rules = "".join(f"Disallow: /*{number:05}\n" for number in range(MOST_WILDCARDS // 7))
    assert read(f"User-agent: *\n{rules}".encode(), AGENT).allow("/x")
    too_many = read(f"User-agent: *\n{rules}Disallow: /*and-one-more\n".encode(), AGENT)
    assert too_many.too_many
    assert not too_many.allow("/x")
    # Those of others are not counted.
    assert read(f"User-agent: other\n{rules}{rules}\n".encode() + b"User-agent: *\nDisallow: /y\n", AGENT).allow("/x")


def test_the_rules_of_many_origins_stay_within_bounds() -> None:
    body = HOSTILE["ends"][: MAX_BYTES // 2]
    asked: list[str] = []

    async def get(target: Target) -> bytes | Refused:
        asked.append(target.host)
        return body

    async def work() -> tuple[int, int]:
        robots = Robots(AGENT, get, lambda host: 0.0)
        for number in range(40):
            await robots.policy(parse(f"http://a{number}.example/x"))
        held = sum(policy.rules.octets for policy in robots._known.values() if policy.rules is not None)
        await robots.policy(parse("http://a0.example/x"))
        return len(robots._known), held

    origins, held = asyncio.run(work())
    assert 1 < origins < 40
    assert held <= _KEPT_OCTETS
    assert asked.count("a0.example") == 2  # pushed out, and asked again
