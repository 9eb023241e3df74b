"""The training loop, top to bottom: read this first.

One call of `train` is one process of a run; `deepspeed --module trainer` starts as many as there are devices. All of them do the same:
open the corpus and the vocabulary, build the model, wrap it in a DeepSpeed engine, take up the newest whole checkpoint, and step. What a
step sees and does is a function of (configuration, corpus, position of the run), so that a run that was killed and resumed is the same run.
"""

import functools
import hashlib
import logging
import os
import random
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from pipeline.contracts import config as configs
from pipeline.contracts import storage
from pipeline.contracts.errors import InputError
from trainer import (
    checkpoint,
    flops,
    gradient_cache,
    held,
    partitions,
    run_lock,
    safety,
    starting,
    tokenizer,
    zero,
)
from trainer.batch_plan import BatchPlan, batch_plan
from trainer.checkpoint import Identity, Position
from trainer.config import TrainConfig, check_vocabulary, settled
from trainer.data import lengths, loader
from trainer.data.corpus import locate, open_corpus
from trainer.data.feed import Feed
from trainer.data.reader import Corpus
from trainer.metrics import Reporter
from trainer.objectives import OBJECTIVES
from trainer.optim import Ema, HalfAdamW, learning_rate, parameter_groups
from trainer.tokenizer.vocabulary import openai_merges

log = logging.getLogger("trainer")

VOCABULARY = "vocabulary"
CONFIG = "config.toml"


def train(config: TrainConfig) -> bool:
    """Train as `config` (resolved) says, from its newest whole checkpoint on if it has one. Every process of the run calls it.

    Returns whether all is done: False where it was told to end before its last step, or before the evaluation after that, and saved.
    Raises InputError for what the user can mend and RunError where the run cannot go on; the checkpoints stay.
    """
    # ---- what this run is
    zero.check_hardware(config)
    located, held_pairs = locate(config.data), held.find(config.held)
    rank, world = zero.join_processes()
    if config.run.deterministic:
        _sum_in_order()
    safety.hold_sigterm()  # until here there was nothing to save, and a process that waits for others must end
    lock = run_lock.take(config.run.dir) if rank == 0 else None
    corpus = open_corpus(located, config.run.dir, rank=rank, world_size=world, wait=zero.wait_for_all)
    plan = batch_plan(config, world, corpus.rows)
    vocabulary = _open_vocabulary(config, corpus, rank)
    place = checkpoint.place_of(config.run)
    start = starting.find(config.model)
    identity = Identity(
        config_digest=configs.digest(config),
        config=configs.semantic(config),
        content_root=corpus.content_root,
        vocabulary_sha256=vocabulary.sha256,
        init_sha256=zero.gather(starting.settle(start, config.run) if rank == 0 else None)[0],
    )
    found = checkpoint.find(place, identity)
    held_set = held.open_held(config, held_pairs, corpus, vocabulary.path, rank, world)

    # ---- model, optimizer, engine
    _seed(config.run.seed)
    trained_size = vocabulary.size if config.tokenizer.train_size else None
    model = starting.build(config.model, trained_size, config.objective.kind)
    check_vocabulary(config, vocabulary.size, model.preset.vocab_size)
    if found is None and start is not None:
        starting.load(start, model, vocabulary.sha256, identity.init_sha256)
    if config.model.compile:
        model.compile_blocks()
    use = settled(config)
    optimizer = HalfAdamW(
        parameter_groups(model, config.optim.weight_decay, text_stochastic=config.precision.text_grid),
        lr=use.lr,
        betas=use.betas,
        eps=use.eps,
        stochastic=config.precision.master_grid,
        seed=config.run.seed,
    )
    engine = zero.start_engine(config, model, optimizer, world)
    partitions.place(engine, optimizer)
    average = None if config.optim.ema_decay is None else Ema(partitions.masters(engine), config.optim.ema_decay)
    loss_of = _loss_of(config)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.precision.compute, torch.float32)
    _seed(config.run.seed + 1 + rank)  # from here on each process draws its own numbers

    # ---- where it stands
    at = Position() if found is None else checkpoint.resume(engine, place, found, average)
    last_step = max(at.step, min(plan.total_steps, config.run.stop_after or plan.total_steps))
    if rank == 0:
        _announce(config, plan, identity, at, last_step)

    def save() -> None:
        samples = at.batch * plan.global_size  # those of steps that were taken back were seen too
        checkpoint.save(engine, config.run, identity, at, samples_seen=samples, average=average)

    # ---- the steps
    sources = _loader_plan(config, corpus, vocabulary, rank, world)

    def feed_from(at: Position) -> Feed:
        batches = loader.batches(sources, at.batch, last_step + at.shift)
        first = gradient_cache.pieces(plan.per_device, config.batch.micro_size)[0]
        # Stage 3 gathers weights over the processes whenever a block is called: all must call it as often.
        a_group = lengths.cost_of_a_group(
            engine.device.type, compiled=config.model.compile, as_many_on_all=config.zero.stage == 3
        )
        return Feed(batches, engine.device, dtype, config.model.pixel_mean, config.model.pixel_std, first, a_group)

    feed = feed_from(at)
    with Reporter(
        config.run.dir,
        plan,
        rank=rank,
        first=at,
        last_step=last_step,
        log_every=config.run.log_every,
        flops_share=_flops_share(config, trained_size) if rank == 0 else None,
    ) as report:
        told_to_end = functools.partial(_told_to_end, engine, report)
        saved, told, unscored = True, False, False
        while True:
            # A due checkpoint is written by now, for an evaluation takes minutes and may fail. A run that ended amid one does it first.
            if held_set is not None and held_set.due(at.step, last_step) and not zero.gather(report.scored(at.step))[0]:
                scored = held_set.evaluate(engine, dtype, average, told_to_end)
                if scored is None:
                    told = unscored = True
                else:
                    report.held(at.step, scored.line(), str(scored), scored.seconds)
            if told or at.step == last_step:
                break

            batch = feed.next()
            report.took(batch)
            buffers = partitions.buffers(engine)
            loss, (_, _, scale, *_) = gradient_cache.forward_backward(
                engine, loss_of, feed.load, plan.per_device, config.batch.micro_size
            )
            feed.begin()  # the next one, while a GPU is still at work on this
            report.waited(feed.waited_since())
            report.computed(feed.texts_since())

            rate = learning_rate(
                at.step,
                config.optim.schedule,
                base_lr=use.lr,
                warmup_steps=plan.warmup_steps,
                cooldown_steps=config.optim.cooldown_steps,
                total_steps=plan.total_steps,
            )
            stepped = zero.step(engine, loss, rate, stop=safety.sigterm_came(), replaced=len(batch.replaced))
            at = at.after(bad=stepped.bad)
            if not stepped.applied:  # one forward of what is no number would spoil running statistics for good
                partitions.set_buffers(engine, buffers)
            if average is not None and stepped.applied:
                average.update(partitions.masters(engine))

            report.step(applied=stepped.applied, replaced=stepped.replaced)
            if report.due(at.step):
                report.write(
                    at,
                    loss=stepped.loss,
                    learning_rate=rate,
                    logit_scale=float(scale),
                    gradient_norm=stepped.gradient_norm,
                    loss_scale=stepped.loss_scale,
                )
            if at.bad_steps >= config.run.max_bad_steps:
                at = checkpoint.go_back(engine, config.run, identity, at, average)
                feed = feed_from(at)
                report.start_from(at)
                continue
            told = stepped.told_to_stop
            due = at.step % config.run.save_every == 0 and not at.bad_steps  # amid bad steps nothing has changed
            saved = due or at.step == last_step or told
            if saved:
                save()
        if not saved:
            save()

    # ---- the end
    done = at.step == last_step and not unscored
    if rank == 0:
        _say_the_end(config, at, done)
    engine.destroy()
    if lock is not None:
        lock.close()
    return done


# ---- vocabulary


class Vocabulary(NamedTuple):
    """The run's own copy of its vocabulary file, what it is, and how many ids it has."""

    path: str
    sha256: str
    size: int


def _open_vocabulary(config: TrainConfig, corpus: Corpus, rank: int) -> Vocabulary:
    """Copy or train the vocabulary into the run's folder (the first process does), and open it from there (all do)."""
    path = os.path.join(config.run.dir, VOCABULARY)
    if rank == 0:
        storage.make_folder(config.run.dir)
        _provide_vocabulary(config, corpus, path)
    zero.wait_for_all()
    if not os.path.exists(path):
        raise InputError(
            f"run.dir: {config.run.dir!r} is not the same folder for every process; name one on a shared disk"
        )
    opened = tokenizer.load(config.tokenizer.kind, vocab=path, context_length=settled(config).context_length)
    return Vocabulary(path, storage.sha256_file(path), opened.vocab_size)


def _provide_vocabulary(config: TrainConfig, corpus: Corpus, path: str) -> None:
    """Put the vocabulary at `path`. Once the run has a checkpoint, it is the one of that; a damaged copy is made anew."""
    wanted = config.tokenizer
    begun = checkpoint.vocabulary_of(checkpoint.place_of(config.run))
    found = storage.sha256_file(path) if os.path.exists(path) else None
    if begun is not None and found not in (None, begun):
        log.warning("%s is not the vocabulary that the run was started with, and must be made anew", path)
    if wanted.train_size is not None:
        if begun is None or found != begun:
            size = tokenizer.train_vocabulary(corpus.captions(), wanted.train_size, path)
            log.info("trained a vocabulary of %d ids on the captions of the corpus", size)
        return
    source = wanted.vocab or openai_merges(None)[1]
    tokenizer.load(wanted.kind, vocab=source)  # what is no vocabulary is refused before it is copied, whatever its size
    data = storage.read_bytes(source)
    if begun not in (None, hashlib.sha256(data).hexdigest()):
        raise InputError(
            f"tokenizer.vocab: {source!r} differs from the vocabulary that {config.run.dir!r} was started with;"
            " give that one or choose another run.dir"
        )
    storage.write_atomic(path, data)


# ---- small parts


def _loss_of(config: TrainConfig) -> Callable[..., torch.Tensor]:
    """The objective, with a gradient that is not finite where its value is not."""
    loss_of = functools.partial(OBJECTIVES[config.objective.kind].loss, chunk_size=config.objective.chunk_size)
    return lambda *outputs: zero.with_true_gradient(loss_of(*outputs))


def _flops_share(config: TrainConfig, vocab_size: int | None) -> Callable[[int], float] | None:
    """The share of a device's peak that one pair a second with a text of some length takes; None where the peak is not known."""
    peak = flops.peak_flops(config)
    if peak is None:
        return None
    once = {"checkpoint_activations": "none"}  # what is computed again is not counted again
    with torch.device("meta"):
        model = starting.build(config.model.model_copy(update=once), vocab_size, config.objective.kind)
    of_length = flops.training_flops_of_length(model)
    return lambda length: of_length(length) / peak


def _loader_plan(
    config: TrainConfig, corpus: Corpus, vocabulary: Vocabulary, rank: int, world: int
) -> loader.LoaderPlan:
    return loader.LoaderPlan(
        corpus=corpus,
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
        read_ahead=config.data.read_ahead,
        page_locked=not zero.on_cpu(),
    )


def _told_to_end(engine: zero.Engine, report: Reporter) -> bool:
    """Whether any process was told to end; an evaluation asks it between its pieces. Collective."""
    report.tick()
    return zero.any_process(safety.sigterm_came(), engine.device)


def _sum_in_order() -> None:
    """Choose kernels whose results do not depend on which of their threads comes first; an operation that has none is an error.

    `warn_only` would do more than its name says: attention's backward (flash, memory-efficient, cuDNN) then stays as fast and as
    disorderly as ever, with a warning (torch's attention_backward.cu and sdp_utils.cpp).
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first matrix is multiplied
    torch.use_deterministic_algorithms(True)


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _announce(config: TrainConfig, plan: BatchPlan, identity: Identity, at: Position, last_step: int) -> None:
    if at.step == last_step:
        why = "" if at.step == plan.total_steps else f", and run.stop_after is {config.run.stop_after}"
        log.info("no steps left: the run is at step %d of %d%s", at.step, plan.total_steps, why)
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


def _say_the_end(config: TrainConfig, at: Position, done: bool) -> None:
    if not done:
        log.info("told to end (SIGTERM): step %d is saved; the same command again goes on from there", at.step)
        return
    if at.bad_steps:
        log.warning("the last %d steps changed nothing: a loss or gradient was not finite", at.bad_steps)
    log.info("done after step %d; next: python -m trainer.export %s --out model.safetensors", at.step, config.run.dir)
