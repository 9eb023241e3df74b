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

import pyarrow as pa
import pytest

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

_WRITE = """
import sys, pyarrow as pa
from img2dataset import writer
folder, mode = sys.argv[1:]
schema = pa.schema([(name, pa.string()) for name in ("url", "caption", "key", "status", "error_message")])
made = getattr(writer, mode + "SampleWriter")(3, folder, True, 5, schema, "jpg")
import hashlib
for number in range(250):
    key = f"00003{number:04d}"
    good = number % 5 != 2
    status = "success" if good else "failed_to_download"
    meta = {"url": f"http://e.org/{number}", "caption": f"picture {number}", "key": key, "status": status, "error_message": None}
    data = hashlib.blake2b(str(number).encode()).digest() * (20 + number) if good else None
    made.write(data, key, meta["caption"], meta)
made.close()
"""


@pytest.mark.skipif(importlib.util.find_spec("img2dataset") is None, reason="img2dataset is not installed")
@pytest.mark.parametrize("mode", ["Parquet", "WebDataset", "Files"])
def test_shards_that_img2dataset_wrote(tmp_path: Path, mode: str) -> None:
    """Written by its own writers; its statistics are written by its downloader, of which only the name counts."""
    subprocess.run([sys.executable, "-c", _WRITE, str(tmp_path), mode], check=True, capture_output=True)
    (tmp_path / "00003_stats.json").write_text(json.dumps({"count": 250, "successes": 200}))
    (tmp_path / "more.txt").write_text("http://e.org/another\n")
    assert [(file.name, file.kind) for file in expand(SourcesConfig(paths=[str(tmp_path)]))] == [
        ("00003.parquet", "img2dataset"),
        ("more.txt", "table"),
    ]
    found = _table(tmp_path).to_pylist()[:-1]
    assert [(row["url"], row["caption_raw"], row["source"]) for row in found] == [
        (f"http://e.org/{number}", f"picture {number}", f"00003.parquet#{number}") for number in range(250)
    ]
    for number, row in enumerate(found):
        if number % 5 == 2:
            assert row["archived"] is None  # it failed there, and is fetched here
        elif number % 13 == 0:
            assert _read(tmp_path, row) == _picture(number)
            assert _read(tmp_path, row, len(_picture(number)) - 1) == (
                Reason.TOO_MANY_BYTES,
                f"more than {len(_picture(number)) - 1:,}",
            )


# ---- tar


def _tar(members: list[tuple[str, bytes]]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return sink.getvalue()


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


def test_an_archive_that_is_compressed_as_a_whole_has_no_places(tmp_path: Path) -> None:
    (tmp_path / "t.warc.gz").write_bytes(gzip.compress(b"".join(_web(_picture(7)))))
    table = _table(tmp_path)
    assert table.num_rows == 3
    assert table["archived"].null_count == 3


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
