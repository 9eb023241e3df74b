"""Deduplication and balancing on Ray, in every mode: the same bytes with one worker and with many, from small partitions and from large.

Many are three, and eight in `make prove`: each worker is a process that takes seconds to start. Rows are generated and committed as a
stage of the crawl's name, so that nothing is fetched. What each stage decides is held against naive twins elsewhere; here every committed
file of two runs is compared.
"""

import functools
import hashlib
import logging
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from pipeline.commit import Unit
from pipeline.config import PipelineConfig
from pipeline.contracts.schema import INDEX_SCHEMA, uid
from pipeline.engine import EngineConfig, Run
from pipeline.match import load_queries
from pipeline.stages import cap as capping
from pipeline.stages.common import Output, read_part, run_stage
from pipeline.stages.draw import draw
from pipeline.stages.duplicates import remove_duplicates

SEED, CAP = 17, 20
FILES, ROWS_PER_FILE, QUERIES = 9, 120, 12


@pytest.fixture(scope="module", params=[3, pytest.param(8, marks=pytest.mark.prove)])
def many(request: pytest.FixtureRequest) -> Iterator[int]:
    """How many workers Ray has here."""
    workers: int = request.param
    ray.init(
        address="local", num_cpus=workers, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False
    )
    yield workers
    ray.shutdown()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of rows with near-equal captions and pictures across and within files, and a query list."""
    folder = tmp_path_factory.mktemp("inputs")
    random_ = random.Random(41)
    words = ["".join(random_.choices("abcdefghij", k=5)) for _ in range(300)]
    (folder / "queries.txt").write_text("\n".join(f"query{number}" for number in range(QUERIES)))
    originals = [(" ".join(random_.sample(words, 9)), random_.getrandbits(256)) for _ in range(500)]
    for number in range(FILES):
        rows: list[dict[str, Any]] = []
        for place in range(ROWS_PER_FILE):
            caption, picture = random_.choice(originals)
            caption = random_.choice([caption, caption, caption + " x", "logo"])
            picture ^= sum(1 << bit for bit in random_.sample(range(256), random_.choice([0, 0, 3, 90])))
            url = f"http://example.org/{number}/{place}.jpg"
            rows.append({
                "uid": uid(url, caption), "url": url, "caption_raw": caption, "caption": caption, "source": url,
                "image_sha256": hashlib.sha256(str(picture).encode()).digest(), "pdq256": picture.to_bytes(32, "big"),
                "pdq_quality": 100, "query_ids": sorted({min(QUERIES - 1, int(random_.expovariate(0.3))) for _ in range(3)}),
            })  # fmt: skip
        table = pa.Table.from_pylist(sorted(rows, key=lambda row: row["uid"]), schema=INDEX_SCHEMA)
        pq.write_table(table, folder / f"{number:05d}.parquet")
    return folder


def run(inputs: Path, out: Path, workers: int, stage: str) -> None:
    """`stage`: dedup-MODE or balance-MODE, the latter with its precap, on all rows."""
    name, mode = stage.split("-")
    config = PipelineConfig.model_validate(
        {
            "run": {"out": str(out), "seed": SEED},
            "sources": {"paths": ["-"]},
            "filter": {"queries": "-"},
            "dedup": {"by": mode, "max_block": 30} if name == "dedup" else {},
        }
    )
    queries = load_queries(str(inputs / "queries.txt"))
    with Run(str(out), EngineConfig(workers=workers), {}, "0" * 64) as driver:
        units = [Unit(f"{number:05d}", (f"{number:05d}.parquet",)) for number in range(FILES)]
        read = functools.partial(read_part, str(inputs), None)
        rows: Output = run_stage(driver, "crawl", None, [], units, read, capping.as_read, accounted=False)
        if name == "dedup":
            remove_duplicates(driver, config, rows)
        elif mode == "hard_cap":
            wanted = capping.at_most(driver, "precap", 2 * CAP, SEED, rows, queries)
            capping.at_most(driver, "balance", CAP, SEED, wanted, queries, [None] * QUERIES)
        else:
            first = draw(driver, "precap", 2 * CAP, SEED, rows, queries)
            draw(driver, "balance", CAP, SEED, first.kept, queries, first.odds, [None] * QUERIES)


@pytest.fixture(scope="module")
def made_by_many(many: int, inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """What many workers make of a stage; several tests look at one run."""

    @functools.cache
    def made(stage: str) -> Path:
        out = tmp_path_factory.mktemp(stage)
        run(inputs, out, many, stage)
        return out

    return made


def committed(out: Path, *stages: str) -> dict[str, str]:
    """SHA-256 of every table that the stages (or all) committed, by its place."""
    names = stages or ("*",)
    paths = [path for name in names for path in out.glob(f"{name}/*/*.parquet")]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


STAGES = ["dedup-pair", "dedup-caption", "dedup-image", "balance-hard_cap", "balance-metaclip"]


@pytest.mark.parametrize("stage", STAGES)
def test_the_same_bytes_with_one_worker_and_many_and_in_small_partitions(
    stage: str,
    many: int,
    made_by_many: Callable[[str], Path],
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(inputs, tmp_path / "one", 1, stage)
    truth = committed(tmp_path / "one")
    assert committed(made_by_many(stage)) == truth
    last = stage.split("-")[0]
    gone = sum(pq.read_metadata(path).num_rows for path in (tmp_path / "one").glob(f"{last}/*/*.rejected.parquet"))
    assert 50 < gone < FILES * ROWS_PER_FILE

    monkeypatch.setattr("pipeline.stages.duplicates.ROWS_PER_KEY_PARTITION", (250, 250))
    for name in (
        "ROWS_PER_KIND_PARTITION",
        "_BLOCK_ROWS_PER_PARTITION",
        "_ROWS_PER_GONE_PARTITION",
    ):
        monkeypatch.setattr(f"pipeline.stages.duplicates.{name}", 250)
    monkeypatch.setattr("pipeline.stages.cap._ROWS_PER_PARTITION", 250)
    run(inputs, tmp_path / "small", many, stage)
    by_name = {Path(place).name: digest for place, digest in committed(tmp_path / "one", last, "ledger").items()}
    assert {
        Path(place).name: digest for place, digest in committed(tmp_path / "small", last, "ledger").items()
    } == by_name
    if stage != "balance-metaclip":  # which has no partitions
        assert len(committed(tmp_path / "small")) > len(truth)


@pytest.mark.parametrize("mode", ["hard_cap", "metaclip"])
def test_no_query_is_over_the_cap(mode: str, made_by_many: Callable[[str], Path]) -> None:
    """hard_cap: never. metaclip: on average, so within five standard deviations of a binomial draw."""
    out = made_by_many(f"balance-{mode}")
    [ledger] = out.glob("ledger/*/*.parquet")
    rows = pq.read_table(ledger).to_pylist()
    assert sum(row["matched"] > CAP for row in rows) > 5
    most = CAP if mode == "hard_cap" else CAP + 5 * CAP**0.5
    assert all(row["accepted"] <= most for row in rows)
    kept = pa.concat_tables([
        pq.read_table(path) for path in out.glob("balance/*/*.parquet") if not path.name.count(".", 0, -8)
    ])  # fmt: skip
    counted = {row["query_id"]: row["kept"] for row in rows}
    ids = kept["query_id"].to_pylist()
    assert {number: ids.count(number) for number in counted} == counted


def test_each_file_gets_the_decisions_on_its_own_rows_alone(inputs: Path, made_by_many: Callable[[str], Path]) -> None:
    """`dedup` reads of a file's partition, and so never the decisions on the whole corpus."""
    out = made_by_many("dedup-pair")
    clusters = pa.concat_tables([pq.read_table(path) for path in out.glob("dedup-clusters/*/*.parquet")])
    assert clusters.num_rows > 50
    for number in range(FILES):
        mine = set(pq.read_table(inputs / f"{number:05d}.parquet")["uid"].to_pylist())
        told = [row["uid"] for row in clusters.to_pylist() if row["partition"] == number]
        assert set(told) <= mine
        [rejected] = out.glob(f"dedup/*/{number:05d}-*.rejected.parquet")
        assert set(told) <= set(pq.read_table(rejected)["uid"].to_pylist())
