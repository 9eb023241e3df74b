"""SIGINT and SIGTERM in a driver: a KeyboardInterrupt, and the end of a driver that it does not end.

Python answers a signal in its main thread, between two of its instructions, and a call of C++ is one. A driver that asks Ray's server for
something when the same signal has ended that server (systemd and Slurm tell all processes of a job) would hear nothing for a minute, longer
than their grace; then Ray would end it, with words and an exit code of its own. And where Python happens to be in a finaliser or a fork's
hook, it drops the exception. So a second thread listens too: the operating system's own handler writes each signal's number into a pipe
(`signal.set_wakeup_fd`).

What it cannot help: where a Ray of the driver's own is told too and its node ends first, Ray's C++ part may end the driver within
milliseconds, with exit code 1 or by abort and perhaps without a word. The same command resumes then too.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from pipeline.contracts.cli import INTERRUPTED

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

PATIENCE_S = 10.0
"""How long a driver that was told may take to leave: a third of what Kubernetes and Slurm give a job by default."""

# A fork has its parent's pipe, and would tell the parent of signals that were its own.
os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))


class Interrupts:
    """Both signals are KeyboardInterrupts inside. Use as a context manager; in another thread than the main one it does nothing.

    What ends a job (Ray, Kubernetes, a scheduler) so interrupts it like Ctrl-C. A SIGINT that the process ignores (`nohup`, a script's
    `&`) stays ignored. When the process is still inside PATIENCE_S after a signal, `last_words` is called in another thread, to tell what
    is to be told, and the process ends with exit code 130. That is as safe as any kill: nothing that is done is lost.
    """

    def __init__(self, last_words: Callable[[], None]) -> None:
        self._last_words = last_words
        self._left = threading.Event()

    def __enter__(self) -> Self:
        self._is_main = threading.current_thread() is threading.main_thread()
        if self._is_main:
            self._signals, written = os.pipe()
            os.set_blocking(written, False)
            signal.set_wakeup_fd(written, warn_on_full_buffer=False)
            threading.Thread(target=self._listen, name="interrupts", daemon=True).start()
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            self._unraisable, sys.unraisablehook = sys.unraisablehook, self._dropped
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_main:
            sys.unraisablehook = self._unraisable
            self._left.set()
            os.close(signal.set_wakeup_fd(-1))  # ends the thread

    def _listen(self) -> None:
        with open(self._signals, "rb", buffering=0) as signals:
            while number := signals.read(1):
                if number[0] not in (signal.SIGINT, signal.SIGTERM):
                    continue
                signal.alarm(0)  # one of Ray's C++ part, set while it starts, aborts the process 3 s later
                if not self._left.wait(PATIENCE_S):
                    try:
                        self._last_words()
                    finally:
                        print(f"error: {INTERRUPTED}", file=sys.stderr, flush=True)
                        os._exit(130)

    def _dropped(self, what: "UnraisableHookArgs") -> None:
        """What Python cannot raise. An interrupt (Ray's own answer to SIGTERM is a SystemExit) needs no traceback: `_listen` sees to it."""
        if not isinstance(what.exc_value, KeyboardInterrupt | SystemExit):
            self._unraisable(what)
