"""What `--check` prints: the resolved configuration, its digest, the parameters, the batch arithmetic, memory, DeepSpeed's dictionary.

Nothing is written and no process group is joined; the model is built on torch's meta device, so that the largest preset costs no memory.
Corpus and vocabulary are looked at if they are there, and refused as the run would refuse them; a recipe is valid before they are, so where
they are missing the plan says so.
"""

import json

import torch

from pipeline.contracts import config as configs
from pipeline.contracts import manifest as manifests
from pipeline.contracts import storage
from trainer import flops, models, tokenizer, zero
from trainer.config import TrainConfig, batch_plan, per_device_size, settled
from trainer.optim import parameter_groups
from trainer.tokenizer.vocabulary import OPENAI_SOURCE, installed_copy

_WORLD_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_GIB = 1 << 30


def describe(config: TrainConfig, world_size: int) -> str:
    """The plan of a run of `world_size` processes, as text. Raises InputError where the run would be refused."""
    with torch.device("meta"):
        model = models.build(
            config.model.preset,
            vocab_size=config.model.vocab_size or config.tokenizer.train_size,
            context_length=config.model.context_length,
            image_size=config.model.image_size,
        )
    image = sum(parameter.numel() for parameter in model.visual.parameters())
    total = sum(parameter.numel() for parameter in model.parameters())
    lines = [configs.to_toml(config).rstrip(), "", f"digest       {configs.digest(config)}"]
    lines.append(f"parameters   {total:,} (image tower {image:,}, text tower and scale {total - image:,})")
    for group in parameter_groups(model, config.optim.weight_decay):
        count = sum(parameter.numel() for parameter in group["params"])
        lines.append(f"  {group['name']:<12} {count:,} numbers, weight decay {group['weight_decay']}")
    forward, training = flops.forward_flops(model) / 1e9, flops.training_flops(model) / 1e9
    lines.append(f"operations   {forward:,.1f} G a pair forward, {training:,.1f} G with backward")
    lines += [_vocabulary_line(config), *_batch_lines(config, world_size), *_memory_lines(config, total)]
    lines += ["DeepSpeed", json.dumps(zero.deepspeed_config(config, world_size), indent=1)]
    return "\n".join(lines)


def _vocabulary_line(config: TrainConfig) -> str:
    wanted = config.tokenizer
    if wanted.train_size is not None:
        return f"vocabulary   {wanted.train_size:,} ids, trained on the captions of the corpus before the first step"
    place = wanted.vocab or installed_copy()
    if place is not None and storage.exists(place):
        opened = tokenizer.load(wanted.kind, vocab=place, context_length=settled(config).context_length)
        return f"vocabulary   {opened.vocab_size:,} ids from {place}"
    lacking = "tokenizer.vocab is not set and no open_clip is installed" if place is None else f"{place}: no such file"
    source = f"take {OPENAI_SOURCE}, or install open_clip_torch, which carries it, and leave tokenizer.vocab out"
    if wanted.kind == "bpe":
        source = "give a file that an earlier run trained"
    return f"vocabulary   MISSING, the run needs it: {lacking}; {source}"


def _batch_lines(config: TrainConfig, world_size: int) -> list[str]:
    per_device = per_device_size(config, world_size)
    lines = [f"batch        {config.batch.global_size:,} = {world_size} processes x {per_device:,}, no accumulation"]
    place = manifests.manifest_path(config.data.manifest)
    if not storage.exists(place):
        return [*lines, f"corpus       MISSING, the run needs it: {place}: no such file; give data.manifest=PLACE"]
    manifest = manifests.load(place)
    plan = batch_plan(config, world_size, manifest.rows)
    lines.append(f"corpus       {plan.rows:,} rows, content_root {manifest.content_root}")
    lines.append(
        f"length       {plan.total_steps:,} steps = {plan.total_samples:,} samples = {plan.epochs:.3f} epochs,"
        f" {plan.warmup_steps:,} of them warm-up"
    )
    return lines


def _memory_lines(config: TrainConfig, parameters: int) -> list[str]:
    """Weights, gradients, masters and moments of one process, by number of processes; activations come on top."""
    lines = ["memory of one process for weights, gradients, fp32 masters and fp16 moments (activations come on top):"]
    for world_size in _WORLD_SIZES:
        size, left = divmod(config.batch.global_size, world_size)
        if not left:
            held = bytes_a_parameter(config, world_size)
            lines.append(
                f"  {world_size:>3} processes x {size:>6,}: {held:5.2f} B a parameter, {held * parameters / _GIB:7.3f} GiB"
            )
    return lines


def bytes_a_parameter(config: TrainConfig, world_size: int) -> float:
    """Bytes that a process holds for each parameter of the model under the ZeRO stage and precision of `config`."""
    half = config.precision.compute in ("bf16", "fp16")
    weights = gradients = 2.0 if half else 4.0
    stage = config.zero.stage
    masters = 4.0 if stage else 0.0  # without ZeRO the fp32 weights are their own masters
    moments = 4.0 + 8.0 / 256
    share = 1.0 / world_size
    return (
        weights * (share if stage == 3 else 1.0)
        + gradients * (share if stage >= 2 else 1.0)
        + (masters + moments) * (share if stage >= 1 else 1.0)
    )
