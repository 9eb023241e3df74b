"""Runs of the trainer for tests, on the CPU: under the real DeepSpeed launcher, by `python -m trainer`, or as forks of a fork server.

All are real processes, in process groups that can be killed as a whole. A fork does without the seconds of imports that the others cost.
"""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import psutil
import pytest

from tests.ports import free_port
from tests.trainer.fork_server import ENVIRONMENT, ForkServer

SMOKE = "trainer/configs/smoke.toml"
INSTRUMENTED = "tests.trainer.instrumented"
_BINARIES = Path(sys.executable).parent


@dataclass(frozen=True)
class Finished:
    """How a run ended, and what it said on both streams."""

    code: int
    output: str


class Run(NamedTuple):
    """A program that has many cases for several processes, of which the suite takes few and the proofs all."""

    world: int
    """Number of processes."""
    few: bool = False

    def __str__(self) -> str:
        return f"{self.world}, few" if self.few else str(self.world)


RUNS = (Run(2, few=True), *(pytest.param(Run(world), marks=pytest.mark.prove) for world in (1, 2, 4)))


class Launch(Protocol):
    def __call__(
        self,
        processes: int,
        overrides: Mapping[str, object],
        *,
        kill_when: Callable[[], bool] | None = None,
        end_when: Callable[[], bool] | None = None,
    ) -> Finished: ...


class Alone(Protocol):
    def __call__(self, overrides: Mapping[str, object]) -> Finished: ...


def launch(
    processes: int,
    overrides: Mapping[str, object],
    *,
    kill_when: Callable[[], bool] | None = None,
    end_when: Callable[[], bool] | None = None,
    timeout: float = 280.0,
) -> Finished:
    """`deepspeed --num_gpus N --module trainer`."""
    return launch_module(
        processes, "trainer", *arguments_of(overrides), kill_when=kill_when, end_when=end_when, timeout=timeout
    )


def launch_module(
    processes: int,
    module: str,
    *arguments: str,
    kill_when: Callable[[], bool] | None = None,
    end_when: Callable[[], bool] | None = None,
    timeout: float = 280.0,
    on_gpu: bool = False,
) -> Finished:
    """`launch` for any module that joins the processes itself: what a test has written for several of them.

    As soon as `kill_when` says so the whole group gets SIGKILL; as soon as `end_when` does, SIGTERM goes to the launcher and all of its
    processes.
    """
    launcher = _BINARIES / "deepspeed"  # not where packages were installed apart from the interpreter
    command = [str(launcher)] if launcher.exists() else [sys.executable, "-m", "deepspeed.launcher.runner"]
    command += ["--num_gpus", str(processes), "--master_port", str(free_port())]
    command += ["--module", module, *arguments]
    with subprocess.Popen(
        command,
        env=_environment(on_gpu=on_gpu),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        until = time.monotonic() + timeout
        when, number = (kill_when, signal.SIGKILL) if kill_when is not None else (end_when, signal.SIGTERM)
        try:
            while when is not None and process.poll() is None and time.monotonic() < until:
                if when():
                    os.killpg(process.pid, number)
                    break
                time.sleep(0.02)
            output, _ = process.communicate(timeout=timeout)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    return Finished(process.returncode, output)


def alone(
    overrides: Mapping[str, object], *, inside: Sequence[str] = (), timeout: float = 280.0, on_gpu: bool = False
) -> Finished:
    """`python -m trainer`: a run of one process. `inside`: a command that runs it as its last arguments."""
    done = subprocess.run(
        [*inside, sys.executable, "-m", "trainer", *arguments_of(overrides)],
        env=_environment(on_gpu=on_gpu),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Finished(done.returncode, done.stdout + done.stderr)


def forked(overrides: Mapping[str, object]) -> Finished:
    """A run of one process, as `alone`, from the fork server."""
    return alone_module("trainer", *arguments_of(overrides))


def alone_module(module: str, *arguments: str, timeout: float = 280.0) -> Finished:
    """`forked` for any module."""
    process = Process(None, module, arguments)
    try:
        return process.wait(timeout)
    finally:
        process.kill()


@contextlib.contextmanager
def processes(
    count: int,
    overrides: Mapping[str, object],
    *,
    module: str = "trainer",
    environment: Mapping[str, str] | None = None,
    largest_files: Mapping[int, int] | None = None,
) -> Iterator[list["Process"]]:
    """The processes of one run without a launcher, as Slurm starts them; those still there at the end are killed.

    largest_files: how many bytes a file may have that is written by the process of some rank.
    """
    with processes_of(count, module, arguments_of(overrides), environment, largest_files) as started:
        yield started


@contextlib.contextmanager
def processes_of(
    count: int,
    module: str,
    arguments: Sequence[str],
    environment: Mapping[str, str] | None = None,
    largest_files: Mapping[int, int] | None = None,
) -> Iterator[list["Process"]]:
    """`processes` for any module that joins the processes itself: what a test has written for several of them."""
    place = {
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        **(environment or {}),
    }
    started: list[Process] = []
    try:
        for rank in range(count):
            started.append(Process(rank, module, arguments, place))
            if largest_files is not None and rank in largest_files:
                started[-1].limit_files(largest_files[rank])
        yield started
    finally:
        for process in started:
            process.kill()


_FORK_SERVER = ForkServer()


class Process:
    """One process of a run, in a session of its own; its output goes to a file that is read when it is asked for.

    rank: its place among those that `environment` tells it of; None for a run of one process that nothing is told of its place.
    """

    def __init__(
        self,
        rank: int | None,
        module: str,
        arguments: Sequence[str],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._said = tempfile.NamedTemporaryFile("r", encoding="utf-8")  # noqa: SIM115 (closed by kill)
        ranks = {} if rank is None else {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        self._process = _FORK_SERVER.start(
            module, arguments, {**_environment(), **(environment or {}), **ranks}, Path(self._said.name)
        )

    def signal(self, number: int, *, group: bool = False) -> None:
        """Send a signal to the process, or to all of its session: its workers too, as Slurm does."""
        if group:
            os.killpg(self._process.pid, number)
        else:
            self._process.send_signal(number)

    def children(self) -> list[psutil.Process]:
        """All that it has started: the server that its workers are forks of, and these."""
        found: list[psutil.Process] = psutil.Process(self._process.pid).children(recursive=True)
        return found

    def limit_files(self, size: int) -> None:
        """From here on it writes no file of more than `size` bytes: the error that a full disk gives."""
        resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (size, size))

    def wait(self, timeout: float = 280.0) -> Finished:
        return Finished(self._process.wait(timeout), self.output())

    def output(self) -> str:
        self._said.seek(0)
        return self._said.read()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(30)
        self._said.close()


def together(
    count: int,
    overrides: Mapping[str, object],
    *,
    module: str = "trainer",
    environment: Mapping[str, str] | None = None,
) -> Finished:
    """A whole run of `count` processes without a launcher: the largest exit code, and what all of them said, process after process."""
    return together_module(count, module, *arguments_of(overrides), environment=environment)


def together_module(
    count: int, module: str, *arguments: str, environment: Mapping[str, str] | None = None, timeout: float = 280.0
) -> Finished:
    """`together` for any module that joins the processes itself."""
    with processes_of(count, module, arguments, environment) as started:
        ended = [process.wait(timeout) for process in started]
        return Finished(max((one.code for one in ended), key=abs), "".join(one.output for one in ended))


def errors_of(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("error:")]


def wait_until(happened: Callable[[], bool], seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.05)


def arguments_of(overrides: Mapping[str, object]) -> list[str]:
    """The trainer's command line."""
    return ["--config", SMOKE, *(f"{key}={value}" for key, value in overrides.items())]


def _environment(*, on_gpu: bool = False) -> dict[str, str]:
    # The tools of the environment are beside its Python, whether or not it is activated.
    path = f"{_BINARIES}{os.pathsep}{os.environ['PATH']}"
    fixed = {"OMP_NUM_THREADS": ENVIRONMENT["OMP_NUM_THREADS"]} if on_gpu else ENVIRONMENT
    return {**os.environ, "PATH": path, **fixed}
