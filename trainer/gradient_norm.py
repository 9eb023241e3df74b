"""The norm of a step's gradients under ZeRO in a few kernels, and whether they are finite from nothing else.

DeepSpeed 0.19.8 asks each parameter's gradient by itself how long it is, through a copy in fp64 (`get_grad_norm_direct`), and, of half
precision in stages 1 and 2, whether it is finite (`has_overflow_partitioned_grads_serial`). That is 2 kernels of a few µs a parameter,
and 15 with the second question: 4,600 in a bf16 step of ViT-B/32 and 6,800 of ViT-L/14, 70 % of all that it launched, while a GPU has
nothing else to do. Here all gradients of a group are one call, as in torch's own clipping; each sum is fp64.

The norm answers the second question too, and DeepSpeed drops a step for it as it does for the flag that `check_overflow` sets: it is
finite if every gradient is and fp32 holds its square, which DeepSpeed's own sum over groups asks for in any case (below 1.8e19; its stage 3
alone would take more). What is offloaded to CPUs is asked while it travels; that stays DeepSpeed's.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed

from pipeline.contracts.errors import InputError


def replace(optimizer: Any, stage: int) -> None:
    """Let DeepSpeed's optimizer of ZeRO's stage 1, 2 or 3 ask the functions below instead of its own.

    Raises InputError where it has no such functions: nothing would ask whether gradients are finite then.
    """
    for name in ("get_grad_norm_direct", "check_overflow")[: 2 if stage < 3 else 1]:
        if not callable(getattr(optimizer, name, None)):
            raise InputError(
                f"this DeepSpeed's {type(optimizer).__name__} has no {name}: install the version of infra/constraints.txt"
            )
    optimizer.get_grad_norm_direct = functools.partial(group_norm, optimizer.dp_process_group)
    if stage < 3:
        optimizer.check_overflow = _leave_to_the_norm


def group_norm(
    processes: torch.distributed.ProcessGroup, gradients: Sequence[torch.Tensor], parameters: Sequence[object]
) -> torch.Tensor:
    """The L2 norm of a group's gradients over all processes, fp32 []; -1, as DeepSpeed says it, where its square is not finite. Collective.

    `gradients` are this process's share and zeros that pad it: any shapes, one dtype, at least one of them. Of which parameters they are
    does not matter where each is trained by all processes alike.
    """
    squares = torch.stack(torch._foreach_norm(list(gradients), 2, dtype=torch.float64)).square().sum()
    torch.distributed.all_reduce(squares, group=processes)
    return torch.where(squares.float().isfinite(), squares.sqrt().float(), -1.0)


def _leave_to_the_norm(partition_gradients: bool = True) -> None:
    """In the place of `check_overflow`, before which DeepSpeed's flag is down, and after which the norm raises it."""
