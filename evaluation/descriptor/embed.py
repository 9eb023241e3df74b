"""Pictures to vectors: what is looked at of a picture, and int8 vectors that do not depend on the batch, the worker or their number.

A vector is stored as d signed bytes, the direction of the network's output with its largest part at ±127: a picture costs d bytes beside
the shards, the cosine moves by about a thousandth, and sums of products of such vectors are exact in float32 (see `search.py`).

An indexed picture is looked at several times: a corpus picture that is a crop is nearest to that part of it. Batches have one fixed shape,
filled up with zeros, because a library may compute another shape in another order; one thread, because so may another number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from evaluation.descriptor.artefact import Descriptor
from evaluation.descriptor.model import Network
from evaluation.descriptor.pictures import is_flat
from evaluation.descriptor.views import Box, ViewKind, boxes
from evaluation.descriptor.weights import network
from pipeline.content.image import ImageRejected, decode
from pipeline.contracts.errors import RunError

UInt8s = NDArray[np.uint8]
Int8s = NDArray[np.int8]

EMBED_VERSION = 2
"""Of how pictures are decoded, looked at and rounded; part of every digest. 2: a part of a picture has the same number everywhere."""
BATCH = 32
_DECODED = 2  # pictures are decoded to at least this many times the network's size, so that a quarter of the area is seen sharply

Item = TypeVar("Item")


def view(rgb: UInt8s, box: Box, size: int) -> UInt8s | None:
    """A part of uint8[h, w, 3] as the network sees it, uint8[size, size, 3]; None where it is flat."""
    height, width = rgb.shape[:2]
    left, top = int(box[0] * width), int(box[1] * height)
    right, bottom = max(left + 1, round(box[2] * width)), max(top + 1, round(box[3] * height))
    shown = Image.fromarray(rgb).resize((size, size), Image.Resampling.BICUBIC, (left, top, right, bottom))
    pixels: UInt8s = np.asarray(shown)
    return None if is_flat(pixels) else pixels


def views(data: bytes, size: int, kinds: Sequence[ViewKind]) -> list[tuple[int, UInt8s]]:
    """(number of the part, pixels) of the views of an encoded picture that are not flat. Raises ImageRejected for a broken one."""
    rgb = decode(data, min_short_side=_DECODED * size).rgb
    parts = boxes(kinds, rgb.shape[1], rgb.shape[0])
    found = [(number, view(rgb, box, size)) for number, box in parts.items()]
    return [(number, pixels) for number, pixels in found if pixels is not None]


def quantised(vectors: NDArray[np.float32]) -> Int8s:
    """float32[n, d] to int8[n, d], the largest part of each row at ±127. Raises RunError for a row that is not finite or is zero."""
    largest = np.abs(vectors).max(axis=1, keepdims=True, initial=0)
    if not (np.isfinite(largest) & (largest > 0)).all():
        raise RunError("the descriptor's vectors are zero or not finite; its weights are broken, train it again")
    rounded: Int8s = np.rint(vectors * (np.float32(127) / largest)).astype(np.int8)
    return rounded


class Embedder:
    """A network that looks at pictures in batches of one shape, on one thread of a CPU or on another device."""

    def __init__(self, network: Network, size: int, *, device: str = "cpu") -> None:
        self._network, self._size, self._device = network.eval().to(device), size, device

    @classmethod
    def of(cls, descriptor: Descriptor) -> Embedder:
        """The embedder of a trained descriptor."""
        return cls(network(descriptor), descriptor.card.architecture.size)

    def vectors(self, pixels: Iterable[UInt8s]) -> Int8s:
        """uint8[size, size, 3] each to int8[n, d]."""
        found = [self._batch(batch) for batch in _batches(pixels, BATCH)]
        dimension = self._network.head.out_features
        return np.concatenate(found) if found else np.zeros((0, dimension), np.int8)

    def first_views(self, pictures: Iterable[bytes | None]) -> Iterator[Int8s | None]:
        """The vector of each whole picture, int8[d]; None where there is none, it cannot be opened or it is flat."""
        for batch in _batches(pictures, BATCH):
            seen: list[UInt8s | None] = [self._whole(data) for data in batch]
            vectors = iter(self.vectors(pixels for pixels in seen if pixels is not None))
            yield from (None if pixels is None else next(vectors) for pixels in seen)

    def _whole(self, data: bytes | None) -> UInt8s | None:
        if data is None:
            return None
        try:
            found = views(data, self._size, ("whole",))
        except ImageRejected:
            return None
        return found[0][1] if found else None

    @torch.inference_mode()
    def _batch(self, batch: Sequence[UInt8s]) -> Int8s:
        pixels = np.zeros((BATCH, self._size, self._size, 3), np.uint8)
        pixels[: len(batch)] = batch
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            vectors = self._network(torch.from_numpy(pixels).to(self._device)).cpu().numpy()
        finally:
            torch.set_num_threads(threads)
        return quantised(vectors[: len(batch)])


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch
