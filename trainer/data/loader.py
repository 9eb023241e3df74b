"""Batches of a run: which rows, read, decoded, cropped and tokenised by worker processes, in an order that none of them influences.

The rows of step t are samples t*B ... t*B + B - 1 of the run (see `order`). The loss does not care how a batch is laid out (only the batch
norm of ResNets sees which pictures share a process: `models/resnet.py`), so its rows are sorted by row number and cut into one
contiguous slice for each process, and that into one for each worker: neighbours in a row group stay together, each row group is read by
about one worker, and joining the slices of all processes gives the same batch for any number of them. A row that cannot be used (null,
undecodable) is replaced by one chosen by hash of its number, noted and counted.

Workers start from a fork server and not by fork, because the training process has threads and perhaps a GPU. A worker that meets an error
of the user's hands it over as a value, so that it arrives as the one sentence it is.
"""

import dataclasses
import logging
import multiprocessing
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.utils.data

from pipeline.content import image as images
from pipeline.contracts.errors import HouseError, InputError
from pipeline.contracts.manifest import Manifest
from trainer import tokenizer as tokenizers
from trainer.config import AugmentationConfig
from trainer.data import transforms
from trainer.data.order import SampleOrder, replacement_row
from trainer.data.reader import Row, RowReader

log = logging.getLogger("trainer")

_REPLACEMENT_TRIES = 32


@dataclasses.dataclass(frozen=True)
class LoaderPlan:
    """All that a worker must know; sent to it once."""

    manifest_path: str
    manifest: Manifest
    tokenizer_kind: str
    vocabulary: str | None
    context_length: int
    image_size: int
    augmentation: AugmentationConfig
    seed: int
    window_row_groups: int
    global_size: int
    rank: int
    world_size: int
    workers: int
    prefetch: int
    cache_bytes: int

    @property
    def pieces(self) -> int:
        """Into how many pieces a process's batch is cut: one for each worker."""
        return max(1, min(self.workers, self.global_size // self.world_size))


class Replacement(NamedTuple):
    """A row that could not be used, what stood in for it, and why."""

    sample: int
    row: int
    by: int
    reason: str


@dataclasses.dataclass
class Batch:
    """One process's part of a step: pixels uint8 [b, 3, r, r], ids int64 [b, L], samples and rows int64 [b]."""

    pixels: torch.Tensor
    ids: torch.Tensor
    samples: torch.Tensor
    rows: torch.Tensor
    replaced: list[Replacement]


class Pieces(torch.utils.data.Dataset["Batch | HouseError"]):
    """Piece i is part i mod `pieces` of this process's batch of step i div `pieces`; the DataLoader sends piece i to worker i mod n."""

    def __init__(self, plan: LoaderPlan) -> None:
        self._plan = plan
        self._opened: tuple[RowReader, SampleOrder, tokenizers.Tokenizer] | None = None

    def __getitem__(self, index: int) -> "Batch | HouseError":
        try:
            return self._load(*divmod(index, self._plan.pieces))
        except HouseError as error:
            return error

    def _open(self) -> tuple[RowReader, SampleOrder, tokenizers.Tokenizer]:
        """Reader, order and tokenizer, made by the worker that uses them."""
        if self._opened is None:
            plan = self._plan
            reader = RowReader(plan.manifest_path, plan.manifest, plan.cache_bytes // plan.pieces)
            order = SampleOrder(reader.group_rows, seed=plan.seed, window_row_groups=plan.window_row_groups)
            tokenizer = tokenizers.load(plan.tokenizer_kind, vocab=plan.vocabulary, context_length=plan.context_length)
            self._opened = reader, order, tokenizer
        return self._opened

    def _load(self, step: int, piece: int) -> Batch:
        plan = self._plan
        reader, order, tokenizer = self._open()
        samples = np.arange(step * plan.global_size, (step + 1) * plan.global_size, dtype=np.int64)
        rows = order.rows(samples)
        by_row = np.lexsort((samples, rows))  # a batch that straddles an epoch can hold a row twice
        mine = np.array_split(by_row, plan.world_size)[plan.rank]
        mine = np.array_split(mine, plan.pieces)[piece]
        pixels = np.empty((len(mine), 3, plan.image_size, plan.image_size), dtype=np.uint8)
        texts: list[str] = []
        replaced: list[Replacement] = []
        for place, found in enumerate(reader.read(rows[mine])):
            sample, row = int(samples[mine[place]]), int(rows[mine[place]])
            picture, caption, swap = self._usable(reader, sample, row, found)
            pixels[place] = picture
            texts.append(caption)
            replaced += swap
        ids = tokenizer(texts)
        return Batch(
            torch.from_numpy(pixels), ids, torch.from_numpy(samples[mine]), torch.from_numpy(rows[mine]), replaced
        )

    def _usable(
        self, reader: RowReader, sample: int, row: int, found: Row
    ) -> tuple[transforms.UInt8s, str, list[Replacement]]:
        """Pixels and caption of `found`, or of the first row that can be used among those that the hash names for it."""
        plan, trouble, by = self._plan, "", row
        # A crop that is resized wants all the pixels there are; the others take the shorter side to image_size anyway.
        least = None if plan.augmentation.crop == "random_resized" else plan.image_size
        for attempt in range(_REPLACEMENT_TRIES):
            if attempt:
                by = replacement_row(row, attempt, seed=plan.seed, rows=plan.manifest.rows)
                found = next(reader.read(np.array([by])))
            if found.caption is None or found.image is None:
                trouble = trouble or ("no caption" if found.caption is None else "no picture")
                continue
            try:
                rgb = images.decode(found.image, min_short_side=least).rgb
            except images.ImageRejected as error:
                trouble = trouble or str(error)
                continue
            pixels = transforms.training_pixels(rgb, plan.image_size, plan.augmentation, seed=plan.seed, sample=sample)
            return pixels, found.caption, [Replacement(sample, row, by, trouble)] if attempt else []
        raise InputError(
            f"{plan.manifest_path}: row {row} ({trouble}) and the {_REPLACEMENT_TRIES - 1} rows named to stand in for it are all unusable;"
            " train on a corpus with pictures and captions"
        )


def batches(plan: LoaderPlan, first_step: int, last_step: int) -> Iterator[Batch]:
    """This process's batches of steps `first_step` to `last_step` - 1, prepared ahead by the workers. Seeking is O(1)."""
    loader = torch.utils.data.DataLoader(
        Pieces(plan),
        batch_size=None,
        sampler=range(first_step * plan.pieces, last_step * plan.pieces),
        collate_fn=_unchanged,
        num_workers=plan.pieces if plan.workers else 0,
        prefetch_factor=plan.prefetch if plan.workers else None,
        multiprocessing_context=_fork_server() if plan.workers else None,
        generator=torch.Generator(),  # else it draws from the model's generator whenever a run starts or goes back
    )
    waiting: list[Batch] = []
    for piece in loader:
        if isinstance(piece, HouseError):
            raise piece
        waiting.append(piece)
        if len(waiting) == plan.pieces:
            yield _join(waiting)
            waiting = []


def _join(pieces: list[Batch]) -> Batch:
    if len(pieces) == 1:
        return pieces[0]
    return Batch(
        torch.cat([piece.pixels for piece in pieces]),
        torch.cat([piece.ids for piece in pieces]),
        torch.cat([piece.samples for piece in pieces]),
        torch.cat([piece.rows for piece in pieces]),
        [swap for piece in pieces for swap in piece.replaced],
    )


def _unchanged(piece: Any) -> Any:
    return piece


def _fork_server() -> multiprocessing.context.BaseContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context
