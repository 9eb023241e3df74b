"""The configuration: batch arithmetic, digests, what `--check` says and refuses, and that every shipped recipe is valid."""

import contextlib
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.contracts import config as configs
from pipeline.contracts.config import load_config
from pipeline.contracts.errors import InputError
from trainer import starting, zero
from trainer.__main__ import main
from trainer.batch_plan import batch_plan
from trainer.check import bytes_a_parameter, describe, host_bytes_a_parameter
from trainer.config import TrainConfig, resolve
from trainer.models import PRESETS
from trainer.models.transformer import SelfAttention
from trainer.tokenizer import train_vocabulary

CONFIGS = Path(__file__).resolve().parents[2] / "trainer" / "configs"
SMOKE = str(CONFIGS / "smoke.toml")
PAPER = sorted(path.name for path in CONFIGS.glob("*.toml") if path.name != "smoke.toml")


def load(*overrides: str, path: str = SMOKE) -> TrainConfig:
    return load_config(TrainConfig, path, overrides)


@pytest.mark.parametrize(
    ("world", "rows", "steps", "per_device", "total"),
    [(1, 1000, None, 32, 62), (4, 1000, None, 8, 62), (2, 16, None, 16, 1), (2, 1000, 7, 16, 7)],
)
def test_batch_plan(world: int, rows: int, steps: int | None, per_device: int, total: int) -> None:
    length = f"optim.steps={steps}" if steps else "optim.epochs=2"
    table = load().model_dump()
    table["optim"] |= {"steps": steps, "epochs": None if steps else 2, "warmup_steps": 0}
    plan = batch_plan(TrainConfig.model_validate(table), world, rows)
    assert (plan.per_device, plan.total_steps) == (per_device, total), length
    assert plan.per_device * world == plan.global_size == 32
    assert plan.total_samples <= (plan.epochs + 1e-9) * rows


@pytest.mark.parametrize(
    ("overrides", "world", "rows", "said"),
    [
        ((), 3, 1000, "batch.global_size: 32 does not divide by the 3 processes of this run; set it to 30 or 33"),
        (
            ("batch.global_size=2",),
            3,
            1000,
            "batch.global_size: 2 does not divide by the 3 processes of this run; set it to 3",
        ),
        ((), 1, 0, "has no rows"),
        (("optim.warmup_steps=20",), 1, 1000, "optim.warmup_steps: 20 is not less than the 20 steps"),
        (
            ("optim.schedule=constant", "optim.cooldown_steps=17"),
            1,
            1000,
            "optim.cooldown_steps: 17 after 4 steps of warm-up are more than the 20 steps of the run; set it to 4",
        ),
        (
            ("model.preset=tiny", "model.image_size=32", "batch.global_size=6", "batch.micro_size=2"),
            2,
            1000,
            "batch.micro_size: 2 gives a device one picture at a time, and 'tiny' makes one place of 32 pixels",
        ),
        (
            ("model.preset=tiny", "model.image_size=32", "batch.global_size=2"),
            2,
            1000,
            "batch.global_size: 2 gives a device one picture at a time.*; raise it, or model.image_size to 64",
        ),
    ],
)
def test_batch_plan_refuses(overrides: tuple[str, ...], world: int, rows: int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        batch_plan(load(*overrides), world, rows)


def test_what_a_run_would_refuse_is_not_offered() -> None:
    said = describe(resolve(load("model.preset=tiny", "model.image_size=32", "batch.global_size=8")), 1)
    assert "   4 processes x      2" in said
    assert "   8 processes" not in said


def test_one_picture_at_a_time_is_enough_for_a_vit_and_a_larger_picture() -> None:
    for change in (
        ("model.preset=tiny", "model.image_size=64"),
        ("model.preset=tiny-vit",),
        ("model.preset=tiny", "batch.micro_size=16"),
        ("model.preset=tiny", 'model.freeze=["image"]'),
    ):
        small = ("model.image_size=32", "batch.micro_size=1")
        assert batch_plan(load(*small, *change), 1, 1000).per_device == 32


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("batch.globl_size=8", "unknown key; did you mean 'global_size'"),
        ("zero.stage=4", "override 'zero.stage'"),
        ("optim.epochs=3", "epochs 3.0 and steps 20: state exactly one of them"),
        ("optim.lr=-1", "override 'optim.lr'"),
        ("precision.compute=fp8", "override 'precision.compute'"),
        ("tokenizer.kind=openai", "train_size 2048 has no use for kind 'openai'"),
        ("tokenizer.vocab=v.json", "vocab 'v.json' and train_size 2048: a vocabulary is read or trained; drop one"),
        ("augmentation.scale=[0.9, 0.1]", "scale \\[0.9, 0.1\\]"),
        ("data.workers=-1", "override 'data.workers'"),
        ("model.patch_dropout=1.0", "override 'model.patch_dropout'"),
        ("model.gelu=tanh", "override 'model.gelu'"),
        ("batch.micro_size=0", "override 'batch.micro_size'"),
        ("objective.kind=coca", "override 'objective.kind': input should be 'clip' or 'siglip'"),
        ("objective.chunk_size=0", "override 'objective.chunk_size'"),
        ("batch.gradient_accumulation_steps=4", "batch.gradient_accumulation_steps 4: a contrastive loss"),
        ("optim.accumulate_grad_batches=2", "optim.accumulate_grad_batches 2: .* set batch.micro_size to what fits"),
        ("accum_freq=8", "config: accum_freq 8: a contrastive loss"),
        ("optim.schedule=linear", "override 'optim.schedule'"),
        (
            "optim.cooldown_steps=3",
            "cooldown_steps 3 has no use for schedule 'cosine'.*; set optim.schedule = 'constant'",
        ),
        ("optim.ema_decay=1.0", "override 'optim.ema_decay'"),
        ("run.max_bad_steps=0", "override 'run.max_bad_steps'"),
        ("run.peak_tflops=0", "override 'run.peak_tflops'"),
        ("model.image_size=1000000", "override 'model.image_size': input should be less than or equal to 4096"),
        ("model.context_length=1000000000", "override 'model.context_length'"),
        ("model.vocab_size=1000000000000", "override 'model.vocab_size'"),
        ("tokenizer.train_size=1e11", "override 'tokenizer.train_size'"),
        ("data.window_row_groups=100000000000000000000", "override 'data.window_row_groups'"),
        ("data.prefetch=1000000000", "override 'data.prefetch'"),
        ("data.workers=1000000", "override 'data.workers'"),
        ("data.tars=[]", r"data: tars \[\]: names no tar; give a"),
        ("batch.global_size=1000000000000", "override 'batch.global_size'"),
        ("batch.global_size=true", "override 'batch.global_size': should be a number \\(got True\\)"),
        ("zero.stage=true", "override 'zero.stage': should be a number"),
        ("optim.lr=true", "override 'optim.lr': should be a number"),
        ("batch={micro_size=false}", ": batch.micro_size: should be a number \\(got False\\)"),
        (
            "model.vocab_size=4000",
            "model.vocab_size 4000 with tokenizer.train_size 2048: the run trains 514 to 2048 ids",
        ),
        ("model.vocab_size=513", "model.vocab_size 513 with tokenizer.train_size 2048.*drop model.vocab_size"),
        ("optim.epochs=1e300", "override 'optim.epochs'"),
        ("optim.steps=100000000000000000000", "override 'optim.steps'"),
    ],
)
def test_values_that_cannot_be(override: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load(override)


def test_the_largest_values_that_are_taken_can_be_planned() -> None:
    most = (
        "model.image_size=4096",
        "model.context_length=8192",
        "model.vocab_size=1048576",
        "data.window_row_groups=4294967296",
        "batch.global_size=16777216",
        "optim.steps=1000000000",
        "tokenizer.train_size=1048576",
    )
    assert "parameters " in describe(resolve(load(*most)), 1)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("model.preset=ViT-B/23",), "model.preset: 'ViT-B/23' is unknown; did you mean 'ViT-B/32'"),
        (
            ("run.dir=s3://bucket/run",),
            r"run.dir: 's3://bucket/run' is not a folder; .* \(run.checkpoints may be s3://\)",
        ),
        (("run.dir=",), "run.dir: '' is no place; name a folder"),
        (("run.dir=gs://bucket/run",), "run.dir: 'gs://bucket/run': unknown kind of place; use a local path or s3"),
        (("run.dir=S3://bucket/run",), "run.dir: 'S3://bucket/run': unknown kind of place"),
        (("run.checkpoints=",), "run.checkpoints: '' is no place; name a folder or drop it"),
        (("run.checkpoints=gs://bucket/run",), "run.checkpoints: 'gs://bucket/run': unknown kind of place"),
        (("run.checkpoints=s3://",), "run.checkpoints: 's3://': no bucket"),
    ],
)
def test_resolve_refuses(overrides: tuple[str, ...], said: str) -> None:
    with pytest.raises(InputError, match=said):
        resolve(load(*overrides))


def test_half_precision_without_zero_is_refused() -> None:
    with pytest.raises(InputError, match=r"zero\.stage 0 with precision\.compute 'bf16'"):
        load("zero.stage=0", "precision.compute=bf16")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("precision.master=bf16",), "master 'bf16' with compute 'fp32'.*set precision.compute = 'bf16'"),
        (
            ("precision.text_weights=fp16_stochastic", "precision.compute=bf16"),
            "text_weights 'fp16_stochastic' with compute 'bf16'.*round them a second time.*drop precision.text_weights",
        ),
        (("zero.offload=true", "zero.stage=0"), "offload with stage 0.*set zero.stage to 1, 2 or 3"),
        (
            ("zero.offload=true", "precision.compute=bf16", "precision.master=bf16"),
            "zero.offload with precision.master 'bf16'.*drop one of the two",
        ),
        (("zero.stage=3", "model.compile=true"), "model.compile with zero.stage 3.*set zero.stage to 1 or 2"),
        (
            ("zero.stage=3", "model.checkpoint_activations=activation"),
            "'activation' with zero.stage 3.*set zero.stage to 1 or 2, or take 'blocks'",
        ),
        (
            ("zero.stage=3", "model.checkpoint_activations=elementwise"),
            "'elementwise' with zero.stage 3.*set zero.stage to 1 or 2, or take 'blocks'",
        ),
        (
            ("model.checkpoint_activations=true",),
            "checkpoint_activations.*'none', 'activation', 'elementwise' or 'blocks'",
        ),
    ],
)
def test_precisions_that_do_not_go_together(overrides: tuple[str, ...], said: str) -> None:
    with pytest.raises(InputError, match=said):
        load(*overrides)


def test_a_resnet_has_no_patches_to_drop() -> None:
    with pytest.raises(
        InputError, match=r"model\.patch_dropout: 0\.5 with 'RN50', a ResNet.*set it to 0 or choose a ViT"
    ):
        resolve(load("model.preset=RN50", "model.patch_dropout=0.5"))


def test_fp16_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    with pytest.raises(InputError, match=r"precision\.compute: 'fp16' needs a GPU"):
        zero.check_hardware(load("precision.compute=fp16"))


@pytest.mark.parametrize(
    ("there", "good"), [("0.19.7", False), ("0.19.8", True), ("0.19.8+cu128", True), ("0.20.0rc1", True)]
)
def test_a_deepspeed_that_steps_with_what_is_no_number_is_refused(
    monkeypatch: pytest.MonkeyPatch, there: str, good: bool
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: there)
    with (
        contextlib.nullcontext()
        if good
        else pytest.raises(InputError, match=r"deepspeed 0.19.7: .*; install deepspeed 0.19.8 or")
    ):
        zero.check_hardware(load())


@pytest.mark.parametrize("named", ["", "gpu", "cuda"])
def test_what_is_to_compute_must_be_here(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("DS_ACCELERATOR", named)
    with pytest.raises(InputError, match=f"DS_ACCELERATOR: '{named}' is not here to compute on; give cpu"):
        zero.check_hardware(load())


@pytest.mark.parametrize(("on_cpu", "variable", "language"), [(True, "CXX", r"C\+\+"), (False, "CC", "C")])
def test_compiled_blocks_need_a_compiler(
    on_cpu: bool, variable: str, language: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(zero, "on_cpu", lambda: on_cpu)
    monkeypatch.setenv(variable, str(tmp_path / "cc"))
    zero.check_hardware(load())
    with pytest.raises(InputError, match=rf"model\.compile: true needs a {language} compiler.*or drop model\.compile"):
        zero.check_hardware(load("model.compile=true"))
    monkeypatch.delenv(variable)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=rf"there is no '.*'; install one, name it in {variable},"):
        zero.check_hardware(load("model.compile=true"))


def test_short_attention_needs_triton_and_a_compiler_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with_it = load("model.short_attention=true")
    monkeypatch.setattr(zero, "on_cpu", lambda: True)
    zero.check_hardware(with_it)
    monkeypatch.setattr(zero, "on_cpu", lambda: False)
    zero.check_hardware(load())
    for started, why in (({"trainer.optim.fused": None}, "import of trainer.optim.fused"), ({}, "no C compiler here")):
        with monkeypatch.context() as here:
            if started:
                here.setitem(sys.modules, "trainer.optim.fused", None)
                here.delattr("trainer.optim.fused", raising=False)
            else:
                here.setattr("trainer.optim.fused.start", refuse)
            with pytest.raises(
                InputError, match=rf"model\.short_attention: true needs Triton.*{why}.*or drop model\.short"
            ):
                zero.check_hardware(with_it)


def refuse() -> None:
    raise RuntimeError("no C compiler here")


@pytest.mark.parametrize("wanted", [True, False])
def test_the_model_takes_short_attention_where_it_is_asked(wanted: bool) -> None:
    model = starting.build(load(f"model.short_attention={str(wanted).lower()}").model, None, "clip")
    assert {module.short for module in model.modules() if isinstance(module, SelfAttention)} == {wanted}


def test_the_digest_knows_what_changes_weights() -> None:
    base = configs.digest(load())
    places = (
        "data.manifest=elsewhere",
        "data.workers=9",
        "data.cache_mib=7",
        "run.dir=there",
        "run.log_every=3",
        "run.save_every=7",
        "run.keep=9",
        "run.stop_after=5",
        "run.checkpoints=s3://bucket/run",
        "run.max_bad_steps=2",
        "run.peak_tflops=989",
        "zero.stage=2",
        "zero.offload=true",
        "objective.chunk_size=4",
        "batch.micro_size=4",
        "model.checkpoint_activations=blocks",
        "model.compile=true",
    )
    assert all(configs.digest(load(place)) == base for place in places)
    weights = (
        "objective.kind=siglip",
        "run.seed=1",
        "optim.lr=1e-3",
        "optim.schedule=constant",
        "optim.ema_decay=0.99",
        "model.gelu=exact",
        "model.text=bag_of_words",
        "model.patch_dropout=0.5",
        "batch.global_size=64",
        "augmentation.flip=0.5",
        "precision.text_weights=fp16_stochastic",
    )
    assert len({base, *(configs.digest(load(change)) for change in weights)}) == len(weights) + 1


def test_presets_fill_what_is_not_said() -> None:
    config = resolve(load("model.preset=ViT-L/14"))
    preset = PRESETS["ViT-L/14"]
    assert (config.optim.lr, config.optim.betas, config.optim.eps) == (preset.lr, preset.betas, preset.eps)
    assert (config.model.image_size, config.model.context_length) == (224, 77)
    assert resolve(load("optim.lr=0.5")).optim.lr == 0.5


def stated_processes(name: str) -> int:
    return int((CONFIGS / name).read_text().splitlines()[0].partition("for ")[2].split()[0])


@pytest.mark.parametrize("name", PAPER)
def test_a_recipe_is_valid_and_says_what_the_paper_says(name: str) -> None:
    config, stated = resolve(load(path=str(CONFIGS / name))), stated_processes(name)
    preset = PRESETS[config.model.preset]
    assert (config.optim.lr, config.optim.betas, config.optim.eps) == (preset.lr, preset.betas, preset.eps)
    epochs = 1 if preset.name == "ViT-L/14@336px" else 32
    assert (config.batch.global_size, config.optim.epochs, config.optim.warmup_steps) == (32_768, epochs, 2000)
    assert config.optim.weight_decay == 0.2
    assert (config.model.init_from is not None) == (preset.name == "ViT-L/14@336px"), "one more epoch of ViT-L/14"
    assert config.batch.global_size % stated == 0


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "vit_b_32.toml" else pytest.mark.prove) for name in PAPER]
)
def test_a_recipe_passes_its_check(name: str) -> None:
    """For the number of processes that its first line states."""
    config = resolve(load(path=str(CONFIGS / name)))
    stated = stated_processes(name)
    text = describe(config, stated)
    assert f"{stated} processes x" in text
    assert configs.digest(config) in text


def test_every_model_of_the_paper_has_a_recipe() -> None:
    assert {load(path=str(CONFIGS / name)).model.preset for name in PAPER} == {
        name for name in PRESETS if not name.startswith("tiny")
    }


def test_the_reference_run_has_the_size_that_openai_released() -> None:
    """151,277,313: the parameters of the released ViT-B/32, counted over its state dict."""
    assert "parameters   151,277,313" in describe(resolve(load(path=str(CONFIGS / "vit_b_32.toml"))), 64)


def test_check_says_how_the_batch_goes_through_towers_and_loss() -> None:
    whole = describe(resolve(load()), 2)
    assert "batch        32 = 2 processes x 16, through the towers at once" in whole
    assert "objective    clip, 16 x 32 similarities at a time" in whole
    cut = ("batch.micro_size=6", "batch.global_size=32768", "objective.kind=siglip", "objective.chunk_size=128")
    text = describe(resolve(load(*cut)), 8)
    assert "32768 = 8" not in text
    assert "32,768 = 8 processes x 4,096, through the towers in 683 micro-batches of at most 6" in text
    # 2 blocks of 128 x 32,768 fp32 numbers; features of 128 dimensions and their gradients.
    assert "objective    siglip, 128 x 32,768 similarities at a time: 0.031 GiB, and 0.031 GiB for features" in text
    bias = {"clip": 0, "siglip": 1}
    counts = {kind: int(parameters_line(f"objective.kind={kind}").replace(",", "")) for kind in bias}
    assert counts["siglip"] - counts["clip"] == 1, "the learned bias"


def parameters_line(override: str) -> str:
    text = describe(resolve(load(override)), 1)
    return text.partition("parameters   ")[2].partition(" (")[0]


@pytest.mark.parametrize(
    ("stage", "world", "bytes_"), [(0, 8, 12.0), (1, 1, 16.0), (1, 4, 10.0), (2, 4, 7.0), (3, 4, 4.0)]
)
def test_memory_by_stage(stage: int, world: int, bytes_: float) -> None:
    """fp32: weights 4, gradients 4, master 4 (none without ZeRO), fp16 moments 4 and 8/256 for their scales."""
    share = 1 if stage == 0 else 1 / world
    assert bytes_a_parameter(load(f"zero.stage={stage}"), world) == pytest.approx(bytes_ + share * 8 / 256)


@pytest.mark.parametrize(
    ("stage", "overrides", "device", "host"),
    [
        # What differs from fp32: 2 + 2 B of weights and gradients, 2 B of masters; 4 B of average, sharded as the masters are.
        (1, ("precision.compute=bf16",), 4 + (4 + 4) / 4, 0.0),
        (1, ("precision.compute=bf16", "precision.master=bf16"), 4 + (2 + 4) / 4, 0.0),
        (3, ("precision.compute=bf16", "precision.master=bf16"), (4 + 2 + 4) / 4, 0.0),
        (2, ("precision.text_weights=fp16_stochastic",), 4 + (4 + 4 + 4) / 4, 0.0),
        (2, ("optim.ema_decay=0.999",), 4 + (4 + 4 + 4 + 4) / 4, 0.0),
        (0, ("optim.ema_decay=0.999",), 4 * (8 + 4 + 4) / 4, 0.0),
        # On the CPU besides: the flat fp32 gradient, and a buffer in the type of the weights.
        (1, ("zero.offload=true",), 8.0, (4 + 4 + 4 + 4) / 4),
        (2, ("zero.offload=true", "precision.compute=bf16"), 2 + 2 / 4, (4 + 4 + 4 + 2) / 4),
    ],
)
def test_memory_by_precision(stage: int, overrides: tuple[str, ...], device: float, host: float) -> None:
    """On four processes, scales apart (8/256 B a parameter)."""
    config = load(f"zero.stage={stage}", *overrides)
    scales = 8 / 256 / (1 if stage == 0 else 4)
    assert bytes_a_parameter(config, 4) == pytest.approx(device + (0 if config.zero.offload else scales))
    assert host_bytes_a_parameter(config, 4) == pytest.approx(host + (scales if config.zero.offload else 0))


def test_deepspeed_is_told_what_its_defaults_get_wrong() -> None:
    told = zero.deepspeed_config(load("zero.stage=3", "precision.compute=bf16"), 2)
    assert told["gradient_clipping"] == 0.0, "DeepSpeed clips to 1 unless told otherwise"
    assert (told["train_batch_size"], told["train_micro_batch_size_per_gpu"], told["gradient_accumulation_steps"]) == (
        32,
        16,
        1,
    )
    buckets = {"reduce_bucket_size": 2**25, "allgather_bucket_size": 2**25}
    assert told["zero_optimization"] == {"stage": 3, **buckets}, "5e8 numbers by default: 1.9 GiB"
    assert (told["bf16"], told["fp16"]) == ({"enabled": True}, {"enabled": False})
    assert told["timers"] == {"throughput": {"enabled": False}}, "it waits for the device before each forward"
    autocast = zero.deepspeed_config(load("precision.compute=autocast_bf16"), 2)["torch_autocast"]
    assert isinstance(autocast, dict)
    assert autocast["lower_precision_safe_modules"] == [], "DeepSpeed sums gradients of Linear and Conv in bf16"
    offload = zero.deepspeed_config(load("zero.stage=2", "zero.offload=true"), 2)
    there = {"device": "cpu", "pin_memory": True}
    assert offload["zero_optimization"] == {"stage": 2, **buckets, "offload_optimizer": there}
    assert offload["zero_force_ds_cpu_optimizer"] is False, "the optimizer on the CPU is ours too"
    narrow = zero.deepspeed_config(load("precision.compute=bf16", "precision.master=bf16"), 2)["bf16"]
    assert narrow == {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}


@pytest.mark.parametrize(
    ("stage", "compute", "said"),
    [
        (0, "fp32", None),
        (1, "fp32", "  and 0.125 GiB during each backward: the buffer in which gradients are gathered"),
        (2, "bf16", "  and 0.062 GiB during each backward: the buffer in which gradients are gathered"),
        (3, "fp32", "  and 0.125 GiB always: the buffer in which gradients are gathered"),
    ],
)
def test_check_counts_the_buffer_of_gradients(stage: int, compute: str, said: str | None) -> None:
    lines = describe(resolve(load(f"zero.stage={stage}", f"precision.compute={compute}")), 2).splitlines()
    assert [line for line in lines if "buffer" in line] == ([said] if said else [])


@pytest.mark.parametrize(("compute", "bytes_a_number"), [("fp32", 4), ("bf16", 2)])
def test_check_counts_the_text_towers_gradients_where_texts_come_in_groups(compute: str, bytes_a_number: int) -> None:
    """What is counted is measured by test_activations."""

    def said(stage: int, *more: str, path: str = SMOKE) -> list[str]:
        overrides = (f"zero.stage={stage}", f"precision.compute={compute}", *more)
        lines = describe(resolve(load(*overrides, path=path)), 2).splitlines()
        return [line for line in lines if "gradients of the text tower" in line]

    blocks, positions, others = 12 * (12 * 512**2 + 13 * 512), 77 * 512, 512 * 512 + 2 * 512
    (line,) = said(2, path=str(CONFIGS / "vit_b_32.toml"))
    assert (
        f"  and at most {bytes_a_number * (blocks + positions + others) / 2**30:.3f} GiB during each backward: " in line
    )
    assert said(2)
    assert not said(1)
    assert not said(2, "model.freeze=['text']", "model.init_from='x.safetensors'")


def test_check_says_what_is_rounded_and_what_lies_on_the_cpu() -> None:
    said = describe(resolve(load("precision.text_weights=fp16_stochastic", "zero.offload=true")), 1)
    assert "text_decay" in said
    assert said.count("rounded stochastically to fp16 numbers") == 2
    assert " (on the CPU 16.03 B" in said
    said = describe(resolve(load("precision={compute='bf16', master='bf16'}", "optim.ema_decay=0.99")), 1)
    assert said.count("rounded stochastically to bf16 numbers") == 3
    assert "bf16 masters, fp16 moments, their average" in said


def test_check_says_what_is_not_there_yet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest, vocabulary = tmp_path / "corpus" / "manifest.json", tmp_path / "merges.txt.gz"
    overrides = [f"data.manifest={manifest}", f"tokenizer.vocab={vocabulary}"]
    assert main(["--config", str(CONFIGS / "vit_b_32.toml"), "--check", *overrides]) == 0
    said = capsys.readouterr().out
    assert f"corpus       MISSING, the run needs it: {manifest}: no such file" in said
    source = "take clip/bpe_simple_vocab_16e6.txt.gz of github.com/openai/CLIP, or install open_clip_torch"
    assert f"vocabulary   MISSING, the run needs it: {vocabulary}: no file; {source}" in said
    own = describe(resolve(load("tokenizer={kind='bpe', vocab='none.json'}")), 1)
    assert "none.json: no file; give a file that an earlier run trained" in own
    assert "vocabulary   at most 2,048 ids, trained on the captions of the corpus" in describe(resolve(load()), 1)
    said = describe(resolve(load("model.vocab_size=600")), 1)
    assert "vocabulary   600 ids or the run is refused, trained on the captions of the corpus" in said
    with pytest.raises(InputError, match="/dev/zero: is a pipe or a device"):
        describe(resolve(load("tokenizer={kind='bpe', vocab='/dev/zero'}")), 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"format_version": 2}, "format version 2, this program reads 1"), ({"kind": "x"}, "not a corpus manifest")],
)
def test_check_refuses_a_manifest_that_the_run_would_refuse(
    tmp_path: Path, corpus: Path, change: dict[str, object], said: str
) -> None:
    place = tmp_path / "manifest.json"
    place.write_text(json.dumps(json.loads((corpus / "manifest.json").read_text()) | change))
    with pytest.raises(InputError, match=said) as caught:
        main(["--config", SMOKE, "--check", f"data.manifest={place}"])
    assert caught.value.exit_code == 2


def test_check_opens_a_vocabulary_that_is_there(tmp_path: Path) -> None:
    place = tmp_path / "own.json"
    size = train_vocabulary(["a red circle on white ground", "a red square"], 520, str(place))
    overrides = [f"tokenizer={{kind='bpe', vocab='{place}'}}", f"model.vocab_size={size}"]
    assert f"vocabulary   {size} ids from {place}" in describe(resolve(load(*overrides)), 1)
    for another in ("model.preset=ViT-B/32", f"model.vocab_size={size + 1}"):
        with pytest.raises(
            InputError, match=f"model.vocab_size: .* the vocabulary has {size}; set model.vocab_size={size}"
        ):
            describe(resolve(load(overrides[0], another)), 1)
    with pytest.raises(InputError, match=r"model.vocab_size: 'tiny-vit' has 600 ids, the vocabulary has 49408"):
        describe(resolve(load("tokenizer={kind='openai', vocab='none'}", "model.vocab_size=600")), 1)
    place.write_text("{}")
    with pytest.raises(InputError, match=r"own\.json: not a vocabulary"):
        describe(resolve(load(*overrides)), 1)
    with pytest.raises(InputError, match="is a folder, not a file; name a file"):
        describe(resolve(load(f"tokenizer={{kind='bpe', vocab='{tmp_path}'}}")), 1)


def test_check_touches_nothing_and_loads_no_deepspeed(tmp_path: Path, corpus: Path) -> None:
    program = (
        "import sys; from trainer.__main__ import main;"
        "code = main(sys.argv[1:]); assert 'deepspeed' not in sys.modules and 'ray' not in sys.modules; sys.exit(code)"
    )
    arguments = [
        "--local_rank=0",
        "--config",
        SMOKE,
        "--check",
        f"data.manifest={corpus}",
        f"run.dir={tmp_path / 'run'}",
    ]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "batch        32 = 2 processes x 16" in done.stdout
    assert "corpus       330 rows" in done.stdout
    assert not (tmp_path / "run").exists()
