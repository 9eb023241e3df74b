"""The records of a web archive, one at a time and in bounded memory: WARC (ISO 28500), by fastwarc, and ARC, which fastwarc 2 has given up.

An archive is a stranger's file. So a record's content is read only as far as the caller asks, a damaged place is told as a `Damage` and
costs the records that lie in it and no others, and the number of fresh starts is bounded. Every record is followed to its end, also those
of types that nobody asks for, so that none of them can take others with it unseen. Compressed archives hold one member a record, by
convention; the place of that member is the record's offset, from which it can be read again alone.

ARC is a line (URL, address, date, type, length; version 2 has five fields more in front of the length), then that many bytes, then a line
end: https://archive.org/web/researcher/ArcFileFormat.php. The line tells its version by itself, so that a record can be read without the
file's first one. Behind damage the next such line is looked for, which a page's text could imitate.
"""

import contextlib
import functools
import io
import re
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import NamedTuple, Protocol

import pyarrow as pa
from fastwarc.stream_io import BrotliReader, GzipReader, ZstdReader
from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType

from pipeline.content import formats
from pipeline.contracts import storage
from pipeline.contracts.errors import RunError

MAX_HEADER = 64 << 10
_CHUNK = 1 << 16
_SEARCH_CHUNK = 1 << 20
_MAX_STARTS = 100
"""Fresh starts behind damaged places in one file; a file that needs more is given up where it stands."""
_MAX_DAMAGES = 10_000
"""Damaged places of one ARC file, which needs no fresh start for most of them."""

_WANTED = (WarcRecordType.response, WarcRecordType.resource, WarcRecordType.metadata)
_MEMBER = {".gz": b"\x1f\x8b\x08", ".zst": b"\x28\xb5\x2f\xfd"}
_PLAIN = b"\nWARC/1."
_DICTIONARY = b"\x5d\x2a\x4d\x18"
_MAX_DICTIONARY = 16 << 20  # bytes; those in use have 100 kB to 1 MB
_ARC_LINE = re.compile(
    rb"(?P<url>[A-Za-z][A-Za-z0-9+.-]*:.*) \S* \d{12,14} (?P<type>\S*)(?: \S+){0,8} (?P<length>\d{1,15})"
)
"""Both versions, and types with parameters. URLs may hold spaces (those of Common Crawl's 2012 archives do): what is no date tells."""


class Record(NamedTuple):
    """A record: where it starts in its file, its type in WARC's words, its URL, the type and length of its block, and `read(n)`, which
    gives the next bytes of the block, n of them where there are as many, while the record is the newest of its iterator. It never raises
    over damaged data: what there is comes out, and a `Damage` follows."""

    offset: int
    kind: str
    url: str
    content_type: str
    length: int
    read: Callable[[int], bytes]


class Damage(NamedTuple):
    """A place that cannot be read; `offset` is where it, or the last record before it, starts, or where reading started."""

    offset: int
    said: str


class Http(NamedTuple):
    """An HTTP answer: `headers` as written, in order; `body` without its transfer and content codings, at most as long as asked."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name]


def records(uri: str, start: int = 0) -> Generator[Record | Damage, None, None]:
    """The responses, resources and metadata of an archive from offset `start` on, and its damaged places. Whoever stops early closes it."""
    if uri.lower().removesuffix(".gz").endswith(".arc"):
        yield from _arc_records(uri, start)
    else:
        yield from _warc_records(uri, start)


# ---- HTTP


_HEAD_END = re.compile(rb"\r?\n\r?\n")
_CHUNK_LINE = re.compile(rb"(?:\r?\n)?([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r?\n")
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f\x7f]")  # no white space, nor the escape of ISO-2022
_MAX_CODINGS = 5
_SAMPLE = 1024  # bytes by which a coding is told from none


class _Reader(Protocol):
    def read(self, size: int = ...) -> bytes: ...


_SIGNS = {"gzip": b"\x1f\x8b", "x-gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd"}
_READERS: dict[str, Callable[[io.BytesIO], _Reader]] = {
    "gzip": GzipReader,
    "x-gzip": GzipReader,
    "deflate": functools.partial(GzipReader, zlib=True),
    "br": BrotliReader,
    "zstd": ZstdReader,
}


def parse_http(block: bytes, max_body: int) -> Http | None:
    """An HTTP answer from a record's block; None where it is none or its body has a coding that cannot be undone.

    Archives may store bodies decoded under the headers of the coded ones, as Common Crawl's from before August 2018 do. So a coding that a
    header names is undone only where the bytes carry it.
    """
    end = _HEAD_END.search(block, 0, MAX_HEADER)
    if end is None and len(block) >= MAX_HEADER:
        return None
    head, body = (block, b"") if end is None else (block[: end.start()], block[end.end() :])
    record = WarcRecord()
    record.init_headers(WarcRecordType.response)
    record.set_bytes_content(b"".join(line.rstrip(b"\r") + b"\r\n" for line in (*head.split(b"\n"), b"")))
    record.is_http = True
    try:
        record.parse_http(max_header_len=2 * MAX_HEADER)  # line ends may have grown
    except OSError:
        return None
    status = record.http_headers.status_code
    if status is None:
        return None
    answer = Http(status, list(record.http_headers.to_tuples()), b"")
    # In the order in which they were applied.
    told = [*answer.values("content-encoding"), *answer.values("transfer-encoding")]
    codings = [coding.strip().lower() for value in told for coding in value.split(",")]
    decoded = _decoded(body, codings[::-1], max_body) if max_body else b""
    return None if decoded is None else answer._replace(body=decoded)


def _decoded(body: bytes, codings: Sequence[str], most: int) -> bytes | None:
    """A body with its codings undone, the first of them first, at most `most` bytes; None where one that it carries cannot be."""
    codings = [coding for coding in codings if coding not in ("", "identity", "none")]
    if len(codings) > _MAX_CODINGS:
        return None
    for coding in codings:
        if not _carries(body[:_SAMPLE], coding):
            continue
        if coding == "chunked":
            body = _joined(body)
        elif coding in _READERS:
            try:
                body = b"".join(_pieces(_READERS[coding](io.BytesIO(body)), most))
            except OSError:
                return None
        else:
            return None
    return body[:most]


def _carries(start: bytes, coding: str) -> bool:
    """Whether a body that starts like this can have the coding; brotli and zlib have no sign, but are neither text nor pictures."""
    if coding == "chunked":
        return _CHUNK_LINE.match(start) is not None
    if coding in _SIGNS:
        return start.startswith(_SIGNS[coding])
    try:
        return _CONTROL.search(start) is not None and formats.sniff(start) is None
    except formats.ImageRejected:  # a picture too, of a format that is not read
        return False


def _joined(body: bytes) -> bytes:
    """The chunks of a body (RFC 9112, section 7.1); of one that was cut off or damaged those that come before."""
    parts: list[bytes] = []
    place = 0
    while (line := _CHUNK_LINE.match(body, place)) is not None and (size := int(line[1], 16)):
        parts.append(body[line.end() : line.end() + size])
        place = line.end() + size
    return b"".join(parts)


def _pieces(reader: _Reader, most: int) -> Iterator[bytes]:
    """At most `most` bytes; a compressed body that was cut off gives what there is."""
    while most > 0 and (part := reader.read(min(_CHUNK, most))):
        yield part
        most -= len(part)


# ---- files


class _Input:
    """A file whose own troubles are a RunError: fastwarc raises OSError over damaged data, and the two must not be mistaken.

    It is read from `start` on, behind `head`, as if nothing lay between the two: then `shift` is what must be added to a place in it to
    have the place in the file."""

    def __init__(self, uri: str, start: int, head: bytes = b"") -> None:
        self._uri, self._head = uri, head
        self._file = storage.open_input(uri)
        self._file.seek(start)
        self.shift = start - len(head) if head else 0

    def read(self, size: int = -1) -> bytes:
        if self._head and size >= 0:
            part, self._head = self._head[:size], self._head[size:]
            return part
        try:
            found: bytes = self._head + self._file.read(None if size < 0 else size)
            self._head = b""
        except (OSError, pa.ArrowException) as error:
            said = " ".join(str(error).split())[:200]
            raise RunError(f"{self._uri}: reading stopped ({said}); run the same command again") from None
        return found

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell()) - self.shift - len(self._head)

    def size(self) -> int:
        return int(self._file.size())

    def close(self) -> None:
        self._file.close()


# ---- WARC


def _warc_records(uri: str, start: int) -> Iterator[Record | Damage]:
    place = start
    fresh = 0  # starts since the last record
    for _ in range(_MAX_STARTS):
        last, seen = place, False
        head = _dictionary_frame(uri) if place and uri.lower().endswith(".zst") else b""
        with contextlib.closing(_Input(uri, place, head)) as source:
            try:
                for record in ArchiveIterator(source, parse_http=False, max_header_len=MAX_HEADER):
                    last, seen = record.stream_pos + source.shift, True
                    if not (record.headers.get("Content-Length") or "").strip().isdecimal():
                        raise OSError("a record without its length")  # or one whose header the file's end cut off
                    if record.record_type in _WANTED:
                        yield _warc_record(record, last)
                    left = record.content_length - record.reader.tell()
                    if left > 0 and record.consume(left) < left:
                        raise OSError("the file ends inside a record")
                _check_gzip_end(uri, place, last)
                return
            except OSError as error:
                if seen or not fresh:  # otherwise it is the damage that was told already
                    yield Damage(last, " ".join(str(error).split())[:200])
                fresh = 0 if seen else fresh + 1
        fresh += 1
        found = _next_start(uri, last + 1)
        if found is None:
            return
        place = found
    yield Damage(place, f"more than {_MAX_STARTS:,} damaged places; what follows is not read")


def _check_gzip_end(uri: str, start: int, last: int) -> None:
    """Raise OSError where the file ends inside a gzip member, which fastwarc takes for its end: what is lost may be a record's header, so
    that no record tells. `last` is where the last record was, `start` where reading began.

    The last member is unpacked once more; where records share a member, so that `last` is no member's start, all that was read."""
    for place in (last, start):
        with contextlib.closing(_Input(uri, place)) as source:
            packed = source.read(len(_MEMBER[".gz"])) == _MEMBER[".gz"]  # whatever its name says
        if packed:
            with contextlib.closing(_Input(uri, place)) as source:
                _Members(source, place, packed=True).skip()
            return


def _dictionary_frame(uri: str) -> bytes:
    """The dictionary that the records of a .warc.zst may be packed with: a skippable frame in front of them, which fastwarc looks for where
    its stream begins (IIPC, "Zstandard compression for WARC"). Empty where there is none."""
    with contextlib.closing(_Input(uri, 0)) as source:
        head = source.read(8)
        size = int.from_bytes(head[4:], "little")
        return head + source.read(size) if head[:4] == _DICTIONARY and size <= _MAX_DICTIONARY else b""


def _warc_record(record: WarcRecord, offset: int) -> Record:
    def read(size: int) -> bytes:
        parts: list[bytes] = []
        with contextlib.suppress(OSError):  # the iterator meets it again, and tells of it
            parts.extend(_pieces(record.reader, size))
        return b"".join(parts)

    url = (record.headers.get("WARC-Target-URI") or "").strip()
    return Record(
        offset,
        (record.headers.get("WARC-Type") or "").strip().lower(),
        url.removeprefix("<").removesuffix(">"),  # WARC 1.0's grammar asks for the brackets, its examples lack them
        (record.headers.get("Content-Type") or "").split(";")[0].strip().lower(),
        record.content_length,
        read,
    )


def _next_start(uri: str, place: int) -> int | None:
    """The first place from `place` on where a record, or a member that may hold one, starts."""
    sign = next((sign for suffix, sign in _MEMBER.items() if uri.lower().endswith(suffix)), _PLAIN)
    ahead = 1 if sign is _PLAIN else 0
    with contextlib.closing(_Input(uri, place)) as source:
        before = b""
        while chunk := source.read(_SEARCH_CHUNK):
            text = before + chunk
            if (found := text.find(sign)) >= 0:
                return place - len(before) + found + ahead
            place += len(chunk)
            before = text[-(len(sign) - 1) :]
    return None


# ---- ARC


class _Members:
    """A file as bytes, gzip undone, that knows where the member of the next byte starts (plain file: where the byte is).

    Bytes of two members never come in one piece, and never more than _CHUNK are held.
    """

    def __init__(self, source: _Input, start: int, packed: bool) -> None:
        self._source, self._packed = source, packed
        self._next = start  # where the next byte from the source is
        self._raw = b""
        self._inflate: zlib._Decompress | None = None
        self._held = b""
        self.start = start
        self._fresh = True  # whether nothing of a member has been taken yet
        self._end = source.size()

    def _fill(self) -> bool:
        """Hold some bytes; False at the end. Raises OSError where the data is damaged."""
        while not self._held:
            if not self._raw:
                self._raw = self._source.read(_CHUNK)
                self._next += len(self._raw)
                if not self._raw:
                    if self._inflate is not None:
                        raise OSError("the file ends inside a member")
                    return False
            if not self._packed:
                self.start, self._held, self._raw = self._next - len(self._raw), self._raw, b""
                continue
            if self._inflate is None:
                self.start, self._fresh = self._next - len(self._raw), True
                self._inflate = zlib.decompressobj(31)
            try:
                self._held = self._inflate.decompress(self._raw, _CHUNK)
            except zlib.error as error:
                raise OSError(f"gzip: {error}") from None
            self._raw = self._inflate.unused_data if self._inflate.eof else self._inflate.unconsumed_tail
            if self._inflate.eof:
                self._inflate = None
        return True

    def offset(self) -> int | None:
        """Where a record that starts at the next byte is; None at the end of the file."""
        return self.start if self._fill() else None

    def may_hold(self, size: int) -> bool:
        """Whether so many bytes can follow, which only a plain file tells."""
        return self._packed or size <= self._end - self.start

    def _take(self, size: int) -> bytes:
        taken, self._held = self._held[:size], self._held[size:]
        if self._packed:
            self._fresh = False
        else:
            self.start += len(taken)
        return taken

    def read(self, size: int) -> bytes:
        """The next bytes behind those of a line, as many as asked for except at the end of their member."""
        parts: list[bytes] = []
        while size > 0 and self._fill() and not (self._packed and self._fresh):
            parts.append(self._take(size))
            size -= len(parts[-1])
        return b"".join(parts)

    def skip(self) -> None:
        """Pass over all that is left. Raises OSError where the data is damaged or ends inside a member."""
        while self._fill():
            self._held = b""

    def line(self) -> bytes:
        """The next line with its end, at most MAX_HEADER bytes; empty at the end of the file."""
        parts: list[bytes] = []
        held = 0
        while held < MAX_HEADER and self._fill():
            end = self._held.find(b"\n") + 1
            parts.append(self._take(min(end or len(self._held), MAX_HEADER - held)))
            held += len(parts[-1])
            if parts[-1].endswith(b"\n"):
                break
        return b"".join(parts)


def _arc_records(uri: str, start: int) -> Iterator[Record | Damage]:
    place, damages = start, 0
    for _ in range(_MAX_STARTS):
        last = place
        with contextlib.closing(_Input(uri, place)) as source:
            try:
                for found in _arc_lines(_Members(source, place, packed=uri.lower().endswith(".gz"))):
                    last = found.offset
                    yield found
                    damages += isinstance(found, Damage)
                    if damages == _MAX_DAMAGES:
                        yield Damage(last, f"more than {_MAX_DAMAGES:,} damaged places; what follows is not read")
                        return
                return
            except OSError as error:  # of gzip: a plain file has no damaged bytes
                yield Damage(last, str(error))
        behind = _next_start(uri, last + 1)
        if behind is None:
            return
        place = behind
    yield Damage(place, f"more than {_MAX_STARTS:,} damaged places; what follows is not read")


def _arc_lines(members: _Members) -> Iterator[Record | Damage]:
    """The records from the next line on. A line that is no record's is told once, and the lines behind it are passed over until one is; so
    are those behind a record that is longer than its file. Raises OSError where the bytes are damaged."""
    lost = False  # in a damaged place that was told
    while (offset := members.offset()) is not None:
        line = members.line().strip()
        said = _ARC_LINE.fullmatch(line)
        if said is None or not members.may_hold(int(said["length"])):
            if line and (said is not None or not lost):
                yield Damage(offset, "not an ARC record's line" if said is None else "the file ends inside a record")
                lost = True
            continue
        lost = False
        url, content_type = said["url"].decode("utf-8", "replace"), said["type"].decode("latin-1").lower()
        block = _ArcBlock(members, int(said["length"]))
        if not url.startswith("filedesc:"):
            yield Record(offset, "response", url, content_type, block.length, block.read)
        if not block.finish():
            yield Damage(offset, "a member ends inside a record")


class _ArcBlock:
    """The bytes that follow a record's line."""

    def __init__(self, members: _Members, length: int) -> None:
        self._members = members
        self.length = self._left = length
        self._damage: OSError | None = None

    def read(self, size: int) -> bytes:
        """The next bytes of the block; fewer at its end, or where the file is damaged, which `finish` tells."""
        wanted = min(size, self._left)
        taken = b""
        try:
            taken = self._members.read(wanted)
        except OSError as error:
            self._damage = error
        self._left -= len(taken)
        return taken

    def finish(self) -> bool:
        """Skip what was not read; False where the member ends before the block does. Raises OSError over damaged data."""
        while self._left and self._damage is None and self.read(_CHUNK):
            pass
        if self._damage is not None:
            raise self._damage
        return not self._left
