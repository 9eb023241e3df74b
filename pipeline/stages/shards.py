"""shards: survivors in uid order → Parquet shards, and the manifest, which makes them a corpus."""

import functools
import itertools
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import PipelineConfig
from pipeline.content.hashes import HASH_VERSION
from pipeline.contracts import manifest, merkle, parquet, storage
from pipeline.contracts.config import digest, semantic
from pipeline.contracts.schema import FORMAT_VERSION
from pipeline.engine import Result, Run, Unit
from pipeline.keys import one_array
from pipeline.match import QueryList
from pipeline.records import count_rows
from pipeline.shard import shard_count, shard_table
from pipeline.stages.common import Output, partition_units, run_stage

INDEX_SUFFIX = ".index.parquet"


def shards(driver: Run, config: PipelineConfig, balanced: Output, fetched: Output) -> Output:
    """Units are equal ranges of the uid space: rows from `balance`, their pictures from the crawl's files of the same number."""
    number = shard_count(balanced.rows, config.shard.rows)
    return run_stage(
        driver,
        "shards",
        [FORMAT_VERSION, number],
        [balanced, fetched],
        partition_units(number),
        functools.partial(_read_range, driver.out, list(zip(balanced.files, fetched.files, strict=True)), number),
        _shard,
    )


def _read_range(out: str, pairs: Sequence[tuple[str, str]], number: int, unit: Unit) -> pa.Table:
    place = unit.params["partition"]
    assert isinstance(place, int)
    low, high = _first_uid(place, number), _first_uid(place + 1, number) if place + 1 < number else None
    parts = []
    for kept, fetched in pairs:
        rows = parquet.read_uid_range(storage.join(out, kept), low, high)
        pictures = parquet.read_uid_range(storage.join(out, fetched), low, high, ["uid", "image"])
        at = pc.index_in(rows["uid"], one_array(pictures["uid"]))
        parts.append(rows.append_column("image", pictures["image"].take(at)))
    return pa.concat_tables(parts)


def _first_uid(place: int, number: int) -> bytes:
    """The smallest uid of range `place` of `number`: shard_of cuts by the first 32 bits."""
    return (-(-(place << 32) // number)).to_bytes(4, "big") + bytes(12)


def _shard(table: pa.Table, unit: Unit) -> Result:
    rows = shard_table(table)
    return Result(rows, beside={INDEX_SUFFIX: rows.drop_columns(["image"])})


def publish(driver: Run, config: PipelineConfig, queries: QueryList, outputs: Mapping[str, Output]) -> str:
    """The manifest, written last: from here on the corpus is there. Returns its URI."""
    last = outputs["shards"]
    folder = storage.join(driver.out, "shards")
    below = last.folder.removeprefix("shards/")
    starts = itertools.accumulate((record.rows_out for record in last.records), initial=0)
    indexes = [storage.join(driver.out, name) for name in last.beside(INDEX_SUFFIX)]
    parts = driver.map(_subtrees, list(zip(indexes, starts, strict=False)))
    found = manifest.Manifest(
        format_version=FORMAT_VERSION,
        rows=last.rows,
        content_root=merkle.root_of_subtrees(itertools.chain.from_iterable(parts)),
        shards=[
            manifest.shard_entry(record.output, record.beside[INDEX_SUFFIX], below=below) for record in last.records
        ],
        hashes=dict(HASH_VERSION),
        config=semantic(config),
        config_digest=digest(config),
        query_list_digest=queries.digest,
        counts={name: count_rows(output.records) for name, output in outputs.items()},
    )
    return manifest.publish(folder, found)


def _subtrees(index: tuple[str, int]) -> list[merkle.Subtree]:
    uri, start = index
    return merkle.subtrees(manifest.shard_leaves(uri), start)
