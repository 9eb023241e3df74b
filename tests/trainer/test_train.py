"""Real runs: the DeepSpeed launcher, two processes on the CPU, killed and resumed, against runs that nobody disturbed."""

import json
import math
import random
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.trainer.conftest import WriteCorpus
from tests.trainer.launching import Alone, Launch, errors_of, processes, together, wait_until
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


def final_files(run: Path, step: int = STEPS) -> dict[str, str]:
    """Digests of all that was saved at the end: masters, moments, batch statistics, random states."""
    record = checkpoint.read_record(str(run / "checkpoints"), checkpoint.tag_of(step))
    return {name: file.sha256 for name, file in record.files.items()}


Undisturbed = Callable[..., Path]


@pytest.fixture(scope="module")
def undisturbed(launch: Launch, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """The folder of an uninterrupted run of two processes under a ZeRO stage; each is run once."""
    runs: dict[tuple[int, int], Path] = {}

    def run(stage: int, steps: int = STEPS) -> Path:
        if (stage, steps) not in runs:
            folder = tmp_path_factory.mktemp(f"stage{stage}")
            overrides = SMALL | {"data.manifest": corpus, "run.dir": folder, "zero.stage": stage, "optim.steps": steps}
            finished = launch(2, overrides)
            assert finished.code == 0, finished.output
            runs[stage, steps] = folder
        return runs[stage, steps]

    return run


@pytest.mark.parametrize(
    ("stage", "steps", "after"),
    [(1, STEPS, 20), *(pytest.param(stage, 130, 100, marks=pytest.mark.prove) for stage in (0, 1, 2, 3))],
)
def test_a_killed_run_resumes_to_the_bit(
    stage: int, steps: int, after: int, undisturbed: Undisturbed, corpus: Path, tmp_path: Path
) -> None:
    """Killed at a random step; at least the next `after` losses and all that is saved at the end are those of a run that was not."""
    expected = undisturbed(stage, steps)
    overrides = SMALL | {"data.manifest": corpus, "run.dir": tmp_path, "zero.stage": stage, "optim.steps": steps}
    kill_at = random.SystemRandom().randint(SAVE_EVERY + 1, steps - after - 1)
    with processes(2, overrides) as ranks:
        wait_until(lambda: len(lines_of(tmp_path)) >= kill_at)
        for rank in ranks:
            rank.signal(signal.SIGKILL, group=True)
        assert [rank.wait().code for rank in ranks] == [-signal.SIGKILL] * 2, f"killed at {kill_at}"
    left_at = len(lines_of(tmp_path))
    # A kill between a step's line and the end of its checkpoint leaves the one before it the newest.
    newest = max(checkpoint.step_of(tag) for tag in checkpoint.complete_tags(str(tmp_path / "checkpoints")))
    assert newest in (left_at // SAVE_EVERY * SAVE_EVERY, left_at // SAVE_EVERY * SAVE_EVERY - SAVE_EVERY)
    assert newest <= steps - after

    resumed = together(2, overrides)

    assert resumed.code == 0, resumed.output
    assert f"steps {newest + 1} to" in resumed.output
    assert figures(lines_of(tmp_path)) == figures(lines_of(expected)), f"killed at {kill_at}"
    assert final_files(tmp_path, steps) == final_files(expected, steps)
    assert len(lines_of(tmp_path)) == steps, "each step has one line"


@pytest.mark.prove
@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"precision.compute": "bf16"}, id="bf16"),
        pytest.param({"precision.compute": "bf16", "zero.stage": 2}, id="bf16-stage2"),
        pytest.param({"precision.compute": "bf16", "zero.stage": 3}, id="bf16-stage3"),
        pytest.param({"precision.compute": "autocast_bf16"}, id="autocast_bf16"),
        pytest.param({"precision.compute": "autocast_bf16", "zero.stage": 0}, id="autocast_bf16-stage0"),
        pytest.param({"precision.compute": "autocast_bf16", "zero.stage": 2}, id="autocast_bf16-stage2"),
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
    change: dict[str, object], short_run: dict[str, object], tmp_path: Path
) -> None:
    """Everything a resume brings back is there: bf16 weights and their masters, batch statistics, the moments."""
    runs = {name: tmp_path / name for name in ("undisturbed", "stopped")}
    for name, stops in (("undisturbed", [6]), ("stopped", [3, 6])):
        for stop in stops:
            finished = together(2, short_run | change | {"run.dir": runs[name], "run.stop_after": stop})
            assert finished.code == 0, finished.output
    lines = {name: lines_of(run) for name, run in runs.items()}
    assert len(lines["stopped"]) == 6
    assert figures(lines["stopped"]) == figures(lines["undisturbed"])
    assert all(math.isfinite(line["loss"]) and line["gradient_norm"] > 0 for line in lines["stopped"])
    assert final_files(runs["stopped"], 6) == final_files(runs["undisturbed"], 6)


@pytest.mark.prove
def test_two_then_one_then_four_processes_train_as_two(
    write_corpus: WriteCorpus, shapes: Callable[[int], list[tuple[str | None, bytes | None]]], tmp_path: Path
) -> None:
    """One command with other numbers of processes and ZeRO stages: each sample exactly once an epoch, and the same losses."""
    rows, size, steps = 96, 12, 24
    write_corpus(tmp_path / "corpus", shapes(rows))
    base = SMALL | {"data.manifest": tmp_path / "corpus", "batch.global_size": size, "optim.steps": steps}
    undisturbed, changing = tmp_path / "undisturbed", tmp_path / "changing"
    finished = together(2, base | {"run.dir": undisturbed})
    assert finished.code == 0, finished.output
    for count, stage, stop in ((2, 1, 7), (1, 0, 15), (4, 3, steps)):
        overrides = base | {"run.dir": changing, "zero.stage": stage, "run.stop_after": stop}
        notes = {"NOTE_SAMPLES": str(tmp_path / f"notes-{stop}")}
        finished = together(count, overrides, module="tests.trainer.instrumented", environment=notes)
        assert finished.code == 0, finished.output

    samples: list[int] = []
    seen: list[tuple[int, int]] = []
    for folder in tmp_path.glob("notes-*"):
        for path in folder.iterdir():
            for line in path.read_text().splitlines():
                note = json.loads(line)
                samples += note["samples"]
                seen += zip(note["samples"], note["rows"], strict=True)
    assert sorted(samples) == list(range(steps * size)), "no sample twice, none left out"
    for epoch in range(steps * size // rows):
        of_epoch = [row for sample, row in seen if sample // rows == epoch]
        assert sorted(of_epoch) == list(range(rows))
    ours, theirs = lines_of(changing), lines_of(undisturbed)
    assert [line["step"] for line in ours] == list(range(1, steps + 1))
    worst = max(abs(one["loss"] / other["loss"] - 1) for one, other in zip(ours, theirs, strict=True))
    print(f"losses differ by at most {worst:.1e}")
    assert worst < 1e-3
    masters = [named(run, steps) for run in (changing, undisturbed)]
    assert all(torch.allclose(value, masters[1][name], atol=1e-4) for name, value in masters[0].items())


def named(run: Path, step: int) -> dict[str, torch.Tensor]:
    """The masters of a run's checkpoint by name."""
    place, tag = str(run / "checkpoints"), checkpoint.tag_of(step)
    return checkpoint.named_weights(place, tag, checkpoint.read_record(place, tag))


def test_two_processes_train_as_one(undisturbed: Undisturbed, alone: Alone, corpus: Path, tmp_path: Path) -> None:
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


def test_losses_that_stay_no_numbers_stop_the_run(alone: Alone, short_run: dict[str, object], tmp_path: Path) -> None:
    change = {"optim.lr": 1e30, "optim.warmup_steps": 0, "run.max_bad_steps": 3}
    finished = alone(short_run | change | {"run.dir": tmp_path})
    assert finished.code == 1
    errors = errors_of(finished.output)
    assert len(errors) == 1, finished.output
    said = r"error: steps 2 to 4: a loss or gradient was not finite in all 3 of them, and there is no earlier good checkpoint"
    assert re.match(said, errors[0])
    assert "Traceback" not in finished.output
    assert checkpoint.complete_tags(str(tmp_path / "checkpoints")) == [], "nothing was saved amid bad steps"


@pytest.mark.prove
def test_every_stage_trains_the_same_and_exports_its_masters(undisturbed: Undisturbed) -> None:
    """Stages differ in the order of sums only; and the gathered masters are whole, whoever held them."""
    runs = {stage: undisturbed(stage) for stage in (0, 1, 2, 3)}
    reference = named(runs[1], STEPS)
    for stage, run in runs.items():
        for ours, theirs in zip(lines_of(run), lines_of(runs[1]), strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], abs=2e-3), f"stage {stage}, step {ours['step']}"
        weights = named(run, STEPS)
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


def test_the_run_says_what_it_did(undisturbed: Undisturbed) -> None:
    run = undisturbed(1)
    lines = lines_of(run)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert all(0 <= line["data_wait"] <= 1 and line["samples_per_second"] > 0 for line in lines)
    assert list((run / "tensorboard").iterdir())
    kept = sorted(folder.name for folder in (run / "checkpoints").iterdir() if folder.is_dir())
    assert kept == [f"step-{step:08d}" for step in (STEPS - 2 * SAVE_EVERY, STEPS - SAVE_EVERY, STEPS)]
    assert (run / "checkpoints" / "latest").read_text() == kept[-1]
    assert named(run, STEPS)["logit_scale"].shape == (1,)
    assert all(line["memory_gib"] > 0 for line in lines)
