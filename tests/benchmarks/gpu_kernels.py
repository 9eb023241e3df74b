"""The optimizer's step, attention and the contrastive loss on one GPU, against what its memory can do and against their peers.

    python -m tests.benchmarks.gpu_kernels [optimizer] [attention] [loss] [code]

code: what Triton's compiler makes of the fused step and of short attention for a Hopper GPU, which needs none: instructions each (all that
  there are, also those that are rarely run; a number of the step's, a place and head of attention's), registers, bytes spilled, loads and
  stores of 16 bytes among all.

optimizer: one step over a flat partition as large as ViT-L/14 (427,616,513 numbers, fp32, in 300 spans as ZeRO leaves them), the median of
  twenty: the fused kernel, the PyTorch version (`trainer/optim/update.py`), torch.optim.AdamW(fused=True) with fp32 moments. Bytes are
  those that must be read and written once: 20.06 a number of ours, 28 of AdamW's. The measure is a copy of 4 GB in the same call, bytes
  read and written counted. Fused and PyTorch version must have the same bits after three steps. The PyTorch version's figure has Python in
  it: its thousands of operations are more than can be queued before the device begins.
attention: forward and backward in bf16 from the packed projection to its packed gradient, for pictures, full texts and captions in a group
  of 18 places, as many as make 157 million numbers of the residual: our short attention, torch's FlashAttention, and cuDNN's, which is
  otherwise left out (`trainer.models`). Bytes are those that must be read and written once, 11 numbers for one of the residual's. "apart"
  is the distance of output or gradient from fp64's, in the first and last rows; ours must also have the same bits each time.
loss: forward and backward of the features and the scale in fp32, 512 dimensions, dense and in chunks, beside open_clip's way (autograd
  through dense matrices) at 4,096 and 32,768 pairs; memory is the peak over the features and their gradients. Chunks are shorter than the
  batch: one of its size is the dense way.

They decide whether the fused step stays (bar: 80 % of the copy), whether short attention becomes what is done without a key (bar: faster
than both others at 18, 50 and 77 places, and `gpu_train` faster with it), and whether a kernel of our own for the loss is worth writing: it
would have to beat matrix products in fp32.
"""

import argparse
import functools
import statistics
import sys
import traceback
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.hollow_gpu import launched
from tests.trainer import compiled
from trainer.models import short_attention
from trainer.objectives.clip import contrastive_loss
from trainer.optim import update
from trainer.optim.blocks import block_count
from trainer.optim.rounding import Span

NUMBERS, SPANS, BLOCK = 427_616_513, 300, 256
BYTES, ADAMW_BYTES = 20 + 16 / BLOCK, 28.0
COPIED = 4 << 30
WANTED_SHARE = 0.8
REPEATS = 20
CYCLES = 20_000_000
"""About 10 ms."""
WIDTH = 512
SHAPES = {
    "pictures of ViT-B/32": (50, 12, False),
    "pictures of ViT-B/16": (197, 12, False),
    "pictures of ViT-L/14": (257, 16, False),
    "full texts": (77, 8, True),
    "captions in a group": (18, 8, True),
}
"""Places, heads, and whether a place sees none behind it."""
RESIDUAL = 4096 * 50 * 768
"""Numbers."""
SOME = [0, 1, -2, -1]
"""Rows that are compared with fp64."""
MOST_APART = 2**-7
"""Of bf16: two roundings."""
NUMBERS_OF_ATTENTION = 4 + 7
"""For each of the residual's: queries, keys, values and output; these three and the output's gradient, and their gradients."""


def seconds_of(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median by events, after two rounds of warm-up. The device sleeps meanwhile, so that launches are not timed."""
    found: list[float] = []
    for _ in range(repeats + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda._sleep(CYCLES)  # type: ignore[no-untyped-call]
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        found.append(start.elapsed_time(end) / 1000)
    return statistics.median(found[2:])


def copy_rate() -> float:
    """Bytes a second that copying reads and writes."""
    source, target = (torch.empty(COPIED, dtype=torch.uint8, device="cuda") for _ in range(2))
    return 2 * COPIED / seconds_of(functools.partial(target.copy_, source))


# ---- code


def code() -> bool:
    """Whether nothing is spilled."""
    import triton

    from trainer.models.short_attention_kernels import _warps
    from trainer.optim import fused

    numbers = fused._TILE / (32 * fused._WARPS)  # of a thread
    asked: dict[str, tuple[compiled.Request, float]] = {}
    for onto, name in ((0, "fp32"), (1, "fp32 on the fp16 grid"), (2, "bf16 on the bf16 grid")):
        request = compiled.fused_step(weights="bf16" if name.startswith("bf16") else "fp32", onto=onto)
        asked[f"step, {name}"] = request, numbers
    kernels: tuple[Literal["_forward", "_backward"], ...] = ("_forward", "_backward")
    for kernel in kernels:
        for tile in (16, 32, 64, 128):
            places = tile / (32 * _warps(tile))  # of a thread
            for causal in (True, False):
                name = f"attention{kernel.replace('_', ', ')}, {tile}{', causal' if causal else ''}"
                asked[name] = compiled.short_attention(kernel, tile, causal=causal), places
    print(
        f"Triton {triton.__version__}, sm_90{'':<21}{'instructions each':>23}{'registers':>11}{'spilled':>9}{'16 bytes':>10}{'of':>5}"
    )
    spilled = 0
    cubins = compiled.compiled("cubin", [request for request, _ in asked.values()])
    for (name, (_, each)), cubin in zip(asked.items(), cubins, strict=True):
        found = compiled.read_cubin(cubin)
        wide = sum(one.endswith(".128") for one in found.moves)
        print(
            f"{name:<34}{found.instructions / each:>23.1f}{found.registers:>11}{found.stack:>9}{wide:>10}{len(found.moves):>5}"
        )
        spilled += found.stack
    return not spilled


# ---- optimizer


def flat_of(n: int) -> update.Flat:
    draws = torch.Generator("cuda").manual_seed(0)

    def drawn(size: float) -> Tensor:
        return torch.randn(n, generator=draws, device="cuda") * size

    blocks = block_count(n, BLOCK)
    halves = [torch.zeros(n, dtype=torch.float16, device="cuda") for _ in range(2)]
    scales = [torch.ones(blocks, device="cuda") for _ in range(2)]
    return update.Flat(drawn(0.02), drawn(1e-4), halves[0], scales[0], halves[1], scales[1])


def rule_of(step: int) -> update.Rule:
    late = (1 - 0.98**step) ** 0.5
    return update.Rule(
        0.9, 0.98, 1 - 4e-4 * 0.2, 4e-4 * late / (1 - 0.9**step), 1e-6 * late, None, None, BLOCK, seed=1, step=step
    )


def spans_of(n: int) -> list[Span]:
    """Two groups of parameters lie in turn in the model, and ZeRO puts one of them together: every second part is here."""
    size = n // SPANS
    counts = [*[size] * (SPANS - 1), n - size * (SPANS - 1)]
    return [(2 * number * size, count) for number, count in enumerate(counts)]


def optimizer() -> bool:
    """Whether the fused step reaches its share of the copy, with the PyTorch version's bits."""
    from trainer.optim import fused  # needs Triton

    copy, spans = copy_rate(), spans_of(NUMBERS)
    ours, plain = flat_of(NUMBERS), flat_of(NUMBERS)
    for step in range(1, 4):
        fused.update(ours, rule_of(step), spans)
        update.update(plain, rule_of(step), spans)
    apart = {name: int((getattr(ours, name) != getattr(plain, name)).sum()) for name in update.Flat._fields}
    same = not any(apart.values())
    print(f"{torch.cuda.get_device_name()}, copy {copy / 1e12:.2f} TB/s; {NUMBERS:,} numbers; same bits: {same}")
    if not same:
        print(f"numbers that are not the same: {apart}")
    work: dict[str, tuple[Callable[[], object], float]] = {
        "fused": (functools.partial(fused.update, ours, rule_of(4), spans), BYTES),
        "PyTorch version": (functools.partial(update.update, plain, rule_of(4), spans), BYTES),
        "torch.optim.AdamW, fused": (adamw(NUMBERS).step, ADAMW_BYTES),
    }
    print(f"{'':<28}{'ms':>9}{'bytes a number':>16}{'TB/s':>8}{'of the copy':>13}")
    shares = {}
    for name, (step_of, needed) in work.items():
        seconds = seconds_of(step_of)
        rate = NUMBERS * needed / seconds
        shares[name] = rate / copy
        print(f"{name:<28}{seconds * 1e3:>9.2f}{needed:>16.2f}{rate / 1e12:>8.2f}{rate / copy:>13.1%}")
    met = shares["fused"] >= WANTED_SHARE
    print(f"fused: {shares['fused']:.1%} of the copy, {WANTED_SHARE:.0%} is asked: {'met' if met else 'SHORT'}")
    return same and met


def adamw(n: int) -> torch.optim.Optimizer:
    weights = torch.randn(n, device="cuda").requires_grad_()
    weights.grad = torch.randn(n, device="cuda") * 1e-4
    return torch.optim.AdamW([weights], lr=4e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2, fused=True)


# ---- attention


def own(packed: Tensor, causal: bool) -> Tensor:
    out: Tensor = short_attention.short_attention(packed, causal)
    return out


def of_torch(packed: Tensor, causal: bool) -> Tensor:
    """As `SelfAttention` asks torch for it."""
    q, k, v = packed.permute(2, 0, 3, 1, 4)
    return functional.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)


ATTENTION = {
    "short attention": (own, SDPBackend.FLASH_ATTENTION),
    "FlashAttention": (of_torch, SDPBackend.FLASH_ATTENTION),
    "cuDNN": (of_torch, SDPBackend.CUDNN_ATTENTION),
}
"""How it is computed, and what torch may take for it."""


def attention() -> bool:
    """Whether short attention works, is within two roundings of fp64's, and has the same bits each time."""
    copy, agree = copy_rate(), True
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, copy {copy / 1e12:.2f} TB/s")
    print(f"{'':<22}{'':<18}{'places':>7}{'ms':>9}{'forward':>9}{'TB/s':>8}{'of the copy':>13}{'apart':>10}")
    for what, (length, heads, causal) in SHAPES.items():
        rows = RESIDUAL // (length * heads * 64)
        draws = torch.Generator("cuda").manual_seed(0)
        packed = torch.randn(rows, length, 3, heads, 64, generator=draws, device="cuda", dtype=torch.bfloat16)
        gradient = torch.randn(rows, length, heads * 64, generator=draws, device="cuda", dtype=torch.bfloat16)
        true = out_and_gradient(of_torch, packed[SOME].double(), gradient[SOME].double(), causal, SDPBackend.MATH)
        for name, (way, backend) in ATTENTION.items():
            if way is own and length > short_attention.LONGEST:
                continue
            both = functools.partial(out_and_gradient, way, packed, gradient, causal, backend)
            try:
                found, again = both(), both()
                with torch.no_grad(), sdpa_kernel(backend):
                    forward = seconds_of(functools.partial(way, packed, causal))
                seconds = seconds_of(both)
            except Exception as error:  # noqa: BLE001 - Triton's are of many kinds, and the others are measured all the same
                print(f"{what:<22}{name:<18}{length:>7}   FAILED: {str(error)[:200]}")
                agree &= way is not own
                continue
            error_of_way = max(
                float((one[SOME] - exact).norm() / exact.norm()) for one, exact in zip(found, true, strict=True)
            )
            rate = packed.numel() / 3 * NUMBERS_OF_ATTENTION * 2 / seconds
            print(
                f"{what:<22}{name:<18}{length:>7}{seconds * 1e3:>9.2f}{forward * 1e3:>9.2f}{rate / 1e12:>8.2f}{rate / copy:>13.1%}"
                f"{error_of_way:>10.1e}"
            )
            if way is own:
                agree &= all(
                    torch.equal(one, other) and bool(one.isfinite().all())
                    for one, other in zip(found, again, strict=True)
                )
                agree &= error_of_way < MOST_APART
    return agree


def out_and_gradient(
    way: Callable[[Tensor, bool], Tensor], packed: Tensor, gradient: Tensor, causal: bool, backend: SDPBackend
) -> tuple[Tensor, Tensor]:
    packed = packed.detach().requires_grad_()
    with sdpa_kernel(backend):
        out = way(packed, causal)
    return out.detach(), torch.autograd.grad(out, packed, gradient)[0]


# ---- loss


def dense(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """As open_clip's ClipLoss on one device."""
    targets = torch.arange(len(images), device=images.device)
    logits = scale * images @ texts.T
    return (functional.cross_entropy(logits, targets) + functional.cross_entropy(scale * texts @ images.T, targets)) / 2


class Way(NamedTuple):
    """A loss, how many products of [pairs, WIDTH, pairs] it needs, forward and backward, and the rows of a chunk, fewer than the pairs."""

    loss: Callable[[Tensor, Tensor, Tensor], Tensor]
    products: int
    rows: int | None = None


WAYS = {
    "autograd, dense": Way(dense, 6),
    "ours, dense": Way(contrastive_loss, 3),
    "ours, 4096 rows": Way(functools.partial(contrastive_loss, chunk_size=4096), 4, 4096),
    "ours, 512 rows": Way(functools.partial(contrastive_loss, chunk_size=512), 4, 512),
}


def gradients(way: Way, images: Tensor, texts: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(way.loss(images, texts, scale), (images, texts, scale))


def loss() -> bool:
    """Whether ours has the peer's gradients."""
    print(f"{'pairs':>7} {'':<18}{'ms':>9}{'TFLOP/s':>9}{'peak, MB':>10}{'apart':>10}")
    agree = True
    for pairs in (4096, 32_768):
        draws = torch.Generator("cuda").manual_seed(0)
        drawn = (torch.randn(pairs, WIDTH, generator=draws, device="cuda") for _ in range(2))
        images, texts = (functional.normalize(one, dim=1).requires_grad_() for one in drawn)
        scale = torch.tensor([1 / 0.07], device="cuda", requires_grad=True)
        true = gradients(WAYS["autograd, dense"], images, texts, scale)
        for name, way in WAYS.items():
            if way.rows is not None and way.rows >= pairs:
                continue
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            found = gradients(way, images, texts, scale)
            peak = torch.cuda.max_memory_allocated() - before - sum(one.nbytes for one in found)
            apart = max(float((one - other).norm() / other.norm()) for one, other in zip(found, true, strict=True))
            agree &= apart < 1e-4
            seconds = seconds_of(functools.partial(gradients, way, images, texts, scale), 5)
            rate = way.products * 2 * pairs**2 * WIDTH / seconds
            print(f"{pairs:>7,} {name:<18}{seconds * 1e3:>9.2f}{rate / 1e12:>9.1f}{peak / 1e6:>10.0f}{apart:>10.1e}")
    return agree


PARTS = {"optimizer": optimizer, "attention": attention, "loss": loss, "code": code}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], default=[])
    parts = parser.parse_args().parts or list(PARTS)
    if not torch.cuda.is_available():
        parts = [part for part in parts if part == "code"]
        print("no GPU here: only code that is compiled for one")
    launched.tell_if_hollow()
    met = True
    for part in parts:
        try:
            met &= PARTS[part]()
        except Exception:  # noqa: BLE001 - the other parts are measured all the same
            traceback.print_exc()
            met = False
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
