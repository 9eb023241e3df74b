"""`python -m trainer.curve RUN_DIR… --out curve.svg`: what one or several runs noted, drawn over their steps.

Loss, learning rate and, where there are any, the scores on the held set, with what guessing reaches as a dotted line. Each run is a colour;
the scores of the weights' average are dashed. The file's ending says what it becomes: .svg, .png or .pdf. Steps whose loss was not finite
are left out. Reads metrics.jsonl, so a run may still be going on.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import pydantic

from pipeline.contracts import storage
from pipeline.contracts.cli import run_cli
from pipeline.contracts.errors import InputError

log = logging.getLogger("trainer")

ENDINGS = (".svg", ".png", ".pdf")
_SCORES = (
    ("image_to_text_r1", "picture → text, R@1"),
    ("text_to_image_r1", "text → picture, R@1"),
    ("zeroshot_top1", "zero-shot, top 1"),
)

Line = dict[str, Any]
Figures = dict[str, float | None]


class _Drawn(pydantic.BaseModel):
    """What is drawn of a line; a line has more, and not all of this."""

    step: Annotated[int, pydantic.Field(ge=0, lt=2**53)]
    loss: float | None = None
    learning_rate: float = 0.0
    held: Figures = {}
    held_ema: Figures = {}
    held_chance: Figures = {}


def read_lines(run_dir: str) -> list[Line]:
    """The lines of a run's metrics.jsonl, without a last one that is not complete, nor what a power cut made of others.

    Raises InputError where there is no step.
    """
    place = os.path.join(run_dir, "metrics.jsonl")
    if not storage.exists(place):
        raise InputError(f"{place}: no such file; give the run.dir of a training run")
    whole, _, _ = storage.read_text(place).rpartition("\n")
    lines: list[Line] = []
    broken: list[int] = []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            _Drawn.model_validate_json(line, strict=True)
            lines.append(json.loads(line))
        except ValueError:
            broken.append(number)
    if broken and not lines:
        raise InputError(f"{place}: not the metrics of a training run (line {broken[0]} is none); give its run.dir")
    if broken:
        log.warning("%s: %d of its lines are broken and left out, the first is line %d", place, len(broken), broken[0])
    if not _steps(lines):
        raise InputError(f"{place}: has no step yet; wait for the run's first line")
    return lines


def _steps(lines: Sequence[Line]) -> list[Line]:
    return [line for line in lines if line.keys() >= {"loss", "learning_rate"}]


def draw(run_dirs: Sequence[str], out: str) -> None:
    """Draw these runs into the file `out`. Raises InputError where one has no metrics, or the ending is unknown."""
    if not out.endswith(ENDINGS):
        raise InputError(f"--out: {out!r} does not end in {', '.join(ENDINGS)}; give it one of these endings")
    runs = [(run_dir, read_lines(run_dir)) for run_dir in run_dirs]
    scores = [
        (key, title)
        for key, title in _SCORES
        if any(key in line.get("held", {}) for _, lines in runs for line in lines)
    ]
    # Loaded here: a second that a wrong argument must not cost.
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "curve", "svg.fonttype": "none", "font.size": 9.0}):
        figure = Figure(figsize=(7, 2.2 * (2 + len(scores))), layout="constrained")
        axes = figure.subplots(2 + len(scores), 1, sharex=True)
        handles: list[Any] = []
        names: list[str] = []
        for number, (run_dir, lines) in enumerate(runs):
            colour, steps = f"C{number % 10}", _steps(lines)
            finite = [line for line in steps if line["loss"] is not None]
            handles += axes[0].plot(_column(finite, "step"), _column(finite, "loss"), color=colour, linewidth=1)
            names.append(os.path.basename(os.path.normpath(run_dir)))
            axes[1].plot(_column(steps, "step"), _column(steps, "learning_rate"), color=colour, linewidth=1)
            for place, (key, _) in zip(axes[2:], scores, strict=True):
                _draw_scores(place, lines, key, colour)
        for place, title in zip(axes, ("loss", "learning rate", *(title for _, title in scores)), strict=True):
            place.set_ylabel(title)
            place.grid(alpha=0.3)
        if len(runs) > 1:
            for text in axes[0].legend(handles, names).get_texts():
                text.set_parse_math(False)  # a name with two dollars is no formula
        key = " (scores: dashed is the weights' average, dotted is guessing)" if scores else ""
        axes[-1].set_xlabel("step" + key)
        temporary = storage.local_temporary(out)
        storage.make_folder(storage.parent(out))
        try:
            with storage.plain_errors(out, "write"):
                figure.savefig(
                    temporary,
                    format=out.rpartition(".")[2],
                    dpi=150,
                    metadata={"Date": None} if out.endswith(".svg") else None,
                )
            storage.commit_file(temporary, out)
        finally:
            storage.remove_own(temporary)


def _draw_scores(axes: Any, lines: Sequence[Line], key: str, colour: str) -> None:
    for group, style in (("held", "-"), ("held_ema", "--"), ("held_chance", ":")):
        scored = [line for line in lines if line.get(group, {}).get(key) is not None]
        values = [100 * line[group][key] for line in scored]
        marker = "" if group == "held_chance" else "."
        axes.plot(_column(scored, "step"), values, style, color=colour, linewidth=1, marker=marker, markersize=4)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")


def _column(lines: Sequence[Line], key: str) -> list[float]:
    return [line[key] for line in lines]


def main(argv: list[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        "python -m trainer.curve", description=(__doc__ or "").partition("\n")[0], allow_abbrev=False
    )
    parser.add_argument("run_dirs", nargs="+", metavar="RUN_DIR", help="the run.dir of a training run")
    parser.add_argument("--out", required=True, metavar="FILE", help=f"where the drawing goes: {', '.join(ENDINGS)}")
    arguments = parser.parse_args(argv)
    draw(arguments.run_dirs, arguments.out)
    print(f"{arguments.out}: {len(arguments.run_dirs)} run{'s' * (len(arguments.run_dirs) > 1)}")
    return 0


if __name__ == "__main__":
    run_cli(main, sys.argv[1:])
