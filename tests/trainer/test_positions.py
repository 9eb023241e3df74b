"""Positions for another grid, against Pillow's bicubic resizing of each channel."""

import numpy as np
import pytest
import torch
from PIL import Image

from trainer import models


@pytest.mark.parametrize(("before", "after"), [(64, 96), (96, 64), (64, 64)])
@pytest.mark.parametrize(
    ("preset", "name", "shrink"),
    [("tiny-vit", "visual.positional_embedding", 8), ("tiny", "visual.attnpool.positional_embedding", 32)],
)
def test_positions_are_resized_as_pictures_are(preset: str, name: str, shrink: int, before: int, after: int) -> None:
    weights = models.build(preset, image_size=before).state_dict()
    other = models.build(preset, image_size=after)
    resized = models.interpolate_positions(weights, other)
    assert {key for key in weights if resized[key] is not weights[key]} == ({name} if before != after else set())
    other.load_state_dict(resized)
    grid, wanted = before // shrink, after // shrink
    assert torch.equal(resized[name][0], weights[name][0]), "the class token's, or the mean's"
    for channel in (0, 7):
        plane = weights[name][1:, channel].reshape(grid, grid).numpy()
        expected = np.asarray(Image.fromarray(plane, "F").resize((wanted, wanted), Image.Resampling.BICUBIC))
        found = resized[name][1:, channel].reshape(wanted, wanted).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_what_is_no_grid_is_left_for_the_reader() -> None:
    model = models.build("tiny-vit")
    for shape in ((12, 192), (17, 5), (0, 192), (192,)):
        odd = {"visual.positional_embedding": torch.zeros(shape)}
        assert models.interpolate_positions(odd, model)["visual.positional_embedding"].shape == shape
