"""Every ZeRO stage, precision and place of the optimizer's states in one launch: what test_optim_zero.py reads.

    deepspeed --num_gpus N --module tests.trainer.optim_cases [--few] OUT.pt

Each case trains a small CLIP for STEPS steps on a fixed global batch of drawn numbers, through the same calls as the loop, and notes what
the optimizer held. With --few half of the cases with offload are left out: each stage and each kind of weights keeps some. Written by
process 0 with torch.save: a list of one dictionary a case.
"""

import gc
import sys
from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch.distributed
from torch import Tensor, nn

from pipeline.contracts.config import load_config
from trainer import partitions, zero
from trainer.config import TrainConfig
from trainer.models import CLIP, Preset, ViTShape, build
from trainer.objectives.clip import contrastive_loss
from trainer.optim import Ema, HalfAdamW, parameter_groups

T = TypeVar("T")

STEPS, GLOBAL_BATCH, RATE = 6, 8, 1e-3
PROXY = Preset("proxy", 64, 32, ViTShape(1, 64, 16), 64, 1, RATE, (0.9, 0.98), 1e-6, 8, 80)


class Case(NamedTuple):
    stage: int
    compute: str = "fp32"
    master: str = "fp32"
    text: str = "plain"
    offload: bool = False


_KINDS = (
    ("fp32", "fp32", "plain"),
    ("fp32", "fp32", "fp16_stochastic"),
    ("autocast_bf16", "fp32", "fp16_stochastic"),
    ("bf16", "fp32", "plain"),
    ("bf16", "bf16", "plain"),
)


def _is_refused(case: Case) -> bool:
    """By the configuration: test_config.py has the sentences."""
    return (case.stage == 0 and (case.offload or case.compute == "bf16")) or (case.offload and case.master == "bf16")


CASES = [
    case
    for stage in (0, 1, 2, 3)
    for compute, master, text in _KINDS
    for offload in (False, True)
    if not _is_refused(case := Case(stage, compute, master, text, offload))
]

FEW = [
    case
    for case in CASES
    if not case.offload or (case.stage + _KINDS.index((case.compute, case.master, case.text))) % 2 == 1
]


def config_of(case: Case) -> TrainConfig:
    overrides = {
        "data.manifest": "unused",
        "batch.global_size": GLOBAL_BATCH,
        "zero.stage": case.stage,
        "zero.offload": str(case.offload).lower(),
        "precision.compute": case.compute,
        "precision.master": case.master,
        "precision.text_weights": case.text,
    }
    return load_config(
        TrainConfig, "trainer/configs/smoke.toml", [f"{key}={value}" for key, value in overrides.items()]
    )


def new_model() -> CLIP:
    torch.manual_seed(0)
    return build(PROXY)


def batch(step: int) -> tuple[Tensor, Tensor]:
    """The global batch of a step."""
    draws = torch.Generator().manual_seed(step)
    ids = torch.randint(1, 79, (GLOBAL_BATCH, 8), generator=draws)
    ids[:, -1] = 79
    return torch.randn(GLOBAL_BATCH, 3, 32, 32, generator=draws), ids


def run(case: Case, rank: int, world: int) -> dict[str, Any]:
    config = config_of(case)
    model = new_model()
    groups = parameter_groups(model, 0.2, text_stochastic=config.precision.text_grid)
    sizes = [(name, parameter.numel()) for name, parameter in model.named_parameters()]
    optimizer = HalfAdamW(groups, lr=RATE, stochastic=config.precision.master_grid, seed=9)
    engine = zero.start_engine(config, model, optimizer, world)
    partitions.place(engine, optimizer)
    average = Ema(partitions.masters(engine), 0.9)
    mine = slice(rank * GLOBAL_BATCH // world, (rank + 1) * GLOBAL_BATCH // world)
    dtype = torch.bfloat16 if case.compute == "bf16" else torch.float32
    losses, norms, after_one = [], [], None
    for step in range(STEPS):
        pixels, ids = batch(step)
        loss = contrastive_loss(*engine(pixels[mine].to(dtype), ids[mine]))
        engine.backward(loss)
        stepped = zero.step(engine, loss, RATE, stop=False, replaced=0)
        losses.append(stepped.loss)
        norms.append(stepped.gradient_norm)
        assert stepped.applied
        average.update(partitions.masters(engine))
        if step == 0:
            after_one = assembled(partitions.masters(engine), engine, optimizer, sizes)
    held = partitions.masters(engine)
    states = [optimizer.state[master] for master in held]
    found = {
        "case": tuple(case),  # this module has another name there
        "losses": losses,
        "norms": norms,
        "after_one": after_one,
        "masters": assembled(held, engine, optimizer, sizes),
        "average": assembled(average.tensors, engine, optimizer, sizes),
        "spans": everyone([optimizer._places.get(master) for master in held]),
        "master_types": {master.dtype for master in held},
        "state_types": {key: value.dtype for state in states for key, value in state.items() if key != "step"},
        "bytes": sum_over_processes(
            {
                "weights": stored([share(parameter) for parameter in engine.module.parameters()]),
                "masters": stored(held) if case.stage else 0,  # without ZeRO they are the weights
                "moments": optimizer.state_bytes(),
                "average": stored(average.tensors),
            }
        ),
        "module": module_weights(engine),
    }
    engine.destroy()
    return found


def assembled(
    pieces: list[Tensor], engine: zero.Engine, optimizer: HalfAdamW, sizes: list[tuple[str, int]]
) -> dict[str, Tensor]:
    """Whole flat tensors by parameter name, from the pieces that the processes hold and what the optimizer was told they are."""
    whole = torch.full((sum(size for _, size in sizes),), torch.nan, dtype=torch.float64)
    mine = []
    for piece, master in zip(pieces, partitions.masters(engine), strict=True):
        spans = optimizer._places[master]
        flat, start = piece.detach().reshape(-1).double(), 0
        for first, count in spans:
            mine.append((first, flat[start : start + count].clone()))
            start += count
    for first, values in (part for parts in everyone(mine) for part in parts):  # padding lies behind the end
        end = min(first + len(values), len(whole))
        whole[first:end] = values[: end - first]
    return dict(zip([name for name, _ in sizes], whole.split([size for _, size in sizes]), strict=True))  # type: ignore[no-untyped-call]


def module_weights(engine: zero.Engine) -> dict[str, Tensor]:
    """What the model computes with, flat, by name."""
    import deepspeed

    parameters = dict(engine.module.named_parameters())
    with deepspeed.zero.GatheredParameters(list(parameters.values()), enabled=engine.zero_optimization_stage() == 3):
        return {name: parameter.detach().double().reshape(-1).clone() for name, parameter in parameters.items()}


def share(parameter: nn.Parameter) -> Tensor:
    return cast(Tensor, getattr(parameter, "ds_tensor", parameter))


def stored(tensors: list[Tensor]) -> int:
    """Bytes of the memory behind tensors, each piece of it once."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def everyone(mine: T) -> list[T]:
    gathered: list[T] = [mine] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, mine)
    return gathered


def sum_over_processes(counts: dict[str, int]) -> dict[str, int]:
    return {key: sum(other[key] for other in everyone(counts)) for key in counts}


def main() -> None:
    torch.set_num_threads(1)
    rank, world = zero.join_processes()
    gc.freeze()  # stage 3 collects garbage with each engine: not among all that was imported
    found = [run(case, rank, world) for case in (FEW if "--few" in sys.argv else CASES)]
    if rank == 0:
        torch.save({"world": world, "cases": found}, sys.argv[-1])
    zero.leave_processes()


if __name__ == "__main__":
    main()
