"""Positional embeddings for pictures of another size: those of the image tower, interpolated over its grid."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from trainer.models.clip import CLIP

_POSITIONS = ("visual.positional_embedding", "visual.attnpool.positional_embedding")


def interpolate_positions(weights: Mapping[str, Tensor], model: CLIP) -> dict[str, Tensor]:
    """`weights` (under our names) with the image tower's positions for the grid of `model`; all else as it is.

    The first position, of the class token or of the mean, stays; the others are a square grid, resized bicubically with antialiasing, as
    published practice has it (open_clip's `resize_pos_embed`). What is no square grid of its width is left for the reader to refuse.
    """
    out = dict(weights)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for name in _POSITIONS:
        given = out.get(name)
        if given is None or name not in shapes or given.ndim != 2 or given.shape == shapes[name]:
            continue
        rows, width = given.shape
        grid, wanted = math.isqrt(max(0, rows - 1)), math.isqrt(shapes[name][0] - 1)
        if grid < 1 or grid * grid != rows - 1 or width != shapes[name][1]:
            continue
        plane = given[1:].float().reshape(1, grid, grid, width).permute(0, 3, 1, 2)
        plane = functional.interpolate(plane, (wanted, wanted), mode="bicubic", antialias=True, align_corners=False)
        out[name] = torch.cat([given[:1].float(), plane.permute(0, 2, 3, 1).reshape(wanted * wanted, width)])
    return out
