"""The models against independent truths: published sizes, OpenAI's key and shape table, and twins written the slow way.

The twins read a state dict and use `torch.nn.MultiheadAttention`'s own function, an explicit -inf mask and plain loops, so they share no
code with the towers.
"""

import copy
import logging
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.contracts.errors import InputError
from tests.trainer.allocated import allocations
from tests.trainer.released import OPENAI, RESNETS, VITS, released_shapes
from trainer.models import CLIP, PRESETS, Preset, ResNetShape, ViTShape, build
from trainer.models.checkpointing import Checkpointing
from trainer.models.transformer import Block

State = dict[str, Tensor]

SMALL_VIT = Preset("small", 48, 32, ViTShape(2, 128, 8), 64, 2, 1e-3, (0.9, 0.98), 1e-6, 12, 50)
SMALL_RN = Preset("small-rn", 48, 64, ResNetShape((2, 1, 1, 1), 16), 64, 2, 1e-3, (0.9, 0.999), 1e-8, 12, 50)
GRAD_OF_TRACED = "ignore:The .grad attribute of a Tensor that is not a leaf"
"""Torch's own look at what it traces."""


@pytest.mark.parametrize("name", OPENAI)
def test_presets_have_openais_keys_shapes_and_sizes(name: str) -> None:
    with torch.device("meta"):
        model = build(name)
    expected = released_shapes(name) | {"logit_scale": (1,)}
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == expected
    millions, _, image = RESNETS[name][:3] if name in RESNETS else VITS[name][:3]
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == millions
    assert model.preset.image_size == image


def test_presets_carry_the_papers_optimiser_settings() -> None:
    rates = {name: PRESETS[name].lr for name in OPENAI}
    assert rates == {
        "RN50": 5e-4,
        "RN101": 5e-4,
        "RN50x4": 5e-4,
        "RN50x16": 4e-4,
        "RN50x64": 3.6e-4,
        "ViT-B/32": 5e-4,
        "ViT-B/16": 5e-4,
        "ViT-L/14": 4e-4,
        "ViT-L/14@336px": 2e-5,
    }
    for name in OPENAI:
        vit = name.startswith("ViT")
        assert (PRESETS[name].betas, PRESETS[name].eps) == (((0.9, 0.98), 1e-6) if vit else ((0.9, 0.999), 1e-8))


def naive_attention(state: State, at: str, x: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    """[n, L, w] through torch's own multi-head function, which takes [L, n, w] and returns all L queries."""
    width = x.shape[-1]
    out, _ = functional.multi_head_attention_forward(
        *(x.transpose(0, 1),) * 3,
        embed_dim_to_check=width,
        num_heads=heads,
        in_proj_weight=state[at + "in_proj_weight"],
        in_proj_bias=state[at + "in_proj_bias"],
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=state[at + "out_proj.weight"],
        out_proj_bias=state[at + "out_proj.bias"],
        training=False,
        need_weights=False,
        attn_mask=mask,
    )
    return out.transpose(0, 1)


def naive_norm(state: State, at: str, x: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * state[at + ".weight"] + state[at + ".bias"]


def naive_transformer(
    state: State, prefix: str, x: Tensor, layers: int, heads: int, mask: Tensor | None, *, quick: bool = True
) -> Tensor:
    for i in range(layers):
        at = f"{prefix}transformer.resblocks.{i}."
        x = x + naive_attention(state, at + "attn.", naive_norm(state, at + "ln_1", x), heads, mask)
        hidden = naive_norm(state, at + "ln_2", x) @ state[at + "mlp.c_fc.weight"].T + state[at + "mlp.c_fc.bias"]
        hidden = hidden / (1 + torch.exp(-1.702 * hidden)) if quick else hidden * torch.special.ndtr(hidden)
        x = x + hidden @ state[at + "mlp.c_proj.weight"].T + state[at + "mlp.c_proj.bias"]
    return x


def naive_vit(state: State, pixels: Tensor, layers: int, patch: int, *, quick: bool = True) -> Tensor:
    kernel = state["visual.conv1.weight"]
    rows = []
    for top in range(0, pixels.shape[2], patch):
        for left in range(0, pixels.shape[3], patch):
            square = pixels[:, :, top : top + patch, left : left + patch]
            rows.append(torch.einsum("nchw,ochw->no", square, kernel))
    first = state["visual.class_embedding"].expand(len(pixels), -1)
    x = torch.stack([first, *rows], dim=1) + state["visual.positional_embedding"]
    x = naive_norm(state, "visual.ln_pre", x)
    x = naive_transformer(state, "visual.", x, layers, len(first[0]) // 64, None, quick=quick)
    return naive_norm(state, "visual.ln_post", x[:, 0]) @ state["visual.proj"]


def naive_text(state: State, ids: Tensor, layers: int, *, quick: bool = True) -> Tensor:
    """One caption at a time, the mask written out, every position kept until the end."""
    features = []
    for row in ids:
        x = (state["token_embedding.weight"][row] + state["positional_embedding"])[None]
        mask = torch.full((len(row), len(row)), -math.inf).triu(1)
        x = naive_transformer(state, "", x.double(), layers, x.shape[-1] // 64, mask.double(), quick=quick)
        x = naive_norm(state, "ln_final", x)
        end = max(range(len(row)), key=lambda place: int(row[place]))
        features.append(x[0, end] @ state["text_projection"])
    return torch.stack(features)


def naive_resnet(state: State, pixels: Tensor, blocks: tuple[int, ...]) -> Tensor:
    """Evaluation mode, straight from the names, with the attention pool asking every place and keeping the first answer."""

    def norm(x: Tensor, at: str) -> Tensor:
        shift = state[at + ".running_mean"][:, None, None]
        spread = (state[at + ".running_var"] + 1e-5).sqrt()[:, None, None]
        return (x - shift) / spread * state[at + ".weight"][:, None, None] + state[at + ".bias"][:, None, None]

    def unit(x: Tensor, conv: str, bn: str, stride: int = 1) -> Tensor:
        kernel = state[conv + ".weight"]
        return norm(functional.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2), bn)

    x = pixels
    for i, stride in ((1, 2), (2, 1), (3, 1)):
        x = unit(x, f"visual.conv{i}", f"visual.bn{i}", stride).clamp(min=0)
    x = functional.avg_pool2d(x, 2)
    for stage in range(4):
        for j in range(blocks[stage]):
            at = f"visual.layer{stage + 1}.{j}"
            shrink = 2 if stage > 0 and j == 0 else 1
            inner = unit(x, f"{at}.conv1", f"{at}.bn1").clamp(min=0)
            inner = unit(inner, f"{at}.conv2", f"{at}.bn2").clamp(min=0)
            inner = unit(functional.avg_pool2d(inner, shrink), f"{at}.conv3", f"{at}.bn3")
            if j == 0:
                x = unit(functional.avg_pool2d(x, shrink), f"{at}.downsample.0", f"{at}.downsample.1")
            x = (x + inner).clamp(min=0)
    tokens = x.flatten(2).permute(0, 2, 1)
    tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1) + state["visual.attnpool.positional_embedding"]

    def project(name: str) -> Tensor:
        return tokens @ state[f"visual.attnpool.{name}.weight"].T + state[f"visual.attnpool.{name}.bias"]

    q, k, v = (project(name).view(*tokens.shape[:2], -1, 64) for name in ("q_proj", "k_proj", "v_proj"))
    weights = (torch.einsum("nqhd,nkhd->nhqk", q, k) / 8).softmax(-1)
    pooled = torch.einsum("nhqk,nkhd->nqhd", weights, v).flatten(2)
    out = pooled @ state["visual.attnpool.c_proj.weight"].T + state["visual.attnpool.c_proj.bias"]
    return out[:, 0]


def some_ids(n: int, preset: Preset) -> Tensor:
    """Captions of different lengths: the end mark is the largest id, zeros follow."""
    ids = torch.randint(0, preset.vocab_size - 1, (n, preset.context_length))
    for row, end in enumerate(torch.randint(2, preset.context_length, (n,)).tolist()):
        ids[row, end] = preset.vocab_size - 1
        ids[row, end + 1 :] = 0
    return ids


def test_vit_and_text_equal_naive_twins() -> None:
    torch.manual_seed(1)
    model = build(SMALL_VIT).double()
    state = {key: value.detach() for key, value in model.state_dict().items()}
    pixels, ids = torch.randn(3, 3, 32, 32, dtype=torch.float64), some_ids(5, SMALL_VIT)
    torch.testing.assert_close(model.encode_image(pixels), naive_vit(state, pixels, 2, 8), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model.encode_text(ids), naive_text(state, ids, 2), rtol=1e-10, atol=1e-10)


def test_resnet_equals_a_naive_twin_with_a_full_attention_pool() -> None:
    torch.manual_seed(2)
    model = build(SMALL_RN).double().eval()
    # A fresh block is the identity and a fresh batch norm hides the statistics: draw all of them.
    state = {
        key: torch.rand_like(value) + 0.5 if "bn" in key or "downsample.1" in key else value.detach()
        for key, value in model.state_dict().items()
        if value.is_floating_point()
    }
    model.load_state_dict(state, strict=False)
    pixels = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    expected = naive_resnet(state, pixels, (2, 1, 1, 1))
    torch.testing.assert_close(model.encode_image(pixels), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("dtype", "most_apart"), [(torch.float16, 0.005), (torch.bfloat16, 0.04)])
@pytest.mark.parametrize("training", [True, False])
def test_a_resnets_half_precision_weights_go_with_statistics_in_fp32(
    dtype: torch.dtype, most_apart: float, training: bool
) -> None:
    """As DeepSpeed hands them over. The same weights and pixels in fp64 say what features and statistics should be."""
    torch.manual_seed(2)
    model = build(SMALL_RN).train(training)
    for name, value in model.state_dict().items():
        if "bn" in name and value.is_floating_point():
            value.uniform_(0.5, 1.5)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    pixels = torch.randn(4, 3, 64, 64).to(dtype)
    true = copy.deepcopy(model).double()
    features, expected = model.encode_image(pixels).detach(), true.encode_image(pixels.double()).detach()
    assert features.dtype == dtype
    assert float((features.double() - expected).norm() / expected.norm()) < most_apart
    for (name, ours), theirs in zip(model.named_buffers(), true.buffers(), strict=True):
        assert ours.dtype == (torch.int64 if "num_batches" in name else torch.float32)
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=most_apart, atol=most_apart)


def papers_deviation(key: str, state: State, preset: Preset) -> float:
    """What openai/CLIP's constructors and `initialize_parameters` draw a weight with; 0 for what starts at one number."""
    kind, last = key.rpartition(".")[0].rpartition(".")[2], key.rpartition(".")[2]
    text_width, tower_width = preset.text_width, state["visual.conv1.weight"].shape[0]
    tops: dict[str, float] = {
        "token_embedding.weight": 0.02,
        "positional_embedding": 0.01,
        "text_projection": text_width**-0.5,
    }
    if key in tops or key == "logit_scale":
        return tops.get(key, 0.0)
    if (
        kind.startswith(("ln_", "bn"))
        or "downsample.1." in key
        or last == "in_proj_bias"
        or key.endswith("out_proj.bias")
    ):
        return 0.0
    if key.startswith("transformer.") and last != "bias":
        into_residual = (2 * preset.text_layers * text_width) ** -0.5
        by_kind: dict[str, float] = {
            "out_proj": into_residual,
            "c_proj": into_residual,
            "c_fc": (2 * text_width) ** -0.5,
        }
        return by_kind.get(kind, math.sqrt(1 / text_width))
    if ".attnpool." in key and last != "bias":
        return float((32 * preset.vision.width) ** -0.5)
    if last in ("class_embedding", "positional_embedding", "proj"):
        return float(tower_width**-0.5)
    if last == "in_proj_weight":
        return float((2 / (tower_width + 3 * tower_width)) ** 0.5)  # xavier-uniform on [3w, w]
    weight = state[key.removesuffix("bias") + "weight"] if last == "bias" else state[key]
    return float((3 * weight[0].numel()) ** -0.5)  # torch's default of Linear and Conv: uniform in +-fan_in^-1/2


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.prove)], ids=["shallow", "whole"])
@pytest.mark.parametrize("name", OPENAI)
def test_initialisation_is_the_papers(name: str, whole: bool) -> None:
    """Every tensor: its deviation within six standard errors, its mean about 0. Shallow: the same widths with fewer blocks and ids."""
    torch.manual_seed(3)
    preset = PRESETS[name]
    if not whole:
        vision = preset.vision
        few: ViTShape | ResNetShape
        few = replace(vision, layers=1) if isinstance(vision, ViTShape) else replace(vision, blocks=(1, 1, 1, 1))
        preset = replace(preset, vision=few, text_layers=3, vocab_size=1000)
    model = build(preset)
    state, statistics = model.state_dict(), dict(model.named_buffers())
    for key, value in state.items():
        deviation = 0.0 if key in statistics else papers_deviation(key, state, preset)
        if deviation:
            error = 6 / math.sqrt(value.numel())
            assert float(value.std()) == pytest.approx(deviation, rel=error / math.sqrt(2)), key
            assert abs(float(value.mean())) < error * deviation, key
        else:
            gain = key.endswith("weight") and not (key.endswith("bn3.weight") and "layer" in key)
            one = math.log(1 / 0.07) if key == "logit_scale" else float(gain or key.endswith("running_var"))
            assert bool((value == torch.tensor(one, dtype=value.dtype)).all()), key


def test_scale_and_bias_start_where_they_are_told_and_come_out_of_forward() -> None:
    model = build("tiny-vit", logit_scale=math.log(10), logit_bias=-10.0)
    *_, scale, bias = model(torch.randn(2, 3, 64, 64), some_ids(2, model.preset))
    assert (scale.shape, bias.shape) == ((1,), (1,))
    assert float(scale.detach()) == pytest.approx(10.0)
    assert float(bias.detach()) == -10.0
    assert bias is not model.logit_bias, "DeepSpeed would hook the parameter as an output"
    assert "logit_bias" not in build("tiny-vit").state_dict()


@pytest.mark.parametrize("name", ["tiny-vit", "tiny"])
def test_forward_normalises_in_fp32_and_follows_the_end_mark_only(name: str) -> None:
    model = build(name, vocab_size=100, context_length=9).eval()
    ids = some_ids(4, model.preset)
    images, texts, scale = model(torch.randn(4, 3, 64, 64), ids)
    assert images.dtype == texts.dtype == scale.dtype == torch.float32
    assert scale.shape == (1,)
    torch.testing.assert_close(images.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(4))
    behind = torch.arange(9) > ids.argmax(1, keepdim=True)
    torch.testing.assert_close(model.encode_text(ids), model.encode_text(ids.masked_fill(behind, 7)))
    cut = int(ids.argmax(1).max()) + 1
    torch.testing.assert_close(model.encode_text(ids), model.encode_text(ids[:, :cut]))
    half = model.bfloat16()(torch.randn(4, 3, 64, 64), ids)
    assert {part.dtype for part in half} == {torch.float32}


@pytest.mark.parametrize(
    ("preset", "options", "message"),
    [
        ("RN50", {"patch_dropout": 0.5}, "patch_dropout: 0.5 for 'RN50'.*set it to 0"),
        ("ViT-B/16", {"patch_dropout": 1.0}, "from 0 to below 1"),
        ("ViT-B-32", {}, "did you mean 'ViT-B/32'"),
        ("resnext", {}, "known: RN50"),
        ("ViT-B/16", {"image_size": 225}, "multiple of 16"),
        ("RN50", {"image_size": 16}, "multiple of 32"),
        ("tiny-vit", {"context_length": 2}, "use 3 or more"),
        ("tiny-vit", {"vocab_size": 1}, "give the tokenizer's vocab_size"),
    ],
)
def test_impossible_models_are_refused(preset: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message), torch.device("meta"):
        build(preset, **options)


def test_sizes_can_be_replaced() -> None:
    with torch.device("meta"):
        model = build("RN50", image_size=256, context_length=52, vocab_size=600)
    assert model.visual.get_parameter("attnpool.positional_embedding").shape == (65, 2048)
    assert model.encode_text(torch.zeros(2, 52, dtype=torch.int64, device="meta")).shape == (2, 1024)


def test_batch_norm_sees_the_pictures_of_its_own_process_only() -> None:
    """Documents a limit: two shares of a batch give a ViT's features of the whole, and a ResNet's only in evaluation."""
    pixels = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(1))

    def difference(preset: str, training: bool) -> float:
        torch.manual_seed(0)
        model = build(preset, image_size=64).train(training)
        with torch.no_grad():
            whole = model.encode_image(pixels)
            shares = torch.cat([model.encode_image(share) for share in pixels.chunk(2)])
        return float((whole - shares).norm() / whole.norm())

    assert difference("tiny-vit", training=True) < 1e-5
    assert difference("tiny", training=False) < 1e-5
    assert difference("tiny", training=True) > 1e-2


# ---- switches


def test_exact_gelu_equals_the_naive_twins_with_the_normal_distribution_written_out() -> None:
    torch.manual_seed(1)
    model = build(SMALL_VIT, gelu="exact").double()
    assert model.preset.gelu == "exact"
    state = {key: value.detach() for key, value in model.state_dict().items()}
    pixels, ids = torch.randn(3, 3, 32, 32, dtype=torch.float64), some_ids(3, SMALL_VIT)
    with torch.no_grad():
        torch.testing.assert_close(model.encode_image(pixels), naive_vit(state, pixels, 2, 8, quick=False))
        torch.testing.assert_close(model.encode_text(ids), naive_text(state, ids, 2, quick=False))
        assert not torch.allclose(model.encode_image(pixels), naive_vit(state, pixels, 2, 8), rtol=1e-4)


def test_a_bag_of_words_is_the_mean_of_what_stands_before_the_end_in_any_order() -> None:
    torch.manual_seed(1)
    model = build(SMALL_VIT, text="bag_of_words").double()
    state = {key: value.detach() for key, value in model.state_dict().items()}
    assert not any(key.startswith("transformer.") or key == "positional_embedding" for key in state)
    ids = some_ids(5, SMALL_VIT)
    rows = [row[: row.tolist().index(SMALL_VIT.vocab_size - 1) + 1] for row in ids]
    means = torch.stack([torch.stack([state["token_embedding.weight"][i] for i in row]).mean(0) for row in rows])
    naive = naive_norm(state, "ln_final", means) @ state["text_projection"]
    torch.testing.assert_close(model.encode_text(ids).detach(), naive)
    turned = ids.clone()
    for row, words in zip(turned, rows, strict=True):
        row[: len(words) - 1] = words[:-1].flip(0)
        row[len(words) :] = 7  # what stands behind the end is not read
    torch.testing.assert_close(model.encode_text(turned).detach(), naive)


def seen_by_blocks(model: CLIP, pixels: Tensor) -> Tensor:
    """What goes into the first block of the image tower."""
    found: list[Tensor] = []
    hook = model.visual.get_submodule("ln_pre").register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    model.encode_image(pixels)
    hook.remove()
    return found[0].detach()


@pytest.mark.parametrize(("rate", "kept"), [(0.5, 8), (0.75, 4), (0.3, 11), (0.99, 1)])
def test_patch_dropout_keeps_the_class_token_and_so_many_patches(rate: float, kept: int) -> None:
    """Of 16 patches; each picture its own, in their order; none dropped outside of training."""
    torch.manual_seed(1)
    model = build(SMALL_VIT, patch_dropout=rate)
    pixels = torch.randn(40, 3, 32, 32)
    whole = seen_by_blocks(model.eval(), pixels)
    assert whole.shape[1] == 17
    part = seen_by_blocks(model.train(), pixels)
    assert part.shape[1] == 1 + kept
    assert torch.equal(part[:, 0], whole[:, 0])
    chosen = []
    for picture, all_patches in zip(part[:, 1:], whole[:, 1:], strict=True):
        places = [(all_patches == patch).all(dim=1).nonzero().item() for patch in picture]
        assert places == sorted(set(places))
        chosen.append(places)
    counts = torch.zeros(16).index_add_(0, torch.tensor(chosen).flatten(), torch.ones(40 * kept))
    assert counts.min() > 0 or kept == 1, "every patch is seen by some picture"
    assert kept == 16 or len({tuple(places) for places in chosen}) > 1, "pictures draw for themselves"
    assert not torch.equal(part, seen_by_blocks(model, pixels)), "and anew each time"


@pytest.mark.parametrize("preset", [SMALL_VIT, SMALL_RN], ids=["vit", "resnet"])
def test_checkpointed_blocks_give_the_same_bits_and_keep_less(preset: Preset) -> None:
    """What is kept: bytes that are allocated after the forward pass and were not before it."""
    dropout = 0.5 if isinstance(preset.vision, ViTShape) else 0.0

    def trained(checkpointed: Checkpointing) -> tuple[dict[str, Tensor], int]:
        torch.manual_seed(1)
        model = build(preset, patch_dropout=dropout, checkpoint_activations=checkpointed)
        pixels, ids = torch.randn(4, 3, preset.image_size, preset.image_size), some_ids(4, preset)
        outputs: list[Tensor] = []
        kept = sum(allocations(lambda: outputs.extend(model(pixels, ids))))
        images, texts, scale = outputs
        torch.autograd.backward((images @ texts.T * scale).logsumexp(1).sum())
        found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
        return found | dict(model.named_buffers()), kept

    plain, kept = trained("none")
    is_vit = preset is SMALL_VIT
    most: dict[Checkpointing, float] = {
        "activation": 0.75 if is_vit else 0.99,  # of a ResNet's model the text tower's alone
        "elementwise": 0.65 if is_vit else 0.85,
        "blocks": 0.45,
    }
    for how, share in most.items():
        again, kept_again = trained(how)
        assert plain.keys() == again.keys()
        assert all(torch.equal(plain[name], again[name]) for name in plain)
        assert kept_again < share * kept, (how, kept_again / kept)


@pytest.mark.filterwarnings(GRAD_OF_TRACED)
@pytest.mark.parametrize(
    ("blocks", "sizes"),
    [((2, 1, 1, 1), (2,)), pytest.param((2, 2, 2, 2), (3, 2), marks=pytest.mark.prove)],
    ids=["few", "many"],
)
def test_no_block_is_left_uncompiled(blocks: tuple[int, int, int, int], sizes: tuple[int, ...]) -> None:
    """Five shapes of a ResNet's blocks, or eight, in both modes of gradient caching: torch's own limit is 8 programs."""
    model = build(replace(SMALL_RN, vision=ResNetShape(blocks, 16)))
    model.compile_blocks("eager")
    torch._dynamo.reset()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for size in sizes:
            pixels, ids = torch.randn(size, 3, 64, 64), some_ids(size, SMALL_RN)
            with torch.no_grad():
                model(pixels, ids)
            model(pixels, ids)


@pytest.mark.filterwarnings(GRAD_OF_TRACED)
@pytest.mark.parametrize("how", ["none", "activation", "elementwise", "blocks"])
def test_a_text_tower_has_few_programs_for_all_groups(how: Checkpointing) -> None:
    """One for the blocks and one for the last, for a single text again, and for a first shape that is square."""
    model = build(SMALL_VIT, checkpoint_activations=how)
    programs = 0

    def counted(graph: torch.fx.GraphModule, _: object) -> Callable[..., Any]:
        nonlocal programs
        programs += 1
        return graph.forward

    assert model.transformer is not None
    for block in model.transformer.resblocks:
        block.compile(dynamic=True, backend=counted)  # as `compile_blocks` does, but for what a GPU is told
    torch._dynamo.reset()
    for n, length in ((5, 4), (3, 6), (9, 9), (1, 7), (2, 5), (8, 3), (1, 4), (40, 8)):
        torch.autograd.backward(model.encode_text(some_ids(n, SMALL_VIT)[:, :length]).sum())
    assert 2 <= programs <= 2 + 2 + 1


@pytest.mark.filterwarnings(GRAD_OF_TRACED)
@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script_method` is deprecated"
)  # torch's own, where its compiler is first imported
@pytest.mark.parametrize(("how", "times"), [("none", 0), ("activation", 0), ("elementwise", 0), ("blocks", 1)])
@pytest.mark.parametrize("at", [None, torch.tensor([2, 0, 3])], ids=["block", "last block"])
def test_a_compiled_block_keeps_the_sum_of_its_residual(
    how: Checkpointing, times: int, at: Tensor | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Its backward program does not make it again from what it was given, unless it makes everything again. Nobody is warned of that."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch._aot_autograd.utils import make_boxed_func
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch._inductor.decomposition import select_decomp_table
    from torch._logging._internal import warning_once

    backward: list[torch.fx.GraphModule] = []

    def seen(graph: torch.fx.GraphModule, _: object) -> Any:
        backward.append(graph)
        return make_boxed_func(graph.forward)

    backend = aot_autograd(
        fw_compiler=lambda graph, _: make_boxed_func(graph.forward),
        bw_compiler=seen,
        partition_fn=min_cut_rematerialization_partition,
        decompositions=select_decomp_table(),
    )
    block = Block(64, causal=True, gelu="quick", checkpoint_activations=how)
    torch._dynamo.reset()
    warning_once.cache_clear()
    block.compile(backend=backend)
    block(torch.randn(3, 4, 64, requires_grad=True), at).sum().backward()
    (program,) = backward
    kept_or_again: set[torch.fx.Node] = set()  # what does not depend on the gradient of the output
    sums = []
    for node in program.graph.nodes:
        inputs = node.all_input_nodes
        if not node.name.startswith("tangents") and kept_or_again.issuperset(inputs):
            kept_or_again.add(node)
            if node.target is torch.ops.aten.add.Tensor and len({one.meta["val"].shape for one in inputs}) == 1 < len(
                inputs
            ):
                sums.append(node)
    assert len(sums) == times, program.code
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.prove
@pytest.mark.filterwarnings(GRAD_OF_TRACED)
@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script_method` is deprecated"
)  # torch's own, where its compiler is first imported
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="there is no C++ compiler")
@pytest.mark.parametrize("preset", [SMALL_VIT, SMALL_RN], ids=["vit", "resnet"])
@pytest.mark.parametrize("checkpointed", ["none", "activation", "elementwise", "blocks"])
def test_compiled_blocks_give_the_same_numbers(preset: Preset, checkpointed: Checkpointing) -> None:
    """Forward, gradients and running statistics, without a name changed. A C++ compiler makes the programs."""

    def trained(prepare: Callable[[CLIP], None]) -> dict[str, Tensor]:
        torch.manual_seed(1)
        model = build(preset, checkpoint_activations=checkpointed)
        prepare(model)
        pixels, ids = torch.randn(4, 3, preset.image_size, preset.image_size), some_ids(4, preset)
        images, texts, scale = model(pixels, ids)
        torch.autograd.backward((images @ texts.T * scale).logsumexp(1).sum())
        gradients = {f"{name} gradient": p.grad for name, p in model.named_parameters() if p.grad is not None}
        return gradients | model.state_dict()

    plain, compiled = trained(lambda model: None), trained(CLIP.compile_blocks)
    assert plain.keys() == compiled.keys()
    size = max(float(value.double().norm()) for name, value in plain.items() if name.endswith(" gradient"))
    for name, value in plain.items():
        # The gradient of a key's bias is zero but for rounding, for softmax does not see it.
        error = (compiled[name].double() - value.double()).norm() / max(float(value.double().norm()), 1e-4 * size)
        assert float(error) <= 1e-5, (name, float(error))
