"""candidates and exact: URL tables and web archives → pairs with an identity, each once."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa

from pipeline import dedup
from pipeline.commit import Result, Unit
from pipeline.config import PipelineConfig
from pipeline.contracts.config import Json, semantic
from pipeline.engine import Run
from pipeline.shard import shard_of
from pipeline.sources import rows as source_rows
from pipeline.sources.files import SourceFile, SourcesConfig
from pipeline.stages.common import Output, partition_count, partition_units, read_partition, run_stage, with_partition

ROWS_PER_PARTITION = (1 << 18, 1 << 21)
"""Rows of one partition of the uid space, on average, in a small run and at most. It is a unit of `exact` and, less what is rejected, of
`filter`, which hold all of its rows at once: with 175 bytes of text a row, 650 and 1,100 bytes a row, so that a worker needs 0.2 and 0.3 GB
in a small run, up to 1.4 and 2.3 GB in a large one. It does not follow `sources.rows_per_unit`, because of what `partition_count` says.
"""
_VERSION = 4
"""Of what `candidates` makes of the same sources; raise it when pipeline/sources reads a file differently."""


class Source(NamedTuple):
    """A source and what a first look says: the digest of its content, about how many rows it has, and by what a change is told."""

    file: SourceFile
    digest: str
    rows: int
    stamp: tuple[int, ...]


def look(driver: Run, config: PipelineConfig, files: Sequence[SourceFile]) -> list[Source]:
    """Read every source once, on the workers. Raises InputError for one that cannot be read."""
    return driver.map(functools.partial(_look, config.sources), files)


def _look(config: SourcesConfig, file: SourceFile) -> Source:
    stamp = source_rows.stamp(file)
    source_rows.check(file, config)
    source = Source(file, source_rows.content_digest(file), source_rows.count_rows(file, config), stamp)
    source_rows.require_unchanged(file, stamp)
    return source


def candidates(driver: Run, config: PipelineConfig, sources: Sequence[Source]) -> Output:
    """Units are row ranges of Parquet files and whole other files; rows are partitioned by uid for the next stage."""
    partitions = partition_count(sum(source.rows for source in sources), *ROWS_PER_PARTITION)
    units = []
    for number, (file, digest, rows, _) in enumerate(sources):
        step = config.sources.rows_per_unit if source_rows.is_cut(file) else max(1, rows)
        for place, start in enumerate(range(0, rows, step)):
            params: dict[str, Json] = {"start": start, "stop": min(rows, start + step)}
            units.append(Unit(f"{number:05d}-{place:06d}", (file.name, digest), params))
    return run_stage(
        driver,
        "candidates",
        {"sources": semantic(config.sources), "partitions": partitions},
        [],
        units,
        functools.partial(_read_source, {source.file.name: source for source in sources}, config.sources),
        functools.partial(_candidates, config.sources, partitions),
        version=_VERSION,
        row_wise=True,
        partitioned=True,
        partitions=partitions,
        roots=[value for source in sources for value in (source.file.name, source.digest)],
    )


def _read_source(sources: dict[str, Source], config: SourcesConfig, unit: Unit) -> pa.Table:
    start, stop = unit.params["start"], unit.params["stop"]
    assert isinstance(start, int)
    assert isinstance(stop, int)
    source = sources[unit.inputs[0]]
    table = source_rows.read(source.file, config, range(start, stop))
    source_rows.require_unchanged(source.file, source.stamp)
    return table


def _candidates(config: SourcesConfig, partitions: int, table: pa.Table, unit: Unit) -> Result:
    rows, rejected = source_rows.candidates(table, config)
    return Result(with_partition(rows, shard_of(rows["uid"], partitions)), rejected)


def exact(driver: Run, found: Output) -> Output:
    """Units are the partitions of the uid space, so that equal pairs meet."""
    read = functools.partial(read_partition, driver.out, found.files)
    return run_stage(driver, "exact", None, [found], partition_units(found.partitions), read, _exact)


def _exact(table: pa.Table, unit: Unit) -> Result:
    return Result(*dedup.exact(table))
