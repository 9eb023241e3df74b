"""The sigmoid loss (Zhai et al., "Sigmoid Loss for Language Image Pre-Training"), sharded: this rank's pictures against all texts.

    L_r = -1/b sum_{i in r} sum_{j of all ranks} log sigmoid( z_ij (s u_i.v_j + c) ),   z_ij = 1 for a pair, else -1

with the scale s and the bias c. It asks of each picture and text by themselves whether they are a pair, so only texts are gathered.
Memory and gradients: `objectives/sharded.py`.
"""

from torch import Tensor
from torch.nn import functional

from trainer.objectives.sharded import mean_row_loss


def sigmoid_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    *,
    chunk_size: int | None = None,
) -> Tensor:
    """The sum over all texts, mean over this rank's pictures, as a 0-D tensor.

    Features, scale and chunk_size as in `objectives.clip.contrastive_loss`; logit_bias: the number added to the logits, of shape [1] or [].
    """
    return mean_row_loss(_log_sigmoid, image_features, text_features, logit_scale, logit_bias, chunk_size)


def _log_sigmoid(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of -log sigmoid(z logits) = softplus(-z logits), and its slope -z sigmoid(-z logits)."""
    at = targets[:, None]
    wrong = logits.scatter_(1, at, -logits.gather(1, at))  # -z logits
    loss = functional.softplus(wrong, threshold=40.0).sum()  # beyond 40 it is its argument to the last bit, of fp64 too
    slope = wrong.sigmoid_()
    return loss, slope.scatter_(1, at, -slope.gather(1, at))
