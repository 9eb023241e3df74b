"""One step's forward and backward, in micro-batches where a device cannot hold its share of the batch: gradient caching, exact.

A contrastive loss compares every pair of the batch with every other, so that the sum of the losses of its parts is another loss, and plain
gradient accumulation another run. But the loss sees features only, and those of the whole batch are small (Gao et al., "Scaling Deep
Contrastive Learning Batch Size under Memory Limited Setup"):

1. each micro-batch goes through the towers without a graph; its features are kept, and the state of the random generators before it;
2. the loss of all features of this rank (against those of all ranks, as ever) gives their gradients, and those of scale and bias;
3. each micro-batch goes through the towers again from the same random state, now with a graph, and backward starts from the gradients of
   its features. Those of scale and bias enter in the last one, which is also the one where gradients meet over ranks.

So the same patches and units are dropped in both passes, and the gradient is that of the whole batch, up to the order of sums, for about a
third more work. Running statistics of batch norm move in the first pass only, once for each sample. What batch norm normalises with are
the pictures of one micro-batch, as without caching those of one process (`models/resnet.py`): for ResNets another `micro_size` is, like
another number of processes, another gradient.

DeepSpeed's own accumulation is told where its boundary is and keeps its count of steps. (`managed_gradient_accumulation: false` would give
the same gradients, but reduce those of stages 0 and 1 inside `engine.step`, too late for whoever must judge them before.)
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from trainer.models.checkpointing import statistics_at_rest

Outputs = tuple[Tensor, ...]


class Engine(Protocol):
    """What is used of `zero.Engine`."""

    module: nn.Module
    device: torch.device

    def __call__(self, pixels: Tensor, *texts: Tensor) -> Outputs: ...
    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None: ...
    def backward(self, loss: Tensor) -> object: ...


def forward_backward(
    engine: Engine,
    loss_of: Callable[..., Tensor],
    load: Callable[[slice], tuple[Tensor, ...]],
    pairs: int,
    micro_size: int | None,
) -> tuple[Tensor, Outputs]:
    """Leave the gradient of the batch's loss in the engine; returns this rank's loss (0-D) and the outputs for all its pairs, detached.

    loss_of: an objective (see `trainer.objectives`). load(slice of this rank's `pairs`) gives pixels and texts as `CLIP.forward` wants
    them, on the engine's device; it is called twice for each micro-batch, and must give the same pairs in the same order. micro_size:
    pairs that go through the towers at a time, at most; None: all. Random numbers in the model must come from torch's default
    generators. Collective.
    """
    places = pieces(pairs, micro_size)
    if len(places) == 1:
        outputs = engine(*load(places[0]))
        loss = loss_of(*outputs)
        engine.backward(loss)
        return loss.detach(), tuple(output.detach() for output in outputs)

    states, parts = [], []
    with torch.no_grad():
        for place in places:
            states.append(_random_state(engine.device))
            parts.append(engine(*load(place)))
    cached = tuple(torch.cat(part) if part[0].ndim > 1 else part[0] for part in zip(*parts, strict=True))
    for output in cached:
        output.requires_grad_(output.is_floating_point())
    loss = loss_of(*cached)
    torch.autograd.backward(loss)

    with statistics_at_rest(engine.module):
        for place, state in zip(places, states, strict=True):
            last = place is places[-1]
            engine.set_gradient_accumulation_boundary(last)
            _set_random_state(state, engine.device)
            outputs = engine(*load(place))
            # The number means nothing; what matters is that its gradient by each output is the loss's.
            carriers = [
                (output * (whole.grad[place] if output.ndim > 1 else whole.grad * last)).sum()
                for output, whole in zip(outputs, cached, strict=True)
                if output.requires_grad and whole.grad is not None
            ]
            engine.backward(torch.stack(carriers).sum())
    return loss.detach(), tuple(output.detach() for output in cached)


def pieces(pairs: int, micro_size: int | None) -> list[slice]:
    """The micro-batches of a process's `pairs`, of at most `micro_size`; None: all at once.

    Sizes differ by one at most: a last micro-batch of a single picture would be nothing for batch norm to normalise with.
    """
    times = 1 if micro_size is None else -(-pairs // micro_size)
    size, larger = divmod(pairs, times)
    return [slice(k * size + min(k, larger), (k + 1) * size + min(k + 1, larger)) for k in range(times)]


RandomState = tuple[Tensor, Tensor | None]
"""Of torch's generator on the CPU, and of that of the device where it has one of its own."""


def _random_state(device: torch.device) -> RandomState:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(state: RandomState, device: torch.device) -> None:
    on_cpu, on_device = state
    torch.set_rng_state(on_cpu)
    if on_device is not None:
        torch.cuda.set_rng_state(on_device, device)
