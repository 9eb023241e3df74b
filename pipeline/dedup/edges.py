"""Block rows → verified pairs. What shares a block is a candidate; an edge is a pair whose captions and pictures were compared.

Every row of a block is compared with those before it in the order of choice, and keeps edges to the first sixteen that are its duplicates:
so edges grow with rows, whatever a block is made of. Nothing depends on more of them, short of a row whose first sixteen duplicates all go
for rows that it does not resemble itself.

What `blocks` has split and is still more than four times `max_block` is sorted by text and hash, and each row is compared with the
`max_block` before it: bounded work, the same for every run. Duplicates further apart are missed there; `BlockCounts.bounded_rows` counts
the rows.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.content.kernels import compiled, text_buffers
from pipeline.dedup.blocks import GROUP_START, GROUP_VALUES, signatures
from pipeline.dedup.compared import PURPOSE, DedupConfig, has_good_pdq
from pipeline.dedup.signatures import shingle_sets
from pipeline.keys import Indices, choice_words, fixed_bytes, one_array, sort_order, words

EDGE_SCHEMA = pa.schema(
    [
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("order", pa.uint64(), nullable=False),
        pa.field("before", pa.uint64(), nullable=False),
        pa.field("uid", pa.binary(16), nullable=False),
        pa.field("representative", pa.binary(16), nullable=False),
        pa.field("part", pa.int32(), nullable=False),
        pa.field("caption_similarity", pa.float64()),
        pa.field("image_distance", pa.int16()),
    ]
)
"""Two rows that are duplicates, once per partition of blocks: `uid`, a row of the table number `part`, and `representative`, which comes
before it in the order of choice. `order` and `before` are their places in it, the high halves of the choice keys. (Of n rows two share a
place with a chance of n²/2**65, one in 1,500 for 160 million; a row that does may stay although it has a duplicate, no other harm is
done.) `partition` is `order` modulo the number of partitions that dropped rows are filed in."""

_MOST_EDGES = 16
"""Edges that a row keeps in one block."""
_SLACK = 4
"""Parts of split blocks vary: one this many times as large as `max_block` is still compared all with all."""


class BlockCounts(NamedTuple):
    """What the work on one partition was."""

    blocks: int  # with at least two rows
    largest: int  # rows of the largest block
    compared: int  # pairs
    bounded_rows: int  # rows of parts that were still too large, compared with their neighbours only
    crowded_rows: int  # rows that left duplicates out because they had enough


class Edges(NamedTuple):
    """Verified pairs (EDGE_SCHEMA) and what it took."""

    table: pa.Table
    counts: BlockCounts


def edges(block_rows: pa.Table, config: DedupConfig, seed: int, partitions: int = 1) -> Edges:
    """The verified pairs among the rows of one partition of blocks (BLOCK_SCHEMA, any order), sorted by partition, order, before.

    `seed` is the corpus seed; `partitions` is the number of partitions that edges are filed in.
    """
    rows, orders, member, bounds, places = _grouped(block_rows, seed)
    if not len(bounds):
        return Edges(EDGE_SCHEMA.empty_table(), BlockCounts(0, 0, 0, 0, 0))
    features = _features(rows, config)
    sizes = bounds[:, 1] - bounds[:, 0]
    bounded = sizes > _SLACK * config.max_block
    for start, end in bounds[bounded]:
        member[start:end] = features.neighbours(member[start:end])
    windows = np.where(bounded, config.max_block, sizes)
    shingle_codes, shingle_starts = shingle_sets(text_buffers(features.texts))
    by_groups = config.by == "caption" and bool((places >= 0).any())
    rules = _Rules(
        config.by != "image", config.by != "caption", features.text, shingle_starts, shingle_codes, config.threshold,
        features.pdq, features.good_pdq, features.stored, config.image_distance,
        signatures(features.texts, config) if by_groups else np.zeros((1, 0), np.uint32),
    )  # fmt: skip
    later, earlier, similarity, distance, compared, crowded = _compare(member, bounds, windows, places, rules)
    # The same pair may have met in several blocks.
    kept = np.unique(later * np.int64(rows.num_rows) + earlier, return_index=True)[1]
    later, earlier = later[kept], earlier[kept]
    partition = (orders[later] % np.uint64(partitions)).astype(np.int32)
    place = np.argsort(partition, kind="stable")
    later, earlier, kept = later[place], earlier[place], kept[place]
    table = pa.table(
        [
            pa.array(partition[place]),
            pa.array(orders[later]),
            pa.array(orders[earlier]),
            rows["uid"].take(pa.array(later)),
            rows["uid"].take(pa.array(earlier)),
            rows["part"].take(pa.array(later)),
            pa.nulls(len(kept), pa.float64()) if config.by == "image" else pa.array(similarity[kept]),
            pa.nulls(len(kept), pa.int16()) if config.by == "caption" else pa.array(distance[kept]),
        ],
        schema=EDGE_SCHEMA,
    )
    counts = BlockCounts(len(bounds), int(sizes.max()), int(compared), int(sizes[bounded].sum()), int(crowded))
    return Edges(table, counts)


# ---- rows and features


def _grouped(block_rows: pa.Table, seed: int) -> tuple[pa.Table, npt.NDArray[np.uint64], Indices, Indices, Indices]:
    """(distinct rows in the order of choice, their places in it, row of each member, bounds of members of each block with two or more,
    which part of a split block each of these is).

    Members of a block ascend.
    """
    uids, block = words(block_rows["uid"]), one_array(block_rows["block"]).to_numpy(zero_copy_only=False)
    order = np.argsort(block, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], block[order][1:] != block[order][:-1]])[: len(order)])
    sizes = np.diff(np.append(starts, len(order)))
    used = order[np.repeat(sizes > 1, sizes)]
    by_uid = used[sort_order(uids[used])]
    first = np.concatenate([[True], (uids[by_uid][1:] != uids[by_uid][:-1]).any(axis=1)])[: len(by_uid)]
    distinct = by_uid[first]
    chosen = choice_words(uids[distinct], seed, PURPOSE)
    by_choice = sort_order(chosen)
    number = np.empty(len(distinct), np.int64)
    number[by_choice] = np.arange(len(distinct))
    row = np.empty(len(block), np.int64)
    row[by_uid] = number[np.cumsum(first) - 1]
    ends = np.cumsum(sizes[sizes > 1])
    bounds = np.stack([ends - sizes[sizes > 1], ends], axis=1)
    member = row[used[np.lexsort((row[used], block[used]))]]
    places = one_array(block_rows["place"]).to_numpy(zero_copy_only=False)[order[starts[sizes > 1]]].astype(np.int64)
    return block_rows.take(pa.array(distinct[by_choice])), chosen[by_choice, 0], member, bounds, places


class _Features(NamedTuple):
    """The distinct rows of a partition as arrays that the kernels read."""

    text: Indices  # code of the text, in the texts' order; -1: none
    stored: Indices  # code of image_sha256; -1: none
    pdq: npt.NDArray[np.uint64]  # (n, 4)
    good_pdq: npt.NDArray[np.bool_]
    texts: pa.Array

    def neighbours(self, rows: Indices) -> Indices:
        """Rows in the order of text, picture, number."""
        octets = self.pdq[rows].view(np.uint8).reshape(-1, 4, 8)[:, :, ::-1].copy().view(np.uint64).reshape(-1, 4)
        return rows[np.lexsort((rows, *octets.T[::-1], self.text[rows]))]


def _features(rows: pa.Table, config: DedupConfig) -> _Features:
    coded = one_array(rows["text"]).dictionary_encode()
    by_text = pc.sort_indices(coded.dictionary)
    place = np.empty(len(by_text), np.int64)
    place[by_text.to_numpy()] = np.arange(len(by_text))
    text = np.full(len(rows), -1, np.int64)
    text[np.asarray(coded.is_valid())] = place[coded.indices.drop_null().to_numpy()]
    stored = one_array(rows["image_sha256"]).dictionary_encode().indices.fill_null(-1)
    pdq = np.ascontiguousarray(fixed_bytes(rows["pdq256"], 32)).view(np.uint64).reshape(-1, 4)
    return _Features(
        text,
        stored.to_numpy(zero_copy_only=False).astype(np.int64),
        pdq,
        has_good_pdq(rows, config),
        coded.dictionary.take(by_text),
    )


# ---- kernels


@compiled
def _bits(word: np.uint64) -> np.int64:
    """The number of ones in a 64-bit word (Warren, Hacker's Delight, 5-1)."""
    word = word - ((word >> np.uint64(1)) & np.uint64(0x5555555555555555))
    word = (word & np.uint64(0x3333333333333333)) + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((word * np.uint64(0x0101010101010101)) >> np.uint64(56))


@compiled
def _jaccard(one: int, two: int, starts: Indices, codes: npt.NDArray[np.uint64], threshold: float) -> float:
    """Jaccard similarity of two shingle sets, or -1 as soon as it is sure to be below the threshold."""
    if one == two:
        return 1.0
    at, end, other, other_end = starts[one], starts[one + 1], starts[two], starts[two + 1]
    size, other_size = end - at, other_end - other
    if min(size, other_size) < threshold * max(size, other_size) - 1e-9:
        return -1.0
    # common / (size + other_size - common) >= threshold, so at most this many of the first set may be missing from the second.
    may_miss = size - threshold * (size + other_size) / (1.0 + threshold) + 1e-6
    common, missed = 0, 0
    while at < end and other < other_end:
        if codes[at] == codes[other]:
            common += 1
            at += 1
            other += 1
        elif codes[at] < codes[other]:
            at += 1
            missed += 1
            if missed > may_miss:
                return -1.0
        else:
            other += 1
    share = float(common / (size + other_size - common))
    return share if share >= threshold else -1.0


class _Rules(NamedTuple):
    """What two rows are compared by, as the kernels read it."""

    captions: bool
    pictures: bool
    text: Indices
    starts: Indices
    codes: npt.NDArray[np.uint64]
    threshold: float
    pdq: npt.NDArray[np.uint64]
    good_pdq: npt.NDArray[np.bool_]
    stored: Indices
    max_distance: int
    signatures: npt.NDArray[np.uint32]  # by text; used where blocks of captions are split


@compiled
def _duplicates(
    one: int,
    others: Indices,
    place: int,
    rules: _Rules,
    found: Indices,
    similarity: npt.NDArray[np.float64],
    distance: npt.NDArray[np.int16],
) -> tuple[int, int]:
    """Fill the first _MOST_EDGES of the `others` that are duplicates of row `one`, and how alike they are; returns how many, and how many
    others were compared.

    Pictures first: they cost a few instructions. What shares an earlier part of the same split block than `place` is left to that one: a
    thousand captions over one placeholder picture share all 33 parts.
    """
    # Arrays that are handed on are counted at every call, which takes longer than to compare two pictures: no calls in this loop with them.
    text, starts, codes, threshold = rules.text, rules.starts, rules.codes, rules.threshold
    pdq, good_pdq, stored = rules.pdq, rules.good_pdq, rules.stored
    signatures = rules.signatures
    count = 0
    for at in range(len(others)):
        if count == len(found):
            return count, at
        two = others[at]
        bits = np.int64(0)
        if rules.pictures and stored[one] >= 0 and stored[one] == stored[two]:
            if place > 0:
                continue
        elif rules.pictures:
            if not (good_pdq[one] and good_pdq[two]):
                continue
            for word in range(4):
                bits += _bits(pdq[one, word] ^ pdq[two, word])
            if bits > rules.max_distance:
                continue
            before, shared = (place - 1) % 32 if place > 0 else 0, False
            for octet in range(before):
                differs = pdq[one, octet >> 3] ^ pdq[two, octet >> 3]
                shared = (differs >> np.uint64(8 * (octet & 7))) & np.uint64(255) == 0
                if shared and place > 32:
                    differs = pdq[one, (octet + 1) >> 3] ^ pdq[two, (octet + 1) >> 3]
                    shared = (differs >> np.uint64(8 * ((octet + 1) & 7))) & np.uint64(255) == 0
                if shared:
                    break
            if shared:
                continue
        elif place > 0:
            shared = False
            begins, size, group = place // GROUP_START, place % GROUP_START // GROUP_VALUES, place % GROUP_VALUES
            for first in range(begins, begins + group * size, size):
                shared = True
                for value in range(first, first + size):
                    value %= signatures.shape[1]
                    shared = shared and signatures[text[one], value] == signatures[text[two], value]
                if shared:
                    break
            if shared:
                continue
        share = 1.0
        if rules.captions:
            share = _jaccard(text[one], text[two], starts, codes, threshold)
            if share < 0:
                continue
        found[count], similarity[count], distance[count] = two, share, bits
        count += 1
    return count, len(others)


@compiled
def _left_to_another_part(rows: Indices, place: int, rules: _Rules) -> bool:
    """Whether an earlier part of the same split block has the same rows: they have one picture, by its bytes or by its hash."""
    if not rules.pictures or place <= 0:
        return False
    bytes_, hashes = rules.stored[rows[0]] >= 0, rules.good_pdq[rows[0]] and place not in (1, 33)
    for row in rows:
        bytes_ &= rules.stored[row] == rules.stored[rows[0]]
        hashes &= rules.good_pdq[row]
        for word in range(4):
            hashes &= rules.pdq[row, word] == rules.pdq[rows[0], word]
        if not (bytes_ or hashes):
            return False
    return True


@compiled
def _compare(
    member: Indices, bounds: Indices, windows: Indices, places: Indices, rules: _Rules
) -> tuple[Indices, Indices, npt.NDArray[np.float64], npt.NDArray[np.int16], int, int]:
    """Edges (later row, earlier row, similarity, distance) of the members `bounds[i, 0]` to `bounds[i, 1]` of each block, each compared
    with the `windows[i]` before it; the pairs compared; the rows that had enough edges before all were compared."""
    later, earlier = np.empty(1024, np.int64), np.empty(1024, np.int64)
    similarity, distance = np.empty(1024, np.float64), np.empty(1024, np.int16)
    count, compared, crowded = 0, 0, 0
    for block in range(len(bounds)):
        start = bounds[block, 0]
        if _left_to_another_part(member[start : bounds[block, 1]], places[block], rules):
            continue
        for at in range(start + 1, bounds[block, 1]):
            if count + _MOST_EDGES > len(later):
                later = np.concatenate((later, later))
                earlier = np.concatenate((earlier, earlier))
                similarity = np.concatenate((similarity, similarity))
                distance = np.concatenate((distance, distance))
            end = count + _MOST_EDGES
            others = member[max(start, at - windows[block]) : at]
            found, looked = _duplicates(
                member[at], others, places[block], rules, earlier[count:end], similarity[count:end], distance[count:end]
            )
            for place in range(count, count + found):
                later[place] = max(member[at], earlier[place])
                earlier[place] = min(member[at], earlier[place])
            count += found
            compared += looked
            crowded += looked < len(others)
    return later[:count], earlier[:count], similarity[:count], distance[:count], compared, crowded
