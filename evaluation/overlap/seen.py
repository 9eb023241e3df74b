"""What a trained descriptor has seen, as the job hands it from stage to stage: views of all sets in memory, a table of vectors for each
index of the corpus. Loads no torch: a worker that joins looks at no picture. `descriptor.stages` makes all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from evaluation.config import DescriptorConfig
from evaluation.descriptor.artefact import Card
from evaluation.descriptor.search import Index
from evaluation.report.schema import DescriptorReport
from pipeline.contracts import parquet, storage
from pipeline.contracts.config import Json, digest_json
from pipeline.contracts.errors import InputError
from pipeline.contracts.parquet import TableFile

Int8s = NDArray[np.int8]
CopyScores = Callable[[int, Sequence[bytes]], list[float | None]]
"""A row of a set and changed copies of its picture to the score of each; None where a copy or the picture has no vector."""


class Vectors(NamedTuple):
    """A corpus's vectors: in which folder (a place), a table for each index in the corpus's order, and how many rows have none."""

    folder: str
    tables: list[TableFile]
    absent: int


@dataclass(frozen=True)
class Seen:
    """`index`: views of all sets, its pictures counted through the sets as `join.EvalCodes` does; `views_root`: a digest over them.

    `copies` takes the number of a set to a CopyScores; it is called by the worker, which then loads torch.
    """

    card: Card
    settings: DescriptorConfig
    index: Index
    views_root: str
    vectors: Vectors
    copies: Callable[[int], CopyScores]

    @property
    def identity(self) -> dict[str, Json]:
        """What a score depends on, beside the corpus's vector: for digests of stages."""
        used = self.settings
        return {
            "weights_sha256": self.card.weights_sha256,
            "beta": used.beta,
            "part_margin": used.part_margin,
            "views": self.views_root,
        }

    def about(self) -> DescriptorReport:
        """For the report."""
        files = [table.sha256 for table in self.vectors.tables]
        return DescriptorReport(
            card=self.card,
            views=self.settings.views,
            beta=self.settings.beta,
            part_margin=self.settings.part_margin,
            rows_without_vector=self.vectors.absent,
            vectors_sha256=digest_json([self.views_root, *files]),
        )


def with_vectors(index: pa.Table, folder: str, name: str) -> pa.Table:
    """An index with the column `vector` of its side table. Raises InputError where that is of other rows."""
    uri = storage.join(folder, name)
    side = parquet.read(uri)
    if not side["uid"].equals(index["uid"]):
        raise InputError(f"{uri}: has the vectors of other rows than its index; move it away and run again")
    return index.append_column("vector", side["vector"])


def as_vectors(column: pa.ChunkedArray, dimension: int, place: str) -> Int8s:
    """binary values as int8[n, d], null as zero. Raises InputError for values of another length."""
    values = [bytes(dimension) if value is None else value for value in column.to_pylist()]
    wrong = next((len(value) for value in values if len(value) != dimension), None)
    if wrong is not None:
        raise InputError(
            f"{place}: a vector of {wrong} bytes, the descriptor's have {dimension}; embed with these weights again"
        )
    return np.frombuffer(b"".join(values), np.int8).reshape(len(values), dimension)
