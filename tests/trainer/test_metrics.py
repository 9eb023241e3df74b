"""What a run notes: one line for each step, whatever was taken back or cut short, and no number that JSON does not have."""

import json
import math
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing import event_accumulator

from pipeline.contracts.errors import RunError
from trainer.batch_plan import BatchPlan
from trainer.checkpoint import Position
from trainer.data.loader import Batch, Replacement
from trainer.metrics import Reporter

PLAN = BatchPlan(rows=100, world_size=2, global_size=10, per_device=5, total_steps=8, warmup_steps=0)


def reporter(run: Path, at: Position, *, rank: int = 0, share: float | None = None) -> Reporter:
    """share: of a device's peak, for each position of a text."""
    flops_share = None if share is None else lambda length: share * length
    return Reporter(str(run), PLAN, rank=rank, first=at, last_step=8, log_every=1, flops_share=flops_share)


def batch(at: Position) -> Batch:
    """Of five pairs, one of which stands in for another."""
    ids = torch.zeros(5, 77, dtype=torch.int64)
    numbers = torch.arange(5)
    swap = Replacement(at.batch * 10, 3, 4, "no picture")
    return Batch(torch.zeros(5, 3, 1, 1, dtype=torch.uint8), ids, numbers, numbers, [swap])


def take(report: Reporter, at: Position, *, bad: bool = False) -> Position:
    report.took(batch(at))
    report.computed({16: 5})
    report.waited(0.0)
    at = at.after(bad=bad)
    report.step(applied=not bad, replaced=2)
    nothing = math.nan if bad else 1.5
    norm = math.inf if bad else 2.0
    report.write(at, loss=nothing, learning_rate=1e-3, logit_scale=14.0, gradient_norm=norm, loss_scale=None)
    return at


def lines(path: Path) -> list[dict[str, float | None]]:
    def refuse(word: str) -> float:
        raise AssertionError(f"{word} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_each_step_has_one_line_after_going_back_and_resuming(tmp_path: Path) -> None:
    at = Position()
    with reporter(tmp_path, at) as report:
        for bad in (False, False, True, True):
            at = take(report, at, bad=bad)
        at = Position(step=2, shift=2)
        report.start_from(at)
        for _ in range(3):
            at = take(report, at)
    found = lines(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in found] == [1, 2, 3, 4, 5]
    assert [line["epoch"] for line in found] == [0.1, 0.2, 0.5, 0.6, 0.7], "of the data that was read"
    assert all(line["samples"] == 10 * line["step"] and line["replaced"] == 2 for line in found if line["step"])
    replaced = tmp_path / "replaced" / "rank-00000.jsonl"
    assert [line["sample"] for line in lines(replaced)] == [0, 10, 20, 30, 40, 50, 60], (
        "rows of bad batches were replaced too"
    )
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # a kill cuts the last line short
    (tmp_path / "replaced" / "rank-00003.jsonl").write_text(
        '{"sample": 5}\n{"sample": 60}\n'
    )  # there were four processes once
    for rank in (0, 1):
        with reporter(tmp_path, Position(step=4, shift=2), rank=rank):
            pass
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
    assert [line["sample"] for line in lines(replaced)] == [0, 10, 20, 30, 40, 50]
    assert [line["sample"] for line in lines(tmp_path / "replaced" / "rank-00003.jsonl")] == [5]


def test_lines_that_a_power_cut_broke_are_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    metrics, replaced = tmp_path / "metrics.jsonl", tmp_path / "replaced" / "rank-00000.jsonl"
    replaced.parent.mkdir()
    metrics.write_bytes(
        b'{"step": 1}\n\0\0\0\0\0\n\xff\xfe{\n{"step": null}\n[]\n{"other": 3}\n{"step": Infinity}\n'
        + b"[" * 100_000
        + b'\n{"step": 2}\n{"step": 3}\n'
    )
    replaced.write_bytes(b'\0\0\0\n{"sample": 4}\n{"sa')
    with reporter(tmp_path, Position(step=2)):
        pass
    assert metrics.read_text() == '{"step": 1}\n{"step": 2}\n'
    assert replaced.read_text() == '{"sample": 4}\n'
    assert f"{metrics}: 7 of its lines are broken and dropped" in caplog.text
    assert f"{replaced}: 1 of its lines are broken and dropped" in caplog.text


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    """Also after what could not be written: closing the file must not try it again."""

    def run() -> None:
        with reporter(tmp_path, Position()) as report:
            (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
            take(report, Position())

    with pytest.raises(RunError, match=r"metrics.jsonl: cannot write \(No space left on device\); check the disk"):
        run()


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    at = Position()
    with reporter(tmp_path, at) as report:
        for _ in range(3):
            at = take(report, at)
    with reporter(tmp_path, Position(step=2)) as report:  # step 3 is done again
        take(report, Position(step=2))
    read = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(scalar.step, scalar.value) for scalar in read.Scalars("train/loss")] == [(1, 1.5), (2, 1.5), (3, 1.5)]


def test_evaluations_have_lines_of_their_own_and_their_time_is_not_the_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that a step moves by an eighth of a second, and an evaluation by half a one."""
    now = 0.0
    monkeypatch.setattr("trainer.metrics.time.perf_counter", lambda: now)
    at = Position()
    line = {"held": {"image_to_text_r1": 0.5, "zeroshot_top1": None}, "held_seconds": 0.5}
    with reporter(tmp_path, at) as report:
        for _ in range(4):
            now += 0.125
            at = take(report, at)
            now += 0.5 if at.step < 3 else 0
            report.held(at.step, line, "in words", 0.5 if at.step < 3 else 0)
        report.start_from(Position(step=2, shift=2))
        now += 0.125
        take(report, Position(step=2, shift=2))
    found = lines(tmp_path / "metrics.jsonl")
    assert [(one["step"], "held" in one) for one in found] == [(1, False), (1, True), (2, False), (2, True), (3, False)]
    assert found[1] == {"step": 1, **line}
    assert [one["seconds"] for one in found if "held" not in one] == [0.125] * 3
    read = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert [event.step for event in read.Scalars("held/image_to_text_r1")] == [1, 2]
    assert "held/zeroshot_top1" not in read.Tags()["scalars"]


def test_a_bad_step_is_null_and_counted(tmp_path: Path) -> None:
    with reporter(tmp_path, Position()) as report:
        take(report, Position(), bad=True)
    (line,) = lines(tmp_path / "metrics.jsonl")
    assert (line["loss"], line["gradient_norm"], line["skipped"]) == (None, None, 1)


@pytest.mark.parametrize("share", [None, 1e-6])
def test_utilisation_is_a_share_of_one_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float | None
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")  # beside a GPU too, the memory is that of a process
    with reporter(tmp_path, Position(), share=share) as report:
        take(report, Position())
    (line,) = lines(tmp_path / "metrics.jsonl")
    assert line["memory_gib"] is not None
    assert line["memory_gib"] > 0.01
    if share is None:
        assert "mfu" not in line
    else:
        assert line["mfu"] == pytest.approx(16e-6 * (line["samples_per_second"] or 0) / 2)


def test_utilisation_is_of_texts_as_long_as_they_were_computed(tmp_path: Path) -> None:
    with Reporter(
        str(tmp_path),
        PLAN,
        rank=0,
        first=Position(),
        last_step=8,
        log_every=2,
        flops_share=lambda length: 1e-6 * length,
    ) as report:
        for texts in ({16: 3, 64: 1}, {32: 20}):  # 28 places and 32; gradient caching computes texts twice
            report.computed(texts)
            report.step(applied=True, replaced=0)
        report.write(
            Position(step=2), loss=1.0, learning_rate=1e-3, logit_scale=14.0, gradient_norm=2.0, loss_scale=None
        )
    (line,) = lines(tmp_path / "metrics.jsonl")
    assert line["mfu"] == pytest.approx(30e-6 * (line["samples_per_second"] or 0) / 2)


def test_an_evaluation_is_known_to_be_done_while_its_line_is_there(tmp_path: Path) -> None:
    """So that a run which ended between a step and its evaluation does it then, and no other does it twice."""
    metrics, figures = tmp_path / "metrics.jsonl", {"held": {"image_to_text_r1": 0.5}}
    with reporter(tmp_path, Position()) as report:
        at = take(report, Position())
        assert not report.scored(1)
        report.held(1, figures, "half", 0.0)
        assert report.scored(1)
        at = take(report, at)
        assert not report.scored(2)
    with reporter(tmp_path, Position(step=1)) as report:
        assert report.scored(1), "step 2 was taken back"
        assert not report.scored(0)
    metrics.write_bytes(metrics.read_bytes()[:-2])
    with reporter(tmp_path, Position(step=1)) as report:
        assert not report.scored(1), "a kill cut the line short"
        report.held(1, figures, "half", 0.0)
    assert [line["step"] for line in lines(metrics)] == [1, 1]
