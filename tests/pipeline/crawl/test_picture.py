"""The stored copy: img2dataset's sizes, OpenCV's areas, and how far a DCT-scaled decode is from a full one.

Truth: the installed img2dataset's Resizer (below Python 3.13), OpenCV's INTER_AREA, and full decodes of real photographs.
"""

import importlib
import io
import itertools
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.content.area import shrink
from pipeline.content.formats import MAX_SIDE
from pipeline.content.hashes import picture_hashes
from pipeline.content.image import RGB, decode, resize
from pipeline.contracts.schema import Reason
from pipeline.crawl.config import CrawlConfig
from pipeline.crawl.outcome import Outcome, Refused, Stored
from pipeline.crawl.picture import DCT_MARGIN, store

SIZES = [(123, 456), (208, 495), (321, 421), (389, 535), (416, 264), (456, 123), (524, 316)]
# img2dataset's own test of its resizer: every mode with each useful pair of (only_if_bigger, skip_reencode).
CASES = [
    ("no", False, False),
    ("no", False, True),
    ("no", True, False),
    *[
        (mode, bigger, False)
        for mode in ("border", "keep_ratio", "keep_ratio_largest", "center_crop")
        for bigger in (False, True)
    ],
    ("keep_ratio", True, True),
    ("center_crop", True, True),
]
FORMATS = [("jpeg", "jpg", 95), ("webp", "webp", 95), ("png", "png", 9)]


def noise(width: int, height: int, seed: int = 0) -> bytes:
    """A smooth random picture as a JPEG."""
    dice = np.random.default_rng(seed)
    small = PIL.Image.fromarray(dice.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    file = io.BytesIO()
    small.resize((width, height), PIL.Image.Resampling.BICUBIC).save(file, "JPEG", quality=92)
    return file.getvalue()


@pytest.fixture(scope="module")
def resizer() -> Any:
    if sys.version_info >= (3, 13):
        pytest.skip("img2dataset does not import on Python 3.13")
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("img2dataset.resizer")


@pytest.mark.parametrize(
    "formats", [FORMATS[:1], pytest.param(FORMATS[1:], marks=pytest.mark.prove)], ids=["jpeg", "others"]
)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]:d}{case[2]:d}")
def test_sizes_are_those_of_img2dataset(
    case: tuple[str, bool, bool], formats: list[tuple[str, str, int]], resizer: Any
) -> None:
    """13 cases x 2 sizes x 3 formats, over seven pictures. We always re-encode; skipping it changes no size. (No size depends on the
    format, and PNG at level 9 and WebP are slow: those two are left to `make prove`.)"""
    mode, only_if_bigger, skip_reencode = case
    for size, (ours, theirs, quality) in itertools.product((256, 512), formats):
        peer = resizer.Resizer(
            size, mode, only_if_bigger, encode_quality=quality, encode_format=theirs, skip_reencode=skip_reencode
        )
        config = CrawlConfig.model_validate(
            {
                "image_size": size, "resize_mode": mode, "upscale": not only_if_bigger, "encode_format": ours,
                "quality": quality, "perceptual_hashes": False,
            }
        )  # fmt: skip
        for seed, (width, height) in enumerate(SIZES):
            data = noise(width, height, seed)
            made = store(data, config)
            assert isinstance(made, Stored)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image, *_, error = peer(io.BytesIO(data))
            assert error is None
            expected = PIL.Image.open(io.BytesIO(image)).size
            stored = PIL.Image.open(io.BytesIO(made.image))
            assert stored.size == (made.width, made.height) == expected, (size, ours, width, height)
            assert stored.format == ours.upper()


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 90), st.integers(1, 90), st.data())
def test_shrinking_takes_the_mean_of_each_area(width: int, height: int, data: st.DataObject) -> None:
    columns, rows = data.draw(st.integers(1, width)), data.draw(st.integers(1, height))
    rgb = np.random.default_rng(width * 100 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    found = shrink(rgb, columns, rows)
    # Every pixel repeated until the areas are whole: exact, and far too slow for anything but a test.
    repeated = np.repeat(np.repeat(rgb.astype(np.int64), rows, axis=0), columns, axis=1)
    means = repeated.reshape(rows, height, columns, width, 3).mean(axis=(1, 3))
    assert np.abs(found - means).max() <= 0.5 + 1e-3


def test_shrinking_is_what_opencv_calls_area() -> None:
    cv2 = pytest.importorskip("cv2")
    rgb = decode(noise(1024, 768)).rgb
    for size in ((341, 256), (1000, 700), (512, 384), (333, 111), (1, 1)):
        theirs = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
        assert np.abs(shrink(rgb, *size).astype(int) - theirs).max() <= 1


def photographs(real: Path) -> Iterator[bytes]:
    path = real / "photos_cc.parquet"
    if not path.exists():
        pytest.skip(f"no photographs at {path}")
    yield from pq.read_table(path, columns=["jpeg"])["jpeg"].to_pylist()


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = float(np.mean((a.astype(np.float64) - b) ** 2))
    return 10 * np.log10(255**2 / error) if error else 99.0


def test_stored_pictures_of_photographs_are_near_a_full_decode(real_data: Path) -> None:
    """At the size of the corpus: against a full decode and OpenCV's area resize. The stored copy is a PNG here, so that the loss of the
    last encoding, which every crawler has, is not counted."""
    cv2 = pytest.importorskip("cv2")
    config = CrawlConfig(encode_format="png", quality=1, perceptual_hashes=False)
    found = []
    for data in photographs(real_data):
        made = store(data, config)
        assert isinstance(made, Stored)
        stored = np.asarray(PIL.Image.open(io.BytesIO(made.image)).convert("RGB"))
        full = decode(data).rgb
        if min(full.shape[:2]) > config.image_size:
            found.append(psnr(stored, cv2.resize(full, (made.width, made.height), interpolation=cv2.INTER_AREA)))
    assert len(found) > 50
    assert min(found) >= 38


@pytest.mark.parametrize("size", [48, 64, 80, 96, 112])
def test_small_copies_of_photographs_are_near_a_full_decode(size: int, real_data: Path) -> None:
    """As above at sizes for which these photographs, of 640 pixels, are decoded at 1/2 and 1/4."""
    config = CrawlConfig(image_size=size, encode_format="png", quality=1, perceptual_hashes=False)
    found = []
    for data in photographs(real_data):
        made = store(data, config)
        assert isinstance(made, Stored)
        stored = np.asarray(PIL.Image.open(io.BytesIO(made.image)).convert("RGB"))
        found.append(psnr(stored, shrink(decode(data).rgb, made.width, made.height)))
    assert min(found) >= 38


def test_the_margin_of_scaled_decoding(real_data: Path) -> None:
    """The photographs decoded by 1/2, 1/4 and 1/8 and then shrunk, at ratios from the margin on, which a corpus of 256 meets at sources
    of two to eight times that and more. These are sharp to the pixel, as small pictures on the web are: all of them lie above 38 dB at
    every ratio, and below the margin some do not."""

    for scale in (2, 4, 8):
        pairs = []
        for data in photographs(real_data):
            full = decode(data).rgb
            rows, columns = full.shape[:2]
            scaled = decode(data, min_short_side=min(rows, columns) // scale).rgb
            assert scaled.shape[:2] == (-(-rows // scale), -(-columns // scale))
            pairs.append((full, scaled))

        def least(ratio: float, scale: int = scale, pairs: list[tuple[RGB, RGB]] = pairs) -> float:
            found = []
            for full, scaled in pairs:
                rows, columns = full.shape[:2]
                height, width = round(rows / (scale * ratio)), round(columns / (scale * ratio))
                found.append(psnr(shrink(scaled, width, height, (columns, rows)), shrink(full, width, height)))
            return min(found)

        assert min(least(DCT_MARGIN * more) for more in (1, 1.1, 1.25, 1.6)) >= 38, scale
        assert least(DCT_MARGIN * 0.7) < 38, scale


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_a_side_that_the_scale_does_not_divide_shifts_nothing(orientation: int, mode: str) -> None:
    """1,999 x 1,501 pixels at 1/8 end in a column and a row that the source has a part of: wherever turning puts these, the copy is that of
    a full decode. Taken for whole, they shift the far edge by seven pixels of the source, and the two are 34 dB from each other."""
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    drawn = PIL.Image.open(io.BytesIO(noise(1993, 1497))).convert(mode)
    drawn.save(file, "JPEG", quality=92, exif=exif)
    full = decode(file.getvalue())
    scaled = decode(file.getvalue(), min_short_side=180)
    assert min(scaled.rgb.shape[:2]) == 188
    size = (scaled.original_width, scaled.original_height)
    found = resize(scaled.rgb, size=50, mode="keep_ratio", original_size=size, mirrored=scaled.mirrored)
    assert psnr(found, resize(full.rgb, size=50, mode="keep_ratio")) > 44
    if mode == "RGB":
        shifted = shrink(scaled.rgb, found.shape[1], found.shape[0])
        assert psnr(shifted, resize(full.rgb, size=50, mode="keep_ratio")) < 40


def test_without_hashes_the_picture_is_the_same_and_the_columns_are_null() -> None:
    data = noise(2048, 1536)
    with_hashes, without = (store(data, CrawlConfig(perceptual_hashes=wanted)) for wanted in (True, False))
    assert isinstance(with_hashes, Stored)
    assert isinstance(without, Stored)
    assert with_hashes.image == without.image
    assert (without.phash64, without.pdq256, without.pdq_quality) == (None, None, None)
    known = picture_hashes(decode(data, min_short_side=512))
    assert (with_hashes.phash64, with_hashes.pdq256, with_hashes.pdq_quality) == (
        known.phash64,
        known.pdq256,
        known.pdq_quality,
    )


@pytest.mark.parametrize("mode", ["no", "keep_ratio", "keep_ratio_largest", "center_crop", "border"])
@pytest.mark.parametrize("size", [(2049, 1537), (1200, 3333), (5000, 700)])
def test_a_scaled_decode_changes_no_size(mode: str, size: tuple[int, int]) -> None:
    data = noise(*size)
    config = CrawlConfig.model_validate({"resize_mode": mode, "image_size": 100, "perceptual_hashes": False})
    made = store(data, config)
    assert isinstance(made, Stored)
    full = resize(decode(data).rgb, size=100, mode=config.resize_mode, only_if_bigger=True)
    assert (made.height, made.width) == full.shape[:2]
    assert (made.original_width, made.original_height) == size


def test_a_picture_is_refused_for_its_limits_before_it_is_made() -> None:
    config = CrawlConfig(max_pixels=1000, perceptual_hashes=False)
    made = store(noise(100, 100), config)
    assert isinstance(made, Refused)
    assert made.reason is Reason.IMAGE_TOO_LARGE


@pytest.mark.parametrize(("kind", "longest"), [("jpeg", 65_500), ("webp", 16_383), ("png", MAX_SIDE)])
def test_sides_that_the_stored_format_does_not_hold(kind: str, longest: int) -> None:
    """Truth: what Pillow's encoders write at the limit, and raise one pixel above it. PNG holds longer ones; no source may be."""

    def made_of(width: int) -> Outcome:
        file = io.BytesIO()
        PIL.Image.new("RGB", (width, 16), (9, 99, 199)).save(file, "PNG", compress_level=1)
        settings = {
            "encode_format": kind, "quality": 5, "resize_mode": "no", "max_aspect_ratio": 1e9, "perceptual_hashes": False
        }  # fmt: skip
        return store(file.getvalue(), CrawlConfig.model_validate(settings))

    within = made_of(longest)
    assert isinstance(within, Stored)
    assert within.width == longest
    limit = f"limit {MAX_SIDE} pixels a side" if kind == "png" else f"limit of {kind} {longest}"
    assert made_of(longest + 1) == Refused(Reason.IMAGE_TOO_LARGE, f"{longest + 1} x 16 ({limit})")
    if kind != "png":
        with pytest.raises((ValueError, OSError)):
            PIL.Image.new("RGB", (longest + 1, 16)).save(io.BytesIO(), kind)
