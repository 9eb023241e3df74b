"""Near dedup from end to end against brute force over all pairs, with planted duplicates and look-alikes.

The brute force knows nothing of blocks: it compares every two rows with Python sets and integers and takes rows in the order
of their choice keys. What it drops must be what we drop, for the same representative.
"""

import functools
import hashlib
import random
from collections import Counter
from typing import Literal, NamedTuple

import pyarrow as pa
import pytest
from datasketch import MinHash, MinHashLSH

from pipeline import dedup
from pipeline.content.text import normal_form, shingles
from pipeline.contracts.schema import REJECTED_SCHEMA, choice_key, uid
from pipeline.dedup import DedupConfig

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


def _duplicates(one: Row, two: Row, config: DedupConfig) -> bool:
    same_picture = one.image_sha256 is not None and one.image_sha256 == two.image_sha256
    if not same_picture and one.pdq256 and two.pdq256 and min(one.pdq_quality or 0, two.pdq_quality or 0) >= 50:
        bits = int.from_bytes(one.pdq256, "big") ^ int.from_bytes(two.pdq256, "big")
        same_picture = bits.bit_count() <= config.image_distance
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


def _ours(rows: list[Row], config: DedupConfig, partitions: int = 3, shards: int = 2, looser: float = 0.6) -> pa.Table:
    # Blocks for a lower threshold than the edges': a pair at threshold 0.6 is then missed with a chance of 4e-5, not of 1 in 10,
    # so that our answer can be compared with the exact one.
    loose = config.model_copy(update={"threshold": looser * config.threshold})
    found = _blocks([_table(rows[n::shards]) for n in range(shards)], loose, partitions)
    parts = [
        dedup.edges(found.filter(pa.compute.equal(found["partition"], n)), config, _SEED).table
        for n in range(partitions)
    ]
    return dedup.clusters(pa.concat_tables(parts), config, _SEED)


def _blocks(tables: list[pa.Table], config: DedupConfig, partitions: int = 1) -> pa.Table:
    """The block rows of all tables, whose keys are cut into one partition more than their rows."""
    keys = pa.concat_tables([dedup.keys(table, config, partitions + 1, part) for part, table in enumerate(tables)])
    shared = pa.concat_tables(
        [dedup.shared(keys.filter(pa.compute.equal(keys["partition"], n)), config).table for n in range(partitions + 1)]
    )
    return pa.concat_tables(
        [
            dedup.blocks(table, shared.filter(pa.compute.equal(shared["partition"], part)), config, partitions)
            for part, table in enumerate(tables)
        ]
    )


def _as_dict(dropped: pa.Table) -> dict[bytes, bytes]:
    return dict(zip(dropped["uid"].to_pylist(), dropped["representative"].to_pylist(), strict=True))


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
    assert set(ours["reason"].to_pylist()) == {
        {"pair": "near_duplicate", "caption": "duplicate_caption", "image": "duplicate_image"}[by]
    }
    shuffled = random.Random(10).sample(rows, len(rows))
    assert _ours(shuffled, config, partitions=1, shards=1).equals(ours)
    assert _ours(shuffled, config, partitions=7, shards=5).equals(ours)


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
    found = dedup.edges(_blocks([_table(rows)], config), config, _SEED).table.to_pylist()
    text = {row.uid: normal_form(row.caption or "") for row in rows}
    # Of equal texts one stands for all: the same pairs, told by their texts.
    ours = {frozenset((text[edge["uid_a"]], text[edge["uid_b"]])) for edge in found}
    assert ours == {frozenset((text[one], text[two])) for one, two in theirs}
    assert len(ours) > 150


@pytest.mark.parametrize("by", ["pair", "caption", "image"])
def test_hot_blocks_are_split_without_loss(by: By) -> None:
    rows = _corpus(random.Random(11), 70, 15)
    rows = [row._replace(caption="logo" if by != "caption" else row.caption) for row in rows]
    whole = DedupConfig(by=by, threshold=0.6)
    split = whole.model_copy(update={"max_block": 3})
    assert _as_dict(_ours(rows, whole)) == _brute(rows, whole)
    found = dedup.edges(_blocks([_table(rows)], split), split, _SEED)
    hot = dedup.shared(dedup.keys(_table(rows), split, 1), split)
    assert hot.largest > 3
    assert (hot.hot if by == "pair" else found.counts.hot) > 0
    truth, ours = _as_dict(_ours(rows, whole)), _as_dict(_ours(rows, split))
    assert _ours(random.Random(1).sample(rows, len(rows)), split, partitions=4).equals(_ours(rows, split))
    if by == "pair":  # nothing is lost where pictures split; a part that is still too large loses little
        assert set(ours) <= set(truth)
    assert len(ours) >= 0.9 * len(truth)
    by_uid = {row.uid: row for row in rows}
    assert all(_duplicates(by_uid[one], by_uid[two], whole) for one, two in ours.items())


def test_a_block_many_times_too_large_is_split_by_wider_slots() -> None:
    random_ = random.Random(12)
    config = DedupConfig(by="pair", max_block=2)
    pictures = [random_.getrandbits(256) for _ in range(500)]
    near = [_flipped(random_, picture, random_.randint(0, 15)) for picture in pictures[:60]]
    rows = [_row(number, "logo", f"{number}", picture) for number, picture in enumerate(pictures + near)]
    keys = dedup.keys(_table(rows), config, 1)
    found = dedup.shared(keys, config)
    assert found.largest == 560
    assert set(found.table["slot_bits"].to_pylist()) == {16}
    dropped = _as_dict(_ours(rows, config))
    assert dropped == _brute(rows, config)
    assert len(dropped) == 60


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
    assert _ours(rows, DedupConfig()).num_rows == 0
    by_caption = _as_dict(_ours(rows, DedupConfig(by="caption")))
    assert {*by_caption, *by_caption.values()} == {rows[0].uid, rows[1].uid}
    one_picture = [row._replace(image_sha256=rows[0].image_sha256, pdq256=rows[0].pdq256) for row in rows]
    assert len(_ours(one_picture, DedupConfig())) == 1


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


def test_copies_cost_one_edge_each() -> None:
    rows = [_row(number, "Company logo", "logo", 12345) for number in range(3000)]
    config = DedupConfig(max_block=100)
    found = dedup.edges(_blocks([_table(rows)], config), config, _SEED)
    assert found.table.num_rows == 2999
    assert found.counts.hot == found.counts.compared == 0
    assert found.counts.largest == 3000
    assert dedup.clusters(found.table, config, _SEED).num_rows == 2999


def test_apply_accounts_for_every_row() -> None:
    rows = _corpus(random.Random(15), 60, 10)
    table = _table(rows)
    dropped = _ours(rows, DedupConfig())
    kept, rejected = dedup.apply(table, dropped)
    assert kept.num_rows + rejected.num_rows == table.num_rows
    assert rejected.schema == REJECTED_SCHEMA
    assert sorted(rejected["uid"].to_pylist()) == dropped["uid"].to_pylist()
    assert kept["uid"].to_pylist() == [row.uid for row in rows if row.uid not in _as_dict(dropped)]
    representative = _as_dict(dropped)[rejected["uid"][0].as_py()]
    assert rejected["detail"][0].as_py().startswith(f"{representative.hex()} stays, caption ")
    empty = dropped.slice(0, 0)
    assert dedup.apply(table, empty)[0].equals(table)
    assert dedup.apply(table.slice(0, 0), dropped)[0].num_rows == 0
    config = DedupConfig()
    nothing = dedup.edges(_blocks([table.slice(0, 0)], config, 4), config, _SEED).table
    assert dedup.clusters(nothing, config, _SEED).num_rows == 0


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
