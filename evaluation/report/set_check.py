"""The second hand for a set's figures: sizes, clusters, found, effect, sweep and verdict, from its pairs and its split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from scipy.stats import binomtest, fisher_exact

from evaluation.overlap.tables import EXACT, METHODS
from evaluation.report import twin
from evaluation.report.differences import check_difference, check_rows, check_share, differ
from evaluation.report.metric_check import check_metric
from evaluation.report.schema import Effect, Report, ScoreStep, SetReport, Step
from evaluation.report.twin import Row


def check_figures(place: str, report: Report, one: SetReport, own: list[Row], split: list[Row]) -> Iterator[str]:
    """Every figure of one set."""
    name = f"sets.{one.name}"
    examples = twin.examples(split)
    overlap = sum(row["in_overlap"] is True for row in examples)
    methods = Counter(row["method"] for row in examples)
    confidence = report.statistics.confidence
    yield from _check_videos(place, one, split)
    yield from differ(place, f"{name}.examples", one.examples, len(examples))
    yield from differ(
        place, f"{name}.repeated_pictures", one.repeated_pictures, len(split) - len({row["sha256"] for row in split})
    )
    limits = one.thresholds
    found = twin.clusters(
        split, limits.pdq_distance, limits.pdq_quality, limits.phash_distance, limits.phash_pdq_distance
    )
    yield from differ(place, f"{name}.clusters", one.clusters, len({row["cluster"] for row in examples}))
    wrong = next((row for row, first in zip(split, found, strict=True) if row["cluster"] != first), None)
    if wrong is not None:
        where = f"{place}: set {one.name!r}: example {wrong['eval_id']!r}"
        yield f"{where}: its hashes put it into another cluster than its split; write the report again"
    flat = sum(int(str(row["pdq_quality"])) < limits.pdq_quality for row in split)
    yield from differ(place, f"{name}.too_flat", one.too_flat, flat)
    yield from check_share(place, f"{name}.found.share", one.found.share, overlap, len(examples), confidence)
    yield from differ(place, f"{name}.found.by_method", one.found.by_method, {key: methods[key] for key in METHODS})
    pairs = sum(int(str(row["pairs"])) for row in split)
    yield from differ(place, f"{name}.found.pairs", one.found.pairs, pairs)
    yield from differ(place, f"{name}.found.pairs_held", one.found.pairs_held, len(own))
    rows = len({(row["shard"], row["row"]) for row in own})
    yield from check_rows(place, f"{name}.found.corpus_rows", one.found.corpus_rows, rows, pairs - len(own))
    over = bool(examples) and overlap / len(examples) > one.limit
    yield from differ(place, f"{name}.over_limit", one.over_limit, over)
    scored = [row for row in examples if row["correct"] is not None]
    if one.effect is None:
        yield from differ(place, f"{name}.effect", None, None if not scored else "scored examples in the split")
    else:
        yield from _check_effect(place, f"{name}.effect", report, one.effect, scored)
        yield from check_metric(place, report, one, one.effect, split, scored)
    yield from differ(place, f"{name}.verdict", one.verdict, _verdict(one, overlap))
    yield from _check_sweep(place, f"{name}.sweep", report, one, split)


def _check_videos(place: str, one: SetReport, split: list[Row]) -> Iterator[str]:
    """All pictures are frames, or none is; all frames of a video have its answer."""
    frames = sum(row["group"] is not None for row in split)
    yield from differ(place, f"sets.{one.name}.frames", one.frames, frames or None)
    if frames not in (0, len(split)):
        yield f"{place}: set {one.name!r}: has pictures that are frames of a video and others; write the report again"
    answers: dict[object, tuple[object, ...]] = {}
    for row in split:
        answer = (row["label"], row["correct"])
        if (
            row["group"] is not None
            and row["correct"] is not None
            and answers.setdefault(row["group"], answer) != answer
        ):
            where = f"{place}: set {one.name!r}: example {row['eval_id']!r}"
            yield f"{where}: has another label or answer than the frames of its video before it; write the report again"


def _check_sweep(place: str, name: str, report: Report, one: SetReport, split: list[Row]) -> Iterator[str]:
    """The set, cut anew at each distance."""
    limit = one.thresholds.pdq_distance
    distances = [step.distance for step in one.sweep]
    expected = sorted({*(k for k in range(limit) if k % max(1, limit // 8) == 0), limit})
    yield from differ(place, f"{name}.distance", distances, expected)
    for step in one.sweep:
        cut = [
            {**row, "in_overlap": row["method"] in EXACT or (row["method"] == "pdq" and _at_most(row, step.distance))}
            for row in split
        ]
        yield from check_cut(place, f"{name}.{step.distance}", report, one, step, cut)


def check_cut(
    place: str, where: str, report: Report, one: SetReport, step: Step | ScoreStep, cut: list[Row]
) -> Iterator[str]:
    """A step of a sweep, from the split as it would be then."""
    examples = twin.examples(cut)
    overlap = sum(row["in_overlap"] is True for row in examples)
    yield from differ(place, f"{where}.overlapping", step.overlapping, overlap)
    scored = [row for row in examples if row["correct"] is not None] if one.effect is not None else []
    touched = [row for row in scored if row["in_overlap"]]
    rest = [row for row in scored if not row["in_overlap"]]
    yield from differ(place, f"{where}.scored", step.scored, len(touched))
    (k_all, n_all), (k_clean, n_clean) = twin.right_of(scored), twin.right_of(rest)
    inflation = k_all / n_all - k_clean / n_clean if n_clean and touched else None
    yield from differ(place, f"{where}.all_minus_clean", step.all_minus_clean, inflation)
    clean_units, overlap_units = (twin.right_of(rows) for rows in twin.units(scored))
    both = clean_units[1] > 0 and overlap_units[1] > 0
    difference = twin.difference(overlap_units, clean_units, report.statistics.confidence) if both else None
    yield from check_difference(place, f"{where}.difference", step.difference, difference)
    p_value = binomtest(*overlap_units, clean_units[0] / clean_units[1], alternative="greater").pvalue if both else None
    yield from differ(place, f"{where}.p_value", step.p_value, p_value)


def _at_most(row: Row, distance: int) -> bool:
    return isinstance(row["pdq_distance"], int) and row["pdq_distance"] <= distance


def _check_effect(place: str, name: str, report: Report, effect: Effect, scored: list[Row]) -> Iterator[str]:
    """The splits by examples, and the tests by units."""
    confidence, alpha = report.statistics.confidence, report.statistics.alpha / report.statistics.tests
    clean_units, overlap_units = twin.units(scored)
    sides = {
        "all": scored,
        "clean": [row for row in scored if not row["in_overlap"]],
        "overlap": [row for row in scored if row["in_overlap"]],
        "clean_units": clean_units,
        "overlap_units": overlap_units,
    }
    counts = {key: twin.right_of(rows) for key, rows in sides.items()}
    for key, (hits, n) in counts.items():
        yield from check_share(place, f"{name}.{key}", getattr(effect, key), hits, n, confidence)
    (k_all, n_all), (k_clean, n_clean) = counts["all"], counts["clean"]
    inflation = k_all / n_all - k_clean / n_clean if n_clean else None
    yield from differ(place, f"{name}.all_minus_clean", effect.all_minus_clean, inflation)
    yield from differ(place, f"{name}.alpha", effect.alpha, alpha)
    root = effect.model_content_root
    same_corpus = None if root is None else root == report.corpus.content_root
    yield from differ(place, f"{name}.same_corpus", effect.same_corpus, same_corpus)
    clean, overlap = counts["clean_units"], counts["overlap_units"]
    if clean[1] and overlap[1]:
        null = clean[0] / clean[1]
        yield from differ(
            place, f"{name}.p_value", effect.p_value, binomtest(*overlap, null, alternative="greater").pvalue
        )
        gain = twin.detectable_gain(overlap[1], clean[1], null, alpha)
        yield from differ(place, f"{name}.detectable_gain", effect.detectable_gain, gain)
        difference = twin.difference(overlap, clean, confidence)
        yield from check_difference(place, f"{name}.difference", effect.difference, difference)
        largest = max(0.0, difference[2]) * counts["overlap"][1] / n_all
        yield from differ(place, f"{name}.largest_inflation", effect.largest_inflation, largest)
        table = [[hits, n - hits] for hits, n in (overlap, clean)]
        yield from differ(
            place, f"{name}.exact_p", effect.exact_p, float(fisher_exact(table, alternative="greater").pvalue)
        )
        tables = twin.strata(clean_units, overlap_units)
        within = effect.by_class
        stated = None if within is None else (within.classes, within.units)
        one_label = all(row["label"] is not None for row in scored)
        strata = (len(tables), sum(sum(one) for one in tables)) if one_label else None
        yield from differ(place, f"{name}.by_class", stated, strata)
        if within is not None:
            yield from differ(place, f"{name}.by_class.p_value", within.p_value, twin.exact_p(tables))
            adjusted = twin.common_difference(tables, confidence)
            yield from check_difference(place, f"{name}.by_class.difference", within.difference, adjusted)
    else:
        for key in ("p_value", "detectable_gain", "difference", "largest_inflation", "exact_p", "by_class"):
            yield from differ(place, f"{name}.{key}", getattr(effect, key), None)


def _verdict(one: SetReport, overlap: int) -> str:
    effect = one.effect
    if overlap == 0:
        return "clean"
    if effect is None:
        return "overlap, not scored"
    test = effect if effect.own is None else effect.own
    if effect.own is None:
        sure = effect.exact_p is not None and effect.exact_p <= effect.alpha
    else:
        sure = effect.own.least is not None and effect.own.least > 0
    if test.p_value is not None and test.p_value <= effect.alpha and sure:
        return "overlap, effect"
    blind = test.p_value is None or test.detectable_gain is None or test.detectable_gain > 0.1
    blind = blind or (effect.own is None and effect.clean_units.n < effect.overlap_units.n)
    return "not testable" if blind else "overlap, no effect seen"
