"""Who is asked next: URLs that wait, by host, each host with its limit at once, its pace and its pauses.

Hosts take turns, so that one with ten thousand URLs does not keep the others waiting, and a host that rests (a limit per second, the
Crawl-delay of its robots.txt, Retry-After) costs nothing while it does. Nothing here knows a clock: the caller says what time it is, in
seconds from any start. Not safe to share between threads.
"""

import collections
import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.crawl.urls import Target

Waiting = tuple[int, Target]  # the URL's place among those asked for, and where it leads


@dataclass(slots=True)
class _Host:
    room: int
    spacing_s: float = 0.0
    rests_until: float = 0.0
    waiting: collections.deque[Waiting] = field(default_factory=collections.deque)
    queued: bool = False  # it is among those ready or those resting, and in that only once


class HostQueues:
    """Hands out the next URL whose host has room and is not at rest, hosts taking turns.

    `limit(host)` is how many fetches it may have at once.
    """

    def __init__(self, limit: Callable[[str], int]) -> None:
        self._limit = limit
        self._hosts: dict[str, _Host] = {}
        self._ready: collections.deque[str] = collections.deque()
        self._resting: list[tuple[float, str]] = []  # a heap by the time at which the rest was thought to end
        self._count = 0

    def __len__(self) -> int:
        """URLs that wait."""
        return self._count

    def add(self, index: int, target: Target) -> None:
        host = self._host(target.host)
        host.waiting.append((index, target))
        self._count += 1
        self._queue(target.host, host)

    def take(self, now: float = 0.0) -> Waiting | None:
        """The next URL, its host's room taken; None when nothing may be fetched now."""
        while self._resting and self._resting[0][0] <= now:
            self._ready.append(heapq.heappop(self._resting)[1])
        while self._ready:
            name = self._ready.popleft()
            host = self._hosts[name]
            host.queued = False
            if not host.waiting or not host.room:
                continue
            if host.rests_until > now:
                host.queued = True
                heapq.heappush(self._resting, (host.rests_until, name))
                continue
            host.room -= 1
            host.rests_until = now + host.spacing_s
            taken = host.waiting.popleft()
            self._count -= 1
            self._queue(name, host)
            return taken
        return None

    def next_time(self) -> float | None:
        """When the first host at rest may be asked again; None where none rests."""
        return self._resting[0][0] if self._resting else None

    def give_back(self, name: str) -> None:
        """A fetch at the host has ended."""
        host = self._hosts[name]
        host.room += 1
        self._queue(name, host)

    def pause(self, name: str, until: float) -> None:
        """Ask the host for nothing before `until`."""
        host = self._host(name)
        host.rests_until = max(host.rests_until, until)

    def space(self, name: str, seconds: float) -> None:
        """From now on let at least `seconds` pass between two fetches of the host; a smaller number than before changes nothing."""
        host = self._host(name)
        if seconds > host.spacing_s:
            host.spacing_s = seconds
            host.rests_until += seconds

    def drop(self, name: str, port: int) -> list[Waiting]:
        """Take out all that waits for a port of the host."""
        host = self._hosts[name]
        dropped = [waiting for waiting in host.waiting if waiting[1].port == port]
        host.waiting = collections.deque(waiting for waiting in host.waiting if waiting[1].port != port)
        self._count -= len(dropped)
        return dropped

    def _host(self, name: str) -> _Host:
        if name not in self._hosts:
            self._hosts[name] = _Host(self._limit(name))
        return self._hosts[name]

    def _queue(self, name: str, host: _Host) -> None:
        if host.waiting and host.room and not host.queued:
            host.queued = True
            self._ready.append(name)
