"""`report.html`: one file, no network, no script, the verdict first.

The template escapes everything that comes from outside (captions and URLs of a web corpus are hostile text): URLs are printed as text,
never as links, and the page's own content policy forbids scripts and any request, should an escape ever fail.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from evaluation.metrics import TITLES
from evaluation.overlap.measures import DESCRIPTOR, PDQ, Measure
from evaluation.overlap.statistics import Verdict
from evaluation.report import figure
from evaluation.report.evidence import SetEvidence
from evaluation.report.nearest_numbers import calibration_of, nearest_of, threshold_of
from evaluation.report.schema import Calibration, Point, Report, ScoreCalibration, ScorePoint, SetReport
from evaluation.report.summary import corpus_rows, exposure_sentence, headline, sentence, text_sentence
from evaluation.report.text_evidence import TextEvidence

TONES: dict[Verdict, str] = {
    "clean": "good",
    "overlap, not scored": "warn",
    "not testable": "warn",
    "overlap, no effect seen": "warn",
    "overlap, effect": "bad",
}


@functools.cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=False,
        keep_trailing_newline=True,
    )
    return environment.get_template("report.html.j2")


def render(report: Report, evidence: Sequence[SetEvidence], texts: Sequence[TextEvidence], report_sha256: str) -> str:
    """The whole page as text."""
    title, lines, tone = verdict_box(report)
    touched = [one for one in report.sets if one.found.share.hits]
    return _template().render(
        report=report,
        evidence=evidence,
        texts=texts,
        text_lines=[line for line in map(text_sentence, report.sets) if line],
        headline=title,
        lines=lines,
        corpus_rows=corpus_rows(report.corpus),
        tone=tone,
        tones=TONES,
        exposed=[one for one in report.sets if one.exposure is not None],
        exposure_lines=[line for line in map(exposure_sentence, report.sets) if line],
        scored=any(one.effect is not None for one in report.sets),
        videos=any(one.frames is not None for one in report.sets),
        titles=TITLES,
        otherwise=[one for one in report.sets if one.effect is not None and one.effect.own is not None],
        # Our own drawings; set names follow a strict pattern.
        overview=Markup(figure.overview(report.sets)),
        sweeps=Markup(figure.sweeps(touched)) if touched else None,
        swept=[one for one in touched if one.score_sweep],
        copied=list(dict.fromkeys(recall.transform for one in report.sets for recall in one.copies)),
        nearest=nearest_shown(report.sets, PDQ),
        nearest_scores=nearest_shown(report.sets, DESCRIPTOR),
        report_sha256=report_sha256,
    )


class Labelled(NamedTuple):
    """A set that people labelled, and what the curve says at its threshold."""

    name: str
    threshold: int | float | None
    found: Calibration | ScoreCalibration
    point: Point | ScorePoint | None


class NearestShown(NamedTuple):
    """Of one measure: the histogram (None where nothing was sampled), the curves (None where nothing is labelled) and their table."""

    distances: Markup | None
    curves: Markup | None
    labelled: list[Labelled]


def nearest_shown(sets: Sequence[SetReport], measure: Measure) -> NearestShown:
    """How near the nearest pictures are, and how sure the thresholds."""
    sampled = [one for one in sets if (near := nearest_of(one, measure)) is not None and near.sampled]
    answered = [one for one in sets if calibration_of(one, measure) is not None]
    return NearestShown(
        Markup(figure.distances(sampled, measure)) if sampled else None,
        Markup(figure.curves(answered, measure)) if answered else None,
        [_labelled(one, found, measure) for one in answered if (found := calibration_of(one, measure)) is not None],
    )


def _labelled(one: SetReport, found: Calibration | ScoreCalibration, measure: Measure) -> Labelled:
    """The point at the threshold is the last of the curve, which begins with the strictest, that is as strict."""
    threshold = threshold_of(one, measure)
    if threshold is None:
        return Labelled(one.name, None, found, None)
    limit = measure.sign * threshold
    within = [point for point in found.curve if measure.sign * getattr(point, measure.kind) <= limit]
    return Labelled(one.name, threshold, found, within[-1] if within else None)


def verdict_box(report: Report) -> tuple[str, list[str], str]:
    """Headline, one sentence per set, tone."""
    touched = any(one.found.share.hits for one in report.sets)
    tone = (
        "bad"
        if report.over_limit or any(one.verdict == "overlap, effect" for one in report.sets)
        else "warn"
        if touched
        else ""
    )
    return headline(report), [sentence(one) for one in report.sets], tone
