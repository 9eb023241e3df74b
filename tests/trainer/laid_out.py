"""`python -m tests.trainer.laid_out FOLDER CASES WORLD…`: one process of a group that saves and resumes under every stage of ZeRO.

Each stage trains a little and saves. The engine that has gone on, and a new one with other weights, must find the same bits and go on with
the same losses. Engines of every stage must find what groups of other sizes saved (in FOLDER/WORLD): the same numbers of the same
parameters, read through DeepSpeed's own functions, which know nothing of ours. Of STAGES the first CASES are tried. Prints one line for
each case.
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, cast

import safetensors.torch
import torch
import torch.distributed

from pipeline.contracts.config import load_config
from trainer import checkpoint, models, partitions, zero
from trainer.checkpoint import Identity, Position, state
from trainer.config import TrainConfig, resolve
from trainer.models import Preset, ViTShape
from trainer.objectives.clip import contrastive_loss
from trainer.optim import HalfAdamW, parameter_groups
from trainer.optim.blocks import dequantise

SHAPE = Preset("laid-out", 32, 16, ViTShape(2, 64, 8), 64, 1, 1e-3, (0.9, 0.98), 1e-6, 8, 515)
"""Odd sizes on purpose (the vocabulary, the logit scale), so that groups and parameters are padded."""
IDENTITY = Identity(config_digest="a" * 64, config={}, content_root="b" * 64, vocabulary_sha256="c" * 64)
STAGES = (
    *((stage, "fp32") for stage in (0, 1, 2, 3)),
    *((stage, "bf16") for stage in (3, 1, 2)),
    *((stage, "autocast_bf16") for stage in (0, 1, 3)),
)
"""Autocast comes last: DeepSpeed keeps for good that it was asked for once."""
SEED = 7


def config_of(folder: str, stage: int, compute: str) -> TrainConfig:
    overrides = [f"run.dir={folder}", f"zero.stage={stage}", f"precision.compute={compute}", "batch.global_size=8"]
    return resolve(load_config(TrainConfig, "trainer/configs/smoke.toml", overrides))


class Average:
    """A moving average of the masters, as a run may keep one."""

    def __init__(self, engine: zero.Engine) -> None:
        self.tensors = [torch.zeros(part.master.shape) for part in partitions.of(engine)]
        self.updates = 0

    def update(self, engine: zero.Engine) -> None:
        self.updates += 1
        for average, part in zip(self.tensors, partitions.of(engine), strict=True):
            average.lerp_(part.master.detach().float(), 0.5)

    def restore(self, tensors: Sequence[torch.Tensor], updates: int) -> None:
        for average, kept in zip(self.tensors, tensors, strict=True):
            average.view(-1).copy_(kept)
        self.updates = updates


def start(config: TrainConfig, seed: int) -> zero.Engine:
    torch.manual_seed(seed)
    model = models.build(SHAPE)
    for parameter in model.visual.conv1.parameters():
        parameter.requires_grad_(False)  # frozen: held by no optimizer
    model.register_buffer("running", torch.full((3,), float(seed)))
    optimizer = HalfAdamW(parameter_groups(model, 0.2), lr=1e-3, seed=SEED)
    return zero.start_engine(config, model, optimizer, torch.distributed.get_world_size())


def step(engine: zero.Engine, average: Average, number: int) -> float:
    """One real step on drawn pictures and texts; the same global batch whatever the number of processes."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    draws = torch.Generator().manual_seed(number)
    pixels, ids = torch.randn(8, 3, 16, 16, generator=draws), torch.randint(1, 514, (8, 8), generator=draws)
    ids[:, -1] = 514
    dtype = next(engine.module.parameters()).dtype
    own = slice(rank * 8 // world, (rank + 1) * 8 // world)
    loss = contrastive_loss(*engine(pixels[own].to(dtype), ids[own]))
    engine.backward(zero.with_true_gradient(loss))
    stepped = zero.step(engine, loss, 1e-3, stop=False, replaced=0)
    average.update(engine)
    return stepped.loss


def named(engine: zero.Engine, average: Average) -> dict[str, torch.Tensor]:
    """Every parameter's master, moments and average in full and fp32, gathered by DeepSpeed's own functions for one parameter."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    optimizer = partitions.base_optimizer(engine)
    block = optimizer.param_groups[0]["block_size"]
    for part, tensor in zip(partitions.of(engine), average.tensors, strict=True):
        held = optimizer.state[part.master]
        held["plain_ema"] = tensor
        for kind in ("moment", "root"):
            plain = dequantise(held[kind].reshape(-1), held[f"{kind}_scale"], block)
            held[f"plain_{kind}"] = plain.view(held[kind].shape)
    wrapper = cast(Any, engine.optimizer)
    if engine.zero_optimization_stage() in (1, 2):  # DeepSpeed looks at an optimizer's states once
        wrapper._hp_optimizer_states_linked = False
        wrapper._lazy_init_hp_params_optimizer_state()
    found = {}
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        for kind in ("master", "moment", "root", "ema"):
            if engine.zero_optimization_stage() == 0:
                full = parameter if kind == "master" else optimizer.state[parameter][f"plain_{kind}"]
            elif kind == "master":
                full = safe_get_full_fp32_param(parameter)
            else:
                full = safe_get_full_optimizer_state(parameter, f"plain_{kind}")
            found[f"{name}/{kind}"] = full.detach().float().clone()
    for held in optimizer.state.values():
        del held["plain_moment"], held["plain_root"], held["plain_ema"]
    return found


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def as_good_as_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    """Masters to the bit; moments too, but for those 2^28 times smaller than their block's largest: up to half of fp16's last bit there."""
    for key in ours:
        if key.endswith(("/moment", "/root")):
            kind = key.rpartition("/")[2]
            largest = max(float(value.abs().max()) for name, value in theirs.items() if name.endswith(kind))
            small = theirs[key].abs() < largest * 2.0**-28
            if bool(((ours[key] - theirs[key])[small].abs() > largest * 2.0**-39).any()):
                return False
            ours = ours | {key: torch.where(small, theirs[key], ours[key])}
    return same(ours, theirs)


def everything(engine: zero.Engine, average: Average) -> dict[str, torch.Tensor]:
    """All that this process holds, as it holds it."""
    flats = state.flats(engine, average)
    held = {f"{number}/{key}": value for number, flat in enumerate(flats) for key, value in flat.values.items()}
    counts = {
        f"{number}/{key}": torch.tensor(value)
        for number, flat in enumerate(flats)
        for key, value in flat.counts.items()
    }
    working = {f"weight/{name}": value.detach().clone() for name, value in local_weights(engine)}
    return held | counts | working


def local_weights(engine: zero.Engine) -> Iterator[tuple[str, torch.Tensor]]:
    """What forward reads; of a parameter that stage 3 has split, this process's part without its padding."""
    for name, parameter in engine.module.named_parameters():
        part = getattr(parameter, "ds_tensor", None)
        if part is None:
            yield name, parameter
        else:
            left = cast(Any, parameter).ds_numel - torch.distributed.get_rank() * part.numel()
            yield name, part[: max(0, min(part.numel(), left))]


def scalers_agree() -> bool:
    """The state of DeepSpeed's loss scaler goes through JSON into one that began otherwise, which then has it and goes on alike."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    def engine_with(start: float, least: float) -> Any:
        scaler = DynamicLossScaler(start, 4, least, 2, False, raise_error_at_min_scale=False)
        return SimpleNamespace(optimizer=SimpleNamespace(loss_scaler=scaler))

    def scales(engine: Any, overflows: str) -> list[float]:
        found = []
        for sign in overflows:
            engine.optimizer.loss_scaler.update_scale(sign == "x")
            found.append(engine.optimizer.loss_scaler.cur_scale)
        return found

    first, second = engine_with(2.0**16, 1.0), engine_with(2.0, 2.0)
    scales(first, "xx..x")
    partitions.set_loss_scaler(second, json.loads(json.dumps(partitions.loss_scaler(first))))
    same = partitions.loss_scaler(second) == partitions.loss_scaler(first)
    rest = "......x.....x.x......."
    return same and scales(second, rest) == scales(first, rest)


def found_in(place: str) -> tuple[str, checkpoint.CheckpointRecord]:
    found = checkpoint.find(place, IDENTITY)
    assert found is not None
    return found


def check(case: str, *answers: bool) -> None:
    good = all(zero.gather(all(answers)))
    if torch.distributed.get_rank() == 0:
        print(case, "same" if good else f"DIFFERENT {answers}", flush=True)


def main(folder: str, cases: int, others: list[str]) -> None:
    rank, world = zero.join_processes()
    for stage, compute in STAGES[:cases]:
        case = f"{stage}-{compute}"
        config = config_of(os.path.join(folder, str(world), case), stage, compute)
        engine = start(config, SEED)
        average = Average(engine)
        for number in range(3):
            step(engine, average, number)
        checkpoint.save(engine, config.run, IDENTITY, Position(step=3), samples_seen=24, average=average)
        truth = named(engine, average)
        if rank == 0:
            safetensors.torch.save_file(truth, os.path.join(config.run.dir, "truth.safetensors"))
        saved = everything(engine, average)
        losses = [step(engine, average, number) for number in range(3, 6)]
        after = everything(engine, average)

        # ---- back in the engine that has gone on, and in a new one with other weights
        place = checkpoint.place_of(config.run)
        for where in ("the same engine", "a new engine"):
            if where == "a new engine":
                engine.destroy()
                engine = start(config, SEED + 1)
                average = Average(engine)
            checkpoint.resume(engine, place, found_in(place), average)
            check(
                f"{world}: {case} in {where}",
                same(everything(engine, average), saved),
                same(named(engine, average), truth),
                float(engine.module.get_buffer("running")[0]) == SEED,
                [step(engine, average, number) for number in range(3, 6)] == losses,
                same(everything(engine, average), after),
            )

        # ---- the whole weights and their average, as an export reads them
        tag, record = found_in(place)
        answers = []
        for kind in (checkpoint.MASTER, checkpoint.EMA):
            weights = checkpoint.named_weights(place, tag, record, kind)
            ours = {f"{name}/{kind}": weights[name] for name in record.shapes}
            answers += [same(ours, {key: value for key, value in truth.items() if key.endswith(f"/{kind}")})]
            answers += [weights.keys() == engine.module.state_dict().keys()]
        check(f"{world}: {case} by name", *answers)

        # ---- what other stages and other numbers of processes saved
        for other in others:
            for stage_there, compute_there in STAGES[:cases]:
                there = os.path.join(folder, other, f"{stage_there}-{compute_there}")
                if compute_there != compute or (other == str(world) and not os.path.exists(there)):
                    continue
                place_there = os.path.join(there, "checkpoints")
                checkpoint.resume(engine, place_there, found_in(place_there), average)
                truth_there = safetensors.torch.load_file(os.path.join(there, "truth.safetensors"))
                half = {
                    value.dtype
                    for held in state.flats(engine)
                    for key, value in held.values.items()
                    if key in ("moment", "root")
                }
                check(
                    f"{world}: {case} from {other}: {stage_there}-{compute_there}",
                    as_good_as_same(named(engine, average), truth_there),
                    half == {torch.float16},
                    {held.counts["step"] for held in state.flats(engine)} == {3},
                    average.updates == 3,
                )
        engine.destroy()
    check(f"{world}: loss scaler", scalers_agree())
    zero.leave_processes()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
