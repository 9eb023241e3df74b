"""Host names to judged addresses, for the event loop: a cache, a time limit for each look-up, and the last gate before a connection.

Between the guard's decision and the connection lie a resolver and a library, and a name may be answered differently each time. So
there is one look-up whose answer is judged whole and kept, aiohttp is handed that answer and no other (`Resolver`), and whatever address
a socket is made for is judged once more (`gate`): that also covers hosts written as numbers, for which aiohttp asks no resolver.
"""

import asyncio
import concurrent.futures
import ipaddress
import socket
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from pipeline.contracts.schema import Reason
from pipeline.crawl.files import OURS
from pipeline.crawl.guard import Guard, resolver_words
from pipeline.crawl.outcome import Refused
from pipeline.crawl.urls import Address

_KEPT = 100_000  # names
_KEPT_S = {True: 600.0, False: 60.0}  # an answer, and the lack of one; the system's resolver tells no time to live
_ATTEMPTS = 2  # a resolver that answers nothing is asked again, one that knows no such name is not


class AddressRefused(OSError):
    """A connection that the guard does not allow. An OSError, so that aiohttp hands it on as the cause of its own error."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(refused.detail)
        self.refused = refused


class Names:
    """Look-ups through `guard.resolve`, for one event loop; nobody waits for one longer than `limit_s` seconds from its beginning.

    Each takes one of at most `threads` threads (made when needed), and keeps it until the system's resolver returns, which may be long
    after everybody has given up. So there must be enough of them that names which hang leave some for the others; a name that hangs
    is not looked up a second time beside itself, and when its answer comes after all, it is an answer. Running out of time says
    nothing about a name: it is not kept. Nor does running out of files, which is raised as an OSError of `files.OURS`.
    """

    def __init__(self, guard: Guard, limit_s: float, threads: int = 256) -> None:
        self._guard = guard
        self._limit_s = limit_s
        self._threads = concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="names")
        self._answers: OrderedDict[str, tuple[float, list[Address] | Refused]] = OrderedDict()
        self._running: dict[str, tuple[asyncio.Event, asyncio.Task[list[Address] | Refused]]] = {}
        self.starved = 0
        """Sockets that could not be made for want of files."""

    async def addresses(self, host: str) -> list[Address] | Refused:
        """The addresses of a host name, all of them public or allowed; else the refusal. Askers at the same time share one look-up."""
        loop = asyncio.get_running_loop()
        known = self._answers.get(host)
        if known is not None and known[0] > loop.time():
            return known[1]
        if host not in self._running:
            begun = asyncio.Event()
            self._running[host] = begun, loop.create_task(self._look_up(host, begun))
        begun, task = self._running[host]
        await begun.wait()
        try:
            async with asyncio.timeout(self._limit_s):
                return await asyncio.shield(task)  # the others may still get the answer, and so may the next asker
        except TimeoutError:
            return Refused(Reason.DNS, "timed out")

    async def _look_up(self, host: str, begun: asyncio.Event) -> list[Address] | Refused:
        loop = asyncio.get_running_loop()
        try:
            answer = await loop.run_in_executor(
                self._threads, self._resolve, host, lambda: loop.call_soon_threadsafe(begun.set)
            )
        finally:
            begun.set()  # also where no thread could begin
            del self._running[host]
        self._answers[host] = (loop.time() + _KEPT_S[isinstance(answer, list)], answer)
        self._answers.move_to_end(host)
        if len(self._answers) > _KEPT:
            self._answers.popitem(last=False)
        return answer

    def _resolve(self, host: str, begin: Callable[[], object]) -> list[Address] | Refused:
        """In a thread: ask the resolver and judge all that it says."""
        begin()
        answer = Refused(Reason.DNS, "no answer")
        for _ in range(_ATTEMPTS):
            try:
                found = self._guard.resolve(host)
            except UnicodeError:
                return Refused(Reason.BAD_URL, "host name")
            except OSError as error:
                if error.errno in OURS:
                    raise
                answer = Refused(Reason.DNS, resolver_words(error))
                if error.errno != socket.EAI_AGAIN:
                    break
            else:
                refusal = self._guard.refuse_addresses(found) if found else (Reason.DNS, "no address")
                return found if refusal is None else Refused(*refusal)
        return answer

    def gate(self, info: tuple[Any, ...]) -> socket.socket:
        """A socket for an entry of getaddrinfo, or AddressRefused; aiohttp's `socket_factory`, which then connects to that address."""
        family, kind, protocol, _, place = info
        refusal = self._guard.refuse_addresses([ipaddress.ip_address(str(place[0]).partition("%")[0])])
        if refusal is not None:
            raise AddressRefused(Refused(*refusal))
        try:
            return socket.socket(family, kind, protocol)
        except OSError as error:
            # Told here too: where several addresses fail, aiohttp's error has the number of none of them.
            self.starved += error.errno in OURS
            raise

    async def close(self) -> None:
        running = [task for _, task in self._running.values()]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)
