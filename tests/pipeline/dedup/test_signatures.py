"""Signatures against datasketch, value by value."""

import random

import numpy as np
import pyarrow as pa
import pytest
from datasketch import MinHash, MinHashLSH

from pipeline.dedup.signatures import band_keys, bands_and_rows, minhash, minhash_texts, shingles

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
    assert (minhash_texts(captions[100:200], num_perm, seed) == ours[100:200]).all()


def test_null_and_no_captions() -> None:
    assert (minhash(pa.array([None, ""], pa.string()))[0] == minhash(pa.array([""]))[0]).all()
    assert minhash(pa.array([], pa.string())).shape == (0, 128)


def test_bands_are_datasketchs() -> None:
    for threshold in (0.5, 0.8, 0.95):
        lsh = MinHashLSH(threshold=threshold, num_perm=128, weights=(0.1, 0.9))
        assert bands_and_rows(threshold, 128) == (lsh.b, lsh.r)


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
