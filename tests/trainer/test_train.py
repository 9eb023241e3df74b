"""Real runs: the DeepSpeed launcher, two processes on the CPU, killed and resumed, against runs that nobody disturbed."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch

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
    return [tuple(line[key] for key in ("step", "loss", "gradient_norm", "logit_scale", "learning_rate")) for line in lines]


def final_weights(run: Path) -> dict[str, str]:
    record = json.loads((run / "checkpoints" / f"step-{STEPS:08d}" / "checkpoint.json").read_text())
    return {name: file["sha256"] for name, file in record["files"].items() if name == "weights.safetensors"}


@pytest.fixture(scope="module")
def undisturbed(
    launch: Callable[..., object], corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Path]:
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
    stage: int, undisturbed: Callable[[int], Path], launch: Callable[..., object], corpus: Path, tmp_path: Path
) -> None:
    expected = undisturbed(stage)
    overrides = SMALL | {"data.manifest": corpus, "run.dir": tmp_path, "zero.stage": stage}
    kill_at = random.SystemRandom().randint(SAVE_EVERY + 1, 11)
    killed = launch(2, overrides, kill_when=lambda: len(lines_of(tmp_path)) >= kill_at)
    assert killed.code != 0, f"killed at {kill_at}: {killed.output}"
    left_at = len(lines_of(tmp_path))
    assert kill_at <= left_at < STEPS - 20

    resumed = launch(2, overrides)

    assert resumed.code == 0, resumed.output
    assert f"steps {left_at // SAVE_EVERY * SAVE_EVERY + 1} to" in resumed.output
    assert figures(lines_of(tmp_path)) == figures(lines_of(expected)), f"killed at {kill_at}"
    assert final_weights(tmp_path) == final_weights(expected)
    assert len(lines_of(tmp_path)) == STEPS, "each step has one line"


def test_two_processes_train_as_one(
    undisturbed: Callable[[int], Path], launch: Callable[..., object], corpus: Path, tmp_path: Path
) -> None:
    two = undisturbed(1)
    finished = launch(1, SMALL | {"data.manifest": corpus, "run.dir": tmp_path, "zero.stage": 0, "run.stop_after": 12})
    assert finished.code == 0, finished.output
    for one, both in zip(lines_of(tmp_path), lines_of(two), strict=False):
        assert one["loss"] == pytest.approx(both["loss"], abs=1e-4), f"step {one['step']}"
        assert one["gradient_norm"] == pytest.approx(both["gradient_norm"], rel=1e-3)


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
