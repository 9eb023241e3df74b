"""robots.txt of the origins that a unit meets: fetched once, read, kept (RFC 9309, sections 2.3 to 2.5; `rules.py` reads them).

One request for each origin (scheme, host and port) while a unit lasts, made by the same `Fetcher` under the same limits:

* 2xx: the rules, read from the first 500 KiB (section 2.5).
* 4xx (2.3.1.3), or more than five redirects (2.3.1.2): there are none, everything is allowed.
* 5xx: everything is disallowed (2.3.1.4), for the unit's life. 429 says no more about the rules than 503 does, and counts like it.
* 429 or 503 with Retry-After: disallowed, and asked for again by the first URL after that time.
* Unreachable (no address, no connection, no answer in time): disallowed too, but under the name of what went wrong, for it is what the
  URL itself would have met. This is not kept: the next URL asks again, until the host is given up as any dead host is.

What is kept is bounded in origins and in bytes; an origin that was pushed out is asked again.
"""

import asyncio
import dataclasses
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from pipeline.contracts.schema import Reason
from pipeline.crawl.outcome import Refused
from pipeline.crawl.rules import Rules, read
from pipeline.crawl.urls import Target, parse

MAX_BYTES = 500 * 1024
MAX_REDIRECTS = 5
_KEPT = 20_000  # origins
_KEPT_OCTETS = 64 << 20  # in the rules of all of them
_READ_AT_ONCE = 1 << 14  # bytes
_UNREACHABLE = (Reason.DNS, Reason.CONNECTION, Reason.TLS, Reason.TIMEOUT)


@dataclasses.dataclass(frozen=True)
class Policy:
    """What an origin says about being fetched from. `refused` is set where its rules could not be read and so nothing may be fetched."""

    rules: Rules | None = None
    refused: Refused | None = None

    def refusal(self, target: Target) -> Refused | None:
        """Why the URL, which must be of this origin, may not be fetched."""
        if self.refused is not None:
            return self.refused
        if self.rules is not None and not self.rules.allow(target.url[len(origin(target)) :]):
            return Refused(Reason.OPT_OUT, "robots.txt")
        return None


def origin(target: Target) -> str:
    """`scheme://host:port` as in the URL's spelling for the wire."""
    return target.url[: target.url.index("/", len(target.scheme) + 3)]


class Robots:
    """The policy of every origin that was asked for.

    `get` fetches a robots.txt, at most MAX_BYTES of it, over at most MAX_REDIRECTS. `paused_until(host)` is the time of the event loop
    before which a host does not want to be asked.
    """

    def __init__(
        self,
        agent: str,
        get: Callable[[Target], Awaitable[bytes | Refused]],
        paused_until: Callable[[str], float],
    ) -> None:
        self._agent = agent
        self._get = get
        self._paused_until = paused_until
        self._known: OrderedDict[str, Policy] = OrderedDict()
        self._octets = 0
        self._running: dict[str, asyncio.Task[Policy]] = {}
        self._reading = asyncio.Semaphore(1)

    async def policy(self, target: Target) -> Policy:
        """The policy of the URL's origin. Askers at the same time share one request."""
        place = origin(target)
        known = self._known.get(place)
        if known is not None:
            return known
        task = self._running.get(place)
        if task is None:
            task = self._running[place] = asyncio.get_running_loop().create_task(self._ask(place))
            task.add_done_callback(lambda _: self._running.pop(place))
        return await asyncio.shield(task)  # one asker's deadline must not take the answer from the others

    async def _ask(self, place: str) -> Policy:
        target = parse(f"{place}/robots.txt")
        answer = await self._get(target)
        if isinstance(answer, bytes):
            rules = await self._read(answer)
            refused = Refused(Reason.OPT_OUT, "robots.txt: too many wildcards") if rules.too_many else None
            policy = Policy(rules, refused)
        elif answer.reason in _UNREACHABLE:
            return Policy(refused=dataclasses.replace(answer, at=(target.host, target.port)))
        elif answer.reason is Reason.HTTP_STATUS and (answer.detail.startswith("5") or answer.detail == "429"):
            policy = Policy(refused=Refused(Reason.OPT_OUT, f"robots.txt: {answer.detail}"))
            if self._paused_until(target.host) > asyncio.get_running_loop().time():
                return policy
        elif answer.reason is Reason.ADDRESS:
            policy = Policy(refused=Refused(Reason.OPT_OUT, "robots.txt: redirected to an address that is not public"))
        else:
            policy = Policy()
        self._keep(place, policy)
        return policy

    async def _read(self, body: bytes) -> Rules:
        if len(body) <= _READ_AT_ONCE:
            return read(body, self._agent)
        # Half a megabyte of rules takes long enough to hold up every other fetch, and many such threads would do it together.
        async with self._reading:
            return await asyncio.to_thread(read, body, self._agent)

    def _keep(self, place: str, policy: Policy) -> None:
        self._known[place] = policy
        self._octets += policy.rules.octets if policy.rules is not None else 0
        while len(self._known) > _KEPT or (self._octets > _KEPT_OCTETS and len(self._known) > 1):
            _, gone = self._known.popitem(last=False)
            self._octets -= gone.rules.octets if gone.rules is not None else 0

    async def close(self) -> None:
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
