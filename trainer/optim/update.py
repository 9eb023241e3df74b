"""One update of AdamW over flat tensors, in plain PyTorch: what `fused.py` does in one pass over a GPU's memory, here in many small ones.

Every operation rounds once: products and sums are separate, for whether one that does both rounds in between is up to the device and its
compiler. So the numbers are the same to the bit on a GPU, in this version and in the fused one, and on CPUs too but for what follows from
square roots, of which torch's there (MKL's) may be off by the last bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.optim.blocks import block_count, dequantise, quantise
from trainer.optim.rounding import Grid, Span, moment_noise, random_bits, round_onto

CPU_CHUNK = 1 << 17
"""Numbers that each thread of a CPU handles at a time: their copies should stay in its core's cache. The result does not depend on it."""
_CHUNK = 1 << 22
"""The same for a GPU: bounds the fp32 copies to 16 MiB each."""


class Flat(NamedTuple):
    """What an update reads and changes, each of n numbers in a row; `gradients` are only read."""

    weights: Tensor
    """fp32, bf16 or fp16 [n]."""
    gradients: Tensor
    """Of any of these types, finite."""
    moments: Tensor
    """fp16 [n], in blocks (`blocks.py`)."""
    moment_scales: Tensor
    """fp32 [number of blocks]."""
    roots: Tensor
    """fp16 [n]: the square root of the second moment."""
    root_scales: Tensor


@dataclass(frozen=True)
class Rule:
    """What an update does: AdamW's numbers at this step, and how results are rounded."""

    beta1: float
    beta2: float
    shrink: float
    """What weights are multiplied with: 1 - learning rate * weight decay."""
    step_size: float
    """The learning rate with the corrections of both moments."""
    eps: float
    """With the correction of the second moment, as the moment has it not."""
    bound: float | None
    """No weight is larger; a number that the weights' type and grid have."""
    grid: Grid | None
    block: int
    seed: int
    step: int


def update(flat: Flat, rule: Rule, spans: Sequence[Span]) -> None:
    """Update weights and moments in place. spans: which places of the model's flat order the numbers have; they add up to n."""
    n, device = len(flat.weights), flat.weights.device
    chunk = CPU_CHUNK * torch.get_num_threads() if device.type == "cpu" else _CHUNK
    for start in range(0, n, chunk):
        at = slice(start, min(start + chunk, n))
        blocks = slice(start // rule.block, block_count(at.stop, rule.block))
        moment_at = flat.moments[at], flat.moment_scales[blocks]
        root_at = flat.roots[at], flat.root_scales[blocks]
        g = flat.gradients[at].float()
        m = dequantise(*moment_at, rule.block).mul_(rule.beta1).add_(g * (1 - rule.beta1))
        r = dequantise(*root_at, rule.block).square_().mul_(rule.beta2)
        r = r.add_(g.square().mul_(1 - rule.beta2)).sqrt_()
        bits = random_bits(rule.seed, rule.step, cut(spans, at.start, at.stop), device)
        quantise(m, rule.block, out=moment_at)
        quantise(r, rule.block, moment_noise(bits), out=root_at)
        w = flat.weights[at].float().mul_(rule.shrink)  # fp32 weights are changed in place
        w.sub_(m.mul_(rule.step_size).div_(r.add_(rule.eps)))
        if rule.grid is not None:
            round_onto(rule.grid, w, bits)
        if rule.bound is not None:
            w.clamp_(max=rule.bound)
        if w.dtype != flat.weights.dtype:
            flat.weights[at] = w


def cut(spans: Sequence[Span], start: int, stop: int) -> list[Span]:
    """The part of the spans from the `start`-th to before the `stop`-th of their numbers."""
    found = []
    for first, count in spans:
        low, high = max(start, 0), min(stop, count)
        if low < high:
            found.append((first + low, high - low))
        start, stop = start - count, stop - count
    return found
