"""Which corpus rows show a picture of an evaluation set: one shard's index against all sets, as a pure function.

The evaluation side is held as codes (`EvalCodes`: hashes only, about 150 bytes a picture), of which each worker makes its search tables
once. The corpus side arrives as an index table: every column of a shard but the picture, so that a join never opens an image. Four ways
to match, and all of them are recorded for every pair:

- `source_sha256`: the bytes as they were fetched equal the evaluation file, bit for bit;
- `image_sha256`: the bytes as they are stored in the corpus do;
- `pdq`, `phash`: the perceptual hashes differ in at most a threshold of bits. Both sides must have enough texture (PDQ's quality), because
  all flat pictures hash alike, and a pHash match (64 bits only) counts only where PDQ does not contradict it;
- `descriptor`: the learned descriptor's score reaches a threshold, where there is a descriptor and one is set. It asks for texture too.

The same shard, codes and thresholds give the same table; nothing here knows of Ray.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from evaluation.config import Thresholds
from evaluation.descriptor.search import Float64s
from evaluation.overlap.index import HammingIndex
from evaluation.overlap.kept import first_of_each
from evaluation.overlap.likeness import Compared, Learned, compare, least_scores, likeness_of
from evaluation.overlap.tables import (
    CODE_SCHEMA,
    FOUND_SCHEMA,
    INDEX_COLUMNS,
    MATCHED_SCHEMA,
    METHODS,
    PAIR_SCHEMA,
)
from pipeline.content.hashes import hamming
from pipeline.contracts.errors import InputError
from pipeline.contracts.schema import INDEX_SCHEMA

FORMAT_VERSION = 5
"""Of PAIR_SCHEMA, FOUND_SCHEMA, MATCHED_SCHEMA, NEAREST_SCHEMA and of the rules; part of every unit's digest."""

_UNKNOWN = 1 << 30  # bits, where a hash is not known
_ROWS = 1 << 13  # of a shard that are compared at once: a placeholder is as many pairs as its rows times its examples
_HASHES = ("source_sha256", "image_sha256", "phash64", "pdq256", "pdq_quality")


class EvalCodes:
    """The evaluation side in memory: all sets one after the other, n pictures in total; cheap to hand to a worker.

    `names` are the sets, `tables` their CODE_SCHEMA rows in the same order. `set_number` int32[n], `sha256` uint8[n, 32], `pdq`
    uint8[n, 32], `quality` uint8[n], `phash` uint64[n]. Codes with the same hashes in the same order are equal: every task of a worker
    unpickles its own, and knows by that which tables the worker has already.
    """

    def __init__(self, names: Sequence[str], tables: Sequence[pa.Table]) -> None:
        self.names = list(names)
        self.table = pa.concat_tables([CODE_SCHEMA.empty_table(), *tables]).combine_chunks()
        sizes = [table.num_rows for table in tables]
        self.set_number: NDArray[np.int32] = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        self.sha256, _ = hash_column(self.table, "sha256")
        self.pdq, _ = hash_column(self.table, "pdq256")
        self.quality, _ = hash_column(self.table, "pdq_quality")
        self.phash, _ = hash_column(self.table, "phash64")
        self._digest = hashlib.sha256(
            b"".join(side.tobytes() for side in (self.sha256, self.pdq, self.quality, self.phash))
        ).digest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EvalCodes) and self._digest == other._digest

    def __hash__(self) -> int:
        return hash(self._digest)

    def of_set(self, number: int) -> pa.Table:
        """The CODE_SCHEMA rows of one set."""
        return self.table.filter(pa.array(self.set_number == number))


@dataclass(frozen=True)
class _Searches:
    """The tables that all shards are looked up in: `files` of all codes, `pdq` and `phash` of those at `places`, which have texture."""

    files: HammingIndex
    places: NDArray[np.int64]
    pdq: HammingIndex
    phash: HammingIndex


@functools.lru_cache(maxsize=1)
def _searches(codes: EvalCodes, quality: int) -> _Searches:
    """Made once in each worker process, whatever the number of its tasks."""
    places = np.flatnonzero(codes.quality >= quality)
    pdq, phash = HammingIndex(codes.pdq[places]), HammingIndex(_as_bytes(codes.phash[places]))
    return _Searches(HammingIndex(codes.sha256), places, pdq, phash)


@dataclass(frozen=True)
class _CorpusCodes:
    """One shard's hashes; zero where null. `fetched` and `stored` say where the digests are known, `known` where all of the others are."""

    source: NDArray[np.uint8]
    fetched: NDArray[np.bool_]
    image: NDArray[np.uint8]
    stored: NDArray[np.bool_]
    pdq: NDArray[np.uint8]
    quality: NDArray[np.uint8]
    phash: NDArray[np.uint64]
    known: NDArray[np.bool_]


def hash_column(table: pa.Table, name: str) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """A column of numbers as [n], of binary(w) as uint8[n, w], and where it is not null.

    Without nulls it is Arrow's own memory (that of one chunk: a table in several is put together first).
    """
    column = table[name].combine_chunks()
    binary = pa.types.is_fixed_size_binary(column.type)
    kind, width = (np.dtype(np.uint8), column.type.byte_width) if binary else (column.type.to_pandas_dtype(), 1)
    known = np.asarray(column.is_valid())
    data = column.buffers()[1]
    flat = np.frombuffer(data, kind) if data is not None else np.empty(0, kind)
    values = flat[column.offset * width : (column.offset + len(column)) * width]
    values = values.reshape(-1, width) if binary else values
    if column.null_count:  # what lies under a null is not said
        values = values.copy()
        values[~known] = 0
    return values, known


class Joined(NamedTuple):
    """All matches of one shard. `pairs`: PAIR_SCHEMA rows, the ones that are held; `found`: FOUND_SCHEMA, `matched`: MATCHED_SCHEMA rows of
    all, rows in the index's order; `corpus_rows`: how many rows each set has among these; `compared`: what the descriptor found."""

    pairs: pa.Table
    found: pa.Table
    matched: pa.Table
    corpus_rows: dict[str, int]
    compared: Compared | None


def join_shard(
    index: pa.Table,
    shard: str,
    codes: EvalCodes,
    thresholds: Sequence[Thresholds],
    learned: Learned | None = None,
    *,
    keep: int = 1 << 30,
    place: str = "the index",
) -> Joined:
    """All matches of one shard; pairs are ordered by set, evaluation row, index row, and those held are chosen by `kept`.

    `thresholds` has one entry per set, in the order of `codes.names`. Raises InputError when the index lacks a column or has hashes of
    another type than the corpus format.
    """
    _check_columns(index, place)
    corpus = _corpus_codes(index)
    file_row = np.asarray(index["row"], np.int64) if "row" in index.column_names else np.arange(index.num_rows)
    texture = np.where(corpus.known, corpus.quality.astype(np.int64), -1)
    compared = None if learned is None else compare(learned, texture, codes.set_number, thresholds)
    found, held, matched = _Found(len(codes.quality)), _Matches.none(), [np.empty(0, np.int64)]
    rows_of_sets = dict.fromkeys(codes.names, 0)
    for start in range(0, index.num_rows, _ROWS):
        some = _matches(corpus, codes, thresholds, learned, compared, slice(start, start + _ROWS))
        if not len(some.left):
            continue
        found.add(some)
        held = _best([held, some], file_row, keep)
        matched.append(np.unique(some.right))
        for name, count in corpus_rows(codes.names, codes.set_number[some.left], some.right).items():
            rows_of_sets[name] += count
    return Joined(
        _pair_table(index, shard, codes, corpus, held.take(np.lexsort((held.right, held.left)))),
        found.table(codes),
        matched_table(index, shard, np.concatenate(matched)),
        rows_of_sets,
        compared,
    )


class _Matches(NamedTuple):
    """Pairs that match: evaluation place and shard row, place in METHODS, what is exact, distances (_UNKNOWN: no hash), and what the
    descriptor says; arrays of one length."""

    left: NDArray[np.int64]
    right: NDArray[np.int64]
    method: NDArray[np.int64]
    source_exact: NDArray[np.bool_]
    stored_exact: NDArray[np.bool_]
    pdq: NDArray[np.int64]
    phash: NDArray[np.int64]
    cosine: Float64s
    score: Float64s
    view: NDArray[np.int64]

    @classmethod
    def none(cls) -> _Matches:
        whole, exact, learned = np.empty(0, np.int64), np.empty(0, np.bool_), np.empty(0)
        return cls(whole, whole, whole, exact, exact, whole, whole, learned, learned, whole)

    def take(self, places: NDArray[np.int64]) -> _Matches:
        return _Matches._make(column[places] for column in self)


def _matches(
    corpus: _CorpusCodes,
    codes: EvalCodes,
    thresholds: Sequence[Thresholds],
    learned: Learned | None,
    compared: Compared | None,
    rows: slice,
) -> _Matches:
    """All matches of some rows of a shard; `compared` is what the descriptor found in all of it."""
    left, right = _candidates(corpus, codes, thresholds, compared, rows)
    ours = codes.sha256[left]
    source_exact = corpus.fetched[right] & (ours == corpus.source[right]).all(axis=1)
    stored_exact = corpus.stored[right] & (ours == corpus.image[right]).all(axis=1)
    pdq = hamming(codes.pdq[left], corpus.pdq[right])
    phash = hamming(codes.phash[left], corpus.phash[right])
    per_set = codes.set_number[left]
    textured = corpus.known[right] & (
        np.minimum(codes.quality[left], corpus.quality[right]) >= _each("pdq_quality", thresholds)[per_set]
    )
    near = textured & (pdq <= _each("pdq_distance", thresholds)[per_set])
    alike = (
        textured
        & (phash <= _each("phash_distance", thresholds)[per_set])
        & (pdq <= _each("phash_pdq_distance", thresholds)[per_set])
    )
    likeness = likeness_of(learned, left, right)
    copied = textured & (likeness.score >= least_scores(thresholds)[per_set])
    method = np.select([source_exact, stored_exact, near, alike], [0, 1, 2, 3], 4)
    unknown = ~corpus.known[right]
    every = _Matches(
        left,
        right,
        method,
        source_exact,
        stored_exact,
        np.where(unknown, _UNKNOWN, pdq),
        np.where(unknown, _UNKNOWN, phash),
        *likeness,
    )
    return every.take(np.flatnonzero(source_exact | stored_exact | near | alike | copied))


def _best(parts: Sequence[_Matches], file_row: NDArray[np.int64], keep: int) -> _Matches:
    """What is held of them: as `kept` has it, the descriptor's own pairs by their score, all others by PDQ."""
    every = _Matches._make(np.concatenate(columns) for columns in zip(*parts, strict=True))
    distance = np.where(every.method == 4, -every.score, every.pdq)
    held = first_of_each([every.left, every.method], [distance, file_row[every.right]], keep)
    return every.take(np.flatnonzero(held))


class _Found:
    """What there is of each example, of all pairs that were ever added: their number, the least pHash distance (_UNKNOWN: none) and the
    largest score (nan: none)."""

    def __init__(self, examples: int) -> None:
        self.pairs = np.zeros(examples, np.int64)
        self.least = np.full(examples, _UNKNOWN, np.int64)
        self.largest = np.full(examples, np.nan)

    def add(self, some: _Matches) -> None:
        """`some` ascend by place, and are not none."""
        places, first, pairs = np.unique(some.left, return_index=True, return_counts=True)
        self.pairs[places] += pairs
        self.least[places] = np.minimum(self.least[places], np.minimum.reduceat(some.phash, first))
        self.largest[places] = np.fmax(self.largest[places], np.fmax.reduceat(some.score, first))

    def table(self, codes: EvalCodes) -> pa.Table:
        """FOUND_SCHEMA rows, ascending by place."""
        places = np.flatnonzero(self.pairs)
        least, largest = self.least[places], self.largest[places]
        return pa.table(
            {
                "set": pa.array([codes.names[number] for number in codes.set_number[places]], pa.string()),
                "eval_row": codes.table["eval_row"].take(pa.array(places)),
                "pairs": pa.array(self.pairs[places], pa.int64()),
                "phash_distance": pa.array(least, pa.int32(), mask=least == _UNKNOWN),
                "descriptor_score": pa.array(largest, pa.float64(), mask=np.isnan(largest)),
            },
            schema=FOUND_SCHEMA,
        )


def matched_table(index: pa.Table, shard: str, rows: NDArray[np.int64]) -> pa.Table:
    """MATCHED_SCHEMA of these rows of an index."""
    uids = index["uid"].take(pa.array(rows, pa.int64()))
    return pa.table([uids, pa.array([shard] * len(rows), pa.string()), pa.array(rows)], schema=MATCHED_SCHEMA)


def corpus_rows(names: Sequence[str], sets: NDArray[np.integer], rows: NDArray[np.int64]) -> dict[str, int]:
    """How many different rows each set has, from one entry a pair: the set's number and the row."""
    width = int(rows.max(initial=0)) + 1
    numbers = np.unique(sets.astype(np.int64) * width + rows) // width
    return dict(zip(names, np.bincount(numbers, minlength=len(names)).tolist(), strict=True))


def _check_columns(index: pa.Table, place: str) -> None:
    for name in INDEX_COLUMNS:
        if name not in index.column_names:
            raise InputError(f"{place}: column {name!r} is missing; rebuild the corpus with this program's format")
    for name in _HASHES:
        found, wanted = index.schema.field(name).type, INDEX_SCHEMA.field(name).type
        if found != wanted:
            raise InputError(
                f"{place}: column {name!r} is {found}, not {wanted}; rebuild the corpus with this program's format"
            )


def _each(name: str, thresholds: Sequence[Thresholds]) -> NDArray[np.int64]:
    return np.array([getattr(one, name) for one in thresholds], np.int64)


def _corpus_codes(index: pa.Table) -> _CorpusCodes:
    (source, fetched), (image, stored) = hash_column(index, "source_sha256"), hash_column(index, "image_sha256")
    (pdq, has_pdq), (quality, rated) = hash_column(index, "pdq256"), hash_column(index, "pdq_quality")
    phash, has_phash = hash_column(index, "phash64")
    return _CorpusCodes(source, fetched, image, stored, pdq, quality, phash, has_pdq & rated & has_phash)


def _as_bytes(codes: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """64-bit codes as HammingIndex takes them, uint8[n, 8]."""
    return np.ascontiguousarray(codes).view(np.uint8).reshape(-1, 8)


def _candidates(
    corpus: _CorpusCodes, codes: EvalCodes, thresholds: Sequence[Thresholds], compared: Compared | None, rows: slice
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Every pair of these rows that could match under the loosest thresholds, once: evaluation places and shard rows, sorted by both."""
    quality = int(_each("pdq_quality", thresholds).min())
    searches = _searches(codes, quality)
    everywhere = np.arange(len(codes.quality))
    fetched, stored = np.flatnonzero(corpus.fetched[rows]), np.flatnonzero(corpus.stored[rows])
    textured = np.flatnonzero(corpus.known[rows] & (corpus.quality[rows] >= quality))
    pdq_distance, phash_distance = (int(_each(f"{name}_distance", thresholds).max()) for name in ("pdq", "phash"))
    width = len(corpus.known[rows])
    keys: list[NDArray[np.int64]] = []
    for search, places, queries, asked, distance in (
        (searches.files, everywhere, corpus.source, fetched, 0),
        (searches.files, everywhere, corpus.image, stored, 0),
        (searches.pdq, searches.places, corpus.pdq, textured, pdq_distance),
        (searches.phash, searches.places, _as_bytes(corpus.phash), textured, phash_distance),
    ):
        row, place, _ = search.search(queries[rows][asked], distance)
        keys.append(places[place] * width + asked[row])
    if compared is not None:
        picture, query = compared.pairs.picture, compared.pairs.query
        inside = (query >= rows.start) & (query < rows.stop)
        keys.append(picture[inside] * width + query[inside] - rows.start)
    key = np.unique(np.concatenate(keys))
    return key // width, key % width + rows.start


def _pair_table(index: pa.Table, shard: str, codes: EvalCodes, corpus: _CorpusCodes, matches: _Matches) -> pa.Table:
    places, rows = matches.left, matches.right
    score = matches.score
    unseen = np.isnan(score)
    unknown = ~corpus.known[rows]  # a pair that only the exact bytes found
    ours = codes.table.take(pa.array(places))
    theirs = index.select([name for name in INDEX_COLUMNS if name != "uid"]).take(pa.array(rows))
    return pa.table(
        {
            "set": pa.array([codes.names[number] for number in codes.set_number[places]], pa.string()),
            "eval_row": ours["eval_row"],
            "eval_id": ours["eval_id"],
            "eval_sha256": ours["sha256"],
            "uid": index["uid"].take(pa.array(rows)),
            "shard": pa.array([shard] * len(rows), pa.string()),
            "row": pa.array(rows, pa.int64()),
            "url": theirs["url"],
            "caption": theirs["caption"],
            "method": pa.array([METHODS[number] for number in matches.method], pa.string()),
            "source_exact": pa.array(matches.source_exact, pa.bool_()),
            "stored_exact": pa.array(matches.stored_exact, pa.bool_()),
            "pdq_distance": pa.array(matches.pdq, pa.int32(), mask=unknown),
            "phash_distance": pa.array(matches.phash, pa.int32(), mask=unknown),
            "descriptor_cosine": pa.array(matches.cosine, pa.float64(), mask=unseen),
            "descriptor_score": pa.array(score, pa.float64(), mask=unseen),
            "descriptor_view": pa.array(matches.view, pa.int64(), mask=unseen),
            "source_sha256": theirs["source_sha256"],
            "image_sha256": theirs["image_sha256"],
            "pdq256": theirs["pdq256"],
            "phash64": theirs["phash64"],
            "pdq_quality": theirs["pdq_quality"],
        },
        schema=PAIR_SCHEMA,
    )
