"""A corpus of Parquet shards, as `pipeline` writes it: a manifest, and row groups that are read without their neighbours."""

import collections
import dataclasses
import functools
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.contracts import manifest as manifests
from pipeline.contracts import parquet
from pipeline.contracts.errors import InputError
from pipeline.contracts.manifest import Manifest
from trainer.data.reader import Row

_OPEN_FILES = 32
"""Shards whose footers a process keeps; a footer of a hundred row groups takes about a millisecond to read."""


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

    def open(self) -> "ShardSource":
        return ShardSource(self)

    def captions(self) -> Iterator[str]:
        """From the shards' indexes, which hold no pictures. Raises InputError for a damaged one."""
        for shard in self.manifest.shards:
            uri = manifests.index_uri(self.place, shard)
            with parquet.open_file(uri) as source:
                for number in range(source.num_row_groups):
                    table = _read_group(source, uri, number, ["caption"])
                    yield from (caption for caption in table["caption"].to_pylist() if caption is not None)


class ShardSource:
    """The opened shards of one process: the last few stay open, and each is read by one thread at a time."""

    def __init__(self, corpus: ShardCorpus) -> None:
        self._corpus = corpus
        self._group_rows = corpus.group_rows
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
            table = _read_group(file.opened, file.uri, number, ["caption", "image"])
        if table.num_rows != self._group_rows[group]:
            raise InputError(
                f"{file.uri}: row group {number} has {table.num_rows} rows, the manifest says {self._group_rows[group]};"
                f" run `python -m pipeline verify {self._corpus.place}`"
            )
        return ShardGroup(table["caption"].combine_chunks(), table["image"].combine_chunks())

    def _file(self, shard: int) -> "_File":
        with self._lock:
            if shard not in self._files:
                uri = manifests.shard_uri(self._corpus.place, self._corpus.manifest.shards[shard])
                self._files[shard] = _File(uri)
                if len(self._files) > _OPEN_FILES:
                    self._files.popitem(last=False)  # it closes itself when the last thread that reads it is done
            self._files.move_to_end(shard)
            return self._files[shard]


class _File:
    """A shard that is opened when it is first read."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.lock = threading.Lock()

    @functools.cached_property
    def opened(self) -> Any:
        """A pyarrow.parquet.ParquetFile."""
        return parquet.open_file(self.uri)


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


def _read_group(source: Any, uri: str, number: int, columns: list[str]) -> pa.Table:
    try:
        return source.read_row_group(number, columns=columns, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        said = " ".join(str(error).split())[:200]
        raise InputError(f"{uri}: row group {number} is not readable ({said}); restore or rebuild the shard") from None
