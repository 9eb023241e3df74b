"""The norm of a group's gradients against fp64, and of such as are not finite. test_step_cases.py asks the same of whole steps."""

import math
import random
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
import torch.distributed

from pipeline.contracts.errors import InputError
from trainer.gradient_norm import group_norm, replace


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[torch.distributed.ProcessGroup]:
    meeting = tmp_path_factory.mktemp("processes") / "file"
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=0, world_size=1)
    alone = torch.distributed.group.WORLD
    assert alone is not None
    yield alone
    torch.distributed.destroy_process_group()


def drawn(dtype: torch.dtype, scale: float = 1.0) -> list[torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    shapes: list[list[int]] = [[], [1], [7, 5], [300_001], [3, 2, 4]]
    return [(torch.randn(shape, generator=draws) * scale).to(dtype) for shape in shapes]


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e15])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_is_that_of_all_numbers(
    processes: torch.distributed.ProcessGroup, dtype: torch.dtype, scale: float
) -> None:
    gradients = drawn(dtype, scale)
    true = math.sqrt(sum(float(one.double().square().sum()) for one in gradients))
    found = group_norm(processes, gradients, gradients)
    assert (found.dtype, found.shape) == (torch.float32, ())
    assert float(found) == pytest.approx(true, rel=1e-7)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_number_that_is_not_finite_makes_the_norm_invalid(
    processes: torch.distributed.ProcessGroup, dtype: torch.dtype, bad: float
) -> None:
    gradients = drawn(dtype)
    one = random.Random(0).choice(gradients)
    one.view(-1)[-1] = bad
    assert float(group_norm(processes, gradients, gradients)) == -1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_whose_square_fp32_does_not_hold_is_invalid(
    processes: torch.distributed.ProcessGroup, dtype: torch.dtype
) -> None:
    """As where DeepSpeed adds the squares of several groups: a step is dropped or not whatever is frozen."""
    for number, norm in ((1.8e19, pytest.approx(1.8e19, rel=1e-2)), (1.9e19, -1), (1e30, -1)):
        gradients = [torch.tensor([number, 0.0], dtype=dtype), torch.zeros(3, dtype=dtype)]
        assert float(group_norm(processes, gradients, gradients)) == norm


@pytest.mark.parametrize("missing", ["get_grad_norm_direct", "check_overflow"])
def test_an_optimizer_that_asks_by_other_names_is_refused(missing: str) -> None:
    names = {"get_grad_norm_direct", "check_overflow"} - {missing}
    with pytest.raises(InputError, match=f"has no {missing}: install the version"):
        replace(SimpleNamespace(dp_process_group=None, **dict.fromkeys(names, print)), 2)
