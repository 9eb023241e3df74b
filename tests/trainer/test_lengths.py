"""Groups of texts: each row in one of them, none longer than it must be, and the cheapest of all that there could be."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.benchmarks.data.gpu_case import Case, text_lengths
from trainer.data.lengths import cost_of_a_group, grouped
from trainer.data.order import Int64s


def cost(lengths: Int64s, cuts: list[int], a_group: float) -> float:
    """Of groups that end at `cuts` of the sorted lengths."""
    parts = np.split(np.sort(lengths), cuts)
    return sum(len(part) * int(part[-1]) + a_group for part in parts)


@given(st.lists(st.integers(2, 77), min_size=1, max_size=9), st.sampled_from([0, 1, 10, 40, 200, math.inf]))
@settings(deadline=None)
def test_no_other_cuts_cost_less(drawn: list[int], a_group: float) -> None:
    lengths = np.array(drawn)
    groups = grouped(lengths, a_group)
    assert sorted(row for group in groups for row in group.rows.tolist()) == list(range(len(drawn)))
    assert [group.length for group in groups] == sorted({group.length for group in groups})
    for group in groups:
        assert lengths[group.rows].max() == group.length
        assert (np.diff(group.rows) > 0).all()
    if a_group == math.inf:
        assert len(groups) == 1
        return
    found = sum(len(group.rows) * group.length + a_group for group in groups)
    places = range(1, len(drawn))
    every = itertools.chain.from_iterable(itertools.combinations(places, count) for count in range(len(drawn)))
    assert found == min(cost(lengths, list(cuts), a_group) for cuts in every)


@pytest.mark.parametrize(("texts", "places", "most"), [(512, 26, 4), (4096, 20, 8)])
def test_captions_need_a_third_of_their_places(texts: int, places: float, most: int) -> None:
    """As long as LAION's; all 77 places by one length for all."""
    lengths = np.array(text_lengths(Case("", texts, "", captions=True)))
    assert 14 < lengths.mean() < 17
    groups = grouped(lengths, cost_of_a_group("cuda", compiled=True, as_many_on_all=False))
    assert 2 <= len(groups) <= most
    assert sum(len(group.rows) * group.length for group in groups) < places * texts
    assert len(grouped(lengths, cost_of_a_group("cuda", compiled=False, as_many_on_all=False))) < len(groups)
    assert len(grouped(lengths, cost_of_a_group("cpu", compiled=False, as_many_on_all=False))) > most
    assert len(grouped(lengths, cost_of_a_group("cpu", compiled=True, as_many_on_all=True))) == 1
