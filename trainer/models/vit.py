"""The Vision Transformer image tower: patches, a class token in front, an extra LayerNorm before the first
block.

Shapes, names and initialisation follow openai/CLIP (clip/model.py, `VisionTransformer`): the patch
projection has no bias, the class token, the positions and the final projection start at width^-1/2 times a
standard normal.

Patch dropout (Li et al., "Scaling Language-Image Pre-training via Masking") shows the tower a random part of the patches while it trains:
of P patches each picture keeps the same number, round(P (1 - rate)) and at least one, drawn for each picture by itself; the class token
always stays. Positions are added before. The draws come from torch's generator of the device, which gradient caching and activation
checkpointing replay.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.models.checkpointing import Checkpointing
from trainer.models.presets import Gelu, ViTShape
from trainer.models.transformer import LayerNorm, Transformer


class PatchProjection(nn.Conv2d):
    """[n, 3, s, s] to [n, patches, width], the patches row by row: a convolution without overlap, and on GPUs faster as one product.

    A module of its own, because ZeRO's stage 3 gathers a module's weights when it is called. The weight of a module that is not, DeepSpeed
    gathers where another one's forward finds it missing; if that is not in the first step, as after a resume, it ends the run.
    """

    def __init__(self, width: int, patch: int) -> None:
        super().__init__(3, width, kernel_size=patch, stride=patch, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        n, patch = len(input), self.kernel_size[0]
        grid = input.shape[-1] // patch
        whole = input[..., : grid * patch, : grid * patch].to(self.weight.dtype)
        patches = whole.reshape(n, 3, grid, patch, grid, patch).permute(0, 2, 4, 1, 3, 5)
        return functional.linear(patches.reshape(n, grid * grid, 3 * patch * patch), self.weight.flatten(1))


class VisionTransformer(nn.Module):
    """[n, 3, image_size, image_size] to [n, embed_dim]: the class token after `ln_post`, projected."""

    def __init__(
        self,
        shape: ViTShape,
        image_size: int,
        embed_dim: int,
        *,
        gelu: Gelu = "quick",
        patch_dropout: float = 0.0,
        checkpoint_activations: Checkpointing = "none",
    ) -> None:
        super().__init__()
        self.patch_dropout = patch_dropout
        width = shape.width
        grid = image_size // shape.patch
        scale = width**-0.5
        self.conv1 = PatchProjection(width, shape.patch)
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(scale * torch.randn(grid * grid + 1, width))
        self.ln_pre = LayerNorm(width)
        self.transformer = Transformer(
            width, shape.layers, causal=False, gelu=gelu, checkpoint_activations=checkpoint_activations
        )
        self.ln_post = LayerNorm(width)
        self.proj = nn.Parameter(scale * torch.randn(width, embed_dim))

    def forward(self, pixels: Tensor) -> Tensor:
        out: Tensor = self.features(pixels) @ self.proj
        return out

    def features(self, pixels: Tensor) -> Tensor:
        """[n, 3, image_size, image_size] to [n, width]: the class token after `ln_post`, before the projection into the joint space."""
        patches = self.conv1(pixels)
        class_token = self.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        x = torch.cat([class_token, patches], dim=1)
        x = x + self.positional_embedding.to(x.dtype)
        if self.training and self.patch_dropout:
            x = _drop_patches(x, self.patch_dropout)
        at_class_token = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        out: Tensor = self.ln_post(self.transformer(self.ln_pre(x), at_class_token))
        return out


def _drop_patches(x: Tensor, rate: float) -> Tensor:
    """[n, 1 + P, width] to [n, 1 + kept, width]: the first token, and of the others a random part in their order."""
    n, length, width = x.shape
    kept = max(1, round((length - 1) * (1 - rate)))
    chosen = torch.rand(n, length - 1, device=x.device).argsort(dim=1)[:, :kept].sort(dim=1).values
    patches = x[:, 1:].gather(1, chosen.unsqueeze(2).expand(-1, -1, width))
    return torch.cat([x[:, :1], patches], dim=1)
