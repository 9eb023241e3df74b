"""The second hand for the learned descriptor: settings, the columns of its scores, and the sweep over them.

Vectors are not in the folder, so the scores are taken as given; that each has a cosine and a part of the example, that a split has the
largest of its pairs, and everything that follows from them is not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from evaluation.config import DescriptorConfig
from evaluation.descriptor import views
from evaluation.report.differences import differ
from evaluation.report.pair_check import reaches
from evaluation.report.schema import Report, SetReport
from evaluation.report.set_check import check_cut
from evaluation.report.twin import Row

_COLUMNS = ("descriptor_cosine", "descriptor_score", "descriptor_view")
_TOLERANCE = 1e-9


def check_settings(place: str, report: Report, asked: DescriptorConfig | None) -> Iterator[str]:
    """Report and settings name a descriptor, or neither does, and it was used as they say."""
    found = report.descriptor
    yield from differ(place, "descriptor", found is not None, asked is not None)
    if found is None or asked is None:
        return
    yield from differ(place, "descriptor.beta", found.beta, asked.beta)
    yield from differ(place, "descriptor.part_margin", found.part_margin, asked.part_margin)
    yield from differ(place, "descriptor.views", found.views, asked.views)
    if not 0 <= found.rows_without_vector <= report.corpus.rows:
        yield (
            f"{place}: descriptor.rows_without_vector is {found.rows_without_vector!r} of {report.corpus.rows} rows; write the report again"
        )


def impossible_scores(report: Report, pairs: list[Row]) -> str | None:
    """The first pair (or nearest picture) whose columns no descriptor gives, so that nothing else can be asked of them; None where there is
    none."""
    for pair in pairs:
        cosine, score, view = (pair[name] for name in _COLUMNS)
        if cosine is None and score is None and view is None:
            continue
        where = f"example {pair['eval_id']!r} in row {pair['row']} of {pair['shard']}"
        if report.descriptor is None:
            return f"{where} has a descriptor's score, and report.json names no descriptor"
        known = views.boxes(report.descriptor.views, 2, 1)
        if not isinstance(cosine, float) or not isinstance(score, float) or view not in known:
            return f"{where} has cosine {cosine!r} and score {score!r} with view {view!r}"
        # A score is lowered by beta times a mean cosine, and of a part by the margin. (Written so that what is no number does not fit.)
        used = report.descriptor
        margin = 0.0 if view == views.WHOLE_PICTURE else used.part_margin
        if not (abs(cosine) <= 1 + _TOLERANCE and abs(cosine - margin - score) <= used.beta + _TOLERANCE):
            return (
                f"{where} has cosine {cosine!r} and score {score!r} with view {view} at beta = {used.beta!r}, "
                f"part_margin = {used.part_margin!r}"
            )
    return None


def check_scores(place: str, one: SetReport, own: list[Row], split: list[Row]) -> Iterator[str]:
    """What scores are lowered by (`check_lowering`), and a split has the largest score of each example's pairs; of one with more
    pairs than the table holds, no smaller one."""
    yield from check_lowering(place, one, own)
    best: dict[object, float] = {}
    held = Counter(pair["eval_row"] for pair in own)
    for pair in own:
        score = pair["descriptor_score"]
        if isinstance(score, float):
            best[pair["eval_row"]] = max(score, best.get(pair["eval_row"], score))
    for row in split:
        largest = best.get(row["eval_row"])
        stated = row["descriptor_score"]
        unseen = int(str(row["pairs"])) > held[row["eval_row"]]
        higher = isinstance(stated, float) and (-2.0 if largest is None else largest) <= stated <= 1 + _TOLERANCE
        if stated != largest and not (unseen and higher):
            where = f"{place}: set {one.name!r}: example {row['eval_id']!r}"
            yield f"{where}: the largest descriptor_score of its pairs is {largest}, its split says {stated}; write the report again"


def check_lowering(place: str, one: SetReport, rows: list[Row]) -> Iterator[str]:
    """What a score is lowered by hangs on the view alone."""
    lowered: dict[object, float] = {}
    for row in rows:
        cosine, score = row["descriptor_cosine"], row["descriptor_score"]
        if not isinstance(cosine, float) or not isinstance(score, float):
            continue
        before = lowered.setdefault((row["eval_row"], row["descriptor_view"]), cosine - score)
        if abs(before - (cosine - score)) > _TOLERANCE:
            yield (
                f"{place}: set {one.name!r}: example {row['eval_id']!r} in row {row['row']} of {row['shard']}: its score is lowered by "
                f"{cosine - score!r}, another of the same view by {before!r}; write the report again"
            )


def check_score_sweep(place: str, report: Report, one: SetReport, split: list[Row]) -> Iterator[str]:
    """The set, cut anew at each score."""
    name, least = f"sets.{one.name}.score_sweep", one.thresholds.descriptor_score
    scores = [step.score for step in one.score_sweep]
    expected = [] if least is None else [least, *(round(least + (1 - least) * k / 8, 4) for k in range(1, 9))]
    yield from differ(
        place, f"{name}.score", scores, [score for score in sorted(set(expected)) if score >= (least or 0)]
    )
    for step in one.score_sweep:
        cut = [
            {**row, "in_overlap": row["in_overlap"] is True and (row["method"] != "descriptor" or reached)}
            for row in split
            for reached in (reaches(row["descriptor_score"], step.score),)
        ]
        yield from check_cut(place, f"{name}.{step.score}", report, one, step, cut)
