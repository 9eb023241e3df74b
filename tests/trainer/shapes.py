"""A small corpus of coloured shapes. No pytest here: the benchmarks draw from it too, on machines that have none."""

import hashlib
import io
import itertools
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw

from pipeline.contracts import schema

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 70, 220),
    "yellow": (230, 210, 50),
    "purple": (150, 60, 190),
    "black": (20, 20, 20),
}
SHAPES = ("circle", "square", "triangle", "bar")
GROUNDS = {"white": (250, 250, 250), "grey": (140, 140, 140), "orange": (240, 150, 60)}


def draw(colour: str, shape: str, ground: str, draws: np.random.Generator, side: int = 72) -> bytes:
    """A PNG of one shape on a plain ground, at a random place."""
    picture = Image.new("RGB", (side, side + int(draws.integers(0, 16))), GROUNDS[ground])
    pen = ImageDraw.Draw(picture)
    left, top = (int(place) for place in draws.integers(4, side // 3, 2))
    right, bottom = left + side // 2, top + side // 2
    if shape == "circle":
        pen.ellipse((left, top, right, bottom), fill=COLOURS[colour])
    elif shape == "square":
        pen.rectangle((left, top, right, bottom), fill=COLOURS[colour])
    elif shape == "triangle":
        pen.polygon([(left, bottom), (right, bottom), ((left + right) // 2, top)], fill=COLOURS[colour])
    else:
        pen.rectangle((left, top, right, top + side // 6), fill=COLOURS[colour])
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def table_of(pairs: Sequence[tuple[str | None, bytes | None]]) -> pa.Table:
    """Rows of SHARD_SCHEMA from (caption, encoded picture) pairs; what a pair does not tell is null."""
    urls = [f"https://corpus.example/{number}.png" for number in range(len(pairs))]
    known = {
        "uid": [schema.uid(url, caption or "") for url, (caption, _) in zip(urls, pairs, strict=True)],
        "url": urls,
        "caption": [caption for caption, _ in pairs],
        "caption_raw": [caption for caption, _ in pairs],
        "image": [picture for _, picture in pairs],
        "image_sha256": [None if picture is None else hashlib.sha256(picture).digest() for _, picture in pairs],
    }
    columns = [pa.array(known.get(field.name, [None] * len(pairs)), field.type) for field in schema.SHARD_SCHEMA]
    return pa.table(columns, schema=schema.SHARD_SCHEMA)


def shape_pairs(rows: int, seed: int = 0) -> list[tuple[str | None, bytes | None]]:
    draws = np.random.default_rng(seed)
    kinds = itertools.cycle(itertools.product(COLOURS, SHAPES, GROUNDS))
    return [
        (f"a {colour} {shape} on {ground} ground", draw(colour, shape, ground, draws))
        for colour, shape, ground in itertools.islice(kinds, rows)
    ]
