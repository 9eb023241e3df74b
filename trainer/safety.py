"""What keeps a run of many processes from losing work when it is told to end, and from hanging when one of them is lost.

SIGTERM. Slurm, Kubernetes and DeepSpeed's launcher send it before they kill, and most of them to every process of the job, the workers
that load data among them. Until the processes have joined there is nothing to save, and it ends them. From there on `hold_sigterm` makes
it a question that the loop asks after each step, and an evaluation between its pieces (`sigterm_came`), and keeps it from the processes
started later, which the last step and the save still need.

Heartbeats. Each process counts up a number of its own in the store of the process group, which process 0 keeps, from a thread. A process
whose number stands still for 45 s is lost (killed, stopped, its machine gone); where a collective has failed, 8 s are enough to tell
which one. The others then say who it was and leave with exit code 1, from that thread, because the main one may be stuck in a collective
for good. A process that leaves with an error of its own says so in the store; it has spoken, and the others leave without a word.
"""

import contextlib
import datetime
import multiprocessing.resource_tracker
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

import torch.distributed

BEAT_S = 2.0
SILENCE_S = 45.0
SUSPICION_S = 8.0
_FAREWELL = "trainer/farewell"
_STEP_ASIDE_S = 4.0
"""How long a process that has nothing new to say waits for the launcher to end it."""
_SLEPT_S = 10.0

# ---- SIGTERM

_came = threading.Event()


def hold_sigterm() -> None:
    """From now on SIGTERM ends neither this process nor those that it starts.

    Blocking it is what those processes inherit; a thread that was there before can still receive it, hence the handler. Where a run is not
    in the main thread, in a worker of Ray's, signals are not its own: what was held stays so, and `ask_to_end` is for the others.
    """
    if signal.SIGTERM in signal.sigpending():  # in a worker of a Ray that does not hear it
        signal.sigtimedwait({signal.SIGTERM}, 0)
        _came.set()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    multiprocessing.resource_tracker.ensure_running()  # when it starts, Python takes the signal off the mask
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: _came.set())
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def ask_to_end() -> None:
    """The same as a SIGTERM that `hold_sigterm` holds, for a process that learns in another way that it should save and end."""
    _came.set()


def sigterm_came() -> bool:
    """Whether this process was told to end since `hold_sigterm`, or asked."""
    return _came.is_set() or signal.SIGTERM in signal.sigpending()


def leave(sentence: str | None) -> NoReturn:
    """End this process at once, with exit code 1 and a sentence if there is one to say; nothing else runs any more."""
    if sentence is not None:
        print(f"error: {sentence}", file=sys.stderr)
    sys.stderr.flush()
    sys.stdout.flush()
    os._exit(1)


def step_aside(seconds: float) -> None:
    """Wait for `seconds`, and leave without a word where the launcher ends this process meanwhile: another one has spoken.

    A SIGTERM that came before is no answer to that, and is dropped.
    """
    _came.clear()
    signal.sigtimedwait({signal.SIGTERM}, 0)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if sigterm_came():
            leave(None)
        time.sleep(0.1)


# ---- heartbeats


class Heartbeat:
    """Shows that this process is alive, and watches the others, from `__init__` to `stop`. All processes of the run make one.

    wait: returns when every process has called it.
    """

    def __init__(self, address: str, port: int, rank: int, world: int, *, wait: Callable[[], None]) -> None:
        self._rank, self._world = rank, world
        # Connections of its own: a call that waits in one for a process 0 that answers nothing would keep the others waiting.
        timeout = datetime.timedelta(seconds=SILENCE_S)
        self._store, self._parting = (
            torch.distributed.TCPStore(address, port, None, False, timeout, wait_for_workers=False)  # type: ignore[attr-defined]
            for _ in range(2)
        )
        self._store.set(_beat_of(rank), "0")
        self._store.set(_name_of(rank), f"{socket.gethostname()}, process {os.getpid()}")
        wait()  # from here on all have both
        self._names = [name.decode() for name in self._store.multi_get([_name_of(other) for other in range(world)])]
        self._beats = [b""] * world
        self._heard = [time.monotonic()] * world
        self._answered = time.monotonic()
        self._others_spoke = threading.Event()
        self._stopped = threading.Event()
        works = (self._beat, self._judge)
        self._threads = [
            threading.Thread(target=work, name=f"heartbeat {work.__name__}", daemon=True) for work in works
        ]
        for thread in self._threads:
            thread.start()

    def stop(self, *, failed: bool) -> None:
        """No more beats. With `failed` the others learn that this process leaves with an error, which it says itself."""
        self._stopped.set()
        for thread in self._threads:
            # A thread that Python finds in the store's C++ code when it ends would abort the process. One that waits for a process 0
            # which does not answer is left behind.
            thread.join(SUSPICION_S)
        if failed:
            with contextlib.suppress(RuntimeError):  # no store any more: the process that kept it is the lost one
                self._parting.set(_FAREWELL, str(self._rank))
            if self._rank == 0:
                time.sleep(BEAT_S + 1.0)  # the store ends with this process, and the others must have read it

    def explain(self) -> None:
        """After a collective has failed: leave with the name of the process that is lost. Returns where all seem well."""
        until = time.monotonic() + 3 * SUSPICION_S
        while time.monotonic() < until:
            if self._others_spoke.is_set():
                step_aside(_STEP_ASIDE_S)
                leave(None)
            lost = self._silent_for(SUSPICION_S)
            if lost is not None:
                self._leave_for(lost)
            time.sleep(0.2)

    def _beat(self) -> None:
        beats, count = [_beat_of(rank) for rank in range(self._world)], 0
        while not self._stopped.wait(BEAT_S):
            count += 1
            try:
                self._store.set(_beat_of(self._rank), str(count))
                found = self._store.multi_get(beats)
                spoke = self._store.check([_FAREWELL])
            except RuntimeError:  # `_judge` sees that the store does not answer
                continue
            now = self._answered = time.monotonic()
            for rank, beat in enumerate(found):
                if beat != self._beats[rank]:
                    self._beats[rank], self._heard[rank] = beat, now
            if spoke:
                self._others_spoke.set()

    def _judge(self) -> None:
        before = time.monotonic()
        while not self._stopped.wait(0.5):
            now = time.monotonic()
            if now - before > _SLEPT_S:
                # This process itself was stopped, perhaps with all the others: what it heard is old.
                self._heard, self._answered = [now] * self._world, now
            before = now
            if self._others_spoke.is_set():
                step_aside(_STEP_ASIDE_S)
                leave(None)
            lost = self._silent_for(SILENCE_S)
            if lost is not None:
                self._leave_for(lost)

    def _silent_for(self, seconds: float) -> int | None:
        """A process of which nothing was heard for that long. Where the store does not answer it is process 0, which keeps it."""
        now = time.monotonic()
        if now - self._answered > seconds:
            return 0 if self._rank else None
        if now - self._answered > 3 * BEAT_S:
            return None  # of the others nothing can be heard
        others = (rank for rank in range(self._world) if rank != self._rank)
        return next((rank for rank in others if now - self._heard[rank] > seconds), None)

    def _leave_for(self, lost: int) -> NoReturn:
        silence = time.monotonic() - (self._heard[lost] if lost else min(self._heard[0], self._answered))
        if self._rank != (0 if lost else 1):
            step_aside(_STEP_ASIDE_S)  # the first of those that are left speaks for all that its launcher ends
        leave(
            f"process {lost} ({self._names[lost]}) is lost: nothing was heard of it for {silence:.0f} s, so that the others end too;"
            " see its machine, then start the same command again: it goes on from the newest checkpoint"
        )


def _beat_of(rank: int) -> str:
    return f"trainer/beat/{rank}"


def _name_of(rank: int) -> str:
    return f"trainer/name/{rank}"
