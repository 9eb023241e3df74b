"""Survivors → shards. A shard is an equal range of the uid space, so every shard is a fair sample of the corpus, and shards
in their order are the corpus in uid order, without a global sort.

The number of shards follows from the number of rows; uids are hashes, so shards differ in rows by about the square root of
their size. Files are written by `contracts.manifest.write_shard`: the same rows give the same bytes.
"""

from typing import cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from pipeline.contracts.config import StrictModel
from pipeline.contracts.schema import SHARD_SCHEMA
from pipeline.keys import one_array, sort_order, words


class ShardConfig(StrictModel):
    """How large a shard is."""

    rows: int = Field(default=10_000, ge=1)
    """Rows per shard, on average at most this many."""


def shard_count(total_rows: int, rows_per_shard: int) -> int:
    """How many shards a corpus of `total_rows` gets: at least one."""
    return max(1, -(-total_rows // rows_per_shard))


def shard_of(uids: pa.Array | pa.ChunkedArray, shards: int) -> npt.NDArray[np.int32]:
    """The shard of each uid, int32 in [0, shards): shard i holds the uids whose first 32 bits h have floor(h * shards /
    2**32) = i."""
    first = words(uids)[:, 0] >> np.uint64(32)
    return cast(npt.NDArray[np.int32], ((first * np.uint64(shards)) >> np.uint64(32)).astype(np.int32))


def shard_table(rows: pa.Table) -> pa.Table:
    """The rows of one shard in SHARD_SCHEMA, sorted by uid, in one chunk; columns that are absent become null.

    A picture column may exceed what one Arrow array of 32-bit offsets holds (2 GiB); shards are far smaller.
    """
    columns = [
        rows[field.name].cast(field.type) if field.name in rows.column_names else pa.nulls(rows.num_rows, field.type)
        for field in SHARD_SCHEMA
    ]
    ordered = pa.table(columns, schema=SHARD_SCHEMA).take(pa.array(sort_order(words(rows["uid"]))))
    return pa.table([one_array(column) for column in ordered.columns], schema=SHARD_SCHEMA)
