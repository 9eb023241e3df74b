"""metaclip balancing against a naive twin with fractions, binomial intervals, and any partitioning; and that a precap costs nothing."""

import hashlib
import itertools
import math
import random
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest

from pipeline import balance, draw
from pipeline.contracts.schema import uid

SEED, CAP = 17, 60
QUERIES = [f"query {number}" for number in range(30)]


def rows(count: int, fetched: float = 1.0) -> pa.Table:
    random_ = random.Random(3)
    uids = [uid(f"http://example.org/{number}", "a dog") for number in range(count)]
    ids = [sorted({min(29, int(random_.expovariate(0.15))) for _ in range(random_.randint(1, 4))}) for _ in uids]
    ids[0] = []
    table = pa.table({"uid": pa.array(uids, pa.binary(16)), "query_ids": pa.array(ids, pa.list_(pa.int32()))})
    return table.filter(pa.array([random_.random() < fetched for _ in uids]))


def u(row: bytes, query: int) -> Fraction:
    salt = hashlib.blake2b(b"draw\0" + QUERIES[query].encode(), digest_size=16).digest()
    drawn = hashlib.blake2b(row, digest_size=8, key=SEED.to_bytes(8, "little"), person=salt).digest()
    return Fraction(int.from_bytes(drawn, "little"), 1 << 64)


def naive(table: pa.Table, threshold: int) -> dict[bytes, int | None]:
    """MetaCLIP's rule in fractions: uid → the rarest query that drew it."""
    lists = dict(zip(table["uid"].to_pylist(), table["query_ids"].to_pylist(), strict=True))
    count = [sum(query in ids for ids in lists.values()) for query in range(len(QUERIES))]
    kept: dict[bytes, int | None] = {}
    for row, ids in lists.items():
        drew = [query for query in ids if u(row, query) < Fraction(threshold, max(count[query], threshold))]
        if drew or not ids:
            kept[row] = min(drew, key=lambda query: (count[query], query), default=None)
    return kept


def pieces(
    table: pa.Table, parts: int, threshold: int, before: pa.Table | None = None
) -> tuple[pa.Table, pa.Table, list[int]]:
    """The steps over `parts` slices: (kept, odds, accepted per query)."""
    cuts = [table.num_rows * n // parts for n in range(parts + 1)]
    tables = [table.slice(start, stop - start) for start, stop in itertools.pairwise(cuts)]
    matched = np.sum([balance.counts(part, len(QUERIES)) for part in tables], axis=0)
    drawn = np.sum([draw.drawn(part, before, len(QUERIES), SEED) for part in tables], axis=0)
    odds = draw.odds(drawn, threshold, draw.salted(QUERIES), before)
    found = [draw.apply(part, matched, odds, SEED) for part in tables]
    for part, one in zip(tables, found, strict=True):
        assert one.kept.num_rows + one.rejected.num_rows == part.num_rows
        assert set(one.rejected["reason"].to_pylist()) <= {"not_drawn"}
    accepted = np.sum([one.accepted for one in found], axis=0).tolist()
    return pa.concat_tables([one.kept for one in found]), odds, accepted


def as_dict(kept: pa.Table) -> dict[bytes, int | None]:
    return dict(zip(kept["uid"].to_pylist(), kept["query_id"].to_pylist(), strict=True))


@pytest.mark.parametrize("threshold", [1, CAP, 10_000])
def test_equals_the_naive_twin_in_any_partitioning_and_order(threshold: int) -> None:
    table = rows(2000)
    truth = naive(table, threshold)
    kept, odds, accepted = pieces(table, 1, threshold)
    assert as_dict(kept) == truth
    order = list(range(table.num_rows))
    random.Random(6).shuffle(order)
    for parts in (3, 8):
        again, same, as_many = pieces(table.take(order), parts, threshold)
        assert as_dict(again) == truth
        assert same.equals(odds)
        assert as_many == accepted
    if threshold == 10_000:
        assert len(truth) == table.num_rows
        assert odds.num_rows == 0


def test_each_query_draws_its_share() -> None:
    """Accepted of n with probability p lies within five standard deviations of np (one in 1.7 million by chance, for each query)."""
    table = rows(20_000)
    matched = balance.counts(table, len(QUERIES)).tolist()
    accepted = pieces(table, 4, CAP)[2]
    crowded = 0
    for n, k in zip(matched, accepted, strict=True):
        if n <= CAP:
            assert k == n
            continue
        crowded += 1
        p = CAP / n
        assert abs(k - n * p) <= 5 * (n * p * (1 - p)) ** 0.5
    assert crowded >= 20


def test_as_many_pairs_stay_as_independent_draws_leave() -> None:
    """A pair stays with probability 1 - Π(1 - p): the sum over pairs, within five standard deviations."""
    table = rows(20_000)
    matched = balance.counts(table, len(QUERIES)).tolist()
    p = [min(1.0, CAP / max(count, 1)) for count in matched]
    stays = [1 - math.prod(1 - p[query] for query in ids) if ids else 1.0 for ids in table["query_ids"].to_pylist()]
    deviation = sum(one * (1 - one) for one in stays) ** 0.5
    assert abs(pieces(table, 3, CAP)[0].num_rows - sum(stays)) <= 5 * deviation


def test_a_draw_for_one_query_says_nothing_about_another() -> None:
    """The two shares multiply: else pairs of two common queries would be kept together or not at all."""
    uids = [uid("http://example.org/", str(number)) for number in range(20_000)]
    salts = draw.salted(["dog", "cat"])
    half = 1 << 63
    both = sum(draw.uniform(row, salts[0], SEED) < half and draw.uniform(row, salts[1], SEED) < half for row in uids)
    assert abs(both - 5000) < 5 * (20_000 * 0.25 * 0.75) ** 0.5


def test_another_query_on_the_list_changes_no_draw() -> None:
    assert draw.salted(["dog", "cat"])[1] == draw.salted(["emu", "dog", "cat"])[2]


@pytest.mark.parametrize("fetched", [1.0, 0.7, 0.2])
def test_precap_drops_nothing_that_balance_could_keep(fetched: float) -> None:
    """What arrives through a precap is a part of what arrives without one; every pair that balance would draw by its own odds is there."""
    table, arrived = rows(12_000), set(rows(12_000, fetched)["uid"].to_pylist())
    precapped, before, _ = pieces(table, 3, 2 * CAP)
    present = pa.array([row in arrived for row in precapped["uid"].to_pylist()])
    final, odds, accepted = pieces(precapped.filter(present), 4, CAP, before)
    # The final odds are never above the first ones, so a row that precap dropped was drawn by nobody the second time either.
    first = dict(zip(before["query_id"].to_pylist(), before["limit"].to_pylist(), strict=True))
    last = dict(zip(odds["query_id"].to_pylist(), odds["limit"].to_pylist(), strict=True))
    assert all(last[query] <= limit for query, limit in first.items())
    limits = {query: last.get(query, 1 << 64) for query in range(len(QUERIES))}
    everything = table.filter(pa.array([row in arrived for row in table["uid"].to_pylist()])).to_pylist()
    salts = draw.salted(QUERIES)
    could = {
        row["uid"] for row in everything
        if not row["query_ids"] or any(draw.uniform(row["uid"], salts[q], SEED) < limits[q] for q in row["query_ids"])
    }  # fmt: skip
    assert set(final["uid"].to_pylist()) == could
    # The share is MetaCLIP's for the count without a precap, as far as the fetches that succeeded allow.
    count = balance.counts(pa.table({"query_ids": [row["query_ids"] for row in everything]}, schema=None).cast(
        pa.schema([("query_ids", pa.list_(pa.int32()))])), len(QUERIES)).tolist()  # fmt: skip
    for query, n in enumerate(count):
        expected = min(n * first.get(query, 1 << 64) / 2**64, CAP, n)
        assert abs(accepted[query] - expected) <= 5 * max(expected, 1.0) ** 0.5


def test_no_rows() -> None:
    kept, odds, accepted = pieces(rows(3).slice(0, 0), 1, 5)
    assert (kept.num_rows, odds.num_rows, sum(accepted)) == (0, 0, 0)
