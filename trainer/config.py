"""The configuration of a training run.

A `TrainConfig` is read from TOML, frozen, and digested over the keys that change the weights; where data lies, how many workers read it
and how often the run reports are not among them. What a preset knows (learning rate, betas, eps, resolution, context length) may be left
out and is filled in by `resolve`, so that a recipe states only what differs from the paper.

For whoever adds a key: a run that began before there was one goes on with its default (`differences`). So the default must be what was
done before; where it cannot be, raise FORMAT_VERSION of the checkpoints (`checkpoint/record.py`), which refuses older runs.
"""

import difflib
import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple, Self, cast

import pydantic

from pipeline.content.labelled import LabelledSetConfig, check_template
from pipeline.contracts import storage
from pipeline.contracts.config import Json, StrictModel, not_semantic, semantic
from pipeline.contracts.errors import InputError

PositiveInt = Annotated[int, pydantic.Field(gt=0)]
Fraction = Annotated[float, pydantic.Field(ge=0.0, le=1.0)]
Beta = Annotated[float, pydantic.Field(ge=0.0, lt=1.0)]
Channels = tuple[float, float, float]
Positive = Annotated[float, pydantic.Field(gt=0)]

CLIP_MEAN: Channels = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Channels = (0.26862954, 0.26130258, 0.27577711)
"""Channel statistics of openai/CLIP, clip/clip.py, `_transform`; for values in [0, 1]."""

# Upper bounds are far above what anybody trains (the paper: 336 pixels, 77 of 49,408 ids, batches of 32,768), and low enough that the
# number of a sample fits in 64 bits and no tensor is larger than torch can describe: a slip of the keyboard gets a sentence.
MOST_IDS = 1 << 20
"""Ids of a vocabulary: as many as there are words in the table that training one counts in."""
LEAST_IDS = 514
"""Ids that every vocabulary has (`tokenizer/bpe.py`)."""

_ACCUMULATION = {
    "accum_freq",
    "accum_steps",
    "accumulate_grad_batches",
    "accumulation",
    "accumulation_steps",
    "grad_accum",
    "grad_accum_steps",
    "gradient_accumulation",
    "gradient_accumulation_steps",
}
"""What other trainers call the number of batches whose gradients are summed."""


class DataConfig(StrictModel):
    """Where the corpus is and how it is read."""

    manifest: str | None = not_semantic(None)
    """manifest.json of a corpus, or its folder; a path or s3://. Its content_root is recorded, its place is not part of the digest."""
    tars: str | tuple[str, ...] | None = not_semantic(None)
    """Instead of a manifest: tars as webdataset writes them, a folder of them, a glob or a list of these; paths or s3://. The run keeps an
    index of them, whose digest takes the place of the content_root."""
    window_row_groups: Annotated[int, pydantic.Field(gt=0, le=1 << 32)] = 512
    """Rows are shuffled inside windows of this many row groups, which are themselves drawn in random order; part of the sample order."""
    workers: int = not_semantic(2, ge=0, le=1024)
    """Processes that read and decode, for each training process; 0 decodes in the training process."""
    prefetch: int = not_semantic(2, ge=1, le=1024)
    """Pieces of a batch that a worker prepares ahead."""
    cache_mib: int = not_semantic(4096, ge=1, le=1 << 32)
    """At most so much memory for row groups, for each training process, shared out among its workers. What a process reads of a window must
    fit, or row groups are read over and over."""
    read_ahead: int = not_semantic(4, ge=0, le=64)
    """Row groups that a worker fetches before it needs them; 0 fetches them when they are needed."""

    @pydantic.model_validator(mode="after")
    def _one_corpus(self) -> Self:
        if self.manifest is not None and self.tars is not None:
            raise ValueError(
                f"manifest {self.manifest!r} and tars {self.tars!r}: a run reads one of them; drop the other"
            )
        if self.tars == ():
            raise ValueError("tars []: names no tar; give a .tar, a folder of them, a glob or a list of these")
        return self


class ModelConfig(StrictModel):
    """Which towers are trained; None takes the preset's value."""

    preset: str = "ViT-B/32"
    image_size: Annotated[int, pydantic.Field(gt=0, le=4096)] | None = None
    pixel_mean: Channels = CLIP_MEAN
    pixel_std: tuple[Positive, Positive, Positive] = CLIP_STD
    """What pictures are normalised with, of red, green and blue in [0, 1]. The export's card carries both on."""
    context_length: Annotated[int, pydantic.Field(ge=3, le=8192)] | None = None
    vocab_size: Annotated[int, pydantic.Field(gt=0, le=MOST_IDS)] | None = None
    gelu: Literal["quick", "exact"] | None = None
    """`quick` is x * sigmoid(1.702 x), which all of OpenAI's weights have (and the presets, hence); `exact` x * Phi(x)."""
    text: Literal["transformer", "bag_of_words"] | None = None
    """`bag_of_words`: the mean of the words' embeddings instead of a text transformer (the paper's CBOW)."""
    patch_dropout: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.0
    """The share of a picture's patches that a ViT does not see while it trains, drawn anew each time; 0.5 halves the image tower's work."""
    checkpoint_activations: Literal["none", "activation", "elementwise", "blocks"] = not_semantic("none")
    """What blocks compute again in the backward pass instead of keeping it: `activation` a transformer's MLP's alone; `elementwise` all but
    products, convolutions and attention; `blocks` everything: a third more work, a small part of the memory."""
    compile: bool = not_semantic(False)
    """Let torch.compile fuse what a block computes; it needs a C++ compiler and time at the start. Last bits may differ."""
    short_attention: bool = not_semantic(False)
    """On GPUs, attention of at most 128 positions in half precision by a kernel of our own; all else, and on CPUs all, by torch's."""
    init_from: str | None = not_semantic(None)
    """Weights to start from, a path or s3://: an export of ours by its .safetensors, its card or its folder; with `init_names` a file of
    any kind that `trainer/weights.py` reads. Its digest is part of what the run is, its place is not. Read before the first step only."""
    init_names: Literal["openai", "open_clip", "transformers"] | None = not_semantic(None)
    """Whose names the weights of `init_from` have; None: those that the card beside them says."""
    freeze: tuple[Literal["image", "text"], ...] = ()
    """Towers that are not trained: no gradients, no optimizer state, batch statistics at rest, nothing dropped. The temperature is in
    neither."""

    @pydantic.field_validator("freeze")
    @classmethod
    def _each_once(cls, given: tuple[Literal["image", "text"], ...]) -> tuple[Literal["image", "text"], ...]:
        return tuple(sorted(set(given)))

    @pydantic.model_validator(mode="after")
    def _names_of_something(self) -> Self:
        if self.init_names is not None and self.init_from is None:
            raise ValueError(
                f"init_names {self.init_names!r} without init_from: there are no weights to read; set model.init_from or drop it"
            )
        return self


class TokenizerConfig(StrictModel):
    """How captions become ids."""

    kind: Literal["openai", "bpe"] = "openai"
    """`openai` reads OpenAI's published merges; `bpe` a vocabulary of one's own, which the run trains if `train_size` says how large."""
    vocab: str | None = not_semantic(None)
    """Path of the vocabulary file. Its digest goes into checkpoints and exports."""
    train_size: Annotated[int, pydantic.Field(ge=LEAST_IDS, le=MOST_IDS)] | None = None
    """For `bpe` without a file: train this many ids on the captions of the corpus before the first step."""

    @pydantic.model_validator(mode="after")
    def _vocabulary_has_a_source(self) -> Self:
        if self.kind == "bpe" and self.vocab is None and self.train_size is None:
            raise ValueError(
                "kind 'bpe' needs a vocabulary; name a file in tokenizer.vocab or set tokenizer.train_size"
            )
        if self.kind == "openai" and self.train_size is not None:
            raise ValueError(
                f"train_size {self.train_size} has no use for kind 'openai'; set tokenizer.kind = 'bpe' or drop it"
            )
        if self.vocab is not None and self.train_size is not None:
            raise ValueError(
                f"vocab {self.vocab!r} and train_size {self.train_size}: a vocabulary is read or trained; drop one of them"
            )
        return self


class OptimConfig(StrictModel):
    """AdamW and its schedule; lr, betas and eps default to the preset's."""

    lr: Annotated[float, pydantic.Field(gt=0)] | None = None
    betas: tuple[Beta, Beta] | None = None
    eps: Annotated[float, pydantic.Field(gt=0)] | None = None
    weight_decay: Annotated[float, pydantic.Field(ge=0)] = 0.2
    """Decoupled, on everything but gains, biases and the temperature."""
    gradient_clipping: Annotated[float, pydantic.Field(ge=0)] = 0.0
    """Largest norm of the global gradient; 0 (the paper) does not clip."""
    epochs: Annotated[float, pydantic.Field(gt=0, le=1e6)] | None = None
    steps: Annotated[int, pydantic.Field(gt=0, le=10**9)] | None = None
    """The length of the run: exactly one of epochs and steps."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """`cosine` falls to 0 over the whole run after the warm-up, `constant` stays up and falls to 0 over the last cooldown_steps."""
    warmup_steps: Annotated[int, pydantic.Field(ge=0)] = 2000
    cooldown_steps: Annotated[int, pydantic.Field(ge=0)] = 0
    ema_decay: Annotated[float, pydantic.Field(gt=0, lt=1)] | None = None
    """Keep a moving average of the weights beside them; the n-th step's decay is the lesser of this and n / (n + 9). 4 bytes a master."""

    @pydantic.model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(f"epochs {self.epochs!r} and steps {self.steps!r}: state exactly one of them")
        return self

    @pydantic.model_validator(mode="after")
    def _cooldown_has_a_use(self) -> Self:
        if self.cooldown_steps and self.schedule == "cosine":
            raise ValueError(
                f"cooldown_steps {self.cooldown_steps} has no use for schedule 'cosine', which cools down all along;"
                " set optim.schedule = 'constant' or drop it"
            )
        return self


class BatchConfig(StrictModel):
    """The batch that the loss sees, over all processes."""

    global_size: Annotated[int, pydantic.Field(gt=0, le=1 << 24)] = 32_768
    micro_size: PositiveInt | None = not_semantic(None)
    """Pairs that go through the towers at a time on one device, at most; None: all that the process has. Gradient caching makes of them
    the exact gradient of the whole batch, for about a third more work (`trainer/gradient_cache.py`). For a ResNet it says, like the number
    of processes, which pictures share batch statistics; like that number it is not part of the digest."""


class ObjectiveConfig(StrictModel):
    """What the towers are asked to agree on."""

    kind: Literal["clip", "siglip"] = "clip"
    """`clip`: the paper's symmetric cross-entropy; `siglip`: a sigmoid for each picture and text, with a learned bias."""
    chunk_size: PositiveInt | None = not_semantic(None)
    """Rows of similarities in memory at a time, each as long as the global batch; None: all rows of the process. Exact either way."""


class ZeroConfig(StrictModel):
    """How optimizer states (1), gradients (2) and weights (3) are split over the processes; 0 keeps all of them everywhere."""

    stage: Literal[0, 1, 2, 3] = not_semantic(1)
    """Not part of the digest: stages differ in the order of sums only, and a run may go on under another one."""
    offload: bool = not_semantic(False)
    """Masters, moments and their arithmetic on the CPU, beside a GPU that has no room for them. Its rounding is the CPU's."""

    @pydantic.model_validator(mode="after")
    def _something_to_offload(self) -> Self:
        if self.offload and self.stage == 0:
            raise ValueError(
                "offload with stage 0: without ZeRO the weights are their own masters; set zero.stage to 1, 2 or 3"
            )
        return self


class PrecisionConfig(StrictModel):
    """What weights are while they compute, and what the optimizer keeps of them."""

    compute: Literal["fp32", "bf16", "fp16", "autocast_bf16"] = "fp32"
    """`bf16` and `fp16` keep half-precision weights beside the masters; `autocast_bf16` keeps fp32 weights and multiplies in bf16."""
    master: Literal["fp32", "bf16"] = "fp32"
    """`bf16` saves 2 bytes of the masters, which each step rounds stochastically, and sums gradients in bf16; for compute = "bf16"."""
    text_weights: Literal["plain", "fp16_stochastic"] = "plain"
    """`fp16_stochastic`, as in the paper: each step rounds the text tower's masters to fp16 numbers, stochastically. It saves no memory."""

    @pydantic.model_validator(mode="after")
    def _masters_suit_the_weights(self) -> Self:
        if self.master == "bf16" and self.compute != "bf16":
            raise ValueError(
                f"master 'bf16' with compute {self.compute!r}: weights would be finer than their masters; set precision.compute = 'bf16'"
                " or drop precision.master"
            )
        if self.text_weights == "fp16_stochastic" and self.compute == "bf16":
            raise ValueError(
                "text_weights 'fp16_stochastic' with compute 'bf16': the bf16 copy would round them a second time, to nearest;"
                " set precision.compute = 'autocast_bf16', 'fp16' or 'fp32', or drop precision.text_weights"
            )
        return self

    @property
    def text_grid(self) -> Literal["fp16"] | None:
        """The numbers to which each step rounds the text tower's masters, stochastically."""
        return "fp16" if self.text_weights == "fp16_stochastic" else None

    @property
    def master_grid(self) -> Literal["bf16"] | None:
        """The numbers to which each step rounds all other masters, stochastically."""
        return "bf16" if self.master == "bf16" else None


class RunConfig(StrictModel):
    """Where the run lives and when it reports and saves."""

    dir: str = not_semantic()
    """Metrics, the vocabulary and, unless told otherwise, checkpoints go here; the same folder for every process. The same command again
    resumes from it."""
    checkpoints: str | None = not_semantic(None)
    """Where checkpoints go: a folder that every process shares, or s3://BUCKET/KEY; None is `checkpoints` in the run's folder."""
    seed: Annotated[int, pydantic.Field(ge=0, lt=2**63)] = 0
    log_every: PositiveInt = not_semantic(10)
    save_every: PositiveInt = not_semantic(1000)
    keep: PositiveInt = not_semantic(3)
    """Checkpoints kept; older ones that this run wrote are removed after a newer one is complete."""
    stop_after: PositiveInt | None = not_semantic(None)
    """End this call after the given step, with a checkpoint, without changing the schedule; for time-boxed jobs."""
    max_bad_steps: PositiveInt = not_semantic(10)
    """After this many steps in a row whose loss or gradient is not finite the run goes back to the last good checkpoint, with the next
    data. Each of them changes no weight on any process."""
    deterministic: bool = not_semantic(False)
    """On GPUs, only kernels that sum in the same order each time, slower ones, so that a resumed run is the same to the bit. CPUs need it
    not."""
    peak_tflops: Positive | None = not_semantic(None)
    """Peak of one device in 10^12 operations a second, for the model FLOPs utilisation; None knows it for common GPUs in half precision."""


class AugmentationConfig(StrictModel):
    """What training pictures go through; the defaults are the paper's single random square crop."""

    crop: Literal["random_square", "random_resized", "center"] = "random_square"
    scale: tuple[Fraction, Fraction] = (0.9, 1.0)
    """For random_resized: the share of the picture's area that a crop covers."""
    flip: Fraction = 0.0
    """Probability of mirroring left and right; captions that say "left" then lie."""
    color_jitter: Fraction = 0.0
    """Brightness, contrast and saturation are multiplied by a factor from [1 - j, 1 + j]."""

    @pydantic.model_validator(mode="after")
    def _scale_is_a_range(self) -> Self:
        if not 0.0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale {list(self.scale)!r}: the least share must be above 0 and at most the largest")
        return self


class HeldZeroshotConfig(LabelledSetConfig):
    """A labelled set as `python -m evaluation zeroshot` reads it, and the sentences that its class names are put into."""

    name: str = "zeroshot"
    templates: tuple[str, ...] = pydantic.Field(("a photo of a {}",), min_length=1)

    @pydantic.model_validator(mode="after")
    def _only_what_zeroshot_uses(self) -> Self:
        for template in self.templates:
            check_template(template)
        for key in ("caption", "subgroup", "group"):
            if getattr(self, key) is not None:
                raise ValueError(
                    f"{key} {getattr(self, key)!r} has no use while training; drop it, `python -m evaluation` reads it"
                )
        return self


class HeldConfig(StrictModel):
    """What the run is scored on while it trains (`trainer/held/`). Looking changes no weight, so none of it is part of the digest."""

    manifest: str | None = None
    """manifest.json of a corpus of held-out pairs, or its folder: recall of pictures and texts among each other."""
    zeroshot: HeldZeroshotConfig | None = None
    """A labelled set: accuracy by class names alone."""
    every: PositiveInt = 1000
    """Steps between evaluations; there is one after the last step too."""
    limit: PositiveInt | None = None
    """At most so many rows of each, chosen by hash; None: all."""

    @pydantic.model_validator(mode="after")
    def _something_is_held(self) -> Self:
        if self.manifest is None and self.zeroshot is None:
            raise ValueError(
                "neither manifest nor zeroshot is set; name a corpus of held-out pairs or a labelled set, or drop [held]"
            )
        return self


class TrainConfig(StrictModel):
    """Everything that a training run is told."""

    data: DataConfig
    model: ModelConfig = ModelConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    optim: OptimConfig
    objective: ObjectiveConfig = ObjectiveConfig()
    batch: BatchConfig = BatchConfig()
    zero: ZeroConfig = ZeroConfig()
    precision: PrecisionConfig = PrecisionConfig()
    run: RunConfig
    augmentation: AugmentationConfig = AugmentationConfig()
    held: HeldConfig | None = not_semantic(None)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _no_plain_accumulation(cls, given: Any) -> Any:
        tables = {"": given, **given} if isinstance(given, dict) else {}
        for table, keys in tables.items():
            for key in _ACCUMULATION & keys.keys() if isinstance(keys, dict) else ():
                place = f"{table}.{key}" if table else key
                raise ValueError(
                    f"{place} {keys[key]!r}: a contrastive loss compares every pair of the batch with every other, so gradients summed over"
                    " smaller batches are those of another loss; drop the key, state the whole batch in batch.global_size, and set"
                    " batch.micro_size to what fits on a device: its gradients are exactly those of the whole batch"
                )
        return given

    @pydantic.model_validator(mode="after")
    def _a_trained_vocabulary_can_fit_the_model(self) -> Self:
        ids, most = self.model.vocab_size, self.tokenizer.train_size
        if ids is not None and most is not None and not LEAST_IDS <= ids <= most:
            raise ValueError(
                f"model.vocab_size {ids} with tokenizer.train_size {most}: the run trains {LEAST_IDS} to {most} ids, and would refuse them;"
                " drop model.vocab_size, then the model is built for as many as there are"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _stage_and_precision_agree(self) -> Self:
        if self.zero.stage == 0 and self.precision.compute in ("bf16", "fp16"):
            raise ValueError(
                f"zero.stage 0 with precision.compute {self.precision.compute!r}: DeepSpeed would decay the weights once before the first"
                " step; set zero.stage to 1, 2 or 3"
            )
        if self.zero.stage == 3 and self.model.compile:
            raise ValueError(
                "model.compile with zero.stage 3: ZeRO gathers weights inside of a block, which cuts the compiled program to pieces;"
                " set zero.stage to 1 or 2, or drop model.compile"
            )
        again = self.model.checkpoint_activations
        if self.zero.stage == 3 and again in ("activation", "elementwise"):
            raise ValueError(
                f"model.checkpoint_activations {again!r} with zero.stage 3: ZeRO gathers weights inside of a block, not the same ones each"
                " time, and what is computed again must be what was computed before; set zero.stage to 1 or 2, or take 'blocks'"
            )
        if self.zero.offload and self.precision.master == "bf16":
            raise ValueError(
                "zero.offload with precision.master 'bf16': DeepSpeed keeps bf16 masters on a CPU for its own Adam only;"
                " drop one of the two"
            )
        return self


def resolve(config: TrainConfig) -> TrainConfig:
    """The same configuration with the preset's values where none were given.

    Raises InputError for an unknown preset, and for places in [run] that are of a kind that there is not.
    """
    # The presets live beside the towers, and those load torch.
    from trainer.models import PRESETS, ViTShape

    preset = PRESETS.get(config.model.preset)
    if preset is None:
        near = difflib.get_close_matches(config.model.preset, PRESETS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(PRESETS)}"
        raise InputError(f"model.preset: {config.model.preset!r} is unknown; {hint}")
    if config.model.patch_dropout and not isinstance(preset.vision, ViTShape):
        raise InputError(
            f"model.patch_dropout: {config.model.patch_dropout!r} with {config.model.preset!r}, a ResNet, which has no patches; set it to"
            " 0 or choose a ViT"
        )
    _check_places(config.run)
    model = config.model.model_copy(
        update={
            "image_size": config.model.image_size or preset.image_size,
            "context_length": config.model.context_length or preset.context_length,
            "gelu": config.model.gelu or preset.gelu,
            "text": config.model.text or preset.text,
        }
    )
    optim = config.optim.model_copy(
        update={
            "lr": config.optim.lr or preset.lr,
            "betas": config.optim.betas or tuple(preset.betas),
            "eps": config.optim.eps or preset.eps,
        }
    )
    return config.model_copy(update={"model": model, "optim": optim})


def _check_places(run: RunConfig) -> None:
    """Refuse what can be no place of a run wherever it starts; nothing is looked at."""
    for key, place in (("dir", run.dir), ("checkpoints", run.checkpoints)):
        if place is None:
            continue
        if not place:
            raise InputError(f"run.{key}: '' is no place; name a folder{'' if key == 'dir' else ' or drop it'}")
        try:
            remote = storage.is_s3(storage.absolute(place))
        except InputError as error:
            raise InputError(f"run.{key}: {error}") from None
        if remote and key == "dir":
            raise InputError(
                f"run.dir: {place!r} is not a folder; name one on a local or shared disk (run.checkpoints may be s3://)"
            )


def check_vocabulary(config: TrainConfig, ids: int, ids_of_model: int) -> None:
    """Raise InputError where a vocabulary of `ids` is not what the model was built for."""
    if ids != ids_of_model:
        raise InputError(
            f"model.vocab_size: {config.model.preset!r} has {ids_of_model} ids, the vocabulary has {ids};"
            f" set model.vocab_size={ids} or give another tokenizer.vocab"
        )


def differences(was: dict[str, Json], now: dict[str, Json]) -> list[str]:
    """What differs between the configuration of a run, which an older version may have written, and the one given: "KEY was A and is B".

    Both are what `semantic` gave for a resolved configuration. A key that did not exist then had, in effect, today's default.
    """
    then = was
    run = was.get("run")
    try:
        filled = {**was, "run": {**(run if isinstance(run, dict) else {}), "dir": "."}}
        then = semantic(resolve(TrainConfig.model_validate(filled)))
    except (ValueError, InputError):
        pass  # a key or value that this version does not know: it is named as it stands
    before, after = dict(_leaves(then)), dict(_leaves(now))
    return [
        f"{key} was {json.dumps(before.get(key))} and is {json.dumps(after.get(key))}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def _leaves(table: dict[str, Json], prefix: str = "") -> Iterator[tuple[str, Json]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


class Settled(NamedTuple):
    """The values that a preset may have supplied, none of them missing."""

    lr: float
    betas: tuple[float, float]
    eps: float
    image_size: int
    context_length: int


def settled(config: TrainConfig) -> Settled:
    """The values of a configuration that went through `resolve`; ValueError for one that did not."""
    optim, model = config.optim, config.model
    if None in (optim.lr, optim.betas, optim.eps, model.image_size, model.context_length):
        raise ValueError("the configuration was not resolved")
    return Settled(
        cast(float, optim.lr),
        cast(tuple[float, float], optim.betas),
        cast(float, optim.eps),
        cast(int, model.image_size),
        cast(int, model.context_length),
    )
