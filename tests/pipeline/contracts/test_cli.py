"""Exit codes and error lines, from real processes."""

import argparse
import subprocess
import sys

import pytest

from pipeline.contracts.cli import add_config_arguments, config_parser, parse

PROGRAM = """
import sys
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
