"""Two drivers on one run's folder: the second says who the first is, and the lock goes with the process that has it."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.contracts.errors import RunError
from trainer import run_lock

HOLD = "import sys, time; from trainer import run_lock; file = run_lock.take(sys.argv[1]); print('held', flush=True); time.sleep(600)"


def test_the_second_of_two_says_who_the_first_is(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(run)], stdout=subprocess.PIPE, text=True) as first:
        try:
            assert first.stdout is not None
            assert first.stdout.readline() == "held\n"
            with pytest.raises(
                RunError, match=rf"is in use by {socket.gethostname()}, process {first.pid}; wait for it"
            ):
                run_lock.take(str(run), 0.3)
            first.send_signal(signal.SIGKILL)
            with run_lock.take(str(run)):  # the kernel gave it back
                assert (run / run_lock.LOCK).read_text() == f"{socket.gethostname()}, process {os.getpid()}\n"
        finally:
            first.kill()


def test_a_child_of_the_first_does_not_keep_the_lock(tmp_path: Path) -> None:
    """A worker may outlive a killed run by some seconds; the run that is started again must not wait for it."""
    code = f"import os; {HOLD.removesuffix('; time.sleep(600)')}; child = os.fork(); time.sleep(60 if child == 0 else 0); os._exit(0)"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.DEVNULL, start_new_session=True
    ) as first:
        try:
            assert first.wait(60) == 0
            run_lock.take(str(tmp_path), 0.0).close()
        finally:
            os.killpg(first.pid, signal.SIGKILL)
