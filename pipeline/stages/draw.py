"""precap and balance (balance.mode = "metaclip"): every query draws its pairs. The arithmetic is pipeline/draw.py's."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import balance
from pipeline import draw as drawing
from pipeline.commit import Result, Unit
from pipeline.contracts import parquet, storage
from pipeline.engine import Run
from pipeline.match import QueryList
from pipeline.stages.cap import count_table, nothing, read_counts, summed, write_ledger
from pipeline.stages.common import Output, part_units, read_part, run_stage

DRAWN_SUFFIX = ".drawn.parquet"
ACCEPTED_SUFFIX = ".accepted.parquet"
KEPT_SUFFIX = ".kept.parquet"


class Draw(NamedTuple):
    """The pairs that stay, and the limits by which they were drawn (one file of ODDS_SCHEMA)."""

    kept: Output
    odds: Output


def draw(
    driver: Run,
    name: str,
    threshold: int,
    seed: int,
    parts: Output,
    queries: QueryList,
    before: Output | None = None,
    sources: Sequence[str | None] = (),
) -> Draw:
    """Each query draws `threshold` pairs on average at most. `before` are the odds of an earlier draw, of which this one is a part."""
    number, units = len(queries.queries), part_units(parts)
    earlier = [] if before is None else [before]
    given = None if before is None else before.files[0]
    counted = run_stage(
        driver,
        f"{name}-counts",
        ["metaclip", number, seed],
        [parts, *earlier],
        units,
        functools.partial(read_part, driver.out, ["uid", "query_ids"]),
        functools.partial(_counts, driver.out, given, number, seed),
        accounted=False,
    )
    matched = summed(driver, f"{name}-matched", counted, counted.files)
    assigned = summed(driver, f"{name}-drawn", counted, counted.beside(DRAWN_SUFFIX))
    odds = run_stage(
        driver,
        f"{name}-odds",
        [threshold, queries.digest],
        [assigned, *earlier],
        [Unit("all")],
        nothing,
        functools.partial(_odds, driver.out, assigned.files[0], given, threshold, queries.queries),
        accounted=False,
    )
    kept = run_stage(
        driver,
        name,
        ["metaclip", seed],
        [parts, matched, odds],
        units,
        functools.partial(read_part, driver.out, None),
        functools.partial(_keep, driver.out, matched.files[0], odds.files[0], number, seed),
    )
    if name == "balance":
        accepted = summed(driver, f"{name}-accepted", kept, kept.beside(ACCEPTED_SUFFIX))
        counted_for = summed(driver, f"{name}-kept", kept, kept.beside(KEPT_SUFFIX))
        inputs = [matched, assigned, accepted, counted_for]
        work = functools.partial(_ledger, driver.out, [output.files[0] for output in inputs], queries, sources)
        write_ledger(driver, ["metaclip", threshold], inputs, queries, sources, work)
    return Draw(kept, odds)


def _read_odds(out: str, name: str | None) -> pa.Table | None:
    return None if name is None else parquet.read(storage.join(out, name))


def _counts(out: str, given: str | None, number: int, seed: int, table: pa.Table, unit: Unit) -> Result:
    drawn = drawing.drawn(table, _read_odds(out, given), number, seed)
    return Result(count_table(balance.counts(table, number)), beside={DRAWN_SUFFIX: count_table(drawn)})


def _odds(
    out: str, assigned: str, given: str | None, threshold: int, queries: Sequence[str], table: pa.Table, unit: Unit
) -> Result:
    counts = read_counts(out, assigned, len(queries))
    return Result(drawing.odds(counts, threshold, drawing.salted(queries), _read_odds(out, given)))


def _keep(out: str, matched: str, odds: str, number: int, seed: int, table: pa.Table, unit: Unit) -> Result:
    limits = parquet.read(storage.join(out, odds))
    found = drawing.apply(table, read_counts(out, matched, number), limits, seed)
    ids = pc.drop_null(found.kept["query_id"]).to_numpy().astype(np.int64)
    kept = np.bincount(ids, minlength=number).astype(np.int64)
    beside = {ACCEPTED_SUFFIX: count_table(found.accepted), KEPT_SUFFIX: count_table(kept)}
    return Result(found.kept, found.rejected, beside)


def _ledger(
    out: str,
    files: Sequence[str],
    queries: QueryList,
    sources: Sequence[str | None],
    table: pa.Table,
    unit: Unit,
) -> Result:
    counts = [read_counts(out, name, len(queries.queries)) for name in files]
    return Result(balance.ledger(queries.queries, sources, *counts))
