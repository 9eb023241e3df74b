"""The contrastive losses of one of eight ranks, at 4,096 local pairs and a global batch of 32,768: time and memory, dense and in chunks.

    python -m tests.benchmarks.loss

Features have 768 dimensions (ViT-L/14) in fp32; one thread a core. Each figure comes from a process of its own that does, after a small
warm-up, forward and backward of the features and the scale three times; time is the median, memory the kernel's own peak of resident
bytes (VmHWM, set back before each pass) over what was resident before, so that nothing an operation allocates in between is missed.
The other seven ranks are simulated: torch's fake process group gives every collective its buffers and fills them with this rank's rows. It
adds up nothing, so that the second direction of ours, whose sums run over ranks, has another value than the peer's; tests compare values.

The peer is what open_clip does with --local-loss --gather-with-grad: autograd through dense matrices of logits. The last column is the
peak less the gradients of this rank's features and what the loss holds of all ranks' features and their gradients (autograd: both
towers'; ours: one tower's at a time). It supports: one matrix of similarities serves both directions
(trainer/objectives/clip.py), and siglip's gradients are formed in the visit that forms the logits (trainer/objectives/sharded.py).
"""

import argparse
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.distributed.nn
from torch import Tensor
from torch.nn import functional
from torch.testing._internal.distributed.fake_pg import FakeStore

from trainer.objectives.clip import contrastive_loss
from trainer.objectives.siglip import sigmoid_loss

LOCAL, WORLD, RANK, WIDTH = 4096, 8, 3, 768
PASSES = 3
MEGABYTE = 1e6
OURS = "ours"
ROWS: list[tuple[str, str, int | None]] = [
    ("clip", "autograd, dense", None),
    *(("clip", OURS, chunk) for chunk in (None, 256, 128, 64)),
    ("siglip", "autograd, dense", None),
    *(("siglip", OURS, chunk) for chunk in (None, 256, 128, 64)),
]


# ---- peers


def all_rows(rows: Tensor) -> Tensor:
    return torch.cat(torch.distributed.nn.all_gather(rows))  # type: ignore[no-untyped-call]


def dense_clip(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    targets = torch.arange(len(images)) + RANK * len(images)
    by_image = functional.cross_entropy(scale * images @ all_rows(texts).T, targets)
    by_text = functional.cross_entropy(scale * texts @ all_rows(images).T, targets)
    return (by_image + by_text) / 2


def dense_siglip(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    own = torch.arange(len(images))
    signs = torch.full((len(images), WORLD * len(images)), -1.0)
    signs[own, own + RANK * len(images)] = 1.0
    return -functional.logsigmoid(signs * (scale * images @ all_rows(texts).T + bias)).sum() / len(images)


def loss_named(kind: str, name: str, chunk: int | None) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    if name == OURS and kind == "clip":
        return lambda images, texts, scale, bias: contrastive_loss(images, texts, scale, chunk_size=chunk)
    if name == OURS:
        return lambda images, texts, scale, bias: sigmoid_loss(images, texts, scale, bias, chunk_size=chunk)
    return dense_clip if kind == "clip" else dense_siglip


# ---- one process


def resident(key: str) -> int:
    """VmRSS (now) or VmHWM (peak) of this process, in bytes."""
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key))


def measure(kind: str, name: str, chunk: int | None) -> None:
    """Print median seconds, peak bytes over the features, and the loss."""
    dist.init_process_group("fake", store=FakeStore(), rank=RANK, world_size=WORLD)
    warnings.simplefilter("ignore")  # the peers' collectives have old names
    loss_of = loss_named(kind, name, chunk)
    scale, bias = torch.tensor([1 / 0.07], requires_grad=True), torch.tensor([-10.0], requires_grad=True)
    draws = torch.Generator().manual_seed(0)

    def features(pairs: int) -> Tensor:
        return functional.normalize(torch.randn(pairs, WIDTH, generator=draws), dim=1).requires_grad_()

    torch.autograd.backward(loss_of(features(64), features(64), scale, bias))
    seconds, peaks = [], []
    for _ in range(PASSES):
        images, texts = features(LOCAL), features(LOCAL)
        with open("/proc/self/clear_refs", "w", encoding="ascii") as reset:
            reset.write("5")
        before, started = resident("VmRSS"), time.perf_counter()
        loss = loss_of(images, texts, scale, bias)
        torch.autograd.backward(loss)
        seconds.append(time.perf_counter() - started)
        peaks.append(resident("VmHWM") - before)
    print(statistics.median(seconds), max(peaks), float(loss.detach()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--row", type=int, help=argparse.SUPPRESS)
    row = parser.parse_args().row
    if row is not None:
        measure(*ROWS[row])
        return
    gathered, own = (pairs * WIDTH * 4 for pairs in (LOCAL * WORLD, LOCAL))
    print(f"local {LOCAL:,}, global {LOCAL * WORLD:,}, width {WIDTH}, fp32, {torch.get_num_threads()} threads")
    print(f"{'':<36}{'chunk':>7}{'seconds':>9}{'to dense':>10}{'peak, MB':>10}{'over features, MB':>19}{'loss':>10}")
    dense = 0.0
    for number, (kind, name, chunk) in enumerate(ROWS):
        command = [sys.executable, "-m", "tests.benchmarks.loss", "--row", str(number)]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        seconds, peak, loss = (float(word) for word in printed.split())
        if name == "autograd, dense":
            dense = seconds
        # Of all ranks' features and their gradients autograd holds both towers', where it needs them; ours one tower's at a time.
        held = 2 * gathered * (2 if name != OURS and kind == "clip" else 1) + 2 * own
        print(
            f"{f'{kind}, {name}':<36}{chunk or 'none':>7}{seconds:>9.2f}{seconds / dense:>10.2f}{peak / MEGABYTE:>10.0f}"
            f"{(peak - held) / MEGABYTE:>19.0f}{loss:>10.4f}"
        )


if __name__ == "__main__":
    main()
