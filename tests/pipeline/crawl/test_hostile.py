"""A whole unit against a hostile server: every URL is named for what was done to it, and nothing outlives its deadline.

Truth: the table in `hostile.py`, written beside the server.
"""

import asyncio
import random
import time

import pytest

from pipeline.crawl.config import CrawlConfig
from pipeline.crawl.engine import fetch_pictures
from pipeline.crawl.fetch import Fetcher
from pipeline.crawl.outcome import Outcome, Refused
from tests.pipeline.crawl.hostile import ANSWERS, EXPECTED, Hostile, whole


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
    with Hostile(answers=ANSWERS).running() as web:
        outcomes = fetch_pictures([web.url(path) for path in EXPECTED], config(), lambda host: 64)
    found = {path: named(outcome) for path, outcome in zip(EXPECTED, outcomes, strict=True)}
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


async def seconds_of_each(urls: list[str], settings: CrawlConfig) -> list[float]:
    """How long each `fetch` took, `concurrency` of them at once."""
    room, taken = asyncio.Semaphore(settings.concurrency), []
    async with Fetcher(settings) as fetcher:

        async def one(url: str) -> None:
            async with room:
                began = time.monotonic()
                await fetcher.fetch(url)
                taken.append(time.monotonic() - began)

        await asyncio.gather(*map(one, urls))
    return taken


def test_no_url_of_a_mix_outlives_its_deadline() -> None:
    """The bound is wide here, for processors that others use too; `make prove` holds ten thousand to half a second."""
    settings = config(concurrency=64)
    with Hostile(hosts=4, answers=ANSWERS).running() as web:
        taken = asyncio.run(seconds_of_each(mixed(web, 300, seed=1), settings))
    assert len(taken) == 300
    assert max(taken) < settings.deadline_s + 5


def test_no_bytes_of_a_server_break_a_fetch() -> None:
    """Whole answers with bytes replaced, cut out and put in at random, to robots.txt as to pictures: always a body or a refusal."""
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

    settings = config(timeout_s=0.3, deadline_s=0.8, retries=0, concurrency=64, max_crawl_delay_s=0)
    with Hostile(hosts=30, answers={f"/{number}": broken() for number in range(300)}).running() as web:
        web.robots = {host: broken() for host in web.hosts[:20]}
        urls = [web.url(f"/{number}", host=number % 30) for number in range(300)]
        outcomes = fetch_pictures(urls, settings, lambda host: 8)
    assert len(outcomes) == 300
    assert len({outcome.reason for outcome in outcomes if isinstance(outcome, Refused)}) >= 4


@pytest.mark.prove
def test_ten_thousand_urls_of_a_hostile_web(capsys: pytest.CaptureFixture[str]) -> None:
    settings = config(concurrency=128, timeout_s=2.0, deadline_s=4.0, per_host=50)
    with Hostile(hosts=16, answers=ANSWERS).running() as web:
        urls = mixed(web, 10_000, seed=2)
        taken = sorted(asyncio.run(seconds_of_each(urls, settings)))
        outcomes = fetch_pictures(urls, settings, lambda host: 50)
    in_time = sum(seconds <= settings.deadline_s + 0.5 for seconds in taken) / len(taken)
    with capsys.disabled():
        print(f"\n{len(taken):,} hostile URLs: {in_time:.2%} within deadline + 0.5 s; the longest {taken[-1]:.2f} s")
    assert in_time >= 0.999
    assert len(outcomes) == len(urls)
    wrong = [
        (url, named(outcome))
        for url, outcome in zip(urls, outcomes, strict=True)
        if named(outcome) != EXPECTED["/" + url.split("/")[3].partition("?")[0]]
    ]
    assert not wrong
