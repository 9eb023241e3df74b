"""SIGINT and SIGTERM in a driver: a KeyboardInterrupt, and the end of a driver whose main thread does not hear them.

Python answers a signal in its main thread, between two of its instructions, and a call of C++ is one. A driver that asks Ray's server for
something when the same signal has ended that server (systemd and Slurm tell all processes of a job) would hear nothing for a minute, longer
than their grace; then Ray would end it, with words and an exit code of its own. So a second thread listens too: the operating system's own
handler writes each signal's number into a pipe (`signal.set_wakeup_fd`).
"""

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

from pipeline.contracts.cli import INTERRUPTED

PATIENCE_S = 10.0
"""How long the main thread may take to hear a signal: a third of what Kubernetes and Slurm give a job by default."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Both signals are KeyboardInterrupts inside. Use as a context manager; in another thread than the main one it does nothing.

    What ends a job (Ray, Kubernetes, a scheduler) so interrupts it like Ctrl-C. A SIGINT that the process ignores (`nohup`, a script's
    `&`) stays ignored. Where the main thread does not hear one for PATIENCE_S, `unheard` is called in another thread, to tell what is to
    be told, and the process ends with exit code 130. That is as safe as any kill: nothing that is done is lost.
    """

    def __init__(self, unheard: Callable[[], None]) -> None:
        self._unheard = unheard
        self._heard = threading.Event()

    def __enter__(self) -> Self:
        self._is_main = threading.current_thread() is threading.main_thread()
        if self._is_main:
            self._signals, written = os.pipe()
            os.set_blocking(written, False)
            signal.set_wakeup_fd(written, warn_on_full_buffer=False)
            threading.Thread(target=self._listen, name="interrupts", daemon=True).start()
            self._answer_with(self._interrupt)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_main:
            self._answer_with(signal.default_int_handler)
            self._heard.set()
            os.close(signal.set_wakeup_fd(-1))  # ends the thread

    def _answer_with(self, answer: Callable[[int, FrameType | None], None]) -> None:
        for number in _SIGNALS:
            if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, answer)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._heard.set()
        raise KeyboardInterrupt

    def _listen(self) -> None:
        with open(self._signals, "rb", buffering=0) as signals:
            while number := signals.read(1):
                if number[0] not in _SIGNALS:
                    continue
                signal.alarm(0)  # one of Ray's C++ part, set while it starts, aborts the process 3 s later
                if not self._heard.wait(PATIENCE_S):
                    try:
                        self._unheard()
                    finally:
                        print(f"error: {INTERRUPTED}", file=sys.stderr, flush=True)
                        os._exit(130)


def _forget_in_fork() -> None:
    """A fork (Ray's processes are some for milliseconds) has its parent's pipe and answers: it would tell the parent of its own signals."""
    signal.set_wakeup_fd(-1)
    for number in _SIGNALS:
        if isinstance(getattr(signal.getsignal(number), "__self__", None), Interrupts):
            signal.signal(number, signal.SIG_DFL)


os.register_at_fork(after_in_child=_forget_in_fork)
