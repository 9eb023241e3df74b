"""A tiny exported model, as random as it was born."""

from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from pipeline.contracts import storage
from trainer import export, models
from trainer.tokenizer import vocabulary

ROOT_HASH = "ab" * 32
NAMES = ["red_square", "blue circle", "green star"]


def export_tiny(
    folder: Path, *, preset: str = "tiny-vit", seed: int = 4, words: str = "a picture of", **card: Any
) -> Path:
    """Write weights, vocabulary and card; `card` replaces values of the card."""
    folder.mkdir(exist_ok=True)
    vocab = folder / "m.vocabulary"
    size = vocabulary.train_vocabulary([f"{words} {name}" for name in NAMES * 5], 600, str(vocab))
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
        "content_root": ROOT_HASH,
        "config_digest": "00",
        "step": 1,
        "samples_seen": 1,
    }
    (folder / "m.json").write_text(export.Card.model_validate(values | card).model_dump_json(), "utf-8")
    return folder
