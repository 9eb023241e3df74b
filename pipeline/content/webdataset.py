"""Tars as webdataset lays them out, read as a stranger's: their members header by header, and the samples that these make.

A sample is what neighbouring files of one name have in common up to the first dot: a picture and its caption (`.txt`, or where that is
blank or unreadable the string "caption" in `.json`). Nothing is unpacked to a disk, no link is followed. The trainer and the overlap job
number the samples of a tar alike, because both find them here.

The members are those of the house's one walker (`tars.walk`). Sizes are bounded before anything is read (`MAX_SAMPLE_BYTES`,
`MAX_CAPTION_BYTES`), and where a tar does not go on as it must, `Damaged` says so: what stands before that place is whole.
"""

import hashlib
import json
from collections.abc import Collection, Generator, Iterable, Iterator
from typing import NamedTuple

from pipeline.content.tars import Damaged, Member, ReadAt, walk

PICTURES = ("jpg", "jpeg", "png", "webp")
CAPTIONS = ("txt", "json")

MAX_SAMPLE_BYTES = 64 << 20
MAX_CAPTION_BYTES = 1 << 20
_READ_BYTES = 8 << 20
_STEP = 1 << 20


# ---- members


def members(read: ReadAt, start: int, end: int) -> Generator[Member, None, bool]:
    """The regular files between two offsets of a tar, the first of which is that of a header. Raises Damaged.

    Returns whether its end is marked: a range of whole samples ends without a mark, and so do tars of some writers, and those that were cut
    between two files. Behind a mark stands nothing.
    """
    mark = yield from walk(read, start, end)
    if mark is not None:
        _expect_zeros(read, mark, end)
    return mark is not None


def _expect_zeros(read: ReadAt, at: int, end: int) -> None:
    """Raises Damaged where the end mark at `at` is none, because something follows: a hole in the file, or another tar."""
    for place in range(at, end, _STEP):
        block = read(place, min(_STEP, end - place))
        zeros = len(block) - len(block.lstrip(b"\0"))
        if zeros < len(block):
            raise Damaged(f"goes on at byte {place + zeros:,} after the mark of its end at byte {at:,}")


# ---- samples


class Sample(NamedTuple):
    """The files of one `name`: (offset, bytes) of its picture and its captions, by extension, the range that all of them lie in, and a
    digest over the names and contents of all of them.
    """

    name: str
    start: int
    end: int
    files: dict[str, tuple[int, int]]
    digest: bytes


def samples(found: Iterable[Member], read: ReadAt, pictures: Collection[str] = PICTURES) -> Iterator[Sample]:
    """Neighbouring files that are called the same up to the first dot. Of two with one extension the first counts. Files without a dot,
    and those whose names begin with one, belong to no sample. `read` is asked for the files in their order. `pictures` are the extensions
    that count beside `CAPTIONS`, in lower case.
    """
    current: Sample | None = None
    hasher = hashlib.sha256()
    for member in found:
        folder, slash, base = member.name.rpartition("/")
        stem, dot, extension = base.partition(".")
        if not stem or not dot:
            continue
        name = folder + slash + stem
        if current is None or name != current.name:
            if current is not None:
                yield current._replace(digest=hasher.digest())
            current = Sample(name, member.start, member.end, {}, b"")
            hasher = hashlib.sha256()
        hasher.update(member.name.encode("utf-8", "surrogateescape") + b"\0%d\0" % member.size)
        for place in range(member.data, member.data + member.size, _STEP):
            hasher.update(read(place, min(_STEP, member.data + member.size - place)))
        kind = extension.lower()
        if kind in pictures or kind in CAPTIONS:
            current.files.setdefault(kind, (member.data, member.size))
        current = current._replace(end=member.end)
    if current is not None:
        yield current._replace(digest=hasher.digest())


def caption(kind: str, data: bytes) -> str | None:
    """The text of a caption's file (`txt` or `json`); None where it is blank, too long, no UTF-8, or no JSON with a caption."""
    if kind == "json":
        said = json_object(data).get("caption")
        return said if isinstance(said, str) and said.strip() else None
    if len(data) > MAX_CAPTION_BYTES:
        return None
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    return text if text.strip() else None


def json_object(data: bytes) -> dict[str, object]:
    """What a sample's JSON says; nothing where it is too long, no JSON, or no object."""
    if len(data) > MAX_CAPTION_BYTES:
        return {}
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


# ---- a tar from end to end


class Stream:
    """`size` bytes that `read_at` gives, read from end to end, digested on the way, with a window on the part that is being looked at."""

    def __init__(self, size: int, read_at: ReadAt) -> None:
        self.size = size
        self._read_at, self._window, self._start = read_at, b"", 0
        self._hash = hashlib.sha256()

    def read(self, offset: int, length: int) -> bytes:
        """Offsets must rise: what lies before the last one is forgotten."""
        while offset + length > self._start + len(self._window) and self._more(offset):
            pass
        return self._window[offset - self._start : offset - self._start + length]

    def digest(self) -> str:
        """SHA-256 of the whole; reads what is left of it."""
        while self._more(self.size):
            pass
        return self._hash.hexdigest()

    def _more(self, keep_from: int) -> bool:
        at = self._start + len(self._window)
        block = self._read_at(at, min(_READ_BYTES, self.size - at))
        self._hash.update(block)
        cut = min(max(keep_from - self._start, 0), len(self._window))
        self._window, self._start = self._window[cut:] + block, self._start + cut
        return bool(block)
