"""The second hand for what a checkpoint had seen: every first sample, the splits that follow from them, and the figures.

The order of a run is asked forwards here (which row is this sample?), where `overlap.exposure` asks it backwards. That an unusable row was
one, so that another took its turn, is in the corpus and not in the folder: only that the loader would then have asked for it is checked.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from evaluation.overlap.exposure import Training
from evaluation.report import twin
from evaluation.report.differences import check_difference, check_share, differ
from evaluation.report.schema import Corpus, Exposure, Report, SetReport
from evaluation.report.twin import Row
from trainer.data.order import REPLACEMENT_TRIES, SampleOrder, replacement_row

_MOST_ROWS = 1 << 62


def check_row_groups(corpus: Corpus, groups: Sequence[Row]) -> str | None:
    """What is wrong with the table of row groups, as the end of a sentence: it must be a cut of as many rows as the corpus has."""
    sizes = [int(str(row["rows"])) for row in groups]
    if corpus.kind != "shards":
        return "has row groups, and a corpus that others wrote has none" if groups else None
    if min(sizes, default=0) < 0 or not sum(sizes) == corpus.rows < _MOST_ROWS:
        return f"lists {sum(sizes):,} rows, report.json says {corpus.rows:,}"
    shards = [row["shard"] for row in groups]
    changes = sum(one != other for one, other in itertools.pairwise(shards))
    if len(set(shards)) > corpus.shards or (shards and changes + 1 != len(set(shards))):
        return f"lists {len(set(shards)):,} shards, or one in two places; report.json says {corpus.shards:,}"
    return None


def check_pairs(
    corpus: Corpus,
    own: Sequence[Row],
    split: Sequence[Row],
    groups: Sequence[Row],
    training: Training | None,
    *,
    withheld: bool,
) -> Iterator[str]:
    """What is wrong with a set's pairs and split, as the end of a sentence.

    `training` is None where its order is not known; `withheld`: the pairs have no captions.
    """
    for row in own:
        captioned = None if withheld and corpus.kind != "shards" else row["caption"] is not None
        stated = (
            isinstance(row["captioned"], bool) if withheld and captioned is not None else row["captioned"] == captioned
        )
        if not stated:
            yield f"{_named(row)}: captioned is {row['captioned']!r}, its caption says {captioned!r}"
    if training is None:
        wrong = next(
            (row for row in (*own, *split) if row["first_sample"] is not None or row["seen"] is not None), None
        )
        if wrong is not None:
            yield f"example {wrong['eval_id']!r}: says what was seen, and no training over this corpus is known"
        return
    yield from _check_first_samples(own, groups, training)
    samples: dict[object, list[int]] = {}
    shown: dict[object, list[bool]] = {}
    for row in own:
        samples.setdefault(row["eval_row"], []).extend([] if row["first_sample"] is None else [_sample(row)])
        shown.setdefault(row["eval_row"], []).append(row["seen"] is True)
    for row in split:
        example = row["eval_row"]
        expected = (min(samples.get(example, []), default=None), any(shown[example]) if example in shown else None)
        if (row["first_sample"], row["seen"]) != expected:
            told = (row["first_sample"], row["seen"])
            yield f"example {row['eval_id']!r}: first_sample and seen are {told!r} in its split, its pairs give {expected!r}"


def _check_first_samples(own: Sequence[Row], groups: Sequence[Row], training: Training) -> Iterator[str]:
    start: dict[object, int] = {}
    end: dict[object, int] = {}
    sizes = [int(str(group["rows"])) for group in groups]
    for group, size, after in zip(groups, sizes, itertools.accumulate(sizes), strict=True):
        start.setdefault(group["shard"], after - size)
        end[group["shard"]] = after
    order = SampleOrder(sizes, seed=training.seed, window_row_groups=training.window_row_groups)
    samples = {_sample(row) for row in own if row["first_sample"] is not None}
    asked = sorted(sample for sample in samples if 0 <= sample < order.rows_per_epoch)
    row_at = dict(zip(asked, order.rows(np.array(asked, np.int64)).tolist() if asked else [], strict=True))
    for row in own:
        number = start.get(row["shard"], 0) + int(str(row["row"]))
        if not start.get(row["shard"], 0) <= number < end.get(row["shard"], 0):
            yield f"{_named(row)}: is no row of the row groups"
            continue
        if row["seen"] != (row["first_sample"] is not None and _sample(row) < training.samples_seen):
            yield f"{_named(row)}: seen is {row['seen']!r}, at {training.samples_seen:,} samples its first sample says otherwise"
        usable = bool(row["captioned"]) and row["image_sha256"] is not None
        if (row["first_sample"] is not None) != usable:
            can = "can" if usable else "cannot"
            yield f"{_named(row)}: first_sample is {row['first_sample']!r}, and the row {can} be trained on"
        elif usable:
            turn = row_at.get(_sample(row))
            if turn != number and not (
                turn is not None and _stands_in(order, training.seed, number, turn, _sample(row))
            ):
                yield f"{_named(row)}: first_sample is {_sample(row):,}, and the run's order shows another row there"


def _stands_in(order: SampleOrder, seed: int, row: int, turn: int, sample: int) -> bool:
    """Whether the loader may show `row` in the turn of another, at a sample before its own."""
    own_turn = int(order.first_samples(np.array([row]))[0])
    return sample < own_turn and any(
        replacement_row(turn, attempt, seed=seed, rows=order.rows_per_epoch, group=order.group_of(turn)) == row
        for attempt in range(1, REPLACEMENT_TRIES)
    )


def check_figures(
    place: str, report: Report, one: SetReport, own: Sequence[Row], split: Sequence[Row], training: Training | None
) -> Iterator[str]:
    """The set's figures, counted row by row."""
    name, stated = f"sets.{one.name}.exposure", one.exposure
    if stated is None or training is None:
        if (stated is None) != (training is None):
            said = "left out" if stated is None else "stated"
            yield f"{place}: {name} is {said}, its predictions say otherwise; write the report again"
        return
    for key in ("samples_seen", "seed", "window_row_groups", "init_sha256"):
        yield from differ(place, f"{name}.{key}", getattr(stated, key), getattr(training, key))
    confidence = report.statistics.confidence
    overlap = [row for row in twin.examples(split) if row["in_overlap"]]
    yield from check_share(place, f"{name}.share", stated.share, _count(overlap, "seen"), len(overlap), confidence)
    rows = {(row["shard"], row["row"]) for row in own if row["seen"]}
    yield from differ(place, f"{name}.corpus_rows", stated.corpus_rows, len(rows))
    yield from _check_sides(place, name, stated, [row for row in overlap if row["correct"] is not None], confidence)


def _check_sides(place: str, name: str, stated: Exposure, scored: list[Row], confidence: float) -> Iterator[str]:
    unseen_units, seen_units = twin.units([{**row, "in_overlap": row["seen"]} for row in scored])
    sides = {
        "seen": [row for row in scored if row["seen"]],
        "unseen": [row for row in scored if not row["seen"]],
        "seen_units": seen_units,
        "unseen_units": unseen_units,
    }
    for key, rows in sides.items():
        yield from check_share(place, f"{name}.{key}", getattr(stated, key), *twin.right_of(rows), confidence)
    both = bool(seen_units and unseen_units)
    difference = twin.difference(twin.right_of(seen_units), twin.right_of(unseen_units), confidence) if both else None
    yield from check_difference(place, f"{name}.difference", stated.difference, difference)


def _count(rows: Sequence[Mapping[str, object]], column: str) -> int:
    return sum(row[column] is True for row in rows)


def _sample(row: Row) -> int:
    return int(str(row["first_sample"]))


def _named(row: Row) -> str:
    return f"example {row['eval_id']!r} with {twin.in_hex(row['uid'])}"
