"""The instant probe: ridge regression onto one-hot classes, every strength from one decomposition of the features.

    minimise  Σ_i ‖W x_i + b - onehot(label_i)‖² + λ ‖W‖²

Along the axes V of the centred features' scatter XᵀX = V S² Vᵀ the solution is (YᵀX V) / (S² + λ), so that another λ costs one division.
The idea is that of big_vision's few-shot evaluator (evaluators/fewshot_lsr.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.probe import INVERSE_STRENGTHS, Score, accuracy
from pipeline.contracts.errors import InputError


@dataclass(frozen=True)
class Ridge:
    """The best of all strengths: `score` on the validation rows, `weights` float64[classes, d], `intercepts` float64[classes]."""

    strength: float
    score: float
    weights: NDArray[np.float64]
    intercepts: NDArray[np.float64]

    def predict(self, features: NDArray[np.floating]) -> NDArray[np.int64]:
        """int64[n]: the class with the largest output, of equals the lowest."""
        outputs = features.astype(np.float64) @ self.weights.T + self.intercepts
        best: NDArray[np.int64] = outputs.argmax(axis=1).astype(np.int64)
        return best


def sweep(
    features: NDArray[np.floating],
    labels: NDArray[np.integer],
    validation: NDArray[np.floating],
    validation_labels: NDArray[np.integer],
    *,
    classes: int,
    strengths: NDArray[np.float64] = 1.0 / INVERSE_STRENGTHS,
    score: Score = accuracy,
) -> Ridge:
    """The best ridge classifier over `strengths`, chosen on the validation rows; of equals the first, which is the strongest.

    `features`, `validation` float[n, d]; labels int[n] below `classes`. Raises InputError where there is no row, or a strength is not
    above 0.
    """
    if not len(features) or not len(validation) or not len(strengths) or (strengths <= 0).any():
        raise InputError(
            f"ridge: {len(features)} rows, {len(validation)} of validation, {len(strengths)} strengths; it needs some of each, and "
            "strengths above 0"
        )
    centre = features.mean(axis=0, dtype=np.float64)
    share = np.bincount(labels, minlength=classes) / len(labels)
    rows = features.astype(np.float64) - centre
    if len(rows) < rows.shape[1]:
        _, lengths, across = np.linalg.svd(rows, full_matrices=False)
        axes, spread = across.T, lengths**2
    else:
        spread, axes = np.linalg.eigh(rows.T @ rows)
        spread = np.maximum(spread, 0.0)
    # What the targets have in common drops out: the rows are centred.
    against = np.eye(classes)[labels].T @ rows @ axes
    seen = (validation.astype(np.float64) - centre) @ axes
    wanted = validation_labels.astype(np.int64)
    found = []
    for strength in strengths:
        inner = against / (spread + strength)
        answers = (seen @ inner.T + share).argmax(axis=1).astype(np.int64)
        found.append((score(wanted, answers), float(strength), inner))
    value, strength, inner = max(found, key=lambda one: one[0])
    weights = inner @ axes.T
    return Ridge(strength, value, weights, share - weights @ centre)
