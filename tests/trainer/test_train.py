"""Real runs: the DeepSpeed launcher, two processes on the CPU, killed and resumed, against runs that nobody disturbed."""

import json
import math
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch

from tests.trainer.launching import Alone, Launch
from trainer import checkpoint
from trainer.export import export, load_model

# Half a minute on two free cores; many times that where other work shares them.
pytestmark = pytest.mark.timeout(900)

STEPS, SAVE_EVERY = 32, 4
SMALL = {
    "model.image_size": 32,
    "model.context_length": 16,
    "tokenizer.train_size": 600,
    "batch.global_size": 8,
    "optim.steps": STEPS,
    "run.save_every": SAVE_EVERY,
}
Lines = list[dict[str, float]]


def lines_of(run: Path) -> Lines:
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    text = path.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def figures(lines: Lines) -> list[tuple[float, ...]]:
    """What must not depend on the clock."""
    return [
        tuple(line[key] for key in ("step", "loss", "gradient_norm", "logit_scale", "learning_rate")) for line in lines
    ]


def final_weights(run: Path, step: int = STEPS) -> dict[str, str]:
    record = json.loads((run / "checkpoints" / f"step-{step:08d}" / "checkpoint.json").read_text())
    return {name: file["sha256"] for name, file in record["files"].items() if name == "weights.safetensors"}


@pytest.fixture(scope="module")
def undisturbed(launch: Launch, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The folder of an uninterrupted run of two processes under a ZeRO stage; each stage runs once."""
    runs: dict[int, Path] = {}

    def run(stage: int) -> Path:
        if stage not in runs:
            folder = tmp_path_factory.mktemp(f"stage{stage}")
            finished = launch(2, SMALL | {"data.manifest": corpus, "run.dir": folder, "zero.stage": stage})
            assert finished.code == 0, finished.output
            runs[stage] = folder
        return runs[stage]

    return run


@pytest.mark.parametrize(
    "stage", [pytest.param(0, marks=pytest.mark.prove), 1, *(pytest.param(s, marks=pytest.mark.prove) for s in (2, 3))]
)
def test_a_killed_run_resumes_to_the_bit(
    stage: int, undisturbed: Callable[[int], Path], launch: Launch, corpus: Path, tmp_path: Path
) -> None:
    expected = undisturbed(stage)
    overrides = SMALL | {"data.manifest": corpus, "run.dir": tmp_path, "zero.stage": stage}
    kill_at = random.SystemRandom().randint(SAVE_EVERY + 1, 11)
    killed = launch(2, overrides, kill_when=lambda: len(lines_of(tmp_path)) >= kill_at)
    assert killed.code != 0, f"killed at {kill_at}: {killed.output}"
    left_at = len(lines_of(tmp_path))
    assert kill_at <= left_at < STEPS - 20
    # A kill between a step's line and the end of its checkpoint leaves the one before it the newest.
    newest = max(int(tag.removeprefix("step-")) for tag in checkpoint.complete_tags(str(tmp_path)))
    assert newest in (left_at // SAVE_EVERY * SAVE_EVERY, left_at // SAVE_EVERY * SAVE_EVERY - SAVE_EVERY)

    resumed = launch(2, overrides)

    assert resumed.code == 0, resumed.output
    assert f"steps {newest + 1} to" in resumed.output
    assert figures(lines_of(tmp_path)) == figures(lines_of(expected)), f"killed at {kill_at}"
    assert final_weights(tmp_path) == final_weights(expected)
    assert len(lines_of(tmp_path)) == STEPS, "each step has one line"


@pytest.mark.prove
@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"precision.compute": "bf16"}, id="bf16"),
        pytest.param({"precision.compute": "autocast_bf16"}, id="autocast_bf16"),
        pytest.param({"precision.compute": "autocast_bf16", "zero.stage": 3}, id="autocast_bf16-stage3"),
        pytest.param({"precision.compute": "bf16", "precision.master": "bf16"}, id="bf16-masters"),
        pytest.param(
            {"precision.compute": "bf16", "precision.master": "bf16", "zero.stage": 3}, id="bf16-masters-stage3"
        ),
        pytest.param({"precision.text_weights": "fp16_stochastic"}, id="fp16-text"),
        pytest.param({"precision.text_weights": "fp16_stochastic", "zero.stage": 3}, id="fp16-text-stage3"),
        pytest.param({"zero.offload": "true"}, id="offload-stage1"),
        pytest.param({"zero.offload": "true", "zero.stage": 2}, id="offload-stage2"),
        pytest.param({"zero.offload": "true", "zero.stage": 3}, id="offload-stage3"),
        pytest.param({"optim.schedule": "constant", "optim.cooldown_steps": 3}, id="constant"),
        pytest.param({"model.preset": "tiny"}, id="resnet"),
        pytest.param({"model.preset": "tiny", "batch.micro_size": 3}, id="resnet-cached"),
        pytest.param({"batch.micro_size": 3, "zero.stage": 2}, id="cached-stage2"),
        pytest.param(
            {"batch.micro_size": 1, "zero.stage": 3, "objective.kind": "siglip", "objective.chunk_size": 3},
            id="siglip-cached-stage3",
        ),
        pytest.param({"model.preset": "tiny", "precision.compute": "autocast_bf16"}, id="resnet-autocast_bf16"),
    ],
)
def test_a_stopped_run_resumes_to_the_bit_in_other_precisions_and_towers(
    change: dict[str, object], launch: Launch, short_run: dict[str, object], tmp_path: Path
) -> None:
    """Everything a resume brings back is there: bf16 weights and their masters, batch statistics, the moments."""
    runs = {name: tmp_path / name for name in ("undisturbed", "stopped")}
    for name, stops in (("undisturbed", [6]), ("stopped", [3, 6])):
        for stop in stops:
            finished = launch(2, short_run | change | {"run.dir": runs[name], "run.stop_after": stop})
            assert finished.code == 0, finished.output
    lines = {name: lines_of(run) for name, run in runs.items()}
    assert len(lines["stopped"]) == 6
    assert figures(lines["stopped"]) == figures(lines["undisturbed"])
    assert all(math.isfinite(line["loss"]) and line["gradient_norm"] > 0 for line in lines["stopped"])
    assert final_weights(runs["stopped"], 6) == final_weights(runs["undisturbed"], 6)


def test_two_processes_train_as_one(
    undisturbed: Callable[[int], Path], alone: Alone, corpus: Path, tmp_path: Path
) -> None:
    two = lines_of(undisturbed(1))
    finished = alone(
        SMALL | {"data.manifest": corpus, "run.dir": tmp_path, "zero.stage": 0, "run.stop_after": 10, "data.workers": 2}
    )
    assert finished.code == 0, finished.output
    one = lines_of(tmp_path)
    assert len(one) == 10
    for ours, theirs in zip(one, two, strict=False):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4), f"step {ours['step']}"
        assert ours["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-3)


@pytest.mark.parametrize("kind", [pytest.param("clip", marks=pytest.mark.prove), "siglip"])
def test_micro_batches_and_chunks_train_as_the_whole_batch(
    kind: str, alone: Alone, short_run: dict[str, object], tmp_path: Path
) -> None:
    cut = {"batch.micro_size": 3, "objective.chunk_size": 3}
    for name, change in (("whole", {}), ("cut", cut)):
        finished = alone(short_run | change | {"objective.kind": kind, "run.dir": tmp_path / name})
        assert finished.code == 0, finished.output
    whole, parts = (lines_of(tmp_path / name) for name in ("whole", "cut"))
    assert len(parts) == 6
    for ours, theirs in zip(parts, whole, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4), f"step {ours['step']}"
        assert ours["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-3)
    assert whole[0]["logit_scale"] == pytest.approx({"clip": 1 / 0.07, "siglip": 10}[kind], rel=1e-3)
    # What the objective has of its own is in the export.
    export(str(tmp_path / "cut"), str(tmp_path / "model.safetensors"))
    model, _, card = load_model(str(tmp_path))
    assert card.objective == kind
    assert (model.logit_bias is None) == (kind == "clip")
    assert model.logit_bias is None or float(model.logit_bias.detach()) == pytest.approx(-10, abs=0.1)


def test_a_loss_that_is_no_number_stops_the_run(alone: Alone, short_run: dict[str, object], tmp_path: Path) -> None:
    finished = alone(short_run | {"run.dir": tmp_path, "optim.lr": 1e30, "optim.warmup_steps": 0})
    assert finished.code == 1
    errors = [line for line in finished.output.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, finished.output
    assert re.match(r"error: step \d: the loss is (nan|inf); the last checkpoint is untouched", errors[0])
    assert "Traceback" not in finished.output


@pytest.mark.prove
def test_every_stage_trains_the_same_and_exports_its_masters(undisturbed: Callable[[int], Path]) -> None:
    """Stages differ in the order of sums only; and the gathered masters are whole, whoever held them."""
    runs = {stage: undisturbed(stage) for stage in (0, 1, 2, 3)}
    place = Path("checkpoints") / f"step-{STEPS:08d}" / "weights.safetensors"
    reference = safetensors.torch.load_file(runs[1] / place)
    for stage, run in runs.items():
        for ours, theirs in zip(lines_of(run), lines_of(runs[1]), strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], abs=2e-3), f"stage {stage}, step {ours['step']}"
        weights = safetensors.torch.load_file(run / place)
        assert weights.keys() == reference.keys()
        for name, tensor in weights.items():
            assert tensor.shape == reference[name].shape
            assert float((tensor - reference[name]).norm() / reference[name].norm().clamp(min=1e-3)) < 0.02, (
                stage,
                name,
            )


@pytest.mark.prove
def test_processes_that_do_not_divide_the_batch_are_one_sentence(
    launch: Launch, short_run: dict[str, object], tmp_path: Path
) -> None:
    finished = launch(2, short_run | {"run.dir": tmp_path, "batch.global_size": 7})
    errors = [line for line in finished.output.splitlines() if line.startswith("error:")]
    assert finished.code == 2, finished.output
    assert len(errors) == 1, finished.output
    assert "batch.global_size: 7 does not divide by the 2 processes" in errors[0]


def test_the_run_says_what_it_did(undisturbed: Callable[[int], Path]) -> None:
    run = undisturbed(1)
    lines = lines_of(run)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert all(0 <= line["data_wait"] <= 1 and line["samples_per_second"] > 0 for line in lines)
    assert list((run / "tensorboard").iterdir())
    kept = sorted(folder.name for folder in (run / "checkpoints").iterdir() if folder.is_dir())
    assert kept == [f"step-{step:08d}" for step in (STEPS - 2 * SAVE_EVERY, STEPS - SAVE_EVERY, STEPS)]
    assert (run / "checkpoints" / "latest").read_text() == kept[-1]
    weights = safetensors.torch.load_file(run / "checkpoints" / kept[-1] / "weights.safetensors")
    assert weights["logit_scale"].shape == (1,)
