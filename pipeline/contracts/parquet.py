"""Parquet with the same bytes for the same rows, in row groups small enough to seek to.

Every committed table of the project is written here: the same rows in the same order give the same bytes with the same pyarrow.
Pictures are stored uncompressed (they are compressed already), everything else with zstd. A row group holds a few MiB, so that a
loader reads one without its neighbours and a crawl part can be read back a partition at a time.
"""

import contextlib
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pydantic

from pipeline.contracts import storage
from pipeline.contracts.errors import InputError

ROW_GROUP_BYTES = 4 << 20
"""Target size of a row group, measured on the Arrow buffers."""
ROW_GROUP_ROWS = 1 << 16
"""No row group has more rows than this, however small they are."""


Size = Annotated[int, pydantic.Field(ge=0, lt=2**63)]
"""Rows, bytes or an offset, as a file may state them."""


class RowGroup(NamedTuple):
    """Where a row group lies in its file: `rows` rows, `bytes` bytes from `offset`."""

    rows: Size
    offset: Size
    bytes: Size


def write(table: pa.Table, local_path: str, *, boundaries: Sequence[int] = ()) -> list[RowGroup]:
    """Write `table` to a local file and flush it to the disk; returns its row groups.

    `boundaries` are row numbers at which a new row group must start (partitions); between them groups are cut by size.
    """
    compression = {name: "none" if name == "image" else "zstd" for name in table.column_names}
    starts = _row_group_starts(table, boundaries)
    with open(local_path, "wb") as sink:
        writer = pq.ParquetWriter(
            sink, table.schema, compression=compression, version="2.6", use_dictionary=_dictionary_columns(table)
        )
        with writer:
            for start, stop in itertools.pairwise([*starts, table.num_rows]):
                # One chunk, because pages break where chunks do: the bytes must depend on the rows alone.
                writer.write_table(
                    table.slice(start, stop - start).combine_chunks(), row_group_size=max(1, stop - start)
                )
        storage.flush_to_disk(sink)
    return row_groups(pq.read_metadata(local_path))


class TableFile(NamedTuple):
    """A committed table: its file name (which carries the first 12 digits of its SHA-256) and size.

    Its layout is in its footer, for who needs it: a driver holds one of these for every unit of every stage, and a file that is cut for
    thousands of other units has as many row groups.
    """

    name: str
    rows: int
    bytes: int
    sha256: str


def commit(
    table: pa.Table, folder: str, stem: str, *, suffix: str = ".parquet", boundaries: Sequence[int] = ()
) -> TableFile:
    """Write `table` under a temporary name, then commit it as `folder`/`stem`-HASH`suffix` by rename or single upload.

    Because the name carries the content's hash, a second writer of the same rows replaces a file by itself, and a second writer of
    other rows leaves this one alone.
    """
    storage.make_folder(folder)
    temporary = storage.local_temporary(storage.join(folder, stem + suffix))
    try:
        with storage.plain_errors(folder, "write"):
            write(table, temporary, boundaries=boundaries)
        sha256, size = storage.sha256_file(temporary), os.path.getsize(temporary)
        file_name = f"{stem}-{sha256[:12]}{suffix}"
        storage.commit_file(temporary, storage.join(folder, file_name))
    finally:
        storage.remove_own(temporary)
    return TableFile(file_name, table.num_rows, size, sha256)


def _dictionary_columns(table: pa.Table) -> list[str]:
    """Columns with few distinct values; hashes, pictures and captions would only fill the dictionary page for nothing."""
    return [name for name in table.column_names if name in ("format", "language", "reason", "partition")]


def _row_group_starts(table: pa.Table, boundaries: Sequence[int]) -> list[int]:
    if table.num_rows == 0:
        return []
    sizes = np.zeros(table.num_rows, np.int64)
    for column in table.columns:
        sizes += _row_bytes(column)
    ends = np.cumsum(sizes)
    starts = [0]
    for boundary in [*sorted({row for row in boundaries if 0 < row < table.num_rows}), table.num_rows]:
        while True:
            before = int(ends[starts[-1] - 1]) if starts[-1] else 0
            reach = int(np.searchsorted(ends, before + ROW_GROUP_BYTES, side="right"))
            cut = min(max(reach, starts[-1] + 1), starts[-1] + ROW_GROUP_ROWS)
            if cut >= boundary:
                break
            starts.append(cut)
        if boundary < table.num_rows:
            starts.append(boundary)
    return starts


def _row_bytes(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    kind = column.type
    if pa.types.is_binary(kind) or pa.types.is_string(kind) or pa.types.is_large_binary(kind):
        lengths: npt.NDArray[np.int64] = pc.fill_null(pc.binary_length(column), 0).to_numpy().astype(np.int64)
        return lengths
    if pa.types.is_list(kind):
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)
        lengths *= max(1, kind.value_type.bit_width // 8)
        return lengths
    return np.full(len(column), max(1, kind.bit_width // 8), np.int64)


def layout(uri: str) -> list[RowGroup]:
    """The row groups of a file, from its footer. Raises InputError when it is not Parquet."""
    with open_file(uri) as source:
        return row_groups(source.metadata)


def row_groups(metadata: Any) -> list[RowGroup]:
    """The row groups of a Parquet footer (pyarrow.parquet.FileMetaData)."""
    groups = []
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        columns = [group.column(place) for place in range(group.num_columns)]
        offset = min(
            column.dictionary_page_offset if column.has_dictionary_page else column.data_page_offset
            for column in columns
        )
        groups.append(RowGroup(group.num_rows, offset, sum(column.total_compressed_size for column in columns)))
    return groups


def read(uri: str, columns: list[str] | None = None) -> pa.Table:
    """A whole Parquet file (or some columns of it). Raises InputError when it is not Parquet or is damaged."""
    with open_file(uri) as source:
        return _read_groups(uri, source, range(source.num_row_groups), columns)


def read_row_group(uri: str, number: int, columns: list[str] | None = None) -> pa.Table:
    """One row group. Raises InputError when the file is damaged."""
    with open_file(uri) as source:
        return _read_groups(uri, source, [number], columns)


def read_where_equal(uri: str, column: str, value: int, columns: list[str] | None = None) -> pa.Table:
    """The rows whose integer `column` equals `value`; row groups whose statistics exclude it are not read."""
    with open_file(uri) as source:
        groups = [
            number for number in range(source.num_row_groups) if _may_hold(source.metadata, number, column, value)
        ]
        wanted = None if columns is None else [*columns, *({column} - set(columns))]
        table = _read_groups(uri, source, groups, wanted)
    table = table.filter(pc.equal(table[column], value))
    return table if columns is None else table.select(columns)


def read_uid_range(uri: str, low: bytes, high: bytes | None, columns: list[str] | None = None) -> pa.Table:
    """The rows of a file sorted by uid with low <= uid < high (None: to the end), reading only the row groups they lie in."""
    with open_file(uri) as source:
        place = source.schema_arrow.names.index("uid")
        groups = []
        for number in range(source.num_row_groups):
            statistics = source.metadata.row_group(number).column(place).statistics
            if statistics.max >= low and (high is None or statistics.min < high):
                groups.append(number)
        table = _read_groups(uri, source, groups, columns)
    uids = table["uid"]
    inside = pc.greater_equal(uids, pa.scalar(low, uids.type))
    if high is not None:
        inside = pc.and_(inside, pc.less(uids, pa.scalar(high, uids.type)))
    return table.filter(inside)


def _may_hold(metadata: Any, number: int, column: str, value: int) -> bool:
    place = metadata.schema.names.index(column)
    statistics = metadata.row_group(number).column(place).statistics
    return statistics is None or not statistics.has_min_max or statistics.min <= value <= statistics.max


def open_file(uri: str) -> Any:
    """A pyarrow.parquet.ParquetFile. Raises InputError when the file is not Parquet."""
    with plain_errors(uri):
        return pq.ParquetFile(storage.open_input(uri))


def _read_groups(uri: str, source: Any, groups: Sequence[int], columns: list[str] | None) -> pa.Table:
    with plain_errors(uri):
        return source.read_row_groups(list(groups), columns=columns)


@contextlib.contextmanager
def plain_errors(uri: str, damage: str = "not a readable Parquet file") -> Iterator[None]:
    """Turn what pyarrow's reader raises into one sentence: what disk or store did as `storage` says it, anything else is damage of the
    file, an InputError.
    """
    with storage.plain_errors(uri, "read"):
        try:
            yield
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: names of columns
            if storage.is_the_stores(error):
                raise
            said = " ".join(str(error).split())[:200]
            raise InputError(f"{uri}: {damage} ({said}); restore or rebuild it") from None
