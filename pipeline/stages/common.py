"""What the stages share: what a stage leaves behind, and the four ways in which a unit gets its rows."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.commit import Result, Stage, Unit, stage_digest
from pipeline.contracts import parquet, storage
from pipeline.contracts.at_once import at_once
from pipeline.contracts.config import Json
from pipeline.contracts.manifest import StageCounts
from pipeline.engine import Run
from pipeline.keys import sort_order, words
from pipeline.records import Record, count_rows, output_root, with_generation

_MOST_PARTITIONS = 1_000


class Generation(NamedTuple):
    """What a later generation of a crawl committed, and the rejected rows that it took up again, by the reason they had."""

    output: "Output"
    taken_up: dict[str, int]


class Output(NamedTuple):
    """What a stage committed: its folder relative to the run's output, a record per unit, and into how many partitions its rows are cut.

    A crawl may have later generations, whose files follow its own.
    """

    folder: str
    records: list[Record]
    partitions: int = 1
    later: tuple[Generation, ...] = ()

    @property
    def _parts(self) -> list["Output"]:
        return [self, *(generation.output for generation in self.later)]

    @property
    def root(self) -> str:
        return output_root([record for part in self._parts for record in part.records])

    @property
    def files(self) -> list[str]:
        """The output files in unit order, relative to the run's output."""
        return [storage.join(part.folder, record.output.name) for part in self._parts for record in part.records]

    def beside(self, suffix: str) -> list[str]:
        return [storage.join(self.folder, record.beside[suffix].name) for record in self.records]

    @property
    def rows(self) -> int:
        return sum(record.rows_out for part in self._parts for record in part.records)

    @property
    def counts(self) -> StageCounts:
        """The accounting over all generations: every row is counted once, by its last verdict."""
        counts = count_rows(self.records)
        for generation in self.later:
            counts = with_generation(counts, generation.taken_up, count_rows(generation.output.records))
        return counts


def run_stage(
    driver: Run,
    name: str,
    config: Json,
    inputs: Sequence[Output],
    units: Sequence[Unit],
    read: Callable[[Unit], pa.Table],
    work: Callable[[pa.Table, Unit], Result],
    *,
    version: int = 1,
    accounted: bool = True,
    row_wise: bool = False,
    partitioned: bool = False,
    partitions: int = 1,
    roots: Sequence[str] = (),
) -> Output:
    found = stage_digest(name, version, config, [*(output.root for output in inputs), *roots])
    stage = Stage(name, found, read, work, accounted=accounted, row_wise=row_wise, partitioned=partitioned)
    return Output(storage.join(name, found[:12]), driver.stage(stage, units), partitions)


def part_units(output: Output) -> list[Unit]:
    """One unit per committed file of the stage before."""
    return [Unit(f"{number:05d}", (name,)) for number, name in enumerate(output.files)]


def partition_units(partitions: int) -> list[Unit]:
    """One unit per partition; it reads its rows from every file of the stage before, which the stage digest names."""
    return [Unit(f"{number:05d}", (), {"partition": number}) for number in range(partitions)]


def read_part(out: str, columns: list[str] | None, unit: Unit) -> pa.Table:
    return parquet.read(storage.join(out, unit.inputs[0]), columns)


def partition_count(rows: int, least: int, most: int) -> int:
    """Into how many partitions `rows` are cut: of `least` rows each, until there are a thousand; from there on of more, up to `most`.

    A partition is a unit of the stage that reads it: a small run needs small ones to keep its workers busy. But each opens every file of
    the stage before and has a row group in it, so twice as many partitions on both sides are four times as many files to open, with
    footers twice as long. `most` is what a worker's memory holds.
    """
    return max(1, min(-(-rows // least), max(_MOST_PARTITIONS, -(-rows // most))))


def read_partition(out: str, files: Sequence[str], unit: Unit) -> pa.Table:
    number = unit.params["partition"]
    assert isinstance(number, int)
    return read_of_partition(out, files, number)


def read_of_partition(out: str, files: Sequence[str], number: int) -> pa.Table:
    """The rows that the files of a partitioned stage have for partition `number`, file by file."""
    parts = at_once(lambda name: parquet.read_where_equal(storage.join(out, name), "partition", number), files)
    return pa.concat_tables(parts).drop_columns(["partition"]).combine_chunks()


def with_partition(rows: pa.Table, partition: npt.NDArray[np.int32]) -> pa.Table:
    """Rows with their partition as first column, sorted by partition and uid."""
    order = pa.array(sort_order(words(rows["uid"]), partition))
    return rows.take(order).add_column(0, "partition", pa.array(partition, pa.int32()).take(order))


def read_all(out: str, files: Sequence[str], unit: Unit) -> pa.Table:
    return pa.concat_tables([parquet.read(storage.join(out, name)) for name in files]).combine_chunks()
