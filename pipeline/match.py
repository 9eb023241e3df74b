"""Which queries a caption matches: the filter that makes a web crawl a corpus.

Mode `normalised` (the default): captions and queries are brought to the same normal form (`pipeline.content.text.normal_form`), so that
case, punctuation and Unicode variants do not decide, and every query matches itself. A query matches where it stands in a caption as a
whole: its ends must be word ends. In scripts that write no spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan) every
character end is a word end, so a query matches as a substring.

Mode `metaclip`: the published semantics of MetaCLIP (arXiv 2309.16671; facebookresearch/MetaCLIP, metaclip/substr_matching.py): a space
around the caption and around each of , . ; : ? ! ` in it, tabs and line ends become spaces, and an entry matches where it stands between
two spaces. Case counts, `(dog)` does not match "dog", and an entry with one of those marks inside a word matches nothing.

Either way every overlapping match is found, and the answer is a set of indices into the list.

How they are found is told in `pipeline/content/phrases.py`. Its tables are plain arrays: Ray puts them into a node's shared memory once,
and every task there reads the same ones.
"""

import hashlib
import logging
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.content import phrases
from pipeline.content.forms import normal_forms
from pipeline.content.kernels import Bytes, Text, compiled, text_buffers
from pipeline.content.text import normal_form
from pipeline.contracts import storage
from pipeline.contracts.errors import InputError
from pipeline.contracts.schema import length_prefixed

MAX_QUERIES = 500_000
QUERY_COLUMNS = ("query", "text")

Mode = Literal["normalised", "metaclip"]

_BATCH = 1 << 14  # captions whose prepared text is held at once

logger = logging.getLogger(__name__)


class QueryList(NamedTuple):
    """The queries as written, and the SHA-256 of the list (64 hex digits; query order counts)."""

    queries: list[str]
    digest: str


def load_queries(path: str, mode: Mode = "normalised") -> QueryList:
    """Read a query list: txt (one a line) or parquet (column `query` or `text`).

    Queries of which nothing is left when prepared for `mode`, and repetitions of an earlier query's prepared form (they would share its
    pairs but double its cap) are left out and counted in the log. Blank lines are no queries: left out, not counted. Raises
    InputError for an unreadable or empty list and for more than 500,000 queries.
    """
    written = _read_parquet(path) if path.lower().endswith(".parquet") else storage.read_text(path).split("\n")
    kept: dict[str, str] = {}
    unlettered = repeated = 0
    for query in written:
        text = query.strip() if mode == "metaclip" else normal_form(query)
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
    """All queries of a list that a caption contains. Immutable; pickles without copies (arrays only), so that a node needs it once.

    `queries` are in the order that the returned indices refer to. Queries that are prepared to the same text all match; one of which
    nothing is left matches nothing (`load_queries` leaves both out).
    Raises InputError for an unknown mode.
    """

    def __init__(self, queries: Sequence[str], mode: Mode = "normalised") -> None:
        if mode not in ("normalised", "metaclip"):
            raise InputError(f"filter.mode: {mode!r} is unknown; use 'normalised' or 'metaclip'")
        self.mode = mode
        written = pa.array(queries, pa.string())
        prepared = normal_forms(written) if mode == "normalised" else written
        usable = np.asarray(pc.not_equal(prepared, "")) if mode == "normalised" else np.ones(len(queries), np.bool_)
        self._phrases = phrases.build(prepared, usable, cut=mode == "normalised")

    def match(self, captions: pa.Array | pa.ChunkedArray) -> pa.Array:
        """For each caption (string array of length n) the sorted indices of its queries: list<int32> of length n. Null: an
        empty list."""
        batches = (captions.slice(start, _BATCH) for start in range(0, max(1, len(captions)), _BATCH))
        return pa.concat_arrays([self._match_batch(batch) for batch in batches])

    def _match_batch(self, captions: pa.Array | pa.ChunkedArray) -> pa.Array:
        array = captions.combine_chunks() if isinstance(captions, pa.ChunkedArray) else captions
        found = phrases.find(_prepared(array, self.mode), self._phrases, cut=self.mode == "normalised")
        # As text a null is empty, and an empty query of mode `metaclip` stands in that.
        return pc.if_else(array.is_valid(), found, pa.scalar([], found.type)) if array.null_count else found

    def match_one(self, caption: str) -> list[int]:
        """Sorted indices of the queries in one caption."""
        found: list[int] = self.match(pa.array([caption], pa.string()))[0].as_py()
        return found


def _prepared(captions: pa.Array | pa.ChunkedArray, mode: Mode) -> Text:
    """Captions as the text that queries are looked for in, less the outer spaces of mode `metaclip`."""
    if mode == "normalised":
        return text_buffers(normal_forms(captions))
    return Text(*_spaced(*text_buffers(captions)))


@compiled
def _spaced(data: Bytes, starts: npt.NDArray[np.int64]) -> tuple[Bytes, npt.NDArray[np.int64]]:
    """MetaCLIP's spacing of captions, less the space at either end."""
    out = np.empty(3 * (starts[-1] - starts[0]), np.uint8)
    out_starts = np.zeros_like(starts)
    at = 0
    for row in range(len(starts) - 1):
        for place in range(starts[row], starts[row + 1]):
            byte = data[place]
            if byte == 44 or byte == 46 or byte == 58 or byte == 59 or byte == 63 or byte == 33 or byte == 96:
                out[at], out[at + 1], out[at + 2] = 32, byte, 32
                at += 3
            else:
                out[at] = 32 if byte == 9 or byte == 10 or byte == 13 else byte
                at += 1
        out_starts[row + 1] = at
    return out[:at], out_starts
