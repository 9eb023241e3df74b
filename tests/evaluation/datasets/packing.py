"""Small datasets in the layouts of their publishers, packed in every way, and sets that are opened from them."""

import gzip
import io
import struct
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from evaluation.config import EvaluationSet
from evaluation.datasets import open_set
from pipeline.content.image import decode
from pipeline.content.labelled import LabelledSet

MANNERS = ("folder", "tar", "tar.gz", "zip")


def pixels(k: int, size: int = 32, channels: int = 3) -> NDArray[np.uint8]:
    """Noise that no other k has."""
    shape = (size, size, 3) if channels == 3 else (size, size)
    return np.random.default_rng(k).integers(0, 256, shape, np.uint8)


def encoded(k: int, kind: str = "PNG", size: int = 12) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(k, size)).save(buffer, kind)
    return buffer.getvalue()


def pack(files: Mapping[str, bytes], place: Path, manner: str) -> Path:
    """Write `files` as a folder or as one archive; archives hold them in reverse order of their names."""
    if manner == "folder":
        for name, data in files.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(data)
        return place
    path = place.with_name(f"{place.name}.{manner}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if manner == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in sorted(files, reverse=True):
                archive.writestr(name, files[name])
        return path
    with tarfile.open(path, "w:gz" if manner == "tar.gz" else "w") as tar:
        for name in sorted(files, reverse=True):
            member = tarfile.TarInfo(name)
            member.size = len(files[name])
            tar.addfile(member, io.BytesIO(files[name]))
    return path


def opened(path: Path, dataset: str | None, split: str = "test", **more: Any) -> LabelledSet:
    """A set of other than the published size."""
    table: dict[str, Any] = {"name": "set", "path": str(path), **more}
    if dataset is not None:
        table = {"other_counts": True, "dataset": dataset, "split": split, **table}
    return open_set(EvaluationSet.model_validate(table))


def seen(found: LabelledSet) -> list[NDArray[np.uint8]]:
    """The pictures as the corpus's decoder sees them."""
    return [decode(one.data).rgb for one in found.pictures()]


# ---- files


def python2_pickle(table: Mapping[str, Any]) -> bytes:
    """A dictionary as Python 2's cPickle wrote CIFAR's (protocol 2): byte strings, numbers, lists of them, and one array of bytes a
    value.
    """

    def string(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value

    def number(value: int) -> bytes:
        return b"K" + bytes([value]) if value < 256 else b"J" + struct.pack("<i", value)

    def any_value(value: Any) -> bytes:
        if isinstance(value, bytes):
            return string(value)
        if isinstance(value, int):
            return number(value)
        if isinstance(value, list):
            return b"](" + b"".join(map(any_value, value)) + b"e"
        shape = b"".join(map(number, value.shape))
        return (
            b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85U\x01b\x87Rq\x09"
            b"(K\x01" + shape + b"\x86cnumpy\ndtype\nq\x0aU\x02u1K\x00K\x01\x87Rq\x0b"
            b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89" + string(value.tobytes()) + b"tb"
        )

    pairs = b"".join(string(key.encode()) + any_value(value) for key, value in table.items())
    return b"\x80\x02}q\x01(" + pairs + b"u."


def idx(values: NDArray[np.uint8]) -> bytes:
    """MNIST's form, compressed."""
    head = bytes([0, 0, 8, values.ndim]) + b"".join(struct.pack(">I", size) for size in values.shape)
    return gzip.compress(head + values.tobytes())


def matlab(compressed: bool = True, **variables: Any) -> bytes:
    """A MATLAB 5 file."""
    import scipy.io

    buffer = io.BytesIO()
    scipy.io.savemat(buffer, variables, do_compression=compressed)
    return buffer.getvalue()


# ---- CIFAR

CIFAR_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def planes(first: int, count: int) -> NDArray[np.uint8]:
    """CIFAR's rows: all red values of a picture, all green ones, all blue ones."""
    return np.stack([pixels(first + k).transpose(2, 0, 1).reshape(-1) for k in range(count)])


def cifar10_files() -> dict[str, bytes]:
    files = {
        "cifar-10-batches-py/batches.meta": python2_pickle({"label_names": [name.encode() for name in CIFAR_NAMES]})
    }
    for number in range(1, 6):
        batch = {
            "batch_label": b"training",
            "labels": [number, 2],
            "data": planes(10 * number, 2),
            "filenames": [b"a", b"b"],
        }
        files[f"cifar-10-batches-py/data_batch_{number}"] = python2_pickle(batch)
    files["cifar-10-batches-py/test_batch"] = python2_pickle({"data": planes(90, 3), "labels": [3, 0, 9]})
    return files
