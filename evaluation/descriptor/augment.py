"""Copies as they happen: from one picture a reference and a transformed copy of it, both drawn from (seed, number of the pair) alone.

The paper's list (appendix C): random crop and zoom, aspect distortion, scaling down and up, small rotation, JPEG, jitter of hue, saturation
and value, and a kernel drawn anew for every resampling; beyond it flips, borders, text banners, screenshots and CLIP's own centre crop.
What copies show here, they show to `embed.py` later: the reference is the whole of a picture or a part of it, as an indexed view is, and
the copy is made from what the reference shows, down to a quarter of its area.

First the transforms, one function each, plain in their numbers; then the draws.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from evaluation.descriptor.config import AugmentationConfig

UInt8s = NDArray[np.uint8]
Colour = tuple[int, int, int]
Kernel = Image.Resampling
Share = tuple[float, float]
"""A share of the width and one of the height."""

KERNELS = tuple(Image.Resampling)
_TURN_KERNELS = (Kernel.NEAREST, Kernel.BILINEAR, Kernel.BICUBIC)  # those that Pillow can rotate with
_WORKING = 1.25  # a copy is made at this many times the network's size, its short side
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,!?-"
_PALE, _DARK = (200, 256), (0, 70)  # grey levels of what a screen shows around a picture


VERSION = "1"
"""Of the ranges and the order below; a change of them is another."""


# ---- the transforms


def turned(image: Image.Image, degrees: float, kernel: Kernel, fill: Colour) -> Image.Image:
    """Rotated about its middle, counter-clockwise, same size; the corners that open are filled."""
    return image.rotate(degrees, kernel, fillcolor=fill)


def turned_inside(image: Image.Image, degrees: float, kernel: Kernel) -> Image.Image:
    """Rotated, then cut to the largest centred part of the same aspect that shows no opened corner."""
    width, height = image.size
    angle = math.radians(abs(degrees))
    longer, shorter = max(width, height), min(width, height)
    scale = math.cos(angle) + longer / shorter * math.sin(angle)
    inner_width, inner_height = max(1, int(width / scale)), max(1, int(height / scale))
    left, top = (width - inner_width) // 2, (height - inner_height) // 2
    return image.rotate(degrees, kernel).crop((left, top, left + inner_width, top + inner_height))


def recompressed(image: Image.Image, quality: int) -> Image.Image:
    """Through a JPEG of this quality."""
    with io.BytesIO() as file:
        image.save(file, "JPEG", quality=quality)
        with Image.open(file, formats=["JPEG"]) as again:
            again.load()
            return again.convert("RGB")


def recoloured(image: Image.Image, hue: float, saturation: float, gain: float, shift: float) -> Image.Image:
    """Hue turned by `hue` of the circle, saturation times `saturation`, value times `gain` plus `shift` (of 255)."""
    levels = np.arange(256)
    hues = (levels + round(hue * 256)) % 256
    saturations = np.clip(np.rint(levels * saturation), 0, 255)
    values = np.clip(np.rint(levels * gain + shift), 0, 255)
    table = np.concatenate([hues, saturations, values]).astype(int).tolist()
    return image.convert("HSV").point(table).convert("RGB")


def bordered(image: Image.Image, sides: tuple[int, int, int, int], colour: Colour) -> Image.Image:
    """A frame around the picture; left, top, right, bottom in pixels."""
    return ImageOps.expand(image, sides, colour)


def bannered(image: Image.Image, share: float, below: bool, paper: Colour, ink: Colour, words: str) -> Image.Image:
    """A strip over the top or the bottom of the picture, `share` of its height, with words in it."""
    width, height = image.size
    strip = max(1, round(height * share))
    top = height - strip if below else 0
    marked = image.copy()
    pen = ImageDraw.Draw(marked)
    pen.rectangle((0, top, width - 1, top + strip - 1), paper)
    pen.text((width * 0.03, top + strip / 2), words, ink, font(max(5, round(strip * 0.7))), anchor="lm")
    return marked


def lettered(image: Image.Image, at: Share, share: float, ink: Colour, words: str) -> Image.Image:
    """Words written over the picture, `share` of its height high, from the place `at` on."""
    width, height = image.size
    marked = image.copy()
    ImageDraw.Draw(marked).text((at[0] * width, at[1] * height), words, ink, font(max(5, round(height * share))))
    return marked


def on_screen(
    image: Image.Image, margins: tuple[int, int, int, int], paper: Colour, ink: Colour, lines: Sequence[str]
) -> Image.Image:
    """A screenshot: margins (left, top, right, bottom in pixels), a darker bar at the very top, lines of text above and below."""
    left, top, right, bottom = margins
    width, height = image.size
    screen = Image.new("RGB", (left + width + right, top + height + bottom), paper)
    screen.paste(image, (left, top))
    pen = ImageDraw.Draw(screen)
    bar = top // 3
    if bar:
        pen.rectangle((0, 0, screen.width - 1, bar - 1), (paper[0] * 3 // 4, paper[1] * 3 // 4, paper[2] * 3 // 4))
    text_height = max(5, height // 16)
    places = [bar + 1, *range(top + height + 1, screen.height - text_height, text_height + 3)]
    for place, line in zip(places, lines, strict=False):
        pen.text((max(2, left // 2), place), line, ink, font(text_height))
    return screen


def part(image: Image.Image, share: float, bend: float, at: Share) -> Image.Image:
    """A part of `share` of the area, of the whole's shape but for `bend`, its width over its height; (0, 0) is the left top corner."""
    width, height = image.size
    part_width = min(width, max(1, round(width * math.sqrt(share * bend))))
    part_height = min(height, max(1, round(height * math.sqrt(share / bend))))
    left, top = round(at[0] * (width - part_width)), round(at[1] * (height - part_height))
    return image.crop((left, top, left + part_width, top + part_height))


def centre_square(image: Image.Image) -> Image.Image:
    """What CLIP's preprocessing leaves of a picture: the largest centred square."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's built-in face at a size in pixels."""
    return ImageFont.load_default(size)


# ---- the draws


def generator(*key: int) -> np.random.Generator:
    """Random numbers for a key of whole numbers (below 2^63): other keys give others, in any order of calls."""
    folded = hashlib.blake2b(b"".join(number.to_bytes(8, "little") for number in key), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(folded, "little")))


class Draws:
    """Random numbers of one view: the same for the same key, whatever was drawn for others."""

    def __init__(self, *key: int) -> None:
        self._random = generator(*key)

    def happens(self, chance: float) -> bool:
        return bool(self._random.random() < chance)

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * float(self._random.random())

    def ratio(self, low: float, high: float) -> float:
        """Between two positive numbers, its logarithm uniform."""
        return math.exp(self.between(math.log(low), math.log(high)))

    def whole(self, low: int, high: int) -> int:
        """low <= number < high."""
        return int(self._random.integers(low, high))

    def kernel(self, kernels: Sequence[Kernel] = KERNELS) -> Kernel:
        return kernels[self.whole(0, len(kernels))]

    def grey(self, levels: tuple[int, int]) -> Colour:
        level = self.whole(*levels)
        return level, level, level

    def colour(self) -> Colour:
        """Black and white as often as all other colours together, as frames are."""
        if self.happens(0.5):
            return (0, 0, 0) if self.happens(0.5) else (255, 255, 255)
        return self.whole(0, 256), self.whole(0, 256), self.whole(0, 256)

    def words(self, longest: int) -> str:
        signs = self._random.integers(0, len(_LETTERS) + 12, self.whole(3, longest + 1)).tolist()
        return "".join(_LETTERS[sign] if sign < len(_LETTERS) else " " for sign in signs)


def pair(picture: UInt8s, how: AugmentationConfig, size: int, *key: int) -> tuple[UInt8s, UInt8s]:
    """A reference and a copy of it, uint8[size, size, 3] each, from a picture, uint8[h, w, 3]. `key`: see `generator`."""
    draws = Draws(*key)
    shown = Image.fromarray(picture)
    if draws.happens(how.part):
        shown = part(
            shown, draws.between(0.35, 1), draws.ratio(3 / 4, 4 / 3), (draws.between(0, 1), draws.between(0, 1))
        )
    return _reference(shown, size, draws), _copy(shown, how, size, draws)


def _reference(shown: Image.Image, size: int, draws: Draws) -> UInt8s:
    if draws.happens(0.3):
        shown = recompressed(shown, draws.whole(50, 96))
    return np.asarray(shown.resize((size, size), draws.kernel(KERNELS[1:])))


def _copy(shown: Image.Image, how: AugmentationConfig, size: int, draws: Draws) -> UInt8s:
    image = _kept(shown, how, draws)
    bend = draws.ratio(2 / 3, 3 / 2) if draws.happens(how.aspect) else 1.0
    short = size * _WORKING
    stretch = short / min(image.width * bend, image.height)
    wide, high = (min(round(side * stretch), 3 * size) for side in (image.width * bend, image.height))
    image = image.resize((max(wide, 8), max(high, 8)), draws.kernel())
    if draws.happens(how.flip):
        image = ImageOps.mirror(image)
    if draws.happens(how.rotation):
        degrees = draws.between(-15, 15)
        kernel = draws.kernel(_TURN_KERNELS)
        image = (
            turned_inside(image, degrees, kernel)
            if draws.happens(0.4)
            else turned(image, degrees, kernel, draws.colour())
        )
    image = _recoloured(image, how, draws)
    image = _written_on(image, how, draws)
    if draws.happens(how.scaling):
        shrunk = draws.ratio(0.2, 0.9)
        small = (max(8, round(image.width * shrunk)), max(8, round(image.height * shrunk)))
        image = image.resize(small, draws.kernel()).resize(image.size, draws.kernel())
    if draws.happens(how.jpeg):
        image = recompressed(image, draws.whole(5, 90))
    return np.asarray(image.resize((size, size), draws.kernel()))


def _kept(shown: Image.Image, how: AugmentationConfig, draws: Draws) -> Image.Image:
    """The part of the reference that the copy keeps."""
    if draws.happens(how.crop):
        at = draws.between(0, 1), draws.between(0, 1)
        return part(shown, draws.ratio(0.22, 1), draws.ratio(3 / 4, 4 / 3), at)
    return centre_square(shown) if draws.happens(how.centre) else shown


def _recoloured(image: Image.Image, how: AugmentationConfig, draws: Draws) -> Image.Image:
    grey = draws.happens(how.grey)
    if not draws.happens(how.colour):
        return recoloured(image, 0, 0, 1, 0) if grey else image
    gain = draws.ratio(0.6, 1.6)
    return recoloured(
        image,
        draws.between(-0.08, 0.08),
        0.0 if grey else draws.ratio(0.4, 2.0),
        gain,
        draws.between(-40, 40) + 127 * (1 - gain) / 2,
    )


def _written_on(image: Image.Image, how: AugmentationConfig, draws: Draws) -> Image.Image:
    """What people put over and around a picture: words, a banner, a frame, a screen."""
    if draws.happens(how.text):
        at = draws.between(0, 0.7), draws.between(0, 0.9)
        image = lettered(image, at, draws.between(0.05, 0.2), draws.colour(), draws.words(20))
    if draws.happens(how.banner):
        share, below = draws.between(0.05, 0.22), draws.happens(0.6)
        image = bannered(image, share, below, draws.colour(), draws.colour(), draws.words(30))
    if draws.happens(how.border):
        image = bordered(image, _sides(image, 0.18, draws), draws.colour())
    if draws.happens(how.screenshot):
        lines = [draws.words(30) for _ in range(4)]
        paper, ink = (_PALE, _DARK) if draws.happens(0.7) else (_DARK, _PALE)
        image = on_screen(image, _sides(image, 0.35, draws), draws.grey(paper), draws.grey(ink), lines)
    return image


def _sides(image: Image.Image, widest: float, draws: Draws) -> tuple[int, int, int, int]:
    """Left, top, right and bottom in pixels: half the time as wide all around, else each for itself, up to `widest` of the side."""
    if draws.happens(0.5):
        share = draws.between(0.01, widest)
        across, down = round(image.width * share), round(image.height * share)
        return across, down, across, down
    shares = [draws.between(0, widest) for _ in range(4)]
    return (
        round(image.width * shares[0]),
        round(image.height * shares[1]),
        round(image.width * shares[2]),
        round(image.height * shares[3]),
    )
