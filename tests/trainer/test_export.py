"""Exports: the fp32 masters under OpenAI's names, a card that binds them, and refusals of what is not the card's."""

import json
import re
import resource
import shutil
import tomllib
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from safetensors.torch import load_file

from pipeline.contracts import manifest as manifests
from pipeline.contracts.errors import InputError
from trainer import checkpoint, models
from trainer.export import Card, export, load_model, load_weights, main, to_state_dict


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    export(str(trained), str(folder / "model.safetensors"))
    return folder


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def test_the_card_says_what_was_trained(exported: Path, corpus: Path, trained: Path) -> None:
    card = Card.model_validate_json((exported / "model.json").read_text())
    assert (card.preset, card.image_size, card.context_length, card.step, card.samples_seen) == (
        "tiny-vit",
        32,
        16,
        6,
        48,
    )
    assert card.content_root == manifests.load(str(corpus)).content_root
    config = tomllib.loads((trained / "config.toml").read_text())
    assert (card.seed, card.window_row_groups) == (config["run"]["seed"], config["data"]["window_row_groups"])
    assert card.config_digest == checkpoint.read_record(str(trained / "checkpoints"), "step-00000006").config_digest
    weights = safetensors.torch.load_file(exported / "model.safetensors")
    assert card.parameters == sum(tensor.numel() for tensor in weights.values())
    assert weights["logit_scale"].shape == ()


def test_weights_are_the_masters_of_the_checkpoint(exported: Path, trained: Path) -> None:
    """Of ZeRO stage 1 on one process: each group's masters in a row, as the record says, read here without our code."""
    folder = trained / "checkpoints" / "step-00000006"
    record, held = json.loads((folder / "checkpoint.json").read_text()), load_file(folder / "rank-00000.safetensors")
    masters = {}
    for number, flat in enumerate(record["flats"][0]):
        for name, start, at, length in flat["layout"]["pieces"]:
            assert start == 0
            masters[name] = held[f"{number}.master"][at : at + length].view(record["shapes"][name])
    model, _, _ = load_model(str(exported))
    state = model.state_dict()
    assert state.keys() == masters.keys()
    assert all(torch.equal(state[name], masters[name]) for name in state)
    assert all(tensor.dtype == torch.float32 for tensor in masters.values())


def test_names_are_openais(exported: Path) -> None:
    """Each name follows one of the patterns of the released ViT archives."""
    block = r"(visual\.)?transformer\.resblocks\.\d+\.(attn\.(in_proj_(weight|bias)|out_proj\.(weight|bias))"
    block += r"|ln_[12]\.(weight|bias)|mlp\.c_(fc|proj)\.(weight|bias))"
    top = r"positional_embedding|text_projection|logit_scale|token_embedding\.weight|ln_final\.(weight|bias)"
    visual = r"visual\.(class_embedding|positional_embedding|proj|conv1\.weight|ln_(pre|post)\.(weight|bias))"
    names = safetensors.torch.load_file(exported / "model.safetensors")
    assert all(re.fullmatch(f"{block}|{top}|{visual}", name) for name in names)


def test_an_export_is_the_same_bytes_again(exported: Path, trained: Path, tmp_path: Path) -> None:
    assert main([str(trained), "--out", str(tmp_path / "model.safetensors"), "--step", "6"]) == 0
    for name in ("model.safetensors", "model.json", "model.vocabulary"):
        assert (tmp_path / name).read_bytes() == (exported / name).read_bytes()


@pytest.mark.parametrize("name", ["", "model.safetensors", "model.json"])
def test_a_model_loads_by_folder_file_or_card(exported: Path, name: str) -> None:
    model, read_ids, card = load_model(str(exported / name))
    assert not model.training
    ids = read_ids(["a red circle on white ground"])
    assert ids.shape == (1, card.context_length)
    assert int(ids.max()) == card.vocab_size - 1, "the end mark is the largest id"
    assert model.encode_text(ids).shape == (1, card.embed_dim)
    assert model.encode_image(torch.zeros(1, 3, card.image_size, card.image_size)).shape == (1, card.embed_dim)


@pytest.mark.parametrize("preset", ["tiny-vit", "tiny"])
def test_out_and_in_again_is_the_same_to_the_bit(preset: str) -> None:
    torch.manual_seed(1)
    first, second = models.build(preset), models.build(preset)
    state = to_state_dict(first)
    assert state["logit_scale"].shape == ()
    load_weights(second, state | {"context_length": torch.tensor(32), "vocab_size": torch.tensor(2048)})
    assert all(torch.equal(first.state_dict()[name], value) for name, value in second.state_dict().items())
    state["text_projection"].zero_()
    assert first.text_projection.abs().sum() > 0, "an export is a copy"


def test_weights_of_another_model_are_refused() -> None:
    model = models.build("tiny-vit")
    state = to_state_dict(model)
    with pytest.raises(InputError, match=r"1 names are missing and 0 unknown \('ln_final\.bias' is missing\)"):
        load_weights(model, {name: value for name, value in state.items() if name != "ln_final.bias"})
    with pytest.raises(InputError, match="0 names are missing and 1 unknown"):
        load_weights(model, state | {"head.weight": torch.zeros(1)})
    with pytest.raises(InputError, match=r"'text_projection' has shape \[3, 3\], 'tiny-vit' has \[128, 128\]"):
        load_weights(model, state | {"text_projection": torch.zeros(3, 3)})
    with pytest.raises(InputError, match="names: 'timm' is unknown"):
        load_weights(model, state, names="timm")


@pytest.mark.parametrize(("name", "kind"), [("model.safetensors", "weights"), ("model.vocabulary", "vocabulary")])
def test_files_that_are_not_the_cards_are_refused(copy: Path, name: str, kind: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[-1] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(InputError, match=f"{name}: not the {kind} that 'model.json' describes"):
        load_model(str(copy))


def test_a_card_of_another_version_is_refused(copy: Path) -> None:
    card = copy / "model.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"format_version": 7, "added_later": 1}))
    with pytest.raises(InputError, match=r"model\.json: format_version 7, this version of the trainer reads 4"):
        load_model(str(copy))


@pytest.mark.parametrize(
    "change", [{"pixel_std": [0.2, 0.0, 0.2]}, {"vocabulary": "a\0b"}, {"vocabulary": "\ud800"}, {"weights": ""}, None]
)
def test_a_card_that_cannot_be_is_refused(copy: Path, change: dict[str, object] | None) -> None:
    """A deviation of 0 would divide by it; no file has such names; None: a text that is too deep to read."""
    card = copy / "model.json"
    card.write_text("[" * 100_000 if change is None else json.dumps(json.loads(card.read_text()) | change))
    with pytest.raises(InputError, match=r"model\.json: not the card of an exported model"):
        load_model(str(copy))


@pytest.mark.parametrize("key", ["embed_dim", "parameters"])
def test_a_card_of_other_sizes_is_refused(copy: Path, key: str) -> None:
    card = copy / "model.json"
    said = json.loads(card.read_text())
    card.write_text(json.dumps(said | {key: 5}))
    with pytest.raises(InputError, match=rf"model\.safetensors: {key} {said[key]}, where its card says 5"):
        load_model(str(copy))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("vocab_size", 1 << 24, "'token_embedding.weight' has shape"),
        ("image_size", 1 << 14, "'visual.positional_embedding' has shape"),
        ("vocab_size", 10**13, "not the card of an exported model"),
        ("embed_dim", -1, "not the card of an exported model"),
    ],
)
def test_sizes_that_a_card_makes_up_cost_nothing(copy: Path, key: str, value: int, said: str) -> None:
    card = copy / "model.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {key: value}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=said):
        load_model(str(copy))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


def test_a_folder_must_hold_one_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds 0 \.safetensors files"):
        load_model(str(tmp_path))


def test_what_cannot_be_exported(trained: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "m.safetensors")
    with pytest.raises(InputError, match="no checkpoint in it"):
        export(str(tmp_path), out)
    with pytest.raises(InputError, match=r"--step: 5 has no checkpoint .* there are step-00000006, step-00000004"):
        export(str(trained), out, 5)
    with pytest.raises(InputError, match=r"has no 'ema' of .*export without --ema"):
        export(str(trained), out, ema=True)
    with pytest.raises(InputError, match=r"does not end in '\.safetensors'"):
        export(str(trained), str(tmp_path / "m.pt"))
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    (run / "config.toml").write_text((run / "config.toml").read_text().replace("seed = 0", "seed = 1"))
    with pytest.raises(InputError, match=r"config\.toml: not the configuration"):
        export(str(run), out)
    assert not (tmp_path / "m.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("init.safetensors", "'init.safetensors' would take the place of '.*/init.json', which is no card"),
        ("checkpoints/x.safetensors", "lies among the run's checkpoints"),
        ("checkpoints/step-00000006/rank-00000.safetensors", "lies among the run's checkpoints"),
    ],
)
def test_an_export_takes_no_other_files_place(name: str, said: str, trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    (run / "init.json").write_text('{"init_from": "x", "sha256": "y"}')
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=f"--out: .*{said}"):
        export(str(run), str(run / name))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    for _ in range(2):  # a card of ours may be replaced
        export(str(run), str(run / "model.safetensors"))


def test_a_vocabulary_that_is_not_the_runs_is_not_exported(trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    (run / "vocabulary").write_bytes((run / "vocabulary").read_bytes() + b" ")
    with pytest.raises(InputError, match=r"run/vocabulary: not the vocabulary that 'step-00000006' was trained with"):
        export(str(run), str(tmp_path / "m.safetensors"))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_damaged_checkpoint_is_not_exported(trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    newest = run / "checkpoints" / "step-00000006" / checkpoint.rank_file(0)
    newest.write_bytes(newest.read_bytes()[:-8])
    assert export(str(run), str(tmp_path / "m.safetensors")).step == 4
    with pytest.raises(InputError, match="none of its checkpoints is whole"):
        export(str(run), str(tmp_path / "m.safetensors"), 6)
    assert json.loads((tmp_path / "m.json").read_text())["step"] == 4


@pytest.mark.parametrize("names", ["open_clip", "transformers"])
def test_an_export_under_other_names_is_the_same_model(
    names: str, exported: Path, trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / names / "model.safetensors"
    assert main([str(trained), "--out", str(out), "--names", names]) == 0
    ours, theirs = load_model(str(exported)), load_model(str(out.parent))
    assert theirs[2].names == names
    unlike = {"names", "weights", "weights_sha256", "vocabulary"}
    assert theirs[2].model_dump(exclude=unlike) == ours[2].model_dump(exclude=unlike)
    for name, tensor in ours[0].state_dict().items():
        assert torch.equal(theirs[0].state_dict()[name], tensor), name
    keys = load_file(out).keys()
    if names == "transformers":
        assert "text_model.encoder.layers.1.self_attn.q_proj.weight" in keys
        config = json.loads((out.parent / "config.json").read_text())
        assert config["vision_config"]["hidden_size"] // config["vision_config"]["num_attention_heads"] == 64
        assert (config["vision_config"]["image_size"], config["text_config"]["max_position_embeddings"]) == (32, 16)
        ids = theirs[1](["a red circle"])[0].tolist()
        assert config["text_config"]["bos_token_id"] == ids[0]
        assert config["text_config"]["eos_token_id"] == max(ids) != 2, "transformers takes 2 for the largest id"
        with safetensors.safe_open(out, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}, "transformers refuses files that do not say so"
    else:
        config = json.loads((out.parent / "open_clip_config.json").read_text())["model_cfg"]
        assert config["quick_gelu"] is True
        assert config["text_cfg"] == {"context_length": 16, "vocab_size": 566, "width": 128, "heads": 2, "layers": 2}
        assert config["vision_cfg"] == {"image_size": 32, "layers": 4, "width": 192, "patch_size": 8}


def test_where_other_libraries_would_not_find_it_is_no_place(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"transformers looks for 'model\.safetensors'.* --out .*/b32/model\.safetensors"
    ):
        export(str(trained), str(tmp_path / "b32.safetensors"), names="transformers")
    with pytest.raises(InputError, match=r"the card of 'open_clip_config\.safetensors' would be"):
        export(str(trained), str(tmp_path / "open_clip_config.safetensors"), names="open_clip")
    assert not list(tmp_path.iterdir())
