"""Real pictures over real HTTP: the same files on a few loopback hosts, from threads of this process."""

import contextlib
import mimetypes
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.web.server import free_or_any, listen

PORT = 8217
"""Where it is free. A row's identity holds its URL: another port is another order of rows, and scores a point or two apart."""


@contextlib.contextmanager
def serving(bodies: Mapping[str, bytes], hosts: int) -> Iterator[int]:
    """Serve `bodies` by path on 127.0.0.2 and the hosts after it; yields the port (PORT where it is free), the same on all of them."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:  # the name is http.server's
            body = bodies.get(self.path)
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Type", mimetypes.guess_type(self.path)[0] or "text/plain")
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing: thousands of requests are no news."""

    servers, threads = [], []
    for listener in listen(hosts, free_or_any(PORT, hosts)):
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
