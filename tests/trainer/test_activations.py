"""The memory that `--check` says activations need, against what torch's allocator is asked for in a real forward and backward pass."""

import json
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from pipeline.contracts.config import load_config
from tests.trainer.allocated import most_at_once
from tests.trainer.launching import SMOKE
from trainer import models
from trainer.activations import estimate
from trainer.check import describe
from trainer.config import TrainConfig, resolve
from trainer.models import CLIP, Preset, ViTShape
from trainer.models.clip import tower_of

PAIRS = 8


def load(*overrides: str) -> TrainConfig:
    return resolve(load_config(TrainConfig, SMOKE, overrides))


def allocated(model: CLIP, dtype: torch.dtype, *, autocast: bool) -> int:
    """The most bytes that are allocated at one time while PAIRS pairs go forward and backward, by torch's record of its allocator."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                lambda parameter: setattr(parameter, "grad", None)
            )
    side = model.preset.image_size

    def step() -> None:
        pixels = torch.randn(PAIRS, 3, side, side, dtype=dtype)
        ids = torch.full((PAIRS, model.preset.context_length), 5)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            outputs = model(pixels, ids)
        torch.autograd.backward([output.sum() for output in outputs if output.requires_grad])

    return most_at_once(step)


@pytest.mark.parametrize(
    "overrides",
    [
        ("precision.compute=bf16", "model.checkpoint_activations=blocks"),
        ("precision.compute=bf16", "model.checkpoint_activations=elementwise"),
        ("precision.compute=autocast_bf16", "model.patch_dropout=0.5", "objective.kind=siglip"),
        ("precision.compute=autocast_bf16", "model.preset=tiny", "model.checkpoint_activations=blocks"),
        ("precision.compute=autocast_bf16", "model.preset=tiny", "model.checkpoint_activations=elementwise"),
        ("model.preset=tiny", "model.freeze=['image']", "model.text=bag_of_words"),
    ],
    ids=" ".join,
)
def test_what_is_estimated_is_what_is_allocated(overrides: tuple[str, ...]) -> None:
    config = load(*overrides)
    said = estimate(config).of(PAIRS)
    model = models.build(
        config.model.preset,
        vocab_size=config.tokenizer.train_size,
        text=config.model.text,
        patch_dropout=config.model.patch_dropout,
        checkpoint_activations=config.model.checkpoint_activations,
        logit_bias=-10.0 if config.objective.kind == "siglip" else None,
    )
    model.freeze(config.model.freeze)
    dtype = torch.bfloat16 if config.precision.compute == "bf16" else torch.float32
    found = allocated(model.to(dtype), dtype, autocast=config.precision.compute == "autocast_bf16")
    assert said == pytest.approx(found, rel=0.05)


def test_check_says_what_fits_at_a_time() -> None:
    needed = estimate(load())
    said = describe(load("batch.global_size=4096", "batch.micro_size=512"), 2).splitlines()
    lines = {int(line.split()[0]): line for line in said if " pairs, about " in line}
    assert sorted(lines) == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    for processes, pairs in ((1, 512), (8, 512), (16, 256), (256, 16)):
        assert lines[processes].endswith(f" {pairs} pairs, about {needed.of(pairs) / 2**30:7.1f} GiB"), lines[processes]
    odd = describe(load("batch.global_size=30"), 3)
    assert "     3 processes x     10:" in odd, "this run's own number, too"


@pytest.mark.prove
def test_the_largest_model_takes_no_memory_to_estimate() -> None:
    """RN50x64 has 623 million parameters, 2.3 GiB, and needs 41 GiB for 128 pairs."""
    program = f"""
import json, resource
from pipeline.contracts.config import load_config
from trainer.activations import estimate
from trainer.config import TrainConfig, resolve
config = resolve(load_config(TrainConfig, {SMOKE!r}, ["model.preset=RN50x64", "precision.compute=autocast_bf16"]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
said = estimate(config).of(128)
print(json.dumps([said, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10]))
"""
    said, taken = json.loads(subprocess.check_output([sys.executable, "-c", program], timeout=120))
    assert said > 30 << 30
    assert taken < 256 << 20


def test_gradients_of_a_text_tower_wait_for_its_last_group() -> None:
    """What `--check` counts under stage 2, which lets go of each gradient as soon as it is whole; the token embedding's never waits."""
    shape = Preset(
        "wide", 16, 32, ViTShape(1, 64, 32), 256, 4, 1e-3, (0.9, 0.98), 1e-6, context_length=12, vocab_size=400
    )
    model = models.build(shape)
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
            lambda whole: setattr(whole, "grad", None)
        )
    ids = torch.randint(1, 399, (6, 12))
    ids[torch.arange(6), torch.arange(3).repeat(2) + 4] = 399
    pixels = torch.randn(6, 3, 32, 32)

    def most(*groups: Tensor) -> int:
        images, texts, scale = model(pixels, *groups)
        return most_at_once(lambda: torch.autograd.backward((images @ texts.T * scale).logsumexp(1).sum()))

    of_groups = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if tower_of(name) == "text" and name != "token_embedding.weight"
    )
    whole, in_groups = most(ids), most(*(ids[place::3] for place in range(3)))
    assert 0.8 <= (in_groups - whole) / (4 * of_groups) <= 1.1
