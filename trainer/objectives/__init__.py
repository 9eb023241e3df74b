"""Objectives: what the two towers are asked to agree on, one file each.

An objective is a function of what the model's `forward` returned: `loss(*outputs, chunk_size=None)` is this rank's loss as a 0-D tensor,
whose mean over ranks is the loss of the whole batch, with gradients that are those of that mean once DDP or ZeRO has averaged them. It
sees no pixels, no ids and no parameters, and draws no random numbers; whatever it must know (a learned scale, a mask of padding) is among
the outputs. Outputs of two or more dimensions have a row for each pair of this rank, the others are the model's own. Gradient caching
(`trainer/gradient_cache.py`) rests on exactly this, so that it will do for token-wise objectives (FILIP, GLoRIA: outputs of [n, T, E]) and
for those with soft targets (ALIGN, MedCLIP), which are not written yet.

`OBJECTIVES` names those that there are, with what the model must start from.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from trainer.models.clip import INITIAL_LOGIT_SCALE
from trainer.objectives.clip import contrastive_loss
from trainer.objectives.siglip import sigmoid_loss


class Objective(NamedTuple):
    """A loss and the first values of the model's own outputs for it: ln of the scale, and the bias where it has one."""

    loss: Callable[..., Tensor]
    logit_scale: float
    logit_bias: float | None = None


OBJECTIVES = {
    "clip": Objective(contrastive_loss, INITIAL_LOGIT_SCALE),
    "siglip": Objective(sigmoid_loss, math.log(10), -10.0),
}
