"""A whole unit against a hostile server: every URL is named for what was done to it, and nothing outlives its deadline.

Truth: the table in `hostile.py`, written beside the server.
"""

import asyncio
import itertools
import random
import time
from collections.abc import Iterable
from typing import Literal

import pytest

from pipeline.content.image import RGB, encode
from pipeline.contracts.schema import Reason
from pipeline.crawl.config import CrawlConfig
from pipeline.crawl.engine import fetch_pictures
from pipeline.crawl.fetch import Fetcher
from pipeline.crawl.guard import Guard
from pipeline.crawl.outcome import Outcome, Refused, Stored
from pipeline.crawl.urls import Address
from tests.pipeline.crawl.hostile import ANSWERS, EXPECTED, Hostile, head, whole


def config(**changes: object) -> CrawlConfig:
    values: dict[str, object] = {
        "allow_addresses": ["127.0.0.0/8"],
        "timeout_s": 0.5,
        "deadline_s": 1.2,
        "retries": 1,
        "per_host": 8,
        "max_bytes": 1_000_000,
        "host_failures": 100_000,
        "perceptual_hashes": False,
        **changes,
    }
    return CrawlConfig.model_validate(values)


def named(outcome: Outcome) -> tuple[str, str] | None:
    return (outcome.reason.value, outcome.detail) if isinstance(outcome, Refused) else None


def test_every_trouble_is_named() -> None:
    """What is named for the time that it took has little of it; all else so much that no pause of a busy machine is named instead."""
    waiting = [path for path, expected in EXPECTED.items() if expected is not None and expected[0] == "timeout"]
    prompt = [path for path in EXPECTED if path not in waiting]
    found: dict[str, tuple[str, str] | None] = {}
    with Hostile(answers=ANSWERS).running() as web:
        for paths, timeout_s, deadline_s in [(waiting, 2.0, 3.5), (prompt, 30.0, 60.0)]:
            settings = config(timeout_s=timeout_s, deadline_s=deadline_s)
            outcomes = fetch_pictures([web.url(path) for path in paths], settings, lambda host: 64)
            found |= {path: named(outcome) for path, outcome in zip(paths, outcomes, strict=True)}
    assert found == dict(EXPECTED)
    # Asked again only where it may help, and never with a cookie.
    hits = {path: count for (_, path), count in web.hits.items()}
    assert {path: hits[path] for path in ("/silent", "/drip", "/401", "/bomb", "/noai", "/loop")} == {
        "/silent": 1, "/drip": 1, "/401": 1, "/bomb": 1, "/noai": 1, "/loop": 1,
    }  # fmt: skip
    assert hits["/500"] == hits["/reset"] == hits["/promises_more"] == 2
    assert not [request for request in web.headers if b"\ncookie:" in request.lower()]


def mixed(web: Hostile, count: int, seed: int) -> list[str]:
    """URLs of which a third are pictures and the rest every trouble in turn, in random order over all hosts."""
    dice = random.Random(seed)
    troubles = [path for path in EXPECTED if path != "/ok"]
    paths = ["/ok" if number % 3 == 0 else troubles[number % len(troubles)] for number in range(count)]
    urls = [web.url(f"{path}?{number}", host=number % len(web.hosts)) for number, path in enumerate(paths)]
    dice.shuffle(urls)
    return urls


async def seconds_of_each(urls: list[str], settings: CrawlConfig) -> tuple[list[float], float]:
    """How long each `fetch` took, `concurrency` of them at once, and the longest that others kept the processor from the event loop."""
    room, taken, withheld = asyncio.Semaphore(settings.concurrency), [], 0.0

    async def watch() -> None:
        nonlocal withheld
        while True:
            began, worked = time.monotonic(), time.thread_time()
            await asyncio.sleep(0.05)
            # What the loop itself worked for is not taken off: a fetch that holds it is late.
            late = time.monotonic() - began - 0.05
            withheld = max(withheld, late - (time.thread_time() - worked))

    async with Fetcher(settings) as fetcher:

        async def one(url: str) -> None:
            async with room:
                began = time.monotonic()
                await fetcher.fetch(url)
                taken.append(time.monotonic() - began)

        watching = asyncio.create_task(watch())
        await asyncio.gather(*map(one, urls))
        watching.cancel()
    return taken, withheld


def test_no_url_of_a_mix_outlives_its_deadline() -> None:
    """The bound is wide here, for processors that others use too; `make prove` holds ten thousand to half a second."""
    settings = config(concurrency=64)
    with Hostile(hosts=4, answers=ANSWERS).running() as web:
        taken, _ = asyncio.run(seconds_of_each(mixed(web, 300, seed=1), settings))
    assert len(taken) == 300
    assert max(taken) < settings.deadline_s + 5


HEADERS = ["Retry-After", "Location", "Content-Length", "Content-Encoding", "Content-Type", "X-Robots-Tag",
           "Transfer-Encoding", "Connection", "Set-Cookie", "Date"]  # fmt: skip
VALUES = [
    "", " ", "-1", "0", "1e9", "+5", "9" * 30, "9" * 5000, "0x10", "\xb2", "\u0663".encode().decode("latin-1"), "nan", "inf",
    "Fri, 31 Dec 99999999999 23:59:59 GMT", "Fri, 31 Dec 9999 23:59:59 -9999", "Mon, 01 Jan 0001 00:00:00 +9999",
    "Fri, 31 Dec 2026 23:59:59 +99999999999999999999", "Fri, 99 Foo 2026 99:99:99 GMT", "1 Jan", "," * 50, "(" * 3000,
    "http://[", "http://[::1", "http://a:99999/", "http://\xff\xfe/", "//", "///", "?", "#", "http:", "//[", "\\\\a", "\x7f\t\x80",
    "http://" + "a." * 200, "http://xn--a/", "http://xn--" + "9" * 60 + "/", "/%", "/%zz", "/../../..", "http://1.2.3.4.5/", "http://256/",
    "gzip", "deflate", "gzip, gzip", "br", "x-gzip", "identity;q=1", "chunked", "chunked, chunked", "gzip, chunked", "close", "upgrade",
    "noai", "a:" * 2000, "unavailable_after: 25 Jun 2010 15:00:00 PST, noai", "*:", ":noai", "x" * 7000, "multipart/x; boundary=\"",
]  # fmt: skip


def test_no_bytes_of_a_server_break_a_fetch() -> None:
    """Whole answers with bytes replaced, cut out and put in at random, and whole ones with every header that is read set to what nobody
    expects; as robots.txt and as pictures: always a body or a refusal, and never one for a reason that nobody thought of."""
    dice = random.Random(3)
    whole_answers = [
        *ANSWERS.values(),
        whole(200, b"User-agent: *\nDisallow: /[*$\nCrawl-delay: 1e999\nSitemap: http://[\n"),
    ]

    def broken() -> bytes:
        data = bytearray(dice.choice(whole_answers)[:4000])
        for _ in range(dice.randrange(1, 8)):
            at = dice.randrange(min(len(data), 300)) if data else 0
            piece = dice.choice([b"\r\n", b"\0", b":", b"\xff", b"[", b"%", b" ", dice.randbytes(3), b"9" * 30])
            data[at : at + dice.choice([0, 1, 5])] = piece
        return bytes(data)

    odd = [
        head(status, f"{name}: {value}", *([] if name == "Content-Length" else ["Content-Length: 3"])) + b"abc"
        for name in HEADERS
        for value in VALUES
        for status in ([429, 503] if name == "Retry-After" else [302] if name == "Location" else [200])
    ]
    answers = [*(broken() for _ in range(300)), *odd]
    settings = config(
        timeout_s=0.3, deadline_s=0.8, retries=0, concurrency=64, max_crawl_delay_s=0, max_retry_after_s=0
    )
    with Hostile(hosts=30, answers={f"/{number}": answer for number, answer in enumerate(answers)}).running() as web:
        web.robots = {host: broken() for host in web.hosts[:15]} | dict(
            zip(web.hosts[15:20], dice.sample(odd, 5), strict=True)
        )
        # A path's answer is every host's: hosts with a broken robots.txt, and ten that leave us alone with the answer.
        urls = [web.url(f"/{number}", host=number % 30) for number in range(300)]
        urls += [web.url(f"/{number}", host=20 + number % 10) for number in range(300, len(answers))]
        outcomes = fetch_pictures(urls, settings, lambda host: 8)
    assert len(outcomes) == len(answers) > 800
    refused = [outcome for outcome in outcomes if isinstance(outcome, Refused)]
    assert len({outcome.reason for outcome in refused}) >= 4
    assert not [outcome for outcome in refused if "unforeseen" in outcome.detail]


@pytest.mark.parametrize("place", ["fetching", "making the stored picture"])
def test_what_nobody_foresaw_costs_one_url_and_is_told_once(
    place: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A defect is planted in our own code, where the names are judged or where the picture is encoded."""
    monkeypatch.setattr("pipeline.crawl.outcome._logged", set())
    judge = Guard.refuse_addresses
    encoded = itertools.count()

    def judge_badly(guard: Guard, addresses: Iterable[Address]) -> tuple[Reason, str] | None:
        if any(str(address) == "127.0.0.12" for address in addresses):
            raise KeyError("a server's own words")
        return judge(guard, addresses)

    def encode_badly(rgb: RGB, *, format: Literal["jpeg", "webp", "png"], quality: int) -> bytes:
        if next(encoded) == 0:
            raise KeyError("a server's own words")
        return encode(rgb, format=format, quality=quality)

    if place == "fetching":
        monkeypatch.setattr(Guard, "refuse_addresses", judge_badly)
        urls = [("/ok", 1), ("/ok?2", 1), ("/ok", 0)]
        refused = [Refused(Reason.CONNECTION, "unforeseen KeyError")] * 2
    else:
        monkeypatch.setattr("pipeline.crawl.picture.encode", encode_badly)
        urls = [("/ok", 0), ("/ok?2", 0), ("/ok?3", 0)]
        refused = [Refused(Reason.IMAGE_CORRUPT, "unforeseen KeyError")]
    with Hostile(hosts=2, answers=ANSWERS).running() as web:
        patient = config(timeout_s=30.0, deadline_s=60.0)
        outcomes = fetch_pictures([web.url(path, host) for path, host in urls], patient, lambda host: 1)
    assert [outcome for outcome in outcomes if isinstance(outcome, Refused)] == refused
    assert isinstance(outcomes[2], Stored)
    told = [record for record in caplog.records if "unforeseen" in record.getMessage() or record.exc_info]
    assert len(told) == 1
    assert place in told[0].getMessage()
    assert told[0].exc_info is not None


@pytest.mark.prove
def test_ten_thousand_urls_of_a_hostile_web(capsys: pytest.CaptureFixture[str]) -> None:
    with Hostile(hosts=16, answers=ANSWERS).running() as web:
        urls = mixed(web, 10_000, seed=2)
        settings = config(concurrency=128, timeout_s=2.0, deadline_s=4.0, per_host=50)
        taken, withheld = asyncio.run(seconds_of_each(urls, settings))
        # Longer times for the names, or a pause of a busy machine would be one.
        settings = config(concurrency=128, timeout_s=8.0, deadline_s=12.0, per_host=50)
        outcomes = fetch_pictures(urls, settings, lambda host: 50)
    late = 4.0 + 0.5 + withheld
    in_time = sum(seconds <= late for seconds in taken) / len(taken)
    with capsys.disabled():
        print(
            f"\n{len(taken):,} hostile URLs: {in_time:.2%} within deadline + 0.5 s + {withheld:.2f} s that the processor was another's; "
            f"the longest {max(taken):.2f} s"
        )
    assert in_time >= 0.999
    assert len(outcomes) == len(urls)
    wrong = [
        (url, named(outcome))
        for url, outcome in zip(urls, outcomes, strict=True)
        if named(outcome) != EXPECTED["/" + url.split("/")[3].partition("?")[0]]
    ]
    assert not wrong
