"""shards: survivors in uid order → Parquet shards, and the manifest, which makes them a corpus."""

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import cast

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.commit import Result, Unit
from pipeline.config import PipelineConfig
from pipeline.content.hashes import HASH_VERSION
from pipeline.contracts import manifest, merkle, parquet, storage
from pipeline.contracts.at_once import at_once
from pipeline.contracts.config import Json, digest_json
from pipeline.contracts.schema import FORMAT_VERSION
from pipeline.engine import Run
from pipeline.keys import find, one_array, take_rows, words
from pipeline.match import QueryList
from pipeline.shard import DEFAULT_ROWS, shard_count, shard_table
from pipeline.stages.common import Output, partition_units, run_stage

INDEX_SUFFIX = ".index.parquet"


def shards(driver: Run, config: PipelineConfig, balanced: Output, fetched: Output) -> Output:
    """Units are equal ranges of the uid space: rows from `balance`, their pictures from the crawl's files of the same number."""
    if config.shard.bytes is not None:
        number = shard_count(_picture_bytes(driver, balanced, fetched), config.shard.bytes)
    else:
        number = shard_count(balanced.rows, config.shard.rows or DEFAULT_ROWS)
    return run_stage(
        driver,
        "shards",
        [FORMAT_VERSION, number],
        [balanced, fetched],
        partition_units(number),
        functools.partial(_read_range, driver.out, list(zip(balanced.files, fetched.files, strict=True)), number),
        _shard,
    )


def _picture_bytes(driver: Run, balanced: Output, fetched: Output) -> int:
    """Bytes of the pictures that the balanced rows have in the crawl's files.

    Footers tell the bytes of each row group, which its rows are taken to share equally: a group is a few hundred neighbours in uid order.
    So no picture need be read twice.
    """
    sizes = run_stage(
        driver,
        "shard-bytes",
        None,
        [balanced, fetched],
        [Unit(f"{n:05d}", names) for n, names in enumerate(zip(balanced.files, fetched.files, strict=True))],
        functools.partial(_read_bytes, driver.out),
        _as_it_is,
        accounted=False,
    )
    return sum(driver.map(functools.partial(_sum_bytes, driver.out), sizes.files))


def _read_bytes(out: str, unit: Unit) -> pa.Table:
    kept, fetched = (storage.join(out, name) for name in unit.inputs)
    uids, total = parquet.read(kept, ["uid"])["uid"], 0
    with parquet.open_file(fetched) as source:
        place = source.schema_arrow.names.index("image")
        for number in range(source.num_row_groups):
            group = source.read_row_group(number, columns=["uid"])["uid"]
            wanted = pc.sum(pc.is_in(group, value_set=one_array(uids))).as_py() or 0
            # A column of nested type before `image` would shift the footer's numbers; SHARD_SCHEMA has its lists after it.
            size = source.metadata.row_group(number).column(place).total_compressed_size
            total += size * wanted // len(group)
    return pa.table({"bytes": pa.array([total], pa.int64())})


def _as_it_is(table: pa.Table, unit: Unit) -> Result:
    return Result(table)


def _sum_bytes(out: str, name: str) -> int:
    return cast(int, parquet.read(storage.join(out, name))["bytes"][0].as_py())


def _read_range(out: str, pairs: Sequence[tuple[str, str]], number: int, unit: Unit) -> pa.Table:
    place = unit.params["partition"]
    assert isinstance(place, int)
    low, high = _first_uid(place, number), _first_uid(place + 1, number) if place + 1 < number else None
    return pa.concat_tables(at_once(functools.partial(_read_pair, out, low, high), pairs))


def _read_pair(out: str, low: bytes, high: bytes | None, pair: tuple[str, str]) -> pa.Table:
    kept, fetched = (storage.join(out, name) for name in pair)
    rows = parquet.read_uid_range(kept, low, high)
    pictures = parquet.read_uid_range(fetched, low, high, ["uid", "image"])
    at = find(words(rows["uid"]), words(pictures["uid"]))
    return rows.append_column("image", take_rows(pictures, at)["image"])


def _first_uid(place: int, number: int) -> bytes:
    """The smallest uid of range `place` of `number`: shard_of cuts by the first 32 bits."""
    return (-(-(place << 32) // number)).to_bytes(4, "big") + bytes(12)


def _shard(table: pa.Table, unit: Unit) -> Result:
    rows = shard_table(table)
    return Result(rows, beside={INDEX_SUFFIX: rows.drop_columns(["image"])})


def publish(driver: Run, made_from: dict[str, Json], queries: QueryList, outputs: Mapping[str, Output]) -> str:
    """The manifest, written last: from here on the corpus is there. `made_from` is the configuration's identity. Returns its URI."""
    last = outputs["shards"]
    folder = storage.join(driver.out, "shards")
    found = manifest.Manifest(
        format_version=FORMAT_VERSION,
        rows=last.rows,
        content_root=content_root(driver, last, folder),
        shards=entries(driver, last, last.folder.removeprefix("shards/")),
        hashes=dict(HASH_VERSION),
        config=made_from,
        config_digest=digest_json(made_from),
        query_list_digest=queries.digest,
        counts={name: output.counts for name, output in outputs.items()},
    )
    return manifest.publish(folder, found)


def entries(driver: Run, shards: Output, below: str) -> list[manifest.Shard]:
    """The manifest's lines for committed shards; `below` is their folder relative to the manifest."""
    layouts = driver.map(parquet.layout, [storage.join(driver.out, name) for name in shards.files])
    return [
        manifest.shard_entry(record.output, layout, record.beside[INDEX_SUFFIX], below=below)
        for record, layout in zip(shards.records, layouts, strict=True)
    ]


def content_root(driver: Run, shards: Output, folder: str) -> str:
    """The root over all rows, from the shards' parts, which stay beside the manifest in `folder` for proofs of single rows."""
    starts = itertools.accumulate((record.rows_out for record in shards.records), initial=0)
    indexes = [storage.join(driver.out, name) for name in shards.beside(INDEX_SUFFIX)]
    parts = driver.map(_subtrees, list(zip(indexes, starts, strict=False)))
    root = merkle.root_of_subtrees(itertools.chain.from_iterable(parts))
    manifest.write_subtrees(folder, root, parts)
    return root


def _subtrees(index: tuple[str, int]) -> list[merkle.Subtree]:
    uri, start = index
    return merkle.subtrees(manifest.shard_leaves(uri), start)
