"""Numbers in fp16 with one fp32 scale for each block of neighbours: 2 bytes each, and 4 for every `block`
of them.

A block's scale is the power of two that brings its largest magnitude into [2^14, 2^15): scaling is then
exact, a number 2^28 times smaller than its block's largest still keeps all eleven bits, and gradients of
1e-5 (whose squares fp16 cannot hold) are as good as gradients of 1. Blocks lie on the flat order of a
tensor, because ZeRO hands an optimizer flat partitions without shapes.
"""

import torch
from torch import Tensor
from torch.nn import functional

_TOP_EXPONENT = 15
_LEAST_EXPONENT, _MOST_EXPONENT = -100, 128
_EXPONENT_BIAS = 127  # of fp32: the stored exponent of 1.0
_FRACTION_BIAS = 126  # the same for 0.5, where magnitudes are counted from here
_DROPPED_BITS = 13  # fp32 keeps 23 bits behind the point, fp16 keeps 10


def block_count(numel: int, block: int) -> int:
    """Blocks that `numel` numbers need; the last may be short."""
    return -(-numel // block)


def quantise(values: Tensor, block: int, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """fp32 [n] to (fp16 [n], fp32 scales [ceil(n / block)]).

    With `noise` (int32 [n] in [0, 2^13)) a value is rounded up with the probability of its distance from
    the lower neighbour, so that the mean of many roundings is the value itself; without, to the nearest.
    Not-a-number and infinity stay what they are.
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
    scaled = (rows / scales[:, None]).view(-1)[:n]
    if noise is not None:
        # Adding below the last kept bit carries into it exactly as often as the dropped bits say.
        # Infinity has no bits to carry from; a not-a-number could be carried out of what it is.
        unknown = scaled.isnan()
        scaled.view(torch.int32).add_(noise).bitwise_and_(-(1 << _DROPPED_BITS))
        scaled.masked_fill_(unknown, torch.nan)
    return scaled.half(), scales


def dequantise(half: Tensor, scales: Tensor, block: int) -> Tensor:
    """The fp32 [n] numbers that `quantise` stored."""
    n = len(half)
    if n % block == 0:
        return half.float().view(-1, block).mul_(scales[:, None]).view(-1)
    return half.float() * scales.repeat_interleave(block)[:n]


def rounding_noise(seed: int, step: int, first: int, count: int, device: torch.device) -> Tensor:
    """int32 [count] in [0, 2^13), a pure function of (seed, step, flat offset); offsets from `first` on.

    The mixer is the 32-bit finaliser "lowbias32" (Chris Wellons, "Prospecting for Hash Functions"), on
    wrapping int32 arithmetic.
    """
    key = _mix_python(_mix_python(seed & 0xFFFFFFFF) ^ (step & 0xFFFFFFFF))
    x = torch.arange(count, dtype=torch.int32, device=device)
    x += _signed(first & 0xFFFFFFFF)
    x ^= _signed(key)
    shifted = x >> 16
    x ^= shifted.bitwise_and_(0xFFFF)
    x *= 0x7FEB352D
    torch.bitwise_right_shift(x, 15, out=shifted)
    x ^= shifted.bitwise_and_(0x1FFFF)
    x *= _signed(0x846CA68B)
    x >>= 32 - _DROPPED_BITS
    x &= (1 << _DROPPED_BITS) - 1
    return x


def _mix_python(x: int) -> int:
    x ^= x >> 16
    x = x * 0x7FEB352D & 0xFFFFFFFF
    x ^= x >> 15
    x = x * 0x846CA68B & 0xFFFFFFFF
    return x ^ x >> 16


def _signed(x: int) -> int:
    return x - (1 << 32) if x >= 1 << 31 else x
