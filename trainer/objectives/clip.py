"""The symmetric contrastive loss of the paper, sharded: each rank computes the logits of its own rows only.

    L_r = 1/(2b) sum_{i in r} [ CE(s u_i V^T, i) + CE(s v_i U^T, i) ]

with the normalised features u, v of this rank's b pairs, those of all ranks U, V, and the scale s. A rank's own L_r is not the loss of
the whole batch: average it over ranks before printing. Exact given the features: a ResNet's depend on which pictures share a rank
(`models/resnet.py`). Memory and gradients: `objectives/sharded.py`.
"""

from torch import Tensor
from torch.nn import functional

from trainer.objectives.sharded import mean_row_loss


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
    by_image = mean_row_loss(_cross_entropy, image_features, text_features, logit_scale, None, chunk_size)
    by_text = mean_row_loss(_cross_entropy, text_features, image_features, logit_scale, None, chunk_size)
    return (by_image + by_text) / 2


def _cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of -log softmax at the targets; its slope is the softmax, less one at the targets."""
    at = targets[:, None]
    log_p = functional.log_softmax(logits, dim=1)
    loss = -log_p.gather(1, at).sum()
    # One less of a probability near one would leave rounding errors; what the others have is the same number, exactly.
    slope = log_p.exp_().scatter_(1, at, 0.0)
    return loss, slope.scatter_(1, at, -slope.sum(dim=1, keepdim=True))
