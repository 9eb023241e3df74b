"""Bytes as fetched -> what is known of the picture, or why it is refused. Shared by the engines.

Everything that decides over a picture (is it one, is it whole, how large is it, which way is up, what are its hashes) comes from our own
decoder in `pipeline.content`, so that it does not depend on the engine that fetched it. `store` makes the stored copy too, for the engine
`fetch`; img2dataset's resizer makes it for the other.

A JPEG is decoded by 1/2, 1/4 or 1/8 (libjpeg's DCT scaling, most of the speed of a crawl) where what is left is still DCT_MARGIN times
as large as the stored copy, or as the hashes need it. The margin was chosen by measurement: tests/pipeline/crawl/test_picture.py.
"""

import dataclasses
import errno
import functools
import io
import math

import numpy as np
import PIL.Image

from pipeline.content.area import shrink
from pipeline.content.hashes import HASH_SHORT_SIDE, PictureHashes, picture_hashes, sha256
from pipeline.content.image import ImageRejected, Picture, decode, encode, resize
from pipeline.contracts.schema import Reason
from pipeline.crawl.config import CrawlConfig
from pipeline.crawl.files import OURS, no_file_to_open
from pipeline.crawl.outcome import Outcome, Refused, Stored, unforeseen

DCT_MARGIN = 3.25
"""A picture is never decoded to less than this many times the sides of its stored copy, where the source has them: the least at which all
photographs of the test lie above 38 dB of a full decode, at 1/2, 1/4 and 1/8 and at every ratio from here on. With two instead a source
of 4000 x 3000 lies up to 3 dB lower; it costs 49 ms and not 103 where it is hashed (at another scale), as much as now where it is not.
"""

_LONGEST_SIDE = {
    "jpeg": 65_500,
    "webp": 16_383,
}  # that libjpeg and libwebp encode; a PNG holds more than is ever decoded
_ORIENTATION = 0x0112  # the EXIF tag; 2 to 8 turn or mirror
_PNG_BIT_DEPTH = 24  # its offset: signature 8, chunk head 8, width and height 8


@dataclasses.dataclass(frozen=True)
class Examined:
    """An acceptable picture: upright RGB (scaled down while decoding where it is large), its hashes where the configuration asks for them,
    and the hash of its source bytes."""

    picture: Picture
    hashes: PictureHashes | None
    source_sha256: bytes


@functools.cache
def get_ready(*, hashes: bool) -> None:
    """Compile what pictures go through, or read it from the disk: the seconds that the first picture of a process would take otherwise.

    Raises OSError where no file can be opened.
    """
    plain = np.zeros((HASH_SHORT_SIDE, HASH_SHORT_SIDE, 3), np.uint8)
    shrink(plain, 1, 1)
    if hashes:
        picture_hashes(Picture(plain, "png", HASH_SHORT_SIDE, HASH_SHORT_SIDE))


def examine(data: bytes, config: CrawlConfig) -> Examined | Refused:
    """Decode, hold against the limits of `config`, hash."""
    try:
        if config.perceptual_hashes:
            picture = decode(data, max_pixels=config.max_pixels, min_short_side=HASH_SHORT_SIDE)
        else:
            picture = _decode_to_store(data, config)
    except ImageRejected as rejected:
        return Refused(rejected.reason, rejected.detail)
    width, height = picture.original_width, picture.original_height
    if min(width, height) < config.min_side:
        return Refused(Reason.IMAGE_TOO_SMALL, f"{width}x{height}")
    if max(width, height) > config.max_aspect_ratio * min(width, height):
        return Refused(Reason.ASPECT_RATIO, f"{width}x{height}")
    return Examined(picture, picture_hashes(picture) if config.perceptual_hashes else None, sha256(data))


def store(data: bytes, config: CrawlConfig) -> Outcome:
    """The stored picture made of `data` by our own resizing and encoding, or why there is none.

    Raises nothing, whatever the bytes are, but an OSError of `files.OURS` where the process has no file left to open (compiled loops are
    read from the disk when they are first used).
    """
    try:
        return _store(data, config)
    except ImageRejected as rejected:
        return Refused(rejected.reason, rejected.detail)
    except Exception as error:  # logged there; no single picture may end a run
        if isinstance(error, OSError) and (error.errno in OURS or no_file_to_open()):
            raise OSError(errno.EMFILE, "making the stored picture") from error
        return unforeseen(error, Reason.IMAGE_CORRUPT, "making the stored picture")


def _store(data: bytes, config: CrawlConfig) -> Outcome:
    examined = examine(data, config)
    if isinstance(examined, Refused):
        return examined
    picture = examined.picture
    if not _is_enough(picture, config):
        picture = _decode_to_store(data, config)
    rgb = resize(
        picture.rgb,
        size=config.image_size,
        mode=config.resize_mode,
        only_if_bigger=not config.upscale,
        original_size=(picture.original_width, picture.original_height),
        mirrored=picture.mirrored,
    )
    height, width = rgb.shape[:2]
    longest = _LONGEST_SIDE.get(config.encode_format)
    if longest is not None and max(width, height) > longest:
        return Refused(Reason.IMAGE_TOO_LARGE, f"{width} x {height} (limit of {config.encode_format} {longest})")
    image = encode(rgb, format=config.encode_format, quality=config.quality)
    return stored(image, width, height, examined, config)


def stored(image: bytes, width: int, height: int, examined: Examined, config: CrawlConfig) -> Stored:
    """The columns of a picture whose stored copy is `image`, of `width` x `height`."""
    hashes = examined.hashes
    return Stored(
        image=image,
        format=config.encode_format,
        width=width,
        height=height,
        original_width=examined.picture.original_width,
        original_height=examined.picture.original_height,
        source_sha256=examined.source_sha256,
        image_sha256=sha256(image),
        phash64=hashes.phash64 if hashes else None,
        pdq256=hashes.pdq256 if hashes else None,
        pdq_quality=hashes.pdq_quality if hashes else None,
    )


def _decode_to_store(data: bytes, config: CrawlConfig) -> Picture:
    if config.resize_mode == "no":
        return decode(data, max_pixels=config.max_pixels)
    side = math.ceil(DCT_MARGIN * config.image_size)
    if config.resize_mode in ("keep_ratio_largest", "border"):
        return decode(data, max_pixels=config.max_pixels, min_long_side=side)
    return decode(data, max_pixels=config.max_pixels, min_short_side=side)


def _is_enough(picture: Picture, config: CrawlConfig) -> bool:
    """Whether a picture that was decoded for its hashes has the pixels that the stored copy is made of."""
    height, width = picture.rgb.shape[:2]
    if width == picture.original_width:
        return True
    side = max(width, height) if config.resize_mode in ("keep_ratio_largest", "border") else min(width, height)
    return config.resize_mode != "no" and side >= DCT_MARGIN * config.image_size


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
