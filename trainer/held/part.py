"""What is scored, and what all processes do alike while they open it."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
import torch.distributed
from torch import Tensor

from pipeline.content import image as images
from pipeline.contracts.cli import Progress
from pipeline.contracts.errors import HouseError
from trainer.config import HeldConfig, TrainConfig, settled
from trainer.zero import gather

T = TypeVar("T")

AT_ONCE = 128
"""Pictures, or texts, that are opened or go through the towers at a time, at most."""
Trouble = tuple[int, str]
"""A row, and why it cannot be used."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One thing that is scored: pictures to be read, texts, and what their features give.

    read(places, rising) gives the encoded pictures at these places, of `pictures`. score(picture features [pictures, E], text features
    [texts, E], rank, number of processes) is collective. marks: by what a picture may be known in a corpus, and which picture it is:
    SHA-256 of its bytes, as stored or as fetched (32 bytes), and uids of its pairs (16 bytes).
    """

    name: str
    place: str
    pictures: int
    read: Callable[[Sequence[int]], Iterator[bytes]]
    texts: list[str]
    score: Callable[[Tensor, Tensor, int, int], dict[str, float]]
    chance: dict[str, float]
    marks: list[tuple[bytes, int]]


def trouble_with(image: bytes, config: TrainConfig) -> str | None:
    """Why this picture cannot be scored, if it cannot."""
    try:
        images.decode(image, min_short_side=settled(config).image_size)
    except images.ImageRejected as rejected:
        return str(rejected)
    return None


@contextlib.contextmanager
def progress(total: int, unit: str, label: str) -> Iterator[Callable[[int], object]]:
    """Long work, told of by process 0, whose share stands for all; gives what to call with a number of things that are done."""
    if torch.distributed.get_rank():
        yield lambda _: None
        return
    with Progress(total, unit, label, summary=False) as shown:
        yield shown.update


def given(config: TrainConfig) -> HeldConfig:
    if config.held is None:
        raise ValueError("the configuration has no [held]")
    return config.held


def threads(config: TrainConfig) -> int:
    return max(1, config.data.workers)


def all_or_none(work: Callable[[], T]) -> list[T]:
    """What `work` gave on every process, by rank; where it raised what the user must see, all raise it. Collective."""
    mine: T | HouseError
    try:
        mine = work()
    except HouseError as error:
        mine = error
    everyone = gather(mine)
    found: list[T] = []
    for answer in everyone:
        if isinstance(answer, HouseError):
            raise answer
        found.append(answer)
    return found
