"""The losses against autograd over the whole batch, in one process and in two that talk through gloo.

The two-process cases run in one run of this very file as a program; each process writes its averaged gradients, and the test compares
them with one process that sees the full batch.
"""

import math
import os
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from tests.trainer.allocated import most_at_once
from tests.trainer.gradients import NAIVE
from tests.trainer.launching import together_module
from trainer.objectives import OBJECTIVES

WORLD, LOCAL = 2, 5
KINDS = tuple(OBJECTIVES)
CASES = [
    (kind, dtype, chunk) for kind in KINDS for dtype in (torch.float32, torch.float64) for chunk in (None, 1, 3, 5, 64)
]


class Towers(nn.Module):
    """Two linear towers, a scale and perhaps a bias: enough parameters for a wrong cross term to show."""

    def __init__(self, kind: str, dtype: torch.dtype) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.image = nn.Parameter(torch.randn(6, 4, dtype=torch.float64, generator=generator).to(dtype))
        self.text = nn.Parameter(torch.randn(6, 4, dtype=torch.float64, generator=generator).to(dtype))
        self.logit_scale = nn.Parameter(torch.full((1,), 2.5, dtype=dtype))
        self.logit_bias = nn.Parameter(torch.full((1,), -3.0, dtype=dtype)) if kind == "siglip" else None

    def forward(self, batch: Tensor) -> tuple[Tensor, ...]:
        images = functional.normalize(batch[0] @ self.image, dim=-1)
        texts = functional.normalize(batch[1] @ self.text, dim=-1)
        return images, texts, self.logit_scale.exp(), *(() if self.logit_bias is None else (self.logit_bias,))


def whole_batch(dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(8)
    return torch.randn(2, WORLD * LOCAL, 6, dtype=torch.float64, generator=generator).to(dtype)


def gradients(model: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def relative(found: Tensor, true: Tensor) -> float:
    return float((found - true).norm() / true.norm())


@pytest.mark.parametrize(("kind", "dtype", "chunk"), CASES)
def test_one_process_equals_the_naive_loss(kind: str, dtype: torch.dtype, chunk: int | None) -> None:
    ours, naive = Towers(kind, dtype), Towers(kind, torch.float64)
    limit = 1e-12 if dtype == torch.float64 else 1e-5
    loss = OBJECTIVES[kind].loss(*ours(whole_batch(dtype)), chunk_size=chunk)
    expected = NAIVE[kind](*naive(whole_batch(torch.float64)))
    torch.autograd.backward(loss)
    torch.autograd.backward(expected)
    assert loss.shape == ()
    assert relative(loss.detach().double(), expected.detach()) < limit
    for found, true in zip(gradients(ours), gradients(naive), strict=True):
        assert relative(found.double(), true) < limit


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frozen", ["image", "text"])
@pytest.mark.parametrize("chunk", [None, 2])
def test_a_frozen_tower_gets_no_gradient_and_the_other_its_own(kind: str, frozen: str, chunk: int | None) -> None:
    whole, locked = Towers(kind, torch.float64), Towers(kind, torch.float64)
    getattr(locked, frozen).requires_grad_(False)
    for model in (whole, locked):
        outputs = model(whole_batch(torch.float64))
        torch.autograd.backward(OBJECTIVES[kind].loss(*outputs, chunk_size=chunk))
    expected = {name: parameter.grad for name, parameter in whole.named_parameters()}
    for name, parameter in locked.named_parameters():
        assert (parameter.grad is None) == (name == frozen)
        assert parameter.grad is None or torch.equal(parameter.grad, expected[name])  # type: ignore[arg-type]
    with torch.no_grad():
        quiet = OBJECTIVES[kind].loss(*outputs, chunk_size=chunk)
    assert not quiet.requires_grad


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [None, 2])
def test_large_margins_neither_overflow_nor_vanish(kind: str, chunk: int | None) -> None:
    loss, own = OBJECTIVES[kind].loss, kind == "siglip"
    far, bias = torch.eye(3), [torch.zeros(1)] if own else []
    wrong = float(loss(far, -far, torch.tensor(500.0), *bias, chunk_size=chunk))
    assert wrong == pytest.approx(500 + (2 if own else 1) * math.log(2), rel=1e-5)
    # Pairs that stand out by a margin of 15 have slopes of 1e-7, which must not be those of a rounding error.
    near, true = torch.eye(3, requires_grad=True), torch.eye(3, dtype=torch.float64, requires_grad=True)
    scale, bias = (torch.tensor(30.0), [torch.tensor(-15.0)]) if own else (torch.tensor(15.0), [])
    (found,) = torch.autograd.grad(loss(near, near.detach(), scale, *bias, chunk_size=chunk), near)
    (expected,) = torch.autograd.grad(NAIVE[kind](true, true.detach(), scale.double(), *bias), true)
    assert relative(found.double(), expected) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [None, 2])
def test_autocast_does_not_touch_the_similarities(kind: str, chunk: int | None) -> None:
    images, texts, _, *bias = Towers(kind, torch.float32)(whole_batch(torch.float32))
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = OBJECTIVES[kind].loss(images, texts, torch.tensor([100.0]), *bias, chunk_size=chunk)
        found.append([loss, *torch.autograd.grad(loss, [images, texts], retain_graph=True)])
    assert all(torch.equal(plain, cast) for plain, cast in zip(*found, strict=True))


def test_a_loss_can_be_differentiated_again_and_scaled() -> None:
    """What a loss scaler and `retain_graph` do; what is kept for backward must not be changed by it."""
    images, texts, scale = Towers("clip", torch.float64)(whole_batch(torch.float64))
    loss = OBJECTIVES["clip"].loss(images, texts, scale, chunk_size=3)
    (once,) = torch.autograd.grad(loss * 2**16, images, retain_graph=True)
    (again,) = torch.autograd.grad(loss, images)
    assert torch.equal(once, again * 2**16)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [None, 64])
def test_two_blocks_of_similarities_are_the_most_that_is_in_memory(kind: str, chunk: int | None) -> None:
    """By torch's record of its allocator; `--check` counts on it. Features and what is of one row or column are small beside them."""
    loss, own = OBJECTIVES[kind].loss, () if OBJECTIVES[kind].logit_bias is None else (torch.tensor([-10.0]),)
    pairs = 512
    images, texts = (functional.normalize(torch.randn(pairs, 8), dim=-1).requires_grad_() for _ in range(2))
    most = most_at_once(lambda: loss(images, texts, torch.tensor([10.0]), *own, chunk_size=chunk))
    assert 1.5 <= most / (4 * (chunk or pairs) * pairs) <= 2.6


def test_wrong_shapes_are_refused() -> None:
    loss = OBJECTIVES["clip"].loss
    with pytest.raises(ValueError, match=r"both be \[b, E\]"):
        loss(torch.zeros(3, 4), torch.zeros(2, 4), torch.ones(1))
    with pytest.raises(ValueError, match="chunk_size"):
        loss(torch.zeros(3, 4), torch.zeros(3, 4), torch.ones(1), chunk_size=0)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[list[list[Tensor]]]:
    """For each rank and case: the mean loss and the gradients, averaged over ranks as DDP and ZeRO do."""
    folder = tmp_path_factory.mktemp("gloo")
    finished = together_module(WORLD, __name__, str(folder))
    assert finished.code == 0, finished.output
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_two_processes_give_the_gradient_of_the_whole_batch(case: int, two_processes: list[list[list[Tensor]]]) -> None:
    kind, dtype, _ = CASES[case]
    naive = Towers(kind, torch.float64)
    loss = NAIVE[kind](*naive(whole_batch(torch.float64)))
    torch.autograd.backward(loss)
    for rank in range(WORLD):
        for found, true in zip(two_processes[rank][case], [loss.detach(), *gradients(naive)], strict=True):
            assert relative(found.double(), true) < (1e-10 if dtype == torch.float64 else 1e-6)


def run_rank(folder: Path, rank: int) -> None:
    """One of the two processes: every case, gradients averaged over ranks."""
    warnings.simplefilter("error")
    dist.init_process_group("gloo", init_method=(folder / "meet").as_uri(), rank=rank, world_size=WORLD)
    results = []
    for kind, dtype, chunk in CASES:
        model = Towers(kind, dtype)
        own = whole_batch(dtype)[:, rank * LOCAL : (rank + 1) * LOCAL]
        loss = OBJECTIVES[kind].loss(*model(own), chunk_size=chunk)
        torch.autograd.backward(loss)
        found = [loss.detach(), *gradients(model)]
        for tensor in found:
            dist.all_reduce(tensor)
            tensor /= WORLD
        results.append(found)
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    run_rank(Path(sys.argv[1]), int(os.environ["RANK"]))
