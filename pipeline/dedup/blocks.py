"""Rows that could be duplicates of each other get a block key in common; only rows of one block are ever compared.

`pair` (default) and `caption`: the bands of the caption's MinHash signature, and all bands together. `image`: sixteen 16-bit slots of the
PDQ hash, and the stored bytes' SHA-256. Keys go to partitions by their value, so that all rows of a block meet in one partition; a block
and what is done about its size are facts of the corpus and not of the run.

Most rows resemble no other, so what comparing needs (caption, hashes) is fetched only for those that do: `keys` writes a short row for each
key, `shared` finds the keys that several rows have, `blocks` fetches their rows. Copies (dedup/copies.py) take no part: only originals are
given to these functions. Rows of a table that have one caption are one item, with a count: however often a caption occurs, a partition of
keys gets it once a table and key.

One caption on many pictures. Rows with equal signatures share every band; they meet in the block of all bands together, so a band in which
nobody else is tells nothing and is dropped. Where exactly one caption of a band's block is hot by itself (more than `max_block` rows: the
caption "logo"), the others come to that caption's own block instead of its rows coming to theirs, in up to fourteen bands.

A hot block (more than `max_block` rows) is split, never dropped, and partitions are counted by what comes of the split:

* `pair`: rows also have to share a byte of the picture's hash, at one of 32 places, or the stored bytes. Hashes at most 31 bits apart agree
  in one of 32 bytes: nothing is lost. A block more than 64 times too large is split by two neighbouring bytes: of pairs that differ in 31
  random bits 1.5 % are lost, of those in 23 bits 0.02 %.
* `image`: a slot's block is split in the same way by the bytes outside the slot. Nothing is lost up to 29 bits, and less than one pair in a
  million at 31; by two bytes 4 % at 31 bits, 0.1 % at 23. (Of 400 million pictures 6,100 share a slot on average: not hot by itself.)
* `caption`: rows also have to share a group of the signature's values outside the band. At threshold 0.8 there are 23 groups of 5, and one
  pair in 10,000 at the threshold shares none; at other thresholds at most one in 1,000, short of very low ones.

What the keys find at all. Captions: with threshold 0.8 and 128 permutations, 14 bands of 9 values: a pair at similarity 0.8 meets with
probability 0.87, at 0.9 with 0.999. Pictures (`image`): two PDQ hashes at most 15 bits apart share one of 16 slots with certainty, at 31
bits nine times in ten. In `pair` mode the picture takes no part in blocking, short of splitting, so nothing is lost for it.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.dedup.compared import DedupConfig, comparable, compared, has_good_pdq
from pipeline.dedup.signatures import band_keys, bands_and_rows, minhash_forms, mix64
from pipeline.keys import Indices, fixed_bytes, one_array, sort_order, words

Keys = npt.NDArray[np.uint64]

KEY_SCHEMA = pa.schema(
    [
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("block", pa.uint64(), nullable=False),
        pa.field("whole", pa.uint64(), nullable=False),
        pa.field("part", pa.int32(), nullable=False),
        pa.field("item", pa.int32(), nullable=False),
        pa.field("rows", pa.int32(), nullable=False),
    ]
)
"""A key of an item, which is all rows of the table number `part` that have one caption (`image`: a row). `whole` is the key of all bands
together; items that have it in common share every band."""

SHARED_SCHEMA = pa.schema(
    [
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("item", pa.int32(), nullable=False),
        pa.field("block", pa.uint64(), nullable=False),
        pa.field("width", pa.int8(), nullable=False),
    ]
)
"""A block that an item shares with others, filed under the table whose item it is (`partition` is its number); `width` is 0, or where the
block is hot 1 or 2: the bytes of the picture's hash by which it is split."""

BLOCK_SCHEMA = pa.schema(
    [
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("block", pa.uint64(), nullable=False),
        pa.field("place", pa.int64(), nullable=False),
        pa.field("uid", pa.binary(16), nullable=False),
        pa.field("part", pa.int32(), nullable=False),
        pa.field("text", pa.string()),
        pa.field("image_sha256", pa.binary(32)),
        pa.field("pdq256", pa.binary(32)),
        pa.field("pdq_quality", pa.uint8()),
    ]
)
"""A row of table `part` in one of its blocks. `text` is the caption in normal form; what the mode does not compare is null.

`place` says which part of a split block this is, -1 where it is whole, so that a pair is compared in the first part only that it shares:
`pair`: 0 for the stored bytes, 1 + a byte's number in the picture's hash, 33 + the first one's number of two bytes; `caption`: of the
group that is shared its number, the values of a group times GROUP_VALUES, and the place in the signature where the first group begins times
GROUP_START; `image`: -1 always, for comparing costs less than to know.
"""

_SLOTS = 16
_OCTETS = 32  # of a PDQ hash
_FIRST_PLACE = {1: 1, 2: 1 + _OCTETS}  # of the parts by one byte, and by two
_WIDE = (
    64  # a block this many times too large is split by two bytes: by one, a part would have a quarter of what it may
)
GROUP_VALUES, GROUP_START = 1 << 11, 1 << 22
_MISSED = 1e-3  # of the pairs at the threshold, by splitting captions
_TEXT_SALT, _SLOT_SALT, _BYTES_SALT, _PART_SALT = (np.uint64(salt) for salt in (0x1A, 0x2B, 0x3C, 0x4D))


class Shared(NamedTuple):
    """The shared keys of a partition (SHARED_SCHEMA, sorted by table, item, block), and what they come to."""

    table: pa.Table
    blocks: int
    hot: int  # blocks that are split
    largest: int  # rows
    block_rows: int  # what `blocks` makes of them over all tables, at most


# ---- keys: per table


def keys(table: pa.Table, config: DedupConfig, partitions: int, part: int = 0) -> pa.Table:
    """The keys (KEY_SCHEMA, sorted by partition and item) of the originals of table number `part`.

    A row that cannot be compared has no key, and so is kept.
    """
    items = _items(compared(table, config), config)
    found, whole = _item_keys(items.rows, config)
    item, place = np.nonzero(found.present)
    block = found.keys[item, place]
    partition = (block % np.uint64(partitions)).astype(np.int32)
    order = np.argsort(partition, kind="stable")
    item = item[order]
    columns = [partition[order], block[order], whole[item], np.full(len(order), part, np.int32), item.astype(np.int32),
               np.diff(items.starts)[item].astype(np.int32)]  # fmt: skip
    return pa.table([pa.array(column) for column in columns], schema=KEY_SCHEMA)


class _Items(NamedTuple):
    """The items of a table: item i is the rows `members[starts[i]:starts[i + 1]]`, and `rows` holds the first of each."""

    members: Indices
    starts: Indices
    rows: pa.Table


def _items(rows: pa.Table, config: DedupConfig) -> _Items:
    places = np.flatnonzero(comparable(rows, config))
    if config.by == "image":
        return _Items(places, np.arange(len(places) + 1), rows.take(pa.array(places)))
    code = one_array(rows["text"].take(pa.array(places))).dictionary_encode().indices.to_numpy(zero_copy_only=False)
    order = np.argsort(code, kind="stable")
    starts = np.searchsorted(code[order], np.arange(code.max(initial=-1) + 2)).astype(np.int64)
    members = places[order]
    return _Items(members, starts, rows.take(pa.array(members[starts[:-1]])))


class _Keys(NamedTuple):
    """Keys of shape (items, keys of an item), and which of them there are."""

    keys: Keys
    present: npt.NDArray[np.bool_]


def _item_keys(rows: pa.Table, config: DedupConfig) -> tuple[_Keys, Keys]:
    """The keys of items by their rows, and each item's whole key: all bands together, which is itself the last key; in `image` one of
    its own for every item."""
    if config.by == "image":
        slots, good = _slot_keys(rows), has_good_pdq(rows, config)
        stored = np.asarray(one_array(rows["image_sha256"]).is_valid())
        heads = mix64(_heads(rows) ^ _BYTES_SALT)
        present = np.concatenate([np.repeat(good[:, None], _SLOTS, axis=1), stored[:, None]], axis=1)
        # Two originals may have the same hash or the same bytes, but not both.
        whole = _folded(np.where(good[:, None], slots, np.uint64(0))) ^ heads
        return _Keys(np.concatenate([slots, heads[:, None]], axis=1), present), whole
    bands, values = bands_and_rows(config.threshold, config.num_perm)
    found = mix64(band_keys(_signatures(rows, config), bands, values) ^ _TEXT_SALT)
    whole = _folded(found)
    return _Keys(np.concatenate([found, whole[:, None]], axis=1), np.ones((len(found), bands + 1), np.bool_)), whole


def signatures(texts: pa.Array, config: DedupConfig) -> npt.NDArray[np.uint32]:
    """MinHash of captions in normal form: (n, num_perm)."""
    return minhash_forms(texts, config.num_perm, config.seed)


def _signatures(rows: pa.Table, config: DedupConfig) -> npt.NDArray[np.uint32]:
    return signatures(one_array(rows["text"]), config)


def _slot_keys(rows: pa.Table) -> Keys:
    """A key for each 16-bit slot of the PDQ hash, of shape (rows, 16)."""
    slots = np.ascontiguousarray(fixed_bytes(rows["pdq256"], 32)).view(">u2").astype(np.uint64)
    return mix64(mix64(slots | np.arange(_SLOTS, dtype=np.uint64) << np.uint64(16)) ^ _SLOT_SALT)


def _heads(rows: pa.Table) -> Keys:
    """The first 64 bits of the stored bytes' SHA-256."""
    heads = np.ascontiguousarray(fixed_bytes(rows["image_sha256"], 32)[:, :8]).view(">u8")
    return heads.astype(np.uint64).reshape(-1)


def _folded(found: Keys) -> Keys:
    """One key for each row of keys."""
    folded = np.full(len(found), _PART_SALT, np.uint64)
    for place in range(found.shape[1]):
        folded = mix64(folded ^ found[:, place])
    return folded


# ---- shared: per partition of keys


def shared(key_rows: pa.Table, config: DedupConfig) -> Shared:
    """Those blocks of one partition (KEY_SCHEMA, any order) in which two rows or more can be duplicates."""
    block, whole, part, item, rows = (
        one_array(key_rows[name]).to_numpy(zero_copy_only=False) for name in KEY_SCHEMA.names if name != "partition"
    )
    # Most keys are met once.
    order = np.argsort(block)
    again = block[order][1:] == block[order][:-1]
    met = np.concatenate([again, [False]])[: len(order)] | np.concatenate([[False], again])[: len(order)]
    order = order[met | (rows[order] > 1)]
    order = order[np.lexsort((whole[order], block[order]))]
    block, whole, rows = block[order], whole[order], rows[order]
    # Numbers of the block and of the caption within it; captions with equal signatures count as one.
    starts = np.concatenate([[True], block[1:] != block[:-1]])[: len(block)]
    block_of = np.cumsum(starts) - 1
    firsts = starts | np.concatenate([[True], whole[1:] != whole[:-1]])[: len(block)]
    text_of = np.cumsum(firsts) - 1
    block_rows, text_rows = np.bincount(block_of, rows), np.bincount(text_of, rows)
    text_block = block_of[firsts]
    texts = np.bincount(text_block)
    of_whole = (block == whole)[starts]
    hot_text = (text_rows > config.max_block) & ~of_whole[text_block]
    hub = np.full(len(texts), -1)
    hub[text_block[hot_text]] = np.flatnonzero(hot_text)
    hub[(np.bincount(text_block, hot_text) != 1) | (texts == 1)] = -1
    has_hub = hub >= 0
    # The block itself, without its hub.
    block_rows[has_hub] -= text_rows[hub[has_hub]]
    texts[has_hub] -= 1
    tells = np.where(of_whole, block_rows > 1, texts > 1)
    width = _width(block_rows, config.max_block) * tells
    stays = np.flatnonzero(tells[block_of] & (hub[block_of] != text_of))
    # The other rows of a block with a hub come to the hub's own block.
    comes = np.flatnonzero(has_hub[block_of] & (hub[block_of] != text_of))
    hub_of = hub[block_of[comes]]
    hubs = np.flatnonzero(firsts)
    columns = [
        part[order[np.concatenate([stays, comes])]],
        item[order[np.concatenate([stays, comes])]],
        np.concatenate([block[stays], whole[hubs[hub_of]]]),
        np.concatenate([width[block_of[stays]], _width(text_rows[hub_of], config.max_block)]).astype(np.int8),
    ]
    place = np.lexsort((columns[2], columns[1], columns[0]))
    table = pa.table([pa.array(column[place]) for column in columns], schema=SHARED_SCHEMA)
    made = rows[np.concatenate([stays, comes])] * np.where(columns[3] > 0, _parts_of_a_row(config), 1)
    return Shared(table, int(tells.sum()), int((width > 0).sum()), int(block_rows.max(initial=0)), int(made.sum()))


def _width(rows: npt.NDArray[np.number], max_block: int) -> npt.NDArray[np.int64]:
    return (rows > max_block).astype(np.int64) + (rows > max_block * _WIDE)


def _parts_of_a_row(config: DedupConfig) -> int:
    """How many rows of blocks a row of a hot block becomes at most."""
    if config.by == "caption":
        return max(1, len(_groups(0, bands_and_rows(config.threshold, config.num_perm)[1], config)))
    return _OCTETS + (config.by == "pair")


# ---- blocks: per table


def blocks(table: pa.Table, shared_rows: pa.Table, config: DedupConfig, partitions: int, part: int = 0) -> pa.Table:
    """Block rows (BLOCK_SCHEMA, sorted by partition, block, uid) of the originals of table number `part`, as in `keys`, and its shared
    blocks (SHARED_SCHEMA, any order)."""
    rows = compared(table, config)
    items = _items(rows, config)
    item, block, width = (
        one_array(shared_rows[name]).to_numpy(zero_copy_only=False).astype(kind)
        for name, kind in (("item", np.int64), ("block", np.uint64), ("width", np.int8))
    )
    # A hub is met in several bands.
    order = np.lexsort((block, item))
    again = (item[order][1:] == item[order][:-1]) & (block[order][1:] == block[order][:-1])
    order = order[np.concatenate([[True], ~again])[: len(order)]]
    item, block, width = item[order], block[order], width[order]
    sizes = np.diff(items.starts)[item]
    ends = np.cumsum(sizes)
    within = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - sizes, sizes)
    at = items.members[np.repeat(items.starts[item], sizes) + within]
    at, block, place = _split(rows, at, np.repeat(block, sizes), np.repeat(width, sizes), config)
    partition = (block % np.uint64(partitions)).astype(np.int32)
    order = sort_order(words(rows["uid"])[at], partition, block)
    found = rows.take(pa.array(at[order]))
    columns = {"partition": partition[order], "block": block[order], "place": place[order],
               "part": np.full(len(order), part, np.int32)}  # fmt: skip
    return pa.table([found[name] if name in found.column_names else pa.array(columns[name]) for name in BLOCK_SCHEMA.names],
                    names=BLOCK_SCHEMA.names).cast(BLOCK_SCHEMA)  # fmt: skip


def _split(
    rows: pa.Table, at: Indices, block: Keys, width: npt.NDArray[np.int8], config: DedupConfig
) -> tuple[Indices, Keys, Indices]:
    """(row, block, place) with those of hot blocks replaced by one for each part of the block that the row is in."""
    split = {"pair": _pair_parts, "image": _image_parts, "caption": _caption_parts}[config.by]
    whole = width == 0
    rows_of, blocks_of, places_of = [at[whole]], [block[whole]], [np.full(int(whole.sum()), -1)]
    for octets in (1, 2):
        hot = np.flatnonzero(width == octets)
        if len(hot):
            used, of = np.unique(at[hot], return_inverse=True)
            parts = split(rows.take(pa.array(used)), of.reshape(-1), block[hot], octets, config)
            rows_of.append(at[hot[parts.entry]])
            blocks_of.append(parts.key)
            places_of.append(parts.place)
    return np.concatenate(rows_of), np.concatenate(blocks_of), np.concatenate(places_of)


class _Parts(NamedTuple):
    """Parts of blocks: which of the blocks given, the part's key, its place (see BLOCK_SCHEMA)."""

    entry: Indices
    key: Keys
    place: Indices


# Each of the three gets rows, and blocks with the row of each.


def _pair_parts(rows: pa.Table, of: Indices, block: Keys, octets: int, config: DedupConfig) -> _Parts:
    """By each place of the picture's hash, and by the stored bytes."""
    hashed = np.flatnonzero(has_good_pdq(rows, config)[of])
    stored = np.flatnonzero(np.asarray(one_array(rows["image_sha256"]).is_valid())[of])
    by_hash = mix64(block[hashed][:, None] ^ _octet_codes(rows, octets)[of[hashed]])
    by_bytes = mix64(block[stored] ^ mix64(_heads(rows) ^ _BYTES_SALT)[of[stored]])
    return _Parts(
        np.concatenate([np.repeat(hashed, _OCTETS), stored]),
        np.concatenate([by_hash.reshape(-1), by_bytes]),
        np.concatenate(
            [np.tile(_FIRST_PLACE[octets] + np.arange(_OCTETS), len(hashed)), np.zeros(len(stored), np.int64)]
        ),
    )


def _image_parts(rows: pa.Table, of: Indices, block: Keys, octets: int, config: DedupConfig) -> _Parts:
    """A slot's block by each place of the hash outside the slot; a block of equal bytes stays whole."""
    own = _slot_keys(rows)[of] == block[:, None]
    slot = own.argmax(axis=1)
    after = (np.arange(_OCTETS) - 2 * slot[:, None]) % _OCTETS  # bytes from the slot's first to a place
    entry, place = np.nonzero(own.any(axis=1)[:, None] & (after >= 2) & (after + octets <= _OCTETS))
    other = np.flatnonzero(~own.any(axis=1))
    key = mix64(block[entry] ^ _octet_codes(rows, octets)[of[entry], place])
    return _Parts(
        np.concatenate([entry, other]), np.concatenate([key, block[other]]), np.full(len(entry) + len(other), -1)
    )


def _caption_parts(rows: pa.Table, of: Indices, block: Keys, octets: int, config: DedupConfig) -> _Parts:
    """A band's block by each group of values outside the band; a block of equal signatures stays whole, and so does one outside of which
    no values are left."""
    signatures = _signatures(rows, config)
    bands, values = bands_and_rows(config.threshold, config.num_perm)
    own = mix64(band_keys(signatures, bands, values) ^ _TEXT_SALT)[of] == block[:, None]
    groups = np.stack([_groups(band * values, values, config) for band in range(bands)])
    cut = own.any(axis=1) & (groups.shape[1] > 0)
    entry, other = np.flatnonzero(cut), np.flatnonzero(~cut)
    band = own[entry].argmax(axis=1)
    group = groups[band]  # (entries, groups, values of a group)
    key = mix64(block[entry][:, None] ^ mix64(np.arange(group.shape[1], dtype=np.uint64) ^ _PART_SALT))
    for place in range(group.shape[2]):
        key = mix64(key ^ signatures[of[entry][:, None], group[:, :, place]].astype(np.uint64))
    begins = (band + 1) * values % config.num_perm
    place = (begins * GROUP_START + group.shape[2] * GROUP_VALUES)[:, None] + np.arange(group.shape[1])
    return _Parts(
        np.concatenate([np.repeat(entry, group.shape[1]), other]),
        np.concatenate([key.reshape(-1), block[other]]),
        np.concatenate([place.reshape(-1), np.full(len(other), -1)]),
    )


def _octet_codes(rows: pa.Table, octets: int) -> Keys:
    """A code for each place of the PDQ hash and the byte there (octets=2: and the next one, round to the first), shape (rows, 32)."""
    codes = fixed_bytes(rows["pdq256"], 32).astype(np.uint64)
    if octets == 2:
        codes = codes << np.uint64(8) | np.roll(codes, -1, axis=1)
    return mix64(codes | np.arange(_OCTETS, dtype=np.uint64) << np.uint64(16))


def _groups(start: int, values: int, config: DedupConfig) -> Indices:
    """Groups of the places of a signature outside a band of `values` places from `start`: int64 of shape (groups, places of a group).

    They follow each other, and the first begins behind the band. As large as leaves a pair at the threshold a chance of at most _MISSED to
    share none of them.
    """
    outside = (start + values + np.arange(config.num_perm - values)) % config.num_perm
    missed = {size: (1 - config.threshold**size) ** (len(outside) // size) for size in range(1, len(outside) + 1)}
    size = max((size for size, share in missed.items() if share <= _MISSED), default=1)
    number = len(outside) // size
    return outside[: number * size].reshape(number, size)
