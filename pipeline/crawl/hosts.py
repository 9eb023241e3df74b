"""Who is asked next: URLs that wait, by host, each host with its limit at once, its pace and its pauses.

Hosts take turns, so that one with ten thousand URLs does not keep the others waiting, and a host that rests (a limit per second, the
Crawl-delay of its robots.txt, Retry-After) costs nothing while it does. What it makes the caller wait is added up, so that the caller
can say when it is too much. Nothing here knows a clock: the caller says what time it is, in seconds from any start. A host for which
nothing was ever added is nobody's turn, and what is said of it is left aside. Not safe to share between threads.
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
    shut: int  # room that it gets when it is opened
    spacing_s: float = 0.0  # ours, between two fetches
    delay_s: float = 0.0  # what it asks for itself
    rests_until: float = 0.0
    waits_s: float = 0.0
    waiting: collections.deque[Waiting] = field(default_factory=collections.deque)
    queued: bool = False  # it is among those ready or those resting, and in that only once

    @property
    def gap_s(self) -> float:
        return max(self.spacing_s, self.delay_s)


class HostQueues:
    """Hands out the next URL whose host has room and is not at rest, hosts taking turns.

    `limit(host)` is how many fetches it may have at once; with `one_first` it is one until `open` is called for the host.
    """

    def __init__(self, limit: Callable[[str], int], *, one_first: bool = False) -> None:
        self._limit = limit
        self._one_first = one_first
        self._hosts: dict[str, _Host] = {}
        self._ready: collections.deque[str] = collections.deque()
        self._resting: list[tuple[float, str]] = []  # a heap by the time at which the rest was thought to end
        self._count = 0

    def __len__(self) -> int:
        """URLs that wait."""
        return self._count

    def add(self, index: int, target: Target) -> None:
        host = self._hosts.get(target.host)
        if host is None:
            limit = self._limit(target.host)
            room = 1 if self._one_first else limit
            host = self._hosts[target.host] = _Host(room, limit - room)
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
            host.rests_until = now + host.gap_s
            host.waits_s += host.gap_s - host.spacing_s
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

    def open(self, name: str) -> bool:
        """Let the host have as many fetches at once as its limit says, from now on; whether that is news."""
        host = self._hosts.get(name)
        if host is None or not host.shut:
            return False
        host.room, host.shut = host.room + host.shut, 0
        self._queue(name, host)
        return True

    def pause(self, name: str, until: float, now: float = 0.0) -> None:
        """The host asks for nothing before `until`."""
        host = self._hosts.get(name)
        if host is not None and until > host.rests_until:
            host.waits_s += until - max(host.rests_until, now)
            host.rests_until = until

    def space(self, name: str, seconds: float) -> None:
        """From now on let at least `seconds` pass between two fetches of the host; a smaller number than before changes nothing."""
        host = self._hosts.get(name)
        if host is not None and seconds > host.spacing_s:
            host.rests_until += max(0.0, seconds - host.gap_s)
            host.spacing_s = seconds

    def delay(self, name: str, seconds: float, now: float = 0.0) -> None:
        """As `space`, at the host's own asking, and from now on: the URL taken last has waited for that, and is asked for only now."""
        host = self._hosts.get(name)
        if host is not None and seconds > host.delay_s:
            more = max(0.0, seconds - host.gap_s)
            host.rests_until = max(host.rests_until + more, now + seconds)
            host.waits_s += more
            host.delay_s = seconds

    def skip_turn(self, name: str, now: float = 0.0) -> None:
        """The host is asked for something out of turn: what comes next of it comes that much later."""
        host = self._hosts.get(name)
        if host is not None and host.gap_s:
            host.rests_until = max(host.rests_until, now) + host.gap_s
            host.waits_s += host.gap_s - host.spacing_s

    def waited(self, name: str, seconds: float) -> None:
        """The host has had the caller wait by answering late."""
        host = self._hosts.get(name)
        if host is not None:
            host.waits_s += seconds

    def waits_s(self, name: str) -> float:
        """Seconds that the host has had us wait in all, beyond our own pace."""
        host = self._hosts.get(name)
        return host.waits_s if host is not None else 0.0

    def drop(self, name: str, port: int | None = None) -> list[Waiting]:
        """Take out all that waits for the host, or for a port of it."""
        host = self._hosts.get(name)
        if host is None:
            return []
        dropped = [waiting for waiting in host.waiting if port in (None, waiting[1].port)]
        host.waiting = collections.deque(waiting for waiting in host.waiting if port not in (None, waiting[1].port))
        self._count -= len(dropped)
        return dropped

    def _queue(self, name: str, host: _Host) -> None:
        if host.waiting and host.room and not host.queued:
            host.queued = True
            self._ready.append(name)
