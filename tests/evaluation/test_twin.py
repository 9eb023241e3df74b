"""The second hand of `verify` and the first agree on random sets, and are right about the one that is worked out by hand."""

import numpy as np
import pytest
from scipy.stats import fisher_exact

from evaluation.intervals import Interval
from evaluation.overlap.statistics import analyse, exact_p
from evaluation.report import twin
from evaluation.report.differences import differ


def plain(interval: Interval | None) -> tuple[float, float | None, float | None] | None:
    return None if interval is None else (interval.value, interval.low, interval.high)


@pytest.mark.parametrize("seed", range(12))
def test_both_hands_agree(seed: int) -> None:
    """Sets of 5 to 3,000 examples, of 2 to 300 classes, with and without repeats, few or many in Overlap."""
    draws = np.random.default_rng(seed)
    n, classes = int(10 ** draws.uniform(0.7, 3.5)), int(10 ** draws.uniform(0.3, 2.5))
    correct, overlap = draws.random(n) < draws.uniform(0.1, 0.99), draws.random(n) < draws.uniform(0.02, 0.9)
    labels, clusters = draws.integers(0, classes, n), draws.integers(0, max(1, int(n * draws.uniform(0.3, 3))), n)
    ours = analyse(correct, overlap, classes=labels, clusters=clusters, tests=3, confidence=0.99)
    rows: list[twin.Row] = [
        {"correct": bool(right), "in_overlap": bool(touched), "label": int(label), "cluster": int(cluster)}
        for right, touched, label, cluster in zip(correct, overlap, labels, clusters, strict=True)
    ]
    clean_units, overlap_units = twin.units(rows)
    clean, touched_units = twin.right_of(clean_units), twin.right_of(overlap_units)
    assert (ours.clean_units.correct, ours.clean_units.n) == clean
    assert (ours.overlap_units.correct, ours.overlap_units.n) == touched_units
    if not clean[1] or not touched_units[1]:
        assert ours.p_value is None
        return
    assert plain(ours.difference) == pytest.approx(twin.difference(touched_units, clean, 0.99), abs=1e-12)
    tables = twin.strata(clean_units, overlap_units)
    assert ours.by_class is not None
    assert (ours.by_class.classes, ours.by_class.units) == (len(tables), sum(sum(table) for table in tables))
    assert ours.by_class.p_value == pytest.approx(twin.exact_p(tables), rel=1e-9, abs=1e-300)
    assert plain(ours.by_class.difference) == (
        pytest.approx(twin.common_difference(tables, 0.99), abs=1e-12) if tables else None
    )


def test_a_table_by_hand() -> None:
    """Two strata of 2 and 2: by class, Overlap has 2 of 2 and Clean 0 of 2. p = 1/6 * 1/6; the difference is 1, its variance 0."""
    tables: list[twin.Table] = [(2, 0, 0, 2), (2, 0, 0, 2)]
    assert twin.exact_p(tables) == pytest.approx(1 / 36, abs=1e-15)
    assert twin.common_difference(tables, 0.95) == pytest.approx((1.0, 1.0, 1.0), abs=1e-15)
    assert twin.common_difference([], 0.95) is None
    assert twin.exact_p([]) == 1.0


@pytest.mark.parametrize("name", ["p_value", "sets.x.effect.by_class.p_value", "sets.x.effect.exact_p", "holm_p"])
def test_a_tiny_p_is_held_against_its_own_size(name: str) -> None:
    """8e-10 is within the tolerance of 1e-300 and another p; what no float tells apart is none."""
    assert list(differ("r", name, 8e-10, 1e-300)) == [
        f"r: {name} is 8e-10, the tables give 1e-300; write the report again"
    ]
    assert len(list(differ("r", name, 0.0, 1e-290))) == 1
    assert not list(differ("r", name, 3e-200 * (1 + 1e-9), 3e-200))
    assert not list(differ("r", name, 1e-310, 0.0))
    assert not list(differ("r", "difference.low", 8e-10, 1e-300))


def test_tiny_ps_of_both_hands() -> None:
    """Scipy's tests and the twin's give a small p to the digits that `verify` asks for, of one stratum and of many."""
    smallest = 1.0
    for n_overlap, n_clean, accuracies in (
        (500, 49_500, (0.61, 0.65, 0.7, 0.8)),
        (5000, 5000, (0.61, 0.65, 0.7, 0.8)),
        (20_000, 30_000, (0.65,)),  # the twin takes seconds for it
    ):
        for right in accuracies:
            table = (round(right * n_overlap), n_overlap - round(right * n_overlap), n_clean * 3 // 5, n_clean * 2 // 5)
            found = exact_p([table])
            theirs = fisher_exact([table[:2], table[2:]], alternative="greater").pvalue
            assert found == pytest.approx(theirs, rel=1e-8, abs=1e-300)
            assert twin.exact_p([table]) == pytest.approx(theirs, rel=1e-8, abs=1e-300)
            smallest = min(smallest, found)
    tables = [(40, 10, 250, 250)] * 30
    assert exact_p(tables) == pytest.approx(twin.exact_p(tables), rel=1e-8, abs=1e-300)
    assert smallest < 1e-100
    assert 1e-300 < exact_p(tables) < 1e-50
