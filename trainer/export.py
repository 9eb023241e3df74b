"""`python -m trainer.export RUN_DIR --out model.safetensors`: the weights of a run, ready to be used or handed on.

    model.safetensors   fp32 master weights under OpenAI's names and shapes (logit_scale 0-D), never the half-precision copies
    model.json          the card: architecture, vocabulary, what it was trained on and for how long, digests of the files beside it
    model.vocabulary    the vocabulary file, so that nothing else is needed to use the model

`--names open_clip` and `--names transformers` write those libraries' names, and the file beside them that the library reads
(open_clip_config.json, config.json): `open_clip.create_model("local-dir:FOLDER")`, `CLIPModel.from_pretrained(FOLDER)`.

The card carries the corpus's content_root, so that an audit can bind a score to what the model has read; `load_model` refuses weights or a
vocabulary that are not the card's. What files of others `load_weights` reads, `trainer/weights.py` says; none of them can run code.
"""

import argparse
import dataclasses
import hashlib
import json
import logging
import os
import sys
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

import pydantic
import safetensors.torch
import torch

from pipeline.contracts import config as configs
from pipeline.contracts import storage
from pipeline.contracts.cli import run_cli
from pipeline.contracts.config import StrictModel, load_config
from pipeline.contracts.errors import InputError
from trainer import checkpoint, models, tokenizer, weights
from trainer import names as other_names
from trainer.config import CLIP_MEAN, CLIP_STD, Channels, Positive, TrainConfig, differences, settled
from trainer.names import Names
from trainer.objectives import OBJECTIVES

log = logging.getLogger("trainer")

FORMAT_VERSION = 4
"""Of the card. 2: `objective`. 3: `gelu`, `text`, `init_sha256`, and `names` of others. 4: `seed`, `window_row_groups`."""

CONFIGS = {"open_clip": "open_clip_config.json", "transformers": "config.json"}
"""The file that a library reads beside the weights."""

_TRANSFORMERS_WEIGHTS = "model.safetensors"
"""The one name that transformers looks for."""

_SCALARS = ("logit_scale", "logit_bias")
"""Of shape [1] while training (see models.clip), 0-D in files."""

_PLAIN = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
_PLAIN |= {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool}
"""Numbers that are read. Floats of 8 bits, quantised and complex ones are not."""

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")

_FileName = Annotated[str, pydantic.Field(pattern=r"^[^\x00]+$")]


class Card(StrictModel):
    """What an exported model is. Paths are relative to the card; sizes in pixels, ids and dimensions."""

    format_version: int = FORMAT_VERSION
    preset: str
    image_size: Annotated[int, pydantic.Field(gt=0, le=1 << 14)]
    pixel_mean: Channels = CLIP_MEAN
    pixel_std: tuple[Positive, Positive, Positive] = CLIP_STD
    context_length: Annotated[int, pydantic.Field(gt=0, le=1 << 16)]
    vocab_size: Annotated[int, pydantic.Field(gt=0, le=1 << 24)]
    embed_dim: Annotated[int, pydantic.Field(gt=0)]
    parameters: Annotated[int, pydantic.Field(gt=0)]
    names: Names = "openai"
    objective: Literal["clip", "siglip"] = "clip"
    gelu: models.Gelu = "quick"
    text: models.TextTower = "transformer"
    tokenizer: str
    vocabulary: _FileName
    vocabulary_sha256: str
    weights: _FileName
    weights_sha256: str
    init_sha256: str | None = None
    """Of the weights that it started from: content_root says nothing of what those have read. None: random ones."""
    content_root: str
    config_digest: str
    step: Annotated[int, pydantic.Field(ge=0)]
    samples_seen: Annotated[int, pydantic.Field(ge=0)]
    seed: Annotated[int, pydantic.Field(ge=0)]
    window_row_groups: Annotated[int, pydantic.Field(gt=0)]
    """With the seed what `data.order.SampleOrder` needs: it says which rows of the corpus the samples seen were."""


# ---- writing


def export(run_dir: str, out: str, step: int | None = None, *, ema: bool = False, names: str = "openai") -> Card:
    """Write the newest whole checkpoint of a run (or that of `step`) to `out` and its companions, the card last.

    With `ema` the moving average of the weights instead of the weights. Raises InputError where there is no such run or checkpoint, its
    configuration or vocabulary is not the one it was trained with, `out` is no name for such a file or would take another file's place, or
    the library behind `names` has no such model.
    """
    _check_out(out, names)
    config_path = os.path.join(run_dir, "config.toml")
    if not storage.exists(config_path):
        raise InputError(f"{run_dir}: no checkpoint in it; give the run.dir of a training run that has saved one")
    config = load_config(TrainConfig, config_path)
    place = config.run.checkpoints or os.path.join(run_dir, "checkpoints")  # the folder may have been moved since
    if storage.holds(place, out):
        raise InputError(f"--out: {out!r} lies among the run's checkpoints, in {place!r}; give it another folder")
    tag, record = _choose(place, step)
    now = configs.semantic(config)
    changed = differences(record.config, now)
    if changed or (configs.digest(config) != record.config_digest and record.config == now):
        raise InputError(
            f"{config_path}: not the configuration that {tag!r} was trained with ({', '.join(changed) or 'its digest differs'});"
            " restore the run's own file"
        )
    kind = checkpoint.EMA if ema else checkpoint.MASTER
    ours = _released_shapes(checkpoint.named_weights(place, tag, record, kind))
    known = other_names.check(names, ours, config.model.preset)
    vocabulary_path = os.path.join(run_dir, "vocabulary")
    vocabulary = storage.read_bytes(vocabulary_path)
    if hashlib.sha256(vocabulary).hexdigest() != record.vocabulary_sha256:
        raise InputError(
            f"{vocabulary_path}: not the vocabulary that {tag!r} was trained with; restore the run's own file"
        )
    stem = out.removesuffix(".safetensors")
    facts = {"content_root": record.content_root, "config_digest": record.config_digest, "step": record.step}
    # One key: safetensors writes several in an order that changes from run to run. transformers asks for one of its own.
    metadata = {"format": "pt"} if names == "transformers" else {"trained": json.dumps(facts)}
    data = safetensors.torch.save(other_names.to_names(ours, known), metadata=metadata)
    storage.make_folder(storage.parent(out))
    storage.write_atomic(out, data)
    storage.write_atomic(f"{stem}.vocabulary", vocabulary)
    if known in CONFIGS:
        told = json.dumps(_config_of_peer(config, ours, known), indent=2).encode()
        storage.write_atomic(storage.join(storage.parent(out), CONFIGS[known]), told)
    card = Card(
        preset=config.model.preset,
        image_size=settled(config).image_size,
        pixel_mean=config.model.pixel_mean,
        pixel_std=config.model.pixel_std,
        context_length=settled(config).context_length,
        vocab_size=ours["token_embedding.weight"].shape[0],
        embed_dim=ours["text_projection"].shape[1],
        parameters=sum(tensor.numel() for name, tensor in ours.items() if not name.endswith(_STATISTICS)),
        names=known,
        objective=config.objective.kind,
        gelu=config.model.gelu or "quick",
        text=config.model.text or "transformer",
        tokenizer=config.tokenizer.kind,
        vocabulary=storage.name(f"{stem}.vocabulary"),
        vocabulary_sha256=record.vocabulary_sha256,
        weights=storage.name(out),
        weights_sha256=storage.sha256_file(out),
        init_sha256=record.init_sha256,
        content_root=record.content_root,
        config_digest=record.config_digest,
        step=record.step,
        samples_seen=record.samples_seen,
        seed=config.run.seed,
        window_row_groups=config.data.window_row_groups,
    )
    storage.write_atomic(f"{stem}.json", card.model_dump_json(indent=1).encode())
    return card


def _check_out(out: str, names: str) -> None:
    if not out.endswith(".safetensors"):
        raise InputError(f"--out: {out!r} does not end in '.safetensors'; give it that ending")
    name = storage.name(out)
    if names == "transformers" and name != _TRANSFORMERS_WEIGHTS:
        raise InputError(
            f"--out: transformers looks for {_TRANSFORMERS_WEIGHTS!r} in a folder, not for {name!r}; give the model a folder"
            f" of its own, as in --out {storage.join(out.removesuffix('.safetensors'), _TRANSFORMERS_WEIGHTS)}"
        )
    if f"{name.removesuffix('.safetensors')}.json" == CONFIGS.get(names):
        raise InputError(
            f"--out: the card of {name!r} would be {CONFIGS[names]!r}, which is another file; call it otherwise"
        )
    card = f"{out.removesuffix('.safetensors')}.json"
    if storage.exists(card) and not _looks_like_a_card(card):
        raise InputError(
            f"--out: the card of {name!r} would take the place of {card!r}, which is no card; call it otherwise"
        )


def _looks_like_a_card(path: str) -> bool:
    """Of this version or another one."""
    try:
        found = json.loads(storage.read_text(path))
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and "weights_sha256" in found


def _config_of_peer(config: TrainConfig, ours: Mapping[str, torch.Tensor], names: Names) -> dict[str, Any]:
    """What the library behind `names` must be told of the model that has the weights `ours`."""
    preset = dataclasses.replace(
        models.PRESETS[config.model.preset],
        image_size=settled(config).image_size,
        context_length=settled(config).context_length,
        vocab_size=ours["token_embedding.weight"].shape[0],
        gelu=config.model.gelu or "quick",
    )
    if names == "transformers":
        return other_names.transformers_config(preset)
    return other_names.open_clip_config(
        preset,
        mean=config.model.pixel_mean,
        std=config.model.pixel_std,
        logit_bias=OBJECTIVES[config.objective.kind].logit_bias,
    )


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
    """Copies of weights and buffers, in their dtypes, under `names` (`trainer.names.Names`) and in the shapes that go with them.

    Raises InputError for unknown names, and where that library has no such model.
    """
    ours = _released_shapes(model.state_dict())
    return other_names.to_names(ours, other_names.check(names, ours, model.preset.name))


def _released_shapes(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in weights.items()}
    return copies | {name: copies[name].reshape(()) for name in _SCALARS if name in copies}


# ---- reading


def load_weights(model: models.CLIP, source: str | Mapping[str, torch.Tensor], names: str = "openai") -> None:
    """Fill `model` from a state dict or a file (see `trainer.weights`; a path or s3://); values are cast to the model's dtypes.

    `names`: whose names the weights have, see `trainer.names.Names`. Raises InputError where names or shapes differ from the model's,
    naming the first that do, or a tensor is no dense array of plain numbers, and then leaves the model as it was.
    """
    place = source if isinstance(source, str) else "state dict"
    given = weights.read(source) if isinstance(source, str) else source
    fill(model, place, under_our_names(place, given, names, model.state_dict(), model.preset.name))


def under_our_names(
    place: str, given: Mapping[str, torch.Tensor], names: str, wanted: Mapping[str, torch.Tensor], what: str
) -> dict[str, torch.Tensor]:
    """The tensors of `given`, a state dict under `names`, by our names: those of the state dict `wanted`.

    place, what: the file and the model, for messages. Raises InputError where some are missing or unknown, or are no plain arrays.
    """
    odd = next((name for name, tensor in given.items() if not _is_plain(tensor)), None)
    if odd is not None:
        raise InputError(
            f"{place}: {odd!r} is no plain array of numbers ({given[odd].dtype}, {given[odd].layout}, on {given[odd].device.type!r}); save"
            " it dense and unquantised"
        )
    found = other_names.from_names(given, wanted, other_names.check(names, wanted, what))
    if found.missing or found.unknown:
        first = f"{found.missing[0]!r} is missing" if found.missing else f"{found.unknown[0]!r} is unknown"
        likely = other_names.looks_like(given)
        step = f"they look like names of {likely!r}" if likely != names else "build the preset that they belong to"
        raise InputError(
            f"{place}: not weights of {what!r}: {len(found.missing)} names are missing and {len(found.unknown)} unknown"
            f" ({first}); {step}"
        )
    return found.weights


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether it is an array with a place in memory for each of its numbers: not sparse, nested, quantised or without storage.

    Nor is one number that is said to be a billion of them: a small file could ask for all memory.
    """
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.layout is not torch.strided:
        return False
    if tensor.is_nested or tensor.is_meta or tensor.dtype not in _PLAIN:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def fill(model: models.CLIP, place: str, ours: Mapping[str, torch.Tensor]) -> None:
    """Give `model` weights under our names. Raises InputError where shapes differ, or numbers are no numbers of weights."""
    wanted = model.state_dict()  # shares its tensors with the model
    fitting = {}
    for name, target in wanted.items():
        value = ours[name]
        if name in _SCALARS and value.numel() == 1:
            value = value.reshape(target.shape)
        if value.shape != target.shape:
            raise InputError(
                f"{place}: {name!r} has shape {list(value.shape)}, {model.preset.name!r} has {list(target.shape)};"
                " build the model with the sizes that the weights were trained with"
            )
        if value.is_floating_point() != target.is_floating_point():
            raise InputError(
                f"{place}: {name!r} has numbers of {value.dtype}, {model.preset.name!r} has {target.dtype}; take unquantised ones"
            )
        fitting[name] = value
    with torch.no_grad():
        for name, target in wanted.items():
            target.copy_(fitting[name])


def load_model(path: str) -> tuple[models.CLIP, tokenizer.Tokenizer, Card]:
    """The exported model at `path` (its .safetensors, its card, or a folder that holds one): model in eval mode, tokenizer, card.

    Raises InputError where a file is missing or is not the one that the card describes.
    """
    card, weights_place, vocabulary = read_card(path)
    with torch.device("meta"):  # a card may say any size: no memory is taken before the weights are found to have it
        model = models.build(
            card.preset,
            vocab_size=card.vocab_size,
            context_length=card.context_length,
            image_size=card.image_size,
            gelu=card.gelu,
            text=card.text,
            logit_bias=OBJECTIVES[card.objective].logit_bias,
        )
    given = weights.read(weights_place)
    ours = under_our_names(weights_place, given, card.names, model.state_dict(), card.preset)
    fill(model, weights_place, ours)
    for key, found in (
        ("embed_dim", model.preset.embed_dim),
        ("parameters", sum(parameter.numel() for parameter in model.parameters())),
    ):
        if getattr(card, key) != found:
            raise InputError(
                f"{weights_place}: {key} {found}, where its card says {getattr(card, key)}; export the run again"
            )
    model = model.to_empty(device="cpu")
    fill(model, weights_place, ours)
    ids = tokenizer.load(card.tokenizer, vocab=vocabulary, context_length=card.context_length)
    return model.eval(), ids, card


def read_card(path: str) -> tuple[Card, str, str]:
    """The card of the exported model at `path`, and where its weights and its vocabulary are. Raises InputError as `load_model`."""
    card_path = _card_path(path)
    card = card_at(card_path)
    places = []
    for kind, name, sha256 in (
        ("weights", card.weights, card.weights_sha256),
        ("vocabulary", card.vocabulary, card.vocabulary_sha256),
    ):
        places.append(storage.join(storage.parent(card_path), storage.name(name)))
        if storage.sha256_file(places[-1]) != sha256:
            raise InputError(
                f"{places[-1]}: not the {kind} that {storage.name(card_path)!r} describes; export the run again"
            )
    return card, places[0], places[1]


def card_at(path: str) -> Card:
    """The card at `path`; the files that it describes are not looked at. Raises InputError."""
    text = storage.read_text(path)
    checkpoint.check_version(path, text, FORMAT_VERSION)
    try:
        return Card.model_validate_json(text)
    except pydantic.ValidationError:
        raise InputError(f"{path}: not the card of an exported model; export the run again") from None


def _card_path(path: str) -> str:
    if path.endswith(".json"):
        return path
    if path.endswith(".safetensors"):
        return path.removesuffix(".safetensors") + ".json"
    if storage.exists(path):
        raise InputError(
            f"model: {path!r} is neither a .safetensors file nor its card (.json); name one that `python -m trainer.export` wrote"
        )
    found = [uri for uri in storage.list_files(path) if uri.endswith(".safetensors")]
    if len(found) != 1:
        raise InputError(
            f"model: {path!r} holds {len(found)} .safetensors files; name one file that `python -m trainer.export` wrote"
        )
    return _card_path(found[0])


def main(argv: list[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        "python -m trainer.export", description=(__doc__ or "").partition("\n")[0], allow_abbrev=False
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", help="the run.dir of a training run")
    parser.add_argument("--out", required=True, metavar="FILE", help="where the weights go; must end in .safetensors")
    parser.add_argument("--step", type=int, help="the step to export; the newest whole checkpoint when left out")
    parser.add_argument(
        "--names", choices=get_args(Names), default="openai", help="whose names the weights get (default: openai)"
    )
    parser.add_argument("--ema", action="store_true", help="the moving average of the weights (optim.ema_decay)")
    arguments = parser.parse_args(argv)
    card = export(arguments.run_dir, arguments.out, arguments.step, ema=arguments.ema, names=arguments.names)
    print(
        f"{arguments.out}: {card.preset}, {card.parameters:,} parameters, step {card.step:,}, {card.samples_seen:,} samples,"
        f" corpus {card.content_root[:16]}…, sha256 {card.weights_sha256[:16]}…"
    )
    print("next: python -m evaluation zeroshot --config evaluation/configs/zeroshot.toml model=" + arguments.out)
    return 0


if __name__ == "__main__":
    run_cli(main, sys.argv[1:])
