"""Pages of web archives, each read within limits of memory and processor time, in a process beside the worker.

HTML's own rules let a small page ask for a large tree: formatting elements that are not closed are copied into every paragraph behind them
(`<b x=1><p><b x=2><p>…`: 25 kB become two million nodes, 0.8 GB), every attribute of a tag is compared with all before it, a stray end tag
looks at every open element. No scan of the bytes bounds them all and spares honest pages, and a parser written in C cannot be interrupted.
So the kernel keeps the limits, and a page beyond them ends its process.

The process is a fresh interpreter with the parser and little of the standard library, 15 MB, that starts in 0.1 s: no fork of a worker,
which has threads. It reads a page from its standard input, answers on its standard output, and ends when the input does, so with its
worker, however that ends. A page that it ends on is tried once more in a new one, which has read nothing before and which nobody else may
have killed, unless it has had its time; one that ends this as well is rejected. So what comes of a page depends on no other page.

Processor time is not a number of steps: of a page that takes about as long as MAX_SECONDS, two runs may judge differently. Honest pages
take milliseconds.
"""

import contextlib
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import traceback
from types import TracebackType
from typing import IO, Any, Self

from pipeline.contracts.errors import RunError
from pipeline.sources.page import Limits, Page, Reference, read

MAX_SECONDS = 5
"""Processor seconds for one page. 4 MiB of nothing but tags take half a second, of nothing but images (800,000) three to six."""
MAX_MEMORY = 1 << 30
"""Bytes of the process's address space: 4 MiB of nothing but tags make a tree of 0.5 GB."""
_ATTEMPTS = 2
_LENGTH = struct.Struct("<Q")
_KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(64 << 20), "MALLOC_MMAP_THRESHOLD_": str(32 << 20)}
"""glibc then keeps what one page's tree took for the next page's; asking the kernel for it each time is a tenth of the work."""

TOO_MUCH = f"a page that takes more than {MAX_SECONDS} s or {MAX_MEMORY >> 30} GiB to parse, or that ends the parser"


class PageProcess:
    """Reads pages like `page.read`, in a process that is started when the first page comes. Use as a context manager."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def read(self, html: bytes, url: str, charset: str | None) -> Page | None:
        """What `page.read` gives, or None for a page that ends its process every time.

        Raises RunError when no process can be started, and RuntimeError with its traceback for any exception of `page.read`.
        """
        for _ in range(_ATTEMPTS):
            process = self._process or self._start()
            try:
                answer = _asked(process, _packed([url, charset]), html)
            except (EOFError, BrokenPipeError):
                self._end()
                if process.returncode == -signal.SIGPROF:
                    break
            else:
                return _page(answer)
        return None

    def _start(self) -> subprocess.Popen[bytes]:
        """A process that is ready for pages. It imports what this one would, wherever Ray has put it."""
        path = os.pathsep.join(part or os.getcwd() for part in sys.path)
        try:
            self._process = process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, **_KEEP_MEMORY, "PYTHONPATH": path},
                process_group=0,  # Ctrl-C is the worker's business
            )
        except OSError as error:
            raise RunError(
                f"the process that parses pages cannot start ({error.strerror}); see to the machine's memory and its limits of processes "
                "and open files (ulimit), then run the same command again"
            ) from None
        try:
            _asked(process, _packed([self._limits, MAX_SECONDS]))
        except (EOFError, BrokenPipeError):
            self._end()
            raise RunError(
                f"the process that parses pages ended as it started (exit code {process.returncode}), and may have said why "
                "above; see to the machine's memory, then run the same command again"
            ) from None
        return process

    def _end(self) -> None:
        """Leave no process behind, not even a zombie."""
        if self._process is None:
            return
        process, self._process = self._process, None
        with contextlib.suppress(BrokenPipeError), process:  # what it was to be told is lost
            process.kill()


# ---- messages: a length, then that many bytes


def _asked(process: subprocess.Popen[bytes], *messages: bytes) -> bytes:
    """The answer to some messages. Raises EOFError or BrokenPipeError where the process ends instead."""
    assert process.stdin is not None
    assert process.stdout is not None
    for message in messages:
        _send(process.stdin, message)
    process.stdin.flush()
    return _received(process.stdout)


def _send(stream: IO[bytes], message: bytes) -> None:
    stream.write(_LENGTH.pack(len(message)))
    stream.write(message)


def _received(stream: IO[bytes]) -> bytes:
    return _exactly(stream, _LENGTH.unpack(_exactly(stream, _LENGTH.size))[0])


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data


def _packed(value: object) -> bytes:
    """JSON, in which a stranger's text can be nothing but text; lone surrogates pass."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _unpacked(message: bytes) -> Any:
    return json.loads(message.decode("utf-8", "surrogatepass"))


def _page(answer: bytes) -> Page:
    value = _unpacked(answer)
    if isinstance(value, str):
        raise RuntimeError(f"reading a page failed:\n{value}")
    references, left, opt_out = value
    return Page([Reference(*reference) for reference in references], left, opt_out)


# ---- the process


def _serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer until the input ends: a Page for each pair of messages, or the traceback of an exception as a text."""
    values, max_seconds = _unpacked(_received(requests))
    limits = Limits(*values)
    _limit()
    _send(answers, b"")
    answers.flush()
    while True:
        try:
            url, charset = _unpacked(_received(requests))
            html = _received(requests)
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_PROF, max_seconds)  # SIGPROF ends the process
        try:
            answer = _packed(read(html, url, charset, limits))
        except MemoryError:
            os._exit(1)
        except Exception:  # noqa: BLE001  # it is raised again where it can be dealt with
            answer = _packed(traceback.format_exc())
        signal.setitimer(signal.ITIMER_PROF, 0)  # what is left of it is not the next page's
        _send(answers, answer)
        answers.flush()


def _limit() -> None:
    """No more memory than MAX_MEMORY, no core files, and SIGPROF at its default, whatever this process has inherited."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    for what, most in ((resource.RLIMIT_AS, MAX_MEMORY), (resource.RLIMIT_CORE, 0)):
        _, hard = resource.getrlimit(what)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        with contextlib.suppress(ValueError, OSError):  # macOS does not limit memory: there the time does alone
            resource.setrlimit(what, (most, hard))


if __name__ == "__main__":
    _serve(sys.stdin.buffer, sys.stdout.buffer)
