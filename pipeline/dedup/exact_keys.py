"""Rows that share a URL, a caption or the bytes of their picture, for those who want each once (dedup.exact).

Of the rows with equal keys the one with the smallest choice key stays, whatever its neighbours. Only 128 bits of a key travel, in three
steps whose memory is bounded by a file or by a partition of keys:

    keys(table, by, partitions, part)    per file: a row per pair, by partition of its key
    repeated(rows, by, seed)             per partition: the pairs that go, by the file they lie in
    drop(table, gone, by)                per file

A row without a key (no picture, or a caption of which the normal form leaves nothing) equals no other row and stays.
"""

import hashlib
from typing import Literal

import numpy as np
import pyarrow as pa

from pipeline.content.text import normal_form
from pipeline.contracts.schema import Reason, rejected_rows
from pipeline.keys import choice_words, find, one_array, sort_order, to_binary, words

ExactKey = Literal["url", "caption", "source"]
"""url: the same URL; caption: the same normal form of the caption; source: the same bytes were fetched."""

COLUMNS: dict[ExactKey, str] = {"url": "url", "caption": "caption", "source": "source_sha256"}
"""The column that each key is taken from."""

KEY_SCHEMA = pa.schema(
    [
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("key", pa.binary(16), nullable=False),
        pa.field("uid", pa.binary(16), nullable=False),
        pa.field("part", pa.int32(), nullable=False),
    ]
)
"""A pair with its key; `part` is the number of the file it lies in."""

GONE_SCHEMA = pa.schema(
    [
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("uid", pa.binary(16), nullable=False),
        pa.field("representative", pa.binary(16), nullable=False),
    ]
)
"""A pair that goes and the one that stays for it; `partition` is the number of the file it lies in."""

_REASONS = {"url": Reason.DUPLICATE_URL, "caption": Reason.DUPLICATE_CAPTION, "source": Reason.DUPLICATE_SOURCE}


def keys(table: pa.Table, by: ExactKey, partitions: int, part: int) -> pa.Table:
    """The keys (KEY_SCHEMA, sorted by partition, key and uid) of a table with uid and the column of `by`."""
    values = [_key(value, by) for value in table[COLUMNS[by]].to_pylist()]
    present = pa.array([value is not None for value in values], pa.bool_())
    found = words(pa.array([value for value in values if value is not None], pa.binary(16)))
    uids = words(table["uid"].filter(present))
    partition = (found[:, 0] % np.uint64(partitions)).astype(np.int32)
    order = np.lexsort((uids[:, 1], uids[:, 0], found[:, 1], found[:, 0], partition))
    columns = [partition[order], to_binary(found[order]), to_binary(uids[order]), np.full(len(order), part, np.int32)]
    return pa.table([pa.array(column) for column in columns], schema=KEY_SCHEMA)


def _key(value: str | bytes | None, by: ExactKey) -> bytes | None:
    """128 bits that stand for a URL as found, a caption's normal form, or a SHA-256."""
    if isinstance(value, bytes):
        return value[:16]
    if value is not None and by == "caption":
        value = normal_form(value)
    return hashlib.blake2b(value.encode("utf-8", "surrogatepass"), digest_size=16).digest() if value else None


def repeated(rows: pa.Table, by: ExactKey, seed: int) -> pa.Table:
    """The pairs of one partition (`key`, `uid`, `part` of KEY_SCHEMA, any order) that go (GONE_SCHEMA, by partition and uid)."""
    key, uids = words(rows["key"]), words(rows["uid"])
    chosen = choice_words(uids, seed, f"exact-{by}")
    order = sort_order(chosen, key[:, 0], key[:, 1])
    key, uids = key[order], uids[order]
    first = np.concatenate([[True], (key[1:] != key[:-1]).any(axis=1)])[: len(order)]
    stays = np.flatnonzero(first)[np.cumsum(first)[~first] - 1]
    part = one_array(rows["part"]).to_numpy(zero_copy_only=False)[order][~first]
    gone = [pa.array(part, pa.int32()), to_binary(uids[~first]), to_binary(uids[stays])]
    return pa.table(gone, schema=GONE_SCHEMA).take(pa.array(sort_order(uids[~first], part)))


def drop(table: pa.Table, gone: pa.Table, by: ExactKey) -> tuple[pa.Table, pa.Table]:
    """Rows as (those that stay, those that `gone` (uid and representative, any order) names, as REJECTED_SCHEMA), in their order."""
    place = find(words(table["uid"]), words(gone["uid"]))
    goes = place >= 0
    stays = gone["representative"].take(pa.array(place[goes])).to_pylist()
    detail = pa.array([f"{uid.hex()} stays" for uid in stays], pa.string())
    return table.filter(pa.array(~goes)), rejected_rows(table.filter(pa.array(goes)), _REASONS[by], detail)
