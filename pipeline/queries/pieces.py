"""A large file, plain or bzip2, entered anywhere: the bytes of a range of it, and on beyond its end for as long as the reader likes.

So that a dump of 20 GB is read by many workers, whoever compressed it, a bzip2 file is taken block by block. A block (at most 900 kB of
text) begins with a mark of 48 bits at any bit of a byte; it is cut out at its mark and the next one, put between a stream's header and
end, and decoded on its own, with its checksum verified by libbzip2. This is what bzip2recover does (bzip2 manual, section 2.7; the
format: "BZIP2: Format Specification", J. Tsai 2016). One stream (pages-articles1.xml-p1p41242.bz2), many streams of 100 pages
(…-multistream.xml.bz2) and what pbzip2 writes are all the same to it. A block belongs to the range in which its mark begins.

A mark can occur by chance inside a block, once in a thousand dumps: a block that does not decode is tried up to the mark after the next.
"""

import bz2
import gzip
import zlib
from collections.abc import Iterator
from typing import Literal, NamedTuple

import pyarrow as pa

from pipeline.contracts import storage
from pipeline.contracts.errors import InputError

Kind = Literal["bz2", "gz", "plain"]

_WINDOW = 1 << 20
_MAX_BLOCK = 4 << 20  # bytes between two marks; a block of 900 kB that does not compress takes a little over 900 kB
_BLOCK_MARK, _END_MARK = 0x314159265359, 0x177245385090
_MARK_BITS = 48


class Piece(NamedTuple):
    """Decompressed bytes; `own`: they belong to the range asked for, not to what follows it."""

    data: bytes
    own: bool


def kind_of(uri: str) -> Kind:
    """How a file is compressed, by its first bytes. Raises InputError when there is no such file, or nothing in it."""
    with storage.open_input(uri) as source, storage.plain_errors(uri, "read"):
        head: bytes = source.read_at(6, 0) if source.size() else b""
    if not head:
        raise InputError(f"{uri}: the file is empty; get it again")
    if head[:3] == b"BZh":
        return "bz2"
    if head[:2] == b"\x1f\x8b":
        return "gz"
    if head in (b"7z\xbc\xaf\x27\x1c", b"\xfd7zXZ\x00") or head[:4] in (b"\x28\xb5\x2f\xfd", b"PK\x03\x04"):
        raise InputError(f"{uri}: is compressed in a way that is not read here; give it as bz2 or plain")
    return "plain"


def pieces(uri: str, kind: Kind, start: int, stop: int) -> Iterator[Piece]:
    """The bytes of the range [start, stop) of the stored file, decompressed, then those after it, until the reader stops.

    Of a gzip file, which cannot be entered, the range that begins at 0 holds everything and any other nothing. A piece has at most 1 MiB,
    or what a block of bzip2 holds: 900 kB, and 46 MB where it is one byte over and over. Raises InputError for a file that is truncated
    or corrupt.
    """
    with storage.open_input(uri) as source, storage.plain_errors(uri, "read"):
        if kind == "bz2":
            yield from _blocks(uri, source, start, stop)
        elif kind == "plain":
            yield from _plain(source, start, stop)
        elif start == 0:
            yield from _unzipped(uri, source)


def _plain(source: pa.NativeFile, start: int, stop: int) -> Iterator[Piece]:
    size = source.size()
    at = start
    while at < size:
        end = min(size, at + _WINDOW, stop if at < stop else size)
        yield Piece(source.read_at(end - at, at), at < stop)
        at = end


def _unzipped(uri: str, source: pa.NativeFile) -> Iterator[Piece]:
    try:
        with gzip.GzipFile(fileobj=source, mode="rb") as stream:
            while data := stream.read(_WINDOW):
                yield Piece(data, True)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{uri}: truncated or corrupt gzip file ({error}); get it again") from None


# ---- bzip2


class _Mark(NamedTuple):
    bit: int  # from the beginning of the file
    is_block: bool  # else: the end of a stream


def _blocks(uri: str, source: pa.NativeFile, start: int, stop: int) -> Iterator[Piece]:
    """The blocks of the range, and those after it; one is held at a time."""
    window = _Window(uri, source, start)
    marks = window.marks()
    mark = next((found for found in marks if found.is_block), None)
    if mark is None and start == 0 and not window.has_end:
        raise InputError(f"{uri}: ends before its first bzip2 block; it is truncated, get it again")
    if mark is None or mark.bit >= 8 * stop:
        return
    while mark is not None:
        after = next(marks, None)
        if mark.is_block:
            if after is None:
                raise InputError(f"{uri}: ends inside a bzip2 block; it is truncated, get it again")
            data = window.decode(mark, after)
            if data is None:
                after = next(marks, None)
                data = None if after is None else window.decode(mark, after)
            if data is None or after is None:
                raise InputError(f"{uri}: the bzip2 block at byte {mark.bit // 8:,} is corrupt; get the file again")
            yield Piece(data, mark.bit < 8 * stop)
        if after is not None:
            window.forget(after)
        mark = after


class _Window:
    """The part of the file from the last mark on, and the marks as the reading proceeds."""

    def __init__(self, uri: str, source: pa.NativeFile, start: int) -> None:
        self._uri, self._source = uri, source
        self._data, self._base = b"", start
        self.has_end = False

    def marks(self) -> Iterator[_Mark]:
        last = -1
        while chunk := self._source.read_at(_WINDOW, self._base + len(self._data)):
            fresh = max(0, len(self._data) - _MARK_BITS // 8 - 1)  # a mark may lie across two reads
            self._data += chunk
            for mark in sorted(self._find(fresh)):
                if mark.bit > last:
                    last = mark.bit
                    self.has_end |= not mark.is_block
                    yield mark
            if last >= 8 * self._base and len(self._data) > _MAX_BLOCK:
                raise InputError(
                    f"{self._uri}: no bzip2 block ends within {_MAX_BLOCK:,} bytes of byte {self._base:,}; it is corrupt, get it again"
                )
            if last < 8 * self._base:  # nothing begins in what was read
                kept = _MARK_BITS // 8 + 1
                self._base, self._data = self._base + max(0, len(self._data) - kept), self._data[-kept:]

    def _find(self, fresh: int) -> list[_Mark]:
        """The marks that lie whole in the data from byte `fresh` on. Five or six of their bytes are whole bytes of the file, whatever the
        bit they begin at: those are looked for, then the bits on either side compared."""
        data, found = self._data, []
        for value, is_block in ((_BLOCK_MARK, True), (_END_MARK, False)):
            for shift in range(8):
                pattern = (value << (56 - _MARK_BITS - shift)).to_bytes(7, "big")
                first, inner, last = pattern[0], pattern[1:6], pattern[6]
                at = data.find(inner, fresh + 1)
                while at != -1:
                    edges = data[at - 1] & (0xFF >> shift) == first
                    edges = edges and (
                        shift == 0 or (at + 5 < len(data) and data[at + 5] & (0xFF00 >> shift) & 0xFF == last)
                    )
                    if edges:
                        found.append(_Mark(8 * (self._base + at - 1) + shift, is_block))
                    at = data.find(inner, at + 1)
        return found

    def decode(self, mark: _Mark, after: _Mark) -> bytes | None:
        """The block between two marks, or None when it is none."""
        length = after.bit - mark.bit
        low, high = mark.bit // 8 - self._base, -(-after.bit // 8) - self._base
        bits = int.from_bytes(self._data[low:high], "big") >> (8 * (self._base + high) - after.bit)
        bits &= (1 << length) - 1
        if length <= _MARK_BITS + 32:
            return None
        checksum = bits >> (length - _MARK_BITS - 32) & 0xFFFFFFFF  # of a stream of one block, it is the stream's too
        bits = (bits << _MARK_BITS | _END_MARK) << 32 | checksum
        padding = -(length + _MARK_BITS + 32) % 8
        stream = (bits << padding).to_bytes((length + _MARK_BITS + 32 + padding) // 8, "big")
        try:
            return bz2.decompress(b"BZh9" + stream)
        except (OSError, ValueError):
            return None

    def forget(self, mark: _Mark) -> None:
        """Let go of what lies before a mark."""
        dropped = mark.bit // 8 - self._base
        self._base, self._data = self._base + dropped, self._data[dropped:]
