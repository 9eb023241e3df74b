"""All, Clean, Overlap: one row per example of a set, and which side it falls on.

An example is in Overlap when at least one corpus row matches it under the set's thresholds (`join`), else in Clean. The table
also carries the example's own hashes, so that every distance in the evidence can be computed again, and, where predictions were
given, whether the model was right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from evaluation.datasets import UNLABELLED
from evaluation.overlap.join import EvalCodes
from evaluation.overlap.tables import METHODS, SPLIT_SCHEMA
from pipeline.contracts import parquet
from pipeline.contracts.errors import InputError


@dataclass(frozen=True)
class Predictions:
    """Outcomes of one model on one set: `correct` bool or None per example, and what the file says of the model."""

    correct: list[bool | None]
    sha256: str
    model: str | None
    content_root: str | None


def split_set(
    number: int, codes: EvalCodes, labels: NDArray[np.int32], pairs: pa.Table, correct: Sequence[bool | None] | None
) -> pa.Table:
    """The SPLIT_SCHEMA rows of set `number`, in its own order; `pairs` may hold other sets' pairs too."""
    ours = codes.of_set(number)
    own = pairs.filter(pc.equal(pairs["set"], codes.names[number]))
    rows = ours.num_rows
    count = np.bincount(np.asarray(own["eval_row"], np.int64), minlength=rows)
    strength = _smallest(own, pc.index_in(own["method"], value_set=pa.array(METHODS)), rows)
    return pa.table(
        {
            "eval_row": ours["eval_row"],
            "eval_id": ours["eval_id"],
            "sha256": ours["sha256"],
            "label": pa.array(labels, pa.int32(), mask=labels == UNLABELLED),
            "in_overlap": pa.array(count > 0),
            "method": pa.array([None if best is None else METHODS[best] for best in strength], pa.string()),
            "pairs": pa.array(count, pa.int64()),
            "pdq_distance": pa.array(_smallest(own, own["pdq_distance"], rows), pa.int32()),
            "phash_distance": pa.array(_smallest(own, own["phash_distance"], rows), pa.int32()),
            "pdq256": ours["pdq256"],
            "phash64": ours["phash64"],
            "pdq_quality": ours["pdq_quality"],
            "correct": pa.array(correct if correct is not None else [None] * rows, pa.bool_()),
        },
        schema=SPLIT_SCHEMA,
    )


def _smallest(own: pa.Table, values: pa.ChunkedArray, rows: int) -> list[int | None]:
    """The smallest known value per example."""
    best: list[int | None] = [None] * rows
    for row, value in zip(own["eval_row"].to_pylist(), values.to_pylist(), strict=True):
        before = best[row]
        if value is not None and (before is None or value < before):
            best[row] = value
    return best


def read_predictions(
    uri: str, set_name: str, ids: Sequence[str], sha256: Sequence[bytes], file_hash: str
) -> Predictions:
    """Match a `predictions.parquet` of `evaluation zeroshot` with a set by id and picture.

    Raises InputError when a column is missing, an id is unknown or comes twice, or an id's picture is another one: predictions of
    another version of the set would silently change every split.
    """
    place = f"predictions of set {set_name!r} ({uri})"
    table = parquet.read(uri)
    for column in ("eval_id", "sha256", "correct"):
        if column not in table.column_names:
            raise InputError(f"{place}: no column {column!r}; give the file that `evaluation zeroshot` wrote")
    row_of = {row_id: row for row, row_id in enumerate(ids)}
    correct: list[bool | None] = [None] * len(ids)
    columns = (table[name].to_pylist() for name in ("eval_id", "sha256", "correct"))
    for row_id, digest, outcome in zip(*columns, strict=True):
        row = row_of.get(row_id)
        if row is None:
            raise InputError(f"{place}: example {row_id!r} is not in the set; score this version of the set again")
        if digest != sha256[row]:
            raise InputError(f"{place}: example {row_id!r} is another picture than in the set; score the set again")
        if correct[row] is not None:
            raise InputError(f"{place}: example {row_id!r} comes twice; score the set again")
        correct[row] = outcome
    if not table.num_rows:
        raise InputError(f"{place}: no rows; score the set first or leave `predictions` out")
    metadata = table.schema.metadata or {}
    model, root = (metadata.get(key, b"").decode() or None for key in (b"model_sha256", b"content_root"))
    return Predictions(correct, file_hash, model, root)
