"""Processes of the trainer that begin with its libraries loaded: `python -m` takes seconds of each for imports that are the same each time.

A fork server is a process that has loaded what a run loads and has done nothing else. Each start is a fork of it: the leader of a session
of its own, with its arguments, its environment and its streams, which runs the module as `python -m` does and ends as an interpreter ends.
It has one thing in common with its siblings that processes of `python -m` have not, the seed of Python's hashes; tests that start the
DeepSpeed launcher have that of each process.
"""

import atexit
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
"""What the server's libraries have read when they were loaded. A process that needs other values cannot be a fork, nor one with a GPU: CUDA
does not come through a fork once anything has asked it for its devices."""


class ForkServer:
    """Started with the first process that is asked of it; ends with `close`, or with the process that has it."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None

    def start(self, module: str, arguments: Sequence[str], environment: Mapping[str, str], output: Path) -> "Forked":
        """Do as `python -m module arguments…` with that environment; both of its streams go to the end of `output`."""
        assert ENVIRONMENT.items() <= environment.items(), f"a fork has {ENVIRONMENT}"
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, "-m", __name__],
                cwd=Path(__file__).resolve().parents[2],
                env={**os.environ, **ENVIRONMENT},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            atexit.register(self.close)
        request = {
            "module": module,
            "arguments": list(arguments),
            "environment": dict(environment),
            "folder": os.getcwd(),
            "output": str(output),
        }
        return Forked(self, self.ask(request))

    def ask(self, request: Mapping[str, object]) -> int:
        """What the server answers: the number of the process that it has started, or the exit code of one that has ended."""
        assert self._server is not None
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(json.dumps(request), file=self._server.stdin, flush=True)
        answer = self._server.stdout.readline()
        assert answer, "the fork server has ended; its last words are on the standard error of the tests"
        return int(answer)

    def close(self) -> None:
        """End the server. Processes that it has started stay."""
        if self._server is not None:
            self._server.communicate()
            self._server = None


class Forked:
    """A process that a fork server has started, with what tests need of `subprocess.Popen`."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._server = server
        self._ended = os.pidfd_open(pid)

    def wait(self, timeout: float) -> int:
        if self.returncode is None:
            if not select.select([self._ended], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid} of the fork server", timeout)
            os.close(self._ended)
            self.returncode = self._server.ask({"wait": self.pid})
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)


def load() -> None:
    """What every run loads before its first step; what is still missing here costs time and nothing else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as the trainer does, for DeepSpeed warns about its own imports
        # Heavy, and only the server needs them: what a run imports, and what its optimizer and its engine import when they are made.
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
        import torch._dynamo  # noqa: F401

    from trainer import tokenizer, train  # noqa: F401

    with tempfile.TemporaryDirectory() as folder:  # has Numba load the loops that it has compiled
        tokenizer.train_vocabulary(["a text, a text"], 600, os.path.join(folder, "vocabulary"))


def serve() -> dict[str, Any] | None:
    """Start what is asked for until nobody can ask any more; in each process that was started, return what it is to run."""
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an import might print is no answer
    load()
    for line in requests:
        request: dict[str, Any] = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            print(os.waitstatus_to_exitcode(status), file=answers, flush=True)
            continue
        assert other_threads() <= {"jemalloc_bg_thd"}, "a fork would lack the others; jemalloc starts its own again"
        if not os.fork():
            os.setsid()
            print(os.getpid(), file=answers, flush=True)  # whoever reads it may send signals to its group
            requests.close()
            answers.close()
            return request
    return None


def other_threads() -> set[str]:
    """The names of this process's threads but for the first, those of C++ too."""
    every = Path("/proc/self/task").iterdir()
    return {(thread / "comm").read_text().strip() for thread in every if thread.name != str(os.getpid())}


def take_over(request: dict[str, Any]) -> None:
    """Make this process the one that was asked for."""
    os.chdir(request["folder"])
    with open(os.devnull) as nothing, open(request["output"], "ab") as output:
        os.dup2(nothing.fileno(), 0)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = [request["module"], *request["arguments"]]


if __name__ == "__main__":
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever started the tests, nohup perhaps
    asked = serve()
    if asked is not None:
        take_over(asked)
        runpy.run_module(asked["module"], run_name="__main__", alter_sys=True)
