"""What one process must keep of a run, as plain tensors, and how it gets it back: masters, moments, random states.

A process writes the flat tensors that its optimizer holds, so that saving gathers nothing; without ZeRO all processes hold the same, and
the first one writes. The first also writes what no optimizer holds: frozen parameters and buffers (of batch norm). All are put back in
place, into a running engine: a resume and going back after bad steps are the same thing.
"""

import hashlib
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from trainer import partitions
from trainer.checkpoint.layout import MASTER, Flat
from trainer.partitions import Layout
from trainer.zero import Engine

_RANDOM = "random."
_KEPT = "kept."
_EMA_UPDATES = "ema_updates"
EMA = "ema"
"""The moving average of the masters, where a run keeps one."""
RandomStates = dict[str, Tensor]


class Average(Protocol):
    """A moving average of the masters: one tensor for each of them, in their order, and how many steps it has seen."""

    tensors: list[Tensor]
    updates: int

    def restore(self, tensors: Sequence[Tensor], updates: int) -> None: ...


# ---- masters and moments


def layouts(engine: Engine) -> list[Layout]:
    """What each flat tensor of this process's optimizer holds, in the optimizer's order."""
    return [part.layout for part in partitions.of(engine)]


def flats(engine: Engine, average: Average | None = None) -> list[Flat]:
    """Copies on the CPU of this process's masters, of all that the optimizer keeps for them, and of their average; each flattened."""
    found = []
    states = partitions.base_optimizer(engine).state
    for number, part in enumerate(partitions.of(engine)):
        state = states.get(part.master, {})
        values = {MASTER: part.master, **{key: value for key, value in state.items() if isinstance(value, Tensor)}}
        counts = {key: value for key, value in state.items() if isinstance(value, int)}
        if average is not None:
            values[EMA], counts[_EMA_UPDATES] = average.tensors[number], average.updates
        copies = {key: value.detach().to("cpu", copy=True).reshape(-1) for key, value in values.items()}
        if padding := part.layout.padding():  # stage 3 leaves there what was in memory
            for key in {MASTER, EMA} & copies.keys():
                for gap in padding:
                    copies[key][gap] = 0
        found.append(Flat(part.layout, copies, counts))
    return found


def put_back(engine: Engine, saved: list[Flat], average: Average | None = None) -> None:
    """Give this process's masters, their states and their average the values of `saved`, and the module its weights. Collective.

    `saved` has this engine's layouts.
    """
    states = partitions.base_optimizer(engine).state
    for part, flat in zip(partitions.of(engine), saved, strict=True):
        with torch.no_grad():
            part.master.copy_(flat.values[MASTER].view(part.master.shape))
        kept = {key: value for key, value in flat.values.items() if key not in (MASTER, EMA)}
        state: dict[str, Any] = states[part.master]
        for key in [key for key in state if key not in kept and key not in flat.counts]:
            del state[key]
        state.update({key: count for key, count in flat.counts.items() if key != _EMA_UPDATES})
        for key, value in kept.items():
            there = state.get(key)
            if isinstance(there, Tensor) and there.numel() == value.numel() and there.dtype == value.dtype:
                there.copy_(value.view(there.shape))  # DeepSpeed keeps views of it
            else:
                shape = part.master.shape if value.numel() == part.master.numel() else value.shape
                state[key] = value.view(shape).to(part.master.device, copy=True)
    if average is not None:
        average.restore([flat.values[EMA] for flat in saved], max(flat.counts[_EMA_UPDATES] for flat in saved))
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
