"""Pictures and sentences to embeddings: what the scores need of a model, the one place that normalises, and the door to the cache.

Kept apart from `model.py`, which holds the trainer's model and loads torch: the arithmetic of zero-shot and retrieval is numpy alone, and
a test can hand it a model of three lines.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from evaluation.cache import Cache
from pipeline.content.labelled import LabelledSet
from pipeline.contracts.config import Json
from pipeline.contracts.errors import RunError


class Encoder(Protocol):
    """What the scores need of a model."""

    def images(self, labelled: LabelledSet, rows: Sequence[int]) -> NDArray[np.float32]:
        """float32[rows, d] for ascending rows of a set."""
        ...

    def texts(self, sentences: Sequence[str]) -> NDArray[np.float32]:
        """float32[sentences, d]."""
        ...


class FeatureEncoder(Protocol):
    """What a probe needs of a model."""

    def features(self, labelled: LabelledSet, rows: Sequence[int]) -> NDArray[np.float32]:
        """float32[rows, width] for ascending rows of a set: a ViT's before the projection, not normalised."""
        ...


class IdentifiedEncoder(Encoder, FeatureEncoder, Protocol):
    """An encoder that can say what it is: only of such a one are features kept."""

    def image_identity(self) -> dict[str, Json]:
        """All that a picture's features depend on but the picture and the layer."""
        ...

    def text_identity(self) -> dict[str, Json]:
        """All that a sentence's features depend on but the sentence."""
        ...


class CachedEncoder:
    """An encoder whose features are kept in a folder, by content: the same weights, pictures and preprocessing are never computed twice."""

    def __init__(self, encoder: IdentifiedEncoder, folder: str) -> None:
        self._encoder = encoder
        self._cache = Cache(folder)

    def images(self, labelled: LabelledSet, rows: Sequence[int]) -> NDArray[np.float32]:
        """float32[rows, d] for ascending rows of a set."""
        return self._kept(self._encoder.images, "embedding", labelled, rows)

    def features(self, labelled: LabelledSet, rows: Sequence[int]) -> NDArray[np.float32]:
        """float32[rows, width] for ascending rows of a set: a ViT's before the projection, not normalised."""
        return self._kept(self._encoder.features, "features", labelled, rows)

    def texts(self, sentences: Sequence[str]) -> NDArray[np.float32]:
        """float32[sentences, d]."""
        digest = content_digest(sentence.encode("utf-8", "surrogatepass") for sentence in sentences)
        return self._cache.array(
            {"of": "sentences", "sentences": digest, **self._encoder.text_identity()},
            functools.partial(self._encoder.texts, sentences),
        )

    def _kept(
        self,
        compute: Callable[[LabelledSet, Sequence[int]], NDArray[np.float32]],
        layer: str,
        labelled: LabelledSet,
        rows: Sequence[int],
    ) -> NDArray[np.float32]:
        pictures = content_digest(labelled.sha256[row] for row in rows)
        return self._cache.array(
            {"of": "pictures", "layer": layer, "pictures": pictures, **self._encoder.image_identity()},
            functools.partial(compute, labelled, rows),
        )


def content_digest(parts: Iterable[bytes]) -> str:
    """SHA-256 of byte strings in order, each with its length before it."""
    hasher = hashlib.sha256()
    for part in parts:
        hasher.update(len(part).to_bytes(8, "little") + part)
    return hasher.hexdigest()


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
