"""Labelled sets: both layouts, the content hash, and every way a set can be wrong."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.content.labelled import LabelledSet, LabelledSetConfig, open_set
from pipeline.contracts.errors import InputError
from tests.evaluation.planted import flat


def write(path: Path, **columns: list[Any]) -> Path:
    """Six grey pictures and the given columns."""
    table: dict[str, Any] = {"image": [flat(30 * row) for row in range(6)], **columns}
    pq.write_table(pa.table(table), path, row_group_size=2)
    return path


def opened(path: Path, **more: Any) -> LabelledSet:
    return open_set(LabelledSetConfig.model_validate({"name": "set", "path": str(path), **more}))


def test_parquet_with_names(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", label=["b_c", "a", None, "a", "b_c", "a"], style=list("xyxyxy"))
    found = opened(path, label="label", where={"style": "x"}, subgroup="style")
    assert found.classes == ["b_c"]
    assert found.class_texts == ["b c"]
    assert found.labels.tolist() == [0, -1, 0]
    assert found.ids == ["0", "2", "4"]
    assert [one.data for one in found.pictures()] == [flat(0), flat(60), flat(120)]
    assert [(one.row, one.data) for one in found.pictures([2])] == [(2, flat(120))]


def test_folder_and_parquet_agree(tmp_path: Path) -> None:
    for name, level in (("cat/1.jpg", 10), ("cat/2.jpg", 20), ("dog/1.jpg", 30)):
        place = tmp_path / "folder" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(flat(level))
    folder = opened(tmp_path / "folder")
    ids = ["cat/1.jpg", "cat/2.jpg", "dog/1.jpg"]
    table = pa.table({"image": [flat(10), flat(20), flat(30)], "label": ["cat", "cat", "dog"], "id": ids})
    pq.write_table(table, tmp_path / "t.parquet")
    parquet = opened(tmp_path / "t.parquet", label="label", id="id")
    assert (folder.ids, folder.classes, folder.labels.tolist()) == (ids, ["cat", "dog"], [0, 0, 1])
    assert folder.content_hash == parquet.content_hash
    assert [one.data for one in folder.pictures()] == [one.data for one in parquet.pictures()]


def test_the_content_hash_sees_every_change(tmp_path: Path) -> None:
    columns: dict[str, list[Any]] = {"label": [0, 1, 2, 0, 1, 2], "name": list("uvwxyz"), "id": list("abcdef")}
    settings: dict[str, Any] = {"label": "label", "caption": "name", "id": "id"}
    base = opened(write(tmp_path / "base.parquet", **columns), **settings).content_hash
    changes: list[dict[str, list[Any]]] = [
        {"label": [0, 1, 2, 0, 2, 1]},
        {"name": list("uvwxyy")},
        {"id": list("abcdeg")},
        {"image": [flat(30 * row) for row in (1, 0, 2, 3, 4, 5)]},
    ]
    hashes = [
        opened(write(tmp_path / f"{n}.parquet", **{**columns, **change}), **settings).content_hash
        for n, change in enumerate(changes)
    ]
    named = opened(tmp_path / "base.parquet", **settings, classes=["p", "q", "r"]).content_hash
    assert len({base, named, *hashes}) == 6
    assert opened(write(tmp_path / "again.parquet", **columns), **settings).content_hash == base
    one = write(tmp_path / "one.parquet", image=[b"1", b"2"], text=["p", "q"])
    assert opened(one, caption="text").content_hash != opened(one, subgroup="text").content_hash


def test_class_files(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("first\nsecond\n", "utf-8")
    path = write(tmp_path / "a.parquet", label=[0, 1, 0, 1, 0, 1])
    assert opened(path, label="label", classes_file=str(tmp_path / "names.txt")).classes == ["first", "second"]


@pytest.mark.parametrize(
    ("columns", "settings", "said"),
    [
        (
            {"label": [0, 1, 2, 3, 4, 7]},
            {"label": "label", "classes": list("abcde")},
            "label 7 is out of range for 5 classes",
        ),
        ({"label": [0, 1, -1, 0, 0, 1]}, {"label": "label"}, "label -1 is out of range"),
        ({"label": [0, 1, 0, 0, 0, 2**40]}, {"label": "label"}, "label 1099511627776 without a class list would make"),
        ({"label": [0, 1, 0, 0, 0, 10_000]}, {"label": "label"}, "would make 10,001 classes of 6 rows"),
        ({"label": [-5] * 6}, {"label": "label"}, "label -5 is out of range"),
        (
            {"label": [0, 1, 0, 1, 0, 1]},
            {"label": "label", "classes": list("abc")},
            "class list has 3 names but the set has 2",
        ),
        ({"label": list("aabbab")}, {"label": "label", "classes": list("abc")}, "'c' has no example"),
        ({"label": list("aabbad")}, {"label": "label", "classes": list("ab")}, "'d' is not in the class list"),
        ({"label": [0.5] * 6}, {"label": "label"}, "neither class numbers nor class names"),
        ({}, {"label": "label"}, "no column 'label'"),
        ({"label": [None] * 6}, {"label": "label"}, "'label' is empty"),
        ({"style": list("xyxyxy")}, {"where": {"style": "z"}}, "has no picture where"),
        ({"style": list("xyxyxy")}, {"where": {"style": ["x", 2]}}, "where.style: .* is not of the column's type"),
        ({"image": [b""] * 6}, {}, "without picture bytes"),
        ({"id": list("abcdea")}, {"id": "id"}, "id 'a' is used twice"),
        ({"label": [[0], [1], None, [0], [], [1]]}, {"label": "label"}, "row 2 has no list in column 'label'"),
    ],
)
def test_bad_sets(tmp_path: Path, columns: dict[str, Any], settings: dict[str, Any], said: str) -> None:
    path = write(tmp_path / "bad.parquet", **columns)
    with pytest.raises(InputError, match=said) as caught:
        opened(path, **settings)
    assert "bad.parquet" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_texts_that_are_none_and_a_column_twice(tmp_path: Path) -> None:
    """What a writer that checks nothing can put into a file."""
    path = write(tmp_path / "bad.parquet", label=[0, 1, 0, 1, 0, 1])
    table = pq.read_table(path)
    offsets = pa.py_buffer(np.array([0, 2, 2, 2, 2, 2, 2], np.int32))
    texts = pa.StringArray.from_buffers(6, offsets, pa.py_buffer(b"\xff\xfe"))
    pq.write_table(table.append_column("name", texts), path)
    for settings in ({"caption": "name"}, {"label": "name"}, {"id": "name"}, {"where": {"name": "x"}}):
        with pytest.raises(InputError, match=r"bad\.parquet: is damaged or cannot be read .*UTF8"):
            opened(path, **settings)
    assert len(opened(path, label="label")) == 6
    long: list[dict[str, Any]] = [{"id": "long"}, {"label": "long", "classes": ["a"]}]
    for keys in long:
        pq.write_table(table.append_column("long", pa.array(["x" * 1_000_000] * 6)), path)
        with pytest.raises(InputError) as caught:
            opened(path, **keys)
        assert len(str(caught.value)) < 400
    pq.write_table(pa.table({"image": pa.array(["a"] * 6, pa.string_view())}), path)
    with pytest.raises(InputError, match=r"bad\.parquet"):
        opened(path)
    pq.write_table(table.append_column("label", table["label"]), path)
    with pytest.raises(InputError, match="has 2 columns 'label'; rename one of them"):
        opened(path, label="label")


def test_sparse_class_numbers_need_no_list(tmp_path: Path) -> None:
    found = opened(write(tmp_path / "a.parquet", label=[0, 999, 0, 999, 0, 9_999]), label="label")
    assert (len(found.classes), found.classes[-1], found.labels.max()) == (10_000, "9999", 9_999)


def test_absent_classes_can_be_allowed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", label=[0, 2, 0, 2, 0, 2])
    found = opened(path, label="label", classes=list("abc"), absent_classes=True)
    assert np.bincount(found.labels, minlength=3).tolist() == [3, 0, 3]


def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="has no picture"):
        opened(tmp_path / "empty")
    with pytest.raises(InputError, match="no such file"):
        opened(tmp_path / "absent.parquet")
    (tmp_path / "text.parquet").write_text("not parquet at all", "utf-8")
    with pytest.raises(InputError, match="no readable Parquet"):
        opened(tmp_path / "text.parquet")


@pytest.mark.parametrize("column", ["image", "label"])
def test_a_damaged_page_is_one_sentence(tmp_path: Path, column: str) -> None:
    path = write(tmp_path / "bad.parquet", label=list("aabbab"))
    group = pq.ParquetFile(path).metadata.row_group(1)
    [chunk] = [group.column(n) for n in range(group.num_columns) if group.column(n).path_in_schema == column]
    data = bytearray(path.read_bytes())
    data[chunk.data_page_offset : chunk.data_page_offset + 40] = b"\xff" * 40
    path.write_bytes(data)
    with pytest.raises(InputError, match="is damaged or cannot be read") as caught:
        opened(path, label="label")
    assert "bad.parquet" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_set_that_changed_after_it_was_opened_is_refused(tmp_path: Path) -> None:
    """Fewer rows, other pictures in the same places, another column: labels and names are those of the file that was opened."""
    path = write(tmp_path / "set.parquet", label=list("aabbab"))
    found = opened(path, label="label")
    table = pq.read_table(path)
    for changed, said in (
        (table.slice(0, 3), "has changed since it was opened .picture '3'.; bring back what was there"),
        (table.take([1, 0, 2, 3, 4, 5]), "has changed since it was opened .picture '0'."),
        (table.rename_columns(["jpg", "label"]), "has no column 'image' any more"),
        (table.set_column(0, "image", pa.array(range(6))), "has a row without picture bytes"),
    ):
        pq.write_table(changed, path)
        with pytest.raises(InputError, match=f"set.parquet: .*{said}"):
            list(found.pictures())
    pq.write_table(table, path)
    assert len(list(found.pictures())) == 6

    (tmp_path / "folder/cat").mkdir(parents=True)
    picture = tmp_path / "folder/cat/1.jpg"
    picture.write_bytes(flat(10))
    found = opened(tmp_path / "folder")
    picture.write_bytes(flat(20))
    with pytest.raises(InputError, match=r"folder: has changed since .*cat/1\.jpg"):
        list(found.pictures())
