"""crawl: rows to the unit that owns their host, then every unit fetched. The fetching is pipeline/crawl's."""

import functools
from collections.abc import Mapping, Sequence

import pyarrow as pa

from pipeline import generations
from pipeline.commit import Result, Unit
from pipeline.config import PipelineConfig
from pipeline.content.hashes import HASH_VERSION
from pipeline.contracts import parquet, storage
from pipeline.contracts.at_once import at_once
from pipeline.contracts.config import Json, semantic
from pipeline.contracts.schema import REJECTED_SCHEMA
from pipeline.crawl import stage as hosts
from pipeline.engine import Run
from pipeline.records import taken_up
from pipeline.sources.rows import holds_pictures, require_unchanged
from pipeline.stages.candidates import Source
from pipeline.stages.common import (
    Generation,
    Output,
    part_units,
    partition_units,
    read_all,
    read_part,
    read_partition,
    run_stage,
    with_partition,
)

_VERSION = 3  # of what the steps below make of the same rows; 3: codings, limits of scans and of wrapping, whole lines of robots.txt
_DOMAIN_SCHEMA = pa.schema([("domain", pa.string()), ("rows", pa.int64())])


def crawl(driver: Run, config: PipelineConfig, sources: Sequence[Source], wanted: Output) -> Output:
    """Units are hashes of the registered domain; a domain with more than a unit's share of rows lies in several of them.

    What `sources` hold of pictures is read and not fetched: another content of these is another crawl, although the rows may be the same.
    """
    parts = part_units(wanted)
    urls = functools.partial(read_part, driver.out, ["url"])
    domains = run_stage(
        driver, "crawl-domains", None, [wanted], parts, urls, _domains, version=_VERSION, accounted=False
    )
    ways = run_stage(
        driver,
        "crawl-plan",
        [config.crawl.units, config.crawl.host_split],
        [domains],
        [Unit("all")],
        functools.partial(read_all, driver.out, domains.files),
        functools.partial(_plan_hosts, config.crawl.units, config.crawl.host_split),
        accounted=False,
    )
    split = run_stage(
        driver,
        "crawl-split",
        config.crawl.units,
        [wanted, ways],
        parts,
        functools.partial(read_part, driver.out, None),
        functools.partial(_split_by_host, driver.out, ways.files[0], config.crawl.units),
        version=_VERSION,
        partitioned=True,
    )
    held = [source for source in sources if holds_pictures(source.file)]
    archives = {source.file.name: source for source in held}
    roots = [value for source in held for value in (source.file.name, source.digest)]
    first = run_stage(
        driver,
        "crawl",
        [semantic(config.crawl), dict(HASH_VERSION)],
        [split],
        partition_units(config.crawl.units),
        functools.partial(read_partition, driver.out, split.files),
        functools.partial(_crawl, driver.out, ways.files[0], config, archives),
        version=_VERSION,
        row_wise=True,
        roots=roots,
    )
    return _generations(driver, config, archives, roots, split, ways, first)


def _generations(
    driver: Run,
    config: PipelineConfig,
    archives: Mapping[str, Source],
    roots: Sequence[str],
    split: Output,
    ways: Output,
    first: Output,
) -> Output:
    """The crawl with the generations that `retry` has asked for. Units are those of the crawl, so that they own the same hosts."""
    fetched = first
    asked: list[Output] = []
    for number, request in enumerate(generations.requests(driver.out, first.folder), 1):
        later = [_rejected_files(generation.output) for generation in fetched.later]
        rows = run_stage(
            driver,
            f"retry-{number}-rows",
            [number, *request.reasons],
            [split, fetched, *asked],
            partition_units(config.crawl.units),
            functools.partial(read_partition, driver.out, split.files),
            functools.partial(
                _rows_to_fetch,
                driver.out,
                _rejected_files(first),
                [(output.files, rejected) for output, rejected in zip(asked, later, strict=True)],
                request.reasons,
            ),
            accounted=False,
        )
        again = run_stage(
            driver,
            f"retry-{number}",
            [number, semantic(config.crawl), dict(HASH_VERSION)],
            [rows],
            part_units(rows),
            functools.partial(read_part, driver.out, None),
            functools.partial(_crawl, driver.out, ways.files[0], config, archives),
            version=_VERSION,
            row_wise=True,
            roots=roots,
        )
        asked.append(rows)
        fetched = fetched._replace(later=(*fetched.later, Generation(again, taken_up(rows.records))))
    return fetched


def _domains(table: pa.Table, unit: Unit) -> Result:
    counts = hosts.domain_counts(table["url"])
    return Result(pa.table([list(counts), list(counts.values())], schema=_DOMAIN_SCHEMA))


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
    return Result(with_partition(table, partition))


def _rejected_files(output: Output) -> list[str | None]:
    """The rejected files in unit order; None where a unit rejected nothing."""
    return [
        None if record.rejected_file is None else storage.join(output.folder, record.rejected_file.name)
        for record in output.records
    ]


def _rows_to_fetch(
    out: str,
    rejected: Sequence[str | None],
    later: Sequence[tuple[Sequence[str], Sequence[str | None]]],
    reasons: Sequence[str],
    table: pa.Table,
    unit: Unit,
) -> Result:
    place = unit.params["partition"]
    assert isinstance(place, int)
    generations_of_unit = [
        (parquet.read(storage.join(out, files[place]), ["uid"]), _read_rejected(out, again[place]))
        for files, again in later
    ]
    standing = generations.stands(_read_rejected(out, rejected[place]), generations_of_unit)
    rows, counts = generations.rows_to_fetch(table, standing, reasons)
    noted: dict[str, Json] = {**counts}
    return Result(rows, notes={"taken_up": noted})


def _read_rejected(out: str, name: str | None) -> pa.Table:
    return REJECTED_SCHEMA.empty_table() if name is None else parquet.read(storage.join(out, name), ["uid", "reason"])


def _crawl(
    out: str, ways: str, config: PipelineConfig, archives: Mapping[str, Source], table: pa.Table, unit: Unit
) -> Result:
    uris = {name: source.file.uri for name, source in archives.items()}
    result = Result(*hosts.crawl(table, config.crawl, _read_ways(out, ways), uris))
    read = [archives[name] for name in hosts.archives_of(table)]
    at_once(lambda source: require_unchanged(source.file, source.stamp), read)
    return result
