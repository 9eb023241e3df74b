"""Copies for training: each transform against plain arithmetic on pixels, and draws that depend on their key alone."""

import colorsys
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from evaluation.descriptor import augment
from evaluation.descriptor.config import AugmentationConfig
from tests.evaluation.descriptor_cases import scene

NOTHING = AugmentationConfig.model_validate(dict.fromkeys(AugmentationConfig.model_fields, 0.0))
PICTURE = scene(3)
WHITE, BLACK, RED = (255, 255, 255), (0, 0, 0), (200, 10, 10)


def only(name: str) -> AugmentationConfig:
    return NOTHING.model_copy(update={name: 1.0})


# ---- draws


def test_a_pair_depends_on_its_key_alone() -> None:
    how = AugmentationConfig()
    keys = [(seed, step, place) for seed in (1, 2) for step in (0, 1 << 30) for place in range(6)]
    alone = [augment.pair(PICTURE, how, 48, *key) for key in keys]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda key: augment.pair(PICTURE, how, 48, *key), reversed(keys)))[::-1]
    for ours, theirs in zip(alone, together, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert len({(first.tobytes(), second.tobytes()) for first, second in alone}) == len(keys)
    assert {side.shape for one in alone for side in one} == {(48, 48, 3)}


def test_keys_do_not_run_into_each_other() -> None:
    keys = [(1, 2), (2, 1), (1, 2, 0), (0, 1, 2), (1 << 62, 2), (513,), (1, 513)]
    assert len({augment.generator(*key).bytes(16) for key in keys}) == len(keys)


def likeness(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    return float(np.corrcoef(first.astype(float).ravel(), second.astype(float).ravel())[0, 1])


def test_without_changes_a_copy_is_the_reference() -> None:
    for place in range(8):
        first, second = augment.pair(PICTURE, NOTHING, 48, 5, place)
        assert likeness(first, second) > 0.93  # kernels differ, down to the nearest pixel


def test_a_flip_is_the_mirror_image() -> None:
    for place in range(8):
        first, second = augment.pair(PICTURE, only("flip"), 48, 5, place)
        assert likeness(first[:, ::-1], second) > 0.93 > likeness(first, second)


@pytest.mark.parametrize("name", [name for name in AugmentationConfig.model_fields if name != "part"])
def test_each_chance_changes_the_copy(name: str) -> None:
    changed = 0
    for place in range(6):
        first, second = augment.pair(PICTURE, only(name), 48, 9, place)
        _, plain = augment.pair(PICTURE, NOTHING, 48, 9, place)
        changed += not np.array_equal(second, plain)
        assert first.std() > 0
    assert changed >= 5


def test_crops_go_down_to_a_quarter_of_the_area_and_not_much_further() -> None:
    """A copy of a ramp tells what it kept: the spread of the two coordinates that its colours are."""
    across, down = np.meshgrid(np.linspace(0, 255, 192), np.linspace(0, 255, 192))
    ramp = np.stack([across, down, np.zeros_like(across)], axis=2).astype(np.uint8)
    shares = []
    for place in range(150):
        _, second = augment.pair(ramp, only("crop"), 96, 1, place)
        red, green = (float(np.ptp(second[2:-2, 2:-2, channel]) / 255 * 96 / 92) for channel in (0, 1))
        shares.append(red * green)
    assert 0.17 < min(shares) < 0.27
    assert max(shares) > 0.8


# ---- transforms


@pytest.mark.parametrize(("share", "bend", "at"), [(0.25, 1.0, (0, 0)), (0.5, 1.2, (1, 1)), (0.9, 0.5, (0.3, 0.6))])
def test_part(share: float, bend: float, at: tuple[float, float]) -> None:
    height, width = PICTURE.shape[:2]
    wide = min(width, round(width * math.sqrt(share * bend)))
    high = min(height, round(height * math.sqrt(share / bend)))
    left, top = round(at[0] * (width - wide)), round(at[1] * (height - high))
    ours = np.asarray(augment.part(Image.fromarray(PICTURE), share, bend, at))
    np.testing.assert_array_equal(ours, PICTURE[top : top + high, left : left + wide])


def test_centre_square() -> None:
    np.testing.assert_array_equal(augment.centre_square(Image.fromarray(PICTURE)), PICTURE[:, 4:68])
    np.testing.assert_array_equal(augment.centre_square(Image.fromarray(PICTURE[:40])), PICTURE[:40, 16:56])


def test_border() -> None:
    ours = np.asarray(augment.bordered(Image.fromarray(PICTURE), (1, 2, 3, 4), RED))
    naive = np.empty((64 + 6, 72 + 4, 3), np.uint8)
    naive[:] = RED
    naive[2:66, 1:73] = PICTURE
    np.testing.assert_array_equal(ours, naive)


@pytest.mark.parametrize("below", [False, True])
def test_banner(below: bool) -> None:
    ours = np.asarray(augment.bannered(Image.fromarray(PICTURE), 0.2, below, WHITE, BLACK, "copy"))
    strip, rest = (slice(51, 64), slice(0, 51)) if below else (slice(0, 13), slice(13, 64))
    np.testing.assert_array_equal(ours[rest], PICTURE[rest])
    assert (ours[strip, 60:] == 255).all()  # paper behind a short word
    assert ours[strip].min() < 64  # ink
    assert (np.ptp(ours[strip], axis=2) == 0).all()  # nothing of the picture shines through


def test_letters_stand_below_and_right_of_their_place() -> None:
    ours = np.asarray(augment.lettered(Image.fromarray(PICTURE), (0.25, 0.5), 0.2, RED, "hi"))
    rows, columns = np.nonzero((ours != PICTURE).any(axis=2))
    assert rows.min() >= 32
    assert rows.max() <= 32 + 2 * 13
    assert columns.min() >= 17
    assert (ours == RED).all(axis=2).any()


def test_screenshot() -> None:
    ours = np.asarray(augment.on_screen(Image.fromarray(PICTURE), (6, 12, 9, 30), WHITE, BLACK, ["first", "second"]))
    assert ours.shape == (64 + 42, 72 + 15, 3)
    np.testing.assert_array_equal(ours[12 : 12 + 64, 6 : 6 + 72], PICTURE)
    assert (ours[:4] == 191).all()  # the bar
    assert (ours[12:76, :6] == 255).all()
    assert ours[77:].min() < 128  # a line of text below


def naive_rotation(pixels: NDArray[np.uint8], degrees: float) -> NDArray[np.uint8]:
    """Counter-clockwise about the middle; each pixel takes the one whose centre it is nearest to."""
    height, width = pixels.shape[:2]
    turned = np.zeros_like(pixels)
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    for row in range(height):
        for column in range(width):
            x, y = column + 0.5 - width / 2, row + 0.5 - height / 2
            u, v = cosine * x - sine * y + width / 2, sine * x + cosine * y + height / 2
            if 0 <= u < width and 0 <= v < height:
                turned[row, column] = pixels[int(v), int(u)]
    return turned


@pytest.mark.parametrize("degrees", [-15.0, 4.0, 10.0])
def test_rotation(degrees: float) -> None:
    ours = np.asarray(augment.turned(Image.fromarray(PICTURE), degrees, Image.Resampling.NEAREST, BLACK))
    same = (ours == naive_rotation(PICTURE, degrees)).all(axis=2)
    assert same.mean() > 0.99  # Pillow steps in fixed point


@pytest.mark.parametrize("degrees", [-15.0, 1.0, 8.0])
@pytest.mark.parametrize("size", [(120, 80), (80, 120), (90, 90)])
def test_rotation_inside_shows_no_corner(degrees: float, size: tuple[int, int]) -> None:
    white = Image.new("RGB", size, WHITE)
    ours = augment.turned_inside(white, degrees, Image.Resampling.NEAREST)
    assert (np.asarray(ours) == 255).all()
    assert ours.width / ours.height == pytest.approx(size[0] / size[1], rel=0.03)
    assert ours.width > 0.6 * size[0]


def test_colours_by_hand() -> None:
    draws = np.random.default_rng(0)
    pixels = draws.integers(0, 256, (20, 20, 3), dtype=np.uint8)
    ours = np.asarray(augment.recoloured(Image.fromarray(pixels), 0.05, 0.7, 1.2, -20.0))
    for row in range(20):
        for column in range(20):
            hue, saturation, value = colorsys.rgb_to_hsv(*(pixels[row, column] / 255))
            value = min(max(value * 1.2 - 20 / 255, 0), 1)
            theirs = colorsys.hsv_to_rgb((hue + 0.05) % 1, min(saturation * 0.7, 1), value)
            np.testing.assert_allclose(ours[row, column] / 255, theirs, atol=0.035)  # hue and saturation of 8 bits


def test_no_saturation_is_grey() -> None:
    ours = np.asarray(augment.recoloured(Image.fromarray(PICTURE), 0, 0, 1, 0))
    np.testing.assert_array_equal(ours, np.repeat(PICTURE.max(axis=2, keepdims=True), 3, axis=2))


def test_jpeg_loses_more_at_a_lower_quality() -> None:
    lost = []
    for quality in (5, 40, 95):
        ours = np.asarray(augment.recompressed(Image.fromarray(PICTURE), quality)).astype(float)
        assert ours.shape == PICTURE.shape
        lost.append(np.abs(ours - PICTURE).mean())
    assert lost[0] > lost[1] > lost[2] > 0
