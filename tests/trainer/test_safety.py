"""What a run must survive, or end of with one sentence: losses that are no numbers, SIGTERM, a full disk, processes that are lost."""

import contextlib
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import boto3
import psutil
import pytest
import torch

from pipeline.contracts import manifest as manifests
from pipeline.contracts.config import load_config
from tests.conftest import s3_environment, s3_running
from tests.ports import free_port
from tests.trainer import launching
from tests.trainer.conftest import WriteCorpus
from tests.trainer.launching import (
    INSTRUMENTED,
    SMOKE,
    Alone,
    Finished,
    Launch,
    alone_module,
    errors_of,
    processes,
    together,
    wait_until,
)
from trainer import checkpoint, models
from trainer.config import TrainConfig, settled
from trainer.data import loader
from trainer.data.shards import ShardCorpus
from trainer.data.transforms import normalise
from trainer.objectives.clip import contrastive_loss
from trainer.optim import HalfAdamW, cosine_with_warmup, parameter_groups

pytestmark = pytest.mark.timeout(600)

ENDINGS = "tests.trainer.endings"
ENDLESS = {"optim.steps": 100_000, "run.save_every": 100_000}
MINUTE = 60.0


def steps_done(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def lines_of(run: Path) -> list[dict[str, float | None]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_sigterm_that_came_while_it_was_held_is_kept_and_what_starts_later_does_not_hear_it_either() -> None:
    """In a thread, as in a worker of Ray's, which inherits that it is held."""
    program = (
        "import os, signal, threading\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\n"
        "from trainer import safety\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "def run():\n"
        " safety.hold_sigterm()\n"
        " print(safety.sigterm_came(), signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ()))\n"
        "thread = threading.Thread(target=run); thread.start(); thread.join()"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=False)
    assert (ended.returncode, ended.stdout) == (0, "True True\n"), ended.stderr


# ---- losses that are no numbers

BAD_BATCHES = {2, 5, 6, 7}
"""The third one alone; then three in a row, after which the run goes back."""


@pytest.mark.parametrize(
    ("stage", "micro_size", "what"),
    [
        (1, None, "NOT_A_NUMBER"),
        *(pytest.param(stage, None, "NOT_A_NUMBER", marks=pytest.mark.prove) for stage in (0, 2, 3)),
        *(pytest.param(stage, None, "NOT_A_GRADIENT", marks=pytest.mark.prove) for stage in (0, 1, 2, 3)),
        *(pytest.param(stage, 3, "NOT_A_NUMBER", marks=pytest.mark.prove) for stage in (0, 2)),
        *(pytest.param(stage, 3, "NOT_A_GRADIENT", marks=pytest.mark.prove) for stage in (1, 3)),
    ],
)
def test_what_is_no_number_on_one_process_changes_no_weight_on_any(
    stage: int, micro_size: int | None, what: str, short_run: dict[str, object], corpus: Path, tmp_path: Path
) -> None:
    """A loss, or a gradient behind a good loss: one is skipped by both; after three the run goes back, and on with the next data."""
    change = {"zero.stage": stage, "optim.steps": 10, "run.save_every": 1, "run.keep": 9, "run.max_bad_steps": 3}
    change |= {} if micro_size is None else {"batch.micro_size": micro_size}
    run, notes = tmp_path / "run", tmp_path / "notes"
    environment = {what: "1:2-2,5-7", "NOTE_SAMPLES": str(notes)}
    finished = together(2, short_run | change | {"run.dir": run}, module=INSTRUMENTED, environment=environment)
    assert finished.code == 0, finished.output
    said = "steps 6 to 8: a loss or gradient was not finite in all 3 of them; the run goes back to step-00000005"
    assert finished.output.count(said) == 1

    lines = lines_of(run)
    assert [line["step"] for line in lines] == list(range(1, 11))
    assert [line["step"] for line in lines if line["skipped"]] == [3]
    assert [line["step"] for line in lines if line["loss"] is None] == ([3] if what == "NOT_A_NUMBER" else [])
    assert [line["step"] for line in lines if line["gradient_norm"] is None] == [3]
    for rank in (0, 1):
        taken = [json.loads(line)["batch"] for line in (notes / f"rank-{rank}.jsonl").read_text().splitlines()]
        assert taken == list(range(13)), "each batch once: what was taken back is not read again"
    place = str(run / "checkpoints")
    record = checkpoint.read_record(place, checkpoint.tag_of(10))
    assert (record.position.shift, record.position.bad_steps) == (3, 0)
    assert record.samples_seen == 13 * 8, "those of the steps that were taken back were seen too"
    assert checkpoint.tag_of(3) not in checkpoint.complete_tags(place), "amid bad steps there is nothing new to save"

    ours = checkpoint.named_weights(place, checkpoint.tag_of(10), record)
    steps = [step for step in range(10) if step != 2]
    first, theirs = trained_by_hand(run, steps, [batch for batch in range(13) if batch not in BAD_BATCHES])
    assert ours.keys() == theirs.keys()
    assert distance(ours, theirs) < 0.01 * distance(first, theirs)
    _, wrong = trained_by_hand(run, range(10), [batch for batch in range(13) if batch not in BAD_BATCHES - {2}])
    assert distance(wrong, theirs) > 0.1 * distance(first, theirs), "one update too many would have been seen"


def distance(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float((ours[name] - value).square().sum()) for name, value in theirs.items()))


def trained_by_hand(
    run: Path, steps: Iterable[int], batches: Iterable[int]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The weights before and after these steps on these batches: one process, plain PyTorch, no ZeRO."""
    config = load_config(TrainConfig, str(run / "config.toml"))
    use, place = settled(config), config.data.manifest
    assert place is not None
    vocabulary = json.loads((run / "vocabulary").read_text())
    torch.manual_seed(config.run.seed)
    model = models.build(
        config.model.preset,
        vocab_size=514 + len(vocabulary["merges"]),
        context_length=use.context_length,
        image_size=use.image_size,
    )
    groups = parameter_groups(model, config.optim.weight_decay)
    optimizer = HalfAdamW(groups, lr=use.lr, betas=use.betas, eps=use.eps, seed=config.run.seed)
    plan = loader.LoaderPlan(
        corpus=ShardCorpus(place, manifests.load(place)),
        tokenizer_kind=config.tokenizer.kind,
        vocabulary=str(run / "vocabulary"),
        context_length=use.context_length,
        image_size=use.image_size,
        augmentation=config.augmentation,
        seed=config.run.seed,
        window_row_groups=config.data.window_row_groups,
        global_size=config.batch.global_size,
        rank=0,
        world_size=1,
        workers=0,
        prefetch=1,
        cache_bytes=1 << 20,
        read_ahead=0,
    )
    first = {name: value.clone() for name, value in model.state_dict().items()}
    for step, number in zip(steps, batches, strict=True):
        (batch,) = loader.batches(plan, number, number + 1)
        loss = contrastive_loss(*model(normalise(batch.pixels), batch.ids))
        loss.backward()  # type: ignore[no-untyped-call]
        for group in optimizer.param_groups:
            group["lr"] = cosine_with_warmup(step, base_lr=use.lr, warmup_steps=2, total_steps=10)
        optimizer.step()
        optimizer.zero_grad()
    return first, model.state_dict()


@pytest.mark.parametrize("micro_size", [2, pytest.param(4, marks=pytest.mark.prove)])
def test_a_skipped_step_leaves_batch_statistics_as_they_were(
    micro_size: int, short_run: dict[str, object], tmp_path: Path
) -> None:
    """Pixels that are no numbers where statistics are exported from; then a loss that is none, on the other process, with a good gradient.

    Of six steps four are applied, and each moves the statistics once for each micro-batch.
    """
    change = {"model.preset": "tiny", "batch.micro_size": micro_size, "run.dir": tmp_path}
    environment = {"NOT_A_NUMBER": "0:1-1", "NOT_A_LOSS": "1:3-3"}
    finished = together(2, short_run | change, module=INSTRUMENTED, environment=environment)
    assert finished.code == 0, finished.output
    assert [line["step"] for line in lines_of(tmp_path) if line["skipped"]] == [2, 4]
    place = str(tmp_path / "checkpoints")
    record = checkpoint.read_record(place, checkpoint.tag_of(6))
    weights = checkpoint.named_weights(place, checkpoint.tag_of(6), record)
    counts = {int(value) for name, value in weights.items() if name.endswith("num_batches_tracked")}
    assert counts == {4 * (4 // micro_size)}
    assert all(bool(value.isfinite().all()) for value in weights.values())


@pytest.mark.prove
def test_going_back_is_the_same_after_a_kill(short_run: dict[str, object], tmp_path: Path) -> None:
    """A run that went back and was stopped later goes on with the data that it had reached, to the bit."""
    change = {"optim.steps": 10, "run.save_every": 1, "run.keep": 9, "run.max_bad_steps": 3}
    environment = {"NOT_A_NUMBER": "1:2-2,5-7"}
    for name, stops in (("undisturbed", [10]), ("stopped", [7, 10])):
        for stop in stops:
            overrides = short_run | change | {"run.dir": tmp_path / name, "run.stop_after": stop}
            finished = together(2, overrides, module=INSTRUMENTED, environment=environment)
            assert finished.code == 0, finished.output
    records = [
        checkpoint.read_record(str(tmp_path / name / "checkpoints"), checkpoint.tag_of(10))
        for name in ("undisturbed", "stopped")
    ]
    assert records[0] == records[1]


@pytest.mark.prove
def test_a_run_that_always_fails_goes_back_further_each_time_and_ends(
    short_run: dict[str, object], tmp_path: Path
) -> None:
    change = {"optim.steps": 10, "run.save_every": 1, "run.max_bad_steps": 2}
    environment = {"NOT_A_NUMBER": "1:4-99"}
    overrides = short_run | change | {"run.dir": tmp_path}
    finished = together(2, overrides, module=INSTRUMENTED, environment=environment)
    assert finished.code == 1
    for tag in ("step-00000004", "step-00000003", "step-00000002"):
        assert f"the run goes back to {tag}" in finished.output
    errors = errors_of(finished.output)
    assert len(errors) == 1, finished.output
    assert "there is no earlier good checkpoint to go back to; lower optim.lr" in errors[0]
    assert checkpoint.complete_tags(str(tmp_path / "checkpoints")) == ["step-00000002"]


# ---- SIGTERM


def test_sigterm_on_one_process_saves_and_ends_all(short_run: dict[str, object], tmp_path: Path) -> None:
    """Its workers get the signal too, as under Slurm, and before it: they prepare batches all the same."""
    overrides = short_run | ENDLESS | {"run.dir": tmp_path, "data.workers": 1}
    with processes(2, overrides) as (first, second):
        wait_until(lambda: steps_done(tmp_path) >= 3)
        for child in second.children():
            child.terminate()
        far = steps_done(tmp_path) + 6  # beyond what was read ahead
        wait_until(lambda: steps_done(tmp_path) >= far)
        second.signal(signal.SIGTERM, group=True)
        ended = [first.wait(60), second.wait(60)]
    assert [one.code for one in ended] == [128 + signal.SIGTERM] * 2, ended
    place = str(tmp_path / "checkpoints")
    (tag,) = checkpoint.complete_tags(place)
    step = checkpoint.step_of(tag)
    assert checkpoint.damage(place, tag) is None
    said = f"told to end (SIGTERM): step {step} is saved; the same command again goes on from there"
    assert "".join(one.output for one in ended).count(said) == 1
    assert steps_done(tmp_path) == step


@pytest.mark.prove
def test_sigterm_to_a_whole_job_under_the_launcher(
    launch: Launch, short_run: dict[str, object], tmp_path: Path
) -> None:
    """DeepSpeed's launcher hands it on and waits; by itself it ends with 1 then."""
    overrides = short_run | ENDLESS | {"run.dir": tmp_path, "data.workers": 1}
    finished = launch(2, overrides, end_when=lambda: steps_done(tmp_path) >= 3)
    (tag,) = checkpoint.complete_tags(str(tmp_path / "checkpoints"))
    assert f"told to end (SIGTERM): step {checkpoint.step_of(tag)} is saved" in finished.output
    assert "error:" not in finished.output
    assert "Traceback" not in finished.output


def test_only_a_sigterm_that_comes_while_it_waits_ends_a_process_without_a_word() -> None:
    """One that came before has nothing to do with the error that it is about to say."""
    assert alone_module(ENDINGS, "steps_aside_twice") == Finished(1, "has something to say\n")


def test_a_process_that_ends_while_its_heart_beats_ends_well() -> None:
    """Python would end a thread that comes back from the store's C++ code by aborting the process."""
    port = free_port()
    with slow_way_to(port) as slow:
        finished = alone_module(ENDINGS, "stopped_amid_a_beat", str(port), str(slow))
    assert finished.code == 0, finished.output


@contextlib.contextmanager
def slow_way_to(port: int) -> Iterator[int]:
    """A port of this machine that leads to another, where every answer takes 30 ms longer."""

    def pump(source: socket.socket, sink: socket.socket, delay: float) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                time.sleep(delay)
                sink.sendall(data)

    def serve() -> None:
        with contextlib.suppress(OSError):  # closed: the test is over
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", port))
                ends.extend((near, far))
                for pair in ((near, far, 0.0), (far, near, 0.03)):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

    ends: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield int(listener.getsockname()[1])
    for end in ends:
        end.close()


@pytest.mark.parametrize(("change", "code"), [({}, 0), ({"zero.stage": 7}, 2)], ids=["done", "refused"])
def test_a_process_ends_before_its_interpreter_does(
    change: dict[str, object], code: int, short_run: dict[str, object], tmp_path: Path
) -> None:
    """What is still there when Python's interpreter ends, a thread of C++ above all, can abort it; the exit code of the run stays."""
    told = short_run | {"run.dir": tmp_path, "run.stop_after": 1} | change
    finished = together(1, told, module=INSTRUMENTED, environment={"LATE": "1"})
    assert finished.code == code, finished.output
    assert finished.output.endswith("what libraries want at the end is done\n")


# ---- a full disk


@pytest.mark.parametrize(
    ("ranks_without_room", "file"),
    [((0, 1), "rank-00000"), pytest.param((1,), "rank-00001", marks=pytest.mark.prove)],
)
def test_a_full_disk_costs_no_checkpoint(
    ranks_without_room: tuple[int, ...], file: str, trained: Path, short_run: dict[str, object], tmp_path: Path
) -> None:
    """A process that may write no file of more than 200 kB gets the error that a full disk gives."""
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    place = run / "checkpoints"
    for tag in ("step-00000006", "step-00000004"):
        shutil.rmtree(place / tag)
    limits = dict.fromkeys(ranks_without_room, 200_000)
    with processes(2, short_run | {"run.dir": run}, largest_files=limits) as ranks:
        ended = [rank.wait() for rank in ranks]
    assert [one.code for one in ended] == [1, 1]
    assert "steps 3 to 6 of 6" in ended[0].output
    errors = errors_of("".join(one.output for one in ended))
    assert len(errors) == 1, ended
    assert errors[0].startswith("error: step-00000004 was not saved, earlier checkpoints are untouched: ")
    assert f"{file}.safetensors: cannot write (File too large); raise the limit of a file's size" in errors[0]
    assert "Traceback" not in "".join(one.output for one in ended)
    assert checkpoint.complete_tags(str(place)) == ["step-00000002"]
    assert checkpoint.damage(str(place), "step-00000002") is None
    assert not list(run.rglob(".tmp-*")), "what was begun is removed"


SMALL_DISK = """
mount -t tmpfs -o size=$SIZE none "$PLACE" && cp -r "$BEFORE"/. "$PLACE" || exit 99
(
    until [ "$(cat "$PLACE"/metrics.jsonl | wc -l)" -ge "$FULL_AFTER" ]; do sleep 0.02; done
    cat /dev/zero > "$PLACE"/filler
) 2> /dev/null &
"$@"
code=$?
kill $! 2> /dev/null
rm -f "$PLACE"/filler
cp -r "$PLACE"/. "$AFTER"
exit $code
"""
"""Run a command with a disk of SIZE bytes at PLACE that only it sees and that is gone with it; nothing fits on that disk any more once
metrics.jsonl has FULL_AFTER lines. What was on it before and after is in BEFORE and AFTER."""


@pytest.fixture
def small_disk(tmp_path: Path) -> Callable[..., list[str]]:
    """The command for `launching.alone(inside=…)` that gives a run such a disk."""
    command = ["unshare", "--map-root-user", "--mount"]
    try:
        may_mount = (
            subprocess.run([*command, "mount", "-t", "tmpfs", "none", str(tmp_path)], check=False).returncode == 0
        )
    except FileNotFoundError:
        may_mount = False
    if not may_mount:
        pytest.skip("no file system may be mounted here, not even for this test alone")

    def inside(size: int, full_after: int, **folders: Path) -> list[str]:
        for folder in folders.values():
            folder.mkdir(exist_ok=True)
        places = [f"{name}={folder}" for name, folder in folders.items()]
        return ["env", f"SIZE={size}", f"FULL_AFTER={full_after}", *places, *command, "sh", "-c", SMALL_DISK, "sh"]

    return inside


@pytest.mark.prove
def test_a_save_on_a_disk_that_is_really_full_costs_no_checkpoint(
    alone: Alone, small_disk: Callable[..., list[str]], trained: Path, short_run: dict[str, object], tmp_path: Path
) -> None:
    """With room for half a checkpoint more; when there is room the run goes on, to the bit."""
    before, place, after = (tmp_path / name for name in ("before", "place", "after"))
    shutil.copytree(trained, before)
    for tag in ("step-00000006", "step-00000004"):
        shutil.rmtree(before / "checkpoints" / tag)
    half = sum(file.stat().st_size for file in (before / "checkpoints").rglob("*.safetensors")) // 2
    finished = launching.alone(
        short_run | {"run.dir": place}, inside=small_disk(3 * half, 99, BEFORE=before, PLACE=place, AFTER=after)
    )
    assert finished.code == 1, finished.output
    errors = errors_of(finished.output)
    assert len(errors) == 1, finished.output
    assert errors[0].startswith("error: step-00000004 was not saved, earlier checkpoints are untouched: ")
    assert "cannot write (No space left on device); check the disk" in errors[0]
    assert "Traceback" not in finished.output
    assert checkpoint.complete_tags(str(after / "checkpoints")) == ["step-00000002"]
    assert not list(after.rglob(".tmp-*")), "what was begun is removed"
    assert_goes_on_as(trained, after, alone(short_run | {"run.dir": after}))


@pytest.mark.prove
def test_metrics_on_a_disk_that_is_really_full_end_the_run_with_a_sentence(
    alone: Alone, small_disk: Callable[..., list[str]], short_run: dict[str, object], tmp_path: Path
) -> None:
    """What could not be written of them is written again when the run goes on from its checkpoint."""
    before, place, after, undisturbed = (tmp_path / name for name in ("before", "place", "after", "undisturbed"))
    overrides = short_run | {"optim.steps": 100, "run.save_every": 50, "run.keep": 1}
    finished = launching.alone(
        overrides | {"run.dir": place}, inside=small_disk(100 << 20, 52, BEFORE=before, PLACE=place, AFTER=after)
    )
    assert finished.code == 1, finished.output
    errors = errors_of(finished.output)
    assert len(errors) == 1, finished.output
    assert re.search(
        r"(metrics\.jsonl|tensorboard/[^:]*): cannot write \(No space left on device\); check the disk", errors[0]
    )
    assert "Traceback" not in finished.output
    assert checkpoint.complete_tags(str(after / "checkpoints")) == ["step-00000050"]
    assert alone(overrides | {"run.dir": undisturbed}).code == 0
    assert_goes_on_as(undisturbed, after, alone(overrides | {"run.dir": after}))


def assert_goes_on_as(expected: Path, run: Path, resumed: Finished) -> None:
    assert resumed.code == 0, resumed.output
    tags = [checkpoint.complete_tags(str(folder / "checkpoints"))[0] for folder in (run, expected)]
    assert tags[0] == tags[1]
    records = [checkpoint.read_record(str(folder / "checkpoints"), tags[0]) for folder in (run, expected)]
    assert records[0].files == records[1].files
    losses = [[(line["step"], line["loss"]) for line in lines_of(folder)] for folder in (run, expected)]
    assert losses[0] == losses[1]


@pytest.mark.prove
def test_a_store_that_goes_away_costs_no_checkpoint(short_run: dict[str, object], tmp_path: Path) -> None:
    """Both say nothing but one sentence, and soon: no process waits for the other."""
    with s3_running() as (url, server):
        reached = s3_environment(url)
        with pytest.MonkeyPatch.context() as patch:
            for key, value in reached.items():
                patch.setenv(key, value)
            boto3.client("s3").create_bucket(Bucket="lost")
        change = {"optim.steps": 100_000, "run.save_every": 20, "run.dir": tmp_path, "run.checkpoints": "s3://lost/run"}
        with processes(2, short_run | change, environment=reached) as ranks:
            wait_until(lambda: steps_done(tmp_path) >= 25)
            before = time.monotonic()
            server.kill()
            ended = [rank.wait(3 * MINUTE) for rank in ranks]
    print(f"ended after {time.monotonic() - before:.0f} s")
    assert [one.code for one in ended] == [1, 1], ended
    errors = errors_of("".join(one.output for one in ended))
    assert len(errors) == 1, ended
    assert re.match(r"error: step-\d+ was not saved, earlier checkpoints are untouched: s3://lost/run/", errors[0])
    assert "Traceback" not in "".join(one.output for one in ended)


# ---- processes that are lost


def lose(count: int, lost: int, how: int, overrides: dict[str, object], run: Path) -> float:
    """Lose one process of a run that is under way; the others must say which. Returns the seconds until the last has ended."""
    with processes(count, overrides | ENDLESS | {"run.dir": run}) as ranks:
        wait_until(lambda: steps_done(run) >= 3)
        before = time.monotonic()
        ranks[lost].signal(how)
        for rank, process in enumerate(ranks):
            if rank == lost:
                continue
            ended = process.wait(2 * MINUTE)
            assert ended.code == 1, ended.output
            errors = errors_of(ended.output)
            assert len(errors) == 1, ended.output
            assert errors[0].startswith(f"error: process {lost} ("), ended.output
            assert "is lost: nothing was heard of it for" in errors[0]
            assert "start the same command again" in errors[0]
            assert "Traceback" not in ended.output
        return time.monotonic() - before


@pytest.mark.parametrize(
    ("count", "lost", "how"),
    [
        pytest.param(2, 1, signal.SIGKILL, id="killed"),
        pytest.param(2, 0, signal.SIGKILL, id="first-killed", marks=pytest.mark.prove),
        pytest.param(3, 1, signal.SIGKILL, id="one-of-three-killed", marks=pytest.mark.prove),
        pytest.param(2, 1, signal.SIGSTOP, id="stopped", marks=pytest.mark.prove),
        pytest.param(3, 0, signal.SIGSTOP, id="first-of-three-stopped", marks=pytest.mark.prove),
    ],
)
def test_a_lost_process_ends_the_others_within_a_minute(
    count: int, lost: int, how: int, short_run: dict[str, object], tmp_path: Path
) -> None:
    seconds = lose(count, lost, how, short_run | {"batch.global_size": 6}, tmp_path)
    print(f"the others ended after {seconds:.0f} s")
    assert seconds < MINUTE


@pytest.mark.prove
def test_under_the_launcher_too_the_lost_process_is_named(
    launch: Launch, short_run: dict[str, object], tmp_path: Path
) -> None:
    """The launcher ends the others as soon as one has gone; they say which one before they go."""

    lost: list[int] = []

    def lose_one() -> bool:
        if not lost and steps_done(tmp_path) >= 3:
            lost.extend(pid for pid, rank in ranks_of(tmp_path) if rank == "1")
            os.kill(lost[0], signal.SIGKILL)
        return False

    before = time.monotonic()
    finished = launch(2, short_run | ENDLESS | {"run.dir": tmp_path}, kill_when=lose_one)
    assert time.monotonic() - before < 2 * MINUTE
    assert finished.code != 0
    errors = errors_of(finished.output)
    assert len(errors) == 1, finished.output
    assert errors[0].startswith("error: process 1 (")


def ranks_of(run: Path) -> Iterator[tuple[int, str]]:
    """The processes of this machine that train into `run`: their numbers and ranks."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
            environment = (folder / "environ").read_bytes().decode().split("\0")
        except OSError:
            continue
        rank = next((entry.removeprefix("RANK=") for entry in environment if entry.startswith("RANK=")), None)
        if f"run.dir={run}" in words and "--config" in words and rank is not None and SMOKE in words:
            yield int(folder.name), rank


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGHUP])
def test_workers_end_with_their_run(how: int, short_run: dict[str, object], tmp_path: Path) -> None:
    """Or a closed terminal, or a kernel that wants memory, would leave them on the node, and whoever reads their output would wait."""
    with processes(1, short_run | ENDLESS | {"data.workers": 2, "run.dir": tmp_path}) as (process,):
        wait_until(lambda: steps_done(tmp_path) >= 3)
        children = process.children()
        assert len(children) >= 3  # the fork server, and two workers
        process.signal(how)
        _, alive = psutil.wait_procs(children, timeout=MINUTE)
        assert not alive


def test_an_error_in_a_batch_that_was_read_ahead_costs_no_step(short_run: dict[str, object], tmp_path: Path) -> None:
    """Batch 4 is read while batch 3 is at work: the step of that one is applied, noted and saved first."""
    run = tmp_path / "run"
    overrides = short_run | {"run.dir": run, "run.log_every": 1}
    finished = together(1, overrides, module=INSTRUMENTED, environment={"WRONG_INPUT": "0:4-4"})
    assert finished.code == 2, finished.output
    assert errors_of(finished.output) == ["error: batch 4 of process 0 is wrong; that is what the test wants"]
    assert [line["step"] for line in lines_of(run)] == [1, 2, 3, 4]
    assert checkpoint.complete_tags(str(run / "checkpoints")) == ["step-00000004", "step-00000002"]


def test_an_error_that_a_worker_found_ends_the_run(
    write_corpus: WriteCorpus, short_run: dict[str, object], tmp_path: Path
) -> None:
    """At once: the workers do not hear the SIGTERM by which multiprocessing ends them before it waits for them."""
    write_corpus(tmp_path / "corpus", [("a square", b"not a picture")] * 40)
    overrides = short_run | {"data.manifest": tmp_path / "corpus", "data.workers": 2, "run.dir": tmp_path / "run"}
    with processes(1, overrides) as (process,):
        wait_until(lambda: bool(errors_of(process.output())), 280)
        finished = process.wait(MINUTE)
    assert finished.code == 2
    [said] = errors_of(finished.output)
    assert "are all unusable" in said


@pytest.mark.prove
@pytest.mark.parametrize(("rank", "told_to_end"), [(0, False), (1, False), (1, True)])
def test_an_error_of_one_process_alone_is_the_only_sentence(
    rank: int, told_to_end: bool, short_run: dict[str, object], tmp_path: Path
) -> None:
    overrides = short_run | ENDLESS | {"run.dir": tmp_path}
    batch = 0 if told_to_end else 3
    wrong_input = {"WRONG_INPUT": f"{rank}:{batch}-{batch}"}
    with processes(2, overrides, module=INSTRUMENTED, environment=wrong_input) as ranks:
        if told_to_end:
            wait_until((tmp_path / "vocabulary").exists)
            ranks[rank].signal(signal.SIGTERM)
        wait_until(lambda: bool(errors_of(ranks[rank].output())), 280)
        before = time.monotonic()
        ended = [process.wait(MINUTE) for process in ranks]
    assert time.monotonic() - before < MINUTE
    assert ended[rank].code == 2
    assert ended[1 - rank].code == 1
    errors = errors_of(ended[0].output + ended[1].output)
    assert errors == [f"error: batch {batch} of process {rank} is wrong; that is what the test wants"], ended
