"""Files and wrapping: a unit with fewer files than hosts, a process without any left, and answers wrapped in almost more than themselves.

Truth: what the servers below were told to answer, and the limits that the operating system was given.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import pytest

from pipeline.contracts.errors import InputError
from pipeline.contracts.schema import Reason
from pipeline.crawl.config import CrawlConfig
from pipeline.crawl.connections import MOST_BESIDE, MOST_INTERIM
from pipeline.crawl.fetch import Fetcher
from pipeline.crawl.outcome import Refused
from pipeline.crawl.stage import require
from tests.pipeline.crawl.hostile import ANSWERS, Hostile, head, whole

FILES = 220  # of a process that fetches 8 URLs at once; those of a test are 100 or so

UNIT = """
import itertools, json, resource, sys, threading, time
from pipeline.crawl.config import CrawlConfig
from pipeline.crawl.engine import fetch_pictures
from pipeline.crawl.fetch import Fetcher
from pipeline.contracts.errors import HouseError

port, hosts, files, hard, back_after_s, deadline_s = (float(word) for word in sys.argv[1:])
config = CrawlConfig(
    allow_addresses=("127.0.0.0/8",), concurrency=8, deadline_s=deadline_s, perceptual_hashes=False, retries=0
)
urls = [f"http://127.3.{n // 250}.{n % 250 + 1}:{port:.0f}/ok?{n}" for n in range(int(hosts))]
if back_after_s >= 0:
    # Files are there when the unit begins, none from its ninth URL on, and after a while (or never) there are some again.
    def squeeze():
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (6, limits[1]))
        if back_after_s:
            threading.Timer(back_after_s, resource.setrlimit, (resource.RLIMIT_NOFILE, limits)).start()
    fetch, calls = Fetcher.fetch, itertools.count(1)

    async def squeezed(self, target):
        if next(calls) == 9:
            squeeze()
        return await fetch(self, target)

    Fetcher.fetch = squeezed
    urls = [url.replace("/ok", "/slowly") for url in urls]
else:
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(files), int(hard)))
try:
    outcomes = fetch_pictures(urls, config, lambda host: 4)
except HouseError as error:
    print(json.dumps([type(error).__name__, str(error)]))
else:
    print(json.dumps([f"{one.reason} {one.detail}" if hasattr(one, "reason") else "stored" for one in outcomes]))
"""


def unit(
    web: Hostile, hosts: int, soft: int = 0, hard: int = 0, back_after_s: float = -1, deadline_s: float = 30
) -> Any:
    words = [web.port, hosts, soft, hard, back_after_s, deadline_s]
    done = subprocess.run(
        [sys.executable, "-c", UNIT, *map(str, words)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def everywhere() -> Hostile:
    """One server on all of 127.0.0.0/8: as many live hosts as there are addresses."""
    web = Hostile(answers=ANSWERS)
    web.hosts = ["0.0.0.0"]
    return web


def test_more_hosts_that_keep_connections_than_files() -> None:
    with everywhere().running() as web:
        assert Counter(unit(web, 400, FILES, FILES)) == {"stored": 400}
        # The hosts, not the limit, say how many connections there were: each was kept from its robots.txt to its picture.
        assert web.connections <= 400 + 8


def test_the_soft_limit_is_raised_before_anything_is_refused() -> None:
    with everywhere().running() as web:
        assert Counter(unit(web, 20, 100, FILES)) == {"stored": 20}


def test_too_few_files_are_told_before_anything_is_fetched() -> None:
    with everywhere().running() as web:
        kind, said = unit(web, 20, 100, 100)
    assert kind == "InputError"
    assert said == (
        "crawl.concurrency: 8 fetches at once need 176 open files and this process may have 100 (RLIMIT_NOFILE); "
        "lower it, or raise the limit (ulimit -n)"
    )
    assert not web.hits
    with pytest.raises(InputError, match=r"crawl\.threads: 1000000 fetches at once need 6,000,128 open files"):
        require(CrawlConfig(engine="img2dataset", unguarded=True, threads=1_000_000))


def test_files_that_are_wanting_for_a_while_cost_no_url() -> None:
    with everywhere().running() as web:
        assert Counter(unit(web, 60, back_after_s=1.5)) == {"stored": 60}


def test_files_that_stay_wanting_end_the_run_in_one_sentence() -> None:
    with everywhere().running() as web:
        kind, said = unit(web, 60, back_after_s=0, deadline_s=2)
    assert kind == "RunError"
    assert said.startswith("crawl: no file could be opened for 2 s (this process may have 6")
    assert "\n" not in said


# ---- wrapping


def chunked(body: bytes, size: int) -> bytes:
    pieces = (body[start : start + size] for start in range(0, len(body), size))
    framed = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return head(200, "Transfer-Encoding: chunked") + framed + b"0\r\n\r\n"


BODY = bytes(range(256)) * 4000
WRAPPED = {
    "/interim": (head(103, "Link: </a.css>") * MOST_INTERIM + whole(200, BODY), BODY),
    "/one_more": (
        head(103, "Link: </a.css>") * (MOST_INTERIM + 1) + whole(200, BODY),
        Refused(Reason.CONNECTION, "more than 16 interim answers"),
    ),
    "/continue": (head(100) + whole(200, BODY), BODY),
    "/chunks_of_100": (chunked(BODY, 100), BODY),
    "/chunks_of_1": (chunked(BODY[: MOST_BESIDE // 6], 1), BODY[: MOST_BESIDE // 6]),
    "/many_of_1": (chunked(BODY, 1), Refused(Reason.CONNECTION, "more around the body than in it")),
    "/large_chunks": (chunked(BODY, 300_000), BODY),
    "/trailers": (chunked(BODY, 1000)[:-2] + b"X-Checksum: 1\r\n\r\n", BODY),
    "/headers": (whole(200, BODY, *(f"X-{number}: {'y' * 7000}" for number in range(100))), BODY),
}


def fetch_all(urls: list[str], settings: CrawlConfig) -> list[bytes | Refused]:
    async def work() -> list[bytes | Refused]:
        async with Fetcher(settings) as fetcher:
            return [await fetcher.fetch(url) for url in urls]

    return asyncio.run(work())


def test_how_much_an_answer_may_be_wrapped_in() -> None:
    settings = CrawlConfig(allow_addresses=("127.0.0.0/8",), retries=0)
    with Hostile(answers={path: answer for path, (answer, _) in WRAPPED.items()}).running() as web:
        found = fetch_all([web.url(path) for path in WRAPPED], settings)
    assert dict(zip(WRAPPED, found, strict=True)) == {path: expected for path, (_, expected) in WRAPPED.items()}


@pytest.mark.parametrize("path", ["/interim", "/tiny_chunks", "/chunk_extensions", "/blank_lines", "/more_answers"])
def test_floods_hold_up_nobody_else(path: str) -> None:
    """Forty floods at once, and forty pictures beside them: unbounded, each flood takes all the CPU that there is until its deadline."""
    settings = CrawlConfig(
        allow_addresses=("127.0.0.0/8",), retries=0, deadline_s=20, per_host=40, respect_robots=False
    )
    taken: list[float] = []

    async def work(web: Hostile) -> None:
        async with Fetcher(settings) as fetcher:

            async def one(number: int) -> None:
                began = time.process_time()
                await fetcher.fetch(web.url(f"{path}?{number}" if number % 2 else f"/ok?{number}", host=number % 2))
                taken.append(time.process_time() - began)

            await asyncio.gather(*map(one, range(80)))

    with Hostile(hosts=2, answers=ANSWERS).running() as web:
        asyncio.run(work(web))
    assert len(taken) == 80
    assert max(taken) < 4  # seconds of this process, the flooding server's among them
