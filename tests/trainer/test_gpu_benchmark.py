"""The arithmetic of the benchmark for GPUs, on a tiny model on a CPU: phases that add up, operations, utilisation, both sources of data."""

import argparse
import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.benchmarks import gpu_train
from tests.benchmarks.data.gpu_case import PHASES, Case, Measured
from tests.benchmarks.gpu_train import NO_ROOM, Bench, Row, fastest, judge, line_of, mfu
from trainer import flops, models

pytestmark = pytest.mark.timeout(600)

DONE = json.dumps(dataclasses.asdict(Measured(1, 1, 1.0, 1.0, 1, 1, 0.0)))
TINY = Case("tiny-vit", 16, "fp32", compile=False, warmup=1, steps=3)


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")


def run(case: Case) -> Measured:
    row = Bench("", 500).run("ours", case)
    assert row.found is not None, row.why
    return row.found


def test_a_step_is_its_phases_and_its_operations_are_the_models() -> None:
    found = run(TINY)
    assert found.phases.keys() == set(PHASES)
    assert all(found.phases[name] > 0 for name in PHASES)
    assert 0.3 * found.seconds < sum(found.phases.values()) < 3 * found.seconds
    with torch.device("meta"):
        model = models.build("tiny-vit")
        assert found.operations == flops.training_flops(model)
        assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert found.rate == pytest.approx(16 / found.seconds)
    assert len(found.losses) == 3
    assert any("mm" in name for name, _ in found.kernels), "what takes long is known"
    assert 0.5 < sum(share for _, share in found.kernels) <= 1


def test_micro_batches_and_checkpoints_train_the_same_model() -> None:
    losses = []
    for case in (TINY, Case("tiny-vit", 16, "fp32", compile=False, checkpoint="blocks", micro=6, warmup=1, steps=3)):
        losses.append(run(case).losses)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_what_does_not_run_is_no_figure_and_the_others_go_on() -> None:
    out = io.StringIO()
    bench = Bench("", 500, out)
    for case, why in (
        (dataclasses.replace(TINY, preset="no-such-model"), "FAILED"),
        (dataclasses.replace(TINY, warmup=0), ""),
    ):
        assert bench.run("ours", case).why.startswith(why)
    assert "unknown; choose one of" in bench.rows[0].why
    assert bench.rows[1].found is not None
    assert [json.loads(line)["case"]["preset"] for line in out.getvalue().splitlines()] == ["no-such-model", "tiny-vit"]
    assert Bench("", 0.01).run("ours", TINY).why == "took more than 0 s"


def test_the_batch_is_the_largest_that_both_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Measured(1, 1, 1.0, 1.0, 1, 1, 0.0)

    def told(python: str, module: str, case: Case, seconds: float) -> tuple[Measured | None, str, list[str]]:
        if (module, case.pairs) == ("gpu_ours", 256):
            return None, "FAILED (1): what no pattern knows", []
        most = {"gpu_ours": 64, "gpu_peer": 32}[module]
        return (found, "", []) if case.pairs <= most else (None, NO_ROOM, [])

    monkeypatch.setattr(gpu_train, "run", told)
    bench = Bench(sys.executable, 1)
    largest = bench.both(Case("ViT-B/32", size, "bf16") for size in (256, 128, 64, 32, 16))
    assert largest is not None
    assert largest.case == Case("ViT-B/32", 32, "bf16")
    tried = [(row.who, row.case.pairs, row.case.compute, row.why) for row in bench.rows]
    assert tried == [
        ("ours", 256, "bf16", "FAILED (1): what no pattern knows"),
        ("ours", 128, "bf16", NO_ROOM),
        ("ours", 64, "bf16", ""),
        ("open_clip", 64, "pure_bf16", NO_ROOM),
        ("ours", 32, "bf16", ""),
        ("open_clip", 32, "pure_bf16", ""),
    ]
    assert Bench(sys.executable, 1).both([Case("ViT-B/32", 128, "bf16")]) is None
    alone = Bench(sys.executable, 1)
    assert alone.ours(Case("ViT-B/32", size, "bf16") for size in (128, 64, 32)) == alone.rows[-1]
    assert [(row.who, row.case.pairs) for row in alone.rows] == [("ours", 128), ("ours", 64)]


@pytest.mark.parametrize("short_is_faster", [True, False])
def test_short_attention_is_tried_with_the_fastest_and_taken_where_it_is_faster(
    short_is_faster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(python: str, module: str, case: Case, seconds: float) -> tuple[Measured | None, str, list[str]]:
        takes = 1.0 - 0.1 * case.compile - 0.1 * (case.checkpoint == "none") - 0.1 * case.captions
        takes += (-0.05 if short_is_faster else 0.05) * case.short_attention
        return Measured(case.pairs, 1, takes, 1.0, 1, 1, 0.0), "", []

    monkeypatch.setattr(gpu_train, "run", told)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    bench = Bench(sys.executable, 1)
    settings = argparse.Namespace(models=["ViT-B/32"], pairs=[64], compute=["bf16"], compile=[True, False])
    gpu_train.speed(bench, settings)
    rows = [(row.who, gpu_train.how(row.case)) for row in bench.rows]
    also = ", short attention" if short_is_faster else ""
    assert rows == [
        ("ours", "bf16, compiled"),
        ("open_clip", "pure_bf16, compiled"),
        ("ours", "bf16, compiled, elementwise again"),
        ("ours", "bf16"),
        ("open_clip", "pure_bf16"),
        ("ours", "bf16, elementwise again"),
        ("ours", "bf16, compiled, short attention"),
        ("ours", f"bf16, compiled{also}, captions"),
        ("open_clip", "pure_bf16, compiled, captions"),
        ("ours", f"bf16, compiled, elementwise again{also}, captions"),
    ]


@pytest.mark.parametrize(
    ("code", "why", "warnings"),
    [
        (f"print('''{DONE}'''); print('NCCL version 2.27')", "", []),
        (
            f"import logging, warnings; logging.basicConfig(); logging.warning('slow'); warnings.warn('odd'); print('''{DONE}''')",
            "",
            ["WARNING:root:slow", "UserWarning: odd"],
        ),
        ("raise RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling')", NO_ROOM, []),
        ("raise RuntimeError('GET was unable to find an engine to execute this computation')", NO_ROOM, []),
        ("raise RuntimeError('something else')", "FAILED", []),
        ("print('nothing')", "FAILED", []),
    ],
)
def test_what_a_case_says(code: str, why: str, warnings: list[str], tmp_path: Path) -> None:
    script = tmp_path / "python"
    script.write_text(f"#!{sys.executable}\n{code}\n")
    script.chmod(0o700)
    found, said, warned = gpu_train.run(str(script), "gpu_ours", TINY)
    assert (found is None) == bool(why)
    assert said.startswith(why)
    assert len(warned) == len(warnings)
    assert all(expected in line for expected, line in zip(warnings, warned, strict=True))


def test_a_peer_that_is_not_there_is_no_comparison(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = Measured(1, 1, 1.0, 1.0, 1, 1, 0.0)
    monkeypatch.setattr(gpu_train, "run", lambda *_: (found, "", []))
    for peer, code in (([], 1), (["--peer", ""], 0)):
        argv = ["gpu_train", "speed", "--models", "tiny-vit", "--pairs", "16", "--compute", "fp32"]
        monkeypatch.setattr(sys, "argv", [*argv, *peer])
        monkeypatch.setattr(gpu_train, "has_peer", lambda _: False)
        assert gpu_train.main() == code
        assert ("NOT COMPARED" in capsys.readouterr().out) == bool(code)


def test_the_benchmarks_for_gpus_need_no_more_than_the_trainer() -> None:
    """On a GPU node nothing else is installed (infra/README.md), and Ray and open_clip may be left out."""
    absent = (
        "ray",
        "cryptography",
        "aiohttp",
        "moto",
        "datasketch",
        "fastwarc",
        "yarl",
        "hypothesis",
        "open_clip",
        "pytest",
    )
    code = f"import sys; sys.modules.update(dict.fromkeys({absent!r}))\n"
    for name in ("gpu_train", "gpu_kernels", "gpu_curves", "data.gpu_ours", "data.gpu_peer"):
        code += f"import tests.benchmarks.{name}\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_utilisation_is_of_the_devices_peak(capsys: pytest.CaptureFixture[str]) -> None:
    found = Measured(1000, 1, 0.5, 1.0, 8 * 10**9, 3 * 10**9, 0.0, device="NVIDIA H200")
    assert mfu(found, found.operations) == pytest.approx(3e9 * 2000 / 989e12)
    assert mfu(Measured(1, 1, 1.0, 1.0, 0, 1, 0.0, device="CPU"), 1) is None
    ours = Row("ours", Case("ViT-B/32", 1000, "bf16"), found)
    slower = Measured(1000, 1, 0.75, 1.0, 16 * 10**9, 0, 0.0, device="NVIDIA H200")
    theirs = Row("open_clip", Case("ViT-B/32", 1000, "pure_bf16"), slower)
    assert fastest([ours, theirs], "ViT-B/32") == ours.case
    quicker = Row(
        "ours", Case("ViT-B/32", 1000, "fp16"), dataclasses.replace(found, seconds=0.01, operations=5 * 10**9)
    )
    assert fastest([quicker, ours], "ViT-B/32") == ours.case
    assert fastest([quicker], "ViT-B/32") == quicker.case
    judge("ViT-B/32", [quicker, ours, theirs])
    said = capsys.readouterr().out
    assert "ViT-B/32, bf16, compiled: MFU 0.6%, 40% is asked: SHORT" in said
    judge("ViT-B/32", [quicker])
    assert "MFU" not in capsys.readouterr().out, "what is asked is asked of bf16"
    assert "1.50 times open_clip's rate (1.3 is asked), 0.50 of its memory" in said
    assert NO_ROOM in line_of(Row("ours", ours.case, None, NO_ROOM), 0)


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
    rows = [json.loads(line) for line in (tmp_path / "rows").read_text().splitlines()]
    assert [row["who"] for row in rows] == ["ours"] * 4 + ["drawn", "shards"]
    ways = [(row["case"]["checkpoint"], row["case"]["captions"]) for row in rows[:4]]
    assert sorted(ways) == [("elementwise", False), ("elementwise", True), ("none", False), ("none", True)]
    full, captions = (
        {row["found"]["operations"] for row in rows[:4] if row["case"]["captions"] == only} for only in (False, True)
    )
    assert max(captions) < min(full), "short texts are less work"
    assert gpu_train.HEAD in done.stdout
