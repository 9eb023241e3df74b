"""The report's figures, as SVG that lives inside the page: how much overlaps and what that did to the score, the same under other
thresholds, and how far the nearest pictures are.

Drawn with matplotlib's SVG backend without pyplot, text kept as text. Every colour is drawn as a placeholder that is then replaced
by one of the page's CSS variables, so that the figure follows the reader's light or dark scheme. Ids inside the SVG are salted
with a constant: the same figures give the same bytes.
"""

from __future__ import annotations

import io
import itertools
import re
from contextlib import AbstractContextManager

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from evaluation.overlap.measures import PDQ, Measure
from evaluation.report.nearest_numbers import calibration_of, nearest_of, threshold_of
from evaluation.report.schema import SetReport

_COLOURS = {"#010203": "--ink", "#010204": "--line", "#010205": "--accent", "#010206": "--bad", "#010207": "--soft"}
_INK, _LINE, _ACCENT, _BAD, _SOFT = _COLOURS
_COLUMNS = 3
_AXES = {"distance": ("PDQ bits", (0, 144), 0.5), "score": ("score", (-0.05, 1.0), 0.0)}
"""What stands below an axis, its ends (no two pictures' nearest are further apart), and how far behind a threshold its line is."""


def overview(sets: list[SetReport]) -> str:
    """SVG text: left the share that overlaps with its interval and limit; right, where scored, accuracy on Overlap minus Clean."""
    scored = any(_difference(one) is not None for one in sets)
    with _style():
        figure = Figure(figsize=(8.6, 1.2 + 0.42 * len(sets)), layout="constrained")
        axes = figure.subplots(1, 2 if scored else 1, squeeze=False, sharey=True)[0]
        _draw_shares(axes[0], sets)
        if scored:
            _draw_differences(axes[1], sets)
        for one in axes:
            _plain(one)
        axes[0].set_yticks(range(len(sets)), [one.name for one in sets])
        axes[0].set_ylim(len(sets) - 0.5, -0.5)
        return _svg(figure)


def sweeps(sets: list[SetReport]) -> str:
    """SVG text: for each overlapping set a row, left the share that overlaps under each PDQ distance, right the difference in accuracy."""
    with _style():
        figure = Figure(figsize=(8.6, 0.4 + 1.5 * len(sets)), layout="constrained")
        rows = figure.subplots(len(sets), 2, squeeze=False, sharex=True)
        for (left, right), one in zip(rows, sets, strict=True):
            distance = [step.distance for step in one.sweep]
            left.plot(
                distance,
                [100 * step.overlapping / one.examples for step in one.sweep],
                color=_ACCENT,
                marker="o",
                markersize=3,
            )
            left.set_ylim(bottom=0)
            left.set_title(f"{one.name}: overlap, %", color=_INK, loc="left")
            known = any(step.difference is not None for step in one.sweep)
            right.set_visible(known)
            if known:
                _draw_sweep(right, one)
                right.set_title("Overlap minus Clean, points", color=_INK, loc="left")
        for axes in rows.flat:
            _plain(axes)
            axes.grid(axis="y", color=_LINE, linewidth=0.8)
        for axes in _lowest(rows):
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("PDQ distance up to which a picture counts as the same", color=_INK)
        return _svg(figure)


def distances(sets: list[SetReport], measure: Measure = PDQ) -> str:
    """SVG text: for each set the histogram of distances (scores) between the sampled pictures and the nearest corpus picture, and its
    threshold."""
    unit, ends, _ = _AXES[measure.kind]
    edges = [measure.value(measure.bin * place) for place in range(measure.bins + 1)]
    middles = [(one + other) / 2 for one, other in itertools.pairwise(edges)]
    with _style():
        height = -(-len(sets) // _COLUMNS)
        figure = Figure(figsize=(8.6, 0.4 + 1.6 * height), layout="constrained")
        grid = list(figure.subplots(height, _COLUMNS, squeeze=False, sharex=True).flat)
        for axes, one in zip(grid, sets, strict=False):
            nearest = nearest_of(one, measure)
            axes.bar(middles, [] if nearest is None else nearest.counts, width=abs(edges[1] - edges[0]), color=_ACCENT)
            _draw_threshold(axes, one, measure)
            axes.set_title(one.name, color=_INK, loc="left")
            axes.set_xlim(*ends)
            axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        for place, axes in enumerate(grid):
            _plain(axes)
            axes.set_visible(place < len(sets))
            if place >= len(sets) - _COLUMNS:
                axes.set_xlabel(unit, color=_INK)
                axes.tick_params(labelbottom=True)
        return _svg(figure)


def curves(sets: list[SetReport], measure: Measure = PDQ) -> str:
    """SVG text: for each labelled set precision and recall against the distance (score), with lower bounds, and the set's threshold."""
    with _style():
        height = -(-len(sets) // _COLUMNS)
        figure = Figure(figsize=(8.6, 0.6 + 1.9 * height), layout="constrained")
        grid = list(figure.subplots(height, _COLUMNS, squeeze=False, sharey=True).flat)
        for axes, one in zip(grid, sets, strict=False):
            calibration = calibration_of(one, measure)
            curve = calibration.curve if calibration is not None else []
            distance = [getattr(point, measure.kind) for point in curve]
            for colour, name in ((_ACCENT, "precision"), (_SOFT, "recall")):
                axes.plot(distance, [100 * (getattr(point, name) or 0) for point in curve], color=colour, label=name)
                low = [100 * (getattr(point, f"{name}_low") or 0) for point in curve]
                axes.plot(distance, low, color=colour, linewidth=0.8, linestyle=":")
            _draw_threshold(axes, one, measure)
            axes.set_ylim(0, 103)
            axes.set_title(one.name, color=_INK, loc="left")
            axes.set_xlabel(_AXES[measure.kind][0], color=_INK)
        for place, axes in enumerate(grid):
            _plain(axes)
            axes.grid(axis="y", color=_LINE, linewidth=0.8)
            axes.set_visible(place < len(sets))
        figure.legend(*grid[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False)
        return _svg(figure)


def _style() -> AbstractContextManager[None]:
    found: AbstractContextManager[None] = mpl.rc_context(
        {"svg.hashsalt": "overlap-report", "svg.fonttype": "none", "font.size": 10.0, "path.simplify": False}
    )
    return found


def _svg(figure: Figure) -> str:
    FigureCanvasSVG(figure)
    sink = io.StringIO()
    figure.savefig(sink, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _for_page(sink.getvalue())


def _lowest(rows: NDArray[np.object_]) -> list[Axes]:
    """The last visible axes of each column."""
    return [
        [axes for axes in column if axes.get_visible()][-1] for column in rows.T if any(a.get_visible() for a in column)
    ]


def _draw_threshold(axes: Axes, one: SetReport, measure: Measure) -> None:
    threshold = threshold_of(one, measure)
    if threshold is not None:
        axes.axvline(threshold + _AXES[measure.kind][2], color=_BAD, linewidth=1.5)


def _draw_sweep(axes: Axes, one: SetReport) -> None:
    axes.axhline(0, color=_SOFT, linewidth=1)
    known = [(step.distance, step.difference) for step in one.sweep if step.difference is not None]
    distance = [place for place, _ in known]
    axes.fill_between(
        distance,
        [100 * ends.low for _, ends in known],
        [100 * ends.high for _, ends in known],
        color=_LINE,
        linewidth=0,
    )
    axes.plot(distance, [100 * ends.value for _, ends in known], color=_ACCENT, marker="o", markersize=3)


def _draw_shares(axes: Axes, sets: list[SetReport]) -> None:
    for place, one in enumerate(sets):
        share = one.found.share
        colour = _BAD if one.over_limit else _ACCENT
        axes.plot([100 * share.low, 100 * share.high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
        axes.plot([100 * (share.value or 0)], [place], "o", color=colour, markersize=6)
        axes.plot([100 * one.limit], [place], "|", color=_INK, markersize=14, markeredgewidth=1.5)
    axes.set_xlim(left=-0.5)
    axes.set_xlabel("examples found in the corpus, %  ( | the limit )", color=_INK)


def _draw_differences(axes: Axes, sets: list[SetReport]) -> None:
    axes.axvline(0, color=_SOFT, linewidth=1)
    for place, one in enumerate(sets):
        ends = _difference(one)
        if ends is None:
            continue
        low, middle, high = (100 * end for end in ends)
        colour = _BAD if one.verdict == "overlap, effect" else _ACCENT
        axes.plot([low, high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
        axes.plot([middle], [place], "o", color=colour, markersize=6)
    axes.set_xlabel("accuracy on Overlap minus Clean, points", color=_INK)


def _difference(one: SetReport) -> tuple[float, float, float] | None:
    """Low end, value and high end of accuracy on Overlap minus accuracy on Clean (Clean taken as known, as in the paper)."""
    if one.effect is None or one.effect.clean.value is None or one.effect.overlap.value is None:
        return None
    overlap, clean = one.effect.overlap, one.effect.clean.value
    return overlap.low - clean, one.effect.overlap.value - clean, overlap.high - clean


def _plain(axes: Axes) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_LINE)
    axes.tick_params(colors=_INK, length=0)
    axes.tick_params(axis="x", colors=_INK)
    axes.grid(axis="x", color=_LINE, linewidth=0.8)
    axes.set_axisbelow(True)


def _for_page(svg: str) -> str:
    """Only the <svg> element, without fixed size, in the page's colours."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", body, count=1)
    body = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r"\1", body, count=1)
    body = re.sub(r' xmlns(:\w+)?="[^"]*"', "", body)  # an SVG inside HTML needs none, and the page names no address
    body = body.replace("xlink:href", "href")
    for placeholder, variable in _COLOURS.items():
        body = body.replace(placeholder, f"var({variable})")
    return body.strip()
