"""URL tables: parquet, csv, tsv, jsonl and txt files (the text ones also gzipped) as candidate rows.

`scan` streams: a file is read in batches, a text line is bounded, so that memory does not grow with the file. `read` holds the rows
asked for as Arrow columns, never as Python objects all at once. Nothing vanishes: a line that does not parse becomes a row with a
`problem`, and `candidates` turns it into a rejection with that detail. What makes a whole file useless (unknown suffix, no URL column,
not a parquet file) is the user's to mend and raises InputError.

How each format is read:
* parquet: two string columns; only those are read.
* csv: RFC 4180 with a header line, quoted fields may hold line breaks; a line with the wrong number of fields is a bad row, and so is
  one with a quote that is not closed; the lines after it are read on their own.
* tsv: a header line, then one record a line without quoting (IANA text/tab-separated-values); a field wholly wrapped in
  double quotes, as csv writers leave it, is unwrapped.
* jsonl: one object a line; an absent key is null.
* txt: one URL a line, no captions. Blank lines of text formats are not rows. `source` is `name#row` with the row's number in
  its file from 0; `name` is the path relative to the folder that all files share, so that the same files on a disk and in an
  object store give the same candidates.
"""

import itertools
import logging
import os
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

import pyarrow as pa
from pydantic import Field

from pipeline.contracts import storage
from pipeline.contracts.config import StrictModel, not_semantic
from pipeline.contracts.errors import InputError
from pipeline.contracts.schema import CANDIDATE_SCHEMA, REJECTED_SCHEMA, Reason, rejected_rows, uid
from pipeline.sources import formats
from pipeline.sources.formats import Columns, Record

URL_NAMES = ("url", "image_url", "img_url", "image", "src", "link")
CAPTION_NAMES = ("caption", "text", "alt", "alt_text", "title", "description")
"""Names that are recognised when the configuration gives none: the first that the file has, in any case."""


_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

logger = logging.getLogger(__name__)


class SourcesConfig(StrictModel):
    """Which tables are read, and which of their columns."""

    paths: list[str] = not_semantic(min_length=1)
    """Files, patterns (`*`, `**`) and folders, local or s3://."""
    url_column: str | None = None
    """Name of the URL column; unset: recognised by name (URL_NAMES)."""
    caption_column: str | None = None
    """Name of the caption column; unset: recognised by name (CAPTION_NAMES)."""
    column_names: tuple[str, ...] = ()
    """Names of the columns of csv and tsv files that have no header line; unset: the first line names them."""
    rows_per_unit: int = Field(default=10_000, ge=1)
    """Rows of one unit of `candidates` from a Parquet file: what is done again after a crash. A text file is one unit."""
    max_url_bytes: int = Field(default=4096, ge=16)
    max_caption_bytes: int = Field(default=8192, ge=1)


class SourceFile(NamedTuple):
    """A table: where it is, and what its rows' `source` is called."""

    uri: str
    name: str


SOURCE_SCHEMA = pa.schema(
    [
        pa.field("url", pa.string()),
        pa.field("caption_raw", pa.string()),
        pa.field("source", pa.string(), nullable=False),
        pa.field("problem", pa.string()),
    ]
)
"""A row as it stands in its file; `problem` says why its line does not parse (null: it does)."""


# ---- which files


def expand(config: SourcesConfig) -> list[SourceFile]:
    """The files of `config.paths`, each once, sorted by name. Raises InputError for a place without tables or an unknown
    suffix."""
    uris: set[str] = set()
    for path in config.paths:
        uris.update(_files_of(path if storage.is_s3(path) else os.path.abspath(path), path))
    levels = zip(*(uri.split("/")[:-1] for uri in uris), strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda parts: len(set(parts)) == 1, levels))
    return sorted(
        (SourceFile(uri, "/".join(uri.split("/")[shared:])) for uri in uris), key=lambda file: (file.name, file.uri)
    )


def _files_of(place: str, written: str) -> list[str]:
    if any(sign in place for sign in "*?["):
        found = storage.glob(place)
        if not found:
            raise InputError(f"sources.paths: nothing matches {written!r}; check the pattern")
    elif storage.is_folder(place):
        present = storage.list_files(place, recursive=True)
        found = [uri for uri in present if formats.suffix_of(uri) is not None]
        if not found:
            raise InputError(
                f"sources.paths: no {', '.join(formats.SUFFIXES)} file in folder {written!r}; check the path"
            )
        if len(found) < len(present):
            logger.info("%s: %d files of other kinds are not read", written, len(present) - len(found))
    elif storage.exists(place):
        found = [place]
    else:
        raise InputError(f"sources.paths: no file, folder or pattern {written!r}; check the path")
    for uri in found:
        if formats.suffix_of(uri) is None:
            raise InputError(
                f"sources.paths: {uri!r} ends in none of {', '.join(formats.SUFFIXES)}; rename or convert it"
            )
    return found


# ---- reading


def columns(file: SourceFile, config: SourcesConfig) -> Columns:
    """The columns that will be read. Raises InputError when the file is empty, corrupt or lacks them: call it before the work
    starts."""
    if storage.size(file.uri) == 0:
        raise InputError(f"{file.uri}: the file is empty; take it out of sources.paths")
    if formats.suffix_of(file.uri) == ".txt":
        return Columns("url", None)
    names = list(config.column_names) if formats.may_lack_header(file.uri) else []
    names = names or formats.column_names(file.uri)
    url = _named(names, config.url_column, URL_NAMES, "url_column", file)
    chosen = Columns(url, _named(names, config.caption_column, CAPTION_NAMES, "caption_column", file))
    formats.check_types(file.uri, chosen)
    return chosen


def scan(file: SourceFile, config: SourcesConfig, batch_rows: int = formats.BATCH_ROWS) -> Iterator[pa.Table]:
    """The file's rows as tables of SOURCE_SCHEMA with `batch_rows` rows (the last one fewer), in one pass and in bounded
    memory.

    Raises InputError where the file cannot be read.
    """
    return _tables(_records(file, config), file, 0, batch_rows)


def read(file: SourceFile, config: SourcesConfig, rows: range | None = None) -> pa.Table:
    """Rows of a file (all of them, or those numbered by `rows`) as one table of SOURCE_SCHEMA.

    Row groups outside the range are skipped in parquet; the text formats are parsed from their beginning, so whoever wants a
    text file unit by unit uses `scan`. A batch at a time passes through Python objects, which take several times the memory of the
    columns that they become.
    """
    start = rows.start if rows is not None else 0
    parts = _tables(_records(file, config, rows), file, start, formats.BATCH_ROWS)
    return pa.concat_tables([SOURCE_SCHEMA.empty_table(), *parts])


def require_rows(files: Sequence[SourceFile], config: SourcesConfig) -> None:
    """Raise InputError when no file has a row. Reads one row of the first file that has one."""
    if all(next(scan(file, config, 1), None) is None for file in files):
        raise InputError(
            f"sources.paths: no rows in any of {len(files):,} files; check that the lists were written whole"
        )


def count_rows(file: SourceFile, config: SourcesConfig) -> int:
    """Rows of a file: from the footer of a parquet file, by reading through any other."""
    return formats.parquet_rows(file.uri) if _is_parquet(file) else sum(1 for _ in _records(file, config))


def _is_parquet(file: SourceFile) -> bool:
    return formats.suffix_of(file.uri) == ".parquet"


def _tables(records: Iterator[Record], file: SourceFile, start: int, batch_rows: int) -> Iterator[pa.Table]:
    """The records, of which the first is row `start` of its file, as tables of `batch_rows` rows (the last one fewer)."""
    while batch := list(itertools.islice(records, batch_rows)):
        yield _table(batch, file, start)
        start += len(batch)


def _table(records: list[Record], file: SourceFile, start: int) -> pa.Table:
    return pa.table(
        [
            pa.array([record.url for record in records], pa.string()),
            pa.array([record.caption for record in records], pa.string()),
            pa.array([f"{file.name}#{start + place}" for place in range(len(records))], pa.string()),
            pa.array([record.problem for record in records], pa.string()),
        ],
        schema=SOURCE_SCHEMA,
    )


def _records(file: SourceFile, config: SourcesConfig, rows: range | None = None) -> Iterator[Record]:
    """Every record of the file, or those numbered by `rows`."""
    return formats.records(file.uri, columns(file, config), list(config.column_names), rows)


def _named(names: list[str], wanted: str | None, known: tuple[str, ...], key: str, file: SourceFile) -> str:
    shown = ", ".join(repr(name) for name in names[:20])
    if wanted is not None:
        matches = [name for name in names if name == wanted]
        if not matches:
            raise InputError(f"{file.uri}: no column {wanted!r}; set sources.{key} to one of {shown}")
    else:
        matches = next((found for one in known if (found := [name for name in names if name.lower() == one])), [])
        if not matches:
            raise InputError(
                f"{file.uri}: no column is called {' or '.join(known)}; set sources.{key} to one of {shown}"
            )
    if len(matches) > 1:
        raise InputError(f"{file.uri}: columns {matches!r} could both be meant; set sources.{key}")
    return matches[0]


# ---- candidates


def candidates(table: pa.Table, config: SourcesConfig) -> tuple[pa.Table, pa.Table]:
    """Rows of SOURCE_SCHEMA as (rows of CANDIDATE_SCHEMA in their order, rows of REJECTED_SCHEMA).

    White space around a URL is not part of it. Rejections: bad_row, bad_url (none, over-long, control characters, no host,
    does not parse), scheme, no_caption (null or only white space), caption_too_long. A batch at a time is looked at in Python objects.
    """
    slices = [table.slice(start, formats.BATCH_ROWS) for start in range(0, max(1, table.num_rows), formats.BATCH_ROWS)]
    kept, rejected = zip(*(_candidates(part, config) for part in slices), strict=True)
    return pa.concat_tables(kept), pa.concat_tables(rejected)


def _candidates(table: pa.Table, config: SourcesConfig) -> tuple[pa.Table, pa.Table]:
    urls = [None if url is None else url.strip() for url in table["url"].to_pylist()]
    captions: list[str | None] = table["caption_raw"].to_pylist()
    verdicts = [
        (Reason.BAD_ROW, problem) if problem is not None else _verdict(url, caption, config)
        for url, caption, problem in zip(urls, captions, table["problem"].to_pylist(), strict=True)
    ]
    uids = [
        None if url is None or caption is None else uid(url, caption)
        for url, caption in zip(urls, captions, strict=True)
    ]
    whole = pa.table(
        {
            "uid": pa.array(uids, pa.binary(16)),
            "url": pa.array(urls, pa.string()),
            "caption_raw": table["caption_raw"],
            "page_url": pa.nulls(len(urls), pa.string()),
            "source": table["source"],
            "language": pa.nulls(len(urls), pa.string()),
        }
    )
    kept = whole.filter(pa.array([verdict is None for verdict in verdicts], pa.bool_())).cast(CANDIDATE_SCHEMA)
    return kept, _rejections(whole, verdicts)


def _rejections(whole: pa.Table, verdicts: list[tuple[Reason, str | None] | None]) -> pa.Table:
    parts = []
    for reason in sorted({verdict[0] for verdict in verdicts if verdict is not None}):
        places = [place for place, verdict in enumerate(verdicts) if verdict is not None and verdict[0] is reason]
        details = pa.array([(verdicts[place] or (reason, None))[1] for place in places], pa.string())
        parts.append(rejected_rows(whole.take(pa.array(places, pa.int64())), reason, details))
    return pa.concat_tables(parts) if parts else REJECTED_SCHEMA.empty_table()


def _verdict(url: str | None, caption: str | None, config: SourcesConfig) -> tuple[Reason, str | None] | None:
    if not url:
        return Reason.BAD_URL, "no URL"
    length = len(url.encode())
    if length > config.max_url_bytes:
        return Reason.BAD_URL, f"{length:,} bytes, more than {config.max_url_bytes:,}"
    if _CONTROL.search(url):
        return Reason.BAD_URL, "a control character inside"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        return Reason.BAD_URL, str(error)[:200]
    if parts.scheme not in ("http", "https"):
        return (Reason.SCHEME, parts.scheme[:40]) if parts.scheme else (Reason.BAD_URL, "no scheme")
    if not host or port == 0:
        return Reason.BAD_URL, "no host" if not host else "port 0"
    if caption is None or not caption.strip():
        return Reason.NO_CAPTION, None
    length = len(caption.encode())
    if length > config.max_caption_bytes:
        return Reason.CAPTION_TOO_LONG, f"{length:,} bytes, more than {config.max_caption_bytes:,}"
    return None
