"""The Vision Transformer image tower: patches, a class token in front, an extra LayerNorm before the first
block.

Shapes, names and initialisation follow openai/CLIP (clip/model.py, `VisionTransformer`): the patch
projection has no bias, the class token, the positions and the final projection start at width^-1/2 times a
standard normal.
"""

import torch
from torch import Tensor, nn

from trainer.models.presets import ViTShape
from trainer.models.transformer import LayerNorm, Transformer


class VisionTransformer(nn.Module):
    """[n, 3, image_size, image_size] to [n, embed_dim]: the class token after `ln_post`, projected."""

    def __init__(self, shape: ViTShape, image_size: int, embed_dim: int) -> None:
        super().__init__()
        width = shape.width
        grid = image_size // shape.patch
        scale = width**-0.5
        self.conv1 = nn.Conv2d(3, width, kernel_size=shape.patch, stride=shape.patch, bias=False)
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(scale * torch.randn(grid * grid + 1, width))
        self.ln_pre = LayerNorm(width)
        self.transformer = Transformer(width, shape.layers, causal=False)
        self.ln_post = LayerNorm(width)
        self.proj = nn.Parameter(scale * torch.randn(width, embed_dim))

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.conv1(pixels.to(self.conv1.weight.dtype)).flatten(2).transpose(1, 2)
        class_token = self.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        x = torch.cat([class_token, patches], dim=1)
        x = x + self.positional_embedding.to(x.dtype)
        at_class_token = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        x = self.transformer(self.ln_pre(x), at_class_token)
        out: Tensor = self.ln_post(x) @ self.proj
        return out
