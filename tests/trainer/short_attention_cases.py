"""Short attention: cases and their truth, and the kernels run by Triton's interpreter, on a CPU. In its own process, for Triton reads its
switch once:

    TRITON_INTERPRET=1 python -m tests.trainer.short_attention_cases kernels|model IN.pt OUT.pt

kernels: IN.pt has under "plain" a list of dictionaries with "packed", "gradient" and "causal"; OUT.pt the outputs and the gradients of the
  packed projections, case by case. Under "beyond" the same of cases of one row, behind which not-a-number stands wherever something is
  read; behind outputs and gradients follows what stood there before, MARK.
model: IN.pt has "pixels", "texts" and the names of "ways"; OUT.pt features and gradients of a small CLIP in fp16, way by way.
"""

import sys
from collections.abc import Collection
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

from trainer import models
from trainer.models import Preset, ViTShape, short_attention
from trainer.models.checkpointing import Checkpointing

F16, BF16 = torch.float16, torch.bfloat16


class Case(NamedTuple):
    length: int
    causal: bool
    dtype: torch.dtype
    rows: int = 3
    heads: int = 2
    size: float = 1.0
    """Of queries and keys, about; scores are 8 times its square."""
    gradients: float = 1.0
    """Size of the output's, about."""


CASES = [
    *(Case(length, causal, F16) for length in (1, 2, 15, 16, 17, 33, 50, 64, 77, 128) for causal in (False, True)),
    *(Case(length, causal, BF16) for length in (3, 50, 77) for causal in (False, True)),
    Case(50, False, F16, rows=1, heads=12),
    Case(20, True, F16, size=30.0),  # scores of thousands, whose powers overflow where the largest is not taken off
    Case(20, True, F16, size=1e-3),
    Case(50, False, F16, gradients=1e-3),  # of scores they are subnormal in fp16
    Case(50, False, F16, gradients=1e3),
]


def tensors_of(case: Case) -> dict[str, Any]:
    draws = torch.Generator().manual_seed(case.length)
    packed = torch.randn(case.rows, case.length, 3, case.heads, 64, generator=draws)
    packed[:, :, :2] *= case.size
    gradient = torch.randn(case.rows, case.length, case.heads * 64, generator=draws) * case.gradients
    return {"packed": packed.to(case.dtype), "gradient": gradient.to(case.dtype), "causal": case.causal}


def truth(packed: Tensor, gradient: Tensor, *, causal: bool) -> dict[str, Tensor]:
    """In fp64, from the definition."""
    packed = packed.detach().double().requires_grad_()
    q, k, v = (packed[:, :, which].transpose(1, 2) for which in range(3))
    scores = q @ k.transpose(2, 3) / 8
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
    out = (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
    return {"out": out.detach(), "gradient": torch.autograd.grad(out, packed, gradient.double())[0]}


def apart(found: Tensor, true: Tensor) -> float:
    return float((found.double() - true).norm() / true.norm())


# ---- in a model

TWO_HEADS = Preset(
    "short", 32, 16, ViTShape(2, 128, 8), 128, 2, 1e-3, (0.9, 0.98), 1e-6, context_length=8, vocab_size=50
)


class Way(NamedTuple):
    """Of computing a model."""

    short: bool
    checkpoint: Checkpointing = "none"
    compiled: bool = False


WAYS = {
    "torch": Way(short=False),
    "short": Way(short=True),
    "short, elementwise": Way(True, "elementwise"),
    "short, blocks": Way(True, "blocks"),
    "short, compiled": Way(True, compiled=True),
    "short, elementwise, compiled": Way(True, "elementwise", compiled=True),
    "short, blocks, compiled": Way(True, "blocks", compiled=True),
}
FEW = tuple(name for name, way in WAYS.items() if not way.compiled or way.checkpoint == "elementwise")
"""One that is compiled, and that the one with most for the compiler to see."""


def model_inputs() -> dict[str, Any]:
    """Texts in groups, the shortest of two ids."""
    draws = torch.Generator().manual_seed(1)
    texts = [torch.randint(1, 48, (rows, length), generator=draws) for rows, length in ((1, 2), (3, 5), (2, 8))]
    for ids in texts:
        ids[:, -1] = 49
    return {"pixels": torch.randn(6, 3, 16, 16, generator=draws), "texts": texts}


def of_model(
    given: dict[str, Any], dtype: torch.dtype, device: str, ways: Collection[str] = WAYS.keys()
) -> dict[str, dict[str, Tensor]]:
    """Features and gradients, and under "calls" how often each kernel ran, forward and backward."""
    from trainer.models import short_attention_kernels as kernels

    found = {}
    for name in ways:
        way = WAYS[name]
        torch.manual_seed(0)
        model = models.build(TWO_HEADS, checkpoint_activations=way.checkpoint).to(device, dtype)
        if way.short:
            model.take_short_attention()
        if way.compiled:
            # On a CPU its compiler would take minutes, and has nothing to do with these kernels.
            model.compile_blocks("inductor" if device == "cuda" else "aot_eager")
        with (
            mock.patch.object(kernels, "forward", side_effect=kernels.forward) as forward,
            mock.patch.object(kernels, "backward", side_effect=kernels.backward) as backward,
        ):
            images, texts, _ = model(given["pixels"].to(device, dtype), *(ids.to(device) for ids in given["texts"]))
            (images * texts.roll(1, 0)).sum().backward()
        parts = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.grad is not None}
        calls = torch.tensor([forward.call_count, backward.call_count])
        found[name] = {"images": images.detach(), "texts": texts.detach(), "calls": calls, **parts}
    return found


def check_models(
    found: dict[str, dict[str, Tensor]], most_apart: float, *, exact: bool, ways: Collection[str] = WAYS.keys()
) -> None:
    """What `of_model` found is in all ways what torch's attention gives, by the kernels, none of which ran more often than it must.

    exact: where nothing is compiled and all kernels sum in one order.
    """
    assert found.keys() == set(ways)
    calls = {name: parts.pop("calls").tolist() for name, parts in found.items()}
    true = found.pop("torch")
    assert any(float(part.abs().max()) > 0 for name, part in true.items() if "in_proj_weight" in name)
    a_pass = 4  # of one block that is not the last, for pictures and three groups of texts
    assert calls.pop("torch") == [0, 0]
    for name, ran in calls.items():
        assert ran == [2 * a_pass if WAYS[name].checkpoint == "blocks" else a_pass, a_pass], name
    for way, parts in found.items():
        assert parts.keys() == true.keys()
        far = {name: apart(part, true[name].double()) for name, part in parts.items()}
        assert max(far.values()) < most_apart, (way, max(far, key=far.__getitem__), max(far.values()))
    plain = found["short"]
    if exact:
        for way in ("short, elementwise", "short, blocks"):
            assert all(torch.equal(part, plain[name]) for name, part in found[way].items()), way
    assert any(not torch.equal(part, true[name]) for name, part in plain.items()), "it is another kernel"


# ---- by the interpreter


def multiply_bf16_as_numbers() -> None:
    """Triton's interpreter (3.7.1) keeps bf16 as integers of 16 bits, and its product multiplies these."""
    from triton.runtime import interpreter

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


MARK, BEHIND = 77.0, 4096


def beyond(cases: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
    from trainer.models import short_attention_kernels as kernels

    def followed(tensor: Tensor, value: float) -> Tensor:
        """A copy, in memory that goes on with `value`."""
        whole = tensor.new_full((tensor.numel() + BEHIND,), value)
        whole[: tensor.numel()] = tensor.flatten()
        return whole[: tensor.numel()].view(tensor.shape)

    found = []
    for case in cases:
        packed, given = (followed(case[name], torch.nan) for name in ("packed", "gradient"))
        out, gradient = (followed(torch.zeros_like(one), MARK) for one in (given, packed))
        kernels.forward(packed, out, causal=case["causal"])
        kernels.backward(given, packed, gradient, causal=case["causal"])
        whole = {"out": out, "gradient": gradient}
        found.append({name: one.as_strided((one.numel() + BEHIND,), (1,)).clone() for name, one in whole.items()})
    return found


def main(what: str, read: str, write: str) -> None:
    multiply_bf16_as_numbers()
    # Here there is no GPU, but what stands in for one.
    short_attention.is_for = lambda packed: packed.dtype in (F16, BF16)
    given = torch.load(read, weights_only=True)
    if what == "model":
        torch.save(of_model(given, F16, "cpu", given["ways"]), write)
    else:
        torch.save({"plain": of_kernels(given["plain"]), "beyond": beyond(given["beyond"])}, write)


if __name__ == "__main__":
    main(*sys.argv[1:])
