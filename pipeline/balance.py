"""At most N pairs a query: the hard cap of the CLIP paper ("up to 20,000 (image, text) pairs per query", section 2.2), with a
ledger.

A pair may match many queries; it is counted for one, the rarest in the corpus (ties: the lower index), so that common queries
do not eat rare ones. Of the pairs counted for a query, the N with the smallest choice keys stay. Nothing depends on order or
on partitioning.

Memory is bounded by the shard and by the partition of queries, in five steps:

    counts(table, queries)              per shard, summed over shards: how often each query matches
    assign(table, matched)              per shard: the query each pair is counted for
    heads(uids, assigned, cap, seed)    per shard: the N smallest keys of each query, split by `query_id % P`
    selection(heads, cap, totals)       per partition: the largest key that stays, for queries with too many
    apply(table, assigned, limits, seed) per shard: those that stay, and those over the cap

The same steps with a larger cap stand before the crawl (`precap`): since the keys are the same, what the last cap keeps of a
query is a part of what the first kept, as long as the pair is still counted for that query.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipeline.contracts.config import StrictModel
from pipeline.contracts.schema import Reason, rejected_rows
from pipeline.keys import Indices, choice_words, one_array, sort_order, to_binary, words

PURPOSE = "balance"
"""What the choice keys of both caps are for."""

HEAD_SCHEMA = pa.schema(
    [pa.field("query_id", pa.int32(), nullable=False), pa.field("key", pa.binary(16), nullable=False)]
)
"""The choice key of a pair that may be among the first N of its query."""

LIMIT_SCHEMA = HEAD_SCHEMA
"""For a query with more than N pairs: the largest choice key that stays. A query that is absent keeps all its pairs."""

LEDGER_SCHEMA = pa.schema(
    [
        pa.field("query_id", pa.int32(), nullable=False),
        pa.field("query", pa.string(), nullable=False),
        pa.field("source", pa.string()),
        pa.field("matched", pa.int64(), nullable=False),
        pa.field("assigned", pa.int64(), nullable=False),
        pa.field("accepted", pa.int64(), nullable=False),
        pa.field("kept", pa.int64(), nullable=False),
    ]
)
"""Per query: where the list has it from (null: it does not say), pairs before balancing that matched it, and pairs after it that are
counted for it (`kept`). Every query of the list has a row.

hard_cap: `assigned` are the pairs of which it is the rarest query, `accepted` and `kept` are min(assigned, cap). metaclip: `assigned` are
the
pairs that it may draw, `accepted` those that it drew, min(assigned, cap) on average, `kept` those of which it is the rarest that drew them.
"""


class BalanceConfig(StrictModel):
    """How many pairs a query may have."""

    mode: Literal["hard_cap", "metaclip"] = "hard_cap"
    """hard_cap: each pair counts for its rarest query, which keeps `cap` at most; metaclip: every query draws its pairs
    (pipeline/draw.py)."""
    cap: int = Field(default=20_000, ge=1)
    """hard_cap: pairs kept per query at most; metaclip: the t of p = t / max(count, t), pairs that a query draws on average at most."""


def counts(table: pa.Table, queries: int) -> npt.NDArray[np.int64]:
    """How many rows match each query, int64 of shape (queries,). Sums over tables."""
    ids = one_array(pc.list_flatten(table["query_ids"])).to_numpy(zero_copy_only=False).astype(np.int64)
    return np.bincount(ids, minlength=queries).astype(np.int64)


def assign(table: pa.Table, matched: npt.NDArray[np.int64]) -> pa.Array:
    """For each row the rarest of its `query_ids` by `matched` (the summed `counts`), int32; null where it matches none."""
    lists = one_array(table["query_ids"])
    ids = pc.list_flatten(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    rows = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    order = np.lexsort((ids, matched[ids], rows))
    first = order[np.concatenate([[True], rows[order][1:] != rows[order][:-1]])[: len(order)]]
    chosen = np.full(len(lists), -1, np.int32)
    chosen[rows[first]] = ids[first]
    return pa.array(chosen, mask=chosen < 0)


def heads(uids: pa.Array | pa.ChunkedArray, assigned: pa.Array, cap: int, seed: int) -> pa.Table:
    """The `cap` smallest choice keys of each query (HEAD_SCHEMA, sorted): all that this table can contribute."""
    query = assigned.fill_null(-1).to_numpy(zero_copy_only=False)
    keys = choice_words(words(uids), seed, PURPOSE)
    present = query >= 0
    return _smallest(query[present], keys[present], cap)[0]


def merge_heads(table: pa.Table, cap: int) -> pa.Table:
    """Heads of several tables, concatenated in any order, as heads of all of them."""
    return _smallest(one_array(table["query_id"]).to_numpy(zero_copy_only=False), words(table["key"]), cap)[0]


def selection(table: pa.Table, cap: int, totals: npt.NDArray[np.int64]) -> pa.Table:
    """Limits (LIMIT_SCHEMA) from all heads of some queries and `totals`, the pairs counted for each query of the list."""
    query = one_array(table["query_id"]).to_numpy(zero_copy_only=False)
    kept, last = _smallest(query, words(table["key"]), cap)
    limits = kept.filter(pa.array(last))
    over = totals[one_array(limits["query_id"]).to_numpy(zero_copy_only=False)] > cap
    return limits.filter(pa.array(over))


def _smallest(
    query: npt.NDArray[np.int32], keys: npt.NDArray[np.uint64], cap: int
) -> tuple[pa.Table, npt.NDArray[np.bool_]]:
    """The `cap` smallest keys per query, sorted, and which of them is the last of its query."""
    order = sort_order(keys, query)
    query = query[order]
    starts = np.flatnonzero(np.concatenate([[True], query[1:] != query[:-1]])[: len(query)])
    sizes = np.diff(np.append(starts, len(query)))
    place = np.arange(len(query)) - np.repeat(starts, sizes)
    kept = place < cap
    last = (place == np.minimum(np.repeat(sizes, sizes), cap) - 1)[kept]
    return pa.table([pa.array(query[kept], pa.int32()), to_binary(keys[order[kept]])], schema=HEAD_SCHEMA), last


def totals(assigned: pa.Array | pa.ChunkedArray, queries: int) -> npt.NDArray[np.int64]:
    """How many pairs are counted for each query, int64 of shape (queries,). Sums over tables."""
    ids = one_array(assigned).drop_null().to_numpy(zero_copy_only=False)
    return np.bincount(ids, minlength=queries).astype(np.int64)


def apply(table: pa.Table, assigned: pa.Array, limits: pa.Table, seed: int) -> tuple[pa.Table, pa.Table]:
    """Rows as (those that stay, with their `query_id`; those over the cap, as REJECTED_SCHEMA), in their order.

    `limits` are those of all queries that occur. A row that is counted for no query stays.
    """
    over = _over(words(table["uid"]), assigned, limits, seed)
    if "query_id" in table.column_names:
        table = table.set_column(table.column_names.index("query_id"), "query_id", assigned)
    else:
        table = table.append_column("query_id", assigned)
    gone = table.filter(pa.array(over))
    detail = pc.binary_join_element_wise("query", gone["query_id"].cast(pa.string()), " ")
    return table.filter(pa.array(~over)), rejected_rows(gone, Reason.OVER_CAP, one_array(detail))


def _over(uids: npt.NDArray[np.uint64], assigned: pa.Array, limits: pa.Table, seed: int) -> npt.NDArray[np.bool_]:
    over = np.zeros(len(uids), np.bool_)
    if not limits.num_rows:
        return over
    query = assigned.fill_null(-1).to_numpy(zero_copy_only=False)
    limited = one_array(limits["query_id"]).to_numpy(zero_copy_only=False)
    order = np.argsort(limited, kind="stable")
    at = np.minimum(np.searchsorted(limited[order], query), len(limited) - 1)
    candidate = np.flatnonzero(limited[order][at] == query)
    limit = words(limits["key"])[order][at[candidate]]
    key = choice_words(uids[candidate], seed, PURPOSE)
    over[candidate] = (key[:, 0] > limit[:, 0]) | ((key[:, 0] == limit[:, 0]) & (key[:, 1] > limit[:, 1]))
    return over


def ledger(
    queries: Sequence[str],
    sources: Sequence[str | None],
    matched: Indices,
    assigned: Indices,
    accepted: Indices,
    kept: Indices,
) -> pa.Table:
    """The table that shows what balancing did (LEDGER_SCHEMA), from counts summed over the corpus, a value per query each."""
    return pa.table(
        [
            pa.array(np.arange(len(queries), dtype=np.int32)),
            pa.array(list(queries), pa.string()),
            pa.array(list(sources), pa.string()),
            *(pa.array(counts, pa.int64()) for counts in (matched, assigned, accepted, kept)),
        ],
        schema=LEDGER_SCHEMA,
    )
