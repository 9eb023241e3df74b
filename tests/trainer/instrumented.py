"""`python -m tests.trainer.instrumented …`: one process of a real training run that notes what it reads, or is given what it must survive.

The product has no such hooks; here they are put around names of `trainer.train`, around what a batch is normalised with and around
evaluation, by what the environment says:

    NOTE_SAMPLES=FOLDER              rank-N.jsonl there has one line for each batch that is used: its number, its samples and their rows
    NOT_A_NUMBER=RANK:FROM-TO,…      the pixels of these batches (by number, TO included) are not-a-number on that process
    NOT_A_GRADIENT=RANK:FROM-TO,…    one gradient of these batches is not-a-number on that process; its loss is what it should be
    NOT_A_LOSS=RANK:FROM-TO,…        the loss of these batches is not-a-number on that process; pixels and gradient would be good ones
    WRONG_INPUT=RANK:FROM-TO,…       that process meets an error of the user's instead of these batches
    WRONG_HELD=RANK:FROM-TO,…        that process meets an error of the user's amid these evaluations, of which its first is number 0
    SIGTERM_AMID_HELD=RANK:FROM-TO,… that process is told to end amid these evaluations
    FP16_ON_CPU=1                    precision.compute = "fp16" is not refused
    LATE=1                           what Python frees when its interpreter ends aborts the process, and what it calls before says so
"""

import atexit
import functools
import itertools
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from pipeline.contracts.errors import InputError
from tests.trainer import fp16_on_cpu
from trainer import __main__ as program
from trainer import gradient_cache, held, train
from trainer.data import feed, loader
from trainer.data.transforms import normalise
from trainer.objectives import OBJECTIVES

RANK = int(os.environ.get("RANK", "0"))


def batches_of(variable: str) -> set[int]:
    """The numbers of the batches that `variable` names for this process."""
    rank, _, spans = os.environ.get(variable, "").partition(":")
    found: set[int] = set()
    for span in spans.split(",") if rank == str(RANK) else []:
        first, last = (int(number) for number in span.split("-"))
        found |= set(range(first, last + 1))
    return found


class Watched:
    """Stands in for the loader's `batches`, for `normalise` and for `forward_backward`, which then know which batch it is."""

    def __init__(self) -> None:
        self.number = -1
        self.poisoned, self.spoilt = batches_of("NOT_A_NUMBER"), batches_of("NOT_A_GRADIENT")
        self.evaluations = itertools.count()
        self.unreadable, self.ended = batches_of("WRONG_HELD"), batches_of("SIGTERM_AMID_HELD")
        self.wrong, self.lossless = batches_of("WRONG_INPUT"), batches_of("NOT_A_LOSS")
        folder = os.environ.get("NOTE_SAMPLES")
        self.notes = Path(folder) / f"rank-{RANK}.jsonl" if folder else None

    def batches(self, plan: loader.LoaderPlan, first_step: int, last_step: int) -> Iterator[loader.Batch]:
        for number, batch in enumerate(loader.batches(plan, first_step, last_step), start=first_step):
            self.number = number
            if number in self.wrong:
                raise InputError(f"batch {number} of process {RANK} is wrong; that is what the test wants")
            yield batch

    def next(self, take: Callable[[feed.Feed], loader.Batch], feeding: feed.Feed) -> loader.Batch:
        batch = take(feeding)
        if self.notes is not None:
            self.notes.parent.mkdir(parents=True, exist_ok=True)
            line = {"batch": self.number, "samples": batch.samples.tolist(), "rows": batch.rows.tolist()}
            with self.notes.open("a") as notes:
                notes.write(json.dumps(line) + "\n")
        return batch

    def normalise(self, pixels: torch.Tensor, *how: tuple[float, float, float]) -> torch.Tensor:
        values = normalise(pixels, *how)
        return values.mul_(torch.nan) if self.number in self.poisoned else values

    def loss(self, loss_of: Callable[..., torch.Tensor], *outputs: torch.Tensor, **how: Any) -> torch.Tensor:
        loss = loss_of(*outputs, **how)
        return loss + torch.nan if self.number in self.lossless else loss

    def forward_backward(self, engine: Any, *how: Any) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        hook = None
        if self.number in self.spoilt:
            hook = engine.module.visual.conv1.weight.register_hook(lambda gradient: gradient * torch.nan)
        found = gradient_cache.forward_backward(engine, *how)
        if hook is not None:
            hook.remove()
        return found

    def evaluate(self, evaluate: Callable[..., Any], held_set: held.Held, *how: Any) -> Any:
        *given, stop = how
        number, pieces = next(self.evaluations), itertools.count()

        def stop_or_worse() -> bool:
            if next(pieces) == 1:
                if number in self.unreadable:
                    raise InputError(f"evaluation {number} of process {RANK} is wrong; that is what the test wants")
                if number in self.ended:
                    os.kill(os.getpid(), signal.SIGTERM)
                    # While a thread that does not block it is on its way to Python's handler, the signal is neither pending nor noted.
                    time.sleep(0.2)
            return bool(stop())

        return evaluate(held_set, *given, stop_or_worse)


class Late:
    """What aborts the process if Python's interpreter frees it, as a thread of C++ can at that time."""

    def __del__(self) -> None:
        os.abort()


class Loader:
    """`trainer.data.loader` with one function replaced."""

    LoaderPlan = loader.LoaderPlan

    def __init__(self, watched: Watched) -> None:
        self.batches = watched.batches


class GradientCache:
    """`trainer.gradient_cache` with its function replaced."""

    pieces = staticmethod(gradient_cache.pieces)

    def __init__(self, watched: Watched) -> None:
        self.forward_backward = watched.forward_backward


if __name__ == "__main__":
    if os.environ.get("FP16_ON_CPU"):
        fp16_on_cpu.allow()
    watched = Watched()
    objectives = {
        kind: objective._replace(loss=functools.partial(watched.loss, objective.loss))
        for kind, objective in OBJECTIVES.items()
    }
    vars(train).update(
        loader=Loader(watched),
        gradient_cache=GradientCache(watched),
        OBJECTIVES=objectives,
    )
    vars(feed).update(normalise=watched.normalise)
    take = functools.partial(watched.next, feed.Feed.next)
    feed.Feed.next = lambda self: take(self)  # type: ignore[method-assign]
    evaluate = functools.partial(watched.evaluate, held.Held.evaluate)
    held.Held.evaluate = lambda *how: evaluate(*how)  # type: ignore[method-assign]
    if os.environ.get("LATE"):
        late = Late()
        atexit.register(print, "what libraries want at the end is done")
    program.enter()
