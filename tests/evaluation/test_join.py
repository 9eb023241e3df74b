"""The join of one shard: every plant by the right method, no look-alike, and equal to a naive twin on random hashes."""

import pickle
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from evaluation.config import Thresholds
from evaluation.descriptor.search import Index
from evaluation.overlap import join
from evaluation.overlap.job import hash_pictures
from evaluation.overlap.join import EvalCodes, join_shard
from evaluation.overlap.kept import nearest_pairs
from evaluation.overlap.likeness import Learned
from evaluation.overlap.splits import split_set
from evaluation.overlap.tables import CODE_SCHEMA, INDEX_COLUMNS, PAIR_SCHEMA
from pipeline.content.labelled import open_set
from pipeline.contracts import manifest, parquet
from pipeline.contracts.errors import InputError
from pipeline.contracts.schema import INDEX_SCHEMA
from tests.evaluation import planted

EXPECTED = {
    "source_exact": "source_sha256",
    "stored_exact": "image_sha256",
    "recompressed": "pdq",
    "resized": "pdq",
    "png": "pdq",
}


def test_every_plant_and_no_look_alike(tmp_path: Path) -> None:
    answers = planted.plant(tmp_path)
    config = planted.overlap_config(answers, tmp_path / "report")
    labelled = open_set(config.sets[0])
    codes = EvalCodes([labelled.name], [hash_pictures(labelled, list(range(len(labelled))))])
    corpus = manifest.load(str(answers.corpus))
    joined = [
        join_shard(parquet.read(manifest.index_uri(str(answers.corpus), shard)), shard.path, codes, [config.match])
        for shard in corpus.shards
    ]
    pairs, counts = (
        pa.concat_tables(tables) for tables in zip(*((one.pairs, one.found) for one in joined), strict=True)
    )
    found = {pair["eval_id"]: pair["method"] for pair in pairs.to_pylist()}
    assert {name: EXPECTED[manner] for name, manner in answers.answers.items()} == {
        name: "pdq" if method == "phash" else method for name, method in found.items()
    }
    assert pairs.num_rows == len(answers.answers)
    split = split_set(0, codes, labelled, pairs, counts, config.match, None)
    assert [row["eval_id"] for row in split.to_pylist() if row["in_overlap"]] == sorted(answers.answers)


def random_side(rows: int, seed: int) -> dict[str, list[object]]:
    draws = np.random.default_rng(seed)
    # Few distinct bits, so that pairs at all distances are common; some rows flat, some without hashes.
    pdq = [bytes(8) * 3 + draws.integers(0, 256, 8, dtype=np.uint8).tobytes() for _ in range(rows)]
    return {
        "sha256": [bytes([int(draws.integers(0, 40))]) * 32 for _ in range(rows)],
        "phash64": [int(value) for value in draws.integers(0, 1 << 9, rows)],
        "pdq256": list(pdq),
        "pdq_quality": [int(value) for value in draws.choice([10, 50, 60, 100], rows)],
    }


def random_index(theirs: dict[str, list[object]]) -> pa.Table:
    """An index of 200 rows with these hashes."""
    return pa.table(
        {
            "uid": pa.array([bytes([0, n]) * 8 for n in range(200)], pa.binary(16)),
            "url": [f"u{n}" for n in range(200)],
            "caption": pa.nulls(200, pa.string()),
            "source_sha256": pa.array(theirs["sha256"], pa.binary(32)),
            "image_sha256": pa.array(random_side(200, 3)["sha256"], pa.binary(32)),
            "phash64": pa.array(theirs["phash64"], pa.uint64()),
            "pdq256": pa.array(theirs["pdq256"], pa.binary(32)),
            "pdq_quality": pa.array(theirs["pdq_quality"], pa.uint8()),
        }
    )


def test_equal_to_a_naive_twin() -> None:
    ours, theirs = random_side(60, 1), random_side(200, 2)
    for row in range(0, 200, 17):
        for name in ("phash64", "pdq256", "pdq_quality"):
            theirs[name][row] = None
    sizes = (35, 25)
    table = pa.table(
        {"eval_row": [*range(35), *range(25)], "eval_id": [str(n) for n in range(60)], **ours}, CODE_SCHEMA
    )
    codes = EvalCodes(["a", "b"], [table.slice(0, 35), table.slice(35)])
    limits = [
        Thresholds(pdq_distance=24, phash_distance=1, phash_pdq_distance=30),
        Thresholds(pdq_distance=28, pdq_quality=60),
    ]
    index = random_index(theirs)
    found = join_shard(index, "s", codes, limits).pairs.to_pylist()
    expected = []
    for place, our in enumerate(table.to_pylist()):
        which = 0 if place < sizes[0] else 1
        for row, their in enumerate(index.to_pylist()):
            limit = limits[which]
            hits = [their["source_sha256"] == our["sha256"], their["image_sha256"] == our["sha256"], False, False]
            if their["pdq256"] is not None and min(our["pdq_quality"], their["pdq_quality"]) >= limit.pdq_quality:
                pdq = (int.from_bytes(our["pdq256"]) ^ int.from_bytes(their["pdq256"])).bit_count()
                phash = (our["phash64"] ^ their["phash64"]).bit_count()
                hits[2] = pdq <= limit.pdq_distance
                hits[3] = phash <= limit.phash_distance and pdq <= limit.phash_pdq_distance
            if any(hits):
                method = ("source_sha256", "image_sha256", "pdq", "phash")[hits.index(True)]
                expected.append(("ab"[which], our["eval_row"], row, method, hits[0], hits[1]))
    columns = ("set", "eval_row", "row", "method", "source_exact", "stored_exact")
    assert [tuple(pair[name] for name in columns) for pair in found] == expected
    assert {pair["method"] for pair in found} == {"source_sha256", "image_sha256", "pdq", "phash"}


def test_the_descriptor_equals_a_naive_twin() -> None:
    """The weakest method, only where a set has a score and both pictures have texture; its score stands at every pair."""
    draws = np.random.default_rng(5)
    ours, theirs = random_side(60, 1), random_side(200, 2)
    theirs["pdq256"][17] = theirs["phash64"][17] = None
    table = pa.table(
        {"eval_row": [*range(35), *range(25)], "eval_id": [str(n) for n in range(60)], **ours}, CODE_SCHEMA
    )
    codes = EvalCodes(["a", "b"], [table.slice(0, 35), table.slice(35)])
    limits = [Thresholds(pdq_distance=20, phash_distance=0, descriptor_score=0.7), Thresholds(pdq_distance=20)]
    picture = np.sort(draws.choice(60, 100))
    index = Index(
        draws.integers(-127, 128, (100, 8)).astype(np.int8), picture, np.arange(100), draws.uniform(0, 0.3, 100)
    )
    vectors = draws.integers(-127, 128, (200, 8)).astype(np.int8)
    vectors[::3] = index.vectors[draws.choice(100, 67)]
    vectors[5] = 0
    rows = random_index(theirs)
    joined = join_shard(rows, "s", codes, limits, Learned(index, vectors))
    found = joined.pairs.to_pylist()
    without = {
        (one["set"], one["eval_row"], one["row"]): one for one in join_shard(rows, "s", codes, limits).pairs.to_pylist()
    }
    expected, methods = {}, []
    for place, our in enumerate(table.to_pylist()):
        name = "a" if place < 35 else "b"
        for row, their in enumerate(rows.to_pylist()):
            best: tuple[float, float, int] | None = None
            for view in np.flatnonzero(picture == place):
                one, other = (side.astype(float) for side in (index.vectors[view], vectors[row]))
                if other.any():
                    cosine = float(one @ other) / (float(one @ one) ** 0.5 * float(other @ other) ** 0.5)
                    best = max(best or (-9.0, 0.0, 0), (cosine - index.lowered[view], cosine, int(view)))
            before = without.get((name, our["eval_row"], row))
            textured = their["pdq256"] is not None and min(our["pdq_quality"], their["pdq_quality"]) >= 50
            if before is not None or (name == "a" and textured and best is not None and best[0] >= 0.7):
                expected[name, our["eval_row"], row] = best
                methods.append("descriptor" if before is None else before["method"])
    assert [(one["set"], one["eval_row"], one["row"]) for one in found] == list(expected)
    assert [one["method"] for one in found] == methods
    assert {"descriptor", "pdq", "source_sha256"} <= set(methods)
    for one, best in zip(found, expected.values(), strict=True):
        stated = one["descriptor_score"], one["descriptor_cosine"], one["descriptor_view"]
        assert stated == (pytest.approx(best) if best is not None else (None, None, None))
    assert any(best is None for best in expected.values())
    largest = {
        (name, row): max((best[0] for key, best in expected.items() if key[:2] == (name, row) and best), default=None)
        for name, row, _ in expected
    }
    assert {(one["set"], one["eval_row"]): one["descriptor_score"] for one in joined.found.to_pylist()} == {
        key: None if score is None else pytest.approx(score) for key, score in largest.items()
    }
    few = join_shard(rows, "s", codes, limits, Learned(index, vectors), keep=1)
    assert few.pairs.equals(nearest_pairs(joined.pairs, 1))
    assert few.found.equals(joined.found)
    assert few.pairs.num_rows < joined.pairs.num_rows
    kept = [name for name in PAIR_SCHEMA.names if not name.startswith("descriptor_")]
    again = [{name: one[name] for name in kept} for one in found if one["method"] != "descriptor"]
    assert again == [{name: one[name] for name in kept} for one in without.values()]


def test_a_missing_hash_column_is_named() -> None:
    index = pa.table({name: pa.array([], pa.string()) for name in INDEX_COLUMNS if name != "pdq256"})
    with pytest.raises(InputError, match="column 'pdq256' is missing"):
        join_shard(index, "s", EvalCodes([], []), [Thresholds()], place="00001.index.parquet")


@pytest.mark.parametrize(
    ("column", "kind"), [("pdq256", pa.binary()), ("phash64", pa.int64()), ("source_sha256", pa.binary(20))]
)
def test_hashes_of_another_type_are_named(column: str, kind: pa.DataType) -> None:
    kinds = {name: INDEX_SCHEMA.field(name).type for name in INDEX_COLUMNS} | {column: kind}
    index = pa.table({name: pa.array([], kind) for name, kind in kinds.items()})
    with pytest.raises(InputError, match=re.escape(f"00001.index.parquet: column {column!r} is {kind}, not ")):
        join_shard(index, "s", EvalCodes([], []), [Thresholds()], place="00001.index.parquet")


def test_nulls_match_nothing() -> None:
    """Neither a digest that is missing nor hashes that are, whatever bytes lie under them; not even an example whose hashes are zero."""
    zero = pa.table([[0], ["e"], [bytes(32)], [0], [bytes(32)], [100]], schema=CODE_SCHEMA)
    nothing = {name: pa.nulls(2, INDEX_SCHEMA.field(name).type) for name in INDEX_COLUMNS}
    index = pa.table({**nothing, "uid": pa.array([bytes(16), bytes(15) + b"1"], pa.binary(16))})
    assert join_shard(index, "s", EvalCodes(["a"], [zero]), [Thresholds()]).pairs.num_rows == 0


def test_tables_in_pieces_and_cut_from_larger_ones() -> None:
    """What Arrow hands over may lie in several places, and begin in the middle of one."""
    theirs = random_side(200, 2)
    for row in range(0, 200, 17):
        theirs["pdq256"][row] = None
    index = random_index(theirs)
    table = pa.table({"eval_row": range(60), "eval_id": [str(n) for n in range(60)], **random_side(60, 1)}, CODE_SCHEMA)
    whole = join_shard(index, "s", EvalCodes(["a"], [table]), [Thresholds()]).pairs
    assert whole.num_rows > 20
    pieces = pa.concat_tables([index.slice(0, 70), index.slice(70)])
    inside = pa.concat_tables([index.slice(150), index, index.slice(0, 9)]).combine_chunks().slice(50, 200)
    cut = pa.concat_tables([table.slice(30), table]).combine_chunks().slice(30)
    assert pieces["pdq256"].num_chunks == 2
    assert inside["pdq256"].chunk(0).offset == 50
    for form in (pieces, inside):
        assert join_shard(form, "s", EvalCodes(["a"], [cut]), [Thresholds()]).pairs.equals(whole)


def test_tables_are_made_once_in_a_process() -> None:
    """Each task of a worker unpickles codes of its own; the search tables stay, until codes or the texture asked for are others."""
    table = pa.table({"eval_row": range(60), "eval_id": [str(n) for n in range(60)], **random_side(60, 1)}, CODE_SCHEMA)
    codes, fewer = EvalCodes(["a"], [table]), EvalCodes(["a"], [table.slice(1)])
    index = random_index(random_side(200, 2))
    join._searches.cache_clear()
    made = []
    for one, quality in ((codes, 40), (codes, 40), (codes, 60), (fewer, 60), (fewer, 60)):
        task: EvalCodes = pickle.loads(pickle.dumps(one))
        limits = [Thresholds(pdq_quality=quality)]
        again = join_shard(index, "s", task, limits).pairs
        made.append(join._searches.cache_info().misses)
        assert again.equals(join_shard(index, "s", one, limits).pairs)
    assert made == [1, 1, 2, 3, 3]


def test_nothing_on_either_side() -> None:
    empty = EvalCodes(["a"], [CODE_SCHEMA.empty_table()])
    index = pa.table({name: pa.array([], INDEX_SCHEMA.field(name).type) for name in INDEX_COLUMNS})
    assert join_shard(index, "s", empty, [Thresholds()]).pairs.num_rows == 0


def test_rows_that_are_compared_together_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    index = random_index(random_side(200, 2))
    table = pa.table({"eval_row": range(60), "eval_id": [str(n) for n in range(60)], **random_side(60, 1)}, CODE_SCHEMA)
    codes = EvalCodes(["a"], [table])
    for keep in (1, 2, 1000):
        whole = join_shard(index, "s", codes, [Thresholds()], keep=keep)
        assert whole.corpus_rows["a"] == whole.matched.num_rows > 10
        with monkeypatch.context() as patch:
            patch.setattr(join, "_ROWS", 7)
            assert join_shard(index, "s", codes, [Thresholds()], keep=keep) == whole


def test_a_placeholder_in_many_rows_fills_no_memory() -> None:
    """40 examples and 24,000 rows show one picture: a million pairs, of which one row's worth is held."""
    rows, examples = 24_000, 40
    same = {"phash64": 7, "pdq256": b"\x5a" * 32, "pdq_quality": 100}
    columns: dict[str, object] = {name: pa.nulls(rows, INDEX_SCHEMA.field(name).type) for name in INDEX_COLUMNS}
    for name, value in same.items():
        columns[name] = pa.array([value] * rows, INDEX_SCHEMA.field(name).type)
    columns["uid"] = pa.array([row.to_bytes(16) for row in range(rows)], pa.binary(16))
    table = pa.table(
        {
            "eval_row": range(examples),
            "eval_id": [str(n) for n in range(examples)],
            "sha256": [n.to_bytes(32) for n in range(examples)],
            **{name: [value] * examples for name, value in same.items()},
        },
        CODE_SCHEMA,
    )
    tracemalloc.start()
    joined = join_shard(pa.table(columns), "s", EvalCodes(["a"], [table]), [Thresholds()], keep=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert joined.found["pairs"].to_pylist() == [rows] * examples
    assert joined.matched.num_rows == rows
    assert joined.pairs["row"].to_pylist() == [0, 1] * examples
    assert peak < 150 << 20
