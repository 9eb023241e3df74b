"""Tars as webdataset lays them out, read at any place: an index of byte ranges, built once, and the members of one range at a time.

A sample is what neighbouring files of one name have in common up to the first dot: a picture (`.jpg`, `.jpeg`, `.png` or `.webp`) and its
caption (`.txt`, or where that is blank or unreadable the string "caption" in `.json`). Nothing is unpacked to a disk, no link is followed.

The index beside the run (`tars.json`) holds, for each tar, its digest and the byte ranges of groups of samples, about 4 MiB each, with
their digests: what row groups are to a Parquet shard. It is built by reading each tar once from end to end, the tars shared out over the
processes of the run. When the run goes on, names and sizes are compared before the first step, and what is in a group when it is read.
The digest over the tars' bytes is the run's `content_root`. The order in which they are given is a part of it: rows are numbered in that
order, so the same tars in another one are another corpus.

A tar is a stranger's: sizes are bounded before anything is read (`MAX_SAMPLE_BYTES`, `MAX_CAPTION_BYTES`, `MAX_NAME_BYTES`), a sample that
is larger is a row that cannot be used, and a tar that is damaged, cut short or goes on after the mark of its end gives the whole samples
before that place, with a warning.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple

import pyarrow as pa
import pydantic

from pipeline.contracts import storage
from pipeline.contracts.at_once import at_once
from pipeline.contracts.config import StrictModel
from pipeline.contracts.errors import InputError
from pipeline.contracts.parquet import ROW_GROUP_BYTES, ROW_GROUP_ROWS, Size
from trainer.data.reader import Row, patiently

log = logging.getLogger("trainer")

INDEX = "tars.json"
PICTURES = ("jpg", "jpeg", "png", "webp")
CAPTIONS = ("txt", "json")

MAX_SAMPLE_BYTES = 64 << 20
MAX_CAPTION_BYTES = 1 << 20
MAX_NAME_BYTES = 64 << 10
_BLOCK = 512
_READ_BYTES = 8 << 20
_STEP = 1 << 20

ReadAt = Callable[[int, int], bytes]
"""`read(offset, length)`: the bytes there, fewer at the end."""


# ---- members and samples


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


def members(read: ReadAt, start: int, end: int) -> Iterator[Member]:
    """The regular files between two offsets of a tar, the first of which is that of a header. Raises Damaged.

    POSIX ustar and pax (IEEE 1003.1, pax), and GNU's long names and large numbers. Links, folders and devices are passed over.
    """
    at, first, name, size = start, start, "", -1
    while at < end:
        header = read(at, _BLOCK)
        if len(header) < _BLOCK:
            raise Damaged(f"ends inside a header at byte {at:,}")
        if not any(header):
            _expect_zeros(read, at, end)
            return  # the end mark; what follows is padding
        _check_sum(header, at)
        kind, length, data = header[156:157], _number(header[124:136], at), at + _BLOCK
        if kind in b"123456":
            length = 0  # these have no data, whatever they say
        elif kind in b"0\x007" and size >= 0:
            length = size  # a pax header may say it better than the field can
        if data + length > end:
            raise Damaged(f"ends inside the file at byte {at:,}")
        if kind in b"Lx":
            if length > MAX_NAME_BYTES:
                raise Damaged(f"has {length:,} bytes of names at byte {at:,}, more than {MAX_NAME_BYTES:,}")
            said = read(data, length)
            if kind == b"L":
                name = _text(said)
            else:
                name, size = _pax(said, at, name, size)
        elif kind == b"S":
            raise Damaged(f"has a sparse file at byte {at:,}, which is not read")
        elif kind not in b"Kg":
            if kind in b"0\x007":
                yield Member(name or _name(header), first, data, length)
            first, name, size = data + _padded(length), "", -1
        at = data + _padded(length)
    # A range of whole samples ends here without an end mark, and so do tars of some writers.


def _expect_zeros(read: ReadAt, at: int, end: int) -> None:
    """Raises Damaged where the end mark at `at` is none, because something follows: a hole in the file, or another tar."""
    for place in range(at, end, _STEP):
        block = read(place, min(_STEP, end - place))
        zeros = len(block) - len(block.lstrip(b"\0"))
        if zeros < len(block):
            raise Damaged(f"goes on at byte {place + zeros:,} after the mark of its end at byte {at:,}")


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _check_sum(header: bytes, at: int) -> None:
    if sum(header) - sum(header[148:156]) + 8 * 0x20 != _number(header[148:156], at):
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
    prefix = header[345:500] if header[257:263] == b"ustar\0" else b""
    return "/".join(part for part in (_text(prefix), _text(header[:100])) if part)


def _text(field: bytes) -> str:
    return field.split(b"\0")[0].decode("utf-8", "surrogateescape")


def _pax(records: bytes, at: int, name: str, size: int) -> tuple[str, int]:
    """Name and size from the records "LENGTH KEY=VALUE\\n" of a pax header, or those given where it is silent."""
    place = 0
    while place < len(records) and records[place]:
        digits, _, _ = records[place : place + 20].partition(b" ")
        if not digits.isdigit() or not len(digits) + 1 < int(digits) <= len(records) - place:
            raise Damaged(f"has a pax header that cannot be read at byte {at:,}")
        key, _, value = records[place + len(digits) + 1 : place + int(digits) - 1].partition(b"=")
        if key.startswith(b"GNU.sparse."):
            raise Damaged(f"has a sparse file at byte {at:,}, which is not read")
        if key == b"path":
            name = _text(value)
        elif key == b"size":
            size = _decimal(value, at)
        place += int(digits)
    return name, size


def _decimal(value: bytes, at: int) -> int:
    if not value.isdigit() or len(value) > 20:
        raise Damaged(f"has a pax header with the size {value[:40]!r} at byte {at:,}")
    return int(value)


class Sample(NamedTuple):
    """The files of one name: (offset, bytes) of its picture and its captions, by extension, the range that all of them lie in, and a digest
    over the names and contents of all of them.
    """

    start: int
    end: int
    files: dict[str, tuple[int, int]]
    digest: bytes


def samples(found: Iterable[Member], read: ReadAt) -> Iterator[Sample]:
    """Neighbouring files that are called the same up to the first dot. Of two with one extension the first counts. Files without a dot,
    and those whose names begin with one, belong to no sample. `read` is asked for the files in their order.
    """
    current: Sample | None = None
    name, hasher = "", hashlib.sha256()
    for member in found:
        folder, slash, base = member.name.rpartition("/")
        stem, dot, extension = base.partition(".")
        if not stem or not dot:
            continue
        if current is None or folder + slash + stem != name:
            if current is not None:
                yield current._replace(digest=hasher.digest())
            current, name = Sample(member.start, member.end, {}, b""), folder + slash + stem
            hasher = hashlib.sha256()
        hasher.update(member.name.encode("utf-8", "surrogateescape") + b"\0%d\0" % member.size)
        for place in range(member.data, member.data + member.size, _STEP):
            hasher.update(read(place, min(_STEP, member.data + member.size - place)))
        if extension.lower() in PICTURES + CAPTIONS:
            current.files.setdefault(extension.lower(), (member.data, member.size))
        current = current._replace(end=member.end)
    if current is not None:
        yield current._replace(digest=hasher.digest())


# ---- the index


class TarRange(NamedTuple):
    """A group of neighbouring samples: how many, where they lie (0 bytes: too large to read), and a digest over theirs (`_chained`)."""

    rows: Size
    offset: Size
    bytes: Size
    sha256: str


def _chained(sha256: str, sample: Sample) -> str:
    """The digest of a group that has one sample more than that of the digest `sha256` ("": of none)."""
    return hashlib.sha256(bytes.fromhex(sha256) + sample.digest).hexdigest()


class TarFile(StrictModel):
    """What is known of one tar: its name (below the folder that holds all of them), size, digest, and the groups of its samples."""

    name: str
    bytes: Size
    sha256: str
    groups: list[TarRange]


class TarIndex(StrictModel):
    """tars.json."""

    kind: Literal["tars"] = "tars"
    format_version: Literal[2] = 2
    tars: list[TarFile]


def find(tars: str | tuple[str, ...]) -> list[str]:
    """The URIs of the tars that `data.tars` names: a tar, a folder, a glob, or a list of them; in the order of the list, and sorted.

    Raises InputError where one of them names none, or a tar comes twice.
    """
    uris: list[str] = []
    for entry in (tars,) if isinstance(tars, str) else tars:
        if storage.name(entry).endswith((".gz", ".tgz", ".zst", ".bz2", ".xz")):
            raise InputError(f"data.tars: {entry!r} is compressed, so no place in it can be found; unpack it to .tar")
        if storage.is_folder(entry):
            found = [uri for uri in storage.list_files(entry) if uri.endswith(".tar")]
        else:
            found = storage.glob(entry)
        if not found:
            raise InputError(
                f"data.tars: {entry!r} names no tar; give a .tar, a folder of them, a glob with *, ? or [0-9], or a list"
            )
        uris += found
    twice = next((uri for uri, other in zip(sorted(uris), sorted(uris)[1:], strict=False) if uri == other), None)
    if twice is not None:
        raise InputError(f"data.tars: {twice!r} is named twice; each sample comes once an epoch, so name it once")
    return uris


def _names(uris: list[str]) -> list[str]:
    """What the tars are called, wherever the folder is that holds all of them."""
    parts = [uri.split("/") for uri in uris]
    levels = zip(*(folders for *folders, _ in parts), strict=False)
    above = sum(1 for _ in itertools.takewhile(lambda level: len(set(level)) == 1, levels))
    return ["/".join(each[above:]) for each in parts]


def index_tar(uri: str, name: str) -> TarFile:
    """Read a tar once, from end to end. Raises InputError for a file that is no tar; warns of one that is damaged further on, and of one
    without samples.
    """
    with patiently(lambda: storage.open_input(uri)) as source:
        stream = _Stream(uri, source)
        groups: list[TarRange] = []
        try:
            for sample in samples(members(stream.read, 0, stream.size), stream.read):
                _add(groups, sample)
        except Damaged as damage:
            rows = sum(group.rows for group in groups)
            if not rows:
                raise InputError(
                    f"{uri}: {damage}; give tars as webdataset writes them, or fetch this one again"
                ) from None
            log.warning("%s: %s; the %d whole samples before it are used", uri, damage, rows)
        if not groups:
            log.warning("%s: %s bytes without a sample; nothing of it is used", uri, f"{stream.size:,}")
        return TarFile(name=name, bytes=stream.size, sha256=stream.digest(), groups=groups)


class _Stream:
    """A file that is read from end to end, digested on its way, with a window on the part that is being looked at."""

    def __init__(self, uri: str, source: pa.NativeFile) -> None:
        self.size = int(source.size())
        self._uri, self._source, self._window, self._start = uri, source, b"", 0
        self._hash = hashlib.sha256()

    def read(self, offset: int, length: int) -> bytes:
        """Offsets must rise: what lies before the last one is forgotten."""
        while offset + length > self._start + len(self._window) and self._more(offset):
            pass
        return self._window[offset - self._start : offset - self._start + length]

    def digest(self) -> str:
        """Of the whole file; reads what is left of it."""
        while self._more(self.size):
            pass
        return self._hash.hexdigest()

    def _more(self, keep_from: int) -> bool:
        block = patiently(lambda: self._block(self._start + len(self._window)))
        self._hash.update(block)
        cut = min(max(keep_from - self._start, 0), len(self._window))
        self._window, self._start = self._window[cut:] + block, self._start + cut
        return bool(block)

    def _block(self, offset: int) -> bytes:
        with storage.plain_errors(self._uri, "read"):
            block: bytes = self._source.read_at(min(_READ_BYTES, self.size - offset), offset)
        return block


def _add(groups: list[TarRange], sample: Sample) -> None:
    """Put a sample into the last group, or into a new one where that is full or the sample is too large to be read."""
    if sample.end - sample.start > MAX_SAMPLE_BYTES:
        groups.append(TarRange(rows=1, offset=sample.start, bytes=0, sha256=_chained("", sample)))
        return
    last = groups[-1] if groups else None
    if last is not None and last.bytes and last.rows < ROW_GROUP_ROWS and sample.end - last.offset <= ROW_GROUP_BYTES:
        groups[-1] = TarRange(last.rows + 1, last.offset, sample.end - last.offset, _chained(last.sha256, sample))
    else:
        groups.append(TarRange(1, sample.start, sample.end - sample.start, _chained("", sample)))


def open_tars(uris: list[str], run_dir: str, *, rank: int, world_size: int, wait: Callable[[], object]) -> "TarCorpus":
    """The corpus of the tars, with its index from `run_dir`, which is built there first if it is missing. Collective: every process calls
    it with its rank, reads its share of the tars, and `wait`s for the others.

    Raises InputError where a tar is none, or where they are not those of the index that the run has.
    """
    place = os.path.join(run_dir, INDEX)
    missing = not os.path.exists(place)
    wait()  # nobody writes before all have looked
    if missing:
        mine = list(zip(uris, _names(uris), strict=True))[rank::world_size]
        if rank == 0:
            log.info("reading %s tars once, to know where their samples are", f"{len(uris):,}")
        part = TarIndex(tars=at_once(lambda each: index_tar(*each), mine))
        storage.write_atomic(_part(run_dir, rank), part.model_dump_json().encode())
        wait()
        if rank == 0:
            parts = [_load(_part(run_dir, number)).tars for number in range(world_size)]
            merged = [parts[number % world_size][number // world_size] for number in range(len(uris))]
            storage.write_atomic(place, TarIndex(tars=merged).model_dump_json().encode())
            for number in range(world_size):
                os.unlink(_part(run_dir, number))
        wait()
    return known_tars(uris, place)


def known_tars(uris: list[str], place: str) -> "TarCorpus":
    """The corpus of tars that the index at `place` describes. Raises InputError where they are not the ones it was made of."""
    index = _load(place)
    if len(index.tars) != len(uris):
        raise InputError(
            f"data.tars: names {len(uris)} tars, {place} was made of {len(index.tars)}; name the same ones or choose another run.dir"
        )
    for uri, name, size, tar in zip(uris, _names(uris), storage.sizes_of(uris), index.tars, strict=True):
        if name != tar.name or size != tar.bytes:
            raise InputError(
                f"data.tars: {uri!r} of {size} bytes stands where {place} has {tar.name!r} of {tar.bytes};"
                " give the tars that the run began with, in the same order, or choose another run.dir"
            )
    return TarCorpus(place, tuple(uris), index)


def _part(run_dir: str, rank: int) -> str:
    return os.path.join(run_dir, f"{INDEX}.part-{rank:05d}")


def _load(place: str) -> TarIndex:
    try:
        return TarIndex.model_validate_json(storage.read_bytes(place))
    except pydantic.ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise InputError(
            f"{place}: {'.'.join(map(str, problem['loc']))}: {problem['msg']}; remove the file, it is built again"
        ) from None


# ---- the corpus


@dataclasses.dataclass(frozen=True)
class TarCorpus:
    """Tars and their index."""

    place: str
    uris: tuple[str, ...]
    index: TarIndex

    @property
    def content_root(self) -> str:
        """SHA-256 over the digests of the tars, in the order they are given."""
        return "tars:" + hashlib.sha256("".join(tar.sha256 for tar in self.index.tars).encode()).hexdigest()

    @property
    def rows(self) -> int:
        return sum(self.group_rows)

    @property
    def group_rows(self) -> list[int]:
        return [group.rows for tar in self.index.tars for group in tar.groups]

    @property
    def group_bytes(self) -> list[int]:
        return [group.bytes for tar in self.index.tars for group in tar.groups]

    def open(self) -> "TarSource":
        return TarSource(self)

    def captions(self) -> Iterator[str]:
        """Reads the whole tars, pictures and all."""
        source = self.open()
        for number, rows in enumerate(self.group_rows):
            group = patiently(functools.partial(source.read, number))
            found = (group.row(place).caption for place in range(rows))
            yield from (caption for caption in found if caption is not None)


class TarSource:
    """Reads groups by their ranges; opens a tar for each read, which costs a local disk nothing and a store one more request."""

    def __init__(self, corpus: TarCorpus) -> None:
        self._groups = [
            (uri, group) for uri, tar in zip(corpus.uris, corpus.index.tars, strict=True) for group in tar.groups
        ]
        self._place = corpus.place

    def read(self, group: int) -> "TarGroup":
        uri, (rows, offset, length, sha256) = self._groups[group]
        if not length:
            return TarGroup(b"", [Sample(0, 0, {}, b"")] * rows)
        data = storage.read_range(uri, offset, length)

        def read(at: int, size: int) -> bytes:
            return data[at : at + size]

        try:
            found = list(samples(members(read, 0, len(data)), read))
        except Damaged:
            found = []
        if functools.reduce(_chained, found, "") != sha256:
            raise InputError(
                f"{uri}: its samples from byte {offset:,} on are not those that {self._place} was made of;"
                " bring back the tar the run began with or choose another run.dir"
            )
        return TarGroup(data, found)


@dataclasses.dataclass(frozen=True)
class TarGroup:
    """A range of a tar and the samples in it."""

    data: bytes
    samples: list[Sample]

    @property
    def nbytes(self) -> int:
        return len(self.data)

    def row(self, place: int) -> Row:
        files = self.samples[place].files
        picture = next((files[kind] for kind in PICTURES if kind in files), None)
        said = (self._caption(kind, *files[kind]) for kind in CAPTIONS if kind in files)
        caption = next((each for each in said if each is not None), None)
        return Row(caption, None if picture is None else self.data[picture[0] : picture[0] + picture[1]])

    def _caption(self, kind: str, offset: int, size: int) -> str | None:
        """The text of a caption's file; None where it is blank, too long, no UTF-8, or no JSON with a caption."""
        if size > MAX_CAPTION_BYTES:
            return None
        data = self.data[offset : offset + size]
        try:
            said = data.decode() if kind == "txt" else json.loads(data)
        except (ValueError, RecursionError):
            return None
        if kind == "json":
            said = said.get("caption") if isinstance(said, dict) else None
        return said if isinstance(said, str) and said.strip() else None
