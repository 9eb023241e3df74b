"""The descriptor's layers and losses against their formulas, written out with loops."""

import math

import numpy as np
import pytest
import torch

from evaluation.descriptor import losses, model
from evaluation.descriptor.config import ArchitectureConfig

SHAPE = ArchitectureConfig(size=32, width=8, blocks=[1, 2], dimension=16)


def test_generalised_mean() -> None:
    x = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(1))
    for power in (1.0, 3.0, 4.5):
        ours = model.generalised_mean(x, power)
        for row in range(3):
            for channel in range(4):
                values = [max(value, 1e-6) for value in x[row, channel].flatten().tolist()]
                naive = (sum(value**power for value in values) / len(values)) ** (1 / power)
                assert float(ours[row, channel]) == pytest.approx(naive, rel=1e-5)


@pytest.mark.parametrize(("height", "width"), [(6, 8), (5, 7)])
def test_blur_pool(height: int, width: int) -> None:
    x = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(2))
    ours = model.BlurPool(3)(x)
    assert ours.shape == (2, 3, -(-height // 2), -(-width // 2))

    def mirrored(place: int, size: int) -> int:
        place = abs(place)
        return 2 * (size - 1) - place if place >= size else place

    for row in range(ours.shape[2]):
        for column in range(ours.shape[3]):
            naive = torch.zeros(2, 3)
            for down, high in zip((-1, 0, 1), (1, 2, 1), strict=True):
                for across, wide in zip((-1, 0, 1), (1, 2, 1), strict=True):
                    y, z = mirrored(2 * row + down, height), mirrored(2 * column + across, width)
                    naive += high * wide / 16 * x[:, :, y, z]
            torch.testing.assert_close(ours[:, :, row, column], naive)


def test_filters_have_mean_zero_and_the_length_of_their_gain() -> None:
    """The response to one lit pixel is the filter itself."""
    layer = model.NormedConv(2, 3, 3)
    with torch.no_grad():
        layer.gain.copy_(torch.tensor([1.0, 2.0, 0.5]).view(3, 1, 1, 1))
        taps = torch.zeros(3, 2, 3, 3)
        for channel in range(2):
            x = torch.zeros(1, 2, 5, 5)
            x[0, channel, 2, 2] = 1
            taps[:, channel] = layer(x)[0, :, 1:4, 1:4].flip(1, 2)
    torch.testing.assert_close(taps.mean((1, 2, 3)), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(taps.flatten(1).norm(dim=1), torch.tensor([1.0, 2.0, 0.5]))


def test_activations_keep_their_variance() -> None:
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(3))
    assert float(model.activation(x).std()) == pytest.approx(1, abs=0.01)


def test_a_vector_depends_on_its_own_picture_alone() -> None:
    network = model.build(SHAPE, 4).eval()
    pixels = torch.randint(0, 256, (6, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        together, alone = network(pixels), torch.cat([network(pixels[row : row + 1]) for row in range(6)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(6))
    assert together.shape == (6, 16)


def test_weights_depend_on_the_seed_alone() -> None:
    first = model.build(SHAPE, 4).state_dict()
    torch.randn(7)
    state = torch.random.get_rng_state()
    second, other = model.build(SHAPE, 4).state_dict(), model.build(SHAPE, 5).state_dict()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


# ---- losses


def views(rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    first = torch.nn.functional.normalize(torch.randn(rows, 5, generator=source), dim=1)
    second = torch.nn.functional.normalize(first + 0.6 * torch.randn(rows, 5, generator=source), dim=1)
    return first, second


def test_contrastive_loss() -> None:
    first, second = views(7, 1)
    loss, found = losses.contrastive(first, second, 0.07)
    vectors = np.concatenate([first.numpy(), second.numpy()]).astype(float)
    total, right = 0.0, 0
    for row in range(14):
        logits = {other: float(vectors[row] @ vectors[other]) / 0.07 for other in range(14) if other != row}
        copy = (row + 7) % 14
        total -= logits[copy] - math.log(sum(math.exp(value) for value in logits.values()))
        right += max(logits, key=lambda other: logits[other]) == copy
    assert float(loss) == pytest.approx(total / 14, rel=1e-5)
    assert float(found) == pytest.approx(right / 14)


def test_entropy_regulariser() -> None:
    first, second = views(6, 2)
    vectors = np.concatenate([first.numpy(), second.numpy()]).astype(float)
    total = 0.0
    for row in range(12):
        others = [other for other in range(12) if other % 6 != row % 6]
        total -= math.log(min(float(np.linalg.norm(vectors[row] - vectors[other])) for other in others))
    assert float(losses.spread(first, second)) == pytest.approx(total / 12, rel=1e-5)


def test_equal_vectors_give_finite_gradients() -> None:
    first = torch.nn.functional.normalize(torch.ones(4, 5), dim=1).requires_grad_()
    losses.spread(first, first.detach()).backward()  # type: ignore[no-untyped-call]
    assert first.grad is not None
    assert bool(torch.isfinite(first.grad).all())
