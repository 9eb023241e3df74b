"""The training loop, top to bottom: read this first.

One call of `train` is one process of a run; `deepspeed --module trainer` starts as many as there are devices. All of them do the same:
open the corpus and the vocabulary, build the model, wrap it in a DeepSpeed engine, take up the newest whole checkpoint, and step. What a
step sees and does is a function of (configuration, corpus, position of the run), so that a run that was killed and resumed is the same run.
"""

import hashlib
import logging
import os
import random
import time
from typing import NamedTuple

import numpy as np
import torch

from pipeline.contracts import config as configs
from pipeline.contracts import manifest as manifests
from pipeline.contracts import storage
from pipeline.contracts.errors import InputError
from pipeline.contracts.manifest import Manifest
from trainer import checkpoint, flops, models, safety, tokenizer, zero
from trainer.checkpoint import Identity, Position
from trainer.config import BatchPlan, TrainConfig, batch_plan, settled
from trainer.data import loader
from trainer.data.reader import captions
from trainer.data.transforms import normalise
from trainer.metrics import Reporter
from trainer.objectives.clip import contrastive_loss
from trainer.optim import HalfAdamW, cosine_with_warmup, parameter_groups
from trainer.tokenizer.vocabulary import openai_merges

log = logging.getLogger("trainer")

VOCABULARY = "vocabulary"
CONFIG = "config.toml"


def train(config: TrainConfig) -> None:
    """Train as `config` (resolved) says, from its newest whole checkpoint on if it has one. Every process of the run calls it.

    Raises InputError for what the user can mend and RunError where the run cannot go on; the checkpoints stay.
    """
    # ---- what this run is
    zero.check_hardware(config)
    manifest = manifests.load(config.data.manifest)
    rank, world = zero.join_processes()
    plan = batch_plan(config, world, manifest.rows)
    vocabulary = _open_vocabulary(config, manifest, rank)
    identity = Identity(
        config_digest=configs.digest(config),
        content_root=manifest.content_root,
        vocabulary_sha256=vocabulary.sha256,
    )
    place = checkpoint.place_of(config.run)
    found = checkpoint.find(place, identity)

    # ---- model, optimizer, engine
    _seed(config.run.seed)
    model = _build(config, vocabulary)
    _check_vocabulary(config, vocabulary, model.preset.vocab_size)
    groups = parameter_groups(model, config.optim.weight_decay)
    use = settled(config)
    optimizer = HalfAdamW(groups, lr=use.lr, betas=use.betas, eps=use.eps, seed=config.run.seed)
    engine = zero.start_engine(config, model, optimizer, world)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.precision.compute, torch.float32)
    _seed(config.run.seed + 1 + rank)  # from here on each process draws its own numbers

    # ---- where it stands
    at = Position() if found is None else checkpoint.resume(engine, place, found)
    last_step = max(at.step, min(plan.total_steps, config.run.stop_after or plan.total_steps))
    if rank == 0:
        _announce(config, plan, identity, at, last_step)

    # ---- the steps
    sources = _loader_plan(config, manifest, vocabulary, rank, world)
    batches = loader.batches(sources, at.batch, last_step + at.shift)
    with Reporter(
        config.run.dir,
        plan,
        rank=rank,
        first=at,
        last_step=last_step,
        log_every=config.run.log_every,
        flops_share=_flops_share(config, vocabulary) if rank == 0 else None,
    ) as report:
        while at.step < last_step:
            started = time.perf_counter()
            batch = next(batches)
            report.waited(time.perf_counter() - started, batch.replaced)

            pixels = batch.pixels.to(engine.device, non_blocking=True)
            pixels = normalise(pixels, config.model.pixel_mean, config.model.pixel_std).to(dtype)
            ids = batch.ids.to(engine.device, non_blocking=True)
            image_features, text_features, scale = engine(pixels, ids)
            loss = contrastive_loss(image_features, text_features, scale)
            engine.backward(zero.with_true_gradient(loss))

            learning_rate = cosine_with_warmup(
                at.step, base_lr=use.lr, warmup_steps=plan.warmup_steps, total_steps=plan.total_steps
            )
            stepped = zero.step(engine, loss, learning_rate, stop=safety.sigterm_came(), replaced=len(batch.replaced))
            at = at.after(bad=stepped.bad)

            report.step(applied=stepped.applied, replaced=stepped.replaced)
            if report.due(at.step):
                report.write(
                    at,
                    loss=stepped.loss,
                    learning_rate=learning_rate,
                    logit_scale=float(scale.detach()),
                    gradient_norm=stepped.gradient_norm,
                )
            if at.bad_steps >= config.run.max_bad_steps:
                at = checkpoint.go_back(engine, config.run, identity, at)
                batches = loader.batches(sources, at.batch, last_step + at.shift)
                report.start_from(at)
                continue
            due = at.step % config.run.save_every == 0 and not at.bad_steps  # amid bad steps nothing has changed
            if due or at.step == last_step or stepped.told_to_stop:
                checkpoint.save(engine, config.run, identity, at, samples_seen=at.step * plan.global_size)
            if stepped.told_to_stop:
                break

    # ---- the end
    if rank == 0:
        _say_the_end(config, at, last_step)
    engine.destroy()


# ---- vocabulary


class Vocabulary(NamedTuple):
    """The run's own copy of its vocabulary file, what it is, and how many ids it has."""

    path: str
    sha256: str
    size: int


def _open_vocabulary(config: TrainConfig, manifest: Manifest, rank: int) -> Vocabulary:
    """Copy or train the vocabulary into the run's folder (the first process does), and open it from there (all do)."""
    path = os.path.join(config.run.dir, VOCABULARY)
    if rank == 0:
        storage.make_folder(config.run.dir)
        _provide_vocabulary(config, manifest, path)
    zero.wait_for_all()
    if not os.path.exists(path):
        raise InputError(
            f"run.dir: {config.run.dir!r} is not the same folder for every process; name one on a shared disk"
        )
    opened = tokenizer.load(config.tokenizer.kind, vocab=path, context_length=settled(config).context_length)
    return Vocabulary(path, storage.sha256_file(path), opened.vocab_size)


def _provide_vocabulary(config: TrainConfig, manifest: Manifest, path: str) -> None:
    """Put the vocabulary at `path`. Once the run has a checkpoint, the file there is the run's and stays."""
    wanted = config.tokenizer
    settled_already = os.path.exists(path) and bool(checkpoint.complete_tags(checkpoint.place_of(config.run)))
    if wanted.train_size is not None:
        if not settled_already:
            size = tokenizer.train_vocabulary(captions(config.data.manifest, manifest), wanted.train_size, path)
            log.info("trained a vocabulary of %d ids on the captions of the corpus", size)
        return
    source = wanted.vocab or openai_merges(None)[1]
    data = storage.read_bytes(source)
    if settled_already and storage.sha256_file(path) != hashlib.sha256(data).hexdigest():
        raise InputError(
            f"tokenizer.vocab: {source!r} differs from the vocabulary that {config.run.dir!r} was started with;"
            " give that one or choose another run.dir"
        )
    storage.write_atomic(path, data)


def _check_vocabulary(config: TrainConfig, vocabulary: Vocabulary, ids_of_model: int) -> None:
    if vocabulary.size != ids_of_model:
        raise InputError(
            f"model.vocab_size: {config.model.preset!r} has {ids_of_model} ids, the vocabulary has {vocabulary.size};"
            f" set model.vocab_size={vocabulary.size} or give another tokenizer.vocab"
        )


# ---- small parts


def _build(config: TrainConfig, vocabulary: Vocabulary) -> models.CLIP:
    return models.build(
        config.model.preset,
        vocab_size=config.model.vocab_size or (vocabulary.size if config.tokenizer.train_size else None),
        context_length=config.model.context_length,
        image_size=config.model.image_size,
    )


def _flops_share(config: TrainConfig, vocabulary: Vocabulary) -> float | None:
    """The share of a device's peak that one pair a second takes; None where the peak is not known."""
    peak = flops.peak_flops(config)
    if peak is None:
        return None
    with torch.device("meta"):
        return flops.training_flops(_build(config, vocabulary)) / peak


def _loader_plan(
    config: TrainConfig, manifest: Manifest, vocabulary: Vocabulary, rank: int, world: int
) -> loader.LoaderPlan:
    return loader.LoaderPlan(
        manifest_path=config.data.manifest,
        manifest=manifest,
        tokenizer_kind=config.tokenizer.kind,
        vocabulary=vocabulary.path,
        context_length=settled(config).context_length,
        image_size=settled(config).image_size,
        augmentation=config.augmentation,
        seed=config.run.seed,
        window_row_groups=config.data.window_row_groups,
        global_size=config.batch.global_size,
        rank=rank,
        world_size=world,
        workers=config.data.workers,
        prefetch=config.data.prefetch,
        cache_bytes=config.data.cache_mib << 20,
    )


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _announce(config: TrainConfig, plan: BatchPlan, identity: Identity, at: Position, last_step: int) -> None:
    if at.step == last_step:
        why = "" if at.step == plan.total_steps else f", and run.stop_after is {config.run.stop_after}"
        log.info("nothing to do: the run is at step %d of %d%s", at.step, plan.total_steps, why)
        return
    storage.write_atomic(os.path.join(config.run.dir, CONFIG), configs.to_toml(config).encode())
    log.info(
        "%s on %s rows (content_root %s…), config %s…: %d processes x %d pairs = %d, steps %d to %d of %d (%.2f epochs)",
        config.model.preset,
        f"{plan.rows:,}",
        identity.content_root[:12],
        identity.config_digest[:12],
        plan.world_size,
        plan.per_device,
        plan.global_size,
        at.step + 1,
        last_step,
        plan.total_steps,
        plan.epochs,
    )


def _say_the_end(config: TrainConfig, at: Position, last_step: int) -> None:
    if at.step < last_step:
        log.info("told to end (SIGTERM): step %d is saved; the same command again goes on from there", at.step)
        return
    if at.bad_steps:
        log.warning("the last %d steps changed nothing: a loss or gradient was not finite", at.bad_steps)
    log.info("done after step %d; next: python -m trainer.export %s --out model.safetensors", at.step, config.run.dir)
