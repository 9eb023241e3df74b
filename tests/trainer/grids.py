"""fp16 and bf16 as grids of numbers, by the libraries' own casts: what stochastic rounding is checked against. No pytest here."""

import math

import numpy as np
import torch
from torch import Tensor

from trainer.optim.rounding import Grid

GRIDS: tuple[Grid, ...] = ("fp16", "bf16")
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
# The binades of the numbers tried: from below the smallest subnormal number to the largest one; and where numbers become subnormal.
RANGES = {"fp16": (-26.0, 15.99), "bf16": (-136.0, 127.99)}
SUBNORMAL_BELOW = {"fp16": -14.0, "bf16": -126.0}


def neighbours(grid: Grid, values: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers of the grid at or below, and above, fp64 values; from the library's cast and its nextafter."""
    if grid == "fp16":
        nearest = values.numpy().astype(np.float16)
        exact = nearest.astype(np.float64) == values.numpy()
        above = nearest.astype(np.float64) > values.numpy()
        lower = np.where(above & ~exact, np.nextafter(nearest, np.float16(-np.inf)), nearest)
        upper = np.nextafter(lower, np.float16(np.inf))
        return torch.from_numpy(lower).double(), torch.from_numpy(upper).double()
    nearest_bf16 = values.float().bfloat16()
    step_down = torch.nextafter(nearest_bf16, torch.full_like(nearest_bf16, -math.inf))
    lower_bf16 = torch.where(nearest_bf16.double() > values, step_down, nearest_bf16)
    return lower_bf16.double(), torch.nextafter(lower_bf16, torch.full_like(lower_bf16, math.inf)).double()


def numbers(grid: Grid, count: int, least: float, most: float, seed: int = 0) -> Tensor:
    """fp32 numbers of both signs, their exponents spread evenly over a range."""
    draws = torch.Generator().manual_seed(seed)
    exponents = torch.rand(count, generator=draws, dtype=torch.float64) * (most - least) + least
    signs = torch.randint(0, 2, (count,), generator=draws) * 2 - 1
    return (signs * 2**exponents).float()
