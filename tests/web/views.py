"""Views: seeded pictures that are to a perceptual hash what photographs are.

"Dead leaves": opaque shapes at random places, one in front of the other, their radii falling off as 1/r³ (Lee, Mumford, Huang: "Occlusion
models for natural images", 2001). Such pictures have the 1/f spectra, the edges and the scale invariance of photographs. Measured with
Meta's PDQ, median distance of a copy from its original, of 60 views and of 60 photographs (COCO's) at that size: JPEG at quality 6 18 and
12, at 40 4 and 2, a quarter of the size 20 and 20, half of it 20 and 24, 2 % of each side cut off 32 and 30, a frame of 2 % 46 and 38;
the closest two of different views 98 bits apart, of different photographs 94.

View `k` of a seed is a pure function of (seed, space, k, label). Views of one label have palette, light and a main subject in common, of
much the same shape in much the same place, as photographs of one class do; `moved` is the same scene a moment later.
"""

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from tests.web.dice import Dice

Colour = tuple[int, int, int]
SHORT, LONG = (144, 232), 1.5  # pixels of the short side; the longest side by the shortest, at most
LEAVES = (70, 130)
SMALLEST, LARGEST = 0.02, 0.5  # radii, of the short side
_ROUND = [(math.cos(corner * math.pi / 7), math.sin(corner * math.pi / 7)) for corner in range(14)]
_BOX = [(0.7, 0.7), (-0.7, 0.7), (-0.7, -0.7), (0.7, -0.7)]
"""Outlines of radius 1"""
_OCTAVES = (3, 6, 12, 24, 48)  # cells across: each octave has half the amplitude of the one before, as 1/f has


@dataclass(frozen=True)
class Leaf:
    """One opaque shape: centre as fractions of the sides, radius as one of the short side, `flat` its short axis by its long one."""

    x: float
    y: float
    radius: float
    flat: float
    angle: float
    colour: Colour
    round: bool


@dataclass(frozen=True)
class View:
    """What there is to see. `light` are the colours of the ground above and below, `weather` keys the clouds over all of it."""

    label: int
    width: int
    height: int
    light: tuple[Colour, Colour]
    leaves: tuple[Leaf, ...]
    weather: tuple[int, str, int]


def view(seed: int, k: int, space: str, label: int) -> View:
    """View `k` of a seed and a label; `space` keeps apart what is not to be the same."""
    dice, kind = Dice(seed, f"view-{space}-{label}", k), Dice(seed, "view-label", label)
    short = dice.number(*SHORT)
    long = round(short * dice.between(1.0, LONG))
    width, height = (long, short) if dice.chance(0.7) else (short, long)
    palette = [_colour(kind) for _ in range(4)]
    light = (_near(dice, palette[0], 40), _near(dice, palette[1], 40))
    leaves = [_leaf(dice, palette) for _ in range(dice.number(*LEAVES))]
    subject = Leaf(
        kind.between(0.35, 0.65) + dice.between(-0.12, 0.12),
        kind.between(0.35, 0.65) + dice.between(-0.12, 0.12),
        kind.between(0.2, 0.3) * dice.between(0.8, 1.25),
        kind.between(0.4, 1.0) * dice.between(0.8, 1.0),
        kind.between(0.0, math.pi) + dice.between(-0.4, 0.4),
        _near(dice, palette[2], 25),
        kind.chance(0.7),
    )
    # Some leaves are in front of the subject.
    place = len(leaves) - dice.number(3, 12)
    return View(label, width, height, light, (*leaves[:place], subject, *leaves[place:]), (seed, f"{space}-{label}", k))


def moved(one: View, by: float, number: int) -> View:
    """The same scene, every leaf moved, turned and grown by at most `by` (a share of the sides, radians, a share of its size)."""
    dice = Dice(one.weather[0], f"moved-{one.weather[1]}-{one.weather[2]}", number)
    leaves = tuple(
        dataclasses.replace(
            leaf,
            x=leaf.x + dice.between(-by, by),
            y=leaf.y + dice.between(-by, by),
            radius=leaf.radius * (1 + dice.between(-by, by)),
            angle=leaf.angle + dice.between(-by, by),
        )
        for leaf in one.leaves
    )
    return dataclasses.replace(one, leaves=leaves)


def draw(one: View) -> Image.Image:
    """The picture, RGB, width x height. Some 4 milliseconds."""
    ground = Image.fromarray(np.array([[one.light[0]], [one.light[1]]], np.uint8))
    picture = ground.resize((one.width, one.height), Image.Resampling.BILINEAR)
    pen, short = ImageDraw.Draw(picture), min(one.width, one.height)
    for leaf in one.leaves:
        pen.polygon(_outline(leaf, one.width, one.height, short), fill=leaf.colour)
    clouds = _clouds(Dice(one.weather[0], f"clouds-{one.weather[1]}", one.weather[2]), one.width, one.height)
    shaded = np.asarray(picture, np.float32) * (1 + 0.55 * clouds[:, :, None])
    return Image.fromarray(shaded.clip(0, 255).astype(np.uint8))


def _leaf(dice: Dice, palette: list[Colour]) -> Leaf:
    """Radii between SMALLEST and LARGEST with density 1/r³: the inverse of its distribution function, at a fraction."""
    share = 1 - (SMALLEST / LARGEST) ** 2
    radius = SMALLEST / (1 - share * dice.fraction()) ** 0.5
    colour = _near(dice, dice.pick(palette), 60) if dice.chance(0.7) else _colour(dice)
    place = dice.between(-0.05, 1.05), dice.between(-0.05, 1.05)
    return Leaf(*place, radius, dice.between(0.3, 1.0), dice.between(0.0, math.pi), colour, dice.chance(0.6))


def _outline(leaf: Leaf, width: int, height: int, short: int) -> list[tuple[float, float]]:
    cos, sin = leaf.radius * short * math.cos(leaf.angle), leaf.radius * short * math.sin(leaf.angle)
    x, y, flat = leaf.x * width, leaf.y * height, leaf.flat
    return [
        (x + across * cos - flat * along * sin, y + across * sin + flat * along * cos)
        for across, along in (_ROUND if leaf.round else _BOX)
    ]


def _clouds(dice: Dice, width: int, height: int) -> NDArray[np.float32]:
    """float32[height, width] about 0, hardly beyond ±1: smooth noise of a few octaves, and grain."""
    total, amplitude = np.zeros((height, width), np.float32), 0.5
    for cells in _OCTAVES:
        coarse = Image.fromarray(dice.noise(round(cells * height / width) + 1, cells))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
        total += amplitude * (smooth / 127.5 - 1)
        amplitude /= 2
    return total + 0.06 * (dice.noise(height, width).astype(np.float32) / 127.5 - 1)


def _colour(dice: Dice) -> Colour:
    return (dice.number(20, 235), dice.number(20, 235), dice.number(20, 235))


def _near(dice: Dice, colour: Colour, spread: int) -> Colour:
    red, green, blue = (min(250, max(5, value + dice.number(-spread, spread))) for value in colour)
    return (red, green, blue)
