"""Hamming search against the whole table of distances, on random and planted codes."""

import numpy as np
import pytest
from numpy.typing import NDArray

from evaluation.overlap.index import HammingIndex


def naive(queries: NDArray[np.uint8], codes: NDArray[np.uint8], distance: int) -> list[tuple[int, int, int]]:
    table = np.unpackbits(queries[:, None, :] ^ codes[None, :, :], axis=2).sum(axis=2)
    return [(int(q), int(c), int(table[q, c])) for q, c in np.argwhere(table <= distance)]


@pytest.mark.parametrize("width", [8, 32])
@pytest.mark.parametrize("distance", [0, 5, 31])
def test_equal_to_the_whole_table(width: int, distance: int) -> None:
    draws = np.random.default_rng(width + distance)
    codes = draws.integers(0, 256, (400, width), dtype=np.uint8)
    queries = draws.integers(0, 256, (300, width), dtype=np.uint8)
    bits = np.unpackbits(codes[:200], axis=1)
    for row in range(200):  # planted at every distance around the threshold
        bits[row, draws.choice(width * 8, min(row % 40, width * 8), replace=False)] ^= 1
    queries[:200] = np.packbits(bits, axis=1)
    found = HammingIndex(codes).search(queries, distance)
    assert [(int(q), int(c), int(d)) for q, c, d in zip(*found, strict=True)] == naive(queries, codes, distance)
    assert len(found[0]) > 0


def test_empty_sides() -> None:
    none, one = np.zeros((0, 32), np.uint8), np.zeros((1, 32), np.uint8)
    assert len(HammingIndex(none).search(one, 31)[0]) == 0
    assert len(HammingIndex(one).search(none, 31)[0]) == 0


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        HammingIndex(np.zeros((3, 31), np.uint8))
    with pytest.raises(ValueError, match="queries must be"):
        HammingIndex(np.zeros((3, 32), np.uint8)).search(np.zeros((3, 8), np.uint8), 1)
