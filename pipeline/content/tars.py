"""The plain files of a tar, header by header: what a stranger's archive may claim is checked before it is believed.

The house has this one walker: archives of datasets, sources and the samples of webdataset all go through it. Each header is bounded, and
the next one always lies behind the last. Python's `tarfile` takes negative sizes and goes round in circles, holds what a header announces,
and takes a damaged one for the end.
"""

import io
from collections.abc import Callable, Generator, Iterator
from typing import IO, NamedTuple

MAX_HEADER_BYTES = 512 << 10
"""Of an extended header: a name, a size, attributes."""
_BLOCK = 512  # a tar consists of blocks

ReadAt = Callable[[int, int], bytes]
"""`read(offset, length)`: the bytes there, fewer at the end."""


class Damaged(Exception):
    """A tar that does not go on as a tar must; says where and why."""


class Member(NamedTuple):
    """A regular file of a tar: its name, where its first header starts, where its data is."""

    name: str
    start: int
    data: int
    size: int

    @property
    def end(self) -> int:
        return self.data + _padded(self.size)


def plain_files(source: IO[bytes], *, most: int | None = None) -> Iterator[Member]:
    """The regular files of a whole tar; the caller may seek. Its end must be marked, what lies behind the mark is not looked at.

    most: the end of `source` is not looked up, because that would read all of it (a gzip stream); it has at most so many bytes. Every seek
    is forward as long as the caller's are. Raises Damaged where it is no tar, is damaged, or was cut off.
    """

    def read(offset: int, length: int) -> bytes:
        source.seek(offset)
        return source.read(length)

    end = source.seek(0, io.SEEK_END) if most is None else most
    if (yield from walk(read, 0, end)) is None:
        raise Damaged("ends without the mark of its end")


def walk(read: ReadAt, start: int, end: int) -> Generator[Member, None, int | None]:
    """The regular files between two offsets of a tar, the first of which is that of a header. `read` is asked for rising offsets.

    Returns where the mark of the end is, None where there is none: a part of a tar has none, nor have tars of some writers. POSIX ustar and
    pax (IEEE 1003.1, pax), and GNU's long names and large numbers. Links, folders and devices are passed over. Raises Damaged.
    """
    at, first, name, size = start, start, "", -1
    while at < end:
        header = read(at, _BLOCK)
        if len(header) < _BLOCK:
            raise Damaged(f"ends inside a header at byte {at:,}")
        if not any(header):
            return at
        _check_sum(header, at)
        kind, length, data = header[156:157], _number(header[124:136], at), at + _BLOCK
        if kind in b"123456":
            length = 0  # these have no data, whatever they say
        elif kind in b"0\x007" and size >= 0:
            length = size  # a pax header may say it better than the field can
        if data + length > end:
            raise Damaged(f"ends inside the file at byte {at:,}")
        if kind in b"LxX":
            if length > MAX_HEADER_BYTES:
                raise Damaged(f"has {length:,} bytes of names at byte {at:,}, more than {MAX_HEADER_BYTES:,}")
            said = read(data, length)
            if kind == b"L":
                name = _text(said)
            else:
                name, size = _pax(said, at, name, size)
        elif kind == b"S":
            raise Damaged(f"has a sparse file at byte {at:,}, which is not read")
        elif kind not in b"Kg":
            name = name or _name(header)
            a_folder = kind == b"\0" and name.endswith("/")  # as tars had them before ustar
            if kind in b"0\x007" and not a_folder:
                yield Member(name, first, data, length)
            first, name, size = data + _padded(length), "", -1
        at = data + _padded(length)
    return None


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _check_sum(header: bytes, at: int) -> None:
    stated, rest = _number(header[148:156], at), header[:148] + header[156:]
    total = sum(rest) + 8 * 0x20
    # Some old writers summed signed bytes.
    if stated != total and stated != total - 256 * sum(byte > 0x7F for byte in rest):
        raise Damaged(f"has no header at byte {at:,}")


def _number(field: bytes, at: int) -> int:
    """Octal digits, or GNU's base 256."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        number = int(field.split(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        number = -1
    if number < 0:
        raise Damaged(f"has a header with the number {field!r} at byte {at:,}")
    return number


def _name(header: bytes) -> str:
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix and name else prefix or name


def _text(field: bytes) -> str:
    return field.split(b"\0")[0].decode("utf-8", "surrogateescape")


def _pax(records: bytes, at: int, name: str, size: int) -> tuple[str, int]:
    """Name and size from the records "LENGTH KEY=VALUE\\n" of a pax header, or those given where it is silent."""
    place = 0
    while place < len(records) and records[place]:
        digits, _, _ = records[place : place + 20].partition(b" ")
        if not digits.isdigit() or not len(digits) + 1 < int(digits) <= len(records) - place:
            raise Damaged(f"has a pax header that cannot be read at byte {at:,}")
        end = place + int(digits)
        key, _, value = records[place + len(digits) + 1 : end - 1].partition(b"=")
        if key.startswith(b"GNU.sparse."):
            raise Damaged(f"has a sparse file at byte {at:,}, which is not read")
        if key == b"path":
            name = _text(value)
        elif key == b"size":
            size = _decimal(value, at)
        if records[end - 1 : end] != b"\n":
            raise Damaged(f"has a pax header that cannot be read at byte {at:,}")
        place = end
    return name, size


def _decimal(value: bytes, at: int) -> int:
    if not value.isdigit() or len(value) > 20:
        raise Damaged(f"has a pax header with the size {value[:40]!r} at byte {at:,}")
    return int(value)
