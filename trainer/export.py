"""`python -m trainer.export RUN_DIR --out model.safetensors`: the weights of a run, ready to be used or handed on.

    model.safetensors   fp32 master weights under OpenAI's names and shapes (logit_scale 0-D), never the half-precision copies
    model.json          the card: architecture, vocabulary, what it was trained on and for how long, digests of the files beside it
    model.vocabulary    the vocabulary file, so that nothing else is needed to use the model

The card carries the corpus's content_root, so that an audit can bind a score to what the model has read; `load_model` refuses weights or a
vocabulary that are not the card's. Only safetensors are read: no pickle, no code.
"""

import argparse
import hashlib
import json
import logging
import os
import sys
from collections.abc import Mapping
from typing import Literal

import pydantic
import safetensors
import safetensors.torch
import torch

from pipeline.contracts import config as configs
from pipeline.contracts import storage
from pipeline.contracts.cli import run_cli
from pipeline.contracts.config import StrictModel, load_config
from pipeline.contracts.errors import InputError
from trainer import checkpoint, models, tokenizer
from trainer.config import CLIP_MEAN, CLIP_STD, Channels, Positive, TrainConfig, settled
from trainer.objectives import OBJECTIVES

log = logging.getLogger("trainer")

FORMAT_VERSION = 2
"""Of the card. 2: `objective`."""

_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")
"""Numbers that OpenAI's archives hold among the weights."""

_SCALARS = ("logit_scale", "logit_bias")
"""Of shape [1] while training (see models.clip), 0-D in files."""

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class Card(StrictModel):
    """What an exported model is. Paths are relative to the card; sizes in pixels, ids and dimensions."""

    format_version: int = FORMAT_VERSION
    preset: str
    image_size: int
    pixel_mean: Channels = CLIP_MEAN
    pixel_std: tuple[Positive, Positive, Positive] = CLIP_STD
    context_length: int
    vocab_size: int
    embed_dim: int
    parameters: int
    names: str = "openai"
    objective: Literal["clip", "siglip"] = "clip"
    gelu: models.Gelu = "quick"
    text: models.TextTower = "transformer"
    tokenizer: str
    vocabulary: str
    vocabulary_sha256: str
    weights: str
    weights_sha256: str
    content_root: str
    config_digest: str
    step: int
    samples_seen: int


# ---- writing


def export(run_dir: str, out: str, step: int | None = None, *, ema: bool = False) -> Card:
    """Write the newest whole checkpoint of a run (or that of `step`) to `out` and its two companions, the card last.

    With `ema` the moving average of the weights instead of the weights. Raises InputError where there is no such run or checkpoint, its
    configuration or vocabulary is not the one it was trained with, or `out` does not end in .safetensors.
    """
    if not out.endswith(".safetensors"):
        raise InputError(f"--out: {out!r} does not end in '.safetensors'; give it that ending")
    config_path = os.path.join(run_dir, "config.toml")
    if not storage.exists(config_path):
        raise InputError(f"{run_dir}: no checkpoint in it; give the run.dir of a training run that has saved one")
    config = load_config(TrainConfig, config_path)
    place = config.run.checkpoints or os.path.join(run_dir, "checkpoints")  # the folder may have been moved since
    tag, record = _choose(place, step)
    if configs.digest(config) != record.config_digest:
        raise InputError(
            f"{config_path}: not the configuration that {tag!r} was trained with; restore the run's own file"
        )
    kind = checkpoint.EMA if ema else checkpoint.MASTER
    weights = _openai_shapes(checkpoint.named_weights(place, tag, record, kind))
    vocabulary_path = os.path.join(run_dir, "vocabulary")
    vocabulary = storage.read_bytes(vocabulary_path)
    if hashlib.sha256(vocabulary).hexdigest() != record.vocabulary_sha256:
        raise InputError(
            f"{vocabulary_path}: not the vocabulary that {tag!r} was trained with; restore the run's own file"
        )
    stem = out.removesuffix(".safetensors")
    facts = {"content_root": record.content_root, "config_digest": record.config_digest, "step": record.step}
    # One key: safetensors writes several in an order that changes from run to run.
    data = safetensors.torch.save(weights, metadata={"trained": json.dumps(facts)})
    storage.make_folder(storage.parent(out))
    storage.write_atomic(out, data)
    storage.write_atomic(f"{stem}.vocabulary", vocabulary)
    card = Card(
        preset=config.model.preset,
        image_size=settled(config).image_size,
        pixel_mean=config.model.pixel_mean,
        pixel_std=config.model.pixel_std,
        context_length=settled(config).context_length,
        vocab_size=weights["token_embedding.weight"].shape[0],
        embed_dim=weights["text_projection"].shape[1],
        parameters=sum(tensor.numel() for name, tensor in weights.items() if not name.endswith(_STATISTICS)),
        objective=config.objective.kind,
        gelu=config.model.gelu or "quick",
        text=config.model.text or "transformer",
        tokenizer=config.tokenizer.kind,
        vocabulary=storage.name(f"{stem}.vocabulary"),
        vocabulary_sha256=record.vocabulary_sha256,
        weights=storage.name(out),
        weights_sha256=storage.sha256_file(out),
        content_root=record.content_root,
        config_digest=record.config_digest,
        step=record.step,
        samples_seen=record.samples_seen,
    )
    storage.write_atomic(f"{stem}.json", card.model_dump_json(indent=1).encode())
    return card


def _choose(place: str, step: int | None) -> tuple[str, checkpoint.CheckpointRecord]:
    """The checkpoint to export: that of `step`, else the newest whole one; damaged ones are named."""
    tags = checkpoint.complete_tags(place)
    if not tags:
        raise InputError(f"{place}: no checkpoint in it; give the run.dir of a training run that has saved one")
    if step is not None:
        if checkpoint.tag_of(step) not in tags:
            raise InputError(f"--step: {step} has no checkpoint in {place!r}; there are {', '.join(tags)}")
        tags = [checkpoint.tag_of(step)]
    for tag in tags:
        trouble = checkpoint.damage(place, tag)
        if trouble is None:
            return tag, checkpoint.read_record(place, tag)
        log.warning("checkpoint %s is damaged and passed over: %s", tag, trouble)
    raise InputError(f"{place}: none of its checkpoints is whole (see the lines above); restore an undamaged copy")


def to_state_dict(model: models.CLIP, names: str = "openai") -> dict[str, torch.Tensor]:
    """Copies of the model's weights and buffers under the names and shapes of the released models. Raises InputError for other names."""
    _check_names(names)
    return _openai_shapes(model.state_dict())


def _openai_shapes(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in weights.items()}
    return copies | {name: copies[name].reshape(()) for name in _SCALARS if name in copies}


# ---- reading


def load_weights(model: models.CLIP, source: str | Mapping[str, torch.Tensor], names: str = "openai") -> None:
    """Fill `model` from a state dict or a safetensors file (local or s3://); values are cast to the model's dtypes.

    Raises InputError where names or shapes differ from the model's, naming the first that do.
    """
    _check_names(names)
    place = source if isinstance(source, str) else "state dict"
    given = _read_safetensors(source) if isinstance(source, str) else source
    weights = {name: tensor for name, tensor in given.items() if name not in _NOT_WEIGHTS}
    wanted = model.state_dict()
    missing, unknown = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
    if missing or unknown:
        first = f"{missing[0]!r} is missing" if missing else f"{unknown[0]!r} is unknown"
        raise InputError(
            f"{place}: not weights of {model.preset.name!r}: {len(missing)} names are missing and {len(unknown)} unknown"
            f" ({first}); build the preset that they belong to"
        )
    for name, target in wanted.items():
        value = weights[name]
        if name in _SCALARS and value.numel() == 1:
            value = value.reshape(target.shape)
        if value.shape != target.shape:
            raise InputError(
                f"{place}: {name!r} has shape {list(value.shape)}, {model.preset.name!r} has {list(target.shape)};"
                " build the model with the sizes that the weights were trained with"
            )
        with torch.no_grad():
            target.copy_(value)  # state_dict shares its tensors with the model


def load_model(path: str) -> tuple[models.CLIP, tokenizer.Tokenizer, Card]:
    """The exported model at `path` (its .safetensors, its card, or a folder that holds one): model in eval mode, tokenizer, card.

    Raises InputError where a file is missing or is not the one that the card describes.
    """
    card_path = _card_path(path)
    text = storage.read_text(card_path)
    checkpoint.check_version(card_path, text, FORMAT_VERSION)
    try:
        card = Card.model_validate_json(text)
    except pydantic.ValidationError:
        raise InputError(f"{card_path}: not the card of an exported model; export the run again") from None
    places = {}
    for kind, name, sha256 in (
        ("weights", card.weights, card.weights_sha256),
        ("vocabulary", card.vocabulary, card.vocabulary_sha256),
    ):
        places[kind] = place = storage.join(storage.parent(card_path), storage.name(name))
        if storage.sha256_file(place) != sha256:
            raise InputError(
                f"{place}: not the {kind} that {storage.name(card_path)!r} describes; export the run again"
            )
    model = models.build(
        card.preset,
        vocab_size=card.vocab_size,
        context_length=card.context_length,
        image_size=card.image_size,
        gelu=card.gelu,
        text=card.text,
        logit_bias=OBJECTIVES[card.objective].logit_bias,
    )
    load_weights(model, places["weights"], names=card.names)
    ids = tokenizer.load(card.tokenizer, vocab=places["vocabulary"], context_length=card.context_length)
    return model.eval(), ids, card


def _card_path(path: str) -> str:
    if path.endswith(".json"):
        return path
    if path.endswith(".safetensors"):
        return path.removesuffix(".safetensors") + ".json"
    found = [uri for uri in storage.list_files(path) if uri.endswith(".safetensors")]
    if len(found) != 1:
        raise InputError(
            f"model: {path!r} holds {len(found)} .safetensors files; name one file that `python -m trainer.export` wrote"
        )
    return _card_path(found[0])


def _read_safetensors(path: str) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load(storage.read_bytes(path, limit=1 << 40))
    except safetensors.SafetensorError as error:
        raise InputError(f"{path}: not a readable safetensors file ({error}); export or download it again") from None


def _check_names(names: str) -> None:
    if names != "openai":
        raise InputError(f"names: {names!r} is unknown; use 'openai'")


def main(argv: list[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        "python -m trainer.export", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", help="the run.dir of a training run")
    parser.add_argument("--out", required=True, metavar="FILE", help="where the weights go; must end in .safetensors")
    parser.add_argument("--step", type=int, help="the step to export; the newest whole checkpoint when left out")
    parser.add_argument("--ema", action="store_true", help="the moving average of the weights (optim.ema_decay)")
    arguments = parser.parse_args(argv)
    card = export(arguments.run_dir, arguments.out, arguments.step, ema=arguments.ema)
    print(
        f"{arguments.out}: {card.preset}, {card.parameters:,} parameters, step {card.step:,}, {card.samples_seen:,} samples,"
        f" corpus {card.content_root[:16]}…, sha256 {card.weights_sha256[:16]}…"
    )
    print("next: python -m evaluation zeroshot --config evaluation/configs/zeroshot.toml model=" + arguments.out)
    return 0


if __name__ == "__main__":
    run_cli(main, sys.argv[1:])
