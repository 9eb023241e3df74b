"""balance.mode = "metaclip": every matched query draws its pairs with probability t / max(count, t), as in MetaCLIP (Xu et al.,
"Demystifying CLIP Data", Algorithm 1), with stateless draws.

A pair stays when any of its queries draws it: u(uid, query) < p(query). The paper draws from a stream of random numbers, so that its
sample depends on the order of the pool. Here u is the BLAKE2b of the uid, keyed by the corpus seed and personalised by the query's text:
the same for any order, partitioning and number of workers, and unchanged for the other queries when one is added to the list. Everything
is exact in integers: u is one of 2**64 values, and p is a limit among them.

The draw stands twice, before the crawl (`precap`, with T = precap.per_query) and after deduplication (`balance`, with t = balance.cap),
and the first never drops what the second could keep. Before the crawl a query of count c draws with P = T / max(c, T). Afterwards it is
known how many pairs m arrived among those it drew, which are a fair sample of share P of all that would have arrived, so that m / P
estimates the count that a crawl without a precap would have had. MetaCLIP's probability for that count is p = P · t / max(m, t), or just
t /
max(m, t) where P is 1, exactly the paper's. It is never above P, and u is the same number both times: who is drawn in the end was drawn
before. A pair that precap drops was drawn by none of its queries with P, and could be drawn by none with p.

    salted(queries)                          per query: what personalises its draws
    drawn(table, odds, queries, seed)        per shard, summed over shards: pairs that each query can draw
    odds(drawn, threshold, salts, before)    once: the limit of each query that cannot keep all of them
    apply(table, matched, odds, seed)        per shard: those that stay, and those that no query drew
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.balance import assign
from pipeline.contracts.schema import Reason, rejected_rows
from pipeline.keys import Indices, fixed_bytes, one_array

ODDS_SCHEMA = pa.schema(
    [
        pa.field("query_id", pa.int32(), nullable=False),
        pa.field("salt", pa.binary(16), nullable=False),
        pa.field("limit", pa.uint64(), nullable=False),
    ]
)
"""A query that draws a pair when u < limit, of 2**64. A query that is absent draws all its pairs."""


class Drawn(NamedTuple):
    """A table cut in two, and for the ledger how many of the kept pairs each query drew (int64 of shape (queries,))."""

    kept: pa.Table
    rejected: pa.Table
    accepted: npt.NDArray[np.int64]


def salted(queries: Sequence[str]) -> list[bytes]:
    """What personalises the draws of each query: BLAKE2b-128 of its text."""
    return [hashlib.blake2b(b"draw\0" + query.encode(), digest_size=16).digest() for query in queries]


def uniform(uid: bytes, salt: bytes, seed: int) -> int:
    """u(uid, query), uniform in [0, 2**64)."""
    key = seed.to_bytes(8, "little", signed=True)
    return int.from_bytes(hashlib.blake2b(uid, digest_size=8, key=key, person=salt).digest(), "little")


def odds(drawn: npt.NDArray[np.int64], threshold: int, salts: Sequence[bytes], before: pa.Table | None) -> pa.Table:
    """The limits (ODDS_SCHEMA, by query_id) from the summed counts of what each query can draw; `before` are precap's limits."""
    earlier = (
        {} if before is None else dict(zip(*(before[name].to_pylist() for name in ("query_id", "limit")), strict=True))
    )
    crowded = set(np.flatnonzero(drawn > threshold).tolist())
    ids = sorted(crowded | earlier.keys())
    limits = [(earlier.get(query, 1 << 64) * threshold) // max(int(drawn[query]), threshold) for query in ids]
    return pa.table(
        [
            pa.array(ids, pa.int32()),
            pa.array([salts[query] for query in ids], pa.binary(16)),
            pa.array(limits, pa.uint64()),
        ],
        schema=ODDS_SCHEMA,
    )


def drawn(table: pa.Table, limits: pa.Table | None, queries: int, seed: int) -> npt.NDArray[np.int64]:
    """How many rows each query draws by `limits` (None: all that it matches), int64 of shape (queries,). Sums over tables."""
    rows, ids = _pairs(table)
    accepted = np.ones(len(ids), np.bool_) if limits is None else _accepted(table, rows, ids, limits, seed)
    return np.bincount(ids[accepted], minlength=queries).astype(np.int64)


def apply(table: pa.Table, matched: npt.NDArray[np.int64], limits: pa.Table, seed: int) -> Drawn:
    """Rows as (those that a query drew, with `query_id` the rarest of these; the others as REJECTED_SCHEMA), in their order.

    `matched` are the summed `balance.counts`, by which the rarest is chosen. A row that matches no query stays.
    """
    rows, ids = _pairs(table)
    accepted = _accepted(table, rows, ids, limits, seed)
    number = table.num_rows
    counted = assign(pa.table({"query_ids": _lists(rows[accepted], ids[accepted], number)}), matched)
    matches = np.bincount(rows, minlength=number)
    stays = (np.bincount(rows[accepted], minlength=number) > 0) | (matches == 0)
    place = table.column_names.index("query_id") if "query_id" in table.column_names else None
    table = table.append_column("query_id", counted) if place is None else table.set_column(place, "query_id", counted)
    detail = pa.array([f"none of its {count} queries drew it" for count in matches[~stays].tolist()], pa.string())
    gone = rejected_rows(table.filter(pa.array(~stays)), Reason.NOT_DRAWN, detail)
    return Drawn(
        table.filter(pa.array(stays)), gone, np.bincount(ids[accepted], minlength=len(matched)).astype(np.int64)
    )


def _pairs(table: pa.Table) -> tuple[Indices, Indices]:
    """(row, query) for every match."""
    lists = one_array(table["query_ids"])
    rows, ids = pc.list_parent_indices(lists), pc.list_flatten(lists)
    return tuple(part.to_numpy(zero_copy_only=False).astype(np.int64) for part in (rows, ids))


def _lists(rows: Indices, ids: Indices, number: int) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=number))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids.astype(np.int32)))


def _accepted(table: pa.Table, rows: Indices, ids: Indices, limits: pa.Table, seed: int) -> npt.NDArray[np.bool_]:
    """Which matches are draws. Only queries with a limit cost a hash."""
    accepted = np.ones(len(ids), np.bool_)
    known = one_array(limits["query_id"]).to_numpy(zero_copy_only=False)
    if not len(known):
        return accepted
    at = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    limited = np.flatnonzero(known[at] == ids)
    salts, limit = limits["salt"].to_pylist(), limits["limit"].to_pylist()
    uids = fixed_bytes(table["uid"], 16).tobytes()
    for match, row, place in zip(limited.tolist(), rows[limited].tolist(), at[limited].tolist(), strict=True):
        accepted[match] = uniform(uids[16 * row : 16 * row + 16], salts[place], seed) < limit[place]
    return accepted
