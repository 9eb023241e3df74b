"""Real pictures over real HTTP: the emoji of the shared data, one loopback host for each drawing style.

    http://127.0.0.2:PORT/noto/1f600.png      127.0.0.3: blobmoji      127.0.0.4: emojitwo

The captions are made of what people call them, the English name and the keywords, and of nothing else that the table knows.
"""

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow.parquet as pq

from tests.web.server import free_or_any, listen

STYLES = ("noto", "blobmoji", "emojitwo")
PORT = 8217
"""Where it is free. A row's identity holds its URL: another port is another order of rows, and scores a point or two apart."""


@dataclass(frozen=True)
class Emoji:
    """A picture in one style. `subgroup` is None for the few that Unicode puts in none."""

    style: str
    codepoints: str
    name: str
    keywords: tuple[str, ...]
    subgroup: str | None
    png: bytes

    @property
    def path(self) -> str:
        """Its place on its style's host."""
        return f"/{self.style}/{self.codepoints}.png"

    @property
    def captions(self) -> list[str]:
        """A row each: the name in three settings, the name with its keywords, and thrice three of the keywords, by hash."""
        more = [word for word in self.keywords if word.lower() != self.name.lower()]
        found = [self.name, f"{self.name} emoji", f"emoji {self.name}"]
        if more:
            found.append(f"{self.name}: {', '.join(more)}")
            for turn in range(3):
                found.append(", ".join(sorted(more, key=lambda word: _mark(f"{turn} {self.name} {word}"))[:3]))
        return list(dict.fromkeys(found))


def _mark(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def read(path: Path) -> list[Emoji]:
    """Every emoji that has an English name, in the file's order."""
    found = []
    for row in pq.read_table(path).to_pylist():
        if row["name_en"]:
            keywords = tuple(row["keywords_en"] or ())
            found.append(Emoji(row["set"], row["codepoints"], row["name_en"], keywords, row["subgroup"], row["png"]))
    return found


@contextlib.contextmanager
def running(emoji: list[Emoji]) -> Iterator[int]:
    """Serve them from threads of this process; yields the port (PORT where it is free), the same on every style's host."""
    bodies = {one.path: one.png for one in emoji}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:  # the name is http.server's
            body = bodies.get(self.path)
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Type", "image/png")
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing: thousands of requests are no news."""

    servers, threads = [], []
    for listener in listen(len(STYLES), free_or_any(PORT, len(STYLES))):
        served = ThreadingHTTPServer(listener.getsockname(), Handler, bind_and_activate=False)
        served.daemon_threads = True
        served.socket.close()
        served.socket = listener
        thread = threading.Thread(target=served.serve_forever, daemon=True)
        thread.start()
        servers.append(served)
        threads.append(thread)
    try:
        yield servers[0].server_address[1]
    finally:
        for served, thread in zip(servers, threads, strict=True):
            served.shutdown()
            thread.join()
            served.server_close()


def url(one: Emoji, port: int) -> str:
    """Where the picture is served."""
    return f"http://127.0.0.{2 + STYLES.index(one.style)}:{port}{one.path}"
