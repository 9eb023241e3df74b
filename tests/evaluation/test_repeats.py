"""Clusters of repeats: by bytes, by hashes, in chains; equal to the walk that `verify` does."""

import tracemalloc

import numpy as np
import pyarrow as pa
import pytest

from evaluation.config import Thresholds
from evaluation.overlap import repeats
from evaluation.overlap.repeats import clusters
from evaluation.overlap.tables import CODE_SCHEMA
from evaluation.report import twin


def codes(
    pdq: list[bytes], *, sha256: list[int] | None = None, quality: int = 100, phash: list[int] | None = None
) -> pa.Table:
    n = len(pdq)
    return pa.table(
        {
            "eval_row": list(range(n)),
            "eval_id": [str(row) for row in range(n)],
            "sha256": [one.to_bytes(32) for one in (range(n) if sha256 is None else sha256)],
            "phash64": [(1 << row) - 1 for row in range(0, 6 * n, 6)] if phash is None else phash,
            "pdq256": pdq,
            "pdq_quality": [quality] * n,
        },
        CODE_SCHEMA,
    )


def with_bits(count: int) -> bytes:
    """A code of `count` ones, the first."""
    return ((1 << count) - 1).to_bytes(32, "little")


def test_the_same_bytes_are_one_picture_however_flat() -> None:
    table = codes([with_bits(bits) for bits in (0, 128, 0, 250)], sha256=[1, 2, 1, 2], quality=0)
    assert clusters(table, Thresholds()).tolist() == [0, 1, 0, 1]


def test_repeats_of_repeats_are_one_cluster_and_the_limit_is_the_sets() -> None:
    """Three codes 30 bits apart from the next one, and one far away, which comes first."""
    table = codes([with_bits(bits) for bits in (250, 0, 30, 60)])
    assert clusters(table, Thresholds()).tolist() == [0, 1, 1, 1]
    assert clusters(table, Thresholds(pdq_distance=29)).tolist() == [0, 1, 2, 3]
    flat = codes([with_bits(bits) for bits in (250, 0, 30, 60)], quality=49)
    assert clusters(flat, Thresholds()).tolist() == [0, 1, 2, 3]


def test_a_phash_match_counts_where_pdq_does_not_contradict_it() -> None:
    table = codes([with_bits(bits) for bits in (0, 70, 160)], phash=[0, 3, 0])
    assert clusters(table, Thresholds()).tolist() == [0, 0, 2]


def test_no_example() -> None:
    assert clusters(CODE_SCHEMA.empty_table(), Thresholds()).tolist() == []
    assert twin.clusters([], 31, 50, 4, 80) == []


@pytest.mark.parametrize("seed", range(8))
def test_the_walk_of_verify_finds_the_same(seed: int) -> None:
    draws = np.random.default_rng(seed)
    n = 120
    pdq = [(draws.integers(0, 2, 256) & (np.arange(256) < 60)).astype(np.uint8) for _ in range(n)]
    table = pa.table(
        {
            "eval_row": list(range(n)),
            "eval_id": [str(row) for row in range(n)],
            "sha256": [bytes([int(draws.integers(0, 200))]) * 32 for _ in range(n)],
            "phash64": [int(value) for value in draws.integers(0, 1 << 12, n)],
            "pdq256": [np.packbits(bits).tobytes() for bits in pdq],
            "pdq_quality": [int(value) for value in draws.choice([10, 50, 60, 100], n)],
        },
        CODE_SCHEMA,
    )
    limits = Thresholds(pdq_distance=14, phash_distance=1, phash_pdq_distance=20)
    found = clusters(table, limits).tolist()
    assert 10 < len(set(found)) < n - 10, "the case is one in which something is found, and not everything"
    assert found == twin.clusters(table.to_pylist(), 14, 50, 1, 20)


def test_the_frames_of_a_film_are_asked_for_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """1,500 frames that are all alike and two million pairs; then the same clusters whatever is asked together."""
    draws = np.random.default_rng(3)
    frames = [bytes(30) + int(draws.integers(1 << 16)).to_bytes(2) for _ in range(1500)]
    monkeypatch.setattr(repeats, "_QUERIES", 64)
    table = codes([*frames, b"\xff" * 32], phash=[0] * 1501, sha256=None)
    tracemalloc.start()
    found = clusters(table, Thresholds())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.tolist() == [0] * 1500 + [1500]
    assert peak < 24 << 20
