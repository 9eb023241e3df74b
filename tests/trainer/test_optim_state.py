"""Optimizer states that come from elsewhere: other types are quantised at once, what does not fit is refused, nothing grows."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer.optim import HalfAdamW
from trainer.optim.blocks import dequantise

KEYS = {"moment": torch.float16, "root": torch.float16, "moment_scale": torch.float32, "root_scale": torch.float32}
COMMON = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.2}


def stepped(make: type[torch.optim.Optimizer], steps: int = 10) -> tuple[torch.optim.Optimizer, list[nn.Parameter]]:
    torch.manual_seed(3)
    weights = [nn.Parameter(torch.randn(20, 35)), nn.Parameter(torch.randn(1))]
    optimizer = make(weights, **COMMON)  # type: ignore[arg-type]
    for _ in range(steps):
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        optimizer.step()
    return optimizer, weights


def retyped(optimizer: torch.optim.Optimizer, dtypes: dict[str, torch.dtype]) -> dict[str, Any]:
    saved = copy.deepcopy(optimizer.state_dict())
    for entry in saved["state"].values():
        entry.update({key: entry[key].to(dtype) for key, dtype in dtypes.items()})
    return saved


def assert_ours(optimizer: HalfAdamW, weights: list[nn.Parameter]) -> None:
    for weight in weights:
        state = optimizer.state[weight]
        assert {key: value.dtype for key, value in state.items() if isinstance(value, Tensor)} == KEYS
        assert state["moment"].shape == state["root"].shape == weight.shape
    # 701 numbers in blocks of 256, the last block of each parameter short.
    assert optimizer.state_bytes() == 4 * 701 + 8 * (3 + 1)


@pytest.mark.parametrize("wide", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [torch.float32, torch.float64, torch.bfloat16])
def test_our_moments_in_a_wider_type_come_back_to_the_bit(wide: torch.dtype, scale: torch.dtype) -> None:
    """What torch's own loader does to them (fp32), or a bf16 flag to their scales: powers of two, so nothing is lost."""
    optimizer, weights = stepped(HalfAdamW)
    saved = retyped(optimizer, {"moment": wide, "root": wide, "moment_scale": scale, "root_scale": scale})
    again = HalfAdamW(weights, **COMMON)  # type: ignore[arg-type]
    again.load_state_dict(saved)
    assert_ours(again, weights)
    for weight in weights:
        for key in KEYS:
            assert torch.equal(again.state[weight][key], optimizer.state[weight][key])


def test_our_moments_that_a_tool_widened_in_place_are_narrowed_by_the_next_step() -> None:
    optimizer, weights = stepped(HalfAdamW)
    assert isinstance(optimizer, HalfAdamW)
    twin, others = stepped(HalfAdamW)
    for weight in weights:
        optimizer.state[weight]["moment"] = optimizer.state[weight]["moment"].float()
        optimizer.state[weight]["root_scale"] = optimizer.state[weight]["root_scale"].double()
    for weight, other in zip(weights, others, strict=True):
        weight.grad = other.grad = torch.ones_like(weight)
    optimizer.step()
    twin.step()
    assert_ours(optimizer, weights)
    for weight, other in zip(weights, others, strict=True):
        assert torch.equal(weight.detach(), other.detach())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_state_of_torchs_adamw_is_quantised_as_it_is_loaded(dtype: torch.dtype) -> None:
    full, weights = stepped(torch.optim.AdamW)
    saved = retyped(full, {"exp_avg": dtype, "exp_avg_sq": dtype})
    half = HalfAdamW(weights, max_value=7.0, **COMMON)  # type: ignore[arg-type]
    half.load_state_dict(saved)
    assert_ours(half, weights)
    assert half.param_groups[0]["max_value"] == 7.0, "what AdamW does not save stays ours"
    for number, weight in enumerate(weights):
        state, entry = half.state[weight], saved["state"][number]
        assert state["step"] == 10
        moment = dequantise(state["moment"].view(-1), state["moment_scale"], 256)
        root = dequantise(state["root"].view(-1), state["root_scale"], 256)
        torch.testing.assert_close(moment, entry["exp_avg"].float().view(-1), rtol=2**-11, atol=1e-9)
        torch.testing.assert_close(root, entry["exp_avg_sq"].double().sqrt().float().view(-1), rtol=2**-11, atol=1e-9)


def test_squares_that_only_fp64_can_hold_are_not_lost() -> None:
    weight = nn.Parameter(torch.zeros(3))
    half = HalfAdamW([weight])
    square = torch.tensor([1e-60, 4e-60, 0.0], dtype=torch.float64)
    entry = {"step": torch.tensor(3.0), "exp_avg": torch.zeros(3, dtype=torch.float64), "exp_avg_sq": square}
    half.load_state_dict({"state": {0: entry}, "param_groups": half.state_dict()["param_groups"]})
    state = half.state[weight]
    root = dequantise(state["root"], state["root_scale"], 256)
    torch.testing.assert_close(root, torch.tensor([1e-30, 2e-30, 0.0]), rtol=2**-11, atol=0.0)


def without(key: str) -> Any:
    return lambda entry: entry.pop(key)


@pytest.mark.parametrize(
    ("break_", "said"),
    [
        (lambda entry: entry.update(moment=entry["moment"].reshape(35, 20)), r"shapes \[35, 20\] and \[20, 35\]"),
        (lambda entry: entry.update(root=entry["root"].reshape(-1)[:-1]), "'root' of parameter 0 has 699 numbers"),
        (lambda entry: entry.update(root_scale=entry["root_scale"][:-1]), "'root_scale' of parameter 0 has 2 numbers"),
        (lambda entry: entry.update(moment_scale=entry["moment_scale"].half()), "is fp16, which cannot hold it"),
        (lambda entry: entry.update(max_exp_avg_sq=entry["root"]), "has .*'max_exp_avg_sq'.*; known are"),
        (lambda entry: entry.update(exp_avg=entry["moment"]), "has .*'exp_avg'.*; known are"),
        (without("root"), r"has \['moment', 'moment_scale', 'root_scale'\]; known are"),
        (without("moment_scale"), "known are"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(break_: Any, said: str) -> None:
    optimizer, weights = stepped(HalfAdamW)
    saved = copy.deepcopy(optimizer.state_dict())
    break_(saved["state"][0])
    with pytest.raises(ValueError, match=said):
        HalfAdamW(weights, **COMMON).load_state_dict(saved)  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq"])
def test_a_foreign_state_of_another_shape_is_refused(key: str) -> None:
    full, weights = stepped(torch.optim.AdamW)
    saved = copy.deepcopy(full.state_dict())
    saved["state"][0][key] = saved["state"][0][key].T.contiguous()
    with pytest.raises(ValueError, match=rf"'{key}' of parameter 0 .* shapes \[35, 20\] and \[20, 35\]"):
        HalfAdamW(weights, **COMMON).load_state_dict(saved)  # type: ignore[arg-type]
