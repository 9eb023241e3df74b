"""The second hand of `verify` and the first agree on random sets, and are right about the one that is worked out by hand."""

import numpy as np
import pytest

from evaluation.intervals import Interval
from evaluation.overlap.statistics import analyse
from evaluation.report import twin


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
    assert ours.by_class.p_value == pytest.approx(twin.exact_p(tables), abs=1e-11)
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
