"""Near dedup from end to end against brute force over all pairs, with planted duplicates and look-alikes.

The brute force knows nothing of blocks: it compares every two rows with Python sets and integers and takes rows in the order
of their choice keys. What it drops must be what we drop, for the same representative.
"""

import functools
import hashlib
import random
from collections import Counter
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from datasketch import MinHash, MinHashLSH

from pipeline import dedup
from pipeline.content.text import normal_form, shingles
from pipeline.contracts.schema import REJECTED_SCHEMA, choice_key, uid
from pipeline.dedup import DedupConfig
from pipeline.dedup.signatures import bands_and_rows

_SEED = 17
_TYPES = {
    "uid": pa.binary(16),
    "caption": pa.string(),
    "image_sha256": pa.binary(32),
    "pdq256": pa.binary(32),
    "pdq_quality": pa.uint8(),
}
By = Literal["pair", "caption", "image"]


class Row(NamedTuple):
    """What dedup reads of a row."""

    uid: bytes
    caption: str | None
    image_sha256: bytes | None
    pdq256: bytes | None
    pdq_quality: int | None


def _row(number: int, caption: str | None, stored: object, pdq: int | None, quality: int | None = 80) -> Row:
    sha256 = None if stored is None else hashlib.sha256(str(stored).encode()).digest()
    return Row(
        uid(f"http://e.org/{number}", "x"), caption, sha256, None if pdq is None else pdq.to_bytes(32, "big"), quality
    )


def _table(rows: list[Row]) -> pa.Table:
    return pa.table({name: pa.array([getattr(row, name) for row in rows], kind) for name, kind in _TYPES.items()})


def _flipped(random_: random.Random, pdq: int, bits: int) -> int:
    for place in random_.sample(range(256), bits):
        pdq ^= 1 << place
    return pdq


def _number(pdq: bytes | None) -> int:
    return int.from_bytes(pdq or b"", "big")


def _duplicates(one: Row, two: Row, config: DedupConfig) -> bool:
    same_picture = one.image_sha256 is not None and one.image_sha256 == two.image_sha256
    if not same_picture and one.pdq256 and two.pdq256 and min(one.pdq_quality or 0, two.pdq_quality or 0) >= 50:
        same_picture = (_number(one.pdq256) ^ _number(two.pdq256)).bit_count() <= config.image_distance
    if config.by == "image":
        return same_picture
    if config.by == "pair" and not same_picture:
        return False
    first, second = _shingles(one.caption), _shingles(two.caption)
    return bool(first and second) and len(first & second) / len(first | second) >= config.threshold


@functools.cache
def _shingles(caption: str | None) -> frozenset[bytes]:
    return frozenset(shingles(caption)) if caption and normal_form(caption) else frozenset()


def _brute(rows: list[Row], config: DedupConfig) -> dict[bytes, bytes]:
    """uid → representative of the rows to drop."""
    kept: list[Row] = []
    dropped: dict[bytes, bytes] = {}
    for row in sorted(rows, key=lambda row: choice_key(row.uid, _SEED, "dedup")):
        found = next((other for other in kept if _duplicates(row, other, config)), None)
        if found is None:
            kept.append(row)
        else:
            dropped[row.uid] = found.uid
    return dropped


class _Ours(NamedTuple):
    """What the steps make of rows in several tables and partitions. `gone` has uid, reason and detail of the rejected rows, by uid."""

    gone: pa.Table
    shared: list[dedup.Shared]
    blocks: pa.Table
    edges: list[dedup.Edges]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Ours) and self.gone.equals(other.gone)


def _ours(rows: list[Row], config: DedupConfig, partitions: int = 3, shards: int = 2, looser: float = 0.6) -> _Ours:
    # Blocks for a lower threshold than the edges': a pair at threshold 0.6 is then missed with a chance of 4e-5, not of 1 in 10,
    # so that our answer can be compared with the exact one.
    loose = config.model_copy(update={"threshold": looser * config.threshold})
    tables = [_table(rows[n::shards]) for n in range(shards)]
    found = [dedup.kinds(table, config, _SEED, partitions, part) for part, table in enumerate(tables)]
    copies = [
        dedup.copies(part, _SEED, partitions + 2) for part in _partitions([one.rows for one in found], partitions)
    ]
    copied = _partitions([one.rows for one in copies], shards)
    originals = [
        table.take(dedup.originals(len(table), one.within, mine))
        for table, one, mine in zip(tables, found, copied, strict=True)
    ]
    keys = [dedup.keys(table, loose, partitions + 1, part) for part, table in enumerate(originals)]
    shared = [dedup.shared(part, loose) for part in _partitions(keys, partitions + 1)]
    mine = _partitions([one.table for one in shared], shards)
    blocks = [
        dedup.blocks(table, some, loose, partitions, part)
        for part, (table, some) in enumerate(zip(originals, mine, strict=True))
    ]
    edges = [dedup.edges(part, config, _SEED, partitions + 2) for part in _partitions(blocks, partitions)]
    decisions = dedup.decide(lambda: [_places(one.table) for one in edges], partitions + 2)
    clusters = [
        dedup.clusters(some, decided, copied_of, config)
        for some, decided, copied_of in zip(
            _partitions([one.table for one in edges], partitions + 2),
            _partitions([decisions], partitions + 2),
            _partitions([one.originals for one in copies], partitions + 2),
            strict=True,
        )
    ]
    gone = []
    for table, one, drop in zip(tables, found, _partitions(clusters, shards), strict=True):
        kept, rejected = dedup.apply(table, drop, one.within, config)
        assert rejected.schema == REJECTED_SCHEMA
        assert sorted(kept["uid"].to_pylist() + rejected["uid"].to_pylist()) == sorted(table["uid"].to_pylist())
        went = set(rejected["uid"].to_pylist())
        assert kept["uid"].to_pylist() == [uid for uid in table["uid"].to_pylist() if uid not in went]
        gone.append(rejected.select(["uid", "reason", "detail"]))
    return _Ours(pa.concat_tables(gone).sort_by("uid"), shared, pa.concat_tables(blocks), edges)


def _partitions(tables: list[pa.Table], number: int) -> list[pa.Table]:
    """The rows of all tables by `partition`, without that column, as a unit of a stage reads them."""
    whole = pa.concat_tables(tables)
    assert pc.all(pc.less(whole["partition"], number)).as_py() is not False
    return [whole.filter(pc.equal(whole["partition"], n)).drop_columns(["partition"]) for n in range(number)]


def _places(edges: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    return edges["order"].to_numpy(), edges["before"].to_numpy()


def _as_dict(ours: _Ours) -> dict[bytes, bytes]:
    """uid → representative of the rows that went."""
    details = ours.gone["detail"].to_pylist()
    stays = [bytes.fromhex(detail.split(" stays")[0]) for detail in details]
    return dict(zip(ours.gone["uid"].to_pylist(), stays, strict=True))


def _corpus(random_: random.Random, groups: int, distance: int) -> list[Row]:
    """Groups of rows whose captions and pictures are equal, near or far in every combination."""
    words = ["red", "blue", "small", "large", "dog", "cat", "house", "garden", "river", "mountain", "portrait"]
    words += ["vintage", "poster", "红色", "的", "狗", "公园"]
    rows: list[Row] = []
    for group in range(groups):
        caption = " ".join(random_.choices(words, k=random_.choice([1, 2, 8, 14, 20])))
        picture = random_.getrandbits(256)
        for copy in range(random_.randint(1, 6)):
            said = random_.choice(
                [caption, caption.upper() + "!", caption + " x", caption.replace("red", "tan"), "no " + caption]
            )
            shown = random_.choice(
                [picture, picture, _flipped(random_, picture, random_.randint(1, distance)), random_.getrandbits(256)]
            )
            stored = random_.choice([group, f"{group} {copy}", None])
            rows.append(_row(len(rows), random_.choice([said] * 9 + [None, "?!"]), stored, random_.choice([shown] * 9 + [None]),
                             random_.choice([80] * 9 + [10])))  # fmt: skip
    return rows


@pytest.mark.parametrize(("by", "distance"), [("pair", 40), ("caption", 40), ("image", 15)])
def test_equals_brute_force_over_all_pairs(by: By, distance: int) -> None:
    rows = _corpus(random.Random(9), 250, distance)
    config = DedupConfig(by=by, threshold=0.6, image_distance=min(distance, 31))
    truth = _brute(rows, config)
    ours = _ours(rows, config)
    assert _as_dict(ours) == truth
    assert 100 < len(truth) < len(rows)
    assert set(ours.gone["reason"].to_pylist()) == {
        {"pair": "near_duplicate", "caption": "duplicate_caption", "image": "duplicate_image"}[by]
    }
    shuffled = random.Random(10).sample(rows, len(rows))
    assert _ours(shuffled, config, partitions=1, shards=1) == ours
    assert _ours(shuffled, config, partitions=7, shards=5) == ours


@pytest.mark.parametrize("by", ["pair", "caption"])
@pytest.mark.parametrize("max_block", [3, 16_384])
def test_threshold_one_is_equality_of_the_shingle_sets(by: By, max_block: int) -> None:
    """Also of different texts: repeating a word more than once adds no shingle. Nothing is missed, so blocks need no lower threshold."""
    rows = _corpus(random.Random(31), 120, 15)
    often = ["dog " * count for count in (3, 4, 5, 6)] * 3
    rows += [_row(len(rows) + n, caption, "dogs", 1) for n, caption in enumerate(often)]
    assert len({normal_form(caption) for caption in often}) == 4
    config = DedupConfig(by=by, threshold=1.0, max_block=max_block)
    truth = _brute(rows, config)
    assert _as_dict(_ours(rows, config, looser=1.0)) == truth
    assert 30 < len(truth) < len(rows)


@pytest.mark.parametrize("by", ["pair", "caption", "image"])
def test_details_tell_how_alike_the_two_rows_are(by: By) -> None:
    rows = _corpus(random.Random(21), 60, 12)
    config = DedupConfig(by=by, threshold=0.6)
    by_uid = {row.uid: row for row in rows}
    told = set()
    for gone in _ours(rows, config).gone.to_pylist():
        stays, *facts = gone["detail"].split(", ")
        one, two = by_uid[gone["uid"]], by_uid[bytes.fromhex(stays.removesuffix(" stays"))]
        expected = []
        if by != "image":
            first, second = _shingles(one.caption), _shingles(two.caption)
            expected.append(f"caption {len(first & second) / len(first | second):.3f}")
        if by != "caption":
            same = one.image_sha256 is not None and one.image_sha256 == two.image_sha256
            bits = 0 if same else (_number(one.pdq256) ^ _number(two.pdq256)).bit_count()
            expected.append(f"picture {bits} bits")
        assert facts == expected
        told.add(tuple(facts))
    assert len(told) > 2


def test_the_same_candidates_as_datasketchs_index() -> None:
    """With equal signatures, bands and rows, the verified pairs are exactly those that MinHashLSH leads to."""
    rows = [row for row in _corpus(random.Random(18), 200, 10) if row.caption and normal_form(row.caption)]
    config = DedupConfig(by="caption", threshold=0.7)
    sketches = MinHash.bulk([shingles(row.caption or "") for row in rows], num_perm=128, seed=1, scheme="affine32")
    index = MinHashLSH(threshold=0.7, num_perm=128, weights=(0.1, 0.9))
    for row, sketch in zip(rows, sketches, strict=True):
        index.insert(row.uid, sketch)
    by_uid = {row.uid: row for row in rows}
    theirs = {
        tuple(sorted((row.uid, other)))
        for row, sketch in zip(rows, sketches, strict=True)
        for other in index.query(sketch)
        if other != row.uid and _duplicates(row, by_uid[other], config)
    }
    found = _ours(rows, config, looser=1.0).edges
    pairs = [(edge["uid"], edge["representative"]) for one in found for edge in one.table.to_pylist()]
    text = {row.uid: normal_form(row.caption or "") for row in rows}
    # Of equal texts one stands for all: the same pairs, told by their texts.
    ours = {frozenset((text[one], text[two])) for one, two in pairs}
    assert ours == {frozenset((text[one], text[two])) for one, two in theirs if text[one] != text[two]}
    assert len(ours) > 150


# ---- large blocks


@pytest.mark.parametrize("by", ["pair", "caption", "image"])
def test_hot_blocks_are_split_without_loss(by: By) -> None:
    """Pictures at most 15 bits apart, which in every mode meet with certainty; no part is left that is too large."""
    rows = _corpus(random.Random(11), 70, 15)
    rows = [row._replace(caption="logo" if by != "caption" else row.caption) for row in rows]
    whole = DedupConfig(by=by, threshold=0.6)
    split = whole.model_copy(update={"max_block": 3})
    truth, ours = _brute(rows, whole), _ours(rows, split)
    assert max(one.largest for one in ours.shared) > 3
    assert sum(one.hot for one in ours.shared) > 0
    assert sum(one.counts.bounded_rows for one in ours.edges) == 0
    assert _as_dict(_ours(rows, whole)) == _as_dict(ours) == truth
    assert _ours(random.Random(1).sample(rows, len(rows)), split, partitions=4) == ours


def test_one_caption_on_many_pictures_is_one_block() -> None:
    """Equal captions share all fourteen bands; their rows are compared in one block, or in the parts of one."""
    random_ = random.Random(12)
    pictures = [random_.getrandbits(256) for _ in range(900)]
    near = [_flipped(random_, picture, random_.randint(0, 31)) for picture in pictures[:100]]
    rows = [_row(number, "logo", f"{number}", picture) for number, picture in enumerate(pictures + near)]
    truth = _brute(rows, DedupConfig())
    assert len(truth) == 100
    whole = _ours(rows, DedupConfig(max_block=1000), looser=1.0)
    assert _as_dict(whole) == truth
    assert whole.blocks.num_rows == sum(one.block_rows for one in whole.shared) == 1000
    split = _ours(rows, DedupConfig(max_block=100), looser=1.0)
    assert _as_dict(split) == truth
    # 32 bytes of the hash and the stored bytes; less than that many rows of blocks have company.
    assert split.blocks.num_rows == sum(one.block_rows for one in split.shared) == 33 * 1000
    assert sum(one.hot for one in split.shared) == 1


def test_captions_near_a_hot_one_come_to_its_block() -> None:
    """Not its rows to theirs, of which there may be one in every band. Two hot captions near each other meet in the bands they share."""
    random_ = random.Random(13)
    texts = ["a company logo in blue and white"] * 150 + [f"a company logo in blue and white {n}" for n in range(30)]
    texts += ["a company logo in blue and white on a wall"] * 120
    rows = [_row(number, text, number, random_.getrandbits(256)) for number, text in enumerate(texts)]
    # Near pictures across captions, and within each.
    for one, two in [*zip(range(60), range(150, 180), strict=False), *zip(range(20), range(180, 200), strict=True),
                     *zip(range(60, 80), range(80, 100), strict=True), *zip(range(150, 160), range(160, 170), strict=True)]:  # fmt: skip
        near = _flipped(random_, _number(rows[one].pdq256), random_.randint(0, 31))
        rows[two] = rows[two]._replace(pdq256=near.to_bytes(32, "big"))
    config = DedupConfig(threshold=0.6, max_block=100)
    truth = _brute(rows, config)
    assert len(truth) > 60
    ours = _ours(rows, config)
    assert _as_dict(ours) == truth
    alone = _ours(rows[:180], config, looser=1.0)
    assert _as_dict(alone).items() <= _brute(rows[:180], config).items()
    # In the parts of the one hot block every row once; beside them the thirty others in their own bands.
    assert alone.blocks.num_rows <= 33 * 180 + 30 * bands_and_rows(0.6, 128)[0]


def test_a_block_many_times_too_large_is_split_by_two_bytes() -> None:
    random_ = random.Random(12)
    config = DedupConfig(by="pair", max_block=8)
    pictures = [random_.getrandbits(256) for _ in range(500)]
    near = [_flipped(random_, picture, random_.randint(0, 15)) for picture in pictures[:60]]
    rows = [_row(number, "logo", f"{number}", picture) for number, picture in enumerate(pictures + near)]
    ours = _ours(rows, config, looser=1.0)
    assert max(one.largest for one in ours.shared) == 560
    assert {width for one in ours.shared for width in one.table["width"].to_pylist()} == {2}
    dropped = _as_dict(ours)
    assert dropped == _brute(rows, config)
    assert len(dropped) == 60


@pytest.mark.parametrize("by", ["pair", "image"])
def test_what_splitting_loses_of_pictures_31_bits_apart(by: By) -> None:
    """By one byte nothing, by two less than stated (1.5 % and 4 % of random bits), beside those that share no 16-bit slot (`image`)."""
    random_ = random.Random(22)
    pictures = [random_.getrandbits(256) for _ in range(1500)]
    rows = [_row(2 * n, "logo", 2 * n, picture) for n, picture in enumerate(pictures)]
    rows += [_row(2 * n + 1, "logo", 2 * n + 1, _flipped(random_, picture, 31)) for n, picture in enumerate(pictures)]
    found = {}
    for max_block in (4000, 2) if by == "image" else (4000, 100, 10):
        ours = _ours(rows, DedupConfig(by=by, max_block=max_block), looser=1.0)
        assert sum(one.counts.bounded_rows for one in ours.edges) == 0
        found[max_block] = set(_as_dict(ours).items())
    if by == "pair":
        assert len(found[4000]) == 1500
        assert found[100] == found[4000]
        assert 0.97 * 1500 < len(found[10]) < 1500
    else:
        assert 0.87 * 1500 < len(found[4000]) < 0.93 * 1500
        assert found[2] == found[4000]


def test_what_splitting_loses_of_captions_at_the_threshold() -> None:
    """Of the pairs that meet in a band nearly all share a group of five values as well. Captions of one template, so that bands are hot."""
    random_ = random.Random(23)
    words = ["".join(random_.choices("abcdefghijklmnop", k=6)) for _ in range(4000)]
    rows = []
    for number in range(1200):
        caption = f"house for sale in the old town near the river {' '.join(random_.sample(words, 2))}"
        rows += [_row(2 * number, caption, None, None), _row(2 * number + 1, f"{caption} n {number % 10}", None, None)]
    config = DedupConfig(by="caption")
    whole, split = (_ours(rows, config.model_copy(update={"max_block": n}), looser=1.0) for n in (10_000, 40))
    assert sum(one.hot for one in split.shared) > 0
    assert sum(one.counts.bounded_rows for one in split.edges) == 0
    assert split.blocks.num_rows <= sum(one.block_rows for one in split.shared)
    found, all_of_them = set(_as_dict(split)), set(_as_dict(whole))
    assert len(all_of_them) > 1000
    assert len(found & all_of_them) >= 0.999 * len(all_of_them)


def test_a_part_that_stays_too_large_is_bounded_and_counted() -> None:
    """Hashes that differ in the last eight bits alone: no byte splits them, so that each row meets its neighbours only."""
    random_ = random.Random(24)
    picture = random_.getrandbits(248) << 8
    rows = [_row(number, "logo", number, picture | number) for number in range(256)]
    config = DedupConfig(max_block=4)
    ours = _ours(rows, config, looser=1.0)
    assert sum(one.counts.bounded_rows for one in ours.edges) > 256
    assert sum(one.counts.compared for one in ours.edges) <= 33 * 256 * 16
    by_uid = {row.uid: row for row in rows}
    dropped = _as_dict(ours)
    assert all(_duplicates(by_uid[one], by_uid[two], config) for one, two in dropped.items())
    assert not set(dropped) & set(dropped.values())
    assert 128 < len(dropped) < 256


def test_a_crowd_of_duplicates_costs_sixteen_edges_a_row() -> None:
    random_ = random.Random(25)
    picture = random_.getrandbits(256)
    rows = [_row(number, "logo", number, _flipped(random_, picture, random_.randint(1, 12))) for number in range(400)]
    config = DedupConfig()
    ours = _ours(rows, config, looser=1.0)
    assert sum(one.counts.crowded_rows for one in ours.edges) > 300
    assert sum(one.table.num_rows for one in ours.edges) <= 16 * 400
    assert _as_dict(ours) == _brute(rows, config)


def test_planted_duplicates_are_found_and_look_alikes_kept() -> None:
    random_ = random.Random(12)
    words = [f"{one}{two}" for one in ("lan", "mer", "tor", "vis", "qua") for two in ("der", "ino", "ple", "sk", "th")]
    rows, planted, alike = [], set(), set()
    for number in range(600):
        caption, picture = " ".join(random_.sample(words, 12)), random_.getrandbits(256)
        rows.append(_row(4 * number, caption, 4 * number, picture))
        near = _row(
            4 * number + 1,
            caption + random_.choice([".", "!", " - photo", ""]),
            4 * number + 1,
            _flipped(random_, picture, 12),
        )
        other_picture = _row(4 * number + 2, caption, 4 * number + 2, random_.getrandbits(256))
        other_caption = _row(4 * number + 3, " ".join(random_.sample(words, 12)), 4 * number + 3, picture)
        rows += [near, other_picture, other_caption]
        planted.add(frozenset((rows[-4].uid, near.uid)))
        alike |= {other_picture.uid, other_caption.uid}
    dropped = _as_dict(_ours(rows, DedupConfig(), looser=1.0))
    assert not alike & set(dropped)
    found = {frozenset(pair) for pair in dropped.items()}
    assert len(found & planted) >= 0.99 * len(planted)
    assert found <= planted


def test_short_captions_are_safe() -> None:
    random_ = random.Random(13)
    texts = ["a dog", "a dog.", "dog", "a cat", "狗", "猫", "x", "y", "!!!", "???", "", None]
    rows = [_row(number, text, number, random_.getrandbits(256)) for number, text in enumerate(texts)]
    assert _ours(rows, DedupConfig()).gone.num_rows == 0
    by_caption = _as_dict(_ours(rows, DedupConfig(by="caption")))
    assert {*by_caption, *by_caption.values()} == {rows[0].uid, rows[1].uid}
    one_picture = [row._replace(image_sha256=rows[0].image_sha256, pdq256=rows[0].pdq256) for row in rows]
    assert len(_as_dict(_ours(one_picture, DedupConfig()))) == 1


def test_no_chains() -> None:
    """Pictures 20 bits apart in a row: each resembles the next, the ends do not; who goes must resemble who stays."""
    picture = (1 << 255) | random.Random(14).getrandbits(250)
    rows = [
        _row(number, "the same caption for all", number, picture ^ ((1 << (20 * number)) - 1)) for number in range(10)
    ]
    config = DedupConfig()
    dropped = _as_dict(_ours(rows, config))
    assert dropped == _brute(rows, config)
    by_uid = {row.uid: row for row in rows}
    assert 0 < len(dropped) < 9
    assert all(_duplicates(by_uid[one], by_uid[two], config) for one, two in dropped.items())
    assert not set(dropped.values()) & set(dropped)


@pytest.mark.parametrize("by", ["pair", "caption", "image"])
def test_copies_are_no_candidates(by: By) -> None:
    """Rows equal in all that is compared: one original stays, whatever the files, and nothing is compared."""
    other = {"pair": 0, "caption": 1, "image": 0}[by]
    rows = [_row(n, "Company logo", f"logo {other * n}", 12345 + other * n, 80) for n in range(3000)]
    if by == "image":
        rows = [row._replace(caption=f"caption {number}") for number, row in enumerate(rows)]
    config = DedupConfig(by=by, max_block=100)
    ours = _ours(rows, config)
    assert ours.blocks.num_rows == 0
    assert max(one.largest for one in ours.shared) <= 1
    dropped = _as_dict(ours)
    first = min(rows, key=lambda row: choice_key(row.uid, _SEED, "dedup")).uid
    assert dropped == {row.uid: first for row in rows if row.uid != first}
    # However many copies a file has, a partition gets one row of it.
    assert dedup.kinds(_table(rows), config, _SEED, 1).rows.num_rows == 1


def test_copies_go_with_their_original() -> None:
    """A copy of a row that goes for another goes for that one too, whether it lies in the same file or in another."""
    random_ = random.Random(26)
    picture = random_.getrandbits(256)
    rows = [_row(number, "a dog", number % 2, picture ^ (number % 2)) for number in range(12)]
    config = DedupConfig()
    first = min(rows, key=lambda row: choice_key(row.uid, _SEED, "dedup")).uid
    for shards in (1, 2, 5, 12):
        assert _as_dict(_ours(rows, config, shards=shards)) == {row.uid: first for row in rows if row.uid != first}


def test_no_rows() -> None:
    for by in ("pair", "caption", "image"):
        assert _ours([], DedupConfig.model_validate({"by": by})).gone.num_rows == 0
    single = _corpus(random.Random(15), 1, 10)[:1]
    assert _ours(single, DedupConfig(), shards=4).gone.num_rows == 0


def test_exact_keeps_the_smallest_source_of_each_pair() -> None:
    random_ = random.Random(16)
    pairs = [(f"http://e.org/{random_.randrange(60)}", "a dog") for _ in range(300)]
    table = pa.table(
        {
            "uid": pa.array([uid(*pair) for pair in pairs], pa.binary(16)),
            "url": [pair[0] for pair in pairs],
            "caption_raw": [pair[1] for pair in pairs],
            "source": [f"t#{number}" for number in range(300)],
        }
    )
    kept, rejected = dedup.exact(table)
    first: dict[str, str] = {}
    for (url, _), source in zip(pairs, table["source"].to_pylist(), strict=True):
        first[url] = min(first.get(url, source), source)
    assert dict(zip(kept["url"].to_pylist(), kept["source"].to_pylist(), strict=True)) == first
    assert Counter(rejected["reason"].to_pylist()) == {"duplicate_pair": 300 - len(first)}
    for url, detail in zip(rejected["url"].to_pylist(), rejected["detail"].to_pylist(), strict=True):
        assert detail == f"first at {first[url]}"
    shuffled = dedup.exact(table.take(random_.sample(range(300), 300)))
    assert shuffled[0].equals(kept)
    assert shuffled[1].equals(rejected)
    assert dedup.exact(table.slice(0, 0))[0].num_rows == 0
