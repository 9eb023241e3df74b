"""What an example is: a picture, or the video whose frames a set holds. The rule stands here once, and every share and score counts by it.

A split has a row for each picture, because hashes, pairs and repeats are of pictures. Where these are frames of videos (`group` names
them), whose frames all carry its answer, the video is the example:

- it is in Overlap if any of its frames is, by the strongest match of them, and has been seen if any of them was;
- its label and its answer are those of its first frame that was scored;
- it is in one cluster with every video that has a picture of it, and with those that these are in one with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from evaluation.overlap.tables import METHODS

COLUMNS = ("cluster", "label", "in_overlap", "method", "correct", "top5", "scores", "marks", "seen")
"""Of a published split: what can be said of an example."""
ANSWER = ("label", "prediction", "correct", "score")
"""Of a predictions file: what is the same for all frames of a video."""


@dataclass(frozen=True)
class Examples:
    """The n examples of a split of m rows, in the order in which they begin.

    `table` has COLUMNS, a row an example; `of_row` int64[m] is the example that each row of the split belongs to.
    """

    table: pa.Table
    of_row: NDArray[np.int64]

    @property
    def scored(self) -> NDArray[np.bool_]:
        """Which examples have an outcome, bool[n]."""
        found: NDArray[np.bool_] = np.asarray(pc.is_valid(self.table["correct"]), np.bool_)
        return found

    def least(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The smallest value of each example's rows: float64[m] → float64[n]."""
        found = np.full(self.table.num_rows, np.inf)
        np.minimum.at(found, self.of_row, values)
        return found


def examples(split: pa.Table) -> Examples:
    """The examples of a published split, or of any table that has its COLUMNS and `group`."""
    if split["group"].null_count == split.num_rows:
        return Examples(split.select(COLUMNS), np.arange(split.num_rows, dtype=np.int64))
    video = np.asarray(split["group"].combine_chunks().dictionary_encode().indices, np.int64)
    n = int(video.max()) + 1
    unscored = np.asarray(pc.is_null(split["correct"]), np.bool_)
    order = np.lexsort((unscored, video))  # stable: of a video the scored frames first, each kind as they come
    first = order[np.searchsorted(video[order], np.arange(n))]
    method = np.asarray(pc.fill_null(pc.index_in(split["method"], value_set=pa.array(METHODS)), len(METHODS)), np.int64)
    strongest = np.full(n, len(METHODS), np.int64)
    np.minimum.at(strongest, video, method)
    seen = np.asarray(pc.fill_null(pc.cast(split["seen"], pa.int8()), -1), np.int64)
    most_seen = np.full(n, -1, np.int64)
    np.maximum.at(most_seen, video, seen)
    of_videos = {
        "cluster": pa.array(_clusters(video, n, np.asarray(split["cluster"], np.int64))),
        "in_overlap": pa.array(np.bincount(video, weights=np.asarray(split["in_overlap"], np.bool_)) > 0),
        "method": pa.array([*METHODS, None], pa.string()).take(pa.array(strongest)),
        "seen": pa.array(most_seen > 0, pa.bool_(), mask=most_seen < 0),
    }
    table = split.select(COLUMNS).take(pa.array(first))
    for name, column in of_videos.items():
        table = table.set_column(table.column_names.index(name), name, column)
    return Examples(table, video)


def _clusters(video: NDArray[np.int64], n: int, picture: NDArray[np.int64]) -> NDArray[np.int64]:
    """The cluster of each video, int64[n]: videos and clusters of pictures are the nodes, frames the edges."""
    node = np.unique(picture, return_inverse=True)[1]
    size = n + int(node.max()) + 1
    graph = coo_array((np.ones(len(video), np.int8), (video, n + node)), shape=(size, size))
    found: NDArray[np.int64] = connected_components(graph, directed=False)[1][:n].astype(np.int64)
    return found


def odd_frame(answers: pa.Table, videos: Sequence[str | None]) -> int | None:
    """The first row of a predictions file whose answer (ANSWER, as far as it is there) is not that of its video's first row; None: there is
    none. `videos` names each row's; None: the row is of no video."""
    columns = [answers[name].to_pylist() for name in ANSWER if name in answers.column_names]
    first: dict[str, tuple[object, ...]] = {}
    for row, (video, answer) in enumerate(zip(videos, zip(*columns, strict=True), strict=True)):
        if video is not None and first.setdefault(video, answer) != answer:
            return row
    return None
