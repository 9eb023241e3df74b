"""The plan's arithmetic by hand, for rates that make every number easy; and that rates are what records say."""

import json
import os
import re
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline import __main__ as cli
from pipeline.commit import Result, Stage, Unit, commit, stage_folder
from pipeline.config import PipelineConfig
from pipeline.contracts import parquet
from pipeline.contracts.config import to_toml
from pipeline.contracts.errors import InputError
from pipeline.contracts.schema import CANDIDATE_SCHEMA, MATCHED_SCHEMA
from pipeline.tools import plan, units
from pipeline.tools.plan import ClusterConfig, PlanConfig, PricesConfig, Rate, Rates, TargetConfig
from tests.conftest import ROOT

SHIPPED = ROOT / "pipeline/configs/plan.toml"


def rate(rows_in: int, rows_out: int, seconds: float, size: int, more: int, files: int = 4, units: int = 2) -> Rate:
    return Rate(
        rows_in=rows_in,
        rows_out=rows_out,
        core_seconds=seconds,
        bytes_rows=size,
        bytes_more=more,
        files=files,
        units=units,
    )


RATES = {
    "candidates": rate(1000, 1000, 1.0, 100_000, 0),
    "exact": rate(1000, 800, 1.0, 80_000, 20_000),
    "filter": rate(800, 400, 8.0, 40_000, 0),
    "precap": rate(400, 400, 4.0, 40_000, 4_000, files=10),
    "crawl": rate(400, 200, 400.0, 2_000_000, 40_000),
    "dedup": rate(200, 150, 2.0, 15_000, 2_000),
    "balance": rate(150, 100, 1.5, 10_000, 0),
    "shards": rate(100, 100, 1.0, 1_000_000, 0),
}
TARGET = TargetConfig(matched=40_000_000, fetched=20_000_000, pairs=5_000_000, fetch_bytes=10_000)
PRICES = PricesConfig(core_hour=2.0, gigabyte_month=100.0, months=3.0, thousand_writes=7.0, thousand_reads=1.0)
CLUSTER = ClusterConfig(
    nodes=2, cores_per_node=5, memory_gb_per_node=100.0, network_gbit_per_node=8e-3, read_ms=160.0
)  # two million bytes a second
CONFIG = PlanConfig(pipeline="unset", cluster=CLUSTER, target=TARGET, prices=PRICES)


def pipeline(rows_per_unit: int = 10_000_000, crawl_units: int = 20, **shard: int) -> PipelineConfig:
    return PipelineConfig.model_validate(
        {
            "run": {"out": "o"},
            "sources": {"paths": ["t"], "rows_per_unit": rows_per_unit},
            "filter": {"queries": "q"},
            "crawl": {"units": crawl_units},
            "shard": shard or {"rows": 100_000},
        }
    )


def test_every_figure_by_hand() -> None:
    """100 million rows of sources: 10 files, which 382 partitions of 2**18 rows cut across; 10 of 2**20 rows' kinds, 40 of 250,000
    rows' keys. Sixteen files are opened at once."""
    found = {line.stage: line for line in plan.lines(RATES, CONFIG, pipeline())}
    assert {name: (line.rows_in, line.rows_out) for name, line in found.items()} == {
        "candidates": (100_000_000, 100_000_000),  # exact lets 0.8 through, filter 0.5
        "exact": (100_000_000, 80_000_000),
        "filter": (80_000_000, 40_000_000),
        "precap": (40_000_000, 20_000_000),
        "crawl": (20_000_000, 10_000_000),
        "dedup": (10_000_000, 7_500_000),
        "balance": (7_500_000, 5_000_000),
        "shards": (5_000_000, 5_000_000),
    }
    assert [line.cut.units for line in found.values()] == [10, 382, 382, 382, 20, 20, 20, 50]
    # Files opened; with their row groups. The crawl has 5 GB a unit, 1,193 row groups of 4 MiB.
    opened = [
        [(10, 1)],
        [(382 * 10, 382)],
        [(382, 1)],
        [(3 * 382, 1)],
        [(2 * 382, 1), (20 * 382, 20)],
        [(4 * 20, 1193), (10 * 20, 10), (2 * 20 * 10, 20), (40 * 20, 40), (20 * 40, 20)],
        [(3 * 20, 1)],
        [(50 * 20, 1), (50 * 20, 1193)],
    ]
    assert [line.reads for line in found.values()] == [4 * sum(files for files, _ in stage) for stage in opened]
    opening = [sum(files * (4 * 0.160 / 16 + groups * 20e-6) for files, groups in stage) for stage in opened]
    assert [line.opening_hours * 3600 for line in found.values()] == pytest.approx(opening)
    # 1 ms, 1 ms, 10 ms, 10 ms, 1 s, 10 ms, 10 ms, 10 ms a row
    seconds = [1e5, 1e5, 8e5, 4e5, 2e7, 1e5, 7.5e4, 5e4]
    own = [(line.core_hours - line.opening_hours) * 3600 for line in found.values()]
    assert own == pytest.approx(seconds)
    # Kept rows cost by row out, the rest by row in; then what is rejected beyond the measured share, at the size it came in with;
    # then the footers of the files that are cut for others: 8 and 10 columns of 131 bytes.
    sizes = [
        10_000_000_000 + 10 * 382 * 8 * 131,
        8_000_000_000 + 2_000_000_000,
        4_000_000_000,
        2_000_000_000 + 400_000_000 + 20_000_000 * 100,
        100_000_000_000 + 2_000_000_000 + 382 * 20 * 10 * 131,
        750_000_000 + 100_000_000,
        500_000_000,
        50_000_000_000,
    ]
    assert [line.bytes for line in found.values()] == sizes
    columns = [[20], [8], [20], [20], [20, 10], [20, 5, 2, 6, 4], [20], [20, 20]]
    footers = [
        131 * sum(files * groups * width for (files, groups), width in zip(stage, widths, strict=True))
        for stage, widths in zip(opened, columns, strict=True)
    ]
    # Each of the 50 shards reads its part of the crawl's pictures, and a row group of every file beyond that.
    read = [1e10, 1e10, 8e9, 4e9, 2e9 + 20e6 * 10_000, 0.75e9, 0.75e9, 0.5e9 + 100e9 * (1 + 50 / 1193)]
    moved = [line.traffic - line.bytes for line in found.values()]
    assert moved == pytest.approx([rows + footer for rows, footer in zip(read, footers, strict=True)])
    # Two objects a unit (precap: five).
    assert [line.writes for line in found.values()] == [20, 764, 764, 1910, 40, 40, 40, 100]
    # Text: 800, 650, 1,100 bytes a row; pictures: 3.5 times the 10,000 bytes that one has.
    held = [
        8_000_000_000,
        170_157_068,
        230_366_492,
        115_183_246,
        17_500_000_000,
        550_000_000,
        412_500_000,
        3_500_000_000,
    ]
    assert [line.cut.unit_bytes for line in found.values()] == held


def test_time_is_that_of_the_cores_or_of_the_network_and_all_cores_are_paid_for() -> None:
    found = {line.stage: line for line in plan.lines(RATES, CONFIG, pipeline())}
    network = CLUSTER.model_copy(update={"network_gbit_per_node": 8.0})  # two billion bytes a second
    exact, crawl = found["exact"], found["crawl"]
    assert exact.hours(network) == pytest.approx(exact.core_hours / 10)
    assert exact.hours(CLUSTER) == pytest.approx(exact.traffic / 2e6 / 3600)
    assert exact.hours(CLUSTER) > exact.core_hours / 10
    few = {line.stage: line for line in plan.lines(RATES, CONFIG, pipeline(crawl_units=4))}["crawl"]
    assert few.hours(network) == pytest.approx(few.core_hours / 4), "four units keep four cores of ten at work"
    assert plan.money(crawl, network, PRICES) == pytest.approx(
        crawl.core_hours * 2 + crawl.bytes / 1e9 * 300 + 0.040 * 7 + crawl.reads / 1000
    )
    assert plan.money(few, network, PRICES) == pytest.approx(
        few.core_hours / 4 * 10 * 2 + few.bytes / 1e9 * 300 + few.writes / 1000 * 7 + few.reads / 1000
    )


def test_rows_of_the_sources_may_be_given() -> None:
    """The share that matches is then the target's, and what is rejected more is disk, at the 100 bytes a row that `exact` wrote."""
    target = TARGET.model_copy(update={"candidates": 400_000_000})
    found = {
        line.stage: line
        for line in plan.lines(RATES, CONFIG.model_copy(update={"target": target}), pipeline(rows_per_unit=1_000_000))
    }
    assert (found["candidates"].rows_in, found["candidates"].cut.units) == (400_000_000, 400)
    assert (found["filter"].rows_in, found["filter"].rows_out) == (320_000_000, 40_000_000)
    assert found["exact"].cut.units == 1000  # 1,526 of 2**18 rows are more than there need be
    assert found["filter"].bytes == 4_000_000_000 + (280_000_000 - 160_000_000) * 100
    few = TARGET.model_copy(update={"candidates": 49_000_000})
    with pytest.raises(
        InputError, match=r"target\.candidates=49000000 leave 39,200,000 rows for the filter, fewer than"
    ):
        plan.lines(RATES, CONFIG.model_copy(update={"target": few}), pipeline())


def test_shards_are_cut_by_the_key_that_is_given() -> None:
    by_bytes = {line.stage: line.cut for line in plan.lines(RATES, CONFIG, pipeline(bytes=500_000_000))}["shards"]
    assert (by_bytes.units, by_bytes.unit_bytes) == (100, 1_750_000_000)


def test_a_footer_has_the_size_that_is_counted(tmp_path: Path) -> None:
    """Row groups of a few rows, as many partitions make them: the file but for its groups, over groups and columns."""
    for schema in (CANDIDATE_SCHEMA, MATCHED_SCHEMA):
        groups, rows = 150, 4
        number = groups * rows
        words = pa.array([f"http://example.org/{place * 7919}" for place in range(number)])
        columns: dict[str, pa.Array] = {"partition": pa.array(np.repeat(np.arange(groups, dtype=np.int32), rows))}
        for field in schema:
            if pa.types.is_list(field.type):
                columns[field.name] = pa.array([[1]] * number, field.type)
            else:
                columns[field.name] = pa.array([os.urandom(16)] * number) if field.name == "uid" else words
        table = pa.table(columns)
        found = parquet.write(table, str(tmp_path / "t"), boundaries=range(0, number, rows))
        assert len(found) == groups
        footer = (tmp_path / "t").stat().st_size - found[-1].offset - found[-1].bytes
        assert footer == pytest.approx(units.Opened(1, groups, table.num_columns).footer_bytes, rel=0.25)


def written(folder: Path, config: PipelineConfig) -> str:
    (folder / "pipeline.toml").write_text(to_toml(config))
    return str(folder / "pipeline.toml")


def test_the_text_says_of_every_figure_where_it_comes_from(tmp_path: Path) -> None:
    rates = Rates(date="2026-01-02", machine="a laptop", note="a trial", stages=RATES)
    config = CONFIG.model_copy(update={"pipeline": written(tmp_path, pipeline())})
    text = plan.describe(config, rates)
    assert text.startswith("rates: measured on 2026-01-02, a laptop; a trial\n")
    [crawl] = [line for line in text.splitlines() if line.startswith("crawl ")]
    assert crawl.split()[1:7] == ["20,000,000", "10,000,000", "20", "17.50", "5,555.6", "0.1"]
    assert crawl.endswith("measured on 400 rows, extrapolated x50,000")
    assert "given: 40,000,000 matched, 20,000,000 fetched of 10,000 bytes, 5,000,000 kept" in text
    assert "given: 2 nodes of 5 cores, 100 GB and 0.008 Gbit/s, 160 ms a read, prices; units and shards by" in text
    assert "disk: all stages are kept, 181.8 GB; the corpus alone is 50.0 GB, the rest intermediates" in text
    assert "doubtful: 50% of the captions that were measured matched" in text
    # A core has 100 GB x 0.7 / 5 = 14 GB.
    assert (
        "too large: a unit of crawl takes 17.5 GB, a core has 14.0 GB beside Ray's object store; raise crawl.units to 25"
        in text
    )
    assert text.count("too large") == 1
    assert "too few" not in text
    target = TARGET.model_copy(update={"pairs": 9_000_000, "candidates": 200_000_000})
    more = config.model_copy(update={"target": target, "pipeline": written(tmp_path, pipeline(crawl_units=25))})
    text = plan.describe(more, rates)
    assert "given: 200,000,000 rows of sources, 40,000,000 matched" in text
    assert "too few: 20,000,000 fetches leave 7,500,000 pairs by the measured shares, fewer than 9,000,000" in text
    assert "too large" not in text
    assert "doubtful" not in text


def test_a_stage_without_rows_cannot_be_extrapolated() -> None:
    with pytest.raises(InputError, match="nothing was measured of dedup; measure a run"):
        plan.lines({**RATES, "dedup": rate(0, 0, 0.0, 0, 0)}, CONFIG, pipeline())


def test_a_run_whose_clock_was_set_back_has_no_rates(tmp_path: Path) -> None:
    """Of every stage one unit, committed as its worker does; one record is from before units were timed by a clock that only goes on."""
    folders = {}
    for name in plan.STAGES:
        stage = Stage(name, name.encode().hex().ljust(64, "0"), lambda _: pa.table({}), lambda table, _: Result(table))
        folder = stage_folder(str(tmp_path), stage)
        commit(stage, folder, Unit("00000"), {}, 3, Result(pa.table({"uid": [b"a", b"b", b"c"]})), time.monotonic())
        folders[name] = folder
    told = [{"name": name, "folder": os.path.relpath(place, tmp_path), "units": 1} for name, place in folders.items()]
    (tmp_path / "run.json").write_text(json.dumps({"state": "done", "stages": told}))
    assert plan.from_run(str(tmp_path)).stages["filter"].core_seconds >= 0
    place = Path(folders["filter"], "00000.json")
    place.write_text(json.dumps(json.loads(place.read_text()) | {"seconds": -7199.0}))
    with pytest.raises(
        InputError, match=r"its stage filter has a unit '00000' of -7199\.0 seconds, .*; take the rates of"
    ):
        plan.from_run(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("dedup-edges", "dedup"), ("precap-heads", "precap"), ("exact", "exact"), ("exact-url-keys", "precap"), ("exact-source", "dedup"),
        ("policy", "dedup"), ("ledger", "balance"), ("shard-bytes", "shards"), ("shards", "shards"), ("retry-1-rows", "crawl"),
        ("exclude", None),
    ],
)  # fmt: skip
def test_steps_count_with_the_stage_they_belong_to(name: str, stage: str | None) -> None:
    assert plan._belongs(name) == stage


def test_the_shipped_table_and_configuration_give_a_plan(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    cli.main(["plan", "--config", str(SHIPPED), "cluster.nodes=16"])
    text = capsys.readouterr().out
    assert re.match(r"rates: measured on \d{4}-\d\d-\d\d, ", text)
    assert [line.split()[0] for line in text.splitlines()[3:11]] == list(plan.STAGES)
    assert not re.search(r"^(too large|too few|doubtful): ", text, re.MULTILINE)
    hours = {nodes: _all_hours(capsys, nodes) for nodes in (8, 16)}
    assert hours[8] == pytest.approx(2 * hours[16], abs=0.15)  # printed to 0.1


def _all_hours(capsys: pytest.CaptureFixture[str], nodes: int) -> float:
    cli.main(["plan", "--config", str(SHIPPED), f"cluster.nodes={nodes}"])
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("all ")]
    return float(line.split()[3].replace(",", ""))


def test_check_reads_the_configuration_of_the_run_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    cli.main(["plan", "--config", str(SHIPPED), "--check"])
    with pytest.raises(InputError, match=r"none\.toml: no such file"):
        cli.main(["plan", "--config", str(SHIPPED), "--check", "pipeline=none.toml"])
