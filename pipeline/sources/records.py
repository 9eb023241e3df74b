"""The records of a web archive, one at a time and in bounded memory: WARC (ISO 28500), by fastwarc, and ARC, which fastwarc 2 has given up.

An archive is a stranger's file. So a record's content is read only as far as the caller asks, a damaged place is told as a `Damage` and
costs the records that lie in it and no others, and the number of fresh starts is bounded. Compressed archives hold one member a record,
by convention; the place of that member is the record's offset, from which it can be read again alone.

ARC is a line (URL, address, date, type, length; version 2 has five fields more in front of the length), then that many bytes, then a line
end: https://archive.org/web/researcher/ArcFileFormat.php
"""

import contextlib
import zlib
from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple

import pyarrow as pa
from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType

from pipeline.contracts import storage
from pipeline.contracts.errors import RunError

MAX_HEADER = 64 << 10
_CHUNK = 1 << 16
_SEARCH_CHUNK = 1 << 20
_MAX_STARTS = 100
"""Fresh starts behind damaged places in one file; a file that needs more is given up where it stands."""

_WANTED = WarcRecordType.response | WarcRecordType.resource | WarcRecordType.metadata
_MEMBER = {".gz": b"\x1f\x8b\x08", ".zst": b"\x28\xb5\x2f\xfd"}
_PLAIN = b"\nWARC/1."


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
    """A place that cannot be read; `offset` is where the last record before it starts, or where reading started."""

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


def is_start(uri: str, offset: int) -> bool:
    """Whether a record, or the member that holds one, can start there."""
    sign = next((sign for suffix, sign in _MEMBER.items() if uri.lower().endswith(suffix)), None)
    return sign is None or storage.read_range(uri, offset, len(sign)) == sign


def parse_http(block: bytes, max_body: int) -> Http | None:
    """An HTTP answer from a record's block; None where it is none or its codings cannot be undone."""
    record = WarcRecord()
    record.init_headers(WarcRecordType.response)
    record.set_bytes_content(block)
    record.is_http = True
    try:
        record.parse_http(auto_decode="all", max_header_len=MAX_HEADER)
        status = record.http_headers.status_code
        return None if status is None else Http(status, list(record.http_headers.to_tuples()), _read(record, max_body))
    except OSError:
        return None


def _read(record: WarcRecord, most: int) -> bytes:
    """At most `most` bytes; a compressed body that was cut off gives what there is."""
    parts: list[bytes] = []
    held = 0
    while held < most and (part := record.reader.read(min(_CHUNK, most - held))):
        parts.append(part)
        held += len(part)
    return b"".join(parts)


class _Input:
    """A file whose own troubles are a RunError: fastwarc raises OSError over damaged data, and the two must not be mistaken."""

    def __init__(self, uri: str, start: int) -> None:
        self._uri = uri
        self._file = storage.open_input(uri)
        self._file.seek(start)

    def read(self, size: int = -1) -> bytes:
        try:
            found: bytes = self._file.read(None if size < 0 else size)
        except (OSError, pa.ArrowException) as error:
            said = " ".join(str(error).split())[:200]
            raise RunError(f"{self._uri}: reading stopped ({said}); run the same command again") from None
        return found

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        self._file.close()


# ---- WARC


def _warc_records(uri: str, start: int) -> Iterator[Record | Damage]:
    place = start
    fresh = 0  # starts since the last record
    for _ in range(_MAX_STARTS):
        last, seen = place, False
        with contextlib.closing(_Input(uri, place)) as source:
            try:
                for record in ArchiveIterator(source, _WANTED, parse_http=False, max_header_len=MAX_HEADER):
                    last, seen = record.stream_pos, True
                    yield _warc_record(record)
                    left = record.content_length - record.reader.tell()
                    if left > 0 and record.consume(left) < left:
                        raise OSError("the file ends inside a record")
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


def _warc_record(record: WarcRecord) -> Record:
    def read(size: int) -> bytes:
        with contextlib.suppress(OSError):  # the iterator meets it again, and tells of it
            return _read(record, size)
        return b""

    url = (record.headers.get("WARC-Target-URI") or "").strip()
    return Record(
        record.stream_pos,
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
                self.start = self._next - len(self._raw)
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

    def _take(self, size: int) -> bytes:
        taken, self._held = self._held[:size], self._held[size:]
        if not self._packed:
            self.start += len(taken)
        return taken

    def read(self, size: int) -> bytes:
        """The next bytes, as many as asked for except at the end."""
        parts: list[bytes] = []
        while size > 0 and self._fill():
            parts.append(self._take(size))
            size -= len(parts[-1])
        return b"".join(parts)

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
    packed = uri.lower().endswith(".gz")
    place = start
    trailing = 4
    for _ in range(_MAX_STARTS):
        last = place
        with contextlib.closing(_Input(uri, place)) as source:
            members = _Members(source, place, packed)
            try:
                while (offset := members.offset()) is not None:
                    last = offset
                    line = members.line()
                    if not line.strip():
                        continue
                    block = _ArcBlock(members, line, trailing)
                    if block.url.startswith("filedesc:"):
                        trailing = 9 if block.read(2).startswith(b"2") else 4
                    else:
                        yield Record(offset, "response", block.url, block.content_type, block.length, block.read)
                    block.finish()
                return
            except OSError as error:
                yield Damage(last, str(error))
        found = _next_start(uri, last + 1) if packed else None
        if found is None:
            return
        place = found
    yield Damage(place, f"more than {_MAX_STARTS:,} damaged places; what follows is not read")


class _ArcBlock:
    """What a record's line says, and the bytes that follow it. Raises OSError where the line is none."""

    def __init__(self, members: _Members, line: bytes, trailing: int) -> None:
        fields = line.strip().rsplit(b" ", trailing)
        if len(fields) != trailing + 1 or not fields[-1].isdigit() or len(fields[-1]) > 15:
            raise OSError("not an ARC record's line")
        self._members = members
        self.length = self._left = int(fields[-1])
        self.url = fields[0].decode("utf-8", "replace")
        self.content_type = fields[3].decode("latin-1").lower()
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

    def finish(self) -> None:
        """Skip what was not read. Raises OSError where the block cannot be read to its end."""
        while self._left and self._damage is None and self.read(_CHUNK):
            pass
        if self._damage is not None:
            raise self._damage
        if self._left:
            raise OSError("the file ends inside a record")
