"""Rows that could be duplicates of each other get a block key in common; only rows of one block are ever compared.

`pair` (default) and `caption`: the bands of the caption's MinHash signature. `image`: sixteen 16-bit slots of the PDQ hash,
and the stored bytes' SHA-256. Keys go to partitions by their value; since all rows of a block are in one partition, its size, and
with it what is done about a hot one, is a fact of the corpus and not of the run.

Most rows resemble no other, so what comparing needs (caption, hashes) is fetched only for those that do: `keys` writes 24 bytes for each
key of a row, `shared` finds the keys that several rows have, `blocks` fetches their rows. Measured on generated captions, one row in
twelve is left.

A hot block (more than `max_block` rows: the caption "logo") is split, never dropped. In `pair` mode that happens here, so that no
partition gets it whole: its rows also have to share 8 bits of the picture's hash at one of 32 places (16 bits at one of 16 where the block
is 256 times too large), or the stored bytes. Two hashes at most 31 bits apart agree in one of 32 bytes, so nothing is lost. `edges`
splits what is still hot.

What the keys can find. Captions: with threshold 0.8 and 128 permutations, 14 bands of 9 values: a pair at similarity 0.8
meets with probability 0.87, at 0.9 with 0.999. Pictures: two PDQ hashes at most 15 bits apart share one of 16 slots with
certainty, at 31 bits nine times in ten. In `pair` mode the picture takes no part in blocking (short of splitting a hot block),
so nothing is lost for it.
"""

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipeline.content.forms import normal_forms
from pipeline.contracts.config import StrictModel
from pipeline.dedup.exact_keys import ExactKey
from pipeline.dedup.signatures import band_keys, bands_and_rows, minhash_forms, mix64
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

KEY_SCHEMA = pa.schema(
    [
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("block", pa.uint64(), nullable=False),
        pa.field("part", pa.int32(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
    ]
)
"""A key of a row: row `row` of the table with the number `part`."""

SHARED_SCHEMA = pa.schema(
    [
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
        pa.field("block", pa.uint64(), nullable=False),
        pa.field("slot_bits", pa.int8(), nullable=False),
    ]
)
"""A key that several rows have, filed under the table whose row it is (`partition` is its number); `slot_bits` is 0, or 8 or 16 where the
block is hot and is split by slots of so many bits."""


class Shared(NamedTuple):
    """The shared keys of a partition (SHARED_SCHEMA, sorted by table, row, block), and how many blocks they are."""

    table: pa.Table
    blocks: int
    hot: int  # that are split by picture
    largest: int  # rows


_SLOTS = 16
_TEXT_SALT, _SLOT_SALT, _BYTES_SALT = (np.uint64(salt) for salt in (0x1A, 0x2B, 0x3C))


def keys(table: pa.Table, config: DedupConfig, partitions: int, part: int = 0) -> pa.Table:
    """The keys (KEY_SCHEMA, sorted by partition, block, row) of rows with caption, image_sha256, pdq256 and pdq_quality.

    A row that has nothing to compare (a caption whose normal form is empty, or no picture in the modes that need one) has no key and
    is kept.
    """
    compared = _compared(table, config)
    places, found = _image_keys(compared, config) if config.by == "image" else _text_keys(compared, config)
    found, places = np.asarray(found, np.uint64), np.asarray(places, np.int64)
    partition = (found % np.uint64(partitions)).astype(np.int32)
    order = np.lexsort((places, found, partition))
    columns = [partition[order], found[order], np.full(len(order), part, np.int32), places[order].astype(np.int32)]
    return pa.table([pa.array(column) for column in columns], schema=KEY_SCHEMA)


def shared(key_rows: pa.Table, config: DedupConfig) -> Shared:
    """Those keys of one partition (KEY_SCHEMA, any order) that two rows or more have."""
    block, part, row = (
        one_array(key_rows[name]).to_numpy(zero_copy_only=False).astype(kind, copy=False)
        for name, kind in (("block", np.uint64), ("part", np.int32), ("row", np.int32))
    )
    order = np.argsort(block, kind="stable")
    ordered = block[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(ordered)])
    sizes = np.diff(np.append(starts, len(ordered)))
    bits = np.zeros(len(sizes), np.int8)
    if config.by == "pair":
        bits[sizes > config.max_block] = 8
        bits[sizes > config.max_block << 8] = 16
    kept = np.repeat(sizes > 1, sizes)
    rows = order[kept]
    slot_bits = np.repeat(bits, sizes)[kept]
    place = np.lexsort((block[rows], row[rows], part[rows]))
    columns = [part[rows][place], row[rows][place], block[rows][place], slot_bits[place]]
    table = pa.table([pa.array(column) for column in columns], schema=SHARED_SCHEMA)
    return Shared(table, int((sizes > 1).sum()), int((bits > 0).sum()), int(sizes.max(initial=0)))


def blocks(table: pa.Table, shared_rows: pa.Table, config: DedupConfig, partitions: int) -> pa.Table:
    """Block rows (BLOCK_SCHEMA, sorted by partition, block, uid) of a table, as in `keys` and with uid, and its shared keys
    (SHARED_SCHEMA, any order)."""
    places = one_array(shared_rows["row"]).to_numpy(zero_copy_only=False).astype(np.int64)
    found = one_array(shared_rows["block"]).to_numpy(zero_copy_only=False).astype(np.uint64)
    bits = one_array(shared_rows["slot_bits"]).to_numpy(zero_copy_only=False)
    used, at = np.unique(places, return_inverse=True)
    compared = _compared(table.take(pa.array(used)), config)
    at, found = _split_by_picture(compared, at.astype(np.int64), found, bits, config)
    partition = (found % np.uint64(partitions)).astype(np.int32)
    order = sort_order(words(compared["uid"])[at], partition, found)
    rows = compared.take(pa.array(at[order]))
    rows = rows.add_column(0, "block", pa.array(found[order]))
    return rows.add_column(0, "partition", pa.array(partition[order])).cast(BLOCK_SCHEMA)


def _compared(table: pa.Table, config: DedupConfig) -> pa.Table:
    """What comparing needs of each row; what the mode does not compare is null."""
    forms = normal_forms(table["caption"])
    texts = pc.if_else(pc.equal(forms, ""), None, forms)
    return pa.table(
        {
            "uid": table["uid"],
            "text": pa.nulls(len(texts), pa.string()) if config.by == "image" else texts,
            **{
                name: pa.nulls(len(texts), BLOCK_SCHEMA.field(name).type) if config.by == "caption" else table[name]
                for name in ("image_sha256", "pdq256", "pdq_quality")
            },
        }
    )


def _split_by_picture(
    rows: pa.Table, at: Indices, found: npt.NDArray[np.uint64], bits: npt.NDArray[np.int8], config: DedupConfig
) -> tuple[Indices, npt.NDArray[np.uint64]]:
    """Keys (row, block) with those of hot blocks replaced by one for each slot of the row's picture hash and one for its stored bytes."""
    parts = [(at[bits == 0], found[bits == 0])]
    good = has_good_pdq(rows, config)
    stored = np.asarray(one_array(rows["image_sha256"]).is_valid())
    for width in (8, 16):
        hot = bits == width
        hashed = hot & good[at]
        codes = np.ascontiguousarray(fixed_bytes(rows["pdq256"], 32)[at[hashed]]).view(f">u{width // 8}")
        slots = codes.astype(np.uint64) | np.arange(256 // width, dtype=np.uint64) << np.uint64(16)
        parts.append((np.repeat(at[hashed], 256 // width), mix64(found[hashed][:, None] ^ mix64(slots)).reshape(-1)))
        kept = hot & stored[at]
        heads = np.ascontiguousarray(fixed_bytes(rows["image_sha256"], 32)[at[kept], :8]).view(">u8").astype(np.uint64)
        parts.append((at[kept], mix64(found[kept] ^ mix64(heads.reshape(-1) ^ _BYTES_SALT))))
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


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
    signatures = minhash_forms(coded.dictionary, config.num_perm, config.seed)
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
