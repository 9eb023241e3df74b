"""Planted copies: what the search would find of a set's own pictures if the corpus had them changed.

A match found says nothing of the matches lost. So some pictures of each set are changed in sixteen stated ways, saved as JPEG as a web
page would have them, hashed by the rule of the corpus and compared with their originals. The share within the thresholds is the recall for
that change: 1 for a recompressed copy, 0 for a mirrored one, and the reader knows what "clean" means.

The changes are those of a measurement on 400 photographs that this project's thresholds come from (PDQ finds 99 % of recompressed and
halved copies, 6 % after CLIP's own centre crop); each is fixed, so that the same picture gives the same copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from evaluation.overlap.seen import CopyScores
from evaluation.overlap.tables import COPY_SCHEMA
from pipeline.content.hashes import HASH_SHORT_SIDE, PictureHashes, as_codes, hamming, picture_hashes
from pipeline.content.image import ImageRejected, decode, encode
from pipeline.content.labelled import LabelledSet

_SAVED = 90  # JPEG quality of a copy
_SMALLEST = 16  # pixels; a copy with a shorter side is no picture any more and is left out
_LONGEST = 65_500  # pixels; libjpeg writes no longer side, and a copy that has one is left out
_THREAD = 16  # times as long as wide
_PAPER, _INK = (255, 255, 255), (20, 20, 20)


def _area(picture: Image.Image, kept: float) -> Image.Image:
    """The middle of a picture with `kept` of its area, both sides cut alike."""
    side = kept**0.5
    width, height = round(picture.width * side), round(picture.height * side)
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


def _centre_224(picture: Image.Image) -> Image.Image:
    """CLIP's own preprocessing: short side to 224 by a bicubic filter, then the middle 224 x 224.

    Of a thread only the middle is enlarged: the rest of it, cut away here at once, may be more than a machine holds.
    """
    across, down = (min(side, _THREAD * min(picture.size)) for side in picture.size)
    left, top = (picture.width - across) // 2, (picture.height - down) // 2
    picture = picture.crop((left, top, left + across, top + down))
    scale = 224 / min(picture.size)
    size = (max(224, round(picture.width * scale)), max(224, round(picture.height * scale)))
    small = picture.resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - 224) // 2, (size[1] - 224) // 2
    return small.crop((left, top, left + 224, top + 224))


def _scaled(picture: Image.Image, factor: float) -> Image.Image:
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.resize(size, Image.Resampling.LANCZOS)


def _bordered(picture: Image.Image) -> Image.Image:
    return ImageOps.expand(picture, round(0.1 * min(picture.size)), _PAPER)


def _with_banner(picture: Image.Image) -> Image.Image:
    """A white strip with writing over the lowest 12 % of the picture."""
    changed, top = picture.copy(), round(0.88 * picture.height)
    drawing = ImageDraw.Draw(changed)
    drawing.rectangle((0, top, picture.width, picture.height), fill=_PAPER)
    drawing.text(
        (picture.width // 20, top), "SALE  50 % OFF", fill=_INK, font_size=max(6, (picture.height - top) * 3 // 4)
    )
    return changed


def _brighter(picture: Image.Image) -> Image.Image:
    return ImageEnhance.Contrast(ImageEnhance.Brightness(picture).enhance(1.4)).enhance(1.4)


TRANSFORMS: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    "recompressed, JPEG q10": lambda picture: picture,
    "half size": lambda picture: _scaled(picture, 0.5),
    "thumbnail of 64 pixels": lambda picture: _scaled(picture, 64 / max(picture.size)),
    "square of 256, nearest": lambda picture: picture.resize((256, 256), Image.Resampling.NEAREST),
    "grey": lambda picture: picture.convert("L").convert("RGB"),
    "brightness and contrast 1.4": _brighter,
    "banner of 12 %": _with_banner,
    "border of 10 %": _bordered,
    "mirrored": ImageOps.mirror,
    "turned by 3 degrees": lambda picture: picture.rotate(3, Image.Resampling.BICUBIC, fillcolor=_PAPER),
    "turned by 10 degrees": lambda picture: picture.rotate(10, Image.Resampling.BICUBIC, fillcolor=_PAPER),
    "CLIP's centre crop of 224": _centre_224,
    "crop, 95 % of the area": lambda picture: _area(picture, 0.95),
    "crop, 90 % of the area": lambda picture: _area(picture, 0.9),
    "crop, half of the area": lambda picture: _area(picture, 0.5),
    "crop, a quarter of the area": lambda picture: _area(picture, 0.25),
}
"""Name to change, of an upright RGB picture. The first is saved at quality 10, all others at 90."""


def copy_of(picture: Image.Image, transform: str) -> bytes:
    """The changed picture as JPEG."""
    return _saved(TRANSFORMS[transform](picture), transform)


def _saved(changed: Image.Image, transform: str) -> bytes:
    quality = 10 if transform == "recompressed, JPEG q10" else _SAVED
    return encode(np.asarray(changed), format="jpeg", quality=quality)


def hash_copies(labelled: LabelledSet, rows: list[int], scores: CopyScores | None = None) -> pa.Table:
    """COPY_SCHEMA: one row per picture of `rows` and transform, with the distances from the original, in that order.

    A picture that cannot be opened, and a copy too small to be one or too long for a JPEG, have no row. `scores`: what the descriptor says
    of copies of a row.
    """
    found: list[tuple[int, str, str, PictureHashes, PictureHashes]] = []
    likeness: list[float | None] = []
    for picture in labelled.pictures(rows):
        try:
            opened = decode(picture.data, min_short_side=HASH_SHORT_SIDE)
        except ImageRejected:
            continue
        original, upright = picture_hashes(opened), Image.fromarray(opened.rgb)
        copies = []
        for name, transform in TRANSFORMS.items():
            changed = transform(upright)
            if min(changed.size) >= _SMALLEST and max(changed.size) <= _LONGEST:
                copies.append(_saved(changed, name))
                hashes = picture_hashes(decode(copies[-1], min_short_side=HASH_SHORT_SIDE))
                found.append((picture.row, picture.id, name, original, hashes))
        likeness += [None] * len(copies) if scores is None else scores(picture.row, copies)
    both = [one for *_, one, _ in found], [other for *_, other in found]
    return pa.table(
        {
            "set": pa.array([labelled.name] * len(found), pa.string()),
            "eval_row": pa.array([row for row, *_ in found], pa.int64()),
            "eval_id": pa.array([name for _, name, *_ in found], pa.string()),
            "transform": pa.array([name for _, _, name, _, _ in found], pa.string()),
            "pdq_distance": pa.array(
                hamming(*(as_codes([side.pdq256 for side in sides]) for sides in both)), pa.int32()
            ),
            "phash_distance": pa.array(
                hamming(*(np.array([side.phash64 for side in sides], np.uint64) for sides in both)), pa.int32()
            ),
            "pdq_quality": pa.array([min(one.pdq_quality, other.pdq_quality) for *_, one, other in found], pa.uint8()),
            "descriptor_score": pa.array(likeness, pa.float64()),
        },
        schema=COPY_SCHEMA,
    )
