"""Runs that start from weights, with and without frozen towers: what they start as, what stays, and what a resume needs."""

import json
import re
import shutil
from pathlib import Path
from typing import Any, Literal

import pytest
import safetensors.torch
import torch

from pipeline.contracts.config import load_config
from pipeline.contracts.errors import InputError
from tests.trainer.gradients import Plain
from tests.trainer.launching import Alone, Launch, errors_of
from trainer import checkpoint, gradient_cache, models, starting
from trainer.check import describe
from trainer.config import ModelConfig, RunConfig, TrainConfig, resolve
from trainer.export import export, load_model, to_state_dict
from trainer.names import Names, open_clip_config, transformers_config
from trainer.objectives import OBJECTIVES
from trainer.optim import parameter_groups

pytestmark = pytest.mark.timeout(900)

Tower = Literal["image", "text"]


def kept_files(run: Path) -> dict[str, str]:
    """Digests of all that was saved at the end."""
    record = checkpoint.read_record(str(run / "checkpoints"), "step-00000006")
    return {name: file.sha256 for name, file in record.files.items()}


@pytest.fixture(scope="module")
def first(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of a run at 32 pixels."""
    folder = tmp_path_factory.mktemp("first")
    export(str(trained), str(folder / "first.safetensors"))
    return folder


@pytest.fixture
def second_run(short_run: dict[str, object], first: Path, tmp_path: Path) -> dict[str, object]:
    """Two steps at 48 pixels from these weights, hardly moving; the vocabulary of the same corpus is the same again."""
    folder = shutil.copytree(first, tmp_path / "weights")
    changes = {
        "model.image_size": 48,
        "model.init_from": folder / "first.safetensors",
        "optim.steps": 2,
        "optim.warmup_steps": 0,
        "optim.lr": 1e-7,
        "run.save_every": 1,
        "run.dir": tmp_path / "run",
    }
    return short_run | changes


def smoke(*overrides: str, recipe: str = "trainer/configs/smoke.toml") -> TrainConfig:
    """The smoke recipe, for `--check`."""
    return resolve(load_config(TrainConfig, recipe, ["run.dir=runs/none", *overrides]))


def test_a_run_goes_on_from_other_weights_at_another_resolution(
    alone: Alone, second_run: dict[str, object], first: Path, tmp_path: Path
) -> None:
    """The 336-pixel epoch in small: start, resume without the file, and refuse other weights."""
    frozen = second_run | {"model.freeze": '["image"]'}
    finished = alone(frozen | {"run.stop_after": 1})
    assert finished.code == 0, finished.output
    shutil.rmtree(tmp_path / "weights")
    finished = alone(frozen)
    assert finished.code == 0, finished.output
    other = shutil.copytree(first, tmp_path / "other")
    weights = safetensors.torch.load_file(other / "first.safetensors")
    safetensors.torch.save_file(weights | {"logit_scale": torch.tensor(1.0)}, other / "first.safetensors")
    changed = {"model.init_from": other / "first.safetensors", "model.init_names": "openai"}
    (refusal,) = errors_of(alone(frozen | changed).output)
    assert "started from weights with sha256" in refusal
    assert "model.init_from says weights with sha256" in refusal

    out = tmp_path / "second.safetensors"
    card = export(str(tmp_path / "run"), str(out))
    assert (card.image_size, card.step) == (48, 2)
    assert card.init_sha256 == json.loads((first / "first.json").read_text())["weights_sha256"]
    before, after = load_model(str(first))[0].state_dict(), load_model(str(out))[0].state_dict()
    positions = "visual.positional_embedding"
    assert (before[positions].shape, after[positions].shape) == ((17, 192), (37, 192))
    # The corners of the grid see the same part of a picture; all between is bicubic (tests/trainer/test_positions.py).
    assert torch.equal(before[positions][0], after[positions][0])
    for name in before.keys() - {positions}:
        if name.startswith("visual."):
            assert torch.equal(before[name], after[name]), name
        else:
            torch.testing.assert_close(before[name], after[name], atol=1e-5, rtol=0)
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith("transformer"))
    record = checkpoint.read_record(str(tmp_path / "run" / "checkpoints"), "step-00000002")
    assert not any(name.startswith("visual.") for name in record.shapes), "no masters, no moments"


@pytest.mark.prove
def test_batch_statistics_of_a_frozen_tower_rest(launch: Launch, short_run: dict[str, object], tmp_path: Path) -> None:
    """A ResNet, two processes, stage 3, in micro-batches."""
    change = {"model.preset": "tiny", "model.freeze": '["image"]', "batch.micro_size": 2, "zero.stage": 3}
    change |= {"optim.steps": 2, "optim.warmup_steps": 0, "run.dir": tmp_path / "run"}
    finished = launch(2, short_run | change)
    assert finished.code == 0, finished.output
    export(str(tmp_path / "run"), str(tmp_path / "model.safetensors"))
    state = load_model(str(tmp_path / "model.safetensors"))[0].state_dict()
    torch.manual_seed(0)
    fresh = models.build("tiny", vocab_size=600, context_length=16, image_size=32).state_dict()
    for name in fresh:
        if name.startswith("visual."):
            assert torch.equal(state[name], fresh[name]), name
    assert not torch.equal(state["text_projection"], fresh["text_projection"])


@pytest.mark.parametrize("frozen", [(), ("image",), ("text",), ("image", "text")])
@pytest.mark.parametrize("preset", ["tiny", "tiny-16"])
def test_what_is_left_has_the_gradients_of_an_unfrozen_model(preset: str, frozen: tuple[Tower, ...]) -> None:
    """Whole and in micro-batches, in fp64. An unfrozen ResNet would normalise by the batch, so its reference is in eval mode."""
    size = models.PRESETS[preset].image_size
    torch.manual_seed(3)
    pixels = torch.randn(4, 3, size, size, dtype=torch.float64)
    ids = torch.randint(1, 2000, (4, 16))
    start = models.build(preset).double().state_dict()

    def gradients(towers: tuple[Tower, ...], micro_size: int | None) -> dict[str, torch.Tensor | None]:
        model = models.build(preset).double()
        model.load_state_dict(start)
        model.freeze(towers)
        model.train()
        if "image" in frozen and not towers:
            model.visual.eval()
        loss_of = OBJECTIVES["clip"].loss
        gradient_cache.forward_backward(Plain(model), loss_of, lambda at: (pixels[at], ids[at]), 4, micro_size)
        for name, buffer in model.named_buffers():
            if "image" in frozen:
                assert torch.equal(buffer, start[name]), name
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    whole = gradients((), None)
    for micro_size in (None, 2):
        if preset == "tiny" and micro_size and "image" not in frozen:
            continue  # batch norm sees micro-batches, as the README says
        for name, found in gradients(frozen, micro_size).items():
            if models.clip.tower_of(name) in frozen:
                assert found is None, name
            else:
                assert found is not None
                torch.testing.assert_close(found, whole[name], rtol=1e-9, atol=1e-12)


@pytest.mark.prove
def test_a_bag_of_words_with_dropped_patches_resumes_and_is_exported(
    alone: Alone, short_run: dict[str, object], tmp_path: Path
) -> None:
    """In micro-batches that do not divide the batch, with an average: cut and resumed it has the bits of the whole run."""
    change = {"model.text": "bag_of_words", "model.patch_dropout": 0.5, "batch.micro_size": 3, "optim.ema_decay": 0.9}
    for name, ends in (("whole", (6,)), ("cut", (3, 6))):
        for end in ends:
            finished = alone(short_run | change | {"run.dir": tmp_path / name, "run.stop_after": end})
            assert finished.code == 0, finished.output
    assert kept_files(tmp_path / "cut") == kept_files(tmp_path / "whole")
    for ema in (False, True):
        out = tmp_path / f"ema-{ema}.safetensors"
        card = export(str(tmp_path / "cut"), str(out), ema=ema)
        assert (card.text, card.step) == ("bag_of_words", 6)
        model, read_ids, _ = load_model(str(out))
        assert not any(name.startswith(("transformer.", "positional")) for name in model.state_dict())
        one, other = model.encode_text(read_ids(["a red circle", "circle red a"]))
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
        pixels = torch.randn(2, 3, 32, 32)
        assert torch.equal(model.encode_image(pixels), model.encode_image(pixels)), "evaluation drops no patch"
    refused = alone(short_run | change | {"run.dir": tmp_path / "cut", "model.patch_dropout": 0.0})
    assert refused.code == 2
    assert "model.patch_dropout" in errors_of(refused.output)[0]
    last = {"model.init_from": out, "model.text": "bag_of_words", "optim.steps": 1, "optim.warmup_steps": 0}
    finished = alone(short_run | last | {"run.dir": tmp_path / "last"})
    assert finished.code == 0, "as the README says"


@pytest.mark.prove
@pytest.mark.parametrize("frozen", ['["image"]', '["text"]', '["image", "text"]'])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_run_with_frozen_towers_resumes_to_the_bit(
    stage: int, frozen: str, launch: Launch, short_run: dict[str, object], tmp_path: Path
) -> None:
    change = {"model.freeze": frozen, "batch.micro_size": 2, "zero.stage": stage}
    for name, ends in (("whole", (6,)), ("cut", (3, 6))):
        for end in ends:
            finished = launch(2, short_run | change | {"run.dir": tmp_path / name, "run.stop_after": end})
            assert finished.code == 0, finished.output
    assert kept_files(tmp_path / "cut") == kept_files(tmp_path / "whole")
    weights = {name: export(str(tmp_path / name), str(tmp_path / f"{name}.safetensors")) for name in ("whole", "cut")}
    assert weights["whole"].weights_sha256 == weights["cut"].weights_sha256


def test_groups_and_check_show_what_is_frozen() -> None:
    with torch.device("meta"):
        model = models.build("tiny-vit", logit_bias=-10.0)
    model.freeze(("image", "text"))
    groups = {group["name"]: len(group["params"]) for group in parameter_groups(model, 0.2)}
    assert groups == {"no_decay": 1, "logit_scale": 1}, "the bias and the scale of the logits are in no tower"
    model.train()
    assert not any(module.training for module in model.visual.modules())
    said = describe(smoke('model.freeze=["text", "image"]'), 1)
    assert 'freeze = [\n    "image",\n    "text",\n]' in said
    assert "frozen         2,533,760 numbers" in said
    assert "start        random weights, those of frozen towers too" in said


def test_weights_that_cannot_be_are_refused_before_the_run(first: Path, tmp_path: Path) -> None:
    card = json.loads((first / "first.json").read_text())
    recipe = tmp_path / "recipe.toml"
    vocabulary = f'vocab = "{first / "first.vocabulary"}"'
    recipe.write_text(re.sub("train_size = .*", vocabulary, Path("trainer/configs/smoke.toml").read_text()))
    weights = f"model.init_from={first / 'first.safetensors'}"
    sizes = ["model.context_length=16", f"model.vocab_size={card['vocab_size']}"]
    said = describe(smoke(weights, *sizes, recipe=str(recipe)), 1)
    assert f"start        {first / 'first.safetensors'}, names of openai, tiny-vit after step 6" in said
    refusal = (
        rf"model\.init_from: .*first\.safetensors: 'token_embedding.weight' has shape \[{card['vocab_size']}, 128\]"
    )
    with pytest.raises(InputError, match=refusal):
        describe(smoke(weights, sizes[0], recipe=str(recipe)), 1)
    with pytest.raises(InputError, match=r"model\.init_from: .* not weights of 'tiny-16'"):
        describe(smoke(weights, *sizes, "model.preset=tiny-16", recipe=str(recipe)), 1)
    assert "whose shapes the run compares" in describe(smoke(weights), 1), (
        "how large a trained vocabulary is shows later"
    )
    assert "start        MISSING" in describe(smoke("model.init_from=/none/x.pt", "model.init_names=openai"), 1)
    foreign = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file(to_state_dict(models.build("tiny-vit"), "transformers"), foreign)
    with pytest.raises(
        InputError, match=r"foreign\.json: no such file.*say whose names they have in model\.init_names"
    ):
        describe(smoke(f"model.init_from={foreign}"), 1)
    siglip = ["objective.kind=siglip", "model.init_names=transformers"]
    said = describe(smoke(f"model.init_from={foreign}", *siglip), 1)
    assert f"{foreign}, names of transformers, whose GELU nothing says: the run has 'quick', whose shapes" in said
    config = tmp_path / "config.json"
    config.write_text(json.dumps(transformers_config(models.PRESETS["tiny-vit"])))
    said = describe(smoke(f"model.init_from={foreign}", *siglip), 1)
    assert f"{foreign}, names of transformers, whose shapes" in said
    with pytest.raises(InputError, match=r"model\.gelu: 'exact', but .* were trained with 'quick'"):
        describe(smoke(f"model.init_from={foreign}", *siglip, "model.gelu=exact"), 1)
    with pytest.raises(InputError, match="init_names 'openai' without init_from"):
        smoke("model.init_names=openai")


class Runs:
    """The first step of a run without its launcher, for one architecture and weights of others in one folder."""

    def __init__(self, folder: Path) -> None:
        self.run = RunConfig(dir=str(folder / "run"))

    def begin(self, weights: Path, names: Names | None, *, vocabulary: str = "", **model: Any) -> models.CLIP:
        config = ModelConfig(preset="tiny-16", init_from=str(weights), init_names=names, **model)
        start = starting.find(config)
        assert start is not None
        fresh = models.build("tiny-16", gelu=config.gelu, text=config.text)
        starting.load(start, fresh, vocabulary, starting.settle(start, self.run))
        return fresh


@pytest.mark.parametrize(
    ("names", "file"),
    [("openai", "open_clip_config.json"), ("open_clip", "open_clip_config.json"), ("transformers", "config.json")],
)
def test_gelu_of_others_is_the_one_their_library_is_told(
    names: Names, file: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No tensor shows it: a wrong one trains and scores without a word."""
    path, runs = tmp_path / "model.safetensors", Runs(tmp_path)
    theirs = models.build("tiny-16", gelu="exact")
    safetensors.torch.save_file(to_state_dict(theirs, names), path)
    runs.begin(path, names, gelu="exact")
    assert re.search(
        r"nothing beside .*model\.safetensors says which GELU .*; this run has model\.gelu=exact", caplog.text
    )
    caplog.clear()

    if names == "transformers":
        (tmp_path / file).write_text(json.dumps(transformers_config(theirs.preset)))
    else:
        told = open_clip_config(theirs.preset, mean=(0, 0, 0), std=(1, 1, 1), logit_bias=None)
        (tmp_path / file).write_text(json.dumps(told))
    for given in ({}, {"gelu": "quick"}):
        with pytest.raises(
            InputError, match=r"model\.gelu: 'quick', but .* were trained with 'exact'; set model\.gelu=exact"
        ):
            runs.begin(path, names, **given)
    ours = runs.begin(path, names, gelu="exact").eval()
    pixels = torch.randn(2, 3, 16, 16)
    assert torch.equal(ours.encode_image(pixels), theirs.eval().encode_image(pixels))
    assert not caplog.records
    for broken in ("{", "[" * 100_000):
        (tmp_path / file).write_text(broken)
        with pytest.raises(InputError, match=f"{file}: not JSON, which .* reads beside weights"):
            runs.begin(path, names)
    other = {"text_config": {"hidden_act": "gelu_new"}, "vision_config": {"hidden_act": "gelu"}}
    if names == "transformers":
        (tmp_path / file).write_text(json.dumps(other))
        with pytest.raises(InputError, match="says 'exact' and 'gelu_new' for the activations"):
            runs.begin(path, names)


def test_our_card_is_asked_under_other_names_too(first: Path, tmp_path: Path) -> None:
    """`model.init_names` on an export of ours, and a card that belongs to other weights."""
    folder, runs = Path(shutil.copytree(first, tmp_path / "weights")), Runs(tmp_path)
    path, card = folder / "first.safetensors", json.loads((folder / "first.json").read_text())
    with pytest.raises(InputError, match="was trained with another vocabulary than this run has"):
        runs.begin(path, "openai")
    known = {"vocabulary": card["vocabulary_sha256"]}
    for change in ({"gelu": "exact"}, {"text": "bag_of_words"}):
        (folder / "first.json").write_text(json.dumps(card | change))
        ((key, value),) = change.items()
        chosen: tuple[Names | None, ...] = ("openai", None)
        for names in chosen:
            with pytest.raises(InputError, match=rf"model\.{key}: .*first\.safetensors.* set model\.{key}={value}"):
                runs.begin(path, names, **known)
    (folder / "first.json").write_text(json.dumps(card | {"weights_sha256": "0" * 64}))
    with pytest.raises(InputError, match="not weights of 'tiny-16'"):
        runs.begin(path, "openai")


def test_weights_that_are_replaced_while_the_run_begins_are_refused(tmp_path: Path) -> None:
    path, run = tmp_path / "model.safetensors", RunConfig(dir=str(tmp_path / "run"))
    start = starting.find(ModelConfig(preset="tiny-16", init_from=str(path), init_names="openai"))
    assert start is not None
    safetensors.torch.save_file(to_state_dict(models.build("tiny-16")), path)
    settled = starting.settle(start, run)
    safetensors.torch.save_file(to_state_dict(models.build("tiny-16")), path)
    with pytest.raises(
        InputError, match=rf"model\.safetensors' has sha256 .* by now, and this run began with {(settled or '')[:16]}"
    ):
        starting.load(start, models.build("tiny-16"), "", settled)


def test_weights_of_another_vocabulary_are_refused(alone: Alone, second_run: dict[str, object]) -> None:
    finished = alone(second_run | {"tokenizer.train_size": 540})
    assert finished.code == 2, finished.output
    (refusal,) = errors_of(finished.output)
    assert "was trained with another vocabulary than this run has" in refusal
    assert "give the file 'first.vocabulary' beside it as tokenizer.vocab, with tokenizer.kind=bpe" in refusal
