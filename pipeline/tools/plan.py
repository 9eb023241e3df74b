"""plan: what a corpus of a given size costs in hours, core-hours, bytes, requests and money, stage by stage, before anybody starts it.

    python -m pipeline plan --config pipeline/configs/plan.toml cluster.nodes=16
    python -m pipeline plan --config pipeline/configs/plan.toml --from s3://bucket/trial      # rates of a run of one's own

What a row costs was measured: in the table beside this file (rates.toml, with date and machine; `python -m tests.benchmarks.pipeline
--write` makes it), or in the records of an earlier run. What millions of rows cost is that, multiplied: extrapolated, and marked as such
with the factor. Every stage is taken to be linear in its rows, which its tests hold; a unit's fixed cost counts as part of its rows' cost,
so that rates from small units are too high rather than too low. A slot of the crawl is taken for a core although it mostly waits.

Numbers of rows: the target states the rows of the sources, how many of them match a query, are fetched and are kept. Between these the
shares of the measurement hold.

Units are those of the configuration of the run that is planned (`pipeline`). units.py, beside this file, says how it is cut, how much
memory a unit takes, and how many files units open of each other: a cost that no measurement of a small run shows.
"""

import collections
import datetime
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pydantic
from pydantic import Field

from pipeline import status
from pipeline.config import PipelineConfig
from pipeline.contracts import storage
from pipeline.contracts.at_once import READERS
from pipeline.contracts.config import StrictModel, load_config
from pipeline.contracts.errors import InputError
from pipeline.records import Record
from pipeline.tools.units import FOOTER_BYTES, FOOTER_SECONDS, READS_PER_FILE, Cut, cut

STAGES = ("candidates", "exact", "filter", "precap", "crawl", "dedup", "balance", "shards")
"""The stages that every run has, in order. Optional ones and the steps between count as a part of the one they belong to."""

_BELONGS = {"exact-url": "precap", "exact-caption": "precap", "exact-source": "dedup", "policy": "dedup", "ledger": "balance",
            "shard": "shards", "retry": "crawl"}  # fmt: skip
_MEASURED = Path(__file__).with_name("rates.toml")
_FOR_WORKERS = 0.7  # of a node's memory; Ray keeps the rest for its object store


class Rate(StrictModel):
    """What one stage did in a measurement, with the steps that belong to it."""

    rows_in: int = Field(ge=0)
    rows_out: int = Field(ge=0)
    core_seconds: float = Field(ge=0)
    """Seconds of all units together; each of them had one core."""
    bytes_rows: int = Field(ge=0)
    """Bytes of the kept rows' files."""
    bytes_more: int = Field(ge=0)
    """Bytes of everything else that it committed: rejected rows, steps, tables beside."""
    files: int = Field(ge=0)
    """Objects written, records included."""
    units: int = Field(ge=0)


class Rates(StrictModel):
    """A measurement: when, on what, and each stage."""

    date: str
    machine: str
    note: str
    stages: dict[str, Rate]


class ClusterConfig(StrictModel):
    """Machines that are all alike."""

    nodes: int = Field(ge=1)
    cores_per_node: int = Field(ge=1)
    """Units at a time on a node."""
    memory_gb_per_node: float = Field(gt=0)
    network_gbit_per_node: float = Field(gt=0)
    """To the store and to the web, both ways together."""
    read_ms: float = Field(default=20.0, ge=0)
    """Until the store answers a read. A unit waits for READERS of them at once."""

    @property
    def cores(self) -> int:
        return self.nodes * self.cores_per_node

    @property
    def memory_per_core(self) -> float:
        """Bytes that a unit may take when all cores are at work."""
        return self.memory_gb_per_node * 1e9 * _FOR_WORKERS / self.cores_per_node

    @property
    def network(self) -> float:
        """Bytes a second of all nodes together."""
        return self.nodes * self.network_gbit_per_node * 1e9 / 8


class TargetConfig(StrictModel):
    """The paper's corpus by default: 500,000 queries, at most 20,000 pairs each."""

    candidates: int | None = Field(default=None, ge=1)
    """Rows of the sources; unset: as many as the measured share of captions that match leads to, which is that of a generated web."""
    matched: int = Field(default=1_600_000_000, ge=1)
    """Pairs that match a query."""
    fetched: int = Field(default=550_000_000, ge=1)
    """Pairs that precap lets through to the crawl."""
    pairs: int = Field(default=400_000_000, ge=1)
    """Pairs that balance keeps."""
    fetch_bytes: int = Field(default=100_000, ge=0)
    """Bytes that come over the network for a fetch, on average."""


class PricesConfig(StrictModel):
    """In one currency; nothing is built in."""

    core_hour: float = Field(ge=0)
    """All cores are paid for as long as a stage runs, also those that wait for the network or have no unit."""
    gigabyte_month: float = Field(ge=0)
    months: float = Field(default=1.0, ge=0)
    """How long everything is kept."""
    thousand_writes: float = Field(default=0.0, ge=0)
    thousand_reads: float = Field(default=0.0, ge=0)


class PlanConfig(StrictModel):
    pipeline: str
    """The configuration of the run that is planned, a file of `python -m pipeline run`: how it is cut into units."""
    cluster: ClusterConfig
    target: TargetConfig = TargetConfig()
    prices: PricesConfig


class Line(NamedTuple):
    """A stage at the target's size."""

    stage: str
    rows_in: int
    rows_out: int
    cut: Cut
    core_hours: float
    """Of its units' cores, `opening_hours` among them."""
    opening_hours: float
    """For opening files: footers, and waiting for the store."""
    bytes: int
    """What it writes."""
    traffic: int
    """Bytes over the network: what it reads, fetches and writes."""
    writes: int
    reads: int
    factor: float
    """How many times the measurement's rows these are."""

    def hours(self, cluster: ClusterConfig) -> float:
        """Until the last unit has ended: as long as the cores that have a unit take, or the network."""
        return max(self.core_hours / min(cluster.cores, self.cut.units), self.traffic / cluster.network / 3600)


# ---- rates


def measured(uri: str | None = None) -> Rates:
    """The shipped table, or one at `uri`. Raises InputError when it is none."""
    place = uri or str(_MEASURED)
    try:
        return Rates.model_validate(tomllib.loads(storage.read_text(place)))
    except (tomllib.TOMLDecodeError, RecursionError, pydantic.ValidationError) as error:
        said = " ".join(str(error).split())[:200]
        raise InputError(
            f"{place}: no table of rates ({said}); write one with python -m tests.benchmarks.pipeline --write FILE"
        ) from None


def from_run(out: str) -> Rates:
    """The rates of a run, from its records. Raises InputError when one of STAGES is not complete, or a record tells no time."""
    stages = status.stages(out)
    found: dict[str, Rate] = {}
    for name in STAGES:
        own = next((stage for stage in stages if stage.name == name), None)
        if own is None or len(own.records) < own.units:
            raise InputError(
                f"{out}: its stage {name} is not complete, so that its rates are unknown; finish the run first"
            )
        group = [record for stage in stages if _belongs(stage.name) == name for record in stage.records]
        _require_time(out, group)
        rows = sum(record.output.bytes + sum(file.bytes for file in record.beside.values()) for record in own.records)
        found[name] = Rate(
            rows_in=sum(record.rows_in for record in own.records),
            rows_out=sum(record.rows_out for record in own.records),
            core_seconds=round(sum(record.seconds for record in group), 3),
            bytes_rows=rows,
            bytes_more=sum(file.bytes for record in group for file in record.files) - rows,
            files=sum(len(record.files) + 1 for record in group),
            units=len(own.records),
        )
    return Rates(date=_date(stages[0].records), machine="the run's", note=f"records of {out}", stages=found)


def _require_time(out: str, records: list[Record]) -> None:
    """Records were once timed by the machine's clock, which may be set back."""
    for record in records:
        if record.seconds < 0:
            raise InputError(
                f"{out}: its stage {record.stage} has a unit {record.unit!r} of {record.seconds:.1f} seconds, as if the clock was set back "
                "meanwhile; take the rates of another run, or the shipped ones without --from"
            )


def _belongs(name: str) -> str | None:
    """The stage of STAGES that a stage or step is counted with: dedup-edges with dedup, exact-url with precap."""
    for known in (*_BELONGS, *STAGES):
        if name == known or name.startswith(f"{known}-"):
            return _BELONGS.get(known, known)
    return None


def _date(records: list[Record]) -> str:
    return (
        datetime.datetime.fromtimestamp(min((r.started for r in records), default=0.0), datetime.UTC).date().isoformat()
    )


# ---- the plan


def lines(rates: Mapping[str, Rate], config: PlanConfig, pipeline: PipelineConfig) -> list[Line]:
    """Every stage at the target's size. Raises InputError when a stage was measured on no rows, or the target contradicts itself."""
    empty = [name for name in STAGES if name not in rates or not rates[name].rows_in or not rates[name].rows_out]
    if empty:
        raise InputError(
            f"rates: nothing was measured of {', '.join(empty)}; measure a run in which rows reach the shards"
        )
    rows = _rows(rates, config.target)
    kept = {name: round(rates[name].bytes_rows / rates[name].rows_out * rows[name][1]) for name in STAGES}
    cuts = cut(pipeline, rows, kept["crawl"], kept["shards"])
    read = {
        "candidates": kept["candidates"],
        "exact": kept["candidates"],
        "filter": kept["exact"],
        "precap": kept["filter"],
        "crawl": kept["precap"] + config.target.fetched * config.target.fetch_bytes,
        "dedup": kept["dedup"],
        "balance": kept["dedup"],
        "shards": kept["balance"] + cuts["shards"].picture_bytes,
    }
    found: list[Line] = []
    for name in STAGES:
        rate, opened, (rows_in, rows_out) = rates[name], cuts[name].opened, rows[name]
        factor = rows_in / rate.rows_in
        reads = sum(each.files for each in opened) * READS_PER_FILE
        opening = reads * config.cluster.read_ms / 1000 / READERS + sum(each.footer_seconds for each in opened)
        size = kept[name] + round(rate.bytes_more * factor) + _rejected_bytes(name, rates, rows)
        size += cuts[name].footers.footer_bytes
        found.append(
            Line(
                stage=name,
                rows_in=rows_in,
                rows_out=rows_out,
                cut=cuts[name],
                core_hours=(rate.core_seconds * factor + opening) / 3600,
                opening_hours=opening / 3600,
                bytes=size,
                traffic=read[name] + size + sum(each.footer_bytes for each in opened),
                writes=math.ceil(cuts[name].units * rate.files / max(1, rate.units)),
                reads=reads,
                factor=factor,
            )
        )
    return found


def _rows(rates: Mapping[str, Rate], target: TargetConfig) -> dict[str, tuple[int, int]]:
    """(rows in, rows out) of each stage: what the target states, and between by the measured shares."""
    share = {name: rates[name].rows_out / rates[name].rows_in for name in STAGES}
    before = share["candidates"] * share["exact"]
    candidates = round(target.matched / share["filter"] / before) if target.candidates is None else target.candidates
    into_exact, into_filter = round(candidates * share["candidates"]), round(candidates * before)
    if into_filter < target.matched:
        raise InputError(
            f"target.candidates={candidates!r} leave {into_filter:,} rows for the filter, fewer than target.matched="
            f"{target.matched!r}; raise the one or lower the other"
        )
    out_of_crawl = round(target.fetched * share["crawl"])
    out_of_dedup = round(out_of_crawl * share["dedup"])
    return {
        "candidates": (candidates, into_exact),
        "exact": (into_exact, into_filter),
        "filter": (into_filter, target.matched),
        "precap": (target.matched, target.fetched),
        "crawl": (target.fetched, out_of_crawl),
        "dedup": (out_of_crawl, out_of_dedup),
        "balance": (out_of_dedup, target.pairs),
        "shards": (target.pairs, target.pairs),
    }


def _rejected_bytes(name: str, rates: Mapping[str, Rate], rows: Mapping[str, tuple[int, int]]) -> int:
    """Bytes of the rows that a stage rejects beyond the measured share, which is in `bytes_more`: each as large as it came in."""
    if name in ("candidates", "shards"):
        return 0
    before, (rows_in, rows_out) = rates[STAGES[STAGES.index(name) - 1]], rows[name]
    more = rows_in - rows_out - rows_in * (1 - rates[name].rows_out / rates[name].rows_in)
    return round(max(0.0, more) * before.bytes_rows / before.rows_out)


def money(line: Line, cluster: ClusterConfig, prices: PricesConfig) -> float:
    """What a stage costs: the cluster while it runs, what it wrote for as long as that is kept, its requests."""
    return (
        line.hours(cluster) * cluster.cores * prices.core_hour
        + line.bytes / 1e9 * prices.gigabyte_month * prices.months
        + line.writes / 1000 * prices.thousand_writes
        + line.reads / 1000 * prices.thousand_reads
    )


_COLUMNS = {
    "rows in": 15,
    "rows out": 15,
    "units": 9,
    "GB/unit": 9,
    "core-hours": 12,
    "opening": 10,
    "hours": 9,
    "GB": 11,
    "GB moved": 13,
    "writes": 12,
    "reads": 16,
    "money": 13,
}


def describe(config: PlanConfig, rates: Rates) -> str:
    """The plan for people. Every figure says where it comes from. Raises InputError as `lines` does, and for a bad `pipeline`."""
    found = lines(rates.stages, config, load_config(PipelineConfig, config.pipeline))
    text = [f"rates: measured on {rates.date}, {rates.machine}; {rates.note}", ""]
    text.append(_row("stage", dict(zip(_COLUMNS, _COLUMNS, strict=True))) + "  rate")
    total: collections.Counter[str] = collections.Counter()
    for line in found:
        summed = {
            "core-hours": line.core_hours,
            "opening": line.opening_hours,
            "hours": line.hours(config.cluster),
            "GB": line.bytes / 1e9,
            "GB moved": line.traffic / 1e9,
            "writes": line.writes,
            "reads": line.reads,
            "money": money(line, config.cluster, config.prices),
        }
        total.update(summed)
        own = {
            "rows in": line.rows_in,
            "rows out": line.rows_out,
            "units": line.cut.units,
            "GB/unit": line.cut.unit_bytes / 1e9,
        }
        basis = f"measured on {rates.stages[line.stage].rows_in:,} rows, extrapolated x{line.factor:,.0f}"
        text.append(f"{_row(line.stage, _figures({**own, **summed}))}  {basis}")
    text.append(_row("all", _figures(total)))
    return "\n".join([*text, "", *_given(config), *_remarks(config, found), *_warnings(config, found, rates)])


def _row(stage: str, cells: Mapping[str, str]) -> str:
    return f"{stage:<11}" + "".join(f"{cells.get(name, ''):>{width}}" for name, width in _COLUMNS.items())


def _figures(values: Mapping[str, float]) -> dict[str, str]:
    places = {"money": 2, "GB/unit": 2, "core-hours": 1, "opening": 1, "hours": 1, "GB": 1, "GB moved": 1}
    return {name: f"{value:,.{places.get(name, 0)}f}" for name, value in values.items()}


def _given(config: PlanConfig) -> list[str]:
    target, cluster = config.target, config.cluster
    sources = "" if target.candidates is None else f"{target.candidates:,} rows of sources, "
    return [
        f"given: {sources}{target.matched:,} matched, {target.fetched:,} fetched of {target.fetch_bytes:,} bytes, {target.pairs:,} kept",
        f"given: {cluster.nodes:,} nodes of {cluster.cores_per_node:,} cores, {cluster.memory_gb_per_node:g} GB and "
        f"{cluster.network_gbit_per_node:g} Gbit/s, {cluster.read_ms:g} ms a read, prices; units and shards by {config.pipeline}",
    ]


def _remarks(config: PlanConfig, found: list[Line]) -> list[str]:
    kept = next(line.bytes for line in found if line.stage == "shards")
    everything = sum(line.bytes for line in found)
    return [
        "extrapolated: every other row count, by the measured shares of rows that each stage lets through; bytes and core-hours a row",
        f"measured apart: {FOOTER_BYTES} bytes a column and {FOOTER_SECONDS * 1e6:g} us a row group of a footer, memory a row (units.py)",
        f"disk: all stages are kept, {everything / 1e9:,.1f} GB; the corpus alone is {kept / 1e9:,.1f} GB, the rest intermediates",
        "core-hours: `opening` is what of them goes into opening files of other units; it grows with the square of the units",
        "hours: the longer of the cores' and the network's; what runs as one unit, as clusters of duplicates, is taken to be spread",
        "crawl: was measured against a server nearby; a far one keeps a slot waiting for longer",
    ]


def _warnings(config: PlanConfig, found: list[Line], rates: Rates) -> list[str]:
    """What makes the plan one that should not be followed."""
    target, cluster, warnings = config.target, config.cluster, []
    if target.candidates is None:
        share = rates.stages["filter"].rows_out / rates.stages["filter"].rows_in
        warnings.append(
            f"doubtful: {share:.0%} of the captions that were measured matched, as those of a generated web do, not those of the web; "
            "count the rows of your sources and give target.candidates"
        )
    for line in found:
        if line.cut.unit_bytes > cluster.memory_per_core:
            warnings.append(
                f"too large: a unit of {line.stage} takes {line.cut.unit_bytes / 1e9:,.1f} GB, a core has "
                f"{cluster.memory_per_core / 1e9:,.1f} GB beside Ray's object store; {_remedy(line, cluster)}"
            )
    left = next(line.rows_in for line in found if line.stage == "balance")
    if left < target.pairs:
        warnings.append(
            f"too few: {target.fetched:,} fetches leave {left:,} pairs by the measured shares, fewer than {target.pairs:,}; raise "
            "precap.per_query and target.fetched"
        )
    return warnings


def _remedy(line: Line, cluster: ClusterConfig) -> str:
    if line.stage == "candidates":
        return "lower sources.rows_per_unit"
    if line.stage == "shards":
        return "lower shard.bytes or shard.rows"
    if line.stage in ("crawl", "dedup", "balance"):
        return f"raise crawl.units to {math.ceil(line.cut.units * line.cut.unit_bytes / cluster.memory_per_core):,}"
    return "take nodes with more memory a core"
