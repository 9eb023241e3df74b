"""Rows that could be duplicates of each other get a block key in common; only rows of one block are ever compared.

`pair` (default) and `caption`: the bands of the caption's MinHash signature. `image`: sixteen 16-bit slots of the PDQ hash,
and the stored bytes' SHA-256. A block carries all that comparing needs, so that the next step reads nothing else. Blocks go
to partitions by their key; since all rows of a block are in one partition, its size, and with it what is done about a hot
one, is a fact of the corpus and not of the run.

What the keys can find. Captions: with threshold 0.8 and 128 permutations, 14 bands of 9 values: a pair at similarity 0.8
meets with probability 0.87, at 0.9 with 0.999. Pictures: two PDQ hashes at most 15 bits apart share one of 16 slots with
certainty, at 31 bits nine times in ten. In `pair` mode the picture takes no part in blocking (short of splitting a hot block,
without loss), so nothing is lost for it.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from pipeline.content.text import normal_form
from pipeline.contracts.config import StrictModel
from pipeline.dedup.exact_keys import ExactKey
from pipeline.dedup.signatures import band_keys, bands_and_rows, minhash_texts, mix64
from pipeline.keys import Indices, fixed_bytes, one_array, sort_order, words


class DedupConfig(StrictModel):
    """What counts as the same pair again."""

    exact: tuple[ExactKey, ...] = ()
    """What may occur once, beside the identical pair, which always goes: url and caption (before the crawl), source (after it)."""
    by: Literal["pair", "caption", "image"] = "pair"
    """pair: near-equal caption and near-equal picture; caption, image: one of them is enough."""
    threshold: float = Field(default=0.8, gt=0.0, le=1.0)
    """Captions are near-equal from this Jaccard similarity of their shingles."""
    num_perm: int = Field(default=128, ge=16, le=1024)
    seed: int = Field(default=1, ge=0, lt=2**32)
    """Seed of the MinHash permutations, as in datasketch."""
    image_distance: int = Field(default=31, ge=0, le=31)
    """Pictures are near-equal up to this many differing bits of PDQ's 256 (31: the distance that PDQ's authors recommend)."""
    image_quality: int = Field(default=50, ge=0, le=100)
    """PDQ hashes of lower quality (flat pictures) are not compared; equal bytes still are."""
    max_block: int = Field(default=4096, ge=2)
    """Rows of one block that are compared all with all; a larger block is split further."""


BLOCK_SCHEMA = pa.schema(
    [
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("block", pa.uint64(), nullable=False),
        pa.field("uid", pa.binary(16), nullable=False),
        pa.field("text", pa.string()),
        pa.field("image_sha256", pa.binary(32)),
        pa.field("pdq256", pa.binary(32)),
        pa.field("pdq_quality", pa.uint8()),
    ]
)
"""A row in one of its blocks. `text` is the caption in normal form; what the mode does not compare is null."""

_SLOTS = 16
_TEXT_SALT, _SLOT_SALT, _BYTES_SALT = (np.uint64(salt) for salt in (0x1A, 0x2B, 0x3C))


def blocks(table: pa.Table, config: DedupConfig, partitions: int) -> pa.Table:
    """Block rows (BLOCK_SCHEMA, sorted by partition, block, uid) of rows with uid, caption, image_sha256, pdq256 and
    pdq_quality.

    A row that has nothing to compare (a caption whose normal form is empty, or no picture in the modes that need one) is in
    no block and is kept.
    """
    texts = [None if caption is None else normal_form(caption) or None for caption in table["caption"].to_pylist()]
    compared = pa.table(
        {
            "uid": table["uid"],
            "text": pa.nulls(len(texts), pa.string()) if config.by == "image" else pa.array(texts, pa.string()),
            **{
                name: pa.nulls(len(texts), BLOCK_SCHEMA.field(name).type) if config.by == "caption" else table[name]
                for name in ("image_sha256", "pdq256", "pdq_quality")
            },
        }
    )
    places, keys = _image_keys(compared, config) if config.by == "image" else _text_keys(compared, config)
    keys, places = np.asarray(keys, np.uint64), np.asarray(places, np.int64)
    partition = (keys % np.uint64(partitions)).astype(np.int32)
    order = sort_order(words(compared["uid"])[places], partition, keys)
    rows = compared.take(pa.array(places[order]))
    rows = rows.add_column(0, "block", pa.array(keys[order]))
    return rows.add_column(0, "partition", pa.array(partition[order])).cast(BLOCK_SCHEMA)


def has_good_pdq(table: pa.Table, config: DedupConfig) -> npt.NDArray[np.bool_]:
    """Whether each row has a PDQ hash whose quality allows comparing it."""
    quality = one_array(table["pdq_quality"]).fill_null(0).to_numpy(zero_copy_only=False)
    valid: npt.NDArray[np.bool_] = np.asarray(one_array(table["pdq256"]).is_valid())
    good: npt.NDArray[np.bool_] = valid & (quality >= config.image_quality)
    return good


def _text_keys(table: pa.Table, config: DedupConfig) -> tuple[Indices, npt.NDArray[np.uint64]]:
    """(row, key) for every band of every row that can be compared."""
    usable = np.asarray(one_array(table["text"]).is_valid())
    if config.by == "pair":
        usable &= np.asarray(one_array(table["image_sha256"]).is_valid()) | has_good_pdq(table, config)
    places = np.flatnonzero(usable)
    coded = one_array(table["text"].take(pa.array(places))).dictionary_encode()
    bands, rows = bands_and_rows(config.threshold, config.num_perm)
    signatures = minhash_texts(coded.dictionary.to_pylist(), config.num_perm, config.seed)
    keys = mix64(band_keys(signatures, bands, rows) ^ _TEXT_SALT)[coded.indices.to_numpy(zero_copy_only=False)]
    return np.repeat(places, bands), keys.reshape(-1)


def _image_keys(table: pa.Table, config: DedupConfig) -> tuple[Indices, npt.NDArray[np.uint64]]:
    """(row, key) for every slot of the PDQ hash and for the stored bytes."""
    hashed = np.flatnonzero(has_good_pdq(table, config))
    slots = np.ascontiguousarray(fixed_bytes(table["pdq256"], 32)[hashed]).view(">u2").astype(np.uint64)
    slots |= np.arange(_SLOTS, dtype=np.uint64) << np.uint64(16)
    stored = np.flatnonzero(np.asarray(one_array(table["image_sha256"]).is_valid()))
    heads = np.ascontiguousarray(fixed_bytes(table["image_sha256"], 32)[stored, :8]).view(">u8").astype(np.uint64)
    places = np.concatenate([np.repeat(hashed, _SLOTS), stored])
    keys = [mix64(mix64(slots.reshape(-1)) ^ _SLOT_SALT), mix64(heads.reshape(-1) ^ _BYTES_SALT)]
    return places, np.concatenate(keys)
