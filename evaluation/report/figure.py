"""The report's one figure, as SVG that lives inside the page: how much overlaps, and what that did to the score.

Drawn with matplotlib's SVG backend without pyplot, text kept as text. Every colour is drawn as a placeholder that is then replaced
by one of the page's CSS variables, so that the figure follows the reader's light or dark scheme. Ids inside the SVG are salted
with a constant: the same figures give the same bytes.
"""

from __future__ import annotations

import io
import re

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from evaluation.report.schema import SetReport

_COLOURS = {"#010203": "--ink", "#010204": "--line", "#010205": "--accent", "#010206": "--bad", "#010207": "--soft"}
_INK, _LINE, _ACCENT, _BAD, _SOFT = _COLOURS


def overview(sets: list[SetReport]) -> str:
    """SVG text: left the share that overlaps with its interval and limit; right, where scored, accuracy on Overlap minus Clean."""
    scored = any(_difference(one) is not None for one in sets)
    with mpl.rc_context(
        {"svg.hashsalt": "overlap-report", "svg.fonttype": "none", "font.size": 10.0, "path.simplify": False}
    ):
        figure = Figure(figsize=(8.6, 1.2 + 0.42 * len(sets)), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots(1, 2 if scored else 1, squeeze=False, sharey=True)[0]
        _draw_shares(axes[0], sets)
        if scored:
            _draw_differences(axes[1], sets)
        for one in axes:
            _plain(one)
        axes[0].set_yticks(range(len(sets)), [one.name for one in sets])
        axes[0].set_ylim(len(sets) - 0.5, -0.5)
        sink = io.StringIO()
        figure.savefig(sink, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _for_page(sink.getvalue())


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
