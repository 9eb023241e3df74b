"""The symmetric cross-entropy of CLIP (Radford et al. 2021, 2.3 and figure 3), sharded: one matrix of similarities, both directions.

    L_r = 1/(2b) sum_{i in r} [ CE(s u_i V^T, i) + CE(s v_i U^T, i) ]

with the L2-normalised features u, v of this rank's b pairs, those of all ranks U, V, and the scale s. A rank's own L_r is not the loss of
the whole batch: average it over ranks before printing. Exact given the features: a ResNet's depend on which pictures share a rank
(`models/resnet.py`).

The matrix of texts by images is that of images by texts, turned. So a rank forms the rows of its images only, against the texts of all
ranks. A softmax along the rows gives the first term; the second runs down the columns, and what it needs of them, the largest value and two
sums, the ranks put together. That is three products of [b, E, B] where all rows are kept (similarities, the gradients of both features) and
four where they are made again a block at a time, instead of six; and one tower's features are gathered and scattered back, instead of
both. What is in memory, and why no factor W is needed: `objectives/sharded.py`.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from trainer.objectives.sharded import Context, check, gather_rows, sum_to_owners, times, world_and_rank


def contrastive_loss(
    image_features: Tensor, text_features: Tensor, logit_scale: Tensor, *, chunk_size: int | None = None
) -> Tensor:
    """The mean cross-entropy of this rank's pairs, both directions, as a 0-D tensor.

    image_features, text_features: [b, E], L2-normalised, fp32 (or fp64), b equal on all ranks; row i of
    both is one pair.
    logit_scale: the multiplier itself, exp of the parameter (what CLIP.forward returns), of shape [1] or [].
    chunk_size: rows of similarities in memory at a time; None takes all b at once, and forms them once.
    Collectives run on the default process group when there is one of more than one rank.
    """
    check(image_features, text_features, chunk_size)
    loss: Tensor = _CrossEntropy.apply(  # type: ignore[no-untyped-call]
        image_features,
        text_features,
        logit_scale.reshape(()),
        chunk_size or len(image_features),
        torch.is_grad_enabled(),
    )
    return loss


class _Softmax(NamedTuple):
    """One direction: n similarities' softmax, each over as many others, in numbers that keep what is close to zero or one apart from it."""

    top: Tensor
    """[n]: the largest similarity x of each; probabilities are exp(x - top - log)."""
    log: Tensor
    """[n]."""
    margin: Tensor
    """[b], of this rank's own: the logarithm of all other terms' sum over the own pair's. Their loss is softplus(margin)."""

    def loss(self) -> Tensor:
        # Beyond 40 softplus is its argument to the last bit, of fp64 too.
        return functional.softplus(self.margin, threshold=40.0).sum()

    def slope(self) -> Tensor:
        """Of the own similarities: the own probability, less one."""
        return -self.margin.sigmoid()


class _CrossEntropy(torch.autograd.Function):
    """`contrastive_loss`; forward forms the gradients, backward only scales them."""

    @staticmethod
    def forward(
        ctx: Context, images: Tensor, texts: Tensor, scale: Tensor, chunk_size: int, grad_enabled: bool
    ) -> Tensor:
        world, rank = world_and_rank()
        b = len(images)
        everyone = texts if world == 1 else gather_rows(texts, world)
        # Under autocast the products would fall to half precision, where a similarity of 100 has steps of 0.5.
        with torch.autocast(images.device.type, enabled=False):
            scaled = images * scale
            chunks = [slice(start, min(start + chunk_size, b)) for start in range(0, b, chunk_size)]
            kept = scaled @ everyone.T if len(chunks) == 1 else None
            by_image, by_text = _softmaxes(scaled, everyone, kept, chunks, world, rank)
            loss = (by_image.loss() + by_text.loss()) / (2 * b)
            if not (grad_enabled and any(ctx.needs_input_grad)):
                return loss

            grad_images, grad_scale = torch.empty_like(images), torch.zeros_like(scale)
            # A frozen tower's features need none; all ranks freeze the same.
            grad_everyone = torch.zeros_like(everyone) if ctx.needs_input_grad[1] else None
            slope_own = by_image.slope() + by_text.slope()
            for at in chunks:
                logits = scaled[at] @ everyone.T if kept is None else kept
                slope = torch.sub(logits, by_image.top[at, None]).sub_(by_image.log[at, None]).exp_()
                slope += logits.sub_(by_text.top).sub_(by_text.log).exp_()
                slope.scatter_(1, _targets(at, b, rank, images.device)[:, None], slope_own[at, None])
                torch.mm(slope, everyone, out=grad_images[at])
                # The sum of slope * (images @ everyone^T), which is not kept.
                grad_scale += (images[at] * grad_images[at]).sum()
                if grad_everyone is not None:
                    grad_everyone.addmm_(slope.T, scaled[at])
                del logits, slope  # before the next block is made
            grad_images *= scale
            grad_texts = grad_everyone if grad_everyone is None or world == 1 else sum_to_owners(grad_everyone, world)
            found = (grad_images, grad_texts, grad_scale)
            ctx.save_for_backward(*(None if gradient is None else gradient.div_(2 * b) for gradient in found))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (*times(grad, ctx.saved_tensors), None, None)


def _softmaxes(
    scaled: Tensor, everyone: Tensor, kept: Tensor | None, chunks: list[slice], world: int, rank: int
) -> tuple[_Softmax, _Softmax]:
    """Of this rank's rows and of all columns, whose terms lie on all ranks."""
    b = len(scaled)
    own, row_top, row_rest = (scaled.new_empty(b) for _ in range(3))
    top, rest = scaled.new_full((len(everyone),), -torch.inf), scaled.new_zeros(len(everyone))
    for at in chunks:
        logits = scaled[at] @ everyone.T if kept is None else kept
        targets = _targets(at, b, rank, scaled.device)[:, None]
        own[at] = logits.gather(1, targets).squeeze(1)
        row_top[at] = logits.amax(dim=1)
        row_rest[at] = torch.sub(logits, row_top[at, None]).exp_().scatter_(1, targets, 0.0).sum(dim=1)
        higher = torch.maximum(top, logits.amax(dim=0))
        terms = torch.sub(logits, higher).exp_().scatter_(1, targets, 0.0)
        rest = rest * (top - higher).exp_() + terms.sum(dim=0)
        top = higher
        del logits, terms  # before the next block is made
    mine = slice(rank * b, rank * b + b)
    higher = top.clone()
    if world > 1:
        dist.all_reduce(higher, op=dist.ReduceOp.MAX)
    sums = rest.mul_((top - higher).exp_()).repeat(2, 1)
    sums[1, mine] += (own - higher[mine]).exp_()
    if world > 1:
        dist.all_reduce(sums)
    rest, total = sums
    by_image = _Softmax(row_top, (row_rest + (own - row_top).exp_()).log_(), row_rest.log() - (own - row_top))
    return by_image, _Softmax(higher, total.log(), rest[mine].log() - (own - higher[mine]))


def _targets(at: slice, b: int, rank: int, device: torch.device) -> Tensor:
    """The columns of the rows `at` of this rank, int64."""
    return torch.arange(at.start, at.stop, device=device) + rank * b
