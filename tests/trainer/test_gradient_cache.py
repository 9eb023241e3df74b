"""Gradient caching in one process, in fp64: what is drawn at random is drawn again, statistics move once, frozen towers stay.

The truth of a step with random numbers or batch norm is the same micro-batches with all their graphs held at once, one loss, one backward.
That the gradient is the whole batch's under ZeRO is in `test_gradients`.
"""

import functools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.trainer.gradients import Plain
from trainer import models
from trainer.gradient_cache import forward_backward
from trainer.models import Preset, ResNetShape, ViTShape
from trainer.models.checkpointing import Checkpointing
from trainer.objectives.clip import contrastive_loss

PAIRS, PATCHES, WIDTH, WORDS = 64, 9, 12, 6
Load = Callable[[slice], tuple[Tensor, Tensor]]


class Towers(nn.Module):
    """A tower over patches, some of which are dropped, and a tower over words whose units are: small, but with all that draws."""

    def __init__(self, *, patch_dropout: float = 0.0, dropout: float = 0.0) -> None:
        super().__init__()
        self.kept = PATCHES - int(PATCHES * patch_dropout)
        self.patches, self.image = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.words, self.text = nn.Embedding(50, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.drop = nn.Dropout(dropout)
        self.logit_scale = nn.Parameter(torch.full((1,), 2.0))

    def forward(self, patches: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        if self.kept < PATCHES:
            kept = torch.rand(patches.shape[:2]).argsort(dim=1)[:, : self.kept]
            patches = patches.gather(1, kept[:, :, None].expand(-1, -1, WIDTH))
        images = self.image(functional.gelu(self.patches(patches)).mean(1))
        texts = self.text(functional.gelu(self.drop(self.words(ids).mean(1))))
        return functional.normalize(images, dim=-1), functional.normalize(texts, dim=-1), self.logit_scale.exp()


def data() -> Load:
    generator = torch.Generator().manual_seed(3)
    patches = torch.randn(PAIRS, PATCHES, WIDTH, dtype=torch.float64, generator=generator)
    ids = torch.randint(0, 50, (PAIRS, WORDS), generator=generator)
    return lambda at: (patches[at], ids[at])


def fresh(**dropouts: float) -> Towers:
    torch.manual_seed(2)
    return Towers(**dropouts).double()


def step(model: nn.Module, load: Load, micro_size: int | None, pairs: int = PAIRS) -> tuple[Tensor, Tensor]:
    """Loss and the flattened gradient of a step that starts from a fixed state of the generator."""
    torch.manual_seed(11)
    loss, outputs = forward_backward(Plain(model), contrastive_loss, load, pairs, micro_size)
    assert not any(output.requires_grad for output in outputs)
    assert outputs[0].shape[0] == pairs
    return loss, flat_gradient(model)


def held_graphs(model: nn.Module, load: Load, micro_size: int, pairs: int = PAIRS) -> tuple[Tensor, Tensor]:
    """The truth of `step`: the memory that gradient caching saves is there."""
    torch.manual_seed(11)
    rows = torch.arange(pairs).tensor_split(math.ceil(pairs / micro_size))
    parts = [model(*load(slice(int(part[0]), int(part[-1]) + 1))) for part in rows]
    images, texts, scales = zip(*parts, strict=True)
    loss = contrastive_loss(torch.cat(images), torch.cat(texts), scales[0])
    torch.autograd.backward(loss)
    return loss.detach(), flat_gradient(model)


def flat_gradient(model: nn.Module) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


def relative(found: Tensor, true: Tensor) -> float:
    return float((found - true).norm() / true.norm())


def test_micro_batches_drop_the_patches_that_the_whole_batch_drops() -> None:
    """64 pairs by 8 against 64 at once: a CPU draws uniform numbers one after the other, so that both drop the same patches."""
    whole_loss, whole = step(fresh(patch_dropout=0.5), data(), None)
    loss, cached = step(fresh(patch_dropout=0.5), data(), 8)
    assert float(loss) == pytest.approx(float(whole_loss), rel=1e-13)
    assert relative(cached, whole) < 1e-13
    _, undropped = step(fresh(), data(), None)
    assert relative(undropped, whole) > 0.1, "dropping patches must matter for this test to see anything"


@pytest.mark.parametrize("micro_size", [8, 7, 63])
def test_what_the_first_pass_drew_the_second_draws_again(micro_size: int) -> None:
    true_loss, true = held_graphs(fresh(patch_dropout=0.5, dropout=0.3), data(), micro_size)
    state_after = torch.get_rng_state()
    loss, cached = step(fresh(patch_dropout=0.5, dropout=0.3), data(), micro_size)
    assert float(loss) == pytest.approx(float(true_loss), rel=1e-13)
    assert relative(cached, true) < 1e-13
    assert torch.equal(torch.get_rng_state(), state_after), "the next step must not draw the same numbers again"


@pytest.mark.parametrize("micro_size", [None, PAIRS, PAIRS + 1])
def test_a_batch_that_fits_goes_through_the_towers_once(micro_size: int | None) -> None:
    model, seen = fresh(), []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    step(model, data(), micro_size)
    assert seen == [PAIRS]


def test_a_frozen_tower_stays_and_the_other_learns_as_before() -> None:
    models_ = [fresh(dropout=0.3) for _ in range(2)]
    for model in models_:
        for frozen in (*model.patches.parameters(), *model.image.parameters()):
            frozen.requires_grad_(False)
    _, true = held_graphs(models_[0], data(), 10)
    _, cached = step(models_[1], data(), 10)
    assert models_[1].image.weight.grad is None
    assert relative(cached, true) < 1e-13


def vit(*, patch_dropout: float, checkpointed: Checkpointing = "none") -> tuple[nn.Module, Load]:
    shape = Preset("vit", 16, 32, ViTShape(2, 64, 8), 64, 1, 1e-3, (0.9, 0.98), 1e-6, context_length=6, vocab_size=50)
    torch.manual_seed(4)
    model = models.build(shape, patch_dropout=patch_dropout, checkpoint_activations=checkpointed).double()
    pixels, ids = torch.randn(10, 3, 32, 32, dtype=torch.float64), torch.randint(0, 50, (10, 6))
    return model, lambda at: (pixels[at], ids[at])


@pytest.mark.parametrize("checkpointed", ["none", "activation", "elementwise", "blocks"])
def test_a_vit_drops_the_patches_that_the_whole_batch_drops(checkpointed: Checkpointing) -> None:
    """The model's own patch dropout; 10 pairs in pieces of 4, 3 and 3, also where their blocks are computed once more."""
    whole_loss, whole = step(*vit(patch_dropout=0.5), None, pairs=10)
    loss, cached = step(*vit(patch_dropout=0.5, checkpointed=checkpointed), 4, pairs=10)
    assert float(loss) == pytest.approx(float(whole_loss), rel=1e-12)
    assert relative(cached, whole) < 1e-12
    assert relative(step(*vit(patch_dropout=0.0), None, pairs=10)[1], whole) > 0.1


# ---- batch norm


def resnet(*, checkpointed: Checkpointing = "none") -> tuple[nn.Module, Load]:
    shape = Preset(
        "tiny", 16, 32, ResNetShape((1, 1, 1, 1), 4), 64, 1, 1e-3, (0.9, 0.98), 1e-6, context_length=6, vocab_size=50
    )
    torch.manual_seed(4)
    model = models.build(shape, checkpoint_activations=checkpointed).double()
    pixels, ids = torch.randn(10, 3, 32, 32, dtype=torch.float64), torch.randint(0, 50, (10, 6))
    return model, lambda at: (pixels[at], ids[at])


def statistics(model: nn.Module) -> dict[str, Tensor]:
    found = dict(model.named_buffers())
    assert any(name.endswith("running_var") for name in found)
    return found


@pytest.mark.parametrize("checkpointed", ["none", "activation", "elementwise", "blocks"])
def test_running_statistics_move_once_for_each_sample(checkpointed: Checkpointing) -> None:
    twin, load = resnet()
    _, true = held_graphs(twin, load, 4, pairs=10)
    model, load = resnet(checkpointed=checkpointed)
    _, cached = step(model, load, 4, pairs=10)
    assert relative(cached, true) < 1e-12
    found, expected = statistics(model), statistics(twin)
    assert found.keys() == expected.keys()
    for name, buffer in found.items():
        torch.testing.assert_close(buffer, expected[name], rtol=1e-12, atol=1e-12, msg=name)
    assert int(expected["visual.bn1.num_batches_tracked"]) == 3
    # And they move again in the next forward that is not cached.
    with torch.no_grad():
        model(*load(slice(0, 4)))
    assert int(statistics(model)["visual.bn1.num_batches_tracked"]) == 4


def test_batch_norm_in_evaluation_reads_its_statistics_and_keeps_them() -> None:
    run = functools.partial(step, pairs=10)
    (whole, load), (cached, _) = resnet(), resnet()
    before = {name: buffer.clone() for name, buffer in statistics(whole).items()}
    for model in (whole, cached):
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    assert relative(run(cached, load, 4)[1], run(whole, load, None)[1]) < 1e-12
    assert all(torch.equal(buffer, before[name]) for name, buffer in statistics(cached).items())
