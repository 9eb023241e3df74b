"""Which pairs the tables hold, where one example has more of them than anyone can read.

A logo, a placeholder or "photo of a dog" may stand in millions of corpus rows. What must be exact stays exact however many there are:
whether an example is in Overlap and by which method, its least distances, the number of its pairs, and the list of corpus rows to take
out. The pairs themselves are evidence, and of those every example (every caption of a set) has by each method its best `keep`: the nearest
by PDQ (the descriptor's own pairs and captions: the highest score), and of equal ones the first in the corpus, by shard and row. That is a
total order, so what is held depends neither on the number of workers nor on how the corpus is cut into units; and it can be applied to
parts first and then to what is left of them, so that no process ever has all pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.contracts.config import Json

_WAITING = 1 << 20  # rows that may wait to be folded
_UNKNOWN = 1 << 30  # a distance that is not known comes after all that are


def first_of_each(groups: Sequence[NDArray[Any]], keys: Sequence[NDArray[Any]], keep: int) -> NDArray[np.bool_]:
    """Which of n rows are among the first `keep` of their group in the order of `keys` (both: columns [n], the first decides): bool[n]."""
    order = np.lexsort([*reversed(keys), *reversed(groups)])
    begins = np.ones(len(order), np.bool_)
    begins[1:] = np.any([column[order][1:] != column[order][:-1] for column in groups], axis=0)
    first = np.flatnonzero(begins)
    rank = np.arange(len(order)) - np.repeat(first, np.diff(first, append=len(order)))
    kept = np.zeros(len(order), np.bool_)
    kept[order[rank < keep]] = True
    return kept


def nearest_pairs(pairs: pa.Table, keep: int) -> pa.Table:
    """What is held of PAIR_SCHEMA rows."""
    groups = [_numbers(pairs[name]) for name in ("set", "eval_row", "method")]
    score = np.asarray(pc.fill_null(pairs["descriptor_score"], 0.0))
    learned = np.asarray(pc.equal(pairs["method"], "descriptor"))
    near = np.where(learned, -score, _numbers(pairs["pdq_distance"]))
    keys = [near, _numbers(pairs["shard"]), _numbers(pairs["row"])]
    return pairs.filter(pa.array(first_of_each(groups, keys, keep)))


def best_text_pairs(pairs: pa.Table, keep: int) -> pa.Table:
    """What is held of TEXT_PAIR_SCHEMA rows: beside the best `keep` all that stand with their picture, for these say most."""
    groups = [_numbers(pairs[name]) for name in ("set", "text", "method")]
    keys = [-_numbers(pairs["score"]), _numbers(pairs["shard"]), _numbers(pairs["row"])]
    kept = first_of_each(groups, keys, keep) | np.asarray(pairs["with_picture"], np.bool_)
    return pairs.filter(pa.array(kept))


def _numbers(column: pa.ChunkedArray) -> NDArray[Any]:
    """A column as numbers in its own order, nulls last."""
    if pa.types.is_string(column.type):
        return np.asarray(pc.index_in(column, value_set=pa.array(sorted(pc.unique(column).to_pylist()), pa.string())))
    return np.asarray(pc.fill_null(column, _UNKNOWN) if column.null_count else column)


def folded(tables: Iterable[pa.Table], empty: pa.Table, fold: Callable[[pa.Table], pa.Table]) -> pa.Table:
    """All tables together, folded whenever many rows wait. `fold` must not mind whether parts were folded before."""
    held, waiting, rows = empty, list[pa.Table](), 0
    for table in tables:
        waiting.append(table)
        rows += table.num_rows
        if rows > _WAITING + held.num_rows:
            held, waiting, rows = fold(pa.concat_tables([held, *waiting])), [], 0
    return fold(pa.concat_tables([held, *waiting])).combine_chunks()


def summed(found: pa.Table, by: Sequence[str], least: Sequence[str] = (), largest: Sequence[str] = ()) -> pa.Table:
    """One row for each value of the columns `by`: the sum of `pairs`, the least of the columns `least`, the largest of `largest`."""
    wanted = [("pairs", "sum"), *((name, "min") for name in least), *((name, "max") for name in largest)]
    grouped = found.group_by(list(by)).aggregate(wanted)
    columns = [*by, *(f"{name}_{how}" for name, how in wanted)]
    return grouped.select(columns).rename_columns([*by, *(name for name, _ in wanted)])


def added(notes: Iterable[Json], names: Sequence[str]) -> dict[str, int]:
    """The sum of units' notes that have a count for each of these sets."""
    counts = [note for note in notes if isinstance(note, dict)]
    return {name: sum(int(str(one[name])) for one in counts) for name in names}
