"""What decides whether a step is applied: the gradient of a loss that is no number, and the gate without ZeRO."""

import math

import pytest
import torch
from torch import nn

from trainer.objectives.clip import contrastive_loss
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


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_has_no_finite_gradient(bad: float, chunk_size: int | None) -> None:
    """Even where the gradient would be finite by itself: the step must not look like a good one."""
    images, texts = (torch.nn.functional.normalize(torch.randn(4, 8), dim=-1).requires_grad_() for _ in range(2))
    scale = torch.tensor([14.0], requires_grad=True)
    loss = contrastive_loss(images, texts, scale, chunk_size=chunk_size) + bad
    with_true_gradient(loss).backward()  # type: ignore[no-untyped-call]
    for value in (images, texts, scale):
        assert value.grad is not None
        assert not bool(value.grad.isfinite().any())


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
