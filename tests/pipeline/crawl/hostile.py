"""A web server that does, per path, what servers do to crawlers: written on plain sockets, because no library would send this.

It runs in a thread of its own on as many loopback addresses as asked for, each of them a host. `hits` counts requests by host and path,
`connections` what was opened.
"""

import asyncio
import contextlib
import gzip
import io
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping

import numpy as np
import PIL.Image


def _jpeg() -> bytes:
    y, x = np.mgrid[0:90, 0:120]
    file = io.BytesIO()
    PIL.Image.fromarray(np.stack([x * 2, y * 2, x + y], axis=2).astype(np.uint8)).save(file, "JPEG")
    return file.getvalue()


JPEG = _jpeg()
BOMB = gzip.compress(bytes(50_000_000), 6)  # 50 kB that become 50 MB
STEP_S = 0.1  # between two bytes of what drips

Write = Callable[[bytes], Awaitable[None]]


def head(status: int = 200, *lines: str, length: int | None = None) -> bytes:
    all_lines = [f"HTTP/1.1 {status} Words", *lines]
    if length is not None:
        all_lines.append(f"Content-Length: {length}")
    return "\r\n".join([*all_lines, "", ""]).encode("latin-1")


def whole(status: int, body: bytes, *lines: str) -> bytes:
    return head(status, *lines, length=len(body)) + body


class Hostile:
    """`answers` are whole answers by path, of every host; `robots` a whole answer to /robots.txt by host, 404 elsewhere."""

    def __init__(self, hosts: int = 1, answers: Mapping[str, bytes] | None = None) -> None:
        self.hosts = [f"127.0.0.{11 + number}" for number in range(hosts)]
        self.answers = dict(answers or {})
        self.robots: dict[str, bytes] = {}
        self.robots_take_s = 0.0
        self.hits: Counter[tuple[str, str]] = Counter()
        self.times: dict[tuple[str, str], list[float]] = {}
        self.connections = 0
        self.agents: set[str] = set()
        self.headers: list[bytes] = []
        self.port = 0
        self._open: set[asyncio.StreamWriter] = set()

    def url(self, path: str, host: int = 0) -> str:
        return f"http://{self.hosts[host]}:{self.port}{path}"

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open.add(writer)
        host = writer.get_extra_info("sockname")[0]

        async def write(data: bytes) -> None:
            writer.write(data)
            await writer.drain()

        # Cancelled when the test is over: StreamReaderProtocol of Python 3.11 takes a cancelled handler for an error.
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                first = await reader.readexactly(1)
                if first == b"\x16":  # a TLS handshake
                    await write(b"\x00 no TLS here \r\n" * 100)
                    break
                request = first + await reader.readuntil(b"\r\n\r\n")
                self.headers.append(request)
                path = request.split(b" ")[1].decode()
                self.hits[host, path] += 1
                self.times.setdefault((host, path), []).append(time.monotonic())
                if not await self._answer(host, path.partition("?")[0], write, writer):
                    break
        writer.close()

    async def _answer(self, host: str, path: str, write: Write, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection may be used again."""
        if path == "/robots.txt":
            await asyncio.sleep(self.robots_take_s)
            await write(self.robots.get(host, whole(404, b"")))
        elif path in self.answers:
            await write(self.answers[path])
        elif path == "/slowly":
            await asyncio.sleep(0.25)
            await write(whole(200, JPEG))
        elif path == "/reset":
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await write(head(200, length=1000) + b"x" * 100)
            writer.transport.abort()
            return False
        elif path in TROUBLES:
            with contextlib.suppress(ConnectionError):
                await TROUBLES[path](write)
            return False
        else:
            await write(whole(404, b"not here"))
        return True

    @contextlib.contextmanager
    def running(self) -> Iterator["Hostile"]:
        started, loop = threading.Event(), asyncio.new_event_loop()

        async def serve() -> None:
            server = await asyncio.start_server(self.handle, self.hosts[0], 0, backlog=1024)
            self.port = server.sockets[0].getsockname()[1]
            others = [await asyncio.start_server(self.handle, host, self.port, backlog=1024) for host in self.hosts[1:]]
            started.set()
            await stopped.wait()
            for each in (server, *others):
                each.close()

        def work() -> None:
            asyncio.set_event_loop(loop)
            with contextlib.closing(loop):
                loop.run_until_complete(serve())
                tasks = asyncio.all_tasks(loop)
                for task in tasks:
                    task.cancel()
                loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
                for writer in self._open:
                    writer.transport.abort()
                loop.run_until_complete(asyncio.sleep(0))

        stopped = asyncio.Event()
        thread = threading.Thread(target=work)
        thread.start()
        assert started.wait(10)
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(stopped.set)
            thread.join(timeout=10)


async def _drip(write: Write) -> None:
    await write(head(200, length=100_000))
    while True:
        await write(b"\xff")
        await asyncio.sleep(STEP_S)


async def _endless(write: Write) -> None:
    await write(head(200, "Connection: close"))
    while True:
        await write(bytes(1 << 16))


async def _endless_chunked(write: Write) -> None:
    await write(head(200, "Transfer-Encoding: chunked"))
    while True:
        await write(b"10000\r\n" + bytes(1 << 16) + b"\r\n")


async def _small_chunks(write: Write) -> None:
    await write(head(200, "Transfer-Encoding: chunked"))
    while True:
        await write(b"1\r\nx\r\n")
        await asyncio.sleep(STEP_S)


async def _interim(write: Write) -> None:
    while True:
        await write(head(103, "Link: </style.css>; rel=preload") * 2000)


async def _tiny_chunks(write: Write) -> None:
    await write(head(200, "Transfer-Encoding: chunked"))
    while True:
        await write(b"1\r\nx\r\n" * 20_000)


async def _chunk_extensions(write: Write) -> None:
    await write(head(200, "Transfer-Encoding: chunked"))
    while True:
        await write((b"1;" + b"a" * 50 + b"\r\nx\r\n") * 1000)


async def _blank_lines(write: Write) -> None:
    while True:
        await write(b"\r\n" * 30_000)


async def _more_answers(write: Write) -> None:
    """The answer, and behind it more of them, which nobody asked for."""
    while True:
        await write(whole(200, JPEG) + head(204) * 1000)


async def _slow_headers(write: Write) -> None:
    for letter in b"HTTP/1.1 200 OK\r\nX-Long: " + b"a" * 100_000:
        await write(bytes([letter]))
        await asyncio.sleep(STEP_S)


async def _headers_without_end(write: Write) -> None:
    await write(b"HTTP/1.1 200 OK\r\n")
    while True:
        await write(b"X-More: and more\r\n" * 100)


async def _silent(write: Write) -> None:
    await asyncio.sleep(3600)


async def _promises_more(write: Write) -> None:
    await write(head(200, length=len(JPEG) + 1000) + JPEG)


async def _promises_less(write: Write) -> None:
    await write(head(200, "Connection: close", length=100) + JPEG)


async def _long_line(write: Write) -> None:
    await write(b"HTTP/1.1 200 OK\r\nX-Long: " + b"a" * 1_000_000 + b"\r\n\r\n")


async def _bad_gzip(write: Write) -> None:
    body = gzip.compress(JPEG)[:40] + b"\xff" * 100
    await write(whole(200, body, "Content-Encoding: gzip"))


async def _gzip_tail(write: Write) -> None:
    """A picture, and after the end of its stream something else, in small pieces without end."""
    await write(head(200, "Content-Encoding: gzip", "Connection: close") + gzip.compress(JPEG))
    while True:
        await write(b"x" * 100)
        await asyncio.sleep(0.001)


async def _two_lengths(write: Write) -> None:
    await write(head(200, "Content-Length: 5", length=7) + b"xxxxxxx")


TROUBLES: Mapping[str, Callable[[Write], Awaitable[None]]] = {
    "/drip": _drip,
    "/endless": _endless,
    "/endless_chunked": _endless_chunked,
    "/small_chunks": _small_chunks,
    "/interim": _interim,
    "/tiny_chunks": _tiny_chunks,
    "/chunk_extensions": _chunk_extensions,
    "/blank_lines": _blank_lines,
    "/more_answers": _more_answers,
    "/slow_headers": _slow_headers,
    "/headers_without_end": _headers_without_end,
    "/silent": _silent,
    "/promises_more": _promises_more,
    "/promises_less": _promises_less,
    "/long_line": _long_line,
    "/bad_gzip": _bad_gzip,
    "/two_lengths": _two_lengths,
    "/gzip_tail": _gzip_tail,
}
ANSWERS: Mapping[str, bytes] = {
    "/ok": whole(200, JPEG),
    "/gzip": whole(200, gzip.compress(JPEG), "Content-Encoding: gzip"),
    "/not_gzip": whole(200, JPEG, "Content-Encoding: gzip"),
    "/bomb": whole(200, BOMB, "Content-Encoding: gzip"),
    "/boast": head(200, length=10**14),
    "/loop": whole(302, b"", "Location: /loop"),
    "/ring": whole(302, b"", "Location: /ring2"),
    "/ring2": whole(302, b"", "Location: /ring"),
    "/nowhere": whole(302, b""),
    "/to_ok": whole(307, b"moved", "Location: ok"),
    "/to_metadata": whole(301, b"", "Location: http://169.254.169.254/latest/meta-data/"),
    "/garbage": b"\x00\x01 this is not HTTP \xff\r\n\r\n",
    "/many_headers": head(200, *[f"X-{number}: x" for number in range(5000)], length=0),
    "/401": whole(401, b"", 'WWW-Authenticate: Basic realm="x"', "Set-Cookie: a=b"),
    "/cookie": whole(302, b"", "Set-Cookie: tracked=1; Path=/", "Location: /ok"),
    "/500": whole(500, b"oops"),
    "/late": whole(503, b"", "Retry-After: Fri, 31 Dec 99999999999 23:59:59 GMT"),
    "/noai": whole(200, JPEG, "X-Robots-Tag: otherbot: nofollow", "X-Robots-Tag: noai"),
}
EXPECTED: Mapping[str, tuple[str, str] | None] = {
    "/ok": None,
    "/gzip": None,
    "/not_gzip": None,
    "/to_ok": None,
    "/cookie": None,
    "/gzip_tail": None,
    "/more_answers": None,
    "/bomb": ("too_many_bytes", "more than 1000000 bytes"),
    "/boast": ("too_many_bytes", f"{10**14} bytes"),
    "/endless": ("too_many_bytes", "more than 1000000 bytes"),
    "/endless_chunked": ("too_many_bytes", "more than 1000000 bytes"),
    "/drip": ("timeout", "deadline"),
    "/small_chunks": ("timeout", "deadline"),
    "/slow_headers": ("timeout", "deadline"),
    "/silent": ("timeout", "timed out"),
    "/interim": ("connection", "more than 16 interim answers"),
    "/tiny_chunks": ("connection", "more around the body than in it"),
    "/chunk_extensions": ("connection", "more around the body than in it"),
    "/blank_lines": ("connection", "more than 1113856 bytes of headers"),
    "/headers_without_end": ("connection", "not HTTP"),
    "/long_line": ("connection", "not HTTP"),
    "/many_headers": ("connection", "not HTTP"),
    "/garbage": ("connection", "not HTTP"),
    "/two_lengths": ("connection", "not HTTP"),
    "/promises_more": ("connection", "ended early"),
    "/promises_less": ("connection", "not HTTP"),
    "/bad_gzip": ("connection", "ended early"),
    "/reset": ("connection", "ended early"),
    "/loop": ("redirect", "loop, or too many"),
    "/ring": ("redirect", "loop, or too many"),
    "/nowhere": ("http_status", "302"),
    "/to_metadata": ("address", "169.254.169.254"),
    "/401": ("http_status", "401"),
    "/500": ("http_status", "500"),
    "/late": ("http_status", "503"),
    "/noai": ("opt_out", "X-Robots-Tag: noai"),
}
"""What each path comes to under a cap of 1,000,000 bytes: reason and detail; None for a picture."""
