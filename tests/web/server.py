"""A real HTTP/1.1 server for a planned web, on several hosts of the loopback: 127.0.0.2, 127.0.0.3, ... on one port.

    python -m tests.web.server --seed 7 --pairs 4000 --port-file FILE

It draws every picture when it is asked for it. To stay ahead of the crawler that it is a test for, it forks workers that share
the listening sockets, each an asyncio loop: connections are kept alive, and an answer that comes late on purpose keeps nobody
waiting. It counts the requests for every row (`GET /_hits` at any host), exactly: each worker has its own counters in shared
memory. It ends with its parent, so that a test that is killed leaves nothing behind.
"""

import argparse
import asyncio
import contextlib
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.web.answers import Answer, answer, bomb
from tests.web.site import Kind, Web

_PHRASES = {200: "OK", 301: "Moved Permanently", 302: "Found", 404: "Not Found"}
_MAX_HEAD = 1 << 16


def listen(hosts: int, port: int = 0) -> list[socket.socket]:
    """One listening socket for each host, all on the same port (0: one that is free on all of them)."""
    for _ in range(50):
        sockets: list[socket.socket] = []
        chosen = port
        try:
            for number in range(hosts):
                listener = socket.create_server((f"127.0.0.{2 + number}", chosen), backlog=1024)
                sockets.append(listener)
                chosen = listener.getsockname()[1]
        except OSError:
            for listener in sockets:
                listener.close()
            if port:
                raise
            continue
        return sockets
    raise OSError("no port is free on all hosts; end other servers")


def free_or_any(port: int, hosts: int = 8) -> int:
    """`port` if it is free on all hosts, else 0: for URLs that are the same in every run, where that is possible."""
    try:
        for listener in listen(hosts, port):
            listener.close()
    except OSError:
        return 0
    return port


class Worker:
    """One process's share of the requests."""

    def __init__(self, web: Web, hits: "np.ndarray[tuple[int, int], np.dtype[np.uint32]]", number: int) -> None:
        self._web = web
        self._hits = hits  # uint32[workers, pairs + 1]; the last column counts what is no picture
        self._number = number

    async def run(self, sockets: list[socket.socket], parent: int) -> None:
        """Serve until the process `parent` is no longer this one's parent."""
        for listener in sockets:
            await asyncio.start_server(self._connection, sock=listener, limit=_MAX_HEAD)
        while os.getppid() == parent:
            await asyncio.sleep(0.5)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            while await self._exchange(await reader.readuntil(b"\r\n\r\n"), writer):
                pass
        writer.close()

    async def _exchange(self, head: bytes, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; False closes the connection."""
        method, path, version = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
        keep = version == "HTTP/1.1" and b"\r\nconnection: close" not in head.lower()
        if path == "/_hits":
            made = Answer(200, self._hits_json(), "application/json")
        elif method not in ("GET", "HEAD"):
            made = Answer(405)
        else:
            made = answer(self._web, path)
            self._hits[self._number, self._web.pairs if made.k is None else made.k] += 1
        if made.late:
            await asyncio.sleep(self._web.hang_s)
        whole = made.promised is None
        keep = keep and whole
        headers = {
            "Content-Type": made.content_type,
            "Content-Length": str(len(made.body) if made.promised is None else made.promised),
            "Connection": "keep-alive" if keep else "close",
            **made.headers,
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        status = f"HTTP/1.1 {made.status} {_PHRASES.get(made.status, 'Other')}\r\n"
        writer.write(f"{status}{lines}\r\n".encode("latin-1") + (b"" if method == "HEAD" else made.body))
        await writer.drain()
        return keep

    def _hits_json(self) -> bytes:
        counts = self._hits.sum(axis=0, dtype=np.uint64)
        rows = {str(k): int(counts[k]) for k in np.flatnonzero(counts[:-1])}
        return json.dumps({"requests": int(counts.sum()), "rows": rows}).encode()


def serve(web: Web, sockets: list[socket.socket], workers: int, parent: int) -> None:
    """Fork `workers` processes that share the sockets, and wait until this one's parent is no longer `parent`."""
    own = os.getpid()
    bomb()  # made once, before the workers part
    shared = mmap.mmap(-1, workers * (web.pairs + 1) * 4)
    hits = np.frombuffer(shared, np.uint32).reshape(workers, web.pairs + 1)
    children = []
    for number in range(workers):
        child = os.fork()
        if child == 0:
            # The parent's handler raises SystemExit, which would end one connection, not the worker.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            try:
                asyncio.run(Worker(web, hits, number).run(sockets, own))
            finally:
                os._exit(0)
        children.append(child)
    try:
        while os.getppid() == parent:
            time.sleep(0.2)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)  # a worker that has just been forked may lose a SIGTERM
        for child in children:  # until then the sockets are open, and nobody answers
            os.waitpid(child, 0)


@contextlib.contextmanager
def running(
    seed: int, pairs: int, rates: dict[Kind, float] | None = None, workers: int = 2, port: int = 0, hosts: int = 8
) -> Iterator[Web]:
    """Start the server as a child process, yield the plan with its port, and end the child."""
    read_end, write_end = os.pipe()
    given = json.dumps({kind.value: share for kind, share in (rates or {}).items()})
    command = [sys.executable, "-m", "tests.web.server", "--seed", str(seed), "--pairs", str(pairs), "--rates", given]
    command += [
        "--workers",
        str(workers),
        "--port",
        str(port),
        "--hosts",
        str(hosts),
        "--port-file",
        f"/dev/fd/{write_end}",
    ]
    command += ["--parent", str(os.getpid())]
    root = Path(__file__).resolve().parents[2]
    child = subprocess.Popen(command, pass_fds=(write_end,), cwd=root, stdout=subprocess.DEVNULL)
    os.close(write_end)
    try:
        with os.fdopen(read_end) as pipe:
            line = pipe.readline()
        if not line:
            raise RuntimeError(f"the web server ended with {child.wait()}; its message is above")
        yield Web(seed, pairs, int(line), hosts, rates or {})
    finally:
        child.terminate()
        child.wait(timeout=20)


def hits(web: Web) -> dict[int, int]:
    """Requests that the running server has had for each row (rows without any are absent)."""
    with urllib.request.urlopen(f"http://127.0.0.2:{web.port}/_hits", timeout=30) as answered:
        counts: dict[str, int] = json.load(answered)["rows"]
    return {int(k): count for k, count in counts.items()}


def main() -> None:
    """The command line above."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.web.server", description="Serve a planned web.", allow_abbrev=False
    )
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--pairs", type=int, required=True)
    parser.add_argument("--hosts", type=int, default=8)
    parser.add_argument("--port", type=int, default=0, help="0: one that is free")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rates", default="{}", help='shares of kinds as JSON, for example {"hangs": 0}')
    parser.add_argument(
        "--port-file", type=Path, required=True, help="the port is written there once the server listens"
    )
    parser.add_argument("--parent", type=int, default=os.getppid(), help="process that this one must not outlive")
    given = parser.parse_args()
    sockets = listen(given.hosts, given.port)
    port = sockets[0].getsockname()[1]
    rates = {Kind(kind): float(share) for kind, share in json.loads(given.rates).items()}
    web = Web(given.seed, given.pairs, port, given.hosts, rates)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    given.port_file.write_text(f"{port}\n")
    serve(web, sockets, given.workers, given.parent)


if __name__ == "__main__":
    main()
