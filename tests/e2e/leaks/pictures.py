"""How a picture leaks, and what the libraries of others say of a file: `pdqhash` (Meta's own code) and `ImageHash`, on Pillow's pixels.

A plant is known to be one before the audit has seen it. Whether a copy is to be found, and by which method, is decided here with none of
the project's hashes, and with margins on both sides of the thresholds, so that a decoder's rounding decides nothing. What falls between the
margins is drawn again. Each kind of copy has a few strengths, and is planted at the greatest that is surely found; where none is, another
picture is taken. So it is the job that is tested, and not the luck of a seed.
"""

import io
from collections.abc import Callable, Collection, Sequence
from typing import Final, Literal, NamedTuple

import imagehash
import numpy as np
import pdqhash
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from evaluation.config import Thresholds
from tests.web import scenes
from tests.web.dice import Dice

LIMITS: Final = Thresholds()
"""The job's defaults; its configuration says none."""
HASHED_BELOW = 512  # the rule of the corpus: halved until the short side is below this

Words = NDArray[np.uint64]
Relation = Literal["in doubt", "apart", "pdq", "phash"]
RELATIONS: tuple[Relation, ...] = ("in doubt", "apart", "pdq", "phash")
_PDQ_MARGIN, _PHASH_MARGIN, _QUALITY_MARGIN = 7, 2, 8


class Look(NamedTuple):
    """What others' libraries say of an encoded picture: `pdq` uint64[4], `phash` uint64[1], PDQ's `quality`."""

    pdq: Words
    phash: Words
    quality: int


def look(data: bytes) -> Look:
    """Hash a file as the corpus's rule says: upright, whole, halved while its short side is HASHED_BELOW or more."""
    picture = opened(data)
    while min(picture.size) >= HASHED_BELOW:
        picture = picture.reduce(2)
    bits, quality = pdqhash.compute(np.asarray(picture))
    short = np.packbits(imagehash.phash(picture).hash)
    return Look(np.packbits(bits).view(np.uint64), short.view(np.uint64), int(quality))


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


class Gallery:
    """The looks of some pictures, to compare one more with all of them."""

    def __init__(self, looks: Sequence[Look] = ()) -> None:
        self._pdq, self._phash, self._quality = np.empty((0, 4), np.uint64), np.empty((0, 1), np.uint64), np.empty(0)
        for one in looks:
            self.add(one)

    def add(self, one: Look) -> int:
        """Returns its place, from 0."""
        self._pdq, self._phash = np.vstack([self._pdq, one.pdq]), np.vstack([self._phash, one.phash])
        self._quality = np.append(self._quality, one.quality)
        return len(self._quality) - 1

    def relations(self, one: Look) -> NDArray[np.int64]:
        """To each of them, as places in RELATIONS: in doubt, surely found by neither, surely by PDQ, surely by pHash and not by PDQ."""
        pdq = np.bitwise_count(self._pdq ^ one.pdq).sum(axis=1)
        phash = np.bitwise_count(self._phash ^ one.phash).sum(axis=1)
        quality = np.minimum(self._quality, one.quality)
        textured, flat = quality >= LIMITS.pdq_quality + _QUALITY_MARGIN, quality < LIMITS.pdq_quality - _QUALITY_MARGIN
        near, distant = pdq <= LIMITS.pdq_distance - _PDQ_MARGIN, pdq > LIMITS.pdq_distance + _PDQ_MARGIN
        alike, unlike = phash <= LIMITS.phash_distance - _PHASH_MARGIN, phash > LIMITS.phash_distance + _PHASH_MARGIN
        allowed = pdq <= LIMITS.phash_pdq_distance - _PDQ_MARGIN
        contradicted = pdq > LIMITS.phash_pdq_distance + _PDQ_MARGIN
        apart = flat | (distant & (unlike | contradicted))
        return np.select([apart, textured & near, textured & distant & alike & allowed], [1, 2, 3], 0)

    def apart(self, one: Look, but: Collection[int] = ()) -> bool:
        """Surely found as none of them; those at the places `but` are not asked."""
        others = self.relations(one) != RELATIONS.index("apart")
        others[list(but)] = False
        return not others.any()


def hash_alike(one: Look, other: Look) -> bool:
    """Whether two pictures surely would be taken for one another, were it not asked how much texture they have."""
    pdq, phash = (int(np.bitwise_count(a ^ b).sum()) for a, b in ((one.pdq, other.pdq), (one.phash, other.phash)))
    alike = phash <= LIMITS.phash_distance - _PHASH_MARGIN and pdq <= LIMITS.phash_pdq_distance - _PDQ_MARGIN
    return alike or pdq <= LIMITS.pdq_distance - _PDQ_MARGIN


def is_flat(one: Look) -> bool:
    """Surely without the texture that a hash needs. Raises ValueError where that is in doubt."""
    told = relation(one, one)
    if told == "in doubt":
        raise ValueError(f"a picture of PDQ quality {one.quality} is neither surely flat nor surely textured")
    return told == "apart"


def relation(one: Look, other: Look) -> Relation:
    """Of two pictures."""
    return RELATIONS[int(Gallery([one]).relations(other)[0])]


# ---- kinds of copies


class Kind(NamedTuple):
    """A kind of copy: the method that must find it, its strengths from the greatest on, and the file that it makes."""

    method: Literal["pdq", "phash", "descriptor"]
    strengths: tuple[float, ...]
    copy: Callable[[Image.Image, float, Dice], bytes]


def jpeg(picture: Image.Image, quality: int = 85) -> bytes:
    return scenes.encode(picture, "jpeg", quality)


def _recompressed(picture: Image.Image, strength: float, dice: Dice) -> bytes:
    return jpeg(picture, round(strength))


def _resized(picture: Image.Image, strength: float, dice: Dice) -> bytes:
    size = (max(1, round(picture.width * strength)), max(1, round(picture.height * strength)))
    return jpeg(picture.resize(size, Image.Resampling.LANCZOS))


def _other_format(picture: Image.Image, strength: float, dice: Dice) -> bytes:
    return scenes.encode(picture, dice.pick(("webp", "png")), round(strength))


def _recoloured(picture: Image.Image, strength: float, dice: Dice) -> bytes:
    """Grey, channels exchanged, warm, faded or dark, laid over the picture with that weight."""
    red, green, blue = picture.split()
    colours = (
        picture.convert("L").convert("RGB"),
        Image.merge("RGB", (blue, green, red)),
        Image.merge("RGB", (red.point(_brighter), green, blue.point(_darker))),
        ImageEnhance.Contrast(picture).enhance(0.5),
        ImageEnhance.Brightness(picture).enhance(0.6),
    )
    return jpeg(Image.blend(picture, dice.pick(colours), strength))


def _brighter(value: int) -> int:
    return min(255, round(value * 1.3))


def _darker(value: int) -> int:
    return round(value * 0.7)


def _cropped(picture: Image.Image, strength: float, dice: Dice) -> bytes:
    """`strength` of each side taken away, at a place that a die chooses."""
    width, height = round(picture.width * (1 - strength)), round(picture.height * (1 - strength))
    left, top = dice.number(0, picture.width - width), dice.number(0, picture.height - height)
    return jpeg(picture.crop((left, top, left + width, top + height)))


def _framed(picture: Image.Image, strength: float, dice: Dice) -> bytes:
    """A frame of `strength` of the short side."""
    return jpeg(ImageOps.expand(picture, max(1, round(strength * min(picture.size))), dice.pick(("white", "black"))))


def _mirrored(picture: Image.Image, strength: float, dice: Dice) -> bytes:
    return jpeg(ImageOps.mirror(picture))


def _turned(picture: Image.Image, strength: float, dice: Dice) -> bytes:
    """By `strength` degrees, to either side."""
    return jpeg(picture.rotate(dice.pick((strength, -strength)), Image.Resampling.BICUBIC))


def _grainy(picture: Image.Image, strength: float, dice: Dice) -> bytes:
    """Coarse grain of six to twelve cycles and none of fewer: it drowns what PDQ sees and pHash does not."""
    grain = dice.noise(24, 24).astype(np.float32) - 127.5
    grain -= grain.reshape(12, 2, 12, 2).mean((1, 3)).repeat(2, 0).repeat(2, 1)
    smooth = np.asarray(Image.fromarray(grain).resize(picture.size, Image.Resampling.BICUBIC))
    pixels = np.asarray(picture) + 2 * strength * smooth[:, :, None]
    return jpeg(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))


KINDS: dict[str, Kind] = {
    "recompressed": Kind("pdq", (6, 10, 15, 25, 40, 60, 80), _recompressed),
    "resized": Kind("pdq", (0.25, 0.35, 0.5, 0.7, 1.6), _resized),
    "enlarged": Kind("pdq", (4.0, 2.0), _resized),  # beyond HASHED_BELOW, so that it is halved
    "in another format": Kind("pdq", (20, 60, 90), _other_format),
    "recoloured": Kind("pdq", (1.0, 0.8, 0.6, 0.4, 0.2), _recoloured),
    "cropped a little": Kind("pdq", (0.06, 0.05, 0.04, 0.03, 0.02, 0.01), _cropped),
    "thinly framed": Kind("pdq", (0.05, 0.04, 0.03, 0.02, 0.01), _framed),
    "under coarse grain": Kind("phash", (0.16, 0.13, 0.1), _grainy),
    "cropped to half its area": Kind("descriptor", (1 - 0.5**0.5,), _cropped),
    "framed by a tenth": Kind("descriptor", (0.1,), _framed),
    "mirrored": Kind("descriptor", (1.0,), _mirrored),
    "turned by ten degrees": Kind("descriptor", (10.0,), _turned),
}
"""What no hash of whole pictures finds has one strength, and is planted only where there is a descriptor."""
