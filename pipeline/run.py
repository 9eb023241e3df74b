"""The stages in order: read this first.

    candidates   URL tables → (url, raw caption) rows with an identity; what is no http(s) URL or has no caption is rejected
    exact        the same (url, raw caption) once
    filter       caption cleaned, matched against the query list; every query it contains is recorded
    precap       at most precap.per_query pairs a query go on: nothing is fetched that the cap would throw away
    crawl        units of whole hosts; every URL fetched once, decoded safely, resized, hashed
    dedup        near-equal pairs: blocks → verified edges → who stays for whom
    balance      at most balance.cap pairs a query, each pair counted for its rarest query
    shards       survivors in uid order → Parquet shards with an index beside each, then the manifest

Each function below is one stage: it says what its units are, what a unit reads and which pure function does the work; `engine.Run`
does the rest (resume, commit, accounting). What a stage writes lies under OUT/NAME/DIGEST, and the next one reads it from there: nothing
but names and counts passes through the driver.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import balance, dedup
from pipeline.config import PipelineConfig
from pipeline.content.hashes import HASH_VERSION
from pipeline.contracts import manifest, merkle, parquet, storage
from pipeline.contracts.config import Json, digest, semantic
from pipeline.contracts.errors import InputError
from pipeline.contracts.schema import FORMAT_VERSION, INDEX_SCHEMA
from pipeline.crawl import stage as hosts
from pipeline.engine import Result, Run, Stage, Unit, stage_digest
from pipeline.keys import one_array, sort_order, words
from pipeline.match import Matcher, QueryList, filter_rows, load_queries
from pipeline.records import Record, output_root
from pipeline.shard import shard_count, shard_of, shard_table
from pipeline.sources import url_tables

STAGES = ("candidates", "exact", "filter", "precap", "crawl", "dedup", "balance", "shards")
"""The stages whose rows are pairs, in order; each has its line in the manifest's accounting."""

INDEX_SUFFIX = ".index.parquet"
ASSIGNED_SUFFIX = ".assigned.parquet"
_QUERIES_PER_PARTITION = 10_000
_ROWS_PER_BLOCK_PARTITION = 50_000

COUNT_SCHEMA = pa.schema([("query_id", pa.int32()), ("rows", pa.int64())])


def run(config: PipelineConfig, until: str = STAGES[-1]) -> str:
    """Run the stages up to `until`, skipping what is done. Returns the folder of the last stage, or the manifest's URI."""
    queries = load_queries(config.filter.queries)
    with Run(config.run.out, config.engine, config.model_dump(mode="json"), digest(config)) as driver:
        outputs: dict[str, Output] = {}
        for name, output in zip(STAGES, _outputs(driver, config, queries), strict=False):
            outputs[name] = output
            if name == until:
                break
        if until == "shards":
            return publish(driver, config, queries, outputs)
        return storage.join(config.run.out, outputs[until].folder)


def _outputs(driver: Run, config: PipelineConfig, queries: QueryList) -> Iterator["Output"]:
    """The stages, one after the other; the caller may stop after any of them."""
    yield (found := candidates(driver, config))
    yield (unique := exact(driver, found))
    yield (matched := filter_by_queries(driver, config, unique, queries))
    yield (wanted := at_most(driver, "precap", config.precap.per_query, config.run.seed, matched, queries))
    yield (fetched := crawl(driver, config, wanted))
    yield (distinct := remove_duplicates(driver, config, fetched))
    yield (balanced := at_most(driver, "balance", config.balance.cap, config.run.seed, distinct, queries))
    yield shards(driver, config, balanced, fetched)


class Output(NamedTuple):
    """What a stage committed: its folder relative to the run's output, a record per unit, and into how many partitions its rows are cut."""

    folder: str
    records: list[Record]
    partitions: int = 1

    @property
    def root(self) -> str:
        return output_root(self.records)

    @property
    def files(self) -> list[str]:
        """The output files in unit order, relative to the run's output."""
        return [storage.join(self.folder, record.output.name) for record in self.records]

    def beside(self, suffix: str) -> list[str]:
        return [storage.join(self.folder, record.beside[suffix].name) for record in self.records]

    @property
    def rows(self) -> int:
        return sum(record.rows_out for record in self.records)


def _run(
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


def _part_units(output: Output) -> list[Unit]:
    """One unit per committed file of the stage before."""
    return [Unit(f"{number:05d}", (name,)) for number, name in enumerate(output.files)]


def _partition_units(partitions: int) -> list[Unit]:
    """One unit per partition; it reads its rows from every file of the stage before, which the stage digest names."""
    return [Unit(f"{number:05d}", (), {"partition": number}) for number in range(partitions)]


def _read_part(out: str, columns: list[str] | None, unit: Unit) -> pa.Table:
    return parquet.read(storage.join(out, unit.inputs[0]), columns)


def _read_partition(out: str, files: Sequence[str], unit: Unit) -> pa.Table:
    number = unit.params["partition"]
    assert isinstance(number, int)
    parts = [parquet.read_where_equal(storage.join(out, name), "partition", number) for name in files]
    return pa.concat_tables(parts).drop_columns(["partition"]).combine_chunks()


def _with_partition(rows: pa.Table, partition: npt.NDArray[np.int32]) -> pa.Table:
    """Rows with their partition as first column, sorted by partition and uid."""
    order = pa.array(sort_order(words(rows["uid"]), partition))
    return rows.take(order).add_column(0, "partition", pa.array(partition, pa.int32()).take(order))


# ---- candidates


def candidates(driver: Run, config: PipelineConfig) -> Output:
    """Units are row ranges of Parquet files and whole text files; rows are partitioned by uid for the next stage."""
    files = url_tables.expand(config.sources)
    facts = driver.map(functools.partial(_file_facts, config=config.sources), files)
    partitions = shard_count(sum(rows for _, rows in facts), config.sources.rows_per_unit)
    units, uris = [], {}
    for number, (file, (sha256, rows)) in enumerate(zip(files, facts, strict=True)):
        uris[file.name] = file.uri
        step = config.sources.rows_per_unit if file.name.lower().endswith(".parquet") else max(1, rows)
        for place, start in enumerate(range(0, rows, step)):
            params: dict[str, Json] = {"start": start, "stop": min(rows, start + step)}
            units.append(Unit(f"{number:05d}-{place:06d}", (file.name, sha256), params))
    return _run(
        driver,
        "candidates",
        {"sources": semantic(config.sources), "partitions": partitions},
        [],
        units,
        functools.partial(_read_source, uris, config.sources),
        functools.partial(_candidates, config.sources, partitions),
        row_wise=True,
        partitioned=True,
        partitions=partitions,
        roots=[value for file, (sha256, _) in zip(files, facts, strict=True) for value in (file.name, sha256)],
    )


def _file_facts(file: url_tables.SourceFile, config: url_tables.SourcesConfig) -> tuple[str, int]:
    url_tables.columns(file, config)
    return storage.sha256_file(file.uri), url_tables.count_rows(file, config)


def _read_source(uris: dict[str, str], config: url_tables.SourcesConfig, unit: Unit) -> pa.Table:
    start, stop = unit.params["start"], unit.params["stop"]
    assert isinstance(start, int)
    assert isinstance(stop, int)
    file = url_tables.SourceFile(uris[unit.inputs[0]], unit.inputs[0])
    return url_tables.read(file, config, range(start, stop))


def _candidates(config: url_tables.SourcesConfig, partitions: int, table: pa.Table, unit: Unit) -> Result:
    rows, rejected = url_tables.candidates(table, config)
    return Result(_with_partition(rows, shard_of(rows["uid"], partitions)), rejected)


# ---- exact


def exact(driver: Run, found: Output) -> Output:
    """Units are the partitions of the uid space, so that equal pairs meet."""
    read = functools.partial(_read_partition, driver.out, found.files)
    return _run(driver, "exact", None, [found], _partition_units(found.partitions), read, _exact)


def _exact(table: pa.Table, unit: Unit) -> Result:
    return Result(*dedup.exact(table))


# ---- filter


def filter_by_queries(driver: Run, config: PipelineConfig, unique: Output, queries: QueryList) -> Output:
    """Units are the files of `exact`; the query list enters the digest by its content."""
    work = functools.partial(_filter, config.filter.queries, queries.digest)
    read = functools.partial(_read_part, driver.out, None)
    return _run(driver, "filter", queries.digest, [unique], _part_units(unique), read, work, row_wise=True)


def _filter(uri: str, list_digest: str, table: pa.Table, unit: Unit) -> Result:
    return Result(*filter_rows(table, _matcher(uri, list_digest)))


@functools.lru_cache(maxsize=1)
def _matcher(uri: str, list_digest: str) -> Matcher:
    """Built once in a worker process, not once in a unit."""
    queries = load_queries(uri)
    if queries.digest != list_digest:
        raise InputError(f"{uri}: the query list changed while the pipeline ran; run again")
    return Matcher(queries.queries)


# ---- precap and balance


def at_most(driver: Run, name: str, cap: int, seed: int, parts: Output, queries: QueryList) -> Output:
    """At most `cap` pairs a query. Four small steps give every query its limit; the last applies them to each file on its own.

    Memory: a count per query, and the `cap` smallest keys of the queries of one partition.
    """
    number = len(queries.queries)
    units = _part_units(parts)
    matches = functools.partial(_read_part, driver.out, ["uid", "query_ids"])
    counted = _run(
        driver, f"{name}-counts", number, [parts], units, matches, functools.partial(_counts, number), accounted=False
    )
    matched = _sum(driver, f"{name}-matched", counted, counted.files)
    partitions = shard_count(number, _QUERIES_PER_PARTITION)
    heads = _run(
        driver,
        f"{name}-heads",
        [cap, seed, partitions],
        [parts, matched],
        units,
        matches,
        functools.partial(_heads, driver.out, matched.files[0], number, cap, seed, partitions),
        accounted=False,
        partitioned=True,
    )
    assigned = _sum(driver, f"{name}-assigned", heads, heads.beside(ASSIGNED_SUFFIX))
    limits = _run(
        driver,
        f"{name}-limits",
        [cap, partitions],
        [heads, assigned],
        _partition_units(partitions),
        functools.partial(_read_partition, driver.out, heads.files),
        functools.partial(_limits, driver.out, assigned.files[0], number, cap),
        accounted=False,
    )
    kept = _run(
        driver,
        name,
        [cap, seed],
        [parts, matched, limits],
        units,
        functools.partial(_read_part, driver.out, None),
        functools.partial(_keep, driver.out, matched.files[0], limits.files, number, seed),
    )
    if name == "balance":
        work = functools.partial(_ledger, driver.out, matched.files[0], assigned.files[0], queries.queries, cap)
        nothing = functools.partial(_nothing, COUNT_SCHEMA)
        _run(
            driver, "ledger", [cap, queries.digest], [matched, assigned], [Unit("all")], nothing, work, accounted=False
        )
    return kept


def _sum(driver: Run, name: str, counted: Output, files: list[str]) -> Output:
    read = functools.partial(_read_all, driver.out, files)
    return _run(driver, name, None, [counted], [Unit("all")], read, _total, accounted=False)


def _read_all(out: str, files: Sequence[str], unit: Unit) -> pa.Table:
    return pa.concat_tables([parquet.read(storage.join(out, name)) for name in files]).combine_chunks()


def _nothing(schema: pa.Schema, unit: Unit) -> pa.Table:
    return schema.empty_table()


def _count_table(counts: npt.NDArray[np.int64]) -> pa.Table:
    """Counts per query without the zeros."""
    present = np.flatnonzero(counts)
    return pa.table([pa.array(present.astype(np.int32)), pa.array(counts[present])], schema=COUNT_SCHEMA)


def _dense(table: pa.Table, number: int) -> npt.NDArray[np.int64]:
    """Counts per query, int64 of shape (number,), summed over rows of COUNT_SCHEMA."""
    ids, rows = (one_array(table[name]).to_numpy(zero_copy_only=False) for name in COUNT_SCHEMA.names)
    dense = np.zeros(number, np.int64)
    np.add.at(dense, ids, rows)
    return dense


def _counts(number: int, table: pa.Table, unit: Unit) -> Result:
    return Result(_count_table(balance.counts(table, number)))


def _total(table: pa.Table, unit: Unit) -> Result:
    number = 1 + (pc.max(table["query_id"]).as_py() if table.num_rows else -1)
    return Result(_count_table(_dense(table, number)))


def _read_counts(out: str, name: str, number: int) -> npt.NDArray[np.int64]:
    return _dense(parquet.read(storage.join(out, name)), number)


def _heads(
    out: str, matched: str, number: int, cap: int, seed: int, partitions: int, table: pa.Table, unit: Unit
) -> Result:
    assigned = balance.assign(table, _read_counts(out, matched, number))
    heads = balance.heads(table["uid"], assigned, cap, seed)
    partition = (one_array(heads["query_id"]).to_numpy(zero_copy_only=False) % partitions).astype(np.int32)
    order = pa.array(np.argsort(partition, kind="stable"))
    rows = heads.take(order).add_column(0, "partition", pa.array(partition).take(order))
    return Result(rows, beside={ASSIGNED_SUFFIX: _count_table(balance.totals(assigned, number))})


def _limits(out: str, assigned: str, number: int, cap: int, table: pa.Table, unit: Unit) -> Result:
    return Result(balance.selection(table, cap, _read_counts(out, assigned, number)))


def _keep(
    out: str, matched: str, limit_files: Sequence[str], number: int, seed: int, table: pa.Table, unit: Unit
) -> Result:
    assigned = balance.assign(table, _read_counts(out, matched, number))
    kept, rejected = balance.apply(table, assigned, _read_all(out, limit_files, unit), seed)
    return Result(kept, rejected)


def _ledger(
    out: str, matched: str, assigned: str, queries: Sequence[str], cap: int, table: pa.Table, unit: Unit
) -> Result:
    number = len(queries)
    return Result(balance.ledger(queries, _read_counts(out, matched, number), _read_counts(out, assigned, number), cap))


# ---- crawl


def crawl(driver: Run, config: PipelineConfig, wanted: Output) -> Output:
    """Units are hashes of the registered domain; a domain with more than a unit's share of rows lies in several of them."""
    parts = _part_units(wanted)
    urls = functools.partial(_read_part, driver.out, ["url"])
    domains = _run(driver, "crawl-domains", None, [wanted], parts, urls, _domains, accounted=False)
    ways = _run(
        driver,
        "crawl-plan",
        [config.crawl.units, config.crawl.host_split],
        [domains],
        [Unit("all")],
        functools.partial(_read_all, driver.out, domains.files),
        functools.partial(_plan_hosts, config.crawl.units, config.crawl.host_split),
        accounted=False,
    )
    split = _run(
        driver,
        "crawl-split",
        config.crawl.units,
        [wanted, ways],
        parts,
        functools.partial(_read_part, driver.out, None),
        functools.partial(_split_by_host, driver.out, ways.files[0], config.crawl.units),
        partitioned=True,
    )
    return _run(
        driver,
        "crawl",
        [semantic(config.crawl), dict(HASH_VERSION)],
        [split],
        _partition_units(config.crawl.units),
        functools.partial(_read_partition, driver.out, split.files),
        functools.partial(_crawl, driver.out, ways.files[0], config),
        row_wise=True,
    )


def _domains(table: pa.Table, unit: Unit) -> Result:
    counts = hosts.domain_counts(table["url"])
    return Result(pa.table({"domain": list(counts), "rows": pa.array(counts.values(), pa.int64())}))


def _plan_hosts(units: int, host_split: int, table: pa.Table, unit: Unit) -> Result:
    summed = table.group_by("domain").aggregate([("rows", "sum")])
    counts = dict(zip(summed["domain"].to_pylist(), summed["rows_sum"].to_pylist(), strict=True))
    ways = sorted(hosts.split_ways(counts, units, host_split).items())
    columns = {"domain": [name for name, _ in ways], "ways": pa.array([number for _, number in ways], pa.int32())}
    return Result(pa.table(columns, schema=pa.schema([("domain", pa.string()), ("ways", pa.int32())])))


def _read_ways(out: str, name: str) -> dict[str, int]:
    table = parquet.read(storage.join(out, name))
    return dict(zip(table["domain"].to_pylist(), table["ways"].to_pylist(), strict=True))


def _split_by_host(out: str, ways: str, units: int, table: pa.Table, unit: Unit) -> Result:
    partition = hosts.partition(table["url"], units, _read_ways(out, ways)).to_numpy()
    return Result(_with_partition(table, partition))


def _crawl(out: str, ways: str, config: PipelineConfig, table: pa.Table, unit: Unit) -> Result:
    return Result(*hosts.crawl(table, config.crawl, _read_ways(out, ways)))


# ---- dedup


def remove_duplicates(driver: Run, config: PipelineConfig, fetched: Output) -> Output:
    """From here on rows travel without their picture; `shards` fetches it from the crawl's files by uid."""
    compared = ["uid", "caption", "image_sha256", "pdq256", "pdq_quality"]
    partitions = shard_count(fetched.rows, _ROWS_PER_BLOCK_PARTITION)
    blocks = _run(
        driver,
        "dedup-blocks",
        [semantic(config.dedup), partitions],
        [fetched],
        _part_units(fetched),
        functools.partial(_read_part, driver.out, compared),
        functools.partial(_blocks, config.dedup, partitions),
        accounted=False,
        partitioned=True,
    )
    edges = _run(
        driver,
        "dedup-edges",
        [semantic(config.dedup), config.run.seed],
        [blocks],
        _partition_units(partitions),
        functools.partial(_read_blocks, driver.out, blocks.files),
        functools.partial(_edges, config.dedup, config.run.seed),
        accounted=False,
    )
    clusters = _run(
        driver,
        "dedup-clusters",
        [config.dedup.by, config.run.seed],
        [edges],
        [Unit("all")],
        functools.partial(_read_all, driver.out, edges.files),
        functools.partial(_clusters, config.dedup, config.run.seed),
        accounted=False,
    )
    return _run(
        driver,
        "dedup",
        None,
        [fetched, clusters],
        _part_units(fetched),
        functools.partial(_read_part, driver.out, INDEX_SCHEMA.names),
        functools.partial(_drop, driver.out, clusters.files[0]),
    )


def _blocks(config: dedup.DedupConfig, partitions: int, table: pa.Table, unit: Unit) -> Result:
    return Result(dedup.blocks(table, config, partitions))


def _read_blocks(out: str, files: Sequence[str], unit: Unit) -> pa.Table:
    rows = _read_partition(out, files, unit)
    return rows.add_column(0, "partition", pa.array([unit.params["partition"]] * rows.num_rows, pa.int32()))


def _edges(config: dedup.DedupConfig, seed: int, table: pa.Table, unit: Unit) -> Result:
    found = dedup.edges(table, config, seed)
    return Result(found.table, notes=found.counts._asdict())


def _clusters(config: dedup.DedupConfig, seed: int, table: pa.Table, unit: Unit) -> Result:
    return Result(dedup.clusters(table, config, seed))


def _drop(out: str, clusters: str, table: pa.Table, unit: Unit) -> Result:
    return Result(*dedup.apply(table, parquet.read(storage.join(out, clusters))))


# ---- shards


def shards(driver: Run, config: PipelineConfig, balanced: Output, fetched: Output) -> Output:
    """Units are equal ranges of the uid space: rows from `balance`, their pictures from the crawl's files of the same number."""
    number = shard_count(balanced.rows, config.shard.rows)
    return _run(
        driver,
        "shards",
        [FORMAT_VERSION, number],
        [balanced, fetched],
        _partition_units(number),
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


def publish(driver: Run, config: PipelineConfig, queries: QueryList, outputs: dict[str, Output]) -> str:
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
        counts={name: count(output.records) for name, output in outputs.items()},
    )
    return manifest.publish(folder, found)


def _subtrees(index: tuple[str, int]) -> list[merkle.Subtree]:
    uri, start = index
    return merkle.subtrees(manifest.shard_leaves(uri), start)


def count(records: Sequence[Record]) -> manifest.StageCounts:
    """The accounting of a stage: the sum over its units."""
    rejected: dict[str, int] = {}
    for record in records:
        for reason, rows in record.rejected.items():
            rejected[reason] = rejected.get(reason, 0) + rows
    return manifest.StageCounts(
        rows_in=sum(record.rows_in for record in records),
        rows_out=sum(record.rows_out for record in records),
        rejected=dict(sorted(rejected.items())),
    )
