"""Verified pairs → who stays, who goes and for whom; and the exact step, which needs no pairs.

Rows are taken in the order of their choice keys. A row is dropped when it has a verified edge to a row that was kept before
it, and that row is its representative (of several, the one with the smallest key); otherwise it is kept. So there are no
chains: if A resembles B and B resembles C but A does not resemble C, then C never goes for A. A copy shares the fate of its original.

    decide(edges)                               once: for each place in the order of choice that is dropped, the place it goes for
    clusters(edges, decisions, originals, ...)  per partition: the rows that go, copies included, by the file they lie in
    apply(table, gone, within, config)          per file

`decide` is the one step of the corpus that one process does, because a decision hangs on those before it. It reads the edges a file at a
time, two places of 8 bytes each, and holds the distinct ones: at most 40 bytes an edge (tests/pipeline/dedup/test_clusters.py
measures them), 4 GB for a hundred million pairs of near-duplicates.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.content.kernels import compiled
from pipeline.contracts.schema import Reason, rejected_rows
from pipeline.dedup.compared import DedupConfig
from pipeline.keys import find, one_array, sort_order, words

Places = npt.NDArray[np.uint64]

DECISION_SCHEMA = pa.schema(
    [
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("order", pa.uint64(), nullable=False),
        pa.field("before", pa.uint64(), nullable=False),
    ]
)
"""A place in the order of choice whose row goes, and the place of the row that stays for it; filed as the edges are."""

CLUSTER_SCHEMA = pa.schema(
    [
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("uid", pa.binary(16), nullable=False),
        pa.field("representative", pa.binary(16), nullable=False),
        pa.field("caption_similarity", pa.float64()),
        pa.field("image_distance", pa.int16()),
    ]
)
"""A row that goes, the row that stays for it, and how alike the two are (null: not compared); `partition` is the number of its file.
Copies within a file are not here: they go with their original, or for it."""

_REASONS = {"pair": Reason.NEAR_DUPLICATE, "caption": Reason.DUPLICATE_CAPTION, "image": Reason.DUPLICATE_IMAGE}


def exact(table: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Rows of one partition of uids as (one row per uid, the others as REJECTED_SCHEMA), both sorted by uid and source.

    Of the rows that have the same URL and raw caption the one with the smallest `source` stays; the others are duplicate_pair.
    """
    uids = words(table["uid"])
    _, source = np.unique(table["source"].to_numpy(), return_inverse=True)
    order = np.lexsort((source, uids[:, 1], uids[:, 0]))
    table, uids = table.take(pa.array(order)), uids[order]
    first = np.concatenate([[True], (uids[1:] != uids[:-1]).any(axis=1)])[: len(uids)]
    kept = table.filter(pa.array(first))
    repeated = table.filter(pa.array(~first))
    stays = np.flatnonzero(first)[np.cumsum(first)[~first] - 1]
    detail = pc.binary_join_element_wise("first at", table["source"].take(pa.array(stays)), " ")
    return kept, rejected_rows(repeated, Reason.DUPLICATE_PAIR, one_array(detail))


# ---- once


def decide(edges: Callable[[], Iterable[tuple[Places, Places]]], partitions: int = 1) -> pa.Table:
    """The decisions (DECISION_SCHEMA, sorted by partition and order) on all edges, each given as its places (order, before) by order of
    choice, order > before. `edges` gives them a batch at a time, in any order, with repetitions, and is called twice."""
    places = _distinct(part for batch in edges() for part in batch)
    # What is held at once is the limit of the corpus, so every array goes when it has been read for the last time.
    goes_for = _greedy(_distinct(_numbered(edges(), places)), len(places))
    gone = np.flatnonzero(goes_for >= 0)
    goes_for = goes_for[gone]
    order = places[gone]
    del gone
    before = places[goes_for]
    del places, goes_for
    partition = (order % np.uint64(partitions)).astype(np.int32)
    at = np.argsort(partition, kind="stable")
    partition = partition[at]
    order = order[at]
    before = before[at]
    return pa.table([pa.array(column) for column in (partition, order, before)], schema=DECISION_SCHEMA)


def _numbered(edges: Iterable[tuple[Places, Places]], places: Places) -> Iterator[Places]:
    """Each edge as one number, late << 32 | early, of the indices of its ends."""
    for order, before in edges:
        late, early = np.searchsorted(places, order), np.searchsorted(places, before)
        yield late.astype(np.uint64) << np.uint64(32) | early.astype(np.uint64)


def _distinct(batches: Iterable[Places]) -> Places:
    """The distinct numbers of all batches, sorted, in one array that is at most twice as long on the way."""
    held, size = np.empty(1024, np.uint64), 0
    for batch in batches:
        if size + len(batch) > len(held):
            held[:size].sort()
            size = _compact(held[:size])
            held.resize(max(len(held), 2 * size, size + len(batch)), refcheck=False)
        held[size : size + len(batch)] = batch
        size += len(batch)
    held[:size].sort()
    held.resize(_compact(held[:size]), refcheck=False)
    return held


@compiled
def _compact(numbers: Places) -> int:
    """Bring the distinct ones of sorted numbers to the front; returns how many they are."""
    kept = 0
    for at in range(len(numbers)):
        if at == 0 or numbers[at] != numbers[kept - 1]:
            numbers[kept] = numbers[at]
            kept += 1
    return kept


@compiled
def _greedy(edges: Places, number: int) -> npt.NDArray[np.int32]:
    """For each of `number` rows the row it goes for, or -1. Edges (of `_numbered`) are sorted, so that the early end is decided first."""
    goes_for = np.full(number, -1, np.int32)
    for edge in edges:
        late, early = np.int64(edge >> np.uint64(32)), np.int64(edge & np.uint64(0xFFFFFFFF))
        if goes_for[late] < 0 and goes_for[early] < 0:
            goes_for[late] = early
    return goes_for


# ---- per partition


def clusters(edges: pa.Table, decisions: pa.Table, originals: pa.Table, config: DedupConfig) -> pa.Table:
    """The rows of one partition that go (CLUSTER_SCHEMA, sorted by partition and uid), from its edges (EDGE_SCHEMA), decisions
    (DECISION_SCHEMA) and copies (ORIGINAL_SCHEMA), in any order, edges with repetitions."""
    gone = _dropped(edges, decisions)
    at = find(words(originals["original"]), words(gone["uid"]))
    went, stands = pa.array(at[at >= 0]), originals.filter(pa.array(at < 0))
    # A copy of a dropped row is as like that one's representative as the dropped row is.
    with_it = originals.filter(pa.array(at >= 0))
    parts = [
        pa.table({"partition": gone["part"], **{name: gone[name] for name in CLUSTER_SCHEMA.names[1:]}}),
        pa.table(
            {
                "partition": with_it["part"],
                "uid": with_it["uid"],
                **{name: gone[name].take(went) for name in CLUSTER_SCHEMA.names[2:]},
            }
        ),
        pa.table(
            {
                "partition": stands["part"],
                "uid": stands["uid"],
                "representative": stands["original"],
                "caption_similarity": pa.array([None if config.by == "image" else 1.0] * len(stands), pa.float64()),
                "image_distance": pa.array([None if config.by == "caption" else 0] * len(stands), pa.int16()),
            }
        ),
    ]
    found = pa.concat_tables([part.cast(CLUSTER_SCHEMA) for part in parts]).combine_chunks()
    partition = one_array(found["partition"]).to_numpy(zero_copy_only=False)
    return found.take(pa.array(sort_order(words(found["uid"]), partition)))


def _dropped(edges: pa.Table, decisions: pa.Table) -> pa.Table:
    """The edges by which rows go, one for each row."""
    order, before = (one_array(edges[name]).to_numpy(zero_copy_only=False) for name in ("order", "before"))
    decided, stays = (one_array(decisions[name]).to_numpy(zero_copy_only=False) for name in ("order", "before"))
    if not len(decided):
        return edges.slice(0, 0)
    by_order = np.argsort(decided)
    at = np.minimum(np.searchsorted(decided[by_order], order), len(decided) - 1)
    by = np.flatnonzero((decided[by_order[at]] == order) & (stays[by_order[at]] == before))
    gone = edges.take(pa.array(by))
    uids = words(gone["uid"])
    place = sort_order(uids)
    first = np.concatenate([[True], (uids[place][1:] != uids[place][:-1]).any(axis=1)])[: len(place)]
    return gone.take(pa.array(place[first]))


# ---- per file


def apply(table: pa.Table, gone: pa.Table, within: pa.Table, config: DedupConfig) -> tuple[pa.Table, pa.Table]:
    """The rows of a file as (those that stay, those that go, as REJECTED_SCHEMA), in their order.

    `gone` (CLUSTER_SCHEMA, any order) has those that go, but for the copies `within` the file (WITHIN_SCHEMA).
    """
    place = find(words(table["uid"]), words(gone["uid"]))
    row, original = (one_array(within[name]).to_numpy(zero_copy_only=False) for name in ("row", "original"))
    place[row] = place[original]
    stays_for = np.full(len(place), -1, np.int64)  # the original, of copies whose original stays
    stays_for[row] = np.where(place[original] < 0, original, -1)
    goes = np.flatnonzero((place >= 0) | (stays_for >= 0))
    details = _details(table, gone, place[goes], stays_for[goes], config)
    stays = np.ones(len(place), np.bool_)
    stays[goes] = False
    rejected = rejected_rows(table.take(pa.array(goes)), _REASONS[config.by], details)
    return table.filter(pa.array(stays)), rejected


def _details(
    table: pa.Table, gone: pa.Table, place: npt.NDArray[np.int64], original: npt.NDArray[np.int64], config: DedupConfig
) -> pa.Array:
    columns = (gone[name].to_pylist() for name in CLUSTER_SCHEMA.names[2:])
    told = [_detail(*values) for values in zip(*columns, strict=True)]
    alike = (None if config.by == "image" else 1.0, None if config.by == "caption" else 0)
    copied = iter(table["uid"].take(pa.array(original[place < 0])).to_pylist())
    return pa.array([told[at] if at >= 0 else _detail(next(copied), *alike) for at in place.tolist()], pa.string())


def _detail(representative: bytes, similarity: float | None, distance: int | None) -> str:
    caption = "" if similarity is None else f", caption {similarity:.3f}"
    picture = "" if distance is None else f", picture {distance} bits"
    return f"{representative.hex()} stays{caption}{picture}"
