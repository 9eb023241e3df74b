"""What a Fetcher and its unit ask of a server, when, and what they keep to: robots.txt, Retry-After, pace, dead hosts, judged addresses.

Truth: what the server of `hostile.py` counted, and rules of RFC 9309 and RFC 9110 written out beside each case.
"""

import asyncio
import gzip
import io
import ipaddress
import itertools
import re
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

import PIL.Image
import pytest

from pipeline.contracts.schema import Reason
from pipeline.crawl.config import CrawlConfig
from pipeline.crawl.engine import _store, fetch_pictures
from pipeline.crawl.fetch import _WINDOW_BITS, Fetcher, _Inflater, _joined, _seconds
from pipeline.crawl.guard import Guard
from pipeline.crawl.hosts import HostQueues, Waiting
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


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[float]]:
    """When URLs of each host were handed out, by the clock of the event loop. A pace is a promise about that: when a request comes to a
    server is a matter of connections and threads, too."""
    times: dict[str, list[float]] = {}
    take = HostQueues.take

    def noted(queues: HostQueues, now: float = 0.0) -> Waiting | None:
        found = take(queues, now)
        if found is not None:
            times.setdefault(found[1].host, []).append(now)
        return found

    monkeypatch.setattr(HostQueues, "take", noted)
    return times


def gaps(times: list[float]) -> list[float]:
    """Between each and the next, to the millionth."""
    return [round(later - earlier, 6) for earlier, later in itertools.pairwise(times)]


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


def filled(first: bytes, before: bytes, behind: bytes) -> bytes:
    """A robots.txt of which 500 KiB end between `before` and `behind`."""
    comment = b"#" * (500 * 1024 - len(first) - len(before) - 1) + b"\n"
    return first + comment + before + behind


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
        # As Google reads it: it says nothing about the rules.
        (whole(429, b""), "/ok", Refused(Reason.OPT_OUT, "robots.txt: 429")),
        (whole(200, b"User-agent: test\nAllow: /\n\n" + NOBODY), "/ok", Refused(Reason.OPT_OUT, "robots.txt")),
        (whole(200, RULES), "/%70rivate/x", Refused(Reason.OPT_OUT, "robots.txt")),
        (
            whole(200, b"User-agent: *\n" + b"".join(b"Disallow: /*%d\n" % number for number in range(9999))),
            "/ok",
            Refused(Reason.OPT_OUT, "robots.txt: too many wildcards"),
        ),
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
        # A line that the cap cuts through is one that nobody wrote: "Disallow: /" of "/private", or "Allow: /a" of "/ab".
        (whole(200, filled(b"User-agent: *\nAllow: /open\n", b"Disallow: /", b"private\n")), "/ok", None),
        (
            whole(200, filled(b"User-agent: *\nDisallow: /a\n", b"Allow: /a", b"b\n")),
            "/ac",
            Refused(Reason.OPT_OUT, "robots.txt"),
        ),
        (
            whole(200, gzip.compress(filled(b"User-agent: *\n", b"Disallow: /", b"x\n")), "Content-Encoding: gzip"),
            "/ok",
            None,
        ),
        (whole(200, filled(b"User-agent: *\n", b"Disallow: /\n", b"")), "/ok", Refused(Reason.OPT_OUT, "robots.txt")),
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


def test_no_way_around_a_rule_by_dots() -> None:
    """What is held against the rules is what is sent; a server would resolve the dots and find the closed path."""
    with Hostile(answers=ANSWERS).running() as web:
        web.robots[web.hosts[0]] = whole(200, RULES)
        paths = ["/a/../private/x", "/a/%2E%2e/private/x", "/./private/x", "/open/..//../private/x"]
        assert unit([web.url(path) for path in paths], config()) == [Refused(Reason.OPT_OUT, "robots.txt")] * len(paths)
        assert isinstance(fetch(web.url("/private/../ok")), bytes)
        assert {path for _, path in web.hits} == {"/robots.txt", "/ok"}


def test_robots_txt_is_asked_for_once_an_origin_also_behind_a_redirect() -> None:
    with Hostile(hosts=2).running() as web:
        away = [web.url(f"/away{number}") for number in range(10)]
        web.answers = {f"/away{n}": whole(302, b"", f"Location: {web.url('/private', 1)}") for n in range(10)}
        web.robots[web.hosts[1]] = whole(200, NOBODY)
        outcomes = unit(away, config())
        assert outcomes == [Refused(Reason.OPT_OUT, "robots.txt")] * 10
        assert [web.hits[host, "/robots.txt"] for host in web.hosts] == [1, 1]
        assert web.hits[web.hosts[1], "/private"] == 0


def test_crawl_delay_is_kept_up_to_its_bound(taken: dict[str, list[float]]) -> None:
    """By a unit that has one of the host's four fetches at once: it waits for the others', too."""
    with Hostile(answers=ANSWERS).running() as web:
        web.robots[web.hosts[0]] = whole(200, b"User-agent: *\nCrawl-delay: 3600\n")
        urls = [web.url("/ok") + f"?{number}" for number in range(4)]
        outcomes = unit(urls, config(max_crawl_delay_s=0.1), at_once=1)
    assert all(isinstance(outcome, Stored) for outcome in outcomes)
    assert min(gaps(taken[web.hosts[0]])) >= 0.4


def test_a_crawl_delay_that_comes_late_counts_from_then() -> None:
    """The first picture waits for the robots.txt that says it; the second does not follow at once."""
    with Hostile(answers=ANSWERS).running() as web:
        web.robots[web.hosts[0]] = whole(200, b"User-agent: *\nCrawl-delay: 1\n")
        web.robots_take_s = 1.0
        outcomes = unit([web.url(f"/ok?{number}") for number in range(2)], config())
        first, second = sorted(web.times[web.hosts[0], f"/ok?{number}"][0] for number in range(2))
    assert all(isinstance(outcome, Stored) for outcome in outcomes)
    assert second - first > 0.5


def test_crawl_delay_is_known_before_a_host_gets_its_second_slot(taken: dict[str, list[float]]) -> None:
    with Hostile(hosts=2, answers=ANSWERS).running() as web:
        web.robots[web.hosts[0]] = whole(200, b"User-agent: *\nCrawl-delay: 0.3\n")
        urls = [web.url(f"/ok?{number}", host) for host in range(2) for number in range(4)]
        assert all(isinstance(outcome, Stored) for outcome in unit(urls, config(), at_once=4))
    slow, fast = (taken[host] for host in web.hosts)
    assert min(gaps(slow)) >= 0.3
    assert fast[-1] - fast[0] < slow[-1] - slow[0]


def test_a_host_that_wants_to_be_waited_for_has_a_budget() -> None:
    """By its Crawl-delay: 1.2 s at 0.3 s each; the rest is named for it, and nobody else's."""
    with Hostile(hosts=2, answers=ANSWERS).running() as web:
        web.robots[web.hosts[0]] = whole(200, b"User-agent: *\nCrawl-delay: 0.3\n")
        slow, other = ([web.url(f"/ok?{number:03}", host) for number in range(100)] for host in range(2))
        began = time.monotonic()
        outcomes = unit([*slow, *other], config(max_host_wait_s=1.2))
        assert time.monotonic() - began < 6  # at 0.3 s each it is 30
    stored = [isinstance(outcome, Stored) for outcome in outcomes]
    assert 3 <= sum(stored[:100]) <= 6
    assert stored[:100] == sorted(stored[:100], reverse=True)  # the first in the list are those that were asked for
    assert set(outcomes[sum(stored[:100]) : 100]) == {Refused(Reason.TIMEOUT, "its host wants long waits")}
    assert all(stored[100:])


def test_a_host_that_answers_late_has_the_same_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """0.2 s of lateness for each of two at once: 1 s is over after ten."""
    monkeypatch.setattr("pipeline.crawl.engine._PROMPT_S", 0.05)
    with Hostile(hosts=2, answers=ANSWERS).running() as web:
        slow = [web.url(f"/slowly?{number:03}") for number in range(100)]
        other = [web.url(f"/ok?{number:03}", 1) for number in range(20)]
        outcomes = unit([*slow, *other], config(max_host_wait_s=1.0), at_once=2)
    stored = [isinstance(outcome, Stored) for outcome in outcomes]
    assert 5 <= sum(stored[:100]) <= 14
    assert set(outcomes[sum(stored[:100]) : 100]) == {Refused(Reason.TIMEOUT, "its host wants long waits")}
    assert all(stored[100:])


def test_our_own_pace_is_no_wait_that_a_host_asks_for() -> None:
    with Hostile(answers=ANSWERS).running() as web:
        web.robots[web.hosts[0]] = whole(200, b"User-agent: *\nCrawl-delay: 0.05\n")
        urls = [web.url(f"/ok?{number}") for number in range(10)]
        outcomes = unit(urls, config(max_host_wait_s=0.06, per_host_rate=20.0))
    assert all(isinstance(outcome, Stored) for outcome in outcomes)


def test_what_is_asked_beside_the_pictures_counts_towards_the_rate(taken: dict[str, list[float]]) -> None:
    """A robots.txt and a redirect's target each: nine requests at two a second."""
    with Hostile().running() as web:
        web.answers = {f"/from{n}": whole(302, b"", f"Location: /to{n}") for n in range(4)}
        web.answers |= {f"/to{n}": whole(200, JPEG) for n in range(4)}
        outcomes = unit([web.url(f"/from{n}") for n in range(4)], config(per_host_rate=2.0))
        assert all(isinstance(outcome, Stored) for outcome in outcomes)
        assert web.hits.total() == 9
    # The last URL's two requests follow each other; what they owe falls to those that would come next.
    times = taken[web.hosts[0]]
    assert round(times[-1] - times[0], 6) >= 7 * 0.5


def test_the_rate_of_a_host_is_kept_and_shared_between_units(taken: dict[str, list[float]]) -> None:
    for at_once, least in ((4, 0.25), (2, 0.5)):  # half of per_host: half of the rate
        taken.clear()
        with Hostile(answers=ANSWERS).running() as web:
            urls = [web.url("/ok") + f"?{number}" for number in range(4)]
            unit(urls, config(per_host=4, per_host_rate=4.0), at_once=at_once)
            assert web.hits.total() == 5
        assert min(gaps(taken[web.hosts[0]])) >= least


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


def test_a_pause_is_told_at_once_also_to_free_slots() -> None:
    """While the fetch that got the answer waits to ask again, the host's other three slots send nothing: what went out before it is all."""
    answers = {"/busy": whole(429, b"", "Retry-After: 1"), "/ok": whole(200, JPEG)}
    with Hostile(answers=answers).running() as web:
        urls = [web.url("/busy"), *(web.url(f"/ok?{n:02}") for n in range(40))]
        outcomes = unit(urls, config(retries=1), at_once=4)
        busy = web.times[web.hosts[0], "/busy"]
        ok = [web.times[web.hosts[0], f"/ok?{n:02}"][0] for n in range(40)]
    assert outcomes[0] == Refused(Reason.HTTP_STATUS, "429")
    assert all(isinstance(outcome, Stored) for outcome in outcomes[1:])
    assert len([time for time in ok if time < busy[0] + 0.9]) <= 12
    assert busy[1] > busy[0] + 0.9


@pytest.mark.parametrize("who", ["redirect", "robots"])
def test_retry_after_is_kept_to_whoever_says_it(who: str) -> None:
    """A redirect's target, or the robots.txt: nothing is sent to that host before the second is over, its robots.txt included."""
    with Hostile(hosts=2, answers=ANSWERS).running() as web:
        busy = whole(503, b"", "Retry-After: 1")
        if who == "robots":
            web.robots[web.hosts[1]] = busy
            urls = [web.url(f"/ok?{n}", 1) for n in range(2)]
            expected = Refused(Reason.OPT_OUT, "robots.txt: 503")
        else:
            web.answers = {f"/from{n}": whole(302, b"", f"Location: {web.url('/busy', 1)}?{n}") for n in range(2)} | {
                "/busy": busy
            }
            urls = [web.url(f"/from{n}") for n in range(2)]
            expected = Refused(Reason.HTTP_STATUS, "503")
        outcomes = unit(urls, config(retries=1, deadline_s=10.0), at_once=1)
        times = sorted(
            time
            for (host, path), each in web.times.items()
            for time in each
            if host == web.hosts[1] and (who == "robots" or path != "/robots.txt")
        )
    assert outcomes == [expected] * 2
    assert len(times) == 4
    assert min(later - earlier for earlier, later in itertools.pairwise(times)) > 0.9


def test_a_host_that_is_always_busy_does_not_hold_a_unit() -> None:
    with Hostile(hosts=2, answers=ANSWERS).running() as web:
        web.answers = {**ANSWERS, "/busy": whole(429, b"", "Retry-After: 1")}
        busy = [web.url(f"/busy?{number}", 1) for number in range(2000)]
        alive = [web.url(f"/ok?{number}") for number in range(20)]
        began = time.monotonic()
        outcomes = unit([*busy, *alive], config(retries=0, host_failures=8))
        assert time.monotonic() - began < 10  # at four a second it is 500 seconds
        assert set(outcomes[: len(busy)]) == {Refused(Reason.HTTP_STATUS, "429")}
        assert all(isinstance(outcome, Stored) for outcome in outcomes[len(busy) :])
        assert sum(count for (host, _), count in web.hits.items() if host == web.hosts[1]) <= 8 + 4 + 1

        began = time.monotonic()
        outcomes = unit([*busy, *alive], config(retries=0, host_failures=1000, max_host_wait_s=2.5))
        assert time.monotonic() - began < 10
        assert set(outcomes[: len(busy)]) == {
            Refused(Reason.HTTP_STATUS, "429"),
            Refused(Reason.TIMEOUT, "its host wants long waits"),
        }
        assert all(isinstance(outcome, Stored) for outcome in outcomes[len(busy) :])


def test_retry_after_is_seconds_or_a_date() -> None:
    def now() -> datetime:
        return datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)

    cases = {
        "120": 120, " 5 ": 5, "0": 0, "-3": 0, "soon": 0, "": 0, "٣": 0, "9" * 500: 999_999_999,
        "Thu, 01 Jan 2026 12:00:30 GMT": 30, "Thu, 01 Jan 2026 11:00:00 GMT": 0, "Thursday, 01-Jan-26 12:01:00 GMT": 60,
        "Thu, 99 Jan 2026 12:00:30 GMT": 0, "Fri, 31 Dec 99999999999 23:59:59 GMT": 0, "Fri, 31 Dec 9999 23:59:59 -9999": 0,
    }  # fmt: skip
    assert {text: _seconds(text, now) for text in cases} == cases


# ---- dead hosts


def test_a_dead_host_does_not_hold_a_unit() -> None:
    with Hostile(hosts=2, answers=ANSWERS).running() as web:
        dead = [web.url(f"/silent?{number}", 1) for number in range(3000)]
        alive = [web.url(f"/ok?{number}") for number in range(20)]
        began = time.monotonic()
        outcomes = unit([*dead, *alive], config(timeout_s=1.5, host_failures=8))
        taken = time.monotonic() - began
        asked = sum(count for (host, _), count in web.hits.items() if host == web.hosts[1])
    assert set(outcomes[: len(dead)]) == {Refused(Reason.TIMEOUT, "timed out")}
    assert all(isinstance(outcome, Stored) for outcome in outcomes[len(dead) :])
    assert asked <= 8 + 4
    assert taken < 60  # one by one it is 3000 * 1.5 / 4 = 1,125 seconds


def test_one_answer_between_failures_keeps_a_host() -> None:
    with Hostile(answers=ANSWERS).running() as web:
        urls = [web.url(f"/{'ok' if number % 3 == 2 else 'garbage'}?{number}") for number in range(30)]
        outcomes = unit(urls, config(retries=0, host_failures=3), at_once=1)
    assert sum(isinstance(outcome, Stored) for outcome in outcomes) == 10


@pytest.mark.parametrize("path", ["/reset", "/promises_more", "/bad_gzip", "/tiny_chunks"])
def test_a_host_that_answers_is_not_dead_however_its_bodies_end(path: str) -> None:
    """Forty broken bodies in a row and a picture behind them; of a host that sends no HTTP at all, five are enough."""
    with Hostile(hosts=2, answers=ANSWERS).running() as web:
        broken = [web.url(f"{path}?{number}") for number in range(40)]
        dead = [web.url(f"/garbage?{number}", 1) for number in range(40)]
        outcomes = unit(
            [*broken, web.url("/ok"), *dead, web.url("/ok", 1)], config(retries=0, host_failures=5), at_once=1
        )
        asked = sum(count for (host, asked), count in web.hits.items() if host == web.hosts[1] and "garbage" in asked)
    assert isinstance(outcomes[40], Stored)
    assert asked == 5
    assert outcomes[-1] == Refused(Reason.CONNECTION, "not HTTP")


def heavy_jpeg() -> bytes:
    """Some 5 kB that take a fifth of a second to decode; the costliest that is let through takes fifteen times as long."""
    file = io.BytesIO()
    PIL.Image.new("L", (1000, 1000), 128).save(file, "JPEG", progressive=True, quality=10)
    data = file.getvalue()
    at = data.rindex(b"\xff\xda")
    return data[:at] + data[at:-2] * 60 + data[-2:]


def test_a_host_whose_pictures_take_long_to_decode_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts begins at 20 ms here instead of a second, so that small pictures do; they are said to take what they take when nothing
    else runs. What the decoder has in its queue is still made."""
    heavy = heavy_jpeg()
    assert _store(heavy, config())[1] > 0.02

    def store(body: bytes, settings: CrawlConfig) -> tuple[Outcome, float]:
        return _store(body, settings)[0], 0.2 if body == heavy else 0.002

    monkeypatch.setattr("pipeline.crawl.engine._PROMPT_DECODING_S", 0.02)
    monkeypatch.setattr("pipeline.crawl.engine._store", store)
    with Hostile(hosts=2, answers={**ANSWERS, "/heavy": whole(200, heavy)}).running() as web:
        urls = [web.url(f"/heavy?{number}") for number in range(30)]
        alive = [web.url(f"/ok?{number}", 1) for number in range(20)]
        outcomes = unit([*urls, *alive], config(max_host_wait_s=0.1, deadline_s=30.0), at_once=1)
    assert all(isinstance(outcome, Stored) for outcome in outcomes[30:])
    refused = [outcome for outcome in outcomes[:30] if outcome == Refused(Reason.TIMEOUT, "its host wants long waits")]
    assert len(refused) >= 5
    assert isinstance(outcomes[0], Stored)


FIRST_UNIT = """
import io, sys
import numba.core.dispatcher, numpy as np, PIL.Image
from pipeline.crawl.config import CrawlConfig
from pipeline.crawl.engine import fetch_pictures
from pipeline.crawl.fetch import Fetcher

def compiled():
    of_ours = [vars(module) for name, module in sys.modules.items() if name.startswith("pipeline.content.")]
    loops = {id(each): each for names in of_ours for each in names.values()
             if isinstance(each, numba.core.dispatcher.Dispatcher)}
    return sum(len(each.signatures) for each in loops.values())

def picture(width, height, **saved):
    file = io.BytesIO()
    y, x = np.mgrid[0:height, 0:width]
    PIL.Image.fromarray(np.stack([x, y, x + y], axis=2).astype(np.uint8)).save(file, **saved)
    return file.getvalue()

turned = PIL.Image.Exif()
turned[0x0112] = 3
pictures = [picture(60, 50, format="PNG"), picture(300, 3000, format="PNG"), picture(900, 700, format="WEBP"),
            picture(4001, 3003, format="JPEG"), picture(2500, 1700, format="JPEG", exif=turned)]
seen = []

async def fetch(self, target):
    seen.append(compiled())
    return pictures[int(target.url.rpartition('/')[2])]

Fetcher.fetch = fetch
urls = [f"http://127.0.0.1/{number}" for number in range(len(pictures))]
config = CrawlConfig(allow_addresses=("127.0.0.0/8",), perceptual_hashes=HASHES, max_aspect_ratio=20)
outcomes = fetch_pictures(urls, config, lambda host: 1)
print([type(outcome).__name__ for outcome in outcomes], seen[0], compiled())
"""


@pytest.mark.parametrize("hashes", [True, False])
def test_what_pictures_go_through_is_compiled_before_a_host_is_asked(hashes: bool) -> None:
    """The seconds that it takes on a new machine would slow fetches down, and be those of the host of the first picture."""
    program = FIRST_UNIT.replace("HASHES", str(hashes))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = re.fullmatch(r"(.*\]) (\d+) (\d+)\n", done.stdout)
    assert found, done.stdout
    assert found[1] == str(["Stored"] * 5)
    assert int(found[2]) == int(found[3]) > 0


def test_a_live_host_is_not_given_up_for_where_it_redirects_to() -> None:
    """Ten dead links among ten good ones: what is dead is asked as often as a dead host is, then not any more."""
    with Hostile(hosts=3, answers=ANSWERS).running() as web:
        web.answers = {
            **ANSWERS,
            **{f"/from{n}": whole(302, b"", f"Location: {web.url('/silent', 1)}?{n}") for n in range(200)},
        }
        urls = [web.url(f"/from{n}") for n in range(200)] + [web.url(f"/ok?{n}") for n in range(20)]
        # The host of the dead links has good pictures of its own: a stranger's links are not to spoil it.
        own = [web.url(f"/ok?{n}", 1) for n in range(20)]
        began = time.monotonic()
        outcomes = unit([*urls, *own], config(timeout_s=1.5, host_failures=5))
        assert time.monotonic() - began < 30  # at 1.5 s for four of them it is 75
        assert set(outcomes[:200]) == {Refused(Reason.TIMEOUT, "timed out")}
        assert all(isinstance(outcome, Stored) for outcome in outcomes[200:])
        asked = sum(count for (_, path), count in web.hits.items() if path.startswith("/silent"))
    assert asked <= 5 + 4


def test_the_host_that_took_the_time_is_the_one_that_took_too_long() -> None:
    with Hostile(hosts=2, answers=ANSWERS).running() as web:
        web.answers = {"/from": whole(302, b"", f"Location: {web.url('/drip', 1)}")}
        refused = fetch(web.url("/from"), config(deadline_s=3.0))  # half of it for the robots.txt
        assert refused == Refused(Reason.TIMEOUT, "deadline")
        assert isinstance(refused, Refused)
        assert refused.at == (web.hosts[1], web.port)
        own = fetch(web.url("/drip"), config(deadline_s=0.5))
        assert isinstance(own, Refused)
        assert own.at == (web.hosts[0], web.port)


# ---- codings


def deflated(body: bytes) -> bytes:
    """Deflate without zlib's wrapper, as some servers send it."""
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return stream.compress(body) + stream.flush()


def members(*bodies: bytes) -> bytes:
    return b"".join(map(gzip.compress, bodies))


BLOCKS = [bytes([number]) * 3000 for number in range(200)]
CODED = {
    "/zlib": ("deflate", zlib.compress(JPEG), JPEG),
    "/raw": ("deflate", deflated(JPEG), JPEG),
    "/raw_stored": ("deflate", b"\x01" + struct.pack("<HH", 5, 0xFFFA) + b"hello", b"hello"),
    "/gzip": ("gzip", members(JPEG), JPEG),
    "/x_gzip": ("X-GZIP ", members(JPEG), JPEG),
    "/two_members": ("gzip", members(JPEG[:500], JPEG[500:]), JPEG),
    "/many_members": ("gzip", members(*BLOCKS), b"".join(BLOCKS)),
    "/empty_members": ("gzip", members(b"", JPEG, b"", b""), JPEG),
    "/tail": ("gzip", members(JPEG) + b"and more", JPEG),
    "/zeros": ("gzip", members(JPEG) + bytes(512), JPEG),
    "/one_letter": ("gzip", members(JPEG) + b"\n", JPEG),
    "/not_gzip": ("gzip", JPEG, JPEG),
    "/second_cut": ("gzip", members(JPEG[:500], JPEG[500:])[:-9], Refused(Reason.CONNECTION, "ended early")),
    "/raw_cut": ("deflate", deflated(JPEG)[:-9], Refused(Reason.CONNECTION, "ended early")),
    "/bombs": ("gzip", members(*[bytes(400_000)] * 6), Refused(Reason.TOO_MANY_BYTES, "more than 2000000 bytes")),
    "/nothing": ("gzip", b"", Refused(Reason.CONNECTION, "ended early")),
}


@pytest.mark.parametrize("sent", ["at once", "in pieces of a byte", "in chunks"])
def test_codings_of_bodies(sent: str) -> None:
    """Truth: what Python's gzip and zlib make. However the bytes are cut up on their way, the answer is the same."""

    def answer(coding: str, body: bytes) -> bytes:
        if sent != "in chunks":
            return whole(200, body, f"Content-Encoding: {coding}")
        pieces = [body[start : start + 700] for start in range(0, len(body), 700)]
        framed = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
        return head(200, f"Content-Encoding: {coding}", "Transfer-Encoding: chunked") + framed + b"0\r\n\r\n"

    if sent == "in pieces of a byte":
        for path, (coding, body, expected) in CODED.items():
            if path not in ("/bombs", "/nothing", "/second_cut", "/raw_cut"):
                inflate = _Inflater(_WINDOW_BITS[coding.strip().lower()])
                assert b"".join(inflate.feed(bytes([byte]), 2_000_000) for byte in body) == expected, path
                assert inflate.is_whole
        return
    with Hostile(answers={path: answer(coding, body) for path, (coding, body, _) in CODED.items()}).running() as web:

        async def work() -> list[bytes | Refused]:
            async with Fetcher(config(retries=0, max_bytes=2_000_000)) as fetcher:
                return [await fetcher.fetch(web.url(path)) for path in CODED]

        found = dict(zip(CODED, asyncio.run(work()), strict=True))
    assert found == {path: expected for path, (_, _, expected) in CODED.items()}


# ---- names


def names_of(resolve: Callable[[str], list[str]], limit_s: float, threads: int = 256) -> Names:
    return Names(
        Guard(("127.0.0.0/8",), lambda host: [ipaddress.ip_address(text) for text in resolve(host)]), limit_s, threads
    )


def test_names_that_hang_are_no_fact_about_the_others() -> None:
    """Three hundred of them at once, of a resolver that holds a thread for each; then, with too few threads for that, the others wait
    for theirs without being told that they have no address."""
    over = threading.Event()

    def resolve(host: str) -> list[str]:
        if host.startswith("hangs"):
            over.wait(20)
        return ["127.0.0.1"]

    async def work(threads: int, hanging: int) -> list[object]:
        names = names_of(resolve, 0.8, threads)
        hang = [asyncio.create_task(names.addresses(f"hangs{number}.example")) for number in range(hanging)]
        await asyncio.sleep(0)
        others = [asyncio.create_task(names.addresses(f"lives{number}.example")) for number in range(50)]
        if threads < hanging:
            await asyncio.sleep(1)
            assert not any(task.done() for task in others)
            over.set()
        found: list[object] = list(await asyncio.gather(*others))
        if threads >= hanging:
            assert set(await asyncio.gather(*hang)) == {Refused(Reason.DNS, "timed out")}
        over.set()
        await names.close()
        return found

    address = [ipaddress.ip_address("127.0.0.1")]
    assert asyncio.run(work(400, 300)) == [address] * 50
    over.clear()
    assert asyncio.run(work(8, 20)) == [address] * 50


def test_a_late_answer_is_an_answer_and_nobody_asks_twice_meanwhile() -> None:
    asked: list[str] = []

    def resolve(host: str) -> list[str]:
        asked.append(host)
        time.sleep(0.7)
        return ["127.0.0.1"]

    async def work() -> list[object]:
        names = names_of(resolve, 0.2)
        found: list[object] = [await names.addresses("slow.example") for _ in range(2)]
        await asyncio.sleep(0.6)
        found.append(await names.addresses("slow.example"))
        await names.close()
        return found

    timed_out = Refused(Reason.DNS, "timed out")
    assert asyncio.run(work()) == [timed_out, timed_out, [ipaddress.ip_address("127.0.0.1")]]
    assert asked == ["slow.example"]


def test_a_name_that_hangs_does_not_hold_a_unit() -> None:
    over = threading.Event()

    def answers(host: str) -> list[str]:
        if host == "hangs.example":
            over.wait(100)
            raise OSError("no answer in the end")
        return ["127.0.0.11"]

    with Hostile(answers=ANSWERS).running() as web:
        urls = [f"http://hangs.example:{web.port}/ok?{n}" for n in range(500)]
        urls += [f"http://lives.example:{web.port}/ok?{n}" for n in range(20)]
        began = time.monotonic()
        outcomes = unit(urls, config(timeout_s=1.5, host_failures=5), guard=resolving(answers))
        assert time.monotonic() - began < 60  # at 1.5 s for four of them it is 187
        over.set()
    assert {outcome.reason for outcome in outcomes[:500] if isinstance(outcome, Refused)} == {Reason.DNS}
    assert all(isinstance(outcome, Stored) for outcome in outcomes[500:])


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
    over = threading.Event()

    def hangs(host: str) -> list[str]:
        over.wait(100)
        return ["127.0.0.11"]

    began = time.monotonic()
    assert fetch("http://slow.example/", config(timeout_s=0.2), resolving(hangs)) == Refused(Reason.DNS, "timed out")
    assert time.monotonic() - began < 60
    over.set()


def test_what_follows_the_end_of_a_stream_is_not_held() -> None:
    """Beneath `max_bytes` as sent: a megabyte in pieces of a hundred bytes costs no copy of what came before, and is not waited for."""
    with Hostile(answers=ANSWERS).running() as web:
        began = time.monotonic()
        assert fetch(web.url("/gzip_tail"), config(deadline_s=30.0, timeout_s=30.0)) == JPEG
        assert time.monotonic() - began < 3


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
