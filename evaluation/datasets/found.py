"""What a reader of a dataset hands over, before it is a set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from evaluation.datasets.bundle import Bundle
from pipeline.content.labelled import Pictures
from pipeline.contracts.errors import InputError


@dataclass(frozen=True)
class Found:
    """One split: per row an id and a class number (None: no label), the class list, and where the pictures are.

    `groups` names the video of each frame; `marks` int8[n, classes] is of sets with several labels a picture.
    """

    ids: list[str]
    labels: Sequence[int | None]
    classes: list[str]
    pictures: Pictures
    captions: list[str | None] | None = None
    groups: list[str] | None = None
    marks: NDArray[np.int8] | None = None


def is_number(text: str) -> bool:
    """Whether a text is a whole number of at most nine digits: `int` takes it, which it does not take of all that `isdigit` does."""
    return text.isascii() and text.isdigit() and len(text) < 10


def refuse_split(bundle: Bundle, split: str, known: Iterable[str]) -> NoReturn:
    """There is no such split."""
    raise InputError(f"{bundle.path}: this dataset has no split {split!r}; its splits are {', '.join(known)}")
