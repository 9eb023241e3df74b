"""plan: what a corpus of a given size costs in hours, core-hours, bytes, requests and money, stage by stage, before anybody starts it.

    python -m pipeline plan --config pipeline/configs/plan.toml cluster.cores=512
    python -m pipeline plan --config pipeline/configs/plan.toml --from s3://bucket/trial      # rates of a run of one's own

What a row costs was measured: in the table beside this file (rates.toml, with date and machine; `python -m tests.benchmarks.pipeline
--write` makes it), or in the records of an earlier run. What millions of rows cost is that, multiplied: extrapolated, and marked as such
with the factor. Every stage is taken to be linear in its rows, which its tests hold; a unit's fixed cost counts as part of its rows' cost,
so that rates from small units are too high rather than too low. A slot of the crawl is taken for a core although it mostly waits.

Numbers of rows: the target states how many pairs match a query, how many of them are fetched and how many are kept. Between these, and
before them, the shares of the measurement hold.
"""

import datetime
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pydantic
from pydantic import Field

from pipeline import status
from pipeline.contracts import storage
from pipeline.contracts.config import StrictModel
from pipeline.contracts.errors import InputError
from pipeline.records import Record

STAGES = ("candidates", "exact", "filter", "precap", "crawl", "dedup", "balance", "shards")
"""The stages that every run has, in order. Optional ones and the steps between count as a part of the one they belong to."""

_BELONGS = {"exact-url": "precap", "exact-caption": "precap", "exact-source": "dedup", "policy": "dedup", "ledger": "balance",
            "shard": "shards", "retry": "crawl"}  # fmt: skip
_MEASURED = Path(__file__).with_name("rates.toml")
_GETS_PER_FILE = 2  # the footer, and the row groups that are wanted


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
    cores: int = Field(ge=1)
    """Units at a time."""


class TargetConfig(StrictModel):
    """The paper's corpus by default: 500,000 queries, at most 20,000 pairs each."""

    matched: int = Field(default=1_600_000_000, ge=1)
    """Pairs that match a query."""
    fetched: int = Field(default=550_000_000, ge=1)
    """Pairs that precap lets through to the crawl."""
    pairs: int = Field(default=400_000_000, ge=1)
    """Pairs that balance keeps."""
    rows_per_unit: int = Field(default=1_000_000, ge=1)
    shard_bytes: int = Field(default=256 << 20, ge=1)


class PricesConfig(StrictModel):
    """In one currency; nothing is built in."""

    core_hour: float = Field(ge=0)
    gigabyte_month: float = Field(ge=0)
    months: float = Field(default=1.0, ge=0)
    """How long everything is kept."""
    thousand_writes: float = Field(default=0.0, ge=0)
    thousand_reads: float = Field(default=0.0, ge=0)


class PlanConfig(StrictModel):
    cluster: ClusterConfig
    target: TargetConfig = TargetConfig()
    prices: PricesConfig


class Line(NamedTuple):
    """A stage at the target's size."""

    stage: str
    rows_in: int
    rows_out: int
    core_hours: float
    bytes: int
    writes: int
    reads: int
    factor: float
    """How many times the measurement's rows these are."""


# ---- rates


def measured(uri: str | None = None) -> Rates:
    """The shipped table, or one at `uri`. Raises InputError when it is none."""
    place = uri or str(_MEASURED)
    try:
        return Rates.model_validate(tomllib.loads(storage.read_text(place)))
    except (tomllib.TOMLDecodeError, pydantic.ValidationError) as error:
        said = " ".join(str(error).split())[:200]
        raise InputError(
            f"{place}: no table of rates ({said}); write one with python -m tests.benchmarks.pipeline --write FILE"
        ) from None


def from_run(out: str) -> Rates:
    """The rates of a run, from its records. Raises InputError when a stage that every run has is not complete."""
    stages = status.stages(out)
    found: dict[str, Rate] = {}
    for name in STAGES:
        own = next((stage for stage in stages if stage.name == name), None)
        if own is None or len(own.records) < own.units:
            raise InputError(
                f"{out}: its stage {name} is not complete, so that its rates are unknown; finish the run first"
            )
        group = [record for stage in stages if _belongs(stage.name) == name for record in stage.records]
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


def lines(rates: Mapping[str, Rate], target: TargetConfig) -> list[Line]:
    """Every stage at the target's size. Raises InputError when a stage was measured on no rows."""
    empty = [name for name in STAGES if name not in rates or not rates[name].rows_in or not rates[name].rows_out]
    if empty:
        raise InputError(
            f"rates: nothing was measured of {', '.join(empty)}; measure a run in which rows reach the shards"
        )
    rows = _rows(rates, target)
    found: list[Line] = []
    for name in STAGES:
        rate, (rows_in, rows_out) = rates[name], rows[name]
        factor = rows_in / rate.rows_in
        size = round(rate.bytes_rows / rate.rows_out * rows_out + rate.bytes_more * factor)
        units = math.ceil(size / target.shard_bytes if name == "shards" else rows_in / target.rows_per_unit)
        before = math.ceil(rows_in / target.rows_per_unit)
        # These read their rows out of every file of the stage before; shards also from the crawl's. The others read a file each.
        files_read = {"exact": before, "crawl": before, "dedup": before, "shards": 2 * before}.get(name, 1)
        writes = math.ceil(units * rate.files / max(1, rate.units))
        found.append(
            Line(
                name,
                rows_in,
                rows_out,
                rate.core_seconds * factor / 3600,
                size,
                writes,
                units * files_read * _GETS_PER_FILE,
                factor,
            )
        )
    return found


def _rows(rates: Mapping[str, Rate], target: TargetConfig) -> dict[str, tuple[int, int]]:
    """(rows in, rows out) of each stage: what the target states, and between by the measured shares."""
    share = {name: rates[name].rows_out / rates[name].rows_in for name in STAGES}
    into_filter = round(target.matched / share["filter"])
    into_exact = round(into_filter / share["exact"])
    out_of_crawl = round(target.fetched * share["crawl"])
    out_of_dedup = round(out_of_crawl * share["dedup"])
    return {
        "candidates": (round(into_exact / share["candidates"]), into_exact),
        "exact": (into_exact, into_filter),
        "filter": (into_filter, target.matched),
        "precap": (target.matched, target.fetched),
        "crawl": (target.fetched, out_of_crawl),
        "dedup": (out_of_crawl, out_of_dedup),
        "balance": (out_of_dedup, target.pairs),
        "shards": (target.pairs, target.pairs),
    }


def money(line: Line, prices: PricesConfig) -> float:
    """What a stage costs: its cores, what it wrote for as long as that is kept, its requests."""
    return (
        line.core_hours * prices.core_hour
        + line.bytes / 1e9 * prices.gigabyte_month * prices.months
        + line.writes / 1000 * prices.thousand_writes
        + line.reads / 1000 * prices.thousand_reads
    )


def describe(config: PlanConfig, rates: Rates) -> str:
    """The plan for people. Every figure says where it comes from."""
    found = lines(rates.stages, config.target)
    names = [
        (16, "rows in"),
        (16, "rows out"),
        (12, "core-hours"),
        (9, "hours"),
        (11, "GB"),
        (13, "writes"),
        (14, "reads"),
        (12, "money"),
    ]
    head = f"{'stage':<11}" + "".join(f"{name:>{width}}" for width, name in names) + "  rate"
    text = [f"rates: measured on {rates.date}, {rates.machine}; {rates.note}", "", head]
    for line in found:
        hours = line.core_hours / config.cluster.cores
        basis = f"measured on {rates.stages[line.stage].rows_in:,} rows, extrapolated x{line.factor:,.0f}"
        figures = _figures(line.core_hours, hours, line, money(line, config.prices))
        text.append(f"{line.stage:<11}{line.rows_in:>16,}{line.rows_out:>16,}{figures}  {basis}")
    total = Line("", 0, 0, sum(line.core_hours for line in found), sum(line.bytes for line in found),
                 sum(line.writes for line in found), sum(line.reads for line in found), 0.0)  # fmt: skip
    cost = sum(money(line, config.prices) for line in found)
    text.append(
        f"{'all':<11}{'':>32}{_figures(total.core_hours, total.core_hours / config.cluster.cores, total, cost)}"
    )
    text += ["", *_remarks(config, found)]
    return "\n".join(text)


def _figures(core_hours: float, hours: float, line: Line, cost: float) -> str:
    return (
        f"{core_hours:>12,.1f}{hours:>9,.1f}{line.bytes / 1e9:>11,.1f}{line.writes:>13,}{line.reads:>14,}{cost:>12,.2f}"
    )


def _remarks(config: PlanConfig, found: list[Line]) -> list[str]:
    target, by_name = config.target, {line.stage: line for line in found}
    kept, everything = by_name["shards"].bytes / 1e9, sum(line.bytes for line in found) / 1e9
    remarks = [
        f"given: {target.matched:,} matched, {target.fetched:,} fetched, {target.pairs:,} kept, {config.cluster.cores:,} cores, prices",
        "extrapolated: every other row count, by the measured shares of rows that each stage lets through",
        f"disk: all stages are kept, {everything:,.1f} GB; the corpus alone is {kept:,.1f} GB, the rest intermediates",
        "the crawl was measured against a server nearby: a far one is slower, and its bandwidth and traffic are not in the sums",
    ]
    if by_name["balance"].rows_in < target.pairs:
        remarks.append(
            f"too few: {target.fetched:,} fetches leave {by_name['balance'].rows_in:,} pairs by the measured shares, fewer than "
            f"{target.pairs:,}; raise precap.per_query and target.fetched"
        )
    return remarks
