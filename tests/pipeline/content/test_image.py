"""Decoding against independent truths: files built by hand or by plain formulas, numpy turns, and every place to cut."""

import io
import os
import pickle
import random
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageFile

from pipeline.content.formats import plain_jpeg_size
from pipeline.content.image import BACKGROUND, MAX_JPEG_SCANS, ImageRejected, Picture, decode, encode, resize
from pipeline.contracts.schema import Reason

Pixels = npt.NDArray[np.uint8]
REAL_DATA = Path(os.environ.get("REAL_DATA", Path(__file__).parents[4] / "shared" / "data"))


def scene(height: int = 48, width: int = 64) -> Pixels:
    """Smooth, different in every corner, so that turns and losses show."""
    y, x = np.mgrid[0:height, 0:width]
    red, green = 255 * x / width, 255 * y / height
    blue = 127 + 120 * np.sin(x / 9) * np.cos(y / 7)
    return np.stack([red, green, blue], axis=-1).astype(np.uint8)


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *between: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            *between,
            chunk(b"IDAT", zlib.compress(rows)),
            chunk(b"IEND", b""),
        ]
    )


def exif(orientation: int, order: str = ">") -> bytes:
    mark = b"MM\0*" if order == ">" else b"II*\0"
    entry = struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0)
    return mark + struct.pack(order + "IH", 8, 1) + entry + struct.pack(order + "I", 0)


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """EXIF's definition by numpy: which edge of the scene the first row and the first column are."""
    return {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, -1),
        7: pixels.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(pixels, 1),
    }[orientation]


def refused(data: bytes, **options: Any) -> ImageRejected:
    with pytest.raises(ImageRejected) as caught:
        decode(data, **options)
    assert caught.value.detail
    return caught.value


# ---------------------------------------------------------------- formats and modes


LOSSLESS = [
    ("png", "PNG", {}),
    ("bmp", "BMP", {}),
    ("tiff", "TIFF", {}),
    ("tiff", "TIFF", {"compression": "tiff_lzw"}),
    ("tiff", "TIFF", {"compression": "tiff_adobe_deflate"}),
    ("webp", "WEBP", {"lossless": True}),
]


@pytest.mark.parametrize(("kind", "format", "options"), LOSSLESS)
def test_lossless_formats_give_the_pixels_back(kind: str, format: str, options: dict[str, Any]) -> None:
    picture = decode(saved(Image.fromarray(scene()), format, **options))
    assert (picture.format, picture.original_width, picture.original_height) == (kind, 64, 48)
    assert np.array_equal(picture.rgb, scene())
    assert picture.rgb.dtype == np.uint8
    assert picture.rgb.flags.c_contiguous
    assert not picture.rgb.flags.writeable


@pytest.mark.parametrize(("kind", "format"), [("jpeg", "JPEG"), ("webp", "WEBP"), ("avif", "AVIF"), ("jpeg", "MPO")])
def test_lossy_formats_come_close(kind: str, format: str) -> None:
    picture = decode(saved(Image.fromarray(scene()), format, quality=95))
    assert picture.format == kind
    assert np.abs(picture.rgb.astype(int) - scene()).mean() < 3


@pytest.mark.parametrize("order", [">", "<"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_orientation_is_applied(format: str, orientation: int, order: str) -> None:
    pixels = scene(32, 48)
    if format == "TIFF":
        data = saved(Image.fromarray(pixels), format, tiffinfo={274: orientation})
    else:
        options = {"lossless": True} if format == "WEBP" else {} if format == "PNG" else {"quality": 95}
        prefix = b"Exif\0\0" if format == "JPEG" else b""
        data = saved(Image.fromarray(pixels), format, exif=prefix + exif(orientation, order), **options)
    picture = decode(data)
    truth = upright(pixels, orientation)
    assert picture.rgb.shape == truth.shape
    assert (picture.original_height, picture.original_width) == truth.shape[:2]
    assert np.abs(picture.rgb.astype(int) - truth).mean() < 4


@pytest.mark.parametrize(
    "block", [b"", b"Exif\0\0", exif(0), exif(9), exif(6)[:12], b"II*\0\xff\xff\xff\xff\1\0", b"junk" * 9]
)
def test_unreadable_exif_costs_nothing(block: bytes) -> None:
    with_prefix = b"Exif\0\0" + block
    plain = saved(Image.fromarray(scene()), "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", len(with_prefix) + 2) + with_prefix
    assert np.array_equal(decode(plain[:2] + segment + plain[2:]).rgb, decode(plain).rgb)


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3)])
def test_16_bit_png_keeps_its_brightness(colour: int, channels: int) -> None:
    samples = np.linspace(0, 65535, 40 * 30 * channels).astype(np.uint16).reshape(30, 40 * channels)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    picture = decode(png(40, 30, 16, colour, rows))
    truth = (samples / 257).reshape(30, 40, channels)
    assert np.abs(picture.rgb - truth).max() <= 1
    assert abs(picture.rgb.mean() - 127.5) < 1
    assert (picture.rgb.min(), picture.rgb.max()) == (0, 255)


def test_16_bit_png_with_alpha_and_with_a_colour_key() -> None:
    grey_alpha = np.array([[40_000, 0, 40_000, 65_535]], ">u2")
    picture = decode(png(2, 1, 16, 4, b"\0" + grey_alpha.tobytes()))
    assert picture.rgb[0, :, 0].tolist() == [255, 40_000 >> 8]
    keyed = np.array([[1234, 50_000]], ">u2")
    picture = decode(png(2, 1, 16, 0, b"\0" + keyed.tobytes(), chunk(b"tRNS", struct.pack(">H", 1234))))
    assert picture.rgb[0, :, 0].tolist() == [255, 50_000 >> 8]
    colours = np.array([[1000, 2000, 3000, 60_000, 500, 30_000]], ">u2")
    picture = decode(png(2, 1, 16, 2, b"\0" + colours.tobytes(), chunk(b"tRNS", struct.pack(">HHH", 1000, 2000, 3000))))
    assert picture.rgb[0].tolist() == [[255, 255, 255], [60_000 >> 8, 1, 30_000 >> 8]]


def grey_tiff(samples: npt.NDArray[Any], photometric: int, bits: int, sample_format: int = 1) -> bytes:
    """The smallest little-endian TIFF: one strip, uncompressed."""
    height, width = samples.shape
    body = samples.tobytes()
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8 + 2 + 10 * 12 + 4)]
    tags += [(277, 1), (278, height), (279, len(body)), (339, sample_format)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + body


def test_16_bit_tiff_in_both_polarities_and_32_bit_refused() -> None:
    samples = np.linspace(0, 65535, 1200).astype("<u2").reshape(30, 40)
    for photometric in (0, 1):
        picture = decode(grey_tiff(samples, photometric, 16))
        truth = samples / 257 if photometric else 255 - samples / 257
        assert np.abs(picture.rgb[..., 1] - truth).max() <= 1
    floats = samples.astype("<f4") / 65535
    assert refused(grey_tiff(floats, 1, 32, sample_format=3)).reason is Reason.IMAGE_FORMAT
    assert refused(grey_tiff(samples.astype("<u4"), 1, 32)).reason is Reason.IMAGE_FORMAT


def test_cmyk_jpeg_is_not_inverted() -> None:
    # Pillow writes CMYK as Adobe does, inverted, with the Adobe marker.
    ink = np.zeros((16, 16, 4), np.uint8)
    ink[:, :8] = (0, 255, 255, 0)  # no cyan, full magenta and yellow: red
    ink[:, 8:] = (255, 0, 0, 128)  # half-black cyan
    picture = decode(saved(Image.fromarray(ink, "CMYK"), "JPEG", quality=100))
    assert np.abs(picture.rgb[8, 2].astype(int) - (255, 0, 0)).max() <= 4
    assert np.abs(picture.rgb[8, 13].astype(int) - (0, 127, 127)).max() <= 4


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "AVIF"])
def test_alpha_lies_over_white(format: str, mode: str) -> None:
    alpha = np.tile(np.arange(64, dtype=np.uint8) * 4, (48, 1))
    image = Image.fromarray(scene()).convert(mode.removesuffix("A").replace("RGB", "RGB"))
    base = np.asarray(image.convert("RGB")).astype(float)
    image = image.convert(mode)
    image.putalpha(Image.fromarray(alpha))
    options = {"lossless": True, "exact": True} if format == "WEBP" else {"quality": 100} if format == "AVIF" else {}
    picture = decode(saved(image, format, **options))
    weight = alpha[..., None] / 255
    truth = base * weight + np.array(BACKGROUND) * (1 - weight)
    assert np.abs(picture.rgb - truth).mean() < (2 if format == "AVIF" else 0.6)


def test_palettes_and_bits() -> None:
    palette = chunk(b"PLTE", bytes([10, 20, 30, 200, 100, 50]))
    rows = b"\0\x40" + b"\0\x80"  # two pixels a row, one bit each: 0 1 / 1 0
    opaque = decode(png(2, 2, 1, 3, rows, palette))
    assert opaque.rgb.tolist() == [[[10, 20, 30], [200, 100, 50]], [[200, 100, 50], [10, 20, 30]]]
    half = decode(png(2, 2, 1, 3, rows, palette, chunk(b"tRNS", bytes([0, 128]))))
    assert half.rgb[0, 0].tolist() == [255, 255, 255]
    assert np.abs(half.rgb[0, 1].astype(int) - [227, 177, 152]).max() <= 1
    bits = decode(png(2, 2, 1, 0, rows))
    assert bits.rgb[..., 0].tolist() == [[0, 255], [255, 0]]
    keyed = decode(png(2, 2, 1, 0, rows, chunk(b"tRNS", b"\0\0")))
    assert keyed.rgb.min() == 255


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_a_grey_key_hides_its_samples_and_no_other(depth: int) -> None:
    """Every sample value once, one picture row each; then every value as the key."""
    values = range(1 << depth)
    rows = b"".join(bytes([0, value << (8 - depth)]) for value in values)
    greys = [value * 255 // ((1 << depth) - 1) for value in values]
    for key in values:
        keyed = decode(png(1, len(values), depth, 0, rows, chunk(b"tRNS", struct.pack(">H", key))))
        assert keyed.rgb[:, 0, 0].tolist() == [255 if value == key else grey for value, grey in enumerate(greys)]


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "AVIF"])
def test_first_frame_of_an_animation(format: str) -> None:
    red, blue = Image.new("RGB", (32, 24), (220, 20, 20)), Image.new("RGB", (32, 24), (20, 20, 220))
    picture = decode(saved(red, format, save_all=True, append_images=[blue], duration=100))
    assert picture.rgb.shape == (24, 32, 3)
    assert np.abs(picture.rgb.astype(int) - (220, 20, 20)).max() <= 8


def test_transparent_gif_and_multi_page_tiff() -> None:
    gif = Image.new("P", (4, 2), 0)
    gif.putpalette([9, 9, 9, 200, 0, 0] + [0] * 762)
    gif.putpixel((1, 0), 1)
    picture = decode(saved(gif, "GIF", transparency=0))
    assert picture.rgb[0].tolist() == [[255] * 3, [200, 0, 0], [255] * 3, [255] * 3]
    pages = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    assert decode(saved(pages[0], "TIFF", save_all=True, append_images=pages[1:])).rgb[0, 0].tolist() == [255, 0, 0]


# ---------------------------------------------------------------- scaled decoding


@pytest.mark.parametrize("side", [1, 63, 64, 100, 128, 200, 256, 511, 512, 513, 5000])
def test_scaled_decode_never_goes_below_the_side(side: int) -> None:
    original = scene(512, 776)
    data = saved(Image.fromarray(original), "JPEG", quality=95)
    picture = decode(data, min_short_side=side)
    short = min(picture.rgb.shape[:2])
    assert short >= min(side, 512)
    assert short < 2 * side or short == 64  # libjpeg goes down to an eighth
    assert (picture.original_width, picture.original_height) == (776, 512)
    height, width = picture.rgb.shape[:2]
    truth = np.asarray(Image.fromarray(original).resize((width, height), Image.Resampling.BOX))
    assert np.abs(picture.rgb.astype(int) - truth).mean() < 3


def test_scaled_decode_with_a_turn() -> None:
    data = saved(Image.fromarray(scene(400, 600)), "JPEG", exif=b"Exif\0\0" + exif(6))
    picture = decode(data, min_short_side=100)
    assert picture.rgb.shape == (150, 100, 3)
    assert (picture.original_width, picture.original_height) == (400, 600)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"<!doctype html><title>404</title>",
        b"BMthe quick brown fox jumps",
        b"RIFF\0\0\0\0WAVEfmt ",
        b"\x89PNG\r\n\x1a\n",
    ],
)
def test_what_is_no_image(data: bytes) -> None:
    assert refused(data).reason is Reason.NOT_AN_IMAGE


@pytest.mark.parametrize(
    "data",
    [
        b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7 ...",
        b"8BPS\0\1",
        saved(Image.fromarray(scene()), "ICO"),
        saved(Image.fromarray(scene()), "JPEG2000"),
    ],
)
def test_formats_off_the_list(data: bytes) -> None:
    assert refused(data).reason is Reason.IMAGE_FORMAT


def test_bombs_are_refused_from_the_header() -> None:
    """Within a few milliseconds each, before anything is allocated."""
    side = 9000
    bombs = {
        "png": png(side, side, 8, 2, bytes(side * (1 + side * 3))),
        "gif": b"GIF89a\xff\xff\xff\xff\xf0\0\0\0\0\0\xff\xff\xff,\0\0\0\0\xff\xff\xff\xff\0\2\2D\1\0;",
        "webp": b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\xff\x00\xff\xff\x00" + bytes(8),
        "bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 1000, 0, 0, 54, 40, 60000, 60000, 1, 24, 0, 0, 0, 0, 0, 0),
        "tiff": grey_tiff(np.zeros((1, 8), "<u2"), 1, 16).replace(
            struct.pack("<HHII", 257, 4, 1, 1), struct.pack("<HHII", 257, 4, 1, 1 << 24)
        ),
    }
    jpeg = bytearray(saved(Image.fromarray(scene()), "JPEG"))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", 65000, 65000)
    bombs["jpeg"] = bytes(jpeg)
    for data in bombs.values():
        best = 1.0
        for _ in range(5):
            start = time.perf_counter()
            assert refused(data).reason is Reason.IMAGE_TOO_LARGE
            best = min(best, time.perf_counter() - start)
        assert best < 0.005
    assert len(bombs["png"]) < 300_000


def test_the_limit_is_the_callers() -> None:
    data = saved(Image.fromarray(scene(100, 100)), "PNG")
    assert decode(data, max_pixels=10_000).rgb.shape == (100, 100, 3)
    assert refused(data, max_pixels=9_999).reason is Reason.IMAGE_TOO_LARGE


def test_metadata_bombs_are_never_inflated() -> None:
    huge = zlib.compress(bytes(50_000_000))
    rows = b"\0" + bytes([1, 2, 3])
    text = chunk(b"zTXt", b"k\0\0" + huge) + chunk(b"iCCP", b"k\0\0" + huge) + chunk(b"acTL", b"\xff" * 8)
    start = time.process_time()
    assert decode(png(1, 1, 8, 2, rows, text)).rgb.tolist() == [[[1, 2, 3]]]
    assert time.process_time() - start < 0.5


ENDLESS = """
import resource, sys
from pathlib import Path
from pipeline.content.image import decode
files = [Path(name).read_bytes() for name in sys.argv[1:]]
decode(files[0])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for data in files[1:]:
    picture = decode(data)
    assert picture.rgb.shape == (8, 8, 3) and picture.rgb.max() == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


NO_MEMORY = """
import resource, sys
from pathlib import Path
from pipeline.content.formats import plain_jpeg_size
from pipeline.content.image import ImageRejected, decode
small, large = (Path(name).read_bytes() for name in sys.argv[1:])
decode(small)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)
assert plain_jpeg_size(large) is not None
try:
    decode(large)
except ImageRejected as refused:
    print(refused.reason)
"""


def test_a_plain_jpeg_that_finds_no_memory_is_refused(tmp_path: Path) -> None:
    """Of 147 MB of pixels, in a process that may take 64 more."""
    names = [tmp_path / "small.jpg", tmp_path / "large.jpg"]
    for name, side in zip(names, (8, 7000), strict=True):
        Image.new("RGB", (side, side)).save(name)
    done = subprocess.run([sys.executable, "-c", NO_MEMORY, *map(str, names)], capture_output=True, text=True)
    assert done.stdout.strip() == Reason.IMAGE_TOO_LARGE, done.stderr


def test_a_png_stream_that_goes_on_behind_the_last_row_is_not_inflated(tmp_path: Path) -> None:
    """Plain and interlaced, in one chunk and in many: the picture comes out, and memory grows by a few MB, not by 200."""

    packer = zlib.compressobj()
    zeros = bytes(1 << 20)
    endless = b"".join([*(packer.compress(zeros) for _ in range(200)), packer.flush()])

    def build(interlace: int, body: bytes, pieces: int) -> bytes:
        size = -(-len(body) // pieces)
        parts = [chunk(b"IDAT", body[at : at + size]) for at in range(0, len(body), size)]
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, interlace))
        return b"".join([b"\x89PNG\r\n\x1a\n", header, *parts, chunk(b"IEND", b"")])

    bombs = [build(0, zlib.compress(zeros), 1), build(0, endless, 1), build(1, endless, 1), build(1, endless, 500)]
    names = [tmp_path / f"{number}.png" for number in range(len(bombs))]
    for name, data in zip(names, bombs, strict=True):
        name.write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", ENDLESS, *names], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 20_000, "kB"


@pytest.mark.parametrize("pieces", [1, 3, 40])
def test_black_rows_of_several_megabytes_are_counted_to_the_byte(pieces: int) -> None:
    def build(rows: int) -> bytes:
        body = zlib.compress(bytes(rows))
        size = -(-len(body) // pieces)
        parts = [chunk(b"IDAT", body[at : at + size]) for at in range(0, len(body), size)]
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1200, 1000, 8, 2, 0, 0, 1))
        return b"".join([b"\x89PNG\r\n\x1a\n", header, *parts, chunk(b"IEND", b"")])

    whole = len(interlaced(np.zeros((1000, 1200, 3), np.uint8)))
    assert decode(build(whole)).rgb.max() == 0
    assert refused(build(whole - 1)).reason is Reason.IMAGE_TRUNCATED


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    data = saved(Image.fromarray(scene()), "JPEG", progressive=True)
    at = data.rindex(b"\xff\xda")
    assert decode(data).format == "jpeg"
    bomb = data[:at] + data[at:-2] * (MAX_JPEG_SCANS + 1) + data[-2:]
    assert refused(bomb).reason is Reason.IMAGE_CORRUPT


def test_few_scans_of_many_pixels_cost_as_much_and_are_refused_before_decoding() -> None:
    """110 kB that libjpeg works on for seconds; the same picture with the scans that an encoder writes is one."""
    data = saved(Image.new("L", (2100, 2100), 128), "JPEG", progressive=True, quality=10)
    at = data.rindex(b"\xff\xda")
    assert decode(data).rgb.shape == (2100, 2100, 3)
    bomb = data[:at] + data[at:-2] * 240 + data[-2:]
    began = time.process_time()
    said = refused(bomb)
    assert time.process_time() - began < 0.5
    assert said.reason is Reason.IMAGE_CORRUPT
    assert said.detail == "jpeg of 2100 x 2100 with 245 scans (limit 1024000000 pixels scanned)"


def test_scans_of_thumbnails_and_of_what_follows_the_picture_are_not_its_own() -> None:
    """A phone's panorama with a thumbnail in its EXIF, and behind its end another picture and a film, in which any bytes may stand."""
    picture = saved(Image.new("L", (2100, 2100), 128), "JPEG", progressive=True, quality=10)
    thumbnail = b"\xff\xe1\xc0\x02" + b"\xff\xda" * 0x6000
    data = picture[:2] + thumbnail + picture[2:] + picture + b"\xff\xda" * 100_000
    assert np.array_equal(decode(data).rgb, decode(picture).rgb)


def test_a_jpeg_of_endless_segments_is_refused_at_once() -> None:
    data = saved(Image.fromarray(scene()), "JPEG")
    began = time.process_time()
    assert refused(data[:2] + b"\xff\xfe\x00\x02" * 4_000_000 + data[2:]).reason is Reason.IMAGE_CORRUPT
    assert time.process_time() - began < 3


def with_unknown_segment(data: bytes) -> bytes:
    """The same JPEG with a segment that says nothing (APP15), behind its JFIF header: no longer one of the plainest kind."""
    return data[:20] + b"\xff\xef\x00\x06none" + data[20:]


@pytest.mark.parametrize("side", [None, 20, 60])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(
    "options", [{}, {"quality": 95, "subsampling": 0}, {"quality": 40, "optimize": True, "comment": b"by hand"}]
)
def test_a_plain_jpeg_goes_a_shorter_way_to_the_same_pixels(
    mode: str, side: int | None, options: dict[str, Any]
) -> None:
    data = saved(Image.fromarray(scene(123, 207)).convert(mode), "JPEG", **options)
    assert plain_jpeg_size(data) == (207, 123)
    assert plain_jpeg_size(with_unknown_segment(data)) is None
    short, long = (decode(each, min_short_side=side) for each in (data, with_unknown_segment(data)))
    assert np.array_equal(short.rgb, long.rgb)
    assert (short.original_width, short.original_height) == (long.original_width, long.original_height) == (207, 123)
    assert not short.rgb.flags.writeable
    if side is None:
        assert np.array_equal(short.rgb, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_a_plain_jpeg_that_is_damaged_fares_as_any_other() -> None:
    """Bytes changed anywhere: the shorter way gives the pixels or the refusal of the longer one."""
    data = saved(Image.fromarray(scene(40, 56)), "JPEG", quality=80)
    rng = random.Random(7)
    outcomes: set[object] = set()
    for _ in range(1500):
        broken = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            broken[rng.randrange(20, len(broken))] = rng.choice((0, 0xFF, 0xD9, 0xDA, 0xC0, 0xC2, rng.randrange(256)))
        told: list[bytes | Reason] = []
        for each in (bytes(broken), with_unknown_segment(bytes(broken))):
            try:
                told.append(decode(each, max_pixels=10_000).rgb.tobytes())
            except ImageRejected as refusal:
                told.append(refusal.reason)
        assert told[0] == told[1]
        outcomes.add("picture" if isinstance(told[0], bytes) else told[0])
    assert {"picture", Reason.IMAGE_TRUNCATED, Reason.IMAGE_CORRUPT, Reason.IMAGE_TOO_LARGE} <= outcomes


def test_what_is_not_plain_is_not_taken_for_it() -> None:
    picture = Image.fromarray(scene())
    exif = Image.Exif()
    exif[0x0112] = 6
    assert plain_jpeg_size(saved(picture, "JPEG", exif=exif)) is None
    assert plain_jpeg_size(saved(picture, "JPEG", progressive=True)) is None
    assert plain_jpeg_size(saved(picture.convert("CMYK"), "JPEG")) is None
    assert plain_jpeg_size(saved(picture, "JPEG", icc_profile=b"profile")) is None
    assert plain_jpeg_size(saved(picture, "PNG")) is None
    whole = saved(picture, "JPEG")
    assert {plain_jpeg_size(whole[:end]) for end in range(300)} == {None}


def test_headers_that_lie() -> None:
    few_rows = (b"\0" + bytes([200] * 30)) * 3
    assert refused(png(10, 9, 8, 2, few_rows)).reason is Reason.IMAGE_TRUNCATED
    assert decode(png(10, 3, 8, 2, few_rows)).rgb.mean() == 200
    black = png(10, 9, 8, 2, bytes(31 * 9))
    assert decode(black).rgb.max() == 0
    assert refused(png(0, 9, 8, 2, b"")).reason is Reason.IMAGE_CORRUPT
    broken = bytearray(black)
    broken[-20] ^= 1  # inside the pixel chunk or its checksum
    assert refused(bytes(broken)).reason in (Reason.IMAGE_CORRUPT, Reason.IMAGE_TRUNCATED)


@pytest.mark.parametrize("side", [None, 50])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_closed_after_a_cut_is_not_filled_with_grey(mode: str, side: int | None) -> None:
    data = saved(Image.fromarray(scene(203, 209)).convert(mode), "JPEG", quality=90)
    start = data.index(b"\xff\xda") + 20
    for end in range(start, len(data) - 40, (len(data) - start) // 40):
        cut = data[:end].rstrip(b"\xff") + b"\xff\xd9"
        assert refused(cut, min_short_side=side).reason is Reason.IMAGE_TRUNCATED
    grey = Image.fromarray(np.full((200, 200, 3), 128, np.uint8)).convert(mode)
    assert decode(saved(grey, "JPEG"), min_short_side=side).original_width == 200
    ends_in_grey = scene(203, 209)
    ends_in_grey[-40:, -40:] = 128
    assert decode(saved(Image.fromarray(ends_in_grey), "JPEG", quality=90), min_short_side=side).original_width == 209


def interlaced(pixels: Pixels) -> bytes:
    """The rows of an Adam7 PNG, by the table of its specification."""
    rows = b""
    for y0, x0, dy, dx in (
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    ):
        rows += b"".join(b"\0" + row.tobytes() for row in pixels[y0::dy, x0::dx] if row.size)
    return rows


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (8, 8), (17, 23)])
def test_interlaced_png_whole_and_short(height: int, width: int) -> None:
    pixels = scene(height, width)
    rows = interlaced(pixels)

    def build(body: bytes) -> bytes:
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1)
        parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(body)), chunk(b"IEND", b"")]
        return b"\x89PNG\r\n\x1a\n" + b"".join(parts)

    assert np.array_equal(decode(build(rows)).rgb, pixels)
    assert refused(build(rows[: len(rows) - 2])).reason is Reason.IMAGE_TRUNCATED


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("GIF", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "jpeg"}),
        ("AVIF", {}),
    ],
)
def test_a_file_cut_anywhere_never_gives_other_pixels(format: str, options: dict[str, Any]) -> None:
    """Either it is refused, or nothing that carries pixels was cut and the picture is the same."""
    rng = np.random.default_rng(3)
    noisy = np.clip(scene(40, 56) + rng.integers(-30, 30, (40, 56, 3)), 0, 255).astype(np.uint8)
    data = saved(Image.fromarray(noisy), format, **options)
    whole = decode(data).rgb
    reasons: dict[Reason, int] = {}
    for end in sorted({*range(1, len(data), max(1, len(data) // 150)), *range(len(data) - 12, len(data))}):
        try:
            picture = decode(data[:end])
        except ImageRejected as refusal:
            reasons[refusal.reason] = reasons.get(refusal.reason, 0) + 1
        else:
            assert np.array_equal(picture.rgb, whole), f"other pixels after {end} of {len(data)} bytes"
    truncated = reasons.pop(Reason.IMAGE_TRUNCATED)
    assert sum(reasons.values()) <= 0.1 * truncated, reasons  # too short to be recognised, mostly


def test_fuzz_only_pictures_and_refusals_come_out() -> None:
    rng = random.Random(20_260)
    small = Image.fromarray(scene(20, 28))
    seeds = [saved(small, format) for format in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")]
    seeds += [
        saved(small, "JPEG", progressive=True, exif=b"Exif\0\0" + exif(6)),
        saved(small, "TIFF", compression="tiff_lzw"),
        saved(small.quantize(8), "PNG", transparency=3),
        saved(small.quantize(8), "BMP"),
        saved(small, "WEBP", save_all=True, append_images=[small.rotate(90)]),
        saved(small.convert("CMYK"), "JPEG"),
        saved(small, "PNG", exif=exif(5)),
    ]
    outcomes = {"picture": 0}
    for case in range(4_200):
        data = bytearray(seeds[case % len(seeds)])
        for _ in range(rng.choice((1, 1, 2, 8))):
            # Half of the damage goes where the headers are.
            at = rng.randrange(min(len(data), 64) if rng.random() < 0.5 else len(data))
            data[at] ^= 1 << rng.randrange(8)
        if rng.random() < 0.1:
            del data[rng.randrange(len(data)) :]
        try:
            picture = decode(bytes(data), max_pixels=200_000)
        except ImageRejected as refusal:
            outcomes[refusal.reason.value] = outcomes.get(refusal.reason.value, 0) + 1
            continue
        outcomes["picture"] += 1
        assert isinstance(picture, Picture)
        assert picture.rgb.ndim == 3
        assert picture.rgb.size > 0
        assert picture.rgb.size <= 600_000
    assert min(outcomes["picture"], outcomes["image_corrupt"], outcomes["image_truncated"]) > 100, outcomes


def test_refusals_and_pictures_travel_between_processes() -> None:
    refusal = refused(b"nothing")
    twin = pickle.loads(pickle.dumps(refusal))
    assert (twin.reason, twin.detail, str(twin)) == (refusal.reason, refusal.detail, f"not_an_image: {refusal.detail}")
    picture = decode(saved(Image.fromarray(scene()), "PNG"))
    assert np.array_equal(pickle.loads(pickle.dumps(picture)).rgb, picture.rgb)


def test_threads_leave_warnings_and_pillow_as_they_were() -> None:
    rng = random.Random(5)
    tiff = saved(Image.fromarray(scene()), "TIFF")
    cases = [bytes(tiff[: rng.randrange(8, len(tiff))]) for _ in range(40)] + [tiff] * 10
    filters, settings = list(warnings.filters), (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS)
    unexpected: list[BaseException] = []

    def work() -> None:
        for data in cases:
            try:
                decode(data)
            except ImageRejected:
                pass
            except BaseException as error:  # noqa: BLE001 - carried to the test's own thread
                unexpected.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not unexpected
    assert list(warnings.filters) == filters
    assert settings == (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS)


# ---------------------------------------------------------------- resize and encode


MODES = ["no", "keep_ratio", "keep_ratio_largest", "center_crop", "border"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("only_if_bigger", [False, True])
@pytest.mark.parametrize("size", [100, 256])
@pytest.mark.parametrize(("width", "height"), [(123, 456), (208, 495), (321, 421), (416, 264), (90, 80), (256, 256)])
def test_resize_gives_the_sizes_of_img2dataset(
    width: int, height: int, size: int, only_if_bigger: bool, mode: Any
) -> None:
    result = resize(scene(height, width), size=size, mode=mode, only_if_bigger=only_if_bigger)
    side = max(width, height) if mode in ("keep_ratio_largest", "border") else min(width, height)
    if mode == "no" or (only_if_bigger and side <= size):
        truth = (height, width)
    elif mode in ("center_crop", "border"):
        truth = (size, size)
    else:
        truth = (round(height * size / side), round(width * size / side))
    assert result.shape == (*truth, 3)
    assert result.dtype == np.uint8
    assert result.flags.c_contiguous


def test_resize_averages_crops_the_middle_and_pads_with_white() -> None:
    blocks = np.kron(np.arange(12, dtype=np.uint8).reshape(3, 4) * 20, np.ones((8, 8), np.uint8))
    rgb = np.repeat(blocks[..., None], 3, axis=-1)
    assert np.array_equal(resize(rgb, size=3, mode="keep_ratio")[..., 0], np.arange(12).reshape(3, 4) * 20)
    assert np.array_equal(resize(scene(10, 20), size=10, mode="center_crop"), scene(10, 20)[:, 5:15])
    bordered = resize(np.zeros((10, 20, 3), np.uint8), size=20, mode="border")
    assert bordered[:5].min() == 255
    assert bordered[5:15].max() == 0
    assert bordered[15:].min() == 255


def test_a_thread_of_a_picture_is_not_blown_up() -> None:
    with pytest.raises(ImageRejected) as caught:
        resize(np.zeros((1, 60_000, 3), np.uint8), size=256, mode="keep_ratio")
    assert caught.value.reason is Reason.IMAGE_TOO_LARGE
    assert resize(np.zeros((1, 60_000, 3), np.uint8), size=256, mode="keep_ratio_largest").shape == (1, 256, 3)


@pytest.mark.parametrize("format", ["jpeg", "webp", "png"])
def test_encode_round_trip_is_deterministic(format: Any) -> None:
    data = encode(scene(), format=format)
    assert data == encode(scene().copy(), format=format)
    picture = decode(data)
    assert picture.format == format
    assert np.abs(picture.rgb.astype(int) - scene()).mean() < (0.01 if format == "png" else 3)


# ---------------------------------------------------------------- real pictures


def test_real_emoji_pictures_lie_over_white() -> None:
    """Palette, grey with alpha and RGBA files; truth: alpha blending in numpy."""
    path = REAL_DATA / "emoji.parquet"
    if not path.exists():
        pytest.skip(f"no real data at {REAL_DATA}")
    table = pq.read_table(path)
    column = next(field.name for field in table.schema if str(field.type) in ("binary", "large_binary"))
    modes: set[str] = set()
    for index in range(0, table.num_rows, 40):
        data = table[column][index].as_py()
        with Image.open(io.BytesIO(data)) as source:
            modes.add(source.mode)
            rgba = np.asarray(source.convert("RGBA")).astype(float)
        weight = rgba[..., 3:] / 255
        truth = rgba[..., :3] * weight + 255 * (1 - weight)
        assert np.abs(decode(data).rgb - truth).max() <= 1
    assert {"P", "RGBA"} <= modes


def test_a_thread_without_end_is_refused() -> None:
    """5 pixels wide and 12 million long it would fill 74 kB, and hashing it 6 GB."""
    assert refused(png(5, 70_000, 8, 0, bytes(70_000 * 6))).reason is Reason.IMAGE_TOO_LARGE
    assert refused(png(70_000, 5, 8, 0, bytes(70_001 * 5))).reason is Reason.IMAGE_TOO_LARGE
    assert decode(png(5, 65_535, 8, 0, bytes(65_535 * 6))).rgb.shape == (65_535, 5, 3)
