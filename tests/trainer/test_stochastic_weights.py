"""Weights that each step rounds stochastically: on the grid, in the mean where fp32 weights are, with noise that no other number has."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from trainer.models import build
from trainer.optim import HalfAdamW, parameter_groups
from trainer.optim.rounding import Grid

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
SETTINGS = {"lr": 1e-3, "betas": (0.9, 0.98), "eps": 1e-8, "weight_decay": 0.2, "seed": 5}


def optimizer_of(params: list[Tensor], **changes: object) -> HalfAdamW:
    return HalfAdamW(params, **{**SETTINGS, **changes})  # type: ignore[arg-type]


def gradient_of(step: int, count: int) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(step))


@pytest.mark.parametrize("grid", ["fp16", "bf16"])
def test_weights_are_numbers_of_the_grid_and_the_copy_is_exact(grid: Grid) -> None:
    """An fp32 master on the grid, and a weight of the half-precision type itself, move alike to the bit."""
    start = torch.randn(3000, generator=torch.Generator().manual_seed(0)).mul(0.02).to(DTYPES[grid])
    master, weight = nn.Parameter(start.float()), nn.Parameter(start.clone())
    wide, narrow = optimizer_of([master], stochastic=grid), optimizer_of([weight], stochastic=grid)
    for step in range(20):
        master.grad = gradient_of(step, 3000).to(DTYPES[grid]).float()
        weight.grad = master.grad.to(DTYPES[grid])
        wide.step()
        narrow.step()
        assert torch.equal(master.detach().to(DTYPES[grid]).float(), master.detach())
        assert torch.equal(master.detach(), weight.detach().float())
    assert not torch.equal(weight.detach(), start)


@pytest.mark.parametrize(("grid", "lr"), [("fp16", 2e-6), ("bf16", 2e-5)])
def test_steps_below_half_a_unit_arrive_in_the_mean_and_to_nearest_are_lost(grid: Grid, lr: float) -> None:
    """A weight of 0.03 has steps of 1.5e-5 in fp16 and 1.2e-4 in bf16; 60 updates of a sixth of that, all the same way."""
    n, steps = 100_000, 60
    start = torch.full((n,), 0.03).to(DTYPES[grid])
    moved = {}
    for stochastic in (grid, None):
        weight = nn.Parameter(start.clone())
        optimizer = optimizer_of([weight], stochastic=stochastic, lr=lr, weight_decay=0.0)
        for _ in range(steps):
            weight.grad = torch.ones_like(weight)  # Adam's update is then the rate itself
            optimizer.step()
        moved[stochastic] = (start.double() - weight.detach().double()).mean()
    assert float(moved[None]) == 0.0
    assert float(moved[grid]) == pytest.approx(steps * lr, rel=5e-3)


def test_the_mean_follows_fp32_weights_over_a_run() -> None:
    """400 steps towards a target: the loss of weights on either grid stays beside that of fp32 weights, to nearest in bf16 it does not."""
    target = torch.randn(4000, generator=torch.Generator().manual_seed(1)).mul(0.05)

    def final_loss(dtype: torch.dtype, stochastic: Grid | None) -> float:
        weight = nn.Parameter(torch.zeros(4000, dtype=dtype))
        optimizer = optimizer_of([weight], stochastic=stochastic, weight_decay=0.0)
        for step in range(400):
            optimizer.param_groups[0]["lr"] = 1e-3 * (1 - step / 400)
            error = weight.detach().float() - target + 0.02 * gradient_of(step, 4000)
            weight.grad = error.to(dtype)
            optimizer.step()
        return float((weight.detach().float() - target).square().mean())

    plain = final_loss(torch.float32, None)
    assert final_loss(torch.float16, "fp16") == pytest.approx(plain, rel=0.02)
    assert final_loss(torch.float32, "fp16") == pytest.approx(plain, rel=0.02)
    assert final_loss(torch.bfloat16, "bf16") < 0.8 * final_loss(torch.bfloat16, None)


def test_every_number_of_a_model_draws_its_own_noise() -> None:
    """Equal weights under equal gradients part as soon as they are rounded: across groups, parameters and chunks."""
    groups = [[nn.Parameter(torch.full((300,), 0.03)) for _ in range(2)] for _ in range(2)]
    optimizer = HalfAdamW([{"params": group} for group in groups], lr=1e-4, stochastic="bf16", seed=1)
    assert [group["flat_offset"] for group in optimizer.param_groups] == [0, 600]
    for parameter in (parameter for group in groups for parameter in group):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    found = [parameter.detach() for group in groups for parameter in group]
    for first in range(4):
        assert len(set(found[first].tolist())) == 2
        for second in range(first):
            agree = float((found[first] == found[second]).double().mean())
            assert agree < 0.95, (first, second)


@pytest.mark.parametrize("grid", ["fp16", "bf16"])
def test_partitions_draw_what_the_whole_draws(grid: Grid) -> None:
    """Two processes' shares, and stage 3's shares of shares, move as the whole tensor would: the noise knows where a number belongs."""
    n, cut = 256 * 1600, 256 * 700
    start = torch.randn(n, generator=torch.Generator().manual_seed(2)).mul(0.02)
    whole = nn.Parameter(start.clone())
    halves = [nn.Parameter(start[:cut].clone()), nn.Parameter(start[cut:].clone())]
    order = [(256 * 900, 256 * 300), (0, 256 * 10), (256 * 1200, 256 * 200)]
    pieces = nn.Parameter(torch.cat([start[first : first + count] for first, count in order]))
    one = optimizer_of([whole], stochastic=grid)
    two = [optimizer_of([half], stochastic=grid) for half in halves]
    two[0].place(halves[0], [(0, cut)])
    two[1].place(halves[1], [(cut, n - cut)])
    three = optimizer_of([pieces], stochastic=grid)
    three.place(pieces, order)
    for step in range(5):
        gradient = gradient_of(step, n)
        whole.grad, halves[0].grad, halves[1].grad = gradient, gradient[:cut], gradient[cut:]
        pieces.grad = torch.cat([gradient[first : first + count] for first, count in order])
        for optimizer in (one, *two, three):
            optimizer.step()
    assert torch.equal(torch.cat([half.detach() for half in halves]), whole.detach())
    assert torch.equal(pieces.detach(), torch.cat([whole.detach()[first : first + count] for first, count in order]))
    with pytest.raises(ValueError, match="do not add up to the 130,560 numbers"):
        three.place(pieces, order[:1])


def test_a_copy_of_an_optimizer_is_placed_as_a_whole_model() -> None:
    weight = nn.Parameter(torch.full((300,), 0.03))
    optimizer = optimizer_of([weight], stochastic="bf16")
    optimizer.place(weight, [(1000, 300)])
    copied = copy.deepcopy(optimizer)
    other = copied.param_groups[0]["params"][0]
    for parameter in (weight, other):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    copied.step()
    assert not torch.equal(weight.detach(), other.detach())


@pytest.mark.parametrize("grid", ["fp16", "bf16"])
def test_the_bound_is_kept_on_the_grid(grid: Grid) -> None:
    """ln 100 is no number of either grid: the largest one below it is the bound, and no rounding goes above."""
    scale = nn.Parameter(torch.full((1000,), 4.58).to(DTYPES[grid]))
    optimizer = optimizer_of([scale], stochastic=grid, max_value=math.log(100), lr=0.01, weight_decay=0.0)
    for _ in range(30):
        scale.grad = -torch.ones_like(scale)
        optimizer.step()
    largest = float(scale.detach().double().max())
    below = torch.nextafter(torch.tensor(largest).bfloat16(), torch.tensor(9.0).bfloat16()) if grid == "bf16" else None
    assert math.log(100) - 0.02 < largest <= math.log(100)
    assert below is None or float(below) > math.log(100)


def test_bf16_weights_on_the_fp16_grid_are_refused() -> None:
    weight = nn.Parameter(torch.zeros(4, dtype=torch.bfloat16))
    weight.grad = torch.ones_like(weight)
    with pytest.raises(ValueError, match="bf16 would round them a second time"):
        optimizer_of([weight], stochastic="fp16").step()
    with pytest.raises(ValueError, match="stochastic must be"):
        optimizer_of([weight], stochastic="fp8")


def test_the_text_tower_is_groups_of_its_own() -> None:
    model = build("tiny-vit")
    model.logit_bias = nn.Parameter(torch.full((1,), -10.0))  # as the sigmoid loss has
    names = {id(parameter): key for key, parameter in model.named_parameters()}

    def sort_out(stochastic: Grid | None) -> dict[str, set[str]]:
        groups = parameter_groups(model, 0.2, text_stochastic=stochastic)
        return {group["name"]: {names[id(parameter)] for parameter in group["params"]} for group in groups}

    together, apart = sort_out(None), sort_out("fp16")
    assert together.keys() == {"decay", "no_decay", "logit_scale"}
    assert apart["text_decay"] | apart["decay"] == together["decay"]
    assert apart["text_no_decay"] | apart["no_decay"] == together["no_decay"]
    assert all(name.startswith("visual.") for name in apart["decay"])
    assert not any(name.startswith("visual.") for name in apart["text_decay"] | apart["text_no_decay"])
    assert {"text_projection", "token_embedding.weight", "positional_embedding"} <= apart["text_decay"]
    assert {"ln_final.weight", "ln_final.bias"} <= apart["text_no_decay"]
    assert apart["logit_scale"] == together["logit_scale"] == {"logit_scale"}
    assert "logit_bias" in apart["no_decay"], "it does not decay and is not half precision"
    groups = parameter_groups(model, 0.2, text_stochastic="fp16")
    optimizer = HalfAdamW(groups, stochastic=None)
    assert {group["name"]: group["stochastic"] for group in optimizer.param_groups} == {
        "decay": None,
        "no_decay": None,
        "text_decay": "fp16",
        "text_no_decay": "fp16",
        "logit_scale": None,
    }
    assert sum(sum(parameter.numel() for parameter in group["params"]) for group in groups) == sum(
        parameter.numel() for parameter in model.parameters()
    )
