"""Shards partition the uid space evenly and do not depend on the order of rows."""

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.contracts.manifest import write_shard
from pipeline.contracts.parquet import read_row_group
from pipeline.contracts.schema import SHARD_SCHEMA, uid
from pipeline.shard import ShardConfig, shard_count, shard_of, shard_table


def _rows(count: int) -> pa.Table:
    uids = [uid(f"http://example.org/{number}", "a dog") for number in range(count)]
    return pa.table({"uid": pa.array(uids, pa.binary(16)), "caption": pa.array([str(n) for n in range(count)])})


def test_shards_cover_the_uid_space_in_order() -> None:
    assert (shard_count(0, 10), shard_count(10, 10), shard_count(11, 10)) == (1, 1, 2)
    rows = _rows(5000)
    for shards in (1, 3, 7, 256):
        number = shard_of(rows["uid"], shards)
        naive = [int.from_bytes(value[:4], "big") * shards >> 32 for value in rows["uid"].to_pylist()]
        assert number.tolist() == naive
        assert (np.sort(number)[np.argsort(np.argsort(rows["uid"].to_pylist()))] == number).all()
        assert abs(np.bincount(number, minlength=shards) - 5000 / shards).max() < 6 * (5000 / shards) ** 0.5 + 1
    edges = pa.array([b"\0" * 16, b"\xff" * 16], pa.binary(16))
    assert shard_of(edges, 7).tolist() == [0, 6]


def test_a_shard_is_the_same_for_any_order_of_rows() -> None:
    rows = _rows(500)
    order = list(range(500))
    random.Random(1).shuffle(order)
    table = shard_table(rows)
    assert table.schema == SHARD_SCHEMA
    assert table["uid"].to_pylist() == sorted(rows["uid"].to_pylist())
    assert table["image"].null_count == 500
    assert shard_table(rows.take(order)).equals(table)
    assert shard_table(pa.concat_tables([rows.slice(300), rows.slice(0, 300)])).equals(table)
    assert shard_table(rows.slice(0, 0)).num_rows == 0


@pytest.mark.prove
def test_a_shard_may_hold_more_than_two_gigabytes(tmp_path: Path) -> None:
    """Peak memory is 4 GB: the file's row groups hold 4 MiB, as in a small shard."""
    random_, picture = random.Random(8), bytes(1 << 20)
    uids = [random_.randbytes(16) for _ in range(2_100)]
    images = pa.chunked_array([pa.array([picture] * 1_050)] * 2)
    table = shard_table(pa.table({"uid": pa.array(uids, pa.binary(16)), "image": images}))
    assert table["uid"].to_pylist() == sorted(uids)
    assert table["image"].nbytes > 1 << 31
    shard = write_shard(table, str(tmp_path), "00000")
    assert shard.rows == sum(group.rows for group in shard.row_groups) == 2_100
    assert max(group.rows for group in shard.row_groups) <= 4
    last = read_row_group(str(tmp_path / shard.path), len(shard.row_groups) - 1, ["uid", "image"])
    assert last["uid"].to_pylist() == sorted(uids)[-last.num_rows :]
    assert set(last["image"].to_pylist()) == {picture}


def test_a_shard_has_one_size() -> None:
    assert ShardConfig().rows == 10_000
    assert (ShardConfig(bytes=5).rows, ShardConfig(bytes=5).bytes) == (None, 5)
    with pytest.raises(ValueError, match="rows=10 and bytes=20 are both given"):
        ShardConfig(rows=10, bytes=20)
