"""Positional embeddings for another resolution: the grid of places is resampled, bicubic, as is published practice.

A ViT that saw g x g patches sees G x G when its pictures grow; its learned positions are a picture of g x g pixels with `width` channels,
and are enlarged or shrunk as one (Dosovitskiy et al., "An Image is Worth 16x16 Words", section 3.2). The class token's position, and that
of the mean in a ResNet's attention pool, belong to no place and stay.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.contracts.errors import InputError

POSITIONS = ("visual.positional_embedding", "visual.attnpool.positional_embedding")
"""Of either image tower, [1 + g * g, width]: the one of no place, then the grid's, row by row."""


def interpolate(embedding: Tensor, grid: int) -> Tensor:
    """[1 + g * g, width] to [1 + grid * grid, width], in the embedding's dtype; the same numbers where the grid is the same.

    Bicubic with anti-aliasing (which only matters where the grid shrinks), computed in fp32 or wider. Raises ValueError where the rows are
    no square and one.
    """
    side = math.isqrt(len(embedding) - 1)
    if embedding.ndim != 2 or side * side != len(embedding) - 1:
        raise ValueError(f"positions of shape {list(embedding.shape)} are not those of a square grid and one more")
    if side == grid:
        return embedding
    wide = embedding.to(torch.promote_types(embedding.dtype, torch.float32))
    picture = wide[1:].T.reshape(1, -1, side, side)
    picture = functional.interpolate(picture, (grid, grid), mode="bicubic", align_corners=False, antialias=True)
    return torch.cat([wide[:1], picture.flatten(2)[0].T]).to(embedding.dtype)


def interpolate_positions(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """`weights` (OpenAI's names) with the image tower's positions on the grid of `model`; all else as it is.

    Raises InputError where positions of another length are not those of a square grid.
    """
    found = dict(weights)
    for name, target in model.state_dict().items():
        if name in POSITIONS and name in found and len(found[name]) != len(target):
            try:
                found[name] = interpolate(found[name], math.isqrt(len(target) - 1))
            except ValueError as error:
                raise InputError(f"{name}: {error}; give weights of this kind of image tower") from None
    return found
