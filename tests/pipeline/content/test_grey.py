"""The small grey picture against Pillow's own, to the bit: sizes of every shape, both orders of the two directions."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.content.grey import grey_32

Pixels = npt.NDArray[np.uint8]


def pillows(rgb: Pixels) -> Pixels:
    return np.asarray(Image.fromarray(rgb).convert("L").resize((32, 32), Image.Resampling.LANCZOS))


def noise(height: int, width: int, seed: int = 0, levels: int = 256) -> Pixels:
    """Random pixels of some levels: of two, they go over both ends of a byte when they are resized."""
    drawn = np.random.default_rng(seed).integers(0, levels, (height, width, 3))
    return (drawn * 255 // (levels - 1)).astype(np.uint8)


@settings(deadline=None)  # the first call compiles
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from((2, 256)), st.integers(0, 1 << 32))
def test_it_is_pillows(height: int, width: int, levels: int, seed: int) -> None:
    rgb = noise(height, width, seed, levels)
    assert np.array_equal(grey_32(rgb), pillows(rgb))


@pytest.mark.parametrize(
    ("height", "width"),
    [(32, 32), (33, 32), (32, 33), (34, 33), (256, 143), (256, 144), (640, 335), (640, 336), (2000, 40), (40, 2000)],
)
def test_sides_that_stay_sides_at_the_turn_of_the_order_and_long_ones(height: int, width: int) -> None:
    for levels in (2, 256):
        rgb = noise(height, width, levels=levels)
        assert np.array_equal(grey_32(rgb), pillows(rgb))


def test_views_are_read_as_they_look() -> None:
    rgb = noise(90, 120)
    assert np.array_equal(grey_32(rgb[:, ::-1]), pillows(rgb[:, ::-1].copy()))
    assert np.array_equal(grey_32(rgb[::2, ::3]), pillows(rgb[::2, ::3].copy()))
