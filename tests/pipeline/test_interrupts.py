"""Signals to a driver, in processes of their own. One that does not hear waits in C for a lock that it has, which no signal ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.status import story
from tests.e2e import pipelines

PROGRAM = """
import atexit, contextlib, ctypes, os, signal, sys, time
from pipeline import interrupts
from pipeline.contracts.cli import run_cli

def wait():
    print("waits", flush=True)
    time.sleep(100)

def wait_and_end_slowly():
    atexit.register(time.sleep, 3 * interrupts.PATIENCE_S)
    wait()

def wait_and_be_deaf():
    class Finaliser:
        def __del__(self):
            wait()
    Finaliser()
    time.sleep(100)

def raise_in_a_finaliser():
    class Finaliser:
        def __del__(self):
            1 / 0
    Finaliser()

def wait_briefly():
    print("waits", flush=True)
    time.sleep(3 * interrupts.PATIENCE_S)
    print("over", flush=True)

def wait_in_c():
    lock, libc = ctypes.create_string_buffer(256), ctypes.CDLL(None)
    print("waits", flush=True)
    for _ in range(2):
        libc.pthread_mutex_lock(lock)

def tell_a_fork():
    reads, writes = os.pipe()
    fork = os.fork()
    if not fork:
        try:
            os.write(writes, b"!")
            time.sleep(100)
        except KeyboardInterrupt:
            os._exit(3)
    os.read(reads, 1)
    os.kill(fork, signal.SIGTERM)
    print("fork:", os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]), flush=True)
    time.sleep(2 * interrupts.PATIENCE_S)

def last_words():
    print("last words", flush=True)

def listen_in_a_fork():
    fork = os.fork()
    if not fork:
        with interrupts.Interrupts(inner_last_words):
            os._exit(3 if signal.set_wakeup_fd(-1) >= 0 else 4)
    print("fork:", os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]), flush=True)

def inner_last_words():
    print("inner", flush=True)

def after_another(what):
    with interrupts.Interrupts(inner_last_words):
        pass
    what()

def in_another(what, last_words=inner_last_words):
    with interrupts.Interrupts(last_words):
        what()

def wait_and_leave_amid_the_last_words():
    atexit.register(print, "tidied")
    atexit.register(time.sleep, 1.5 * interrupts.PATIENCE_S)  # first
    try:
        wait()
    finally:
        time.sleep(1.5 * interrupts.PATIENCE_S)

def wait_where_nobody_reads():
    reads, writes = os.pipe()
    os.dup2(writes, 2)
    os.set_blocking(2, False)
    for size in (1 << 16, 1):
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(2, b"-" * size)
    os.set_blocking(2, True)
    wait_in_c()

def hang():
    time.sleep(100)

def broken():
    raise OSError("no place to tell it")

def main(argv):
    interrupts.PATIENCE_S = interrupts.LAST_WORDS_S = 1.0
    with interrupts.Interrupts({last_words}):
        {inside}
    {after}

signal.signal(signal.SIGINT, signal.{sigint})
run_cli(main)
"""
SENTENCE = "error: interrupted; the same command again resumes\n"


def start(
    inside: str, *, after: str = "None", last_words: str = "last_words", sigint: str = "default_int_handler"
) -> "subprocess.Popen[str]":
    program = PROGRAM.format(inside=inside, after=after, last_words=last_words, sigint=sigint)
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def told(process: "subprocess.Popen[str]", *numbers: signal.Signals) -> tuple[int, str, str]:
    """How it ends and what it says, when it is sent the signals once it waits."""
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "waits\n"
        while psutil.Process(process.pid).status() != psutil.STATUS_SLEEPING:  # not there yet
            time.sleep(0.01)
        for number in numbers:
            process.send_signal(number)
        out, said = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, out, said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("inside", "after", "out"),
    [
        ("wait()", "None", ""),
        ("wait_and_end_slowly()", "None", ""),
        ("wait_in_c()", "None", "last words\n"),
        ("wait_and_be_deaf()", "None", "last words\n"),
        ("None", "wait()", ""),
        ("after_another(wait)", "None", ""),
        ("in_another(wait)", "None", ""),
        ("after_another(wait_in_c)", "None", "last words\n"),
        ("in_another(wait_in_c)", "None", "inner\nlast words\n"),
    ],
)
def test_a_driver_ends_with_one_sentence_whether_it_hears_or_not(
    number: signal.Signals, inside: str, after: str, out: str
) -> None:
    code, told_of, said = told(start(inside, after=after), number)
    assert (code, sorted(told_of.splitlines(keepends=True)), said) == (130, out.splitlines(keepends=True), SENTENCE)


def test_a_driver_that_leaves_while_its_last_words_are_said_says_one_sentence_and_tidies_up() -> None:
    process = start("wait_and_leave_amid_the_last_words()", last_words="hang")
    assert told(process, signal.SIGTERM) == (130, "tidied\n", SENTENCE)


def test_a_driver_that_does_not_hear_ends_also_when_nobody_reads_its_sentence() -> None:
    assert told(start("wait_where_nobody_reads()"), signal.SIGTERM) == (130, "last words\n", "")


def test_of_two_last_words_one_that_fails_does_not_keep_the_other() -> None:
    code, out, said = told(start("in_another(wait_in_c, broken)"), signal.SIGTERM)
    assert (code, out) == (130, "last words\n")
    assert said.endswith(SENTENCE)


def test_a_driver_that_does_not_hear_ends_also_when_that_cannot_be_told() -> None:
    code, out, said = told(start("wait_in_c()", last_words="broken"), signal.SIGTERM)
    assert (code, out) == (130, "")
    assert "OSError: no place to tell it" in said
    assert said.endswith(SENTENCE)


def test_a_driver_that_does_not_hear_ends_also_when_telling_it_takes_too_long() -> None:
    assert told(start("wait_in_c()", last_words="hang"), signal.SIGTERM) == (130, "", SENTENCE)


def test_what_else_cannot_be_raised_is_shown() -> None:
    process = start("raise_in_a_finaliser()")
    assert "ZeroDivisionError" in process.communicate(timeout=60)[1]


def test_sigint_stays_ignored_where_it_was() -> None:
    """As of a script's &."""
    assert told(start("wait_briefly()", sigint="SIG_IGN"), signal.SIGINT) == (0, "over\n", "")


@pytest.mark.parametrize("inside", ["tell_a_fork()", "listen_in_a_fork()"])
def test_a_fork_hears_for_itself(inside: str) -> None:
    process = start(inside)
    assert process.communicate(timeout=60) == ("fork: 3\n", "")
    assert process.returncode == 0


OF_A_RUN = """
def main(argv):
    interrupts.PATIENCE_S = 1.0
    with engine.Run(argv[0], engine.EngineConfig(), {}, "0" * 64):
        pass
"""


@pytest.mark.parametrize(
    ("where", "told_of"), [("engine.Run._take_over", False), ("engine.connect", True)], ids=["before", "after"]
)
def test_what_run_json_tells_is_left_alone_until_it_is_the_drivers_own(
    where: str, told_of: bool, tmp_path: Path
) -> None:
    others = '{"state": "running"}'
    (tmp_path / "run.json").write_text(others)
    program = PROGRAM[: PROGRAM.index("def main")].replace("import interrupts", "import engine, interrupts")
    program += f"{where} = lambda *_: wait_in_c()\n{OF_A_RUN}\nrun_cli(main)"
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert told(process, signal.SIGTERM) == (130, "", SENTENCE)
    assert (story(str(tmp_path))["state"] == "failed") == told_of
    assert ((tmp_path / "run.json").read_text() == others) != told_of


@pytest.mark.prove
def test_a_driver_that_waits_for_a_server_of_rays_which_has_ended(tmp_path: Path) -> None:
    """Told with all its processes, as systemd and Slurm do it: Ray's server goes first here, so that the driver does not hear."""
    program = (
        "import sys, ray; from pipeline.contracts.cli import run_cli; from pipeline.engine import EngineConfig, Run\n"
        "def main(argv):\n with Run(argv[0], EngineConfig(), {}, '0' * 64):\n  print('in', flush=True)\n"
        "  while True: ray.cluster_resources()\n"
        "run_cli(main)"
    )
    with pipelines.ray_folder() as folder:
        command = [sys.executable, "-c", program, str(tmp_path / "out")]
        launch = pipelines.start(command, tmp_path / "log", pipelines.environment(folder))
        while "in\n" not in launch.text():
            assert launch.process.poll() is None, launch.text()
            time.sleep(0.1)
        of_ray = psutil.Process(launch.process.pid).children()
        next(process for process in of_ray if process.name() == "gcs_server").terminate()
        time.sleep(2)  # it no longer answers, and ends when the driver has
        os.killpg(launch.process.pid, signal.SIGTERM)
        launch.process.wait(50)  # Ray itself would end it after 60 s
        assert launch.wait() == 130, launch.text()
    assert [line for line in launch.text().splitlines() if line.startswith("error: ")] == [SENTENCE.strip()]
    assert (story(str(tmp_path / "out"))["state"], story(str(tmp_path / "out"))["exit_code"]) == ("failed", 130)


@pytest.mark.prove
def test_a_driver_that_does_not_hear_while_ray_starts(tmp_path: Path) -> None:
    """Ray's C++ part then has an answer of its own to SIGTERM: a trace, and an end by abort after 3 s."""
    program = (
        "import ctypes, os, signal, sys, threading; from ray._private import worker\n"
        "from pipeline.contracts.cli import run_cli; from pipeline.engine import EngineConfig, Run\n"
        "def wait_in_c():\n"
        " threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM)).start()\n"
        " lock, libc = ctypes.create_string_buffer(256), ctypes.CDLL(None)\n"
        " for _ in range(2):\n  libc.pthread_mutex_lock(lock)\n"
        "worker._post_init_hooks.append(wait_in_c)\n"
        "def main(argv):\n with Run(argv[0], EngineConfig(), {}, '0' * 64): pass\n"
        "run_cli(main)"
    )
    with pipelines.ray_folder() as folder:
        command = [sys.executable, "-c", program, str(tmp_path / "out")]
        launch = pipelines.start(command, tmp_path / "log", pipelines.environment(folder))
        assert launch.process.wait(100) == 130, launch.text()
        launch.end()
    assert [line for line in launch.text().splitlines() if line.startswith("error: ")] == [SENTENCE.strip()]
