"""Tars as webdataset lays them out, read at any place: an index of byte ranges, built once, and the members of one range at a time.

What a sample is, and what a stranger's tar may not do, is in `pipeline/content/webdataset.py`: a picture (`.jpg`, `.jpeg`, `.png` or
`.webp`) and its caption (`.txt`, else in `.json`).

The index beside the run (`tars.json`) holds, for each tar, its digest and the byte ranges of groups of samples, about 4 MiB each, with
their digests: what row groups are to a Parquet shard. It is built by reading each tar once from end to end, the tars shared out over the
processes of the run. When the run goes on, names and sizes are compared before the first step, and what is in a group when it is read.
The digest over the tars' bytes is the run's `content_root`. The order in which they are given is a part of it: rows are numbered in that
order, so the same tars in another one are another corpus.

A sample that is larger than `webdataset.MAX_SAMPLE_BYTES` is a row that cannot be used, and a tar that is damaged, cut short or goes on
after the mark of its end gives the whole samples before that place, with a warning.
"""

import dataclasses
import functools
import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import pyarrow as pa
import pydantic

from pipeline.content.tars import Damaged
from pipeline.content.webdataset import (
    CAPTIONS,
    MAX_SAMPLE_BYTES,
    PICTURES,
    Sample,
    Stream,
    caption,
    members,
    samples,
)
from pipeline.contracts import storage
from pipeline.contracts.at_once import at_once
from pipeline.contracts.config import StrictModel
from pipeline.contracts.errors import InputError
from pipeline.contracts.parquet import ROW_GROUP_BYTES, ROW_GROUP_ROWS, Size
from trainer.data.reader import Row, patiently

log = logging.getLogger("trainer")

INDEX = "tars.json"


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


def index_tar(uri: str, name: str) -> TarFile:
    """Read a tar once, from end to end. Raises InputError for a file that is no tar; warns of one that is damaged further on, and of one
    without samples.
    """
    with patiently(lambda: storage.open_input(uri)) as source:
        stream = Stream(
            int(source.size()),
            lambda offset, length: patiently(functools.partial(_block, uri, source, offset, length)),
        )
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


def _block(uri: str, source: pa.NativeFile, offset: int, length: int) -> bytes:
    with storage.plain_errors(uri, "read"):
        block: bytes = source.read_at(length, offset)
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
        mine = list(zip(uris, storage.names_below(uris), strict=True))[rank::world_size]
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
    for uri, name, size, tar in zip(uris, storage.names_below(uris), storage.sizes_of(uris), index.tars, strict=True):
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
            return TarGroup(b"", [Sample("", 0, 0, {}, b"")] * rows)
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
        said = (caption(kind, self._data(*files[kind])) for kind in CAPTIONS if kind in files)
        text = next((each for each in said if each is not None), None)
        return Row(text, None if picture is None else self._data(*picture))

    def _data(self, offset: int, size: int) -> bytes:
        return self.data[offset : offset + size]
