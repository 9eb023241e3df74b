"""Real runs: the DeepSpeed launcher, two processes on the CPU, killed and resumed, against runs that nobody disturbed."""

import json
import math
import os
import random
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch

from pipeline.contracts import manifest as manifests
from pipeline.contracts import storage
from pipeline.contracts.config import load_config
from pipeline.contracts.errors import InputError
from tests.trainer.conftest import WriteCorpus
from tests.trainer.launching import INSTRUMENTED, SMOKE, Alone, Launch, errors_of, processes, together, wait_until
from trainer import checkpoint, models, train
from trainer.config import TrainConfig, resolve
from trainer.data.shards import ShardCorpus
from trainer.export import export, load_model
from trainer.flops import training_flops_of_length
from trainer.tokenizer import train_vocabulary

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
    "run.peak_tflops": 1,
}
Lines = list[dict[str, Any]]


def lines_of(run: Path) -> Lines:
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    text = path.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def figures(lines: Lines) -> list[tuple[float | None, ...]]:
    """What must not depend on the clock."""
    keys = ("step", "loss", "gradient_norm", "logit_scale", "learning_rate", "skipped")
    return [(*(line[key] for key in keys), line.get("loss_scale")) for line in lines]


def final_files(run: Path, step: int = STEPS) -> dict[str, str]:
    """Digests of all that was saved at the end: masters, moments, batch statistics, random states."""
    record = checkpoint.read_record(str(run / "checkpoints"), checkpoint.tag_of(step))
    return {name: file.sha256 for name, file in record.files.items()}


Undisturbed = Callable[..., Path]


@pytest.fixture(scope="module")
def undisturbed(launch: Launch, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """The folder of an uninterrupted run of two processes under a ZeRO stage; each is run once."""
    runs: dict[tuple[int, int, int | None], Path] = {}

    def run(stage: int, steps: int = STEPS, micro_size: int | None = None) -> Path:
        if (stage, steps, micro_size) not in runs:
            folder = tmp_path_factory.mktemp(f"stage{stage}")
            overrides = SMALL | {"data.manifest": corpus, "run.dir": folder, "zero.stage": stage, "optim.steps": steps}
            finished = launch(2, overrides | in_micro_batches(micro_size))
            assert finished.code == 0, finished.output
            runs[stage, steps, micro_size] = folder
        return runs[stage, steps, micro_size]

    return run


def in_micro_batches(size: int | None) -> dict[str, object]:
    """What turns gradient caching on, if a size is given."""
    return {} if size is None else {"batch.micro_size": size}


def killed_at(run: Path, overrides: dict[str, object], step: int) -> int:
    """Start two processes and kill them once `step` steps have their line; returns how many had one when they died."""
    with processes(2, overrides) as ranks:
        wait_until(lambda: len(lines_of(run)) >= step)
        for rank in ranks:
            rank.signal(signal.SIGKILL, group=True)
        assert [rank.wait().code for rank in ranks] == [-signal.SIGKILL] * 2, f"killed at {step}"
    return len(lines_of(run))


def newest_step(place: str) -> int:
    return max(checkpoint.step_of(tag) for tag in checkpoint.complete_tags(place))


@pytest.mark.parametrize(
    ("stage", "micro_size", "steps", "after", "kills"),
    [
        (1, None, STEPS, 20, 1),
        *(
            pytest.param(stage, micro_size, 130, 100, 3, marks=pytest.mark.prove)
            for stage in (0, 1, 2, 3)
            for micro_size in (None, 3)
        ),
    ],
)
def test_a_killed_run_resumes_to_the_bit(
    stage: int,
    micro_size: int | None,
    steps: int,
    after: int,
    kills: int,
    undisturbed: Undisturbed,
    corpus: Path,
    tmp_path: Path,
) -> None:
    """Killed at random steps; at least the next `after` losses and all that is saved at the end are those of a run that was not."""
    expected = undisturbed(stage, steps, micro_size)
    overrides = SMALL | {"data.manifest": corpus, "run.dir": tmp_path, "zero.stage": stage, "optim.steps": steps}
    overrides |= in_micro_batches(micro_size)
    draws = random.Random(f"{stage} {micro_size} {steps}")
    left_at, newest, every = 0, 0, []
    for number in range(kills):
        # Each in a stretch of its own, and never before a step that the last one has not reached.
        span = steps - after - 2 * SAVE_EVERY - 1
        first, last = (SAVE_EVERY + 1 + span * part // kills for part in (number, number + 1))
        every.append(max(left_at + 1, draws.randint(first, last)))
        left_at = killed_at(tmp_path, overrides, every[-1])
        # A kill between a step's line and the end of its checkpoint leaves the one before it the newest.
        newest = newest_step(str(tmp_path / "checkpoints"))
        assert newest in (left_at // SAVE_EVERY * SAVE_EVERY, left_at // SAVE_EVERY * SAVE_EVERY - SAVE_EVERY)
    assert newest <= steps - after

    resumed = together(2, overrides)

    assert resumed.code == 0, resumed.output
    assert f"steps {newest + 1} to" in resumed.output
    assert figures(lines_of(tmp_path)) == figures(lines_of(expected)), f"killed at {every}"
    assert final_files(tmp_path, steps) == final_files(expected, steps), f"killed at {every}"
    assert len(lines_of(tmp_path)) == steps, "each step has one line"


@pytest.mark.prove
@pytest.mark.parametrize("hurt", [0, 1])
def test_a_truncated_file_of_one_process_sends_all_to_the_checkpoint_before(
    hurt: int, undisturbed: Undisturbed, corpus: Path, tmp_path: Path
) -> None:
    """Each process reads a share of the files; what one of them finds, all act upon."""
    expected = undisturbed(1)
    run = Path(shutil.copytree(expected, tmp_path / "run"))
    file = run / "checkpoints" / checkpoint.tag_of(STEPS) / checkpoint.rank_file(hurt)
    os.truncate(file, file.stat().st_size - 1)
    resumed = together(2, SMALL | {"data.manifest": corpus, "run.dir": run})
    assert resumed.code == 0, resumed.output
    assert resumed.output.count(f"checkpoint {checkpoint.tag_of(STEPS)} is damaged and passed over: {file}") == 1
    assert f"steps {STEPS - SAVE_EVERY + 1} to {STEPS} of {STEPS}" in resumed.output
    assert figures(lines_of(run)) == figures(lines_of(expected))
    assert final_files(run) == final_files(expected)


@pytest.mark.prove
def test_a_run_with_its_checkpoints_in_an_object_store_survives_kills_and_sigterm(
    undisturbed: Undisturbed, corpus: Path, s3_endpoint: str, tmp_path: Path
) -> None:
    """It saves after each step, so that kills come while it saves; in the end it has the bytes of a run on the disk."""
    boto3.client("s3").create_bucket(Bucket="killed")
    place, expected = "s3://killed/run", undisturbed(1)
    overrides = SMALL | {"data.manifest": corpus, "run.dir": tmp_path, "run.checkpoints": place}
    overrides |= {"run.save_every": 1, "run.keep": 2}
    draws, left_at = random.Random("s3"), 0
    for first, last in ((2, 8), (9, 15), (16, 22)):
        left_at = killed_at(tmp_path, overrides, max(left_at + 1, draws.randint(first, last)))
        newest = newest_step(place)
        # The line comes first. Of the save that the kill cut short, nothing is taken for a checkpoint.
        assert newest in (left_at - 1, left_at)
        assert checkpoint.damage(place, checkpoint.tag_of(newest)) is None
    with processes(2, overrides) as ranks:
        wait_until(lambda: len(lines_of(tmp_path)) > left_at)
        ranks[1].signal(signal.SIGTERM)
        ended = [rank.wait(60) for rank in ranks]
    assert [one.code for one in ended] == [128 + signal.SIGTERM] * 2, ended
    assert f"told to end (SIGTERM): step {newest_step(place)} is saved" in ended[0].output

    resumed = together(2, overrides)

    assert resumed.code == 0, resumed.output
    assert figures(lines_of(tmp_path)) == figures(lines_of(expected))
    record = checkpoint.read_record(place, checkpoint.tag_of(STEPS))
    assert {name: file.sha256 for name, file in record.files.items()} == final_files(expected)
    assert storage.folders(place) == [checkpoint.tag_of(STEPS - 1), checkpoint.tag_of(STEPS)], "what kills left is gone"


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
        pytest.param({"precision.compute": "fp16"}, id="fp16"),
        pytest.param({"precision.compute": "fp16", "batch.micro_size": 3, "zero.stage": 2}, id="fp16-cached-stage2"),
        pytest.param({"precision.compute": "fp16", "zero.stage": 3}, id="fp16-stage3"),
        pytest.param({"precision.compute": "fp16", "zero.stage": 2, "zero.offload": "true"}, id="fp16-offload-stage2"),
        pytest.param(
            {"precision.compute": "fp16", "precision.text_weights": "fp16_stochastic", "optim.ema_decay": 0.9},
            id="fp16-text-average",
        ),
        pytest.param({"precision.compute": "fp16", "model.preset": "tiny"}, id="fp16-resnet"),
        pytest.param({"precision.text_weights": "fp16_stochastic"}, id="fp16-text"),
        pytest.param({"precision.text_weights": "fp16_stochastic", "zero.stage": 3}, id="fp16-text-stage3"),
        pytest.param({"zero.offload": "true"}, id="offload-stage1"),
        pytest.param({"zero.offload": "true", "zero.stage": 2}, id="offload-stage2"),
        pytest.param({"zero.offload": "true", "zero.stage": 3}, id="offload-stage3"),
        pytest.param({"optim.schedule": "constant", "optim.cooldown_steps": 3}, id="constant"),
        pytest.param({"model.preset": "tiny"}, id="resnet"),
        pytest.param({"model.preset": "tiny", "batch.micro_size": 3}, id="resnet-cached"),
        pytest.param({"model.preset": "tiny", "precision.compute": "bf16"}, id="resnet-bf16"),
        pytest.param({"batch.micro_size": 3, "zero.stage": 2}, id="cached-stage2"),
        pytest.param(
            {"batch.micro_size": 1, "zero.stage": 3, "objective.kind": "siglip", "objective.chunk_size": 3},
            id="siglip-cached-stage3",
        ),
        pytest.param({"model.preset": "tiny", "precision.compute": "autocast_bf16"}, id="resnet-autocast_bf16"),
        pytest.param({"run.deterministic": "true", "model.patch_dropout": 0.5}, id="deterministic"),
    ],
)
def test_a_stopped_run_resumes_to_the_bit_in_other_precisions_and_towers(
    change: dict[str, object], short_run: dict[str, object], tmp_path: Path
) -> None:
    """Everything a resume brings back is there: bf16 weights and their masters, batch statistics, the moments."""
    runs = {name: tmp_path / name for name in ("undisturbed", "stopped")}
    in_fp16 = change.get("precision.compute") == "fp16"
    module = INSTRUMENTED if in_fp16 else "trainer"
    for name, stops in (("undisturbed", [6]), ("stopped", [3, 6])):
        for stop in stops:
            overrides = short_run | change | {"run.dir": runs[name], "run.stop_after": stop}
            finished = together(2, overrides, module=module, environment={"FP16_ON_CPU": "1"})
            assert finished.code == 0, finished.output
    lines = {name: lines_of(run) for name, run in runs.items()}
    assert len(lines["stopped"]) == 6
    assert figures(lines["stopped"]) == figures(lines["undisturbed"])
    applied = [line for line in lines["stopped"] if not line["skipped"]]
    assert len(applied) == 6 or (in_fp16 and applied), "a loss scaler skips steps until it has its scale"
    assert lines["stopped"][0].get("loss_scale") == (2**16 if in_fp16 else None)
    assert all(line["gradient_norm"] > 0 for line in applied)
    assert all(math.isfinite(line["loss"]) for line in lines["stopped"])
    assert final_files(runs["stopped"], 6) == final_files(runs["undisturbed"], 6)


def test_a_resumed_run_under_stage_3_survives_a_bad_step(short_run: dict[str, object], tmp_path: Path) -> None:
    """DeepSpeed gathers small weights when a step or a resume is over, and not when a step is skipped: the next one finds them split."""
    runs = {name: tmp_path / name for name in ("undisturbed", "stopped")}
    bad = {"NOT_A_NUMBER": "1:3-3"}
    for name, stops in (("undisturbed", [6]), ("stopped", [2, 6])):
        for stop in stops:
            change = {"zero.stage": 3, "run.dir": runs[name], "run.stop_after": stop}
            finished = together(2, short_run | change, module=INSTRUMENTED, environment=bad)
            assert finished.code == 0, finished.output
    assert [line["skipped"] for line in lines_of(runs["stopped"])] == [0, 0, 0, 1, 0, 0]
    assert figures(lines_of(runs["stopped"])) == figures(lines_of(runs["undisturbed"]))
    assert final_files(runs["stopped"], 6) == final_files(runs["undisturbed"], 6)


@pytest.mark.prove
def test_the_average_of_a_killed_run_is_that_of_an_undisturbed_one(
    alone: Alone, short_run: dict[str, object], tmp_path: Path
) -> None:
    """As exported: the same file, and not that of the weights."""
    base = short_run | {"optim.steps": STEPS, "run.save_every": SAVE_EVERY, "optim.ema_decay": 0.9}
    runs = {name: tmp_path / name for name in ("undisturbed", "killed")}
    assert alone(base | {"run.dir": runs["undisturbed"]}).code == 0
    with processes(1, base | {"run.dir": runs["killed"]}) as (process,):
        wait_until(lambda: len(lines_of(runs["killed"])) >= 2 * SAVE_EVERY + 1)
        process.signal(signal.SIGKILL, group=True)
        assert process.wait().code == -signal.SIGKILL
    finished = alone(base | {"run.dir": runs["killed"]})
    assert finished.code == 0, finished.output
    assert "steps 1 to" not in finished.output, "it resumed"
    averages = {
        name: export(str(run), str(tmp_path / f"{name}.safetensors"), ema=True).weights_sha256
        for name, run in runs.items()
    }
    plain = export(str(runs["killed"]), str(tmp_path / "plain.safetensors")).weights_sha256
    assert averages["killed"] == averages["undisturbed"] != plain


ROWS, TWELVE, LONG = 96, 12, 24
"""A corpus, a batch that 1, 2 and 4 processes divide, and steps that read the corpus three times."""


@pytest.fixture(scope="module")
def as_two(
    write_corpus: WriteCorpus,
    shapes: Callable[[int], list[tuple[str | None, bytes | None]]],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, object], Path]:
    """What a run of LONG steps over ROWS rows is told, and the folder of one of two processes that nobody disturbed."""
    folder = tmp_path_factory.mktemp("as-two")
    write_corpus(folder / "corpus", shapes(ROWS))
    base = SMALL | {"data.manifest": folder / "corpus", "batch.global_size": TWELVE, "optim.steps": LONG}
    finished = together(2, base | {"run.dir": folder / "run"})
    assert finished.code == 0, finished.output
    return base, folder / "run"


@pytest.mark.prove
@pytest.mark.parametrize(
    ("micro_size", "stages"),
    [
        pytest.param(None, (1, 0, 3), id="whole"),
        pytest.param(2, (3, 1, 2), id="cached"),
        pytest.param(5, (0, 2, 1), id="cached-unevenly"),
    ],
)
def test_two_then_one_then_four_processes_train_as_two(
    micro_size: int | None, stages: tuple[int, ...], as_two: tuple[dict[str, object], Path], tmp_path: Path
) -> None:
    """One command with other numbers of processes and ZeRO stages: each sample exactly once an epoch, and the same losses.

    With gradient caching too; the undisturbed run has none.
    """
    base, undisturbed = as_two
    run = tmp_path / "run"
    for count, stage, stop in zip((2, 1, 4), stages, (7, 15, LONG), strict=True):
        overrides = base | in_micro_batches(micro_size) | {"run.dir": run, "zero.stage": stage, "run.stop_after": stop}
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
    assert sorted(samples) == list(range(LONG * TWELVE)), "no sample twice, none left out"
    for epoch in range(LONG * TWELVE // ROWS):
        of_epoch = [row for sample, row in seen if sample // ROWS == epoch]
        assert sorted(of_epoch) == list(range(ROWS))
    ours, theirs = lines_of(run), lines_of(undisturbed)
    assert [line["step"] for line in ours] == list(range(1, LONG + 1))
    worst = max(abs(one["loss"] / other["loss"] - 1) for one, other in zip(ours, theirs, strict=True))
    print(f"losses differ by at most {worst:.1e}")
    assert worst < 1e-3
    masters = [named(folder, LONG) for folder in (run, undisturbed)]
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


@pytest.mark.prove
@pytest.mark.parametrize("kind", ["clip", "siglip"])
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
    with torch.device("meta"):
        of_length = training_flops_of_length(models.build("tiny-vit", image_size=32, context_length=16, vocab_size=600))
    spent = [line["mfu"] * 1e12 * 2 / line["samples_per_second"] for line in lines]
    assert of_length(3) <= min(spent) < max(spent) <= 1.000001 * of_length(16), (
        "operations of a pair, by the lengths of texts"
    )


def test_a_damaged_copy_of_the_vocabulary_is_made_anew(
    trained: Path, corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Trained again, or copied again from the file that the run was started with; from no other file."""
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    copy, given, other = run / "vocabulary", tmp_path / "given.json", tmp_path / "other.json"
    whole = copy.read_bytes()
    given.write_bytes(whole)
    train_vocabulary(["a text, a text"], 600, str(other))

    def provide(tokenizer: str) -> None:
        lines = [f"data.manifest={corpus}", f"run.dir={run}", f"tokenizer={tokenizer}"]
        config = resolve(load_config(TrainConfig, SMOKE, lines))
        train._provide_vocabulary(config, ShardCorpus(str(corpus), manifests.load(str(corpus))), str(copy))

    for tokenizer in ("{kind='bpe', train_size=600}", f"{{kind='bpe', vocab='{given}'}}"):
        for found in (whole[:50], other.read_bytes()):
            copy.write_bytes(found)
            provide(tokenizer)
            assert copy.read_bytes() == whole
            assert f"{copy} is not the vocabulary that the run was started with" in caplog.text
            caplog.clear()
        provide(tokenizer)
        assert caplog.text == ""
    with pytest.raises(InputError, match=r"tokenizer\.vocab: .*other\.json' differs from the vocabulary that"):
        provide(f"{{kind='bpe', vocab='{other}'}}")
    assert copy.read_bytes() == whole


def test_what_is_no_vocabulary_is_not_copied(corpus: Path, tmp_path: Path) -> None:
    for size in (10, 65 << 20):
        given, copy = tmp_path / "given", tmp_path / "vocabulary"
        with given.open("wb") as file:
            file.truncate(size)
        lines = [f"data.manifest={corpus}", f"run.dir={tmp_path}", f"tokenizer={{kind='bpe', vocab='{given}'}}"]
        config = resolve(load_config(TrainConfig, SMOKE, lines))
        with pytest.raises(InputError, match=r"given: (not a vocabulary|68,157,440 bytes, more than the 67,108,864)"):
            train._provide_vocabulary(config, ShardCorpus(str(corpus), manifests.load(str(corpus))), str(copy))
        assert not copy.exists()


def test_a_run_that_asks_for_an_order_of_sums_gets_it_from_attention_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under `warn_only` the backward pass of fused attention stays as it is, on GPUs; only "error" changes it."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.get_deterministic_debug_mode()
    try:
        train._sum_in_order()
        assert torch.get_deterministic_debug_mode() == 2
    finally:
        torch.set_deterministic_debug_mode(before)
