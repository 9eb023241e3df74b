"""One case of the benchmark `gpu_train`: our trainer's own parts, from the configuration to the step, timed phase by phase.

    python -m tests.benchmarks.data.gpu_ours CASE.json

Prints one line of JSON, as `Measured` has it. A step is what `trainer/train.py` does between two batches: what is not in it are reports and
checkpoints. Phases are read off events of the device in steps of their own, and kernels off torch's profiler in one more, so that the
figure for the whole is not disturbed by them; a batch in pieces, whose steps are long, has neither. A timed step that changed no weight is
no figure: its optimizer has not run.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import logging
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from pipeline.contracts.config import load_config
from tests.benchmarks.data.gpu_case import MOST_SEARCHING, PHASES, Case, Measured, drawn_texts
from tests.hollow_gpu import launched
from trainer import flops, gradient_cache, partitions, starting, zero
from trainer.config import TrainConfig, resolve, settled
from trainer.data import loader
from trainer.data.corpus import locate, open_corpus
from trainer.data.feed import Feed
from trainer.data.lengths import cost_of_a_group
from trainer.data.loader import Batch
from trainer.objectives import OBJECTIVES
from trainer.optim import HalfAdamW, parameter_groups

OTHER_CAPTIONS = 32
"""Batches until captions come again: more than the steps of a case, but for a loss scaler's."""


class Phases:
    """Seconds of each phase, by events on the device's stream, or by the clock on a CPU; what each starts, where that is counted."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[str, Any, int]] = []

    def mark(self, phase: str) -> None:
        """What comes from now on belongs to `phase`."""
        at: Any = time.perf_counter()
        if self._on_gpu:
            at = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            at.record()
        self._marks.append((phase, at, launched.times()))

    def seconds(self) -> dict[str, float]:
        """Between each mark and the next; the last one only ends what was before it."""
        if self._on_gpu:
            torch.cuda.synchronize()
        found = dict.fromkeys(PHASES, 0.0)
        for (phase, at, _), (_, after, _) in itertools.pairwise(self._marks):
            found[phase] += at.elapsed_time(after) / 1000 if self._on_gpu else after - at
        return found

    def launches(self) -> dict[str, int]:
        """Likewise of what was started; {} where it is not counted."""
        found = dict.fromkeys(PHASES, 0)
        for (phase, _, before), (_, _, after) in itertools.pairwise(self._marks):
            found[phase] += after - before
        return found if any(found.values()) else {}

    def clear(self) -> None:
        self._marks.clear()


class Marked:
    """An engine that says where forward and backward are; all else is the engine's."""

    def __init__(self, engine: zero.Engine, phases: Phases) -> None:
        self._engine, self._phases = engine, phases

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def __call__(self, pixels: torch.Tensor, *texts: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self._phases.mark("forward")
        outputs = self._engine(pixels, *texts)
        self._phases.mark("loss")
        return outputs

    def backward(self, loss: torch.Tensor) -> object:
        self._phases.mark("backward")
        return self._engine.backward(loss)


def synthetic(case: Case, image_size: int, vocab_size: int, length: int, *, page_locked: bool) -> Iterator[Batch]:
    """The same drawn pixels again and again, from memory like the loader's; captions are others in each step, for so are their groups."""
    shape, draws = (case.pairs, 3, image_size, image_size), torch.Generator().manual_seed(0)
    # Eight at once: torch draws whole numbers one after the other, and 32,768 pictures of bytes would take it most of a minute.
    drawn = torch.randint(-(2**63), 2**63 - 1, (-(-math.prod(shape) // 8),), generator=draws)
    pixels = drawn.view(torch.uint8)[: math.prod(shape)].view(shape)
    texts = [drawn_texts(case, vocab_size, step, length) for step in range(OTHER_CAPTIONS if case.captions else 1)]
    if page_locked:
        pixels = pixels.pin_memory()
    rows = torch.arange(case.pairs)
    for ids in itertools.cycle(texts):
        yield Batch(pixels, ids, rows, rows, [])


def config_of(case: Case, folder: str) -> TrainConfig:
    keys: dict[str, object] = {
        "data.manifest": case.manifest or "unused",
        "data.workers": case.workers,
        "run.dir": folder,
        "model.preset": case.preset,
        "model.compile": case.compile,
        "model.checkpoint_activations": case.checkpoint,
        "model.short_attention": case.short_attention,
        "precision.compute": case.compute,
        "batch.global_size": case.pairs,
        "objective.chunk_size": case.chunk,
        "optim.steps": 10**6,
        "optim.warmup_steps": 0,
    }
    if case.micro is not None:
        keys["batch.micro_size"] = case.micro
    overrides = [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in keys.items()]
    return resolve(load_config(TrainConfig, case.recipe, overrides))


def measure(case: Case) -> Measured:
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        config = config_of(case, folder)
        zero.check_hardware(config)
        rank, world = zero.join_processes()
        assert (rank, world) == (0, 1)
        stack.callback(zero.leave_processes)
        torch.manual_seed(0)
        model = starting.build(config.model, None, config.objective.kind)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        if config.model.compile:
            model.compile_blocks()
        use = settled(config)
        groups = parameter_groups(model, config.optim.weight_decay, text_stochastic=config.precision.text_grid)
        optimizer = HalfAdamW(groups, lr=use.lr, betas=use.betas, eps=use.eps, stochastic=config.precision.master_grid)
        engine = zero.start_engine(config, model, optimizer, world)
        partitions.place(engine, optimizer)
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.precision.compute, torch.float32)
        on_gpu = engine.device.type == "cuda"

        of_a_core = 0.0
        if case.manifest is None:
            size, vocab = use.image_size, model.preset.vocab_size
            batches = synthetic(case, size, vocab, use.context_length, page_locked=on_gpu)
        else:
            plan = plan_of(config, case)
            of_a_core = rate_of_a_core(plan)
            batches = loader.batches(plan, 0, 2 * (case.steps + MOST_SEARCHING) + case.warmup + 4)
        first = gradient_cache.pieces(case.pairs, case.micro)[0]
        a_group = cost_of_a_group(engine.device.type, compiled=case.compile, as_many_on_all=False)
        feed = Feed(batches, engine.device, dtype, config.model.pixel_mean, config.model.pixel_std, first, a_group)
        loss_of = functools.partial(OBJECTIVES[config.objective.kind].loss, chunk_size=config.objective.chunk_size)
        phases = Phases(engine.device)
        marked = Marked(engine, phases)
        losses: list[float] = []

        def step(through: Any, load: Callable[[slice], tuple[torch.Tensor, ...]]) -> bool:
            feed.next()
            buffers = partitions.buffers(engine)
            loss, _ = gradient_cache.forward_backward(
                through, lambda *outputs: zero.with_true_gradient(loss_of(*outputs)), load, case.pairs, case.micro
            )
            if through is marked:
                phases.mark("data")
            feed.begin()
            if through is marked:
                phases.mark("optimizer")
            stepped = zero.step(engine, loss, use.lr, stop=False, replaced=0)
            if not stepped.applied:
                partitions.set_buffers(engine, buffers)
            losses.append(stepped.loss)
            return stepped.applied

        def marked_load(at: slice) -> tuple[torch.Tensor, ...]:
            phases.mark("data")
            return feed.load(at)

        began = time.perf_counter()
        applied = step(engine, feed.load)
        first_step = time.perf_counter() - began
        searching = MOST_SEARCHING if case.compute == "fp16" else 0
        for number in range(case.warmup + searching):
            if number >= case.warmup and applied:
                break
            applied = step(engine, feed.load)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        feed.waited_since()
        feed.texts_since()
        seconds, in_all = [], 0.0
        for _ in range(case.steps + searching):
            began = time.perf_counter()
            applied = step(engine, feed.load)
            if on_gpu:
                torch.cuda.synchronize()
            took = time.perf_counter() - began
            in_all += took
            seconds += [took] if applied else []  # what the optimizer skips is no whole step
            if len(seconds) == case.steps:
                break
        if len(seconds) < case.steps:
            raise RuntimeError(f"{len(seconds)} steps changed weights: gradients are not finite; losses {losses}")
        waited = feed.waited_since() / in_all
        peak = torch.cuda.max_memory_allocated() if on_gpu else 0
        texts = feed.texts_since()
        taken: list[dict[str, float]] = []
        phased: list[float] = []
        longest: list[tuple[str, float]] = []
        launches: dict[str, int] = {}
        if case.micro is None:  # else a step takes as long as all that was timed
            for _ in range(max(1, case.steps // 2)):
                began = time.perf_counter()
                step(marked, marked_load)
                phases.mark("data")
                taken.append(phases.seconds())
                launches = phases.launches()
                phases.clear()
                phased.append(time.perf_counter() - began)
            longest = kernels(lambda: step(engine, feed.load), on_gpu=on_gpu)
        shares = {name: statistics.median(one[name] for one in taken) for name in PHASES if taken}

        once = config.model.model_copy(update={"checkpoint_activations": "none"})
        with torch.device("meta"):
            of_length = flops.training_flops_of_length(starting.build(once, None, config.objective.kind))
        operations = sum(count * of_length(length) for length, count in texts.items())
        return Measured(
            pairs=case.pairs,
            parameters=parameters,
            seconds=statistics.median(seconds),
            first_step=first_step,
            peak_bytes=peak,
            operations=operations // sum(texts.values()),
            waited=waited,
            of_a_core=of_a_core,
            phases=shares,
            phased=statistics.median(phased) if phased else 0.0,
            losses=losses[:3],
            kernels=longest,
            launches=launches,
            device=torch.cuda.get_device_name() if on_gpu else "CPU",
            torch=torch.__version__,
        )


def kernels(work: Callable[[], object], *, on_gpu: bool, most: int = 12) -> list[tuple[str, float]]:
    """The operations that took longest, and the share of the device's time that each took itself; [] where it cannot be profiled."""
    try:
        with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU], acc_events=True) as found:
            work()
    except RuntimeError as error:
        logging.warning("no profile: %s", error)
        return []
    device = "CUDA" if on_gpu else "CPU"
    took = {
        event.key: event.self_device_time_total if on_gpu else event.self_cpu_time_total
        for event in found.key_averages()
        if event.device_type.name == device and not getattr(event, "is_user_annotation", False)
    }
    total = sum(took.values())
    return [(name, took[name] / total) for name in sorted(took, key=took.__getitem__, reverse=True)[:most] if total]


def plan_of(config: TrainConfig, case: Case) -> loader.LoaderPlan:
    corpus = open_corpus(locate(config.data), config.run.dir, rank=0, world_size=1, wait=zero.wait_for_all)
    return loader.LoaderPlan(
        corpus=corpus,
        tokenizer_kind="bpe",
        vocabulary=case.vocabulary,
        context_length=settled(config).context_length,
        image_size=settled(config).image_size,
        augmentation=config.augmentation,
        seed=0,
        window_row_groups=config.data.window_row_groups,
        global_size=case.pairs,
        rank=0,
        world_size=1,
        workers=case.workers,
        prefetch=config.data.prefetch,
        cache_bytes=config.data.cache_mib << 20,
        read_ahead=config.data.read_ahead,
        page_locked=not zero.on_cpu(),
    )


def rate_of_a_core(plan: loader.LoaderPlan) -> float:
    """Pairs a second of one core: read, decoded, cropped, tokenised."""
    batches = loader.batches(dataclasses.replace(plan, global_size=256, workers=0, page_locked=False), 0, 9)
    next(batches)
    began = time.perf_counter()
    count = sum(len(batch.pixels) for batch in batches)
    return count / (time.perf_counter() - began)


def main() -> None:
    case = Case(**json.loads(Path(sys.argv[1]).read_text()))
    logging.basicConfig(
        format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING
    )  # `gpu_train` looks for them
    with contextlib.redirect_stdout(sys.stderr):
        found = measure(case)
    print(json.dumps(dataclasses.asdict(found)))


if __name__ == "__main__":
    main()
