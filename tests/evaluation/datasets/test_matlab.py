"""MATLAB files beside scipy's reader, which is trusted with files that we wrote, and mangled ones, with which it is not."""

import random
import struct
import zlib
from typing import Any

import numpy as np
import pytest

from evaluation.datasets.matlab import read_matlab
from pipeline.contracts.errors import InputError
from tests.evaluation.datasets.packing import matlab

STRUCTS = np.array(
    [(1, "x.jpg", 2.5), (200, "a longer name.jpg", -1.0)], [("class", "u1"), ("fname", "O"), ("w", "f8")]
)


def plain(value: Any) -> Any:
    """scipy's value as ours."""
    if isinstance(value, np.ndarray) and value.dtype.names is not None:
        return [{name: plain(entry[name]) for name in value.dtype.names} for entry in value.reshape(-1, order="F")]
    if isinstance(value, np.ndarray) and value.dtype == object:
        return [plain(entry) for entry in value.reshape(-1, order="F")]
    if isinstance(value, np.ndarray) and value.dtype.kind == "U":
        return "".join(value.reshape(-1).tolist())
    return value.squeeze() if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize("compressed", [True, False])
def test_against_scipy(compressed: bool) -> None:
    import io

    import scipy.io

    draws = np.random.default_rng(2)
    values: dict[str, Any] = {
        f"n{kind}": draws.integers(0, 100, (3, 4, 2)).astype(kind)
        for kind in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")
    }
    values |= {"one": 7, "row": np.arange(5), "text": "words and 字", "short": "ab", "empty": np.zeros((0, 3))}
    values |= {
        "cells": np.array(["AM General", "b", "c" * 40], object),
        "structs": STRUCTS,
        "nested": {"a": {"b": np.arange(3)}},
    }
    data = matlab(compressed, **values)
    truth = scipy.io.loadmat(io.BytesIO(data))
    found = read_matlab(data, "x.mat")
    assert set(found) == set(values)
    for name in values:
        np.testing.assert_equal(found[name], plain(truth[name]), err_msg=name)
        if isinstance(found[name], np.ndarray):
            assert found[name].dtype == truth[name].dtype


def test_the_other_byte_order() -> None:
    """By hand: a row of three numbers, from a machine with the large end first."""
    body = struct.pack(">IIII", 6, 8, 6, 0) + struct.pack(">IIii", 5, 8, 1, 3) + struct.pack(">HHcxxx", 1, 1, b"v")
    body += struct.pack(">IIddd", 9, 24, 1.5, -2.0, 3e9)
    data = b"MATLAB 5.0".ljust(124) + struct.pack(">H", 0x0100) + b"MI" + struct.pack(">II", 14, len(body)) + body
    assert read_matlab(data, "x.mat")["v"].tolist() == [1.5, -2.0, 3e9]


@pytest.mark.parametrize("compressed", [True, False])
def test_mangled_files(compressed: bool) -> None:
    """1,500 times some bytes are replaced or the end is cut: a table comes back or one sentence does."""
    whole = matlab(compressed, a=STRUCTS, b=np.arange(40), c=np.array(["u", "vw"], object), d="text")
    refused = []
    for seed in range(1500):
        draws = random.Random(seed)
        data = bytearray(whole)
        for _ in range(draws.choice((1, 2, 8))):
            data[draws.randrange(128, len(data))] = draws.choice(
                (0, 1, 5, 7, 9, 14, 15, 127, 255, draws.randrange(256))
            )
        if draws.random() < 0.2:
            del data[draws.randrange(len(data)) :]
        try:
            read_matlab(bytes(data), "x.mat", most=1 << 20)
        except InputError as error:
            refused.append(str(error))
    assert len(refused) > 200
    assert all(said.startswith("x.mat: ") and "\n" not in said for said in refused)


def test_more_dimensions_than_an_array_has() -> None:
    shape = [1] * 70
    body = struct.pack("<IIII", 6, 8, 6, 0) + struct.pack("<II70i", 5, 280, *shape) + struct.pack("<HHcxxx", 1, 1, b"v")
    body += struct.pack("<IId", 9, 8, 1.5)
    data = matlab(x=1)[:128] + struct.pack("<II", 14, len(body)) + body
    with pytest.raises(InputError, match="without its kind or shape"):
        read_matlab(data, "x.mat")


def test_a_bomb_is_not_inflated() -> None:
    packed = zlib.compress(struct.pack("<II", 14, 1 << 30) + bytes(1 << 20), 9)
    data = matlab(x=1)[:128] + struct.pack("<II", 15, len(packed)) + packed
    with pytest.raises(InputError, match="more than 1,000 bytes of variables"):
        read_matlab(data, "x.mat", most=1000)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.array([1 + 2j]), "complex numbers"),
        ({"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": {"i": {"j": 1}}}}}}}}}}, "deeper"),
    ],
)
def test_values_that_no_dataset_has(value: Any, said: str) -> None:
    with pytest.raises(InputError, match=f"x.mat: a damaged MATLAB file .*{said}"):
        read_matlab(matlab(x=value), "x.mat")


def test_a_sparse_matrix_is_refused() -> None:
    import scipy.sparse

    with pytest.raises(InputError, match="a value of kind 5"):
        read_matlab(matlab(x=scipy.sparse.eye(4).tocsc()), "x.mat")
