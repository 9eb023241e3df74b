"""The formats of URL tables: how a file becomes records, one at a time, in bounded memory.

What makes a whole file useless (not parquet, corrupt gzip, no JSON array) raises InputError; a line that does not parse is a record with a
`problem`. See `url_tables` for what each format allows.
"""

import collections
import csv
import itertools
import json
import re
from collections.abc import Iterator
from typing import NamedTuple, Self

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.contracts import storage
from pipeline.contracts.errors import InputError
from pipeline.sources.streams import (
    COMPRESSIONS,
    MAX_PIECE,
    TextFile,
    array_elements,
    bounded_line,
    corrupt_is_input_error,
    line_end,
    lines,
    open_text,
    without_compression,
)

_TEXT_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".txt")
SUFFIXES = (".parquet", *(suffix + packed for packed in ("", *COMPRESSIONS) for suffix in _TEXT_SUFFIXES))
_MAX_RECORD_LINES = 1000  # lines of a csv record; a quote that is open for longer is a stray one
BATCH_ROWS = 8192
_PEEK_ROWS = 1000  # objects of a json or jsonl file whose keys are looked at to find its columns
_NOT_TEXT = re.compile("[\ud800-\udfff]")  # undecodable bytes (surrogateescape) and lone surrogates of JSON escapes


class Columns(NamedTuple):
    """The columns of a table that are read; `caption` is None where the format has none (txt)."""

    url: str
    caption: str | None


class Record(NamedTuple):
    url: str | None
    caption: str | None
    problem: str | None


def suffix_of(uri: str) -> str | None:
    """The suffix of a known format without its compression's, or None."""
    if uri.lower().endswith(".parquet"):
        return ".parquet"
    plain = without_compression(uri)
    return next((suffix for suffix in _TEXT_SUFFIXES if plain.endswith(suffix)), None)


def checked(url: object, caption: object) -> Record:
    """A record whose values are text that Arrow can hold, or a record with the problem."""
    for name, value in (("url", url), ("caption", caption)):
        if value is not None and not isinstance(value, str):
            return Record(None, None, f"{name} is {type(value).__name__}, not text")
        if value is not None and not value.isascii() and _NOT_TEXT.search(value):
            return Record(None, None, f"{name} is not UTF-8")
    return Record(url, caption, None)  # type: ignore[arg-type]  # checked just above


def column_names(uri: str) -> list[str]:
    """The names of a table's columns, in its order. Raises InputError where the file does not tell."""
    kind = suffix_of(uri)
    if kind == ".parquet":
        with open_parquet(uri) as parquet:
            return list(parquet.schema_arrow.names)
    with _opened(uri, kind) as stream, corrupt_is_input_error(uri):
        if kind not in (".json", ".jsonl"):
            return header(stream, uri, kind or "")
        texts = array_elements(stream, uri) if kind == ".json" else lines(stream)
        peeked = (json_object(text) for text in itertools.islice(texts, _PEEK_ROWS))
        names = list(dict.fromkeys(key for found in peeked if isinstance(found, dict) for key in found))
    if not names:
        what = "elements" if kind == ".json" else "lines"
        raise InputError(f"{uri}: none of the first {what} is a JSON object; check the format")
    return names


def may_lack_header(uri: str) -> bool:
    """Whether the file is of a format whose first line may already be data (csv, tsv)."""
    return suffix_of(uri) in (".csv", ".tsv")


def check_types(uri: str, chosen: Columns) -> None:
    """Raise InputError when a chosen column of a parquet file holds no text; other formats have nothing else."""
    if suffix_of(uri) != ".parquet":
        return
    with open_parquet(uri) as parquet:
        for name in chosen:
            if name is not None and not is_text(kept := parquet.schema_arrow.field(name).type):
                raise InputError(f"{uri}: column {name!r} holds {kept}, not text; name another column")


def records(uri: str, chosen: Columns, names: list[str], rows: range | None = None) -> Iterator[Record]:
    """Every record of a file, or those numbered by `rows`, which need not all be there.

    Of a parquet file only the rows asked for become records; a text file is parsed from its beginning. `names` are the columns of a
    csv or tsv file that has no header line; empty: it has one.
    """
    if suffix_of(uri) == ".parquet":
        yield from parquet_records(uri, chosen, rows)
    elif rows is None:
        yield from _text_records(uri, chosen, names)
    else:
        yield from itertools.islice(_text_records(uri, chosen, names), rows.start, rows.stop)


def _text_records(uri: str, chosen: Columns, names: list[str]) -> Iterator[Record]:
    kind = suffix_of(uri)
    with _opened(uri, kind) as stream, corrupt_is_input_error(uri):
        if kind == ".csv":
            yield from csv_records(stream, names or header(stream, uri, kind), chosen)
        elif kind == ".tsv":
            yield from tsv_records(stream, names or header(stream, uri, kind), chosen)
        elif kind in (".json", ".jsonl"):
            texts = array_elements(stream, uri) if kind == ".json" else lines(stream)
            yield from (json_record(text, chosen) for text in texts)
        else:
            yield from (_TOO_LONG if line is None else checked(line.strip(), None) for line in lines(stream))


# ---- text formats


def _opened(uri: str, kind: str | None) -> TextFile:
    return open_text(uri, line_end(uri, quoted=kind == ".csv") if kind in (".csv", ".tsv") else "\n")


_TOO_LONG = Record(None, None, f"the line or element is longer than {MAX_PIECE:,} characters")


def header(stream: TextFile, uri: str, kind: str) -> list[str]:
    """The names in the first line that is not blank."""
    try:
        if kind == ".csv":
            names = next((row for row in csv.reader(_Lines(stream), strict=True) if row), None)
        else:
            line = next(lines(stream), None)
            names = None if line is None else [_unquoted(field) for field in line.split("\t")]
    except csv.Error as error:
        raise InputError(f"{uri}: its first line cannot be read ({error}); check the format") from None
    if names is None:
        raise InputError(f"{uri}: no header line; name the columns in the first line")
    return [name.strip() for name in names]


class _Lines:
    """Lines for `csv.reader`, which remembers those that it took for the record at hand, so that a bad one gives them back.

    Raises csv.Error where a record takes more lines or characters than a sane one has; that bounds the memory too.
    """

    def __init__(self, stream: TextFile) -> None:
        self._stream = stream
        self._again: collections.deque[str | None] = collections.deque()
        self._taken: list[str | None] = []
        self._characters = 0

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        if len(self._taken) == _MAX_RECORD_LINES or self._characters > MAX_PIECE:
            raise csv.Error(f"a quote is not closed within {_MAX_RECORD_LINES:,} lines")
        line = self._again.popleft() if self._again else bounded_line(self._stream)
        if line == "":
            raise StopIteration
        self._taken.append(line)
        if line is None:
            raise csv.Error(_TOO_LONG.problem)
        self._characters += len(line)
        return line

    def accept(self) -> None:
        """The lines taken were a record."""
        self._taken, self._characters = [], 0

    def give_back(self) -> None:
        """The first of the lines taken was bad; the others are read again."""
        self._again.extendleft(reversed(self._taken[1:]))
        self.accept()


def csv_records(stream: TextFile, names: list[str], chosen: Columns) -> Iterator[Record]:
    """The records of a csv file. Where a line does not parse, it alone is a bad row, and the next line starts a record.

    So a quote that is never closed costs one row, although the reader looks for its end through the lines after it, and up to
    _MAX_RECORD_LINES of them. (A stray quote that a later line happens to close by the grammar is taken for a field with
    line breaks.)
    """
    lines_taken = _Lines(stream)
    rows = csv.reader(lines_taken, strict=True)
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            lines_taken.give_back()
            yield Record(None, None, f"csv: {error}")
            continue
        if row is None:
            return
        lines_taken.accept()
        if row:
            yield _fields(row, names, chosen)


def tsv_records(stream: TextFile, names: list[str], chosen: Columns) -> Iterator[Record]:
    for line in lines(stream):
        yield _TOO_LONG if line is None else _fields([_unquoted(field) for field in line.split("\t")], names, chosen)


def _fields(row: list[str], names: list[str], chosen: Columns) -> Record:
    if len(row) != len(names):
        return Record(None, None, f"{len(row)} fields where the header has {len(names)}")
    return checked(row[names.index(chosen.url)], row[names.index(chosen.caption)] if chosen.caption else None)


def _unquoted(field: str) -> str:
    if len(field) >= 2 and field[0] == field[-1] == '"':
        inner = field[1:-1]
        if '"' not in inner.replace('""', ""):
            return inner.replace('""', '"')
    return field


def json_object(line: str | None) -> object:
    """The value of a line or of an array's element, or a sentence (str) about why there is none."""
    if line is None:
        return _TOO_LONG.problem
    try:
        found: object = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"json: {error}"
    return found if isinstance(found, dict) else "json: not an object"


def json_record(line: str | None, chosen: Columns) -> Record:
    found = json_object(line)
    if not isinstance(found, dict):
        return Record(None, None, str(found))
    return checked(found.get(chosen.url), found.get(chosen.caption or ""))


# ---- parquet


def open_parquet(uri: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(storage.open_input(uri))
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{uri}: not a parquet file ({_short(error)}); replace it or take it out") from None


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def parquet_rows(uri: str) -> int:
    """Rows of a parquet file, from its footer."""
    with open_parquet(uri) as parquet:
        return int(parquet.metadata.num_rows)


def parquet_records(uri: str, chosen: Columns, rows: range | None = None) -> Iterator[Record]:
    """Every record of a parquet file, or those numbered by `rows`.

    Row groups without such rows are not read. Of the others the batches are cut before they become Python objects, which take far longer
    than decoding the row group from its start: it may hold a hundred units.
    """
    with open_parquet(uri) as parquet:
        sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.metadata.num_row_groups)]
        starts = [0, *itertools.accumulate(sizes)]
        wanted = rows if rows is not None else range(starts[-1])
        groups = [
            group for group, start in enumerate(starts[:-1]) if start < wanted.stop and starts[group + 1] > wanted.start
        ]
        place = starts[groups[0]] if groups else 0
        names = [name for name in chosen if name is not None]
        try:
            for batch in parquet.iter_batches(BATCH_ROWS, row_groups=groups, columns=names):
                inside = range(max(wanted.start - place, 0), min(wanted.stop - place, batch.num_rows))
                if inside:
                    urls, captions = (_texts(batch[name].slice(inside.start, len(inside))) for name in names)
                    for url, caption in zip(urls, captions, strict=True):
                        yield checked(url, caption)
                place += batch.num_rows
                if place >= wanted.stop:
                    return
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{uri}: corrupt parquet file ({_short(error)}); replace it or take it out") from None


def _texts(column: pa.Array) -> list[str | None]:
    """The column's values; bytes that are not UTF-8 come out as surrogates, which `checked` reports."""
    plain = column.dictionary_decode() if isinstance(column, pa.DictionaryArray) else column
    raw: list[bytes | None] = plain.cast(pa.large_binary()).to_pylist()
    return [None if value is None else value.decode("utf-8", "surrogateescape") for value in raw]
