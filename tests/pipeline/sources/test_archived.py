"""Pictures that lie in their source: found by every kind of source, read again byte for byte, within limits."""

import gzip
import hashlib
import importlib.util
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.contracts import storage
from pipeline.contracts.errors import InputError
from pipeline.contracts.schema import Reason
from pipeline.sources import rows
from pipeline.sources.archived import Unreadable, read_bytes
from pipeline.sources.files import SourcesConfig, expand, source_name


def _picture(number: int) -> bytes:
    """Bytes of no picture: what reads them does not look inside."""
    return hashlib.blake2b(str(number).encode()).digest() * (20 + number)


def _table(folder: Path) -> pa.Table:
    config = SourcesConfig(paths=[str(folder)])
    return pa.concat_tables([rows.read(file, config) for file in expand(config)])


def _read(folder: Path, row: dict[str, str | None], most: int = 1 << 20) -> bytes | Unreadable:
    uris = {file.name: file.uri for file in expand(SourcesConfig(paths=[str(folder)]))}
    assert row["source"] is not None
    assert row["archived"] is not None
    return read_bytes(uris[source_name(row["source"])], row["archived"], most, row["url"])


# ---- img2dataset

_MODES = ("Parquet", "WebDataset", "Files")
_WRITE = """
import hashlib, os, sys, pyarrow as pa
from img2dataset import writer
schema = pa.schema([(name, pa.string()) for name in ("url", "caption", "key", "status", "error_message")])
for mode in sys.argv[2:]:
    folder = os.path.join(sys.argv[1], mode)
    os.mkdir(folder)
    made = getattr(writer, mode + "SampleWriter")(3, folder, True, 5, schema, "jpg")
    for number in range(250):
        key = f"00003{number:04d}"
        good = number % 5 != 2
        status = "success" if good else "failed_to_download"
        meta = {"url": f"http://e.org/{number}", "caption": f"picture {number}", "key": key, "status": status, "error_message": None}
        data = hashlib.blake2b(str(number).encode()).digest() * (20 + number) if good else None
        made.write(data, key, meta["caption"], meta)
    made.close()
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each of img2dataset's writers, of one process: it imports for seconds."""
    folder = tmp_path_factory.mktemp("written")
    subprocess.run([sys.executable, "-c", _WRITE, str(folder), *_MODES], check=True, capture_output=True)
    return folder


@pytest.mark.skipif(importlib.util.find_spec("img2dataset") is None, reason="img2dataset is not installed")
@pytest.mark.parametrize("mode", _MODES)
def test_shards_that_img2dataset_wrote(written: Path, mode: str) -> None:
    """Written by its own writers; its statistics are written by its downloader, of which only the name counts."""
    folder = written / mode
    (folder / "00003_stats.json").write_text(json.dumps({"count": 250, "successes": 200}))
    (folder / "more.txt").write_text("http://e.org/another\n")
    assert [(file.name, file.kind) for file in expand(SourcesConfig(paths=[str(folder)]))] == [
        ("00003.parquet", "img2dataset"),
        ("more.txt", "table"),
    ]
    found = _table(folder).to_pylist()[:-1]
    assert [(row["url"], row["caption_raw"], row["source"]) for row in found] == [
        (f"http://e.org/{number}", f"picture {number}", f"00003.parquet#{number}") for number in range(250)
    ]
    for number, row in enumerate(found):
        if number % 5 == 2:
            assert row["archived"] is None  # it failed there, and is fetched here
        elif number % 13 == 0:
            assert _read(folder, row) == _picture(number)
            assert _read(folder, row, len(_picture(number)) - 1) == (
                Reason.TOO_MANY_BYTES,
                f"more than {len(_picture(number)) - 1:,}",
            )


@pytest.mark.parametrize("form", ["", "*.parquet", "*", "00003.parquet", "../*/0*.parquet"])
def test_a_shard_is_one_however_it_was_named(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    columns = {
        "url": ["http://e.org/1"],
        "caption": ["a dog"],
        "key": ["0"],
        "status": ["success"],
        "jpg": [b"picture"],
    }
    pq.write_table(pa.table(columns), folder / "00003.parquet")
    (folder / "00003_stats.json").write_text("{}")
    pq.write_table(pa.table({"url": ["http://e.org/2"], "caption": ["a cat"]}), folder / "00004.parquet")
    config = SourcesConfig(paths=[str(folder / form)])
    files = {file.uri.rpartition("/")[2]: file for file in expand(config)}
    assert files["00003.parquet"].kind == "img2dataset"
    assert set(files) <= {"00003.parquet", "00004.parquet"}
    assert all(file.kind == "table" for name, file in files.items() if name == "00004.parquet")
    (row,) = rows.read(files["00003.parquet"], config).to_pylist()
    assert read_bytes(files["00003.parquet"].uri, row["archived"], 100, row["url"]) == b"picture"


@pytest.mark.parametrize("form", ["", "*"])
def test_statistics_beside_tars_without_their_tables_are_no_source(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    sample = [("0.jpg", _picture(0)), ("0.json", b'{"url": "http://e.org/0", "caption": "a dog"}')]
    (folder / "00000.tar").write_bytes(_tar(sample))
    (folder / "00000_stats.json").write_text('{"count": 1}')
    (folder / "own_stats.json").write_text('[{"url": "http://e.org/1", "caption": "a table that is called so"}]')
    config = SourcesConfig(paths=[str(folder / form)])
    assert [(file.name, file.kind) for file in expand(config)] == [("00000.tar", "tar"), ("own_stats.json", "table")]
    (folder / "own").mkdir()
    (folder / "own" / "1.jpg").write_bytes(_picture(1))
    config = SourcesConfig(paths=[str(folder)])
    assert [file.name for file in expand(config)] == ["00000.tar"]


def test_shards_and_tars_in_an_object_store(tmp_path: Path, s3_endpoint: str) -> None:
    assert s3_endpoint
    boto3.client("s3").create_bucket(Bucket="shards")
    rows_of = {
        "url": ["http://e.org/0", "http://e.org/1"],
        "caption": ["a", "b"],
        "key": ["0", "1"],
        "status": ["success"] * 2,
    }
    pq.write_table(pa.table(rows_of), tmp_path / "00003.parquet")
    (tmp_path / "00003_stats.json").write_text("{}")
    (tmp_path / "00003.tar").write_bytes(_tar([("0.jpg", _picture(0)), ("1.jpg", _picture(1))]))
    (tmp_path / "own.tar").write_bytes(
        _tar([("2.jpg", _picture(2)), ("2.json", b'{"url": "http://e.org/2", "caption": "c"}')])
    )
    for path in tmp_path.iterdir():
        storage.write_atomic(f"s3://shards/out/{path.name}", path.read_bytes())
    config = SourcesConfig(paths=["s3://shards/out/0*.parquet", "s3://shards/out/own.tar"])
    files = {file.name: file for file in expand(config)}
    found = pa.concat_tables([rows.read(file, config) for file in files.values()]).to_pylist()
    read = [read_bytes(files[source_name(row["source"])].uri, row["archived"], 10_000, row["url"]) for row in found]
    assert read == [_picture(number) for number in range(3)]


def test_a_table_with_foreign_statistics_beside_it_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"url": ["http://e.org/0"], "caption": ["a"]}), tmp_path / "t.parquet")
    (tmp_path / "t_stats.json").write_text("{}")
    with pytest.raises(InputError, match=r"no column 'key', although t_stats\.json .*; move that file away"):
        _table(tmp_path / "t.parquet")


def test_a_column_that_holds_no_bytes_is_no_picture(tmp_path: Path) -> None:
    pq.write_table(pa.table({"jpg": ["text"], "png": [1]}), tmp_path / "t.parquet")
    for column in ("jpg", "png", "webp"):
        found = read_bytes(str(tmp_path / "t.parquet"), f"cell:{column}/0", 100)
        assert isinstance(found, Unreadable)
        assert found.reason is Reason.NOT_AN_IMAGE


# ---- tar


def _tar(members: list[tuple[str, bytes]]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return sink.getvalue()


def _pax_tar(size: str, format: int = tarfile.PAX_FORMAT) -> bytes:
    """A sample whose first member claims another size in a pax header."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=format) as tar:
        for name, data in (("a.txt", b"a dog"), ("a.jpg", b"1234"), ("a.json", b'{"url": "http://e.org/1"}')):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            if name == "a.jpg":
                member.pax_headers = {"size": size}
            tar.addfile(member, io.BytesIO(data))
    return sink.getvalue()


def _with_checksum(header: bytes) -> bytes:
    total = sum(header[:148]) + 8 * ord(" ") + sum(header[156:])
    return header[:148] + b"%06o\0 " % total + header[156:]


def _header(name: bytes, kind: bytes, size: bytes) -> bytes:
    return _with_checksum(
        (name.ljust(100, b"\0") + bytes(24) + size.ljust(12, b"\0") + bytes(20) + kind).ljust(512, b"\0")
    )


_SAMPLE = _tar([("b.txt", b"a cat"), ("b.json", b'{"url": "http://e.org/2"}')])
_BAD_TARS = {
    **{
        f"size {size}": _pax_tar(size)
        for size in ("-5", "-512", "-1024", "-1536", "-2048", "x", "", "1e3", "9" * 23, "9" * 17)
    },
    "negative in base 256": _header(b"a.jpg", b"0", (-1536).to_bytes(12, "big", signed=True)) + _SAMPLE,
    "sparse": _header(b"a.jpg", b"S", b"00000000004") + bytes(512) + _SAMPLE,
    "pax without length": _header(b"x", b"x", b"%011o" % 10) + b"path=a.jpg".ljust(512, b"\0") + _SAMPLE,
    "pax of zero length": _header(b"x", b"x", b"%011o" % 9) + b"0 path=a\n".ljust(512, b"\0") + _SAMPLE,
    "extended header of gigabytes": _header(b"x", b"L", b"%011o" % (2 << 20)) + bytes(2 << 20) + _SAMPLE,
    "damaged in the middle": _SAMPLE[:1024] + b"\xff" + _SAMPLE[1025:],
    "cut off between members": _SAMPLE[:1024],
    "cut off inside a header": _SAMPLE[:1324],
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("data", _BAD_TARS.values(), ids=_BAD_TARS)
def test_tars_that_are_none_are_named_in_one_sentence(tmp_path: Path, data: bytes) -> None:
    """Python's tarfile goes round in circles over some, raises half a dozen errors over others, and takes some for whole."""
    (tmp_path / "t.tar").write_bytes(data)
    with pytest.raises(InputError, match=r"t\.tar: not a whole tar file \(.*\); replace it or take it out$"):
        _table(tmp_path)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_of_every_format_have_the_members_that_tarfile_finds(tmp_path: Path, format: int) -> None:
    names = ["a.jpg", "a/b.JPG", f"{'d' * 80}/{'e' * 90}.jpg", "ä é/犬.png", "a" * 95 + ".jpg"]
    if format != tarfile.USTAR_FORMAT:
        names += ["f" * 300 + ".jpg", f"{'g/' * 200}h.webp"]
    with tarfile.open(tmp_path / "t.tar", "w", format=format) as tar:
        for number, name in enumerate(names):
            for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE):
                beside = tarfile.TarInfo(f"{number}.dir")
                beside.type, beside.linkname = kind, "l" * (300 if format != tarfile.USTAR_FORMAT else 90)
                tar.addfile(beside)
            member = tarfile.TarInfo(name)
            member.size = len(_picture(number))
            member.pax_headers = {"comment": "é"}
            tar.addfile(member, io.BytesIO(_picture(number)))
    with tarfile.open(tmp_path / "t.tar") as tar:
        expected = [f"bytes:{member.offset_data}+{member.size}" for member in tar if member.isfile()]
    assert len(expected) == len(names)
    found = _table(tmp_path)
    assert found["archived"].to_pylist() == expected
    assert [_read(tmp_path, row) for row in found.to_pylist()] == [_picture(number) for number in range(len(names))]


def test_a_long_chain_of_headers_is_read(tmp_path: Path) -> None:
    """Where tarfile calls itself for each of them."""
    chain = (_header(b"x", b"x", b"%011o" % 12) + b"12 comment=\n".ljust(512, b"\0")) * 5000
    (tmp_path / "t.tar").write_bytes(chain + _SAMPLE)
    (row,) = _table(tmp_path).to_pylist()
    assert (row["url"], row["caption_raw"]) == ("http://e.org/2", "a cat")


def test_tars_of_samples(tmp_path: Path) -> None:
    members = [
        ("a/000.jpg", _picture(0)),
        ("a/000.txt", b"a dog"),
        ("a/000.json", b'{"url": "http://e.org/0", "caption": "not this one"}'),
        ("001.json", b'{"url": "http://e.org/1", "caption": "a cat"}'),
        ("001.PNG", _picture(1)),
        ("002.cls", b"7"),
        ("002.json", b'{"url": "http://e.org/2", "caption": "no picture"}'),
        ("003.jpg", _picture(3)),
        ("003.json", b"{broken"),
        ("004.jpg", _picture(4)),
    ]
    data = _tar(members)
    (tmp_path / "t.tar").write_bytes(data)
    table = _table(tmp_path)
    found = table.to_pylist()
    assert [(row["url"], row["caption_raw"], row["archived"] is not None) for row in found] == [
        ("http://e.org/0", "a dog", True),
        ("http://e.org/1", "a cat", True),
        ("http://e.org/2", "no picture", False),
        (None, None, True),
        (None, None, True),
    ]
    assert [_read(tmp_path, found[place]) for place in (0, 1)] == [_picture(0), _picture(1)]
    assert [row["source"] for row in found] == [f"t.tar#{number}" for number in range(5)]
    kept, rejected = rows.candidates(table, SourcesConfig(paths=["t"]))
    assert kept["archived"].null_count == 1
    assert sorted(rejected["reason"].to_pylist()) == ["bad_row", "bad_url"]
    (tmp_path / "t.tar").write_bytes(data[: data.index(_picture(3)) + 100])
    with pytest.raises(InputError, match="not a whole tar file"):
        _table(tmp_path)


# ---- web archives


def _warc(url: str, block: bytes, kind: str = "response", content_type: str = "application/http") -> bytes:
    head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nContent-Type: {content_type}\r\nContent-Length: {len(block)}\r\n"
    return (
        f"{head}WARC-Record-ID: <urn:uuid:668d88fc-4208-41fc-b327-1aa6cb783331>\r\nWARC-Date: 2026-01-01T00:00:00Z\r\n\r\n".encode()
        + block
        + b"\r\n\r\n"
    )


def _http(body: bytes, content_type: str, *headers: str) -> bytes:
    return "\r\n".join(["HTTP/1.1 200 OK", f"Content-Type: {content_type}", *headers, "", ""]).encode() + body


def _web(picture: bytes) -> list[bytes]:
    return [
        _warc(
            "http://e.org/",
            _http(b"<img src=0.jpg alt=zero><img src='1 1.jpg' alt=one><img src=2.jpg alt=two>", "text/html"),
        ),
        _warc("http://e.org/0.jpg", _http(picture, "image/jpeg")),
        _warc("http://e.org/1%201.jpg", _http(gzip.compress(picture), "image/jpeg", "Content-Encoding: gzip")),
        _warc("http://e.org/2.jpg", picture, "resource", "image/jpeg"),
    ]


def _arc(url: str, block: bytes, version: int) -> bytes:
    more = "" if version == 1 else " 200 - - 0 t.arc"
    return f"{url} 192.0.2.1 20260101000000 text/html{more} {len(block)}\n".encode() + block + b"\n"


@pytest.mark.parametrize("name", ["t.arc", "t.arc.gz"])
@pytest.mark.parametrize("version", [1, 2])
def test_pictures_of_both_versions_of_arc(tmp_path: Path, name: str, version: int) -> None:
    pack = gzip.compress if name.endswith(".gz") else bytes
    page = _http(b"<img src=0.jpg alt=zero><img src='1 1.jpg' alt=one>", "text/html")
    parts = [
        _arc("filedesc://t.arc", f"{version} 0 test\nURL IP-address\n".encode(), version),
        _arc("http://e.org/", page, version),
        _arc("http://e.org/0.jpg", _http(_picture(0), "image/jpeg"), version),
        _arc("http://e.org/1 1.jpg", _http(_picture(1), "image/jpeg"), version),
    ]
    (tmp_path / name).write_bytes(b"".join(map(pack, parts)))
    found = _table(tmp_path).to_pylist()
    assert [_read(tmp_path, row) for row in found] == [_picture(0), _picture(1)]
    (tmp_path / name).write_bytes(b"".join(map(pack, [*parts[:2], parts[3], parts[2]])))
    changed = _read(tmp_path, found[0])
    assert changed == (Reason.NOT_AN_IMAGE, "another record is at the picture's place; was the archive changed?")


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate", "zstd", "chunked"])
def test_pictures_stored_decoded_under_the_header_of_a_coding(tmp_path: Path, coding: str) -> None:
    picture = b"\xff\xd8\xff\xe0\0\x10JFIF" + _picture(3)
    header = f"{'Transfer' if coding == 'chunked' else 'Content'}-Encoding: {coding}"
    page = _http(b"<img src=0.jpg alt=zero>", "text/html")
    parts = [_warc("http://e.org/", page), _warc("http://e.org/0.jpg", _http(picture, "image/jpeg", header))]
    (tmp_path / "t.warc").write_bytes(b"".join(parts))
    (row,) = _table(tmp_path).to_pylist()
    assert _read(tmp_path, row) == picture


@pytest.mark.parametrize("name", ["t.warc", "t.warc.gz"])
def test_pictures_of_web_archives(tmp_path: Path, name: str) -> None:
    pack = gzip.compress if name.endswith(".gz") else bytes
    parts = [pack(part) for part in _web(_picture(7))]
    (tmp_path / name).write_bytes(b"".join(parts))
    found = _table(tmp_path).to_pylist()
    assert [_read(tmp_path, row) for row in found] == [_picture(7)] * 3
    size = len(_picture(7))
    assert [_read(tmp_path, row, size) for row in found] == [_picture(7)] * 3
    assert all(_read(tmp_path, row, size - 1) == (Reason.TOO_MANY_BYTES, f"more than {size - 1:,}") for row in found)
    another = read_bytes(str(tmp_path / name), f"record:{len(parts[0])}", 1 << 20, "http://e.org/other.jpg")
    assert isinstance(another, Unreadable)
    assert another.reason is Reason.NOT_AN_IMAGE
    (tmp_path / name).write_bytes(b"".join(parts)[:-70])
    cut = _read(tmp_path, found[2])
    assert isinstance(cut, Unreadable)
    assert cut.reason in (Reason.IMAGE_TRUNCATED, Reason.NOT_AN_IMAGE)


@pytest.mark.parametrize("name", ["t.warc.gz", "t.warc.zst", "t.arc.gz"])
@pytest.mark.parametrize("together", [2, 3, 100])
def test_records_that_share_a_member_have_no_places(tmp_path: Path, name: str, together: int) -> None:
    """A picture whose record cannot be entered is fetched; one at the beginning of a member is read."""
    zstd = pa.Codec("zstd")
    parts = _web(_picture(7))
    if ".arc" in name:
        http = [_http(_picture(7), "image/jpeg") for _ in range(3)]
        page = _http(b"<img src=0.jpg alt=zero><img src='1 1.jpg' alt=one><img src=2.jpg alt=two>", "text/html")
        urls = ["http://e.org/", "http://e.org/0.jpg", "http://e.org/1%201.jpg", "http://e.org/2.jpg"]
        parts = [_arc(url, block, 1) for url, block in zip(urls, [page, *http], strict=True)]
    members = [b"".join(parts[place : place + together]) for place in range(0, len(parts), together)]
    packed = [zstd.compress(part, asbytes=True) if name.endswith(".zst") else gzip.compress(part) for part in members]
    (tmp_path / name).write_bytes(b"".join(packed))
    found = _table(tmp_path).to_pylist()
    firsts = {place: f"record:{sum(map(len, packed[: place // together]))}" for place in range(0, 4, together)}
    assert [row["archived"] for row in found] == [firsts.get(place) for place in (1, 2, 3)]
    assert all(_read(tmp_path, row) == _picture(7) for row in found if row["archived"])


def test_a_picture_that_unpacks_without_end_is_bounded(tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(200 << 20))
    (tmp_path / "t.warc.gz").write_bytes(
        gzip.compress(_warc("http://e.org/a.jpg", _http(bomb, "image/jpeg", "Content-Encoding: gzip")))
    )
    assert read_bytes(str(tmp_path / "t.warc.gz"), "record:0", 1 << 20) == (
        Reason.TOO_MANY_BYTES,
        "more than 1,048,576",
    )


@pytest.mark.parametrize(
    "place",
    [
        "",
        "record:",
        "record:-1",
        "bytes:1",
        "bytes:1+1@../x",
        "file:/etc/passwd",
        "file:../x",
        "file:a/../../x",
        "cell:jpg/x",
        "7",
    ],
)
def test_places_that_are_none(tmp_path: Path, place: str) -> None:
    (tmp_path / "t.warc").write_bytes(b"x")
    with pytest.raises(InputError, match="run candidates again"):
        read_bytes(str(tmp_path / "t.warc"), place, 100)


def test_places_where_nothing_is(tmp_path: Path) -> None:
    (tmp_path / "t.tar").write_bytes(b"x" * 100)
    assert isinstance(read_bytes(str(tmp_path / "t.tar"), "bytes:90+20", 100), Unreadable)
    assert isinstance(read_bytes(str(tmp_path / "t.tar"), "file:absent.jpg", 100), Unreadable)
    assert isinstance(read_bytes(str(tmp_path / "t.tar"), "record:500", 100), Unreadable)
    with pytest.raises(InputError, match="not a parquet file"):
        read_bytes(str(tmp_path / "t.tar"), "cell:jpg/1", 100)
