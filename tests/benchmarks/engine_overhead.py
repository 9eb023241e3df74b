"""What a pass over units costs beside the work: our engine (tasks, commit records, accounting) against a Ray Data pass.

    python -m tests.benchmarks.engine_overhead

Both do nothing for 32 and for 512 units of 100 rows; the engine also writes and flushes two files a unit, which Ray Data does not. The
decision that it supports: units are plain Ray tasks (pipeline/engine.py).
"""

import logging
import tempfile
import time

import pyarrow as pa
import ray
import ray.data

from pipeline.commit import Result, Stage, Unit, stage_digest
from pipeline.contracts.schema import uid
from pipeline.engine import EngineConfig, Run

ROWS = pa.table({"uid": pa.array([uid("http://host", str(number)) for number in range(100)], pa.binary(16))})


def read(unit: Unit) -> pa.Table:
    return ROWS


def work(table: pa.Table, unit: Unit) -> Result:
    return Result(table)


def engine_pass(driver: Run, units: int, turn: int) -> float:
    started = time.perf_counter()
    driver.stage(
        Stage("nothing", stage_digest("nothing", turn, units, []), read, work), [Unit(f"{n:05d}") for n in range(units)]
    )
    return time.perf_counter() - started


def ray_data_pass(units: int) -> float:
    started = time.perf_counter()
    data = ray.data.from_items([{"unit": number} for number in range(units)], override_num_blocks=units)
    assert len(data.map(lambda row: {"unit": row["unit"] + 1}).take_all()) == units
    return time.perf_counter() - started


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, Run(folder, EngineConfig(), {}, "bench") as driver:
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        engine_pass(driver, 8, 0)  # workers start
        ray_data_pass(8)
        print(f"{'units':>6}{'engine, s':>12}{'Ray Data, s':>14}{'ratio':>8}")
        for units in (32, 512):
            pairs = [(engine_pass(driver, units, turn), ray_data_pass(units)) for turn in range(1, 4)]
            ours, theirs = (sorted(column)[1] for column in zip(*pairs, strict=True))
            print(f"{units:>6}{ours:>12.2f}{theirs:>14.2f}{theirs / ours:>8.1f}")


if __name__ == "__main__":
    main()
