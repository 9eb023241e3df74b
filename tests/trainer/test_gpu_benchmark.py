"""The benchmark for GPUs without one: its arithmetic, of a tiny model on a CPU, and which cases each of several calls runs and compares."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch

from tests.benchmarks import gpu_train
from tests.benchmarks.data import gpu_bench
from tests.benchmarks.data.gpu_bench import NO_ROOM, Bench, OutOfTimeError, Row, how, line_of, mfu
from tests.benchmarks.data.gpu_case import PHASES, Case, Measured
from tests.benchmarks.gpu_train import fastest, judge
from trainer import flops, models

pytestmark = pytest.mark.timeout(600)

DONE = json.dumps(dataclasses.asdict(Measured(1, 1, 1.0, 1.0, 1, 1, 0.0)))
TINY = Case("tiny-vit", 8, "fp32", compile=False, warmup=1, steps=2)
UNKNOWN = dataclasses.replace(TINY, preset="no-such-model")
IN_PIECES = dataclasses.replace(TINY, checkpoint="blocks", micro=3, warmup=0, steps=3)


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench") / "rows"


@pytest.fixture(scope="module")
def bench(rows_file: Path) -> Bench:
    """With the rows of a case that does not run, and of two others after it; each is a process of its own that takes seconds to start."""
    made = Bench("", 500, path=rows_file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")
        for case in (UNKNOWN, TINY, IN_PIECES):
            made.run("ours", case)
    return made


def found_of(bench: Bench, case: Case) -> Measured:
    (row,) = (row for row in bench.rows if row.case == case)
    assert row.found is not None, row.why
    return row.found


def test_a_step_is_its_phases_and_its_operations_are_the_models(bench: Bench) -> None:
    found = found_of(bench, TINY)
    assert found.phases.keys() == set(PHASES)
    assert all(found.phases[name] > 0 for name in PHASES)
    assert 0.5 * found.phased < sum(found.phases.values()) <= found.phased
    with torch.device("meta"):
        model = models.build("tiny-vit")
        assert found.operations == flops.training_flops(model)
        assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert found.rate == pytest.approx(8 / found.seconds)
    assert len(found.losses) == 3
    assert any("mm" in name for name, _ in found.kernels), "what takes long is known"
    assert 0.5 < sum(share for _, share in found.kernels) <= 1


MEASURED = """
import dataclasses, json, sys, time
from tests.benchmarks.data import gpu_ours
from tests.benchmarks.data.gpu_case import Case
from tests.trainer import fp16_on_cpu
from trainer import zero
compute, skipped = sys.argv[1], json.loads(sys.argv[2])
usual, calls = zero.step, []
def step(*given, **more):
    found = usual(*given, **more)
    calls.append(found.applied if skipped is None else len(calls) not in skipped)
    if not calls[-1]:
        time.sleep(2)
    return found._replace(applied=calls[-1])
vars(zero).update(step=step)
fp16_on_cpu.allow()
if skipped is not None:
    gpu_ours.MOST_SEARCHING = 3
found = gpu_ours.measure(Case("tiny-vit", 2, compute, compile=False, warmup=1, steps=3))
print(json.dumps([dataclasses.asdict(found), calls]))
"""
"""Ours in a process that says, if it is told to, of just these steps that they have changed no weight. Those take long."""


def measured(compute: str, skipped: list[int] | None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", MEASURED, compute, json.dumps(skipped)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.prove
def test_a_step_that_changes_no_weight_is_not_timed() -> None:
    """The first and one to warm up; then three that count among five; one by phases and one for the profile."""
    done = measured("fp16", [3, 5])
    assert done.returncode == 0, done.stderr
    found, calls = json.loads(done.stdout.splitlines()[-1])
    assert calls == [True, True, True, False, True, False, True, True, True]
    assert found["seconds"] < 2
    for compute, skipped, left in (("fp16", list(range(3, 100)), 1), ("fp32", [3], 2)):
        done = measured(compute, skipped)
        assert done.returncode == 1
        assert f"{left} steps changed weights: gradients are not finite" in done.stderr, "only fp16 is given more"


@pytest.mark.prove
def test_fp16_is_measured_once_its_loss_scaler_has_its_scale() -> None:
    done = measured("fp16", None)
    assert done.returncode == 0, done.stderr
    found, calls = json.loads(done.stdout.splitlines()[-1])
    assert calls.count(True) >= 4, "one to warm up and three that count"
    assert all(0 < loss < 10 for loss in found["losses"])


def test_micro_batches_and_checkpoints_train_the_same_model(bench: Bench) -> None:
    whole, in_pieces = (found_of(bench, case) for case in (TINY, IN_PIECES))
    assert whole.losses == pytest.approx(in_pieces.losses, rel=1e-4)
    assert not in_pieces.phases, "another step of a batch in pieces takes long"


def test_what_does_not_run_is_no_figure_and_the_others_go_on(bench: Bench, rows_file: Path) -> None:
    unknown, *others = bench.rows
    assert unknown.why.startswith("FAILED")
    assert "unknown; choose one of" in unknown.why
    assert [(row.why, row.found is not None) for row in others] == [("", True)] * 2
    assert [json.loads(line)["case"]["preset"] for line in rows_file.read_text().splitlines()] == [
        "no-such-model",
        "tiny-vit",
        "tiny-vit",
    ]
    assert Bench("", 0.01).run("ours", TINY).why == "took more than 0 s"


def test_the_batch_is_the_largest_that_both_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Measured(1, 1, 1.0, 1.0, 1, 1, 0.0)

    def told(python: str, module: str, case: Case, seconds: float) -> tuple[Measured | None, str, list[str]]:
        if (module, case.pairs) == ("gpu_ours", 256):
            return None, "FAILED (1): what no pattern knows", []
        most = {"gpu_ours": 64, "gpu_peer": 32}[module]
        return (found, "", []) if case.pairs <= most else (None, NO_ROOM, [])

    monkeypatch.setattr(gpu_bench, "run", told)
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


class Twin:
    """Stands for the processes: tells what each case finds, and keeps what was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, short_is_faster: bool = False) -> None:
        self.asked: list[tuple[str, str, int]] = []
        self.most = {"gpu_ours": 10**6, "gpu_peer": 10**6}
        """Pairs that fit."""
        self.failing: tuple[str, ...] = ()
        self.written = 0
        self._short_is_faster = short_is_faster
        monkeypatch.setattr(gpu_bench, "run", self._run)
        monkeypatch.setattr(gpu_train, "write_corpus", self._write)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def _write(self, folder: Path, name: str, *_: int) -> tuple[str, str]:
        self.written += 1
        return str(folder / name), "vocabulary"

    def _run(self, python: str, module: str, case: Case, seconds: float) -> tuple[Measured | None, str, list[str]]:
        source = " from shards" if case.manifest else ""
        self.asked.append((module, how(case) + source, case.pairs))
        if module in self.failing:
            return None, "FAILED (1): as was asked", []
        if (case.micro or case.pairs) > self.most[module]:
            return None, NO_ROOM, []
        takes = 1.0 - 0.1 * case.compile - 0.1 * (case.checkpoint == "none") - 0.1 * case.captions
        takes -= 0.05 * (case.checkpoint == "activation")
        takes += (-0.05 if self._short_is_faster else 0.05) * case.short_attention
        return Measured(case.pairs, 1, takes, 1.0, 1, 1, 0.0, 9.0), "", []

    def since(self) -> list[tuple[str, str, int]]:
        found, self.asked = self.asked, []
        return found


VERSIONS = {"ours": "1.0, H200", "open_clip": "3.3.0, 1.0, H200"}


def call(
    *parts: str,
    out: Path,
    models: Sequence[str] = ("ViT-B/32",),
    more: Sequence[str] = (),
    versions: Mapping[str, str] = VERSIONS,
) -> int:
    argv = [*parts, "--models", *models, "--compute", "bf16", "--peer", sys.executable, "--out", str(out), *more]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["gpu_train", *argv])
        patch.setattr(gpu_train, "versions_of_ours", lambda: versions["ours"])
        patch.setattr(gpu_train, "versions_of_peer", lambda _: versions["open_clip"])
        return gpu_train.main()


@pytest.mark.parametrize("short_is_faster", [True, False])
def test_each_part_begins_with_what_was_fastest_before(
    short_is_faster: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = Twin(monkeypatch, short_is_faster=short_is_faster)
    assert call(out=tmp_path / "rows") == 0
    also = ", short attention" if short_is_faster else ""
    assert asked.since() == [
        ("gpu_ours", "bf16, compiled", 4096),
        ("gpu_peer", "pure_bf16, compiled", 4096),
        ("gpu_ours", "bf16, compiled, activation again", 4096),
        ("gpu_ours", "bf16, compiled, elementwise again", 4096),
        ("gpu_ours", "bf16, compiled, short attention", 4096),
        ("gpu_ours", f"bf16, compiled{also} from shards", 4096),
        ("gpu_ours", f"bf16, compiled{also}, pieces of 4096", 32768),
        ("gpu_ours", f"bf16, compiled{also}, captions", 4096),
        ("gpu_peer", "pure_bf16, compiled, captions", 4096),
        ("gpu_ours", f"bf16, compiled, activation again{also}, captions", 4096),
        ("gpu_ours", f"bf16, compiled, elementwise again{also}, captions", 4096),
        ("gpu_ours", "bf16", 4096),
        ("gpu_peer", "pure_bf16", 4096),
        ("gpu_ours", "bf16, activation again", 4096),
        ("gpu_ours", "bf16, elementwise again", 4096),
        ("gpu_ours", f"bf16, compiled, blocks again{also}", 16384),
        ("gpu_peer", "pure_bf16, compiled, blocks again", 16384),
    ]
    assert asked.written == 1
    first = capsys.readouterr().out
    assert call(out=tmp_path / "rows") == 0
    assert asked.since() == [], "all of it stands in the file"
    assert asked.written == 1
    again = capsys.readouterr().out
    for said in (first, again):
        rows = [line for line in said.splitlines() if line[:10].strip() in ("ours", "open_clip", "shards")]
        assert len(rows) == len(set(rows)) == 17, "each once"


def test_what_is_asked_for_first_is_measured_of_all_models_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = Twin(monkeypatch)
    assert call("speed", "large", out=tmp_path / "rows", models=["ViT-L/14", "RN50"]) == 0
    ways = [(module, way, pairs) for module, way, pairs in asked.since() if "again" not in way and "short" not in way]
    assert ways == [
        ("gpu_ours", "bf16, compiled", 512),
        ("gpu_peer", "pure_bf16, compiled", 512),
        ("gpu_ours", "bf16, compiled", 1024),
        ("gpu_peer", "pure_bf16, compiled", 1024),
        ("gpu_ours", "bf16, compiled, pieces of 512", 32768),
    ]


def test_a_call_goes_on_where_an_earlier_one_was_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, rows = Twin(monkeypatch), tmp_path / "rows"
    assert call("speed", out=rows, more=["--minutes", "0"]) == 1
    assert asked.since() == []
    assert "NOT ALL WAS MEASURED in 0 minutes" in capsys.readouterr().out

    assert call("speed", "shards", out=rows) == 0
    assert len(asked.since()) == 6
    lines = rows.read_text().splitlines()
    assert [json.loads(line)["who"] for line in lines] == ["ours", "open_clip", "ours", "ours", "ours", "shards"]

    # The peer's was not reached, or cut off while it was written: ours is measured once more, beside it. The rest is as good as it was.
    rows.write_text("\n".join([lines[0], *lines[2:], lines[1][:200]]))
    assert call("speed", "shards", out=rows) == 0
    assert asked.since() == [("gpu_ours", "bf16, compiled", 4096), ("gpu_peer", "pure_bf16, compiled", 4096)]
    said = capsys.readouterr().out
    assert "bf16, compiled: 1.00 times open_clip's rate (1.3 is asked), 1.00 of its memory (0.8 is asked)\n" in said
    assert (
        "elementwise again: 0.89 times open_clip's rate (1.3 is asked), 1.00 of its memory (0.8 is asked), NOT of"
        in said
    )
    assert "measured at" in said
    assert "from shards 100.0% of the drawn numbers' rate" in said
    for parts in (["speed"], ["shards"], ["speed", "shards"]):
        assert call(*parts, out=rows) == 0
    assert asked.since() == [], "each comparison has its call"


def test_a_batch_in_pieces_is_not_begun_that_would_be_cut_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It would take 86 s as the twin says, and a case that is cut off leaves nothing."""
    asked, rows = Twin(monkeypatch), tmp_path / "rows"
    in_pieces = ("gpu_ours", "bf16, compiled, pieces of 4096", 32768)
    assert call("speed", "large", out=rows, more=["--minutes", "1.3"]) == 1
    assert asked.since()[-1] == ("gpu_ours", "bf16, compiled, short attention", 4096)
    assert call("speed", "large", out=rows, more=["--minutes", "2"]) == 0
    assert asked.since() == [in_pieces]
    assert call("speed", "large", out=rows, more=["--minutes", "1.3"]) == 0, "it is known"
    assert asked.since() == []


@pytest.mark.parametrize("short_is_faster", [True, False])
def test_parts_in_calls_of_their_own_keep_what_each_compares(
    short_is_faster: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, rows = Twin(monkeypatch, short_is_faster=short_is_faster), tmp_path / "rows"
    assert call("speed", out=rows) == 0
    asked.since()
    assert call("shards", out=rows) == 0
    also = ", short attention" if short_is_faster else ""
    assert asked.since() == [
        ("gpu_ours", f"bf16, compiled{also}", 4096),
        ("gpu_ours", f"bf16, compiled{also} from shards", 4096),
    ]
    capsys.readouterr()
    assert call("speed", "shards", out=rows) == 0
    assert asked.since() == []
    assert "NOT of" not in capsys.readouterr().out
    assert call("large", out=rows) == 0
    assert "times the work of pieces alone, NOT of the same call" in capsys.readouterr().out


def test_the_fastest_is_measured_beside_open_clip_in_one_call(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, rows = Twin(monkeypatch, short_is_faster=True), tmp_path / "rows"
    assert call("speed", out=rows) == 0
    rows.write_text("\n".join(rows.read_text().splitlines()[:2]) + "\n")
    asked.since()
    assert call("speed", out=rows) == 0
    assert asked.since() == [
        ("gpu_ours", "bf16, compiled, activation again", 4096),
        ("gpu_ours", "bf16, compiled, elementwise again", 4096),
        ("gpu_ours", "bf16, compiled, short attention", 4096),
        ("gpu_peer", "pure_bf16, compiled", 4096),
    ]
    said = capsys.readouterr().out
    assert "short attention: 1.07 times open_clip's rate (1.3 is asked), 1.00 of its memory (0.8 is asked)\n" in said
    assert "NOT of" not in said


def test_a_case_that_fails_is_said_by_the_exit_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked, measured = Twin(monkeypatch), gpu_bench.run

    def run(python: str, module: str, case: Case, seconds: float) -> tuple[Measured | None, str, list[str]]:
        return (None, "FAILED (1)", []) if case.manifest else measured(python, module, case, seconds)

    monkeypatch.setattr(gpu_bench, "run", run)
    assert call("speed", out=tmp_path / "rows") == 0
    assert call("speed", "shards", out=tmp_path / "rows") == 1
    assert call("speed", "shards", out=tmp_path / "rows") == 1
    assert asked.written == 1


def test_what_did_not_fit_is_not_tried_again_and_all_begins_with_the_batch_that_both_hold(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked, rows = Twin(monkeypatch), tmp_path / "rows"
    asked.most = {"gpu_ours": 3072, "gpu_peer": 2048}
    assert call("speed", out=rows) == 0
    assert asked.since() == [
        ("gpu_ours", "bf16, compiled", 4096),
        ("gpu_ours", "bf16, compiled", 3072),
        ("gpu_peer", "pure_bf16, compiled", 3072),
        ("gpu_ours", "bf16, compiled", 2048),
        ("gpu_peer", "pure_bf16, compiled", 2048),
        ("gpu_ours", "bf16, compiled, activation again", 2048),
        ("gpu_ours", "bf16, compiled, elementwise again", 2048),
        ("gpu_ours", "bf16, compiled, short attention", 2048),
    ]
    asked.most["gpu_ours"] = 1024
    assert call("speed", "large", out=rows) == 0
    assert asked.since() == [
        ("gpu_ours", "bf16, compiled, pieces of 2048", 32768),
        ("gpu_ours", "bf16, compiled, pieces of 1024", 32768),
    ]
    asked.most["gpu_ours"] = 1
    assert call("speed", out=tmp_path / "none") == 1, "nothing fits: no figure"


def test_what_failed_is_not_tried_again_and_is_not_in_the_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked, rows = Twin(monkeypatch), tmp_path / "rows"
    asked.failing = ("gpu_peer",)
    for tried in (6, 0):
        assert call("speed", "shards", out=rows) == 1
        assert len(asked.since()) == tried
    asked.failing = ()
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines if line["found"]))
    assert call("speed", "shards", out=rows) == 0
    assert asked.since() == [("gpu_ours", "bf16, compiled", 4096), ("gpu_peer", "pure_bf16, compiled", 4096)]


def test_rows_of_another_torch_device_or_code_are_not_taken_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked, rows = Twin(monkeypatch), tmp_path / "rows"
    rows.write_text('[]\n3\n{"who": "ours", "case": {"preset": "ViT-B/32"}}\nnothing\n')
    assert call("speed", out=rows) == 0
    assert len(asked.since()) == 5
    assert call("speed", out=rows, versions=VERSIONS | {"open_clip": "another"}) == 0
    assert [module for module, *_ in asked.since()] == ["gpu_ours", "gpu_peer"], "ours beside it"
    assert call("speed", out=rows, versions=VERSIONS | {"ours": "another"}) == 0
    assert [module for module, *_ in asked.since()] == ["gpu_ours", "gpu_peer", *["gpu_ours"] * 3]
    assert call("speed", "shards", out=rows) == 0
    assert len(asked.since()) == 2
    assert call("shards", out=rows, more=["--shards", "512"]) == 0
    assert [way for _, way, _ in asked.since()] == ["bf16, compiled", "bf16, compiled from shards"]


def test_the_code_that_a_figure_is_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for place in ("trainer/models", "pipeline/contracts", "tests/benchmarks/data"):
        (tmp_path / place).mkdir(parents=True)
    cases = tmp_path / "tests/benchmarks/data"
    names = ("gpu_case.py", "gpu_peer.py", "gpu_ours.py", "photographs.py")
    case, theirs, *others = (cases / name for name in names)
    ours = tmp_path / "trainer/models/vit.py"
    for path in (ours, case, theirs, *others):
        path.write_text("a = 1")
    monkeypatch.chdir(tmp_path)

    def digests() -> tuple[str, str]:
        return gpu_bench.code_of("ours"), gpu_bench.code_of("open_clip")

    before = digests()
    assert gpu_bench.code_of("ours", "another torch") != before[0]
    ours.write_text("a = 2")
    changed = digests()
    assert changed[0] != before[0]
    assert changed[1] == before[1]
    theirs.write_text("a = 2")
    assert digests()[0] == changed[0]
    assert digests()[1] != changed[1]
    case.write_text("a = 2")
    assert all(new != old for new, old in zip(digests(), changed, strict=True))


def test_a_case_that_the_end_of_the_call_cuts_off_is_no_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_bench, "LEAST", 0)
    bench = Bench("", 500, path=tmp_path / "rows")
    bench._end = time.monotonic() + 0.2
    with pytest.raises(OutOfTimeError):
        bench.run("ours", TINY)
    assert not (tmp_path / "rows").exists()
    bench = Bench("", 0.05, path=tmp_path / "rows")
    assert bench.run("ours", TINY).why == "took more than 0 s"
    assert (tmp_path / "rows").exists()
    # Also where the end has come by then
    bench = Bench("", 0.05)

    def late(*_: object) -> tuple[None, str, list[str]]:
        bench._end = time.monotonic()
        return None, "took more than 0 s", []

    monkeypatch.setattr(gpu_bench, "run", late)
    assert bench.run("ours", TINY).why == "took more than 0 s"


def test_what_the_two_sides_are_is_asked_of_their_pythons(tmp_path: Path) -> None:
    version = gpu_bench.versions_of_ours()
    assert version.startswith(torch.__version__)
    assert version.endswith("CPU" if not torch.cuda.is_available() else torch.cuda.get_device_name())
    absent = tmp_path / "python"
    absent.write_text(f"#!{sys.executable}\nraise ImportError('open_clip')\n")
    absent.chmod(0o700)
    assert gpu_bench.versions_of_peer(str(absent)) == ""


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
    found, said, warned = gpu_bench.run(str(script), "gpu_ours", TINY)
    assert (found is None) == bool(why)
    assert said.startswith(why)
    assert len(warned) == len(warnings)
    assert all(expected in line for expected, line in zip(warnings, warned, strict=True))


def test_a_peer_that_is_not_there_is_no_comparison(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = Measured(1, 1, 1.0, 1.0, 1, 1, 0.0)
    monkeypatch.setattr(gpu_bench, "run", lambda *_: (found, "", []))
    monkeypatch.setattr(gpu_train, "versions_of_ours", lambda: "1.0, CPU")
    monkeypatch.setattr(gpu_train, "versions_of_peer", lambda _: "")
    for peer, code in (([], 1), (["--peer", ""], 0)):
        argv = ["gpu_train", "speed", "--models", "tiny-vit", "--pairs", "16", "--compute", "fp32"]
        monkeypatch.setattr(sys, "argv", [*argv, *peer])
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
    quicker = dataclasses.replace(found, seconds=0.01, operations=5 * 10**9)
    in_fp16 = Row("ours", Case("ViT-B/32", 1000, "fp16"), quicker)
    again = Row("ours", dataclasses.replace(ours.case, checkpoint="blocks"), quicker)
    short = Row("ours", dataclasses.replace(ours.case, short_attention=True), dataclasses.replace(found, seconds=0.4))
    assert fastest([in_fp16, again, ours, theirs], ours.case) == ours.case
    assert fastest([in_fp16, again, ours, short, theirs], ours.case) == short.case
    bench = Bench(sys.executable)
    bench.rows.extend([in_fp16, ours, theirs])
    assert judge(bench, "ViT-B/32")
    said = capsys.readouterr().out
    assert "ViT-B/32, bf16, compiled: MFU 0.6%, 40% is asked: SHORT" in said
    assert "1.50 times open_clip's rate (1.3 is asked), 0.50 of its memory" in said
    bench.rows[:] = [in_fp16]
    assert not judge(bench, "ViT-B/32"), "nothing of open_clip's"
    assert "MFU" not in capsys.readouterr().out, "what is asked is asked of bf16"
    assert NO_ROOM in line_of(Row("ours", ours.case, None, NO_ROOM), 0)


@pytest.mark.prove
def test_the_command_goes_through_on_a_cpu(tmp_path: Path) -> None:
    """Drawn numbers, then Parquet shards, decoded by a worker."""
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.gpu_train",
        *("speed", "shards", "captions", "--models", "tiny-vit", "--pairs", "16"),
    ]
    command += ["--compute", "fp32", "--no-compile", "--peer", "", "--shards", "256", "--out", str(tmp_path / "rows")]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "from shards" in done.stdout
    rows = [json.loads(line) for line in (tmp_path / "rows").read_text().splitlines()]
    assert [row["who"] for row in rows] == [*["ours"] * 3, "shards", *["ours"] * 3]
    ours = [row for row in rows if row["who"] == "ours"]
    ways = [(row["case"]["checkpoint"], row["case"]["captions"]) for row in ours]
    assert sorted(ways) == [(how, only) for how in ("activation", "elementwise", "none") for only in (False, True)]
    full, captions = (
        {row["found"]["operations"] for row in ours if row["case"]["captions"] == only} for only in (False, True)
    )
    assert max(captions) < min(full), "short texts are less work"
    assert rows[3]["found"]["of_a_core"] > 0
    assert gpu_bench.HEAD in done.stdout
