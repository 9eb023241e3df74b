"""The peer's side of the benchmark `gpu_train`: open_clip's own training step, run with a Python that has open_clip (3.3.0).

    PYTHON -m tests.benchmarks.data.gpu_peer CASE.json      from the checkout's root

What `open_clip_train.train.train_one_epoch` does with a batch: autocast by --precision, the model, ClipLoss with local loss and gathered
gradients, backward (through a GradScaler for fp16), AdamW on its two groups of parameters, the clamp of the scale. Its best flags:
compiled, fused AdamW, TF32 where fp32 is multiplied, pictures that lie on the GPU already. `force_quick_gelu` makes it the model of
OpenAI's weights, as ours is; where nothing is compiled, open_clip's own comment says, that is the slower of its two. Prints one line of
JSON, as `Measured` has it.
"""

import contextlib
import dataclasses
import json
import logging
import math
import os
import statistics
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.data.gpu_case import MOST_SEARCHING, Case, Measured, drawn_texts
from tests.hollow_gpu import launched


def measure(case: Case) -> Measured:
    import open_clip
    from open_clip_train.precision import get_autocast

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    # It warns of weights that are drawn, as they are meant to be.
    logging.getLogger().addFilter(lambda record: not record.getMessage().startswith("No pretrained weights"))
    name = case.preset.replace("/", "-").replace("@336px", "-336")
    model = open_clip.create_model(name, precision=case.compute, device=device, force_quick_gelu=True)
    model.train()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if case.checkpoint != "none":
        model.set_grad_checkpointing()
    size, vocab = model.visual.image_size, model.vocab_size
    size = size if isinstance(size, int) else size[0]
    whole: Any = torch.compile(model) if case.compile else model
    loss_of = open_clip.ClipLoss(local_loss=True, gather_with_grad=True, cache_labels=True, rank=0, world_size=1)

    def decays(name: str, parameter: torch.Tensor) -> bool:
        return not (parameter.ndim < 2 or "bn" in name or "ln" in name or "bias" in name or "logit_scale" in name)

    named = list(model.named_parameters())
    groups = [
        {"params": [one for name, one in named if not decays(name, one)], "weight_decay": 0.0},
        {"params": [one for name, one in named if decays(name, one)], "weight_decay": 0.2},
    ]
    optimizer = torch.optim.AdamW(groups, lr=5e-4, betas=(0.9, 0.98), eps=1e-6, fused=True)
    scaler = torch.amp.GradScaler(device.type) if case.compute == "amp" else None
    autocast = get_autocast(case.compute, device_type=device.type)
    half = {"bf16": torch.bfloat16, "pure_bf16": torch.bfloat16, "fp16": torch.float16, "pure_fp16": torch.float16}
    dtype = half.get(case.compute, torch.float32)
    images = torch.randn(case.pairs, 3, size, size, device=device, dtype=dtype)
    ids = drawn_texts(case, vocab).to(device)
    losses: list[float] = []

    def scale_of() -> float:
        return 1.0 if scaler is None else scaler.get_scale()

    def step() -> None:
        optimizer.zero_grad()
        with autocast():
            image_features, text_features, scale = whole(images, ids)[:3]
            loss = loss_of(image_features, text_features, scale)
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        losses.append(float(loss.detach()))

    before = scale_of()
    began = time.perf_counter()
    step()
    first_step = time.perf_counter() - began
    searching = 0 if scaler is None else MOST_SEARCHING
    for number in range(case.warmup + searching):
        if number >= case.warmup and scale_of() == before:
            break  # a scale that has come down says that the last step changed no weight
        before = scale_of()
        step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds: list[float] = []
    launches = 0
    for _ in range(case.steps + searching):
        before, counted = scale_of(), launched.times()
        began = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        took = time.perf_counter() - began
        launches = launched.times() - counted
        seconds += [took] if scale_of() >= before else []  # what the optimizer skips is no whole step
        if len(seconds) == case.steps:
            break
    if len(seconds) < case.steps or not all(map(math.isfinite, losses)):
        raise RuntimeError(f"{len(seconds)} steps changed weights; losses {losses}")
    return Measured(
        pairs=case.pairs,
        parameters=parameters,
        seconds=statistics.median(seconds),
        first_step=first_step,
        peak_bytes=torch.cuda.max_memory_allocated() if device.type == "cuda" else 0,
        operations=0,
        waited=0.0,
        losses=losses[:3],
        launches={"all": launches} if launches else {},
        device=torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        torch=torch.__version__,
    )


def main() -> None:
    case = Case(**json.loads(Path(sys.argv[1]).read_text()))
    code = 0
    try:
        with contextlib.redirect_stdout(sys.stderr):
            found = measure(case)
        print(json.dumps(dataclasses.asdict(found)), flush=True)
    except Exception:  # noqa: BLE001 - said, as Python would
        traceback.print_exc()
        code = 1
    # No orderly end: torch 2.11's workers for compiling, given nothing to do because all is in the cache, keep a process of Python 3.12
    # from it for five minutes (mended in 2.13). Without their parent they end within a minute.
    os._exit(code)


if __name__ == "__main__":
    main()
