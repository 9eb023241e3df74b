"""Lists as operators write them: what says nothing, what is a value, and what a wrong column is told."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import lists
from pipeline.contracts.errors import InputError

UID = bytes(range(16))


def test_comments_and_blank_lines_say_nothing_however_they_are_indented(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("# a\n  # b\n\t#c\n\n   \n  http://e.org/#top  \r\nhttp://e.org/2\n")
    assert lists.texts(str(tmp_path / "l.txt"), "url") == [(6, "http://e.org/#top"), (7, "http://e.org/2")]


def test_a_column_has_no_comments(tmp_path: Path) -> None:
    pq.write_table(pa.table({"url": [" #1 ", None, "", "x"]}), tmp_path / "l.parquet")
    assert lists.texts(str(tmp_path / "l.parquet"), "url") == [(1, "#1"), (4, "x")]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([UID.hex()]),
        pa.array([UID.hex()], pa.large_string()),
        pa.array([UID.hex()]).dictionary_encode(),
        pa.array([UID]),
        pa.array([UID], pa.binary(16)),
    ],
    ids=lambda column: str(column.type),
)
def test_hashes_in_every_type_that_holds_them(tmp_path: Path, column: pa.Array) -> None:
    pq.write_table(pa.table({"uid": column}), tmp_path / "l.parquet")
    assert lists.hashes(str(tmp_path / "l.parquet"), "uid", 16).to_pylist() == [UID]


def not_utf8() -> pa.Array:
    offsets = pa.py_buffer(b"\0\0\0\0\2\0\0\0")
    return pa.Array.from_buffers(pa.string(), 1, [None, offsets, pa.py_buffer(b"\xff\xfe")])


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (pa.array([1, 2]), "column 'url' holds int64; store it as strings"),
        (pa.array([True]), "column 'url' holds bool"),
        (pa.array([{"a": 1}]), "column 'url' holds struct<a: int64>"),
        (pa.array([["http://e.org/"]]), "column 'url' holds list<"),
        (pa.array([1.5]).dictionary_encode(), "column 'url' holds double"),
        (pa.array([None]), "nothing in the list"),
        (not_utf8(), "column 'url' holds text that is not UTF-8"),
    ],
)
def test_a_column_that_is_no_list_is_one_sentence(tmp_path: Path, column: pa.Array, said: str) -> None:
    pq.write_table(pa.table({"url": column}), tmp_path / "l.parquet")
    for read in (lambda uri: lists.texts(uri, "url"), lambda uri: lists.hashes(uri, "url", 16)):
        with pytest.raises(InputError, match=r"l\.parquet: ") as caught:
            read(str(tmp_path / "l.parquet"))
        assert said in str(caught.value)


def test_a_column_that_is_not_there_or_twice(tmp_path: Path) -> None:
    pq.write_table(pa.table([["x"], ["y"]], names=["url", "url"]), tmp_path / "two.parquet")
    pq.write_table(pa.table({"link": ["x"]}), tmp_path / "none.parquet")
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1")
    for name, said in (
        ("two", "no column 'url', or several"),
        ("none", "no column 'url'"),
        ("damaged", "not a readable Parquet file"),
    ):
        with pytest.raises(InputError, match=said):
            lists.texts(str(tmp_path / f"{name}.parquet"), "url")


def test_a_text_list_that_is_too_large_goes_as_parquet(tmp_path: Path) -> None:
    place = tmp_path / "list.txt"
    with place.open("wb") as sink:
        sink.truncate((64 << 20) + 1)  # a hole in the file, that takes no disk
    with pytest.raises(
        InputError, match=r"list\.txt: 67,108,865 bytes, more than the 67,108,864 of a text list; give it as P"
    ):
        lists.hashes(str(place), "sha256", 32)
