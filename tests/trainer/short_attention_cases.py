"""Short attention run by Triton's interpreter, on a CPU: what test_short_attention.py compares. In its own process, for Triton reads its
switch once.

    TRITON_INTERPRET=1 python -m tests.trainer.short_attention_cases kernels|model IN.pt OUT.pt

kernels: IN.pt has a list of dictionaries with "packed", "gradient" and "causal"; OUT.pt the outputs and the gradients of the packed
  projections, case by case.
model: IN.pt has "pixels" and "texts"; OUT.pt the features and gradients of a small CLIP in fp16, way by way.
"""

import sys
from typing import Any

import torch
from torch import Tensor
from triton.runtime import interpreter

from tests.trainer.gradients import TINY
from trainer import models
from trainer.models import short_attention
from trainer.models.checkpointing import Checkpointing

HALF = (torch.float16, torch.bfloat16)
WAYS: dict[str, tuple[bool, Checkpointing, bool]] = {
    "torch": (False, "none", False),
    "short": (True, "none", False),
    "short, elementwise": (True, "elementwise", False),
    "short, blocks": (True, "blocks", False),
    "short, compiled": (True, "none", True),
    "short, elementwise, compiled": (True, "elementwise", True),
}
"""Whether short attention is taken, what is computed again, and whether blocks are compiled."""


def multiply_bf16_as_numbers() -> None:
    """Triton's interpreter (3.7.1) keeps bf16 as integers of 16 bits, and its product multiplies these."""
    of_numbers = interpreter.InterpreterBuilder.create_dot

    def create_dot(self: Any, a: Any, b: Any, *others: Any) -> Any:
        bf16, fp32 = interpreter.tl.bfloat16, interpreter.tl.float32
        if a.dtype.scalar == bf16:
            a, b = (
                interpreter.TensorHandle(interpreter._convert_float(one.data, bf16, fp32, None).view("float32"), fp32)
                for one in (a, b)
            )
        return of_numbers(self, a, b, *others)

    interpreter.InterpreterBuilder.create_dot = create_dot


def of_kernels(cases: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
    found = []
    for case in cases:
        packed = case["packed"].requires_grad_()
        out = short_attention.short_attention(packed, case["causal"])
        (gradient,) = torch.autograd.grad(out, packed, case["gradient"])
        found.append({"out": out.detach(), "gradient": gradient})
    return found


def of_model(given: dict[str, Any]) -> dict[str, dict[str, Tensor]]:
    found = {}
    short_attention.is_for = lambda packed: packed.dtype in HALF  # here there is no GPU, but what stands in for one
    for way, (short, checkpoint, compiles) in WAYS.items():
        torch.manual_seed(0)
        model = models.build(TINY, checkpoint_activations=checkpoint).to(torch.float16)
        if short:
            model.take_short_attention()
        if compiles:
            model.compile_blocks()
        images, texts, _ = model(given["pixels"], *given["texts"])
        (images * texts.roll(1, 0)).sum().backward()
        parts = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
        found[way] = {"images": images.detach(), "texts": texts.detach(), **parts}
    return found


def main(what: str, read: str, write: str) -> None:
    multiply_bf16_as_numbers()
    given = torch.load(read, weights_only=True)
    torch.save(of_kernels(given) if what == "kernels" else of_model(given), write)


if __name__ == "__main__":
    main(*sys.argv[1:])
