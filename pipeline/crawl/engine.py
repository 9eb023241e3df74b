"""The engine `fetch`: one unit's URLs through a `Fetcher`, and its bodies through our own decoder, both at the same time.

An event loop in the calling thread fetches, `concurrency` URLs at once, hosts taking turns (`hosts.py`); one thread beside it decodes,
resizes, encodes and hashes, which Pillow and numba do without holding the interpreter. A fetched body keeps its place among the
`concurrency` until the decoder's short queue has room for it, so memory holds at most that many bodies however slow the decoder is.

Two things let a host hold its unit no longer. One that is not there (no address, no connection, no HTTP, no answer in time) or not now
(429, 503) `host_failures` times in a row is given up: what still waits for the same port of it is refused with the name of the last
failure. And one that wants to be waited for (Retry-After, Crawl-delay, answers and pictures that take long) is waited for
`max_host_wait_s` seconds in all; what is left then is refused.
"""

import asyncio
import concurrent.futures
import contextlib
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from pipeline.contracts.errors import HouseError
from pipeline.contracts.schema import Reason
from pipeline.crawl.config import CrawlConfig
from pipeline.crawl.fetch import Fetcher, host_failed
from pipeline.crawl.files import WAIT_S, starved
from pipeline.crawl.guard import Guard
from pipeline.crawl.hosts import HostQueues, Waiting
from pipeline.crawl.outcome import Outcome, Refused, unforeseen
from pipeline.crawl.picture import get_ready, store
from pipeline.crawl.urls import Target, UrlRefused, parse

T = TypeVar("T")

_QUEUED_BODIES = 16  # that wait for the decoder or are in it
_PROMPT_S = 2.0  # a fetch that takes longer has the unit wait
_PROMPT_DECODING_S = 1.0  # as has a picture that takes longer to decode and to store
_LONG_WAITS = Refused(Reason.TIMEOUT, "its host wants long waits")


def fetch_pictures(
    urls: Sequence[str], config: CrawlConfig, host_limit: Callable[[str], int], guard: Guard | None = None
) -> list[Outcome]:
    """Fetch every URL once; one outcome per URL, in their order (see `outcome.Engine`). To be called where no event loop runs.

    Raises InputError where the process may not open enough files, RunError where it ran out of them all the same.
    """
    unit = _Unit(config, host_limit)
    for index, url in enumerate(urls):
        try:
            unit.queues.add(index, parse(url))
        except UrlRefused as refused:
            unit.outcomes[index] = Refused(refused.reason, refused.detail)
    try:
        asyncio.run(unit.run(guard))
    except BaseExceptionGroup as group:
        told = group.subgroup(HouseError)
        if told is None:
            raise
        raise told.exceptions[0] from None
    return [unit.outcomes[index] for index in range(len(urls))]


class _Unit:
    """The state of one unit; it is told by its Fetcher what hosts ask for (`fetch.Manners`)."""

    def __init__(self, config: CrawlConfig, host_limit: Callable[[str], int]) -> None:
        # One fetch at a host until its robots.txt is read: the others would not know its Crawl-delay.
        self.queues = HostQueues(host_limit, one_first=config.respect_robots)
        self.outcomes: dict[int, Outcome] = {}
        self._config = config
        self._host_limit = host_limit
        self._failures: dict[tuple[str, int], int] = {}  # in a row, by host and port
        self._paced: set[str] = set()
        self._slow_pictures: set[str] = set()  # hosts that sent one which took long to decode

    async def run(self, guard: Guard | None) -> None:
        self._changed = asyncio.Event()
        self._slots = asyncio.Semaphore(self._config.concurrency)
        self._decoding = asyncio.Semaphore(_QUEUED_BODIES)
        with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="decode") as decoder:
            async with Fetcher(self._config, guard, self) as fetcher, asyncio.TaskGroup() as tasks:
                # Now, when nothing is under way: compiling would slow fetches down, and be charged to the host of the first picture.
                _patiently(lambda: get_ready(hashes=self._config.perceptual_hashes), self._config)
                while self.queues:
                    await self._slots.acquire()
                    taken = await self._next()
                    if taken is None:
                        self._slots.release()
                    else:
                        tasks.create_task(self._one(*taken, fetcher, decoder))

    async def _next(self) -> Waiting | None:
        """The next URL to fetch, as soon as its host may be asked; None when none waits any more."""
        now = asyncio.get_running_loop().time
        while self.queues:
            if (taken := self.queues.take(now())) is not None:
                self._pace(taken[1].host)
                self._lose_patience(taken[1].host)
                return taken
            resting = self.queues.next_time()
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if resting is None else max(0.0, resting - now())):
                    await self._changed.wait()
        return None

    def _pace(self, host: str) -> None:
        """Set the pace of `per_host_rate` when a host is first asked; a unit that shares it with others has its part of the rate."""
        if self._config.per_host_rate is not None and host not in self._paced:
            self._paced.add(host)
            self.queues.space(host, 1 / (self._config.per_host_rate * self._share(host)))

    def _share(self, host: str) -> float:
        return self._host_limit(host) / self._config.per_host

    # ---- manners

    def rules_read(self, host: str, delay_s: float) -> None:
        self.queues.delay(host, delay_s / self._share(host), asyncio.get_running_loop().time())
        if self.queues.open(host):
            self._changed.set()

    def paused(self, host: str, until: float) -> None:
        self.queues.pause(host, until, asyncio.get_running_loop().time())
        self._lose_patience(host)

    def extra_request(self, host: str) -> None:
        self.queues.skip_turn(host, asyncio.get_running_loop().time())

    def _lose_patience(self, host: str) -> None:
        """Refuse what waits for a host that has had the unit wait for too long."""
        if self._is_out_of_patience(host):
            self._refuse_waiting(self.queues.drop(host), _LONG_WAITS)

    def _is_out_of_patience(self, host: str) -> bool:
        return self.queues.waits_s(host) > self._config.max_host_wait_s

    # ---- one URL

    async def _one(
        self, index: int, target: Target, fetcher: Fetcher, decoder: concurrent.futures.ThreadPoolExecutor
    ) -> None:
        fetched: bytes | Refused
        now = asyncio.get_running_loop().time
        began = now()
        try:
            fetched = await fetcher.fetch(target)
        except HouseError:  # about this machine, not about the URL
            raise
        except Exception as error:  # noqa: BLE001 - logged there; no single URL may end a run
            fetched = unforeseen(error, Reason.CONNECTION, "fetching")
        self._note(target, fetched)
        # A host that answers its `limit` fetches at once in N seconds holds the unit for N seconds.
        self.queues.waited(target.host, max(0.0, now() - began - _PROMPT_S) / self._host_limit(target.host))
        self._lose_patience(target.host)
        self.queues.give_back(target.host)
        self._changed.set()
        if isinstance(fetched, Refused):
            self._slots.release()
            self.outcomes[index] = fetched
            return
        async with self._decoding:
            self._slots.release()
            # A body that was fetched is decoded, but for those of a host whose pictures have cost the unit its patience.
            if target.host in self._slow_pictures and self._is_out_of_patience(target.host):
                self.outcomes[index] = _LONG_WAITS
                return
            loop = asyncio.get_running_loop()
            self.outcomes[index], seconds = await loop.run_in_executor(decoder, _store, fetched, self._config)
        # There is one decoder: however many fetches a host may have at once, its pictures hold the unit one after the other.
        if seconds > _PROMPT_DECODING_S:
            self._slow_pictures.add(target.host)
            self.queues.waited(target.host, seconds - _PROMPT_DECODING_S)
            self._lose_patience(target.host)
            self._changed.set()

    def _note(self, target: Target, fetched: bytes | Refused) -> None:
        """Count failures in a row, and give a host up after enough of them. Those of a redirect's target are not the redirecting host's."""
        key = (target.host, target.port)
        if isinstance(fetched, bytes) or not host_failed(fetched) or fetched.at not in (None, key):
            self._failures[key] = 0
            return
        self._failures[key] = self._failures.get(key, 0) + 1
        if self._failures[key] >= self._config.host_failures:
            self._refuse_waiting(self.queues.drop(*key), fetched)

    def _refuse_waiting(self, waiting: Sequence[Waiting], refused: Refused) -> None:
        for index, _ in waiting:
            self.outcomes[index] = refused


def _store(data: bytes, config: CrawlConfig) -> tuple[Outcome, float]:
    """What becomes of a body, and the seconds that it took."""

    def timed() -> tuple[Outcome, float]:
        began = time.monotonic()
        return store(data, config), time.monotonic() - began

    return _patiently(timed, config)


def _patiently(work: Callable[[], T], config: CrawlConfig) -> T:
    """What `work` returns; it is tried again for as long as a URL may take where no file can be opened."""
    until = time.monotonic() + config.deadline_s
    while True:
        try:
            return work()
        except OSError:
            if time.monotonic() + WAIT_S > until:
                raise starved(config.deadline_s, config.at_once_key) from None
        time.sleep(WAIT_S)
