"""The contrastive loss against autograd over the whole batch, in one process and in two that talk through gloo.

The two-process cases run in one launch of this very file as a program; each process writes its averaged gradients, and the test compares
them with one process that sees the full batch.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from trainer.objectives.clip import contrastive_loss

WORLD, LOCAL = 2, 5
CASES = [(dtype, chunk) for dtype in (torch.float32, torch.float64) for chunk in (None, 1, 3, 5, 64)]


class Towers(nn.Module):
    """Two linear towers and a scale: enough parameters for a wrong cross term to show."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.image = nn.Parameter(torch.randn(6, 4, dtype=torch.float64, generator=generator).to(dtype))
        self.text = nn.Parameter(torch.randn(6, 4, dtype=torch.float64, generator=generator).to(dtype))
        self.logit_scale = nn.Parameter(torch.full((1,), 2.5, dtype=dtype))

    def forward(self, batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        images = functional.normalize(batch[0] @ self.image, dim=-1)
        texts = functional.normalize(batch[1] @ self.text, dim=-1)
        return images, texts, self.logit_scale.exp()


def whole_batch(dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(8)
    return torch.randn(2, WORLD * LOCAL, 6, dtype=torch.float64, generator=generator).to(dtype)


def naive_loss(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """The paper's figure 3, with the softmax written out."""
    logits = images @ texts.T * scale
    by_image = logits.exp().sum(1).log() - logits.diag()
    by_text = logits.exp().sum(0).log() - logits.diag()
    return (by_image.mean() + by_text.mean()) / 2


def gradients(model: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def relative(found: Tensor, true: Tensor) -> float:
    return float((found - true).norm() / true.norm())


@pytest.mark.parametrize(("dtype", "chunk"), CASES)
def test_one_process_equals_the_naive_loss(dtype: torch.dtype, chunk: int | None) -> None:
    ours, naive, limit = Towers(dtype), Towers(torch.float64), 1e-12 if dtype == torch.float64 else 1e-5
    loss = contrastive_loss(*ours(whole_batch(dtype)), chunk_size=chunk)
    expected = naive_loss(*naive(whole_batch(torch.float64)))
    loss.backward()  # type: ignore[no-untyped-call]
    expected.backward()  # type: ignore[no-untyped-call]
    assert loss.shape == ()
    assert relative(loss.detach().double(), expected.detach()) < limit
    for found, true in zip(gradients(ours), gradients(naive), strict=True):
        assert relative(found.double(), true) < limit


@pytest.mark.parametrize("chunk", [None, 2])
def test_frozen_towers_evaluation_and_large_scales(chunk: int | None) -> None:
    model = Towers(torch.float64)
    model.image.requires_grad_(False)
    images, texts, scale = model(whole_batch(torch.float64))
    contrastive_loss(images, texts, scale, chunk_size=chunk).backward()  # type: ignore[no-untyped-call]
    assert model.image.grad is None
    assert model.text.grad is not None
    with torch.no_grad():
        quiet = contrastive_loss(images, texts, scale, chunk_size=chunk)
    assert not quiet.requires_grad
    far = torch.eye(3, dtype=torch.float32)
    assert float(contrastive_loss(far, -far, torch.tensor(500.0), chunk_size=chunk)) == pytest.approx(500.0, rel=0.01)


@pytest.mark.parametrize("chunk", [None, 2])
def test_autocast_does_not_touch_the_similarities(chunk: int | None) -> None:
    images, texts, _ = Towers(torch.float32)(whole_batch(torch.float32))
    scale = torch.tensor([100.0])
    plain = contrastive_loss(images, texts, scale, chunk_size=chunk)
    with torch.autocast("cpu", torch.bfloat16):
        cast = contrastive_loss(images, texts, scale, chunk_size=chunk)
    assert torch.equal(plain, cast)


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"both be \[b, E\]"):
        contrastive_loss(torch.zeros(3, 4), torch.zeros(2, 4), torch.ones(1))
    with pytest.raises(ValueError, match="chunk_size"):
        contrastive_loss(torch.zeros(3, 4), torch.zeros(3, 4), torch.ones(1), chunk_size=0)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[list[list[Tensor]]]:
    """For each rank and case: the mean loss and the gradients, averaged over ranks as DDP and ZeRO do."""
    folder = tmp_path_factory.mktemp("gloo")
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", __file__, str(folder)]
    ranks = [subprocess.Popen([*command, str(rank)], env=environment, cwd=root) for rank in range(WORLD)]
    try:
        assert [process.wait(120) for process in ranks] == [0] * WORLD
    finally:
        for process in ranks:
            process.kill()
            process.wait(10)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_two_processes_give_the_gradient_of_the_whole_batch(case: int, two_processes: list[list[list[Tensor]]]) -> None:
    dtype, _ = CASES[case]
    naive = Towers(torch.float64)
    loss = naive_loss(*naive(whole_batch(torch.float64)))
    loss.backward()  # type: ignore[no-untyped-call]
    for rank in range(WORLD):
        for found, true in zip(two_processes[rank][case], [loss.detach(), *gradients(naive)], strict=True):
            assert relative(found.double(), true) < (1e-10 if dtype == torch.float64 else 1e-6)


def run_rank(folder: Path, rank: int) -> None:
    """One of the two processes: every case, gradients averaged over ranks."""
    dist.init_process_group("gloo", init_method=(folder / "meet").as_uri(), rank=rank, world_size=WORLD)
    results = []
    for dtype, chunk in CASES:
        model = Towers(dtype)
        own = whole_batch(dtype)[:, rank * LOCAL : (rank + 1) * LOCAL]
        loss = contrastive_loss(*model(own), chunk_size=chunk)
        loss.backward()  # type: ignore[no-untyped-call]
        found = [loss.detach(), *gradients(model)]
        for tensor in found:
            dist.all_reduce(tensor)
            tensor /= WORLD
        results.append(found)
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    run_rank(Path(sys.argv[1]), int(sys.argv[2]))
