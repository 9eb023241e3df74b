"""Joining a Ray cluster or starting one: what a job of the pipeline and a training under Ray Train say alike where it does not work.

Ray has no class for these errors: it raises Python's own, some of them bare.
"""

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType

from pipeline.contracts.errors import InputError, RunError

_KNOCK_S = 10.0  # how long a cluster may take to accept a connection


def connect(address: str | None, place: str, *, dashboard: bool | None) -> None:
    """Join the cluster at `address`, which the user gave in `place`, or start one on this machine where it is None.

    Raises InputError where no cluster answers or Ray has no place for its files, and RunError where a cluster on this machine does not
    come up. A SIGTERM while Ray starts is a KeyboardInterrupt, unless the caller has blocked it; from then on it is the caller's again.
    """
    import ray  # heavy

    is_main = threading.current_thread() is threading.main_thread()  # another may not say what answers a signal
    answers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM) if is_main}
    try:
        for number, answer in answers.items():
            if answer is signal.default_int_handler:
                signal.signal(number, _interrupts(os.getpid()))
        if address is not None:
            _knock(address)
        ray.init(
            address=address or "local",
            include_dashboard=dashboard,
            logging_level=logging.WARNING,
            log_to_driver=True,
        )
    except SystemExit:  # Ray's own answer to a SIGTERM
        raise KeyboardInterrupt from None
    except Exception as error:
        # A ValueError is what it says to an address that is none; without one it is a bug, as are all others.
        theirs = OSError | RuntimeError if address is None else OSError | RuntimeError | ValueError
        if type(error) is not Exception and not isinstance(error, theirs):
            raise
        said = " ".join(str(error).split())[:200]
        if address is None:
            raise _cannot_start(error, said) from None
        raise InputError(
            f"{place}: no Ray cluster answers at {address!r} ({said}); check the address and the network"
        ) from None
    finally:
        for number, answer in answers.items():
            signal.signal(number, answer)  # Ray's would end the process without a word
        if is_main:
            signal.alarm(0)  # the one of its C++ part aborts the process 3 s later, whatever that does with them


def _interrupts(driver: int) -> Callable[[int, FrameType | None], None]:
    """As `default_int_handler`, but only in the process `driver`.

    What Ray starts are forks of it for some milliseconds, until they become their programs. In them a Ctrl-C, which reaches all of a
    terminal's processes, would print a traceback; Ray is about to take them out of its reach.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        if os.getpid() == driver:
            raise KeyboardInterrupt

    return interrupt


def _knock(address: str) -> None:
    """Open a connection to HOST:PORT and close it: Ray would look for a cluster for minutes. Raises OSError when nobody is there."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=_KNOCK_S).close()


def _cannot_start(error: Exception, said: str) -> InputError | RunError:
    """What is raised where Ray was to be started on this machine: it has no place for its files, or its node does not come up."""
    if isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError):
        return InputError(
            f"Ray cannot start on this machine ({said}); it needs a folder for its files (RAY_TMPDIR, by default /tmp, "
            "a short name) and keeps a token in ~/.ray: set HOME to a folder that can be written, or RAY_AUTH_TOKEN to a long random word"
        )
    folder = os.environ.get("RAY_TMPDIR", os.environ.get("TMPDIR", "/tmp"))
    return RunError(
        f"Ray does not come up on this machine ({said}); see {f'{folder}/ray/session_latest/logs'!r} (raylet.err first), the memory, "
        "the disk of RAY_TMPDIR, `ulimit -v` and `ulimit -f`, and run without PYTHONOPTIMIZE and PYTHONWARNINGS"
    )
