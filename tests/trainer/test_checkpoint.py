"""Checkpoints of a real run: damage is found and named, the one before is taken, and only a run's own checkpoints are resumed."""

import hashlib
import json
import logging
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import safetensors.torch
import torch
import torch.distributed

from pipeline.contracts import config as configs
from pipeline.contracts import storage
from pipeline.contracts.errors import InputError, RunError
from tests.trainer.launching import Alone
from trainer import checkpoint
from trainer.checkpoint import resuming, saving, state
from trainer.export import export

NEWEST, BEFORE = "step-00000006", "step-00000004"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of a finished run that a test may break."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def identity(trained: Path) -> checkpoint.Identity:
    record = checkpoint.read_record(str(trained / "checkpoints"), NEWEST)
    return checkpoint.Identity.model_validate(
        record.model_dump(include={"config_digest", "config", "content_root", "vocabulary_sha256"})
    )


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """A process group of one, without DeepSpeed."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def truncate(folder: Path) -> Path:
    path = folder / checkpoint.rank_file(0)
    path.write_bytes(path.read_bytes()[:-100])
    return path


def flip_a_bit(folder: Path) -> Path:
    path = folder / checkpoint.rank_file(0)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    return path


def remove(folder: Path) -> Path:
    path = folder / checkpoint.rank_file(0)
    path.unlink()
    return path


def lose_the_record(folder: Path) -> Path:
    path = folder / checkpoint.RECORD
    path.write_text("{")
    return path


@pytest.mark.parametrize("hurt", [truncate, flip_a_bit, remove, lose_the_record])
def test_damage_is_named(run: Path, hurt: Callable[[Path], Path]) -> None:
    place = run / "checkpoints"
    assert checkpoint.damage(str(place), NEWEST) is None
    path = hurt(place / NEWEST)
    said = checkpoint.damage(str(place), NEWEST)
    assert said is not None
    assert said.startswith(str(path))


def test_shares_of_the_check_cover_every_file(run: Path) -> None:
    flip_a_bit(run / "checkpoints" / NEWEST)
    found = [checkpoint.damage(str(run / "checkpoints"), NEWEST, (share, 3)) for share in range(3)]
    assert sum(trouble is not None for trouble in found) == 1


@pytest.mark.usefixtures("one_process")
def test_the_newest_whole_checkpoint_is_found(
    run: Path, identity: checkpoint.Identity, caplog: pytest.LogCaptureFixture
) -> None:
    place = run / "checkpoints"
    found = checkpoint.find(str(place), identity)
    assert found is not None
    assert (found[0], found[1].step, found[1].samples_seen) == (NEWEST, 6, 48)
    shutil.copytree(place / NEWEST, place / "step-00000008")
    (place / "step-00000008" / checkpoint.RECORD).unlink()  # what a kill leaves
    with caplog.at_level(logging.WARNING):
        truncate(place / NEWEST)
        found = checkpoint.find(str(place), identity)
    assert found is not None
    assert found[0] == BEFORE
    assert NEWEST in caplog.text
    assert "step-00000008" not in caplog.text
    for tag in checkpoint.complete_tags(str(place)):
        truncate(place / tag)
    with pytest.raises(RunError, match="none of its 3 checkpoints is whole"):
        checkpoint.find(str(place), identity)


@pytest.mark.usefixtures("one_process")
def test_a_fresh_run_has_none(tmp_path: Path, identity: checkpoint.Identity) -> None:
    assert checkpoint.find(str(tmp_path), identity) is None


def amend(folder: Path, change: dict[str, Any]) -> None:
    """Another record, with its digest; what `change` does not say of the position stays."""
    path = folder / checkpoint.RECORD
    record = json.loads(path.read_text())
    changed = record | change | {"position": record["position"] | change.get("position", {})}
    del changed["record_sha256"]
    path.write_text(json.dumps(changed | {"record_sha256": sha256_of(changed)}))


def sha256_of(record: dict[str, Any]) -> str:
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


Record = dict[str, Any]


def pieces_of(record: Record) -> list[list[Any]]:
    found: list[list[Any]] = record["flats"][0][0]["layout"]["pieces"]
    return found


def first_layout(record: Record) -> Record:
    layout: Record = record["flats"][0][0]["layout"]
    return layout


EDITS: dict[str, Callable[[Record], object]] = {
    "longer than its tensor": lambda record: pieces_of(record)[0].__setitem__(3, 10**9),
    "at another place": lambda record: pieces_of(record)[-1].__setitem__(2, pieces_of(record)[-1][2] - 1),
    "before its tensor": lambda record: pieces_of(record)[0].__setitem__(2, -1),
    "not from its start": lambda record: pieces_of(record)[0].__setitem__(1, 1),
    "twice": lambda record: record["flats"].append(record["flats"][0]),
    "nothing": lambda record: record["flats"].clear(),
    "no files": lambda record: record["files"].clear(),
    "a file of another process": lambda record: record["files"].update(
        {"rank-00001.safetensors": record["files"].popitem()[1]}
    ),
    "another number of processes": lambda record: record.update(world_size=10**12),
    "another shape": lambda record: record["shapes"].update({"ln_final.weight": [7]}),
    "a shape of what nobody holds": lambda record: record["shapes"].update(more=[7]),
    "blocks of three": lambda record: first_layout(record).update(block=3),
    "blocks of none": lambda record: first_layout(record).update(block=0),
    "another step": lambda record: record["position"].update(step=7),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
@pytest.mark.parametrize("sealed", [False, True])
def test_an_edited_record_is_damage(run: Path, edit: Callable[[Record], object], sealed: bool) -> None:
    """Even by somebody who gives it the digest of what it says."""
    place = run / "checkpoints"
    path = place / NEWEST / checkpoint.RECORD
    record = json.loads(path.read_text())
    edit(record)
    path.write_text(json.dumps(record))
    if sealed:
        amend(place / NEWEST, {})
    said = checkpoint.damage(str(place), NEWEST)
    assert said is not None
    assert said.startswith(f"{path}: ")
    with pytest.raises(InputError, match="none of its checkpoints is whole"):
        export(str(run), str(run / "model.safetensors"), 6)


@pytest.mark.parametrize("key", ["samples_seen", "content_root", "config_digest", "loss_scaler", "position"])
def test_no_value_of_a_record_can_be_changed_unseen(run: Path, key: str) -> None:
    path = run / "checkpoints" / NEWEST / checkpoint.RECORD
    record = json.loads(path.read_text())
    others = {"samples_seen": 1, "loss_scaler": {"cur_scale": 2.0}, "position": {"step": 6, "shift": 1}}
    path.write_text(json.dumps(record | {key: others.get(key, "0" * 64)}))
    said = checkpoint.damage(str(run / "checkpoints"), NEWEST)
    assert (
        said == f"{path}: changed after it was written; bring back the file as it was or remove the folder {NEWEST!r}"
    )


def test_the_digest_of_a_record_is_that_of_its_canonical_json(trained: Path) -> None:
    record = json.loads((trained / "checkpoints" / NEWEST / checkpoint.RECORD).read_text())
    assert record.pop("record_sha256") == sha256_of(record)


def test_only_names_that_a_run_gives_are_checkpoints(run: Path) -> None:
    place = run / "checkpoints"
    for name in ("step-²", "step-٣٣٣٣٣٣٣٣", "step-7", "step-00000009.aside"):
        shutil.copytree(place / NEWEST, place / name)
    assert checkpoint.complete_tags(str(place)) == [NEWEST, BEFORE, "step-00000002"]


@pytest.mark.usefixtures("one_process")
def test_another_configuration_is_refused_by_its_keys(trained: Path, identity: checkpoint.Identity) -> None:
    config = json.loads(json.dumps(identity.config))
    config["optim"]["lr"], config["model"]["image_size"] = 0.5, 64
    other = identity.model_copy(update={"config": config, "config_digest": configs.digest_json(config)})
    was = identity.config["optim"]
    assert isinstance(was, dict)
    said = f"model.image_size was 32 and is 64, optim.lr was {was['lr']} and is 0.5; set back what differs or choose"
    with pytest.raises(InputError, match=re.escape(said)):
        checkpoint.find(str(trained / "checkpoints"), other)


@pytest.mark.usefixtures("one_process")
def test_a_run_from_before_there_was_a_key_goes_on_with_its_default(
    run: Path, identity: checkpoint.Identity, caplog: pytest.LogCaptureFixture
) -> None:
    place = str(run / "checkpoints")
    config = json.loads(json.dumps(identity.config))
    del config["model"]["gelu"], config["optim"]["ema_decay"], config["augmentation"]
    for tag in checkpoint.complete_tags(place):
        amend(run / "checkpoints" / tag, {"config": config, "config_digest": configs.digest_json(config)})
    with caplog.at_level(logging.WARNING):
        found = checkpoint.find(place, identity)
    assert found is not None
    assert "did not know all of today's keys" in caplog.text
    changed = json.loads(json.dumps(identity.config))
    changed["optim"]["ema_decay"] = 0.5
    other = identity.model_copy(update={"config": changed, "config_digest": configs.digest_json(changed)})
    with pytest.raises(InputError, match=r"optim\.ema_decay was null and is 0\.5"):
        checkpoint.find(place, other)


def test_latest_never_names_one_that_was_put_aside(run: Path) -> None:
    place = run / "checkpoints"
    assert (place / "latest").read_text() == NEWEST
    resuming._put_aside_newer(str(place), BEFORE)
    assert (place / "latest").read_text() == BEFORE


def test_a_damaged_record_does_not_keep_older_checkpoints_for_ever(run: Path) -> None:
    place = run / "checkpoints"
    lose_the_record(place / BEFORE)
    saving._retain(str(place), 1, newest=NEWEST)
    assert checkpoint.complete_tags(str(place)) == [NEWEST]


@pytest.mark.usefixtures("one_process")
def test_a_good_one_was_not_saved_amid_bad_steps(run: Path, identity: checkpoint.Identity) -> None:
    place = run / "checkpoints"
    amend(place / NEWEST, {"position": {"step": 6, "bad_steps": 2}})
    limits = (None, 9, 6, 4, 2)
    tags = [found and found[0] for found in (checkpoint.find(str(place), identity, good_before=n) for n in limits)]
    assert tags == [NEWEST, BEFORE, BEFORE, "step-00000002", None]


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
        checkpoint.find(str(trained / "checkpoints"), identity.model_copy(update={key: "0" * 64}))


@pytest.mark.usefixtures("one_process")
def test_another_format_version_is_refused_and_not_taken_for_damage(run: Path, identity: checkpoint.Identity) -> None:
    amend(run / "checkpoints" / NEWEST, {"format_version": 1, "added_later": True})
    with pytest.raises(InputError, match="format_version 1, this version of the trainer reads 3"):
        checkpoint.find(str(run / "checkpoints"), identity)


def whole_tags(place: Path) -> list[str]:
    return [tag for tag in checkpoint.complete_tags(str(place)) if checkpoint.damage(str(place), tag) is None]


def test_a_step_damaged_again_and_again_can_still_be_saved(run: Path) -> None:
    """Each damaged folder gets a name of its own; a rename onto the last one would stop the run at this step for good."""
    place = run / "checkpoints"
    copy = shutil.copytree(place / NEWEST, run / "copy")
    for _ in range(3):
        truncate(place / NEWEST)
        resuming._put_aside_newer(str(place), BEFORE)
        shutil.copytree(copy, place / NEWEST)
        assert whole_tags(place) == [NEWEST, BEFORE, "step-00000002"]
    aside = sorted(path.name for path in place.glob("*.aside*"))
    assert aside == [f"{NEWEST}.aside", f"{NEWEST}.aside-2", f"{NEWEST}.aside-3"]


def test_damaged_checkpoints_are_put_aside_and_never_counted_as_kept(run: Path) -> None:
    place = run / "checkpoints"
    truncate(place / NEWEST)
    resuming._put_aside_newer(str(place), BEFORE)
    assert checkpoint.complete_tags(str(place)) == [BEFORE, "step-00000002"]
    saving._retain(str(place), 2, newest=BEFORE)
    assert whole_tags(place) == [BEFORE, "step-00000002"]


def test_the_checkpoint_just_written_is_never_dropped(run: Path) -> None:
    place = run / "checkpoints"
    truncate(place / NEWEST)
    saving._retain(str(place), 1, newest=BEFORE)
    assert whole_tags(place) == [BEFORE]


def test_the_newest_good_one_stays_and_what_a_kill_left_goes(run: Path) -> None:
    place = run / "checkpoints"
    for tag in (NEWEST, BEFORE):
        amend(place / tag, {"position": {"step": checkpoint.step_of(tag), "bad_steps": 1}})
    shutil.copytree(place / NEWEST, place / "step-00000005")
    (place / "step-00000005" / checkpoint.RECORD).unlink()
    saving._retain(str(place), 1, newest=NEWEST)
    assert sorted(path.name for path in place.iterdir()) == ["latest", "step-00000002", NEWEST]


def test_random_states_come_back() -> None:
    def draw() -> tuple[float, float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(())), random.gauss()

    device = torch.device("cpu")
    draw()
    states = state.random_states(device)
    expected = [draw() for _ in range(3)]
    state.restore_random_states(states, device)
    assert [draw() for _ in range(3)] == expected


def test_new_random_states_follow_from_saved_ones_and_differ_by_process() -> None:
    states = state.random_states(torch.device("cpu"))
    draws = []
    for rank in (0, 1, 1):
        state.seed_from(states, rank)
        draws.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
    assert draws[1] == draws[2]
    assert all(one != other for one, other in zip(draws[0], draws[1], strict=True))


def test_the_run_goes_on_from_before_the_damage(
    run: Path, trained: Path, alone: Alone, short_run: dict[str, object]
) -> None:
    hurt = truncate(run / "checkpoints" / NEWEST)
    finished = alone(short_run | {"run.dir": run})
    assert finished.code == 0, finished.output
    assert f"checkpoint {NEWEST} is damaged and passed over: {hurt}" in finished.output
    assert "steps 5 to 6 of 6" in finished.output
    records = [checkpoint.read_record(str(folder / "checkpoints"), NEWEST) for folder in (run, trained)]
    assert records[0].files == records[1].files, "weights, moments and random states, to the bit"
    assert (run / "checkpoints" / f"{NEWEST}.aside").is_dir(), "nothing is lost"
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
    assert "no steps left: the run is at step 4 of 6, and run.stop_after is 3" in finished.output
    assert "done after step 4;" in finished.output
    assert (run / "metrics.jsonl").read_text().splitlines() == lines
    assert checkpoint.complete_tags(str(run / "checkpoints")) == [BEFORE, "step-00000002"]


def moment_bytes(run: Path) -> float:
    """Bytes a parameter of what the optimizer keeps between steps, as saved, beside the fp32 masters."""
    held = safetensors.torch.load_file(run / "checkpoints" / NEWEST / checkpoint.rank_file(0))
    states = ("moment", "moment_scale", "root", "root_scale")
    moments = sum(value.nbytes for name, value in held.items() if name.partition(".")[2] in states)
    return moments / sum(value.numel() for name, value in held.items() if name.endswith(".master"))


@pytest.mark.usefixtures("s3_endpoint")
def test_checkpoints_in_an_object_store(
    trained: Path, alone: Alone, short_run: dict[str, object], tmp_path: Path
) -> None:
    """Damaged there and passed over, resumed, saved, kept and exported; the bytes are those of the run on the disk."""
    boto3.client("s3").create_bucket(Bucket="checkpoints")
    place = "s3://checkpoints/runs/one"
    for tag in (BEFORE, "step-00000002"):
        for path in (trained / "checkpoints" / tag).iterdir():
            storage.write_atomic(f"{place}/{tag}/{path.name}", path.read_bytes())
    file = f"{place}/{BEFORE}/{checkpoint.rank_file(0)}"
    storage.write_atomic(file, storage.read_bytes(file)[:-100])
    shutil.copy(trained / "vocabulary", tmp_path)
    overrides = short_run | {"run.dir": tmp_path, "run.checkpoints": place, "run.keep": 2}
    finished = alone(overrides)
    assert finished.code == 0, finished.output
    assert f"checkpoint {BEFORE} is damaged and passed over: {file}" in finished.output
    assert "steps 3 to 6 of 6" in finished.output
    assert checkpoint.complete_tags(place) == [NEWEST, BEFORE]
    assert storage.read_text(f"{place}/latest") == NEWEST
    assert storage.folders(place) == [BEFORE, NEWEST], "the files of the oldest are gone too"
    assert not (tmp_path / "checkpoints").exists()
    record = checkpoint.read_record(place, NEWEST)
    assert record.files == checkpoint.read_record(str(trained / "checkpoints"), NEWEST).files
    card = export(str(tmp_path), str(tmp_path / "s3.safetensors"))
    assert card.weights_sha256 == export(str(trained), str(tmp_path / "disk.safetensors")).weights_sha256
