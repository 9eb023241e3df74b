"""The cap against a naive twin in plain Python: exact, and the same for any order and partitioning of the rows."""

import random

import numpy as np
import pyarrow as pa
import pytest

from pipeline import balance
from pipeline.contracts.schema import choice_key, uid

_QUERIES, _CAP, _SEED = 40, 25, 17


def _rows(count: int) -> pa.Table:
    random_ = random.Random(5)
    uids = [uid(f"http://example.org/{number}", "a dog") for number in range(count)]
    ids = [
        sorted({min(_QUERIES - 3, int(random_.expovariate(0.2))) for _ in range(random_.randint(1, 4))}) for _ in uids
    ]
    ids[0] = []
    return pa.table({"uid": pa.array(uids, pa.binary(16)), "query_ids": pa.array(ids, pa.list_(pa.int32()))})


def _naive(rows: pa.Table, cap: int) -> dict[bytes, int | None]:
    """uid → query_id of the rows that stay."""
    lists = dict(zip(rows["uid"].to_pylist(), rows["query_ids"].to_pylist(), strict=True))
    matched = [sum(query in ids for ids in lists.values()) for query in range(_QUERIES)]
    chosen = {row: min(ids, key=lambda query: (matched[query], query)) for row, ids in lists.items() if ids}
    kept: dict[bytes, int | None] = {row: None for row, ids in lists.items() if not ids}
    for query in range(_QUERIES):
        mine = sorted(
            (row for row in chosen if chosen[row] == query), key=lambda row: choice_key(row, _SEED, "balance")
        )
        kept |= dict.fromkeys(mine[:cap], query)
    return kept


def _pieces(rows: pa.Table, shards: int, partitions: int, cap: int) -> tuple[dict[bytes, int | None], pa.Table, int]:
    """The five steps over `shards` shards and `partitions` partitions of queries."""
    tables = [rows.slice(rows.num_rows * n // shards, rows.num_rows * (n + 1) // shards - rows.num_rows * n // shards)
              for n in range(shards)]  # fmt: skip
    matched = np.sum([balance.counts(table, _QUERIES) for table in tables], axis=0)
    assigned = [balance.assign(table, matched) for table in tables]
    totals = np.sum([balance.totals(part, _QUERIES) for part in assigned], axis=0)
    heads = pa.concat_tables(
        [balance.heads(table["uid"], part, cap, _SEED) for table, part in zip(tables, assigned, strict=True)]
    )
    number = np.asarray(heads["query_id"]) % partitions
    limits = pa.concat_tables(
        [
            balance.selection(balance.merge_heads(heads.filter(pa.array(number == n)), cap), cap, totals)
            for n in range(partitions)
        ]
    )
    kept: dict[bytes, int | None] = {}
    gone = 0
    for table, part in zip(tables, assigned, strict=True):
        stays, rejected = balance.apply(table, part, limits, _SEED)
        assert stays.num_rows + rejected.num_rows == table.num_rows
        assert set(rejected["reason"].to_pylist()) <= {"over_cap"}
        kept |= dict(zip(stays["uid"].to_pylist(), stays["query_id"].to_pylist(), strict=True))
        gone += rejected.num_rows
    stay = np.minimum(totals, cap)
    ledger = balance.ledger([f"query {n}" for n in range(_QUERIES)], [None] * _QUERIES, matched, totals, stay, stay)
    return kept, ledger, gone


@pytest.mark.parametrize("cap", [1, _CAP, 10_000])
def test_equals_the_naive_twin_in_any_partitioning(cap: int) -> None:
    rows = _rows(1200)
    truth = _naive(rows, cap)
    kept, ledger, gone = _pieces(rows, 1, 1, cap)
    assert kept == truth
    assert gone == rows.num_rows - len(truth)
    order = list(range(rows.num_rows))
    random.Random(6).shuffle(order)
    for shards, partitions in ((4, 3), (7, 1)):
        again, same_ledger, _ = _pieces(rows.take(order), shards, partitions, cap)
        assert again == truth
        assert same_ledger.equals(ledger)


def test_the_ledger_is_min_of_cap_and_available() -> None:
    kept, ledger, _ = _pieces(_rows(1200), 3, 2, _CAP)
    used = [query for query in kept.values() if query is not None]
    assert np.bincount(used, minlength=_QUERIES).tolist() == ledger["kept"].to_pylist()
    assert ledger["kept"].to_pylist() == [min(_CAP, value) for value in ledger["assigned"].to_pylist()]
    assert sum(ledger["assigned"].to_pylist()) == 1199
    assert max(ledger["kept"].to_pylist()) == _CAP
    assert all(
        one <= two for one, two in zip(ledger["assigned"].to_pylist(), ledger["matched"].to_pylist(), strict=True)
    )


def test_a_smaller_cap_keeps_a_part_of_a_larger_one() -> None:
    rows = _rows(800)
    assert set(_pieces(rows, 1, 1, 10)[0]) < set(_pieces(rows, 1, 1, 17)[0])


def test_no_rows_and_a_null_list() -> None:
    rows = _rows(3).slice(0, 0)
    kept, _, gone = _pieces(rows, 1, 1, 5)
    assert (kept, gone) == ({}, 0)
    row = pa.table({"uid": pa.array([b"x" * 16], pa.binary(16)), "query_ids": pa.array([None], pa.list_(pa.int32()))})
    assert _pieces(row, 1, 1, 5)[0] == {b"x" * 16: None}
