"""The symmetric contrastive loss of the paper, sharded: each rank computes the logits of its own rows only.

Every rank holds b pairs of a global batch of B = W b. It gathers the features of all ranks *with gradient*
(forward: all-gather;
backward: reduce-scatter with a sum), takes the b x B similarities of its rows against them, and returns

    L_r = 1/(2b) sum_{i in r} [ CE(s u_i V^T, i) + CE(s v_i U^T, i) ].

DDP and ZeRO average the parameters' gradients over ranks, which gives exactly the gradient of mean_r L_r,
the loss of the whole batch, the scale's included: no factor W anywhere. A rank's own L_r is not the loss of
the whole batch: average it over ranks before printing. Exact given the features: a ResNet's depend on which
pictures share a rank (`models/resnet.py`).

With `chunk_size` the similarities live in blocks of chunk_size x B. A block holds whole rows, so its
softmax is known at once and its gradient is formed in the same visit: memory is linear in the batch,
nothing is computed twice, and the result is exact.
"""

from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


def contrastive_loss(
    image_features: Tensor, text_features: Tensor, logit_scale: Tensor, *, chunk_size: int | None = None
) -> Tensor:
    """The mean cross-entropy of this rank's pairs, both directions, as a 0-D tensor.

    image_features, text_features: [b, E], L2-normalised, fp32 (or fp64), b equal on all ranks; row i of
    both is one pair.
    logit_scale: the multiplier itself, exp of the parameter (what CLIP.forward returns), of shape [1] or [].
    chunk_size: rows of similarities in memory at a time; None takes all b at once.
    Collectives run on the default process group when there is one of more than one rank.
    """
    if image_features.shape != text_features.shape or image_features.ndim != 2:
        raise ValueError(f"features must both be [b, E]: {tuple(image_features.shape)}, {tuple(text_features.shape)}")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be positive, not {chunk_size}")
    scale = logit_scale.reshape(())
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    all_images, all_texts = image_features, text_features
    if world > 1:
        all_images, all_texts = _gather(image_features, text_features)
    first = rank * len(image_features)
    # Under autocast the product would fall to half precision, where a logit of 100 has steps of 0.5.
    with torch.autocast(image_features.device.type, enabled=False):
        if chunk_size is None:
            by_image = _row_loss(image_features, all_texts, scale, first)
            by_text = _row_loss(text_features, all_images, scale, first)
        else:
            by_image = _chunked_row_loss(image_features, all_texts, scale, first, chunk_size)
            by_text = _chunked_row_loss(text_features, all_images, scale, first, chunk_size)
    return (by_image + by_text) / 2


def _row_loss(rows: Tensor, columns: Tensor, scale: Tensor, first: int) -> Tensor:
    """Mean cross-entropy of scale * rows @ columns^T, where row i belongs to column first + i."""
    targets = torch.arange(first, first + len(rows), device=rows.device)
    return functional.cross_entropy(scale * (rows @ columns.T), targets)


def _chunked_row_loss(rows: Tensor, columns: Tensor, scale: Tensor, first: int, chunk_size: int) -> Tensor:
    """`_row_loss` with at most `chunk_size` rows of similarities in memory."""
    grad = torch.is_grad_enabled()
    loss: Tensor = _ChunkedRowLoss.apply(  # type: ignore[no-untyped-call]
        rows, columns, scale, first, chunk_size, grad
    )
    return loss


def _gather(images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of all ranks, [W b, E] each; what flows back to a row is the sum over all ranks."""
    gathered: tuple[Tensor, Tensor] = _GatherWithGradient.apply(images, texts)  # type: ignore[no-untyped-call]
    return gathered


class _GatherContext(Protocol):
    needs_input_grad: tuple[bool, bool]


class _GatherWithGradient(torch.autograd.Function):
    """All ranks' rows of two tensors, in rank order; the gradient of a row is the sum over all ranks that
    read it.

    One function for both tensors, so that every rank issues its backward collectives in the same order.
    """

    @staticmethod
    def forward(ctx: object, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        return _all_gather_rows(images), _all_gather_rows(texts)

    @staticmethod
    @once_differentiable
    def backward(ctx: _GatherContext, images: Tensor, texts: Tensor) -> tuple[Tensor | None, Tensor | None]:
        needs_images, needs_texts = ctx.needs_input_grad
        return (
            _reduce_scatter_rows(images) if needs_images else None,
            _reduce_scatter_rows(texts) if needs_texts else None,
        )


def _all_gather_rows(rows: Tensor) -> Tensor:
    world = dist.get_world_size()
    out = rows.new_empty(world * len(rows), rows.shape[1])
    dist.all_gather(list(out.chunk(world)), rows.contiguous())
    return out


def _reduce_scatter_rows(rows: Tensor) -> Tensor:
    world = dist.get_world_size()
    out = rows.new_empty(len(rows) // world, rows.shape[1])
    dist.reduce_scatter(out, list(rows.contiguous().chunk(world)), op=dist.ReduceOp.SUM)
    return out


class _ChunkedContext(Protocol):
    saved_tensors: tuple[Tensor, Tensor, Tensor]

    def save_for_backward(self, *tensors: Tensor) -> None: ...


class _ChunkedRowLoss(torch.autograd.Function):
    """`_row_loss` in blocks of rows; forward forms the gradients, backward only scales them."""

    @staticmethod
    def forward(
        ctx: _ChunkedContext,
        rows: Tensor,
        columns: Tensor,
        scale: Tensor,
        first: int,
        chunk_size: int,
        keep_gradient: bool,
    ) -> Tensor:
        total = torch.zeros_like(scale)
        if keep_gradient:
            grad_rows, grad_columns = torch.empty_like(rows), torch.zeros_like(columns)
            grad_scale = torch.zeros_like(scale)
        for start in range(0, len(rows), chunk_size):
            block = rows[start : start + chunk_size]
            own = torch.arange(len(block), device=rows.device)
            targets = own + (first + start)
            similarity = block @ columns.T
            logits = similarity * scale
            norm = torch.logsumexp(logits, dim=1, keepdim=True)
            total += (norm.squeeze(1) - logits[own, targets]).sum()
            if keep_gradient:
                # d loss / d logits is the softmax with one taken from the right column.
                slope = logits.sub_(norm).exp_()
                slope[own, targets] -= 1
                grad_scale += torch.dot(slope.flatten(), similarity.flatten())
                slope *= scale
                grad_rows[start : start + chunk_size] = slope @ columns
                grad_columns.addmm_(slope.T, block)
        if keep_gradient:
            for gradient in (grad_rows, grad_columns, grad_scale):
                gradient /= len(rows)
            ctx.save_for_backward(grad_rows, grad_columns, grad_scale)
        return total / len(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: _ChunkedContext, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        grad_rows, grad_columns, grad_scale = ctx.saved_tensors
        return grad * grad_rows, grad * grad_columns, grad * grad_scale, None, None, None
