"""Checkpoints of a real run: damage is found and named, the one before is taken, and only a run's own checkpoints are resumed."""

import json
import logging
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed

from pipeline.contracts.errors import InputError, RunError
from tests.trainer.launching import Alone
from trainer import checkpoint

NEWEST, BEFORE = "step-00000006", "step-00000004"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of a finished run that a test may break."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def identity(trained: Path) -> checkpoint.Identity:
    record = checkpoint.read_record(str(trained), NEWEST)
    return checkpoint.Identity.model_validate(
        record.model_dump(include={"config_digest", "content_root", "vocabulary_sha256"})
    )


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """A process group of one, without DeepSpeed."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def truncate(folder: Path) -> Path:
    path = next(folder.glob("*optim_states.pt"))
    path.write_bytes(path.read_bytes()[:-100])
    return path


def flip_a_bit(folder: Path) -> Path:
    path = folder / checkpoint.WEIGHTS
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    return path


def remove(folder: Path) -> Path:
    path = folder / "rank-00000.pt"
    path.unlink()
    return path


def lose_the_record(folder: Path) -> Path:
    path = folder / checkpoint.RECORD
    path.write_text("{")
    return path


@pytest.mark.parametrize("hurt", [truncate, flip_a_bit, remove, lose_the_record])
def test_damage_is_named(run: Path, hurt: Callable[[Path], Path]) -> None:
    assert checkpoint.damage(str(run), NEWEST) is None
    path = hurt(run / "checkpoints" / NEWEST)
    said = checkpoint.damage(str(run), NEWEST)
    assert said is not None
    assert said.startswith(str(path))


def test_shares_of_the_check_cover_every_file(run: Path) -> None:
    flip_a_bit(run / "checkpoints" / NEWEST)
    assert sum(checkpoint.damage(str(run), NEWEST, (share, 3)) is not None for share in range(3)) == 1


@pytest.mark.usefixtures("one_process")
def test_the_newest_whole_checkpoint_is_found(
    run: Path, identity: checkpoint.Identity, caplog: pytest.LogCaptureFixture
) -> None:
    found = checkpoint.find(str(run), identity)
    assert found is not None
    assert (found[0], found[1].step, found[1].samples_seen) == (NEWEST, 6, 48)
    (run / "checkpoints" / ".writing-step-00000008").mkdir()  # what a kill leaves
    with caplog.at_level(logging.WARNING):
        truncate(run / "checkpoints" / NEWEST)
        found = checkpoint.find(str(run), identity)
    assert found is not None
    assert found[0] == BEFORE
    assert NEWEST in caplog.text
    for folder in (run / "checkpoints").glob("step-*"):
        truncate(folder)
    with pytest.raises(RunError, match="none of its 3 checkpoints is whole"):
        checkpoint.find(str(run), identity)


@pytest.mark.usefixtures("one_process")
def test_a_fresh_run_has_none(tmp_path: Path, identity: checkpoint.Identity) -> None:
    assert checkpoint.find(str(tmp_path), identity) is None


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("content_root", "trained on the corpus with content_root"),
        ("config_digest", "written under a configuration with digest"),
        ("vocabulary_sha256", "trained with another vocabulary file"),
    ],
)
def test_checkpoints_of_another_run_are_refused(
    trained: Path, identity: checkpoint.Identity, key: str, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        checkpoint.find(str(trained), identity.model_copy(update={key: "0" * 64}))


@pytest.mark.usefixtures("one_process")
def test_another_format_version_is_refused_and_not_taken_for_damage(run: Path, identity: checkpoint.Identity) -> None:
    path = run / "checkpoints" / NEWEST / checkpoint.RECORD
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 2, "added_later": True}))
    with pytest.raises(InputError, match="format_version 2, this version of the trainer reads 1"):
        checkpoint.find(str(run), identity)


@pytest.mark.usefixtures("one_process")
def test_another_number_of_processes_is_refused(run: Path, identity: checkpoint.Identity) -> None:
    path = run / "checkpoints" / NEWEST / checkpoint.RECORD
    path.write_text(json.dumps(json.loads(path.read_text()) | {"world_size": 2}))
    with pytest.raises(InputError, match="written by 2 processes, this run has 1; start 2 of them"):
        checkpoint.find(str(run), identity)


def whole_tags(run: Path) -> list[str]:
    return [tag for tag in checkpoint.complete_tags(str(run)) if checkpoint.damage(str(run), tag) is None]


def test_a_step_damaged_again_and_again_can_still_be_saved(run: Path) -> None:
    """Each damaged folder gets a name of its own; a rename onto the last one would stop the run at this step for good."""
    folder = run / "checkpoints"
    copy = shutil.copytree(folder / NEWEST, folder / "copy")
    record = checkpoint.read_record(str(run), NEWEST)
    for _ in range(3):
        truncate(folder / NEWEST)
        temporary = shutil.copytree(copy, folder / f".writing-{NEWEST}")
        checkpoint._commit(str(folder), str(temporary), NEWEST, record)
        assert checkpoint.damage(str(run), NEWEST) is None
    aside = sorted(path.name for path in folder.glob("*.damaged*"))
    assert aside == [f"{NEWEST}.damaged", f"{NEWEST}.damaged-2", f"{NEWEST}.damaged-3"]


def test_damaged_checkpoints_are_put_aside_and_never_counted_as_kept(run: Path) -> None:
    truncate(run / "checkpoints" / NEWEST)
    checkpoint._put_aside_newer(str(run), BEFORE)
    assert checkpoint.complete_tags(str(run)) == [BEFORE, "step-00000002"]
    checkpoint._retain(str(run), 2, newest=BEFORE)
    assert whole_tags(run) == [BEFORE, "step-00000002"]


def test_the_checkpoint_just_written_is_never_dropped(run: Path) -> None:
    truncate(run / "checkpoints" / NEWEST)
    checkpoint._retain(str(run), 1, newest=BEFORE)
    assert whole_tags(run) == [BEFORE]


def test_random_states_come_back() -> None:
    def draw() -> tuple[float, float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(())), random.gauss()

    device = torch.device("cpu")
    draw()
    states = checkpoint._random_states(device)
    expected = [draw() for _ in range(3)]
    checkpoint._restore_random_states(states, device)
    assert [draw() for _ in range(3)] == expected


def test_the_run_goes_on_from_before_the_damage(
    run: Path, trained: Path, alone: Alone, short_run: dict[str, object]
) -> None:
    hurt = truncate(run / "checkpoints" / NEWEST)
    finished = alone(short_run | {"run.dir": run})
    assert finished.code == 0, finished.output
    assert f"checkpoint {NEWEST} is damaged and passed over: {hurt}" in finished.output
    assert "steps 5 to 6 of 6" in finished.output
    weights = [(folder / "checkpoints" / NEWEST / checkpoint.WEIGHTS).read_bytes() for folder in (run, trained)]
    assert weights[0] == weights[1]
    assert (run / "checkpoints" / f"{NEWEST}.damaged").is_dir(), "nothing is lost"
    losses = [
        [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (run, trained)
    ]
    assert losses[0] == losses[1]
    assert moment_bytes(run) <= 4.1
    assert moment_bytes(trained) == moment_bytes(run), "a resume does not widen the moments"


def test_a_call_that_ends_before_where_the_run_stands_does_nothing_and_says_so(
    run: Path, alone: Alone, short_run: dict[str, object]
) -> None:
    shutil.rmtree(run / "checkpoints" / NEWEST)
    lines = (run / "metrics.jsonl").read_text().splitlines()[:4]
    finished = alone(short_run | {"run.dir": run, "run.stop_after": 3})
    assert finished.code == 0, finished.output
    assert "nothing to do: the run is at step 4 of 6, and run.stop_after is 3" in finished.output
    assert "done after step 4;" in finished.output
    assert (run / "metrics.jsonl").read_text().splitlines() == lines
    assert checkpoint.complete_tags(str(run)) == [BEFORE, "step-00000002"]


def moment_bytes(run: Path) -> float:
    """Bytes a parameter of what the optimizer keeps between steps, as saved, beside the fp32 masters."""
    program = """
import sys, glob, torch, deepspeed
from safetensors.torch import load_file
folder = sys.argv[1]
held = 0
for path in glob.glob(folder + "/*optim_states.pt"):
    saved = torch.load(path, weights_only=False)["optimizer_state_dict"]["base_optimizer_state"]["state"]
    held += sum(value.nbytes for state in saved.values() for value in state.values() if torch.is_tensor(value))
print(held / sum(tensor.numel() for tensor in load_file(folder + "/weights.safetensors").values()))
"""
    folder = str(run / "checkpoints" / NEWEST)
    done = subprocess.run(
        [sys.executable, "-c", program, folder], capture_output=True, text=True, timeout=120, check=True
    )
    return float(done.stdout.split()[-1])
