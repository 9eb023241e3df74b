"""exact-url, exact-caption and exact-source: one row of those that share a key. The comparing is pipeline/dedup/exact_keys.py's.

URLs and captions are compared after the filter, so that a row which matches no query displaces none that does, and before the crawl, so
that nothing is fetched for a row that goes. The bytes of a source are known after the crawl.
"""

import functools

import pyarrow as pa

from pipeline.commit import Result, Unit
from pipeline.config import PipelineConfig
from pipeline.contracts.schema import INDEX_SCHEMA
from pipeline.dedup import exact_keys
from pipeline.dedup.exact_keys import ExactKey
from pipeline.engine import Run
from pipeline.shard import shard_count
from pipeline.stages.common import (
    Output,
    part_units,
    partition_units,
    read_of_partition,
    read_part,
    read_partition,
    run_stage,
)

_ROWS_PER_PARTITION = 1 << 20
"""Keys of one partition, on average: about 150 MB while they are sorted."""


def exact_key(driver: Run, config: PipelineConfig, by: ExactKey, rows: Output) -> Output:
    """Units are the files of the stage before; between them, partitions of the keys, so that equal keys meet."""
    name, partitions = f"exact-{by}", shard_count(rows.rows, _ROWS_PER_PARTITION)
    units = part_units(rows)
    keys = run_stage(
        driver,
        f"{name}-keys",
        partitions,
        [rows],
        units,
        functools.partial(read_part, driver.out, ["uid", exact_keys.COLUMNS[by]]),
        functools.partial(_keys, by, partitions),
        accounted=False,
        partitioned=True,
    )
    gone = run_stage(
        driver,
        f"{name}-repeated",
        config.run.seed,
        [keys],
        partition_units(partitions),
        functools.partial(read_partition, driver.out, keys.files),
        functools.partial(_repeated, by, config.run.seed),
        accounted=False,
        partitioned=True,
    )
    # After the crawl rows travel without their picture.
    columns = INDEX_SCHEMA.names if by == "source" else None
    return run_stage(
        driver,
        name,
        None,
        [rows, gone],
        units,
        functools.partial(read_part, driver.out, columns),
        functools.partial(_drop, driver.out, gone.files, by),
    )


def _keys(by: ExactKey, partitions: int, table: pa.Table, unit: Unit) -> Result:
    return Result(exact_keys.keys(table, by, partitions, int(unit.id)))


def _repeated(by: ExactKey, seed: int, table: pa.Table, unit: Unit) -> Result:
    return Result(exact_keys.repeated(table, by, seed))


def _drop(out: str, gone: list[str], by: ExactKey, table: pa.Table, unit: Unit) -> Result:
    return Result(*exact_keys.drop(table, read_of_partition(out, gone, int(unit.id)), by))
