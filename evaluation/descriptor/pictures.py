"""Training pictures in memory: chosen by the hash of their row, decoded once, small.

A corpus is taken round the circle of its uids, from a place that the seed gives: uids are hashes, so the next K rows from any place are a
fair sample, and only the shards that hold them are opened. A labelled set is taken by the hash of its pictures' bytes. Neither the order
of files nor the number of workers changes what is chosen.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from evaluation.descriptor.artefact import Kind
from evaluation.descriptor.config import PicturesConfig
from pipeline.content.image import ImageRejected, decode
from pipeline.content.labelled import LabelledSet, open_set
from pipeline.contracts import manifest, parquet
from pipeline.contracts.cli import Progress
from pipeline.contracts.config import digest_json
from pipeline.contracts.errors import InputError
from pipeline.contracts.schema import choice_key

UInt8s = NDArray[np.uint8]
_PURPOSE = "train-descriptor"
_LONGEST = (
    2.5  # a picture is cut to at most so many times as long as it is wide, so that panoramas do not fill the memory
)
FLAT = 8.0
"""A picture whose grey levels (0 to 255) deviate less than this from their mean shows nothing that a copy could be known by."""


@dataclass(frozen=True)
class Pictures:
    """`arrays` are uint8[h, w, 3]; `kind` and `root` (content_root or content hash) tell their source, `digest` which they are."""

    arrays: list[UInt8s]
    kind: Kind
    root: str
    digest: str
    unusable: int


def root(config: PicturesConfig) -> str:
    """What identifies the source: the corpus's content_root or the set's content hash."""
    if config.set is not None:
        return open_set(config.set).content_hash
    return manifest.load(str(config.manifest)).content_root


def load(config: PicturesConfig, seed: int) -> Pictures:
    """Choose, decode and shrink. Raises InputError where there is no such corpus or set, or no picture in it can be used."""
    kind: Kind
    if config.set is not None:
        labelled = open_set(config.set)
        kind, identity, most = "set", labelled.content_hash, len(labelled)
        rows = _of_set(labelled, config.pictures, seed)
    else:
        place = str(config.manifest)
        corpus = manifest.load(place)
        kind, identity, most = "corpus", corpus.content_root, corpus.rows
        rows = _of_corpus(place, corpus, seed)
    arrays: list[UInt8s] = []
    names: list[str] = []
    unusable, room = 0, config.memory_mb << 20
    with Progress(min(config.pictures, most), "pictures", "training pictures") as progress:
        for name, data in rows:
            shown = small(data, config.short_side, config.least_short_side)
            if shown is None:
                unusable += 1
                continue
            room -= shown.nbytes
            if room < 0:
                break
            arrays.append(shown)
            names.append(name.hex())
            progress.update()
            if len(arrays) == config.pictures:
                break
    if not arrays:
        where = config.set.path if config.set is not None else config.manifest
        raise InputError(
            f"{where}: no usable picture ({unusable:,} are flat, broken or smaller than data.least_short_side = "
            f"{config.least_short_side}); give a corpus with pictures"
        )
    return Pictures(arrays, kind, identity, digest_json(list(names)), unusable)


def small(data: bytes, short_side: int, least: int = 1) -> UInt8s | None:
    """A picture's pixels, uint8[h, w, 3], the shorter side at most `short_side`; None where it is broken, smaller than `least` or flat."""
    try:
        rgb = decode(data, min_short_side=short_side).rgb
    except ImageRejected:
        return None
    height, width = rgb.shape[:2]
    if min(height, width) < least or is_flat(rgb):
        return None
    longest = int(_LONGEST * min(height, width))
    top, left = max(0, height - longest) // 2, max(0, width - longest) // 2
    rgb = rgb[top : top + longest, left : left + longest]
    height, width = rgb.shape[:2]
    shrink = short_side / min(height, width)
    if shrink >= 1:
        return np.ascontiguousarray(rgb)
    size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    return np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BICUBIC))


def is_flat(rgb: UInt8s) -> bool:
    """Whether uint8[h, w, 3] has too little contrast to be told from another flat picture (see FLAT)."""
    grey = rgb.reshape(-1, 3).astype(np.float64) @ np.array([0.299, 0.587, 0.114])
    return bool(grey.std() < FLAT)


def _of_set(labelled: LabelledSet, most: int, seed: int) -> Iterator[tuple[bytes, bytes]]:
    """(sha256, bytes) of the chosen pictures, those with equal bytes once, in the set's order."""
    first = {digest: row for row, digest in reversed(list(enumerate(labelled.sha256)))}
    chosen = sorted(first, key=lambda digest: choice_key(digest, seed, _PURPOSE))[:most]
    for picture in labelled.pictures(sorted(first[digest] for digest in chosen)):
        yield labelled.sha256[picture.row], picture.data


def _of_corpus(place: str, corpus: manifest.Manifest, seed: int) -> Iterator[tuple[bytes, bytes]]:
    """(uid, bytes) of all pictures round the circle of uids, from the place that the seed gives."""
    start = hashlib.blake2b(f"{_PURPOSE} {seed}".encode(), digest_size=16).digest()
    shards = [shard for shard in corpus.shards if shard.rows]
    first = bisect.bisect_left(range(len(shards)), start, key=lambda number: _last_uid(place, shards[number]))
    # The shard that holds the start is visited twice: its end first, its beginning last.
    for shard in shards[first:]:
        yield from ((uid, data) for uid, data in _rows(manifest.shard_uri(place, shard)) if uid >= start)
    for shard in shards[: first + 1]:
        yield from ((uid, data) for uid, data in _rows(manifest.shard_uri(place, shard)) if uid < start)


def _last_uid(place: str, shard: manifest.Shard) -> bytes:
    uids = parquet.read(manifest.index_uri(place, shard), ["uid"])["uid"]
    last: bytes = uids[-1].as_py()
    return last


def _rows(uri: str) -> Iterator[tuple[bytes, bytes]]:
    """uid and picture of the rows of a shard that have one, a row group at a time."""
    with parquet.open_file(uri) as source:
        groups = source.num_row_groups
    for group in range(groups):
        table: pa.Table = parquet.read_row_group(uri, group, ["uid", "image"])
        for uid, data in zip(table["uid"].to_pylist(), table["image"].to_pylist(), strict=True):
            if data is not None:
                yield uid, data
