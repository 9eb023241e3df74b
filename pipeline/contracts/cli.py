"""What the command lines of the three packages share: flags, one error line, exit codes, progress.

Every command that computes takes `--config FILE [--check] [key=value ...]`; a new knob is a key of the configuration, not a flag. Exit
codes: 0 done, 1 the run failed, 2 wrong input or configuration, 3 the audit found something, 130 interrupted, 143 (training only) told to
end by SIGTERM, and saved.
"""

import argparse
import atexit
import errno
import io
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, Self

from tqdm import tqdm

from pipeline.contracts.errors import HouseError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

INTERRUPTED = "interrupted; the same command again resumes"

_PLAIN_INTERVAL_S = 60.0
_BAR_INTERVAL_S = 1.0


def config_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """A parser with `--config FILE`, `--check` and trailing `key=value` overrides (attribute `overrides`)."""
    parser = argparse.ArgumentParser(prog=prog, description=description, allow_abbrev=False)
    add_config_arguments(parser)
    return parser


def add_config_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add the three arguments of every command that computes; for sub-parsers. required=False: few keys, which need no file."""
    parser.add_argument("--config", required=required, metavar="FILE", help="the TOML configuration (a path or s3://…)")
    parser.add_argument(
        "--check",
        action="store_true",
        help="validate, print the resolved configuration and the plan, touch nothing",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="values that replace those of the file, for example run.seed=17",
    )


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """`parser.parse_args`, but overrides may stand on both sides of a flag: argparse takes them from one place only."""
    given, left = parser.parse_known_args(argv)
    if left and ("overrides" not in given or any(argument.startswith("-") for argument in left)):
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    if left:
        given.overrides = [*given.overrides, *left]
    return given


def run_cli(main: Callable[[list[str]], int | None], argv: list[str] | None = None) -> NoReturn:
    """Run `main(argv)` and end the process with `exit_code`, and without the end of Python's interpreter.

    In that end a thread of C++ that still asks for Python (Ray's; gloo's, to free the tensor of its last message) aborts or crashes the
    process: a run that is done would have exit code -6, and Slurm or Kubernetes would start it again.
    """
    code = exit_code(main, argv)
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is signal.default_int_handler:
            signal.signal(number, signal.SIG_DFL)  # a second Ctrl-C ends this at once, without a traceback
    atexit._run_exitfuncs()  # what libraries have asked for is done: Ray ends its processes
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def exit_code(main: Callable[[list[str]], int | None], argv: list[str] | None = None) -> int:
    """Run `main(argv)`; returns its exit code. A HouseError becomes `error: …` lines on stderr, without a traceback.

    The one broad exit of the command lines: everything that is not a HouseError is our bug and keeps its traceback (exit code 1). Where
    what is said goes changes neither the work nor its exit code, except that what could not be printed for another reason than a reader
    (head, less) that has gone is a failure.
    """
    _open_standard_streams()
    argv = list(map(_in_utf8, sys.argv[1:])) if argv is None else argv
    line = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.INFO, format=line, stream=sys.stderr)
    try:
        code = main(argv) or 0
        sys.stdout.flush()
    except HouseError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        print(f"error: {INTERRUPTED}", file=sys.stderr)
        code = 130
    except SystemExit as end:  # argparse's
        code = int(end.code or 0)
    lost = stdout_lost()
    if lost is not None and lost.errno != errno.EPIPE:
        print(f"error: stdout: not all could be printed ({lost.strerror}); send it to another place", file=sys.stderr)
        code = code or 1
    return code


def _in_utf8(word: str) -> str:
    """A word of the command line, which Python reads by the locale: of one without UTF-8 a caption would be made of other letters."""
    try:
        return os.fsencode(word).decode()
    except UnicodeError:
        return word


class _File(io.FileIO):
    """Where stdout or stderr goes. No write fails, since telling is not the work: what cannot be written is lost, and `lost` says why."""

    lost: OSError | None = None

    def write(self, data: "ReadableBuffer") -> int:
        left = memoryview(data).cast("B")
        told = len(left)
        while left:
            try:
                left = left[os.write(self.fileno(), left) :]
            except BlockingIOError:  # another program made a terminal or a pipe so: room is waited for, as everywhere
                select.select([], [self], [])
            except OSError as error:
                self.lost = error
                break
        return told


def stdout_lost() -> OSError | None:
    """Flush stdout. Returns why something of all that was printed is lost, or None: for those who print for a reader alone."""
    sys.stdout.flush()
    file = getattr(sys.stdout, "buffer", None)
    return file.lost if isinstance(file, _File) else None


def _open_standard_streams() -> None:
    """Streams that never fail instead of Python's own; somebody else's (a test's) stay. One that was closed goes to os.devnull.

    Its number would else be that of the next file opened, which would get what libraries and child processes write there.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _stream(1, sys.__stdout__)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _stream(2, sys.__stderr__)


def _stream(number: int, old: io.TextIOWrapper | None) -> io.TextIOWrapper:
    """A stream on a _File, a line at a time where Python's own stream `old` was unbuffered.

    There is no BufferedWriter between: it would write again what it wrote when a signal's handler raised before it was told so.
    """
    return io.TextIOWrapper(
        _File(number, "w", closefd=False),
        encoding=old.encoding if old else "utf-8",
        errors="backslashreplace",  # a caption or a path that the locale has no bytes for is no reason to end
        line_buffering=old is None or old.line_buffering or old.write_through,
    )


class Progress:
    """Progress of long work on stderr: a bar with rate and ETA on a terminal, else one plain line a minute and one at the end.

    Use as a context manager. `update(n, **counts)` adds n finished units and adds to named counts, which are shown beside the bar.
    `tick()` is for the waits between: it says that time passes while no unit ends. `initial` units were done before (resumed), and do not
    count for the rate and the ETA. summary=False leaves out the line at the end (small steps that nobody waits for).
    """

    def __init__(self, total: int | None, unit: str, label: str, *, initial: int = 0, summary: bool = True) -> None:
        self._total, self._unit, self._label, self._summary = total, unit, label, summary
        self._counts: dict[str, int] = {}
        self._initial = self._done = initial
        self._started = self._said = time.monotonic()
        self._bar = (
            tqdm(total=total, initial=initial, unit=unit, desc=label, file=sys.stderr, dynamic_ncols=True)
            if sys.stderr.isatty()
            else None
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif kind is None and self._summary:
            self._say()

    def update(self, n: int = 1, **counts: int) -> None:
        """Add `n` finished units; `counts` are added to the totals shown."""
        self._done += n
        for key, count in counts.items():
            self._counts[key] = self._counts.get(key, 0) + count
        if self._bar is not None:
            if counts:
                self._bar.set_postfix(self._counts, refresh=False)
            self._bar.update(n)
        self.tick()

    def tick(self) -> None:
        """Nothing is finished, time passes: the bar's clock moves on, a plain line comes when its minute is over."""
        now = time.monotonic()
        if self._bar is not None:
            if now - self._said >= _BAR_INTERVAL_S:
                self._said = now
                self._bar.refresh()
        elif now - self._said >= _PLAIN_INTERVAL_S:
            self._said = now
            self._say()

    def _say(self) -> None:
        seconds = time.monotonic() - self._started
        rate = (self._done - self._initial) / seconds if seconds > 0 else 0.0
        pace = f"{rate:,.1f}" if rate >= 1 or not rate else f"{rate:.2g}"  # a unit may take minutes
        of = f" of {self._total:,}" if self._total is not None else ""
        before = f", {self._initial:,} of them before" if self._initial else ""
        left = (
            f", {(self._total - self._done) / rate:,.0f} s left"
            if self._total and rate and self._done < self._total
            else ""
        )
        counts = "".join(f", {count:,} {key}" for key, count in sorted(self._counts.items()))
        print(
            f"{self._label}: {self._done:,}{of} {self._unit}{before} in {seconds:,.1f} s ({pace} {self._unit}/s{left}){counts}",
            file=sys.stderr,
            flush=True,
        )
