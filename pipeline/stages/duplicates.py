"""dedup: copies → keys → blocks → verified edges → who stays for whom → the rows that stay. The comparing is pipeline/dedup's.

Every unit reads one file of the stage before, or one partition out of all of them. The exception is `dedup-decide`, which reads all edges,
a file at a time (dedup/clusters.py).
"""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import pyarrow as pa

from pipeline import dedup
from pipeline.commit import Result, Unit
from pipeline.config import PipelineConfig
from pipeline.contracts import parquet, storage
from pipeline.contracts.config import semantic
from pipeline.contracts.schema import INDEX_SCHEMA
from pipeline.dedup.clusters import Places
from pipeline.engine import Run
from pipeline.keys import one_array
from pipeline.shard import shard_count
from pipeline.stages.common import (
    Output,
    part_units,
    partition_count,
    partition_units,
    read_of_partition,
    read_part,
    read_partition,
    run_stage,
)

_VERSION = 3
ROWS_PER_KIND_PARTITION = 1 << 20
"""Rows of the corpus whose kinds make a partition, on average: 0.15 GB while they are sorted."""
ROWS_PER_KEY_PARTITION = (250_000, 500_000)
"""Rows of the corpus whose keys (15 of 32 bytes each) make a partition, on average, in a small run and at most: 0.5 and 1 GB while they are
sorted."""
_BLOCK_ROWS_PER_PARTITION = 500_000
"""Rows of blocks, of about 150 bytes, that make a partition, on average: 0.5 GB with the captions' shingles."""
_ROWS_PER_GONE_PARTITION = 1 << 20
"""Rows of the corpus whose edges and copies (62 and 48 bytes) make a partition, on average."""

WITHIN_SUFFIX = ".within.parquet"
ORIGINALS_SUFFIX = ".originals.parquet"


def remove_duplicates(driver: Run, config: PipelineConfig, fetched: Output) -> Output:
    """From here on rows travel without their picture; `shards` fetches it from the crawl's files by uid."""
    copies = _find_copies(driver, config, fetched)
    blocks = _make_blocks(driver, config, fetched, copies)
    clusters = _decide(driver, config, copies, blocks)
    return run_stage(
        driver,
        "dedup",
        config.dedup.by,
        [fetched, copies.kinds, clusters],
        part_units(fetched),
        functools.partial(read_part, driver.out, INDEX_SCHEMA.names),
        functools.partial(_drop, driver.out, config.dedup, clusters.files, copies.within),
        version=_VERSION,
    )


class _CopiesFound(NamedTuple):
    """What stands for itself: `within` is a file for each of the fetched ones, `copies` are those of other files."""

    kinds: Output
    within: list[str]
    copies: Output
    partitions: int  # that dropped rows are filed in


def _find_copies(driver: Run, config: PipelineConfig, fetched: Output) -> _CopiesFound:
    partitions = shard_count(fetched.rows, ROWS_PER_KIND_PARTITION)
    kinds = run_stage(
        driver,
        "dedup-kinds",
        [semantic(config.dedup), config.run.seed, partitions],
        [fetched],
        part_units(fetched),
        functools.partial(read_part, driver.out, dedup.COLUMNS),
        functools.partial(_kinds, config.dedup, config.run.seed, partitions),
        accounted=False,
        partitioned=True,
    )
    filed = shard_count(fetched.rows, _ROWS_PER_GONE_PARTITION)
    copies = run_stage(
        driver,
        "dedup-copies",
        [config.run.seed, filed],
        [kinds],
        partition_units(partitions),
        functools.partial(read_partition, driver.out, kinds.files),
        functools.partial(_copies, config.run.seed, filed),
        accounted=False,
        partitioned=True,
    )
    return _CopiesFound(kinds, kinds.beside(WITHIN_SUFFIX), copies, filed)


def _make_blocks(driver: Run, config: PipelineConfig, fetched: Output, copies: _CopiesFound) -> Output:
    partitions = partition_count(fetched.rows, *ROWS_PER_KEY_PARTITION)
    read = functools.partial(_read_originals, driver.out, copies.within, copies.copies.files)
    keys = run_stage(
        driver,
        "dedup-keys",
        [semantic(config.dedup), partitions],
        [fetched, copies.kinds, copies.copies],
        part_units(fetched),
        read,
        functools.partial(_keys, config.dedup, partitions),
        version=_VERSION,
        accounted=False,
        partitioned=True,
    )
    shared = run_stage(
        driver,
        "dedup-shared",
        semantic(config.dedup),
        [keys],
        partition_units(partitions),
        functools.partial(read_partition, driver.out, keys.files),
        functools.partial(_shared, config.dedup),
        version=_VERSION,
        accounted=False,
        partitioned=True,
    )
    block_rows = sum(cast(int, record.notes["block_rows"]) for record in shared.records)
    partitions = shard_count(block_rows, _BLOCK_ROWS_PER_PARTITION)
    blocks = run_stage(
        driver,
        "dedup-blocks",
        [semantic(config.dedup), partitions],
        [fetched, copies.kinds, copies.copies, shared],
        part_units(fetched),
        read,
        functools.partial(_blocks, driver.out, shared.files, config.dedup, partitions),
        version=_VERSION,
        accounted=False,
        partitioned=True,
    )
    return blocks._replace(partitions=partitions)


def _decide(driver: Run, config: PipelineConfig, copies: _CopiesFound, blocks: Output) -> Output:
    edges = run_stage(
        driver,
        "dedup-edges",
        [semantic(config.dedup), config.run.seed, copies.partitions],
        [blocks],
        partition_units(blocks.partitions),
        functools.partial(read_partition, driver.out, blocks.files),
        functools.partial(_edges, config.dedup, config.run.seed, copies.partitions),
        version=_VERSION,
        accounted=False,
        partitioned=True,
    )
    decisions = run_stage(
        driver,
        "dedup-decide",
        copies.partitions,
        [edges],
        [Unit("all")],
        _nothing,
        functools.partial(_decisions, driver.out, edges.files, copies.partitions),
        accounted=False,
        partitioned=True,
    )
    return run_stage(
        driver,
        "dedup-clusters",
        config.dedup.by,
        [edges, decisions, copies.copies],
        partition_units(copies.partitions),
        functools.partial(read_partition, driver.out, edges.files),
        functools.partial(_clusters, driver.out, config.dedup, decisions.files, copies.copies.beside(ORIGINALS_SUFFIX)),
        version=_VERSION,
        accounted=False,
        partitioned=True,
    )


# ---- units


def _nothing(unit: Unit) -> pa.Table:
    """The rows of a unit whose work reads committed files by itself."""
    return dedup.DECISION_SCHEMA.empty_table()


def _kinds(config: dedup.DedupConfig, seed: int, partitions: int, table: pa.Table, unit: Unit) -> Result:
    found = dedup.kinds(table, config, seed, partitions, int(unit.id))
    return Result(found.rows, beside={WITHIN_SUFFIX: found.within})


def _copies(seed: int, partitions: int, table: pa.Table, unit: Unit) -> Result:
    found = dedup.copies(table, seed, partitions)
    return Result(found.rows, beside={ORIGINALS_SUFFIX: found.originals})


def _read_originals(out: str, within: Sequence[str], copies: Sequence[str], unit: Unit) -> pa.Table:
    table = read_part(out, dedup.COLUMNS, unit)
    copied = read_of_partition(out, copies, int(unit.id))
    mine = parquet.read(storage.join(out, within[int(unit.id)]))
    return table.take(pa.array(dedup.originals(table.num_rows, mine, copied)))


def _keys(config: dedup.DedupConfig, partitions: int, table: pa.Table, unit: Unit) -> Result:
    return Result(dedup.keys(table, config, partitions, int(unit.id)))


def _shared(config: dedup.DedupConfig, table: pa.Table, unit: Unit) -> Result:
    found = dedup.shared(table, config)
    return Result(found.table, notes={name: getattr(found, name) for name in found._fields if name != "table"})


def _blocks(
    out: str, shared: Sequence[str], config: dedup.DedupConfig, partitions: int, table: pa.Table, unit: Unit
) -> Result:
    return Result(dedup.blocks(table, read_of_partition(out, shared, int(unit.id)), config, partitions, int(unit.id)))


def _edges(config: dedup.DedupConfig, seed: int, partitions: int, table: pa.Table, unit: Unit) -> Result:
    found = dedup.edges(table, config, seed, partitions)
    return Result(found.table, notes=found.counts._asdict())


def _decisions(out: str, edges: Sequence[str], partitions: int, table: pa.Table, unit: Unit) -> Result:
    def places() -> Iterator[tuple[Places, Places]]:
        for name in edges:
            part = parquet.read(storage.join(out, name), ["order", "before"])
            yield tuple(one_array(part[name]).to_numpy(zero_copy_only=False) for name in ("order", "before"))

    return Result(dedup.decide(places, partitions))


def _clusters(
    out: str, config: dedup.DedupConfig, decisions: Sequence[str], originals: Sequence[str], table: pa.Table, unit: Unit
) -> Result:
    decided, copies = read_partition(out, decisions, unit), read_partition(out, originals, unit)
    return Result(dedup.clusters(table, decided, copies, config))


def _drop(
    out: str, config: dedup.DedupConfig, clusters: Sequence[str], within: Sequence[str], table: pa.Table, unit: Unit
) -> Result:
    copies = parquet.read(storage.join(out, within[int(unit.id)]))
    return Result(*dedup.apply(table, read_of_partition(out, clusters, int(unit.id)), copies, config))
