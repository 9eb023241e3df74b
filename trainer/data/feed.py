"""A process's batches on the way to its device: copied there while it is at work on what came before.

A GPU computes while pixels come in only if their memory is page-locked (`shared.py`) and the copy runs on a stream of its own. A step ends
with a wait for the GPU, so that the copy for the next one must have begun before: `begin` is called when forward and backward are under
way. On CPUs nothing is copied.

Texts go through their tower in groups of like length (`lengths.py`), so that little of its work is padding. The loss does not care how
a batch is laid out: the pairs that are asked for come in the order of their texts' groups.
"""

import collections
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.contracts.errors import HouseError
from trainer.config import Channels
from trainer.data.lengths import Group, grouped
from trainer.data.loader import Batch
from trainer.data.transforms import normalise


class _Copied(NamedTuple):
    """Pairs on the device: pixels and ids as the batch has them, and in which order and groups they are handed out."""

    pixels: Tensor
    ids: Tensor
    order: Tensor
    groups: list[Group]


class Feed:
    """Hands out batches one by one, and pixels and ids of the one in hand.

    first: the pairs that the towers take first of a batch. dtype: of the pixels that they take. mean, std: `transforms.normalise`.
    a_group: what a group of texts costs (`lengths.grouped`).
    """

    def __init__(
        self,
        batches: Iterator[Batch],
        device: torch.device,
        dtype: torch.dtype,
        mean: Channels,
        std: Channels,
        first: slice,
        a_group: float,
    ) -> None:
        self._batches, self._first = batches, first
        self._device, self._dtype = device, dtype
        self._mean, self._std = mean, std
        self._a_group = a_group
        self._texts: collections.Counter[int] = collections.Counter()
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._batch: Batch | None = None
        self._upcoming: Batch | None = None
        self._begun: _Copied | None = None
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

    def load(self, at: slice) -> tuple[Tensor, ...]:
        """Normalised pixels [n, 3, r, r] of the pairs `at` of the batch in hand, and ids [n_1, L_1], [n_2, L_2], …, on the device.

        Pairs come by rising length of their texts; the first n_1 of them have the texts of the first group, and so on.
        """
        assert self._batch is not None
        copied, self._begun = self._begun, None
        pixels, ids, order, groups = (
            copied if copied is not None and at == self._first else self._copied(self._batch, at)
        )
        del copied  # it holds the pixels in their old order
        if self._stream is not None:
            now = torch.cuda.current_stream(self._device)
            now.wait_stream(self._stream)
            for tensor in (pixels, ids, order):
                tensor.record_stream(now)
        if len(groups) > 1:
            pixels, ids = pixels[order], ids[order]
        self._texts.update({group.length: len(group.rows) for group in groups})
        texts = torch.split(ids, [len(group.rows) for group in groups])
        cut = (text[:, : group.length] for text, group in zip(texts, groups, strict=True))
        return normalise(pixels, self._mean, self._std).to(self._dtype), *cut

    def texts_since(self) -> Mapping[int, int]:
        """How many texts have been handed out at which length since this was asked last."""
        texts, self._texts = self._texts, collections.Counter()
        return texts

    def waited_since(self) -> float:
        """Seconds of waiting for batches since this was asked last."""
        waited, self._waited = self._waited, 0.0
        return waited

    def _take(self) -> Batch | None:
        started = time.perf_counter()
        batch = next(self._batches, None)
        self._waited += time.perf_counter() - started
        return batch

    def _copied(self, batch: Batch, at: slice) -> _Copied:
        groups = grouped(batch.text_lengths[at], self._a_group)
        rows = torch.from_numpy(np.concatenate([group.rows for group in groups]))
        with torch.cuda.stream(self._stream):
            # Pixels last: the others' memory is not page-locked, so that this process waits until whatever was told before is copied.
            ids = batch.ids[at].to(self._device, non_blocking=True)
            order = rows.to(self._device, non_blocking=True)
            return _Copied(batch.pixels[at].to(self._device, non_blocking=True), ids, order, groups)
