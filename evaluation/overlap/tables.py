"""The columns of the overlap job's tables: codes, pairs, splits. Loads pyarrow and nothing heavier, so that a report is read quickly."""

from __future__ import annotations

import pyarrow as pa

INDEX_COLUMNS = ["uid", "url", "caption", "source_sha256", "image_sha256", "phash64", "pdq256", "pdq_quality"]

METHODS = ("source_sha256", "image_sha256", "pdq", "phash")  # strongest first

PREDICTIONS_VERSION = 1
"""Of the predictions file (`zeroshot.PREDICTION_SCHEMA` and its metadata); compared when it is read."""

CODE_SCHEMA = pa.schema(
    [
        pa.field("eval_row", pa.int64(), nullable=False),
        pa.field("eval_id", pa.string(), nullable=False),
        pa.field("sha256", pa.binary(32), nullable=False),
        pa.field("phash64", pa.uint64(), nullable=False),
        pa.field("pdq256", pa.binary(32), nullable=False),
        pa.field("pdq_quality", pa.uint8(), nullable=False),
    ]
)
"""One evaluation picture's identity and hashes."""

PAIR_SCHEMA = pa.schema(
    [
        pa.field("set", pa.string(), nullable=False),
        pa.field("eval_row", pa.int64(), nullable=False),
        pa.field("eval_id", pa.string(), nullable=False),
        pa.field("eval_sha256", pa.binary(32), nullable=False),
        pa.field("uid", pa.binary(16), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("url", pa.string()),
        pa.field("caption", pa.string()),
        pa.field("method", pa.string(), nullable=False),
        pa.field("source_exact", pa.bool_(), nullable=False),
        pa.field("stored_exact", pa.bool_(), nullable=False),
        pa.field("pdq_distance", pa.int32()),
        pa.field("phash_distance", pa.int32()),
        pa.field("source_sha256", pa.binary(32)),
        pa.field("image_sha256", pa.binary(32)),
        pa.field("pdq256", pa.binary(32)),
        pa.field("phash64", pa.uint64()),
        pa.field("pdq_quality", pa.uint8()),
    ]
)
"""One matched pair. The hashes are the corpus side's, so that every distance can be computed again; `method` is the strongest match."""

KEYED_PAIR_SCHEMA = pa.schema([*PAIR_SCHEMA, pa.field("key", pa.string())])
"""A row of pairs.parquet: PAIR_SCHEMA, and what a corpus that others wrote calls the row (a sample's name, a key column, a file's path)."""

PLACED_INDEX_SCHEMA = pa.schema(
    [
        pa.field("uid", pa.binary(16), nullable=False),
        pa.field("url", pa.string()),
        pa.field("caption", pa.string()),
        pa.field("source_sha256", pa.binary(32)),
        pa.field("image_sha256", pa.binary(32), nullable=False),
        pa.field("phash64", pa.uint64(), nullable=False),
        pa.field("pdq256", pa.binary(32), nullable=False),
        pa.field("pdq_quality", pa.uint8(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("key", pa.string()),
    ]
)
"""The index that the job makes of a file that others wrote: INDEX_COLUMNS, and where in the file the row is. `source_sha256` is null unless
the corpus states the hash of the bytes as they were fetched."""

SPLIT_SCHEMA = pa.schema(
    [
        pa.field("eval_row", pa.int64(), nullable=False),
        pa.field("eval_id", pa.string(), nullable=False),
        pa.field("sha256", pa.binary(32), nullable=False),
        pa.field("cluster", pa.int64(), nullable=False),
        pa.field("label", pa.int32()),
        pa.field("in_overlap", pa.bool_(), nullable=False),
        pa.field("method", pa.string()),
        pa.field("pairs", pa.int64(), nullable=False),
        pa.field("pdq_distance", pa.int32()),
        pa.field("phash_distance", pa.int32()),
        pa.field("pdq256", pa.binary(32), nullable=False),
        pa.field("phash64", pa.uint64(), nullable=False),
        pa.field("pdq_quality", pa.uint8(), nullable=False),
        pa.field("correct", pa.bool_()),
    ]
)
"""One example. `cluster` is the first example (its `eval_row`) of those that show the same picture; `method` is the strongest match, the
distances are the smallest over its pairs; `correct` is null where not scored."""
