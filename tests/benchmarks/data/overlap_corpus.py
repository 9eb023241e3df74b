"""A generated corpus and evaluation side for the overlap join, with every way to match planted in it, and every way to nearly match.

There are no pictures: hashes are random bits, so that what matches was planted. The corpus has index files and a manifest with true
digests and a true root, written as the pipeline writes them; the manifest names an index as its own shard, which a join never opens.

One row in 250 is planted. It resembles a picture of the evaluation side

- as a match: the same bytes as fetched or as stored, PDQ 0 to 31 bits apart, or pHash 0 to 4 with PDQ 32 to 80;
- as no match: PDQ 32 to 40 bits apart; pHash near, but PDQ far; or PDQ near, but the corpus's picture has no texture.

One evaluation picture in ten has none either, and is only found by its bytes. One row in 200 of the corpus has no hashes.
"""

import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from evaluation.overlap.tables import CODE_SCHEMA, METHODS, PAIR_SCHEMA
from pipeline.content.hashes import HASH_VERSION
from pipeline.contracts import manifest, merkle, parquet, storage
from pipeline.contracts.schema import FORMAT_VERSION, INDEX_SCHEMA

SEED = 19
SETS = ("first", "second")
EVERY, HASHLESS_EVERY, FLAT_EVERY = 250, 200, 10
MATCHES = METHODS[:4]  # by bytes and hashes
NEAR_MISSES = ("pdq too far", "pdq contradicts", "no texture")
_PDQ_APART = {"pdq": (0, 31), "phash": (32, 80), "pdq too far": (32, 40), "no texture": (0, 31)}
"""Where PDQ resembles ours, and by how many bits not."""

Bytes = NDArray[np.uint8]


class Codes(NamedTuple):
    """The evaluation side as arrays: n pictures of both sets, the first set's first."""

    sha256: Bytes
    pdq: Bytes
    phash: Bytes
    quality: NDArray[np.uint8]

    def tables(self) -> list[pa.Table]:
        """One table of CODE_SCHEMA for each of SETS; the first has three fifths of the pictures."""
        cut = len(self.sha256) * 3 // 5
        return [self._table(0, cut), self._table(cut, len(self.sha256))]

    def _table(self, start: int, stop: int) -> pa.Table:
        columns = [
            pa.array(range(stop - start), pa.int64()),
            pa.array([f"e{row:07d}" for row in range(stop - start)], pa.string()),
            _binary(self.sha256[start:stop]),
            pa.array(self.phash[start:stop].view(np.uint64).ravel(), pa.uint64()),
            _binary(self.pdq[start:stop]),
            pa.array(self.quality[start:stop], pa.uint8()),
        ]
        return pa.table(columns, schema=CODE_SCHEMA)


def codes(count: int) -> Codes:
    """`count`, a multiple of ten, random pictures."""
    draws = np.random.default_rng([SEED, 0])
    quality = draws.integers(50, 101, count).astype(np.uint8)
    quality[::FLAT_EVERY] = 10
    return Codes(_random(draws, count, 32), _random(draws, count, 32), _random(draws, count, 8), quality)


class Written(NamedTuple):
    """A shard as the manifest needs it, and what a join must find in it."""

    shard: manifest.Shard
    parts: list[merkle.Subtree]
    pairs: pa.Table
    """PAIR_COLUMNS, by shard row."""
    hashless: int


PAIR_COLUMNS = ("set", "eval_row", "row", "method", "pdq_distance", "phash_distance")


def write_shard(folder: str, number: int, rows: int, ours: Codes) -> Written:
    """Shard `number` of shards of `rows` rows each: a pure function of its number."""
    draws = np.random.default_rng([SEED, 1, number])
    hashes = {"source": _random(draws, rows, 32), "image": _random(draws, rows, 32)}
    hashes |= {"pdq": _random(draws, rows, 32), "phash": _random(draws, rows, 8)}
    quality = draws.integers(50, 101, rows).astype(np.uint8)
    quality[draws.random(rows) < 0.2] = 20
    bare = np.zeros(rows, np.bool_)
    bare[HASHLESS_EVERY // 2 :: HASHLESS_EVERY] = True
    pairs = _plant(draws, hashes, quality, bare, ours)
    table = _index(draws, number, hashes, quality, bare)
    index = parquet.commit(table, folder, f"{number:05d}", suffix=".index.parquet")
    shard = manifest.shard_entry(index, parquet.layout(storage.join(folder, index.name)), index)
    parts = merkle.subtrees(manifest.leaves(table), number * rows)
    return Written(shard, parts, pairs, int(bare.sum()))


def write_manifest(place: str, written: Iterable[Written]) -> None:
    """The manifest of the first so many shards, at `place` (a .json beside them)."""
    written = list(written)
    found = manifest.Manifest(
        format_version=FORMAT_VERSION,
        rows=sum(one.shard.rows for one in written),
        content_root=merkle.root_of_subtrees(itertools.chain.from_iterable(one.parts for one in written)),
        shards=[one.shard for one in written],
        hashes=dict(HASH_VERSION),
    )
    storage.write_atomic(place, manifest.to_json(found))


# ---- what is planted


def _plant(
    draws: np.random.Generator,
    hashes: dict[str, Bytes],
    quality: NDArray[np.uint8],
    bare: NDArray[np.bool_],
    ours: Codes,
) -> pa.Table:
    """Change the rows that are planted; returns the pairs that must be found."""
    rows = np.arange(7, len(quality), EVERY)
    rows = rows[~bare[rows]]
    kinds = np.resize(np.arange(len(MATCHES) + len(NEAR_MISSES)), len(rows))
    places = draws.integers(0, len(ours.quality), len(rows))
    flat = kinds >= MATCHES.index("pdq")
    places[flat] += places[flat] % FLAT_EVERY == 0  # these need texture on our side
    quality[rows[flat]] = 90
    planted = []
    for kind, name in enumerate((*MATCHES, *NEAR_MISSES)):
        row, place = rows[kinds == kind], places[kinds == kind]
        if name == "source_sha256":
            hashes["source"][row] = ours.sha256[place]
        elif name == "image_sha256":
            hashes["image"][row] = ours.sha256[place]
        else:
            if name in _PDQ_APART:
                hashes["pdq"][row] = _flipped(draws, ours.pdq[place], *_PDQ_APART[name])
            if name in ("phash", "pdq contradicts"):
                hashes["phash"][row] = _flipped(draws, ours.phash[place], 0, 4)
            if name == "no texture":
                quality[row] = 49
        if kind < len(MATCHES):
            planted.append((row, place, np.full(len(row), kind)))
    row, place, method = (np.concatenate(side) for side in zip(*planted, strict=True))
    order = np.argsort(row)
    return _pair_table(row[order], place[order], method[order], hashes, ours)


def _flipped(draws: np.random.Generator, codes: Bytes, low: int, high: int) -> Bytes:
    """Each code with `low` to `high` of its bits turned."""
    width = codes.shape[1] * 8
    rank = np.argsort(draws.random((len(codes), width)), axis=1)
    return codes ^ np.packbits(rank < draws.integers(low, high + 1, len(codes))[:, None], axis=1)


def _pair_table(
    row: NDArray[np.int64], place: NDArray[np.int64], method: NDArray[np.int64], hashes: dict[str, Bytes], ours: Codes
) -> pa.Table:
    cut = len(ours.quality) * 3 // 5
    apart = [
        np.bitwise_count(a[place] ^ b[row]).sum(axis=1, dtype=np.int32)
        for a, b in ((ours.pdq, hashes["pdq"]), (ours.phash, hashes["phash"]))
    ]
    columns = (
        pa.array([SETS[one >= cut] for one in place.tolist()]),
        pa.array(np.where(place < cut, place, place - cut)),
        pa.array(row),
        pa.array([METHODS[one] for one in method.tolist()]),
        *(pa.array(one) for one in apart),
    )
    return pa.table(list(columns), schema=pa.schema([PAIR_SCHEMA.field(name) for name in PAIR_COLUMNS]))


# ---- columns


def _index(
    draws: np.random.Generator,
    number: int,
    hashes: dict[str, Bytes],
    quality: NDArray[np.uint8],
    bare: NDArray[np.bool_],
) -> pa.Table:
    rows = len(quality)
    order = np.sort(draws.integers(0, 1 << 63, rows)).astype(">u8").view(np.uint8).reshape(rows, 8)
    shard = np.broadcast_to(np.array([number], ">u4").view(np.uint8), (rows, 4))
    uids = np.concatenate([shard, order, _random(draws, rows, 4)], axis=1)  # rising over the whole corpus
    captions = _captions(draws, rows)
    side = pa.array(draws.integers(64, 2048, rows).astype(np.int32))
    columns: dict[str, Any] = {
        "uid": _binary(uids),
        "url": _urls(uids[:, 4:12]),
        "caption": captions,
        "caption_raw": captions,
        "format": pa.array(["jpeg"] * rows),
        "width": side,
        "height": side,
        "source_sha256": _binary(hashes["source"]),
        "image_sha256": _binary(hashes["image"]),
        "phash64": pa.array(hashes["phash"].view(np.uint64).ravel(), mask=bare),
        "pdq256": _binary(hashes["pdq"], bare),
        "pdq_quality": pa.array(quality, mask=bare),
    }
    kinds = [(field.name, field.type) for field in INDEX_SCHEMA]
    return pa.table([columns.get(name, pa.nulls(rows, kind)) for name, kind in kinds], schema=INDEX_SCHEMA)


def _random(draws: np.random.Generator, rows: int, width: int) -> Bytes:
    return np.frombuffer(draws.bytes(rows * width), np.uint8).reshape(rows, width).copy()


def _binary(values: Bytes, missing: NDArray[np.bool_] | None = None) -> pa.Array:
    """uint8[n, w] as binary(w)."""
    known = None if missing is None else pa.array(~missing).buffers()[1]
    kind = pa.binary(values.shape[1])
    return pa.Array.from_buffers(kind, len(values), [known, pa.py_buffer(np.ascontiguousarray(values))])


def _urls(names: Bytes) -> pa.Array:
    """https://picture.example/NAME.jpg, the name in hexadecimal."""
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    hexes = digits[np.stack([names >> 4, names & 15], axis=2)].reshape(len(names), -1)
    before, behind = (np.broadcast_to(np.frombuffer(text, np.uint8), (len(names), len(text))) for text in _URL)
    text = np.concatenate([before, hexes, behind], axis=1)
    starts = np.arange(len(names) + 1, dtype=np.int32) * text.shape[1]
    return pa.StringArray.from_buffers(len(names), pa.py_buffer(starts), pa.py_buffer(text.tobytes()))


_URL = (b"https://picture.example/", b".jpg")


def _captions(draws: np.random.Generator, rows: int) -> pa.Array:
    """Captions of some 60 characters out of a few thousand."""
    words = (
        "a",
        "the",
        "in",
        "with",
        "small",
        "old",
        "red",
        "stone",
        "river",
        "house",
        "garden",
        "dog",
        "boat",
        "winter",
    )
    some = pa.array([" ".join(draws.choice(words, 12)) for _ in range(4096)])
    return some.take(pa.array(draws.integers(0, len(some), rows)))
