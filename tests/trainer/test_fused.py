"""The fused kernel of the optimizer's step, run by Triton's interpreter: against a twin in numpy and against the PyTorch version.

The twin is written from the definition and rounds each operation once, as the kernel does on a GPU: they must agree to the bit. PyTorch's
square root on CPUs may be off by the last bit of fp32 (it is MKL's), so that there moments may differ by one step of fp16.
"""

import os
import re
import subprocess
import sys
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from tests.trainer.compiled import compiled, fused_step
from trainer.optim import half_adamw, update
from trainer.optim.blocks import quantise

triton = pytest.importorskip("triton", reason="no Triton here; pip install triton")

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
Spans = list[tuple[int, int]]


class Case(NamedTuple):
    n: int
    spans: Spans | None = None
    """None: one, from 0."""
    block: int = 256
    grid: str | None = None
    weights: torch.dtype = F32
    gradients: torch.dtype = F32
    bound: float | None = None
    size: float = 1e-3
    """Of gradients, about."""
    step: int = 7
    beta2: float = 0.98


CASES = {
    "whole tiles": Case(3 * 2048),
    "a short tile and a short block": Case(2048 + 300),
    "one number": Case(1),
    "a bias of seven": Case(7, [(12_345, 7)], grid="fp16"),
    "the first step": Case(5000, step=1),
    "a late step, a slow second moment": Case(5000, step=300_000, beta2=0.999),
    "borders inside of tiles": Case(6000, [(10_000, 2000), (77, 1), (2**33 + 5, 3000), (0, 999)], grid="fp16"),
    "every number its own span": Case(4100, [(3 * i, 1) for i in range(4100)], grid="bf16"),
    "places beyond 2^32": Case(2048, [(2**32 - 50, 2048)], grid="bf16"),
    "an empty span": Case(2100, [(5, 0), (9, 2100), (3, 0)]),
    "fp16 grid, fp16 weights, a bound": Case(4096, grid="fp16", weights=F16, gradients=F16, bound=0.03125),
    "bf16 grid, bf16 weights, a bound": Case(4097, grid="bf16", weights=BF16, gradients=BF16, bound=0.03125),
    "fp16 grid in fp32": Case(4096, grid="fp16", bound=0.02001953125),
    "small blocks": Case(1000, block=8),
    "blocks of one": Case(50, block=1),
    "the largest blocks": Case(9000, block=4096, gradients=BF16),
    "tiny gradients": Case(3000, size=1e-20),
    "huge gradients": Case(3000, size=1e15),
}


def tensors_of(case: Case) -> list[Tensor]:
    """Weights, gradients, moments and roots over many orders of magnitude, some of them exactly zero."""
    generator = torch.Generator().manual_seed(case.n + case.step)

    def drawn(size: float) -> Tensor:
        spread = torch.exp(3 * torch.randn(case.n, generator=generator)).clamp(max=100.0)
        values = torch.randn(case.n, generator=generator) * spread * size
        return values * (torch.rand(case.n, generator=generator) > 0.02)

    weights, gradients = (torch.randn(case.n, generator=generator) * 0.05).to(case.weights), drawn(case.size)
    first = case.step == 1
    moments = quantise(torch.zeros(case.n) if first else drawn(case.size), case.block)
    roots = quantise(torch.zeros(case.n) if first else drawn(case.size).abs(), case.block)
    return [weights, gradients.to(case.gradients), *moments, *roots]


def rule_of(case: Case) -> dict[str, Any]:
    late = (1 - case.beta2**case.step) ** 0.5
    return {
        "beta1": 0.9,
        "beta2": case.beta2,
        "shrink": 1 - 5e-4 * 0.2,
        "step_size": 5e-4 * late / (1 - 0.9**case.step),
        "eps": 1e-6 * late,
        "bound": case.bound,
        "grid": case.grid,
        "block": case.block,
        "seed": 3,
        "step": case.step,
    }


def spans_of(case: Case) -> Spans:
    return [(0, case.n)] if case.spans is None else case.spans


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, update.Flat]:
    """What the kernel makes of each case."""
    folder = tmp_path_factory.mktemp("fused")
    cases = [{"flat": tensors_of(case), "rule": rule_of(case), "spans": spans_of(case)} for case in CASES.values()]
    torch.save(cases, folder / "in.pt")
    command = [sys.executable, "-m", "tests.trainer.fused_cases", str(folder / "in.pt"), str(folder / "out.pt")]
    subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, check=True)
    found = torch.load(folder / "out.pt", weights_only=True)
    return {name: update.Flat(*tensors) for name, tensors in zip(CASES, found, strict=True)}


# ---- the twin

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


def twin(case: Case) -> dict[str, npt.NDArray[Any]]:
    """The update in numpy, number for number as `update.py` and `rounding.py` describe it."""
    rule = rule_of(case)
    weights, gradients, half_m, scale_m, half_r, scale_r = tensors_of(case)
    f = np.float32
    w, g = (as_f32(values) for values in (weights, gradients))
    m = as_f32(half_m) * np.repeat(as_f32(scale_m), case.block)[: case.n]
    r = as_f32(half_r) * np.repeat(as_f32(scale_r), case.block)[: case.n]
    m = m * f(rule["beta1"]) + g * f(1 - rule["beta1"])
    r = np.sqrt(r * r * f(rule["beta2"]) + g * g * f(1 - rule["beta2"]))
    w = w * f(rule["shrink"]) - m * f(rule["step_size"]) / (r + f(rule["eps"]))
    places = np.concatenate([np.arange(first, first + count, dtype=np.int64) for first, count in spans_of(case)])
    bits = hashed(places, rule["seed"], rule["step"])
    moment, moment_scale = stored(m, case.block, None)
    root, root_scale = stored(r, case.block, bits >> 19)
    if case.grid == "bf16":
        w = ((w.view(np.uint32) + (bits & 0xFFFF).astype(np.uint32)) & 0xFFFF0000).astype(np.uint32).view(f)
    elif case.grid == "fp16":
        exact = w.astype(np.float64)
        unit = 2.0 ** np.maximum(np.floor(np.log2(np.maximum(np.abs(exact), 2.0**-30))) - 10, -24)
        w = (np.floor((exact / unit).astype(f) + ((bits & 0x1FFF) / 8192).astype(f)) * unit).astype(f)
    if case.bound is not None:
        w = np.minimum(w, f(case.bound))
    return {"weights": w, "moments": moment, "moment_scales": moment_scale, "roots": root, "root_scales": root_scale}


def as_f32(values: Tensor) -> Floats:
    found: Floats = values.float().numpy()
    return found


def hashed(places: Ints, seed: int, step: int) -> Ints:
    def mix(x: Ints) -> Ints:
        x = x ^ (x >> 16)
        x = x * 0x21F0AAAD % 2**32
        x = x ^ (x >> 15)
        x = x * 0x735A2D97 % 2**32
        return x ^ (x >> 15)

    key = mix(mix(np.array([seed])) ^ step)
    # mix starts with x ^ (x >> 16), as the generator does with the place and the key.
    return mix((places % 2**32) ^ key)


def stored(values: Floats, block: int, noise: Ints | None) -> tuple[npt.NDArray[np.float16], Floats]:
    """fp16 values and fp32 scales: the largest of a block comes into [2^14, 2^15)."""
    n = len(values)
    padded = np.zeros(-(-n // block) * block)
    padded[:n] = np.abs(values)
    largest = padded.reshape(-1, block).max(axis=1)
    exponents = np.clip(np.frexp(largest)[1].astype(np.int64), -100, 128)
    exponents[largest == 0] = -100
    scales = np.ldexp(1.0, exponents - 15).astype(np.float32)
    scaled = values / np.repeat(scales, block)[:n]
    if noise is not None:
        scaled = ((scaled.view(np.uint32) + noise.astype(np.uint32)) & 0xFFFFE000).astype(np.uint32).view(np.float32)
    return scaled.astype(np.float16), scales


@pytest.mark.parametrize("name", CASES)
def test_is_the_twin_to_the_bit(name: str, interpreted: dict[str, update.Flat]) -> None:
    case, found = CASES[name], interpreted[name]
    for part, expected in twin(case).items():
        tensor = getattr(found, part)
        np.testing.assert_array_equal(as_f32(tensor), expected.astype(np.float32), err_msg=part)
        assert torch.equal(tensor.float().signbit(), torch.from_numpy(np.signbit(expected))), part


@pytest.mark.parametrize("name", CASES)
def test_is_the_pytorch_version_within_a_step_of_fp16(name: str, interpreted: dict[str, update.Flat]) -> None:
    case, found = CASES[name], interpreted[name]
    flat = update.Flat(*tensors_of(case))
    update.update(flat, update.Rule(**rule_of(case)), spans_of(case))
    assert torch.equal(found.moments, flat.moments)
    assert torch.equal(found.moment_scales, flat.moment_scales)
    assert torch.equal(found.root_scales, flat.root_scales)
    assert int((found.roots.view(torch.int16).int() - flat.roots.view(torch.int16).int()).abs().max()) <= 1
    unit = {F32: 2.0**-23, F16: 2.0**-10, BF16: 2.0**-7}[F16 if case.grid == "fp16" else case.weights]
    unit = max(unit, 2.0**-7 if case.grid == "bf16" else 0.0)
    ours, theirs, before = found.weights.double(), flat.weights.double(), tensors_of(case)[0].double()
    size = torch.maximum(before.abs(), theirs.abs()).clamp(
        min=2.0**-14
    )  # of weight and update, one of which may cancel the other
    assert float(((ours - theirs).abs() / size).max()) <= 3 * unit
    assert float((ours != theirs).double().mean()) < 0.1  # a fifth of MKL's square roots are not the nearest number


def test_without_a_compiler_for_triton_pytorch_steps(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Triton builds its launcher when it is first used; on a machine without a C compiler that is where it says so."""

    def no_compiler(self: object) -> None:
        raise RuntimeError("Failed to find C compiler.")

    monkeypatch.setattr(type(triton.runtime.driver), "active", property(no_compiler))
    half_adamw._fused.cache_clear()
    assert half_adamw._fused() is None
    assert "Failed to find C compiler." in caplog.text
    half_adamw._fused.cache_clear()


def test_gradients_stay_as_they_are(interpreted: dict[str, update.Flat]) -> None:
    for name, case in CASES.items():
        assert torch.equal(interpreted[name].gradients, tensors_of(case)[1])


# ---- what the compiler makes of it


@pytest.fixture(scope="module")
def ptx_of_plain_and_masked() -> tuple[str, list[str]]:
    """The plain program, and the masked one onto each of the grids."""
    masked = [fused_step(is_plain=False, onto=onto, is_bounded=bool(onto)) for onto in range(3)]
    plain, *others = (code.decode() for code in compiled("ptx", [fused_step(), *masked]))
    return plain, others


def test_the_compiler_contracts_nothing_and_keeps_loads_wide(ptx_of_plain_and_masked: tuple[str, list[str]]) -> None:
    ptx, _ = ptx_of_plain_and_masked
    assert "div.rn.f32" in ptx
    assert "sqrt.rn.f32" in ptx
    assert not re.search(r"\bfma\.|\.ftz|\.approx", ptx)
    # 2048 numbers, 128 threads: 16 numbers each, of 12 bytes read (weight, gradient, two moments) and 8 written, 16 bytes at a time.
    assert len(re.findall(r"ld\.global\.v4\.b32", ptx)) == 12
    assert len(re.findall(r"st\.global\.v4\.b32", ptx)) == 8
    assert not re.search(r"(ld|st)\.global\.(v2\.)?b16", ptx)


@pytest.mark.parametrize("onto", [0, 1, 2])
def test_the_masked_program_compiles_too(onto: int, ptx_of_plain_and_masked: tuple[str, list[str]]) -> None:
    ptx = ptx_of_plain_and_masked[1][onto]
    assert not re.search(r"\bfma\.|\.approx", ptx)
    # Rounding down may take subnormal numbers for zero: onto fp16's grid a weight is at least 2^-125 of a step, or zero.
    assert set(re.findall(r"\w[\w.]*\.ftz", ptx)) <= ({"cvt.rmi.ftz"} if onto == 1 else set())
