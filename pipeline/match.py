"""Which queries a caption matches: the filter that makes a web crawl a corpus.

Mode `normalised` (the default): captions and queries are brought to the same normal form (`pipeline.content.text.normal_form`), so that
case, punctuation and Unicode variants do not decide, and every query matches itself. A query matches where it stands in a caption as a
whole: its ends must be word ends. In scripts that write no spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan) every
character end is a word end, so a query matches as a substring.

Mode `metaclip`: the published semantics of MetaCLIP (arXiv 2309.16671; facebookresearch/MetaCLIP, metaclip/substr_matching.py): a space
around the caption and around each of , . ; : ? ! ` in it, tabs and line ends become spaces, and an entry matches where it stands between
two spaces. Case counts, `(dog)` does not match "dog", and an entry with one of those marks inside a word matches nothing.

Either way every overlapping match is found, and the answer is a set of indices into the list.

How. The prepared text is cut into tokens: what stands between two spaces, and in mode `normalised` one character of a script without
spaces. A hash of every prefix of the text gives the hash of any run of tokens in one multiplication. One table leads from a token to the
lengths (in tokens) of the queries that begin with it, another from the hash of a query to the query, whose bytes are then compared. So
a position in a caption costs one look-up and one more for each possible length, however many queries there are. Nearly every look-up
misses the cache, so a block of captions goes through the look-ups together, one kind at a time: the processor then waits for ten of
them at once (measured: twice as fast as caption by caption).

The tables are plain arrays: Ray puts them into a node's shared memory once, and every task there reads the same ones.
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

from pipeline.content.forms import normal_forms
from pipeline.content.kernels import Bytes, Text, code_point, compiled, text_buffers
from pipeline.content.scripts import spaceless_points
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
        self._tables = _build(pa.array(queries, pa.string()), mode)

    def match(self, captions: pa.Array | pa.ChunkedArray) -> pa.Array:
        """For each caption (string array of length n) the sorted indices of its queries: list<int32> of length n. Null: an
        empty list."""
        parts = [self._match(captions.slice(start, _BATCH)) for start in range(0, max(1, len(captions)), _BATCH)]
        return pa.concat_arrays(parts)

    def match_one(self, caption: str) -> list[int]:
        """Sorted indices of the queries in one caption."""
        found: list[int] = self.match(pa.array([caption], pa.string()))[0].as_py()
        return found

    def _match(self, captions: pa.Array | pa.ChunkedArray) -> pa.Array:
        text = _prepared(captions, self.mode)
        rows = len(text.starts) - 1
        found, starts = np.empty(4 * rows + 64, np.int32), np.zeros(rows + 1, np.int32)
        cut, row = self.mode == "normalised", 0
        while (row := _find(*text, *self._tables, spaceless_points(), cut, row, found, starts)[0]) < rows:
            found = np.concatenate([found, np.empty_like(found)])
        return pa.ListArray.from_arrays(pa.array(starts), pa.array(found[: starts[-1]]))


def _prepared(captions: pa.Array | pa.ChunkedArray, mode: Mode) -> Text:
    """Captions as the text that queries are looked for in, less the outer spaces of mode `metaclip`."""
    if mode == "normalised":
        return text_buffers(normal_forms(captions))
    return Text(*_spaced(*text_buffers(captions)))


# ---- the tables


class _Tables(NamedTuple):
    """Query texts and the ways to them. A text is a prepared query; queries that are prepared alike share one.

    Open addressing by a hash, 0 where a slot is empty:

    heads: by a first token, uint64 (slots, 4): its hash; the lengths of the texts in `phrases` that begin with it (bit n - 1: n tokens;
    bit 31: some of `long_lengths`); 1 + the text that is this token alone (0: none), and where that one begins in `texts`.
    phrases: by a text of several tokens, uint64 (slots, 2): its hash; its number in the high half, its place in `texts` in the low one. A
    text of one token is here too when the hash of its token is another one's.
    sieve: a bit for each hash of `phrases`, modulo its size: most look-ups end here, in a megabyte that stays in the cache.
    """

    texts: Bytes  # each ends with _END
    members: npt.NDArray[np.int32]  # query indices, by text
    member_starts: npt.NDArray[np.int64]
    heads: npt.NDArray[np.uint64]
    phrases: npt.NDArray[np.uint64]
    sieve: npt.NDArray[np.uint64]
    long_lengths: npt.NDArray[np.int64]  # lengths of 32 tokens and more
    powers: npt.NDArray[np.uint64]  # of the hash's base, up to the bytes of the longest text


def _build(queries: pa.Array, mode: Mode) -> _Tables:
    prepared = normal_forms(queries) if mode == "normalised" else queries
    coded = prepared.dictionary_encode()
    number = coded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    usable = np.ones(len(queries), np.bool_) if mode == "metaclip" else np.asarray(pc.not_equal(prepared, ""))
    members = np.flatnonzero(usable)
    members = members[np.argsort(number[members], kind="stable")]
    sizes_of = np.bincount(number[members], minlength=len(coded.dictionary))
    texts = Text(*_ended(*text_buffers(coded.dictionary)))
    longest = int(np.diff(texts.starts).max(initial=1)) - 1
    powers = np.full(longest + 1, _BASE, np.uint64)
    powers[0] = 1
    slots = 1 << max(4, (2 * len(sizes_of)).bit_length())
    heads, phrases = np.zeros((slots, 4), np.uint64), np.zeros((slots, 2), np.uint64)
    sieve, has_long = np.zeros(slots // 8, np.uint64), np.zeros(longest + 2, np.bool_)
    _fill(*texts, sizes_of > 0, spaceless_points(), mode == "normalised", heads, phrases, sieve, has_long)
    tables = _Tables(
        texts.data,
        members.astype(np.int32),
        np.concatenate([[0], np.cumsum(sizes_of)]).astype(np.int64),
        heads,
        phrases,
        sieve,
        np.flatnonzero(has_long),
        np.multiply.accumulate(powers),
    )
    for array in tables:
        array.setflags(write=False)  # as they are when they come back from Ray: one compiled loop for both
    return tables


# ---- kernels

_BASE = np.uint64(0x9E3779B97F4A7C15)  # of the polynomial hash; odd
_END = np.uint8(0xFF)  # behind each text: no byte of UTF-8
_BLOCK_BYTES = 8192


@compiled
def _mixed(value: np.uint64) -> np.uint64:
    """A bijection that spreads the hash over the low bits (the finalizer of MurmurHash3, A. Appleby, public domain); never 0."""
    value ^= value >> np.uint64(33)
    value *= np.uint64(0xFF51AFD7ED558CCD)
    value ^= value >> np.uint64(33)
    value *= np.uint64(0xC4CEB9FE1A85EC53)
    value ^= value >> np.uint64(33)
    return value if value else np.uint64(1)


@compiled
def _hash_prefixes(data: Bytes, start: int, end: int, prefixes: npt.NDArray[np.uint64]) -> None:
    """Polynomial hashes of `data[start:start + n]`, into `prefixes[n]`."""
    hashed = np.uint64(0)
    prefixes[0] = hashed
    for at in range(start, end):
        hashed = hashed * _BASE + np.uint64(data[at]) + np.uint64(1)
        prefixes[at - start + 1] = hashed


@compiled
def _tokens(
    data: Bytes,
    start: int,
    end: int,
    spaceless: npt.NDArray[np.bool_],
    cut: bool,
    tokens: npt.NDArray[np.int64],
    count: int,
) -> int:
    """Where the tokens of a text begin and end, into `tokens[count:, 2]`; returns the new count. Between two spaces is always a token."""
    begin, at = start, start
    after_cut = False  # the last token was one character, so that what follows it without a space begins another
    while at < end:
        byte = data[at]
        if byte == 32:
            if not after_cut:
                tokens[count, 0], tokens[count, 1] = begin, at
                count += 1
            at += 1
            begin, after_cut = at, False
        elif cut and byte >= 0xE0:
            point, length = code_point(data, at, end)
            if spaceless[point]:
                if at > begin:
                    tokens[count, 0], tokens[count, 1] = begin, at
                    count += 1
                tokens[count, 0], tokens[count, 1] = at, at + length
                count += 1
                begin = at + length
            after_cut = spaceless[point]
            at += length
        else:
            at += 1
            after_cut = False
    if not after_cut:
        tokens[count, 0], tokens[count, 1] = begin, end
        count += 1
    return count


@compiled
def _fill(
    texts: Bytes,
    starts: npt.NDArray[np.int64],
    used: npt.NDArray[np.bool_],
    spaceless: npt.NDArray[np.bool_],
    cut: bool,
    heads: npt.NDArray[np.uint64],
    phrases: npt.NDArray[np.uint64],
    sieve: npt.NDArray[np.uint64],
    has_long: npt.NDArray[np.bool_],
) -> None:
    """Enter every used text into the tables."""
    prefixes = np.empty(len(has_long), np.uint64)
    tokens = np.empty((len(has_long), 2), np.int64)
    last = np.uint64(len(heads) - 1)
    for text in range(len(starts) - 1):
        if not used[text]:
            continue
        start, end = starts[text], starts[text + 1] - 1
        _hash_prefixes(texts, start, end, prefixes)
        count = _tokens(texts, start, end, spaceless, cut, tokens, 0)
        head = _mixed(prefixes[tokens[0, 1] - start])
        slot = head & last
        while heads[slot, 0] != 0 and heads[slot, 0] != head:
            slot = (slot + np.uint64(1)) & last
        heads[slot, 0] = head
        if count == 1 and heads[slot, 2] == 0:
            heads[slot, 2], heads[slot, 3] = text + 1, start
            continue
        heads[slot, 1] |= np.uint64(1) << np.uint64(min(count, 32) - 1)
        has_long[count] |= count > 31
        whole = _mixed(prefixes[end - start])
        bit = whole & np.uint64(64 * len(sieve) - 1)
        sieve[bit >> np.uint64(6)] |= np.uint64(1) << (bit & np.uint64(63))
        slot = whole & last
        while phrases[slot, 0] != 0:
            slot = (slot + np.uint64(1)) & last
        phrases[slot, 0], phrases[slot, 1] = whole, np.uint64(text) << np.uint64(32) | np.uint64(start)


@compiled
def _is_text(texts: Bytes, place: int, data: Bytes, begin: int, size: int) -> bool:
    """Whether the text at `place` is the `size` bytes of `data` from `begin` on."""
    for at in range(size):
        if texts[place + at] != data[begin + at]:
            return False
    return bool(texts[place + size] == _END)


@compiled
def _find(
    data: Bytes,
    starts: npt.NDArray[np.int64],
    texts: Bytes,
    members: npt.NDArray[np.int32],
    member_starts: npt.NDArray[np.int64],
    heads: npt.NDArray[np.uint64],
    phrases: npt.NDArray[np.uint64],
    sieve: npt.NDArray[np.uint64],
    long_lengths: npt.NDArray[np.int64],
    powers: npt.NDArray[np.uint64],
    spaceless: npt.NDArray[np.bool_],
    cut: bool,
    row: int,
    out: npt.NDArray[np.int32],
    out_starts: npt.NDArray[np.int32],
) -> tuple[int, np.uint64]:
    """Write the query indices of rows `row`.. into `out`; returns the row that found no room, or the number of rows, and a number that
    means nothing (but were it not returned, the compiler would leave out the loads that it sums)."""
    last, sieve_last = np.uint64(len(heads) - 1), np.uint64(64 * len(sieve) - 1)
    bounds = np.empty(_BLOCK_BYTES + 1, np.int64)  # where the tokens, then the runs, of each row of the block begin
    runs = np.empty(
        (4 * _BLOCK_BYTES, 4), np.int64
    )  # runs of tokens that may be a text: begin, size, text (-1: in `phrases`), place
    hashes = np.empty(4 * _BLOCK_BYTES, np.uint64)
    found = np.empty(256, np.int32)
    touched = np.uint64(0)  # a sum over what is looked up next: its loads bring that into the cache, many at a time
    while row < len(starts) - 1:
        first, stop = row, row + 1
        while (
            stop < len(starts) - 1 and stop - first < _BLOCK_BYTES and starts[stop + 1] - starts[first] <= _BLOCK_BYTES
        ):
            stop += 1

        # Tokens, and the hashes of each.
        start, length = starts[first], starts[stop] - starts[first]
        prefixes = np.empty(length + 1, np.uint64)
        _hash_prefixes(data, start, start + length, prefixes)
        tokens = np.empty((length + stop - first, 2), np.int64)
        number = 0
        for place in range(stop - first):
            bounds[place] = number
            number = _tokens(data, starts[first + place], starts[first + place + 1], spaceless, cut, tokens, number)
        bounds[stop - first] = number
        token_hashes = np.empty(number, np.uint64)
        for token in range(number):
            begin, end = tokens[token, 0] - start, tokens[token, 1] - start
            token_hashes[token] = _mixed(prefixes[end] - prefixes[begin] * powers[min(end - begin, len(powers) - 1)])
            touched += heads[token_hashes[token] & last, 0]

        # Each token with the lengths of texts that begin with it: runs of tokens that may be one.
        count = 0
        for place in range(stop - first):
            begin_of_row, end_of_row = bounds[place], bounds[place + 1]
            bounds[place] = count
            for token in range(begin_of_row, end_of_row):
                begin, size = tokens[token, 0], tokens[token, 1] - tokens[token, 0]
                slot = token_hashes[token] & last
                while heads[slot, 0] != token_hashes[token] and heads[slot, 0] != 0:
                    slot = (slot + np.uint64(1)) & last
                if heads[slot, 0] == 0 or size >= len(powers):
                    continue
                if count + 32 + len(long_lengths) > len(runs):
                    runs = np.concatenate((runs, np.empty((len(runs) + len(long_lengths), 4), np.int64)))
                    hashes = np.concatenate((hashes, np.empty(len(runs) - len(hashes), np.uint64)))
                if heads[slot, 2] != 0:
                    runs[count, 0], runs[count, 1] = begin, size
                    runs[count, 2], runs[count, 3] = np.int64(heads[slot, 2]) - 1, heads[slot, 3]
                    touched += np.uint64(texts[runs[count, 3]])
                    count += 1
                lengths = heads[slot, 1]
                turn = 0
                while lengths != 0:
                    turn += 1
                    if turn < 32:
                        tried, wanted = turn, lengths & np.uint64(1)
                        lengths >>= np.uint64(1)
                        if wanted == 0:
                            continue
                    else:
                        if turn - 32 == len(long_lengths):
                            break
                        tried = long_lengths[turn - 32]
                    if token + tried > end_of_row:
                        break
                    size = tokens[token + tried - 1, 1] - begin
                    if size >= len(powers):
                        break
                    whole = _mixed(prefixes[begin + size - start] - prefixes[begin - start] * powers[size])
                    bit = whole & sieve_last
                    if (sieve[bit >> np.uint64(6)] >> (bit & np.uint64(63))) & np.uint64(1) != 0:
                        runs[count, 0], runs[count, 1], runs[count, 2] = begin, size, -1
                        hashes[count] = whole
                        count += 1
        bounds[stop - first] = count

        # Those of several tokens: from the hash to a text.
        for run in range(count):
            if runs[run, 2] < 0:
                touched += phrases[hashes[run] & last, 0]
        for run in range(count):
            if runs[run, 2] < 0:
                slot = hashes[run] & last
                while phrases[slot, 0] != hashes[run] and phrases[slot, 0] != 0:
                    slot = (slot + np.uint64(1)) & last
                runs[run, 3] = slot
                touched += np.uint64(texts[phrases[slot, 1] & np.uint64(0xFFFFFFFF)])

        # The bytes decide; then the queries of each row, sorted.
        for place in range(stop - first):
            if bounds[place + 1] - bounds[place] > len(found):
                found = np.empty(2 * (bounds[place + 1] - bounds[place]), np.int32)
            hits = 0
            for run in range(bounds[place], bounds[place + 1]):
                begin, size = runs[run, 0], runs[run, 1]
                if runs[run, 2] >= 0:
                    if _is_text(texts, runs[run, 3], data, begin, size):
                        found[hits] = runs[run, 2]
                        hits += 1
                    continue
                slot = np.uint64(runs[run, 3])
                while phrases[slot, 0] != 0:
                    text = phrases[slot, 1]
                    if phrases[slot, 0] == hashes[run] and _is_text(
                        texts, np.int64(text & np.uint64(0xFFFFFFFF)), data, begin, size
                    ):
                        found[hits] = text >> np.uint64(32)
                        hits += 1
                        break
                    slot = (slot + np.uint64(1)) & last
            hits = _sorted_distinct(found, hits)
            needed = 0
            for hit in range(hits):
                needed += member_starts[found[hit] + 1] - member_starts[found[hit]]
            filled = np.int64(out_starts[row])
            if filled + needed > len(out):
                return row, touched
            for hit in range(hits):
                for member in range(member_starts[found[hit]], member_starts[found[hit] + 1]):
                    out[filled] = members[member]
                    filled += 1
            if needed > hits:  # queries that share a text: their indices lie apart
                _sorted_distinct(out[out_starts[row] : filled], needed)
            row += 1
            out_starts[row] = filled
    return row, touched


@compiled
def _sorted_distinct(values: npt.NDArray[np.int32], count: int) -> int:
    """Sort `values[:count]` in place and move the distinct ones to the front; returns how many they are."""
    if count > 40:
        values[:count] = np.sort(values[:count])
    else:
        for place in range(1, count):
            value, at = values[place], place
            while at > 0 and values[at - 1] > value:
                values[at] = values[at - 1]
                at -= 1
            values[at] = value
    kept = 0
    for place in range(count):
        if place == 0 or values[place] != values[kept - 1]:
            values[kept] = values[place]
            kept += 1
    return kept


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


@compiled
def _ended(data: Bytes, starts: npt.NDArray[np.int64]) -> tuple[Bytes, npt.NDArray[np.int64]]:
    """Texts with _END behind each."""
    out = np.empty(starts[-1] - starts[0] + len(starts) - 1, np.uint8)
    out_starts = np.zeros_like(starts)
    at = 0
    for row in range(len(starts) - 1):
        for place in range(starts[row], starts[row + 1]):
            out[at] = data[place]
            at += 1
        out[at] = _END
        at += 1
        out_starts[row + 1] = at
    return out, out_starts
