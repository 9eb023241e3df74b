"""From the tables to the figures: every number of `report.json` is computed here, from the same tables that are published.

`verify` computes them a second time with other arithmetic (`checking.py`); nothing else may put a number into a report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from evaluation.config import StatisticsConfig, Thresholds
from evaluation.overlap import statistics
from evaluation.overlap.splits import Predictions
from evaluation.overlap.tables import METHODS
from evaluation.report.schema import Corpus, Effect, Found, Report, SetReport, Share, Statistics

NOT_CHECKED = [
    "Pictures that were cropped, rotated, mirrored or framed: perceptual hashes of whole pictures do not see them.",
    "Flat pictures (PDQ quality below the threshold): all of them hash alike, so only their exact bytes were compared.",
    "Captions and labels: a test's text inside the training captions was not searched.",
    "Pictures that the training run used but that are not in this corpus.",
]


@dataclass(frozen=True)
class SetResult:
    """What the job hands over for one set: identity, thresholds and its published split table."""

    name: str
    content_hash: str
    thresholds: Thresholds
    limit: float
    split: pa.Table
    predictions: Predictions | None


def build_report(
    results: Sequence[SetResult],
    pairs: pa.Table,
    corpus: Corpus,
    levels: StatisticsConfig,
    *,
    config_digest: str,
    evidence: str,
) -> Report:
    """All figures of a report."""
    tests = max(1, sum(is_testable(result) for result in results))
    sets = [set_report(result, pairs, corpus, levels, tests) for result in results]
    return Report.model_validate(
        {
            "schema_name": "evaluation.overlap.report",
            "schema_version": 1,
            "config_digest": config_digest,
            "evidence": evidence,
            "corpus": corpus,
            "statistics": Statistics(alpha=levels.alpha, confidence=levels.confidence, tests=tests),
            "over_limit": [one.name for one in sets if one.over_limit],
            "sets": sets,
            "not_checked": NOT_CHECKED,
        }
    )


def is_testable(result: SetResult) -> bool:
    """Whether a set has scored examples on both sides, and so counts among the tests that Bonferroni divides by."""
    scored = result.split.filter(pc.is_valid(result.split["correct"]))
    overlapping = int(pc.sum(scored["in_overlap"]).as_py() or 0)
    return 0 < overlapping < int(scored.num_rows)


def set_report(result: SetResult, pairs: pa.Table, corpus: Corpus, levels: StatisticsConfig, tests: int) -> SetReport:
    """The figures of one set."""
    split = result.split
    own = pairs.filter(pc.equal(pairs["set"], result.name))
    overlapping = int(pc.sum(split["in_overlap"]).as_py())
    found = Found(
        share=share(overlapping, split.num_rows, levels.confidence),
        by_method={method: int(pc.sum(pc.equal(split["method"], method)).as_py() or 0) for method in METHODS},
        pairs=own.num_rows,
        corpus_rows=pc.count_distinct(own["uid"]).as_py(),
    )
    analysis = None
    if result.predictions is not None:
        scored = split.filter(pc.is_valid(split["correct"]))
        analysis = statistics.analyse(
            np.asarray(scored["correct"], np.bool_),
            np.asarray(scored["in_overlap"], np.bool_),
            alpha=levels.alpha,
            tests=tests,
            confidence=levels.confidence,
        )
    return SetReport(
        name=result.name,
        content_hash=result.content_hash,
        examples=split.num_rows,
        repeated_pictures=split.num_rows - pc.count_distinct(split["sha256"]).as_py(),
        too_flat=int(pc.sum(pc.less(split["pdq_quality"], result.thresholds.pdq_quality)).as_py()),
        thresholds=result.thresholds,
        limit=result.limit,
        over_limit=overlapping > result.limit * split.num_rows,
        found=found,
        effect=_effect(analysis, result.predictions, corpus),
        verdict=statistics.verdict(analysis, overlapping),
    )


def share(hits: int, n: int, confidence: float) -> Share:
    """A share with its interval."""
    low, high = statistics.clopper_pearson(hits, n, confidence)
    return Share(n=n, hits=hits, value=hits / n if n else None, low=low, high=high)


def _split_share(one: statistics.SplitScore) -> Share:
    return Share(n=one.n, hits=one.correct, value=one.accuracy, low=one.low, high=one.high)


def _effect(analysis: statistics.Analysis | None, predictions: Predictions | None, corpus: Corpus) -> Effect | None:
    if analysis is None or predictions is None:
        return None
    root = predictions.content_root
    return Effect(
        model=predictions.model,
        model_content_root=root,
        same_corpus=None if root is None else root == corpus.content_root,
        predictions_sha256=predictions.sha256,
        all=_split_share(analysis.all),
        clean=_split_share(analysis.clean),
        overlap=_split_share(analysis.overlap),
        all_minus_clean=analysis.all_minus_clean,
        p_value=analysis.p_value,
        alpha=analysis.alpha,
        detectable_gain=analysis.detectable_gain,
    )
