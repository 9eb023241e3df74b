"""Runs of the trainer for tests: the real DeepSpeed launcher, on the CPU, in a process group that can be killed as a whole."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

SMOKE = "trainer/configs/smoke.toml"
_BINARIES = Path(sys.executable).parent


@dataclass(frozen=True)
class Finished:
    """How a run ended, and what it said on both streams."""

    code: int
    output: str


class Launch(Protocol):
    def __call__(
        self, processes: int, overrides: Mapping[str, object], *, kill_when: Callable[[], bool] | None = None
    ) -> Finished: ...


class Alone(Protocol):
    def __call__(self, overrides: Mapping[str, object]) -> Finished: ...


def launch(
    processes: int,
    overrides: Mapping[str, object],
    *,
    kill_when: Callable[[], bool] | None = None,
    timeout: float = 280.0,
) -> Finished:
    """`deepspeed --num_gpus N --module trainer`; with `kill_when` the whole group gets SIGKILL as soon as it says so."""
    return launch_module(processes, "trainer", *_arguments(overrides), kill_when=kill_when, timeout=timeout)


def launch_module(
    processes: int,
    module: str,
    *arguments: str,
    kill_when: Callable[[], bool] | None = None,
    timeout: float = 280.0,
) -> Finished:
    """`launch` for any module that joins the processes itself: what a test has written for several of them."""
    command = [str(_BINARIES / "deepspeed"), "--num_gpus", str(processes), "--master_port", str(_free_port())]
    command += ["--module", module, *arguments]
    with subprocess.Popen(
        command,
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        until = time.monotonic() + timeout
        try:
            while kill_when is not None and process.poll() is None and time.monotonic() < until:
                if kill_when():
                    os.killpg(process.pid, signal.SIGKILL)
                    break
                time.sleep(0.02)
            output, _ = process.communicate(timeout=timeout)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    return Finished(process.returncode, output)


def alone(overrides: Mapping[str, object], *, timeout: float = 280.0) -> Finished:
    """`python -m trainer`: a run of one process."""
    done = subprocess.run(
        [sys.executable, "-m", "trainer", *_arguments(overrides)],
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Finished(done.returncode, done.stdout + done.stderr)


def _arguments(overrides: Mapping[str, object]) -> list[str]:
    return ["--config", SMOKE, *(f"{key}={value}" for key, value in overrides.items())]


def _environment() -> dict[str, str]:
    # The tools of the environment are beside its Python, whether or not it is activated.
    path = f"{_BINARIES}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
