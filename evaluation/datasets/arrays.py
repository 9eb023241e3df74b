"""Datasets whose pictures are numbers in a file: CIFAR-10 and -100, MNIST, STL-10, SVHN, FER2013.

Each reader gives ids (the position in the split, in the order of the dataset's own files), labels and class names, and a way to read the
pixels again. Layouts as the datasets' pages state them.
"""

from __future__ import annotations

import csv
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.datasets.bundle import Bundle, open_bundle
from evaluation.datasets.found import Found, is_number, refuse_split
from evaluation.datasets.matlab import read_matlab
from evaluation.datasets.pickled import PickleRefused, read_pickle
from evaluation.datasets.raw import Arrays
from pipeline.contracts.errors import InputError

Pixels = NDArray[np.uint8]
Read = Callable[[Bundle, str], tuple[Pixels, list[int]]]

MOST_ARRAY = 2 << 30
"""Bytes of a file of pixels; the largest, SVHN's `extra`, has 1.6 GB."""
_FER_CLASSES = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
_FER_USAGE = {
    "train": ("Training",),
    "test": ("PublicTest", "PrivateTest"),
    "public": ("PublicTest",),
    "private": ("PrivateTest",),
}


def cifar10(bundle: Bundle, split: str) -> Found:
    """`data_batch_1` to `_5` and `test_batch`, as pickles or (`.bin`) as plain bytes; names in `batches.meta`."""
    if bundle.find("batches.meta") is not None:
        names = _strings(bundle, _unpickled(bundle, "batches.meta"), "label_names")
    else:
        names = bundle.lines("batches.meta.txt")
    return _found(bundle, split, _read_cifar10, names)


def cifar100(bundle: Bundle, split: str) -> Found:
    """`train` and `test` with the 100 fine labels; names in `meta` or `fine_label_names.txt`."""
    if bundle.find("meta") is not None:
        names = _strings(bundle, _unpickled(bundle, "meta"), "fine_label_names")
    else:
        names = bundle.lines("fine_label_names.txt")
    return _found(bundle, split, _read_cifar100, names)


def mnist(bundle: Bundle, split: str) -> Found:
    """The four idx files, compressed or not."""
    return _found(bundle, split, _read_mnist, [str(digit) for digit in range(10)])


def stl10(bundle: Bundle, split: str) -> Found:
    """`train_X.bin` and `test_X.bin`, 96 x 96 with columns first; `foldN` (0 to 9) are the rows of `fold_indices.txt`."""
    return _found(bundle, split, _read_stl10, bundle.lines("class_names.txt"))


def svhn(bundle: Bundle, split: str) -> Found:
    """The cropped digits, `test_32x32.mat`; the label 10 is the digit 0."""
    return _found(bundle, split, _read_svhn, [str(digit) for digit in range(10)])


def fer2013(bundle: Bundle, split: str) -> Found:
    """`fer2013.csv`: emotion, 48 x 48 grey pixels, usage."""
    return _found(bundle, split, _read_fer2013, list(_FER_CLASSES))


def _found(bundle: Bundle, split: str, read: Read, names: list[str]) -> Found:
    pixels, labels = read(bundle, split)
    if len(pixels) != len(labels):
        raise InputError(f"{bundle.path}: {len(pixels):,} pictures and {len(labels):,} labels; restore the files")
    again = functools.partial(_pixels, bundle.path, split, read)
    return Found([str(row) for row in range(len(labels))], labels, names, Arrays(again))


def _pixels(path: str, split: str, read: Read) -> Pixels:
    return read(open_bundle(path), split)[0]


# ---- CIFAR


def _read_cifar10(bundle: Bundle, split: str) -> tuple[Pixels, list[int]]:
    names = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}
    batches = [
        _cifar_batch(bundle, name, b"labels", 1) for name in names.get(split) or refuse_split(bundle, split, names)
    ]
    return np.concatenate([pixels for pixels, _ in batches]), [label for _, labels in batches for label in labels]


def _read_cifar100(bundle: Bundle, split: str) -> tuple[Pixels, list[int]]:
    if split not in ("train", "test"):
        refuse_split(bundle, split, ("train", "test"))
    return _cifar_batch(bundle, split, b"fine_labels", 2)


def _cifar_batch(bundle: Bundle, name: str, key: bytes, label_bytes: int) -> tuple[Pixels, list[int]]:
    """Pixels uint8[n, 32, 32, 3] and labels. A record of the binary form has its label bytes, the fine one last, before its pixels."""
    if bundle.find(name) is None:
        data = np.frombuffer(bundle.data(f"{name}.bin", name, limit=MOST_ARRAY), np.uint8)
        rows = _shaped(bundle, f"{name}.bin", data, (-1, label_bytes + 3072))
        planes, labels = rows[:, label_bytes:], rows[:, label_bytes - 1].tolist()
    else:
        batch = _unpickled(bundle, name)
        found, labels = (batch.get(wanted, batch.get(wanted.decode())) for wanted in (b"data", key))
        if not isinstance(found, np.ndarray) or not isinstance(labels, list):
            raise InputError(
                f"{bundle.path}: {name!r} holds no array 'data' or no list {key.decode()!r}; restore the archive"
            )
        if not all(isinstance(label, int) for label in labels):
            raise InputError(f"{bundle.path}: {name!r}: labels that are no numbers; restore the archive")
        planes = found
    pixels = _shaped(bundle, name, planes, (-1, 3, 32, 32))
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)), labels


def _unpickled(bundle: Bundle, name: str) -> dict[Any, Any]:
    try:
        value = read_pickle(bundle.data(name, limit=MOST_ARRAY))
    except PickleRefused as refused:
        raise InputError(f"{bundle.path}: {name!r} is not CIFAR's: {refused}; restore the archive") from None
    if not isinstance(value, dict):
        raise InputError(f"{bundle.path}: {name!r} holds no table; restore the archive")
    return value


def _strings(bundle: Bundle, table: dict[Any, Any], key: str) -> list[str]:
    names = table.get(key.encode(), table.get(key))
    if not isinstance(names, list) or not all(isinstance(name, (str, bytes)) for name in names):
        raise InputError(f"{bundle.path}: no list {key!r} of class names; restore the archive")
    return [name.decode("latin-1") if isinstance(name, bytes) else name for name in names]


def _shaped(bundle: Bundle, name: str, data: Pixels, shape: tuple[int, ...]) -> Pixels:
    row = math.prod(shape[1:])
    if data.size == 0 or data.size % row:
        raise InputError(f"{bundle.path}: {name!r} has {data.size:,} bytes, no multiple of {row:,}; restore the file")
    return data.reshape(shape)


# ---- the others


def _read_mnist(bundle: Bundle, split: str) -> tuple[Pixels, list[int]]:
    stem = {"train": "train", "test": "t10k"}.get(split) or refuse_split(bundle, split, ("train", "test"))
    images = _idx(bundle, f"{stem}-images-idx3-ubyte", f"{stem}-images.idx3-ubyte", dimensions=3)
    labels = _idx(bundle, f"{stem}-labels-idx1-ubyte", f"{stem}-labels.idx1-ubyte", dimensions=1)
    return images, labels.tolist()


def _idx(bundle: Bundle, *names: str, dimensions: int) -> Pixels:
    """An idx file of bytes: 0, 0, 8, the number of dimensions, each as a big-endian 32-bit number, the values."""
    data = bundle.data(*names, limit=MOST_ARRAY)
    head = 4 + 4 * dimensions
    shape = tuple(int(size) for size in np.frombuffer(data[4:head], ">u4")) if len(data) >= head else ()
    if data[:4] != bytes([0, 0, 8, dimensions]) or len(data) - head != math.prod(shape) or not all(shape):
        raise InputError(
            f"{bundle.path}: {names[0]!r} is no idx file of {dimensions} dimensions, or cut short; restore it"
        )
    return np.frombuffer(data, np.uint8, offset=head).reshape(shape)


def _read_stl10(bundle: Bundle, split: str) -> tuple[Pixels, list[int]]:
    folds = {f"fold{number}": number for number in range(10)}
    if split not in ("train", "test", *folds):
        refuse_split(bundle, split, ("train", "test", "fold0 to fold9"))
    stem = "test" if split == "test" else "train"
    data = np.frombuffer(bundle.data(f"{stem}_X.bin", limit=MOST_ARRAY), np.uint8)
    pixels = _shaped(bundle, f"{stem}_X.bin", data, (-1, 3, 96, 96)).transpose(0, 3, 2, 1)
    labels = np.frombuffer(bundle.data(f"{stem}_y.bin"), np.uint8).astype(np.int64) - 1
    if len(labels) != len(pixels):
        raise InputError(f"{bundle.path}: {len(pixels):,} pictures and {len(labels):,} labels; restore the files")
    if split in folds:
        lines = bundle.lines("fold_indices.txt")
        words = lines[folds[split]].split() if folds[split] < len(lines) else []
        if not words or not all(is_number(word) and int(word) < len(pixels) for word in words):
            raise InputError(f"{bundle.path}: 'fold_indices.txt' has no rows for {split!r}; restore it")
        rows = np.array([int(word) for word in words])
        pixels, labels = pixels[rows], labels[rows]
    return np.ascontiguousarray(pixels), labels.tolist()


def _read_svhn(bundle: Bundle, split: str) -> tuple[Pixels, list[int]]:
    if split not in ("train", "test", "extra"):
        refuse_split(bundle, split, ("train", "test", "extra"))
    name = f"{split}_32x32.mat"
    table = read_matlab(bundle.data(name, limit=MOST_ARRAY), f"{bundle.path}: {name!r}", most=MOST_ARRAY)
    pixels, labels = table.get("X"), table.get("y")
    if (
        not isinstance(pixels, np.ndarray)
        or pixels.dtype != np.uint8
        or pixels.ndim != 4
        or pixels.shape[:3] != (32, 32, 3)
    ):
        raise InputError(f"{bundle.path}: {name!r} has no X of 32 x 32 x 3 bytes a digit; restore it")
    if not isinstance(labels, np.ndarray) or not np.isfinite(labels).all():
        raise InputError(f"{bundle.path}: {name!r} has no y with a number a digit; restore it")
    digits = [0 if label == 10 else int(label) for label in labels.reshape(-1)]
    return np.ascontiguousarray(pixels.transpose(3, 0, 1, 2)), digits


def _read_fer2013(bundle: Bundle, split: str) -> tuple[Pixels, list[int]]:
    usages = _FER_USAGE.get(split) or refuse_split(bundle, split, _FER_USAGE)
    text = bundle.data("fer2013.csv", "icml_face_data.csv", limit=1 << 30).decode("latin-1")
    rows = csv.reader(text.splitlines())
    head = [word.strip().lower() for word in next(rows, [])]
    if not {"emotion", "pixels", "usage"} <= set(head):
        raise InputError(f"{bundle.path}: 'fer2013.csv' has no columns emotion, pixels, Usage; restore it")
    emotion, values, usage = (head.index(name) for name in ("emotion", "pixels", "usage"))
    found, labels = [], []
    for number, row in enumerate(rows, start=2):
        if len(row) != len(head) or row[usage] not in usages:
            continue
        words = row[values].split()
        if (
            len(words) != 48 * 48
            or not all(is_number(word) and int(word) < 256 for word in words)
            or not is_number(row[emotion])
        ):
            raise InputError(
                f"{bundle.path}: 'fer2013.csv', line {number}: not 48 x 48 grey values and a class; restore it"
            )
        found.append(np.array(words, np.uint8).reshape(48, 48))
        labels.append(int(row[emotion]))
    if not found:
        raise InputError(f"{bundle.path}: 'fer2013.csv' has no row of {' or '.join(usages)}; restore it")
    return np.stack(found), labels
