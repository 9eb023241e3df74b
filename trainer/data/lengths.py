"""Texts in groups of like length: the text tower computes little more than what captions have.

The places behind a text's end have no part in its feature and no gradient, for the tower looks back only. Captions of the web are short: a
mean of 15 ids in LAION's, but among 512 of them one nearly always fills all 77 places, so that cutting a batch where its longest ends
saves nothing. Sorted by length and cut into groups, each as long as its own longest, 512 of them have 24 places a text, 4,096 have 18
(`python -m tests.benchmarks.lengths`).

Each group costs launches of kernels, whatever its size. That is counted as so many places, and the cuts are those that cost least in sum.
"""

import math
from typing import NamedTuple

import numpy as np

from trainer.data.order import Int64s

_ON_CPU, _COMPILED, _PLAIN = 64, 2048, 8192
"""Places of texts that take as long as another group. On a fast GPU a place takes half a microsecond to one; where blocks are
compiled a group is some 650 launches, most of them of a few µs (`python -m tests.benchmarks.rehearsal`), and where they are not it takes up
to 10 ms of the process that launches."""


class Group(NamedTuple):
    """Texts that are computed together: which rows they are, int64 [n], and how many ids of each."""

    rows: Int64s
    length: int


def cost_of_a_group(device: str, *, compiled: bool, as_many_on_all: bool) -> float:
    """In places of texts, for `grouped`, on a device of type "cuda" or "cpu". as_many_on_all: all processes must have as many groups."""
    if as_many_on_all:
        return math.inf
    if device == "cpu":
        return _ON_CPU
    return _COMPILED if compiled else _PLAIN


def grouped(lengths: Int64s, a_group: float) -> list[Group]:
    """Rows of `lengths`, int64 [n], n at least 1, in groups of rising length; each row is in one of them.

    The sum of places over the groups, with `a_group` for each of them, is as small as it can be: 0 makes one for each length, infinity one
    for all. Rows of a group rise, so that those of equal `lengths` are grouped alike.
    """
    each, counts = np.unique(lengths, return_counts=True)
    up_to = np.concatenate([[0], np.cumsum(counts)])
    least, start = np.zeros(len(each) + 1), np.zeros(len(each) + 1, np.int64)
    for end in range(1, len(each) + 1):
        costs = least[:end] + each[end - 1] * (up_to[end] - up_to[:end]) + a_group
        start[end] = costs.argmin()
        least[end] = costs[start[end]]
    found, end = [], len(each)
    while end:
        shortest, longest = each[start[end]], each[end - 1]
        found.append(Group(np.flatnonzero((lengths >= shortest) & (lengths <= longest)), int(longest)))
        end = int(start[end])
    return found[::-1]
