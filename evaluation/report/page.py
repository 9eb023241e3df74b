"""`report.html`: one file, no network, no script, the verdict first.

The template escapes everything that comes from outside (captions and URLs of a web corpus are hostile text): URLs are printed as text,
never as links, and the page's own content policy forbids scripts and any request, should an escape ever fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from evaluation.metrics import TITLES
from evaluation.overlap.statistics import Verdict
from evaluation.report import figure
from evaluation.report.evidence import SetEvidence
from evaluation.report.schema import Report
from evaluation.report.summary import corpus_rows, exposure_sentence, headline, sentence, text_sentence
from evaluation.report.text_evidence import TextEvidence

TONES: dict[Verdict, str] = {
    "clean": "good",
    "overlap, not scored": "warn",
    "not testable": "warn",
    "overlap, no effect seen": "warn",
    "overlap, effect": "bad",
}


def render(report: Report, evidence: Sequence[SetEvidence], texts: Sequence[TextEvidence], report_sha256: str) -> str:
    """The whole page as text."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=False,
        keep_trailing_newline=True,
    )
    title, lines, tone = verdict_box(report)
    touched = [one for one in report.sets if one.found.share.hits]
    labelled = [one for one in report.sets if one.calibration is not None]
    sampled = [one for one in report.sets if one.nearest.sampled]
    return environment.get_template("report.html.j2").render(
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
        curves=Markup(figure.curves(labelled)) if labelled else None,
        labelled=labelled,
        distances=Markup(figure.distances(sampled)) if sampled else None,
        report_sha256=report_sha256,
    )


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
