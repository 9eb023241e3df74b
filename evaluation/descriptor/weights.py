"""The artefact of a training: `descriptor.safetensors` and its card, `card.json`. No pickle is read or written.

The weights file also holds the background: vectors (int8) of training pictures, by which a search can tell how near a view lies to all
things (`search.normalisation`). Two artefacts with the same `weights_sha256` give the same vectors on the same machine.
"""

from __future__ import annotations

import hashlib
import json
import struct

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray

from evaluation.descriptor import model
from evaluation.descriptor.artefact import CARD, Card, Descriptor, read_card
from pipeline.contracts import storage
from pipeline.contracts.errors import InputError

WEIGHTS = "descriptor.safetensors"
_LARGEST_WEIGHTS = 4 << 30
_BACKGROUND = "background"

Int8s = NDArray[np.int8]


def network(descriptor: Descriptor) -> model.Network:
    """The network of a descriptor, ready for inference on the CPU."""
    built = model.Network(descriptor.card.architecture)
    state = safetensors.torch.load(descriptor.data)
    del state[_BACKGROUND]
    built.load_state_dict(state)
    return model.channels_last(built.eval())


def weights_bytes(trained: model.Network, background: Int8s) -> bytes:
    """The file's bytes: float32 weights by their names, and the background."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in trained.state_dict().items()}
    return safetensors.torch.save({**state, _BACKGROUND: torch.from_numpy(np.ascontiguousarray(background))})


def write(folder: str, card: Card, data: bytes) -> None:
    """Write the weights, then the card: a folder with a card is whole."""
    storage.make_folder(folder)
    storage.write_atomic(storage.join(folder, WEIGHTS), data)
    storage.write_atomic(storage.join(folder, CARD), (card.model_dump_json(indent=1) + "\n").encode())


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
        tensors = safetensors.torch.load(data)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError, safetensors.SafetensorError):
        raise InputError(f"{place}: not a safetensors file; restore it from its training") from None
    wrong = next((name for name in sorted({*expected, *found}) if expected.get(name) != found.get(name)), None)
    if wrong is not None:
        raise InputError(
            f"{place}: {wrong!r} is {found.get(wrong, 'missing')!r}, the card's architecture needs {expected.get(wrong, 'none')!r}; "
            "restore card and weights from the same training"
        )
    broken = next((name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()), None)
    if broken is not None:
        raise InputError(f"{place}: {broken!r} has values that are no numbers; train the descriptor again")
    learned = [name for name, _ in model.Network(card.architecture).named_parameters()]
    many = sum(tensors[name].numel() for name in learned)
    if many != card.parameters:
        raise InputError(
            f"{place}: has {many:,} parameters, its card says {card.parameters:,}; restore both from the same training"
        )
