"""Steps under offload, micro-batches, clipping and bad gradients at once: the program that `test_step_cases` launches.

    deepspeed --num_gpus W --module tests.trainer.step_cases FILE

The optimizer writes its gradients over the masters (`gradients.Recorder`), so that what a step applied can be read. The first process
writes FILE: one JSON line for each case.
"""

import itertools
import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.contracts.config import load_config
from tests.trainer import fp16_on_cpu
from tests.trainer.gradients import HALF_STEPS, LOCAL, Recorder, device, fresh_model, masters, truth, whole_batch
from trainer import gradient_cache, zero
from trainer.config import TrainConfig
from trainer.objectives import OBJECTIVES

PRECISIONS = (("fp32", "fp32"), ("bf16", "fp32"), ("bf16", "bf16"), ("fp16", "fp32"), ("autocast_bf16", "fp32"))
"""Of the weights that compute and of the masters; autocast comes last, because DeepSpeed keeps for good that it was asked for once."""
BAD_STEPS = 2


class Case(NamedTuple):
    compute: str
    master: str
    stage: int
    offload: bool
    micro_size: int | None
    clipping: float
    bad: bool
    """Whether two steps with pixels that are no numbers, on the last process, come before the good one."""


def cases() -> Iterator[Case]:
    for (compute, master), stage, offload, micro_size, clipping, bad in itertools.product(
        PRECISIONS, (0, 1, 2, 3), (False, True), (None, 4, 2), (0.0, 0.1), (False, True)
    ):
        refused = (stage == 0 and (offload or compute in ("bf16", "fp16"))) or (offload and master == "bf16")
        if not refused:
            yield Case(compute, master, stage, offload, micro_size, clipping, bad)


class Asking(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts how often one tensor alone is asked for its norm or for what is largest in it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += operation in (torch.ops.aten.linalg_vector_norm.default, torch.ops.aten.amax.default)
        return operation(*args, **(kwargs or {}))


def outcome(case: Case, true: dict[str, Tensor], rank: int, world: int) -> dict[str, object]:
    """Errors of the gradient that the good step applied and of its norm, relative; whether each step before left all as it was; how often
    a step asked one tensor alone for its norm or for what is largest in it.
    """
    model = fresh_model("clip")
    pixels, ids = (values[rank * LOCAL : (rank + 1) * LOCAL] for values in whole_batch(world))
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(case.compute, torch.float32)
    pixels, ids = pixels.to(device(), dtype), ids.to(device())
    overrides = {
        "batch.global_size": world * LOCAL,
        "zero.stage": case.stage,
        "zero.offload": str(case.offload).lower(),
        "precision.compute": case.compute,
        "precision.master": case.master,
        "optim.gradient_clipping": case.clipping,
    }
    config = load_config(
        TrainConfig, "trainer/configs/smoke.toml", [f"{key}={value}" for key, value in overrides.items()]
    )
    engine = zero.start_engine(config, model, Recorder(model), world)

    def step(factor: float) -> zero.Stepped:
        loss, _ = gradient_cache.forward_backward(
            engine,
            lambda *outputs: zero.with_true_gradient(OBJECTIVES["clip"].loss(*outputs)),
            lambda at: (pixels[at] * factor, ids[at]),
            LOCAL,
            case.micro_size,
        )
        with Asking() as asking:
            stepped = zero.step(engine, loss, 0.0, stop=False, replaced=0)
        asked.append(asking.count)
        return stepped

    asked: list[int] = []
    before, skipped = masters(engine), []
    for _ in range(BAD_STEPS if case.bad else 0):
        stepped = step(math.nan if rank == world - 1 else 1.0)
        after = masters(engine)
        same = all(torch.equal(value, after[name]) for name, value in before.items())
        skipped.append(same and stepped.bad and not stepped.applied)
    stepped = step(1.0)
    for _ in range(HALF_STEPS if case.compute == "fp16" else 0):
        if stepped.applied:
            break
        skipped.append(not stepped.bad)  # the loss scaler is looking for its scale
        stepped = step(1.0)
    found = {name: value.double().cpu() for name, value in masters(engine).items()}
    engine.destroy()
    norm = math.sqrt(sum(float(value.square().sum()) for name, value in true.items() if name != "loss"))
    share = min(1.0, case.clipping / norm) if case.clipping else 1.0
    errors = [float((found[name] - share * true[name]).norm() / (share * true[name]).norm()) for name in found]
    return {
        "case": list(case),
        "applied": stepped.applied,
        "skipped": skipped,
        "gradient_error": max(errors),
        "norm_error": abs(stepped.gradient_norm / norm - 1),
        "asked": max(asked),
    }


def main(out: str) -> None:
    rank, world = zero.join_processes()
    fp16_on_cpu.allow()
    torch.set_num_threads(1)
    true = truth("clip", world)
    lines = [json.dumps(outcome(case, true, rank, world)) for case in cases()]
    if rank == 0:
        Path(out).write_text("\n".join(lines))
    zero.leave_processes()


if __name__ == "__main__":
    assert "RANK" in os.environ, "start me with the deepspeed launcher"
    main(sys.argv[-1])
