"""Block rows → verified pairs. What shares a block is a candidate; an edge is a pair whose captions and pictures were compared.

Rows that are identical in all that is compared (a "clique") are told by equality: each gets an edge to the member with the
smallest choice key, and only that one is compared with others; for what holds for it holds for them. This keeps the thousand
copies of one banner from becoming half a million edges.

A block of more than `max_block` remaining rows is hot. It is split further, never dropped: by the 32 bytes of the PDQ hash
and by the stored bytes where pictures are compared (two hashes at most 31 bits apart agree in one of 32 bytes, so nothing is
lost), by a second band where only captions are (a pair must then meet in two bands). What is still too large is sorted by
text and hash, and each row is compared with the next `max_block` ones: bounded work, the same for every run, and counted in
`BlockCounts.bounded_rows`.
"""

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.content.kernels import compiled, text_buffers
from pipeline.dedup.blocks import DedupConfig, has_good_pdq
from pipeline.dedup.signatures import band_keys, bands_and_rows, minhash_forms, shingle_sets
from pipeline.keys import Indices, Words, choice_words, fixed_bytes, one_array, sort_order, to_binary, words

PURPOSE = "dedup"
"""What the choice keys of dedup are for: the smallest key of a set of duplicates is kept."""

EDGE_SCHEMA = pa.schema(
    [
        pa.field("uid_a", pa.binary(16), nullable=False),
        pa.field("uid_b", pa.binary(16), nullable=False),
        pa.field("caption_similarity", pa.float64()),
        pa.field("image_distance", pa.int16()),
        pa.field("identical", pa.bool_(), nullable=False),
    ]
)
"""Two rows that are duplicates, uid_a < uid_b, once per partition. `identical`: equal in all that is compared, and one of the
two stands for all rows like it; only that one has other edges."""

_PAIRS_AT_ONCE = 4_000_000


class BlockCounts(NamedTuple):
    """What the work on one partition was."""

    blocks: int  # with at least two rows
    largest: int  # rows of the largest block, before identical ones are folded
    compared: int  # pairs
    hot: int  # blocks that were split
    bounded_rows: int  # rows of split parts that were still too large, compared with their neighbours only


class Edges(NamedTuple):
    """Verified pairs (EDGE_SCHEMA) and what it took."""

    table: pa.Table
    counts: BlockCounts


class _Features(NamedTuple):
    """The distinct rows of a partition, sorted by uid, as arrays that the kernels read."""

    uids: Words
    rank: Indices  # place in the order of choice keys
    text: npt.NDArray[np.int64]  # code of the text, in the texts' order; -1: none
    stored: npt.NDArray[np.int64]  # code of image_sha256; -1: none
    pdq: npt.NDArray[np.uint64]  # (n, 4)
    good_pdq: npt.NDArray[np.bool_]
    texts: pa.Array
    kind: Indices  # rows with the same number are equal in all that is compared


def edges(block_rows: pa.Table, config: DedupConfig, seed: int) -> Edges:
    """All verified pairs among the rows of one partition of blocks (BLOCK_SCHEMA, any order). `seed` is the corpus seed."""
    rows, member, bounds = _grouped(block_rows)
    if not len(bounds):
        return Edges(EDGE_SCHEMA.empty_table(), BlockCounts(0, 0, 0, 0, 0))
    features = _features(rows, config, seed)
    largest = int((bounds[:, 1] - bounds[:, 0]).max())
    leaders = _leaders(features)
    found = [_identical(features, leaders)]
    shingle_codes, shingle_starts = shingle_sets(text_buffers(features.texts))
    work = _Work(features, config)
    for left, right in work.pairs(member, bounds, leaders):
        similarity, distance = np.empty(len(left), np.float64), np.empty(len(left), np.int16)
        kept = _verify(
            left, right, config.by != "image", config.by != "caption", features.text, shingle_starts, shingle_codes,
            config.threshold, features.pdq, features.good_pdq, features.stored, config.image_distance, similarity, distance,
        )  # fmt: skip
        found.append(
            _Found(left[kept], right[kept], similarity[kept], distance[kept], np.zeros(int(kept.sum()), np.bool_))
        )
    counts = BlockCounts(len(bounds), largest, work.compared, work.hot, work.bounded_rows)
    return Edges(_edge_table(features, found, config), counts)


# ---- rows and features


def _grouped(block_rows: pa.Table) -> tuple[pa.Table, Indices, Indices]:
    """(distinct rows by uid, row of each place, bounds of places of each block with two rows or more)."""
    uids, block = words(block_rows["uid"]), one_array(block_rows["block"]).to_numpy(zero_copy_only=False)
    order = sort_order(uids, block)
    ordered = block[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(order) else np.empty(0, int)
    bounds = np.stack([starts, np.append(starts[1:], len(order))], axis=1) if len(starts) else np.empty((0, 2), int)
    bounds = bounds[bounds[:, 1] - bounds[:, 0] > 1]
    inside = np.zeros(len(order) + 1, np.int64)
    np.add.at(inside, bounds[:, 0], 1)
    np.add.at(inside, bounds[:, 1], -1)
    used = np.flatnonzero(np.cumsum(inside[:-1]))  # places in shared blocks
    by_uid = order[used][sort_order(uids[order[used]])]
    first = np.concatenate([[True], (uids[by_uid][1:] != uids[by_uid][:-1]).any(axis=1)])[: len(by_uid)]
    number = np.full(len(block_rows), -1, np.int64)
    number[by_uid] = np.cumsum(first) - 1
    distinct = by_uid[np.flatnonzero(first)]
    return block_rows.take(pa.array(distinct)), number[order], bounds


def _features(rows: pa.Table, config: DedupConfig, seed: int) -> _Features:
    uids = words(rows["uid"])
    rank = np.empty(len(uids), np.int64)
    rank[sort_order(choice_words(uids, seed, PURPOSE))] = np.arange(len(uids))
    coded = one_array(rows["text"]).dictionary_encode()
    by_text = pc.sort_indices(coded.dictionary)
    place = np.empty(len(by_text), np.int64)
    place[by_text.to_numpy()] = np.arange(len(by_text))
    text = np.full(len(rows), -1, np.int64)
    text[np.asarray(coded.is_valid())] = place[coded.indices.drop_null().to_numpy()]
    pdq = np.ascontiguousarray(fixed_bytes(rows["pdq256"], 32)).view(np.uint64).reshape(-1, 4)
    good = has_good_pdq(rows, config)
    stored_bytes = np.ascontiguousarray(fixed_bytes(rows["image_sha256"], 32)).view("V32").reshape(-1)
    stored = np.unique(stored_bytes.view("S32"), return_inverse=True)[1].astype(np.int64)
    stored[~np.asarray(one_array(rows["image_sha256"]).is_valid())] = -1
    parts = [text, stored, good.astype(np.int64), *np.where(good[:, None], pdq, np.uint64(0)).view(np.int64).T]
    kind = np.unique(np.stack(parts, axis=1), axis=0, return_inverse=True)[1].reshape(-1)
    # A row without a comparable picture is identical to no other where pictures are compared: it has no evidence.
    if config.by != "caption":
        bare = (stored < 0) & ~good
        kind[bare] = kind.max(initial=0) + 1 + np.arange(int(bare.sum()))
    return _Features(uids, rank, text, stored, pdq, good, coded.dictionary.take(by_text), kind)


def _leaders(features: _Features) -> Indices:
    """For each row the row of its kind with the smallest choice key."""
    order = np.lexsort((features.rank, features.kind))
    kinds = features.kind[order]
    starts = np.concatenate([[True], kinds[1:] != kinds[:-1]])
    leader = np.empty(len(order), np.int64)
    leader[order] = order[np.flatnonzero(starts)[np.cumsum(starts) - 1]]
    return leader


class _Found(NamedTuple):
    left: Indices
    right: Indices
    similarity: npt.NDArray[np.float64]
    distance: npt.NDArray[np.int16]
    identical: npt.NDArray[np.bool_]


def _identical(features: _Features, leaders: Indices) -> _Found:
    follower = np.flatnonzero(leaders != np.arange(len(leaders)))
    ones = np.ones(len(follower))
    return _Found(follower, leaders[follower], ones, np.zeros(len(follower), np.int16), ones.astype(np.bool_))


def _edge_table(features: _Features, found: list[_Found], config: DedupConfig) -> pa.Table:
    left = np.concatenate([part.left for part in found])
    right = np.concatenate([part.right for part in found])
    low, high = np.minimum(left, right), np.maximum(left, right)
    # The same pair may have met in several blocks; the features are sorted by uid, so low < high means uid_a < uid_b.
    kept = np.unique(low * np.int64(len(features.uids)) + high, return_index=True)[1]
    similarity = np.concatenate([part.similarity for part in found])[kept]
    distance = np.concatenate([part.distance for part in found])[kept]
    return pa.table(
        [
            to_binary(features.uids[low[kept]]),
            to_binary(features.uids[high[kept]]),
            pa.nulls(len(kept), pa.float64()) if config.by == "image" else pa.array(similarity),
            pa.nulls(len(kept), pa.int16()) if config.by == "caption" else pa.array(distance),
            pa.array(np.concatenate([part.identical for part in found])[kept]),
        ],
        schema=EDGE_SCHEMA,
    )


# ---- candidate pairs


class _Work:
    """Candidate pairs of one partition in bounded batches, with counts of what was done."""

    def __init__(self, features: _Features, config: DedupConfig) -> None:
        self._features, self._config = features, config
        self._hot: set[bytes] = set()
        self.compared = self.hot = self.bounded_rows = 0

    def pairs(self, member: Indices, bounds: Indices, leaders: Indices) -> Iterator[tuple[Indices, Indices]]:
        """Arrays (left, right) of row numbers; a pair may come several times."""
        batch: list[Indices] = []
        waiting = 0
        for start, end in bounds:
            rows = member[start:end]
            rows = rows[leaders[rows] == rows]
            if len(rows) > self._config.max_block and self._seen(rows):
                continue
            for group in [rows] if len(rows) <= self._config.max_block else self._split(rows):
                if len(group) > self._config.max_block:
                    yield from self._neighbours(group)
                elif len(group) > 1:
                    batch.append(group)
                    waiting += len(group) * (len(group) - 1) // 2
                if waiting >= _PAIRS_AT_ONCE:
                    yield self._all_with_all(batch, waiting)
                    batch, waiting = [], 0
        if waiting:
            yield self._all_with_all(batch, waiting)

    def _seen(self, rows: Indices) -> bool:
        """Whether a hot block of the same rows was there before: a caption that many rows share has all its bands in common."""
        known = hashlib.blake2b(rows.tobytes(), digest_size=16).digest()
        again = known in self._hot
        self._hot.add(known)
        return again

    def _all_with_all(self, groups: list[Indices], pairs: int) -> tuple[Indices, Indices]:
        self.compared += pairs
        sizes = np.array([len(group) for group in groups], np.int64)
        left, right = np.empty(pairs, np.int64), np.empty(pairs, np.int64)
        _fill_pairs(np.concatenate(groups), sizes, left, right)
        return left, right

    def _split(self, rows: Indices) -> Iterator[Indices]:
        """The parts of a hot block; a part that is the whole block again tells nothing and is left out while others remain."""
        self.hot += 1
        features = self._features
        if self._config.by == "caption":
            keys = self._bands(rows)
            parts = [(rows, keys[:, band]) for band in range(keys.shape[1])]
        else:
            hashed = rows[features.good_pdq[rows]]
            octets = np.ascontiguousarray(features.pdq[hashed]).view(np.uint8).reshape(-1, 32)
            stored = rows[features.stored[rows] >= 0]
            parts = [(hashed, octets[:, place].astype(np.uint64)) for place in range(32)]
            parts.append((stored, features.stored[stored].astype(np.uint64)))
        found = [group for part, keys in parts for group in _by_key(part, keys)]
        smaller = [group for group in found if len(group) < len(rows)]
        yield from smaller if smaller else found[:1]

    def _bands(self, rows: Indices) -> npt.NDArray[np.uint64]:
        bands, per_band = bands_and_rows(self._config.threshold, self._config.num_perm)
        texts = self._features.texts.take(pa.array(self._features.text[rows]))
        return band_keys(minhash_forms(texts, self._config.num_perm, self._config.seed), bands, per_band)

    def _neighbours(self, rows: Indices) -> Iterator[tuple[Indices, Indices]]:
        """Each row with the next `max_block` in the order of text, picture, uid."""
        self.bounded_rows += len(rows)
        features = self._features
        octets = np.ascontiguousarray(features.pdq[rows]).view(">u8").astype(np.uint64).reshape(-1, 4)
        ordered = rows[np.lexsort((rows, *octets.T[::-1], features.text[rows]))]
        for step in range(1, self._config.max_block + 1):
            if step >= len(ordered):
                break
            self.compared += len(ordered) - step
            yield ordered[:-step], ordered[step:]


def _by_key(rows: Indices, keys: npt.NDArray[np.uint64]) -> list[Indices]:
    """The rows that share a key, as groups of two and more."""
    order = np.lexsort((rows, keys))
    cuts = np.flatnonzero(keys[order][1:] != keys[order][:-1]) + 1
    return [group for group in np.split(rows[order], cuts) if len(group) > 1]


# ---- kernels


@compiled
def _fill_pairs(rows: Indices, sizes: Indices, left: Indices, right: Indices) -> None:
    """All pairs within consecutive groups of `rows`."""
    start = at = 0
    for size in sizes:
        for first in range(start, start + size):
            for second in range(first + 1, start + size):
                left[at] = rows[first]
                right[at] = rows[second]
                at += 1
        start += size


@compiled
def _bits(word: np.uint64) -> np.int64:
    """The number of ones in a 64-bit word (Warren, Hacker's Delight, 5-1)."""
    word = word - ((word >> np.uint64(1)) & np.uint64(0x5555555555555555))
    word = (word & np.uint64(0x3333333333333333)) + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((word * np.uint64(0x0101010101010101)) >> np.uint64(56))


@compiled
def _jaccard(one: int, two: int, starts: Indices, codes: npt.NDArray[np.uint64], threshold: float) -> float:
    """Jaccard similarity of two shingle sets, or -1 when their sizes alone put it below the threshold."""
    if one == two:
        return 1.0
    at, end, other, other_end = starts[one], starts[one + 1], starts[two], starts[two + 1]
    size, other_size = end - at, other_end - other
    if min(size, other_size) < threshold * max(size, other_size) - 1e-9:
        return -1.0
    common = 0
    while at < end and other < other_end:
        if codes[at] == codes[other]:
            common += 1
            at += 1
            other += 1
        elif codes[at] < codes[other]:
            at += 1
        else:
            other += 1
    return float(common / (size + other_size - common))


@compiled
def _verify(
    left: Indices,
    right: Indices,
    captions: bool,
    pictures: bool,
    text: Indices,
    starts: Indices,
    codes: npt.NDArray[np.uint64],
    threshold: float,
    pdq: npt.NDArray[np.uint64],
    good_pdq: npt.NDArray[np.bool_],
    stored: Indices,
    max_distance: int,
    similarity: npt.NDArray[np.float64],
    distance: npt.NDArray[np.int16],
) -> npt.NDArray[np.bool_]:
    """Which pairs are duplicates; fills their similarity and distance. Pictures first: they cost a few instructions."""
    kept = np.zeros(len(left), np.bool_)
    for at in range(len(left)):
        one, two = left[at], right[at]
        bits = np.int64(0)
        if pictures and not (stored[one] >= 0 and stored[one] == stored[two]):
            if not (good_pdq[one] and good_pdq[two]):
                continue
            for word in range(4):
                bits += _bits(pdq[one, word] ^ pdq[two, word])
            if bits > max_distance:
                continue
        share = 1.0
        if captions:
            share = _jaccard(text[one], text[two], starts, codes, threshold)
            if share < threshold:
                continue
        similarity[at] = share
        distance[at] = bits
        kept[at] = True
    return kept
