"""The weights that a run starts from (`model.init_from`): what they are, that a resumed run had the same, and how they get into the model.

Their digest is part of the run's identity. It is taken once, before the first step, and kept in the run's folder with the place that the
weights came from: a resume from the same place reads nothing, so that the file may be gone by then, and another place is read and compared.

The temperature, and for the sigmoid loss the bias, belong to the objective: where the weights come from the other one, they start as the
run's objective says.
"""

import logging
import os
from typing import NamedTuple

from pipeline.contracts import storage
from pipeline.contracts.config import StrictModel
from pipeline.contracts.errors import InputError
from trainer import checkpoint, export, models, weights
from trainer.config import ModelConfig, RunConfig

log = logging.getLogger("trainer")

KEPT = "init.json"
"""In the run's folder: what it started from."""

_OF_THE_OBJECTIVE = ("logit_scale", "logit_bias")


class Start(NamedTuple):
    """Where a run's weights come from; without `names` an export of ours, whose card says the rest."""

    init_from: str
    names: str | None


class Kept(StrictModel):
    """init.json."""

    init_from: str
    sha256: str


def find(config: ModelConfig) -> Start | None:
    """What the configuration says; None for random weights."""
    return None if config.init_from is None else Start(config.init_from, config.init_names)


def settle(start: Start | None, run: RunConfig) -> str | None:
    """SHA-256 of the weights that the run starts or has started from; for the first process, which keeps it. Raises InputError."""
    if start is None:
        return None
    path = os.path.join(run.dir, KEPT)
    begun = bool(checkpoint.complete_tags(checkpoint.place_of(run)))
    if begun and os.path.exists(path):
        try:
            kept = Kept.model_validate_json(storage.read_text(path))
        except ValueError:
            raise InputError(f"{path}: not what the run wrote there; remove it, then model.init_from is read") from None
        if kept.init_from == start.init_from:
            return kept.sha256
    place, _, card = _weights_of(start)
    digest = weights.digest(place) if card is None else card.weights_sha256
    if not begun:
        kept = Kept(init_from=start.init_from, sha256=digest)
        storage.write_atomic(path, kept.model_dump_json(indent=1).encode())
    return digest


def load(start: Start, model: models.CLIP, vocabulary_sha256: str) -> None:
    """Give `model` the weights, its positions interpolated where it sees other pictures. Every process of a run calls it.

    Raises InputError where they are not weights of this model, or were trained with another vocabulary.
    """
    place, names, card = _weights_of(start)
    if card is not None and card.vocabulary_sha256 != vocabulary_sha256:
        raise InputError(
            f"model.init_from: {start.init_from!r} was trained with another vocabulary than this run has (sha256"
            f" {card.vocabulary_sha256[:16]!r}); give the file {card.vocabulary!r} beside it as tokenizer.vocab, with"
            f" tokenizer.kind={card.tokenizer}"
        )
    if card is not None and card.gelu != model.preset.gelu:
        raise InputError(
            f"model.gelu: {model.preset.gelu!r}, but the weights of model.init_from {start.init_from!r} were trained with {card.gelu!r};"
            f" set model.gelu={card.gelu}"
        )
    _fill(model, place, names)


def line(config: ModelConfig, model: models.CLIP, *, sizes_known: bool) -> str:
    """For `--check`: where the weights come from. Those on a local disk are compared with `model`, which may be on the meta device.

    Not where its sizes are not known yet: how many ids a vocabulary has that the run will train.
    """
    start = find(config)
    if start is None:
        return "start        random weights" + (", those of frozen towers too" if config.freeze else "")
    if storage.is_s3(start.init_from):
        return f"start        {start.init_from}, which the run reads before its first step"
    if not os.path.exists(start.init_from):
        return f"start        MISSING, the run needs it before its first step: model.init_from {start.init_from!r}"
    place, names, card = _weights_of(start)
    if sizes_known:
        _fill(model, place, names)
    whose = f", {card.preset} after step {card.step:,}" if card else ""
    later = "" if sizes_known else ", whose shapes the run compares when it has its vocabulary"
    return f"start        {place}, names of {names}{whose}{later}"


def _weights_of(start: Start) -> tuple[str, str, export.Card | None]:
    """The file, whose names it has, and the card if it is ours."""
    if start.names is not None:
        return start.init_from, start.names, None
    try:
        card, place, _ = export.read_card(start.init_from)
    except InputError as error:
        raise InputError(
            f"model.init_from: {error}; or, if others wrote the weights, say whose names they have in model.init_names"
        ) from None
    return place, card.names, card


def _fill(model: models.CLIP, place: str, names: str) -> None:
    given = weights.read(place)
    own = model.state_dict()
    theirs_has_bias = any(name.rpartition(".")[2] == "logit_bias" for name in given)
    kept = {}
    if theirs_has_bias != ("logit_bias" in own):
        log.info("model.init_from: weights of another objective; the temperature starts as this run's objective says")
        kept = {name: own.pop(name) for name in _OF_THE_OBJECTIVE if name in own}
        given = {name: tensor for name, tensor in given.items() if name.rpartition(".")[2] not in _OF_THE_OBJECTIVE}
    try:
        ours = export.under_our_names(place, given, names, own, model.preset.name)
        export.fill(model, place, models.interpolate_positions(ours, model) | kept)
    except InputError as error:
        raise InputError(f"model.init_from: {error}") from None
