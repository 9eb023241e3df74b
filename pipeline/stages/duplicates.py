"""dedup: blocks → verified edges → who stays for whom → the rows that stay. The comparing is pipeline/dedup's."""

import functools
from collections.abc import Sequence

import pyarrow as pa

from pipeline import dedup
from pipeline.config import PipelineConfig
from pipeline.contracts import parquet, storage
from pipeline.contracts.config import semantic
from pipeline.contracts.schema import INDEX_SCHEMA
from pipeline.engine import Result, Run, Unit
from pipeline.shard import shard_count
from pipeline.stages.common import Output, part_units, partition_units, read_all, read_part, read_partition, run_stage

_ROWS_PER_BLOCK_PARTITION = 50_000


def remove_duplicates(driver: Run, config: PipelineConfig, fetched: Output) -> Output:
    """From here on rows travel without their picture; `shards` fetches it from the crawl's files by uid."""
    compared = ["uid", "caption", "image_sha256", "pdq256", "pdq_quality"]
    partitions = shard_count(fetched.rows, _ROWS_PER_BLOCK_PARTITION)
    blocks = run_stage(
        driver,
        "dedup-blocks",
        [semantic(config.dedup), partitions],
        [fetched],
        part_units(fetched),
        functools.partial(read_part, driver.out, compared),
        functools.partial(_blocks, config.dedup, partitions),
        accounted=False,
        partitioned=True,
    )
    edges = run_stage(
        driver,
        "dedup-edges",
        [semantic(config.dedup), config.run.seed],
        [blocks],
        partition_units(partitions),
        functools.partial(_read_blocks, driver.out, blocks.files),
        functools.partial(_edges, config.dedup, config.run.seed),
        accounted=False,
    )
    clusters = run_stage(
        driver,
        "dedup-clusters",
        [config.dedup.by, config.run.seed],
        [edges],
        [Unit("all")],
        functools.partial(read_all, driver.out, edges.files),
        functools.partial(_clusters, config.dedup, config.run.seed),
        accounted=False,
    )
    return run_stage(
        driver,
        "dedup",
        None,
        [fetched, clusters],
        part_units(fetched),
        functools.partial(read_part, driver.out, INDEX_SCHEMA.names),
        functools.partial(_drop, driver.out, clusters.files[0]),
    )


def _blocks(config: dedup.DedupConfig, partitions: int, table: pa.Table, unit: Unit) -> Result:
    return Result(dedup.blocks(table, config, partitions))


def _read_blocks(out: str, files: Sequence[str], unit: Unit) -> pa.Table:
    rows = read_partition(out, files, unit)
    return rows.add_column(0, "partition", pa.array([unit.params["partition"]] * rows.num_rows, pa.int32()))


def _edges(config: dedup.DedupConfig, seed: int, table: pa.Table, unit: Unit) -> Result:
    found = dedup.edges(table, config, seed)
    return Result(found.table, notes=found.counts._asdict())


def _clusters(config: dedup.DedupConfig, seed: int, table: pa.Table, unit: Unit) -> Result:
    return Result(dedup.clusters(table, config, seed))


def _drop(out: str, clusters: str, table: pa.Table, unit: Unit) -> Result:
    return Result(*dedup.apply(table, parquet.read(storage.join(out, clusters))))
