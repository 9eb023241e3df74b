"""All, Clean, Overlap: one row per picture of a set, and which side it falls on.

A picture is in Overlap when at least one corpus row matches it under the set's thresholds (`join`), else in Clean; what that makes of a
video is said in `examples`. The table also carries the picture's own hashes, so that every distance in the evidence can be computed
again, and, where predictions were given, whether the model was right.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from evaluation.config import Metric, Thresholds
from evaluation.metrics import check
from evaluation.overlap.examples import odd_frame
from evaluation.overlap.exposure import Training, known, read_training
from evaluation.overlap.join import EvalCodes
from evaluation.overlap.own_metric import score_columns
from evaluation.overlap.repeats import clusters
from evaluation.overlap.tables import (
    METHODS,
    PREDICTION_METADATA,
    PREDICTION_SCHEMA,
    PREDICTIONS_VERSION,
    SCORE_COLUMNS,
    SPLIT_SCHEMA,
)
from pipeline.content.labelled import UNLABELLED, LabelledSet
from pipeline.contracts import parquet, storage
from pipeline.contracts.errors import InputError


@dataclass(frozen=True)
class Predictions:
    """Outcomes of one model on one set: `correct` bool or None per example, SCORE_COLUMNS of every example; the file, and what it says of
    the model."""

    correct: list[bool | None]
    scores: pa.Table
    place: str
    sha256: str
    model: str | None
    content_root: str | None
    training: Training | None

    def training_over(self, root: str, kind: str) -> Training | None:
        """The training, where its order over the corpus `root` of this kind is known: see `exposure.known`."""
        return known(self.training, self.content_root, root=root, kind=kind)

    def data(self) -> bytes:
        """The file as it was read. Raises InputError where it has changed since."""
        data = storage.read_bytes(self.place, limit=1 << 34)
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise InputError(f"{self.place}: changed while the job ran; run it again when nobody writes there")
        return data


def split_set(
    number: int,
    codes: EvalCodes,
    labelled: LabelledSet,
    pairs: pa.Table,
    found: pa.Table,
    limits: Thresholds,
    correct: Sequence[bool | None] | None,
) -> pa.Table:
    """The SPLIT_SCHEMA rows of set `number`, in its own order; `pairs` (those that are held) and `found` (FOUND_SCHEMA, of all pairs) may
    be of other sets too."""
    ours, labels = codes.of_set(number), labelled.labels
    own, counted = (table.filter(pc.equal(table["set"], codes.names[number])) for table in (pairs, found))
    rows = ours.num_rows
    count = np.zeros(rows, np.int64)
    count[np.asarray(counted["eval_row"], np.int64)] = np.asarray(counted["pairs"], np.int64)
    strength = _smallest(own, pc.index_in(own["method"], value_set=pa.array(METHODS)), rows)
    return pa.table(
        {
            "eval_row": ours["eval_row"],
            "eval_id": ours["eval_id"],
            "sha256": ours["sha256"],
            "group": pa.array([None] * rows if labelled.groups is None else labelled.groups, pa.string()),
            "cluster": pa.array(clusters(ours, limits)),
            "label": pa.array(labels, pa.int32(), mask=labels == UNLABELLED),
            "in_overlap": pa.array(count > 0),
            "method": pa.array([None if best is None else METHODS[best] for best in strength], pa.string()),
            "pairs": pa.array(count, pa.int64()),
            "pdq_distance": pa.array(_smallest(own, own["pdq_distance"], rows), pa.int32()),
            "phash_distance": pa.array(_smallest(counted, counted["phash_distance"], rows), pa.int32()),
            "descriptor_score": pc.negate(
                pa.array(_smallest(counted, pc.negate(counted["descriptor_score"]), rows), pa.float64())
            ),
            "pdq256": ours["pdq256"],
            "phash64": ours["phash64"],
            "pdq_quality": ours["pdq_quality"],
            "correct": pa.array(correct if correct is not None else [None] * rows, pa.bool_()),
        },
        schema=SPLIT_SCHEMA,
    )


def _smallest(own: pa.Table, values: pa.ChunkedArray, rows: int) -> list[Any]:
    """The smallest known value per example, None where there is none."""
    best: list[Any] = [None] * rows
    for row, value in zip(own["eval_row"].to_pylist(), values.to_pylist(), strict=True):
        before = best[row]
        if value is not None and (before is None or value < before):
            best[row] = value
    return best


def with_scores(split: pa.Table, known: Predictions | None) -> pa.Table:
    """A set's split with SCORE_COLUMNS behind."""
    for field in SCORE_COLUMNS:
        column = pa.nulls(split.num_rows, field.type) if known is None else known.scores[field.name]
        split = split.append_column(field, column)
    return split


def read_predictions(uri: str, labelled: LabelledSet, file_hash: str, metric: Metric = "accuracy") -> Predictions:
    """Match a `predictions.parquet` of `evaluation zeroshot` with a set: by id, picture and label, and by the set's content hash.

    Raises InputError when a column is missing or of another type, an id is unknown, comes twice or has no outcome, when a picture or a
    label is another one, a labelled example has no score, the frames of a video have not one answer, the file lacks what the set's metric
    needs, or it was scored on a set of another content hash (class list, captions, subgroups, separators): predictions of another version
    of the set would silently change every split.
    Nothing else may be in the file, because it becomes a part of the report.
    """
    check(metric, f"set {labelled.name!r} ({labelled.path})", len(labelled.classes), labelled.marks is not None)
    place = f"predictions of set {labelled.name!r} ({uri})"
    table = parquet.read(uri)
    for column in ("eval_id", "sha256", "label", "correct"):
        if column not in table.column_names:
            raise InputError(f"{place}: no column {column!r}; give the file that `evaluation zeroshot` wrote")
    for column in ("eval_id", "correct"):
        found, wanted = table[column].type, PREDICTION_SCHEMA.field(column).type
        if found != wanted:
            raise InputError(
                f"{place}: column {column!r} is {found}, not {wanted}; give the file that `evaluation zeroshot` wrote"
            )
    if not table.num_rows:
        raise InputError(f"{place}: no rows; score the set first or leave `predictions` out")
    rows = _rows(place, table, labelled)
    outcomes = table["correct"].to_pylist()
    correct = [None if row is None else outcomes[row] for row in rows]
    metadata = {
        key.decode("utf-8", "replace"): value.decode("utf-8", "replace")
        for key, value in (table.schema.metadata or {}).items()
    }
    _check_identity(place, metadata, labelled)
    stranger = strange(table.schema)
    if stranger is not None:
        raise InputError(
            f"{place}: has {stranger}, which no predictions have, and the report would show it; leave it out of the file"
        )
    known = labelled.labels != UNLABELLED if labelled.marks is None else np.ones(len(labelled), np.bool_)
    unscored = [row for row in np.flatnonzero(known).tolist() if correct[row] is None]
    if unscored:
        raise InputError(
            f"{place}: {len(unscored):,} of {len(labelled):,} examples have a label and no score, the first is "
            f"{labelled.ids[unscored[0]]!r}; score the set again"
        )
    _check_videos(place, table, rows, labelled)
    scores = score_columns(place, table, rows, labelled, metric)
    return Predictions(
        correct,
        scores,
        uri,
        file_hash,
        metadata.get("model_sha256") or None,
        metadata.get("content_root") or None,
        read_training(place, metadata),
    )


def strange(found: pa.Schema) -> str | None:
    """What a predictions file has beside columns and metadata of predictions; None: nothing."""
    columns = {field.name: field.type for field in PREDICTION_SCHEMA}
    for field in found:
        if columns.get(field.name) != field.type:
            return f"a column {field.name!r} of {field.type}"
    others = sorted({key.decode("utf-8", "replace") for key in found.metadata or {}} - set(PREDICTION_METADATA))
    return f"metadata {others[0]!r}" if others else None


def _rows(place: str, table: pa.Table, labelled: LabelledSet) -> list[int | None]:
    """For each example of the set its row in the file, None where it has none."""
    row_of = {row_id: row for row, row_id in enumerate(labelled.ids)}
    found: list[int | None] = [None] * len(labelled)
    columns = (table[name].to_pylist() for name in ("eval_id", "sha256", "label", "correct"))
    for number, (row_id, digest, label, outcome) in enumerate(zip(*columns, strict=True)):
        row = row_of.get(row_id)
        if row is None:
            raise InputError(f"{place}: example {row_id!r} is not in the set; score this version of the set again")
        if digest != labelled.sha256[row]:
            raise InputError(f"{place}: example {row_id!r} is another picture than in the set; score the set again")
        if outcome is None:
            raise InputError(f"{place}: example {row_id!r} has no outcome; score the set again")
        if found[row] is not None:
            raise InputError(f"{place}: example {row_id!r} comes twice; score the set again")
        if label != labelled.labels[row]:
            raise InputError(
                f"{place}: example {row_id!r} was scored against label {label!r}, in the set it has "
                f"{int(labelled.labels[row])}; score the set again"
            )
        if label == UNLABELLED and labelled.marks is None:
            raise InputError(f"{place}: example {row_id!r} has no label, and an outcome; score the set again")
        found[row] = number
    return found


def _check_videos(place: str, table: pa.Table, rows: Sequence[int | None], labelled: LabelledSet) -> None:
    """All frames of a video carry its answer, and its name. `rows` are those of the examples in the file."""
    example_of = {row: example for example, row in enumerate(rows) if row is not None}
    videos = [None if labelled.groups is None else labelled.groups[example_of[row]] for row in range(table.num_rows)]
    names = table["group"].to_pylist() if "group" in table.column_names else videos
    for row, (name, video) in enumerate(zip(names, videos, strict=True)):
        if name != video:
            raise InputError(
                f"{place}: example {labelled.ids[example_of[row]]!r} is of video {name!r}, in the set of {video!r}; score the set again"
            )
    odd = odd_frame(table, videos)
    if odd is not None:
        raise InputError(
            f"{place}: frame {labelled.ids[example_of[odd]]!r} has another answer than the frames of video {videos[odd]!r} before it; "
            "a video needs one answer, as `evaluation zeroshot` gives it"
        )


def _check_identity(place: str, metadata: Mapping[str, str], labelled: LabelledSet) -> None:
    version, root = metadata.get("format_version"), metadata.get("set_content_hash")
    if version is None or root is None:
        raise InputError(f"{place}: does not say which set was scored; give the file that `evaluation zeroshot` wrote")
    if version != str(PREDICTIONS_VERSION):
        raise InputError(
            f"{place}: format version {version}, this program reads {PREDICTIONS_VERSION}; score the set again"
        )
    if root != labelled.content_hash:
        raise InputError(
            f"{place}: scored on a set of content hash {root[:12]}, here it is {labelled.content_hash[:12]}; give the set the same "
            "table (classes, caption, subgroup, separators) as in the zero-shot configuration, or score it again"
        )
