"""WARC, ARC and WAT files made by their published formats: what is on their pages, and what damage costs."""

import gzip
import io
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from fastwarc.stream_io import ZstdWriter, zstd_train_dictionary_from_samples

from pipeline.contracts.errors import InputError
from pipeline.sources import rows
from pipeline.sources.archived import read_bytes
from pipeline.sources.files import SOURCE_SCHEMA, SourceFile, SourcesConfig, expand
from pipeline.sources.records import Damage, Record, records

Rows = list[dict[str, str | None]]


def _http(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", *(headers or ("Content-Type: text/html; charset=utf-8",))]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _warc(
    url: str, block: bytes, kind: str = "response", content_type: str = "application/http; msgtype=response"
) -> bytes:
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2026-01-01T00:00:00Z\r\n"
        "WARC-Record-ID: <urn:uuid:668d88fc-4208-41fc-b327-1aa6cb783331>\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: {len(block)}\r\n\r\n"
    )
    return head.encode() + block + b"\r\n\r\n"


def _arc(url: str, block: bytes) -> bytes:
    return f"{url} 192.0.2.1 20260101000000 text/html {len(block)}\n".encode() + block + b"\n"


def _filedesc(version: str = "1 0 test") -> bytes:
    text = f"{version}\nURL IP-address Archive-date Content-type Archive-length\n".encode()
    return f"filedesc://t.arc 0.0.0.0 20260101000000 text/plain {len(text)}\n".encode() + text + b"\n"


def _packed(name: str, parts: list[bytes]) -> bytes:
    """A member or frame for each record, as the formats ask."""
    if name.endswith(".gz"):
        return b"".join(gzip.compress(part, mtime=0) for part in parts)
    if name.endswith(".zst"):
        return b"".join(pa.Codec("zstd").compress(part, asbytes=True) for part in parts)
    return b"".join(parts)


def _read(path: Path, data: bytes, **values: object) -> Rows:
    path.write_bytes(data)
    config = SourcesConfig.model_validate({"paths": [str(path)], **values})
    (file,) = expand(config)
    table = rows.read(file, config)
    assert table.schema == SOURCE_SCHEMA
    kept, rejected = rows.candidates(table, config)
    assert kept.num_rows + rejected.num_rows == table.num_rows
    found: Rows = table.to_pylist()
    return found


def _page(number: int) -> bytes:
    return f"<p>{'filler ' * 200}</p><img src=/{number}.jpg alt='picture {number}'>".encode()


_KINDS = ["t.warc", "t.warc.gz", "t.warc.zst", "t.arc", "t.arc.gz"]


def _archive(name: str, blocks: list[tuple[str, bytes]]) -> list[bytes]:
    if ".arc" in name:
        return [_filedesc(), *(_arc(url, block) for url, block in blocks)]
    return [
        _warc("", b"software: test\r\n", "warcinfo", "application/warc-fields"),
        *(_warc(url, block) for url, block in blocks),
    ]


@pytest.mark.parametrize("name", _KINDS)
def test_pages_and_their_offsets(tmp_path: Path, name: str) -> None:
    blocks = [(f"http://e.org/{number}.html", _http(_page(number))) for number in range(5)]
    blocks[2] = (
        blocks[2][0],
        _http(gzip.compress(_page(2)), "Content-Type: TEXT/HTML;Charset=utf-8", "Content-Encoding: gzip"),
    )
    blocks[3] = (
        blocks[3][0],
        _http(
            b"%x\r\n%s\r\n0\r\n\r\n" % (len(_page(3)), _page(3)),
            "Content-Type: text/html",
            "Transfer-Encoding: chunked",
        ),
    )
    blocks += [
        ("http://e.org/404", _http(_page(9), "Content-Type: text/html", status="404 Not Found")),
        ("http://e.org/robots.txt", _http(b"User-agent: *", "Content-Type: text/plain")),
        ("dns:e.org", b"20260101 192.0.2.1"),
    ]
    parts = _archive(name, blocks)
    found = _read(tmp_path / name, _packed(name, parts))
    offsets = [len(_packed(name, parts[:place])) for place in range(1, 6)]
    assert [(row["url"], row["caption_raw"], row["page_url"], row["source"]) for row in found] == [
        (f"http://e.org/{number}.jpg", f"picture {number}", f"http://e.org/{number}.html", f"{name}#{offset}:alt")
        for number, offset in enumerate(offsets)
    ]
    for number, offset in enumerate(offsets):
        record = next(records(str(tmp_path / name), offset))
        assert isinstance(record, Record)
        assert (record.offset, record.url) == (offset, f"http://e.org/{number}.html")


@pytest.mark.parametrize("name", _KINDS)
def test_pictures_in_the_archive_are_named_and_those_that_are_not_there_are_not(tmp_path: Path, name: str) -> None:
    page = "<img src='/a b.jpg' alt=one><img src=/absent.jpg alt=two><img src=/é.png alt=three><img src=/gone.gif alt=four>"
    page += "<img src=/asks.jpg alt=five>"
    blocks = [
        ("http://E.org/a%20b.jpg", _http(b"\xff\xd8picture", "Content-Type: image/jpeg")),
        ("http://e.org/", _http(page.encode())),
        ("http://e.org/%C3%A9.png", _http(b"\x89PNG", "Content-Type: image/png")),
        ("http://e.org/gone.gif", _http(b"GIF8", "Content-Type: image/gif", status="404 Not Found")),
        ("http://e.org/asks.jpg", _http(b"\xff\xd8", "Content-Type: image/jpeg", "X-Robots-Tag: noai")),
    ]
    parts = _archive(name, blocks)
    found = _read(tmp_path / name, _packed(name, parts))
    first, third = (len(_packed(name, parts[:place])) for place in (1, 3))
    assert [row["archived"] for row in found] == [f"record:{first}", None, f"record:{third}", None, None]


@pytest.mark.parametrize("packed_dictionary", [True, False])
def test_an_archive_with_a_dictionary_is_entered_anywhere(tmp_path: Path, packed_dictionary: bool) -> None:
    """As the Internet Archive's are: a dictionary in front, without which no record can be unpacked."""
    images = [_warc(f"http://e.org/{n}.jpg", _http(b"\xff\xd8%d" % n, "Content-Type: image/jpeg")) for n in range(5)]
    parts = [part for n in range(5) for part in (_warc(f"http://e.org/{n}", _http(_page(n))), images[n])]
    samples = [_warc(f"http://e.org/{n}", _http(_page(n))) for n in range(500)]
    path = tmp_path / "t.warc.zst"
    offsets = []
    with path.open("wb") as file:
        dictionary = zstd_train_dictionary_from_samples(samples, 4000)
        writer = ZstdWriter(file, dictionary=dictionary, compress_dictionary_frame=packed_dictionary)
        for part in parts:
            writer.write(part)
            writer.finish()
            writer.flush()
            offsets.append(file.tell())
        writer.close()
    data = path.read_bytes()
    assert data.startswith(b"\x5d\x2a\x4d\x18")
    found = _read(path, data)
    assert [row["archived"] for row in found] == [f"record:{offset}" for offset in offsets[0:10:2]]
    for number, row in enumerate(found):
        assert read_bytes(str(path), row["archived"] or "", 100, row["url"]) == b"\xff\xd8%d" % number
    broken = bytearray(data)
    broken[offsets[3] + 8 : offsets[3] + 40] = bytes(32)
    found = _read(path, bytes(broken))
    assert [row["caption_raw"] for row in found if row["caption_raw"]] == [f"picture {n}" for n in (0, 1, 3, 4)]
    assert [row["archived"] for row in found if row["url"]][-1] == f"record:{offsets[8]}"


def test_resources_have_no_http_headers(tmp_path: Path) -> None:
    parts = [
        _warc("http://e.org/", b"\xef\xbb\xbf<img src=a.jpg title='caf\xc3\xa9'>", "resource", "text/html"),
        _warc("http://e.org/a.jpg", b"\xff\xd8", "resource", "image/jpeg"),
        _warc("http://e.org/x", _http(_page(1)), "revisit"),
    ]
    (row,) = _read(tmp_path / "t.warc", b"".join(parts))
    assert (row["caption_raw"], row["source"], row["archived"]) == ("café", "t.warc#0:title", f"record:{len(parts[0])}")


@pytest.mark.parametrize("name", _KINDS)
def test_a_damaged_place_costs_its_own_records_and_is_told(tmp_path: Path, name: str) -> None:
    blocks = [(f"http://e.org/{n}", _http(_page(n) + os.urandom(3000).hex().encode())) for n in range(6)]
    parts = _archive(name, blocks)
    packed = [_packed(name, [part]) for part in parts]
    middle = bytearray(packed[3])
    if name.endswith((".gz", ".zst")):
        middle[len(middle) // 3 : len(middle) // 3 + 400] = bytes(400)
    else:
        middle[:30] = bytes(30)
    found = _read(tmp_path / name, b"".join([*packed[:3], bytes(middle), *packed[4:]]))
    told = [row["problem"] for row in found if row["problem"]]
    assert 1 <= len(told) <= 2
    assert all((problem or "").startswith("damaged archive: ") for problem in told)
    captions = {row["caption_raw"] for row in found if row["caption_raw"]}
    whole = {f"picture {number}" for number in range(6)} - {"picture 2"}
    assert captions - {"picture 2"} == whole
    cut = _read(tmp_path / name, b"".join(packed)[:-1500])
    assert {row["caption_raw"] for row in cut if row["caption_raw"]} >= {f"picture {number}" for number in range(5)}
    assert len([row for row in cut if row["problem"]]) >= 1


def _with_requests(name: str, count: int) -> list[bytes]:
    """An archive's parts; in a WARC a request stands in front of each page, as crawlers write them."""
    blocks = [(f"http://e.org/{n}", _http(_page(n))) for n in range(count)]
    if ".arc" in name:
        return _archive(name, blocks)
    request = _warc("http://e.org/", b"GET / HTTP/1.1\r\n\r\n", "request", "application/http; msgtype=request")
    return [_archive(name, [])[0], *(part for url, block in blocks for part in (request, _warc(url, block)))]


def _is_damaged(path: Path) -> bool:
    """Whether the records of an archive, all of whose content is read, tell of damage."""
    damaged = False
    for record in records(str(path)):
        if isinstance(record, Damage):
            damaged = True
        else:
            record.read(1 << 20)
    return damaged


@pytest.mark.parametrize("name", _KINDS)
def test_a_file_that_was_cut_off_anywhere_is_told(tmp_path: Path, name: str) -> None:
    """Also where no record shows it: inside a header, or inside a record of a type that is not read. The records tell it, wherever it is;
    of every eighth place it is asked whether the rows do, which costs a process for the pages."""
    parts = [_packed(name, [part]) for part in _with_requests(name, 2)]
    whole = b"".join(parts)
    bounds = {sum(map(len, parts[:place])) for place in range(len(parts) + 1)}
    if name in ("t.warc", "t.arc"):  # the line ends behind a record: without them nothing is lost
        bounds |= {bound - back for bound in bounds for back in range(1, 5 if name == "t.warc" else 2)}
    assert [row["problem"] for row in _read(tmp_path / name, whole)] == [None, None]
    for number, size in enumerate([*range(1, len(whole), 37), *range(len(whole) - 20, len(whole))]):
        (tmp_path / name).write_bytes(whole[:size])
        assert _is_damaged(tmp_path / name) == (size not in bounds), size
        if number % 8 == 0:
            told = any(row["problem"] for row in _read(tmp_path / name, whole[:size]))
            assert told == (size not in bounds), size


@pytest.mark.parametrize("name", ["t.warc.gz", "t.warc.zst"])
def test_an_archive_of_one_member_that_was_cut_off_is_told(tmp_path: Path, name: str) -> None:
    packed = _packed(name, [b"".join(_with_requests(name, 3))])
    assert [row["problem"] for row in _read(tmp_path / name, packed)] == [None] * 3
    for back in (1, 8, 9, 40, 100):
        assert any(row["problem"] for row in _read(tmp_path / name, packed[:-back]))


def test_an_archive_whose_name_does_not_fit_its_bytes_is_read_and_checked(tmp_path: Path) -> None:
    packed = _packed("t.warc.gz", _with_requests("t.warc", 2))
    assert [row["problem"] for row in _read(tmp_path / "t.warc.gz", gzip.decompress(packed))] == [None, None]
    assert [row["problem"] for row in _read(tmp_path / "t.warc", packed)] == [None, None]
    assert any(row["problem"] for row in _read(tmp_path / "t.warc", packed[:-100]))


@pytest.mark.parametrize("name", ["t.warc", "t.warc.gz", "t.warc.zst"])
@pytest.mark.parametrize("kind", ["warcinfo", "request"])
def test_a_record_that_is_not_read_takes_no_other_with_it(tmp_path: Path, name: str, kind: str) -> None:
    """One whose length claims the rest of the file, or that has none."""
    sane = _warc("http://e.org/", b"GET / HTTP/1.1\r\n\r\n", kind)
    pages = [_warc(f"http://e.org/{n}", _http(_page(n))) for n in range(3)]
    for broken in (
        sane.replace(b"Content-Length: ", b"Content-Length: 99999"),
        sane.replace(b"Content-Length: 18", b"Content-Length: x"),
        sane.replace(b"Content-Length: ", b"X-Length: "),
    ):
        found = _read(tmp_path / name, _packed(name, [pages[0], broken, *pages[1:]]))
        assert [row["caption_raw"] for row in found if row["caption_raw"]] == [f"picture {n}" for n in range(3)]
        assert len([row for row in found if row["problem"]]) == 1


@pytest.mark.parametrize(
    "data",
    [
        b"not an archive",
        b"WARC/1.0\r\n",
        b"\x1f\x8b\x08\x00" * 5000,
        _warc("http://e.org/", b"\xff\x00garbage"),
        _warc("http://e.org/\xff", _http(b"<img src=a>")).replace(b"\xc3\xbf", b"\xff\xfe"),
        _warc("http://e.org/", _http(_page(1))).replace(b"Content-Length: ", b"Content-Length: 99999999999"),
        _warc("http://e.org/", _http(_page(1))).replace(b"Content-Length: ", b"Content-Length: -"),
        _warc("http://e.org/", b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000 + b"\r\n\r\n<img src=a>"),
        _warc("http://e.org/", _http(b"\x1f\x8b<img>", "Content-Type: text/html", "Content-Encoding: gzip")),
    ],
    ids=range(9),
)  # fmt: skip
@pytest.mark.parametrize("name", ["t.warc", "t.warc.gz", "t.arc", "t.arc.gz", "t.wat"])
def test_a_strangers_bytes_are_rows_with_a_problem_at_most(tmp_path: Path, name: str, data: bytes) -> None:
    for part in (data, gzip.compress(data)):
        assert all(
            row["problem"] for row in _read(tmp_path / name, part) if row["caption_raw"] is None and row["url"] is None
        )


@pytest.mark.parametrize("name", ["t.arc", "t.arc.gz"])
def test_arc_records_with_wrong_lengths_and_lines_between_them(tmp_path: Path, name: str) -> None:
    """Common Crawl's archives of 2012 have them. Each damage is told, and costs its record and what that claims to hold."""
    parts = [_filedesc(), *(_arc(f"http://e.org/a b/{n}", _http(_page(n))) for n in range(8))]
    size = f" {len(_http(_page(0)))}\n".encode()
    parts[2] = b"garbage: no record\nnor this\n" + parts[2]
    parts[4] = parts[4].replace(size, b" 20\n")
    parts[6] = parts[6].replace(size, b" 99999999\n")
    found = _read(tmp_path / name, _packed(name, parts))
    captions = [row["caption_raw"] for row in found if row["caption_raw"]]
    # Of the record that claims too much a member has its own bytes; in a plain file it could be anything's.
    assert captions == [f"picture {number}" for number in (0, 1, 2, 4, *([5] if name == "t.arc.gz" else []), 6, 7)]
    assert all(
        row["page_url"] == f"http://e.org/a b/{(row['caption_raw'] or '')[-1]}" for row in found if row["caption_raw"]
    )
    assert [row["problem"] for row in found if row["problem"]] == [
        "damaged archive: not an ARC record's line",
        "damaged archive: not an ARC record's line",
        f"damaged archive: {'a member' if name == 't.arc.gz' else 'the file'} ends inside a record",
    ]


def test_damage_without_end_is_told_a_limited_number_of_times(tmp_path: Path) -> None:
    data = b"".join(b"junk\n" + _arc(f"http://e.org/{number}", b"") for number in range(20_000))
    problems = [row["problem"] for row in _read(tmp_path / "t.arc", data) if row["problem"]]
    assert len(problems) == 10_001
    assert problems[-1] == "damaged archive: more than 10,000 damaged places; what follows is not read"


_TEXT = b"<p>plain words before the picture, so that the body is not too short</p><img src=/a.jpg alt='a dog'>"
_BROTLI = bytes.fromhex(
    "1b6300009d07768bc72dd4c544fa3f466b9093171ee943e6566170f97606e29403f65af3d2c84ec783df636c58432c8bd2cb69122edab2b45752b80"
    "fefa124f4dd2642128fdc9a0c9105"
)  # of _TEXT, by Google's brotli 1.2
_CODED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "GZIP": gzip.compress,
    "deflate": zlib.compress,
    "zstd": lambda body: pa.Codec("zstd").compress(body, asbytes=True),
    "br": lambda body: _BROTLI if body == _TEXT else b"\x1b\x02\x00\x00\xff",
    "gzip, deflate": lambda body: zlib.compress(gzip.compress(body)),
    "identity": bytes,
}


def _chunked(body: bytes) -> bytes:
    pieces = [body[place : place + 70] for place in range(0, len(body), 70)]
    return b"".join(b"%X;x=y\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\nTrailer: x\r\n\r\n"


@pytest.mark.parametrize("chunked", ["header and body", "header only", "no"])
@pytest.mark.parametrize("coded", [True, False])
@pytest.mark.parametrize("coding", [*_CODED, "utf-8"])
def test_codings_are_undone_where_they_are(tmp_path: Path, coding: str, coded: bool, chunked: str) -> None:
    """Archives that store bodies decoded keep the headers of the coded ones."""
    if coded and coding not in _CODED:
        return
    body = _CODED[coding](_TEXT) if coded else _TEXT
    headers = ["Content-Type: text/html", f"Content-Encoding: {coding}"]
    if chunked != "no":
        headers.append("Transfer-Encoding: chunked")
    block = _http(_chunked(body) if chunked == "header and body" else body, *headers)
    for answer in (block, block.replace(b"\r\n", b"\n", len(headers) + 2)):
        (row,) = _read(tmp_path / "t.warc", _warc("http://e.org/", answer))
        assert (row["url"], row["caption_raw"], row["problem"]) == ("http://e.org/a.jpg", "a dog", None)


@pytest.mark.parametrize("coding", ["gzip", "zstd", "br", "deflate", "compress", ", ".join(["gzip"] * 6)])
def test_codings_that_cannot_be_undone_are_told(tmp_path: Path, coding: str) -> None:
    signs = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd"}
    body = signs.get(coding, b"") + b"\x01\x02\x03\x04\xff<img src=/a.jpg alt='a dog'>"
    (row,) = _read(
        tmp_path / "t.warc",
        _warc("http://e.org/", _http(body, "Content-Type: text/html", f"Content-Encoding: {coding}")),
    )
    assert row["problem"] == "the page's content or transfer coding cannot be undone"


def test_a_chunked_page_that_was_cut_off_gives_what_there_is(tmp_path: Path) -> None:
    body = _chunked(_TEXT + b"<p>" + b"x" * 5000)[:-4000]
    (row,) = _read(
        tmp_path / "t.warc",
        _warc("http://e.org/", _http(body, "Content-Type: text/html", "Transfer-Encoding: chunked")),
    )
    assert row["caption_raw"] == "a dog"


def _bytes_of(path: Path, data: bytes) -> int:
    path.write_bytes(data)
    config = SourcesConfig(paths=[str(path)])
    return int(rows.read(expand(config)[0], config).nbytes)


def test_what_a_page_repeats_into_its_rows_is_bounded(tmp_path: Path) -> None:
    """A base, a caption or a page's URL that stands in every row must not multiply a few kilobytes into gigabytes."""
    images = b"<img src=a.jpg>" * 1000
    base = b"<base href='http://e.org/" + b"a" * 200_000 + b"/'>" + images
    assert _bytes_of(tmp_path / "t.warc", _warc("http://e.org/", _http(base))) < 6_000_000
    caption = b"<figure><figcaption>" + b"c" * 200_000 + b"</figcaption>" + images
    assert _bytes_of(tmp_path / "t.warc", _warc("http://e.org/", _http(caption))) < 10_000_000
    long = f"http://e.org/{'a' * 60_000}"
    links: list[dict[str, object]] = [{"path": "IMG@/src", "url": "a.jpg", "alt": "c" * 20_000}] * 1000
    for name, data in (
        ("t.warc", _warc(long, _http(images))),
        ("t.arc", _arc(long, _http(images))),
        ("t.wat", _warc("", _wat(long, links).partition(b"\r\n\r\n")[2], "metadata", "application/json")),
    ):
        (row,) = _read(tmp_path / name, data)
        assert (row["reason"], row["problem"]) == ("bad_url", "the page's URL has more than 4,096 bytes")
    base_of: dict[str, object] = {"Base": "http://e.org/" + "a" * 200_000 + "/"}
    assert _bytes_of(tmp_path / "t.wat", _wat("http://e.org/", links, head=base_of)) < 15_000_000


def test_a_page_that_unpacks_to_a_gigabyte_is_looked_at_as_far_as_asked(tmp_path: Path) -> None:
    sink = io.BytesIO()
    with gzip.GzipFile(fileobj=sink, mode="wb", compresslevel=9) as packed:
        packed.write(b"<img src=a.jpg alt='a dog'>")
        for _ in range(200):
            packed.write(bytes(1 << 20))
    block = _http(sink.getvalue(), "Content-Type: text/html", "Content-Encoding: gzip")
    (row,) = _read(tmp_path / "t.warc.gz", gzip.compress(_warc("http://e.org/", block)), max_page_bytes=1 << 20)
    assert row["caption_raw"] == "a dog"


def test_opt_outs_reject_the_rows_of_their_page(tmp_path: Path) -> None:
    image = b"<img src=a.jpg alt='a dog'><img src=b.jpg alt='a cat'>"
    pages = {
        "header": _http(
            image, "Content-Type: text/html", "X-Robots-Tag: nofollow", "x-robots-tag: otherbot: all, noai"
        ),
        "folded": _http(image, "Content-Type: text/html", "X-Robots-Tag: max-image-preview:large, NOAI"),
        "meta": _http(b"<meta name=robots content='noimageai'>" + image),
        "ours": _http(image, "Content-Type: text/html", "X-Robots-Tag: ourbot: none"),
        "theirs": _http(image, "Content-Type: text/html", "X-Robots-Tag: otherbot: noindex"),
    }
    data = b"".join(_warc(f"http://e.org/{name}", block) for name, block in pages.items())

    def by_page(**values: object) -> Counter[tuple[str | None, str | None]]:
        return Counter((row["page_url"], row["reason"]) for row in _read(tmp_path / "t.warc", data, **values))

    kept = {"theirs", "header"}  # what follows an agent's name is for that agent
    assert by_page(opt_out_agents=["OurBot"]) == {
        (f"http://e.org/{name}", None if name in kept else "opt_out"): 2 for name in pages
    }
    assert by_page()["http://e.org/ours", None] == 2
    assert set(by_page(respect_opt_out=False)) == {(f"http://e.org/{name}", None) for name in pages}


def test_images_behind_the_limit_and_data_uris_are_told(tmp_path: Path) -> None:
    images = "<img src='data:image/png;base64,AAAA' alt=x>" + "<img src=a.jpg alt=y>" * 20
    found = _read(tmp_path / "t.warc", _warc("http://e.org/", _http(images.encode())), max_images_per_page=5)
    assert found[0]["url"] == "data:image/png;base64"
    assert len(found) == 6
    assert found[5]["problem"] == "16 more images on the page than 5"
    config = SourcesConfig(paths=[str(tmp_path / "t.warc")], max_images_per_page=5)
    _, rejected = rows.candidates(rows.read(expand(config)[0], config), config)
    assert Counter(rejected["reason"].to_pylist()) == {"scheme": 1, "bad_row": 1}


# ---- WAT


def _wat(
    url: str,
    links: list[dict[str, object]],
    head: dict[str, object] | None = None,
    headers: dict[str, object] | None = None,
) -> bytes:
    answer = {"Headers": headers or {}, "HTML-Metadata": {"Head": head or {}, "Links": links}}
    envelope = {
        "WARC-Header-Metadata": {"WARC-Target-URI": url},
        "Payload-Metadata": {"HTTP-Response-Metadata": answer},
    }
    text = json.dumps({"Container": {"Filename": "x.warc.gz", "Offset": "17"}, "Envelope": envelope})
    return _warc(url, text.encode(), "metadata", "application/json")


@pytest.mark.parametrize("name", ["t.wat", "t.warc.wat.gz"])
def test_links_of_wat_files(tmp_path: Path, name: str) -> None:
    links: list[dict[str, object]] = [
        {"path": "IMG@/src", "url": "a.jpg", "alt": "a dog"},
        {"path": "A@/href", "url": "/page", "text": "a link"},
        {"path": "IMG@/src", "url": "http://cdn.org/b.jpg#x", "alt": "", "title": "a title"},
        {"path": "IMG@/src", "url": "c.jpg"},
        {"path": "IMG@/longdesc", "url": "d.html"},
        {"path": "IMG@/src", "url": "data:image/gif;base64,R0lGOD", "alt": "x"},
        {"path": "IMG@/src", "alt": "no url"},
        {"path": "IMG@/src", "url": "\ud800.jpg", "alt": 7},
    ]  # fmt: skip
    parts = [
        _wat("http://e.org/dir/page", links),
        _wat("http://e.org/", links[:1], head={"Base": "/x/", "Metas": [{"name": "robots", "content": "noai"}]}),
        _wat("http://e.org/d/", links[:1], head={"Base": "javascript:void(0)"}, headers={"X-Robots-Tag": "noindex"}),
        _wat("http://e.org/", links[:1], headers={"X-Robots-Tag": ["nofollow", "noindex"]}),
        _wat("http://e.org/", links[:1], headers={"x-robots-tag": "otherbot: noai"}),
        _warc("http://e.org/", b"{broken", "metadata", "application/json"),
        _warc("http://e.org/", b'{"Envelope": [{"Links": 7}]}', "metadata", "application/json"),
    ]
    found = _read(tmp_path / name, _packed(name, parts))
    offset = len(_packed(name, parts[:1]))
    assert [(row["url"], row["caption_raw"], row["reason"]) for row in found] == [
        ("http://e.org/dir/a.jpg", "a dog", None),
        ("http://cdn.org/b.jpg", "a title", None),
        ("http://e.org/dir/c.jpg", None, None),
        ("data:image/gif;base64", "x", None),
        (None, "no url", None),
        ("http://e.org/dir/\ufffd\ufffd\ufffd.jpg", None, None),
        ("http://e.org/x/a.jpg", "a dog", "opt_out"),
        ("http://e.org/d/a.jpg", "a dog", "opt_out"),
        ("http://e.org/a.jpg", "a dog", "opt_out"),
        ("http://e.org/a.jpg", "a dog", None),
        (None, None, None),
    ]
    assert [row["source"] for row in found][:2] == [f"{name}#0:alt", f"{name}#0:title"]
    assert found[6]["source"] == f"{name}#{offset}:alt"
    assert (found[-1]["problem"] or "").startswith("json: ")


# ---- kinds, and real files


def test_kinds_are_told_by_suffix_and_mix(tmp_path: Path) -> None:
    (tmp_path / "a.warc.gz").write_bytes(gzip.compress(_warc("http://e.org/", _http(_page(1)))))
    (tmp_path / "b.WAT").write_bytes(_wat("http://e.org/", [{"path": "IMG@/src", "url": "/2.jpg", "alt": "two"}]))
    (tmp_path / "c.tsv").write_text("url\tcaption\nhttp://e.org/3.jpg\tthree\n")
    (tmp_path / "d.warc.wet.gz").write_bytes(b"not read")
    config = SourcesConfig(paths=[str(tmp_path)])
    files = expand(config)
    assert [(file.name, file.kind) for file in files] == [("a.warc.gz", "warc"), ("b.WAT", "wat"), ("c.tsv", "table")]
    tables = [rows.read(file, config) for file in files]
    assert pa.concat_tables(tables)["url"].to_pylist() == [f"http://e.org/{number}.jpg" for number in (1, 2, 3)]
    (tmp_path / "e.warc").write_bytes(b"")
    with pytest.raises(InputError, match="the file is empty"):
        rows.check(SourceFile(str(tmp_path / "e.warc"), "e.warc", "warc"), config)


def test_real_archives() -> None:
    folder = Path(os.environ.get("REAL_DATA", Path(__file__).parents[3].parent / "shared" / "data")) / "warc"
    if not (folder / "whirlwind.warc.gz").exists():
        pytest.skip("real data is absent")
    config = SourcesConfig(paths=[str(folder)])
    files = {file.name: file for file in expand(config)}
    assert set(files) == {"whirlwind.warc.gz", "whirlwind.warc.wat.gz"}
    assert rows.read(files["whirlwind.warc.wat.gz"], config).num_rows == 0  # it has no link records
    table = rows.read(files["whirlwind.warc.gz"], config)
    found = [
        record
        for record in records(files["whirlwind.warc.gz"].uri)
        if isinstance(record, Record) and record.kind == "response"
    ]
    assert not any(isinstance(record, Damage) for record in records(files["whirlwind.warc.gz"].uri))
    html = gzip.decompress((folder / "whirlwind.warc.gz").read_bytes()).decode("utf-8", "replace")
    assert table.num_rows == html.count("<img ") > 5
    assert set(table["source"].to_pylist()) <= {
        f"whirlwind.warc.gz#{found[0].offset}:{text}" for text in ("alt", "none", "title", "figcaption")
    }
    assert all((url or "").startswith("https://") for url in table["url"].to_pylist())
    kept, rejected = rows.candidates(table, config)
    assert set(kept["page_url"].to_pylist()) == {"https://an.wikipedia.org/wiki/Escopete"}
    assert set(rejected["reason"].to_pylist()) == {"no_caption"}
