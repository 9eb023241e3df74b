"""Evaluation sets as units of work: some rows of one set each, whatever a stage makes of their pictures.

The stages `codes` (hashes) and `views` (vectors of the descriptor) are made of this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline.commit import Result, Stage, Unit, stage_folder
from pipeline.content.labelled import LabelledSet
from pipeline.contracts import parquet, storage
from pipeline.contracts.config import digest_json
from pipeline.engine import Run

Made = Callable[[LabelledSet, list[int]], pa.Table]
"""A set and ascending rows of it to a table about their pictures."""


@dataclass(frozen=True)
class _Work:
    """Rows of one set → what is made of them."""

    sets: Sequence[LabelledSet]
    make: Made

    def read(self, unit: Unit) -> pa.Table:
        start, stop = int(str(unit.params["start"])), int(str(unit.params["stop"]))
        return pa.table({"eval_row": pa.array(range(start, stop), pa.int64())})

    def work(self, rows: pa.Table, unit: Unit) -> Result:
        return Result(self.make(self.sets[int(str(unit.params["set"]))], rows["eval_row"].to_pylist()))


def tables_of_sets(
    driver: Run,
    name: str,
    digest: str,
    sets: Sequence[LabelledSet],
    make: Made,
    *,
    rows_per_unit: int,
    accounted: bool,
) -> tuple[list[pa.Table], str]:
    """Run the stage `name`; what `make` gave of each set, in its order, and one digest over what was committed.

    `accounted`: `make` gives one row for each of the set's.
    """
    work = _Work(sets, make)
    stage = Stage(name, digest, work.read, work.work, accounted=accounted)
    units = [
        Unit(
            f"{number:04d}-{start:08d}",
            (labelled.content_hash,),
            {"set": number, "start": start, "stop": min(start + rows_per_unit, len(labelled))},
        )
        for number, labelled in enumerate(sets)
        for start in range(0, len(labelled), rows_per_unit)
    ]
    records = driver.stage(stage, units)
    pieces: list[list[pa.Table]] = [[] for _ in sets]
    folder = stage_folder(driver.out, stage)
    for unit, record in zip(units, records, strict=True):
        pieces[int(str(unit.params["set"]))].append(parquet.read(storage.join(folder, record.output.name)))
    return [pa.concat_tables(own) for own in pieces], digest_json([record.output.sha256 for record in records])
