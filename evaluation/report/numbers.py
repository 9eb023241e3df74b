"""From the tables to the figures: every number of `report.json` is computed here, from the same tables that are published.

`verify` computes them a second time with other arithmetic (`checking.py`); nothing else may put a number into a report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from evaluation import intervals
from evaluation.config import StatisticsConfig, Thresholds
from evaluation.overlap import statistics
from evaluation.overlap.splits import Predictions
from evaluation.overlap.tables import METHODS
from evaluation.report.schema import (
    SCHEMA_NAME,
    SCHEMA_VERSION,
    Classes,
    Corpus,
    Difference,
    Effect,
    Found,
    Report,
    SetReport,
    Share,
    Statistics,
)

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
    analyses = [analyse(result, levels, tests) for result in results]
    held = [None if one is None else one.p_value for one in analyses]
    adjusted = iter(intervals.holm([p for p in held if p is not None]))
    holm = [None if p is None else next(adjusted) for p in held]
    sets = [
        set_report(result, pairs, corpus, levels, analysis, holm_p)
        for result, analysis, holm_p in zip(results, analyses, holm, strict=True)
    ]
    return Report.model_validate(
        {
            "schema_name": SCHEMA_NAME,
            "schema_version": SCHEMA_VERSION,
            "config_digest": config_digest,
            "evidence": evidence,
            "corpus": corpus,
            "statistics": Statistics(alpha=levels.alpha, confidence=levels.confidence, tests=tests),
            "over_limit": [one.name for one in sets if one.over_limit],
            "sets": sets,
            "not_checked": NOT_CHECKED,
        }
    )


def scored(result: SetResult) -> pa.Table:
    """The rows of a split that the model was scored on."""
    return result.split.filter(pc.is_valid(result.split["correct"]))


def is_testable(result: SetResult) -> bool:
    """Whether a set has scored units on both sides, and so counts among the tests that Bonferroni and Holm correct for."""
    rows = scored(result)
    _, touched = statistics.collapse(np.asarray(rows["in_overlap"], np.bool_), np.asarray(rows["cluster"], np.int64))
    return 0 < int(touched.sum()) < len(touched)


def analyse(result: SetResult, levels: StatisticsConfig, tests: int) -> statistics.Analysis | None:
    """The tests of one set; None without predictions."""
    if result.predictions is None:
        return None
    rows = scored(result)
    return statistics.analyse(
        np.asarray(rows["correct"], np.bool_),
        np.asarray(rows["in_overlap"], np.bool_),
        classes=np.asarray(rows["label"], np.int64),
        clusters=np.asarray(rows["cluster"], np.int64),
        alpha=levels.alpha,
        tests=tests,
        confidence=levels.confidence,
    )


def set_report(
    result: SetResult,
    pairs: pa.Table,
    corpus: Corpus,
    levels: StatisticsConfig,
    analysis: statistics.Analysis | None,
    holm_p: float | None,
) -> SetReport:
    """The figures of one set."""
    split = result.split
    own = pairs.filter(pc.equal(pairs["set"], result.name))
    overlapping = int(pc.sum(split["in_overlap"]).as_py())
    found = Found(
        share=share(overlapping, split.num_rows, levels.confidence),
        by_method={method: int(pc.sum(pc.equal(split["method"], method)).as_py() or 0) for method in METHODS},
        pairs=own.num_rows,
        corpus_rows=own.group_by(["shard", "row"]).aggregate([]).num_rows,
    )
    return SetReport(
        name=result.name,
        content_hash=result.content_hash,
        examples=split.num_rows,
        repeated_pictures=split.num_rows - pc.count_distinct(split["sha256"]).as_py(),
        clusters=pc.count_distinct(split["cluster"]).as_py(),
        too_flat=int(pc.sum(pc.less(split["pdq_quality"], result.thresholds.pdq_quality)).as_py()),
        thresholds=result.thresholds,
        limit=result.limit,
        over_limit=overlapping > result.limit * split.num_rows,
        found=found,
        effect=_effect(analysis, holm_p, result.predictions, corpus),
        verdict=statistics.verdict(analysis, overlapping),
    )


def share(hits: int, n: int, confidence: float) -> Share:
    """A share with its interval."""
    low, high = intervals.clopper_pearson(hits, n, confidence)
    return Share(n=n, hits=hits, value=hits / n if n else None, low=low, high=high)


def _split_share(one: statistics.SplitScore) -> Share:
    return Share(n=one.n, hits=one.correct, value=one.accuracy, low=one.low, high=one.high)


def _difference(one: intervals.Interval | None) -> Difference | None:
    if one is None or one.low is None or one.high is None:
        return None
    return Difference(value=one.value, low=one.low, high=one.high)


def _effect(
    analysis: statistics.Analysis | None, holm_p: float | None, predictions: Predictions | None, corpus: Corpus
) -> Effect | None:
    if analysis is None or predictions is None:
        return None
    root = predictions.content_root
    difference, within = _difference(analysis.difference), analysis.by_class
    return Effect(
        model=predictions.model,
        model_content_root=root,
        same_corpus=None if root is None else root == corpus.content_root,
        predictions_sha256=predictions.sha256,
        all=_split_share(analysis.all),
        clean=_split_share(analysis.clean),
        overlap=_split_share(analysis.overlap),
        all_minus_clean=analysis.all_minus_clean,
        clean_units=_split_share(analysis.clean_units),
        overlap_units=_split_share(analysis.overlap_units),
        p_value=analysis.p_value,
        holm_p=holm_p,
        alpha=analysis.alpha,
        detectable_gain=analysis.detectable_gain,
        difference=difference,
        largest_inflation=None
        if difference is None
        else statistics.possible_inflation(analysis.overlap.n / analysis.all.n, difference.high),
        exact_p=analysis.exact_p,
        by_class=None
        if within is None
        else Classes(
            classes=within.classes,
            units=within.units,
            difference=_difference(within.difference),
            p_value=within.p_value,
        ),
    )
