"""What tests of several packages share: ports, an S3 endpoint (moto's server as a process of its own), the real data."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.ports import free_port

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module", autouse=True)
def no_ray_is_left() -> Iterator[None]:
    """A job that a test ran in this process has started Ray and leaves it on; the next file may want one of another size."""
    yield
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        ray.shutdown()


@pytest.fixture
def unused_port() -> int:
    """A loopback port that nobody listens on."""
    return free_port()


_MOTO = """
import threading
from moto.s3.responses import S3Response
from moto.server import main

# S3 promises that of two writers with If-None-Match one is refused; moto looks and writes in two steps, in a thread for each request.
put, one_at_a_time = S3Response.put_object, threading.Lock()

def put_object(self):
    with one_at_a_time:
        return put(self)

S3Response.put_object = put_object
main()
"""


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The URL of moto's S3 server, started for this session."""
    with s3_running() as (url, _):
        yield url


@contextlib.contextmanager
def s3_running() -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """An S3 server of moto's, empty: its URL, and its process for those who want to lose it."""
    port = free_port()
    command = [sys.executable, "-c", _MOTO, "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(url)
        yield url, server
    finally:
        server.terminate()
        server.wait(20)


def wait_for(url: str, seconds: float = 60.0) -> None:
    """Wait until a server answers."""

    def ask() -> None:
        try:
            urllib.request.urlopen(url, timeout=2).close()
        except urllib.error.HTTPError as answer:
            answer.close()

    _wait_for(ask, seconds)


def wait_for_port(port: int, seconds: float = 60.0) -> None:
    """Wait until something listens on a port of this machine."""
    _wait_for(lambda: socket.create_connection(("127.0.0.1", port), timeout=2).close(), seconds)


def _wait_for(connect: Callable[[], None], seconds: float) -> None:
    until = time.monotonic() + seconds
    while True:
        try:
            return connect()
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


@pytest.fixture
def s3_endpoint(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The S3 server, with the environment that every AWS client reads pointing at it."""
    for key, value in s3_environment(s3_server).items():
        monkeypatch.setenv(key, value)
    return s3_server


def s3_environment(url: str) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data (REAL_DATA, else ../shared/data); tests that ask for it skip without it."""
    folder = Path(os.environ.get("REAL_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set REAL_DATA")
    return folder
