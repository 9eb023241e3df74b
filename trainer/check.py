"""What `--check` prints: the resolved configuration, its digest, the parameters, the batch arithmetic, memory, DeepSpeed's dictionary.

Nothing is written and no process group is joined; the model is built on torch's meta device and of fake tensors, so that the largest preset
costs no memory. Corpus and vocabulary are looked at if they are there, and refused as the run would refuse them; a recipe is valid before
they are, so where they are missing the plan says so. That `run.dir` can be written to is not asked: a plan may be made on another machine.
"""

import json
from collections.abc import Mapping

import torch

from pipeline.contracts import config as configs
from pipeline.contracts import manifest as manifests
from pipeline.contracts import storage
from pipeline.contracts.errors import InputError
from trainer import activations, flops, starting, tokenizer, zero
from trainer.batch_plan import batch_plan, per_device_size
from trainer.config import TrainConfig, check_vocabulary, settled
from trainer.data import corpus as corpora
from trainer.models.clip import tower_of
from trainer.optim import parameter_groups
from trainer.tokenizer.vocabulary import OPENAI_SOURCE, OPENAI_VOCAB_SIZE, installed_copy

_WORLD_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_GIB = 1 << 30


def describe(config: TrainConfig, world_size: int) -> str:
    """The plan of a run of `world_size` processes, as text. Raises InputError where the run would be refused."""
    with torch.device("meta"):
        # Operations that checkpointing does again are not counted.
        once = config.model.model_copy(update={"checkpoint_activations": "none"})
        model = starting.build(once, config.tokenizer.train_size, config.objective.kind)
    image = sum(parameter.numel() for parameter in model.visual.parameters())
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = {name: parameter.numel() for name, parameter in model.named_parameters() if parameter.requires_grad}
    frozen = total - sum(trained.values())
    lines = [configs.to_toml(config).rstrip(), "", f"digest       {configs.digest(config)}"]
    lines.append(f"parameters   {total:,} (image tower {image:,}, text tower and scale {total - image:,})")
    for group in parameter_groups(model, config.optim.weight_decay, text_stochastic=config.precision.text_grid):
        count = sum(parameter.numel() for parameter in group["params"])
        grid = group.get("stochastic", config.precision.master_grid)
        rounded = f", rounded stochastically to {grid} numbers" if grid else ""
        lines.append(f"  {group['name']:<14} {count:,} numbers, weight decay {group['weight_decay']}{rounded}")
    if config.model.freeze:
        lines.append(
            f"  {'frozen':<14} {frozen:,} numbers of the tower for {' and that for '.join(config.model.freeze)}"
        )
    sizes_known = config.tokenizer.train_size is None or config.model.vocab_size is not None
    lines.append(starting.line(config.model, model, sizes_known=sizes_known))
    vocabulary = _vocabulary_line(config, model.preset.vocab_size)  # before operations are counted, which takes seconds
    forward, training = flops.forward_flops(model) / 1e9, flops.training_flops(model) / 1e9
    lines.append(f"operations   {forward:,.1f} G a pair forward, {training:,.1f} G with backward")
    lines += [
        vocabulary,
        *_batch_lines(config, world_size),
        *_held_lines(config),
    ]
    lines += [
        _objective_line(config, world_size, model.preset.embed_dim),
        *_memory_lines(config, world_size, trained, frozen),
    ]
    lines += ["DeepSpeed", json.dumps(zero.deepspeed_config(config, world_size), indent=1)]
    return "\n".join(lines)


def _vocabulary_line(config: TrainConfig, ids_of_model: int) -> str:
    wanted = config.tokenizer
    if wanted.train_size is not None:
        fixed = config.model.vocab_size is not None
        how_many = f"{ids_of_model:,} ids or the run is refused" if fixed else f"at most {ids_of_model:,} ids"
        return f"vocabulary   {how_many}, trained on the captions of the corpus before the first step"
    if wanted.kind == "openai":
        check_vocabulary(config, OPENAI_VOCAB_SIZE, ids_of_model)
    place = wanted.vocab or installed_copy()
    if place is not None and (storage.exists(place) or storage.is_folder(place)):
        opened = tokenizer.load(wanted.kind, vocab=place, context_length=settled(config).context_length)
        check_vocabulary(config, opened.vocab_size, ids_of_model)
        return f"vocabulary   {opened.vocab_size:,} ids from {place}"
    lacking = "tokenizer.vocab is not set and no open_clip is installed" if place is None else f"{place}: no file"
    source = f"take {OPENAI_SOURCE}, or install open_clip_torch, which carries it, and leave tokenizer.vocab out"
    if wanted.kind == "bpe":
        source = "give a file that an earlier run trained"
    return f"vocabulary   MISSING, the run needs it: {lacking}; {source}"


def _batch_lines(config: TrainConfig, world_size: int) -> list[str]:
    per_device = per_device_size(config, world_size)
    micro = min(config.batch.micro_size or per_device, per_device)
    times = -(-per_device // micro)
    how = "at once" if times == 1 else f"in {times:,} micro-batches of at most {micro:,} (gradient caching: exact)"
    lines = [
        f"batch        {config.batch.global_size:,} = {world_size} processes x {per_device:,}, through the towers {how}"
    ]
    lacking = corpora.missing(config.data)
    if lacking is not None:
        return [
            *lines,
            f"corpus       MISSING, the run needs it: {lacking}; give data.manifest=PLACE or data.tars=PLACE",
        ]
    corpus = corpora.known(corpora.locate(config.data), config.run.dir)
    if corpus is None:
        return [*lines, "corpus       tars, whose samples the run counts before its first step"]
    plan = batch_plan(config, world_size, corpus.rows)
    lines.append(f"corpus       {plan.rows:,} rows, content_root {corpus.content_root}")
    lines.append(
        f"length       {plan.total_steps:,} steps = {plan.total_samples:,} samples = {plan.epochs:.3f} epochs,"
        f" {plan.warmup_steps:,} of them warm-up"
        + (f", the last {config.optim.cooldown_steps:,} cooldown" if config.optim.cooldown_steps else "")
    )
    return lines


def _held_lines(config: TrainConfig) -> list[str]:
    if config.held is None:
        return []
    places = [] if config.held.manifest is None else [manifests.manifest_path(config.held.manifest)]
    places += [] if config.held.zeroshot is None else [config.held.zeroshot.path]
    lacking = [place for place in places if not storage.exists(place) and not storage.is_folder(place)]
    lines = [f"held         {' and '.join(places)}, every {config.held.every:,} steps and after the last"]
    return [*lines, *(f"held         MISSING, the run needs it: {place}: nothing there" for place in lacking)]


def _objective_line(config: TrainConfig, world_size: int, embed_dim: int) -> str:
    """What the loss needs on one process: two blocks of similarities, the other tower's features of the whole batch and their gradients."""
    rows = min(config.objective.chunk_size or config.batch.global_size, per_device_size(config, world_size))
    similarities, features = (8 * config.batch.global_size * across for across in (rows, embed_dim))
    return (
        f"objective    {config.objective.kind}, {rows:,} x {config.batch.global_size:,} similarities at a time:"
        f" {similarities / _GIB:.3f} GiB, and {features / _GIB:.3f} GiB for features and their gradients"
    )


def _memory_lines(config: TrainConfig, of_this_run: int, parameters: Mapping[str, int], frozen: int) -> list[str]:
    """What one process holds between steps, by number of processes, and what activations need during one.

    parameters: the numbers in each that is trained. frozen: those that are not.
    """
    trained = sum(parameters.values())
    average = ", their average" if config.optim.ema_decay is not None else ""
    kept = f"{config.precision.master} masters, fp16 moments{average}"
    needed = activations.estimate(config)
    lines = [
        f"memory of one process for weights, gradients, {kept}; then, estimated, for activations of so many pairs at a time:"
    ]
    for world_size in sorted({*_WORLD_SIZES, of_this_run}):
        try:
            size = per_device_size(config, world_size)
        except InputError:  # so many would be refused
            continue
        device, host = bytes_a_parameter(config, world_size), host_bytes_a_parameter(config, world_size)
        weights = frozen * _weight_bytes(config) / (world_size if config.zero.stage == 3 else 1)
        line = f"  {world_size:>4} processes x {size:>6,}: {device:5.2f} B a parameter, {(device * trained + weights) / _GIB:7.3f} GiB"
        if config.zero.offload:
            line += f" (on the CPU {host:5.2f} B, {host * trained / _GIB:7.3f} GiB)"
        at_once = min(config.batch.micro_size or size, size)
        line += f"; {at_once:>6,} pairs, about {needed.of(at_once) / _GIB:7.1f} GiB"
        lines.append(line)
    if config.zero.stage:
        when = "always" if config.zero.stage == 3 else "during each backward"
        lines.append(f"  and {bucket_bytes(config) / _GIB:.3f} GiB {when}: the buffer in which gradients are gathered")
    if config.zero.stage == 2:
        text_tower = {name: numbers for name, numbers in parameters.items() if tower_of(name) == "text"}
        text_tower.pop("token_embedding.weight", None)  # looked up once for all groups
        if text_tower:
            whole = _weight_bytes(config) * sum(text_tower.values()) / _GIB
            why = "gradients of the text tower, until its last group is through"
            lines.append(f"  and at most {whole:.3f} GiB during each backward: {why}")
    return lines


def bucket_bytes(config: TrainConfig) -> float:
    """Bytes of the buffer of `zero.BUCKET` gradients under stages 1, 2 and 3, whatever the model and the number of processes."""
    return zero.BUCKET * _weight_bytes(config)


def bytes_a_parameter(config: TrainConfig, world_size: int) -> float:
    """Bytes that a process holds on its device for each parameter of the model, under the stage and precision of `config`."""
    weights = gradients = _weight_bytes(config)
    stage, share = config.zero.stage, 1.0 / world_size
    kept = 0.0 if config.zero.offload else _kept_bytes(config)
    return (
        weights * (share if stage == 3 else 1.0)
        + gradients * (share if stage >= 2 else 1.0)
        + kept * (share if stage >= 1 else 1.0)
    )


def host_bytes_a_parameter(config: TrainConfig, world_size: int) -> float:
    """The same on the CPU beside it, where offload puts the masters and all that goes with them.

    Also there: the flat gradient that the step reads, and a buffer in the type of the weights (for the copy back, or under stage 3 for
    arriving gradients). Counted from DeepSpeed's code, not measured on a GPU.
    """
    if not config.zero.offload:
        return 0.0
    return (_kept_bytes(config) + 4.0 + _weight_bytes(config)) / world_size


def _weight_bytes(config: TrainConfig) -> float:
    return 2.0 if config.precision.compute in ("bf16", "fp16") else 4.0


def _kept_bytes(config: TrainConfig) -> float:
    """Masters, moments and the masters' average."""
    masters = 2.0 if config.precision.master == "bf16" else 4.0
    return (
        (masters if config.zero.stage else 0.0)  # without ZeRO the fp32 weights are their own masters
        + (4.0 + 8.0 / 256)
        + (4.0 if config.optim.ema_decay is not None else 0.0)
    )
