"""robots.txt: may this agent fetch that URL, and how often? RFC 9309, with `protego` as its reader.

One request for each origin (scheme, host and port) while a unit lasts, made by the same `Fetcher` under the same limits:

* 2xx: the rules, read from the first 500 KiB (section 2.5).
* 4xx (2.3.1.3), or more than five redirects (2.3.1.2): there are none, everything is allowed.
* 5xx: everything is disallowed (2.3.1.4), for the unit's life.
* Unreachable (no address, no connection, no answer in time): disallowed too, but under the name of what went wrong, for it is what the
  URL itself would have met. This is not kept: the next URL asks again, until the host is given up as any dead host is.

The agent is the product token of the crawl's name. `Crawl-delay` is no part of the RFC but widely written; see `Rules.delay_s`.
"""

import asyncio
import dataclasses
from collections import OrderedDict
from collections.abc import Awaitable, Callable

import protego

from pipeline.contracts.schema import Reason
from pipeline.crawl.outcome import Refused
from pipeline.crawl.urls import Target, parse

MAX_BYTES = 500 * 1024
MAX_REDIRECTS = 5
_KEPT = 20_000  # origins
_READ_AT_ONCE = 1 << 14  # bytes
_UNREACHABLE = (Reason.DNS, Reason.CONNECTION, Reason.TLS, Reason.TIMEOUT)


@dataclasses.dataclass(frozen=True)
class Rules:
    """What an origin's robots.txt says. `refused` is set where it could not be read and so nothing may be fetched."""

    parsed: protego.Protego | None = None
    refused: Refused | None = None
    delay_s: float = 0.0
    """Seconds that it wants between two requests (Crawl-delay), as written."""

    def refusal(self, url: str, agent: str) -> Refused | None:
        if self.refused is not None:
            return self.refused
        if self.parsed is not None and not self.parsed.can_fetch(url, agent):
            return Refused(Reason.OPT_OUT, "robots.txt")
        return None


class Robots:
    """The rules of every origin that was asked for. `get` fetches a robots.txt, at most MAX_BYTES of it, over at most MAX_REDIRECTS."""

    def __init__(self, agent: str, get: Callable[[Target], Awaitable[bytes | Refused]]) -> None:
        self._agent = agent
        self._get = get
        self._known: OrderedDict[str, Rules] = OrderedDict()
        self._running: dict[str, asyncio.Task[Rules]] = {}

    async def rules(self, target: Target) -> Rules:
        """The rules of the URL's origin. Askers at the same time share one request."""
        origin = target.url[: target.url.index("/", len(target.scheme) + 3)]
        known = self._known.get(origin)
        if known is not None:
            return known
        task = self._running.get(origin)
        if task is None:
            task = self._running[origin] = asyncio.get_running_loop().create_task(self._ask(origin))
            task.add_done_callback(lambda _: self._running.pop(origin))
        return await asyncio.shield(task)  # one asker's deadline must not take the answer from the others

    async def _ask(self, origin: str) -> Rules:
        answer = await self._get(parse(f"{origin}/robots.txt"))
        if isinstance(answer, bytes):
            # Reading half a megabyte of rules takes long enough to hold up every other fetch.
            small = len(answer) <= _READ_AT_ONCE
            rules = self._read(answer) if small else await asyncio.to_thread(self._read, answer)
        elif answer.reason in _UNREACHABLE:
            return Rules(refused=answer)
        elif answer.reason is Reason.HTTP_STATUS and answer.detail.startswith("5"):
            rules = Rules(refused=Refused(Reason.OPT_OUT, f"robots.txt: {answer.detail}"))
        elif answer.reason is Reason.ADDRESS:
            rules = Rules(refused=Refused(Reason.OPT_OUT, "robots.txt: redirected to an address that is not public"))
        else:
            rules = Rules()
        self._known[origin] = rules
        if len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return rules

    def _read(self, body: bytes) -> Rules:
        parsed = protego.Protego.parse(body.decode("utf-8-sig", "replace"))
        delay = parsed.crawl_delay(self._agent) or 0.0
        return Rules(parsed, delay_s=delay if 0.0 < delay < float("inf") else 0.0)

    async def close(self) -> None:
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
