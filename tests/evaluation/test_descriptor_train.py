"""Training: it learns, the same run gives the same bytes, a killed one goes on as if nothing had been, and it says what is wrong."""

import hashlib
import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import tomli_w

from evaluation.__main__ import main
from evaluation.descriptor import pictures, train, weights
from evaluation.descriptor.artefact import CARD
from evaluation.descriptor.config import PicturesConfig, TrainDescriptorConfig
from evaluation.descriptor.embed import Embedder
from evaluation.descriptor.model import build
from pipeline.contracts import config as contracts_config
from pipeline.contracts import manifest
from pipeline.contracts.errors import InputError
from tests.conftest import ROOT
from tests.evaluation.descriptor_cases import corpus_of, png, scene, tiny, write_set
from tests.evaluation.planted import flat


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scenes") / "scenes.parquet"
    write_set(path, [png(scene(seed)) for seed in range(80)])
    return path


def artefact(folder: Path) -> tuple[bytes, bytes]:
    return (folder / weights.WEIGHTS).read_bytes(), (folder / CARD).read_bytes()


def mild(config: TrainDescriptorConfig) -> TrainDescriptorConfig:
    """Copies that keep the whole picture: what a network of 8 channels learns in a second."""
    hard = ("part", "crop", "centre", "aspect", "rotation", "grey", "text", "banner", "border", "screenshot")
    easier = config.augmentation.model_copy(update=dict.fromkeys(hard, 0.0))
    return config.model_copy(update={"augmentation": easier})


def as_file(config: TrainDescriptorConfig, path: Path) -> Path:
    path.write_text(contracts_config.to_toml(config), "utf-8")
    return path


# ---- learning


def test_it_learns_and_the_same_run_gives_the_same_bytes(scenes: Path, tmp_path: Path) -> None:
    first, second = (mild(tiny(scenes, tmp_path / name, steps=80, rate=1e-2)) for name in ("first", "second"))
    card = train.train(first)
    train.train(second)
    assert artefact(tmp_path / "first") == artefact(tmp_path / "second")
    found = pictures.load(first.data, first.run.seed)
    held, kept = train._held_out(found.arrays, first.run.seed)
    untrained = train.proxy(build(first.architecture, first.run.seed), held, first)
    assert card.proxy.accuracy >= untrained.accuracy + 0.2
    assert (card.steps, card.stopped_by) == (80, "steps")
    assert (card.trained_on.pictures, card.trained_on.held_out) == (len(kept), len(held)) == (72, 8)
    assert card.proxy.pairs == 8 * 7
    assert card.proxy.rate_bound == 3 / 56
    assert train.proxy(build(first.architecture, 1), held[:2], first).rate_bound == 1.0, "two pairs bound no rate"


def test_another_seed_is_another_descriptor(scenes: Path, tmp_path: Path) -> None:
    ours, other = tiny(scenes, tmp_path / "a", steps=2), tiny(scenes, tmp_path / "b", steps=2)
    other = other.model_copy(update={"run": other.run.model_copy(update={"seed": 18})})
    assert train.train(ours).weights_sha256 != train.train(other).weights_sha256


def test_every_picture_once_an_epoch() -> None:
    seen = [row for step in range(6) for row in train.chosen(25, 4, step, 3)]
    assert len(set(seen)) == 24
    assert [train.chosen(25, 4, step, 3) for step in range(6)] != [
        train.chosen(25, 4, step, 3) for step in range(6, 12)
    ]
    assert train.chosen(25, 4, 3, 3) == train.chosen(25, 4, 3, 3) != train.chosen(25, 4, 3, 4)


def test_a_time_limit_ends_it(scenes: Path, tmp_path: Path) -> None:
    card = train.train(tiny(scenes, tmp_path / "out", steps=1_000_000, minutes=0.01))
    assert card.stopped_by == "minutes"
    assert 1 <= card.steps < 10_000


def test_the_rate_rises_and_falls() -> None:
    rates = [train._rate(step / 100, step, 10) for step in range(101)]
    assert rates[0] == pytest.approx(1 / 11)
    assert max(rates) == rates[10] > 0.95
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == 0


def test_most_steps_see_small_pictures(scenes: Path, tmp_path: Path) -> None:
    config = tiny(scenes, tmp_path / "out", steps=10, small=0.7)
    assert [train._size(config, step, 0.0) for step in range(10)] == [32] * 7 + [48] * 3
    timed = tiny(scenes, tmp_path / "out", steps=10, small=0.7, minutes=1)
    assert [train._size(timed, 0, seconds) for seconds in (0.0, 41.9, 42.1)] == [32, 32, 48]


# ---- kills


def test_a_resumed_run_ends_with_the_bytes_of_one_that_was_not(scenes: Path, tmp_path: Path) -> None:
    """The checkpoint of step 30 of 35 is all that is left."""
    config = tiny(scenes, tmp_path / "out", steps=35)
    train.train(config)
    whole = artefact(tmp_path / "out")
    for name in (weights.WEIGHTS, CARD):
        (tmp_path / "out" / name).unlink()
    assert json.loads(header(tmp_path / "out.work" / train.CHECKPOINT)["__metadata__"]["state"])["step"] == 30
    train.train(config)
    assert artefact(tmp_path / "out") == whole


@pytest.mark.prove
def test_a_killed_run_ends_with_the_bytes_of_one_that_was_not(scenes: Path, tmp_path: Path) -> None:
    killed, whole = (tiny(scenes, tmp_path / name, steps=60) for name in ("killed", "whole"))
    command = [sys.executable, "-m", "evaluation", "train-descriptor", "--config"]
    with subprocess.Popen([*command, str(as_file(killed, tmp_path / "killed.toml"))], cwd=ROOT) as process:
        checkpoint = tmp_path / "killed.work" / train.CHECKPOINT
        until = time.monotonic() + 120
        while not checkpoint.exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert checkpoint.exists()
    assert not (tmp_path / "killed" / CARD).exists()
    before = json.loads(header(checkpoint)["__metadata__"]["state"])["step"]
    assert 10 <= before < 60
    train.train(killed)
    train.train(whole)
    assert artefact(tmp_path / "killed") == artefact(tmp_path / "whole")


def header(path: Path) -> dict[str, dict[str, str]]:
    data = path.read_bytes()
    told: dict[str, dict[str, str]] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return told


def test_a_finished_run_is_not_done_again(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny(scenes, tmp_path / "out", steps=2)
    card = train.train(config)
    before = artefact(tmp_path / "out")
    assert main(["train-descriptor", "--config", str(as_file(config, tmp_path / "c.toml"))]) is None
    assert "2 steps on 72 pictures" in capsys.readouterr().out
    assert artefact(tmp_path / "out") == before
    assert weights.read(str(tmp_path / "out")).card == card


# ---- pictures


def test_a_corpus_is_sampled_by_uid_whatever_its_shards(tmp_path: Path) -> None:
    stored = [png(scene(seed)) for seed in range(40)]
    stored[3], stored[7] = flat(90), b"no picture"
    roots, chosen = set(), {}
    for rows in (7, 40):
        corpus_of(tmp_path / str(rows), [*stored, None], rows)
        for seed in (1, 2):
            config = PicturesConfig(manifest=str(tmp_path / str(rows)), pictures=12, short_side=32, least_short_side=16)
            found = pictures.load(config, seed)
            roots.add(found.root)
            chosen[rows, seed] = found.digest
            assert len(found.arrays) == 12
            assert {min(one.shape[:2]) for one in found.arrays} == {32}
    assert roots == {manifest.load(str(tmp_path / "7")).content_root}
    assert chosen[7, 1] == chosen[40, 1] != chosen[7, 2] == chosen[40, 2]
    everything = PicturesConfig(manifest=str(tmp_path / "7"), short_side=32, least_short_side=16)
    found = pictures.load(everything, 1)
    assert (len(found.arrays), found.unusable) == (38, 2)


def test_equal_pictures_of_a_set_count_once_and_memory_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "twice.parquet"
    write_set(path, [png(scene(seed % 5, 600, 512)) for seed in range(10)])
    config = {"set": {"name": "twice", "path": str(path)}, "short_side": 512}
    assert len(pictures.load(PicturesConfig.model_validate(config), 1).arrays) == 5
    small = pictures.load(PicturesConfig.model_validate({**config, "memory_mb": 2}), 1)
    assert len(small.arrays) == 2


# ---- what a user can get wrong


WRONG: dict[str, tuple[str, dict[str, dict[str, object]]]] = {
    "no source": ("one of the two", {"data": {"pictures": 9}}),
    "two sources": ("one of the two", {"data": {"manifest": "x", "set": {"name": "a", "path": "b"}}}),
    "no corpus": ("nowhere/manifest.json: no such file", {"data": {"manifest": "nowhere"}}),
    "few pictures": ("fewer than the 128 of one step", {"optimiser": {}}),
    "device": ("is no device of torch", {"run": {"device": "abacus"}}),
    "empty stage": ("each stage needs 1 to 32 blocks", {"architecture": {"blocks": [1, 0]}}),
    "size": ("architecture.size", {"architecture": {"size": 100}}),
    "small pictures": ("no usable picture", {"data": {"least_short_side": 600}}),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_input(scenes: Path, tmp_path: Path, name: str) -> None:
    said, change = WRONG[name]
    values: dict[str, dict[str, object]] = {
        "data": {"set": {"name": "scenes", "path": str(scenes)}, "least_short_side": 16},
        "optimiser": {"batch": 16},
        "run": {"out": str(tmp_path / "out")},
    }
    for table, keys in change.items():
        kept = {} if table == "optimiser" or "manifest" in keys or "pictures" in keys else values.get(table, {})
        values[table] = {**kept, **keys}
    (tmp_path / "c.toml").write_text(tomli_w.dumps(values), "utf-8")
    with pytest.raises(InputError) as caught:
        main(["train-descriptor", "--config", str(tmp_path / "c.toml")])
    assert said in str(caught.value)
    assert caught.value.exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["c.toml"]


def test_check_touches_nothing(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = as_file(tiny(scenes, tmp_path / "out"), tmp_path / "c.toml")
    assert main(["train-descriptor", "--config", str(path), "--check"]) is None
    said = capsys.readouterr().out
    assert "# digest " in said
    assert "16 pairs a step, 30 steps" in said
    assert [found.name for found in tmp_path.iterdir()] == ["c.toml"]


def test_artefacts_that_do_not_fit(scenes: Path, tmp_path: Path) -> None:
    config = tiny(scenes, tmp_path / "out", steps=1)
    train.train(config)
    place = tmp_path / "out" / weights.WEIGHTS
    card_place = tmp_path / "out" / CARD
    data, card = place.read_bytes(), json.loads(card_place.read_bytes())

    def refused(said: str) -> None:
        with pytest.raises(InputError, match=said) as caught:
            weights.read(str(tmp_path / "out"))
        assert len(str(caught.value).splitlines()) == 1

    place.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    refused("not the weights of the card")
    endless = (100_000).to_bytes(8, "little") + b"[" * 100_000
    for other, said in ((other, "not a safetensors file") for other in (b"\xff" * 40, b"", endless)):
        place.write_bytes(other)
        card_place.write_text(json.dumps({**card, "weights_sha256": hashlib.sha256(other).hexdigest()}))
        refused(said)
    state = safetensors.torch.load(data)
    del state["head.bias"]
    fewer = safetensors.torch.save(state)
    place.write_bytes(fewer)
    card_place.write_text(json.dumps({**card, "weights_sha256": hashlib.sha256(fewer).hexdigest()}))
    refused("'head.bias' is 'missing'")
    state = safetensors.torch.load(data)
    state["head.bias"][0] = math.nan
    nothing = safetensors.torch.save(state)
    place.write_bytes(nothing)
    card_place.write_text(json.dumps({**card, "weights_sha256": hashlib.sha256(nothing).hexdigest()}))
    refused("'head.bias' has values that are no numbers")
    place.write_bytes(data)
    card_place.write_text(json.dumps({**card, "parameters": 7}))
    refused("its card says 7")
    card_place.write_text(json.dumps({**card, "format_version": 99}))
    refused("not a card")
    card_place.write_text("{}")
    refused("not a card")
    card_place.unlink()
    refused("no such file")


def test_another_configuration_is_refused(scenes: Path, tmp_path: Path) -> None:
    train.train(tiny(scenes, tmp_path / "out", steps=10))
    with pytest.raises(InputError, match="a descriptor of another configuration"):
        train.train(tiny(scenes, tmp_path / "out", steps=11))
    (tmp_path / "out" / CARD).unlink()
    with pytest.raises(InputError, match=r"checkpoint\.safetensors: of another configuration"):
        train.train(tiny(scenes, tmp_path / "out", steps=11))
    place = tmp_path / "out.work" / train.CHECKPOINT
    whole = safetensors.torch.load(place.read_bytes())
    with safetensors.safe_open(place, "pt") as file:
        told = file.metadata()
    fewer = {name: tensor for name, tensor in whole.items() if not name.startswith("exp_avg_sq.")}
    shorter = {name: tensor[:1] if name == "exp_avg.head.weight" else tensor for name, tensor in whole.items()}
    endless = (100_000).to_bytes(8, "little") + b"[" * 100_000
    for data, said in (
        (b"broken", "not a readable checkpoint"),
        (endless, "not a readable checkpoint"),
        (safetensors.torch.save(fewer, told), "not a readable checkpoint"),
        (safetensors.torch.save(shorter, told), r"checkpoint\.safetensors: of another configuration"),
    ):
        place.write_bytes(data)
        with pytest.raises(InputError, match=said):
            train.train(tiny(scenes, tmp_path / "out", steps=10))


def test_a_read_descriptor_gives_the_vectors_of_the_trained_one(scenes: Path, tmp_path: Path) -> None:
    config = tiny(scenes, tmp_path / "out", steps=3)
    train.train(config)
    descriptor = weights.read(str(tmp_path / "out"))
    assert descriptor.background.shape == (72, 16)
    pixels = [scene(seed, 48, 48) for seed in range(5)]
    again = weights.read(str(tmp_path / "out"))
    np.testing.assert_array_equal(Embedder.of(descriptor).vectors(pixels), Embedder.of(again).vectors(pixels))
