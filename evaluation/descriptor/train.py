"""`python -m evaluation train-descriptor`: pictures → copies of them → a network that knows copies from strangers → its artefact.

Read `train` from top to bottom. Everything random is drawn by (seed, step, place in the batch): which pictures a step sees and how each is
changed do not depend on threads, on what was drawn before or on interruptions. So a run that was killed and resumed from its checkpoint
ends with the bytes of one that was not, on the same machine with the same `threads`; with a time limit only the steps that it had time for
differ. Views are made by threads (Pillow works without the interpreter's lock) one step ahead of the network.

The checkpoint (`OUT.work/checkpoint.safetensors`) is one file, written whole: weights, both moments of AdamW, step and seconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import logging
import math
import platform
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import PIL
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray

from evaluation.descriptor import augment, losses, weights
from evaluation.descriptor import pictures as training_pictures
from evaluation.descriptor.artefact import CARD, Card, Proxy, TrainedOn
from evaluation.descriptor.config import OptimiserConfig, TrainDescriptorConfig
from evaluation.descriptor.embed import Embedder, view
from evaluation.descriptor.model import Network, build
from evaluation.descriptor.search import cosines
from evaluation.descriptor.views import FULL_BOX
from evaluation.device import usable
from pipeline.contracts import config as contracts_config
from pipeline.contracts import storage
from pipeline.contracts.cli import Progress
from pipeline.contracts.errors import InputError, RunError

UInt8s = NDArray[np.uint8]

log = logging.getLogger("evaluation")

CHECKPOINT = "checkpoint.safetensors"
_HELD_OUT = 0.1  # share of the pictures that the proxy is measured on, at most MOST_HELD_OUT
MOST_HELD_OUT = 1000
_BACKGROUND = 2000  # vectors of training pictures kept beside the weights
_BETAS = (0.9, 0.98)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_HELD, _ORDER, _COPIES, _PROXY = range(4)  # what is drawn: the second number of each key, behind the seed


@dataclass
class _State:
    """How far a run is: steps done, seconds spent on them by all its processes."""

    step: int = 0
    seconds: float = 0.0


def plan(config: TrainDescriptorConfig) -> str:
    """What a run would do, for `--check`; opens nothing."""
    how = config.optimiser
    network = build(config.architecture, config.run.seed)
    limit = "" if how.minutes is None else f" or {how.minutes:g} minutes, whichever ends first"
    return (
        f"{_parameters(network):,} parameters, vectors of {config.architecture.dimension}; {how.batch} pairs a step, "
        f"{how.steps:,} steps{limit}; at most {config.data.pictures:,} pictures or {config.data.memory_mb:,} MB of them; "
        f"weights and card in {config.run.out}, checkpoint in {work_folder(config)}"
    )


def work_folder(config: TrainDescriptorConfig) -> str:
    """Where the checkpoint lies."""
    return config.run.out.rstrip("/") + ".work"


def run(config: TrainDescriptorConfig) -> str:
    """`train`, and what a person should know of it."""
    return f"{summary(train(config))}\nweights and card: {config.run.out}"


def train(config: TrainDescriptorConfig) -> Card:
    """Train, or go on where a killed run was, and write the artefact to `config.run.out`; returns its card.

    Raises InputError for a folder that holds another descriptor, too few pictures or a device that is not there; RunError when the loss is
    no longer finite.
    """
    if storage.exists(storage.join(config.run.out, CARD)):
        return _finished(config)
    device = usable(config.run.device, "run.device")
    _keep_freed_memory()
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    how, seed = config.optimiser, config.run.seed
    found = training_pictures.load(config.data, seed)
    held, kept = _held_out(found.arrays, seed)
    if len(kept) < how.batch or len(held) < 2:
        raise InputError(
            f"data: {len(found.arrays):,} usable pictures, less {len(held):,} held out, are fewer than the {how.batch:,} of one step; "
            "give more pictures or a smaller optimiser.batch"
        )
    identity = contracts_config.digest_json([contracts_config.digest(config), found.root, found.digest])
    network = build(config.architecture, seed).to(device)
    optimiser = torch.optim.AdamW(network.parameters(), how.rate, _BETAS, weight_decay=how.weight_decay)
    state = _resume(work_folder(config), identity, network, optimiser)

    started = time.monotonic() - state.seconds
    makers_needed = max(1, torch.get_num_threads() // 2)  # making views takes less than half of what the network takes
    total, unit = (how.steps, "steps") if how.minutes is None else (round(60 * how.minutes), "s")
    with (
        ThreadPoolExecutor(makers_needed) as makers,
        ThreadPoolExecutor(1) as ahead,
        Progress(total, unit, "training", initial=_shown(how, state)) as progress,
    ):
        coming = ahead.submit(_batch, makers, kept, config, state.step, _size(config, state.step, state.seconds))
        while (share := _share_done(how, state.step, state.seconds)) < 1:
            first, second = (views.to(device) for views in coming.result())
            coming = ahead.submit(
                _batch, makers, kept, config, state.step + 1, _size(config, state.step + 1, state.seconds)
            )
            for group in optimiser.param_groups:
                group["lr"] = how.rate * _rate(share, state.step, how.warmup)
            loss, accuracy = _step(network, optimiser, first, second, config)
            if not math.isfinite(loss):
                raise RunError(
                    f"the loss is {loss} at step {state.step + 1:,}; start again with a lower optimiser.rate (it is {how.rate:g})"
                )
            before = _shown(how, state)
            state.step, state.seconds = state.step + 1, time.monotonic() - started
            progress.update(_shown(how, state) - before)
            if state.step % config.run.checkpoint_every == 0:
                log.info("step %d: loss %.3f, copies found %.3f", state.step, loss, accuracy)
                _save(work_folder(config), identity, network, optimiser, state)
        coming.cancel()
    return _write_artefact(config, network.cpu(), found, held, kept, state.step)


def _keep_freed_memory() -> None:
    """Every step asks for the same large blocks, and glibc gives them back in between: new pages cost a seventh of a step on a CPU.

    Where the C library is another one, nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def _finished(config: TrainDescriptorConfig) -> Card:
    """The card of this configuration's own, finished run."""
    card = weights.read(config.run.out).card
    if card.config_digest != contracts_config.digest(config):
        raise InputError(f"{config.run.out}: holds a descriptor of another configuration; give a new run.out")
    if card.trained_on.root != training_pictures.root(config.data):
        raise InputError(f"{config.run.out}: holds a descriptor of other pictures; give a new run.out")
    return card


def _held_out(arrays: Sequence[UInt8s], seed: int) -> tuple[list[UInt8s], list[UInt8s]]:
    """Pictures for the proxy, and the rest, by a permutation of this seed."""
    order = augment.generator(seed, _HELD).permutation(len(arrays)).tolist()
    count = min(MOST_HELD_OUT, max(2, round(_HELD_OUT * len(arrays))))
    return [arrays[place] for place in order[:count]], [arrays[place] for place in order[count:]]


# ---- one step


def chosen(pictures: int, batch: int, step: int, seed: int) -> list[int]:
    """The pictures of a step: all different; every picture once an epoch, in an order of that epoch, less a last incomplete batch."""
    steps = pictures // batch
    epoch, place = divmod(step, steps)
    order = augment.generator(seed, _ORDER, epoch).permutation(pictures)
    picked: list[int] = order[place * batch : (place + 1) * batch].tolist()
    return picked


def _batch(
    makers: ThreadPoolExecutor, kept: Sequence[UInt8s], config: TrainDescriptorConfig, step: int, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """References and copies of a step, uint8[batch, size, size, 3] each."""
    seed = config.run.seed
    rows = chosen(len(kept), config.optimiser.batch, step, seed)
    made = makers.map(
        lambda at: augment.pair(kept[at[1]], config.augmentation, size, seed, _COPIES, step, at[0]), enumerate(rows)
    )
    first, second = zip(*made, strict=True)
    return torch.from_numpy(np.stack(first)), torch.from_numpy(np.stack(second))


def _step(
    network: Network,
    optimiser: torch.optim.Optimizer,
    first: torch.Tensor,
    second: torch.Tensor,
    config: TrainDescriptorConfig,
) -> tuple[float, float]:
    """One update; returns the loss and the share of copies that were nearest to their reference (in-batch retrieval)."""
    how = config.optimiser
    with torch.autocast(first.device.type, torch.bfloat16, enabled=config.run.half):
        vectors = network(torch.cat([first, second]))
    ours, theirs = vectors.float().chunk(2)
    loss, accuracy = losses.contrastive(ours, theirs, how.temperature)
    if how.entropy:
        loss = loss + how.entropy * losses.spread(ours, theirs)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(network.parameters(), how.largest_gradient)
    optimiser.step()
    return float(loss.detach()), float(accuracy)


def _share_done(how: OptimiserConfig, step: int, seconds: float) -> float:
    """How much of the run is behind us, by steps or by time, whichever is more."""
    by_time = 0.0 if how.minutes is None else seconds / (60 * how.minutes)
    return max(step / how.steps, by_time)


def _size(config: TrainDescriptorConfig, step: int, seconds: float) -> int:
    """Pixels a side of a step's views. The network takes any size, and learns most of it from small pictures."""
    whole = config.architecture.size
    early = _share_done(config.optimiser, step, seconds) < config.optimiser.small
    return max(32, whole * 2 // 3 // 16 * 16) if early else whole


def _shown(how: OptimiserConfig, state: _State) -> int:
    """How far the progress bar is: in steps, or in seconds where there is a time limit."""
    return state.step if how.minutes is None else int(state.seconds)


def _rate(share: float, step: int, warmup: int) -> float:
    """The learning rate as a share of its highest."""
    return min(1.0, (step + 1) / (warmup + 1)) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


# ---- the checkpoint


_MOMENTS = ("exp_avg", "exp_avg_sq")


def _save(folder: str, identity: str, network: Network, optimiser: torch.optim.AdamW, state: _State) -> None:
    tensors = {}
    for name, parameter in network.named_parameters():
        tensors[f"weight.{name}"] = parameter.detach().cpu().contiguous()
        for moment in _MOMENTS:
            tensors[f"{moment}.{name}"] = optimiser.state[parameter][moment].cpu().contiguous()
    told = json.dumps({"identity": identity, "step": state.step, "seconds": state.seconds})
    storage.make_folder(folder)
    storage.write_atomic(storage.join(folder, CHECKPOINT), safetensors.torch.save(tensors, {"state": told}))


def _resume(folder: str, identity: str, network: Network, optimiser: torch.optim.AdamW) -> _State:
    """Load the checkpoint of this very run, if there is one. Raises InputError for one of another configuration or other pictures."""
    place = storage.join(folder, CHECKPOINT)
    if not storage.exists(place):
        return _State()
    data = storage.read_bytes(place)
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        told = json.loads(header["__metadata__"]["state"])
        step, seconds, theirs = int(told["step"]), float(told["seconds"]), told["identity"]
        tensors = safetensors.torch.load(data)
        parts = ("weight", *_MOMENTS)
        fits = all(
            tensors[f"{part}.{name}"].shape == one.shape for name, one in network.named_parameters() for part in parts
        )
    except (ValueError, KeyError, TypeError, RecursionError, safetensors.SafetensorError):
        raise InputError(f"{place}: not a readable checkpoint; move it away to start again") from None
    if theirs != identity or not fits:
        raise InputError(
            f"{place}: of another configuration or of other pictures; bring those back, or give a new run.out to start again"
        )
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(tensors[f"weight.{name}"])
            # In the memory layout of the weights, as torch makes them: another one would be added up in another order.
            moments = {moment: torch.empty_like(parameter).copy_(tensors[f"{moment}.{name}"]) for moment in _MOMENTS}
            optimiser.state[parameter] = {"step": torch.tensor(float(step)), **moments}
    return _State(step, seconds)


# ---- the artefact


def proxy(network: Network, held: Sequence[UInt8s], config: TrainDescriptorConfig) -> Proxy:
    """Each held-out picture's copy against all their references, with draws of its own that no training step has."""
    size, seed = config.architecture.size, config.run.seed
    pairs = [augment.pair(one, config.augmentation, size, seed, _PROXY, place) for place, one in enumerate(held)]
    embedder = Embedder(network, size)
    references, copies = (embedder.vectors(side) for side in zip(*pairs, strict=True))
    table = cosines(copies, references)
    own = np.arange(len(held))
    found = float((table.argmax(axis=1) == own).mean())
    table[own, own] = -1.0
    count = len(held) * (len(held) - 1)
    return Proxy(accuracy=found, pairs=count, largest_unrelated=float(table.max()), rate_bound=min(1.0, 3 / count))


def _write_artefact(
    config: TrainDescriptorConfig,
    network: Network,
    found: training_pictures.Pictures,
    held: Sequence[UInt8s],
    kept: Sequence[UInt8s],
    steps: int,
) -> Card:
    measured = proxy(network, held, config)
    size = config.architecture.size
    embedder = Embedder(network, size)
    seen = (view(one, FULL_BOX, size) for one in kept[:_BACKGROUND])
    background = embedder.vectors(pixels for pixels in seen if pixels is not None)
    data = weights.weights_bytes(network, background)
    card = Card(
        architecture=config.architecture,
        parameters=_parameters(network),
        trained_on=TrainedOn(
            kind=found.kind,
            root=found.root,
            digest=found.digest,
            pictures=len(kept),
            held_out=len(held),
            unusable=found.unusable,
        ),
        augmentation=config.augmentation,
        augmentation_version=augment.VERSION,
        optimiser=config.optimiser,
        half=config.run.half,
        seed=config.run.seed,
        threads=torch.get_num_threads(),
        steps=steps,
        stopped_by="steps" if steps >= config.optimiser.steps else "minutes",
        proxy=measured,
        background=len(background),
        versions={
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "pillow": PIL.__version__,
        },
        config_digest=contracts_config.digest(config),
        weights_sha256=hashlib.sha256(data).hexdigest(),
    )
    weights.write(config.run.out, card, data)
    return card


def _parameters(network: Network) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def summary(card: Card) -> str:
    """What a person should know of a finished descriptor, in two lines."""
    measured = card.proxy
    return (
        f"{card.parameters:,} parameters, {card.steps:,} steps on {card.trained_on.pictures:,} pictures (ended by {card.stopped_by})\n"
        f"{card.trained_on.held_out:,} held-out pictures: {measured.accuracy:.1%} of the copies are nearest to their own; "
        f"no unrelated pair of {measured.pairs:,} above a cosine of {measured.largest_unrelated:.4f} "
        f"(false pairs above it: below {measured.rate_bound:.1e} at 95 %)"
    )
