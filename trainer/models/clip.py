"""CLIP: an image tower and a causal text transformer that meet in one linear joint space, with a learned
scale.

The text tower's parameters sit at the root of the model, as in openai/CLIP (clip/model.py, `CLIP`), so that
a state dict has the released names and shapes. One shape differs while training: `logit_scale` is [1] and
not 0-D, because DeepSpeed cannot broadcast a 0-D parameter; the export squeezes it.

`forward` returns everything that a loss needs, the scale (and the bias of a sigmoid loss) included: under
ZeRO stage 3 a parameter that is read outside of the root's forward is an empty shard.
"""

import math
from collections.abc import Callable, Collection
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.models.checkpointing import Checkpointing
from trainer.models.presets import Preset, ViTShape
from trainer.models.resnet import Bottleneck, ModifiedResNet
from trainer.models.transformer import Block, LayerNorm, SelfAttention, Transformer
from trainer.models.vit import VisionTransformer

INITIAL_LOGIT_SCALE = math.log(1 / 0.07)
MAX_LOGIT_SCALE = math.log(100)

_MOST_PROGRAMS = 128

_FUSE_ALL_SIZES = "triton.mix_order_reduction_non_strict_mode"
"""Where torch's compiler knows it, it sums a norm's gradient by rows and by columns in one kernel however small a group is. Without it, on
GPUs, every program of a text tower is made twice, once for groups below 5 * 2**20 numbers (torch 2.11, `_inductor/scheduler.py`), for which
one kernel is the slower way, it says there."""


class CLIP(nn.Module):
    """The two towers of one preset, freshly initialised as in the paper; `preset` says what they are.

    logit_scale, logit_bias: where the learned ln of the scale and the learned bias start; None: there is no bias.
    """

    def __init__(
        self,
        preset: Preset,
        logit_scale: float = INITIAL_LOGIT_SCALE,
        logit_bias: float | None = None,
        *,
        patch_dropout: float = 0.0,
        checkpoint_activations: Checkpointing = "none",
    ) -> None:
        super().__init__()
        self.preset = preset
        self.visual: VisionTransformer | ModifiedResNet
        if isinstance(preset.vision, ViTShape):
            self.visual = VisionTransformer(
                preset.vision,
                preset.image_size,
                preset.embed_dim,
                gelu=preset.gelu,
                patch_dropout=patch_dropout,
                checkpoint_activations=checkpoint_activations,
            )
        else:
            self.visual = ModifiedResNet(
                preset.vision, preset.image_size, preset.embed_dim, checkpoint_activations=checkpoint_activations
            )
        width = preset.text_width
        self.transformer: Transformer | None = None
        self.positional_embedding: nn.Parameter | None = None
        if preset.text == "transformer":
            self.transformer = Transformer(
                width,
                preset.text_layers,
                causal=True,
                gelu=preset.gelu,
                checkpoint_activations=checkpoint_activations,
            )
        self.token_embedding = nn.Embedding(preset.vocab_size, width)
        if preset.text == "transformer":
            self.positional_embedding = nn.Parameter(torch.empty(preset.context_length, width))
        self.ln_final = LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, preset.embed_dim))
        self.logit_scale = nn.Parameter(torch.full((1,), logit_scale))
        self.logit_bias = None if logit_bias is None else nn.Parameter(torch.full((1,), logit_bias))
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        if self.positional_embedding is not None:
            nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=width**-0.5)
        if self.transformer is not None:
            self.transformer.init_for_text()
        self.frozen: tuple[Literal["image", "text"], ...] = ()

    def freeze(self, towers: Collection[Literal["image", "text"]]) -> None:
        """Take towers out of training for good: no gradients, and in eval mode whatever mode the model is in. Before DeepSpeed."""
        self.frozen = tuple(towers)
        for name, module in self.named_modules():
            if isinstance(module, Block | Bottleneck) and tower_of(name) in self.frozen:
                module.checkpoint_activations = "none"  # there is no backward pass to keep anything for
        for tower in self.frozen:
            for name, parameter in self.named_parameters():
                if tower_of(name) == tower:
                    parameter.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """As in torch, but for frozen towers: their batch norm keeps its statistics and uses them, and nothing is dropped."""
        super().train(mode)
        for name, part in self.named_children():
            if tower_of(name) in self.frozen:
                part.eval()
        return self

    def encode_image(self, pixels: Tensor) -> Tensor:
        """[n, 3, image_size, image_size] normalised pixels to [n, embed_dim], not L2-normalised."""
        features: Tensor = self.visual(pixels)
        return features

    def image_features(self, pixels: Tensor) -> Tensor:
        """What a linear probe reads (paper, A.3), [n, width]: a ViT's class token before the projection, a ResNet's pooled features.

        The attention pool ends in the joint space, so those of a ResNet are what `encode_image` gives.
        """
        if isinstance(self.visual, VisionTransformer):
            return self.visual.features(pixels)
        return self.encode_image(pixels)

    def encode_text(self, ids: Tensor) -> Tensor:
        """[n, L] token ids, L at most context_length, to [n, embed_dim], not L2-normalised.

        The feature is read at the end token. What stands after it
        cannot be seen by it (the mask is causal), so padding needs no mask of its own. A bag of words is the mean of the embeddings up to
        the end token. Padding is not in it: it would draw short texts together, and the same text would have another feature with another
        context_length. The two brackets are, so that a text without a word has a feature too.
        """
        return self._of_embedded(self.token_embedding(ids), ids)

    def _of_embedded(self, x: Tensor, ids: Tensor) -> Tensor:
        """`encode_text` from the words' embeddings of `ids` on, [n, L, width]."""
        ends = text_lengths(ids) - 1
        if self.transformer is None or self.positional_embedding is None:
            x = _mean_until(x, ends)
        else:
            x = self.transformer(x + self.positional_embedding[: ids.shape[1]].to(x.dtype), ends)
        features: Tensor = self.ln_final(x) @ self.text_projection
        return features

    def compile_blocks(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """Have torch.compile make each block one fused program, when it is first called, and the norm before a ViT's first block.

        Names of parameters stay as they are.

        Block by block and not tower by tower: blocks of one shape share a program, so that the compiler has seconds of work and not
        minutes. Not for ZeRO's stage 3, which gathers weights inside of blocks (`config.py` refuses it). A `backend` of one's own takes
        `options`.
        """
        from torch._dynamo import config  # heavy
        from torch._inductor import list_options

        # All modules share the code that is compiled, and torch runs it uncompiled once there are 8 programs of it. A ResNet's blocks alone
        # have 8 shapes; to them come both passes of gradient caching, its last micro-batch and evaluation. Texts come in groups of any
        # size and length (`data/lengths.py`), so that their programs must be for all of them.
        config.recompile_limit = max(config.recompile_limit, _MOST_PROGRAMS)
        of_texts = {_FUSE_ALL_SIZES: True} if _FUSE_ALL_SIZES in list_options() else None
        for name, module in self.named_modules():
            # The norm is in fp32: by itself it goes through memory three times as often as it needs to.
            if isinstance(module, Block | Bottleneck) or name == "visual.ln_pre":
                is_text = tower_of(name) == "text"
                module.compile(dynamic=is_text, backend=backend, options=of_texts if is_text else None)

    def take_short_attention(self) -> None:
        """Have GPUs compute attention of few positions by a kernel of our own, in half precision (`short_attention.py`)."""
        for module in self.modules():
            if isinstance(module, SelfAttention):
                module.short = True

    def forward(self, pixels: Tensor, *texts: Tensor) -> tuple[Tensor, ...]:
        """Both features, L2-normalised, the scale exp(logit_scale) of shape [1], and logit_bias [1] if there is one; at least fp32.

        texts: ids as `encode_text` takes them, in one piece or in several of different lengths; together they are the pictures' texts.
        """
        image_features = functional.normalize(_wide(self.encode_image(pixels)), dim=-1)
        # Looked up once: each time would make a gradient of the whole vocabulary.
        embedded = torch.split(
            self.token_embedding(torch.cat([ids.flatten() for ids in texts])), [ids.numel() for ids in texts]
        )
        of_groups = [self._of_embedded(x.view(*ids.shape, -1), ids) for x, ids in zip(embedded, texts, strict=True)]
        text_features = functional.normalize(_wide(torch.cat(of_groups)), dim=-1)
        # A copy, for DeepSpeed hooks what a model returns, and must not take a parameter for an output.
        own = () if self.logit_bias is None else (_wide(self.logit_bias).clone(),)
        return image_features, text_features, _wide(self.logit_scale).exp(), *own


def text_lengths(ids: Tensor) -> Tensor:
    """[n, L] token ids to int64 [n]: how many each text has, its end token included, which is the largest id; what follows is padding."""
    return ids.argmax(dim=1) + 1


def tower_of(name: str) -> Literal["image", "text"] | None:
    """Which tower a parameter, buffer or part of a CLIP belongs to, by its name; the scale and the bias of the logits belong to none."""
    if name in ("logit_scale", "logit_bias"):
        return None
    return "image" if name.partition(".")[0] == "visual" else "text"


def _wide(x: Tensor) -> Tensor:
    """fp32 from narrower dtypes; fp64 stays, so that gradients can be checked to ten digits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _mean_until(x: Tensor, ends: Tensor) -> Tensor:
    """[n, L, width] and int64 [n] to [n, width]: the mean of row i's positions 0 to ends[i], summed in fp32 or wider."""
    kept = (torch.arange(x.shape[1], device=x.device) <= ends[:, None]).unsqueeze(2)
    return (_wide(x) * kept).sum(dim=1).div(ends[:, None] + 1).to(x.dtype)
