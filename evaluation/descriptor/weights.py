"""The artefact of a training: `descriptor.safetensors` and its card, `card.json`. No pickle is read or written.

The weights file also holds the background: vectors (int8) of training pictures, by which a search can tell how near a view lies to all
things (`search.normalisation`). Two artefacts with the same `weights_sha256` give the same vectors on the same machine.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pydantic
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray

from evaluation.descriptor import model
from evaluation.descriptor.config import ArchitectureConfig, AugmentationConfig, OptimiserConfig
from evaluation.descriptor.pictures import Kind
from pipeline.contracts import storage
from pipeline.contracts.config import StrictModel
from pipeline.contracts.errors import InputError

WEIGHTS, CARD = "descriptor.safetensors", "card.json"
_LARGEST_CARD, _LARGEST_WEIGHTS = 1 << 20, 4 << 30
_BACKGROUND = "background"

Int8s = NDArray[np.int8]


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

    def network(self) -> model.Network:
        """The network, ready for inference on the CPU."""
        network = model.Network(self.card.architecture)
        state = safetensors.torch.load(self.data)
        del state[_BACKGROUND]
        network.load_state_dict(state)
        return model.channels_last(network.eval())


def weights_bytes(network: model.Network, background: Int8s) -> bytes:
    """The file's bytes: float32 weights by their names, and the background."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    return safetensors.torch.save({**state, _BACKGROUND: torch.from_numpy(np.ascontiguousarray(background))})


def write(folder: str, card: Card, data: bytes) -> None:
    """Write the weights, then the card: a folder with a card is whole."""
    storage.make_folder(folder)
    storage.write_atomic(storage.join(folder, WEIGHTS), data)
    storage.write_atomic(storage.join(folder, CARD), (card.model_dump_json(indent=1) + "\n").encode())


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


def read(folder: str) -> Descriptor:
    """A trained descriptor. Raises InputError for weights that are not the card's, or not of its architecture."""
    card = read_card(folder)
    place = storage.join(folder, WEIGHTS)
    if storage.size(place) > _LARGEST_WEIGHTS:
        raise InputError(
            f"{place}: larger than {_LARGEST_WEIGHTS >> 30} GiB; give the folder that train-descriptor wrote"
        )
    data = storage.read_bytes(place)
    if hashlib.sha256(data).hexdigest() != card.weights_sha256:
        raise InputError(f"{place}: not the weights of the card beside it; restore both from the same training")
    _check(place, card, data)
    return Descriptor(card, data, safetensors.torch.load(data)[_BACKGROUND].numpy())


def _check(place: str, card: Card, data: bytes) -> None:
    """Names, types and shapes against the card's architecture, from the header alone."""
    with torch.device("meta"):
        expected = {
            name: ("F32", list(one.shape)) for name, one in model.Network(card.architecture).state_dict().items()
        }
    expected[_BACKGROUND] = ("I8", [card.background, card.architecture.dimension])
    try:
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        header.pop("__metadata__", None)
        found = {name: (one["dtype"], one["shape"]) for name, one in header.items()}
        safetensors.torch.load(data)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, safetensors.SafetensorError):
        raise InputError(f"{place}: not a safetensors file; restore it from its training") from None
    wrong = next((name for name in sorted({*expected, *found}) if expected.get(name) != found.get(name)), None)
    if wrong is not None:
        raise InputError(
            f"{place}: {wrong!r} is {found.get(wrong, 'missing')!r}, the card's architecture needs {expected.get(wrong, 'none')!r}; "
            "restore card and weights from the same training"
        )
