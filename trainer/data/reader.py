"""Rows of a corpus by number: caption and encoded picture, read a row group at a time, local or s3://.

A row group is the smallest thing that is read, and a bounded number of bytes of them is kept. The loader asks for the rows of a batch in
rising order, so that each row group that a batch touches is read once.
"""

import collections
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.contracts import manifest as manifests
from pipeline.contracts import parquet
from pipeline.contracts.errors import InputError
from pipeline.contracts.manifest import Manifest
from trainer.data.order import Int64s

_OPEN_FILES = 16


class Row(NamedTuple):
    """What a row holds; None where the corpus has null."""

    caption: str | None
    image: bytes | None


class RowReader:
    """Random access to the rows of the corpus at `path`, numbered from 0 through its shards in the manifest's order."""

    def __init__(self, path: str, manifest: Manifest, cache_bytes: int) -> None:
        self._path, self._manifest, self._cache_bytes = path, manifest, cache_bytes
        self.group_rows = [group.rows for shard in manifest.shards for group in shard.row_groups]
        self._group_start = np.concatenate([[0], np.cumsum(np.asarray(self.group_rows, dtype=np.int64))])
        groups_of_shards = [len(shard.row_groups) for shard in manifest.shards]
        self._first_group = np.concatenate([[0], np.cumsum(np.asarray(groups_of_shards, dtype=np.int64))])
        self._cache: collections.OrderedDict[int, pa.Table] = collections.OrderedDict()
        self._cached_bytes = 0
        self._files: collections.OrderedDict[int, Any] = collections.OrderedDict()
        self.groups_read = 0

    def read(self, rows: Int64s) -> Iterator[Row]:
        """The rows with the given numbers (int64 [n]), in the order asked. Raises InputError for a damaged shard."""
        groups = np.searchsorted(self._group_start, rows, side="right") - 1
        for row, group in zip(rows.tolist(), groups.tolist(), strict=True):
            table = self._group(group)
            place = row - int(self._group_start[group])
            yield Row(table["caption"][place].as_py(), table["image"][place].as_py())

    def _group(self, group: int) -> pa.Table:
        table = self._cache.get(group)
        if table is not None:
            self._cache.move_to_end(group)
            return table
        shard = int(np.searchsorted(self._first_group, group, side="right")) - 1
        number = group - int(self._first_group[shard])
        uri = manifests.shard_uri(self._path, self._manifest.shards[shard])
        table = _read_group(self._file(shard, uri), uri, number, ["caption", "image"])
        if table.num_rows != self.group_rows[group]:
            raise InputError(
                f"{uri}: row group {number} has {table.num_rows} rows, the manifest says {self.group_rows[group]};"
                f" run `python -m pipeline verify {self._path}`"
            )
        self.groups_read += 1
        self._cache[group] = table
        self._cached_bytes += table.nbytes
        while self._cached_bytes > self._cache_bytes and len(self._cache) > 1:
            self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
        return table

    def _file(self, shard: int, uri: str) -> Any:
        """An open pyarrow.parquet.ParquetFile; the footers of the last few shards stay in memory."""
        found = self._files.get(shard)
        if found is None:
            found = self._files[shard] = parquet.open_file(uri)
            if len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(shard)
        return found


def _read_group(source: Any, uri: str, number: int, columns: list[str]) -> pa.Table:
    try:
        return source.read_row_group(number, columns=columns, use_threads=False).combine_chunks()
    except (pa.ArrowException, OSError) as error:
        said = " ".join(str(error).split())[:200]
        raise InputError(f"{uri}: row group {number} is not readable ({said}); restore or rebuild the shard") from None


def captions(path: str, manifest: Manifest) -> Iterator[str]:
    """Every caption of the corpus that is not null, from the shards' indexes, which hold no pictures.

    Raises InputError for a damaged index.
    """
    for shard in manifest.shards:
        uri = manifests.index_uri(path, shard)
        with parquet.open_file(uri) as source:
            for number in range(source.num_row_groups):
                table = _read_group(source, uri, number, ["caption"])
                yield from (caption for caption in table["caption"].to_pylist() if caption is not None)
