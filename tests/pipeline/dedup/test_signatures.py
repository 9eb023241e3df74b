"""Signatures against datasketch, value by value."""

import itertools
import random

import numpy as np
import pyarrow as pa
import pytest
from datasketch import MinHash, MinHashLSH

from pipeline.content.kernels import text_buffers
from pipeline.content.text import normal_form
from pipeline.dedup.signatures import band_keys, bands_and_rows, minhash, minhash_forms, shingle_sets, shingles

_CAPTIONS = [
    "a dog",
    "A dog!",
    "",
    "!!!",
    "x",
    "红色的狗在公园里跑",
    "St. Louis",
    "🐕",
    "a " * 400,
    "ｆｕｌｌ ｗｉｄｔｈ",
]


@pytest.mark.parametrize(("num_perm", "seed"), [(128, 1), (64, 7), (16, 2**32 - 1)])
def test_bit_identical_to_datasketch(num_perm: int, seed: int) -> None:
    random_ = random.Random(7)
    captions = _CAPTIONS + ["".join(random_.choices("abcdef éß狗", k=random_.randint(1, 90))) for _ in range(300)]
    ours = minhash(pa.array(captions), num_perm, seed)
    assert ours.dtype == np.uint32
    assert ours.shape == (len(captions), num_perm)
    theirs = MinHash.bulk([shingles(caption) for caption in captions], num_perm=num_perm, seed=seed, scheme="affine32")
    assert (ours == np.stack([sketch.hashvalues for sketch in theirs])).all()
    assert (minhash(pa.chunked_array([captions[:5], captions[5:]]), num_perm, seed) == ours).all()
    forms = pa.array([normal_form(caption) for caption in captions[100:200]])
    assert (minhash_forms(forms, num_perm, seed) == ours[100:200]).all()


def test_shingle_sets_have_the_sizes_and_intersections_of_the_shingles() -> None:
    random_ = random.Random(9)
    captions = _CAPTIONS + ["".join(random_.choices("ab 狗é🐕", k=random_.randint(0, 40))) for _ in range(60)]
    sets, starts = shingle_sets(text_buffers(pa.array([normal_form(caption) for caption in captions])))
    ours = [sets[start:end].tolist() for start, end in itertools.pairwise(starts)]
    theirs = [set(shingles(caption)) for caption in captions]
    assert all(found == sorted(set(found)) for found in ours)
    for one, first in zip(ours, theirs, strict=True):
        for two, second in zip(ours, theirs, strict=True):
            assert len(set(one) & set(two)) == len(first & second)


def test_null_and_no_captions() -> None:
    assert (minhash(pa.array([None, ""], pa.string()))[0] == minhash(pa.array([""]))[0]).all()
    assert minhash(pa.array([], pa.string())).shape == (0, 128)


def test_bands_are_datasketchs() -> None:
    for threshold in (0.5, 0.8, 0.95):
        lsh = MinHashLSH(threshold=threshold, num_perm=128, weights=(0.1, 0.9))
        assert bands_and_rows(threshold, 128) == (lsh.b, lsh.r)


@pytest.mark.parametrize(("threshold", "num_perm"), [(1.0, 128), (1.0, 16), (0.99, 16), (0.995, 128), (0.97, 17)])
def test_where_datasketch_would_have_one_band_there_are_two(threshold: float, num_perm: int) -> None:
    with pytest.raises(ValueError, match="b < 2"):
        MinHashLSH(threshold=threshold, num_perm=num_perm, weights=(0.1, 0.9))
    assert bands_and_rows(threshold, num_perm) == (2, num_perm // 2)


def test_band_keys_are_equal_where_the_values_are() -> None:
    values = np.random.default_rng(8).integers(0, 2, (400, 24), dtype=np.uint32)
    keys = band_keys(values, 6, 4)
    for band in range(6):
        parts = [tuple(row) for row in values[:, band * 4 : band * 4 + 4].tolist()]
        assert (
            len(set(keys[:, band].tolist()))
            == len(set(parts))
            == len(set(zip(parts, keys[:, band].tolist(), strict=True)))
        )
    assert len(set(keys.reshape(-1).tolist())) == sum(len(set(keys[:, band].tolist())) for band in range(6))
