"""Which pairs the tables hold: against a sort by hand, whatever the corpus was cut into; counts and lists of rows are of all pairs."""

import random
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.config import ReportConfig, TextRule, Thresholds
from evaluation.overlap import kept
from evaluation.overlap.join import EvalCodes, join_shard
from evaluation.overlap.repeats import clusters
from evaluation.overlap.tables import CODE_SCHEMA, KEY, MATCHED_SCHEMA, METHODS, TEXT_METHODS
from evaluation.overlap.text import CaptionIndex, ClassNames, read_captions
from evaluation.overlap.text_stage import _TextWork
from evaluation.report import files, twin
from evaluation.report.evidence import page_room
from pipeline.commit import Unit
from tests.evaluation.test_join import random_index, random_side

Rows = list[dict[str, object]]


def picture_rows(draws: random.Random, n: int) -> Rows:
    """Pairs of two sets, few examples, many equal distances, some unknown."""
    return [
        {
            "set": draws.choice("ba"),
            "eval_row": draws.randrange(3),
            "method": draws.choice(METHODS),
            "pdq_distance": draws.choice([None, 0, 1, 2]),
            "descriptor_score": draws.choice([None, 0.25, 0.5, 0.75]),
            "shard": f"s{draws.randrange(3)}",
            "row": number,
        }
        for number in draws.sample(range(10 * n), n)
    ]


def nearness(row: dict[str, object]) -> tuple[bool, float]:
    """The descriptor's own pairs by their score, all others by PDQ, unknown ones last."""
    if row["method"] == "descriptor":
        return False, -float(str(row["descriptor_score"] or 0))
    return row["pdq_distance"] is None, float(str(row["pdq_distance"] or 0))


def by_hand(rows: Rows, keep: int) -> set[object]:
    """The rows' own numbers of the best of each example and method."""
    groups: dict[object, Rows] = {}
    for row in rows:
        groups.setdefault((row["set"], row["eval_row"], row["method"]), []).append(row)
    held = set()
    for group in groups.values():
        group.sort(key=lambda row: (*nearness(row), row["shard"], row["row"]))
        held |= {row["row"] for row in group[:keep]}
    return held


@settings(max_examples=40, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 5), st.integers(1, 60))
def test_what_is_held_does_not_depend_on_the_units(draws: random.Random, keep: int, n: int) -> None:
    """Once over all, or in pieces of any size and order, and again over what was left."""
    rows = picture_rows(draws, n)
    schema = pa.Table.from_pylist([*rows, dict.fromkeys(rows[0], None)][:-1]).schema
    schema = schema.set(schema.get_field_index("pdq_distance"), pa.field("pdq_distance", pa.int32()))
    schema = schema.set(schema.get_field_index("descriptor_score"), pa.field("descriptor_score", pa.float64()))
    whole = kept.nearest_pairs(pa.Table.from_pylist(rows, schema), keep)
    assert set(whole["row"].to_pylist()) == by_hand(rows, keep)
    draws.shuffle(rows)
    cuts = sorted(draws.choices(range(n + 1), k=3))
    pieces = [
        pa.Table.from_pylist(rows[start:stop], schema) for start, stop in zip([0, *cuts], [*cuts, n], strict=True)
    ]
    some = [kept.nearest_pairs(piece, keep) for piece in pieces]
    again = kept.folded(some, schema.empty_table(), lambda table: kept.nearest_pairs(table, keep))
    assert set(again["row"].to_pylist()) == by_hand(rows, keep)


def test_many_tables_are_folded_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "_WAITING", 10)
    sizes: list[int] = []

    def fold(table: pa.Table) -> pa.Table:
        sizes.append(table.num_rows)
        return kept.summed(table, ["set"])

    one = pa.table({"set": ["a", "b", "a"], "pairs": pa.array([1, 2, 3], pa.int64())})
    found = kept.folded([one] * 50, one.slice(0, 0), fold)
    assert sorted(found.to_pylist(), key=str) == [{"set": "a", "pairs": 200}, {"set": "b", "pairs": 100}]
    assert max(sizes) <= 20


def test_a_shard_holds_the_nearest_and_counts_all() -> None:
    """The pairs that are held are the nearest of those that a join without a bound gives; counts, least distances and rows are of all."""
    table = pa.table({"eval_row": range(60), "eval_id": [str(n) for n in range(60)], **random_side(60, 1)}, CODE_SCHEMA)
    codes = EvalCodes(["a", "b"], [table.slice(0, 35), table.slice(35)])
    limits = [Thresholds(pdq_distance=24), Thresholds(pdq_distance=28)]
    index = random_index(random_side(200, 2))
    everything = join_shard(index, "s", codes, limits)
    few = join_shard(index, "s", codes, limits, keep=2)
    rows = everything.pairs.to_pylist()
    assert max(Counter((row["set"], row["eval_row"], row["method"]) for row in rows).values()) > 4
    wanted = kept.nearest_pairs(everything.pairs, 2)
    assert few.pairs.equals(wanted)
    assert wanted.num_rows < len(rows)
    assert (few.found, few.matched, few.corpus_rows) == (everything.found, everything.matched, everything.corpus_rows)
    counted = {(row["set"], row["eval_row"]): (row["pairs"], row["phash_distance"]) for row in few.found.to_pylist()}
    for (name, example), (pairs, least) in counted.items():
        own = [row for row in rows if (row["set"], row["eval_row"]) == (name, example)]
        known = [row["phash_distance"] for row in own if row["phash_distance"] is not None]
        assert (pairs, least) == (len(own), min(known, default=None))
    assert sum(pairs for pairs, _ in counted.values()) == len(rows)
    assert few.matched["row"].to_pylist() == sorted({row["row"] for row in rows})
    assert few.corpus_rows == {name: len({row["row"] for row in rows if row["set"] == name}) for name in "ab"}


# ---- words


def text_work(ours: list[str | None], matched: dict[str, list[tuple[int, int, int]]], keep: int) -> _TextWork:
    written = read_captions(ours, len(ours))
    none = pa.table({})
    return _TextWork(
        lambda shard, index: none,
        [("a", written, CaptionIndex(written, TextRule()))],
        ClassNames([[]]),
        matched,
        keep,
        False,
    )


def texts_index(captions: list[str], first: int) -> pa.Table:
    uids = [bytes([0, 0, number // 256, number % 256] * 4) for number in range(first, first + len(captions))]
    return pa.table(
        {"uid": pa.array(uids, pa.binary(16)), "url": [f"u{n}" for n in range(len(captions))], "caption": captions}
    )


def test_a_caption_that_stands_everywhere() -> None:
    """Two of five hundred exact and three hundred contained are held, and the one beside its picture; all are counted and listed."""
    ours = ["a photo of a dog", "A brown dog chases a red ball through the old park", None]
    everywhere = [
        *["A photo of a dog!"] * 500,
        *["really: a photo of a dog"] * 300,
        "A brown dog chases a red ball through the city park",
    ]
    everything = text_work(ours, {}, 10_000).work(
        texts_index(everywhere, 0), Unit("0", (), {"shard": "s", "index": ""})
    )
    assert everything.rows.num_rows == 801
    work = text_work(ours, {"s": [(700, 0, 0), (650, 0, 1), (3, 0, -1)]}, 2)
    found = work.work(texts_index(everywhere, 0), Unit("0", (), {"shard": "s", "index": ""}))
    held = [(row["method"], row["row"], row["with_picture"]) for row in found.rows.to_pylist()]
    assert sorted(held) == [
        ("contained", 500, False), ("contained", 501, False), ("contained", 700, True), ("exact", 0, False), ("exact", 1, False),
        ("near", 800, False),
    ]  # fmt: skip
    assert found.beside[".found.parquet"].to_pylist() == [
        {"set": "a", "text": 0, "pairs": 800},
        {"set": "a", "text": 1, "pairs": 1},
    ]
    assert found.notes == {"corpus_rows": {"a": 801}}
    assert found.beside[".matched.parquet"]["row"].to_pylist() == list(range(801))
    halves = [
        work.work(texts_index(everywhere[start:stop], start), Unit("0", (), {"shard": shard, "index": ""}))
        for shard, start, stop in (("r", 0, 400), ("t", 400, 801))
    ]
    folded = kept.folded(
        (one.rows for one in reversed(halves)), halves[0].rows.slice(0, 0), lambda rows: kept.best_text_pairs(rows, 2)
    )
    assert sorted((row["method"], row["shard"], row["row"]) for row in folded.to_pylist()) == [
        ("contained", "t", 100), ("contained", "t", 101), ("exact", "r", 0), ("exact", "r", 1), ("near", "t", 400),
    ]  # fmt: skip


def test_of_near_captions_the_best_are_held() -> None:
    rows = pa.table(
        {
            "set": ["a"] * 5,
            "text": [7] * 5,
            "method": [TEXT_METHODS[2]] * 5,
            "score": [0.8, 0.9, 0.85, 0.9, 0.95],
            "shard": ["s2", "s2", "s1", "s1", "s1"],
            "row": [1, 2, 3, 4, 5],
            "with_picture": [False] * 5,
        }
    )
    assert kept.best_text_pairs(rows, 2)["row"].to_pylist() == [4, 5]
    assert kept.best_text_pairs(rows, 3)["row"].to_pylist() == [2, 4, 5]


# ---- lists of rows


def test_the_lists_are_sorted_and_each_row_stands_once() -> None:
    draws = np.random.default_rng(5)
    uids = [draws.integers(0, 256, 16, np.uint8).tobytes() for _ in range(36)]
    uids += [bytes(16), bytes(15) + b"1", b"1" + bytes(15), b"1" + bytes(14) + b"1"]
    schema = MATCHED_SCHEMA.append(KEY)
    rows = [(uids[n], f"f{n % 3}.tar", n, f"k{n}" if n % 2 else None) for n in range(40)]
    pictures, captions = (
        pa.table(
            [pa.array(list(side), field.type) for side, field in zip(zip(*part, strict=True), schema, strict=True)],
            schema=schema,
        )
        for part in ([*rows[:20], *rows[5:12]], rows[15:])
    )
    for kind in ("shards", "webdataset"):
        own = kind == "shards"
        some, more = (files.matched_rows([table.slice(0, 7), table.slice(7)], kind) for table in (pictures, captions))

        def lines(part: list[tuple[bytes, str, int, str | None]], own: bool = own) -> str:
            told = sorted((uid.hex(),) if own else (shard, row, key or "") for uid, shard, row, key in part)
            return "".join("\t".join(map(str, one)) + "\n" for one in told)

        assert files.removal_bytes(some, kind).decode() == lines(rows[:20])
        assert files.removal_bytes(more, kind, some).decode() == lines(rows[20:])
        assert files.removal_bytes(some.slice(0, 0), kind) == b""


# ---- a set that repeats one picture


def test_thousands_of_one_picture_are_one_cluster() -> None:
    """By both hands, in memory that does not grow with the square: 3,000 alike would be nine million pairs."""
    draws = np.random.default_rng(6)
    n = 3000
    one, other = draws.integers(0, 256, (2, 32), np.uint8)
    pdq = [(one if row % 3 else other).tobytes() for row in range(n)]
    phash = [(1 << 40) + row % 3 for row in range(n)]
    table = pa.table(
        [
            range(n),
            [str(row) for row in range(n)],
            [bytes([row % 2]) * 32 if row < 4 else row.to_bytes(32) for row in range(n)],
            phash,
            pdq,
            [100] * n,
        ],
        schema=CODE_SCHEMA,
    )
    limits = Thresholds(phash_pdq_distance=20)
    found = clusters(table, limits)
    assert set(found.tolist()) == {0}, "rows 0 and 2 have the same bytes and other hashes"
    apart = table.set_column(2, "sha256", pa.array([row.to_bytes(32) for row in range(n)], pa.binary(32)))
    assert clusters(apart, limits).tolist() == [0 if row % 3 == 0 else 1 for row in range(n)]
    for one_table, expected in ((table, found), (apart, clusters(apart, limits))):
        rows = one_table.to_pylist()
        assert twin.clusters(rows, 31, 50, limits.phash_distance, 20) == expected.tolist()


def test_a_page_of_many_sets_shows_fewer_pairs_of_each() -> None:
    shown = ReportConfig(dir="x", pairs_shown=60, page_pairs=600)
    assert [page_room(shown, sets).pairs_shown for sets in (1, 10, 36, 1000)] == [60, 60, 16, 1]
    assert page_room(shown.model_copy(update={"pairs_shown": 0}), 3).pairs_shown == 0
