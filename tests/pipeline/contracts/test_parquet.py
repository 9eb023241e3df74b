"""Reading parts of a Parquet file gives what filtering the whole gives."""

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipeline.contracts import parquet
from pipeline.contracts.errors import InputError


@pytest.fixture(scope="module")
def table() -> pa.Table:
    uids = sorted(hashlib.md5(bytes([number, number // 256])).digest() for number in range(256) for _ in range(1))
    partition = pa.array([number // 20 for number in range(256)], pa.int32())
    lists = pa.array([[number] * (number % 4) if number % 5 else None for number in range(256)], pa.list_(pa.int32()))
    texts = pa.array(["é" * number if number % 3 else None for number in range(256)])
    return pa.table({"partition": partition, "uid": pa.array(uids, pa.binary(16)), "ids": lists, "text": texts})


def test_partitions_start_row_groups_and_read_back(table: pa.Table, tmp_path: Path) -> None:
    path = str(tmp_path / "t.parquet")
    groups = parquet.write(table, path, boundaries=[number for number in range(256) if number % 20 == 0])
    assert [group.rows for group in groups] == [20] * 12 + [16]
    assert parquet.read(path).equals(table)
    for value in (0, 7, 12, 13):
        assert parquet.read_where_equal(path, "partition", value).equals(
            table.filter(pc.equal(table["partition"], value))
        )
    assert parquet.read_where_equal(path, "partition", 3, ["text"]).column_names == ["text"]


@pytest.mark.parametrize(("low", "high"), [(0, 256), (0, 0x40), (0x40, 0x41), (0x99, 256), (0xFF, 256)])
def test_a_range_of_uids(table: pa.Table, tmp_path: Path, low: int, high: int) -> None:
    path = str(tmp_path / "t.parquet")
    parquet.write(table, path, boundaries=range(0, 256, 10))
    first, last = bytes([low]) + bytes(15), None if high == 256 else bytes([high]) + bytes(15)
    expected = [row for row in table.to_pylist() if row["uid"] >= first and (last is None or row["uid"] < last)]
    assert parquet.read_uid_range(path, first, last).to_pylist() == expected


def test_row_groups_stay_small(tmp_path: Path) -> None:
    table = pa.table({"image": pa.array([bytes(1 << 20)] * 25, pa.binary()), "number": pa.array(range(25), pa.int64())})
    groups = parquet.write(table, str(tmp_path / "t.parquet"))
    assert [group.rows for group in groups] == [3] * 8 + [1]
    huge = pa.table({"image": pa.array([bytes(9 << 20), b"x"], pa.binary())})
    assert [group.rows for group in parquet.write(huge, str(tmp_path / "h.parquet"))] == [1, 1]


def test_an_empty_table_has_its_columns(table: pa.Table, tmp_path: Path) -> None:
    path = str(tmp_path / "t.parquet")
    assert parquet.write(table.slice(0, 0), path) == []
    assert parquet.read(path).schema == table.schema
    assert parquet.read_uid_range(path, bytes(16), None).num_rows == 0


def test_a_name_carries_its_content(table: pa.Table, tmp_path: Path) -> None:
    file = parquet.commit(table, str(tmp_path / "new"), "00007", suffix=".x.parquet")
    data = (tmp_path / "new" / file.name).read_bytes()
    assert file.sha256 == hashlib.sha256(data).hexdigest()
    assert (file.name, file.bytes, file.rows) == (f"00007-{file.sha256[:12]}.x.parquet", len(data), 256)
    assert parquet.commit(table, str(tmp_path / "new"), "00007", suffix=".x.parquet") == file
    assert [path.name for path in (tmp_path / "new").iterdir()] == [file.name]


@pytest.mark.parametrize("data", [b"", b"PAR1", b"not parquet at all", b"PAR1" + bytes(100) + b"PAR1"])
def test_what_is_not_parquet(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "bad.parquet"
    path.write_bytes(data)
    with pytest.raises(InputError, match="not a readable Parquet file"):
        parquet.read(str(path))
