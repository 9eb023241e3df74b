"""dedup: keys → blocks → verified edges → who stays for whom → the rows that stay. The comparing is pipeline/dedup's."""

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

ROWS_PER_KEY_PARTITION = 250_000
"""Rows of the corpus whose keys (14 of 24 bytes each) make a partition, on average."""
_BLOCK_ROWS_PER_PARTITION = 500_000
"""Rows of blocks, of about 150 bytes, that make a partition, on average."""


def remove_duplicates(driver: Run, config: PipelineConfig, fetched: Output) -> Output:
    """From here on rows travel without their picture; `shards` fetches it from the crawl's files by uid."""
    compared = ["uid", "caption", "image_sha256", "pdq256", "pdq_quality"]
    key_partitions = shard_count(fetched.rows, ROWS_PER_KEY_PARTITION)
    keys = run_stage(
        driver,
        "dedup-keys",
        [semantic(config.dedup), key_partitions],
        [fetched],
        part_units(fetched),
        functools.partial(read_part, driver.out, compared),
        functools.partial(_keys, config.dedup, key_partitions),
        accounted=False,
        partitioned=True,
    )
    shared = run_stage(
        driver,
        "dedup-shared",
        config.dedup.max_block,
        [keys],
        partition_units(key_partitions),
        functools.partial(read_partition, driver.out, keys.files),
        functools.partial(_shared, config.dedup),
        accounted=False,
        partitioned=True,
    )
    partitions = shard_count(shared.rows, _BLOCK_ROWS_PER_PARTITION)
    blocks = run_stage(
        driver,
        "dedup-blocks",
        [semantic(config.dedup), partitions],
        [fetched, shared],
        part_units(fetched),
        functools.partial(read_part, driver.out, compared),
        functools.partial(_blocks, driver.out, shared.files, config.dedup, partitions),
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


def _keys(config: dedup.DedupConfig, partitions: int, table: pa.Table, unit: Unit) -> Result:
    return Result(dedup.keys(table, config, partitions, int(unit.id)))


def _shared(config: dedup.DedupConfig, table: pa.Table, unit: Unit) -> Result:
    found = dedup.shared(table, config)
    return Result(found.table, notes={"blocks": found.blocks, "hot": found.hot, "largest": found.largest})


def _blocks(
    out: str, shared: Sequence[str], config: dedup.DedupConfig, partitions: int, table: pa.Table, unit: Unit
) -> Result:
    mine = read_partition(out, shared, Unit(unit.id, (), {"partition": int(unit.id)}))
    return Result(dedup.blocks(table, mine, config, partitions))


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
