"""Shards partition the uid space evenly and do not depend on the order of rows."""

import random

import numpy as np
import pyarrow as pa
import pytest

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


def test_a_shard_has_one_size() -> None:
    assert ShardConfig().rows == 10_000
    assert (ShardConfig(bytes=5).rows, ShardConfig(bytes=5).bytes) == (None, 5)
    with pytest.raises(ValueError, match="rows=10 and bytes=20 are both given"):
        ShardConfig(rows=10, bytes=20)
