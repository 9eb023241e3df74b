"""Bytes as fetched -> what is known of the picture, or why it is refused. Shared by the engines.

Everything that decides over a picture (is it one, is it whole, how large is it, which way is up, what are its hashes) comes from our own
decoder in `pipeline.content`, so that it does not depend on the engine that fetched it. An engine only fetches and makes the stored copy.
"""

import dataclasses
import io

import PIL.Image

from pipeline.content.hashes import HASH_SHORT_SIDE, PictureHashes, picture_hashes, sha256
from pipeline.content.image import ImageRejected, Picture, decode
from pipeline.contracts.schema import Reason
from pipeline.crawl.config import CrawlConfig
from pipeline.crawl.outcome import Refused

_ORIENTATION = 0x0112  # the EXIF tag; 2 to 8 turn or mirror
_PNG_BIT_DEPTH = 24  # its offset: signature 8, chunk head 8, width and height 8


@dataclasses.dataclass(frozen=True)
class Examined:
    """An acceptable picture: upright RGB (scaled down while decoding where it is large), its hashes, and the hash of its source bytes."""

    picture: Picture
    hashes: PictureHashes
    source_sha256: bytes


def examine(data: bytes, config: CrawlConfig) -> Examined | Refused:
    """Decode, hold against the limits of `config`, hash."""
    try:
        picture = decode(data, max_pixels=config.max_pixels, min_short_side=HASH_SHORT_SIDE)
    except ImageRejected as rejected:
        return Refused(rejected.reason, rejected.detail)
    width, height = picture.original_width, picture.original_height
    if min(width, height) < config.min_side:
        return Refused(Reason.IMAGE_TOO_SMALL, f"{width}x{height}")
    if max(width, height) > config.max_aspect_ratio * min(width, height):
        return Refused(Reason.ASPECT_RATIO, f"{width}x{height}")
    return Examined(picture, picture_hashes(picture), sha256(data))


def is_plain(data: bytes) -> bool:
    """Whether every decoder sees the same pixels in `data`: 8-bit RGB or grey, upright, opaque, a single frame; JPEG, PNG or WebP.

    False where unsure. Only the header is read; call it after `examine` has accepted the bytes.
    """
    try:
        with PIL.Image.open(io.BytesIO(data)) as image:
            # MPO is how phones write a JPEG with a second picture behind it; every decoder takes the first.
            jpeg = image.format in ("JPEG", "MPO")
            if not jpeg and (image.format not in ("PNG", "WEBP") or getattr(image, "n_frames", 1) != 1):
                return False
            if image.mode not in ("RGB", "L") or "transparency" in image.info:
                return False
            # A PNG may carry its orientation behind the pixels, where a header's reader does not look.
            if image.format == "PNG" and (data[_PNG_BIT_DEPTH] != 8 or b"eXIf" in data):
                return False
            return image.getexif().get(_ORIENTATION, 1) not in range(2, 9)
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, PIL.Image.DecompressionBombError):
        # What Pillow raises over broken metadata; the pixels themselves were already decoded.
        return False
