"""A tiny model as `trainer.export` writes one, as random as it was born."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from pipeline.contracts import storage
from trainer import export, models
from trainer.tokenizer import vocabulary


def tiny(
    folder: Path,
    preset: str,
    words: Sequence[str],
    content_root: str,
    *,
    seed: int = 4,
    phrase: str = "a picture of",
    **card: Any,
) -> None:
    """Weights of a seed, card and a vocabulary of `words` in `folder`; `card` replaces values of the card."""
    vocab = folder / "m.vocabulary"
    size = vocabulary.train_vocabulary([f"{phrase} {word}" for word in list(words) * 5], 600, str(vocab))
    torch.manual_seed(seed)
    built = models.build(preset, vocab_size=size)
    weights = folder / "m.safetensors"
    safetensors.torch.save_file(export.to_state_dict(built), weights)
    values: dict[str, Any] = {
        "preset": preset,
        "image_size": built.preset.image_size,
        "context_length": built.preset.context_length,
        "vocab_size": size,
        "embed_dim": built.preset.embed_dim,
        "parameters": sum(parameter.numel() for parameter in built.parameters()),
        "tokenizer": "bpe",
        "vocabulary": "m.vocabulary",
        "vocabulary_sha256": storage.sha256_file(str(vocab)),
        "weights": "m.safetensors",
        "weights_sha256": storage.sha256_file(str(weights)),
        "content_root": content_root,
        "config_digest": "00",
        "step": 1,
        "samples_seen": 1,
        "seed": 0,
        "window_row_groups": 512,
    }
    (folder / "m.json").write_text(export.Card.model_validate(values | card).model_dump_json(), "utf-8")
