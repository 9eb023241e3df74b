"""Scenes: seeded pictures of coloured shapes, and the sentences that describe them.

Scene `k` of seed `s` is a pure function of (s, k), so a web of any size needs no list in memory and any worker can draw
any scene. Two things are demanded of the pictures. A small model must be able to learn them in a minute, so the
main object is large, saturated, and stands on a muted ground. And thousands of them must be distinct for a perceptual hash, which
sees only low frequencies: flat grounds would all hash alike, so every ground is a random smooth field (a coarse grid of
random greys, enlarged), with a texture and noise on top. Measured over 20,000 pictures in `tests/e2e/test_web.py`'s
proof: the closest pair of different scenes, and the farthest pair of a scene and its recompressed, smaller copy.

A caption names its class ("red circle", or "red circles" for several) exactly once, and no other class, so
the query that a caption matches is known without running a matcher.
"""

import io
import math
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageDraw

from tests.web.dice import Dice

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 35),
    "orange": (250, 135, 15),
    "yellow": (250, 225, 40),
    "green": (35, 160, 60),
    "blue": (40, 80, 225),
    "purple": (140, 45, 175),
    "white": (250, 250, 250),
    "black": (15, 15, 15),
}
SHAPES: dict[str, str] = {
    "circle": "circles",
    "square": "squares",
    "triangle": "triangles",
    "star": "stars",
    "cross": "crosses",
    "ring": "rings",
    "heart": "hearts",
    "moon": "moons",
}
CLASSES: tuple[str, ...] = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
PLURALS: tuple[str, ...] = tuple(f"{colour} {plural}" for colour in COLOURS for plural in SHAPES.values())
TEXTURES = ("plain", "striped", "checkered", "dotted", "grid", "cloudy", "hatched")
TONES = ("grey", "sandy", "slate", "olive", "rosy", "teal")
_TINTS = {
    "grey": (0, 0, 0),
    "sandy": (18, 8, -18),
    "slate": (-12, 0, 16),
    "olive": (4, 12, -18),
    "rosy": (20, -8, 0),
    "teal": (-18, 10, 8),
}
_NUMBERS = ("a", "two", "three", "four")
_PLACES = (
    "Lisbon", "Nairobi", "Osaka", "Tallinn", "Quito", "Bergen", "Kraków", "Montréal", "Hanoi", "Accra", "Porto", "Tbilisi",
    "La Paz", "Zürich", "Galway", "Perth", "Jaipur", "Reykjavík", "Cusco", "Malmö", "Dakar", "Split", "Ghent", "Busan",
)  # fmt: skip
_TIMES = (
    "a rainy morning", "the first day of spring", "a quiet Sunday", "market day", "the longest night", "a windy afternoon",
    "the summer fair", "a school trip", "the last week of autumn", "New Year's Day", "a foggy evening", "opening night",
    "the spring auction", "a museum visit", "the harvest festival", "a long train ride",
)  # fmt: skip
_MAKERS = (
    "Ada", "Bruno", "Chidi", "Daria", "Emeka", "Farah", "Goran", "Hana", "Ines", "Jonas", "Keiko", "Luis", "Mina", "Noor",
    "Otto", "Priya", "Quinn", "Rosa", "Samir", "Tove", "Uma", "Viktor", "Wanda", "Yusuf",
)  # fmt: skip
_MEDIA = ("paper", "canvas", "tile", "wood", "cardboard", "silk", "glass", "linen", "felt", "stone")
_TEMPLATES = (
    "{main} on a {tone} {texture} background, made by {maker} in {place} on {time}",
    "Handmade print from {place}: {main} {where}, {texture} {medium} by {maker}",
    "{maker} painted {main} {where} of a {tone} {texture} sheet of {medium} in {place}",
    "This {texture} card shows {main}, photographed in {place} during {time}",
    "Close view of {main} against {tone} {medium} with a {texture} pattern, {place}",
    "What {maker} saw on {time} in {place}: {main} over a {tone} {texture} ground",
    "{place} postcard with {main}, {texture} {medium}, signed {maker}, bought on {time}",
    "Poster for {time} in {place}, {main} {where}, printed on {tone} {medium}",
)
_REST = (
    " with {other} nearby",
    " and {other} behind",
    ", {other} in a corner",
    " next to {other}",
)
_NO_CLASS = (
    "{maker} and the team on {time} in {place}",
    "How to get from {place} to the coast: map and timetable for {time}",
    "A {shape} that somebody coloured {colour}, seen in {place} on {time}",
    "Logo of the {place} {medium} company, founded by {maker}",
    "Fresh bread and {medium} baskets, {place} market, {time}",
    "IMG {number} {place} {time}",
    "Portrait of {maker}, {place}, oil on {medium}",
    "Discount on {medium} from {place}, only for {time}, order now",
)
GRID = (16, 24)
Encoding = Literal["jpeg", "png", "webp"]


@dataclass(frozen=True)
class Thing:
    """One drawn object: centre and radius as fractions of the picture's size and short side, angle in radians."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float
    angle: float


@dataclass(frozen=True)
class Scene:
    """What a picture shows and what its alt text says. `label` indexes CLASSES."""

    key: tuple[int, str, int]
    label: int
    count: int
    caption: str
    second_caption: str
    width: int
    height: int
    tone: str
    texture: str
    things: tuple[Thing, ...]
    encoding: Encoding

    @property
    def name(self) -> str:
        """The class in words, "red circle"."""
        return CLASSES[self.label]

    @property
    def query(self) -> str:
        """The one phrase of `queries()` that the captions contain."""
        return self.name if self.count == 1 else PLURALS[self.label]


def queries() -> list[str]:
    """Every phrase that a scene's caption may contain: 64 classes and their plurals."""
    return [*CLASSES, *PLURALS]


def scene(seed: int, k: int, space: str = "web", label: int | None = None, single: bool = False) -> Scene:
    """Scene `k` of a seed. `space` keeps apart the scenes of the web and of an evaluation set.

    `label` fixes the class; `single` fixes the count to one, so that the caption matches the singular query.
    """
    dice = Dice(seed, f"scene-{space}", k)
    drawn = dice.number(0, len(CLASSES) - 1)
    label = drawn if label is None else label
    colour, shape = CLASSES[label].split()
    count = dice.pick((1, 1, 1, 1, 2, 2, 3, 4))
    count = 1 if single else count
    tone, texture = dice.pick(TONES), dice.pick(TEXTURES)
    short = dice.number(160, 360)
    long = min(480, round(short * dice.between(1.0, 1.5)))
    width, height = (long, short) if dice.chance(0.6) else (short, long)
    things = _layout(dice, colour, shape, count)
    captions = _captions(dice, things, count, tone, texture)
    return Scene(
        (seed, space, k), label, count, *captions, width, height, tone, texture, things, encoding(seed, k, space)
    )


def encoding(seed: int, k: int, space: str = "web") -> Encoding:
    """How scene k's own file is encoded, without making the scene: eight in ten are JPEG."""
    encodings: tuple[Encoding, ...] = ("jpeg",) * 8 + ("png", "webp")
    return Dice(seed, f"encoding-{space}", k).pick(encodings)


def _layout(dice: Dice, colour: str, shape: str, count: int) -> tuple[Thing, ...]:
    """Main objects on a ring round a random centre, then at times one small object of another class in a corner.

    Everything stays in the middle square, so that a centre crop loses nothing that the caption names.
    """
    middle_x, middle_y = dice.between(0.42, 0.58), dice.between(0.42, 0.58)
    spread = 0.0 if count == 1 else 0.22
    radius = dice.between(0.26, 0.38) if count == 1 else dice.between(0.14, 0.19)
    turn = dice.between(0.0, 2 * math.pi)
    things = []
    for i in range(count):
        angle = turn + 2 * math.pi * i / count
        x, y = middle_x + spread * math.cos(angle), middle_y + spread * math.sin(angle)
        things.append(Thing(colour, shape, x, y, radius, dice.between(-0.3, 0.3)))
    if dice.chance(0.25):
        other = dice.pick([c for c in COLOURS if c != colour])
        x, y = dice.pick(((0.12, 0.12), (0.88, 0.12), (0.12, 0.88), (0.88, 0.88)))
        things.append(Thing(other, dice.pick(tuple(SHAPES)), x, y, dice.between(0.07, 0.09), 0.0))
    return tuple(things)


def _captions(dice: Dice, things: tuple[Thing, ...], count: int, tone: str, texture: str) -> tuple[str, str]:
    """Two sentences about one scene that share little but the class: from different templates and other circumstances."""
    first = things[0]
    noun = first.shape if count == 1 else SHAPES[first.shape]
    number = "an" if count == 1 and first.colour == "orange" else _NUMBERS[count - 1]
    main = f"{number} {first.colour} {noun}"
    if len(things) > count:
        # Colour after the shape: "a little star in blue" must not match the query "blue star".
        other = f"a little {things[-1].shape} in {things[-1].colour}"
        main += dice.pick(_REST).format(other=other)
    side = "left" if first.x < 0.5 else "right"
    half = "upper" if first.y < 0.5 else "lower"
    where = "in the middle" if count == 1 else f"from the {half} {side}"
    start = dice.number(0, len(_TEMPLATES) - 1)
    step = dice.number(1, len(_TEMPLATES) - 1)
    texts = []
    for template in (_TEMPLATES[start], _TEMPLATES[(start + step) % len(_TEMPLATES)]):
        text = template.format(
            main=main, tone=tone, texture=texture, where=where, maker=dice.pick(_MAKERS),
            place=dice.pick(_PLACES), time=dice.pick(_TIMES), medium=dice.pick(_MEDIA),
        )  # fmt: skip
        texts.append(text[0].upper() + text[1:])
    style = dice.number(0, 9)
    if style == 0:
        texts = [text.upper() for text in texts]
    elif style == 1:
        texts = [text.title() for text in texts]
    return texts[0], texts[1]


def unrelated_caption(seed: int, k: int) -> str:
    """A caption that names no class, though it may use a shape and a colour apart from each other."""
    dice = Dice(seed, "unrelated", k)
    return dice.pick(_NO_CLASS).format(
        maker=dice.pick(_MAKERS), place=dice.pick(_PLACES), time=dice.pick(_TIMES), medium=dice.pick(_MEDIA),
        shape=dice.pick(tuple(SHAPES)), colour=dice.pick(tuple(COLOURS)), number=dice.number(1000, 9999),
    )  # fmt: skip


def draw(item: Scene) -> Image.Image:
    """The picture of a scene, RGB, width x height, uncompressed. About 2 milliseconds."""
    dice = Dice(item.key[0], f"ground-{item.key[1]}", item.key[2])
    picture = _ground(dice, item)
    pen = ImageDraw.Draw(picture)
    _texture(dice, pen, item)
    short = min(item.width, item.height)
    for thing in item.things:
        # Positions are fractions of the middle square, so that they mean the same in every aspect ratio.
        x = item.width / 2 + (thing.x - 0.5) * short
        y = item.height / 2 + (thing.y - 0.5) * short
        _thing(pen, thing, x, y, thing.radius * short)
    noise = dice.noise(item.height // 2, item.width // 2)
    grain = Image.fromarray(noise).resize((item.width, item.height), Image.Resampling.NEAREST)
    return Image.blend(picture, Image.merge("RGB", (grain, grain, grain)), 0.05)


def _ground(dice: Dice, item: Scene) -> Image.Image:
    """A smooth random field between a dark and a light version of the tone: what makes perceptual hashes differ."""
    rows, columns = dice.number(*GRID), dice.number(*GRID)
    coarse = Image.fromarray(dice.noise(rows, columns))
    field = coarse.resize((item.width, item.height), Image.Resampling.BICUBIC)
    low, high = dice.number(45, 75), dice.number(175, 205)
    bands = []
    for tint in _TINTS[item.tone]:
        table = [min(255, max(0, round(low + (high - low) * v / 255 + tint))) for v in range(256)]
        bands.append(field.point(table))
    return Image.merge("RGB", bands)


def _texture(dice: Dice, pen: ImageDraw.ImageDraw, item: Scene) -> None:
    """Lines, checks or dots in a muted grey, thin enough to leave the field below visible."""
    width, height = item.width, item.height
    level = dice.pick((70, 100, 150, 180))
    ink = (level, level, level)
    step = dice.number(14, 40)
    offset = dice.number(0, step)
    if item.texture in ("striped", "grid"):
        for x in range(offset, width, step):
            pen.line((x, 0, x, height), fill=ink, width=2)
    if item.texture == "grid":
        for y in range(offset, height, step):
            pen.line((0, y, width, y), fill=ink, width=2)
    if item.texture == "hatched":
        for x in range(offset - height, width, step):
            pen.line((x, 0, x + height, height), fill=ink, width=2)
    if item.texture == "checkered":
        for row, y in enumerate(range(0, height, step)):
            for x in range(step * (row % 2), width, 2 * step):
                pen.rectangle((x, y, x + step // 2, y + step // 2), fill=ink)
    if item.texture == "dotted":
        for y in range(offset, height, step):
            for x in range(offset, width, step):
                pen.ellipse((x - 2, y - 2, x + 2, y + 2), fill=ink)
    if item.texture == "cloudy":
        for _ in range(5):
            x, y, r = dice.number(0, width), dice.number(0, height), dice.number(8, 30)
            pen.ellipse((x - 2 * r, y - r, x + 2 * r, y + r), outline=ink, width=2)


def _thing(pen: ImageDraw.ImageDraw, thing: Thing, x: float, y: float, r: float) -> None:
    """One object with a thin contrasting edge."""
    fill = COLOURS[thing.colour]
    edge = (235, 235, 235) if thing.colour == "black" else (30, 30, 30)
    if thing.shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=fill, outline=edge, width=2)
    elif thing.shape == "ring":
        pen.ellipse((x - r, y - r, x + r, y + r), outline=fill, width=max(3, round(r * 0.35)))
    else:
        corners = [(x + r * px, y + r * py) for px, py in _turned(_OUTLINES[thing.shape], thing.angle)]
        pen.polygon(corners, fill=fill, outline=edge, width=2)


def _turned(corners: list[tuple[float, float]], angle: float) -> list[tuple[float, float]]:
    cos, sin = math.cos(angle), math.sin(angle)
    return [(x * cos - y * sin, x * sin + y * cos) for x, y in corners]


def _star() -> list[tuple[float, float]]:
    radii = [1.0 if i % 2 == 0 else 0.42 for i in range(10)]
    return [(r * math.sin(math.pi * i / 5), -r * math.cos(math.pi * i / 5)) for i, r in enumerate(radii)]


def _heart() -> list[tuple[float, float]]:
    ts = [2 * math.pi * i / 40 for i in range(40)]
    return [
        (math.sin(t) ** 3, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16)
        for t in ts
    ]


def _moon() -> list[tuple[float, float]]:
    """A crescent: the unit circle's arc from 60 to 300 degrees, and back along a circle through the same two ends."""
    centre = 0.8
    radius = math.hypot(math.cos(math.radians(60)) - centre, math.sin(math.radians(60)))
    start = math.degrees(math.atan2(math.sin(math.radians(60)), math.cos(math.radians(60)) - centre))
    outer = [math.radians(60 + 240 * i / 24) for i in range(25)]
    inner = [math.radians(360 - start - (360 - 2 * start) * i / 24) for i in range(25)]
    points = [(math.cos(t), math.sin(t)) for t in outer]
    points += [(centre + radius * math.cos(t), radius * math.sin(t)) for t in inner]
    return [(x + 0.25, y) for x, y in points]


_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "triangle": [(0.0, -1.0), (0.95, 0.75), (-0.95, 0.75)],
    "cross": [
        (-0.32, -1), (0.32, -1), (0.32, -0.32), (1, -0.32), (1, 0.32), (0.32, 0.32),
        (0.32, 1), (-0.32, 1), (-0.32, 0.32), (-1, 0.32), (-1, -0.32), (-0.32, -0.32),
    ],
    "star": _star(),
    "heart": _heart(),
    "moon": _moon(),
}  # fmt: skip


def encode(picture: Image.Image, encoding: Encoding, quality: int = 88) -> bytes:
    """The picture as JPEG or WebP at a quality, or as PNG (quality unused)."""
    buffer = io.BytesIO()
    if encoding == "jpeg":
        picture.save(buffer, "JPEG", quality=quality)
    elif encoding == "webp":
        picture.save(buffer, "WEBP", quality=quality, method=0)
    else:
        picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def picture_bytes(item: Scene) -> bytes:
    """The file that the web serves for a scene."""
    return encode(draw(item), item.encoding)


def smaller_copy(item: Scene, scale: float = 0.75, quality: int = 70) -> bytes:
    """The same picture at `scale` and a lower JPEG quality: what a re-poster's site would have made of it."""
    picture = draw(item)
    size = (round(picture.width * scale), round(picture.height * scale))
    return encode(picture.resize(size, Image.Resampling.LANCZOS), "jpeg", quality)
