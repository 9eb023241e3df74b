"""What one process must keep of a run, as plain tensors, and how it gets it back: masters, moments, random states.

A process writes the flat tensors that its optimizer holds, so that saving gathers nothing; without ZeRO all processes hold the same, and
the first one writes. The first also writes what no optimizer holds: frozen parameters and buffers (of batch norm). All are put back in
place, into a running engine: a resume and going back after bad steps are the same thing.
"""

import hashlib
import json
import random
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.checkpoint import partitions
from trainer.checkpoint.layout import MASTER, Flat, Layout
from trainer.zero import Engine

_RANDOM = "random."
_KEPT = "kept."
RandomStates = dict[str, Tensor]


# ---- masters and moments


def layouts(engine: Engine) -> list[Layout]:
    """What each flat tensor of this process's optimizer holds, in the optimizer's order."""
    return [part.layout for part in partitions.of(engine)]


def flats(engine: Engine) -> list[Flat]:
    """Copies on the CPU of this process's masters and of all that the optimizer keeps for them, each flattened."""
    found = []
    states = partitions.base_optimizer(engine).state
    for part in partitions.of(engine):
        state = states.get(part.master, {})
        values = {MASTER: part.master, **{key: value for key, value in state.items() if isinstance(value, Tensor)}}
        copies = {key: value.detach().to("cpu", copy=True).reshape(-1) for key, value in values.items()}
        found.append(Flat(part.layout, copies, {key: value for key, value in state.items() if isinstance(value, int)}))
    return found


def put_back(engine: Engine, saved: list[Flat]) -> None:
    """Give this process's masters and their states the values of `saved`, which has this engine's layouts, and the module its weights.

    Collective.
    """
    states = partitions.base_optimizer(engine).state
    for part, flat in zip(partitions.of(engine), saved, strict=True):
        with torch.no_grad():
            part.master.copy_(flat.values[MASTER].view(part.master.shape))
        state: dict[str, Any] = states[part.master]
        for key in [key for key in state if key not in flat.values and key not in flat.counts]:
            del state[key]
        state.update(flat.counts)
        for key, value in flat.values.items():
            there = state.get(key)
            if key == MASTER:
                continue
            if isinstance(there, Tensor) and there.numel() == value.numel() and there.dtype == value.dtype:
                there.copy_(value.view(there.shape))  # DeepSpeed keeps views of it
            else:
                shape = part.master.shape if value.numel() == part.master.numel() else value.shape
                state[key] = value.view(shape).to(part.master.device, copy=True)
    partitions.publish(engine)


# ---- what no optimizer holds


def kept(engine: Engine) -> dict[str, Tensor]:
    """Frozen parameters and buffers under names of their own; {} on all processes but the first. Collective."""
    return {_KEPT + name: value for name, value in partitions.frozen_and_buffers(engine).items()}


def kept_names(names: Iterable[str]) -> dict[str, str]:
    """Of the names in a process's file, those that `kept` wrote, and the module's name for each."""
    return {name: name.removeprefix(_KEPT) for name in names if name.startswith(_KEPT)}


# ---- random states


def random_states(device: torch.device) -> RandomStates:
    """The states of Python's, numpy's and torch's generators, on the CPU."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    plain = {
        "python": random.getstate(),
        "numpy": [kind, [int(key) for key in keys], int(position), int(has_gauss), float(gauss)],
    }
    states = {
        _RANDOM + "plain": torch.frombuffer(bytearray(json.dumps(plain).encode()), dtype=torch.uint8),
        _RANDOM + "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        states[_RANDOM + "cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random_states(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Bring back what `random_states` took; a state of a kind of device that it was not taken on is left as it is."""
    plain = json.loads(bytes(states[_RANDOM + "plain"].numpy()))
    version, words, gauss_next = plain["python"]
    random.setstate((version, tuple(words), gauss_next))
    kind, keys, position, has_gauss, gauss = plain["numpy"]
    np.random.set_state((kind, np.asarray(keys, dtype=np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(states[_RANDOM + "torch"])
    if device.type == "cuda" and _RANDOM + "cuda" in states:
        torch.cuda.set_rng_state(states[_RANDOM + "cuda"], device)


def seed_from(states: Mapping[str, Tensor], rank: int) -> None:
    """Seed this process's generators with numbers that follow from the states of another process and its own rank."""
    drawn = hashlib.sha256(bytes(states[_RANDOM + "torch"].numpy()) + rank.to_bytes(4, "little")).digest()
    random.seed(int.from_bytes(drawn[:8], "little"))
    np.random.seed(int.from_bytes(drawn[8:12], "little"))
    torch.manual_seed(int.from_bytes(drawn[12:20], "little"))


def random_names(names: Iterable[str]) -> list[str]:
    """Of the names in a process's file, those that `random_states` wrote."""
    return [name for name in names if name.startswith(_RANDOM)]
