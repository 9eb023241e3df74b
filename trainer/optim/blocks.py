"""Numbers in fp16 with one fp32 scale for each block of neighbours: 2 bytes each, and 4 for every `block` of them.

A block's scale is the power of two that brings its largest magnitude into [2^14, 2^15): scaling is then exact, a number 2^28 times smaller
than its block's largest still keeps all eleven bits, and gradients of 1e-5 (whose squares fp16 cannot hold) are as good as gradients of 1.
Blocks lie on the flat order of a tensor, because ZeRO hands an optimizer flat partitions without shapes.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from trainer.optim.rounding import MOMENT_BITS

_TOP_EXPONENT = 15
_LEAST_EXPONENT, _MOST_EXPONENT = -100, 128
_EXPONENT_BIAS = 127  # of fp32: the stored exponent of 1.0
_FRACTION_BIAS = 126  # the same for 0.5, where magnitudes are counted from here


def block_count(numel: int, block: int) -> int:
    """Blocks that `numel` numbers need; the last may be short."""
    return -(-numel // block)


def quantise(
    values: Tensor, block: int, noise: Tensor | None = None, *, out: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """fp32 [n] to (fp16 [n], fp32 scales [ceil(n / block)]), written into `out` where it is given.

    With `noise` (int32 [n] in [0, 2^13), `rounding.moment_noise`) a value is rounded up with the probability of its distance from the lower
    neighbour, so that the mean of many roundings is the value itself; without, to the nearest. Infinity and not-a-number stay what they
    are; with noise, not-a-number makes its whole block so.
    """
    n = len(values)
    short = -n % block
    padded = functional.pad(values, (0, short)) if short else values
    rows = padded.view(len(padded) // block, block)
    # The exponents are read and written as bits: a library's pow(2, n) need not be exact on every device.
    largest = torch.maximum(rows.amax(dim=1), -rows.amin(dim=1)).abs()
    exponents = (largest.view(torch.int32) >> 23) - _FRACTION_BIAS
    exponents = exponents.clamp(_LEAST_EXPONENT, _MOST_EXPONENT) - _TOP_EXPONENT
    scales = ((exponents + _EXPONENT_BIAS) << 23).view(torch.float32)
    inverses = ((_EXPONENT_BIAS - exponents) << 23).view(torch.float32)
    scaled = (rows * inverses[:, None]).view(-1)[:n]
    if noise is not None:
        # Adding below the last kept bit carries into it exactly as often as the dropped bits say. Infinity has no bits to carry from;
        # not-a-number could be carried out of what it is, so the scale remembers it.
        scaled.view(torch.int32).add_(noise).bitwise_and_(-(1 << MOMENT_BITS))
        scales.masked_fill_(largest.isnan(), math.nan)
    if out is None:
        return scaled.half(), scales
    half, kept = out
    return half.copy_(scaled), kept.copy_(scales)


def dequantise(half: Tensor, scales: Tensor, block: int) -> Tensor:
    """The fp32 [n] numbers that `quantise` stored."""
    n = len(half)
    if n % block == 0:
        return half.float().view(-1, block).mul_(scales[:, None]).view(-1)
    return half.float() * scales.repeat_interleave(block)[:n]
