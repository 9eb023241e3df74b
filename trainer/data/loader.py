"""Batches of a run: which rows, read, decoded, cropped and tokenised by worker processes, in an order that none of them influences.

The rows of step t are samples t*B ... t*B + B - 1 of the run (see `order`). The loss does not care how a batch is laid out (only the batch
norm of ResNets sees which pictures share a process: `models/resnet.py`), so its rows are sorted by row number and cut into one
contiguous slice for each process, and that into one for each worker: neighbours in a row group stay together, each row group is read by
about one worker, and joining the slices of all processes gives the same batch for any number of them. A row that cannot be used (null,
undecodable) is replaced by one chosen by hash of its number, of its own row group if that has a usable one, noted and counted.

Workers start from a fork server and not by fork, because the training process has threads and perhaps a GPU. They write pixels into
memory that the training process shares with them; a batch's goes back to them when nobody holds it any more. A worker that meets an error
of the user's hands it over as a value, so that it arrives as the one sentence it is.
"""

import dataclasses
import functools
import logging
import multiprocessing
import os
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.utils.data

from pipeline.content import image as images
from pipeline.contracts.errors import HouseError, InputError, RunError
from trainer import tokenizer as tokenizers
from trainer.config import AugmentationConfig
from trainer.data import transforms
from trainer.data.order import REPLACEMENT_TRIES, Int64s, SampleOrder, replacement_row
from trainer.data.reader import Corpus, Row, RowReader
from trainer.data.shared import SharedArrays
from trainer.models import text_lengths

log = logging.getLogger("trainer")

_SPARE_WINDOW = 1.5
"""Windows that a process keeps row groups of: a batch at the border of two reads from both."""


@dataclasses.dataclass(frozen=True)
class LoaderPlan:
    """All that a worker must know; sent to it once."""

    corpus: Corpus
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
    read_ahead: int
    page_locked: bool = False
    """Whether pixels shall lie in memory that a GPU can read by itself."""

    @property
    def pieces(self) -> int:
        """Into how many pieces a process's batch is cut: one for each worker."""
        return max(1, min(self.workers, self.global_size // self.world_size))

    def window_bytes(self) -> int:
        """About how much of a window of row groups a process reads."""
        sizes = self.corpus.group_bytes
        return sum(sizes) * min(self.window_row_groups, len(sizes)) // len(sizes) // self.world_size


class Replacement(NamedTuple):
    """A row that could not be used, what stood in for it, and why."""

    sample: int
    row: int
    by: int
    reason: str


@dataclasses.dataclass
class Batch:
    """One process's part of a step: pixels uint8 [b, 3, r, r], ids int64 [b, L], samples and rows int64 [b].

    Workers write into the memory of `pixels` again once no tensor of it is held; a copy to a device must be over by then.
    """

    pixels: torch.Tensor
    ids: torch.Tensor
    samples: torch.Tensor
    rows: torch.Tensor
    replaced: list[Replacement]

    @functools.cached_property
    def text_lengths(self) -> Int64s:
        """int64 [b], as `trainer.models.text_lengths`."""
        return text_lengths(self.ids).numpy()


class Task(NamedTuple):
    """A piece of a step that a worker prepares. Its pixels go to shared array `slot`; None: they travel with the answer."""

    step: int
    piece: int
    slot: int | None


@dataclasses.dataclass
class Piece:
    """What a worker answers; `pixels` is None where they are in shared memory."""

    pixels: transforms.UInt8s | None
    ids: Int64s
    samples: Int64s
    rows: Int64s
    replaced: list[Replacement]


class Pieces(torch.utils.data.Dataset["Piece | HouseError"]):
    """The pieces of all steps. The DataLoader gives the i-th task to worker i mod n, so that piece i of each step has the same worker."""

    def __init__(self, plan: LoaderPlan, shared: SharedArrays | None) -> None:
        self._plan, self._shared = plan, shared
        self._opened: tuple[RowReader, SampleOrder, tokenizers.Tokenizer] | None = None
        self._next: tuple[int, Int64s, Int64s] | None = None

    def __getitem__(self, task: Task) -> "Piece | HouseError":
        try:
            return self._load(task)
        except HouseError as error:
            return error

    def _open(self) -> tuple[RowReader, SampleOrder, tokenizers.Tokenizer]:
        """Reader, order and tokenizer, made by the worker that uses them."""
        if self._opened is None:
            plan = self._plan
            cache_bytes = min(plan.cache_bytes, int(_SPARE_WINDOW * plan.window_bytes())) // plan.pieces
            reader = RowReader(plan.corpus, cache_bytes=cache_bytes, ahead=plan.read_ahead)
            order = SampleOrder(plan.corpus.group_rows, seed=plan.seed, window_row_groups=plan.window_row_groups)
            tokenizer = tokenizers.load(plan.tokenizer_kind, vocab=plan.vocabulary, context_length=plan.context_length)
            self._opened = reader, order, tokenizer
        return self._opened

    def _load(self, task: Task) -> Piece:
        plan = self._plan
        reader, order, tokenizer = self._open()
        samples, rows = self._whose(order, task.step)
        parts = np.array_split(np.arange(len(rows)), plan.pieces)
        mine, after = parts[task.piece], self._whose(order, task.step + 1)[1][parts[task.piece]]
        shape = (len(mine), 3, plan.image_size, plan.image_size)
        pixels = np.empty(shape, np.uint8)
        if task.slot is not None and self._shared is not None:
            pixels = self._shared[task.slot][mine[0] : mine[-1] + 1]
        texts: list[str] = []
        replaced: list[Replacement] = []
        found = reader.read(rows[mine], then=after)
        for place, sample, row in zip(range(len(mine)), samples[mine].tolist(), rows[mine].tolist(), strict=True):
            caption, swap = self._fill(pixels[place], reader, order, sample, row, next(found))
            texts.append(caption)
            replaced += swap
        travels = pixels if task.slot is None else None
        return Piece(travels, tokenizer(texts).numpy(), samples[mine], rows[mine], replaced)

    def _whose(self, order: SampleOrder, step: int) -> tuple[Int64s, Int64s]:
        """Samples and rows of this process in a step, by rising row; those of the step after the last one asked for are remembered."""
        if self._next is None or self._next[0] != step:
            plan = self._plan
            samples = np.arange(step * plan.global_size, (step + 1) * plan.global_size, dtype=np.int64)
            rows = order.rows(samples)
            by_row = np.argsort(rows, kind="stable")  # a batch that straddles an epoch can hold a row twice
            mine = np.array_split(by_row, plan.world_size)[plan.rank]
            self._next = step, samples[mine], rows[mine]
        return self._next[1:]

    def _fill(
        self, pixels: transforms.UInt8s, reader: RowReader, order: SampleOrder, sample: int, row: int, found: Row
    ) -> tuple[str, list[Replacement]]:
        """Fill `pixels` from `found`, or from the first usable row of those that the hash names for it; returns the caption."""
        plan, trouble, by = self._plan, "", row
        # A crop that is resized wants all the pixels there are; the others take the shorter side to image_size anyway.
        least = None if plan.augmentation.crop == "random_resized" else plan.image_size
        for attempt in range(REPLACEMENT_TRIES):
            if attempt:
                by = replacement_row(row, attempt, seed=plan.seed, rows=order.rows_per_epoch, group=order.group_of(row))
                found = next(reader.read(np.array([by])))
            if found.caption is None or found.image is None:
                trouble = trouble or ("no caption" if found.caption is None else "no picture")
                continue
            try:
                rgb = images.decode(found.image, min_short_side=least).rgb
            except images.ImageRejected as error:
                trouble = trouble or str(error)
                continue
            transforms.training_pixels(rgb, plan.augmentation, seed=plan.seed, sample=sample, into=pixels)
            return found.caption, [Replacement(sample, row, by, trouble)] if attempt else []
        raise InputError(
            f"{plan.corpus.place}: row {row} ({trouble}) and the {REPLACEMENT_TRIES - 1} rows named to stand in for it are all unusable;"
            " train on a corpus with pictures and captions"
        )


def batches(plan: LoaderPlan, first_step: int, last_step: int) -> Iterator[Batch]:
    """This process's batches of steps `first_step` to `last_step` - 1, prepared ahead by the workers. Seeking is O(1).

    Raises InputError for what a worker finds wrong with the corpus, and RunError where a worker is gone or a store does not answer.
    """
    if plan.rank == 0 and plan.window_bytes() > plan.cache_bytes:
        log.warning(
            "data.cache_mib: %d MiB hold less than the %d MiB that a process reads of a window, so row groups are read again and again;"
            " raise it or lower data.window_row_groups (which changes the order)",
            plan.cache_bytes >> 20,
            plan.window_bytes() >> 20,
        )
    shared: SharedArrays | None = None
    free: list[int] = []
    if plan.workers:
        # Those that workers prepare, the one that is being handed out, and the one before it, which its reader still has in hand.
        free += range(plan.prefetch + 2)
        shape = (plan.global_size // plan.world_size, 3, plan.image_size, plan.image_size)
        shared = SharedArrays(len(free), shape)
        if plan.page_locked:
            shared.page_lock()
    slots: dict[int, int | None] = {}

    def tasks() -> Iterator[Task]:
        """Asked for one by one, when a worker has room for it."""
        for step in range(first_step, last_step):
            slots[step] = free.pop() if free else None
            yield from (Task(step, piece, slots[step]) for piece in range(plan.pieces))

    loader = torch.utils.data.DataLoader(
        Pieces(plan, shared),
        batch_size=None,
        sampler=tasks(),
        collate_fn=_unchanged,
        num_workers=plan.pieces if plan.workers else 0,
        prefetch_factor=plan.prefetch if plan.workers else None,
        multiprocessing_context=_fork_server() if plan.workers else None,
        worker_init_fn=_end_with_the_run if plan.workers else None,
        generator=torch.Generator(),  # else it draws from the model's generator whenever a run starts or goes back
    )
    answers = iter(loader)
    for step in range(first_step, last_step):
        pieces = [_answer(answers) for _ in range(plan.pieces)]
        slot = slots.pop(step)
        if slot is not None and shared is not None:
            pixels = shared.lend(slot, free.append)
        else:
            parts = [piece.pixels for piece in pieces if piece.pixels is not None]
            pixels = parts[0] if len(parts) == 1 else np.concatenate(parts)
        yield Batch(
            torch.from_numpy(pixels),
            torch.from_numpy(np.concatenate([piece.ids for piece in pieces])),
            torch.from_numpy(np.concatenate([piece.samples for piece in pieces])),
            torch.from_numpy(np.concatenate([piece.rows for piece in pieces])),
            [swap for piece in pieces for swap in piece.replaced],
        )


def _answer(answers: "Iterator[Piece | HouseError]") -> Piece:
    try:
        answer = next(answers)
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):
            raise
        raise RunError(
            f"data.workers: a process that prepares batches is gone ({str(error).splitlines()[0]}); if it ran out of memory lower"
            " data.workers, data.prefetch or data.cache_mib, then start again"
        ) from error
    if isinstance(answer, HouseError):
        raise answer
    return answer


def _unchanged(piece: Any) -> Any:
    return piece


def _end_with_the_run(worker: int) -> None:
    """torch lets a worker look whether its parent is there, which is the fork server here; and that stays for as long as a worker does."""
    run = multiprocessing.parent_process()
    assert run is not None

    def watch() -> None:
        run.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _fork_server() -> multiprocessing.context.BaseContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trainer.data.preloaded"])
    return context
