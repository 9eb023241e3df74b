"""A corpus of Parquet shards, as `pipeline` writes it: a manifest, and row groups that are read without their neighbours.

The manifest's word is taken for what is in the shards: `content_root` is what it says. Compared are the size of every shard when a run
starts, and the rows of all row groups and the types of the columns when a shard is opened. Other bytes of the same size are found by
`python -m pipeline verify`, which hashes all of them.
"""

import collections
import dataclasses
import functools
import itertools
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.contracts import manifest as manifests
from pipeline.contracts import parquet, storage
from pipeline.contracts.errors import InputError
from pipeline.contracts.manifest import Manifest, Shard
from pipeline.contracts.schema import SHARD_SCHEMA
from trainer.data.reader import Row, patiently

_OPEN_FILES = 32
"""Shards whose footers a process keeps; a footer of a hundred row groups takes about a millisecond to read."""
_COLUMNS = ["caption", "image"]


@dataclasses.dataclass(frozen=True)
class ShardCorpus:
    """The corpus whose manifest.json is at `place` (or in that folder), local or s3://."""

    place: str
    manifest: Manifest

    @property
    def content_root(self) -> str:
        return self.manifest.content_root

    @property
    def rows(self) -> int:
        return self.manifest.rows

    @property
    def group_rows(self) -> list[int]:
        return [group.rows for shard in self.manifest.shards for group in shard.row_groups]

    @property
    def group_bytes(self) -> list[int]:
        return [group.bytes for shard in self.manifest.shards for group in shard.row_groups]

    def check_sizes(self) -> None:
        """Raises InputError where a shard is not there or is not as large as the manifest says."""
        shards = self.manifest.shards
        uris = [manifests.shard_uri(self.place, shard) for shard in shards]
        for uri, shard, size in zip(uris, shards, storage.sizes_of(uris), strict=True):
            if size is None:
                raise InputError(f"{uri}: is missing; restore it, or train on a corpus that is whole")
            if size != shard.bytes:
                raise InputError(
                    f"{uri}: {size:,} bytes, the manifest says {shard.bytes:,}; run `python -m pipeline verify {self.place}`"
                )

    def open(self) -> "ShardSource":
        return ShardSource(self)

    def captions(self) -> Iterator[str]:
        """From the shards' indexes, which hold no pictures. Raises InputError for a damaged one."""
        for shard in self.manifest.shards:
            uri = manifests.index_uri(self.place, shard)
            with patiently(functools.partial(open_columns, uri, ["caption"])) as source:
                for number in range(source.num_row_groups):
                    table = patiently(functools.partial(_read_group, source, uri, number, ["caption"]))
                    yield from (caption for caption in table["caption"].to_pylist() if caption is not None)


class ShardSource:
    """The opened shards of one process: the last few stay open, and each is read by one thread at a time."""

    def __init__(self, corpus: ShardCorpus) -> None:
        self._corpus = corpus
        groups_of_shards = [len(shard.row_groups) for shard in corpus.manifest.shards]
        self._first_group = np.concatenate([[0], np.cumsum(np.asarray(groups_of_shards, dtype=np.int64))])
        self._files: collections.OrderedDict[int, _File] = collections.OrderedDict()
        self._lock = threading.Lock()

    def read(self, group: int) -> "ShardGroup":
        """One row group, whole. Raises InputError where the shard is damaged or is not the manifest's."""
        shard = int(np.searchsorted(self._first_group, group, side="right")) - 1
        number = group - int(self._first_group[shard])
        file = self._file(shard)
        with file.lock:
            table = _read_group(file.opened, file.uri, number, _COLUMNS)
        return ShardGroup(table["caption"].combine_chunks(), table["image"].combine_chunks())

    def _file(self, shard: int) -> "_File":
        with self._lock:
            if shard not in self._files:
                self._files[shard] = _File(self._corpus.place, self._corpus.manifest.shards[shard])
                if len(self._files) > _OPEN_FILES:
                    self._files.popitem(last=False)  # it closes itself when the last thread that reads it is done
            self._files.move_to_end(shard)
            return self._files[shard]


class _File:
    """A shard that is opened when it is first read."""

    def __init__(self, place: str, shard: Shard) -> None:
        self.uri = manifests.shard_uri(place, shard)
        self.lock = threading.Lock()
        self._place, self._shard = place, shard

    @functools.cached_property
    def opened(self) -> Any:
        """A pyarrow.parquet.ParquetFile. Raises InputError where its footer is not that of the manifest's shard."""
        source = open_columns(self.uri, _COLUMNS)
        found = [source.metadata.row_group(number).num_rows for number in range(source.num_row_groups)]
        said = [group.rows for group in self._shard.row_groups]
        for number, (here, there) in enumerate(itertools.zip_longest(found, said, fillvalue="no")):
            if here != there:
                raise InputError(
                    f"{self.uri}: row group {number} has {here} rows, the manifest says {there};"
                    f" run `python -m pipeline verify {self._place}`"
                )
        return source


@dataclasses.dataclass(frozen=True)
class ShardGroup:
    """The captions and pictures of a row group, as Arrow arrays."""

    captions: pa.Array
    images: pa.Array

    @property
    def nbytes(self) -> int:
        return int(self.captions.nbytes + self.images.nbytes)

    def row(self, place: int) -> Row:
        return Row(self.captions[place].as_py(), self.images[place].as_py())


def open_columns(uri: str, columns: list[str]) -> Any:
    """A pyarrow.parquet.ParquetFile, of a shard or its index, whose `columns` have the types of the corpus format, else InputError."""
    source = parquet.open_file(uri)
    for name in columns:
        place, wanted = source.schema_arrow.get_field_index(name), SHARD_SCHEMA.field(name).type
        found = source.schema_arrow.field(place).type if place >= 0 else "not there"
        if found != wanted:
            raise InputError(f"{uri}: column {name!r} is {found}, a corpus has {wanted}; restore or rebuild it")
    return source


def _read_group(source: Any, uri: str, number: int, columns: list[str]) -> pa.Table:
    with parquet.plain_errors(uri, f"row group {number} is not readable"):
        table = source.read_row_group(number, columns=columns, use_threads=False)
        table.validate(full=True)  # captions are UTF-8
        if table.num_rows != source.metadata.row_group(number).num_rows:
            raise pa.ArrowInvalid(f"{table.num_rows} rows")
        return table
