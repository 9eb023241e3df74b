"""How near is the nearest? For a sample of each set's examples the corpus picture whose PDQ hash differs in the fewest bits, however many;
and, where there is a descriptor, the one with the highest score.

A threshold cuts a distribution that the reader should see: copies lie near 0, strangers near 128 less what the size of the corpus brings,
and a set whose nearest pictures lie between (drawings, digits, faces on white) is one where the threshold decides. The CLIP paper asks this
of MNIST, of which it found nothing. The nearest pictures that did not count as a match are the report's near misses.

Every sampled example is compared with every corpus row (no radius bounds this search, so no table helps): 1,000 examples against 400
million rows are 4e11 comparisons, minutes of one core. By the descriptor it is a by-product of the search for matches (`likeness`). Only
pictures with enough texture take part, by the quality threshold of the set.
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
from evaluation.overlap.kept import first_of_each
from evaluation.overlap.likeness import Compared, Learned, likeness_of
from evaluation.overlap.measures import DESCRIPTOR, MEASURES, PDQ, Measure
from evaluation.overlap.tables import NEAREST_SCHEMA
from pipeline.content.hashes import hamming
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
    index: pa.Table,
    shard: str,
    codes: EvalCodes,
    sample: NDArray[np.int64],
    thresholds: Sequence[Thresholds],
    learned: Learned | None = None,
    compared: Compared | None = None,
) -> pa.Table:
    """The nearest row of one shard for each sampled place, the first of several, by PDQ and by what the descriptor `compared`:
    NEAREST_SCHEMA rows, by measure and in the order of `sample`.

    An example has no row where the shard has no picture with enough texture, or by the descriptor none with a vector.
    """
    (theirs, hashed), (rated, known) = hash_column(index, "pdq256"), hash_column(index, "pdq_quality")
    quality = np.where(hashed & known, rated.astype(np.int64), -1)
    least = np.array([one.pdq_quality for one in thresholds], np.int64)[codes.set_number[sample]]
    row = np.full(len(sample), -1, np.int64)
    for level in np.unique(least):
        rows, asked = np.flatnonzero(quality >= level), np.flatnonzero(least == level)
        if not len(rows):
            continue
        best = np.full(len(asked), _NONE, np.int64)
        _nearest(as_words(codes.pdq[sample[asked]]), as_words(theirs[rows]), best)
        row[asked] = rows[best & ((1 << _ROW_BITS) - 1)]
    found = [(PDQ, sample[row >= 0], row[row >= 0])]
    if compared is not None:
        found.append((DESCRIPTOR, compared.nearest.picture, compared.nearest.query))
    return pa.concat_tables([_rows(index, shard, codes, learned, *one) for one in found])


def _rows(
    index: pa.Table,
    shard: str,
    codes: EvalCodes,
    learned: Learned | None,
    measure: Measure,
    places: NDArray[np.int64],
    rows: NDArray[np.int64],
) -> pa.Table:
    """NEAREST_SCHEMA of these places and the row of each."""
    ours, shown = codes.table.take(pa.array(places)), index.take(pa.array(rows))
    theirs, _ = hash_column(shown, "pdq256")
    cosine, score, view = likeness_of(learned, places, rows)
    unseen = np.isnan(score)
    return pa.table(
        {
            "set": pa.array([codes.names[number] for number in codes.set_number[places]], pa.string()),
            "eval_row": ours["eval_row"],
            "eval_id": ours["eval_id"],
            "measure": pa.array([measure.name] * len(places), pa.string()),
            "pdq_distance": pa.array(hamming(codes.pdq[places], theirs), pa.int32()),
            "descriptor_cosine": pa.array(cosine, pa.float64(), mask=unseen),
            "descriptor_score": pa.array(score, pa.float64(), mask=unseen),
            "descriptor_view": pa.array(view, pa.int64(), mask=unseen),
            "uid": shown["uid"],
            "shard": pa.array([shard] * len(places), pa.string()),
            "row": pa.array(rows, pa.int64()),
            "url": shown["url"],
            "caption": shown["caption"],
            "pdq256": shown["pdq256"],
            "pdq_quality": shown["pdq_quality"],
        },
        schema=NEAREST_SCHEMA,
    )


def nearest_of_all(shards: Iterable[pa.Table], names: Sequence[str]) -> pa.Table:
    """The nearest rows over all shards, given in the corpus's order; ordered by set (as in `names`), measure and example.

    Of equally near rows the first in the corpus stands. Two tables of the sample's size are in memory at a time.
    """
    best = NEAREST_SCHEMA.empty_table()
    for table in shards:
        both = pa.concat_tables([best, table])
        order, measure = (
            np.asarray(pc.index_in(both[name], value_set=pa.array(values, pa.string())))
            for name, values in (("set", names), ("measure", list(MEASURES)))
        )
        groups = [order, measure, np.asarray(both["eval_row"])]
        by_score = np.asarray(pc.equal(both["measure"], DESCRIPTOR.name))
        score = np.asarray(pc.fill_null(both["descriptor_score"], 0.0))
        distance = np.where(by_score, -score, np.asarray(both["pdq_distance"]))
        kept = np.flatnonzero(first_of_each(groups, [distance, np.arange(both.num_rows)], 1))
        ranked = kept[np.lexsort([column[kept] for column in reversed(groups)])]
        best = both.take(pa.array(ranked)).combine_chunks()
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
