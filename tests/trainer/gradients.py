"""Gradients as the optimizer sees them, of one process or of several: the program that `test_gradients` launches, and the truth beside it.

    [DS_ACCELERATOR=cpu] deepspeed --num_gpus W --module tests.trainer.gradients [--few | --compiled] FILE

All cases of W processes run in one launch: every objective, dense and chunked, ZeRO stage and number of micro-batches in fp32, the half
precisions, and fp64 without DeepSpeed. With --few, of what has an engine each two of these together, and not all of them at once. An
optimizer that writes its gradients over the masters makes them readable in every stage through the trainer's own door. The first process
writes FILE (safetensors): "case parameter" -> gradient.
"""

import gc
import math
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from pipeline.contracts.config import load_config
from tests.trainer import fp16_on_cpu
from trainer import gradient_cache, models, zero
from trainer.config import TrainConfig
from trainer.data.lengths import grouped
from trainer.models import Preset, ViTShape
from trainer.models.checkpointing import Checkpointing
from trainer.objectives import OBJECTIVES
from trainer.optim import parameter_groups

LOCAL = 7
"""Pairs of one process: no chunk and no micro-batch of more than one pair divides it."""
CHUNK = 3
MICRO = {1: None, 2: 4, 4: 2}
"""Number of micro-batches to their size: 7, 4 + 3, 2 + 2 + 2 + 1."""
SMALL_BUCKET = 1000
"""Less than the largest parameter has: many messages, and some parameters that do not fit into one."""
WINDOW, SCALED_STEPS = 3, 9
"""Steps after which a loss scaler grows, and steps in which it does so twice."""
HALF_STEPS = 40
"""Steps in which the loss scaler must have found a scale that does not overflow."""
HALF_SCALE = 2.0**12
"""Where it begins here; it finds 2^11. The trainer's 2^16 would be four more steps of the same."""
TINY = Preset("gradients", 32, 16, ViTShape(2, 64, 8), 64, 2, 1e-3, (0.9, 0.98), 1e-6, context_length=8, vocab_size=50)
CHECKPOINTED: tuple[Checkpointing, ...] = ("activation", "elementwise", "blocks")
"""Under stage 3 only the last of them."""
Compute = Literal["fp64", "fp32", "bf16", "autocast_bf16", "fp16"]


class Case(NamedTuple):
    """One gradient; stage None is without DeepSpeed."""

    compute: Compute
    kind: str
    chunk: int | None
    stage: int | None
    micro_batches: int
    checkpoint_activations: Checkpointing = "none"
    compiled: bool = False
    bucket: int | None = None
    """Numbers in DeepSpeed's buffers; None: the trainer's own choice. With a number, stage 3 keeps no parameter whole."""

    @property
    def name(self) -> str:
        return "/".join(str(part) for part in self)


def exact_cases(*, few: bool = False) -> Iterator[Case]:
    """few: every stage with every number of micro-batches once; objective and chunk change so that each meets each of the others."""
    for which, kind in enumerate(OBJECTIVES):
        for cut, chunk in enumerate((None, CHUNK)):
            for number, micro_batches in enumerate(MICRO):
                yield Case("fp64", kind, chunk, None, micro_batches)
                for stage in (0, 1, 2, 3):
                    if not few or (which, cut) == ((stage + number) % 2, (stage // 2 + number) % 2):
                        yield Case("fp32", kind, chunk, stage, micro_batches)
    for stage in (0, 1, 2, 3):
        for micro_batches in (2,) if few else (1, 2):
            for how in CHECKPOINTED[2 if stage == 3 else 0 :]:
                yield Case("fp32", "clip", CHUNK, stage, micro_batches, how)
            if stage:
                yield Case("fp32", "clip", CHUNK, stage, micro_batches, bucket=SMALL_BUCKET)


def compiled_cases() -> Iterator[Case]:
    """A launch of their own: the compiler takes longer than all the others."""
    for stage in (0, 1, 2):
        for micro_batches in (1, 2):
            how: Checkpointing
            for how in ("none", *CHECKPOINTED):
                yield Case("fp32", "clip", CHUNK, stage, micro_batches, how, compiled=True)


def half_cases(*, few: bool = False) -> Iterator[Case]:
    """few: in micro-batches, without which a stage has less to do."""
    kinds: tuple[Compute, ...] = ("bf16", "autocast_bf16", "fp16")
    for compute in kinds:
        for stage in (1, 2, 3):
            for micro_batches in (4,) if few else (1, 4):
                yield Case(compute, "siglip", CHUNK, stage, micro_batches)
        yield Case(compute, "siglip", CHUNK, 2, 4, "elementwise")


# ---- the truth


def naive_clip(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """The paper's figure 3, with the softmax written out."""
    logits = images @ texts.T * scale
    by_image = logits.exp().sum(1).log() - logits.diag()
    by_text = logits.exp().sum(0).log() - logits.diag()
    return (by_image.mean() + by_text.mean()) / 2


def naive_siglip(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """The sigmoid loss paper's algorithm 1, with the sigmoid written out."""
    signs = 2 * torch.eye(len(images), dtype=images.dtype) - 1
    return (1 + (-signs * (images @ texts.T * scale + bias)).exp()).log().sum() / len(images)


NAIVE: dict[str, Callable[..., Tensor]] = {"clip": naive_clip, "siglip": naive_siglip}


def fresh_model(kind: str, checkpoint_activations: Checkpointing = "none") -> models.CLIP:
    torch.manual_seed(1)
    objective = OBJECTIVES[kind]
    return models.build(
        TINY,
        checkpoint_activations=checkpoint_activations,
        logit_scale=objective.logit_scale,
        logit_bias=objective.logit_bias,
    )


def whole_batch(world: int) -> tuple[Tensor, Tensor]:
    """fp64 pixels and ids, each text ending in the largest id somewhere."""
    generator = torch.Generator().manual_seed(5)
    pairs = world * LOCAL
    pixels = torch.randn(pairs, 3, TINY.image_size, TINY.image_size, dtype=torch.float64, generator=generator)
    ids = torch.randint(1, TINY.vocab_size - 1, (pairs, TINY.context_length), generator=generator)
    ends = torch.randint(2, TINY.context_length, (pairs,), generator=generator)
    ids[torch.arange(pairs), ends] = TINY.vocab_size - 1
    return pixels, ids


def truth(kind: str, world: int) -> dict[str, Tensor]:
    """Loss and gradients of one process with the whole batch, in fp64, by nothing but autograd."""
    model = fresh_model(kind).double()
    loss = NAIVE[kind](*model(*whole_batch(world)))
    torch.autograd.backward(loss)
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return found | {"loss": loss.detach()}


# ---- what is tested


class Recorder(torch.optim.Optimizer):
    """Its step leaves each gradient where the master weight was."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(parameter_groups(model, 0.0), {"lr": 1.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.copy_(parameter.grad)


def device() -> torch.device:
    """What DeepSpeed computes on here."""
    return torch.device("cpu" if zero.on_cpu() else "cuda")


class Plain:
    """The engine's part for gradient caching, without DeepSpeed."""

    def __init__(self, module: nn.Module) -> None:
        self.device = device()
        self.module = module.to(self.device)

    def __call__(self, pixels: Tensor, *texts: Tensor) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = self.module(pixels, *texts)
        return outputs

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        pass

    def backward(self, loss: Tensor) -> None:
        torch.autograd.backward(loss)


def all_split(
    config: TrainConfig, world_size: int, whole: Callable[..., Any] = zero.deepspeed_config
) -> dict[str, Any]:
    """The trainer's dictionary, but that stage 3 splits every parameter: it keeps those of fewer than 1e5 numbers whole, all of TINY's."""
    derived: dict[str, Any] = whole(config, world_size)
    derived["zero_optimization"] |= {"stage3_param_persistence_threshold": 0} if config.zero.stage == 3 else {}
    return derived


def gradients(case: Case, rank: int, world: int) -> dict[str, Tensor]:
    """Loss (mean over processes) and gradients of one case, complete on the first process."""
    model = fresh_model(case.kind, case.checkpoint_activations)
    if case.compiled:
        model.compile_blocks()
    dtypes = {"fp64": torch.float64, "bf16": torch.bfloat16, "fp16": torch.float16}
    pixels, ids = whole_batch(world)
    mine = slice(rank * LOCAL, (rank + 1) * LOCAL)
    pixels, ids = pixels[mine].to(device(), dtypes.get(case.compute, torch.float32)), ids[mine].to(device())

    def loss_of(*outputs: Tensor) -> Tensor:
        return OBJECTIVES[case.kind].loss(*outputs, chunk_size=case.chunk)

    def load(at: slice) -> tuple[Tensor, ...]:
        """Texts of each length by themselves: the truth has them all in one piece."""
        groups = grouped(ids[at].argmax(dim=1).cpu().numpy() + 1, math.inf if case.stage == 3 else 0)
        order = torch.cat([torch.from_numpy(group.rows) for group in groups])
        return pixels[at][order], *(ids[at][torch.from_numpy(group.rows), : group.length] for group in groups)

    micro_size = MICRO[case.micro_batches]
    if case.stage is None:
        loss, _ = gradient_cache.forward_backward(Plain(model.double()), loss_of, load, LOCAL, micro_size)
        found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
        for tensor in (loss, *found.values()):
            dist.all_reduce(tensor)
            tensor /= world
        return found | {"loss": loss}

    overrides = [
        f"batch.global_size={world * LOCAL}",
        f"zero.stage={case.stage}",
        f"precision.compute={case.compute}",
    ]
    config = load_config(TrainConfig, "trainer/configs/smoke.toml", overrides)
    usual = {"BUCKET": zero.BUCKET, "deepspeed_config": zero.deepspeed_config}
    if case.bucket is not None:
        vars(zero).update(BUCKET=case.bucket, deepspeed_config=all_split)
    usual_linear = (
        functional.linear
    )  # stage 3 puts another one there for good, which adds its bias in place: not for "elementwise"
    engine = zero.start_engine(config, model, Recorder(model), world)
    vars(zero).update(usual)
    if case.compute == "fp16":
        vars(engine.optimizer)["loss_scaler"].cur_scale = HALF_SCALE
    for _ in range(HALF_STEPS if case.compute == "fp16" else 1):
        loss, _ = gradient_cache.forward_backward(engine, loss_of, load, LOCAL, micro_size)
        stepped = zero.step(engine, loss, 0.0, stop=False, replaced=0)
        if stepped.applied:
            break
    assert stepped.applied
    found = masters(engine)
    engine.destroy()
    functional.linear = usual_linear
    return found | {"loss": torch.tensor(stepped.loss), "norm": torch.tensor(stepped.gradient_norm)}


class Norms(Recorder):
    """Its step notes the norm of the gradient that it is given, over all processes."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    SQUARES.append(float(parameter.grad.double().square().sum()))


SQUARES: list[float] = []


def scaled(stage: int, world: int, rank: int) -> Tensor:
    """[step, 4]: scale before and after, norm of the gradient that was applied, norm that the step said.

    fp16's scaler in an fp32 engine, so that a CPU shows what it does; it grows after WINDOW steps instead of 1,000. Stages 1 and 2 must not
    wait for the device by themselves: a GPU would idle between micro-batches.
    """
    from deepspeed.accelerator import get_accelerator
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler  # heavy

    model = fresh_model("clip")
    overrides = [f"batch.global_size={world * LOCAL}", f"zero.stage={stage}"]
    config = load_config(TrainConfig, "trainer/configs/smoke.toml", overrides)
    engine = zero.start_engine(config, model, Norms(model), world)
    scaler = DynamicLossScaler(2.0**4, WINDOW, 1.0, 2, False, raise_error_at_min_scale=False)
    vars(engine.optimizer)["loss_scaler"] = scaler
    pixels, ids = (values[rank * LOCAL : (rank + 1) * LOCAL].to(device()) for values in whole_batch(world))
    rows = []
    waits = 0
    wait = get_accelerator().synchronize

    def counted(*which: object) -> None:
        nonlocal waits
        waits += 1
        wait(*which)

    gc.collect()  # an engine of before waits when it is taken away
    vars(get_accelerator())["synchronize"] = counted
    for _ in range(SCALED_STEPS):
        SQUARES.clear()
        before = scaler.cur_scale
        loss, _ = gradient_cache.forward_backward(
            engine, OBJECTIVES["clip"].loss, lambda at: (pixels[at].float(), ids[at]), LOCAL, None
        )
        stepped = zero.step(engine, loss, 0.0, stop=False, replaced=0)
        square = torch.tensor(sum(SQUARES), dtype=torch.float64, device=device())
        dist.all_reduce(square)
        rows.append([before, scaler.cur_scale, float(square) ** 0.5, stepped.gradient_norm])
    del vars(get_accelerator())["synchronize"]
    assert stage == 3 or waits == 0
    engine.destroy()
    return torch.tensor(rows, dtype=torch.float64)


def masters(engine: zero.Engine) -> dict[str, Tensor]:
    """What Recorder left, whole and by name, gathered by DeepSpeed's own function for one parameter."""
    from deepspeed.utils import safe_get_full_fp32_param  # heavy

    found = {}
    for name, parameter in engine.module.named_parameters():
        full = parameter if engine.zero_optimization_stage() == 0 else safe_get_full_fp32_param(parameter)
        found[name] = full.detach().float().clone()
    return found


def main(out: str, *, compiled: bool, few: bool) -> None:
    rank, world = zero.join_processes()
    fp16_on_cpu.allow()
    gc.freeze()  # stage 3 collects garbage with each engine: not among all that was imported
    everything: dict[str, Tensor] = {}
    for case in compiled_cases() if compiled else (*exact_cases(few=few), *half_cases(few=few)):
        found = gradients(case, rank, world)
        everything |= {f"{case.name} {name}": tensor.contiguous().cpu() for name, tensor in found.items()}
    for stage in (1, 2, 3) if not compiled else ():
        everything[f"scaled {stage}"] = scaled(stage, world, rank)
    if rank == 0:
        safetensors.torch.save_file(everything, out)
    zero.leave_processes()


if __name__ == "__main__":
    assert "RANK" in os.environ, "start me as one of the processes of a run"
    main(sys.argv[-1], compiled="--compiled" in sys.argv, few="--few" in sys.argv)
