"""Operations of a pair, against the published counts of open_clip and against products of sizes written down by hand."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.contracts.config import load_config
from tests.trainer.launching import SMOKE
from trainer import models
from trainer.check import describe
from trainer.config import TrainConfig, resolve
from trainer.flops import forward_flops, known_peak, peak_flops, training_flops, training_flops_of_length
from trainer.models.presets import TextTower

PUBLISHED_G = {"RN50": 18.2, "RN101": 25.5, "RN50x4": 51.8, "ViT-B/32": 14.8, "ViT-B/16": 41.1, "ViT-L/14": 175.3}
"""Forward, multiplications and additions: open_clip, docs/model_profile.csv."""


def on_meta(preset: str | models.Preset, **options: Any) -> models.CLIP:
    with torch.device("meta"):
        return models.build(preset, **options)


@pytest.mark.parametrize("name", PUBLISHED_G)
def test_operations_are_those_published_less_what_the_last_block_does_not_compute(name: str) -> None:
    """Our towers read one position of their last block, and compute no more of it: a twelfth part of up to two towers, or of one."""
    found = forward_flops(on_meta(name)) / 1e9
    assert 0.92 * PUBLISHED_G[name] < found < PUBLISHED_G[name]


def test_operations_of_a_small_model_by_hand() -> None:
    shape = models.Preset("two", 32, 16, models.ViTShape(2, 64, 8), 64, 1, 1e-3, (0.9, 0.98), 1e-6, 8, 80)
    patches, tokens, texts, width = 4, 5, 8, 64

    def block(length: int, asked: int) -> int:
        """Queries for `asked` positions, keys and values for all; attention; output and MLP where asked."""
        projections = width * width * (asked + 2 * length)
        attention = 2 * asked * length * width
        return projections + attention + asked * width * width * (1 + 8)

    def image(seen: int) -> int:
        return patches * 3 * 8 * 8 * width + block(seen, seen) + block(seen, 1) + width * 32

    text = block(texts, 1) + width * 32
    assert forward_flops(on_meta(shape)) == 2 * (image(tokens) + text)
    assert forward_flops(on_meta(shape, text="bag_of_words")) == 2 * (image(tokens) + width * 32)
    half = on_meta(shape, patch_dropout=0.5)
    assert forward_flops(half) == 2 * (image(3) + text), "two of four patches, and the class token"
    assert forward_flops(half.eval()) == 2 * (image(tokens) + text), "all are seen outside of training"


def test_a_backward_pass_costs_two_forward_ones_and_a_frozen_tower_none() -> None:
    model = on_meta("ViT-B/16")
    forward = forward_flops(model)
    assert training_flops(model) == pytest.approx(3 * forward, rel=0.01)
    for parameter in model.visual.parameters():
        parameter.requires_grad_(False)
    with FlopCounterMode(display=False) as image, torch.no_grad():
        model.encode_image(torch.empty(1, 3, 224, 224, device="meta"))
    assert training_flops(model) == pytest.approx(3 * forward - 2 * image.get_total_flops(), rel=0.01)


def test_a_resnets_last_stage_may_be_one_place() -> None:
    """Of pictures so small batch norm takes no single one; that each costs the same, torch's counter says of five."""
    model = on_meta("tiny", image_size=32)
    pixels = torch.empty(5, 3, 32, 32, device="meta")
    with FlopCounterMode(display=False) as five, torch.no_grad():
        model(pixels, torch.zeros(5, model.preset.context_length, dtype=torch.int64, device="meta"))
    assert five.get_total_flops() == 5 * forward_flops(model)
    assert 2.5 * forward_flops(model) < training_flops(model) < 3 * forward_flops(model)


def test_a_peak_that_is_told_is_taken() -> None:
    overrides = ["data.manifest=x", "run.dir=y"]
    assert peak_flops(load_config(TrainConfig, SMOKE, [*overrides, "run.peak_tflops=2.5"])) == 2.5e12
    if not torch.cuda.is_available():
        assert peak_flops(load_config(TrainConfig, SMOKE, overrides)) is None


def test_a_gpu_has_the_peak_of_its_own_form_or_none() -> None:
    """NVIDIA's data sheets, dense; a name that only resembles one of these says nothing."""
    for name, tera in {
        "NVIDIA A100-SXM4-80GB": 312,
        "Tesla V100-PCIE-16GB": 112,
        "Tesla V100-SXM2-32GB": 125,
        "NVIDIA H100 80GB HBM3": 989,
        "NVIDIA H200": 989,
        "NVIDIA H200 NVL": 835,
    }.items():
        assert known_peak(name) == tera * 1e12
    for name in (
        "NVIDIA RTX A1000 Laptop GPU",
        "NVIDIA A100-SXM4-80GB MIG 1g.10gb",
        "NVIDIA GH200 480GB",
        "NVIDIA H20",
        "NVIDIA A10G",
    ):
        assert known_peak(name) is None


def test_a_plan_does_not_count_what_checkpointing_computes_again() -> None:
    said = []
    for checkpointed in ("none", "activation", "elementwise", "blocks"):
        overrides = ["data.manifest=x", "run.dir=y", f"model.checkpoint_activations={checkpointed}"]
        plan = describe(resolve(load_config(TrainConfig, SMOKE, overrides)), world_size=1)
        said.append([line for line in plan.splitlines() if line.startswith("operations")])
    assert said[0] == said[1] == said[2] == said[3] != []


@pytest.mark.parametrize("preset", ["tiny-vit", "tiny"])
@pytest.mark.parametrize("text", ["transformer", "bag_of_words"])
def test_operations_of_every_length_follow_from_three(preset: str, text: TextTower) -> None:
    with torch.device("meta"):
        model = models.build(preset, text=text)
    of_length = training_flops_of_length(model)
    for length in (3, 7, model.preset.context_length):
        assert of_length(length) == training_flops(model, length)
