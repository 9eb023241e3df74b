"""The plain files of a tar, header by header: what a stranger's archive may claim is checked before it is believed.

Each header is bounded, and the next one always lies behind the last. Python's `tarfile` takes negative sizes and goes round in circles,
holds what a header announces, and takes a damaged one for the end; only its parser of the one fixed block is used here.
"""

import io
import tarfile
from collections.abc import Iterator
from typing import IO

MAX_HEADER = 1 << 20
"""Bytes of an extended header."""
_BLOCK = 512  # a tar consists of blocks
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_OTHER_HEADERS = (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK)  # about all members, and about what a link leads to
_WITHOUT_BYTES = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
)
_SPARSE = "a sparse file, whose bytes do not lie together"


def plain_files(source: IO[bytes], *, seekable: bool = True) -> Iterator[tuple[str, int, int]]:
    """Name, first byte and number of bytes of the plain files of a tar (ustar, pax, and GNU's long names); the caller may seek.

    seekable=False: the end of `source` is not looked up, because that would read all of it (a gzip stream), and every seek is forward
    as long as the caller's are. Raises tarfile.TarError where it is no tar, is damaged, or was cut off.
    """
    end, place = source.seek(0, io.SEEK_END) if seekable else None, 0
    told: dict[str, bytes] = {}  # what the headers before a member say about it
    while True:
        source.seek(place)
        block = source.read(_BLOCK)
        if block == bytes(_BLOCK):
            return
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        size = 0 if header.type in _WITHOUT_BYTES else header.size
        if header.isfile() and "size" in told:
            size = _number(told["size"])
        start = place + _BLOCK
        if size < 0 or (end is not None and size > end - start):
            left = "" if end is None else f" where {end - start:,} are left"
            raise tarfile.HeaderError(f"a member of {size:,} bytes{left}")
        place = start + -(-size // _BLOCK) * _BLOCK
        if header.type in _PAX:
            told |= _pax(source.read(_bounded_header(size)))
        elif header.type == tarfile.GNUTYPE_LONGNAME:
            told["path"] = source.read(_bounded_header(size)).partition(b"\0")[0]
        elif header.type not in _OTHER_HEADERS:
            if header.type == tarfile.GNUTYPE_SPARSE:
                raise tarfile.HeaderError(_SPARSE)
            if header.isfile():
                name = told["path"].decode("utf-8", "surrogateescape") if "path" in told else header.name
                yield name, start, size
            told = {}


def _bounded_header(size: int) -> int:
    if size > MAX_HEADER:
        raise tarfile.HeaderError(f"an extended header of {size:,} bytes")
    return size


def _pax(data: bytes) -> dict[str, bytes]:
    """Path and size in a pax header, whose records are "LENGTH KEY=VALUE" and a line end; LENGTH counts itself too. Raises TarError."""
    found: dict[str, bytes] = {}
    place = 0
    while place < len(data):
        digits = data[place : place + 20].partition(b" ")[0]
        record = data[place : place + _number(digits)]
        key, sign, value = record[len(digits) + 1 :].partition(b"=")
        if not sign or not value.endswith(b"\n"):
            raise tarfile.HeaderError("a pax header with a record that is none")
        if key.startswith(b"GNU.sparse."):
            raise tarfile.HeaderError(_SPARSE)
        if key in (b"path", b"size"):
            found[key.decode()] = value[:-1]
        place += len(record)
    return found


def _number(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > 18:
        raise tarfile.HeaderError(f"a pax header with {digits[:40]!r} for a number")
    return int(digits)
