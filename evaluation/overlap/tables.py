"""The columns of the overlap job's tables: codes, pairs, splits. Loads pyarrow and nothing heavier, so that a report is read quickly."""

from __future__ import annotations

import pyarrow as pa

INDEX_COLUMNS = ["uid", "url", "caption", "source_sha256", "image_sha256", "phash64", "pdq256", "pdq_quality"]

METHODS = ("source_sha256", "image_sha256", "pdq", "phash", "descriptor")  # strongest first
EXACT = METHODS[:2]
TEXT_METHODS = ("exact", "contained", "near")  # strongest first

PREDICTIONS_VERSION = 2
"""Of the predictions file (PREDICTION_SCHEMA and its metadata); compared when it is read. 2: scores, p, p_label,
logit_scale."""

PREDICTION_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("eval_id", pa.string(), nullable=False),
        pa.field("sha256", pa.binary(32), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("prediction", pa.int32(), nullable=False),
        pa.field("top5", pa.list_(pa.int32()), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("correct", pa.bool_(), nullable=False),
        pa.field("subgroup", pa.string()),
        pa.field("group", pa.string()),
        pa.field("scores", pa.list_(pa.float32())),
        pa.field("p", pa.float32()),
        pa.field("p_label", pa.float32()),
    ]
)
"""One row per labelled example (frame). `score` is the cosine of the predicted class, of a video its mean probability, of a probe its
probability; all frames of a video have its answer. `label` is -1 where an example has several; `scores` (of every class) are written
where the metric needs them or they are asked for. `p` and `p_label` are the probabilities of the predicted class and of the label at the
model's logit scale, null where it has none.
"""

PREDICTION_METADATA = (
    "format_version",
    "set_content_hash",
    "model_sha256",
    "content_root",
    "logit_scale",
    "samples_seen",
    "seed",
    "window_row_groups",
    "init_sha256",
)
"""What a predictions file says of model and set. The last four, how far training had come, are absent where a card does not say it."""

_SET = pa.field("set", pa.string(), nullable=False)
_EXAMPLE = (pa.field("eval_row", pa.int64(), nullable=False), pa.field("eval_id", pa.string(), nullable=False))
_CORPUS_ROW = (
    pa.field("uid", pa.binary(16), nullable=False),
    pa.field("shard", pa.string(), nullable=False),
    pa.field("row", pa.int64(), nullable=False),
    pa.field("url", pa.string()),
    pa.field("caption", pa.string()),
)
"""Where a row of the corpus is, and what is said of it; URL and caption are withheld by hash-only."""

_MEASURE = pa.field("measure", pa.string(), nullable=False)
_LIKENESS = (
    pa.field("descriptor_cosine", pa.float64()),
    pa.field("descriptor_score", pa.float64()),
    pa.field("descriptor_view", pa.int64()),
)
"""What the descriptor says, whatever found the pair: the score, its cosine, and which part of the example it is of (`descriptor.views`);
null where the job had no descriptor, or one of the two pictures has no vector."""

CODE_SCHEMA = pa.schema(
    [
        *_EXAMPLE,
        pa.field("sha256", pa.binary(32), nullable=False),
        pa.field("phash64", pa.uint64(), nullable=False),
        pa.field("pdq256", pa.binary(32), nullable=False),
        pa.field("pdq_quality", pa.uint8(), nullable=False),
    ]
)
"""One evaluation picture's identity and hashes."""

PAIR_SCHEMA = pa.schema(
    [
        _SET,
        *_EXAMPLE,
        pa.field("eval_sha256", pa.binary(32), nullable=False),
        *_CORPUS_ROW,
        pa.field("method", pa.string(), nullable=False),
        pa.field("source_exact", pa.bool_(), nullable=False),
        pa.field("stored_exact", pa.bool_(), nullable=False),
        pa.field("pdq_distance", pa.int32()),
        pa.field("phash_distance", pa.int32()),
        *_LIKENESS,
        pa.field("source_sha256", pa.binary(32)),
        pa.field("image_sha256", pa.binary(32)),
        pa.field("pdq256", pa.binary(32)),
        pa.field("phash64", pa.uint64()),
        pa.field("pdq_quality", pa.uint8()),
    ]
)
"""One matched pair (which of many are held: `overlap.kept`). The hashes are the corpus side's, so that every distance can be computed
again; `method` is the strongest match."""

VIEW_SCHEMA = pa.schema(
    [
        pa.field("eval_row", pa.int64(), nullable=False),
        pa.field("view", pa.int64(), nullable=False),
        pa.field("vector", pa.binary(), nullable=False),
    ]
)
"""One view of an evaluation picture; `vector` is int8[d] as bytes. Flat views have no row."""

VECTOR_SCHEMA = pa.schema([pa.field("uid", pa.binary(16), nullable=False), pa.field("vector", pa.binary())])
"""A row of an index's side table, in the index's order; `vector` is int8[d] as bytes, null where there is no picture, or it cannot be
opened or is flat."""

FOUND_SCHEMA = pa.schema(
    [
        pa.field("set", pa.string(), nullable=False),
        pa.field("eval_row", pa.int64(), nullable=False),
        pa.field("pairs", pa.int64(), nullable=False),
        pa.field("phash_distance", pa.int32()),
        pa.field("descriptor_score", pa.float64()),
    ]
)
"""What there is of one example: the number of all its pairs, the least pHash distance and the largest score over them (null: of no pair
known)."""

MATCHED_SCHEMA = pa.schema(
    [
        pa.field("uid", pa.binary(16), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
    ]
)
"""One corpus row that matches an example, or a caption, of any set."""

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

NEAREST_SCHEMA = pa.schema(
    [
        _SET,
        *_EXAMPLE,
        _MEASURE,
        pa.field("pdq_distance", pa.int32(), nullable=False),
        *_LIKENESS,
        *_CORPUS_ROW,
        pa.field("pdq256", pa.binary(32), nullable=False),
        pa.field("pdq_quality", pa.uint8(), nullable=False),
    ]
)
"""One sampled example and the corpus row that is nearest by the `measure` (`overlap.measures`): the one of the least PDQ distance, or of
the highest score; match or not. The hashes are the corpus side's."""

LABEL_SCHEMA = pa.schema(
    [
        _SET,
        *_EXAMPLE,
        _MEASURE,
        pa.field("uid", pa.binary(16), nullable=False),
        pa.field("pdq_distance", pa.int32(), nullable=False),
        pa.field("descriptor_score", pa.float64()),
        pa.field("rater", pa.string(), nullable=False),
        pa.field("answer", pa.string(), nullable=False),
    ]
)
"""What one person said of one sampled example and its nearest corpus picture by the `measure`: same, different, unsure."""

COPY_SCHEMA = pa.schema(
    [
        _SET,
        *_EXAMPLE,
        pa.field("transform", pa.string(), nullable=False),
        pa.field("pdq_distance", pa.int32(), nullable=False),
        pa.field("phash_distance", pa.int32(), nullable=False),
        pa.field("pdq_quality", pa.uint8(), nullable=False),
        pa.field("descriptor_score", pa.float64()),
    ]
)
"""One changed copy of an example and how far its hashes are from the original's; `pdq_quality` is the lower one of the two.
`descriptor_score` as in a pair."""

SPLIT_SCHEMA = pa.schema(
    [
        *_EXAMPLE,
        pa.field("sha256", pa.binary(32), nullable=False),
        pa.field("group", pa.string()),
        pa.field("cluster", pa.int64(), nullable=False),
        pa.field("label", pa.int32()),
        pa.field("in_overlap", pa.bool_(), nullable=False),
        pa.field("method", pa.string()),
        pa.field("pairs", pa.int64(), nullable=False),
        pa.field("pdq_distance", pa.int32()),
        pa.field("phash_distance", pa.int32()),
        pa.field("descriptor_score", pa.float64()),
        pa.field("pdq256", pa.binary(32), nullable=False),
        pa.field("phash64", pa.uint64(), nullable=False),
        pa.field("pdq_quality", pa.uint8(), nullable=False),
        pa.field("correct", pa.bool_()),
    ]
)
"""One picture of a set: an example, or a frame of the video that `group` names (see `examples`). `cluster` is the first row (its
`eval_row`) of those that show the same picture; `method` is the strongest match, the distances are the smallest and the score is the
largest over its `pairs`, held or not; `correct` is null where not scored."""

TEXT_COLUMNS = (
    pa.field("caption", pa.string()),
    pa.field("text", pa.int64()),
    pa.field("text_sha256", pa.binary(32)),
    pa.field("text_tokens", pa.int32()),
    pa.field("text_method", pa.string()),
    pa.field("text_score", pa.float64()),
    pa.field("text_pairs", pa.int64()),
)
"""What a split says of an example's caption; null without one. `text` is the first example (its `eval_row`) with the same token form
(see `text.py`), whose sha256 is `text_sha256`; `text_method` and `text_score` are those of its best pair, `text_pairs` counts all.
`caption` is withheld by hash-only."""

SCORE_COLUMNS = (
    pa.field("top5", pa.list_(pa.int32())),
    pa.field("scores", pa.list_(pa.float32())),
    pa.field("marks", pa.list_(pa.int8())),
)
"""What a set's own metric needs of an example beside `label` and `correct`, null where it does not: the best classes (mean_top1_top5),
every class's score (roc_auc, map11), every class's mark (map11: 1, 0, IGNORED)."""

TEXT_PAIR_SCHEMA = pa.schema(
    [
        _SET,
        pa.field("text", pa.int64(), nullable=False),
        pa.field("text_sha256", pa.binary(32), nullable=False),
        *_CORPUS_ROW,
        pa.field("caption_sha256", pa.binary(32), nullable=False),
        pa.field("method", pa.string(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
        pa.field("with_picture", pa.bool_(), nullable=False),
    ]
)
"""One caption of a set in one corpus row. `caption` is the corpus's, `caption_sha256` that of its token form; see `text.py` for the
score. `with_picture`: the same row shows, by a pair of the table, an example with this caption."""

TEXT_FOUND_SCHEMA = pa.schema(
    [
        pa.field("set", pa.string(), nullable=False),
        pa.field("text", pa.int64(), nullable=False),
        pa.field("pairs", pa.int64(), nullable=False),
    ]
)
"""How many pairs one caption of a set has."""

CLASS_SCHEMA = pa.schema(
    [
        _SET,
        pa.field("label", pa.int32(), nullable=False),
        pa.field("names", pa.string(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
    ]
)
"""One class of a set that has a name: what it may be called, with `|` between names, and how many corpus rows have a caption in which one
of these stands."""

KEY = pa.field("key", pa.string())
"""What a corpus that others wrote calls a row: a sample's name, a key column, a file's path. Null in a corpus of this project."""

CAPTIONED = pa.field("captioned", pa.bool_())
"""Whether a corpus row has a caption, withheld or not; null where a foreign index does not say."""

EXPOSURE_COLUMNS = (pa.field("first_sample", pa.int64()), pa.field("seen", pa.bool_()))
"""Of a pair's corpus row, or of an example over its pairs: at which sample the model's training run first showed it (from 0; null: never,
or not known), and whether the checkpoint had come so far (null: not known, or the example is Clean). See `exposure`."""

ROW_GROUP_SCHEMA = pa.schema(
    [pa.field("shard", pa.string(), nullable=False), pa.field("rows", pa.int64(), nullable=False)]
)
"""One row group of the corpus, in the manifest's order: what a sample order depends on beside a seed and a window. None of foreign
files."""

PUBLISHED_PAIR_SCHEMA = pa.schema(
    [*PAIR_SCHEMA, KEY, CAPTIONED, *EXPOSURE_COLUMNS, pa.field("names_label", pa.bool_())]
)
"""`names_label`: does the corpus row's caption name the example's class? Null where there is no caption, no label or no name."""

PUBLISHED_TEXT_PAIR_SCHEMA = TEXT_PAIR_SCHEMA.append(KEY)

PUBLISHED_SPLIT_SCHEMA = pa.schema([*SPLIT_SCHEMA, *TEXT_COLUMNS, *SCORE_COLUMNS, *EXPOSURE_COLUMNS])
