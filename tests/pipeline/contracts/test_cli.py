"""Exit codes and error lines, from real processes."""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.contracts.cli import add_config_arguments, config_parser, parse

PROGRAM = """
import os, sys
from pipeline.contracts.cli import Progress, run_cli
from pipeline.contracts.errors import AuditFinding, HouseError, InputError, RunError
def main(argv):
    {body}
run_cli(main, ["x"])
"""


def run(body: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(body=body)], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("body", "code", "stderr"),
    [
        ("return None", 0, ""),
        ("return 3", 3, ""),
        ("raise InputError('a: wrong')", 2, "error: a: wrong\n"),
        ("raise InputError('one\\ntwo')", 2, "error: one\nerror: two\n"),
        ("raise RunError('failed')", 1, "error: failed\n"),
        ("raise AuditFinding('found')", 3, "error: found\n"),
        ("raise KeyboardInterrupt", 130, "error: interrupted; the same command again resumes\n"),
    ],
)
def test_exit_codes(body: str, code: int, stderr: str) -> None:
    done = run(body)
    assert (done.returncode, done.stderr) == (code, stderr)


def test_our_own_mistakes_keep_their_traceback() -> None:
    done = run("raise ZeroDivisionError('ours')")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_progress_without_a_terminal_is_one_line() -> None:
    done = run("""
    with Progress(3, "units", "crawl") as progress:
        for number in range(3):
            progress.update(1, rows=1000)
""")
    assert done.returncode == 0
    assert done.stderr.startswith("crawl: 3 of 3 units in ")
    assert done.stderr.endswith(", 3,000 rows\n")


def test_a_long_unit_says_that_time_passes() -> None:
    """Between two units `tick` prints the line that is due, and only that one."""
    done = run("""
    import time
    clock = [7.0]
    time.monotonic = lambda: clock[0]
    with Progress(2, "units", "crawl", summary=False) as progress:
        for seconds in (0, 59, 1, 0, 59, 1):
            clock[0] += seconds
            progress.tick()
""")
    assert done.returncode == 0, done.stderr
    assert done.stderr == (
        "crawl: 0 of 2 units in 60.0 s (0.0 units/s)\ncrawl: 0 of 2 units in 120.0 s (0.0 units/s)\n"
    )


def test_resumed_units_are_not_fast_ones() -> None:
    done = run("""
    import time
    clock = [7.0]
    time.monotonic = lambda: clock[0]
    with Progress(1010, "units", "crawl", initial=1000, summary=False) as progress:
        progress.update(0, rows=5000)
        clock[0] += 80
        progress.update(2, rows=7)
""")
    assert done.returncode == 0, done.stderr
    assert done.stderr == (
        "crawl: 1,002 of 1,010 units, 1,000 of them before in 80.0 s (0.025 units/s, 320 s left), 5,007 rows\n"
    )


def test_a_reader_that_goes_away_is_no_failure() -> None:
    program = PROGRAM.format(body="print('x' * 99_999, flush=True); print('x' * 99_999)")
    writer = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stderr is not None
    writer.stdout.read(1)
    writer.stdout.close()
    said = writer.stderr.read()
    writer.stderr.close()
    assert (writer.wait(30), said) == (0, b"")


# What a command does, the exit code that it comes to, and what there is to say of it.
ENDS = {
    "printed": ("import atexit; atexit.register(print, 'x'); print('x')", 0, ""),
    "help": ("import argparse; argparse.ArgumentParser().parse_args(['--help'])", 0, ""),
    "failed": ("raise RunError('failed')", 1, "error: failed\n"),
    "refused": ("raise InputError('a: wrong')", 2, "error: a: wrong\n"),
    "findings": ("print('x'); print('x'); raise AuditFinding('found')", 3, "error: found\n"),
}
FULL = "error: stdout: not all could be printed (No space left on device); send it to another place\n"
WORK = """
    import logging
    with Progress(1, "units", "crawl") as progress:
        progress.update()
    logging.error("told")
    sys.stderr.write("x" * 99_999)
    """


def in_shell(redirection: str, body: str, *, unbuffered: bool = False) -> subprocess.CompletedProcess[str]:
    """A command with what a shell does to its streams: `>&-` is closed, and `true` has left when it begins to print."""
    program = PROGRAM.format(body=f"import time; time.sleep(0.2 * {'true' in redirection}); {body}")
    return subprocess.run(
        ["bash", "-c", f'"$0" -c "$1" {redirection}; exit ${{PIPESTATUS[0]}}', sys.executable, program],
        env={**os.environ, "PYTHONUNBUFFERED": "1" if unbuffered else ""},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("end", ENDS)
def test_a_stdout_that_takes_nothing_leaves_the_exit_code(end: str) -> None:
    """Without a reader, or closed, it is nobody's failure. Full it is one, unless there is a worse one."""
    body, code, said = ENDS[end]
    for unbuffered in (False, True):
        done = in_shell("| true", body, unbuffered=unbuffered)
        assert (done.returncode, done.stderr) == (code, said)
        done = in_shell(">/dev/full", body, unbuffered=unbuffered)
        prints = not body.startswith("raise")
        assert (done.returncode, done.stderr) == (code or 1, said + FULL * prints)
    done = in_shell(">&-", body)
    assert (done.returncode, done.stderr) == (code, said)


@pytest.mark.parametrize("redirection", ["2> >(true)", "2>/dev/full", "2>&-", "2>&- <&-"])
def test_a_stderr_that_takes_nothing_changes_nothing(redirection: str) -> None:
    """Neither the work, of which progress and logs are a part, nor the exit code."""
    for end in ("printed", "refused", "findings"):
        body, code, _ = ENDS[end]
        done = in_shell(redirection, WORK + body, unbuffered=end == "findings")
        assert (done.returncode, done.stdout, done.stderr) == (code, "x\n" * body.count("'x'"), "")


def test_who_prints_for_a_reader_alone_hears_that_it_left() -> None:
    """As `status --watch | head`. What is flushed in the middle of work, which multiprocessing does, raises nothing."""
    watch = """from pipeline.contracts.cli import stdout_lost
    for _ in range(100):
        print('x')
        if stdout_lost(): return
        time.sleep(0.1)
    sys.exit(9)"""
    for unbuffered in (False, True):
        assert in_shell("| true", watch, unbuffered=unbuffered).returncode == 0
    assert in_shell(">/dev/full", watch).returncode == 1
    assert in_shell("", watch).returncode == 9
    assert in_shell("| true", "print('x', flush=True); print('x', flush=True); sys.exit(9)").returncode == 9


def test_an_interrupted_line_is_not_printed_twice() -> None:
    """A signal's handler may raise between the system's write and the line that hears of it."""
    raising = "import signal; signal.signal(signal.SIGALRM, signal.default_int_handler)"
    at_once = "w = os.write; os.write = lambda *a: (w(*a), signal.raise_signal(signal.SIGALRM))[0]"
    for unbuffered in (False, True):
        done = in_shell("", f"{raising}; {at_once}; print('x', flush=True)", unbuffered=unbuffered)
        assert (done.returncode, done.stdout) == (130, "x\n")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8:surrogateescape"])
def test_no_character_is_too_much_for_stdout(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    """Neither what its encoding lacks nor the half of a character, as in a path that is no UTF-8."""
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    done = in_shell("", r"print('\u732b \udcff')")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout in (r"\u732b \udcff" "\n", r"猫 \udcff" "\n")


def test_an_unbuffered_line_is_there_when_the_process_is_not() -> None:
    assert in_shell("", "print('x'); os.kill(os.getpid(), 9)", unbuffered=True).stdout == "x\n"


def test_a_broken_pipe_that_is_not_stdout_is_no_success() -> None:
    done = run("raise BrokenPipeError('a host hung up')")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_children_of_a_command_without_streams_have_some(tmp_path: Path) -> None:
    """What they write there does not go to the file that the command opened next."""
    kept = tmp_path / "kept"
    body = f"file = open({str(kept)!r}, 'w'); code = os.system('echo x && echo x >&2'); sys.exit(code and 9)"
    assert in_shell(">&- 2>&- <&-", body).returncode == 0
    assert kept.read_text() == ""


def test_a_terminal_that_does_not_block_is_waited_for() -> None:
    """Such is what a pipe or terminal is left as by another program that shares it."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    program = PROGRAM.format(body="print('x' * 999_999); print('y' * 999_999, file=sys.stderr)")
    writer = subprocess.Popen([sys.executable, "-c", program], stdout=write, stderr=write)
    os.close(write)
    with open(read, "rb") as reader:
        said = reader.read()
    assert (writer.wait(30), said.count(b"x"), said.count(b"y")) == (0, 999_999, 999_999)


def test_the_interpreter_has_no_end() -> None:
    """Nothing that was decided before is lost by leaving it out: what libraries want at the end, what is still to be written."""
    late = "globals()['late'] = type('Late', (), {'__del__': lambda _, abort=os.abort: abort()})()"
    done = in_shell("", f"{late}; import atexit; atexit.register(print, 'x'); print('y'); return 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, "y\nx\n", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_is_told_twice_ends_at_once(number: int) -> None:
    """As by a second Ctrl-C while Ray ends its processes; but what was told to ignore it (nohup, a shell's &) still does."""
    ending = f"import atexit; atexit.register(lambda: os.kill(os.getpid(), {number})); raise KeyboardInterrupt"
    for answer, code in (("default_int_handler", -number), ("SIG_IGN", 130)):
        done = run(f"import signal; signal.signal({number}, signal.{answer}); {ending}")
        assert (done.returncode, done.stderr) == (code, "error: interrupted; the same command again resumes\n")


def test_the_words_of_a_command_line_are_utf8_whatever_the_locale_says() -> None:
    """And where their bytes are none, they stay as Python reads them."""
    program = "from pipeline.contracts.cli import run_cli; run_cli(lambda argv: print(ascii(argv)))"
    command: list[str | bytes] = [sys.executable, "-c", program, "a dög", "plain", b"\xff"]
    here: dict[str, str] = {}
    for encoding in (here, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}):
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **encoding}, check=True)
        assert done.stdout == "['a d\\xf6g', 'plain', '\\udcff']\n"


def test_overrides_may_stand_on_both_sides_of_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    """In their order, since the last one of a key counts. A flag that is not known, and a place too many, stay mistakes."""
    one = config_parser("one", "")
    several = argparse.ArgumentParser()
    commands = several.add_subparsers()
    add_config_arguments(commands.add_parser("run"))
    commands.add_parser("status").add_argument("path")
    for parser, before in ((one, []), (several, ["run"])):
        for line in ("a=1 b=2 --config F --check a=3", "a=1 --config F b=2 --check a=3", "--config F a=1 b=2 --check a=3",
                     "--config F --check a=1 b=2 a=3", "a=1 b=2 a=3 --check --config F"):  # fmt: skip
            given = parse(parser, [*before, *line.split()])
            assert (given.config, given.check, given.overrides) == ("F", True, ["a=1", "b=2", "a=3"])
    for wrong in ("run a=1 --config F --chekc a=2", "run --config F a=1 --x=2", "status here there"):
        with pytest.raises(SystemExit) as left:
            parse(several, wrong.split())
        assert left.value.code == 2
        assert "unrecognized arguments" in capsys.readouterr().err
