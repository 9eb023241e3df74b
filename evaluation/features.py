"""Pictures and sentences to embeddings: what the scores need of a model, and the one place that normalises.

Kept apart from `model.py`, which holds the trainer's model and loads torch: the arithmetic of zero-shot and retrieval is numpy alone, and
a test can hand it a model of three lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.content.labelled import LabelledSet
from pipeline.contracts.errors import RunError


class Encoder(Protocol):
    """What the scores need of a model."""

    def images(self, labelled: LabelledSet, rows: Sequence[int]) -> NDArray[np.float32]:
        """float32[rows, d] for ascending rows of a set."""
        ...

    def texts(self, sentences: Sequence[str]) -> NDArray[np.float32]:
        """float32[sentences, d]."""
        ...


def normalise(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows scaled to length 1; a row of zeros stays zero.

    Raises RunError for a row that is not finite: every comparison with NaN is false, so a broken model would get a score.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # said below, in words
        lengths = np.linalg.norm(embeddings, axis=-1, keepdims=True)
    broken = int((~np.isfinite(lengths)).sum())
    if broken:
        raise RunError(
            f"embeddings: {broken:,} of {lengths.size:,} are not finite (NaN or infinite); the weights are broken or overflow, "
            "export the model of an earlier checkpoint"
        )
    scaled: NDArray[np.float32] = (embeddings / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return scaled
