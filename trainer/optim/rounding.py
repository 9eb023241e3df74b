"""Stochastic rounding with a counter-based generator: onto fp16's grid, onto bf16's, and of the second moment.

A number between two neighbours of a grid goes to the upper one with the probability of its distance from the lower one, so that the mean of
many roundings is the number itself. Rounding to nearest would lose every update below half a step: a weight of 0.02 in bf16 has steps of
1.2e-4, Adam's updates are as large as the learning rate.

The random numbers have no state. Those of a number are a pure function of (seed, step, its place in the flat order of all parameters), so
that a resumed run repeats them, no two numbers share them, and neither the number of processes nor the ZeRO stage changes them.
"""

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

Grid = Literal["fp16", "bf16"]
Span = tuple[int, int]
"""(first place in the flat order, how many numbers)."""

MOMENT_BITS = 13
"""fp32 keeps 23 bits behind the point, fp16 keeps 10: what is dropped by rounding one to the other."""
_BF16_BITS = 16
_FP16_LEAST_EXPONENT = 113  # of fp16's smallest normal number, 2^-14, as fp32 stores it; below, steps no longer shrink
_FP16_FRACTION_BITS, _BF16_FRACTION_BITS = 10, 7
_EXPONENT_BITS = 0x7F80_0000
_FIRST_FACTOR, _SECOND_FACTOR = 0x21F0AAAD, 0x735A2D97


def random_bits(seed: int, step: int, spans: Iterable[Span], device: torch.device) -> Tensor:
    """32 random bits for each number of the spans, one span after the other: int32 [sum of counts].

    Places count modulo 2^32. The mixer is a 32-bit finaliser of the hash prospector (github.com/skeeto/hash-prospector, issue 19), on
    wrapping int32 arithmetic. Its elder "lowbias32" costs as much, but over millions of places in a row its upper bits are visibly uneven.
    """
    pieces = [torch.arange(count, dtype=torch.int32, device=device).add_(_signed(first)) for first, count in spans]
    x = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    x ^= random_key(seed, step)
    shifted = x >> 16
    x ^= shifted.bitwise_and_(0xFFFF)
    x *= _FIRST_FACTOR
    torch.bitwise_right_shift(x, 15, out=shifted)
    x ^= shifted.bitwise_and_(0x1FFFF)
    x *= _SECOND_FACTOR
    torch.bitwise_right_shift(x, 15, out=shifted)
    x ^= shifted.bitwise_and_(0x1FFFF)
    return x


def random_key(seed: int, step: int) -> int:
    """What sets the random bits of one step apart from those of others, an int32."""
    return _signed(_mix_python(_mix_python(seed & 0xFFFFFFFF) ^ (step & 0xFFFFFFFF)))


def moment_noise(bits: Tensor) -> Tensor:
    """The upper 13 of random bits, as int32 in [0, 2^13)."""
    return (bits >> (32 - MOMENT_BITS)).bitwise_and_((1 << MOMENT_BITS) - 1)


def round_onto(grid: Grid, values: Tensor, bits: Tensor) -> Tensor:
    """fp32 `values` [n], changed in place, each to one of its two neighbours on the grid of fp16 or bf16 numbers, the subnormal ones too.

    bits: int32 [n] from `random_bits`; the lower bits are used, which `moment_noise` leaves alone. A number on the grid stays. The mean of
    the error is 0, exactly for bf16 and for fp16 from 2^-14 on; below, fp32 knows more of a number than 13 random bits can tell, and the
    mean error is at most 2^-13 of a step. What is no number stays none, and infinity does not become a number. Above the largest number
    of the grid lies infinity, as in a cast: in bf16 here, in fp16 when the result is cast.
    """
    if grid == "bf16":
        # Sign and magnitude: adding below the last kept bit carries away from zero exactly as often as the dropped bits say. The error is
        # exact, and adding it (instead of taking the result) lets no not-a-number be carried out of what it is.
        noise = bits & ((1 << _BF16_BITS) - 1)
        rounded = noise.add_(values.view(torch.int32)).bitwise_and_(-(1 << _BF16_BITS)).view(torch.float32)
        return values.add_(rounded.sub_(values))
    step = (values.view(torch.int32) & _EXPONENT_BITS).clamp_(min=_FP16_LEAST_EXPONENT << 23)
    step = step.sub_(_FP16_FRACTION_BITS << 23).view(torch.float32)
    noise = (bits & ((1 << MOMENT_BITS) - 1)).float().mul_(2.0**-MOMENT_BITS)
    return values.div_(step).add_(noise).floor_().mul_(step)


def largest_on(grid: Grid, bound: float) -> float:
    """The largest number of the grid that is not above a positive, finite, normal `bound`."""
    fraction_bits = _FP16_FRACTION_BITS if grid == "fp16" else _BF16_FRACTION_BITS
    step = 2.0 ** (math.frexp(bound)[1] - 1 - fraction_bits)
    return bound // step * step


def _mix_python(x: int) -> int:
    x ^= x >> 16
    x = x * _FIRST_FACTOR & 0xFFFFFFFF
    x ^= x >> 15
    x = x * _SECOND_FACTOR & 0xFFFFFFFF
    return x ^ x >> 15


def _signed(x: int) -> int:
    """The int32 with the lowest 32 bits of `x`."""
    x &= 0xFFFFFFFF
    return x - (1 << 32) if x >= 1 << 31 else x
