"""Prediction files as `zeroshot` writes them, of answers that a test makes up."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy import stats

from evaluation.calibration import with_probabilities
from evaluation.metrics import TOP
from evaluation.overlap.tables import PREDICTION_SCHEMA, PREDICTIONS_VERSION


def digest(name: object) -> bytes:
    return hashlib.sha256(str(name).encode()).digest()


def write_answers(
    place: Path,
    scores: NDArray[np.float32],
    labels: NDArray[np.int32],
    *,
    scale: float | None = 20.0,
    pictures: Sequence[object] | None = None,
    groups: Sequence[str | None] | None = None,
    videos: Sequence[str | None] | None = None,
    keep_scores: bool = True,
    set_hash: str = "5e" * 32,
    model: str = "aa" * 32,
) -> str:
    """A file of cosines float32[n, classes] and labels int32[n]; `pictures` name the pictures (repeats are the same picture).

    `videos` names the video that each row is a frame of; its scores are then probabilities.
    """
    n = len(labels)
    best = np.argsort(-scores, axis=1, kind="stable").astype(np.int32)
    table = pa.table(
        {
            "row": pa.array(np.arange(n)),
            "eval_id": [f"e{row}" for row in range(n)],
            "sha256": pa.array([digest(name) for name in (pictures or range(n))], pa.binary(32)),
            "label": pa.array(labels),
            "prediction": pa.array(best[:, 0]),
            "top5": pa.array(best[:, :TOP].tolist(), pa.list_(pa.int32())),
            "score": pa.array(scores.max(axis=1)),
            "correct": pa.array(best[:, 0] == labels),
            "subgroup": pa.array(groups or [None] * n, pa.string()),
            "group": pa.array(videos or [None] * n, pa.string()),
            "scores": pa.array(scores.tolist() if keep_scores else [None] * n, pa.list_(pa.float32())),
            "p": pa.nulls(n, pa.float32()),
            "p_label": pa.nulls(n, pa.float32()),
        },
        schema=PREDICTION_SCHEMA,
    )
    if scale is not None:
        table = with_probabilities(table, scores, None if videos else scale)
    metadata = {
        "format_version": str(PREDICTIONS_VERSION),
        "set_content_hash": set_hash,
        "model_sha256": model,
        "logit_scale": "" if scale is None else repr(scale),
    }
    place.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(metadata), place)
    return str(place)


def outcomes(correct: Sequence[bool], classes: int = 3) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Scores and labels of answers that are right where `correct` says so."""
    labels = (np.arange(len(correct)) % classes).astype(np.int32)
    answers = np.where(correct, labels, (labels + 1) % classes)
    return np.eye(classes, dtype=np.float32)[answers], labels


def black_beginnings(correct: Sequence[bool], frames: int = 3) -> dict[str, Any]:
    """What `write_answers` takes for videos that all begin with one black frame, and go on with frames of their own."""
    answers, labels = outcomes(correct)
    rows = range(len(correct) * frames)
    return {
        "scores": np.repeat((0.1 + 0.7 * answers).astype(np.float32), frames, axis=0),
        "labels": np.repeat(labels, frames),
        "pictures": ["black" if row % frames == 0 else row for row in rows],
        "videos": [f"v{row // frames}" for row in rows],
    }


def ends_of_repeats(correct: Sequence[bool], pictures: Sequence[object], confidence: float = 0.95) -> list[float]:
    """Korn and Graubard's interval (1998) of a share, picture by picture, for sets that repeat some pictures more often than others."""
    n, share, names = len(correct), sum(correct) / len(correct), sorted({str(one) for one in pictures})
    away = dict.fromkeys(names, 0.0)
    for right, picture in zip(correct, pictures, strict=True):
        away[str(picture)] += right - share
    m = len(names)
    variance = m / (m - 1) * sum(one**2 for one in away.values()) / n**2
    tail = (1 - confidence) / 2
    few = (stats.t.ppf(1 - tail, n - 1) / stats.t.ppf(1 - tail, m - 1)) ** 2
    effective = min(n, few * share * (1 - share) / variance)
    hits = share * effective
    return [
        float(stats.beta.ppf(tail, hits, effective - hits + 1)),
        float(stats.beta.ppf(1 - tail, hits + 1, effective - hits)),
    ]
