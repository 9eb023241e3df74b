"""Stochastic rounding: onto the right neighbours (numpy's and torch's), with the right probability, by noise that nothing repeats."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from tests.trainer.grids import DTYPES, GRIDS, RANGES, SUBNORMAL_BELOW, neighbours, numbers
from trainer.optim.rounding import Grid, Span, largest_on, moment_noise, random_bits, round_onto

CPU = torch.device("cpu")
NOISE_BITS = {"fp16": 13, "bf16": 16}


def rounded(grid: Grid, values: Tensor, step: int, first: int = 0) -> Tensor:
    return round_onto(grid, values.clone(), random_bits(11, step, [(first, len(values))], CPU))


@pytest.mark.parametrize("grid", GRIDS)
def test_a_number_goes_to_one_of_its_neighbours_and_a_number_of_the_grid_stays(grid: Grid) -> None:
    values = numbers(grid, 200_000, *RANGES[grid])
    lower, upper = neighbours(grid, values.double())
    found = rounded(grid, values, 0).double()
    assert bool(((found == lower) | (found == upper)).all())
    assert 0.4 < float((found == upper).double().mean()) < 0.6
    on_grid = torch.cat([values.to(DTYPES[grid]).float(), torch.tensor([0.0, -0.0])])
    for step in range(3):
        assert torch.equal(rounded(grid, on_grid, step), on_grid)


@pytest.mark.parametrize("grid", GRIDS)
def test_over_all_noise_the_mean_is_the_number_itself(grid: Grid) -> None:
    """Every pattern of the bits that are used, once: the mean is no estimate. Exact, but for fp16's subnormal numbers."""
    count = 1 << NOISE_BITS[grid]
    every = torch.arange(count, dtype=torch.int32)
    high = torch.tensor([0, -1 << 19], dtype=torch.int32)  # whatever stands in the bits that the second moment uses
    least, most = RANGES[grid]
    for value, upper_bits in zip(numbers(grid, 160, least, most, seed=1), itertools.cycle(high), strict=False):
        found = round_onto(grid, value.repeat(count), every | upper_bits).double()
        lower, upper = neighbours(grid, value.double().reshape(1))
        error = float((found.mean() - value.double()) / (upper - lower))
        exact = grid == "bf16" or abs(float(value)) >= 2.0**-14
        assert abs(error) <= (1e-9 if exact else 2.0**-13), float(value)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("part", ["all", "positive", "negative", "subnormal"])
def test_rounding_is_unbiased(grid: Grid, part: str) -> None:
    """The mean error of eight times a million draws is below 1e-3 of a step; its standard deviation would be 1.4e-4."""
    least, most = RANGES[grid]
    values = numbers(grid, 1_000_000, least, SUBNORMAL_BELOW[grid] if part == "subnormal" else most, seed=2)
    values = {"positive": values.abs(), "negative": -values.abs()}.get(part, values)
    lower, upper = neighbours(grid, values.double())
    errors = [
        float(((rounded(grid, values, step).double() - values.double()) / (upper - lower)).mean()) for step in range(8)
    ]
    assert abs(sum(errors) / 8) < 1e-3
    assert max(map(abs, errors)) < 4 * 4.1e-4, "four standard deviations of a mean of a million draws"


@pytest.mark.parametrize("grid", GRIDS)
def test_what_is_no_number_does_not_become_one(grid: Grid) -> None:
    patterns = torch.tensor([0x7F800000, 0x7F800001, 0x7FC00000, 0x7FFFFFFF], dtype=torch.int32)
    odd = torch.cat([patterns, patterns | -(1 << 31)]).view(torch.float32)
    for noise in (0, 1, (1 << 16) - 1, -1):
        found = round_onto(grid, odd.clone(), torch.full((8,), noise, dtype=torch.int32))
        assert not bool(found.isfinite().any())
        assert bool(found[odd.isnan()].isnan().all())
    top = torch.tensor([65519.0, 65536.0]) if grid == "fp16" else torch.tensor([3.4e38, 3.4028235e38])
    found = round_onto(grid, top.clone(), torch.full((2,), -1, dtype=torch.int32))
    assert not bool(found.to(DTYPES[grid]).isfinite().any()), "as a cast: above the largest number lies infinity"


def test_noise_is_a_function_of_seed_step_and_place() -> None:
    whole = random_bits(3, 7, [(0, 5000)], CPU)
    assert torch.equal(random_bits(3, 7, [(1000, 500)], CPU), whole[1000:1500])
    spans: list[Span] = [(4000, 10), (17, 1), (100, 300)]
    assert torch.equal(random_bits(3, 7, spans, CPU), torch.cat([whole[4000:4010], whole[17:18], whole[100:400]]))
    assert torch.equal(random_bits(3, 7, [((1 << 32) + 5, 9)], CPU), whole[5:14]), "places count modulo 2^32"
    across = random_bits(3, 7, [((1 << 31) - 3, 6)], CPU)
    apart = [random_bits(3, 7, [((1 << 31) - 3 + place, 1)], CPU) for place in range(6)]
    assert torch.equal(across, torch.cat(apart))
    for other in (random_bits(4, 7, [(0, 5000)], CPU), random_bits(3, 8, [(0, 5000)], CPU)):
        assert int((whole == other).sum()) < 3
    assert len(set(whole.tolist())) == 5000, "no two places of a step have the same bits"


def test_noise_is_even_in_every_part_of_it_that_is_used() -> None:
    """Chi-square of 256 bins of each part over 2^22 places; and no part tells anything about another, nor about its neighbour's."""
    bits = random_bits(5, 9, [(12345, 1 << 22)], CPU)
    parts = {"moment": moment_noise(bits), "fp16": bits & 0x1FFF, "bf16": bits & 0xFFFF}
    assert [int(part.max()) for part in parts.values()] == [8191, 8191, 65535]
    assert all(int(part.min()) == 0 for part in parts.values())
    for name, part in parts.items():
        width = 16 if name == "bf16" else 13
        for shift in (0, width - 8):
            counts = torch.bincount((part >> shift) & 0xFF, minlength=256).double()
            expected = len(part) / 256
            # 255 degrees of freedom: 22.6 is one standard deviation.
            assert 170 < float(((counts - expected) ** 2 / expected).sum()) < 340, f"{name} from bit {shift} on"
    for first, second in (("moment", "fp16"), ("moment", "bf16")):
        together = torch.stack([parts[first], parts[second]]).double()
        assert abs(float(torch.corrcoef(together)[0, 1])) < 5e-3
    for part in parts.values():
        together = torch.stack([part[1:], part[:-1]]).double()
        assert abs(float(torch.corrcoef(together)[0, 1])) < 5e-3


@pytest.mark.parametrize(
    ("grid", "bound"), [("bf16", math.log(100)), ("fp16", math.log(100)), ("bf16", 4.0), ("fp16", 1e-3)]
)
def test_the_largest_number_below_a_bound(grid: Grid, bound: float) -> None:
    lower, upper = neighbours(grid, torch.tensor([bound], dtype=torch.float64))
    assert largest_on(grid, bound) == float(lower) <= bound < float(upper)
