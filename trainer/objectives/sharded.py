"""What objectives over similarities share: the rows of this rank against the columns of all ranks, a block of rows at a time, exactly.

Every rank holds b of the B = W b pairs. It gathers the other tower's features, and for each block of its own rows forms logits of
[block, B], their loss and, in the same visit, their slope, from which the gradients follow at once: nothing is computed twice (but in
`clip.py`, which asks of its columns first), and no more than two blocks of [block, B] live at a time. The gradient of the gathered
features goes back to the ranks that own them (a reduce-scatter with a sum) before the function returns, so that between forward and
backward only gradients of [b, E] are kept, and backward only multiplies them by what arrives. A loss scale enters there and nowhere
else: sums over ranks are of unscaled fp32.

DDP and ZeRO average the gradients of parameters over ranks, which makes of each rank's own loss the gradient of their mean, the scale's
and the bias's included: no factor W anywhere.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

SlopeOf = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(logits [c, B], int64 [c]: each row's own column) to (the sum of the rows' losses, its derivative by the logits). May overwrite them."""

# torch 2.13 gave these two their present names and warns about the old ones.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def mean_row_loss(
    slope_of: SlopeOf, rows: Tensor, columns: Tensor, scale: Tensor, bias: Tensor | None, chunk_size: int | None
) -> Tensor:
    """The mean loss of `rows` over logits scale * rows @ (columns of all ranks)^T + bias, 0-D.

    rows, columns: [b, E] of this rank, fp32 or fp64, b equal on all ranks; row i belongs to column i. scale, bias: one number each.
    chunk_size: rows of logits in memory at a time; None takes all b at once. Collective on the default process group, if there is one.
    Raises ValueError for shapes that do not fit.
    """
    check(rows, columns, chunk_size)
    offset = None if bias is None else bias.reshape(())
    loss: Tensor = _MeanRowLoss.apply(  # type: ignore[no-untyped-call]
        rows, columns, scale.reshape(()), offset, slope_of, chunk_size or len(rows), torch.is_grad_enabled()
    )
    return loss


class Context(Protocol):
    needs_input_grad: tuple[bool, ...]
    saved_tensors: tuple[Tensor | None, ...]

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...


class _MeanRowLoss(torch.autograd.Function):
    """`mean_row_loss`; forward forms the gradients, backward only scales them."""

    @staticmethod
    def forward(
        ctx: Context,
        rows: Tensor,
        columns: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        slope_of: SlopeOf,
        chunk_size: int,
        grad_enabled: bool,
    ) -> Tensor:
        world, rank = world_and_rank()
        everyone = columns if world == 1 else gather_rows(columns, world)
        wants_gradient = grad_enabled and any(ctx.needs_input_grad)
        total, grad_scale, grad_bias = (torch.zeros_like(scale) for _ in range(3))
        grad_rows = torch.empty_like(rows) if wants_gradient else None
        # A frozen tower's features need none; all ranks freeze the same.
        grad_everyone = torch.zeros_like(everyone) if wants_gradient and ctx.needs_input_grad[1] else None
        # Under autocast the products would fall to half precision, where a logit of 100 has steps of 0.5.
        with torch.autocast(rows.device.type, enabled=False):
            for start in range(0, len(rows), chunk_size):
                block = rows[start : start + chunk_size]
                scaled = block * scale
                logits = scaled @ everyone.T
                if bias is not None:
                    logits += bias
                targets = torch.arange(len(block), device=rows.device) + (rank * len(rows) + start)
                loss, slope = slope_of(logits, targets)
                total += loss
                if grad_rows is not None:
                    pull = torch.mm(slope, everyone, out=grad_rows[start : start + chunk_size])
                    grad_scale += (block * pull).sum()  # the sum of slope * (block @ everyone^T), which is not kept
                    if bias is not None:
                        grad_bias += slope.sum()
                if grad_everyone is not None:
                    grad_everyone.addmm_(slope.T, scaled)
                del logits, slope  # before the next block is made
        if grad_rows is not None:
            grad_rows *= scale
            grad_columns = grad_everyone
            if grad_everyone is not None and world > 1:
                grad_columns = sum_to_owners(grad_everyone, world)
            found = (grad_rows, grad_columns, grad_scale, None if bias is None else grad_bias)
            ctx.save_for_backward(*(None if gradient is None else gradient.div_(len(rows)) for gradient in found))
        return total / len(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (*times(grad, ctx.saved_tensors), None, None, None)


def check(rows: Tensor, columns: Tensor, chunk_size: int | None) -> None:
    """Raises ValueError for features or a chunk size that do not fit."""
    if rows.shape != columns.shape or rows.ndim != 2:
        raise ValueError(f"features must both be [b, E]: {tuple(rows.shape)}, {tuple(columns.shape)}")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be positive, not {chunk_size}")


def world_and_rank() -> tuple[int, int]:
    """How many ranks share the batch, and which this one is."""
    return (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)


def times(grad: Tensor, kept: Iterable[Tensor | None]) -> Iterator[Tensor | None]:
    """The gradients that forward has formed, for a loss whose own gradient is `grad`."""
    return (None if gradient is None else grad * gradient for gradient in kept)


def gather_rows(rows: Tensor, world: int) -> Tensor:
    """The rows of all ranks, in rank order: [W b, E]."""
    out = rows.new_empty(world * len(rows), rows.shape[1])
    _all_gather(out, rows.contiguous())
    return out


def sum_to_owners(gathered: Tensor, world: int) -> Tensor:
    """Of [W b, E] the b rows of this rank, summed over all ranks."""
    out = gathered.new_empty(len(gathered) // world, gathered.shape[1])
    _reduce_scatter(out, gathered, op=dist.ReduceOp.SUM)
    return out
