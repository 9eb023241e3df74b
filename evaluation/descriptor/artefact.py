"""What a training leaves, as numbers: the card, and the descriptor whose card it is. Loads no torch, so that reports can quote the card and
the overlap job can hand a descriptor on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pydantic
from numpy.typing import NDArray

from evaluation.descriptor.config import ArchitectureConfig, AugmentationConfig, OptimiserConfig
from pipeline.contracts import storage
from pipeline.contracts.config import StrictModel
from pipeline.contracts.errors import InputError

CARD = "card.json"
_LARGEST_CARD = 1 << 20

Int8s = NDArray[np.int8]
Kind = Literal["corpus", "set"]


class TrainedOn(StrictModel):
    """The training pictures. `root` is the corpus's content_root or the set's content hash, `digest` names the chosen rows in order."""

    kind: Kind
    root: str
    digest: str
    pictures: int = pydantic.Field(ge=1)
    held_out: int = pydantic.Field(ge=2)
    unusable: int = pydantic.Field(ge=0)


class Proxy(StrictModel):
    """Measured on pictures held out of training: `accuracy` is the share of copies whose nearest reference is their own (the paper's proxy
    task); of the unrelated pairs the largest cosine, and 3 / pairs, the 95 % upper bound of the false-pair rate above it.
    """

    accuracy: float
    pairs: int
    largest_unrelated: float
    rate_bound: float


class Card(StrictModel):
    """What a descriptor is and how it came about; paths, times and machines are not in it."""

    kind: Literal["near-duplicate descriptor"] = "near-duplicate descriptor"
    format_version: Literal[1] = 1
    architecture: ArchitectureConfig
    parameters: int
    trained_on: TrainedOn
    augmentation: AugmentationConfig
    augmentation_version: str
    optimiser: OptimiserConfig
    half: bool
    seed: int
    threads: int
    steps: int
    stopped_by: Literal["steps", "minutes"]
    proxy: Proxy
    background: int
    versions: dict[str, str]
    config_digest: str
    weights_sha256: str


@dataclass(frozen=True)
class Descriptor:
    """A trained descriptor as numbers, cheap to hand to a worker: its card, the bytes of its weights file, the background int8[n, d]."""

    card: Card
    data: bytes
    background: Int8s


def read_card(folder: str) -> Card:
    """Raises InputError when there is none, or it is of another version or no card."""
    place = storage.join(folder, CARD)
    if storage.size(place) > _LARGEST_CARD:
        raise InputError(f"{place}: larger than a card can be; give the folder that train-descriptor wrote")
    try:
        return Card.model_validate_json(storage.read_bytes(place))
    except pydantic.ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise InputError(
            f"{place}: not a card of this program's descriptors ({where}: {problem['msg']}); give the folder that train-descriptor wrote"
        ) from None
