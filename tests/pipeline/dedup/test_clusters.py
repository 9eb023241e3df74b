"""Who stays for whom, over random graphs against a naive twin, in any batches; and what the one step in one process holds."""

import random
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest

from pipeline import dedup
from pipeline.dedup.clusters import Places


def naive(edges: set[tuple[int, int]]) -> dict[int, int]:
    """place → the place it goes for: in ascending order, a place goes for the smallest neighbour before it that stays."""
    before: dict[int, list[int]] = {}
    for order, earlier in edges:
        before.setdefault(order, []).append(earlier)
    goes: dict[int, int] = {}
    for order in sorted(before):
        stays = [earlier for earlier in before[order] if earlier not in goes]
        if stays:
            goes[order] = min(stays)
    return goes


def batches(edges: list[tuple[int, int]], number: int) -> list[tuple[Places, Places]]:
    parts = [np.array(edges[n::number], np.uint64).reshape(-1, 2) for n in range(number)]
    return [(part[:, 0], part[:, 1]) for part in parts]


@pytest.mark.parametrize(("nodes", "degree"), [(3000, 0.5), (1000, 2.0), (300, 12.0), (2, 1.0)])
def test_decisions_are_the_naive_twins_in_any_batches(nodes: int, degree: float) -> None:
    random_ = random.Random(31)
    places = [random_.getrandbits(64) for _ in range(nodes)]
    edges = set()
    for _ in range(int(nodes * degree)):
        one, two = random_.sample(places, 2)
        edges.add((max(one, two), min(one, two)))
    truth = naive(edges)
    for number in (1, 7, 100):
        # The same edge in several files.
        given = [*edges, *random_.sample(sorted(edges), len(edges) // 2)]
        random_.shuffle(given)
        parts = batches(given, number)
        found = dedup.decide(lambda parts=parts: parts, 5)  # type: ignore[misc]
        assert dict(zip(found["order"].to_pylist(), found["before"].to_pylist(), strict=True)) == truth
        assert found["partition"].to_pylist() == sorted(found["partition"].to_pylist())
        assert all(row["partition"] == row["order"] % 5 for row in found.to_pylist())


def test_no_edges() -> None:
    assert dedup.decide(lambda: [], 3).num_rows == 0
    assert dedup.decide(lambda: batches([], 2), 3).num_rows == 0


@pytest.mark.parametrize("nodes", [80_000, 800_000])
def test_a_distinct_edge_costs_at_most_forty_bytes(nodes: int) -> None:
    """Also where no two edges meet (800,000 places, 400,000 edges), and where each is found in three files."""
    generator = np.random.default_rng(32)
    places = generator.integers(0, 1 << 63, nodes, dtype=np.uint64)
    number = 400_000
    chosen = places if nodes == 2 * number else generator.choice(places, 2 * number)
    ends = np.sort(chosen.reshape(number, 2), axis=1)

    files = [part.T.copy() for _ in range(3) for part in np.array_split(generator.permutation(ends), 20)]

    def edges() -> Iterator[tuple[Places, Places]]:
        return ((before_and_order[1], before_and_order[0]) for before_and_order in files)

    dedup.decide(lambda: [(files[0][1][:9], files[0][0][:9])])  # compiled
    tracemalloc.start()
    try:
        dedup.decide(edges)
        peak = tracemalloc.get_traced_memory()[1] / number
    finally:
        tracemalloc.stop()
    print(f"{peak:.0f} bytes an edge")
    assert peak < 40
