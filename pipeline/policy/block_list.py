"""Pictures that must not be in a corpus: a list of hashes of their bytes, or of perceptual hashes with a distance.

Lists are text (one hexadecimal hash a line; what follows a space, a tab or a comma is left aside) or Parquet with a column `sha256` or
`pdq256`
(binary or hexadecimal text). Child-safety bodies hand out both kinds: hashes of bytes are exact, PDQ finds recompressed copies.
"""

import functools
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import lists
from pipeline.contracts import storage
from pipeline.contracts.config import Json
from pipeline.contracts.errors import InputError
from pipeline.keys import fixed_bytes
from pipeline.policy.hook import hook

_MOST_CELLS = 1 << 22  # rows times hashes that are compared at once: 32 bytes a cell


@hook(columns=("source_sha256", "image_sha256"), version=1, files=("hashes",), options=("hashes",))
def source_hashes(rows: pa.Table, options: Mapping[str, Json]) -> list[str | None]:
    """Refuses rows whose bytes, as fetched or as stored, have a SHA-256 of the list `hashes`."""
    blocked = hash_list(str(options["hashes"]), "sha256")
    hits = [pc.is_in(rows[name], value_set=blocked) for name in ("source_sha256", "image_sha256")]
    return ["on the block list" if hit else None for hit in pc.or_(*hits).to_pylist()]


@hook(columns=("pdq256", "pdq_quality"), version=1, files=("hashes",), options=("hashes", "distance", "quality"))
def pdq_hashes(rows: pa.Table, options: Mapping[str, Json]) -> list[str | None]:
    """Refuses rows whose PDQ hash is at most `distance` bits (default 31) from one of the list `hashes`. Flat pictures (quality below
    `quality`, default 50) are not compared: their hashes say little."""
    distance, quality = _whole(options, "distance", 31, 256), _whole(options, "quality", 50, 100)
    blocked = fixed_bytes(hash_list(str(options["hashes"]), "pdq256"), 32).view(np.uint64)
    good = pc.fill_null(pc.greater_equal(rows["pdq_quality"], quality), False).to_numpy()
    mine = fixed_bytes(rows["pdq256"], 32).view(np.uint64)
    nearest = np.full(rows.num_rows, 257, np.int64)
    step = max(1, _MOST_CELLS // max(1, len(blocked)))
    for start in range(0, rows.num_rows if len(blocked) else 0, step):
        nearest[start : start + step] = _nearest(mine[start : start + step], blocked)
    return [
        f"{bits} bits from the block list" if is_good and bits <= distance else None
        for bits, is_good in zip(nearest.tolist(), good.tolist(), strict=True)
    ]


def _nearest(mine: npt.NDArray[np.uint64], blocked: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """The smallest Hamming distance of each row of `mine` (n, 4) to a row of `blocked` (m, 4)."""
    bits = np.bitwise_count(mine[:, None, :] ^ blocked[None, :, :]).sum(axis=2, dtype=np.int64)
    return np.asarray(bits.min(axis=1), np.int64)


def _whole(options: Mapping[str, Json], name: str, default: int, most: int) -> int:
    value = options.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise InputError(f"options.{name} is {value!r}; give a whole number from 0 to {most}")
    return value


def hash_list(uri: str, column: str) -> pa.Array:
    """The distinct hashes (binary(32)) of a list, read once in a process until its size or time of change is another."""
    found = storage.info(uri)
    return _hash_list(uri, column, None if found is None else (found.size, found.mtime_ns))


@functools.lru_cache(maxsize=8)
def _hash_list(uri: str, column: str, stamp: tuple[int, int] | None) -> pa.Array:
    return lists.hashes(uri, column, 32)
