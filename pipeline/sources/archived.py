"""The bytes of a picture that lies in a source: what `archived` of a candidate says, and how it is read.

Four words, each with a place:

* `record:1023`: the record at that offset of a web archive, an HTTP answer or a resource;
* `bytes:512+20480`: offset and length in the file, as for a member of a tar; `bytes:512+20480@00000.tar`: in a file beside the source;
* `file:00000/000000007.jpg`: a file beside the source, relative to its folder;
* `cell:jpg/17`: column and row of a Parquet file.

The bytes are a stranger's like those of the web: they are bounded here, and decoded and judged by the crawl like fetched ones.
"""

import contextlib
import re
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.contracts import storage
from pipeline.contracts.errors import InputError
from pipeline.contracts.schema import Reason
from pipeline.sources.records import MAX_HEADER, Damage, parse_http, records
from pipeline.sources.urls import picture_key

_PLACE = re.compile(
    r"record:(?P<record>\d{1,18})|bytes:(?P<start>\d{1,18})\+(?P<length>\d{1,18})(?:@(?P<beside>[^\x00]+))?|file:(?P<file>[^\x00]+)"
    r"|cell:(?P<column>[^/]+)/(?P<row>\d{1,18})"
)


class Unreadable(NamedTuple):
    """Why there are no bytes, for a rejection."""

    reason: Reason
    detail: str


def read_bytes(uri: str, archived: str, max_bytes: int, url: str | None = None) -> bytes | Unreadable:
    """The bytes at a place of the source at `uri`, at most `max_bytes` of them.

    `url` is the picture's: a record that is another's is refused, for the archive may have been changed since its pages were read.
    Raises InputError for a place that is none and for a source that is not there any more.
    """
    place = _PLACE.fullmatch(archived)
    if place is None:
        raise InputError(f"{uri}: {archived!r} is no place of a picture; run candidates again")
    if place["record"] is not None:
        return _record(uri, int(place["record"]), max_bytes, url)
    if place["start"] is not None:
        if (length := int(place["length"])) > max_bytes:
            return _too_many(max_bytes)
        holder = uri if place["beside"] is None else _beside(uri, place["beside"])
        found = storage.read_range(holder, int(place["start"]), length)
        return (
            found
            if len(found) == length
            else Unreadable(Reason.IMAGE_TRUNCATED, "the source ends before the picture does")
        )
    if place["file"] is not None:
        return _file(uri, place["file"], max_bytes)
    return _cell(uri, place["column"], int(place["row"]), max_bytes)


def _too_many(max_bytes: int) -> Unreadable:
    return Unreadable(Reason.TOO_MANY_BYTES, f"more than {max_bytes:,}")


def _record(uri: str, offset: int, max_bytes: int, url: str | None) -> bytes | Unreadable:
    with contextlib.closing(records(uri, offset)) as found:
        record = next(found, None)
        if record is None or isinstance(record, Damage):
            return Unreadable(Reason.NOT_AN_IMAGE, "the archive is damaged at the picture's record")
        if url is not None and picture_key(record.url) != picture_key(url):
            return Unreadable(Reason.NOT_AN_IMAGE, "another record is at the picture's place; was the archive changed?")
        if record.kind == "resource":
            body = record.read(max_bytes + 1)
            whole = len(body) == record.length
        else:
            block = record.read(max_bytes + MAX_HEADER)
            answer = parse_http(block, max_bytes + 1)
            if answer is None:
                return Unreadable(Reason.NOT_AN_IMAGE, "the answer's content or transfer coding cannot be undone")
            body, whole = answer.body, len(block) == record.length
        if len(body) > max_bytes or (not whole and record.length > max_bytes):
            return _too_many(max_bytes)
        return body if whole else Unreadable(Reason.IMAGE_TRUNCATED, "the archive ends before the picture does")


def _beside(uri: str, name: str) -> str:
    if name.startswith("/") or ".." in name.split("/"):
        raise InputError(f"{uri}: {name!r} is no file beside it; run candidates again")
    return storage.join(storage.parent(uri), name)


def _file(uri: str, name: str, max_bytes: int) -> bytes | Unreadable:
    place = _beside(uri, name)
    if not storage.exists(place):
        return Unreadable(Reason.NOT_AN_IMAGE, "no such file beside the source")
    if storage.size(place) > max_bytes:
        return _too_many(max_bytes)
    return storage.read_bytes(place, limit=max_bytes)


def _cell(uri: str, column: str, row: int, max_bytes: int) -> bytes | Unreadable:
    """Only the row group of the row is read, and of it one column, a few rows at a time."""
    try:
        with pq.ParquetFile(storage.open_input(uri)) as parquet:
            kind = dict(zip(parquet.schema_arrow.names, parquet.schema_arrow.types, strict=True)).get(column)
            if kind is None or not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
                return Unreadable(Reason.NOT_AN_IMAGE, "no such column of bytes; was the source changed?")
            for group in range(parquet.metadata.num_row_groups):
                rows = parquet.metadata.row_group(group).num_rows
                if row < rows:
                    for batch in parquet.iter_batches(16, row_groups=[group], columns=[column]):
                        if row < batch.num_rows:
                            cell = batch.column(0)[row]
                            data = cell.as_buffer() if cell.is_valid else None
                            if data is None:
                                return Unreadable(Reason.NOT_AN_IMAGE, "the cell is empty")
                            return bytes(data) if data.size <= max_bytes else _too_many(max_bytes)
                        row -= batch.num_rows
                row -= rows
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{uri}: not a parquet file ({' '.join(str(error).split())[:200]}); put it back") from None
    return Unreadable(Reason.NOT_AN_IMAGE, "no such row")
