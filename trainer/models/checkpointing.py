"""Activation checkpointing: a block's inside is computed again in the backward pass instead of being kept, for a third more work.

Only what goes in and out of each block stays in memory. The second time the random numbers are those of the first (patches are dropped
before the blocks, so that this only matters to what may come later), and batch norm's running statistics, which have moved once, rest.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import cast

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recomputed(block: nn.Module, *inputs: Tensor) -> Tensor:
    """`block(*inputs)`, of which nothing but the inputs is kept for the backward pass."""

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), statistics_at_rest(block)

    return cast(Tensor, checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts))


@contextmanager
def statistics_at_rest(model: nn.Module) -> Iterator[None]:
    """Batch norm normalises as before, and its running statistics are what they were when this is over."""
    kept = [
        (module, name, buffer)
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for name, buffer in module.named_buffers(recurse=False)
    ]
    # Copies move in their place: without any, batch norm would save other tensors than in the pass that is repeated.
    for module, name, buffer in kept:
        setattr(module, name, buffer.clone())
    try:
        yield
    finally:
        for module, name, buffer in kept:
            setattr(module, name, buffer)
