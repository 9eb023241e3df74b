"""Predictions as `zeroshot` wrote them, read again: one row per example, and which model answered which set.

Everything that is computed after the model has spoken (comparisons, calibration, worst groups, robustness) starts here. A file may come
from a stranger: columns, types and values are checked before anything is counted. Where rows are frames of videos (column `group`), all
frames carry the video's answer, and the video is the example; it is another one's repeat where all its frames are, because many videos
begin with the same black frame.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from evaluation.overlap.examples import odd_frame
from evaluation.overlap.tables import PREDICTIONS_VERSION
from pipeline.content.labelled import SET_NAME, UNLABELLED
from pipeline.contracts import parquet, storage
from pipeline.contracts.errors import InputError

FOLDER = "predictions"
_ENDING = ".parquet"
_TYPES = {
    "eval_id": pa.string(),
    "sha256": pa.binary(32),
    "label": pa.int32(),
    "prediction": pa.int32(),
    "correct": pa.bool_(),
    "subgroup": pa.string(),
    "group": pa.string(),
    "p": pa.float32(),
    "p_label": pa.float32(),
    "scores": pa.list_(pa.float32()),
}
_NULLABLE = ("subgroup", "group", "p", "p_label", "scores")


@dataclass(frozen=True)
class Predictions:
    """One model's answers on one set, n examples.

    `labels` and `answers` int32[n], `correct` bool[n]; `p` and `p_label` float64[n], the probabilities of the answer and of the label
    at the model's own `logit_scale`, and `scores` float32[n, classes], the cosines: each None where the file has none (`scores` also
    where an example has several labels, which is written as label -1). `sha256` is that of a picture's bytes; of a video it is over the
    sha256 of its frames, in their order.
    """

    place: str
    name: str
    model: str
    set_hash: str
    logit_scale: float | None
    ids: list[str]
    sha256: list[bytes]
    labels: NDArray[np.int32]
    answers: NDArray[np.int32]
    correct: NDArray[np.bool_]
    subgroups: list[str | None] | None
    p: NDArray[np.float64] | None
    p_label: NDArray[np.float64] | None
    scores: NDArray[np.float32] | None

    def clusters(self) -> NDArray[np.int64]:
        """Rows with the same picture (video) have the same number, int64[n], from 0 on in order of first appearance."""
        number: dict[bytes, int] = {}
        return np.array([number.setdefault(digest, len(number)) for digest in self.sha256], np.int64)

    def units(self) -> NDArray[np.int64]:
        """The first row of each picture (video), int64[pictures]: a set that repeats a picture has not asked twice."""
        return np.unique(self.clusters(), return_index=True)[1].astype(np.int64)


def find(place: str) -> dict[str, str]:
    """The prediction files of a run by the name of their set: `place` is its `out`, its folder of predictions, or one file.

    Raises InputError when there is none.
    """
    found = tables(place, FOLDER)
    if not found:
        raise InputError(
            f"{place}: no predictions there; give the `out` of `python -m evaluation zeroshot`, or one file of it"
        )
    return {set_name(uri): uri for uri in found}


def tables(place: str, folder: str) -> list[str]:
    """The Parquet files in a `folder` of a run's `out`, or in a place that is this folder; a file itself."""
    if place.endswith(_ENDING):
        return [place]
    listed = (storage.list_files(one) for one in (storage.join(place, folder), place))
    found = ([uri for uri in uris if uri.endswith(_ENDING)] for uris in listed)
    return next((uris for uris in found if uris), [])


def set_name(uri: str) -> str:
    """The set that a file is named after. Raises InputError for what is no name of a set."""
    name = storage.name(uri).removesuffix(_ENDING)
    if not re.fullmatch(SET_NAME, name):
        raise InputError(f"{uri}: {name!r} is no name of a set; give it the name that `zeroshot` wrote")
    return name


def open_table(uri: str) -> tuple[pa.Table, dict[str, str]]:
    """A table and its metadata. Raises InputError for what is none, or has texts that are no UTF-8."""
    table = parquet.read(uri)
    with parquet.plain_errors(uri):
        table.validate(full=True)  # until then pyarrow believes the file
    stated = table.schema.metadata or {}
    return table, {key.decode("utf-8", "replace"): value.decode("utf-8", "replace") for key, value in stated.items()}


def read(uri: str) -> Predictions:
    """One file. Raises InputError for a missing column, another type, a missing or impossible value, another version."""
    table, metadata = open_table(uri)
    for column, kind in _TYPES.items():
        if table.column_names.count(column) != 1:
            found = "no column" if column not in table.column_names else "more than one column"
            raise InputError(f"{uri}: {found} {column!r}; score the set again with this version of `zeroshot`")
        if table[column].type != kind:
            raise InputError(f"{uri}: column {column!r} is {table[column].type}, not {kind}; score the set again")
        if table[column].null_count and column != "subgroup" and not _all_null(table, column):
            raise InputError(
                f"{uri}: column {column!r} has {table[column].null_count:,} missing values; score the set again"
            )
    if not table.num_rows:
        raise InputError(f"{uri}: no rows; score the set first")
    table = _one_row_a_video(uri, table)
    version = metadata.get("format_version")
    if version != str(PREDICTIONS_VERSION):
        raise InputError(
            f"{uri}: format version {version!r}, this program reads {PREDICTIONS_VERSION}; score the set again"
        )
    ids = [str(value) for value in table["eval_id"].to_pylist()]
    if len(set(ids)) != len(ids):
        raise InputError(f"{uri}: an example comes twice; score the set again")
    labels, answers, correct = (np.asarray(table[name]) for name in ("label", "prediction", "correct"))
    if labels.min() < UNLABELLED or answers.min() < 0:
        raise InputError(
            f"{uri}: column 'label' or 'prediction' has a number below those of classes; score the set again"
        )
    if ((labels == answers) != correct)[labels >= 0].any():
        raise InputError(f"{uri}: `correct` does not follow from label and prediction; score the set again")
    return Predictions(
        place=uri,
        name=set_name(uri),
        model=metadata.get("model_sha256", ""),
        set_hash=metadata.get("set_content_hash", ""),
        logit_scale=_scale(uri, metadata.get("logit_scale", "") if _all_null(table, "group") else "1"),
        ids=ids,
        sha256=table["sha256"].to_pylist(),
        labels=labels,
        answers=answers,
        correct=correct,
        subgroups=None if _all_null(table, "subgroup") else table["subgroup"].to_pylist(),
        p=_probabilities(uri, table, "p"),
        p_label=_probabilities(uri, table, "p_label"),
        scores=_scores(uri, table, labels, answers),
    )


def _one_row_a_video(uri: str, table: pa.Table) -> pa.Table:
    """The first frame of each video, under the video's name and a sha256 over those of all its frames; the table itself where rows belong
    to no video."""
    if _all_null(table, "group"):
        return table
    videos = table["group"].to_pylist()
    odd = odd_frame(table, videos)
    if odd is not None:
        raise InputError(
            f"{uri}: frame {table['eval_id'][odd].as_py()!r} has another answer than the frames of video {videos[odd]!r} before it; "
            "a video needs one answer, as `zeroshot` gives it"
        )
    frames: dict[str, list[int]] = {}
    for row, name in enumerate(videos):
        frames.setdefault(name, []).append(row)
    pictures = table["sha256"].to_pylist()
    whole = [hashlib.sha256(b"".join(pictures[row] for row in rows)).digest() for rows in frames.values()]
    table = table.take(pa.array([rows[0] for rows in frames.values()]))
    table = table.set_column(table.column_names.index("sha256"), "sha256", pa.array(whole, pa.binary(32)))
    return table.set_column(table.column_names.index("eval_id"), "eval_id", table["group"])


def _all_null(table: pa.Table, column: str) -> bool:
    return bool(table[column].null_count == table.num_rows) and column in _NULLABLE


def _scale(uri: str, text: str) -> float | None:
    if not text:
        return None
    try:
        scale = float(text)
    except ValueError:
        scale = math.nan
    if not (math.isfinite(scale) and scale > 0):
        raise InputError(f"{uri}: logit_scale is {text!r}, not a positive number; score the set again")
    return scale


def _probabilities(uri: str, table: pa.Table, column: str) -> NDArray[np.float64] | None:
    if _all_null(table, column):
        return None
    values: NDArray[np.float64] = np.asarray(table[column], np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise InputError(f"{uri}: column {column!r} has values that are no probabilities; score the set again")
    return values


def _scores(
    uri: str, table: pa.Table, labels: NDArray[np.int32], answers: NDArray[np.int32]
) -> NDArray[np.float32] | None:
    if _all_null(table, "scores") or labels.min() < 0:
        return None
    lengths = pc.list_value_length(table["scores"]).unique().to_pylist()
    if len(lengths) != 1 or labels.max() >= lengths[0]:
        raise InputError(f"{uri}: column 'scores' does not have one score for each class; score the set again")
    flat = np.asarray(pc.list_flatten(table["scores"]), np.float32)
    if not np.isfinite(flat).all():
        raise InputError(f"{uri}: column 'scores' has values that are no numbers; score the set again")
    scores = flat.reshape(table.num_rows, lengths[0])
    if (scores.argmax(axis=1) != answers).any():
        raise InputError(f"{uri}: `prediction` is not the class with the largest of `scores`; score the set again")
    # Of a video they are mean probabilities: their logarithms have these as their softmax, at scale 1.
    return scores if _all_null(table, "group") else np.log(np.maximum(scores, np.finfo(np.float32).tiny))
