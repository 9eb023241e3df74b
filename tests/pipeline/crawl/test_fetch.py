"""What a Fetcher and its unit ask of a server, when, and what they keep to: robots.txt, Retry-After, pace, dead hosts, judged addresses.

Truth: what the server of `hostile.py` counted, and rules of RFC 9309 and RFC 9110 written out beside each case.
"""

import asyncio
import ipaddress
import itertools
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

import pytest

from pipeline.contracts.schema import Reason
from pipeline.crawl.config import CrawlConfig
from pipeline.crawl.engine import fetch_pictures
from pipeline.crawl.fetch import Fetcher, _joined, _seconds
from pipeline.crawl.guard import Guard
from pipeline.crawl.names import AddressRefused, Names
from pipeline.crawl.outcome import Outcome, Refused, Stored
from pipeline.crawl.urls import Address, UrlRefused
from tests.pipeline.crawl.hostile import ANSWERS, JPEG, Hostile, head, whole

LOOPBACK = ("127.0.0.0/8",)


def config(**changes: object) -> CrawlConfig:
    values: dict[str, object] = {
        "allow_addresses": LOOPBACK,
        "timeout_s": 2.0,
        "deadline_s": 5.0,
        "user_agent": "TestBot/2.0 (+https://test.example/bot)",
        "perceptual_hashes": False,
        **changes,
    }
    return CrawlConfig.model_validate(values)


def fetch(url: str, settings: CrawlConfig | None = None, guard: Guard | None = None) -> bytes | Refused:
    async def work() -> bytes | Refused:
        async with Fetcher(settings or config(), guard) as fetcher:
            return await fetcher.fetch(url)

    return asyncio.run(work())


def unit(urls: list[str], settings: CrawlConfig, at_once: int = 4, guard: Guard | None = None) -> list[Outcome]:
    return fetch_pictures(urls, settings, lambda host: at_once, guard)


# ---- manners


def test_the_request_says_who_asks_and_nothing_about_others() -> None:
    with Hostile(answers=ANSWERS).running() as web:
        assert fetch(web.url("/ok")) == JPEG
    robots, request = (text.decode().lower().split("\r\n") for text in web.headers)
    assert robots[0] == "get /robots.txt http/1.1"
    assert "user-agent: testbot/2.0 (+https://test.example/bot)" in request
    assert "accept-encoding: identity" in request
    assert any(line.startswith("accept: image/") for line in request)
    assert not any(line.startswith(("cookie:", "referer:", "authorization:")) for line in request)
    assert web.connections == 1  # kept open between the two


@pytest.mark.parametrize(
    ("agent", "token", "header"),
    [
        ("A-Bot/1 (+https://a.example/)", None, "A-Bot/1 (+https://a.example/)"),
        ("A-Bot (mail@a.example)", None, "A-Bot (mail@a.example)"),
        ("A-Bot/1 (+https://a.example/)", "other", "other A-Bot/1 (+https://a.example/)"),
    ],
)
def test_the_name_of_the_crawl(agent: str, token: str | None, header: str) -> None:
    settings = config(user_agent=agent, user_agent_token=token)
    assert settings.agent_header == header
    assert settings.agent == (token or "A-Bot")


@pytest.mark.parametrize(
    "agent", ["", "A-Bot/1.0", "(https://a.example)", "A-Bot (http://)", "Ä-Bot (a@b.org)", "A (a@b.c)\r\nX: y"]
)
def test_a_name_without_contact_is_refused(agent: str) -> None:
    with pytest.raises(ValueError, match=r"write it as|names no contact"):
        config(user_agent=agent)


def test_img2dataset_has_to_be_accepted_as_it_is() -> None:
    with pytest.raises(ValueError, match=r"set crawl\.unguarded=true"):
        config(engine="img2dataset")
    assert config(engine="img2dataset", unguarded=True).engine == "img2dataset"


# ---- robots.txt

RULES = b"User-agent: otherbot\nDisallow: /\n\nUser-agent: testbot\nDisallow: /private\nAllow: /private/open\nDisallow: /*.gif$\n"
NOBODY = b"User-agent: *\nDisallow: /\n"


@pytest.mark.parametrize(
    ("robots", "path", "refused"),
    [
        (whole(200, RULES), "/ok", None),
        (whole(200, RULES), "/private/x", Refused(Reason.OPT_OUT, "robots.txt")),
        (whole(200, RULES), "/private/open", None),
        (whole(200, RULES), "/a/b.gif", Refused(Reason.OPT_OUT, "robots.txt")),
        (whole(200, NOBODY), "/ok", Refused(Reason.OPT_OUT, "robots.txt")),
        (whole(200, b"\xef\xbb\xbf" + NOBODY), "/ok", Refused(Reason.OPT_OUT, "robots.txt")),
        (whole(200, b"<html>no rules here</html>"), "/ok", None),
        (whole(200, b""), "/ok", None),
        (whole(404, b""), "/ok", None),
        (whole(403, NOBODY), "/ok", None),
        (whole(503, b""), "/ok", Refused(Reason.OPT_OUT, "robots.txt: 503")),
        (whole(302, b"", "Location: /rules"), "/ok", Refused(Reason.OPT_OUT, "robots.txt")),
        (whole(302, b"", "Location: /robots.txt"), "/ok", None),  # a loop: "unavailable", as more than five redirects
        (
            whole(302, b"", "Location: http://10.0.0.1/"),
            "/ok",
            Refused(Reason.OPT_OUT, "robots.txt: redirected to an address that is not public"),
        ),
        (whole(200, NOBODY, "X-Robots-Tag: noindex"), "/ok", Refused(Reason.OPT_OUT, "robots.txt")),
        # Rules count up to 500 KiB; what comes after is not read.
        (whole(200, b"#" * 400_000 + b"\n" + NOBODY), "/ok", Refused(Reason.OPT_OUT, "robots.txt")),
        (whole(200, b"#" * 600_000 + b"\n" + NOBODY), "/ok", None),
        (head(200, "Connection: close"), "/ok", None),
    ],
)
def test_robots_txt(robots: bytes, path: str, refused: Refused | None) -> None:
    answers = {path: whole(200, JPEG), "/rules": whole(200, NOBODY)}
    with Hostile(answers=answers).running() as web:
        web.robots[web.hosts[0]] = robots
        found = fetch(web.url(path), config(retries=0, timeout_s=1.0))
        if refused is None:
            # A body without length ends with the connection, which this server keeps open: see the test of drips.
            expected: bytes | Refused = Refused(Reason.TIMEOUT, "timed out") if b"close" in robots else JPEG
        else:
            expected = refused
        assert found == expected
        asked = web.hits[web.hosts[0], path]
    assert asked == (expected == JPEG)
    with Hostile(answers=answers).running() as web:
        web.robots[web.hosts[0]] = robots
        assert fetch(web.url(path), config(respect_robots=False)) == JPEG
        assert web.hits[web.hosts[0], "/robots.txt"] == 0


def test_robots_txt_is_asked_for_once_an_origin_also_behind_a_redirect() -> None:
    with Hostile(hosts=2).running() as web:
        away = [web.url(f"/away{number}") for number in range(10)]
        web.answers = {f"/away{n}": whole(302, b"", f"Location: {web.url('/private', 1)}") for n in range(10)}
        web.robots[web.hosts[1]] = whole(200, NOBODY)
        outcomes = unit(away, config())
        assert outcomes == [Refused(Reason.OPT_OUT, "robots.txt")] * 10
        assert [web.hits[host, "/robots.txt"] for host in web.hosts] == [1, 1]
        assert web.hits[web.hosts[1], "/private"] == 0


def test_crawl_delay_is_kept_up_to_its_bound() -> None:
    with Hostile(answers=ANSWERS).running() as web:
        web.robots[web.hosts[0]] = whole(200, b"User-agent: *\nCrawl-delay: 3600\n")
        urls = [web.url("/ok") + f"?{number}" for number in range(4)]
        outcomes = unit(urls, config(max_crawl_delay_s=0.3), at_once=1)
        assert all(isinstance(outcome, Stored) for outcome in outcomes)
        times = sorted(web.times[web.hosts[0], f"/ok?{number}"][0] for number in range(4))
    assert min(later - earlier for earlier, later in itertools.pairwise(times)) > 0.25


def test_the_rate_of_a_host_is_kept_and_shared_between_units() -> None:
    for at_once, least in ((4, 0.2), (2, 0.4)):  # half of per_host: half of the rate
        with Hostile(answers=ANSWERS).running() as web:
            urls = [web.url("/ok") + f"?{number}" for number in range(4)]
            unit(urls, config(per_host=4, per_host_rate=4.0), at_once=at_once)
            times = sorted(web.times[web.hosts[0], f"/ok?{number}"][0] for number in range(4))
        assert min(later - earlier for earlier, later in itertools.pairwise(times)) > least


# ---- when a server says: later


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_pauses_the_host_and_then_asks_again(status: int) -> None:
    answers = {"/busy": whole(status, b"", "Retry-After: 1"), "/ok": whole(200, JPEG)}
    with Hostile(answers=answers).running() as web:
        busy, *rest = unit([web.url("/busy"), *[web.url(f"/ok?{n}") for n in range(3)]], config(), at_once=1)
        times = web.times
    host = web.hosts[0]
    assert busy == Refused(Reason.HTTP_STATUS, str(status))
    assert all(isinstance(outcome, Stored) for outcome in rest)
    first, second = times[host, "/busy"]
    assert second - first > 0.9
    assert all(times[host, f"/ok?{n}"][0] - second > 0.9 for n in range(3))


def test_a_wait_beyond_the_deadline_is_not_waited_for_and_429_alone_is_no_invitation() -> None:
    answers = {"/long": whole(503, b"", "Retry-After: 100"), "/429": whole(429, b"")}
    with Hostile(answers=answers).running() as web:
        began = time.monotonic()
        assert fetch(web.url("/long")) == Refused(Reason.HTTP_STATUS, "503")
        assert fetch(web.url("/429")) == Refused(Reason.HTTP_STATUS, "429")
        assert time.monotonic() - began < 4
        assert web.hits[web.hosts[0], "/long"] == web.hits[web.hosts[0], "/429"] == 1


def test_retry_after_is_seconds_or_a_date() -> None:
    def now() -> datetime:
        return datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)

    cases = {
        "120": 120, " 5 ": 5, "0": 0, "-3": 0, "soon": 0, "": 0, "٣": 0, "9" * 500: 999_999_999,
        "Thu, 01 Jan 2026 12:00:30 GMT": 30, "Thu, 01 Jan 2026 11:00:00 GMT": 0, "Thursday, 01-Jan-26 12:01:00 GMT": 60,
        "Thu, 99 Jan 2026 12:00:30 GMT": 0,
    }  # fmt: skip
    assert {text: _seconds(text, now) for text in cases} == cases


# ---- dead hosts


def test_a_dead_host_does_not_hold_a_unit() -> None:
    with Hostile(hosts=2, answers=ANSWERS).running() as web:
        dead = [web.url(f"/silent?{number}", 1) for number in range(3000)]
        alive = [web.url(f"/ok?{number}") for number in range(20)]
        began = time.monotonic()
        outcomes = unit([*dead, *alive], config(timeout_s=0.3, host_failures=8))
        taken = time.monotonic() - began
        asked = sum(count for (host, _), count in web.hits.items() if host == web.hosts[1])
    assert set(outcomes[: len(dead)]) == {Refused(Reason.TIMEOUT, "timed out")}
    assert all(isinstance(outcome, Stored) for outcome in outcomes[len(dead) :])
    assert asked <= 8 + 4
    assert taken < 20  # one by one it is 3000 * 0.3 / 4 = 225 seconds


def test_one_answer_between_failures_keeps_a_host() -> None:
    with Hostile(answers=ANSWERS).running() as web:
        urls = [web.url(f"/{'ok' if number % 3 == 2 else 'reset'}?{number}") for number in range(30)]
        outcomes = unit(urls, config(retries=0, host_failures=3), at_once=1)
    assert sum(isinstance(outcome, Stored) for outcome in outcomes) == 10


# ---- addresses


def resolving(answers: Callable[[str], list[str]]) -> Guard:
    """A guard that lets only 127.0.0.11 pass, and whose resolver is asked in place of the system's."""

    def resolve(host: str) -> list[Address]:
        return [ipaddress.ip_address(text) for text in answers(host)]

    return Guard(("127.0.0.11/32",), resolve)


def test_a_name_that_rebinds_meets_only_judged_addresses() -> None:
    """Whatever a second look-up would answer: what was judged is what is connected to."""
    with Hostile(hosts=2, answers=ANSWERS).running() as web:
        asked: list[str] = []

        def answers(host: str) -> list[str]:
            asked.append(host)
            return ["127.0.0.11"] if len(asked) == 1 else ["127.0.0.12"]

        guard = resolving(answers)
        urls = [f"http://rebinds.example:{web.port}/ok?{number}" for number in range(20)]
        outcomes = unit(urls, config(), guard=guard)
        assert all(isinstance(outcome, Stored) for outcome in outcomes)
        assert asked == ["rebinds.example"]  # twenty askers share one look-up
        assert fetch(f"http://again.example:{web.port}/ok", guard=guard) == Refused(Reason.ADDRESS, "127.0.0.12")
        assert not [host for host, _ in web.hits if host == "127.0.0.12"]


def test_the_last_gate_judges_the_address_itself() -> None:
    names = Names(Guard(("127.0.0.11/32",)), 1.0)
    refused: list[tuple[int, tuple[object, ...]]] = [
        (2, ("127.0.0.12", 80)),
        (2, ("10.0.0.1", 80)),
        (10, ("::1", 80, 0, 0)),
        (10, ("fe80::1%1", 80, 0, 1)),
        (10, ("::ffff:127.0.0.12", 80, 0, 0)),
    ]
    for family, place in refused:
        with pytest.raises(AddressRefused):
            names.gate((family, 1, 6, "", place))
    with names.gate((2, 1, 6, "", ("127.0.0.11", 80))) as made:
        assert made.family == 2
    asyncio.run(names.close())


def test_a_mixed_or_missing_answer_of_the_resolver() -> None:
    answers: Mapping[str, list[str]] = {
        "mixes.example": ["127.0.0.11", "10.0.0.1"],
        "empty.example": [],
        "mapped.example": ["::ffff:127.0.0.12"],
    }
    guard = resolving(answers.__getitem__)
    found = {host: fetch(f"http://{host}/", guard=guard) for host in answers}
    assert found == {
        "mixes.example": Refused(Reason.ADDRESS, "10.0.0.1"),
        "empty.example": Refused(Reason.DNS, "no address"),
        "mapped.example": Refused(Reason.ADDRESS, "127.0.0.12"),
    }


def test_a_resolver_that_does_not_answer_is_given_up() -> None:
    def hangs(host: str) -> list[str]:
        time.sleep(1.5)
        return ["127.0.0.11"]

    began = time.monotonic()
    assert fetch("http://slow.example/", config(timeout_s=0.2), resolving(hangs)) == Refused(Reason.DNS, "timed out")
    assert time.monotonic() - began < 1.4


def test_tls_that_is_none() -> None:
    with Hostile(answers=ANSWERS).running() as web:
        secure = web.url("/ok").replace("http:", "https:")
        assert fetch(secure, config(retries=0)) == Refused(Reason.TLS, "certificate or handshake")


# ---- redirects


@pytest.mark.parametrize(
    ("location", "joined"),
    [
        ("/b", "http://a.org/b"),
        ("//b.org/c", "http://b.org/c"),
        ("https://b.org", "https://b.org"),
        (" b c ", "http://a.org/x/b c"),
        ("?q", "http://a.org/x/y?q"),
        ("/\udcff\udce9", "http://a.org/%FF%E9"),
    ],
)
def test_where_a_location_leads(location: str, joined: str) -> None:
    assert _joined("http://a.org/x/y", location) == joined


def test_a_location_that_is_none() -> None:
    with pytest.raises(UrlRefused):
        _joined("http://a.org/", "http://[::1")
