"""Models by name: `build("ViT-B/32")` gives a fresh CLIP with OpenAI's parameter names and shapes."""

import dataclasses
import difflib

import torch

from pipeline.contracts.errors import InputError
from trainer.models.checkpointing import Checkpointing
from trainer.models.clip import CLIP, INITIAL_LOGIT_SCALE, text_lengths
from trainer.models.positions import interpolate_positions
from trainer.models.presets import PRESETS, Gelu, Preset, ResNetShape, TextTower, ViTShape

__all__ = [
    "CLIP",
    "PRESETS",
    "Gelu",
    "Preset",
    "ResNetShape",
    "TextTower",
    "ViTShape",
    "build",
    "interpolate_positions",
    "leave_out_cudnn_attention",
    "text_lengths",
]

_RESNET_SHRINK = 32


def leave_out_cudnn_attention() -> None:
    """Have this process compute attention by torch's other kernels than cuDNN's, which torch prefers on an H200 from 2.11 on.

    That one plans each new shape (half a second each on a B200, says FunASR's issue 3704), and texts come in new shapes all the time. And
    its gradients are no numbers for some of what towers ask for: of one query, as in a last block (NVIDIA/cudnn-frontend's issue 1072, on
    an H200), and of 64 places with a mask (pytorch's issue 196678).
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def build(
    preset: str | Preset,
    *,
    vocab_size: int | None = None,
    context_length: int | None = None,
    image_size: int | None = None,
    gelu: Gelu | None = None,
    text: TextTower | None = None,
    patch_dropout: float = 0.0,
    checkpoint_activations: Checkpointing = "none",
    logit_scale: float = INITIAL_LOGIT_SCALE,
    logit_bias: float | None = None,
) -> CLIP:
    """A new model of `preset` (one of PRESETS by name, or a Preset of your own), drawn from torch's global
    generator.

    The three sizes replace the preset's: ids in the vocabulary, ids in a text (brackets included), pixels
    of a side; so do `gelu` and `text`. While it trains a ViT sees each picture without a share `patch_dropout`
    of its patches, and `checkpoint_activations` says what blocks compute
    again in the backward pass instead of keeping it (`models/checkpointing.py`). logit_scale and logit_bias are
    where these parameters start (`trainer.objectives.OBJECTIVES` has the values of each objective). Build under `torch.device("meta")`
    for shapes without memory. Raises InputError for an unknown name or a size that cannot be.
    """
    chosen = PRESETS.get(preset) if isinstance(preset, str) else preset
    if chosen is None:
        near = difflib.get_close_matches(str(preset), PRESETS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(PRESETS)}"
        raise InputError(f"model preset: no preset is named {preset!r}; {hint}")
    chosen = dataclasses.replace(
        chosen,
        vocab_size=chosen.vocab_size if vocab_size is None else vocab_size,
        context_length=chosen.context_length if context_length is None else context_length,
        image_size=chosen.image_size if image_size is None else image_size,
        gelu=gelu or chosen.gelu,
        text=text or chosen.text,
    )
    if not 0 <= patch_dropout < 1 or (patch_dropout and not isinstance(chosen.vision, ViTShape)):
        raise InputError(
            f"model patch_dropout: {patch_dropout!r} for {chosen.name!r}: a share of a ViT's patches from 0 to below 1, and 0 for a ResNet,"
            " which has no patches; set it to 0"
        )
    step = chosen.vision.patch if isinstance(chosen.vision, ViTShape) else _RESNET_SHRINK
    if chosen.image_size < step or chosen.image_size % step:
        raise InputError(
            f"model image_size: {chosen.image_size!r} pixels is not a positive multiple of {step}, "
            f"which {chosen.name!r} needs; use for example {max(1, chosen.image_size // step) * step}"
        )
    if chosen.context_length < 3:
        raise InputError(
            f"model context_length: {chosen.context_length!r} ids have no room for the two end marks; use 3 or more"
        )
    if chosen.vocab_size < 2:
        raise InputError(f"model vocab_size: {chosen.vocab_size!r} is no vocabulary; give the tokenizer's vocab_size")
    return CLIP(
        chosen,
        logit_scale,
        logit_bias,
        patch_dropout=patch_dropout,
        checkpoint_activations=checkpoint_activations,
    )
