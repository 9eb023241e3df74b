"""What the demo and the run on real data share: commands as a user types them, logs beside them, checks, a loss curve in text.

A step is one real command in a process of its own. Its output goes to a log file; what is printed is one line that says what is done
and why, the command, and how long it took. A check is a sentence with a verdict; `Checks` remembers whether all of them held.
"""

import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import tomli_w

ROOT = Path(__file__).resolve().parents[2]
Toml = Mapping[str, "str | int | float | bool | list[str] | list[float] | list[dict[str, object]] | Toml"]
_BARS = "▁▂▃▄▅▆▇█"


class StepFailed(Exception):
    """A command ended with another exit code than 0; the message holds the end of its log."""


class Steps:
    """Runs commands one after the other. `folder` takes the logs."""

    def __init__(self, folder: Path, total: int) -> None:
        self._folder = folder
        self._total = total
        self._done = 0
        self._started = time.monotonic()

    def say(self, what: str) -> None:
        """One heading: what happens now, and why."""
        self._done += 1
        print(f"\n[{self._done}/{self._total}] {what}", flush=True)

    def run(self, command: Sequence[str], log: str, timeout_s: float, env: Mapping[str, str] | None = None) -> None:
        """Run a command from the repository root, its output in `log`. Raises StepFailed with the log's end when it fails."""
        path = self._folder / log
        shown = " ".join(shlex.quote(part) for part in command)
        print(f"      $ {shown}", flush=True)
        started = time.monotonic()
        with path.open("wb") as output:
            code = _run(_resolved(command), output.fileno(), timeout_s, {**os.environ, **(env or {})})
        if code != 0:
            tail = path.read_text(errors="replace").splitlines()[-30:]
            raise StepFailed("\n".join([*tail, f"{shown}: exit code {code}; the whole log is {path}"]))
        print(f"      {time.monotonic() - started:.0f} s (log: {_short(path)})", flush=True)

    @property
    def seconds(self) -> float:
        """Since the first step."""
        return time.monotonic() - self._started


def _resolved(command: Sequence[str]) -> list[str]:
    """`python` and `deepspeed` of this environment, whatever PATH says."""
    here = Path(sys.executable).parent / command[0]
    return [str(here) if here.exists() else command[0], *command[1:]]


def _run(command: list[str], output: int, timeout_s: float, env: Mapping[str, str]) -> int:
    """The exit code. A command that takes too long is ended with everything it started: it has a process group of its own."""
    child = subprocess.Popen(
        command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
    )
    try:
        return child.wait(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return 124
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def _short(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def write_toml(path: Path, first_line: str, tables: Mapping[str, object]) -> Path:
    """A configuration file with one comment on top that says what it is for."""
    path.write_text(f"# {first_line}\n\n{tomli_w.dumps(tables)}", encoding="utf-8")
    return path


class Checks:
    """Sentences and whether they hold."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def that(self, holds: bool, sentence: str) -> None:
        """Print the sentence with its verdict and remember it if it does not hold."""
        print(f"  {'ok  ' if holds else 'FAIL'}  {sentence}", flush=True)
        if not holds:
            self.failed.append(sentence)


# ---- the loss curve


def losses(run_dir: Path) -> list[tuple[int, float]]:
    """(step, loss) of a training run's metrics."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [(int(entry["step"]), float(entry["loss"])) for entry in map(json.loads, lines) if "loss" in entry]


def sparkline(values: Sequence[float], width: int = 60) -> str:
    """A line of blocks, one for each of at most `width` equal stretches of the values, scaled from the least to the largest."""
    count = min(width, len(values))
    marks = [round(i * len(values) / count) for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(marks)]
    low, high = min(means), max(means)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] for mean in means)


def plot_losses(points: Sequence[tuple[int, float]], path: Path, guessing: float) -> None:
    """The curve as a PNG; `guessing` is the loss of a model that knows nothing."""
    # Loaded here: a second that nobody should wait for before the first line is printed.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([step for step, _ in points], [loss for _, loss in points])
    axes.axhline(guessing, linestyle=":", color="grey")
    axes.annotate("guessing", (0, guessing), color="grey", va="bottom")
    axes.set_xlabel("step")
    axes.set_ylabel("contrastive loss")
    figure.savefig(path, dpi=120)
