"""The kernels of short attention, run by Triton's interpreter: against softmax(q k^T / 8) v in fp64, and in models, in all their ways."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest
import torch
from torch import Tensor

from tests.trainer import compiled
from tests.trainer.short_attention_cases import (
    BEHIND,
    BF16,
    CASES,
    F16,
    FEW,
    MARK,
    WAYS,
    Case,
    apart,
    check_models,
    model_inputs,
    tensors_of,
    truth,
)
from trainer.models import short_attention

pytest.importorskip("triton", reason="no Triton here; pip install triton")

DIGITS = {F16: 2.0**-11, BF16: 2.0**-7}
"""What rounding takes off a number at most; the interpreter cuts bf16 off instead, which is twice as much."""


def run(what: str, given: object, folder: Path) -> Any:
    torch.save(given, folder / "in.pt")
    command = [sys.executable, "-m", "tests.trainer.short_attention_cases", what, str(folder / "in.pt")]
    subprocess.run([*command, str(folder / "out.pt")], env={**os.environ, "TRITON_INTERPRET": "1"}, check=True)
    return torch.load(folder / "out.pt", weights_only=True)


class Interpreted(NamedTuple):
    cases: dict[Case, dict[str, Tensor]]
    whole: dict[str, Tensor]
    """Of ROWS."""
    broken: dict[str, Tensor]
    """Of ROWS with not-a-number in the middle row, and infinity in the third head of the last."""
    beyond: list[dict[str, Tensor]]


ROWS = Case(19, False, F16, rows=3, heads=4)
ENDS = [Case(length, causal, F16, rows=1) for length in (1, 19, 50, 128) for causal in (False, True)]


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> Interpreted:
    """What the kernels make of all the cases here, in one process: it takes longer to start than to compute."""
    broken = tensors_of(ROWS)
    broken["packed"][1] = torch.nan
    broken["packed"][2, :, :, 2] = torch.inf
    given = {
        "plain": [*map(tensors_of, CASES), tensors_of(ROWS), broken],
        "beyond": [tensors_of(case) for case in ENDS],
    }
    found = run("kernels", given, tmp_path_factory.mktemp("kernels"))
    *plain, of_whole, of_broken = found["plain"]
    return Interpreted(dict(zip(CASES, plain, strict=True)), of_whole, of_broken, found["beyond"])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_is_attention_to_the_digits_of_its_numbers(case: Case, interpreted: Interpreted) -> None:
    """Queries, keys and gradients each go through a sum of rounded weights, so that errors are of one or two roundings."""
    given, found = tensors_of(case), interpreted.cases[case]
    true = truth(given["packed"], given["gradient"], causal=case.causal)
    assert found["out"].dtype == found["gradient"].dtype == case.dtype
    assert apart(found["out"], true["out"]) < DIGITS[case.dtype]
    for part in range(3):
        where = true["gradient"][:, :, part]
        if float(where.norm()):  # of one position alone queries and keys have none
            assert apart(found["gradient"][:, :, part], where) < 2 * DIGITS[case.dtype]
        else:
            assert not found["gradient"][:, :, part].any()


def test_a_row_knows_nothing_of_another(interpreted: Interpreted) -> None:
    """Lengths end inside of a tile, and the next row begins there."""
    whole, found = interpreted.whole, interpreted.broken
    heads = [0, 1, 3]
    for part in ("out", "gradient"):
        one, other = (each[part].view(3, 19, 4, 64) if part == "out" else each[part] for each in (found, whole))
        assert torch.equal(one[0], other[0])
        assert one[1].isnan().all()
        assert torch.equal(one[2, ..., heads, :], other[2, ..., heads, :])
        assert not one[2, ..., 2, :].isfinite().all()


def test_nothing_is_read_or_written_beyond_the_end(interpreted: Interpreted) -> None:
    for case, found in zip(ENDS, interpreted.beyond, strict=True):
        one = tensors_of(case)
        true = truth(one["packed"], one["gradient"], causal=case.causal)
        for part, expected in true.items():
            assert (found[part][-BEHIND:] == MARK).all()
            assert apart(found[part][:-BEHIND], expected.flatten()) < 2 * DIGITS[F16]


@pytest.mark.parametrize("ways", [FEW, pytest.param(tuple(WAYS), marks=pytest.mark.prove)], ids=["few", "all"])
def test_models_have_the_same_features_and_gradients_in_their_ways(ways: tuple[str, ...], tmp_path: Path) -> None:
    check_models(run("model", model_inputs() | {"ways": list(ways)}, tmp_path), 0.02, exact=True, ways=ways)


def test_only_what_is_short_and_half_and_on_a_gpu_is_for_it() -> None:
    for device, dtype, length, wanted in (
        ("cuda", BF16, 128, True),
        ("cuda", F16, 1, True),
        ("cuda", BF16, 129, False),
        ("cuda", torch.float32, 50, False),
        ("cpu", BF16, 50, False),
        ("meta", BF16, 50, False),
    ):
        assert short_attention.is_for(_Told(device, dtype, length)) is wanted  # type: ignore[arg-type]


class _Told(NamedTuple):
    device: str
    dtype: torch.dtype
    length: int

    @property
    def is_cuda(self) -> bool:
        return self.device == "cuda"

    @property
    def shape(self) -> tuple[int, ...]:
        return (4, self.length, 3, 2, 64)


# ---- what the compiler makes of it


Program = tuple[Literal["_forward", "_backward"], int, bool]
"""Kernel, tile, whether it is causal."""
PROGRAMS: list[Program] = [
    ("_forward", 16, True),
    ("_forward", 64, False),
    ("_backward", 32, True),
    ("_backward", 64, False),
    ("_backward", 128, True),
]


@pytest.fixture(scope="module")
def ptx_of() -> dict[Program, str]:
    asked = [compiled.short_attention(kernel, tile, causal=causal) for kernel, tile, causal in PROGRAMS]
    made = compiled.compiled("ptx", asked)
    return {program: code.decode() for program, code in zip(PROGRAMS, made, strict=True)}


@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_the_compiler_keeps_loads_wide_and_multiplies_in_hardware(program: Program, ptx_of: dict[Program, str]) -> None:
    ptx, (kernel, tile, _) = ptx_of[program], program
    assert re.search(r"wgmma\.mma_async" if tile >= 64 else r"mma\.sync", ptx)
    tensors = 3 if kernel == "_forward" else 4
    # 64 numbers of 2 bytes to a place, 16 places to a warp: 4 loads of 16 bytes of each tensor
    assert len(re.findall(r"ld\.global\.v4\.b32", ptx)) == 4 * tensors
    assert not re.search(r"(ld|st)\.global\.(v2\.)?b(8|16|32)\b", ptx)
