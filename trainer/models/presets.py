"""The architectures by name, with the hyper-parameters that the paper trained each of them with.

Sources: "Learning Transferable Visual Models From Natural Language Supervision", Tables 18 to 20 of
Appendix F, and the shapes of the released checkpoints (openai/CLIP, clip/model.py, `build_model`). The
small shapes are ours and go through the same code as the large ones: `tiny`, a ModifiedResNet, tells shapes
apart after a minute on two CPU cores, `tiny-vit` only colours, `tiny-16` sees pictures of 16 pixels.

A preset says what the model is and how it wants to be optimised; batch size, length of the run and warm-up
belong to the training config.
"""

from dataclasses import dataclass
from typing import Literal

Gelu = Literal["quick", "exact"]
"""The activation of both towers' blocks: x * sigmoid(1.702 x), with which OpenAI's weights were trained, or x * Phi(x)."""
TextTower = Literal["transformer", "bag_of_words"]

HEAD_WIDTH = 64
"""Width of one attention head in every tower; the number of heads follows from it."""


@dataclass(frozen=True, slots=True)
class ViTShape:
    """A Vision Transformer: `layers` blocks of `width`, on square patches of `patch` pixels."""

    layers: int
    width: int
    patch: int


@dataclass(frozen=True, slots=True)
class ResNetShape:
    """A ModifiedResNet: bottleneck blocks per stage, stem of `width` w; the attention pool is 32 w wide."""

    blocks: tuple[int, int, int, int]
    width: int


@dataclass(frozen=True, slots=True)
class Preset:
    """One model: shapes of both towers (pixels, ids, widths) and the paper's AdamW settings for it."""

    name: str
    embed_dim: int
    image_size: int
    vision: ViTShape | ResNetShape
    text_width: int
    text_layers: int
    lr: float
    betas: tuple[float, float]
    eps: float
    context_length: int = 77
    vocab_size: int = 49_408
    gelu: Gelu = "quick"
    text: TextTower = "transformer"


_RESNET_BETAS, _RESNET_EPS = (0.9, 0.999), 1e-8
_VIT_BETAS, _VIT_EPS = (0.9, 0.98), 1e-6


def _resnet(
    name: str,
    embed: int,
    size: int,
    blocks: tuple[int, int, int, int],
    width: int,
    text_width: int,
    lr: float,
) -> Preset:
    return Preset(name, embed, size, ResNetShape(blocks, width), text_width, 12, lr, _RESNET_BETAS, _RESNET_EPS)


def _vit(name: str, embed: int, size: int, layers: int, width: int, patch: int, text_width: int, lr: float) -> Preset:
    return Preset(name, embed, size, ViTShape(layers, width, patch), text_width, 12, lr, _VIT_BETAS, _VIT_EPS)


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        _resnet("RN50", 1024, 224, (3, 4, 6, 3), 64, 512, 5e-4),
        _resnet("RN101", 512, 224, (3, 4, 23, 3), 64, 512, 5e-4),
        _resnet("RN50x4", 640, 288, (4, 6, 10, 6), 80, 640, 5e-4),
        _resnet("RN50x16", 768, 384, (6, 8, 18, 8), 96, 768, 4e-4),
        _resnet("RN50x64", 1024, 448, (3, 15, 36, 10), 128, 1024, 3.6e-4),
        _vit("ViT-B/32", 512, 224, 12, 768, 32, 512, 5e-4),
        _vit("ViT-B/16", 512, 224, 12, 768, 16, 512, 5e-4),
        _vit("ViT-L/14", 768, 224, 24, 1024, 14, 768, 4e-4),
        _vit("ViT-L/14@336px", 768, 336, 24, 1024, 14, 768, 2e-5),
        Preset(
            name="tiny",
            embed_dim=128,
            image_size=64,
            vision=ResNetShape(blocks=(1, 1, 1, 1), width=24),
            text_width=128,
            text_layers=2,
            lr=1e-3,
            betas=_RESNET_BETAS,
            eps=_RESNET_EPS,
            context_length=32,
            vocab_size=2_048,
        ),
        Preset(
            name="tiny-vit",
            embed_dim=128,
            image_size=64,
            vision=ViTShape(layers=4, width=192, patch=8),
            text_width=128,
            text_layers=2,
            lr=1e-3,
            betas=_VIT_BETAS,
            eps=_VIT_EPS,
            context_length=32,
            vocab_size=2_048,
        ),
        # Four patches a picture: of what two CPU cores can train in minutes, it learned most from 4,500 emoji (tests/e2e/emoji.toml).
        Preset(
            name="tiny-16",
            embed_dim=128,
            image_size=16,
            vision=ViTShape(layers=1, width=384, patch=8),
            text_width=128,
            text_layers=1,
            lr=1e-3,
            betas=_VIT_BETAS,
            eps=_VIT_EPS,
            context_length=16,
            vocab_size=2_048,
        ),
    )
}
