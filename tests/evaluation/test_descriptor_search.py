"""The exact join of vectors against comparing one pair at a time in whole numbers."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from evaluation.descriptor import search
from evaluation.descriptor.search import Index, cosines, normalisation
from pipeline.contracts.errors import InputError

Int8s = NDArray[np.int8]


def planted(count: int, queries: int, dimension: int, seed: int) -> tuple[Int8s, Int8s]:
    """Views, and queries of which every second one is a view with some noise."""
    draws = np.random.default_rng(seed)
    views = draws.integers(-127, 128, (count, dimension)).astype(np.int8)
    asked = draws.integers(-127, 128, (queries, dimension)).astype(np.int8)
    for row in range(0, queries, 2):
        noise = draws.integers(-60, 61, dimension)
        asked[row] = np.clip(views[row % count].astype(int) + noise, -127, 127).astype(np.int8)
    return views, asked


def by_brute_force(
    index: Index, queries: Int8s, thresholds: NDArray[np.float64]
) -> dict[tuple[int, int], tuple[float, float, int]]:
    """(picture, query) → (score, cosine, view), with Python's whole numbers."""
    found: dict[tuple[int, int], tuple[float, float, int]] = {}
    lengths = [math.sqrt(sum(int(value) ** 2 for value in query)) for query in queries]
    for place, vector in enumerate(index.vectors):
        ours = [int(value) for value in vector]
        length = math.sqrt(sum(value**2 for value in ours))
        for row, query in enumerate(queries):
            if lengths[row] == 0:
                continue
            cosine = sum(value * int(other) for value, other in zip(ours, query, strict=True)) / (length * lengths[row])
            score = cosine - float(index.lowered[place])
            pair = (int(index.picture[place]), row)
            if score >= thresholds[place] and (pair not in found or score > found[pair][0]):
                found[pair] = (score, cosine, int(index.view[place]))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_search_equals_brute_force(seed: int) -> None:
    draws = np.random.default_rng(100 + seed)
    views, queries = planted(60, 90, 12, seed)
    queries[5] = 0
    picture = np.sort(draws.integers(0, 25, 60)).astype(np.int64)
    index = Index(views, picture, np.arange(60) % 4, draws.uniform(0, 0.2, 60) * (seed % 2))
    thresholds = draws.choice([0.3, 0.6, 0.9], 25)[picture]
    hits, _ = search.search(index, queries, thresholds)
    theirs = by_brute_force(index, queries, thresholds)
    assert len(theirs) > 50
    assert list(zip(hits.picture.tolist(), hits.query.tolist(), strict=True)) == sorted(theirs)
    for place, pair in enumerate(sorted(theirs)):
        assert (hits.score[place], hits.cosine[place], hits.view[place]) == theirs[pair]


def test_blocks_change_nothing() -> None:
    """More vectors on both sides than one block holds: every planted pair and no other, as the whole table says."""
    views, queries = planted(4500, 4300, 24, 9)
    index = Index(views, np.arange(4500), np.zeros(4500, np.int64), np.zeros(4500))
    hits, _ = search.search(index, queries, np.full(4500, 0.8))
    wide, other = views.astype(np.int64), queries.astype(np.int64)
    lengths = np.sqrt((wide**2).sum(1).astype(float)), np.sqrt((other**2).sum(1).astype(float))
    table = (wide @ other.T).astype(float) / (lengths[0][:, None] * lengths[1][None, :])
    picture, query = np.nonzero(table >= 0.8)
    np.testing.assert_array_equal(hits.picture, picture)
    np.testing.assert_array_equal(hits.query, query)
    np.testing.assert_array_equal(hits.cosine, table[picture, query])
    assert len(picture) >= 2000


@pytest.mark.parametrize("seed", range(2))
def test_given_pairs_score_as_the_search_has_them(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, and in blocks that cut a picture's views apart; pairs without a vector on one side are left out."""
    draws = np.random.default_rng(200 + seed)
    views, queries = planted(60, 90, 12, seed)
    queries[7] = 0
    picture = np.sort(draws.integers(0, 25, 60)).astype(np.int64)
    index = Index(views, picture, np.arange(60) % 4, draws.uniform(0, 0.2, 60))
    theirs = by_brute_force(index, queries, np.full(60, -2.0))
    asked = sorted(draws.choice(25 * 90, 400, replace=False).tolist())
    pairs = [divmod(pair, 90) for pair in asked]
    monkeypatch.setattr(search, "_BLOCK", 7)
    hits = search.score_pairs(index, queries, *np.array(pairs, np.int64).T)
    assert list(zip(hits.picture.tolist(), hits.query.tolist(), strict=True)) == [one for one in pairs if one in theirs]
    assert 7 in {query for _, query in pairs}
    for place, pair in enumerate(one for one in pairs if one in theirs):
        assert (hits.score[place], hits.cosine[place], hits.view[place]) == theirs[pair]
    assert len(search.score_pairs(index, queries, np.zeros(0, np.int64), np.zeros(0, np.int64)).picture) == 0


@pytest.mark.parametrize("seed", range(4))
def test_the_nearest_of_a_sample_equals_brute_force(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the thresholds, in blocks that cut views and queries apart, with many that are equally near: the first of them."""
    draws = np.random.default_rng(300 + seed)
    views, queries = planted(60, 90, 12, seed)
    queries[5] = 0
    queries[40:70] = queries[draws.integers(0, 8, 30)]
    picture = np.sort(draws.integers(0, 25, 60)).astype(np.int64)
    index = Index(views, picture, np.arange(60) % 4, draws.uniform(0, 0.2, 60) * (seed % 2))
    sampled = np.isin(picture, draws.choice(25, 11, replace=False))
    thresholds = np.where(picture % 3 == 0, np.inf, 0.6)
    best: dict[int, tuple[float, int, float, int]] = {}
    for (one, query), (score, cosine, view) in by_brute_force(index, queries, np.full(60, -2.0)).items():
        if one in picture[sampled]:
            best[one] = min(best.get(one, (9.0, 0, 0.0, 0)), (-score, query, cosine, view))
    expected = [(one, query, view, cosine, -less) for one, (less, query, cosine, view) in sorted(best.items())]
    hits, _ = search.search(index, queries, thresholds)
    for block in (7, 4096):
        monkeypatch.setattr(search, "_BLOCK", block)
        again, nearest = search.search(index, queries, thresholds, sampled)
        columns = (nearest.picture, nearest.query, nearest.view, nearest.cosine, nearest.score)
        assert list(zip(*(column.tolist() for column in columns), strict=True)) == expected
        np.testing.assert_array_equal(again.score, hits.score)
    assert len(expected) > 5


def test_an_infinite_threshold_is_matched_by_nothing() -> None:
    views, queries = planted(60, 90, 12, 1)
    index = Index(views, np.arange(60), np.zeros(60, np.int64), np.zeros(60))
    some = np.where(np.arange(60) < 20, 0.5, np.inf)
    assert len(search.search(index, queries, np.full(60, np.inf))[0].picture) == 0
    (found, _), (all_, _) = (search.search(index, queries, limits) for limits in (some, np.full(60, 0.5)))
    kept = all_.picture < 20
    np.testing.assert_array_equal(found.picture, all_.picture[kept])
    np.testing.assert_array_equal(found.score, all_.score[kept])


def test_a_threshold_that_would_fill_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    views, queries = planted(60, 90, 12, 1)
    index = Index(views, np.arange(60), np.zeros(60, np.int64), np.zeros(60))
    monkeypatch.setattr(search, "_MOST_HITS", 100)
    with pytest.raises(InputError, match=r"descriptor_score: 0\.01 and more is the score of over 100 views"):
        search.search(index, queries, np.full(60, 0.01))


def test_a_threshold_that_is_exactly_reached_counts() -> None:
    vector = np.array([[3, 4, 0]], np.int8)
    index = Index(vector, np.zeros(1, np.int64), np.zeros(1, np.int64), np.zeros(1))
    other = np.array([[4, 3, 0], [4, 3, 1], [0, 0, 0]], np.int8)
    hits, _ = search.search(index, other, np.array([24 / 25]))
    assert hits.query.tolist() == [0]
    assert hits.cosine.tolist() == [24 / 25]


def test_nothing_in_nothing_out() -> None:
    none, one = np.zeros((0, 3), np.int8), np.ones((1, 3), np.int8)
    empty = Index(none, np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    full = Index(one, np.zeros(1, np.int64), np.zeros(1, np.int64), np.zeros(1))
    for index, queries, views in ((empty, one, 0), (full, none, 1), (full, np.zeros((2, 3), np.int8), 1)):
        hits, nearest = search.search(index, queries, np.zeros(views), np.ones(views, np.bool_))
        assert len(hits.picture) == len(nearest.picture) == 0


def test_the_largest_dimension_is_still_exact() -> None:
    """Sums of products near 2^24, with all orders of adding that a library may choose."""
    draws = np.random.default_rng(1)
    dimension = search.LARGEST_DIMENSION
    left = np.full((40, dimension), 127, np.int8)
    left[1:] -= draws.integers(0, 3, (39, dimension)).astype(np.int8)
    table = cosines(left, left)
    wide = left.astype(np.int64)
    lengths = np.sqrt((wide**2).sum(1).astype(float))
    np.testing.assert_array_equal(table, (wide @ wide.T).astype(float) / (lengths[:, None] * lengths[None, :]))
    too_long = np.ones((1, dimension + 1), np.int8)
    with pytest.raises(ValueError, match="dimensions"):
        cosines(too_long, too_long)


def test_score_normalisation_by_hand() -> None:
    views, background = planted(7, 30, 10, 3)
    lowered = normalisation(views, background, beta=0.8, nearest=(2, 4))
    for row in range(7):
        descending = sorted(cosines(views[row : row + 1], background)[0].tolist(), reverse=True)
        assert lowered[row] == pytest.approx(0.8 * sum(descending[1:4]) / 3)
    assert not normalisation(views, background[:0], beta=0).any()
    with pytest.raises(ValueError, match="background"):
        normalisation(views, background[:2], beta=1.0)
