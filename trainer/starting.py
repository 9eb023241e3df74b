"""The model that a run starts from: as `[model]` describes it, and the weights that `model.init_from` names.

Of those: what they are, that a resumed run had the same, and how they get into the model. Their digest is part of the run's identity. It is
taken once, before the first step, and kept in the run's folder with the place that the weights came from: a resume from the same place
reads nothing, so that the file may be gone by then, and another place is read and compared.

What no tensor shows must agree too: the vocabulary, the GELU, the kind of text tower. Of exports of ours the card says them. Of files of
others only the GELU is known, where the file that their library reads lies beside them (`open_clip_config.json`, `config.json`).

The temperature, and for the sigmoid loss the bias, belong to the objective: where the weights come from the other one, they start as the
run's objective says.
"""

import json
import logging
import os
from typing import NamedTuple, get_args

from pipeline.contracts import storage
from pipeline.contracts.config import StrictModel
from pipeline.contracts.errors import InputError
from trainer import checkpoint, export, models, weights
from trainer import names as other_names
from trainer.config import ModelConfig, RunConfig
from trainer.names import Names
from trainer.objectives import OBJECTIVES

log = logging.getLogger("trainer")

KEPT = "init.json"
"""In the run's folder: what it started from."""

_OF_THE_OBJECTIVE = ("logit_scale", "logit_bias")


class Start(NamedTuple):
    """Where a run's weights come from; without `names` an export of ours, whose card says the rest."""

    init_from: str
    names: Names | None
    gelu: models.Gelu
    """The run's."""


class Given(NamedTuple):
    """What is there: the file, whose names it has, its SHA-256, the card if it is ours, the GELU if that or the library's file says it."""

    place: str
    names: Names
    sha256: str
    card: export.Card | None
    gelu: models.Gelu | None


class Kept(StrictModel):
    """init.json."""

    init_from: str
    sha256: str


def build(config: ModelConfig, vocab_size: int | None, objective: str) -> models.CLIP:
    """The model with random weights; for torch's fake and meta tensors too.

    vocab_size: of the vocabulary, where neither `config` nor its preset is to say it. Raises InputError where no such model can be.
    """
    starts = OBJECTIVES[objective]
    model = models.build(
        config.preset,
        vocab_size=config.vocab_size or vocab_size,
        context_length=config.context_length,
        image_size=config.image_size,
        gelu=config.gelu,
        text=config.text,
        patch_dropout=config.patch_dropout,
        checkpoint_activations=config.checkpoint_activations,
        logit_scale=starts.logit_scale,
        logit_bias=starts.logit_bias,
    )
    model.freeze(config.freeze)
    if config.short_attention:
        model.take_short_attention()
    return model


def find(config: ModelConfig) -> Start | None:
    """What the configuration says; None for random weights."""
    if config.init_from is None:
        return None
    return Start(config.init_from, config.init_names, config.gelu or models.PRESETS[config.preset].gelu)


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
    given = _given(start)
    if not begun:
        if given.gelu is None:
            log.warning(
                "model.init_from: nothing beside %s says which GELU its weights were trained with; this run has model.gelu=%s (quick is"
                " that of OpenAI's weights, exact that of most others)",
                given.place,
                start.gelu,
            )
        kept = Kept(init_from=start.init_from, sha256=given.sha256)
        storage.write_atomic(path, kept.model_dump_json(indent=1).encode())
    return given.sha256


def load(start: Start, model: models.CLIP, vocabulary_sha256: str, sha256: str | None) -> None:
    """Give `model` the weights, its positions interpolated where it sees other pictures. Every process of a run calls it.

    sha256: what `settle` found. Raises InputError where there are other weights by now, they are not of this model, or were trained with
    another vocabulary or GELU.
    """
    given = _given(start)
    if given.sha256 != sha256:
        raise InputError(
            f"model.init_from: {given.place!r} has sha256 {given.sha256[:16]!r} by now, and this run began with {sha256!s:.16};"
            " restore it, or begin another run"
        )
    if given.card is not None and given.card.vocabulary_sha256 != vocabulary_sha256:
        raise InputError(
            f"model.init_from: {start.init_from!r} was trained with another vocabulary than this run has (sha256"
            f" {given.card.vocabulary_sha256[:16]!r}); give the file {given.card.vocabulary!r} beside it as tokenizer.vocab, with"
            f" tokenizer.kind={given.card.tokenizer}"
        )
    _check_architecture(start, given, model.preset)
    _fill(model, given)


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
    given = _given(start)
    _check_architecture(start, given, model.preset)
    if sizes_known:
        _fill(model, given)
    whose = f", {given.card.preset} after step {given.card.step:,}" if given.card else ""
    unknown = f", whose GELU nothing says: the run has {start.gelu!r}" if given.gelu is None else ""
    later = "" if sizes_known else ", whose shapes the run compares when it has its vocabulary"
    return f"start        {given.place}, names of {given.names}{whose}{unknown}{later}"


def _given(start: Start) -> Given:
    if start.names is not None:
        sha256 = weights.digest(start.init_from)
        card = _card_beside(start.init_from, sha256)
        gelu = _gelu_beside(start.init_from, start.names) if card is None else card.gelu
        return Given(start.init_from, start.names, sha256, card, gelu)
    try:
        card, place, _ = export.read_card(start.init_from)
    except InputError as error:
        raise InputError(
            f"model.init_from: {error}; or, if others wrote the weights, say whose names they have in model.init_names"
        ) from None
    return Given(place, card.names, card.weights_sha256, card, card.gelu)


def _card_beside(place: str, sha256: str) -> export.Card | None:
    """The card of ours beside the file of weights with this digest, if it is that file's."""
    path = place.removesuffix(".safetensors") + ".json"
    if path.removesuffix(".json") == place or not storage.exists(path):
        return None
    try:
        card = export.card_at(path)
    except InputError:
        return None  # somebody else's file, or older: init_names says how to read the weights
    return card if card.weights_sha256 == sha256 else None


def _gelu_beside(place: str, names: Names) -> models.Gelu | None:
    """What the file says that the library behind `names` reads beside its weights. Raises InputError where we have no such GELU."""
    library: Names = "transformers" if names == "transformers" else "open_clip"  # whose names are OpenAI's
    path = storage.join(storage.parent(place), export.CONFIGS[library])
    if not storage.exists(path):
        return None
    try:
        said = other_names.gelus_in(json.loads(storage.read_text(path)), library)
    except (ValueError, RecursionError):
        raise InputError(f"{path}: not JSON, which {library} reads beside weights; download it again") from None
    if not said:
        return None
    for gelu in get_args(models.Gelu):
        if said == {gelu}:
            found: models.Gelu = gelu
            return found
    raise InputError(
        f"model.init_from: {path!r} says {' and '.join(map(repr, sorted(said)))} for the activations; our models have 'quick' or 'exact'"
        " in both towers: take other weights"
    )


def _check_architecture(start: Start, given: Given, preset: models.Preset) -> None:
    """Raise InputError where the weights are of an architecture that has the same tensors or another text tower."""
    if given.gelu not in (None, preset.gelu):
        raise InputError(
            f"model.gelu: {preset.gelu!r}, but the weights of model.init_from {start.init_from!r} were trained with {given.gelu!r};"
            f" set model.gelu={given.gelu}"
        )
    if given.card is not None and given.card.text != preset.text:
        raise InputError(
            f"model.text: {preset.text!r}, but the weights of model.init_from {start.init_from!r} are of a model with {given.card.text!r};"
            f" set model.text={given.card.text}"
        )


def _fill(model: models.CLIP, start: Given) -> None:
    place, names = start.place, start.names
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
