"""Survivors → shards. A shard is an equal range of the uid space, so every shard is a fair sample of the corpus, and shards
in their order are the corpus in uid order, without a global sort.

The number of shards follows from the number of rows, or from the bytes of their pictures; uids are hashes, so shards differ in rows by
about the square root of their size. Files are written by `contracts.manifest.write_shard`: the same rows give the same bytes.
"""

from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pydantic
from pydantic import Field

from pipeline.contracts.config import StrictModel
from pipeline.contracts.schema import SHARD_SCHEMA
from pipeline.keys import sort_order, take_rows, words

DEFAULT_ROWS = 10_000


class ShardConfig(StrictModel):
    """How large a shard is: by rows or by bytes, whichever is given; 10,000 rows when neither is."""

    rows: int | None = Field(default=None, ge=1)
    """Rows per shard, on average at most this many."""
    bytes: int | None = Field(default=None, ge=1)
    """Bytes of stored pictures per shard, on average at most this many; 268_435_456 (256 MiB) suits object stores."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _one_of_the_two(cls, given: Any) -> Any:
        if isinstance(given, dict):
            rows, size = given.get("rows"), given.get("bytes")
            if rows is not None and size is not None:
                raise ValueError(
                    f"rows={rows!r} and bytes={size!r} are both given; a shard has one size: remove one of them"
                )
            if rows is None and size is None:
                return {**given, "rows": DEFAULT_ROWS}
        return given


def shard_count(total: int, per_shard: int) -> int:
    """How many shards `total` rows (or bytes) make at `per_shard` each: at least one."""
    return max(1, -(-total // per_shard))


def shard_of(uids: pa.Array | pa.ChunkedArray, shards: int) -> npt.NDArray[np.int32]:
    """The shard of each uid, int32 in [0, shards): shard i holds the uids whose first 32 bits h have floor(h * shards /
    2**32) = i."""
    first = words(uids)[:, 0] >> np.uint64(32)
    return cast(npt.NDArray[np.int32], ((first * np.uint64(shards)) >> np.uint64(32)).astype(np.int32))


def shard_table(rows: pa.Table) -> pa.Table:
    """The rows of one shard in SHARD_SCHEMA, sorted by uid; columns that are absent become null.

    Every column is one chunk, but for pictures of more than 1 GiB: one Arrow array of 32-bit offsets ends at 2 GiB.
    """
    columns = [
        rows[field.name].cast(field.type) if field.name in rows.column_names else pa.nulls(rows.num_rows, field.type)
        for field in SHARD_SCHEMA
    ]
    return take_rows(pa.table(columns, schema=SHARD_SCHEMA), sort_order(words(rows["uid"])))
