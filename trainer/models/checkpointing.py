"""Activation checkpointing: what a block computes is computed again in the backward pass instead of being kept.

"elementwise": a block keeps its input and what costs arithmetic (products, convolutions, attention), and computes the rest again: norms,
activations, sums of the residual. Of a product that narrows (the MLP's second one) nothing needs the result, and it is not computed twice
either, because what is made again ends with the last tensor that the backward pass asks for. A transformer's block keeps some 11 numbers
for each of the residual's, instead of 20 to 24, or of 16 to 19 where it is compiled, and does no product twice. (Of a ResNet's memory four
fifths remain.)

"activation": a transformer's block computes nothing again but the activation of its MLP, which is wide and cheap: some 4 numbers fewer than
with all that a compiled block keeps. Where it is compiled that is one more tensor written in the backward pass; "elementwise" has both
norms read and written again too. A ResNet's block keeps all.

"blocks": a block keeps nothing but its input, for a third more work.

All give the same gradients, to the bit where nothing is compiled. (But where autocast meets texts in several groups: without "elementwise"
a weight is cast once for all groups, and their gradients are summed in half precision; with "activation" all but that of the MLP's second
product.) Nothing inside of a block is random: patches are
dropped before. Batch norm's running statistics, which have moved once, rest the second time. The policy is one of torch's own
(`torch.utils.checkpoint.create_selective_checkpoint_contexts`), which torch.compile follows too. Where nothing is compiled it takes several
times the work of the process that launches kernels, "activation" half as much: small micro-batches may make a GPU wait for it.

A compiled block keeps the sum of the residual between attention and MLP, in each of the ways but "blocks", and not the product that was
added: as much memory. Left to itself Inductor keeps the product, and makes the sum again for the backward passes of both norms. These it
then computes together, since both read the block's input: in one kernel that needs nearly all registers of a GPU (torch 2.11), or in
three (2.13). With the sum each norm has one kernel, which reads what it needs once (`python -m tests.benchmarks.traffic`).
"""

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from trainer.models import short_attention

Checkpointing = Literal["none", "activation", "elementwise", "blocks"]
Context = AbstractContextManager[object]

_ALL_KEPT: tuple[Checkpointing, ...] = ("none", "activation")
"""Outside of the MLP."""

_PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
_KEPT = (
    torch.ops.aten.convolution.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    short_attention.OPERATION,
)


# torch's compiler warns every process that a policy is not for operations in place. A block has only those of batch norm's statistics.
logging.getLogger("torch._higher_order_ops.wrap").addFilter(lambda record: "context_fn is passed" not in record.msg)


def checkpointed(how: Checkpointing, block: nn.Module, inside: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
    """`inside(*inputs)`, which is what `block` computes, keeping for the backward pass what `how` says. With "activation" that is all: see
    `narrowed`.
    """
    if how in _ALL_KEPT or not torch.is_grad_enabled():
        return inside(*inputs)
    contexts: Callable[[], tuple[Context, Context]] = functools.partial(_around_both_passes, how, block)
    if torch.compiler.is_compiling():  # a compiled program changes running statistics once, whatever it computes twice
        if how == "blocks":
            return cast(Tensor, checkpoint(inside, *inputs, use_reentrant=False, preserve_rng_state=False))
        contexts = _elementwise_compiled
    return cast(Tensor, checkpoint(inside, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=contexts))


def narrowed(how: Checkpointing, block: nn.Module, inside: Callable[[Tensor], Tensor], wide: Tensor) -> Tensor:
    """`inside(wide)`, which is an MLP's activation and its second product; with "activation" only `wide` is kept for both."""
    return checkpointed("elementwise" if how == "activation" else "none", block, inside, wide)


def _policy(context: object, operation: object, *inputs: Any, **options: Any) -> CheckpointPolicy:
    kept = operation in _KEPT
    if operation in _PRODUCTS:  # of [n, depth] and [depth, width]
        depth, width = inputs[-1].shape
        kept = width >= depth
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


_elementwise = functools.partial(create_selective_checkpoint_contexts, _policy)


def _policy_compiled(context: object, operation: object, *inputs: Any, **options: Any) -> CheckpointPolicy:
    if operation is torch.ops.aten.add.Tensor and _are_residual(*inputs):
        return CheckpointPolicy.MUST_SAVE
    return _policy(context, operation, *inputs, **options)


_elementwise_compiled = functools.partial(create_selective_checkpoint_contexts, _policy_compiled)


def _are_residual(x: object, y: object) -> bool:
    """Whether both are [n, L, width]. A ResNet's shortcut is not: nothing but its sum's activation is asked for again."""
    return isinstance(x, Tensor) and isinstance(y, Tensor) and x.dim() == 3 and x.shape == y.shape


def residual_sum(how: Checkpointing, x: Tensor, y: Tensor) -> Tensor:
    """x + y, both [n, L, width], inside of a block; a compiled one that is to keep all keeps this too."""
    if how not in _ALL_KEPT or not torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return x + y
    return cast(Tensor, checkpoint(torch.add, x, y, use_reentrant=False, preserve_rng_state=False, context_fn=_kept))


def _keep(context: object, operation: object, *inputs: Any, **options: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE


_kept = functools.partial(create_selective_checkpoint_contexts, _keep)


def _around_both_passes(how: Checkpointing, block: nn.Module) -> tuple[Context, Context]:
    """What is entered around the first pass, and around the second, where nothing is compiled."""
    if how == "blocks":
        return nullcontext(), statistics_at_rest(block)
    first, second = _elementwise()
    return _with_all(_own_casts(), first), _with_all(_own_casts(), statistics_at_rest(block), second)


@contextmanager
def _with_all(*contexts: Context) -> Iterator[None]:
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


@contextmanager
def _own_casts() -> Iterator[None]:
    """Autocast casts weights each time. By itself it casts a weight once for all calls of a block (texts come in groups), and again in the
    backward pass, where each call must do what it did in the forward pass.
    """
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


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
