"""Which corpus rows show a picture of an evaluation set: one shard's index against all sets, as a pure function.

The evaluation side is held as codes (`EvalCodes`: hashes only, about 120 bytes a picture), the corpus side arrives as an index
table: every column of a shard but the picture, so that a join never opens an image. Three ways to match, and all of them are recorded
for every pair:

- `source_sha256`: the bytes as they were fetched equal the evaluation file, bit for bit;
- `image_sha256`: the bytes as they are stored in the corpus do;
- `pdq`, `phash`: the perceptual hashes differ in at most a threshold of bits. Both sides must have enough texture (PDQ's quality), because
  all flat pictures hash alike, and a pHash match (64 bits only) counts only where PDQ does not contradict it.

The same shard, codes and thresholds give the same table; nothing here knows of Ray.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from evaluation.config import Thresholds
from evaluation.overlap.index import HammingIndex
from evaluation.overlap.tables import CODE_SCHEMA, INDEX_COLUMNS, METHODS, PAIR_SCHEMA
from pipeline.content.hashes import as_codes, hamming
from pipeline.contracts.errors import InputError

FORMAT_VERSION = 2  # of PAIR_SCHEMA, NEAREST_SCHEMA and of the matching rule; part of every unit's digest


class EvalCodes:
    """The evaluation side in memory: all sets one after the other, n pictures in total; cheap to hand to a worker.

    `names` are the sets, `tables` their CODE_SCHEMA rows in the same order. `set_number` int32[n], `pdq` uint8[n, 32], `quality`
    uint8[n], `phash` uint64[n] are views.
    """

    def __init__(self, names: Sequence[str], tables: Sequence[pa.Table]) -> None:
        self.names = list(names)
        self.table = pa.concat_tables([CODE_SCHEMA.empty_table(), *tables]).combine_chunks()
        sizes = [table.num_rows for table in tables]
        self.set_number: NDArray[np.int32] = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        self.pdq = _codes(self.table["pdq256"])
        self.quality = np.asarray(self.table["pdq_quality"], np.uint8)
        self.phash = np.asarray(self.table["phash64"], np.uint64)

    def of_set(self, number: int) -> pa.Table:
        """The CODE_SCHEMA rows of one set."""
        return self.table.filter(pa.array(self.set_number == number))


def _codes(column: pa.ChunkedArray) -> NDArray[np.uint8]:
    """binary(32) values, null as zero, as uint8[n, 32]."""
    return as_codes([code if code is not None else bytes(32) for code in column.to_pylist()])


@dataclass(frozen=True)
class _CorpusCodes:
    """One shard's hashes; where a hash is null, `known` is False and the code is zero."""

    pdq: NDArray[np.uint8]
    quality: NDArray[np.uint8]
    phash: NDArray[np.uint64]
    known: NDArray[np.bool_]


def join_shard(
    index: pa.Table, shard: str, codes: EvalCodes, thresholds: Sequence[Thresholds], *, place: str = "the index"
) -> pa.Table:
    """All matches of one shard: PAIR_SCHEMA rows ordered by set, evaluation row, shard row.

    `thresholds` has one entry per set, in the order of `codes.names`. Raises InputError when the index lacks a hash column.
    """
    absent = [column for column in INDEX_COLUMNS if column not in index.column_names]
    if absent:
        raise InputError(f"{place}: column {absent[0]!r} is missing; rebuild the corpus with this program's format")
    corpus = _corpus_codes(index)
    left, right = _candidates(index, corpus, codes, thresholds)
    ours = codes.table["sha256"].take(pa.array(left)).to_pylist()
    source_exact, stored_exact = (
        np.array(
            [our == their for our, their in zip(ours, column.take(pa.array(right)).to_pylist(), strict=True)], np.bool_
        )
        for column in (index["source_sha256"], index["image_sha256"])
    )
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
    kept = np.flatnonzero(source_exact | stored_exact | near | alike)
    method = np.select([source_exact, stored_exact, near], [0, 1, 2], 3)
    return _pair_table(index, shard, codes, corpus, left, right, kept, method, source_exact, stored_exact, pdq, phash)


def _each(name: str, thresholds: Sequence[Thresholds]) -> NDArray[np.int64]:
    return np.array([getattr(one, name) for one in thresholds], np.int64)


def _corpus_codes(index: pa.Table) -> _CorpusCodes:
    known = ~np.asarray(
        pc.or_(pc.is_null(index["pdq256"]), pc.or_(pc.is_null(index["phash64"]), pc.is_null(index["pdq_quality"])))
    )
    return _CorpusCodes(
        _codes(index["pdq256"]),
        np.asarray(pc.fill_null(index["pdq_quality"], 0), np.uint8),
        np.asarray(pc.fill_null(index["phash64"], 0), np.uint64),
        known,
    )


def _phash_bytes(codes: NDArray[np.uint64]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(codes).view(np.uint8).reshape(-1, 8)


def _candidates(
    index: pa.Table, corpus: _CorpusCodes, codes: EvalCodes, thresholds: Sequence[Thresholds]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Every pair that could match under the loosest thresholds, once: evaluation places and shard rows, sorted by both."""
    found = [pair for name in ("source_sha256", "image_sha256") for pair in _exact(index[name], codes.table["sha256"])]
    quality = int(_each("pdq_quality", thresholds).min())
    rows = np.flatnonzero(corpus.known & (corpus.quality >= quality))
    places = np.flatnonzero(codes.quality >= quality)
    searches = (
        (codes.pdq[places], corpus.pdq[rows], "pdq_distance"),
        (_phash_bytes(codes.phash[places]), _phash_bytes(corpus.phash[rows]), "phash_distance"),
    )
    keys = [np.array([place * index.num_rows + row for place, row in found], np.int64)]
    for ours, theirs, name in searches:
        row, place, _ = HammingIndex(ours).search(theirs, int(_each(name, thresholds).max()))
        keys.append(places[place] * index.num_rows + rows[row])
    key = np.unique(np.concatenate(keys))
    return key // max(index.num_rows, 1), key % max(index.num_rows, 1)


def _exact(column: pa.ChunkedArray, ours: pa.ChunkedArray) -> list[tuple[int, int]]:
    """(evaluation place, shard row) of equal digests; Python sees only the rows that match."""
    rows = np.flatnonzero(np.asarray(pc.is_in(column, value_set=ours)))
    if not len(rows):
        return []
    digests = column.take(pa.array(rows))
    places: dict[bytes, list[int]] = defaultdict(list)
    for place in np.flatnonzero(np.asarray(pc.is_in(ours, value_set=digests))):
        places[ours[int(place)].as_py()].append(int(place))
    return [
        (place, int(row)) for row, digest in zip(rows, digests.to_pylist(), strict=True) for place in places[digest]
    ]


def _pair_table(
    index: pa.Table,
    shard: str,
    codes: EvalCodes,
    corpus: _CorpusCodes,
    left: NDArray[np.int64],
    right: NDArray[np.int64],
    kept: NDArray[np.int64],
    method: NDArray[np.int64],
    source_exact: NDArray[np.bool_],
    stored_exact: NDArray[np.bool_],
    pdq: NDArray[np.int64],
    phash: NDArray[np.int64],
) -> pa.Table:
    places, rows = left[kept], right[kept]
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
            "shard": pa.array([shard] * len(kept), pa.string()),
            "row": pa.array(rows, pa.int64()),
            "url": theirs["url"],
            "caption": theirs["caption"],
            "method": pa.array([METHODS[number] for number in method[kept]], pa.string()),
            "source_exact": pa.array(source_exact[kept], pa.bool_()),
            "stored_exact": pa.array(stored_exact[kept], pa.bool_()),
            "pdq_distance": pa.array(pdq[kept], pa.int32(), mask=unknown),
            "phash_distance": pa.array(phash[kept], pa.int32(), mask=unknown),
            "source_sha256": theirs["source_sha256"],
            "image_sha256": theirs["image_sha256"],
            "pdq256": theirs["pdq256"],
            "phash64": theirs["phash64"],
            "pdq_quality": theirs["pdq_quality"],
        },
        schema=PAIR_SCHEMA,
    )
