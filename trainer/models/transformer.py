"""The pre-LN transformer that both towers are made of, with the parameter names of the released checkpoints.

Attention is one fused call (`scaled_dot_product_attention`) on a packed projection, but its parameters
carry the names of `torch.nn.MultiheadAttention` (`in_proj_weight`, `in_proj_bias`, `out_proj.*`), so that
OpenAI's weights load by name. Layer normalisation is computed in fp32 whatever the weights' dtype is, as
openai/CLIP does. The activation is QuickGELU, x * sigmoid(1.702 x), unless the preset says exact: OpenAI's weights were trained with it and
score lower with the exact GELU, most of open_clip's the other way round.

A tower reads one position of the last block: the class token, or the end of the text. So the last block computes that position alone (its
query, output and MLP; keys and values come from all positions). The numbers and gradients are the same; of a block's work a fifth
remains, which is a twentieth of a 12-layer tower's and most of a shallow one's.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.models import short_attention
from trainer.models.checkpointing import Checkpointing, checkpointed, narrowed, residual_sum
from trainer.models.presets import HEAD_WIDTH, Gelu


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), any shape, any float dtype."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class LayerNorm(nn.LayerNorm):
    """Layer normalisation over the last axis in fp32 (or wider), returned in the dtype of its input."""

    def forward(self, input: Tensor) -> Tensor:
        wide = torch.promote_types(input.dtype, torch.float32)
        weight, bias = self.weight.to(wide), self.bias.to(wide)
        return functional.layer_norm(input.to(wide), self.normalized_shape, weight, bias, self.eps).to(input.dtype)


class SelfAttention(nn.Module):
    """Multi-head self-attention over [n, L, width], heads of 64, optionally causal; of all positions, or of one in each row."""

    short: bool = False
    """Whether a GPU computes what is short by `short_attention.py`."""

    def __init__(self, width: int, *, causal: bool) -> None:
        super().__init__()
        self.heads = width // HEAD_WIDTH
        self.causal = causal
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        # The defaults of torch.nn.MultiheadAttention, which OpenAI's image tower keeps; the text tower
        # draws its own.
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, at: Tensor | None = None) -> Tensor:
        """[n, L, width] to the same shape; with `at`, int64 [n], to [n, 1, width]: row i's position at[i]."""
        n, length, width = x.shape
        if at is None:
            packed = functional.linear(x, self.in_proj_weight, self.in_proj_bias)
            packed = packed.view(n, length, 3, self.heads, HEAD_WIDTH)
            if self.short and short_attention.is_for(packed):
                out: Tensor = self.out_proj(short_attention.short_attention(packed, self.causal))
                return out
            q, k, v = packed.permute(2, 0, 3, 1, 4)
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
            return self._out(mixed)
        one = functional.linear(_rows_at(x, at), self.in_proj_weight[:width], self.in_proj_bias[:width])
        packed = functional.linear(x, self.in_proj_weight[width:], self.in_proj_bias[width:])
        k, v = packed.view(n, length, 2, self.heads, HEAD_WIDTH).permute(2, 0, 3, 1, 4)
        q = one.view(n, 1, self.heads, HEAD_WIDTH).transpose(1, 2)
        seen = None
        if self.causal:
            seen = (torch.arange(length, device=x.device) <= at[:, None])[:, None, None, :]
        return self._out(functional.scaled_dot_product_attention(q, k, v, attn_mask=seen))

    def _out(self, mixed: Tensor) -> Tensor:
        n, _, length, _ = mixed.shape
        out: Tensor = self.out_proj(mixed.transpose(1, 2).reshape(n, length, self.heads * HEAD_WIDTH))
        return out


def _rows_at(x: Tensor, at: Tensor) -> Tensor:
    """Position at[i] of row i: [n, L, width] to [n, 1, width]."""
    return x[torch.arange(len(x), device=x.device), at].unsqueeze(1)


class Block(nn.Module):
    """One residual block: x + attention(ln_1(x)), then x + mlp(ln_2(x)), with an MLP four times as wide."""

    def __init__(self, width: int, *, causal: bool, gelu: Gelu, checkpoint_activations: Checkpointing) -> None:
        super().__init__()
        self.checkpoint_activations = checkpoint_activations
        activation = QuickGELU() if gelu == "quick" else nn.GELU()
        self.attn = SelfAttention(width, causal=causal)
        self.ln_1 = LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(c_fc=nn.Linear(width, 4 * width), gelu=activation, c_proj=nn.Linear(4 * width, width))
        )
        self.ln_2 = LayerNorm(width)

    def forward(self, x: Tensor, at: Tensor | None = None) -> Tensor:
        """[n, L, width] to the same shape; with `at`, int64 [n], to [n, 1, width], as `SelfAttention`."""
        return checkpointed(self.checkpoint_activations, self, self._inside, x, at)

    def _inside(self, x: Tensor, at: Tensor | None) -> Tensor:
        kept = x if at is None else _rows_at(x, at)
        kept = residual_sum(self.checkpoint_activations, kept, self.attn(self.ln_1(x), at))
        wide = self.mlp.get_submodule("c_fc")(self.ln_2(kept))
        return kept + narrowed(self.checkpoint_activations, self, self._narrow, wide)

    def _narrow(self, wide: Tensor) -> Tensor:
        out: Tensor = self.mlp.get_submodule("c_proj")(self.mlp.get_submodule("gelu")(wide))
        return out


class Transformer(nn.Module):
    """`layers` blocks in a row over [n, L, width], read at one position of each row: [n, width]."""

    def __init__(
        self,
        width: int,
        layers: int,
        *,
        causal: bool,
        gelu: Gelu = "quick",
        checkpoint_activations: Checkpointing = "none",
    ) -> None:
        super().__init__()
        self.width = width
        blocks = (
            Block(width, causal=causal, gelu=gelu, checkpoint_activations=checkpoint_activations) for _ in range(layers)
        )
        self.resblocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor, at: Tensor) -> Tensor:
        """`at`: int64 [n], the position that is read."""
        *early, last = self.resblocks
        for block in early:
            x = block(x)
        out: Tensor = last(x, at)
        return out.squeeze(1)

    def init_for_text(self) -> None:
        """Draw the weights as OpenAI's text tower does: what ends in the residual shrinks with the depth."""
        blocks = [block for block in self.resblocks if isinstance(block, Block)]
        into_residual = self.width**-0.5 * (2 * len(blocks)) ** -0.5
        for block in blocks:
            c_fc, c_proj = block.mlp.get_submodule("c_fc"), block.mlp.get_submodule("c_proj")
            assert isinstance(c_fc, nn.Linear)
            assert isinstance(c_proj, nn.Linear)
            nn.init.normal_(block.attn.in_proj_weight, std=self.width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=into_residual)
            nn.init.normal_(c_fc.weight, std=(2 * self.width) ** -0.5)
            nn.init.normal_(c_proj.weight, std=into_residual)
