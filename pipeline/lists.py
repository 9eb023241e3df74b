"""Lists that operators write: one value a line of a text file (blank lines and lines that start with # say nothing), or a Parquet
column."""

import re

import pyarrow as pa

from pipeline.contracts import parquet, storage
from pipeline.contracts.errors import InputError


def read(uri: str, column: str) -> list[tuple[int, str | bytes]]:
    """The values of a list with their line (or row) numbers, from 1. Text is stripped; a text list has at most 64 MiB.

    Raises InputError when the list is not there, holds nothing, or is a Parquet file without that column.
    """
    values: list[str | bytes | None]
    if uri.lower().endswith(".parquet"):
        table = parquet.read(uri)
        if column not in table.column_names:
            raise InputError(f"{uri}: no column {column!r}; rename the column of the list")
        values = table[column].to_pylist()
    else:
        values = [None if line.startswith("#") else line for line in storage.read_text(uri).splitlines()]
    found = [
        (number, value.strip() if isinstance(value, str) else value) for number, value in enumerate(values, 1) if value
    ]
    found = [(number, value) for number, value in found if value]
    if not found:
        raise InputError(f"{uri}: nothing in the list; give one value a line")
    return found


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
