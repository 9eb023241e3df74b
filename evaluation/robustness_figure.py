"""Accuracy under a shift against standard accuracy, on logit axes, as SVG: the line that reference models follow, and where a model
stands.

Drawn without pyplot, text kept as text, ids salted with a constant, no date: the same figures give the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.special import expit, logit

_INK, _LINE, _MODELS, _OURS = "#30343a", "#d8dbe0", "#7a8593", "#b3261e"
_TICKS = np.array([0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99])
_COLUMNS = 3


@dataclass(frozen=True)
class Panel:
    """One setting: a model's two accuracies, the line, and the reference models' accuracies (standard and shift, float64[models]
    each)."""

    name: str
    standard: float
    shift: float
    slope: float
    intercept: float
    models: tuple[NDArray[np.float64], NDArray[np.float64]] | None


def draw(panels: Sequence[Panel]) -> bytes:
    """The SVG file."""
    rows = -(-len(panels) // _COLUMNS)
    columns = min(_COLUMNS, len(panels))
    with mpl.rc_context({"svg.hashsalt": "robustness", "svg.fonttype": "none", "font.size": 9.0}):
        figure = Figure(figsize=(3.2 * columns, 3.1 * rows), layout="constrained")
        FigureCanvasSVG(figure)
        for place, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
            if place < len(panels):
                _draw_panel(axes, panels[place])
            else:
                axes.set_visible(False)
        sink = io.StringIO()
        figure.savefig(sink, format="svg", metadata={"Date": None, "Creator": None})
    return sink.getvalue().encode()


def _draw_panel(axes: Axes, panel: Panel) -> None:
    ends = logit(np.array([0.005, 0.995]))
    along = np.linspace(float(ends[0]), float(ends[1]), 50)
    axes.plot(along, along, color=_LINE, linewidth=1)
    axes.plot(along, panel.slope * along + panel.intercept, color=_INK, linewidth=1.2)
    if panel.models is not None:
        standard, shift = panel.models
        inside = (standard > 0) & (standard < 1) & (shift > 0) & (shift < 1)
        axes.plot(logit(standard[inside]), logit(shift[inside]), ".", color=_MODELS, markersize=3)
    at = logit(np.clip([panel.standard, panel.shift], *expit(ends)))
    axes.plot(*at, "o", color=_OURS, markersize=6)
    for axis, name in ((axes.xaxis, "ImageNet, same classes, %"), (axes.yaxis, f"{panel.name}, %")):
        axis.set_ticks(logit(_TICKS), [f"{100 * tick:g}" for tick in _TICKS])
        axis.set_label_text(name, color=_INK)
    axes.set_xlim(*ends)
    axes.set_ylim(*ends)
    axes.tick_params(colors=_INK, length=2)
    axes.grid(color=_LINE, linewidth=0.5)
    for side in axes.spines.values():
        side.set_color(_LINE)
