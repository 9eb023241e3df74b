"""The one place where batch arithmetic is done: sizes and steps of a run, from its configuration, processes and rows.

A contrastive loss compares every pair of a batch with every other, so a batch split over accumulation steps is another loss. Hence one
batch size is stated, the global one; what a process gets is derived from it, and a number of processes that does not divide it is refused
instead of being mended by accumulation. Where the share of a process is too large for its device, `batch.micro_size` cuts it exactly.
"""

import dataclasses
import math

from pipeline.contracts.errors import InputError
from trainer.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class BatchPlan:
    """What follows from the configuration, the number of processes and the number of rows."""

    rows: int
    world_size: int
    global_size: int
    per_device: int
    total_steps: int
    warmup_steps: int

    @property
    def total_samples(self) -> int:
        return self.total_steps * self.global_size

    @property
    def epochs(self) -> float:
        return self.total_samples / self.rows


def per_device_size(config: TrainConfig, world_size: int) -> int:
    """Pairs of one process in one step. Raises InputError where the processes do not divide the batch, or leave a ResNet too little."""
    size, left = divmod(config.batch.global_size, world_size)
    if left:
        lower = config.batch.global_size - left
        near = f"{lower} or {lower + world_size}" if lower else f"{world_size}"
        raise InputError(
            f"batch.global_size: {config.batch.global_size} does not divide by the {world_size} processes of this run;"
            f" set it to {near}, or start another number of processes"
        )
    _check_batch_norm(config, size)
    return size


def _check_batch_norm(config: TrainConfig, pairs: int) -> None:
    """Refuse one picture at a time where a ResNet makes one place of it: batch norm would have one number to normalise."""
    from trainer.models import PRESETS, ResNetShape  # those load torch

    preset, micro_size = PRESETS[config.model.preset], config.batch.micro_size or pairs
    image_size = config.model.image_size or preset.image_size
    fewest = pairs // -(-pairs // micro_size)  # `gradient_cache.pieces`
    trained = isinstance(preset.vision, ResNetShape) and "image" not in config.model.freeze
    if trained and image_size == 32 and fewest == 1:
        key = "global_size" if pairs == 1 else "micro_size"
        raise InputError(
            f"batch.{key}: {getattr(config.batch, key)} gives a device one picture at a time, and {config.model.preset!r} makes one place"
            " of 32 pixels, too little for batch norm; raise it, or model.image_size to 64"
        )


def batch_plan(config: TrainConfig, world_size: int, rows: int) -> BatchPlan:
    """Steps and sizes of a run over a corpus of `rows` rows.

    Batches straddle epochs: sample k of the run is sample k mod rows of epoch k div rows, and a run ends at the last whole batch.
    Raises InputError where there is nothing to train on or the batch does not divide.
    """
    per_device = per_device_size(config, world_size)
    if rows == 0:
        raise InputError(
            f"data: {config.data.manifest or config.data.tars!r} has no rows; train on a corpus that has some"
        )
    if config.optim.steps is not None:
        steps = config.optim.steps
    else:
        steps = math.floor((config.optim.epochs or 0.0) * rows / config.batch.global_size)
    if steps == 0:
        raise InputError(
            f"batch.global_size: {config.batch.global_size} is more than the {config.optim.epochs!r} epochs of {rows} rows hold;"
            " lower it or raise optim.epochs"
        )
    if config.optim.warmup_steps >= steps and config.optim.warmup_steps > 0:
        raise InputError(
            f"optim.warmup_steps: {config.optim.warmup_steps} is not less than the {steps} steps of the run;"
            f" set it to {steps // 10} or train longer"
        )
    if config.optim.warmup_steps + config.optim.cooldown_steps > steps:
        raise InputError(
            f"optim.cooldown_steps: {config.optim.cooldown_steps} after {config.optim.warmup_steps} steps of warm-up are more than the"
            f" {steps} steps of the run; set it to {steps // 5} or train longer"
        )
    return BatchPlan(rows, world_size, config.batch.global_size, per_device, steps, config.optim.warmup_steps)
