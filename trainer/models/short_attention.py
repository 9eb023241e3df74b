"""Attention over at most 128 positions on a GPU, by two kernels of our own: of texts, and of pictures in large patches.

torch's kernel for GPUs (FlashAttention 2, as torch 2.11 has it) is made for long rows: its backward pass computes tiles of 128 queries, and
adds their gradients up in fp32 in memory of as many rows. For the 50 positions of a ViT-B/32, or the 18 that a caption of the web has in
its group, most of that is padding. And it gives three gradients, which the packed projection needs as one tensor, so that they are read and
written once more. `short_attention_kernels.py` reads the packed projection and writes its packed gradient: 4 and 7 numbers for each of the
residual's, and nothing else. Bits are the same each time, which FlashAttention's are not where there are more than two tiles of keys.

Operators of torch's own registry, so that torch.compile and selective checkpointing take them as they are.
"""

from typing import Any

import torch
from torch import Tensor

from trainer.models.presets import HEAD_WIDTH

LONGEST = 128
"""Positions, whose keys fit into one tile."""


def is_for(packed: Tensor) -> bool:
    """Whether the kernels take this: half precision on a GPU, and not too long. [n, L, …]"""
    return packed.is_cuda and packed.dtype in (torch.float16, torch.bfloat16) and packed.shape[1] <= LONGEST


@torch.library.custom_op("trainer::short_attention", mutates_args=())
def short_attention(packed: Tensor, causal: bool) -> Tensor:
    """softmax(q k^T / 8) v of each head, to [n, L, heads * 64].

    packed: queries, keys and values, [n, L, 3, heads, 64] in half precision, L at most LONGEST. causal: a position sees none behind it.
    """
    from trainer.models import short_attention_kernels  # needs Triton

    n, length, _, heads, width = packed.shape
    assert length <= LONGEST
    assert width == HEAD_WIDTH
    out = packed.new_empty(n, length, heads * width)
    short_attention_kernels.forward(packed.contiguous(), out, causal=causal)
    return out


@short_attention.register_fake
def _(packed: Tensor, causal: bool) -> Tensor:
    n, length, _, heads, width = packed.shape
    return packed.new_empty(n, length, heads * width)


@torch.library.custom_op("trainer::short_attention_backward", mutates_args=())
def _short_attention_backward(gradient: Tensor, packed: Tensor, causal: bool) -> Tensor:
    from trainer.models import short_attention_kernels

    out = torch.empty_like(packed, memory_format=torch.contiguous_format)
    short_attention_kernels.backward(gradient.contiguous(), packed.contiguous(), out, causal=causal)
    return out


@_short_attention_backward.register_fake
def _(gradient: Tensor, packed: Tensor, causal: bool) -> Tensor:
    return torch.empty_like(packed, memory_format=torch.contiguous_format)


def _keep(ctx: Any, inputs: tuple[Tensor, bool], output: Tensor) -> None:
    packed, ctx.causal = inputs
    ctx.save_for_backward(packed)


def _gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    (packed,) = ctx.saved_tensors
    return _short_attention_backward(gradient, packed, ctx.causal), None


short_attention.register_autograd(_gradient, setup_context=_keep)

OPERATION = torch.ops.trainer.short_attention.default
"""What a policy of selective checkpointing sees of it."""
