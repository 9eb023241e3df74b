"""Lists that operators write: one value a line of a text file (blank lines and lines that begin with # say nothing), or a Parquet
column."""

import re

import pyarrow as pa

from pipeline.contracts import parquet, storage
from pipeline.contracts.errors import InputError


def read(uri: str, column: str) -> list[tuple[int, str | bytes]]:
    """The values of a list with their line (or row) numbers, from 1. Text is stripped; a text list has at most 64 MiB.

    Raises InputError when the list is not there, holds nothing, or is a Parquet file without that column as text or bytes.
    """
    values = _column(uri, column) if uri.lower().endswith(".parquet") else _lines(uri)
    found = [(number, value) for number, value in enumerate(values, 1) if value]
    if not found:
        raise InputError(f"{uri}: nothing in the list; give one value a line")
    return found


def _lines(uri: str) -> list[str | bytes | None]:
    if (size := storage.size(uri)) > storage.MOST_TEXT_BYTES:
        raise InputError(
            f"{uri}: {size:,} bytes, more than the {storage.MOST_TEXT_BYTES:,} of a text list; give it as Parquet"
        )
    lines = (line.strip() for line in storage.read_text(uri).splitlines())
    return [None if line.startswith("#") else line for line in lines]


def _column(uri: str, column: str) -> list[str | bytes | None]:
    with parquet.open_file(uri) as source:
        schema = source.schema_arrow
    if len(schema.get_all_field_indices(column)) != 1:
        raise InputError(f"{uri}: no column {column!r}, or several; rename the column of the list")
    kind = schema.field(column).type
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not any(is_kind(inner) for is_kind in _TEXT_OR_BYTES):
        raise InputError(f"{uri}: column {column!r} holds {kind}; store it as strings, or hashes as bytes")
    try:
        values = parquet.read(uri, [column])[column].to_pylist()
    except UnicodeDecodeError:
        raise InputError(f"{uri}: column {column!r} holds text that is not UTF-8; convert the file") from None
    return [value.strip() if isinstance(value, str) else value for value in values]


_TEXT_OR_BYTES = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
    pa.types.is_fixed_size_binary,
    pa.types.is_null,
)


def hashes(uri: str, column: str, width: int) -> pa.Array:
    """The distinct hashes of a list, sorted, as binary(width): hexadecimal text (what follows white space or a comma is left aside),
    or bytes in Parquet. Raises InputError for what is no hash of that width, with its line."""
    found = {_hash(uri, number, value, width) for number, value in read(uri, column)}
    return pa.array(sorted(found), pa.binary(width))


def _hash(uri: str, number: int, value: str | bytes, width: int) -> bytes:
    word = value if isinstance(value, bytes) else re.split(r"[\s,]", value, maxsplit=1)[0]
    try:
        raw = word if isinstance(word, bytes) else bytes.fromhex(word)
    except ValueError:
        raw = b""
    if len(raw) != width:
        raise InputError(
            f"{uri}: line {number}: {word!r} is no hash of {2 * width} hexadecimal digits; mend or remove it"
        )
    return raw


def texts(uri: str, column: str) -> list[tuple[int, str]]:
    """The values of a list of texts. Raises InputError for bytes that are no UTF-8."""
    found = []
    for number, value in read(uri, column):
        if isinstance(value, bytes):
            raise InputError(f"{uri}: row {number}: {value!r} is not text; store the column {column!r} as strings")
        found.append((number, value))
    return found
