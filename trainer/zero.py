"""The one door to DeepSpeed: a TrainConfig becomes DeepSpeed's dictionary, the dictionary and a model become an engine.

The dictionary is derived, never merged with one of the user's, because DeepSpeed ignores what it does not know and has defaults that CLIP
does not want: it clips gradients to norm 1 unless told 0, and it would divide an odd batch into accumulation steps. Both are stated here.

DeepSpeed itself is imported inside the functions: `--check`, the exports and the tests of the dictionary must not pay for it, nor for
its look at the accelerator.
"""

import logging
import os
import socket
import warnings
from typing import Protocol, cast

import torch
import torch.distributed

from pipeline.contracts.errors import InputError, RunError
from trainer.config import TrainConfig, per_device_size
from trainer.optim import HalfAdamW

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


class Engine(Protocol):
    """What the loop uses of `deepspeed.DeepSpeedEngine`."""

    module: torch.nn.Module
    optimizer: torch.optim.Optimizer
    device: torch.device
    global_samples: int

    def __call__(self, pixels: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, ...]: ...
    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None: ...
    def backward(self, loss: torch.Tensor) -> object: ...
    def step(self) -> None: ...
    def zero_optimization_stage(self) -> int: ...
    def was_step_applied(self) -> bool: ...
    def get_global_grad_norm(self) -> float | torch.Tensor | None: ...
    def save_checkpoint(self, save_dir: str, tag: str, client_state: dict[str, Json], save_latest: bool) -> bool: ...
    def load_checkpoint(self, load_dir: str, tag: str) -> tuple[str | None, dict[str, Json]]: ...
    def destroy(self) -> None: ...


def deepspeed_config(config: TrainConfig, world_size: int) -> dict[str, Json]:
    """DeepSpeed's dictionary for `config` on `world_size` processes. Raises InputError when the batch does not divide."""
    compute = config.precision.compute
    derived: dict[str, Json] = {
        "train_batch_size": config.batch.global_size,
        "train_micro_batch_size_per_gpu": per_device_size(config, world_size),
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.optim.gradient_clipping,
        "zero_optimization": {"stage": config.zero.stage},
        "zero_force_ds_cpu_optimizer": False,  # nor with offload is it DeepSpeed's own
        "zero_allow_untested_optimizer": True,  # ours is not on DeepSpeed's list; the tests prove it under every stage
        "bf16": {"enabled": compute == "bf16"},
        "fp16": {"enabled": compute == "fp16"},
        "steps_per_print": 2**62,
        "wall_clock_breakdown": False,
        "checkpoint": {"tag_validation": "Ignore"},
    }
    if config.zero.offload:
        derived["zero_optimization"] = {
            "stage": config.zero.stage,
            "offload_optimizer": {"device": "cpu", "pin_memory": True},
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


def check_hardware(config: TrainConfig) -> None:
    """Refuse what this machine cannot do, before anything starts. Raises InputError."""
    on_cpu = os.environ.get("DS_ACCELERATOR") == "cpu" or not torch.cuda.is_available()
    if config.precision.compute == "fp16" and on_cpu:
        raise InputError("precision.compute: 'fp16' needs a GPU and this run has none; set it to 'bf16' or 'fp32'")


def join_processes() -> tuple[int, int]:
    """Join the processes of this run; returns (rank, number of processes). A process that no launcher started is a run of one."""
    if "RANK" not in os.environ:
        alone = {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
        }
        os.environ.update(alone)
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    deepspeed = _quiet_deepspeed()
    try:
        deepspeed.init_distributed(dist_init_required=True, verbose=False)
    except torch.distributed.DistError as error:
        raise RunError(
            f"MASTER_ADDR={os.environ['MASTER_ADDR']} MASTER_PORT={os.environ['MASTER_PORT']}: the processes did not find each other:"
            f" {str(error).splitlines()[0]}; check the hostfile and that the port is free"
        ) from error
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def leave_processes() -> None:
    """Release the process group: a stage 3 process that exits with it can abort after its work is done."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def start_engine(
    config: TrainConfig, model: torch.nn.Module, optimizer: torch.optim.Optimizer, world_size: int
) -> Engine:
    """Wrap `model` and `optimizer` under the stage and precision of `config`, on this process's device."""
    deepspeed = _quiet_deepspeed()
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=deepspeed_config(config, world_size), dist_init_required=False
    )
    started = cast(Engine, engine)
    if isinstance(optimizer, HalfAdamW):
        _place_partitions(started, optimizer)
    return started


def _place_partitions(engine: Engine, optimizer: HalfAdamW) -> None:
    """Tell the optimizer which numbers of the model each flat partition of this process holds, so that no two draw the same noise."""
    stage, rank = engine.zero_optimization_stage(), torch.distributed.get_rank()
    if stage in (1, 2):  # a group is one flat tensor, of which each process has its share
        for group in optimizer.param_groups:
            (partition,) = group["params"]
            optimizer.place(partition, [(group["flat_offset"] + rank * partition.numel(), partition.numel())])
    elif (
        stage == 3
    ):  # every parameter is split over all processes; a sub-group is a group's shares, or some of them, in a row
        sharded = cast(_Stage3, engine.optimizer)
        firsts = [group["flat_offset"] for group in optimizer.param_groups]
        for number, partition in enumerate(sharded.fp32_partitioned_groups_flat):
            group_id = sharded.sub_group_to_group_id[number]
            spans = []
            for parameter in sharded.fp16_groups[number]:
                share = parameter.ds_tensor.ds_numel
                spans.append((firsts[group_id] + rank * share, share))
                firsts[group_id] += parameter.ds_numel
            optimizer.place(partition, spans)


def masters(engine: Engine) -> list[torch.Tensor]:
    """The master weights that this process holds, in the optimizer's order: flat under ZeRO, the parameters themselves without."""
    if engine.zero_optimization_stage() == 3:  # where the optimizer's groups are empty between steps
        return list(cast(_Stage3, engine.optimizer).fp32_partitioned_groups_flat)
    return [parameter for group in engine.optimizer.param_groups for parameter in group["params"]]


def step(engine: Engine, learning_rate: float) -> tuple[float, bool]:
    """Apply the gradients of the last backward: (norm of the global gradient before clipping, whether weights changed)."""
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate
    norm: float | torch.Tensor | None = None
    if engine.zero_optimization_stage() == 0:  # where DeepSpeed has no norm unless it clips; gradients are whole here
        gradients = [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
    engine.step()
    if norm is None:
        norm = engine.get_global_grad_norm()
    return float("nan") if norm is None else float(norm), engine.was_step_applied()


def mean_over_processes(value: torch.Tensor) -> float:
    """The mean of a 0-D tensor over all processes, the same number on each. Collective."""
    total = value.detach().to(torch.float32, copy=True).reshape(1)
    torch.distributed.all_reduce(total)
    return float(total) / torch.distributed.get_world_size()


def sum_over_processes(count: int) -> int:
    """The sum of a count over all processes. Collective."""
    counts: list[int] = [0] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(counts, count)
    return sum(counts)


def wait_for_all() -> None:
    """Return when every process has called this. Collective."""
    torch.distributed.barrier()


def master_weights(engine: Engine) -> dict[str, torch.Tensor]:
    """The fp32 master weights and the buffers by name, on the CPU, complete, in every stage; {} on all ranks but the first.

    Collective: every process must call it. One tensor is gathered at a time, so that no GPU holds the whole model.
    """
    from deepspeed.utils import safe_get_full_fp32_param  # heavy; see the module's docstring

    first = torch.distributed.get_rank() == 0
    weights: dict[str, torch.Tensor] = {}
    for name, parameter in engine.module.named_parameters():
        gathered = safe_get_full_fp32_param(parameter)
        full = parameter if gathered is None else gathered  # stage 0 and fp32: the parameter is its own master
        if first:
            weights[name] = full.detach().to("cpu", torch.float32, copy=True).contiguous()
    persistent = engine.module.state_dict(keep_vars=True).keys()
    for name, buffer in engine.module.named_buffers():
        if first and name in persistent:
            weights[name] = buffer.detach().to("cpu", copy=True).contiguous()
    return weights


def _quiet_deepspeed() -> "_DeepSpeed":
    """DeepSpeed with its loggers at WARNING: what a user needs to know, the loop says itself."""
    os.environ.setdefault("DS_LOG_LEVEL", "warning")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # DeepSpeed warns about its own imports
        import deepspeed  # heavy; see the module's docstring
    # On CPUs it would compile a shared-memory all-reduce at every first start, behind a lock file that a killed process leaves locked for
    # good, so that the resumed run waits forever. gloo does the same sums without it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # Each of its steps calls names that torch 2.13 will rename; no user of ours can do anything about it.
    warnings.filterwarnings("ignore", category=FutureWarning, message=r"`torch\.distributed\..*` is deprecated")
    for name in ("DeepSpeed", "deepspeed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return cast(_DeepSpeed, deepspeed)


class _Shard(Protocol):
    ds_numel: int


class _ShardedParameter(Protocol):
    """A parameter under stage 3, and this process's share of it (the last one may reach over the parameter's end)."""

    ds_numel: int
    ds_tensor: _Shard


class _Stage3(Protocol):
    fp32_partitioned_groups_flat: list[torch.Tensor]
    fp16_groups: list[list[_ShardedParameter]]
    sub_group_to_group_id: dict[int, int]


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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
