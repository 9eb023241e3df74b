"""A process's batches on the way to its device: copied there while it is at work on what came before.

A GPU computes while pixels come in only if their memory is page-locked (`shared.py`) and the copy runs on a stream of its own. A step ends
with a wait for the GPU, so that the copy for the next one must have begun before: `begin` is called when forward and backward are under
way. On CPUs nothing is copied.

Of texts only as many positions go along as the longest of the process's batch needs. What comes after a text's end has no part in its
feature and no gradient (the text tower looks back only), so that this changes nothing but the work: captions are short, and most of 77
positions are padding.
"""

import time
from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.contracts.errors import HouseError
from trainer.config import Channels
from trainer.data.loader import Batch
from trainer.data.transforms import normalise


class Feed:
    """Hands out batches one by one, and pixels and ids of the one in hand.

    first: the pairs that the towers take first of a batch. dtype: of the pixels that they take. mean, std: `transforms.normalise`.
    """

    def __init__(
        self,
        batches: Iterator[Batch],
        device: torch.device,
        dtype: torch.dtype,
        mean: Channels,
        std: Channels,
        first: slice,
    ) -> None:
        self._batches, self._first = batches, first
        self._device, self._dtype = device, dtype
        self._mean, self._std = mean, std
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._batch: Batch | None = None
        self._upcoming: Batch | None = None
        self._begun: tuple[Tensor, Tensor] | None = None
        self._error: HouseError | None = None
        self._waited = 0.0

    def next(self) -> Batch:
        """The next batch; it must exist. The one before it may be overwritten from now on, so its step must be over.

        What went wrong when it was taken ahead is raised here: the step before has nothing to do with it, and is to be saved.
        """
        if self._error is not None:
            raise self._error
        batch = self._upcoming or self._take()
        assert batch is not None
        self._batch, self._upcoming = batch, None
        return batch

    def begin(self) -> None:
        """Take the batch after the one in hand, if there is one, and begin to copy the pairs that are needed of it first."""
        try:
            self._upcoming = self._take()
        except HouseError as error:
            self._error = error
        if self._upcoming is not None:
            self._begun = self._copied(self._upcoming, self._first)

    def load(self, at: slice) -> tuple[Tensor, Tensor]:
        """Normalised pixels, and ids up to the batch's `text_length`, of the pairs `at` of the batch in hand, on the device."""
        assert self._batch is not None
        begun, self._begun = self._begun, None
        pixels, ids = begun if begun is not None and at == self._first else self._copied(self._batch, at)
        if self._stream is not None:
            now = torch.cuda.current_stream(self._device)
            now.wait_stream(self._stream)
            pixels.record_stream(now)
            ids.record_stream(now)
        return normalise(pixels, self._mean, self._std).to(self._dtype), ids

    def waited_since(self) -> float:
        """Seconds of waiting for batches since this was asked last."""
        waited, self._waited = self._waited, 0.0
        return waited

    def _take(self) -> Batch | None:
        started = time.perf_counter()
        batch = next(self._batches, None)
        self._waited += time.perf_counter() - started
        return batch

    def _copied(self, batch: Batch, at: slice) -> tuple[Tensor, Tensor]:
        with torch.cuda.stream(self._stream):
            # Ids first: their memory is not page-locked, so that this process waits until whatever was told before them is copied.
            ids = batch.ids[at, : batch.text_length].to(self._device, non_blocking=True)
            return batch.pixels[at].to(self._device, non_blocking=True), ids
