"""From the tables to the figures: every number of `report.json` is computed here, from the same tables that are published.

`verify` computes them a second time with other arithmetic (`checking.py`); nothing else may put a number into a report.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from evaluation import intervals
from evaluation.config import Metric, StatisticsConfig, Thresholds
from evaluation.overlap import statistics
from evaluation.overlap.examples import Examples, examples
from evaluation.overlap.measures import DESCRIPTOR, PDQ
from evaluation.overlap.splits import Predictions
from evaluation.overlap.tables import EXACT, METHODS
from evaluation.overlap.text import Findings, SetText
from evaluation.report.exposure_numbers import exposure_report
from evaluation.report.metric_numbers import OwnMetric, own_figures
from evaluation.report.nearest_numbers import label_figures, nearest_figures
from evaluation.report.schema import (
    SCHEMA_NAME,
    SCHEMA_VERSION,
    Calibration,
    Classes,
    Corpus,
    DescriptorReport,
    Difference,
    Effect,
    Found,
    Nearest,
    Recall,
    Report,
    ScoreCalibration,
    ScoreNearest,
    ScoreStep,
    SetReport,
    Share,
    Statistics,
    Step,
)
from evaluation.report.text_numbers import share, text_report

_CROPPED = (
    "Pictures that were cropped, rotated, mirrored or framed: perceptual hashes of whole pictures do not see them."
)
_BEYOND_THE_DESCRIPTOR = (
    'Pictures that were changed further than the descriptor follows (see "What the search would find"). It may also take for copies '
    "what differs in details only, as pictures of text and photographs of one scene do: read the pairs."
)
NOT_CHECKED = [
    "Flat pictures (PDQ quality below the threshold): all of them hash alike, so only their exact bytes were compared.",
    "Captions that say the same in other words, or in another language; class names in another form (plural, case) than the given ones.",
    "Pictures that the training run used but that are not in this corpus.",
    "Whether a checkpoint had seen a picture otherwise than in the matched rows of this corpus: in weights that its run started from, or "
    "in another order, where the run read the same rows in other row groups.",
]


def not_checked(limits: Sequence[Thresholds]) -> list[str]:
    """What a report must say that it does not know, by the thresholds of its sets."""
    scores = [one.descriptor_score is not None for one in limits]
    return [*([] if all(scores) else [_CROPPED]), *([_BEYOND_THE_DESCRIPTOR] if any(scores) else []), *NOT_CHECKED]


@dataclass(frozen=True)
class SetResult:
    """What the job hands over for one set: identity, thresholds and its published split table; how many corpus rows show one of its
    pictures, and how many have one of its captions."""

    name: str
    content_hash: str
    thresholds: Thresholds
    limit: float
    metric: Metric
    split: pa.Table
    predictions: Predictions | None
    text: SetText
    corpus_rows: int
    caption_rows: int

    @cached_property
    def examples(self) -> Examples:
        """What every share and score counts."""
        return examples(self.split)

    @property
    def scored(self) -> pa.Table:
        """The examples that the model was scored on."""
        return self.examples.table.filter(pa.array(self.examples.scored))


class Tables(NamedTuple):
    """What stands beside the pairs, of all sets: nearest pictures, planted copies, people's labels."""

    closest: pa.Table
    copies: pa.Table
    labels: pa.Table


def build_report(
    results: Sequence[SetResult],
    tables: Tables,
    findings: Findings,
    corpus: Corpus,
    levels: StatisticsConfig,
    *,
    config_digest: str,
    evidence: str,
    pairs_kept: int,
    removed: Sequence[int],
    labels: Sequence[str],
    descriptor: DescriptorReport | None,
) -> Report:
    """All figures of a report; `removed` are the lines of the two lists of rows to take out."""
    tests = max(1, sum(is_testable(result) for result in results))
    analyses = [analyse(result, levels, tests) for result in results]
    owns = [own_figures(result.metric, result.scored, levels, tests) for result in results]
    held = [_deciding_p(analysis, own) for analysis, own in zip(analyses, owns, strict=True)]
    adjusted = iter(intervals.holm([p for p in held if p is not None]))
    holm = [None if p is None else next(adjusted) for p in held]
    sets = [
        set_report(result, tables, findings, corpus, levels, analysis, own, holm_p, tests, descriptor is not None)
        for result, analysis, own, holm_p in zip(results, analyses, owns, holm, strict=True)
    ]
    return Report.model_validate(
        {
            "schema_name": SCHEMA_NAME,
            "schema_version": SCHEMA_VERSION,
            "config_digest": config_digest,
            "evidence": evidence,
            "pairs_kept": pairs_kept,
            "removal": dict(zip(("pictures", "captions"), removed, strict=True)),
            "corpus": corpus,
            "descriptor": descriptor,
            "labels": list(labels),
            "statistics": Statistics(
                alpha=levels.alpha, confidence=levels.confidence, tests=tests, draws=levels.draws, seed=levels.seed
            ),
            "over_limit": [one.name for one in sets if one.over_limit],
            "sets": sets,
            "not_checked": not_checked([result.thresholds for result in results]),
        }
    )


def is_testable(result: SetResult) -> bool:
    """Whether a set has scored units on both sides, and so counts among the tests that Bonferroni and Holm correct for."""
    scored = result.scored
    _, touched = statistics.collapse(
        np.asarray(scored["in_overlap"], np.bool_), np.asarray(scored["cluster"], np.int64)
    )
    return 0 < int(touched.sum()) < len(touched)


def analyse(result: SetResult, levels: StatisticsConfig, tests: int) -> statistics.Analysis | None:
    """The tests of one set; None without predictions."""
    if result.predictions is None:
        return None
    scored = result.scored
    one_label = not scored["label"].null_count
    return statistics.analyse(
        np.asarray(scored["correct"], np.bool_),
        np.asarray(scored["in_overlap"], np.bool_),
        classes=np.asarray(scored["label"], np.int64) if one_label else None,
        clusters=np.asarray(scored["cluster"], np.int64),
        alpha=levels.alpha,
        tests=tests,
        confidence=levels.confidence,
    )


def _deciding_p(analysis: statistics.Analysis | None, own: OwnMetric | None) -> float | None:
    """The p that the verdict rests on."""
    return own.inflation.p_value if own is not None else None if analysis is None else analysis.p_value


def set_report(
    result: SetResult,
    tables: Tables,
    findings: Findings,
    corpus: Corpus,
    levels: StatisticsConfig,
    analysis: statistics.Analysis | None,
    judged: OwnMetric | None,
    holm_p: float | None,
    tests: int,
    learned: bool,
) -> SetReport:
    """The figures of one set; `learned`: there is a descriptor."""
    split, counted = result.split, result.examples.table
    closest, copies, labels = (table.filter(pc.equal(table["set"], result.name)) for table in tables)
    text_pairs, classes, own = (
        table.filter(pc.equal(table["set"], result.name))
        for table in (findings.text_pairs, findings.classes, findings.pairs)
    )
    answered, scored_answers = (label_figures(labels, closest, measure) for measure in (PDQ, DESCRIPTOR))
    overlapping = int(pc.sum(counted["in_overlap"]).as_py())
    found = Found(
        share=share(overlapping, counted.num_rows, levels.confidence),
        by_method={method: int(pc.sum(pc.equal(counted["method"], method)).as_py() or 0) for method in METHODS},
        pairs=int(pc.sum(split["pairs"]).as_py() or 0),
        pairs_held=own.num_rows,
        corpus_rows=result.corpus_rows,
    )
    return SetReport(
        name=result.name,
        content_hash=result.content_hash,
        examples=counted.num_rows,
        frames=split.num_rows if split["group"].null_count < split.num_rows else None,
        repeated_pictures=split.num_rows - pc.count_distinct(split["sha256"]).as_py(),
        clusters=pc.count_distinct(counted["cluster"]).as_py(),
        too_flat=int(pc.sum(pc.less(split["pdq_quality"], result.thresholds.pdq_quality)).as_py()),
        thresholds=result.thresholds,
        limit=result.limit,
        over_limit=is_over(overlapping, counted.num_rows, result.limit),
        found=found,
        metric=result.metric,
        effect=_effect(analysis, judged, holm_p, result.predictions, corpus),
        exposure=exposure_report(counted, own, result.predictions, corpus, levels.confidence),
        sweep=_sweep(result, levels, tests),
        score_sweep=_score_sweep(result, levels, tests),
        nearest=Nearest.model_validate(nearest_figures(closest, PDQ)),
        score_nearest=ScoreNearest.model_validate(nearest_figures(closest, DESCRIPTOR)) if learned else None,
        copies=_recalls(copies, result.thresholds, levels.confidence),
        calibration=None if answered is None else Calibration.model_validate(answered),
        score_calibration=None if scored_answers is None else ScoreCalibration.model_validate(scored_answers),
        text=text_report(
            result.text,
            split,
            result.examples.of_row,
            own,
            text_pairs,
            classes,
            result.caption_rows,
            corpus.rows,
            levels.confidence,
        ),
        verdict=statistics.verdict(analysis, overlapping, None if judged is None else judged.inflation),
    )


def is_over(overlapping: int, examples: int, limit: float) -> bool:
    """Whether a share is more than the limit; 29 of 100 is 0.29 and not, though 0.29 times 100 is less than 29."""
    return overlapping / examples > limit


def sweep_limits(pdq_distance: int) -> list[int]:
    """The PDQ distances at which a report asks again: about nine, evenly spread, from equal hashes to the set's threshold."""
    return sorted({*range(0, pdq_distance, max(1, pdq_distance // 8)), pdq_distance})


def score_limits(descriptor_score: float | None) -> list[float]:
    """The scores at which a report asks again: nine, evenly spread, from the set's threshold to 1; none where it has none."""
    if descriptor_score is None:
        return []
    steps = (round(descriptor_score + (1 - descriptor_score) * step / 8, 4) for step in range(1, 9))
    return sorted({descriptor_score, *(score for score in steps if score > descriptor_score)})


def _sweep(result: SetResult, levels: StatisticsConfig, tests: int) -> list[Step]:
    limits = sweep_limits(result.thresholds.pdq_distance)
    cuts = _cuts(result, _match_distance, limits, levels, tests)
    return [Step.model_validate({"distance": limit, **cut}) for limit, cut in zip(limits, cuts, strict=True)]


def _score_sweep(result: SetResult, levels: StatisticsConfig, tests: int) -> list[ScoreStep]:
    limits = score_limits(result.thresholds.descriptor_score)
    cuts = _cuts(result, _missing_score, [-limit for limit in limits], levels, tests)
    return [ScoreStep.model_validate({"score": limit, **cut}) for limit, cut in zip(limits, cuts, strict=True)]


def _cuts(
    result: SetResult,
    place: Callable[[pa.Table], NDArray[np.float64]],
    limits: Sequence[float],
    levels: StatisticsConfig,
    tests: int,
) -> list[dict[str, object]]:
    """The set, cut anew: Overlap is what has a row of which `place` is within each limit."""
    within, scored = result.examples.least(place(result.split)), result.scored
    analyses = (
        [None] * len(limits)
        if result.predictions is None
        else statistics.sweep(
            np.asarray(scored["correct"], np.bool_),
            within[result.examples.scored],
            limits,
            clusters=np.asarray(scored["cluster"], np.int64),
            alpha=levels.alpha,
            tests=tests,
            confidence=levels.confidence,
        )
    )
    return [
        {
            "overlapping": int((within <= limit).sum()),
            "scored": 0 if one is None else one.overlap.n,
            "all_minus_clean": None if one is None or not one.overlap.n else one.all_minus_clean,
            "difference": None if one is None else _difference(one.difference),
            "p_value": None if one is None else one.p_value,
        }
        for limit, one in zip(limits, analyses, strict=True)
    ]


def _match_distance(split: pa.Table) -> NDArray[np.float64]:
    """The PDQ distance at which each row would still match: 0 for equal bytes, infinite for what PDQ alone does not find."""
    exact = pc.is_in(split["method"], value_set=pa.array(EXACT))
    near = pc.equal(split["method"], "pdq")
    distance = pc.if_else(pc.fill_null(near, False), pc.cast(split["pdq_distance"], pa.float64()), float("inf"))
    return np.where(np.asarray(exact), 0.0, np.asarray(distance))


def _missing_score(split: pa.Table) -> NDArray[np.float64]:
    """What only the descriptor finds matches up to its score, here negative; what bytes or hashes find always, what nothing finds never."""
    found, learned = np.asarray(split["in_overlap"]), pc.fill_null(pc.equal(split["method"], "descriptor"), False)
    score = pc.if_else(learned, split["descriptor_score"], float("inf"))
    return np.where(found, -np.asarray(score), np.inf)


def _recalls(own: pa.Table, limits: Thresholds, confidence: float) -> list[Recall]:
    """One for each transform, in the order of the table's first picture."""
    textured = pc.greater_equal(own["pdq_quality"], limits.pdq_quality)
    near = pc.and_(textured, pc.less_equal(own["pdq_distance"], limits.pdq_distance))
    agreed = pc.less_equal(own["pdq_distance"], limits.phash_pdq_distance)
    alike = pc.and_(pc.and_(textured, agreed), pc.less_equal(own["phash_distance"], limits.phash_distance))
    least = float("inf") if limits.descriptor_score is None else limits.descriptor_score
    copied = pc.and_(textured, pc.fill_null(pc.greater_equal(own["descriptor_score"], least), False))
    found = []
    for name in own["transform"].unique().to_pylist():
        rows = np.asarray(pc.equal(own["transform"], name))
        pdq, phash, learned = (np.asarray(one)[rows] for one in (near, alike, copied))
        either = share(int((pdq | phash | learned).sum()), int(rows.sum()), confidence)
        found.append(
            Recall(
                transform=name,
                found=either,
                pdq=int(pdq.sum()),
                phash=int(phash.sum()),
                descriptor=int(learned.sum()),
            )
        )
    return found


def _split_share(one: statistics.SplitScore) -> Share:
    return Share(n=one.n, hits=one.correct, value=one.accuracy, low=one.low, high=one.high)


def _difference(one: intervals.Interval | None) -> Difference | None:
    if one is None or one.low is None or one.high is None:
        return None
    return Difference(value=one.value, low=one.low, high=one.high)


def _effect(
    analysis: statistics.Analysis | None,
    own: OwnMetric | None,
    holm_p: float | None,
    predictions: Predictions | None,
    corpus: Corpus,
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
        own=None if own is None else own.figures,
    )
