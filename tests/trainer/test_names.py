"""Names and shapes of the other libraries, against tables taken from those libraries, in both directions, and out and in again."""

import dataclasses
import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pipeline.contracts.errors import InputError
from tests.trainer.released import OPENAI, Shapes, released_shapes
from trainer import models
from trainer.export import load_weights, to_state_dict
from trainer.names import Names, from_names, gelus_in, open_clip_config, to_names, transformers_config

VITS = {"ViT-B/32": (12, 768, 32, 224, 512, 512), "ViT-B/16": (12, 768, 16, 224, 512, 512)}
VITS |= {"ViT-L/14": (24, 1024, 14, 224, 768, 768), "ViT-L/14@336px": (24, 1024, 14, 336, 768, 768)}
"""Layers, width, patch, image, joint space, text width (paper, Table 19)."""
TINY = {"tiny-vit": (4, 192, 8, 64, 128, 128, 2, 32, 2048), "tiny-16": (1, 384, 8, 16, 128, 128, 1, 16, 2048)}
"""The same, and text layers, context, vocabulary."""


def clip_model(
    layers: int, width: int, patch: int, image: int, embed: int, text_width: int, text_layers: int = 12,
    context: int = 77, vocabulary: int = 49408,
) -> Shapes:  # fmt: skip
    """Names and shapes of `CLIPModel.state_dict()`, as transformers 5.24.0 printed them."""
    shapes: Shapes = {
        "logit_scale": (),
        "text_model.embeddings.token_embedding.weight": (vocabulary, text_width),
        "text_model.embeddings.position_embedding.weight": (context, text_width),
        "text_model.final_layer_norm.weight": (text_width,),
        "text_model.final_layer_norm.bias": (text_width,),
        "text_projection.weight": (embed, text_width),
        "vision_model.embeddings.class_embedding": (width,),
        "vision_model.embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "vision_model.embeddings.position_embedding.weight": ((image // patch) ** 2 + 1, width),
        "vision_model.pre_layrnorm.weight": (width,),
        "vision_model.pre_layrnorm.bias": (width,),
        "vision_model.post_layernorm.weight": (width,),
        "vision_model.post_layernorm.bias": (width,),
        "visual_projection.weight": (embed, width),
    }
    for model, depth, across in (("text_model", text_layers, text_width), ("vision_model", layers, width)):
        for number in range(depth):
            at = f"{model}.encoder.layers.{number}"
            for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
                shapes[f"{at}.self_attn.{projection}.weight"] = (across, across)
                shapes[f"{at}.self_attn.{projection}.bias"] = (across,)
            for norm in ("layer_norm1", "layer_norm2"):
                shapes[f"{at}.{norm}.weight"] = shapes[f"{at}.{norm}.bias"] = (across,)
            shapes[f"{at}.mlp.fc1.weight"], shapes[f"{at}.mlp.fc1.bias"] = (4 * across, across), (4 * across,)
            shapes[f"{at}.mlp.fc2.weight"], shapes[f"{at}.mlp.fc2.bias"] = (across, 4 * across), (across,)
    return shapes


def shapes_of(weights: dict[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


@functools.cache
def on_meta(preset: str) -> dict[str, Tensor]:
    """Weights in the shapes that files have, without memory."""
    with torch.device("meta"):
        weights = models.build(preset).state_dict()
    return weights | {"logit_scale": weights["logit_scale"].reshape(())}


def same(first: models.CLIP, second: models.CLIP) -> bool:
    one, two = first.state_dict(), second.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("preset", [*VITS, *TINY])
def test_transformers_names_and_shapes_are_clip_models(preset: str) -> None:
    assert shapes_of(to_names(on_meta(preset), "transformers")) == clip_model(*(VITS | TINY)[preset])


@pytest.mark.parametrize("names", ["openai", "open_clip"])
@pytest.mark.parametrize("preset", OPENAI)
def test_what_goes_out_has_the_names_and_shapes_of_the_released_files(preset: str, names: Names) -> None:
    """open_clip's CLIP has OpenAI's."""
    assert shapes_of(to_names(on_meta(preset), names)) == released_shapes(preset)


@pytest.mark.parametrize(
    ("preset", "names"),
    [
        *((preset, names) for preset in OPENAI for names in ("openai", "open_clip")),
        *((vit, "transformers") for vit in VITS),
    ],
)
def test_a_file_of_each_table_comes_in_whole(preset: str, names: Names) -> None:
    """Its tensors are made from the library's table."""
    table = clip_model(*VITS[preset]) if names == "transformers" else released_shapes(preset)
    given = {name: torch.empty(shape, device="meta") for name, shape in table.items()}
    found = from_names(given, on_meta(preset), names)
    assert (found.missing, found.unknown) == ([], [])
    assert shapes_of(found.weights) == released_shapes(preset)


@pytest.mark.parametrize("names", ["openai", "open_clip", "transformers"])
@pytest.mark.parametrize("preset", ["tiny", "tiny-vit", "tiny-16"])
def test_out_and_in_again_is_the_same_to_the_bit(preset: str, names: Names) -> None:
    first, second = models.build(preset), models.build(preset)
    if preset == "tiny" and names == "transformers":
        with pytest.raises(
            InputError, match=r"CLIPModel cannot hold 'tiny', it has no place for 'visual.*no ResNet.*use 'openai'"
        ):
            to_state_dict(first, names)
        return
    state = to_state_dict(first, names)
    assert state["logit_scale"].shape == ()
    load_weights(second, state, names)
    assert same(first, second)
    for tensor in state.values():
        tensor.zero_()
    assert same(first, second), "an export is a copy"


def test_transformers_parts_lie_where_clip_model_reads_them() -> None:
    model = models.build("tiny-vit")
    ours, theirs = model.state_dict(), to_state_dict(model, "transformers")
    assert torch.equal(theirs["visual_projection.weight"], ours["visual.proj"].T)
    assert torch.equal(theirs["text_projection.weight"], ours["text_projection"].T)
    for tower, model_name, width in (("visual.", "vision_model", 192), ("", "text_model", 128)):
        packed = ours[f"{tower}transformer.resblocks.1.attn.in_proj_weight"]
        at = f"{model_name}.encoder.layers.1"
        for place, letter in enumerate("qkv"):
            part = theirs[f"{at}.self_attn.{letter}_proj.weight"]
            assert torch.equal(part, packed[place * width : (place + 1) * width])
        assert torch.equal(theirs[f"{at}.mlp.fc2.weight"], ours[f"{tower}transformer.resblocks.1.mlp.c_proj.weight"])
    assert torch.equal(theirs["vision_model.embeddings.patch_embedding.weight"], ours["visual.conv1.weight"])


def custom_text(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As open_clip's CustomTextCLIP has them."""
    own = ("visual.", "logit_")
    return {name if name.startswith(own) else f"text.{name}": tensor for name, tensor in state.items()}


def wrapped(state: dict[str, Tensor], prefix: str = "module.") -> dict[str, Tensor]:
    """As open_clip's trainer saves them from several processes."""
    return {prefix + name: tensor for name, tensor in state.items()}


def with_mask(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As open_clip wrote them before the mask stopped being kept, with the numbers of OpenAI's archives."""
    numbers = {name: torch.tensor(77) for name in ("input_resolution", "context_length", "vocab_size")}
    return state | {"attn_mask": torch.zeros(32, 32)} | numbers


def with_positions(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As transformers wrote them before 4.31."""
    numbers = torch.arange(65)[None]
    at = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")
    return state | dict.fromkeys(at, numbers)


@pytest.mark.parametrize(
    ("names", "change", "bias"),
    [
        ("open_clip", custom_text, -10.0),
        ("open_clip", lambda state: wrapped(custom_text(state)), None),
        ("openai", lambda state: wrapped(state, "module._orig_mod."), None),
        ("openai", lambda state: wrapped(state, "_orig_mod.module."), None),
        ("transformers", lambda state: wrapped(state, "_orig_mod."), None),
        ("open_clip", with_mask, None),
        ("openai", with_mask, None),
        ("transformers", with_positions, None),
    ],
)
def test_what_others_add_is_read(
    names: Names, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], bias: float | None
) -> None:
    first, second = (models.build("tiny-vit", logit_bias=bias) for _ in range(2))
    load_weights(second, change(to_state_dict(first, names)), names)
    assert same(first, second)


@pytest.mark.parametrize("gelu", ["quick", "exact"])
def test_other_libraries_are_told_which_gelu(gelu: models.Gelu) -> None:
    preset = dataclasses.replace(models.PRESETS["ViT-B/32"], gelu=gelu)
    told = transformers_config(preset)
    quick = gelu == "quick"
    assert {told[f"{tower}_config"]["hidden_act"] for tower in ("text", "vision")} == {
        "quick_gelu" if quick else "gelu"
    }
    found = open_clip_config(preset, mean=(0, 0, 0), std=(1, 1, 1), logit_bias=None)
    assert found["model_cfg"]["quick_gelu"] is quick


@pytest.mark.parametrize("names", ["open_clip", "transformers"])
def test_a_bag_of_words_has_no_class_elsewhere(names: Names) -> None:
    model = models.build("tiny-vit", text="bag_of_words")
    again = models.build("tiny-vit", text="bag_of_words")
    load_weights(again, to_state_dict(model), names="openai")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(InputError, match=f"'{names}' has no class for the bag of words of 'tiny-vit'; use 'openai'"):
        to_state_dict(model, names)


@pytest.mark.parametrize(
    ("names", "told", "said"),
    [
        ("transformers", {"text_config": {"hidden_act": "gelu"}, "vision_config": {"hidden_act": "gelu"}}, {"exact"}),
        ("transformers", {"text_config": {}, "vision_config": {}}, {"quick"}),  # CLIPTextConfig's default
        ("transformers", {"text_config": {"hidden_act": "gelu"}, "vision_config": None}, {"exact"}),
        ("transformers", {"text_config": {"hidden_act": "gelu_new"}, "vision_config": {}}, {"gelu_new", "quick"}),
        ("transformers", {"architectures": ["ViTModel"]}, set()),
        ("open_clip", {"model_cfg": {"quick_gelu": True}}, {"quick"}),
        ("open_clip", {"model_cfg": {"embed_dim": 512}}, {"exact"}),  # CLIP's default
        ("open_clip", {"model_cfg": 3}, set()),
        ("open_clip", ["model_cfg"], set()),
    ],
)
def test_their_configurations_say_which_gelu(names: Names, told: object, said: set[str]) -> None:
    assert gelus_in(told, names) == said


def test_half_precision_is_cast_to_the_models() -> None:
    model = models.build("tiny-vit")
    state = {name: tensor.half() for name, tensor in to_state_dict(model, "transformers").items()}
    load_weights(model, state, "transformers")
    assert model.visual.proj.dtype == torch.float32
    assert torch.equal(model.state_dict()["visual.proj"], state["visual_projection.weight"].T.float())


def test_what_does_not_fit_is_named_and_changes_nothing() -> None:
    model, other = models.build("tiny-vit"), models.build("tiny-vit")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = to_state_dict(other, "transformers")
    key = "vision_model.encoder.layers.0.self_attn.k_proj.weight"
    with pytest.raises(
        InputError, match=r"1 names are missing and 0 unknown \('vision_model.*k_proj.weight' is missing\)"
    ):
        load_weights(model, {name: tensor for name, tensor in state.items() if name != key}, "transformers")
    with pytest.raises(InputError, match=r"0 names are missing and 1 unknown \('vision_model.head' is unknown\)"):
        load_weights(model, state | {"vision_model.head": torch.zeros(1)}, "transformers")
    with pytest.raises(
        InputError, match=r"resblocks.0.attn.in_proj_weight' has shape \[7, 5\], 'tiny-vit' has \[576, 192\]"
    ):
        load_weights(model, state | {key: torch.zeros(7, 5)}, "transformers")
    shifted = {
        key.replace("k_proj", letter): torch.zeros(rows, 192) for letter, rows in (("q_proj", 100), ("k_proj", 284))
    }
    tripled = {
        key.replace("k_proj", letter): torch.zeros(rows, 192) for letter, rows in (("q_proj", 7), ("k_proj", 576))
    }
    for parts, rows in ((shifted, 284), (tripled, 192)):
        with pytest.raises(InputError, match=rf"attn.in_proj_weight' has shape \[{rows}, 192\], .* has \[576, 192\]"):
            load_weights(model, state | parts, "transformers")
    with pytest.raises(InputError, match=r"'visual.proj' has shape \[2, 2, 2\]"):
        load_weights(model, state | {"visual_projection.weight": torch.zeros(2, 2, 2)}, "transformers")
    quantised = {"visual_projection.weight": (128, 192), key: (192, 192)}  # the second becomes a third of one of ours
    for name, shape in quantised.items():
        with pytest.raises(InputError, match=r"has numbers of torch.int8, .* take unquantised ones"):
            load_weights(model, state | {name: torch.zeros(shape, dtype=torch.int8)}, "transformers")
    with pytest.raises(InputError, match="they look like names of 'transformers'"):
        load_weights(model, state)
    with pytest.raises(InputError, match="they look like names of 'open_clip'"):
        load_weights(model, custom_text(to_state_dict(other)))
    with pytest.raises(InputError, match="names: 'timm' is unknown; use one of 'openai', 'open_clip', 'transformers'"):
        to_state_dict(model, "timm")
    with pytest.raises(InputError, match="CLIPModel cannot hold 'tiny-vit', it has no place for 'logit_bias'"):
        to_state_dict(models.build("tiny-vit", logit_bias=-10.0), "transformers")
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
