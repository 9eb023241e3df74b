"""Which queries a caption matches: the filter that makes a web crawl a corpus.

Captions and queries are brought to the same normal form (`pipeline.content.text.normal_form`), so that case, punctuation and
Unicode variants do not decide, and every query matches itself. A query matches where it stands in a caption as a whole: its
ends must be word ends. In scripts that write no spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan) every
character end is a word end, so a query matches as a substring.

How. The normal form is cut into tokens: a word, or one character of such a script. A dictionary leads from a first token to
the lengths (in tokens) of the queries that start with it, and a second one from a query's text to its indices. Each caption
position therefore costs one lookup plus one per possible length, however many queries there are, and all overlapping matches
are found. A caption that is repeated is matched once.
"""

import hashlib
import logging
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.content.text import normal_form
from pipeline.contracts import storage
from pipeline.contracts.errors import InputError
from pipeline.contracts.schema import length_prefixed

MAX_QUERIES = 500_000
QUERY_COLUMNS = ("query", "text")

# Han with its extensions, Kana, Bopomofo, Thai, Lao, Tibetan, Burmese, Khmer.
_SPACELESS = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u19e0-\u19ff\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3031-\u3035\u303b"
    "\u3040-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua9e0-\ua9ff\uaa60-\uaa7f\uf900-\ufaff"
    "\uff66-\uff9f\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
_CUT = re.compile(f"[{_SPACELESS}]")
_TOKEN = re.compile(f"[{_SPACELESS}]|[^\\s{_SPACELESS}]+")

logger = logging.getLogger(__name__)


class QueryList(NamedTuple):
    """The queries as written, and the SHA-256 of the list (64 hex digits; query order counts)."""

    queries: list[str]
    digest: str


def load_queries(path: str) -> QueryList:
    """Read a query list: txt (one a line) or parquet (column `query` or `text`).

    Queries of which nothing is left in normal form, and repetitions of an earlier query's normal form (they would share its
    pairs but double its cap) are left out and counted in the log. Blank lines are no queries: left out, not counted. Raises
    InputError for an unreadable or empty list and for more than 500,000 queries.
    """
    written = _read_parquet(path) if path.lower().endswith(".parquet") else storage.read_text(path).split("\n")
    kept: dict[str, str] = {}
    unlettered = repeated = 0
    for query in written:
        text = normal_form(query)
        if not query.strip():
            continue
        if not text:
            unlettered += 1
        elif text in kept:
            repeated += 1
        else:
            kept[text] = query.strip()
    if not kept:
        raise InputError(f"{path}: no query in the list; give one query a line")
    if len(kept) > MAX_QUERIES:
        raise InputError(f"{path}: {len(kept):,} queries, more than {MAX_QUERIES:,}; shorten the list")
    if unlettered or repeated:
        logger.info("%s: %d queries; left out %d without letters, %d repeated", path, len(kept), unlettered, repeated)
    queries = list(kept.values())
    digest = hashlib.sha256(length_prefixed(query.encode() for query in queries)).hexdigest()
    return QueryList(queries, digest)


def _read_parquet(path: str) -> list[str]:
    try:
        parquet = pq.ParquetFile(storage.open_input(path))
        name = next((name for name in QUERY_COLUMNS if name in parquet.schema_arrow.names), None)
        if name is None:
            raise InputError(f"{path}: no column {' or '.join(map(repr, QUERY_COLUMNS))}; rename the queries' column")
        column = parquet.read(columns=[name])[name].cast(pa.string())
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a parquet file of queries ({' '.join(str(error).split())[:200]})") from None
    return [query for query in column.to_pylist() if query is not None]


class Matcher:
    """All queries of a list that a caption contains. Immutable after construction; build it once per process.

    `queries` are in the order that the returned indices refer to. Queries that have the same normal form all match; one whose
    normal form is empty matches nothing (`load_queries` leaves both out).
    """

    def __init__(self, queries: Sequence[str], mode: Literal["normalised"] = "normalised") -> None:
        if mode != "normalised":
            raise InputError(f"filter.mode: {mode!r} is unknown; use 'normalised'")
        indices: dict[str, list[int]] = {}
        lengths: dict[str, set[int]] = {}
        for index, query in enumerate(queries):
            text = normal_form(query)
            tokens = _TOKEN.findall(text)
            if tokens:
                indices.setdefault(text, []).append(index)
                lengths.setdefault(tokens[0], set()).add(len(tokens))
        self._indices = {text: tuple(found) for text, found in indices.items()}
        self._lengths = {token: tuple(sorted(found)) for token, found in lengths.items()}

    def match(self, captions: pa.Array | pa.ChunkedArray) -> pa.Array:
        """For each caption (string array of length n) the sorted indices of its queries: list<int32> of length n. Null: an
        empty list."""
        coded = pc.dictionary_encode(captions, null_encoding="encode")
        coded = coded.combine_chunks() if isinstance(coded, pa.ChunkedArray) else coded
        found = [[] if text is None else self.match_one(text) for text in coded.dictionary.to_pylist()]
        return pa.array(found, pa.list_(pa.int32())).take(coded.indices)

    def match_one(self, caption: str) -> list[int]:
        """Sorted indices of the queries in one caption."""
        text = normal_form(caption)
        if not text.isascii() and _CUT.search(text):
            return self._match_cut(text)
        # Words and spaces only: as below, but cheaper. Most captions of the web come here.
        lengths_of, indices_of = self._lengths, self._indices
        found: set[int] = set()
        words = text.split(" ")
        last = len(words)
        for place, word in enumerate(words):
            for length in lengths_of.get(word, ()):
                if length == 1:
                    found.update(indices_of[word])
                elif place + length > last:
                    break
                elif indices := indices_of.get(" ".join(words[place : place + length])):
                    found.update(indices)
        return sorted(found)

    def _match_cut(self, text: str) -> list[int]:
        """The indices for a normal form in which some characters are tokens of their own."""
        found: set[int] = set()
        spans = [match.span() for match in _TOKEN.finditer(text)]
        for place, (start, end) in enumerate(spans):
            for length in self._lengths.get(text[start:end], ()):
                if place + length > len(spans):
                    break
                found.update(self._indices.get(text[start : spans[place + length - 1][1]], ()))
        return sorted(found)
