"""How near is the nearest? For a sample of each set's examples the corpus picture whose PDQ hash differs in the fewest bits, however many.

A threshold cuts a distribution that the reader should see: copies lie near 0, strangers near 128 less what the size of the corpus brings,
and a set whose nearest pictures lie between (drawings, digits, faces on white) is one where the threshold decides. The CLIP paper asks this
of MNIST, of which it found nothing. The nearest pictures that did not count as a match are the report's near misses.

Every sampled example is compared with every corpus row (no radius bounds this search, so no table helps): 1,000 examples against 400
million rows are 4e11 comparisons, minutes of one core. Only pictures with enough texture take part, by the quality threshold of the set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from evaluation.config import Thresholds
from evaluation.overlap.index import as_words, popcount
from evaluation.overlap.join import EvalCodes, hash_column
from evaluation.overlap.tables import NEAREST_SCHEMA
from pipeline.content.kernels import compiled

_ROW_BITS = 40
_NONE = np.int64(1) << 62
_BLOCK = 4096  # rows: 128 KiB of codes, which stay in the core's own cache while all examples pass over them


def choose_sample(ids: Sequence[str], quality: NDArray[np.uint8], least_quality: int, count: int) -> NDArray[np.int64]:
    """At most `count` rows of one set with enough texture, the same ones everywhere: those whose ids hash lowest, in rising order."""
    textured = np.flatnonzero(quality >= least_quality)
    ranked = sorted(textured.tolist(), key=lambda row: (_rank(ids[row]), row))
    return np.array(sorted(ranked[:count]), np.int64)


def _rank(name: str) -> bytes:
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16, key=b"nearest").digest()


def sample_sets(codes: EvalCodes, thresholds: Sequence[Thresholds], count: int) -> NDArray[np.int64]:
    """The sampled places of all sets in `codes`, `count` of each."""
    places = [np.empty(0, np.int64)]
    for number, limits in enumerate(thresholds):
        own = np.flatnonzero(codes.set_number == number)
        ids = codes.table["eval_id"].take(pa.array(own)).to_pylist()
        places.append(own[choose_sample(ids, codes.quality[own], limits.pdq_quality, count)])
    return np.concatenate(places)


def nearest_in_shard(
    index: pa.Table, shard: str, codes: EvalCodes, sample: NDArray[np.int64], thresholds: Sequence[Thresholds]
) -> pa.Table:
    """The nearest row of one shard for each sampled place, the first of several: NEAREST_SCHEMA rows in the order of `sample`.

    An example has no row where the shard has no picture with enough texture.
    """
    (theirs, hashed), (rated, known) = hash_column(index, "pdq256"), hash_column(index, "pdq_quality")
    quality = np.where(hashed & known, rated.astype(np.int64), -1)
    least = np.array([one.pdq_quality for one in thresholds], np.int64)[codes.set_number[sample]]
    distance, row = np.full(len(sample), -1, np.int64), np.zeros(len(sample), np.int64)
    for level in np.unique(least):
        rows, asked = np.flatnonzero(quality >= level), np.flatnonzero(least == level)
        if not len(rows):
            continue
        best = np.full(len(asked), _NONE, np.int64)
        _nearest(as_words(codes.pdq[sample[asked]]), as_words(theirs[rows]), best)
        distance[asked], row[asked] = best >> _ROW_BITS, rows[best & ((1 << _ROW_BITS) - 1)]
    found = np.flatnonzero(distance >= 0)
    places, rows = sample[found], row[found]
    ours, shown = codes.table.take(pa.array(places)), index.take(pa.array(rows))
    return pa.table(
        {
            "set": pa.array([codes.names[number] for number in codes.set_number[places]], pa.string()),
            "eval_row": ours["eval_row"],
            "eval_id": ours["eval_id"],
            "pdq_distance": pa.array(distance[found], pa.int32()),
            "uid": shown["uid"],
            "shard": pa.array([shard] * len(found), pa.string()),
            "row": pa.array(rows, pa.int64()),
            "url": shown["url"],
            "caption": shown["caption"],
            "pdq256": shown["pdq256"],
            "pdq_quality": shown["pdq_quality"],
        },
        schema=NEAREST_SCHEMA,
    )


def nearest_of_all(shards: Iterable[pa.Table], names: Sequence[str]) -> pa.Table:
    """The nearest row over all shards, given in the corpus's order; ordered by set (as in `names`) and example.

    Of equally near rows the first in the corpus stands. Two tables of the sample's size are in memory at a time.
    """
    best = NEAREST_SCHEMA.empty_table()
    for table in shards:
        both = pa.concat_tables([best, table])
        order = pc.index_in(both["set"], value_set=pa.array(names, pa.string()))
        places = np.arange(both.num_rows)  # what stood before comes first among equals
        keys = (places, np.asarray(both["pdq_distance"]), np.asarray(both["eval_row"]), np.asarray(order))
        ranked = np.lexsort(keys)
        which = np.stack([keys[3][ranked], keys[2][ranked]])
        first = np.ones(len(ranked), np.bool_)
        first[1:] = (which[:, 1:] != which[:, :-1]).any(axis=0)
        best = both.take(pa.array(ranked[first])).combine_chunks()
    return best


@compiled
def _nearest(queries: NDArray[np.uint64], codes: NDArray[np.uint64], best: NDArray[np.int64]) -> None:
    """best[q] = the least of distance << 40 | row over all codes uint64[n, 4]; comparing both at once keeps the loop free of branches."""
    for start in range(0, codes.shape[0], _BLOCK):
        stop = min(start + _BLOCK, codes.shape[0])
        for query in range(queries.shape[0]):
            one, two, three, four = queries[query, 0], queries[query, 1], queries[query, 2], queries[query, 3]
            least = best[query]
            for row in range(start, stop):
                bits = (
                    popcount(one ^ codes[row, 0])
                    + popcount(two ^ codes[row, 1])
                    + popcount(three ^ codes[row, 2])
                    + popcount(four ^ codes[row, 3])
                )
                least = min(least, bits << _ROW_BITS | row)
            best[query] = least
