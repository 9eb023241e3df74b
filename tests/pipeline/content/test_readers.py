"""Corpora that others wrote, against Python's tarfile and plain lists: every row is an entry, nothing is believed unchecked."""

import io
import json
import os
import pickle
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.content import readers, webdataset
from pipeline.content.readers import Columns, CorpusFile, Entry, Layout, Listing
from pipeline.contracts import storage
from pipeline.contracts.errors import InputError
from tests.evaluation.foreign import sha256, tar_bytes

NO_COLUMNS = Columns()


def opened(layout: Layout, place: str, columns: Columns = NO_COLUMNS) -> tuple[list[CorpusFile], list[Listing]]:
    files = readers.find_files(layout, [place])
    return files, [readers.list_file(layout, file, columns) for file in files]


def entries(layout: Layout, place: str, columns: Columns = NO_COLUMNS) -> list[Entry]:
    files, listings = opened(layout, place, columns)
    return [
        entry
        for file, listing in zip(files, listings, strict=True)
        for entry in readers.read_file(layout, file, listing.rows, columns)
    ]


# ---- what is found


def test_a_tar_gives_the_samples_that_tarfile_gives(tmp_path: Path) -> None:
    told = {"url": " https://e.org/1 ", "caption": "of the JSON", "sha256": "ab" * 32}
    data = tar_bytes(
        [
            ("a/1.jpg", b"picture 1"),
            ("a/1.txt", b"caption 1\n"),
            ("a/1.json", json.dumps(told).encode()),
            ("a/2.txt", b" "),
            ("a/2.json", json.dumps({"caption": "only JSON", "sha256": "no hash"}).encode()),
            ("a/2.webp", b"picture 2"),
            ("a/3.json", b"[1"),
            ("b/3.seg.png", b"not the picture"),
            ("b/3.PNG", b"picture 3"),
            ("b/4.jpg", b""),
        ],
        links=True,
    )
    (tmp_path / "x.tar").write_bytes(data)
    found = entries("webdataset", str(tmp_path))
    assert [(one.row, one.key, one.data, one.url, one.caption, one.fetched) for one in found] == [
        (0, "a/1", b"picture 1", "https://e.org/1", "caption 1\n", bytes.fromhex("ab" * 32)),
        (1, "a/2", b"picture 2", None, "only JSON", None),
        (2, "a/3", None, None, None, None),
        (3, "b/3", b"picture 3", None, None, None),
        (4, "b/4", None, None, None, None),
    ]
    assert [str(one.refused) for one in found if one.refused] == [
        "no_image: a sample without a picture",
        "no_image: a picture file without bytes",
    ]
    [listing] = opened("webdataset", str(tmp_path / "x.tar"))[1]
    assert listing.sha256 == sha256(data).hex()


def test_parquet_by_usual_and_by_given_names(tmp_path: Path) -> None:
    table = pa.table(
        {
            "url": ["https://e.org/0", None, "https://e.org/2"],
            "caption": ["zero", None, ""],
            "key": ["000", "001", "002"],
            "jpg": pa.array([b"p0", None, b"p2"], pa.large_binary()),
            "other": pa.array([{"bytes": b"q0", "path": "x"}, {"bytes": None, "path": "/etc/passwd"}, None]),
            "sha256": ["cd" * 32, None, "short"],
        }
    )
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=2)
    found = entries("parquet", str(tmp_path))
    assert [(one.row, one.key, one.data, one.url, one.caption, one.fetched) for one in found] == [
        (0, "000", b"p0", "https://e.org/0", "zero", bytes.fromhex("cd" * 32)),
        (1, "001", None, None, None, None),
        (2, "002", b"p2", "https://e.org/2", None, None),
    ]
    named = entries(
        "parquet", str(tmp_path / "*.parquet"), Columns(image="other", caption="key", url="caption", key="url")
    )
    assert [(one.key, one.data, one.url, one.caption) for one in named] == [
        ("https://e.org/0", b"q0", "zero", "000"),
        (None, None, None, "001"),
        ("https://e.org/2", None, None, "002"),
    ]


def test_a_folder_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "PICTURES_PER_BLOCK", 2)
    for name, data in {
        "b/one.jpg": b"1",
        "b/one.txt": b"eins",
        "b/one.json": b'{"url": "u", "caption": "no"}',
        "a.b/two.x.png": b"2",
        "a.b/two.x.json": b'{"caption": "zwei"}',
        "three.txt": b"of no picture",
        "c/four.jpeg": b"4",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    files, listings = opened("folder", str(tmp_path))
    assert [file.name for file in files] == ["block-000000", "block-000001"]
    found = entries("folder", str(tmp_path))
    assert [(one.row, one.key, one.data, one.url, one.caption) for one in found] == [
        (0, "a.b/two.x.png", b"2", None, "zwei"),
        (1, "b/one.jpg", b"1", "u", "eins"),
        (0, "c/four.jpeg", b"4", None, None),
    ]
    assert [one.source for one in found] == ["a.b/two.x.png", "b/one.jpg", "c/four.jpeg"]
    before = [listing.sha256 for listing in listings]
    (tmp_path / "b/one.txt").write_bytes(b"EINS")
    after = [listing.sha256 for listing in opened("folder", str(tmp_path))[1]]
    assert (before[0] != after[0], before[1] == after[1]) == (True, True)


def test_some_rows_are_read_without_the_others(tmp_path: Path) -> None:
    members = [(f"{number}.jpg", bytes([number]) * 100) for number in range(50)]
    (tmp_path / "x.tar").write_bytes(tar_bytes(members))
    pq.write_table(pa.table({"image": [data for _, data in members]}), tmp_path / "x.parquet", row_group_size=7)
    layout: Layout
    for layout in ("webdataset", "parquet"):
        [file], [listing] = opened(layout, str(tmp_path))
        some = readers.read_file(layout, file, listing.rows.take([3, 20, 21, 49]), NO_COLUMNS)
        assert [one.data for one in some] == [bytes([number]) * 100 for number in (3, 20, 21, 49)]


def test_the_same_on_s3(tmp_path: Path, s3_endpoint: str) -> None:
    """All three layouts, local and in a store: the same entries, the same digests."""
    boto3.client("s3").create_bucket(Bucket="others")
    members = [("1.jpg", b"one"), ("1.txt", b"eins"), ("2.jpg", b"two")]
    (tmp_path / "x.tar").write_bytes(tar_bytes(members))
    pq.write_table(pa.table({"image": [b"one", b"two"], "caption": ["eins", None]}), tmp_path / "x.parquet")
    for name, data in members:
        (tmp_path / name).write_bytes(data)
    for path in tmp_path.iterdir():
        storage.write_atomic(f"s3://others/in/{path.name}", path.read_bytes())
    layouts: tuple[Layout, ...] = ("webdataset", "parquet", "folder")
    for layout in layouts:
        there, here = "s3://others/in", str(tmp_path)
        assert entries(layout, there) == entries(layout, here)
        assert [each.sha256 for each in opened(layout, there)[1]] == [each.sha256 for each in opened(layout, here)[1]]


# ---- what is hostile


def test_a_tar_that_is_cut_gives_what_is_whole_and_says_so(tmp_path: Path) -> None:
    members = [(f"{number}.jpg", bytes([number]) * 700) for number in range(6)]
    whole = tar_bytes(members)
    (tmp_path / "x.tar").write_bytes(whole[: 4 * 1536 + 600])
    [file], [listing] = opened("webdataset", str(tmp_path))
    assert listing.damage == "ends inside the file at byte 6,144"
    assert listing.sha256 == sha256(whole[: 4 * 1536 + 600]).hex()
    found = list(readers.read_file("webdataset", file, listing.rows, NO_COLUMNS))
    assert [one.data for one in found] == [data for _, data in members[:3]], "the fourth may go on behind the damage"


@pytest.mark.parametrize("data", [b"<html>404</html>" * 100, tar_bytes([("1.jpg", b"x" * 900)])[:700]])
def test_what_is_no_tar_from_its_beginning_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(InputError, match=r"x\.tar: .*give tars as webdataset writes them, or leave this one out"):
        opened("webdataset", str(tmp_path))


def test_a_sample_of_absurd_size_is_refused_and_not_read(tmp_path: Path) -> None:
    """A sparse file on the disk, so that only its reader could make it large."""
    large = readers.MAX_PICTURE_BYTES + 1
    entry = tarfile.TarInfo("large.jpg")
    entry.size = large
    place = tmp_path / "x.tar"
    with place.open("wb") as sink:
        sink.write(tar_bytes([("1.jpg", b"one")])[:1024] + entry.tobuf())
        sink.seek(-(-large // 512) * 512, os.SEEK_CUR)
        sink.write(tar_bytes([("2.jpg", b"two")]))
    [file], [listing] = opened("webdataset", str(tmp_path))
    tracemalloc.start()
    found = list(readers.read_file("webdataset", file, listing.rows, NO_COLUMNS))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [one.data for one in found] == [b"one", None, b"two"]
    assert str(found[1].refused).startswith("too_many_bytes: 67,109,")
    assert peak < 1 << 20


def test_limits_of_tables_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_PICTURE_BYTES", 10)
    pq.write_table(pa.table({"image": [b"x" * 10, b"x" * 11]}), tmp_path / "x.parquet")
    (tmp_path / "a.jpg").write_bytes(b"x" * 11)
    (tmp_path / "b.jpg").write_bytes(b"x" * 10)
    assert [one.data for one in entries("parquet", str(tmp_path))] == [b"x" * 10, None]
    found = entries("folder", str(tmp_path))
    assert [(one.data, str(one.refused)) for one in found] == [
        (None, "too_many_bytes: 11 bytes, more than 10"),
        (b"x" * 10, "None"),
    ]
    monkeypatch.setattr(readers, "MAX_ROWS", 1)
    with pytest.raises(InputError, match=r"x\.parquet: more than 1 rows in one file; cut it into smaller ones"):
        opened("parquet", str(tmp_path))


def test_names_of_any_kind_become_one_line(tmp_path: Path) -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("tab\there\nline\\", "日本", "byte\udcff", "long" * 400):
            entry = tarfile.TarInfo(f"{name}.jpg")
            entry.size = 1
            tar.addfile(entry, io.BytesIO(b"x"))
    (tmp_path / "x.tar").write_bytes(sink.getvalue())
    keys = [one.key for one in entries("webdataset", str(tmp_path))]
    assert keys == ["tab\\there\\nline\\\\", "日本", "byte\\udcff", "long" * 250]


def test_texts_beyond_their_limits_count_as_none(tmp_path: Path) -> None:
    long = "x" * (webdataset.MAX_CAPTION_BYTES + 1)
    told = json.dumps({"url": "u" * 70_000}).encode()
    members = [
        ("1.jpg", b"1"),
        ("1.txt", long.encode()),
        ("2.jpg", b"2"),
        ("2.json", told),
        ("3.jpg", b"3"),
        ("3.json", b"[" * 99_999),
    ]
    (tmp_path / "x.tar").write_bytes(tar_bytes(members))
    pq.write_table(pa.table({"image": [b"1"], "caption": [long], "url": ["u" * 70_000]}), tmp_path / "x.parquet")
    for name, data in members:
        (tmp_path / name).write_bytes(data)
    layouts: tuple[Layout, ...] = ("webdataset", "parquet", "folder")
    for layout in layouts:
        assert {(one.url, one.caption) for one in entries(layout, str(tmp_path))} == {(None, None)}


# ---- what changes under way, and what is not there


def _other_tar(path: Path) -> None:
    path.write_bytes(tar_bytes([("1.jpg", b"uno")]))


def _other_table(path: Path) -> None:
    pq.write_table(pa.table({"image": [b"other"]}), path)


def _other_file(path: Path) -> None:
    path.write_bytes(b"uno")


@pytest.mark.parametrize(
    ("layout", "name", "change"),
    [("webdataset", "x.tar", _other_tar), ("parquet", "x.parquet", _other_table), ("folder", "1.jpg", _other_file)],
)
def test_a_file_that_changed_after_the_listing_is_refused(
    layout: Layout, name: str, change: Callable[[Path], None], tmp_path: Path
) -> None:
    (tmp_path / "x.tar").write_bytes(tar_bytes([("1.jpg", b"one")]))
    pq.write_table(pa.table({"image": [b"one"]}), tmp_path / "x.parquet")
    (tmp_path / "1.jpg").write_bytes(b"one")
    [file], [listing] = opened(layout, str(tmp_path))
    assert [one.data for one in readers.read_file(layout, file, listing.rows, NO_COLUMNS)] == [b"one"]
    change(tmp_path / name)
    with pytest.raises(InputError, match="has changed since it was listed; run the same command again"):
        list(readers.read_file(layout, file, listing.rows, NO_COLUMNS))


BAD: dict[str, tuple[Layout, str, Columns, str]] = {
    "no tar": ("webdataset", "", NO_COLUMNS, "names no .tar file"),
    "no such pattern": ("parquet", "no*.parquet", NO_COLUMNS, "names no .parquet file"),
    "no picture": ("folder", "empty", NO_COLUMNS, "names no picture"),
    "compressed": ("webdataset", "x.tar.gz", NO_COLUMNS, "is compressed as a whole; unpack it to .tar"),
    "no table": ("parquet", "bad.parquet", NO_COLUMNS, "bad.parquet: not a readable Parquet file"),
    "no column of pictures": ("parquet", "urls.parquet", NO_COLUMNS, "no column 'image' or 'jpg' or"),
    "pictures are in the tars": ("parquet", "urls.parquet", NO_COLUMNS, "layout = 'webdataset'"),
    "given column is missing": (
        "parquet",
        "x.parquet",
        Columns(caption="text"),
        "no column 'text'; its columns are image, n",
    ),
    "caption is a number": ("parquet", "x.parquet", Columns(caption="n"), "column 'n' holds int64, not text"),
    "pictures are text": (
        "parquet",
        "urls.parquet",
        Columns(image="url"),
        "column 'url' holds string, not encoded pictures",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str, tmp_path: Path) -> None:
    layout, place, columns, said = BAD[name]
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.parquet").write_bytes(b"PAR1" + bytes(100))
    pq.write_table(pa.table({"url": ["u"], "key": ["k"], "status": ["success"]}), tmp_path / "urls.parquet")
    pq.write_table(pa.table({"image": [b"x"], "n": [1]}), tmp_path / "x.parquet")
    with pytest.raises(InputError) as caught:
        opened(layout, str(tmp_path / place) if place else str(tmp_path), columns)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_named_twice(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tar_bytes([("1.jpg", b"one")]))
    with pytest.raises(InputError, match="is named twice"):
        readers.find_files("webdataset", [str(tmp_path), f"{tmp_path}/x.tar"])


def test_a_tar_that_is_cut_between_two_files_says_so(tmp_path: Path) -> None:
    """Nothing in it is broken, and all of it is read; only the mark of its end is missing. Of an empty file nothing else is to say."""
    whole = tar_bytes([("1.jpg", b"one"), ("1.txt", b"eins"), ("2.jpg", b"two"), ("2.txt", b"zwei")])
    (tmp_path / "x.tar").write_bytes(whole[: 6 * 512])
    [listing] = opened("webdataset", str(tmp_path))[1]
    assert listing.damage == "ends without the mark of its end"
    assert [(one.data, one.caption) for one in entries("webdataset", str(tmp_path))] == [
        (b"one", "eins"),
        (b"two", None),
    ]
    (tmp_path / "x.tar").write_bytes(b"")
    with pytest.raises(InputError, match="ends without the mark of its end; give tars as webdataset writes them"):
        opened("webdataset", str(tmp_path))


def test_a_file_named_twice_in_two_spellings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.tar").write_bytes(tar_bytes([("1.jpg", b"one")]))
    monkeypatch.chdir(tmp_path)
    for other in ("./in", f"{tmp_path}/in/*.tar"):
        with pytest.raises(InputError, match="is named twice"):
            readers.find_files("webdataset", ["in", other])


def test_two_files_never_have_one_name(tmp_path: Path) -> None:
    """However long their paths are: pairs name a row by its file."""
    deep = tmp_path.joinpath(*["d" * 200] * 6)
    for place in (tmp_path, deep / "one", deep / "two"):
        place.mkdir(parents=True, exist_ok=True)
        (place / "x.tar").write_bytes(tar_bytes([("1.jpg", b"one")]))
    files = readers.find_files("webdataset", [str(tmp_path), str(deep / "one"), str(deep / "two")])
    assert len({file.name for file in files}) == 3


def test_columns_as_other_writers_encode_them(tmp_path: Path) -> None:
    """Categories of pandas, views of Arrow: read like any other. A caption that is silently not read is not searched."""
    texts, pictures = pa.array(["a", "b", "a"]), pa.array([b"1", b"2", b"1"], pa.binary())
    for caption, image in (
        (texts.dictionary_encode(), pictures.dictionary_encode()),
        (texts.cast(pa.string_view()), pictures.cast(pa.binary_view())),
    ):
        pq.write_table(pa.table({"image": image, "caption": caption}), tmp_path / "x.parquet")
        found = [(one.data, one.caption) for one in entries("parquet", str(tmp_path))]
        assert found == [(b"1", "a"), (b"2", "b"), (b"1", "a")]


def test_a_column_that_is_there_twice(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_arrays([pa.array([b"x"])] * 2, names=["image", "image"]), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"x\.parquet: column 'image' is there twice"):
        opened("parquet", str(tmp_path))


def test_a_folder_with_links_that_go_round(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "1.jpg").write_bytes(b"one")
    for link, to in (("a/up", ".."), ("a/b", "../b"), ("b/a", "../a"), ("b/here", ".")):
        (tmp_path / link).symlink_to(to)
    [file], _ = opened("folder", str(tmp_path / "a"))
    assert [one.name for one in file.pictures] == ["1.jpg"]
    [file], _ = opened("folder", str(tmp_path))
    assert [one.name for one in file.pictures] == ["a/1.jpg", "b/a/1.jpg"], (
        "a folder that a link leads to is looked into"
    )


def test_the_pictures_of_a_folder_travel_light(tmp_path: Path) -> None:
    """All of them go to every worker with every thousand: what they weigh there is their number squared."""
    for number in range(2000):
        (tmp_path / f"a_picture_with_some_name_{number:06d}.jpg").touch()
        (tmp_path / f"a_picture_with_some_name_{number:06d}.txt").touch()
    files = readers.find_files("folder", [str(tmp_path)])
    assert len(pickle.dumps(files)) < 30 * 2000
    again: list[CorpusFile] = pickle.loads(pickle.dumps(files))
    assert [one.name for file in again for one in file.pictures] == sorted(path.name for path in tmp_path.glob("*.jpg"))
    assert again[1].pictures[0].texts == (f"{tmp_path}/a_picture_with_some_name_001000.txt",)
