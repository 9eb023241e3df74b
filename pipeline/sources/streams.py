"""Files as text, a bounded piece at a time: compression undone, lines of bounded length, the elements of one JSON array.

Nothing here reads ahead by more than a buffer, and nothing holds more than MAX_PIECE characters of a file, whatever the file claims: a
line or an element that is longer comes out as None and is skipped. So an archive that unpacks to terabytes costs time, not memory.

gzip is Python's own, Zstandard Arrow's; both read files of several members or frames, one after the other, as `cat` makes them, and both
notice one that was cut off.
"""

import contextlib
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa

from pipeline.contracts import storage
from pipeline.contracts.errors import InputError

COMPRESSIONS = (".gz", ".zst")
MAX_PIECE = 1 << 20
"""Characters of a line or of an array's element; a longer one is one bad row, not a full memory."""

_CHUNK = 1 << 16
_OUTSIDE = re.compile(r'["{}\[\],]')  # where the nesting of JSON can change
_QUOTED = re.compile(r'"[^"]*+(?:"|\Z)')
_LINE_END = re.compile(r"\r?\n|\r(?=.)", re.DOTALL)
_INSIDE = re.compile(r'["\\]')  # where a string of JSON can end


def without_compression(name: str) -> str:
    """The name without its `.gz` or `.zst`, in lower case."""
    lower = name.lower()
    return next((lower.removesuffix(suffix) for suffix in COMPRESSIONS if lower.endswith(suffix)), lower)


class TextFile(io.TextIOWrapper):
    """Text whose lines end with `end`: "\\n", so that they may end with "\\r\\n" too, or "\\r"."""

    def __init__(self, binary: BinaryIO | gzip.GzipFile, end: str) -> None:
        # With a line end that is given, all others stay as they are: inside csv fields they are text.
        super().__init__(binary, encoding="utf-8-sig", errors="surrogateescape", newline=end)
        self.end = end


def open_text(uri: str, end: str = "\n") -> TextFile:
    """A file as text: decompressed by its suffix, UTF-8 with bytes that are none as surrogates, line ends as they are."""
    raw = storage.open_input(uri)
    lower = uri.lower()
    binary = (
        gzip.GzipFile(fileobj=raw, mode="rb")
        if lower.endswith(".gz")
        else pa.CompressedInputStream(raw, "zstd")
        if lower.endswith(".zst")
        else raw
    )
    return TextFile(binary, end)


def line_end(uri: str, quoted: bool) -> str:
    """What ends the lines of a file: "\\r" where most of its first lines end with that alone, as some spreadsheets write them, else "\\n".

    With `quoted`, line ends in double quotes do not count.
    """
    with open_text(uri) as stream, corrupt_is_input_error(uri):
        start = stream.read(_CHUNK)
    ends = _LINE_END.findall(_QUOTED.sub("", start) if quoted else start)
    return "\r" if 2 * ends.count("\r") > len(ends) else "\n"


@contextlib.contextmanager
def corrupt_is_input_error(uri: str) -> Iterator[None]:
    """What the decompressors raise inside, as one sentence for the user."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{uri}: corrupt gzip file ({error}); replace it or take it out") from None
    except OSError as error:  # Arrow's decompressor has no class of its own
        if not uri.lower().endswith(".zst") or "compress" not in str(error).lower():
            raise
        said = " ".join(str(error).split())[:200]
        raise InputError(f"{uri}: corrupt zstd file ({said}); replace it or take it out") from None


def lines(stream: TextFile) -> Iterator[str | None]:
    """Lines that are not blank, without their ends; None stands for one that is too long."""
    while (line := bounded_line(stream)) != "":
        if line is None:
            yield None
        elif not line.isspace():
            yield line.rstrip("\r\n")


def bounded_line(stream: TextFile) -> str | None:
    """The next line with its end; empty at the end of the file; None for one that is too long, which is skipped."""
    line = stream.readline(MAX_PIECE)
    if len(line) < MAX_PIECE or line.endswith(stream.end):
        return line
    while (rest := stream.readline(MAX_PIECE)) and not rest.endswith(stream.end):
        pass
    return None


def array_elements(stream: io.TextIOWrapper, uri: str) -> Iterator[str | None]:
    """The texts of the elements of one JSON array (RFC 8259), unparsed; None stands for one that is too long.

    Only brackets, commas and quotes are looked at, so that an element that is no JSON costs nothing but itself. Raises InputError where
    the file is no array, is not closed, or goes on behind its end.
    """
    if _first_character(stream) != "[":
        raise InputError(f"{uri}: not a JSON array; write one array of objects, or one object a line (.jsonl)")
    depth, in_string, escaped = 0, False, False
    pieces: list[str] = []
    held = 0
    seen = False  # whether an element or a comma came before
    while chunk := stream.read(_CHUNK):
        start = place = 0
        while place < len(chunk):
            if escaped:
                escaped, place = False, place + 1
                continue
            found = (_INSIDE if in_string else _OUTSIDE).search(chunk, place)
            if found is None:
                break
            sign, place = found[0], found.end()
            if sign == "\\":
                escaped = True
            elif sign == '"':
                in_string = not in_string
            elif sign in "{[":
                depth += 1
            elif depth:
                depth -= sign in "}]"
            elif sign != "}":  # a comma between elements, or the end of the array
                text = _element(pieces, held, chunk[start : found.start()])
                if sign == "," or seen or text is None or text:
                    yield text
                pieces, held, start, seen = [], 0, place, True
                if sign == "]":
                    if chunk[place:].strip() or _first_character(stream):
                        raise InputError(f"{uri}: something follows its JSON array; write one array of objects")
                    return
        rest = chunk[start:]
        held += len(rest)
        pieces = [*pieces, rest] if held <= MAX_PIECE else []
    raise InputError(f"{uri}: its JSON array is not closed; the file was cut off: write it again")


def _element(pieces: list[str], held: int, rest: str) -> str | None:
    if held + len(rest) > MAX_PIECE:
        return None
    return "".join([*pieces, rest]).strip()


def _first_character(stream: io.TextIOWrapper) -> str:
    """The next character that is not white space, or the empty string at the end."""
    while (sign := stream.read(1)).isspace():
        pass
    return sign
