"""The plan's arithmetic by hand, for rates that make every number easy; and that rates are what records say."""

import re

import pytest

from pipeline import __main__ as cli
from pipeline.contracts.errors import InputError
from pipeline.tools import plan
from pipeline.tools.plan import ClusterConfig, PlanConfig, PricesConfig, Rate, Rates, TargetConfig
from tests.conftest import ROOT

CONFIG = ROOT / "pipeline/configs/plan.toml"


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
TARGET = TargetConfig(matched=40_000, fetched=20_000, pairs=5_000, rows_per_unit=10_000, shard_bytes=10_000_000)
PRICES = PricesConfig(core_hour=2.0, gigabyte_month=100.0, months=3.0, thousand_writes=7.0, thousand_reads=1.0)


def test_every_figure_by_hand() -> None:
    found = {line.stage: line for line in plan.lines(RATES, TARGET)}
    assert {name: (line.rows_in, line.rows_out) for name, line in found.items()} == {
        "candidates": (100_000, 100_000),  # exact lets 0.8 through, filter 0.5
        "exact": (100_000, 80_000),
        "filter": (80_000, 40_000),
        "precap": (40_000, 20_000),
        "crawl": (20_000, 10_000),
        "dedup": (10_000, 7_500),
        "balance": (7_500, 5_000),
        "shards": (5_000, 5_000),
    }
    # 1 ms, 1 ms, 10 ms, 10 ms, 1 s, 10 ms, 10 ms, 10 ms a row
    seconds = [100, 100, 800, 400, 20_000, 100, 75, 50]
    assert [line.core_hours * 3600 for line in found.values()] == pytest.approx(seconds)
    # kept rows cost by row out, the rest by row in
    sizes = [
        10_000_000,
        8_000_000 + 2_000_000,
        4_000_000,
        2_000_000 + 400_000,
        100_000_000 + 2_000_000,
        750_000 + 100_000,
        500_000,
        50_000_000,
    ]
    assert [line.bytes for line in found.values()] == sizes
    # units of 10,000 rows (shards: of 10 MB), two objects a unit (precap: five)
    assert [line.writes for line in found.values()] == [20, 20, 16, 20, 4, 2, 2, 10]
    # ten units read ten files; two read two; one reads one; five shards read one of balance and one of the crawl
    assert [line.reads for line in found.values()] == [20, 200, 16, 8, 8, 2, 2, 20]
    assert plan.money(found["crawl"], PRICES) == pytest.approx(20_000 / 3600 * 2 + 0.102 * 300 + 0.004 * 7 + 0.008)


def test_the_text_says_of_every_figure_where_it_comes_from() -> None:
    config = PlanConfig(cluster=ClusterConfig(cores=4), target=TARGET, prices=PRICES)
    text = plan.describe(config, Rates(date="2026-01-02", machine="a laptop", note="a trial", stages=RATES))
    assert text.startswith("rates: measured on 2026-01-02, a laptop; a trial\n")
    [crawl] = [line for line in text.splitlines() if line.startswith("crawl ")]
    cells = crawl.split()
    assert cells[1:5] == ["20,000", "10,000", "5.6", "1.4"]
    assert crawl.endswith("measured on 400 rows, extrapolated x50")
    assert "given: 40,000 matched, 20,000 fetched, 5,000 kept, 4 cores, prices" in text
    assert "disk: all stages are kept, 0.2 GB; the corpus alone is 0.1 GB" in text
    assert "too few" not in text
    more = config.model_copy(update={"target": TARGET.model_copy(update={"pairs": 9_000})})
    assert "too few: 20,000 fetches leave 7,500 pairs by the measured shares, fewer than 9,000" in plan.describe(
        more, Rates(date="", machine="", note="", stages=RATES)
    )


def test_a_stage_without_rows_cannot_be_extrapolated() -> None:
    with pytest.raises(InputError, match="nothing was measured of dedup; measure a run"):
        plan.lines({**RATES, "dedup": rate(0, 0, 0.0, 0, 0)}, TARGET)


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


def test_the_shipped_table_and_configuration_give_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["plan", "--config", str(CONFIG), "cluster.cores=512"])
    text = capsys.readouterr().out
    assert re.match(r"rates: measured on \d{4}-\d\d-\d\d, ", text)
    assert [line.split()[0] for line in text.splitlines()[3:11]] == list(plan.STAGES)
    hours = {cores: _all_hours(capsys, cores) for cores in (256, 512)}
    assert hours[256] == pytest.approx(2 * hours[512], rel=0.01)


def _all_hours(capsys: pytest.CaptureFixture[str], cores: int) -> float:
    cli.main(["plan", "--config", str(CONFIG), f"cluster.cores={cores}"])
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("all ")]
    return float(line.split()[2].replace(",", ""))
