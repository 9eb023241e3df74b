"""The one door to DeepSpeed: a TrainConfig becomes DeepSpeed's dictionary, the dictionary and a model become an engine.

The dictionary is derived, never merged with one of the user's, because DeepSpeed ignores what it does not know and has defaults that CLIP
does not want: it clips gradients to norm 1 unless told 0, and it would divide an odd batch into accumulation steps. Both are stated here.

DeepSpeed itself is imported inside the functions: `--check`, the exports and the tests of the dictionary must not pay for it, nor for
its look at the accelerator.
"""

import contextlib
import datetime
import importlib.metadata
import logging
import math
import os
import re
import shutil
import socket
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import packaging.version
import torch
import torch.distributed

from pipeline.contracts.config import Json
from pipeline.contracts.errors import InputError, RunError
from trainer import gradient_norm, models, safety
from trainer.batch_plan import per_device_size
from trainer.config import TrainConfig

log = logging.getLogger("trainer")

T = TypeVar("T")

BUCKET = 2**25
"""Numbers in a buffer in which gradients are gathered before they are summed over processes, in the type that they travel in: 128 MiB of
fp32, 64 of bf16. Stage 3 has it from the start, 1 and 2 during each backward. DeepSpeed's own 5e8 would be 1.9 GiB, more than a whole
ViT-L/14 has gradients. Fewer and larger messages use a network better, but at 100 MB one takes milliseconds and its latency tens of
microseconds, so that a larger one would gain nothing; a smaller model than this is one message in any case. A larger parameter (the words'
embeddings of the large models) is a message of its own. Prefetching and persistence of stage 3 keep their defaults (5e7 and 1e5 numbers):
they bound weights that are gathered anyway, and are no buffers."""

_OLDEST_DEEPSPEED = packaging.version.Version("0.19.8")
"""Before it gradients that are no numbers have a norm that is one, and the step is taken. An image may bring an older one that no
installation held against pyproject.toml, and nothing else would tell."""
_PREPARING = datetime.timedelta(days=1)
_heartbeats: list[safety.Heartbeat] = []
"""Of this process, while it is in a process group: one, or none where it is alone."""


class Engine(Protocol):
    """What the loop uses of `deepspeed.DeepSpeedEngine`, and `gate`, which is ours."""

    module: torch.nn.Module
    optimizer: torch.optim.Optimizer
    device: torch.device
    gate: "FiniteGate | None"

    def __call__(self, pixels: torch.Tensor, *texts: torch.Tensor) -> tuple[torch.Tensor, ...]: ...
    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None: ...
    def backward(self, loss: torch.Tensor) -> object: ...
    def step(self) -> None: ...
    def zero_optimization_stage(self) -> int: ...
    def was_step_applied(self) -> bool: ...
    def get_global_grad_norm(self) -> float | torch.Tensor | None: ...
    def destroy(self) -> None: ...


def deepspeed_config(config: TrainConfig, world_size: int) -> dict[str, Json]:
    """DeepSpeed's dictionary for `config` on `world_size` processes. Raises InputError when the batch does not divide."""
    compute = config.precision.compute
    derived: dict[str, Json] = {
        "train_batch_size": config.batch.global_size,
        "train_micro_batch_size_per_gpu": per_device_size(config, world_size),
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.optim.gradient_clipping if config.zero.stage else 0.0,  # without ZeRO: FiniteGate
        "zero_optimization": {
            "stage": config.zero.stage,
            "reduce_bucket_size": BUCKET,
            "allgather_bucket_size": BUCKET,
            **({"offload_optimizer": {"device": "cpu", "pin_memory": True}} if config.zero.offload else {}),
        },
        "zero_force_ds_cpu_optimizer": False,  # nor with offload is it DeepSpeed's own
        "zero_allow_untested_optimizer": True,  # ours is not on DeepSpeed's list; the tests prove it under every stage
        "bf16": {"enabled": compute == "bf16"},
        "fp16": {"enabled": compute == "fp16"},
        "steps_per_print": 2**62,
        "wall_clock_breakdown": False,
        # It would wait for the device before each forward, of micro-batches too.
        "timers": {"throughput": {"enabled": False}},
    }
    if config.precision.master == "bf16":
        # "bf16_optimizer_states" is how DeepSpeed is told that masters stay where the weights are. The moments are ours, and fp16.
        derived["bf16"] = {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}
    if compute == "fp16":
        derived["fp16"] = {"enabled": True, "loss_scale": 0, "initial_scale_power": 16, "loss_scale_window": 1000}
    if compute == "autocast_bf16":
        # DeepSpeed's list of "safe" modules does not say what is multiplied in bf16 (torch's autocast does), but whose gradients, and under
        # stage 3 weights, travel as bf16: unless told otherwise those of every Linear and Conv. Of none: sums over processes are fp32.
        derived["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    return derived


def on_cpu() -> bool:
    """Whether DeepSpeed will compute on CPUs: because it was told to, or because there is nothing else."""
    return os.environ.get("DS_ACCELERATOR") == "cpu" or not torch.cuda.is_available()


def check_hardware(config: TrainConfig) -> None:
    """Refuse what this machine cannot do, or its DeepSpeed, before anything starts. Raises InputError."""
    found = importlib.metadata.version("deepspeed")
    if packaging.version.parse(found) < _OLDEST_DEEPSPEED:
        raise InputError(
            f"deepspeed {found}: gradients that are no numbers would reach the weights; install deepspeed {_OLDEST_DEEPSPEED} or a"
            " later one"
        )
    named = os.environ.get("DS_ACCELERATOR")
    if named not in (None, "cpu", "cuda") or (named == "cuda" and on_cpu()):
        raise InputError(f"DS_ACCELERATOR: {named!r} is not here to compute on; give cpu, or cuda where there is a GPU")
    if config.precision.compute == "fp16" and on_cpu():
        raise InputError("precision.compute: 'fp16' needs a GPU and this run has none; set it to 'bf16' or 'fp32'")
    # As torch.compile chooses for a CPU, and Triton, which it goes by on a GPU (its runtime/build.py).
    variable, language, usual = ("CXX", "C++", ["g++"]) if on_cpu() else ("CC", "C", ["gcc", "clang"])
    compiler = os.environ.get(variable)
    compilers = usual if compiler is None else [compiler]
    if config.model.compile and not any(map(shutil.which, compilers)):
        raise InputError(
            f"model.compile: true needs a {language} compiler and there is no {' or '.join(map(repr, compilers))}; install one, name it in"
            f" {variable}, or drop model.compile"
        )
    if config.model.short_attention and not on_cpu():
        try:
            from trainer.optim import fused  # heavy

            fused.start()
        except (ImportError, OSError, RuntimeError, subprocess.CalledProcessError) as error:
            raise InputError(
                "model.short_attention: true needs Triton, a C compiler, Python's headers and a folder that can be written"
                f" (TRITON_CACHE_DIR, by default in ~/.triton): {error}; see to them, or drop model.short_attention"
            ) from None


def _set_up_hardware() -> None:
    """Tell torch how to use a GPU, before its memory is first asked for: for then torch reads it.

    Memory comes in segments that grow: texts come in groups of new sizes with each step, and one's must not block the next one's.
    """
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    models.leave_out_cudnn_attention()


class Place(NamedTuple):
    """Where a process is in its run, as the launcher says in the environment."""

    rank: int
    local_rank: int
    world_size: int
    address: str
    port: int


_PLACE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def place_in_run() -> Place:
    """Where this process is in its run. Raises InputError where the environment does not say it."""
    missing = [name for name in _PLACE if not os.environ.get(name)]
    if missing:
        raise InputError(
            f"{', '.join(missing)}: not set, although others of {', '.join(_PLACE)} are; start the run with a launcher, which sets all of"
            " them, or unset RANK for a run of one process"
        )
    world_size = world_size_or_one()
    return Place(
        _number("RANK", 0, world_size - 1),
        _number("LOCAL_RANK", 0, world_size - 1),
        world_size,
        os.environ["MASTER_ADDR"],
        _number("MASTER_PORT", 1, 65535),
    )


def world_size_or_one() -> int:
    """How many processes the launcher says there are; 1 without one. Raises InputError."""
    return _number("WORLD_SIZE", 1, 2**31 - 1) if "WORLD_SIZE" in os.environ else 1


def _number(name: str, least: int, most: int) -> int:
    said = os.environ[name]
    number = int(said) if re.fullmatch("[0-9]{1,10}", said) else -1
    if not least <= number <= most:
        raise InputError(
            f"{name}: {said!r} is not a whole number from {least} to {most}; start the run with a launcher, which sets it, or unset it"
        )
    return number


def join_processes() -> tuple[int, int]:
    """Join the processes of this run; returns (rank, number of processes). A process that no launcher started is a run of one.

    Until an engine is started they wait up to a day for each other: one of them may train a vocabulary or read tars meanwhile, and one that
    is lost is found by its heartbeat. Before all have joined there is none, and the wait ends with DeepSpeed's patience, after ten minutes.
    Raises InputError where the environment is wrong, and RunError where the others do not come.
    """
    if "RANK" not in os.environ:
        alone = {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
        }
        os.environ.update(alone)
    place = place_in_run()
    _set_up_hardware()
    if on_cpu():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    else:  # DeepSpeed does it with the engine, and there are collectives before
        torch.cuda.set_device(place.local_rank)
    deepspeed = _quiet_deepspeed()
    if place.world_size > 1 and place.local_rank == 0 and not torch.distributed.is_initialized():
        log.info("waiting for %d processes at %s:%d", place.world_size, place.address, place.port)
    try:
        deepspeed.init_distributed(dist_init_required=True, verbose=False)
    except RuntimeError as error:  # torch's own for a peer that does not come, gloo's for a network that is not there
        raise RunError(
            f"MASTER_ADDR={place.address} MASTER_PORT={place.port}: the processes did not find each other:"
            f" {str(error).splitlines()[0]}; check the hostfile, that the port is free, and GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME if"
            " one is set"
        ) from error
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    if world > 1:
        _heartbeats.append(safety.Heartbeat(place.address, place.port, rank, world, wait=wait_for_all))
    _set_patience(_PREPARING)
    return rank, world


def leave_processes(*, failed: bool = False) -> None:
    """Release the process group: a stage 3 process that exits with it can abort after its work is done.

    With `failed` the others are told that this process has an error, which it is about to say, and end without a word.
    """
    for heartbeat in _heartbeats:
        heartbeat.stop(failed=failed)
    _heartbeats.clear()
    # NCCL would wait here for what the others will never send.
    if torch.distributed.is_initialized() and not (failed and torch.distributed.get_backend() == "nccl"):
        torch.distributed.destroy_process_group()


def explain(error: RuntimeError) -> None:
    """After a collective that failed because another process is lost: end this one with a sentence that names it.

    Returns where `error` is of another kind, or every process is alive.
    """
    if isinstance(error, torch.distributed.DistError) or re.search(
        r"gloo|nccl|closed by peer", str(error), re.IGNORECASE
    ):
        for heartbeat in _heartbeats:
            heartbeat.explain()


def _set_patience(longest: datetime.timedelta) -> None:
    """How long this process waits in a collective for the others before it gives up."""
    torch.distributed.distributed_c10d._set_pg_timeout(longest)


def wait_for_all() -> None:
    """Return when every process has called this. Collective.

    Each on its own GPU: in a group's first collective NCCL, left to itself, takes the one that the rank divided by GPUs leaves, which two
    processes of a node can share where ranks were dealt out over the nodes.
    """
    torch.distributed.barrier(device_ids=None if on_cpu() else [torch.cuda.current_device()])


def gather(mine: T) -> list[T]:
    """What every process has given, in the order of their ranks. Collective."""
    everyone: list[T] = [mine] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, mine)
    return everyone


def any_process(mine: bool, device: torch.device) -> bool:
    """Whether any process says so. Collective."""
    said = torch.tensor([float(mine)], device=device)
    torch.distributed.all_reduce(said)
    return bool(said)


def start_engine(
    config: TrainConfig, model: torch.nn.Module, optimizer: torch.optim.Optimizer, world_size: int
) -> Engine:
    """Wrap `model` and `optimizer` under the stage and precision of `config`, on this process's device."""
    deepspeed = _quiet_deepspeed()
    _set_patience(deepspeed.constants.default_pg_timeout)
    # Of the convolutions that cuDNN has for a shape, the first step finds the fastest; another time it may be another one.
    torch.backends.cudnn.benchmark = not config.run.deterministic
    torch.backends.cudnn.allow_tf32 = False  # fp32 is fp32, as torch has it for matrices but not for convolutions
    found, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=deepspeed_config(config, world_size), dist_init_required=False
    )
    engine = cast(Engine, found)
    engine.gate = None
    if config.zero.stage == 0:
        engine.gate = FiniteGate(config.optim.gradient_clipping)
        optimizer.register_step_pre_hook(engine.gate)
    elif not config.zero.offload:
        gradient_norm.replace(engine.optimizer, config.zero.stage)
    if config.precision.compute == "fp16":
        # At its least scale DeepSpeed would end the run with a traceback; such a step counts as a bad one instead.
        cast(Any, engine.optimizer).loss_scaler.raise_error_at_min_scale = False
    return engine


# ---- the step


class Stepped(NamedTuple):
    """What a step has come to, the same on every process."""

    loss: float
    """The mean over processes of the loss that they stepped on; not finite if one of them was not."""
    gradient_norm: float
    """Of the global gradient before clipping."""
    applied: bool
    """Whether weights changed; they change on all processes or on none."""
    bad: bool
    """Not applied because a loss or gradient was not finite, and not for a loss scaler that is looking for its scale."""
    told_to_stop: bool
    replaced: int
    loss_scale: float | None
    """What fp16's loss was multiplied by before backward; None in other precisions."""


class FiniteGate:
    """Without ZeRO, DeepSpeed steps on any gradient. Called before each step of the optimizer, this drops one that is not finite.

    The gradient is the same on all processes by then, and so is the answer. It is clipped here too, where its norm is known.
    """

    def __init__(self, clipping: float) -> None:
        self._clipping = clipping
        self.norm = math.nan

    def __call__(self, optimizer: torch.optim.Optimizer, args: object, named: object) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        with_gradient = [parameter for parameter in parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm([cast(torch.Tensor, parameter.grad) for parameter in with_gradient])
        self.norm = float(norm)
        if not math.isfinite(self.norm):
            for parameter in with_gradient:
                parameter.grad = None
        elif self._clipping:
            torch.nn.utils.clip_grads_with_norm_(with_gradient, self._clipping, norm)


def with_true_gradient(loss: torch.Tensor) -> torch.Tensor:
    """`loss` as it should be given to backward: where it is not finite, neither is any gradient that flows back from it.

    One process's gradient that is not finite makes the sum over processes so, and DeepSpeed skips the step on all of them; so does
    FiniteGate. Every finite loss and its gradient stay what they are, to the bit.
    """
    return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)


def step(engine: Engine, loss: torch.Tensor, learning_rate: float, *, stop: bool, replaced: int) -> Stepped:
    """Apply the gradients of the last backward, and agree on what has happened in one all-reduce. Collective.

    `loss` is this process's, `stop` whether it was told to end, `replaced` how many rows of its batch were replaced.
    """
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate
    scaler: Any = getattr(engine.optimizer, "loss_scaler", None)
    dynamic = getattr(scaler, "dynamic", False)
    loss_scale = float(scaler.cur_scale) if dynamic else None
    with _growth_afterwards(scaler) if dynamic else contextlib.nullcontext():
        engine.step()
    told = torch.tensor([stop, replaced], dtype=torch.float32, device=engine.device)
    total = torch.cat([loss.detach().reshape(1).to(torch.float32), told])
    torch.distributed.all_reduce(total)
    loss_sum, stops, all_replaced = total.tolist()
    mean = loss_sum / torch.distributed.get_world_size()
    if engine.gate is not None:
        norm: float | torch.Tensor | None = engine.gate.norm
        applied = math.isfinite(engine.gate.norm)
    else:
        norm, applied = engine.get_global_grad_norm(), engine.was_step_applied()
    searching = dynamic and scaler.cur_scale > scaler.min_scale and math.isfinite(mean)
    return Stepped(
        loss=mean,
        gradient_norm=math.nan if norm is None else float(norm),
        applied=applied,
        bad=not applied and not searching,
        told_to_stop=stops > 0,
        replaced=round(all_replaced),
        loss_scale=loss_scale,
    )


@contextlib.contextmanager
def _growth_afterwards(scaler: Any) -> Iterator[None]:
    """Let a loss scaler that grows do so when the step is over.

    DeepSpeed 0.19.8 lets it grow between the backward, which was scaled by the old scale, and the division by the new one: that step would
    apply half its gradient and report half its norm. Shrinking, which comes with no division, stays where it is.
    """
    good = False

    def update_scale(overflow: bool) -> None:
        nonlocal good
        good = not overflow
        if overflow:
            type(scaler).update_scale(scaler, overflow)

    scaler.update_scale = update_scale
    try:
        yield
    finally:
        del scaler.update_scale
    if good:
        scaler.update_scale(False)


# ---- DeepSpeed itself


def gathered(tensor: torch.Tensor, *, modified: bool) -> AbstractContextManager[object]:
    """While it lasts, all of a parameter that stage 3 has split is here; changes of it stay if `modified`. Collective."""
    if not hasattr(tensor, "ds_id"):
        return contextlib.nullcontext()
    whole = _quiet_deepspeed().zero.GatheredParameters([tensor], modifier_rank=0 if modified else None)
    return cast(AbstractContextManager[object], whole)


def _quiet_deepspeed() -> "_DeepSpeed":
    """DeepSpeed with its loggers at WARNING: what a user needs to know, the loop says itself."""
    os.environ.setdefault("DS_LOG_LEVEL", "warning")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # DeepSpeed warns about its own imports
        import deepspeed  # heavy; see the module's docstring
    # On CPUs it would compile a shared-memory all-reduce at every first start, behind a lock file that a killed process leaves locked for
    # good, so that the resumed run waits forever. gloo does the same sums without it.
    # Nor is it asked which other operations could be compiled here, for which DeepSpeed would run compilers: only this one is looked up.
    deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}
    # Each of its steps calls names that torch 2.13 will rename; no user of ours can do anything about it.
    warnings.filterwarnings("ignore", category=FutureWarning, message=r"`torch\.distributed\..*` is deprecated")
    for name in ("DeepSpeed", "deepspeed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return cast(_DeepSpeed, deepspeed)


class _DeepSpeed(Protocol):
    def init_distributed(self, *, dist_init_required: bool, verbose: bool) -> None: ...
    def initialize(
        self,
        *,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        config: dict[str, Json],
        dist_init_required: bool,
    ) -> tuple[object, ...]: ...

    zero: Any
    constants: Any


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
