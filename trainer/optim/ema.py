"""An exponential moving average of the master weights: flat and sharded as they are, fp32 whatever they are.

    average_n = average_{n-1} + (1 - d_n) (master_n - average_{n-1}),    d_n = min(decay, n / (n + 9))

The n-th update of a run counts its own way up to `decay`: d_1 = 0.1, d_10 = 0.53, d_90 = 0.91, and 0.9999 after 90,000 updates. Without
that rule the first weights, which know nothing, would weigh 0.9999^n. (TensorFlow's `ExponentialMovingAverage` with `num_updates` has the
same rule, (1 + n) / (10 + n), counted from 0.)

Only weights are averaged. Running statistics of batch norm belong to the weights that they were measured with; an export of the average
takes those of the run, which follow the weights within some ten steps.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_CHUNK = 1 << 22


class Ema:
    """The average of `masters` (the same tensors in the same order at every update).

    `tensors` (fp32, contiguous, one for each master) and `updates` (how many there were) are the whole state. It takes 4 bytes a number, on
    the master's device.
    """

    def __init__(self, masters: Sequence[Tensor], decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay must be between 0 and 1, not {decay}")
        self.decay = decay
        self.updates = 0
        self.tensors = [
            master.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format) for master in masters
        ]

    @torch.no_grad()
    def update(self, masters: Sequence[Tensor]) -> None:
        """Take in the masters after a step that was applied; a skipped step must not be counted."""
        self.updates += 1
        weight = 1 - min(self.decay, self.updates / (self.updates + 9))
        for average, master in zip(self.tensors, masters, strict=True):
            # Chunks, because a bf16 master is widened. An average kept as d * average + (1 - d) * master would settle beside a constant
            # master: in fp32 the two factors of 0.9999 do not add up to 1.
            olds, news = average.view(-1), master.detach().reshape(-1)
            for start in range(0, len(olds), _CHUNK):
                at = slice(start, start + _CHUNK)
                olds[at].lerp_(news[at].float(), weight)

    @torch.no_grad()
    def restore(self, tensors: Sequence[Tensor], updates: int) -> None:
        """Put back a state that was kept, in place. Raises ValueError where its sizes are not the masters'."""
        for average, kept in zip(self.tensors, tensors, strict=True):
            if kept.numel() != average.numel():
                raise ValueError(f"an average of {kept.numel():,} numbers for a master of {average.numel():,}")
            average.view(-1).copy_(kept.reshape(-1))
        self.updates = updates
