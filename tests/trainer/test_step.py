"""What decides whether a step is applied: the gradient of a loss that is no number, the gate without ZeRO, the loss scaler's state."""

import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from trainer.checkpoint import partitions
from trainer.zero import FiniteGate, with_true_gradient


def weights(*gradients: list[float]) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    parameters = [nn.Parameter(torch.ones(len(gradient))) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = torch.tensor(gradient)
    return parameters, torch.optim.SGD(parameters, lr=1.0)


@pytest.mark.parametrize("value", [3.7, -1e-30, 0.0])
def test_a_finite_loss_and_its_gradient_stay_what_they_are(value: float) -> None:
    start = torch.tensor([value, 2.0])
    plain, through = start.clone().requires_grad_(), start.clone().requires_grad_()
    loss = (plain * torch.tensor([1.0, 3.0])).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    same = with_true_gradient((through * torch.tensor([1.0, 3.0])).sum())
    same.backward()  # type: ignore[no-untyped-call]
    assert torch.equal(same, loss)
    assert plain.grad is not None
    assert through.grad is not None
    assert torch.equal(through.grad, plain.grad)


def test_a_loss_that_is_not_finite_has_no_finite_gradient() -> None:
    """exp overflows to infinity where its own gradient, cut off by clamp, would be zero: the step must not look like a good one."""
    x = torch.tensor([200.0], requires_grad=True)
    loss = x.clamp(max=150.0).exp().sum()
    assert not math.isfinite(float(loss.detach()))
    with_true_gradient(loss).backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert not bool(x.grad.isfinite().any())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_without_zero_a_gradient_that_is_not_finite_moves_nothing(bad: float) -> None:
    parameters, optimizer = weights([1.0, 2.0], [bad])
    gate = FiniteGate(clipping=1.0)
    optimizer.register_step_pre_hook(gate)
    optimizer.step()
    assert not math.isfinite(gate.norm)
    assert all(torch.equal(parameter.detach(), torch.ones_like(parameter)) for parameter in parameters)


@pytest.mark.parametrize("clipping", [0.0, 1.0, 100.0])
def test_without_zero_gradients_are_clipped_as_torch_does(clipping: float) -> None:
    ours, optimizer = weights([3.0, 4.0], [12.0])
    theirs, reference = weights([3.0, 4.0], [12.0])
    gate = FiniteGate(clipping)
    optimizer.register_step_pre_hook(gate)
    optimizer.step()
    if clipping:
        nn.utils.clip_grad_norm_(theirs, clipping)
    reference.step()
    assert gate.norm == pytest.approx(13.0), "before clipping"
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_a_loss_scaler_goes_on_where_it_stood() -> None:
    """DeepSpeed's own scaler, which a CPU can hold but not use."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    def engine_with(start: float) -> Any:
        scaler = DynamicLossScaler(start, 4, 1.0, 2, False, raise_error_at_min_scale=False)
        return SimpleNamespace(optimizer=SimpleNamespace(loss_scaler=scaler))

    def scales(engine: Any, overflows: str) -> list[float]:
        found = []
        for sign in overflows:
            engine.optimizer.loss_scaler.update_scale(sign == "x")
            found.append(engine.optimizer.loss_scaler.cur_scale)
        return found

    first, second = engine_with(2.0**16), engine_with(2.0)
    scales(first, "xx..x")
    saved = partitions.loss_scaler(first)
    assert saved is not None
    partitions.set_loss_scaler(second, json.loads(json.dumps(saved)))
    rest = "x.....x.x......."
    assert scales(second, rest) == scales(first, rest)
    assert partitions.loss_scaler(SimpleNamespace(optimizer=SimpleNamespace())) is None  # type: ignore[arg-type]
