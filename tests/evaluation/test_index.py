"""Hamming search against the whole table of distances, on random and planted codes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from evaluation.overlap import index
from evaluation.overlap.index import HammingIndex
from pipeline.content.hashes import hamming


def naive(queries: NDArray[np.uint8], codes: NDArray[np.uint8], distance: int) -> list[tuple[int, int, int]]:
    bits = [np.unpackbits(side, axis=1).astype(np.int32) for side in (queries, codes)]
    table = bits[0].sum(axis=1)[:, None] + bits[1].sum(axis=1)[None, :] - 2 * (bits[0] @ bits[1].T)
    return [(int(q), int(c), int(table[q, c])) for q, c in np.argwhere(table <= distance)]


def planted(seed: int, width: int, n: int, queries: int, farthest: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Random codes, and queries of which each second one is a code with 0 to `farthest` bits flipped."""
    draws = np.random.default_rng(seed)
    codes = draws.integers(0, 256, (n, width), dtype=np.uint8)
    asked = draws.integers(0, 256, (queries, width), dtype=np.uint8)
    for row in range(0, queries, 2):
        bits = np.unpackbits(codes[int(draws.integers(n))])
        bits[draws.choice(width * 8, int(draws.integers(0, farthest + 1)), replace=False)] ^= 1
        asked[row] = np.packbits(bits)
    return asked, codes


def triples(found: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]) -> list[tuple[int, int, int]]:
    return [(int(q), int(c), int(d)) for q, c, d in zip(*found, strict=True)]


@pytest.mark.parametrize(
    ("width", "distance"),
    [*((32, distance) for distance in (0, 5, 15, 16, 31, 32, 47, 48, 90)), *((8, d) for d in (0, 3, 4, 7, 11, 12, 20))],
)
def test_equal_to_the_whole_table(width: int, distance: int) -> None:
    """Radii 0, 1 and 2, the last distance of each and the first of the next, and those at which every code is compared."""
    queries, codes = planted(width + distance, width, 3000, 600, min(distance + 4, width * 8))
    expected = naive(queries, codes, distance)
    assert triples(HammingIndex(codes).search(queries, distance)) == expected
    assert len(expected) > 30


@pytest.mark.parametrize(("width", "distance"), [(32, 31), (32, 40), (8, 6)])
def test_every_pattern_of_flips_around_the_limit_is_found(width: int, distance: int) -> None:
    """Each pair by itself, however its bits are spread over the slots: all in some, one in each, none in the first ones."""
    draws = np.random.default_rng(distance)
    slots, bits = width // 2, np.zeros((3000, width * 8), np.uint8)
    expected = []
    for row in range(3000):
        flipped = int(draws.integers(distance - 2, distance + 3))
        order = draws.permutation(width * 8)
        if row % 3 == 0:  # slot after slot
            order = np.argsort(np.arange(width * 8) % slots * 1000 + draws.permutation(width * 8) % 7, kind="stable")
        elif row % 3 == 1:  # one of each slot, then another, the last slots first
            order = np.arange(width * 8)[::-1]
        bits[row, order[:flipped]] = 1
        expected.append(flipped)
    codes = np.packbits(bits, axis=1)
    found = triples(HammingIndex(codes).search(np.zeros((1, width), np.uint8), distance))
    assert found == [(0, row, flipped) for row, flipped in enumerate(expected) if flipped <= distance]


@pytest.mark.parametrize("width", [8, 32])
def test_a_pair_that_only_one_slot_can_find(width: int) -> None:
    """As many bits as each slot may just not have, and in one slot a bit less: all `distance` of them, for each slot in turn.

    Only that slot is looked up with success, and its next two differ in as many bits as they may.
    """
    slots, draws = width // 2, np.random.default_rng(width)
    for distance in range(3 * slots):
        most, rest = divmod(distance, slots)
        per_slot = np.array([most + 1 if slot <= rest else most for slot in range(slots)])  # they sum to distance + 1
        bits = draws.integers(0, 2, (3000, width * 8), dtype=np.uint8)
        bits[:slots] = 0
        chosen = np.flatnonzero(per_slot)
        for row, short in enumerate(chosen):
            for slot in range(slots):
                inside = slot + slots * draws.permutation(16)[: per_slot[slot] - (slot == short)]
                bits[row, inside] = 1
        codes = np.packbits(bits, axis=1, bitorder="little")
        found = triples(HammingIndex(codes).search(np.zeros((1, width), np.uint8), distance))
        assert found[: len(chosen)] == [(0, row, distance) for row in range(len(chosen))], distance


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([8, 32]), st.integers(0, 60), st.integers(1, 700))
def test_any_distance_and_any_number_of_codes(seed: int, width: int, distance: int, n: int) -> None:
    queries, codes = planted(seed, width, n, 40, 12)
    assert triples(HammingIndex(codes).search(queries, distance)) == naive(queries, codes, distance)


def test_alike_codes_fill_more_than_the_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blank frames hash alike: one query may have every code for a neighbour, through every slot."""
    monkeypatch.setattr(index, "_ROOM", 50)
    codes = np.zeros((2000, 32), np.uint8)
    codes[1000:] = 255
    queries = np.zeros((3, 32), np.uint8)
    queries[1] = 255
    for distance in (31, 60):
        assert triples(HammingIndex(codes).search(queries, distance)) == naive(queries, codes, distance)


def test_so_many_codes_that_their_lists_are_read_ahead() -> None:
    queries, codes = planted(5, 32, index._LONG * index._VALUES + 1, 30, 35)
    table = hamming(queries[:, None], codes[None])
    expected = [(int(q), int(c), int(table[q, c])) for q, c in np.argwhere(table <= 31)]
    assert triples(HammingIndex(codes).search(queries, 31)) == expected
    assert len(expected) > 8


@pytest.mark.prove
@pytest.mark.parametrize("distance", [15, 31, 47])
def test_a_hundred_million_pairs(distance: int) -> None:
    queries, codes = planted(distance, 32, 100_000, 1000, distance + 9)
    expected = []
    for start in range(0, 1000, 50):
        table = hamming(queries[start : start + 50, None], codes[None])
        expected += [(start + int(q), int(c), int(table[q, c])) for q, c in np.argwhere(table <= distance)]
    assert triples(HammingIndex(codes).search(queries, distance)) == expected
    assert len(expected) > 300


def test_one_index_answers_all_distances() -> None:
    queries, codes = planted(3, 32, 2000, 200, 40)
    one = HammingIndex(codes)
    for distance in (31, 3, 60, 31):
        assert triples(one.search(queries, distance)) == naive(queries, codes, distance)


def test_empty_sides() -> None:
    none, one = np.zeros((0, 32), np.uint8), np.zeros((1, 32), np.uint8)
    assert len(HammingIndex(none).search(one, 31)[0]) == 0
    assert len(HammingIndex(one).search(none, 31)[0]) == 0
    assert len(HammingIndex(one).search(one, -1)[0]) == 0


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        HammingIndex(np.zeros((3, 31), np.uint8))
    with pytest.raises(ValueError, match="queries must be"):
        HammingIndex(np.zeros((3, 32), np.uint8)).search(np.zeros((3, 8), np.uint8), 1)
