"""The nearest corpus picture of a sample, by both measures: equal to a naive twin, whatever the shards, and the same sample everywhere."""

import math

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from evaluation.config import Thresholds
from evaluation.descriptor.search import Index
from evaluation.overlap.join import EvalCodes
from evaluation.overlap.likeness import Learned, compare
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


def test_by_score_equal_to_a_naive_twin() -> None:
    """One pass of the search for matches gives it, whether the descriptor decides or not: a row of enough texture for its set, the first of
    equals; beside the nearest by PDQ, which has its own score."""
    draws = np.random.default_rng(3)
    sets = [evaluation(40, 1), evaluation(9, 2)]
    codes = EvalCodes(["set0", "set1"], sets)
    limits = [LIMITS[0].model_copy(update={"descriptor_score": 0.9}), LIMITS[1]]
    sample = sample_sets(codes, limits, 12)
    picture = np.sort(draws.choice(np.setdiff1d(np.arange(49), sample[:2]), 120))
    views = Index(
        draws.integers(-9, 10, (120, 3)).astype(np.int8), picture, np.arange(120) % 32, draws.uniform(0, 0.3, 120)
    )
    corpus = [index(size, 10 + number) for number, size in enumerate((150, 0, 1, 149))]
    vectors = [draws.integers(-9, 10, (rows.num_rows, 3)).astype(np.int8) for rows in corpus]
    vectors[3][:70] = vectors[0][:70]
    vectors[0][::5] = 0
    tables = []
    for number, (rows, theirs) in enumerate(zip(corpus, vectors, strict=True)):
        learned = Learned(views, theirs, sample)
        texture = np.array([-1 if one is None else one for one in rows["pdq_quality"].to_pylist()], np.int64)
        compared = compare(learned, texture, codes.set_number, limits)
        assert (codes.set_number[compared.pairs.picture] == 0).all(), "set1 has no score"
        tables.append(nearest_in_shard(rows, f"shard{number}", codes, sample, limits, learned, compared))
    found = nearest_of_all(tables, codes.names).to_pylist()
    expected = []
    for place in sample.tolist():
        which, best = int(codes.set_number[place]), (9.0, 0, 0)
        for shard, rows in enumerate(corpus):
            for row, quality in enumerate(rows["pdq_quality"].to_pylist()):
                score = score_of(views, place, vectors[shard][row])
                if quality is not None and quality >= limits[which].pdq_quality and score is not None:
                    best = min(best, (-score, shard, row))
        if best[0] < 9:
            expected.append(
                (f"set{which}", codes.table["eval_row"][place].as_py(), f"shard{best[1]}", best[2], -best[0])
            )
    by_score = [row for row in found if row["measure"] == "descriptor"]
    columns = ("set", "eval_row", "shard", "row", "descriptor_score")
    assert [tuple(row[name] for name in columns) for row in by_score] == expected
    assert 10 < len(expected) < len(sample)
    assert {row["shard"] for row in by_score} >= {"shard0", "shard3"}
    alone = [nearest_in_shard(rows, f"shard{number}", codes, sample, limits) for number, rows in enumerate(corpus)]
    others = [row for row in found if row["measure"] == "pdq"]
    kept = ("set", "eval_row", "uid", "pdq_distance", "shard", "row")
    assert [[row[name] for name in kept] for row in others] == [
        [row[name] for name in kept] for row in nearest_of_all(alone, codes.names).to_pylist()
    ]
    starts = {"set0": 0, "set1": 40}
    for row in found:
        place, shard = starts[row["set"]] + row["eval_row"], int(row["shard"][5:])
        assert row["uid"] == corpus[shard]["uid"][row["row"]].as_py()
        assert row["descriptor_score"] == score_of(views, place, vectors[shard][row["row"]])
        bits = int.from_bytes(codes.pdq[place].tobytes()) ^ int.from_bytes(row["pdq256"])
        assert row["pdq_distance"] == bits.bit_count()
    order = [(row["set"], row["measure"] == "descriptor", row["eval_row"]) for row in found]
    assert order == sorted(order)


def score_of(views: Index, place: int, vector: NDArray[np.int8]) -> float | None:
    """The best over the views of a place, in Python's own numbers; None where a side has no vector."""
    theirs = [int(value) for value in vector]
    scores = []
    for view in np.flatnonzero(views.picture == place):
        ours = [int(value) for value in views.vectors[view]]
        lengths = math.sqrt(sum(value**2 for value in ours)), math.sqrt(sum(value**2 for value in theirs))
        if lengths[0] and lengths[1]:
            dot = sum(one * other for one, other in zip(ours, theirs, strict=True))
            scores.append(dot / (lengths[0] * lengths[1]) - float(views.lowered[view]))
    return max(scores, default=None)


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
