"""The arithmetic of the benchmark for GPUs, on a tiny model on a CPU: phases that add up, operations, utilisation, both sources of data."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.benchmarks import gpu_train
from tests.benchmarks.data.gpu_case import PHASES, Case, Measured
from tests.benchmarks.gpu_train import Row, fastest, judge, line_of, mfu, run
from trainer import flops, models

pytestmark = pytest.mark.timeout(600)

TINY = Case("tiny-vit", 16, "fp32", compile=False, warmup=1, steps=3)


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")


def test_a_step_is_its_phases_and_its_operations_are_the_models() -> None:
    found = run(sys.executable, "gpu_ours", TINY)
    assert found is not None
    assert found.phases.keys() == set(PHASES)
    assert all(found.phases[name] > 0 for name in PHASES)
    assert 0.3 * found.seconds < sum(found.phases.values()) < 3 * found.seconds
    with torch.device("meta"):
        model = models.build("tiny-vit")
        assert found.operations == flops.training_flops(model)
        assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert found.rate == pytest.approx(16 / found.seconds)
    assert len(found.losses) == 3


def test_micro_batches_and_checkpoints_train_the_same_model() -> None:
    losses = []
    for case in (TINY, Case("tiny-vit", 16, "fp32", compile=False, checkpoint=True, micro=6, warmup=1, steps=3)):
        found = run(sys.executable, "gpu_ours", case)
        assert found is not None
        losses.append(found.losses)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_what_does_not_run_is_no_figure() -> None:
    with pytest.raises(SystemExit, match="unknown; choose one of"):
        run(sys.executable, "gpu_ours", Case("no-such-model", 16, "fp32", compile=False))


def test_utilisation_is_of_the_devices_peak(capsys: pytest.CaptureFixture[str]) -> None:
    found = Measured(1000, 1, 0.5, 1.0, 8 * 10**9, 3 * 10**9, 0.0, device="NVIDIA H200")
    assert mfu(found, found.operations) == pytest.approx(3e9 * 2000 / 989e12)
    assert mfu(Measured(1, 1, 1.0, 1.0, 0, 1, 0.0, device="CPU"), 1) is None
    ours = Row("ours", Case("ViT-B/32", 1000, "bf16"), found)
    slower = Measured(1000, 1, 0.75, 1.0, 16 * 10**9, 0, 0.0, device="NVIDIA H200")
    theirs = Row("open_clip", Case("ViT-B/32", 1000, "pure_bf16"), slower)
    assert fastest([ours, theirs], "ViT-B/32") == ours.case
    judge("ViT-B/32", [ours, theirs])
    said = capsys.readouterr().out
    assert "SHORT" in said
    assert "1.50 times open_clip's rate (1.3 is asked), 0.50 of its memory" in said
    assert "does not fit" in line_of(Row("ours", ours.case, None), 0)


@pytest.mark.prove
def test_the_command_goes_through_on_a_cpu(tmp_path: Path) -> None:
    """Drawn numbers, then Parquet shards, decoded by a worker."""
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.gpu_train",
        "speed",
        "shards",
        "--models",
        "tiny-vit",
        "--pairs",
        "16",
    ]
    command += ["--compute", "fp32", "--no-compile", "--peer", "", "--shards", "256", "--out", str(tmp_path / "rows")]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "from shards" in done.stdout
    assert len((tmp_path / "rows").read_text().splitlines()) == 2
    assert gpu_train.HEAD in done.stdout
