"""One model's forward and backward for the benchmark `towers`: what a pair costs on a CPU. Run by the interpreter that has the library.

    PYTHON -m tests.benchmarks.data.towers_case ours|open_clip MODEL none|activation|elementwise|blocks \
        eager|compiled full|captions PAIRS MORE

bf16 weights. Memory: the most that is held at one time between the start of a forward pass and the end of its backward pass, as
torch's allocator is asked for it, for PAIRS pairs and for MORE; the difference is that of the pairs between, so that weights, gradients and
whatever else does not grow are not in it, where PAIRS are so many that the fullest moment is not the one at which all gradients are there.
Time: the median of three passes of MORE pairs. Prints bytes a pair, seconds a pair, and the parameters of the model.
"""

import contextlib
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from tests.benchmarks.data.gpu_case import Case, drawn_texts, text_lengths
from tests.trainer.allocated import most_at_once

DTYPE = torch.bfloat16
Forward = Callable[[Tensor, Tensor, list[int]], tuple[Tensor, ...]]
"""Of pixels, ids and the ends of the texts."""


def ours(name: str, checkpoint: str, *, compiled: bool) -> tuple[torch.nn.Module, Forward]:
    import numpy as np

    from trainer.data.lengths import cost_of_a_group, grouped
    from trainer.models import build

    model = build(name, checkpoint_activations=checkpoint).to(DTYPE)  # type: ignore[arg-type]
    if compiled:
        model.compile_blocks()

    def forward(pixels: Tensor, ids: Tensor, ends: list[int]) -> tuple[Tensor, ...]:
        groups = grouped(np.array(ends), cost_of_a_group("cpu", compiled=True, as_many_on_all=False))
        outputs: tuple[Tensor, ...] = model(pixels, *(ids[torch.from_numpy(one.rows), : one.length] for one in groups))
        return outputs

    return model, forward


def open_clip(name: str, checkpoint: str, *, compiled: bool) -> tuple[torch.nn.Module, Forward]:
    import open_clip as library

    model = library.create_model(name.replace("/", "-"), precision="pure_bf16", device="cpu", force_quick_gelu=True)
    model.train()
    if checkpoint != "none":
        model.set_grad_checkpointing()
    whole = torch.compile(model) if compiled else model
    return model, lambda pixels, ids, _: whole(pixels, ids)[:3]


def measured(forward: Forward, pairs: int, *, captions: bool) -> tuple[int, float]:
    """Bytes and seconds of one step."""
    case = Case("", pairs, "", captions=captions)
    ends, ids = text_lengths(case), drawn_texts(case, 49_408)
    pixels = torch.randn(pairs, 3, 224, 224, dtype=DTYPE)

    def step() -> None:
        images, texts, scale = forward(pixels, ids, ends)[:3]
        torch.autograd.backward(torch.nn.functional.cross_entropy(scale * images @ texts.T, torch.arange(pairs)))

    torch._dynamo.reset()  # else the second size has a program for any number of pairs, which keeps other things
    step()
    highest = most_at_once(step)
    taken = []
    for _ in range(3):
        began = time.perf_counter()
        step()
        taken.append(time.perf_counter() - began)
    return highest, statistics.median(taken)


def main() -> None:
    who, name, checkpoint, how, texts, *sizes = sys.argv[1:]
    fewer, more = map(int, sizes)
    with contextlib.redirect_stdout(sys.stderr):
        torch.manual_seed(0)
        model, forward = {"ours": ours, "open_clip": open_clip}[who](name, checkpoint, compiled=how == "compiled")
        low, _ = measured(forward, fewer, captions=texts == "captions")
        high, seconds = measured(forward, more, captions=texts == "captions")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print((high - low) // (more - fewer), seconds / more, parameters)


if __name__ == "__main__":
    main()
