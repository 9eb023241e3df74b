"""Partitions: how many there are, and that their rows come back in order from any number of files."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.contracts import parquet
from pipeline.contracts.at_once import READERS
from pipeline.stages.common import partition_count, read_of_partition


@pytest.mark.parametrize(
    ("rows", "partitions"),
    [
        (0, 1), (10, 1), (11, 2), (9_999, 1_000), (10_000, 1_000),
        (10_001, 1_000), (50_000, 1_000), (50_001, 1_001), (500_000, 10_000),
    ],
)  # fmt: skip
def test_partitions_are_small_until_there_are_a_thousand_and_never_too_large(rows: int, partitions: int) -> None:
    assert partition_count(rows, 10, 50) == partitions


def test_a_partition_is_read_file_by_file_however_many_are_opened_at_once(tmp_path: Path) -> None:
    dice = np.random.default_rng(1)
    names, expected = [], []
    for number in range(3 * READERS):
        partition = np.sort(dice.integers(0, 3, int(dice.integers(0, 9)))).astype(np.int32)
        row = 100 * number + np.arange(len(partition))
        expected += row[partition == 1].tolist()
        names.append(f"{number}.parquet")
        starts = (np.flatnonzero(np.diff(partition)) + 1).tolist()
        parquet.write(pa.table({"partition": partition, "row": row}), str(tmp_path / names[-1]), boundaries=starts)
    assert expected
    assert read_of_partition(str(tmp_path), names, 1).to_pydict() == {"row": expected}
