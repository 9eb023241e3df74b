"""SIGINT and SIGTERM in a driver: a KeyboardInterrupt, and the end of a driver that it does not end.

Python answers a signal in its main thread, between two of its instructions, and a call of C++ is one. A driver that asks Ray's server for
something when the same signal has ended that server (systemd and Slurm tell all processes of a job) would hear nothing for a minute; then
Ray would end it, with words and an exit code of its own, if nobody has killed it before. And where Python happens to be in a finaliser or
a fork's hook, it drops the exception. So a second thread listens too: the operating system's own handler writes each signal's number into a
pipe (`signal.set_wakeup_fd`).

What it cannot help: where a Ray of the driver's own is told too and its node ends first, Ray's C++ part may end the driver within
milliseconds, with exit code 1 or by abort and perhaps without a word. The same command resumes then too.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Self

from pipeline.contracts.cli import INTERRUPTED

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

PATIENCE_S = 10.0
"""How long a driver that was told may take to leave: a third of what Kubernetes and Slurm give a job by default."""
LAST_WORDS_S = 5.0
"""How long it may then take to tell what is to be told: an object store may not answer."""
_SENTENCE_S = 1.0  # a terminal, or who reads a pipe, may be stopped


class Interrupts:
    """From now on both signals are KeyboardInterrupts. Use as a context manager; in another thread than the main one it does nothing.

    What ends a job (Ray, Kubernetes, a scheduler) so interrupts it like Ctrl-C. A SIGINT that the process ignores (a script's `&`) stays
    ignored. When the process is still inside PATIENCE_S after a signal, `last_words` is called in another thread, to tell what is to be
    told, and the process ends with exit code 130. That is as safe as any kill: nothing that is done is lost. One inside another (an audit
    that makes vectors of its corpus) adds its last words to those of the outer one, which listens.
    """

    _outermost: ClassVar["Interrupts | None"] = None

    def __init__(self, last_words: Callable[[], None]) -> None:
        self._last_words = [last_words]
        self._left = threading.Event()

    def __enter__(self) -> Self:
        self._is_main = threading.current_thread() is threading.main_thread()
        if not self._is_main:
            return self
        if Interrupts._outermost is not None:
            Interrupts._outermost._last_words += self._last_words
            return self
        self._signals, self._written = os.pipe()
        os.set_blocking(self._written, False)
        self._before = signal.set_wakeup_fd(self._written, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, name="interrupts", daemon=True).start()
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        self._unraisable, sys.unraisablehook = sys.unraisablehook, self._dropped
        Interrupts._outermost = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if Interrupts._outermost is self:
            self._left.set()
            Interrupts._outermost = None
            sys.unraisablehook = self._unraisable
            signal.set_wakeup_fd(self._before, warn_on_full_buffer=False)
            os.close(self._written)  # ends the thread
        elif self._is_main and Interrupts._outermost is not None:
            Interrupts._outermost._last_words.pop()

    def _listen(self) -> None:
        with open(self._signals, "rb", buffering=0) as signals:
            while number := signals.read(1):
                if number[0] not in (signal.SIGINT, signal.SIGTERM):
                    continue
                signal.alarm(0)  # one of Ray's C++ part, set while it starts, aborts the process 3 s later
                if not self._left.wait(PATIENCE_S):
                    self._end()

    def _end(self) -> None:
        _within(LAST_WORDS_S, *self._last_words)
        if not self._left.is_set():
            _within(_SENTENCE_S, lambda: print(f"error: {INTERRUPTED}", file=sys.stderr, flush=True))
            os._exit(130)

    def _dropped(self, what: "UnraisableHookArgs") -> None:
        """What Python cannot raise. An interrupt (Ray's own answer to SIGTERM is a SystemExit) needs no traceback: `_listen` sees to it."""
        if not isinstance(what.exc_value, KeyboardInterrupt | SystemExit):
            self._unraisable(what)


def _within(seconds: float, *works: Callable[[], None]) -> None:
    """Do these side by side, and leave those behind that take longer."""
    until = time.monotonic() + seconds
    threads = [threading.Thread(target=work, name="last words", daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))


def _forget_in_fork() -> None:
    """A fork has its parent's pipe and not the thread that listens: it would tell the parent of signals that were its own."""
    signal.set_wakeup_fd(-1)
    if Interrupts._outermost is not None:
        sys.unraisablehook = Interrupts._outermost._unraisable
    Interrupts._outermost = None


os.register_at_fork(after_in_child=_forget_in_fork)
