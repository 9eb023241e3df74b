"""Bytes from a stranger's server become one upright RGB picture, or a named refusal.

Every picture of the corpus passes `decode` once. It decides by the bytes (names and content types lie), looks at the size
in the header before a single pixel is allocated, and lets only a short list of Pillow's readers see the data. Peers get
several picture kinds wrong in silence, so each has one rule here:

* EXIF orientation 1-8 is applied (TIFF and AVIF carry their own turn, which Pillow hands over or applies).
* 16-bit samples keep their high byte, in grey as in colour; 12-bit ones are brought to the same scale. A 32-bit integer
  or floating picture has no agreed white and is refused as `image_format`.
* Transparency of any kind (alpha, palette, colour key) is laid over `BACKGROUND`, white. The key of a picture of 16-bit colours is
  compared by its high bytes, which are all that is kept of a sample.
* CMYK and YCCK, with Adobe's inversion, become RGB by the plain formula. ICC profiles are not applied.
* Of an animation the first frame is taken; of a multi-page TIFF the first page; of an APNG its still picture.
* A file that ends early is `image_truncated`: missing rows are never filled in, also where the reader below Pillow would
  (a JPEG closed with an end marker after the cut, a PNG whose pixel stream is too short). Damage in the middle of a JPEG
  that libjpeg decodes to other colours without an error cannot be seen, and passes.

Nothing global in Pillow is changed: its classes are called directly, so neither `Image.open`'s registry nor its own bomb
limit nor LOAD_TRUNCATED_IMAGES plays a part. PNG files are reduced to the chunks that carry pixels, so text, ICC and APNG
chunks are never inflated. Resizing and encoding sit here too, because what is stored must depend on nothing but these lines.
"""

from __future__ import annotations

import importlib
import io
import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageFile
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from pipeline.content.area import shrink
from pipeline.content.formats import (
    ImageRejected,
    check_size,
    ends_early,
    exif_orientation,
    plain_jpeg_size,
    png_pixels_only,
    sniff,
    webp_size,
)
from pipeline.contracts.schema import Reason

__all__ = ["ImageRejected", "Picture", "decode", "encode", "resize", "sniff"]

RGB = npt.NDArray[np.uint8]  # [height, width, 3]
ResizeMode = Literal["no", "keep_ratio", "keep_ratio_largest", "center_crop", "border"]

MAX_PIXELS = 64_000_000
"""Width x height of the source. Pillow holds four bytes for each, libwebp another four, and transparency takes two more copies: 64 million
of a lossless WebP take 1.05 GB while they are decoded, of an RGBA PNG 0.85 GB."""
MAX_JPEG_SCANS = 256  # a progressive JPEG of ten thousand empty scans costs minutes of CPU for a few kB
MAX_SCANNED_PIXELS = 16 * MAX_PIXELS
"""Scans times pixels of a JPEG: libjpeg visits all blocks again for each scan, whatever it holds. Progressive encoders write 10 to 12."""
MAX_JPEG_SEGMENTS = 1 << 16
_INFLATE_STEP = 1 << 20  # bytes of PNG rows counted at a time
BACKGROUND = (255, 255, 255)  # what shows through transparency, and the border of resize mode "border"

# Orientation of EXIF (tag 0x0112) -> the turn that makes the stored rows upright. CIPA DC-008, 4.6.4.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_READERS: dict[str, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
    "jpeg": JpegImageFile,
    "png": PngImageFile,
    "gif": GifImageFile,
    "webp": WebPImageFile,
    "bmp": BmpImageFile,
    "tiff": TiffImageFile,
    "avif": AvifImageFile,
}


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """One decoded picture: `rgb` is uint8[h, w, 3], upright, read-only; the original size is the source's, upright too.

    `rgb` may be smaller than the original when `decode` was given `min_short_side`; its last column and row may then hold less of the
    source than the others. Where it was turned so that these come first, `mirrored` (across, down) says so.
    """

    rgb: RGB
    format: str
    original_width: int
    original_height: int
    mirrored: tuple[bool, bool] = (False, False)


# ---------------------------------------------------------------- decoding: the main path


def decode(
    data: bytes, *, max_pixels: int = MAX_PIXELS, min_short_side: int | None = None, min_long_side: int | None = None
) -> Picture:
    """Decode `data` to one upright RGB picture.

    `max_pixels` bounds width x height of the source, MAX_SIDE each of them, checked on the header before anything is allocated. With
    `min_short_side` or `min_long_side` a JPEG may be decoded at 1/2, 1/4 or 1/8 (libjpeg's DCT scaling), never to a shorter,
    or a longer, side below it. At most one of the two is given.
    Raises ImageRejected, and nothing else, whatever the bytes are.
    """
    kind = sniff(data)
    if kind is None:
        raise ImageRejected(Reason.NOT_AN_IMAGE, f"{len(data)} bytes that begin with {bytes(data[:12])!r}")
    try:
        size = plain_jpeg_size(data) if kind == "jpeg" else None
        if size is not None:
            check_size(*size, max_pixels)
            plain = _fast_jpeg(size, data, _least_short_side(size, min_short_side, min_long_side))
            if plain is not None:
                plain.setflags(write=False)
                return Picture(plain, kind, *size)
        with _PILLOW_WARNINGS_IGNORED:
            return _decode(kind, data, max_pixels, min_short_side, min_long_side)
    except ImageRejected:
        raise
    # Pillow's readers answer broken input with some twenty exception types (struct.error, KeyError, SyntaxError, ...), and any of them may
    # find no memory: which it is is no business of the caller, that none escapes is.
    except Exception as error:
        raise _refusal(kind, data, error) from error


def _decode(kind: str, data: bytes, max_pixels: int, min_short_side: int | None, min_long_side: int | None) -> Picture:
    orientation = 1
    if kind == "png":
        width, height = struct.unpack(">II", data[16:24])
        check_size(width, height, max_pixels)
        data, exif = png_pixels_only(data)
        orientation = exif_orientation(exif)
    elif kind == "webp":
        # libwebp allocates its canvas when the reader is made, so the size has to be known before.
        check_size(*webp_size(data), max_pixels)
    scans = _count_scans(data) if kind == "jpeg" else 0
    if scans > MAX_JPEG_SCANS:
        raise ImageRejected(Reason.IMAGE_CORRUPT, f"jpeg with {scans} scans (limit {MAX_JPEG_SCANS})")

    image: Image.Image = _reader(kind)(io.BytesIO(data))
    check_size(*image.size, max_pixels)
    width, height = image.size
    if scans * width * height > MAX_SCANNED_PIXELS:
        raise ImageRejected(
            Reason.IMAGE_CORRUPT,
            f"jpeg of {width} x {height} with {scans} scans (limit {MAX_SCANNED_PIXELS} pixels scanned)",
        )
    if kind == "tiff":
        _check_tiff(image, max_pixels)
    else:
        orientation = exif_orientation(image.info.get("exif") or b"") if kind != "png" else orientation
    min_short_side = _least_short_side((width, height), min_short_side, min_long_side)
    fast = _fast_jpeg((width, height), data, min_short_side) if kind == "jpeg" and image.mode in ("RGB", "L") else None
    if fast is not None and orientation not in _TURNS:
        fast.setflags(write=False)
        return Picture(fast, kind, width, height)
    if fast is not None:
        image = Image.fromarray(fast)
    elif kind == "jpeg" and min_short_side is not None:
        image.draft("RGB", (min_short_side, min_short_side))
    image.load()
    if kind == "jpeg" and fast is None:
        _check_jpeg_filler(image, data, min_short_side)
    elif kind == "png":
        _check_png_rows(image, data)
    elif kind == "tiff":
        width, height = image.size  # Pillow has applied the TIFF orientation tag

    key = image.info.get("transparency")
    if kind == "png" and image.mode == "L" and data[24] in (2, 4) and isinstance(key, int):
        image.info["transparency"] = key * 255 // ((1 << data[24]) - 1)  # Pillow scales the samples, not the key
    rgb = _to_rgb(image)
    if orientation in _TURNS:
        rgb = rgb.transpose(_TURNS[orientation])
        if orientation >= 5:
            width, height = height, width
    pixels = np.ascontiguousarray(np.asarray(rgb))
    pixels.setflags(write=False)
    return Picture(pixels, kind, width, height, (orientation in (2, 3, 6, 7), orientation in (3, 4, 7, 8)))


def _count_scans(data: bytes) -> int:
    """Scans of a JPEG up to its end marker, found as libjpeg finds them (T.81, annex B): from segment to segment, and from coded data to
    the next marker. What stands inside a segment (a thumbnail) or behind the end (a phone's second picture, its film) is none."""
    bytes_ = np.frombuffer(data, np.uint8)
    places = np.flatnonzero(bytes_[:-1] == 0xFF)
    codes = bytes_[places + 1]
    places = places[
        (codes != 0) & (codes != 0xFF) & ((codes < 0xD0) | (codes > 0xD7))
    ]  # no stuffing, filling, restarts
    scans, at = 0, 2
    for _ in range(MAX_JPEG_SEGMENTS):
        found = int(np.searchsorted(places, at))
        if found == len(places) or scans > MAX_JPEG_SCANS:
            return scans
        at = int(places[found])
        code = data[at + 1]
        if code == 0xD9:
            return scans
        scans += code == 0xDA
        at += 2 if code in (0x01, 0xD8) else 2 + int.from_bytes(data[at + 2 : at + 4])
    raise ImageRejected(Reason.IMAGE_CORRUPT, f"jpeg with more than {MAX_JPEG_SEGMENTS} segments")


def _least_short_side(size: tuple[int, int], min_short_side: int | None, min_long_side: int | None) -> int | None:
    """The shorter side that a picture must keep for its longer one to keep `min_long_side`."""
    if min_long_side is None:
        return min_short_side
    return max(1, -(-min_long_side * min(size) // max(size)))


def _fast_jpeg(size: tuple[int, int], data: bytes, min_short_side: int | None) -> RGB | None:
    """The pixels of an RGB or grey JPEG by libjpeg-turbo directly, at the scale that Pillow's `draft` would take; None for what is odd.

    The same library with the same settings as Pillow's, so the same pixels, in two thirds of its time. It is told to stop at
    the first warning (data that ends early among them); such a file goes the slow way, where the rules above decide over it.
    """
    width, height = size
    scale = 1
    while min_short_side is not None and scale < 8 and min(width, height) // min_short_side >= 2 * scale:
        scale *= 2
    wanted_width, wanted_height = -(-width // scale), -(-height // scale)
    try:
        pixels: RGB = simplejpeg.decode_jpeg(
            data, "RGB", min_height=wanted_height if scale > 1 else 0, min_width=wanted_width if scale > 1 else 0
        )
    except ValueError:
        return None
    return pixels if pixels.shape == (wanted_height, wanted_width, 3) else None


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode to RGB, by the rules at the top of this file."""
    if image.mode.startswith("I;16"):
        image = _grey16_to_grey8(image)
    elif image.mode in ("I", "F"):
        raise ImageRejected(Reason.IMAGE_FORMAT, f"{image.format} with 32-bit samples (no agreed white)")
    elif image.mode == "La":
        image = image.convert("LA")

    key = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
        image.info["transparency"] = tuple(part >> 8 for part in key)  # the key of a 16-bit PNG, as its pixels
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or key is not None:
        image = image.convert("RGBA")
        flat = Image.new("RGB", image.size, BACKGROUND)
        flat.paste(image, mask=image.getchannel("A"))
        return flat
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey16_to_grey8(image: Image.Image) -> Image.Image:
    """High bytes of a 16-bit grey picture (Pillow's own conversion clips at 255 instead: near-white pictures)."""
    samples = np.asarray(image).astype(np.uint16)
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    bits = int(tags.get(258, (16,))[0])  # BitsPerSample
    grey = (samples >> (bits - 8)).astype(np.uint8)
    if tags.get(262) == 0:  # PhotometricInterpretation WhiteIsZero, which Pillow inverts for 8 bits only
        grey = 255 - grey
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey[samples == key] = 255
    return Image.fromarray(grey)


def _reader(kind: str) -> Callable[[io.BytesIO], ImageFile.ImageFile]:
    if kind == "heic":
        # Only where a HEIC file turns up and the plugin is there; it is not one of our dependencies.
        reader: Callable[[io.BytesIO], ImageFile.ImageFile] = importlib.import_module("pillow_heif").HeifImageFile
        return reader
    return _READERS[kind]


def _check_tiff(image: Image.Image, max_pixels: int) -> None:
    """A TIFF names its tile size apart from its picture size, and libtiff allocates by it."""
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    tile_width, tile_height = int(tags.get(322, 0)), int(tags.get(323, 0))
    if tile_width * tile_height > max_pixels:
        raise ImageRejected(Reason.IMAGE_TOO_LARGE, f"tiff tiles of {tile_width} x {tile_height}")


def _check_jpeg_filler(image: Image.Image, data: bytes, min_short_side: int | None) -> None:
    """Refuse a JPEG whose coded data ends before its last block, though an end marker follows.

    libjpeg makes the missing blocks mid-grey and only warns, which Pillow does not pass on. So a picture that ends in
    mid-grey is decoded again with bytes put in before its end marker. Behind complete data they are skipped; where data is
    missing they are taken for it, and the pixels change. (A cut inside the very last block goes unseen.)
    """
    corner = image.crop((image.width - 1, image.height - 1, image.width, image.height))
    if image.mode == "RGB":
        corner = corner.convert("L")  # the colour of a lone last block is smoothed with its neighbour's
    if any(abs(value - 128) > 8 for value in corner.tobytes()):
        return
    end = data.rfind(b"\xff\xd9")
    again = JpegImageFile(io.BytesIO(data[:end] + bytes(range(1, 255)) + data[end:]))
    if min_short_side is not None:
        again.draft("RGB", (min_short_side, min_short_side))
    again.load()
    if again.tobytes() != image.tobytes():
        raise ImageRejected(Reason.IMAGE_TRUNCATED, "jpeg whose coded data ends before its last row")


def _check_png_rows(image: Image.Image, data: bytes) -> None:
    """Refuse a PNG whose compressed stream ends before its last row: Pillow leaves such rows zero and says nothing.

    Counting costs an inflate, so it is done only where the last row is zero throughout, or rows come interlaced.
    """
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    last_row = image.crop((0, height - 1, width, height))
    if not interlaced and any(last_row.tobytes()):
        return
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    expected = 0
    for x0, y0, dx, dy in _ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = -((x0 - width) // dx), -((y0 - height) // dy)
        if columns > 0 and rows > 0:
            expected += rows * (1 + (columns * bits + 7) // 8)
    inflate, got, at = zlib.decompressobj(), 0, 8
    # The stream may go on for gigabytes behind the last row. Pillow leaves that alone, and so does this: bounded steps, no `flush`.
    # A step with nothing left of the chunk gives what zlib held back when the step before it was full.
    while got < expected and not inflate.eof and at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        rest = data[at + 8 : at + 8 + length] if data[at + 4 : at + 8] == b"IDAT" else b""
        step = -1
        while step and got < expected:
            step = len(inflate.decompress(rest, _INFLATE_STEP))
            rest = inflate.unconsumed_tail
            got += step
        at += 12 + length
    if got < expected:
        raise ImageRejected(Reason.IMAGE_TRUNCATED, f"png with {got} of {expected} bytes of rows")


_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


# ---------------------------------------------------------------- refusals and warnings


def _refusal(kind: str, data: bytes, error: Exception) -> ImageRejected:
    text = f"{kind}: {type(error).__name__}: {error}"[:300]
    if isinstance(error, MemoryError):
        return ImageRejected(Reason.IMAGE_TOO_LARGE, text)
    lowered = str(error).lower()
    if "truncated" in lowered or "not enough image data" in lowered or ends_early(kind, data):
        return ImageRejected(Reason.IMAGE_TRUNCATED, text)
    if isinstance(error, NotImplementedError) or "unsupported" in lowered or "unknown pixel mode" in lowered:
        return ImageRejected(Reason.IMAGE_FORMAT, text)
    return ImageRejected(Reason.IMAGE_CORRUPT, text)


class _WarningsIgnored:
    """Ignore Python warnings while at least one thread is decoding.

    Pillow warns about odd metadata, which decides nothing here: pixels and errors do. `warnings.catch_warnings` alone
    swaps process-wide state and two threads would restore it in the wrong order, so entries are counted: the first sets
    the filter, the last puts the old state back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._saved = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._saved = warnings.catch_warnings()
                self._saved.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._saved.__exit__(kind, error, trace)


_PILLOW_WARNINGS_IGNORED = _WarningsIgnored()


# ---------------------------------------------------------------- resizing and encoding


def resize(
    rgb: RGB,
    *,
    size: int,
    mode: ResizeMode,
    only_if_bigger: bool = False,
    original_size: tuple[int, int] | None = None,
    mirrored: tuple[bool, bool] = (False, False),
) -> RGB:
    """Resize uint8[h, w, 3] by one of img2dataset's modes, to the same sizes: sides rounded half to even.

    no: unchanged. keep_ratio: the short side becomes `size`. keep_ratio_largest: the long side does. center_crop: as
    keep_ratio, then the central square. border: as keep_ratio_largest, then centred on a white square. With
    `only_if_bigger` a picture whose deciding side is not above `size` is returned as it is, neither cropped nor padded.
    `original_size` is (width, height) of the source where `rgb` was scaled down while it was decoded: the result has the
    sides that the source gives, which those of `rgb`, rounded once already, may miss by one, and shows all of it and nothing else.
    `mirrored` as in `Picture`.
    Shrinking averages areas exactly (`area.py`), enlarging is bicubic.
    Raises ImageRejected(image_too_large) where the result would exceed MAX_PIXELS or MAX_SIDE (a very thin picture, scaled up).
    """
    height, width = rgb.shape[:2]
    full_width, full_height = original_size or (width, height)
    choose = max if mode in ("keep_ratio_largest", "border") else min
    side, full_side = choose(height, width), choose(full_height, full_width)
    if mode == "no" or (only_if_bigger and full_side <= size):
        return rgb
    if full_side != size:
        width, height = max(1, round(full_width * size / full_side)), max(1, round(full_height * size / full_side))
        check_size(width, height, MAX_PIXELS)
        if side >= size:
            rgb = shrink(rgb, width, height, original_size, mirrored)
        else:
            rgb = np.asarray(Image.fromarray(rgb).resize((width, height), Image.Resampling.BICUBIC))
    if mode == "center_crop":
        top, left = (height - size) // 2, (width - size) // 2
        rgb = np.ascontiguousarray(rgb[top : top + size, left : left + size])
    elif mode == "border":
        square = np.full((size, size, 3), BACKGROUND, np.uint8)
        top, left = (size - height) // 2, (size - width) // 2
        square[top : top + height, left : left + width] = rgb
        rgb = square
    return rgb


def encode(rgb: RGB, *, format: Literal["jpeg", "webp", "png"] = "jpeg", quality: int | None = None) -> bytes:
    """Encode uint8[h, w, 3]; the same pixels and library version give the same bytes.

    `quality` is 1 to 100 for jpeg and webp (default 95), and the compression level 0 to 9 for png (6), as in img2dataset.
    """
    out = io.BytesIO()
    image = Image.fromarray(rgb)
    if quality is None:
        quality = 6 if format == "png" else 95
    if format == "png":
        image.save(out, "PNG", compress_level=quality)
    elif format == "webp":
        image.save(out, "WEBP", quality=quality, method=4)
    else:
        image.save(out, "JPEG", quality=quality, subsampling="4:2:0")
    return out.getvalue()
