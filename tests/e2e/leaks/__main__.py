"""`make leaks SEED=N`: an audit whose every answer is known beforehand, for any seed.

    python -m tests.e2e.leaks --seed N [--rows 3000] [--folder build/leaks] [--descriptor DIR | --train-minutes 3]

By the seed, evaluation sets and a corpus are drawn (`ground` says which, `planting` how many), and leaks of every kind are planted: files
bit for bit as fetched and as stored; recompressed, resized, enlarged, saved in another format, recoloured, cropped a little, thinly
framed, under grain; captions whole, in longer ones, nearly, in English and Chinese; class names. Beside them stands what must not be
found: look-alikes that moved as little as they could without being a match, blank frames, of which the black ones are one picture to
any hash, captions a word beyond near.

Then the real command makes its report in a process of its own, on Ray, `verify` recomputes it, and what it says is compared with what was
planted (`comparing`). The exit code is 0 only if all of it agrees: every plant by the right method, nothing else, the right verdict for
every set, and none where power is too low.

Why that can hold for every seed: each plant is known to be one by the libraries of others (`pictures`) or by the definition (`words`), with
margins on both sides of every threshold, and is drawn again where it is in doubt; the verdicts hang on counts (`ground`). No setting of
the job is changed.

Larger crops and frames, mirrored and turned copies are found by no hash of whole pictures. They are planted where there is a learned
descriptor: the folder of one, or one that is trained here first, on other views (`eye`).
"""

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.e2e import steps
from tests.e2e.leaks import comparing, planting
from tests.e2e.leaks.ground import VERDICTS, Ground
from tests.e2e.steps import ROOT, StepFailed, Steps

ROWS = 3000
FOLDER = ROOT / "build" / "leaks"
LEARNED_FROM = 1000
_MARK = ".leaks"


def main(arguments: Sequence[str] | None = None) -> int:
    """Plant, audit, compare; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.leaks", allow_abbrev=False)
    parser.add_argument("--seed", type=int, required=True, help="any number: another one, other pictures and captions")
    parser.add_argument("--rows", type=int, default=ROWS, help="of the corpus, at least")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="written anew each time")
    learned = parser.add_mutually_exclusive_group()
    learned.add_argument(
        "--descriptor", metavar="DIR", help="of train-descriptor: plant what only a descriptor finds, too"
    )
    learned.add_argument("--train-minutes", type=float, metavar="M", help="train a small one first")
    given = parser.parse_args(arguments)
    folder = given.folder.resolve()
    fresh_folder(folder)
    doing = Steps(folder / "logs", total=3 if given.train_minutes is None else 4)
    try:
        weights = given.descriptor
        if given.train_minutes is not None:
            weights = trained(folder, given.seed, given.train_minutes, doing)
        ground = planted(folder, given.seed, given.rows, doing, weights)
        audit(folder, doing)
    except StepFailed as failed:
        print(f"\n{failed}\nThe command above failed.", file=sys.stderr)
        return 1
    print(f"      Open in a browser: {folder / 'report' / 'report.html'}")
    return judged(ground, folder / "report", given.seed)


def fresh_folder(folder: Path) -> None:
    """An empty folder with room for logs; one that this command did not write is not touched."""
    if folder.exists():
        if not (folder / _MARK).exists():
            raise SystemExit(
                f"error: {folder}: exists and is not of an earlier run; move it away or give another --folder"
            )
        shutil.rmtree(folder)
    (folder / "logs").mkdir(parents=True)
    (folder / _MARK).touch()


def trained(folder: Path, seed: int, minutes: float, doing: Steps) -> str:
    """Train a small descriptor on views that are in no set and not in the corpus; returns its folder."""
    doing.say(f"Train a descriptor for {minutes:g} minutes on {LEARNED_FROM:,} other views")
    planting.write_views(folder / "trained_on", seed, LEARNED_FROM)
    steps.write_toml(
        folder / "descriptor.toml",
        "python -m evaluation train-descriptor --config descriptor.toml",
        {
            "data": {"manifest": str(folder / "trained_on"), "short_side": 128},
            "architecture": {"size": 64, "width": 16, "dimension": 128},
            "optimiser": {"minutes": minutes, "batch": 64},
            "run": {"out": str(folder / "descriptor")},
        },
    )
    command = ["python", "-m", "evaluation", "train-descriptor", "--config", str(folder / "descriptor.toml")]
    doing.run(command, "train.log", 60 * minutes + 300)
    return str(folder / "descriptor")


def planted(folder: Path, seed: int, rows: int, doing: Steps, weights: str | None = None) -> Ground:
    """The ground of a seed, written below `folder`, and the job's configuration."""
    doing.say(f"Draw sets and a corpus of {rows:,} rows with leaks in known places (seed {seed})")
    started = time.monotonic()
    eye = None
    if weights is not None:
        from tests.e2e.leaks.eye import Eye  # it loads torch

        eye = Eye(weights)
    ground = planting.plant(folder, seed, planting.Sizes.of(rows), eye)
    again = ", ".join(f"{kind} {count}" for kind, count in sorted(ground.passed_over.items()))
    print(
        f"      {time.monotonic() - started:.0f} s; pictures drawn again because a copy of them was in doubt: {again or 'none'}"
    )
    tables: dict[str, object] = {
        "corpus": {"manifest": str(folder / "corpus")},
        "sets": [planting.set_config(folder, name) for name in VERDICTS],
        "copies": {"examples": 1},
        "report": {"dir": str(folder / "report")},
    }
    if eye is not None:
        # Plain cosines, as the eye has them.
        tables["descriptor"] = {"weights": weights, "beta": 0.0, "part_margin": 0.0}
        tables["match"] = {"descriptor_score": eye.least}
    steps.write_toml(folder / "overlap.toml", "python -m evaluation overlap --config overlap.toml", tables)
    return ground


def audit(folder: Path, doing: Steps, *overrides: str) -> None:
    """The commands that an auditor types. Raises StepFailed where one does not end with exit code 0."""
    doing.say("Which examples are in the corpus, and did that change the score?")
    command = ["python", "-m", "evaluation", "overlap", "--config", str(folder / "overlap.toml"), *overrides]
    doing.run(command, "overlap.log", 900)
    doing.say("Recompute every number of the report")
    doing.run(["python", "-m", "evaluation", "verify", str(folder / "report")], "verify.log", 300)


def judged(ground: Ground, report: Path, seed: int) -> int:
    """Compare a report with the ground; returns the exit code."""
    checks = comparing.compare(ground, report)
    if checks.failed:
        print(f"\nseed {seed}: {len(checks.failed)} of the checks above did NOT hold.", file=sys.stderr)
        return 1
    print(f"\nseed {seed}: what was found is what was planted.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
