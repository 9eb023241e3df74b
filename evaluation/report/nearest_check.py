"""The second hand for the nearest pictures and what people said of them, by each measure: the sample is the one that the ids choose,
nothing in the folder is nearer than what is called the nearest, and histogram, curve, choice and band follow.

That a row is the nearest of the whole corpus cannot be seen in the folder, nor which examples have a vector.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from statistics import median

from evaluation.overlap.measures import MEASURES, PDQ, Measure
from evaluation.report import twin
from evaluation.report.descriptor_check import check_lowering
from evaluation.report.differences import differ
from evaluation.report.nearest_numbers import calibration_of, nearest_of, threshold_of
from evaluation.report.pair_check import bits_apart
from evaluation.report.schema import SetReport
from evaluation.report.twin import Row

_LIKENESS = ("descriptor_cosine", "descriptor_score", "descriptor_view")


def strangers(rows: Iterable[Row], asked: Sequence[Measure]) -> str | None:
    """The first nearest picture, or answer, by a measure that the report does not have, or without its value; None where there is none."""
    columns = {str(measure.name): measure.column for measure in asked}
    for row in rows:
        name = str(row["measure"])
        if name not in columns:
            return f"names a measure {name!r} that report.json does not have"
        if row[columns[name]] is None:
            return f"example {row['eval_id']!r} is named by {name} and has no {columns[name]}"
    return None


def check_nearest(
    place: str,
    one: SetReport,
    near: list[Row],
    own: list[Row],
    split: list[Row],
    sampled: list[int],
    keep: int,
    best: int,
) -> Iterator[str]:
    """The nearest pictures of one set by every measure, beside its pairs (of which the table holds `keep` by each method): what the
    descriptor says of a pair is the same wherever it stands, distances are those of the hashes, and then measure by measure. `best` is the
    largest quality of a corpus picture that the report names: where that is enough, every example has a nearest picture by PDQ."""
    yield from check_lowering(place, one, near)
    said = {(pair["eval_row"], pair["shard"], pair["row"]): [pair[name] for name in _LIKENESS] for pair in own}
    for row in near:
        where = f"{place}: set {one.name!r}: example {row['eval_id']!r}"
        example = split[int(str(row["eval_row"]))] if row["eval_row"] in range(len(split)) else {}
        if example.get("eval_id") != row["eval_id"] or int(str(row["pdq_quality"])) < one.thresholds.pdq_quality:
            yield f"{where}: is another example in the split table, or its nearest picture has too little texture"
            continue
        if bits_apart(example["pdq256"], row["pdq256"]) != row["pdq_distance"]:
            yield f"{where}: its distance is not that of its hashes"
        likeness = [row[name] for name in _LIKENESS]
        before = said.setdefault((row["eval_row"], row["shard"], row["row"]), likeness)
        if before != likeness:
            yield f"{where}: the descriptor says {likeness} of it and row {row['row']} of {row['shard']}, elsewhere {before}"
    held = Counter((pair["eval_row"], pair["method"]) for pair in own)
    full = {number for (number, _), count in held.items() if count >= keep}
    for measure in MEASURES.values():
        yield from _check_measure(place, one, near, own, split, sampled, full, measure, best)


def _check_measure(
    place: str,
    one: SetReport,
    near: list[Row],
    own: list[Row],
    split: list[Row],
    sampled: list[int],
    full: set[object],
    measure: Measure,
    best_quality: int,
) -> Iterator[str]:
    """The sample is the one that the ids choose, neither a pair nor another nearest picture is nearer than the nearest by `measure`, and
    one within the threshold is a pair: in the table, or of those examples with a `full` one, by what the split says of all pairs."""
    mine = [row for row in near if row["measure"] == measure.name]
    rows = [row["eval_row"] for row in mine]
    there = set(rows)
    # Every example has a nearest picture by PDQ, or the corpus none with texture; by the descriptor those have that have a vector.
    none: list[list[object]] = [[]] if best_quality < one.thresholds.pdq_quality else []
    whole = [sampled, *none] if measure is PDQ else [[row for row in sampled if row in there]]
    if rows not in whole:
        yield f"{place}: set {one.name!r}: holds other examples than the sample that their ids choose; write the report again"
        return
    best, matched = (_least(one, table, measure) for table in ([*near, *own], own))
    for number in sorted(set(sampled) & set(best) - there):
        example = split[number]["eval_id"]
        yield f"{place}: set {one.name!r}: example {example!r}: has pairs with {measure.column}, and no nearest picture by it"
    limit = threshold_of(one, measure)
    for row in mine:
        where = f"{place}: set {one.name!r}: example {row['eval_id']!r}"
        number = int(str(row["eval_row"]))
        example, far = split[number], _far(row, measure)
        if far is None or best.get(number, far) < far:
            yield f"{where}: a pair of it is nearer than the nearest picture by {measure.name}"
            continue
        if limit is None or far > measure.sign * limit:
            continue
        stated = _far(example, measure) if number in full else None
        if matched.get(number, far + 1) > far and (stated is None or stated > far):
            yield f"{where}: its nearest picture is within the threshold and not among its pairs"


def _far(row: Row, measure: Measure) -> float | None:
    """The less the nearer; None where it is not known."""
    value = row[measure.column]
    return None if value is None else measure.sign * float(str(value))


def _least(one: SetReport, rows: Iterable[Row], measure: Measure) -> dict[int, float]:
    """How far the nearest of these rows with enough texture is from each example."""
    found: dict[int, float] = {}
    for row in rows:
        far = _far(row, measure)
        if (
            far is not None
            and row["pdq_quality"] is not None
            and int(str(row["pdq_quality"])) >= one.thresholds.pdq_quality
        ):
            number = int(str(row["eval_row"]))
            found[number] = min(far, found.get(number, far))
    return found


def check_histogram(place: str, one: SetReport, near: list[Row], asked: Sequence[Measure]) -> Iterator[str]:
    """How far the nearest pictures are, by each measure; null by one that was not asked for."""
    for measure in MEASURES.values():
        stated, name = nearest_of(one, measure), _name(one, measure, "nearest")
        if stated is None or measure not in asked:
            yield from differ(place, f"{name} is null", stated is None, measure not in asked)
            continue
        mine = [row for row in near if row["measure"] == measure.name]
        width, bins = (8, 33) if measure is PDQ else (50, 21)
        counts = Counter(twin.distance(row, measure.name) // width for row in mine)
        values = [float(str(row[measure.column])) for row in mine]
        yield from differ(place, f"{name}.sampled", stated.sampled, len(mine))
        yield from differ(place, f"{name}.counts", stated.counts, [counts[bin] for bin in range(bins)])
        yield from differ(place, f"{name}.median", stated.median, median(values) if values else None)


def check_labels(table: str, place: str, one: SetReport, answers: list[Row], near: list[Row]) -> Iterator[str]:
    """Answers are to pairs of the sample, and the curve, the agreement, the choice and the band follow from them, by each measure."""
    keys = ("measure", "eval_row", "eval_id", "uid", "pdq_distance", "descriptor_score")
    asked = {tuple(row[key] for key in keys) for row in near}
    for row in answers:
        if tuple(row[key] for key in keys) not in asked:
            yield f"{table}: set {one.name!r}: example {row['eval_id']!r} is not among the nearest pictures; write the report again"
            return
    if len({(row["measure"], row["eval_row"], row["rater"]) for row in answers}) != len(answers):
        yield f"{table}: set {one.name!r}: a rater answers a pair twice; write the report again"
        return
    for measure in MEASURES.values():
        yield from _check_calibration(place, one, answers, near, measure)


def _check_calibration(
    place: str, one: SetReport, answers: list[Row], near: list[Row], measure: Measure
) -> Iterator[str]:
    name, stated = _name(one, measure, "calibration"), calibration_of(one, measure)
    answered = any(row["measure"] == measure.name for row in answers)
    if stated is None or not answered:
        yield from differ(place, name, stated is None, not answered)
        return
    found = twin.calibration(answers, near, measure.name)
    for key in ("raters", "answers", "kappa", "chosen", "band"):
        yield from differ(place, f"{name}.{key}", getattr(stated, key), found[key])
    curve = found["curve"]
    thresholds = [getattr(point, measure.kind) for point in stated.curve]
    yield from differ(place, f"{name}.curve", thresholds, [row[measure.kind] for row in curve])
    for point, row in zip(stated.curve, curve, strict=False):
        for key, value in row.items():
            yield from differ(place, f"{name}.curve.{row[measure.kind]}.{key}", getattr(point, key), value)


def _name(one: SetReport, measure: Measure, key: str) -> str:
    return f"sets.{one.name}.{key if measure is PDQ else f'score_{key}'}"
