"""Verified pairs → who stays, who goes and for whom; and the exact step, which needs no pairs.

Rows are taken in the order of their choice keys. A row is dropped when it has a verified edge to a row that was kept before
it, and that row is its representative (of several, the one with the smallest key); otherwise it is kept. So there are no
chains: if A resembles B and B resembles C but A does not resemble C, then C never goes for A. A row that is identical to
another in all that is compared shares that one's fate, for the edges of one are the edges of both.

The edges of a whole corpus are held at once: 40 bytes each. They are few beside the rows, because identical rows count one
edge each.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.content.kernels import compiled
from pipeline.contracts.schema import Reason, rejected_rows
from pipeline.dedup.blocks import DedupConfig
from pipeline.dedup.edges import PURPOSE
from pipeline.keys import Indices, Words, choice_words, find, one_array, sort_order, to_binary, words

CLUSTER_SCHEMA = pa.schema(
    [
        pa.field("uid", pa.binary(16), nullable=False),
        pa.field("representative", pa.binary(16), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("caption_similarity", pa.float64()),
        pa.field("image_distance", pa.int16()),
    ]
)
"""A row that goes, the row that stays for it, and how alike the two are (null: not compared)."""

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


def clusters(edges: pa.Table, config: DedupConfig, seed: int) -> pa.Table:
    """The rows to drop (CLUSTER_SCHEMA, sorted by uid) from the edges of all partitions (EDGE_SCHEMA, any order, repetitions
    allowed).

    `seed` is the corpus seed, the one that `edges` got.
    """
    ends = np.concatenate([words(edges["uid_a"]), words(edges["uid_b"])])
    uids, places = _distinct(ends)
    left, right = np.split(places, 2)
    order = sort_order(choice_words(uids, seed, PURPOSE))
    rank = np.empty(len(uids), np.int64)
    rank[order] = np.arange(len(uids))
    # From here on a row is its rank. Every edge leads from the later row to the earlier one.
    late, early = np.maximum(rank[left], rank[right]), np.minimum(rank[left], rank[right])
    identical = one_array(edges["identical"]).to_numpy(zero_copy_only=False)
    leader = np.arange(len(uids))
    leader[late[identical]] = early[identical]
    edge_of = np.full(len(uids), -1, np.int64)  # the edge by which a row goes
    edge_of[late[identical]] = np.flatnonzero(identical)
    others = np.flatnonzero(~identical)
    others = others[np.lexsort((early[others], late[others]))]
    kept_for = np.full(len(uids), -1, np.int64)
    _greedy(late[others], early[others], others, leader, kept_for, edge_of)
    dropped = np.flatnonzero(kept_for >= 0)
    # A follower of a dropped leader is as like the leader's representative as the leader is.
    shown = np.where(kept_for[leader[dropped]] >= 0, edge_of[leader[dropped]], edge_of[dropped])
    rows = pa.table(
        [
            to_binary(uids[order[dropped]]),
            to_binary(uids[order[kept_for[dropped]]]),
            pa.array([_REASONS[config.by].value] * len(dropped), pa.string()),
            edges["caption_similarity"].take(pa.array(shown)),
            edges["image_distance"].take(pa.array(shown)),
        ],
        schema=CLUSTER_SCHEMA,
    )
    return rows.take(pa.array(sort_order(words(rows["uid"]))))


def _distinct(keys: Words) -> tuple[Words, Indices]:
    """The distinct keys, sorted, and for each key its place among them."""
    order = sort_order(keys)
    starts = np.concatenate([[True], (keys[order][1:] != keys[order][:-1]).any(axis=1)])[: len(keys)]
    places = np.empty(len(keys), np.int64)
    places[order] = np.cumsum(starts) - 1
    return keys[order][starts], places


@compiled
def _greedy(late: Indices, early: Indices, edge: Indices, leader: Indices, kept_for: Indices, edge_of: Indices) -> None:
    """Fill `kept_for` (-1: stays) and `edge_of`. Edges are sorted by `late`, then `early`; ranks ascend, so `early` is
    decided first."""
    for at in range(len(late)):
        row = late[at]
        if kept_for[row] < 0 and kept_for[early[at]] < 0:
            kept_for[row] = early[at]
            edge_of[row] = edge[at]
    for row in range(len(leader)):
        if leader[row] != row:
            kept_for[row] = leader[row] if kept_for[leader[row]] < 0 else kept_for[leader[row]]


def apply(table: pa.Table, dropped: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Rows of any stage as (those that stay, those that `dropped` (CLUSTER_SCHEMA, any order) names, as REJECTED_SCHEMA), in
    their order."""
    place = find(words(table["uid"]), words(dropped["uid"]))
    goes = place >= 0
    mine = dropped.take(pa.array(place[goes]))
    gone = table.filter(pa.array(goes))
    details = [_detail(*values) for values in zip(*(mine[name].to_pylist() for name in _DETAIL), strict=True)]
    parts = [
        rejected_rows(gone.filter(pc.equal(mine["reason"], reason.value)), reason, _of(details, mine, reason))
        for reason in _REASONS.values()
    ]
    return table.filter(pa.array(~goes)), pa.concat_tables(parts)


_DETAIL = ("representative", "caption_similarity", "image_distance")


def _detail(representative: bytes, similarity: float | None, distance: int | None) -> str:
    caption = "" if similarity is None else f", caption {similarity:.3f}"
    picture = "" if distance is None else f", picture {distance} bits"
    return f"{representative.hex()} stays{caption}{picture}"


def _of(details: list[str], mine: pa.Table, reason: Reason) -> pa.Array:
    return pa.array(details, pa.string()).filter(one_array(pc.equal(mine["reason"], reason.value)))
