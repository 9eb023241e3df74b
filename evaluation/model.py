"""An exported model as an encoder: decoded by the corpus's decoder, prepared by the trainer's own evaluation transform.

A model therefore sees here what it saw in training. Embeddings are float32 and not yet normalised, computed batch by batch without
gradients; a row's embedding does not depend on the batch it came in (up to float rounding), and no state is kept between calls.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from evaluation.device import usable
from pipeline.content.image import ImageRejected, decode
from pipeline.content.labelled import LabelledSet, Picture
from pipeline.contracts.cli import Progress
from pipeline.contracts.config import Json
from pipeline.contracts.errors import InputError
from trainer import export
from trainer.data import transforms
from trainer.models import leave_out_cudnn_attention, text_lengths

PIXELS_VERSION = 1
"""Of the way from bytes to pixels (`pipeline.content.image.decode`, `transforms.evaluation_pixels`): raise it when either gives other
pixels.
"""
TEXTS_VERSION = 1
"""Of the way from ids to a text's features: raise it when a change gives other last bits."""
_DECODERS = ("pillow", "simplejpeg")  # whose versions may give other pixels
_READERS = ("ftfy", "regex")  # whose versions may give a sentence other ids


class ModelEncoder:
    """An exported model on a device."""

    def __init__(self, path: str, *, batch: int = 64, device: str = "cpu") -> None:
        self._device = usable(device)
        leave_out_cudnn_attention()
        model, self._tokenizer, self.card = export.load_model(path)
        self._model = model.eval().to(self._device)
        self._batch = batch
        self.logit_scale = float(model.logit_scale.detach().double().exp())

    def images(self, labelled: LabelledSet, rows: Sequence[int]) -> NDArray[np.float32]:
        """float32[rows, d]. Raises InputError for a picture that cannot be opened."""
        return self._each_batch(labelled, rows, self._model.encode_image)

    def features(self, labelled: LabelledSet, rows: Sequence[int]) -> NDArray[np.float32]:
        """float32[rows, width], what a linear probe reads: see `trainer.models.CLIP.image_features`. Raises as `images`."""
        return self._each_batch(labelled, rows, self._model.image_features)

    @torch.inference_mode()
    def _each_batch(
        self, labelled: LabelledSet, rows: Sequence[int], tower: Callable[[torch.Tensor], torch.Tensor]
    ) -> NDArray[np.float32]:
        pictures = labelled.pictures(rows)
        found = []
        with Progress(len(rows), "pictures", labelled.name) as progress:
            while batch := list(islice(pictures, self._batch)):
                pixels = np.stack([self._pixels(labelled, picture) for picture in batch])
                raw = torch.from_numpy(pixels).to(self._device)
                inputs = transforms.normalise(raw, self.card.pixel_mean, self.card.pixel_std)
                found.append(tower(inputs).float().cpu().numpy())
                progress.update(len(batch))
        embeddings: NDArray[np.float32] = np.concatenate(found)
        return embeddings

    @torch.inference_mode()
    def texts(self, sentences: Sequence[str]) -> NDArray[np.float32]:
        """float32[sentences, d].

        Batches come by rising length, each as long as its own longest: prompts fill some ten of 77 places, and the others cost as much.
        """
        ids = self._tokenizer(list(sentences))
        lengths = text_lengths(ids)
        embeddings = np.empty((len(sentences), self._model.preset.embed_dim), np.float32)
        with Progress(len(sentences), "texts", "texts", summary=False) as progress:
            order = lengths.argsort(stable=True)
            for start in range(0, len(sentences), self._batch):
                rows = order[start : start + self._batch]
                cut = ids[rows, : lengths[rows[-1]]].to(self._device)
                embeddings[rows] = self._model.encode_text(cut).float().cpu().numpy()
                progress.update(len(rows))
        return embeddings

    def image_identity(self) -> dict[str, Json]:
        """All that a picture's features depend on but the picture and the layer."""
        return {
            **self._identity(),
            "image_size": self.card.image_size,
            "pixel_mean": list(self.card.pixel_mean),
            "pixel_std": list(self.card.pixel_std),
            "pixels": PIXELS_VERSION,
            "decoders": {name: importlib.metadata.version(name) for name in _DECODERS},
        }

    def text_identity(self) -> dict[str, Json]:
        """All that a sentence's features depend on but the sentence."""
        return {
            **self._identity(),
            "context_length": self.card.context_length,
            "tokenizer": self.card.tokenizer,
            "vocabulary": self.card.vocabulary_sha256,
            "readers": {name: importlib.metadata.version(name) for name in _READERS},
            "texts": TEXTS_VERSION,
        }

    def _identity(self) -> dict[str, Json]:
        return {
            "weights": self.card.weights_sha256,
            "preset": self.card.preset,
            "names": self.card.names,
            "gelu": self.card.gelu,
            "text": self.card.text,
            "parameters": str(next(self._model.parameters()).dtype),
            "matmul": torch.get_float32_matmul_precision(),
            "device": self._device.type,
            "torch": torch.__version__,
        }

    def _pixels(self, labelled: LabelledSet, picture: Picture) -> NDArray[np.uint8]:
        size = self._model.preset.image_size
        try:
            rgb = decode(picture.data, min_short_side=size).rgb
        except ImageRejected as rejected:
            raise InputError(
                f"set {labelled.name!r} ({labelled.path}): picture {picture.id!r} cannot be opened ({rejected}); "
                "mend the file or leave the row out of the set"
            ) from None
        return transforms.evaluation_pixels(rgb, size)
