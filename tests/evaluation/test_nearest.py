"""The nearest corpus picture of a sample: equal to a naive twin, whatever the shards, and the same sample everywhere."""

import numpy as np
import pyarrow as pa
import pytest

from evaluation.config import Thresholds
from evaluation.overlap.join import EvalCodes
from evaluation.overlap.nearest import choose_sample, nearest_in_shard, nearest_of_all, sample_sets
from evaluation.overlap.tables import CODE_SCHEMA

LIMITS = [Thresholds(), Thresholds(pdq_quality=80)]


def evaluation(rows: int, seed: int) -> pa.Table:
    draws = np.random.default_rng(seed)
    return pa.table(
        {
            "eval_row": pa.array(range(rows), pa.int64()),
            "eval_id": [f"{seed}-{row}" for row in range(rows)],
            "sha256": pa.array([draws.bytes(32) for _ in range(rows)], pa.binary(32)),
            "phash64": pa.array([0] * rows, pa.uint64()),
            "pdq256": pa.array([draws.bytes(32) for _ in range(rows)], pa.binary(32)),
            "pdq_quality": pa.array(draws.choice([40, 60, 100], rows), pa.uint8()),
        },
        schema=CODE_SCHEMA,
    )


def index(rows: int, seed: int) -> pa.Table:
    """Corpus rows of few different hashes, so that many are equally near; some are flat, some have no hash."""
    draws = np.random.default_rng(seed)
    known = draws.random(rows) < 0.9
    hashes = [draws.integers(0, 2, 1, np.uint8).tobytes() * 31 + draws.bytes(1) for _ in range(rows)]
    return pa.table(
        {
            "uid": pa.array([draws.bytes(16) for _ in range(rows)], pa.binary(16)),
            "url": [f"https://example.org/{seed}/{row}" for row in range(rows)],
            "caption": pa.array([None] * rows, pa.string()),
            "pdq256": pa.array(
                [code if there else None for code, there in zip(hashes, known, strict=True)], pa.binary(32)
            ),
            "pdq_quality": pa.array(draws.choice([10, 60, 90], rows), pa.uint8(), mask=~known),
        }
    )


def naive(sets: list[pa.Table], sample: set[tuple[int, int]], corpus: list[pa.Table]) -> list[tuple[object, ...]]:
    found: list[tuple[object, ...]] = []
    for number, table in enumerate(sets):
        for example in table.to_pylist():
            if (number, example["eval_row"]) not in sample:
                continue
            ours = int.from_bytes(example["pdq256"])
            best = min(
                (
                    ((ours ^ int.from_bytes(row["pdq256"])).bit_count(), shard, place)
                    for shard, rows in enumerate(corpus)
                    for place, row in enumerate(rows.to_pylist())
                    if row["pdq256"] is not None and row["pdq_quality"] >= LIMITS[number].pdq_quality
                ),
                default=None,
            )
            if best is not None:
                found.append((f"set{number}", example["eval_row"], best[0], f"shard{best[1]}", best[2]))
    return found


@pytest.mark.parametrize("sizes", [[300], [1, 299], [0, 5000, 7], []])
def test_equal_to_a_naive_twin(sizes: list[int]) -> None:
    sets = [evaluation(40, 1), evaluation(9, 2)]
    codes = EvalCodes(["set0", "set1"], sets)
    corpus = [index(size, 10 + number) for number, size in enumerate(sizes)]
    sample = sample_sets(codes, LIMITS, 12)
    tables = [nearest_in_shard(rows, f"shard{number}", codes, sample, LIMITS) for number, rows in enumerate(corpus)]
    found = nearest_of_all(tables, codes.names).to_pylist()
    chosen = {(int(codes.set_number[place]), codes.table["eval_row"][int(place)].as_py()) for place in sample}
    assert [(row["set"], row["eval_row"], row["pdq_distance"], row["shard"], row["row"]) for row in found] == naive(
        sets, chosen, corpus
    )
    for row in found:
        assert row["uid"] == corpus[int(row["shard"][5:])]["uid"][row["row"]].as_py()


def test_the_sample_hangs_on_ids_and_texture_alone() -> None:
    ids = [f"picture {row}" for row in range(1000)]
    quality = np.where(np.arange(1000) % 5 == 0, 20, 90).astype(np.uint8)
    sample = choose_sample(ids, quality, 50, 100)
    assert len(sample) == 100
    assert (np.diff(sample) > 0).all()
    assert (quality[sample] >= 50).all()
    backwards = choose_sample(ids[::-1], quality[::-1].copy(), 50, 100)
    assert {ids[row] for row in sample} == {ids[::-1][row] for row in backwards}
    assert set(choose_sample(ids, quality, 50, 40)) < set(sample.tolist())
    assert len(choose_sample(ids, quality, 50, 10_000)) == 800
    assert len(choose_sample(ids, quality, 50, 0)) == 0
