"""What OpenAI, open_clip and transformers' `CLIPModel` call our tensors, both ways, and what they must be told of the architecture.

Our models have OpenAI's names. open_clip's `CLIP` has them too; its `CustomTextCLIP` puts "text." before those of the text tower, which is
taken away when weights come in (weights go out as `CLIP`'s). transformers has names of its own, cuts the packed projection of queries, keys
and values into three, and keeps the two last projections transposed; it has no class for CLIP's ResNets and none for a bias of the logits.

A tensor of ours is found by asking where it lies under the other names, so that nothing of a foreign state dict is guessed at: what nobody
asked for is unknown, and what is not there is missing.
"""

import os
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from pipeline.contracts.errors import InputError
from trainer.models.presets import HEAD_WIDTH, Preset, ResNetShape, ViTShape

Names = Literal["openai", "open_clip", "transformers"]

_NOT_WEIGHTS = {
    "input_resolution",  # numbers that OpenAI's archives hold among the weights
    "context_length",
    "vocab_size",
    "attn_mask",  # a buffer of older open_clip models
    "position_ids",  # buffers of older transformers models
}
"""By their last part: what has these names is no weight and left out."""

_WRAPPED = re.compile(r"(?:module\.|_orig_mod\.)*")
"""What data parallelism and torch.compile put before all names, in any order."""

_TRANSFORMERS = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
_TRANSFORMERS_TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
_TRANSFORMERS_BLOCKS = {
    "transformer.resblocks.": "text_model.encoder.layers.",
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
}
_TRANSFORMERS_IN_BLOCK = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


class Place(NamedTuple):
    """Where a tensor of ours lies under other names: cut along its first axis into the tensors of `names`, each transposed or not."""

    names: tuple[str, ...]
    transposed: bool = False


def place_of(name: str, names: Names) -> Place | None:
    """Where our tensor `name` lies under `names`; None where that library has nothing like it."""
    if names != "transformers":
        return Place((name,))
    if name in _TRANSFORMERS:
        return Place((_TRANSFORMERS[name],))
    if name in _TRANSFORMERS_TRANSPOSED:
        return Place((_TRANSFORMERS_TRANSPOSED[name],), transposed=True)
    for ours, theirs in _TRANSFORMERS_BLOCKS.items():
        if not name.startswith(ours):
            continue
        number, _, rest = name.removeprefix(ours).partition(".")
        part, _, kind = rest.rpartition(".")  # kind: weight or bias
        if part in _TRANSFORMERS_IN_BLOCK:
            return Place((f"{theirs}{number}.{_TRANSFORMERS_IN_BLOCK[part]}.{kind}",))
        if rest.startswith("attn.in_proj_"):
            kind = rest.removeprefix("attn.in_proj_")
            return Place(tuple(f"{theirs}{number}.self_attn.{letter}_proj.{kind}" for letter in "qkv"))
    return None


def check(names: str, ours: Collection[str], what: str) -> Names:
    """`names`, if it is a set of names and the library behind it has a model with all the tensors `ours`.

    `what`: the model, for the message. Raises InputError.
    """
    for known in get_args(Names):
        if names == known:
            found: Names = known
            break
    else:
        raise InputError(f"names: {names!r} is unknown; use one of {', '.join(map(repr, get_args(Names)))}")
    if found != "openai" and "positional_embedding" not in ours:
        raise InputError(f"names: {names!r} has no class for the bag of words of {what!r}; use 'openai'")
    strange = next((name for name in ours if place_of(name, found) is None), None)
    if strange is not None:
        raise InputError(
            f"names: transformers' CLIPModel cannot hold {what!r}, it has no place for {strange!r}: no ResNet, no text tower but a"
            " transformer, no bias of the logits; use 'openai' or 'open_clip'"
        )
    return found


def to_names(weights: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Our `weights` under `names`, which `check` has passed: the same tensors, or copies where they are cut or transposed."""
    out = {}
    for name, tensor in weights.items():
        place = place_of(name, names)
        assert place is not None
        if place.transposed:
            out[place.names[0]] = tensor.t().contiguous()
        elif len(place.names) == 1:
            out[place.names[0]] = tensor
        else:
            parts = tensor.chunk(len(place.names))
            out |= {theirs: part.clone() for theirs, part in zip(place.names, parts, strict=True)}
    return out


class Found(NamedTuple):
    """Foreign weights under our names, and the names that were missing or unknown: foreign ones, sorted."""

    weights: dict[str, Tensor]
    missing: list[str]
    unknown: list[str]


def from_names(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], names: Names) -> Found:
    """The tensors `wanted`, by our names, out of a state dict under `names`; numbers and buffers that are no weights are left out.

    Shapes are the caller's to compare with those of `wanted`. What cannot be put together into one tensor has another one.
    """
    tidied = _tidied(given, names)
    weights: dict[str, Tensor] = {}
    missing: list[str] = []
    used: set[str] = set()
    for name, target in wanted.items():
        place = place_of(name, names)
        assert place is not None
        used.update(place.names)
        lacking = [theirs for theirs in place.names if theirs not in tidied]
        missing += lacking
        if not lacking:
            parts = [tidied[theirs] for theirs in place.names]
            if place.transposed and parts[0].ndim == 2:
                parts = [parts[0].t()]
            weights[name] = parts[0] if len(parts) == 1 else _joined(parts, target.shape)
    return Found(weights, sorted(missing), sorted(tidied.keys() - used))


def _joined(parts: list[Tensor], wanted: torch.Size) -> Tensor:
    """The parts one under the other; where they are not of one shape, one of them, which has not the shape `wanted` of the whole.

    Where one is of integers the whole is too, so that whoever checks the whole sees it: `torch.cat` would make floats of all.
    """
    integers = next((part.dtype for part in parts if not part.is_floating_point()), None)
    if parts[0].ndim > 0 and all(part.shape == parts[0].shape for part in parts):
        parts = parts if integers is None else [part.to(integers) for part in parts]
        return torch.cat(parts)
    odd = (part for part in parts if part.shape not in (parts[0].shape, wanted))
    return next(odd, parts[0])


def _tidied(given: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    wrapped = _WRAPPED.match(os.path.commonprefix(list(given)))  # noqa: RUF071 (characters are meant)
    assert wrapped is not None
    tidied = {name[wrapped.end() :]: tensor for name, tensor in given.items()}
    tidied = {name: tensor for name, tensor in tidied.items() if name.rpartition(".")[2] not in _NOT_WEIGHTS}
    if names == "open_clip":
        for name in [name for name in tidied if name.startswith("text.")]:
            plain = name.removeprefix("text.")
            if plain not in tidied:
                tidied[plain] = tidied.pop(name)
    return tidied


def looks_like(given: Iterable[str]) -> Names:
    """Which of the sets the names of a state dict seem to be from, for a hint."""
    every = list(given)
    if any("text_model." in name or "vision_model." in name for name in every):
        return "transformers"
    return "open_clip" if any(name.startswith("text.") for name in every) else "openai"


# ---- what the other libraries must be told


def open_clip_config(
    preset: Preset, *, mean: tuple[float, ...], std: tuple[float, ...], logit_bias: float | None
) -> dict[str, Any]:
    """What open_clip reads from `open_clip_config.json` beside the weights ("local-dir:FOLDER")."""
    vision: dict[str, Any] = {"image_size": preset.image_size, "width": preset.vision.width}
    if isinstance(preset.vision, ResNetShape):
        vision |= {"layers": list(preset.vision.blocks), "patch_size": None}
    else:
        vision |= {"layers": preset.vision.layers, "patch_size": preset.vision.patch}
    model = {
        "embed_dim": preset.embed_dim,
        "quick_gelu": preset.gelu == "quick",
        "vision_cfg": vision,
        "text_cfg": {
            "context_length": preset.context_length,
            "vocab_size": preset.vocab_size,
            "width": preset.text_width,
            "heads": preset.text_width // HEAD_WIDTH,
            "layers": preset.text_layers,
        },
    }
    if logit_bias is not None:
        model["init_logit_bias"] = logit_bias  # that there is one: its value is among the weights
    preprocess = {"mean": list(mean), "std": list(std), "interpolation": "bicubic", "resize_mode": "shortest"}
    return {"model_cfg": model, "preprocess_cfg": preprocess}


def gelus_in(told: object, names: Names) -> set[str]:
    """Which GELUs a library's configuration file says, from its JSON: `quick`, `exact`, or the word that stands there for another function.

    Where the file says none, what the library takes. Empty: the file is not of a CLIP model.
    """
    tables = told if isinstance(told, dict) else {}
    if names == "transformers":
        towers = [tables.get(f"{tower}_config") for tower in ("text", "vision")]
        words = {str(tower.get("hidden_act", "quick_gelu")) for tower in towers if isinstance(tower, dict)}
        return {{"quick_gelu": "quick", "gelu": "exact"}.get(word, word) for word in words}
    model = tables.get("model_cfg")
    return {"quick" if model.get("quick_gelu") else "exact"} if isinstance(model, dict) else set()


def transformers_config(preset: Preset) -> dict[str, Any]:
    """What `CLIPModel.from_pretrained` reads from `config.json`.

    Our end mark is the largest id. transformers reads the feature of a text at the first id that equals eos_token_id, except where that is
    2, which stands for the largest id, because older files said 2 for 49407. No vocabulary of ours has an end mark 2.
    """
    assert isinstance(preset.vision, ViTShape)
    shared = {
        "hidden_act": "quick_gelu" if preset.gelu == "quick" else "gelu",
        "layer_norm_eps": 1e-5,
        "projection_dim": preset.embed_dim,
    }
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "torch_dtype": "float32",
        "projection_dim": preset.embed_dim,
        "text_config": {
            **shared,
            "model_type": "clip_text_model",
            "hidden_size": preset.text_width,
            "intermediate_size": 4 * preset.text_width,
            "num_hidden_layers": preset.text_layers,
            "num_attention_heads": preset.text_width // HEAD_WIDTH,
            "max_position_embeddings": preset.context_length,
            "vocab_size": preset.vocab_size,
            "bos_token_id": preset.vocab_size - 2,
            "eos_token_id": preset.vocab_size - 1,
            "pad_token_id": 0,
        },
        "vision_config": {
            **shared,
            "model_type": "clip_vision_model",
            "hidden_size": preset.vision.width,
            "intermediate_size": 4 * preset.vision.width,
            "num_hidden_layers": preset.vision.layers,
            "num_attention_heads": preset.vision.width // HEAD_WIDTH,
            "num_channels": 3,
            "image_size": preset.image_size,
            "patch_size": preset.vision.patch,
        },
    }
