"""Hashes against the libraries that define them, Meta's published values, and numbers written down elsewhere."""

import csv
import hashlib
import io
import os
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
import numpy.typing as npt
import pdqhash
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from pipeline.content import hashes
from pipeline.content.hashes import (
    HASH_SHORT_SIDE,
    HASH_VERSION,
    as_codes,
    halve,
    hamming,
    pdq,
    phash64,
    picture_hashes,
    sha256,
)
from pipeline.content.image import Picture, decode, encode

Pixels = npt.NDArray[np.uint8]
REAL_DATA = Path(os.environ.get("REAL_DATA", Path(__file__).parents[4] / "shared" / "data"))
PDQ = REAL_DATA / "pdq"


def cloud(height: int, width: int, seed: int = 0) -> Pixels:
    """Something like a photograph: a few random waves a channel, and grain."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = np.zeros((height, width, 3))
    for _ in range(12):
        fx, fy, phase = rng.uniform(-9, 9), rng.uniform(-9, 9), rng.uniform(0, 6)
        waves += np.sin(6 * (fx * x + fy * y) + phase)[..., None] * rng.uniform(0, 30, 3)
    return np.clip(waves + 127 + rng.normal(0, 3, (height, width, 3)), 0, 255).astype(np.uint8)


def reference_pdq(rgb: Pixels) -> tuple[bytes, int]:
    bits, quality = pdqhash.compute(rgb)
    return np.packbits(np.asarray(bits, np.uint8)).tobytes(), int(quality)


def real(path: Path) -> bytes:
    if not path.exists():
        pytest.skip(f"no real data at {path}")
    return path.read_bytes()


SIZES = [(64, 64), (5, 5), (5, 300), (63, 65), (100, 100), (127, 129), (128, 128), (200, 131), (480, 640), (700, 513)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_pdq_equals_the_reference_bit_for_bit(height: int, width: int) -> None:
    for seed in range(4):
        rgb = cloud(height, width, seed)
        assert pdq(rgb) == reference_pdq(rgb)


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.uint8, st.tuples(st.integers(5, 90), st.integers(5, 90), st.just(3))))
def test_pdq_equals_the_reference_on_anything(rgb: Pixels) -> None:
    assert pdq(rgb) == reference_pdq(rgb)


def test_luma_of_every_colour_is_the_references() -> None:
    """Ours divides a whole number once; the reference adds products in float64 and rounds to float32."""
    colours = np.zeros((256, 256, 3), np.uint8)
    colours[..., 1], colours[..., 2] = np.arange(256)[:, None], np.arange(256)[None, :]
    found = np.empty((256, 256), np.float32)
    for red in range(256):
        colours[..., 0] = red
        hashes._luma(colours, found)
        sums = colours[..., 0] * 0.299 + colours[..., 1] * 0.587 + colours[..., 2] * 0.114
        assert np.array_equal(found, sums.astype(np.float32))


def test_pdq_of_views_flat_and_tiny_pictures() -> None:
    rgb = cloud(90, 120)
    assert pdq(rgb[:, ::-1]) == pdq(np.ascontiguousarray(rgb[:, ::-1]))
    read_only = rgb.copy()
    read_only.setflags(write=False)
    assert pdq(read_only) == pdq(rgb)
    assert pdq(np.zeros((80, 80, 3), np.uint8)) == (bytes(32), 0)
    assert pdq(rgb[:4]) == (bytes(32), 0)
    wrongs: list[npt.NDArray[Any]] = [rgb[..., 0], rgb.astype(np.float32), rgb[..., :2]]
    for wrong in wrongs:
        with pytest.raises(ValueError, match="pdq needs"):
            pdq(wrong)


def test_pdq_published_hashes() -> None:
    """Meta's rule for a port: at most 10 bits from the published hash at a quality of 80 or more."""
    published = csv.DictReader(io.StringIO(real(PDQ / "PDQMD5TestData.csv").decode()))
    checked = 0
    for row in published:
        path = PDQ / "bridge-mods" / Path(row["FilePath"]).name
        if not path.exists() or "bridge-mods" not in row["FilePath"]:
            continue
        bits, quality = pdq(decode(path.read_bytes()).rgb)
        distance = int(hamming(as_codes([bits]), as_codes([bytes.fromhex(row["Hash"])]))[0])
        assert quality >= 80
        assert distance <= 10, path.name
        checked += 1
    assert checked == 12


def test_pdq_knows_the_eight_turns_of_a_photograph_apart() -> None:
    """Meta's eight files against numpy's eight turns of the first: the same turn within JPEG noise, any other far off."""
    files = sorted((PDQ / "reg-test-input" / "dih").glob("bridge-*.jpg"))
    if not files:
        pytest.skip(f"no real data at {PDQ}")
    stored = {path.stem.split("-", 2)[2]: decode(path.read_bytes()).rgb for path in files}
    original = stored["original"]
    turned = {
        "original": original,
        "rotate-90": np.rot90(original, 1),
        "rotate-180": np.rot90(original, 2),
        "rotate-270": np.rot90(original, 3),
        "flipx": original[::-1],
        "flipy": original[:, ::-1],
        "flip-plus-1": original.transpose(1, 0, 2),
        "flip-minus-1": np.rot90(original, 2).transpose(1, 0, 2),
    }
    assert set(turned) == set(stored)
    theirs = as_codes([pdq(pixels)[0] for _, pixels in sorted(stored.items())])
    ours = as_codes([pdq(pixels)[0] for _, pixels in sorted(turned.items())])
    distances = hamming(theirs[:, None], ours[None, :])
    assert distances.diagonal().max() <= 2
    assert distances[~np.eye(8, dtype=bool)].min() > 90


@settings(deadline=None)  # the first call compiles
@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20), st.just(3))))
def test_halving_is_what_pillow_calls_reduce(rgb: Pixels) -> None:
    assert np.array_equal(halve(rgb), np.asarray(Image.fromarray(rgb).reduce(2)))


def test_phash_equals_imagehash() -> None:
    for seed, (height, width) in enumerate([(32, 32), (8, 9), (64, 64), (100, 37), (480, 640), (33, 500)] * 4):
        rgb = cloud(height, width, seed)
        assert phash64(rgb) == int(str(imagehash.phash(Image.fromarray(rgb))), 16)


def test_phash_does_not_hang_on_rounding_noise() -> None:
    """A flat picture has one coefficient that is not zero; a mirrored one has zeros in every second column."""
    assert phash64(np.full((50, 50, 3), 77, np.uint8)) == 1 << 63
    half = cloud(64, 32, 3)
    mirrored = np.concatenate([half, half[:, ::-1]], axis=1)
    bits = np.array([int(bit) for bit in f"{phash64(mirrored):064b}"]).reshape(8, 8)
    assert not bits[:, 1::2].any() or bits[:, 1::2].all()


def test_pictures_are_found_again_and_others_are_not() -> None:
    first = cloud(600, 800, 1)
    hashes = picture_hashes(Picture(first, "png", 800, 600))
    again = picture_hashes(decode(encode(first, quality=30), min_short_side=HASH_SHORT_SIDE))
    other = picture_hashes(Picture(cloud(600, 800, 2), "png", 800, 600))
    assert hashes.pdq_quality >= 50
    near = hamming(as_codes([hashes.pdq256]), as_codes([again.pdq256, other.pdq256]))
    assert near[0] <= 8
    assert near[1] > 80
    assert (hashes.phash64 ^ again.phash64).bit_count() <= 4


def test_hashes_need_enough_pixels_and_hardly_depend_on_the_decode() -> None:
    rgb = cloud(1100, 1300)
    data = encode(rgb)
    full, scaled = decode(data), decode(data, min_short_side=HASH_SHORT_SIDE)
    assert min(scaled.rgb.shape[:2]) == 550
    a, b = picture_hashes(full), picture_hashes(scaled)
    assert int(hamming(as_codes([a.pdq256]), as_codes([b.pdq256]))[0]) <= 6
    assert (a.phash64 ^ b.phash64).bit_count() <= 2
    with pytest.raises(ValueError, match="short side of 512"):
        picture_hashes(decode(data, min_short_side=200))
    small = Picture(rgb[:100, :100], "png", 100, 100)
    assert picture_hashes(small).phash64 == phash64(small.rgb)


def test_sha256_and_versions() -> None:
    assert sha256(b"abc").hex() == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256(b"x" * 999) == hashlib.sha256(b"x" * 999).digest()
    assert set(HASH_VERSION) == {"sha256", "phash64", "pdq256"}


@given(st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=5), st.binary(min_size=32, max_size=32))
@settings(deadline=None)
def test_hamming_counts_bits(codes: list[bytes], probe: bytes) -> None:
    naive = [bin(int.from_bytes(code) ^ int.from_bytes(probe)).count("1") for code in codes]
    assert hamming(as_codes(codes), as_codes([probe])).tolist() == naive
    words = as_codes(codes).view(np.uint64)
    assert hamming(words, as_codes([probe]).view(np.uint64)).sum(axis=-1).tolist() == naive
    assert hamming(as_codes(codes)[:, None], as_codes([probe, *codes])[None])[:, 0].tolist() == naive
    assert hamming(as_codes(codes)[:, :5], as_codes([probe])[:, :5]).shape == (len(codes),)


def test_hamming_shapes_and_mistakes() -> None:
    a = np.array([0, 1, 2**64 - 1], np.uint64)
    assert hamming(a, np.zeros(1, np.uint64)).tolist() == [0, 1, 64]
    assert hamming(a[:, None], a[None, :]).tolist() == [[0, 1, 64], [1, 0, 63], [64, 63, 0]]
    assert hamming(as_codes([]), as_codes([])).shape == (0,)
    mixed: tuple[Any, ...] = (a.astype(np.int64), a.astype(np.uint8))
    for wrong in mixed:
        with pytest.raises(ValueError, match="hamming needs"):
            hamming(a, wrong)


def test_real_photographs_equal_both_libraries() -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    path = REAL_DATA / "photos_cc.parquet"
    if not path.exists():
        pytest.skip(f"no real data at {path}")
    for data in pq.read_table(path, columns=["jpeg"])["jpeg"].to_pylist()[::4]:
        rgb = decode(data).rgb
        assert pdq(rgb) == reference_pdq(rgb)
        assert phash64(rgb) == int(str(imagehash.phash(Image.fromarray(rgb))), 16)
