"""crawl: rows to the unit that owns their host, then every unit fetched. The fetching is pipeline/crawl's."""

import functools

import pyarrow as pa

from pipeline.config import PipelineConfig
from pipeline.content.hashes import HASH_VERSION
from pipeline.contracts import parquet, storage
from pipeline.contracts.config import semantic
from pipeline.crawl import stage as hosts
from pipeline.engine import Result, Run, Unit
from pipeline.stages.common import (
    Output,
    part_units,
    partition_units,
    read_all,
    read_part,
    read_partition,
    run_stage,
    with_partition,
)

_DOMAIN_SCHEMA = pa.schema([("domain", pa.string()), ("rows", pa.int64())])


def crawl(driver: Run, config: PipelineConfig, wanted: Output) -> Output:
    """Units are hashes of the registered domain; a domain with more than a unit's share of rows lies in several of them."""
    parts = part_units(wanted)
    urls = functools.partial(read_part, driver.out, ["url"])
    domains = run_stage(driver, "crawl-domains", None, [wanted], parts, urls, _domains, accounted=False)
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
        partitioned=True,
    )
    return run_stage(
        driver,
        "crawl",
        [semantic(config.crawl), dict(HASH_VERSION)],
        [split],
        partition_units(config.crawl.units),
        functools.partial(read_partition, driver.out, split.files),
        functools.partial(_crawl, driver.out, ways.files[0], config),
        row_wise=True,
    )


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


def _crawl(out: str, ways: str, config: PipelineConfig, table: pa.Table, unit: Unit) -> Result:
    return Result(*hosts.crawl(table, config.crawl, _read_ways(out, ways)))
