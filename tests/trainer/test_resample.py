"""The resizing of our own against Pillow's, to the bit."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trainer.data import resample

UInt8s = npt.NDArray[np.uint8]


def pillow(
    rgb: UInt8s, box: tuple[int, int, int, int], size: tuple[int, int], corner: tuple[int, int], window: tuple[int, int]
) -> UInt8s:
    """What `resample.window` must give, by Pillow: the whole resized picture, cropped."""
    resized = Image.fromarray(rgb).resize(size, Image.Resampling.BICUBIC, box=box)
    cropped = resized.crop((*corner, corner[0] + window[0], corner[1] + window[1]))
    return np.asarray(cropped).transpose(2, 0, 1)


def ours(
    rgb: UInt8s, box: tuple[int, int, int, int], size: tuple[int, int], corner: tuple[int, int], window: tuple[int, int]
) -> UInt8s:
    into = np.full((3, window[1], window[0]), 99, np.uint8)
    resample.window(rgb, box, size, corner, into)
    return into


def noise(width: int, height: int, seed: int = 0) -> UInt8s:
    """The hardest picture for two roundings and two clippings: black, white and chance."""
    dice = np.random.default_rng(seed)
    rgb = dice.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return np.where(dice.random((height, width, 1)) < 0.3, 255 * (rgb > 127), rgb).astype(np.uint8)


@st.composite
def requests(
    draw: st.DrawFn,
) -> tuple[UInt8s, tuple[int, int, int, int], tuple[int, int], tuple[int, int], tuple[int, int]]:
    width, height = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    box = left, top, draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height))
    size = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    corner = draw(st.integers(0, size[0] - 1)), draw(st.integers(0, size[1] - 1))
    window = draw(st.integers(1, size[0] - corner[0])), draw(st.integers(1, size[1] - corner[1]))
    return noise(width, height, draw(st.integers(0, 9))), box, size, corner, window


@given(requests())
@settings(max_examples=400, deadline=None)
def test_any_window_of_any_box_at_any_size_is_pillows(
    request: tuple[UInt8s, tuple[int, int, int, int], tuple[int, int], tuple[int, int], tuple[int, int]],
) -> None:
    assert np.array_equal(ours(*request), pillow(*request))


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [
        (341, 256, (298, 224)),
        (256, 384, (224, 336)),
        (256, 256, (224, 224)),
        (256, 384, (224, 224)),  # the height shrinks more than twice as much as the width: Pillow goes down first
        (640, 480, (298, 224)),
        (1200, 2000, (224, 224)),
        (100, 80, (280, 224)),  # enlarged
        (3, 900, (224, 67200)),
        (2600, 5, (224, 224)),
    ],
)
def test_the_sizes_of_training(width: int, height: int, size: tuple[int, int]) -> None:
    rgb, whole = noise(width, height), (0, 0, width, height)
    corner = (size[0] - 224) // 3, (size[1] - 224) // 2
    assert np.array_equal(ours(rgb, whole, size, corner, (224, 224)), pillow(rgb, whole, size, corner, (224, 224)))


def test_a_picture_of_the_right_size_stays_as_it_is() -> None:
    rgb = noise(50, 40)
    assert np.array_equal(ours(rgb, (0, 0, 50, 40), (50, 40), (0, 0), (50, 40)), rgb.transpose(2, 0, 1))


def test_a_picture_that_is_not_in_one_piece() -> None:
    rgb = noise(90, 64)[::2, ::-1]
    whole = (0, 0, 90, 32)
    assert np.array_equal(
        ours(rgb, whole, (50, 20), (3, 1), (40, 16)),
        pillow(np.ascontiguousarray(rgb), whole, (50, 20), (3, 1), (40, 16)),
    )


@pytest.mark.parametrize(
    ("box", "corner", "said"),
    [
        ((0, 0, 51, 40), (0, 0), "box"),
        ((9, 0, 9, 40), (0, 0), "box"),
        ((-1, 0, 9, 40), (0, 0), "box"),
        ((0, 0, 50, 40), (1, 0), "window"),
        ((0, 0, 50, 40), (0, -1), "window"),
    ],
)
def test_nothing_outside_is_touched(box: tuple[int, int, int, int], corner: tuple[int, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ours(noise(50, 40), box, (20, 20), corner, (20, 20))
