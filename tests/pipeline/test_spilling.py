"""A unit that is cut in parts larger than Ray's object store: what does not fit goes to the disk and comes back, byte for byte.

It is the one place where rows are Ray objects: everything else reads and writes files.
"""

import functools
import hashlib
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import ray
from ray._private.internal_api import memory_summary

from pipeline.commit import Result, Stage, Unit, stage_folder
from pipeline.contracts import parquet
from pipeline.engine import EngineConfig, Run

STORE = 80 << 20
ROWS, ROW_BYTES = 48, 5 << 20
GUILTY = 17


@pytest.fixture(autouse=True)
def small_store() -> Iterator[None]:
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=STORE,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    yield
    ray.shutdown()


def picture(number: int) -> bytes:
    return hashlib.shake_128(str(number).encode()).digest(ROW_BYTES)


def read(unit: Unit) -> pa.Table:
    uids = pa.array([number.to_bytes(16, "big") for number in range(ROWS)], pa.binary(16))
    return pa.table({"uid": uids, "number": pa.array(range(ROWS), pa.int64())})


def work(crashes: bool, table: pa.Table, unit: Unit) -> Result:
    numbers = table["number"].to_pylist()
    if crashes and GUILTY in numbers:
        os.kill(os.getpid(), signal.SIGKILL)
    return Result(table.append_column("image", pa.array([picture(number) for number in numbers], pa.binary())))


@pytest.mark.prove
def test_parts_larger_than_the_object_store(tmp_path: Path) -> None:
    stage = Stage("toy", "d1" * 32, read, functools.partial(work, True), row_wise=True)
    with Run(str(tmp_path), EngineConfig(), {}, "0" * 64) as driver:
        [record] = driver.stage(stage, [Unit("u0", ("input",))])
        cluster = ray.get_runtime_context().gcs_address  # this one: another may run on the machine
        assert "Spilled" in memory_summary(cluster, stats_only=True)  # type: ignore[no-untyped-call]
    assert (record.rows_out, record.rejected) == (ROWS - 1, {"decoder_crashed": 1})
    rows = parquet.read(f"{stage_folder(str(tmp_path), stage)}/{record.output.name}")
    assert rows["number"].to_pylist() == [number for number in range(ROWS) if number != GUILTY]
    assert rows["image"].to_pylist() == [picture(number) for number in range(ROWS) if number != GUILTY]
