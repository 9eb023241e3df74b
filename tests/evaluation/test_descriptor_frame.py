"""Frames: cut away where there is one, by a twin that looks at one pixel after the other; pictures without one stay whole."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from evaluation.descriptor.frame import LEAST_SPREAD, spread, unframed
from pipeline.content.image import decode
from tests.evaluation.descriptor_cases import scene

UInt8s = NDArray[np.uint8]


def twin(rgb: UInt8s) -> tuple[int, int, int, int]:
    """left, top, right, bottom of what lies inside, by the words of `frame`."""

    def leading(lines: list[list[tuple[int, ...]]]) -> int:
        colour = [sorted(pixel[channel] for pixel in lines[0]) for channel in range(3)]
        middle = [(one[(len(one) - 1) // 2] + one[len(one) // 2]) / 2 for one in colour]
        for number in range(int(0.35 * len(lines))):
            near = sum(all(abs(pixel[c] - middle[c]) <= 10 for c in range(3)) for pixel in lines[number])
            if near < 0.98 * len(lines[number]) - 1e-9:
                return number
        return int(0.35 * len(lines))

    rows = [[tuple(int(value) for value in pixel) for pixel in row] for row in rgb]
    top, bottom = leading(rows), len(rows) - leading(rows[::-1])
    columns = [[row[place] for row in rows[top:bottom]] for place in range(len(rows[0]))]
    return leading(columns), top, len(columns) - leading(columns[::-1]), bottom


@given(seed=st.integers(0, 10_000), sides=st.tuples(*[st.integers(0, 12)] * 4), grey=st.integers(0, 255))
@settings(deadline=None, max_examples=40)
def test_the_frame_is_cut_as_the_twin_says(seed: int, sides: tuple[int, int, int, int], grey: int) -> None:
    left, top, right, bottom = sides
    inside = scene(seed, 30, 24)
    framed = np.full((24 + top + bottom, 30 + left + right, 3), grey, np.uint8)
    framed[top : top + 24, left : left + 30] = inside
    noisy = (framed.astype(int) + np.random.default_rng(seed).integers(-6, 7, framed.shape)).clip(0, 255)
    for picture in (framed, noisy.astype(np.uint8)):
        x0, y0, x1, y1 = twin(picture)
        cut = picture[y0:y1, x0:x1]
        assert y0 >= min(top, int(0.35 * len(picture)))
        np.testing.assert_array_equal(unframed(picture), cut if spread(cut) >= LEAST_SPREAD else picture)


def test_a_frame_of_a_jpeg_is_cut() -> None:
    """But for the blocks of the compression that hold its end."""

    with io.BytesIO() as file:
        ImageOps.expand(Image.fromarray(scene(3, 320, 240)), (32, 24, 32, 24), (250, 30, 30)).save(
            file, "JPEG", quality=50
        )
        rgb = decode(file.getvalue()).rgb
    height, width = unframed(rgb).shape[:2]
    assert 240 <= height < 240 + 2 * 16
    assert 320 <= width < 320 + 2 * 16


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (2, 2)])
def test_the_smallest_pictures_stay(shape: tuple[int, int]) -> None:
    rgb = np.zeros((*shape, 3), np.uint8)
    np.testing.assert_array_equal(unframed(rgb), rgb)


def test_a_plain_thing_on_plain_ground_stays_on_it() -> None:
    rgb = np.full((100, 100, 3), 255, np.uint8)
    rgb[20:80, 20:80] = (200, 40, 40)
    assert unframed(rgb).shape == rgb.shape


def test_a_sky_that_changes_is_no_frame() -> None:
    """Each line is plain, and another one than the first."""
    rgb = np.zeros((120, 90, 3), np.uint8)
    rgb[:60] = np.linspace(100, 250, 60).astype(np.uint8)[:, None, None]
    rgb[60:] = scene(4, 90, 60)
    assert len(unframed(rgb)) >= 115
