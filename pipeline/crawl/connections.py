"""Connections to strangers' servers: no more idle ones than there is room for, and none that sends more wrapping than answer.

aiohttp keeps idle connections without a bound, hands on any number of interim answers (1xx), and parses chunks of one byte as gladly as
large ones; each is a way for servers to cost a unit its files or its event loop. aiohttp has no setting for either, so `Connector` and the
protocol it makes reach into it at two places, named in comments below.
"""

import functools
import socket
import sys
from collections.abc import Callable
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler

from pipeline.crawl.names import AddressRefused, Names
from pipeline.crawl.outcome import Refused

_KEEPALIVE_S = 15.0
_TRIED = 2  # addresses of each family that are connected to, beside each other

MOST_INTERIM = 16
"""Interim answers (1xx) to one request."""
MOST_BEFORE = 128 * 8190 + (1 << 16)
"""Bytes of a connection up to the end of an answer's headers; the parser's own limits are 128 lines of 8,190 bytes."""
MOST_BESIDE = 1 << 13
"""Bytes of sizes of chunks, their extensions and trailers, beside one for sixteen of the body: chunks of a hundred bytes are always let
through, of smaller ones a thousand."""
_SLICE = 1 << 13  # bytes that are parsed before the counts are looked at again


class Resolver(AbstractResolver):
    """What aiohttp asks: the answers of `Names`, no more of each than may be tried at once without costing others their files."""

    def __init__(self, names: Names) -> None:
        self._names = names

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        answer = await self._names.addresses(host)
        if isinstance(answer, Refused):
            raise AddressRefused(answer)
        return [
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=socket.AF_INET if address.version == 4 else socket.AF_INET6,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for place, address in enumerate(answer)
            if sum(earlier.version == address.version for earlier in answer[:place]) < _TRIED
        ]

    async def close(self) -> None:
        """Nothing of its own to close."""


class Connector(aiohttp.TCPConnector):
    """Connects where `resolver` and `make_socket` let it; keeps at most `most_idle` connections (and an eighth) for further requests."""

    def __init__(
        self,
        resolver: AbstractResolver,
        make_socket: Callable[[tuple[Any, ...]], socket.socket],
        context: Any,
        most_idle: int,
    ) -> None:
        super().__init__(
            limit=0,
            resolver=resolver,
            use_dns_cache=False,  # the cache is that of `Names`: aiohttp's would keep answers that were not judged
            socket_factory=make_socket,
            ssl=context,
            keepalive_timeout=_KEEPALIVE_S,
        )
        # aiohttp's own, read for each new connection.
        self._factory = functools.partial(_bounded, loop=self._loop)
        self._most_idle = most_idle
        self._released = 0

    def _release(self, key: Any, protocol: ResponseHandler, *, should_close: bool = False) -> None:
        """aiohttp's own: what becomes of a connection after its answer. Those that have waited longest for another are closed."""
        super()._release(key, protocol, should_close=should_close)
        self._released += 1
        if self._released <= self._most_idle // 8:
            return  # counting costs time by the hosts there are, so it is not done every time
        self._released = 0
        over = sum(map(len, self._conns.values())) - self._most_idle
        while over > 0 and self._conns:
            oldest = next(iter(self._conns))
            for idle, _ in self._conns.pop(oldest):
                idle.close()
                over -= 1


def _bounded(loop: Any) -> ResponseHandler:
    return _Bounded(loop)


class Wasteful(aiohttp.ClientPayloadError):
    """A server sent more around its answer than an answer has."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class _Bounded(ResponseHandler):
    """Counts what comes that is no body, and ends the connection on the first excess."""

    def __init__(self, loop: Any) -> None:
        super().__init__(loop)
        self._begin()

    def _begin(self) -> None:
        self._interim = 0
        self._wire = 0  # bytes since the request
        self._head: int | None = None  # of those, up to the end of the answer's headers (and of the slice they end in)
        self._chunked = False
        self._announced: int | None = None
        self._is_over = False  # something follows the answer

    def set_response_params(self, **params: Any) -> None:
        """aiohttp calls it as each request begins."""
        self._begin()
        super().set_response_params(**params)

    def feed_data(self, data: Any, size: int = 0) -> None:
        """An answer's headers are complete."""
        message, _ = data
        if 100 <= message.code < 200 and message.code != 101:
            self._interim += 1
            if self._interim > MOST_INTERIM:
                return  # `data_received` ends the connection after this slice
        elif self._head is not None:
            self._is_over = True
            return
        else:
            length = message.headers.get("Content-Length", "")
            self._head, self._chunked = self._wire, message.chunked
            self._announced = int(length) if length.isdecimal() else None
        super().feed_data(data, size)

    def data_received(self, data: bytes) -> None:
        start = 0
        while start < len(data) and self._parser is not None and not self._upgraded:
            piece = data[start : start + self._step()]
            start += len(piece)
            self._wire += len(piece)
            super().data_received(piece)
            if (excess := self._excess()) is not None:
                self._end(excess)
            elif self._is_over and self.transport is not None:
                self.transport.abort()
            if self.transport is None or self.transport.is_closing():
                return
        if start < len(data) or not data:
            super().data_received(data[start:])

    def _step(self) -> int:
        """How much may be parsed before the counts are looked at again: of a plain body all that there is."""
        if self._head is None or self._chunked or self._payload is None:
            return _SLICE
        if self._announced is None:
            return sys.maxsize
        return max(_SLICE, self._announced - self._payload.total_bytes)

    def _excess(self) -> str | None:
        if self._interim > MOST_INTERIM:
            return f"more than {MOST_INTERIM} interim answers"
        if self._head is None:
            return f"more than {MOST_BEFORE} bytes of headers" if self._wire > MOST_BEFORE else None
        # While reading is paused, what has come is not parsed yet.
        if self._chunked and self._payload is not None and not self._reading_paused:
            body = self._payload.total_bytes
            if self._wire - self._head - body > MOST_BESIDE + body // 16:
                return "more around the body than in it"
        return None

    def _end(self, excess: str) -> None:
        error = Wasteful(excess)
        if self._payload is not None and not self._payload.is_eof():
            self._payload.set_exception(error)
        self.set_exception(error)
        if self.transport is not None:
            self.transport.abort()
