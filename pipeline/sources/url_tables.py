"""URL tables: parquet, csv, tsv, json, jsonl and txt files (the text ones also as .gz or .zst) as source rows.

`scan` streams: a file is read in batches, a text line is bounded, so that memory does not grow with the file. `read` holds the rows
asked for as Arrow columns, never as Python objects all at once. Nothing vanishes: a line that does not parse becomes a row with a
`problem`, which `rows.candidates` turns into a rejection with that detail. What makes a whole file useless (no URL column, not a parquet
file) is the user's to mend and raises InputError.

How each format is read (the list is what img2dataset reads, and Zstandard):
* parquet: two string columns; only those are read.
* csv: RFC 4180 with a header line, quoted fields may hold line breaks; a line with the wrong number of fields is a bad row, and so is
  one with a quote that is not closed; the lines after it are read on their own.
* tsv: a header line, then one record a line without quoting (IANA text/tab-separated-values); a field wholly wrapped in
  double quotes, as csv writers leave it, is unwrapped.
* json: one array of objects, read element by element; jsonl: one object a line. An absent key is null.
* txt: one URL a line. img2dataset reads it, and so do we, but a row without a caption is no pair: each is rejected as no_caption, and
  sources that are nothing else are an InputError (`rows.require_rows`), like a table without a caption column.
The lines of csv and tsv files may also end with a carriage return alone, when most of the first 64 kB do.
Blank lines of text formats are not rows. `source` is `name#row` with the row's number in its file from 0.
"""

import itertools
from collections.abc import Iterator

import pyarrow as pa

from pipeline.contracts import storage
from pipeline.contracts.errors import InputError
from pipeline.sources import formats
from pipeline.sources.files import SOURCE_SCHEMA, Row, SourceFile, SourcesConfig, bounded, table_of
from pipeline.sources.formats import Columns, Record

URL_NAMES = ("url", "image_url", "img_url", "image", "src", "link")
CAPTION_NAMES = ("caption", "text", "alt", "alt_text", "title", "description")
"""Names that are recognised when the configuration gives none: the first that the file has, in any case."""


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
    return _tables(_records(file, config), file, config, 0, batch_rows)


def read(file: SourceFile, config: SourcesConfig, rows: range | None = None) -> pa.Table:
    """Rows of a file (all of them, or those numbered by `rows`) as one table of SOURCE_SCHEMA.

    Row groups outside the range are skipped in parquet; the text formats are parsed from their beginning, so whoever wants a
    text file unit by unit uses `scan`. A batch at a time passes through Python objects, which take several times the memory of the
    columns that they become.
    """
    start = rows.start if rows is not None else 0
    parts = _tables(_records(file, config, rows), file, config, start, formats.BATCH_ROWS)
    return pa.concat_tables([SOURCE_SCHEMA.empty_table(), *parts])


def count_rows(file: SourceFile, config: SourcesConfig) -> int:
    """Rows of a file: from the footer of a parquet file, by reading through any other."""
    return formats.parquet_rows(file.uri) if _is_parquet(file) else sum(1 for _ in _records(file, config))


def _is_parquet(file: SourceFile) -> bool:
    return formats.suffix_of(file.uri) == ".parquet"


def _tables(
    records: Iterator[Record], file: SourceFile, config: SourcesConfig, start: int, batch_rows: int
) -> Iterator[pa.Table]:
    """The records, of which the first is row `start` of its file, as tables of `batch_rows` rows (the last one fewer)."""
    rows = (
        Row(record.url, record.caption, None, f"{file.name}#{number}", problem=record.problem)
        for number, record in enumerate(records, start)
    )
    kept = bounded(rows, config)
    while batch := list(itertools.islice(kept, batch_rows)):
        yield table_of(batch)


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
