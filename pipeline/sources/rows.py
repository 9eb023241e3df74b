"""All kinds of sources as one: a file's rows, and rows as candidates or rejections.

`read` gives a unit its rows whatever kind of file they come from, and `candidates` is the one place that decides which of them are pairs
worth keeping: a table, a web page and an archive are held to the same rules, and nothing vanishes on the way.
"""

import re
from collections.abc import Sequence
from urllib.parse import urlsplit

import pyarrow as pa

from pipeline.contracts import storage
from pipeline.contracts.errors import InputError, RunError
from pipeline.contracts.schema import CANDIDATE_SCHEMA, REJECTED_SCHEMA, Reason, rejected_rows, uid
from pipeline.sources import formats, shards, url_tables, warc, wat
from pipeline.sources.files import SourceFile, SourcesConfig

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_BYTES_PER_ROW = {"warc": 1000, "wat": 250, "tar": 10_000}
"""Bytes of an archive for one row, about: what its rows are estimated by, since counting them is reading it."""


def check(file: SourceFile, config: SourcesConfig) -> None:
    """Raise InputError for a file that cannot be read as what it is: call it before the work starts."""
    if file.kind == "table":
        url_tables.columns(file, config)
    elif storage.size(file.uri) == 0:
        raise InputError(f"{file.uri}: the file is empty; take it out of sources.paths")


def require_rows(files: Sequence[SourceFile], config: SourcesConfig) -> None:
    """Raise InputError when no file can have a pair: all are lists of URLs without captions, or tables and shards without a row.

    Reads one row of the first table that has one.
    """
    if len(without_captions(files)) == len(files):
        raise InputError(
            "sources.paths: only lists of URLs without captions (.txt); name tables with a caption column, web archives or shards"
        )
    if all(_is_empty(file, config) for file in files):
        raise InputError(
            f"sources.paths: no rows in any of {len(files):,} files; check that the lists were written whole"
        )


def _is_empty(file: SourceFile, config: SourcesConfig) -> bool:
    """Whether a table or a shard has no row. (An archive is never called empty: that is seen by reading it.)"""
    if file.kind == "table":
        return next(url_tables.scan(file, config, 1), None) is None
    return file.kind == "img2dataset" and formats.parquet_rows(file.uri) == 0


def without_captions(files: Sequence[SourceFile]) -> list[SourceFile]:
    """The lists of URLs among the files: all of their rows are rejected as no_caption."""
    return [file for file in files if file.kind == "table" and formats.suffix_of(file.uri) == ".txt"]


def is_cut(file: SourceFile) -> bool:
    """Whether a file is read in ranges of rows; any other file is one unit."""
    return file.kind == "table" and formats.suffix_of(file.uri) == ".parquet"


def count_rows(file: SourceFile, config: SourcesConfig) -> int:
    """Rows of a file: from the footer of a parquet file, by reading through a text file, estimated from the size of an archive."""
    if file.kind == "table":
        return url_tables.count_rows(file, config)
    if file.kind == "img2dataset":
        return formats.parquet_rows(file.uri)
    return max(1, storage.size(file.uri) // _BYTES_PER_ROW[file.kind])


def content_digest(file: SourceFile) -> str:
    """What a file is known by: a digest of all that is read of it, pictures that lie in it or beside it included."""
    return shards.content_digest(file) if file.kind == "img2dataset" else storage.sha256_file(file.uri)


def stamp(file: SourceFile) -> tuple[int, ...]:
    """Sizes and times of last change of a file, and of the tar with its pictures. Of pictures in files beside it nothing is in here: a look
    at all of them, for each unit that reads some, would take longer than reading those."""
    uris = [file.uri, shards.tar_of(file)] if file.kind == "img2dataset" else [file.uri]
    return tuple(number for found in map(storage.info, uris) if found for number in (found.size, found.mtime_ns or 0))


def require_unchanged(file: SourceFile, stamped: tuple[int, ...]) -> None:
    """Raise RunError where a file is not what its `stamp` was of: what was read of it may be of two contents, and has the digest of one."""
    if stamp(file) != stamped:
        raise RunError(
            f"{file.uri}: has changed since this run looked at it, and what was read is not kept; "
            "when nobody writes there any more, run the same command again"
        )


def holds_pictures(file: SourceFile) -> bool:
    """Whether pictures may lie in a file or beside it, which are then not fetched."""
    return file.kind in ("warc", "tar", "img2dataset")


def read(file: SourceFile, config: SourcesConfig, rows: range | None = None) -> pa.Table:
    """The rows of a file (of a file that `is_cut` those numbered by `rows`) as a table of SOURCE_SCHEMA."""
    if file.kind == "table":
        return url_tables.read(file, config, rows)
    reader = {"warc": warc.read, "wat": wat.read, "tar": shards.read, "img2dataset": shards.read}[file.kind]
    return reader(file, config)


# ---- candidates


def candidates(table: pa.Table, config: SourcesConfig) -> tuple[pa.Table, pa.Table]:
    """Rows of SOURCE_SCHEMA as (rows of CANDIDATE_SCHEMA in their order, rows of REJECTED_SCHEMA).

    White space around a URL is not part of it. Rejections: bad_row, opt_out (both as the source tells), bad_url (none, over-long, control
    characters, no host, does not parse), scheme, no_caption (null or only white space), caption_too_long. A batch at a time is looked at
    in Python objects.
    """
    slices = [table.slice(start, formats.BATCH_ROWS) for start in range(0, max(1, table.num_rows), formats.BATCH_ROWS)]
    kept, rejected = zip(*(_candidates(part, config) for part in slices), strict=True)
    return pa.concat_tables(kept), pa.concat_tables(rejected)


def _candidates(table: pa.Table, config: SourcesConfig) -> tuple[pa.Table, pa.Table]:
    urls = [None if url is None else url.strip() for url in table["url"].to_pylist()]
    captions: list[str | None] = table["caption_raw"].to_pylist()
    verdicts = [
        _verdict(url, caption, config) if problem is None else (Reason(reason or Reason.BAD_ROW), problem)
        for url, caption, reason, problem in zip(
            urls, captions, table["reason"].to_pylist(), table["problem"].to_pylist(), strict=True
        )
    ]
    # An over-long text may have been cut when it was read, and is nobody's identity then.
    uids = [
        None
        if url is None or caption is None or len(url) > config.max_url_bytes or len(caption) > config.max_caption_bytes
        else uid(url, caption)
        for url, caption in zip(urls, captions, strict=True)
    ]
    whole = pa.table(
        {
            "uid": pa.array(uids, pa.binary(16)),
            "url": pa.array(urls, pa.string()),
            "caption_raw": table["caption_raw"],
            "page_url": table["page_url"],
            "source": table["source"],
            "language": pa.nulls(len(urls), pa.string()),
            "archived": table["archived"],
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
    if len(url.encode()) > config.max_url_bytes:
        return Reason.BAD_URL, f"more than {config.max_url_bytes:,} bytes"
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
    if len(caption.encode()) > config.max_caption_bytes:
        return Reason.CAPTION_TOO_LONG, f"more than {config.max_caption_bytes:,} bytes"
    return None
