"""Datasets of numbers, in their publishers' layouts: the planted pixels and labels come back, and damaged files are one sentence."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.datasets.pickled import PickleRefused, read_pickle
from evaluation.datasets.raw import picture, png
from pipeline.content.image import decode
from pipeline.contracts.errors import InputError
from tests.evaluation.datasets.packing import (
    CIFAR_NAMES,
    MANNERS,
    cifar10_files,
    idx,
    matlab,
    opened,
    pack,
    pixels,
    planes,
    python2_pickle,
    seen,
)

PINNED = "664fc93c785dc4c415cee8fde6f7e0ff2c0a5d5b706c8654bde19c935862dceb"


@pytest.mark.parametrize("manner", MANNERS)
def test_cifar10(tmp_path: Path, manner: str) -> None:
    path = pack(cifar10_files(), tmp_path / "cifar", manner)
    found = opened(path, "cifar10")
    assert (found.classes, found.labels.tolist(), found.ids) == (CIFAR_NAMES, [3, 0, 9], ["0", "1", "2"])
    np.testing.assert_array_equal(seen(found), [pixels(90), pixels(91), pixels(92)])
    sent = pickle.dumps(found)  # to a worker of the overlap job: places, no pixels
    assert len(sent) < 3072
    assert [one.data for one in pickle.loads(sent).pictures([1])] == [png(pixels(91))]
    train = opened(path, "cifar10", "train")
    assert train.labels.tolist() == [1, 2, 2, 2, 3, 2, 4, 2, 5, 2]
    np.testing.assert_array_equal(seen(train)[2:4], [pixels(20), pixels(21)])
    np.testing.assert_array_equal([decode(one.data).rgb for one in train.pictures([1, 9])], [pixels(11), pixels(51)])


def test_cifar_in_its_binary_form(tmp_path: Path) -> None:
    """The same pictures have the same bytes, so the same hash, whatever they were packed in."""
    python = opened(pack(cifar10_files(), tmp_path / "py", "tar.gz"), "cifar10")
    rows = np.hstack([np.array([[3], [0], [9]], np.uint8), planes(90, 3)])
    files = {"b/batches.meta.txt": "\n".join([*CIFAR_NAMES, ""]).encode(), "b/test_batch.bin": rows.tobytes()}
    assert opened(pack(files, tmp_path / "bin", "tar"), "cifar10").content_hash == python.content_hash

    names = [f"fine {k}" for k in range(100)]
    fine = {
        "cifar-100-python/meta": python2_pickle({"fine_label_names": [name.encode() for name in names]}),
        "cifar-100-python/test": python2_pickle(
            {"coarse_labels": [1, 1], "fine_labels": [99, 5], "data": planes(7, 2)}
        ),
    }
    rows = np.hstack([np.array([[1, 99], [1, 5]], np.uint8), planes(7, 2)])
    plain = {"c/fine_label_names.txt": "\n".join(names).encode(), "c/test.bin": rows.tobytes()}
    first = opened(pack(fine, tmp_path / "fine", "tar.gz"), "cifar100")
    assert (first.labels.tolist(), first.classes) == ([99, 5], names)
    assert opened(pack(plain, tmp_path / "plain", "zip"), "cifar100").content_hash == first.content_hash


def test_mnist(tmp_path: Path) -> None:
    digits = np.stack([pixels(k, 28, 1) for k in range(3)])
    files = {
        "MNIST/raw/t10k-images-idx3-ubyte.gz": idx(digits),
        "MNIST/raw/t10k-labels-idx1-ubyte.gz": idx(np.array([7, 0, 4], np.uint8)),
    }
    found = opened(pack(files, tmp_path / "mnist", "folder"), "mnist")
    assert (found.labels.tolist(), found.classes[7]) == ([7, 0, 4], "7")
    np.testing.assert_array_equal(seen(found), np.repeat(digits[..., None], 3, axis=3))


def test_stl10(tmp_path: Path) -> None:
    """Pixels column by column, labels from 1 on, folds as rows of the training set."""
    names = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
    raw = {stem: [pixels(first + k, 96) for k in range(4)] for stem, first in (("train", 0), ("test", 50))}
    files = {"stl10_binary/class_names.txt": "\n".join(names).encode()}
    files["stl10_binary/fold_indices.txt"] = b"".join(b"3 1 \n" if fold == 2 else b"0 2 \n" for fold in range(10))
    for stem, pictures in raw.items():
        columns = np.stack([one.transpose(2, 1, 0) for one in pictures])
        files[f"stl10_binary/{stem}_X.bin"] = columns.tobytes()
        files[f"stl10_binary/{stem}_y.bin"] = bytes([1, 10, 3, 2])
    path = pack(files, tmp_path / "stl", "tar.gz")
    found = opened(path, "stl10")
    assert (found.labels.tolist(), found.classes) == ([0, 9, 2, 1], names)
    np.testing.assert_array_equal(seen(found), raw["test"])
    fold = opened(path, "stl10", "fold2")
    assert fold.labels.tolist() == [1, 9]
    np.testing.assert_array_equal(seen(fold), [raw["train"][3], raw["train"][1]])


@pytest.mark.parametrize("compressed", [True, False])
def test_svhn(tmp_path: Path, compressed: bool) -> None:
    digits = [pixels(k) for k in range(3)]
    table = matlab(compressed, X=np.stack(digits, axis=3), y=np.array([[10], [1], [9]], np.uint8))
    found = opened(pack({"test_32x32.mat": table}, tmp_path / "svhn", "folder"), "svhn")
    assert found.labels.tolist() == [0, 1, 9]
    np.testing.assert_array_equal(seen(found), digits)


def test_folds_of_a_training_set_without_all_its_labels(tmp_path: Path) -> None:
    files = {"class_names.txt": b"a\nb", "train_X.bin": bytes(4 * 27_648), "train_y.bin": bytes([1, 2])}
    files["fold_indices.txt"] = b"0 3\n" * 10
    with pytest.raises(InputError, match="4 pictures and 2 labels"):
        opened(pack(files, tmp_path / "stl", "folder"), "stl10", "fold2")


def test_fer2013(tmp_path: Path) -> None:
    faces = [pixels(k, 48, 1) for k in range(4)]
    usage = ["Training", "PublicTest", "PrivateTest", "PublicTest"]
    lines = ["emotion,pixels,Usage"]
    lines += [f"{k},{' '.join(map(str, face.reshape(-1)))},{usage[k]}" for k, face in enumerate(faces)]
    path = pack({"fer2013/fer2013.csv": "\n".join(lines).encode()}, tmp_path / "fer", "tar.gz")
    found = opened(path, "fer2013")
    assert found.labels.tolist() == [1, 2, 3]
    np.testing.assert_array_equal(seen(found), np.repeat(np.stack(faces[1:])[..., None], 3, axis=3))
    assert opened(path, "fer2013", "private").labels.tolist() == [2]


@pytest.mark.parametrize(
    ("dataset", "files", "said"),
    [
        ("cifar10", {"batches.meta.txt": b"a\nb\n", "test_batch.bin": bytes(3072)}, "no multiple of 3,073"),
        ("cifar10", {"batches.meta.txt": b"a\nb\n"}, "holds no 'test_batch.bin'"),
        ("cifar10", {"batches.meta": pickle.dumps(print)}, "it calls|damaged pickle|instruction"),
        ("cifar10", {"batches.meta": python2_pickle({"label_names": [3]})}, "no list 'label_names'"),
        (
            "cifar10",
            {
                "batches.meta": pickle.dumps({"label_names": ["cat", "d\ud800g"]}, protocol=2),
                "test_batch": python2_pickle({"labels": [0, 1], "data": planes(0, 2)}),
            },
            "half of a character",
        ),
        ("cifar10", {"batches.meta.txt": b"a\nb", "test_batch": python2_pickle({"labels": [1]})}, "no array 'data'"),
        (
            "cifar10",
            {"batches.meta.txt": b"a", "test_batch": python2_pickle({"labels": [1], "data": planes(0, 2)})},
            "2 pictures and 1 labels",
        ),
        (
            "mnist",
            {"t10k-images-idx3-ubyte.gz": idx(pixels(0, 4, 1)), "t10k-labels-idx1-ubyte.gz": b"x"},
            "no idx file of 3",
        ),
        ("mnist", {"t10k-images-idx3-ubyte.gz": b"no gzip"}, "not a whole archive"),
        ("svhn", {"test_32x32.mat": b"MATLAB 7.3 MAT-file" + bytes(200)}, "MATLAB 7.3"),
        ("svhn", {"test_32x32.mat": bytes(300)}, "no MATLAB 5 file"),
        ("svhn", {"test_32x32.mat": matlab(X=np.zeros(3), y=np.zeros(3))[:-20]}, "damaged MATLAB file"),
        ("svhn", {"test_32x32.mat": matlab(X=np.zeros(3), y=np.zeros(3))}, "has no X of 32 x 32 x 3"),
        (
            "stl10",
            {"class_names.txt": b"a\nb", "test_X.bin": bytes(7), "test_y.bin": bytes(1)},
            "no multiple of 27,648",
        ),
        ("fer2013", {"fer2013.csv": b"emotion,pixels,Usage\n1,2 3 4,PublicTest"}, "line 2: not 48 x 48"),
        (
            "fer2013",
            {"fer2013.csv": b"emotion,pixels,Usage\n\xb3," + b"7 " * 2304 + b",PublicTest"},  # a superscript 3
            "line 2: not 48 x 48",
        ),
        (
            "fer2013",
            {"fer2013.csv": b"emotion,pixels,Usage\n3," + b"7 " * 2303 + b"9" * 5000 + b",PublicTest"},
            "line 2: not 48 x 48",
        ),
        (
            "stl10",
            {"class_names.txt": b"a\nb", "test_X.bin": bytes(2 * 27_648), "test_y.bin": bytes([1])},
            "2 pictures and 1 labels",
        ),
    ],
)
def test_damaged_files_are_one_sentence(tmp_path: Path, dataset: str, files: dict[str, bytes], said: str) -> None:
    path = pack(files, tmp_path / "bad", "folder")
    with pytest.raises(InputError, match=said) as caught:
        opened(path, dataset)
    assert "bad" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError):
        opened(path, dataset, "nowhere")


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("/nowhere/written", "w"))


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps(_Evil()),
        pickle.dumps({"data": _Evil()}, protocol=2),
        pickle.dumps(np.zeros(3)),  # not of bytes
        pickle.dumps({1, 2}),
        b"",
        b"\x80\x02}q\x01(",
        b"\x80\x02]q\x00h\x00a.",  # a list that holds itself
        b"\x80\x02r\xff\xff\xff\x7f.",  # a memo of 16 GB for the interpreter of C
        b"\x80\x02K\x01h\x05.",
        b"\x80\x02cbuiltins\neval\nU\x011\x85R.",
        b"\x80\x02(e.",
        python2_pickle({"a": planes(0, 2)})[:-700],
    ],
)
def test_a_pickle_is_never_run(data: bytes) -> None:
    with pytest.raises(PickleRefused):
        read_pickle(data)


def test_plain_pickles_are_read() -> None:
    for protocol in (0, 2, 4, 5):
        value: Any = {"a": [1, -2, 2**40, None, True, 0.5], "b": ("x", b"\xff\x00", {})}
        found = read_pickle(pickle.dumps(value, protocol=protocol))
        assert found == value
    found = read_pickle(pickle.dumps({"data": planes(3, 2)}, protocol=2))
    np.testing.assert_array_equal(found["data"], planes(3, 2))
    shared: list[Any] = [b"x"]
    for _ in range(40):
        shared = [shared, shared]  # 2^40 lists, if each were made anew
    assert len(read_pickle(pickle.dumps(shared, protocol=2))) == 2


@pytest.mark.parametrize("shape", [(1, 1), (5, 7, 3), (200, 130, 3), (3, 65_535)])
def test_png_bytes(shape: tuple[int, ...]) -> None:
    """Right for the decoder at every size of block, and pinned: these bytes are an example's identity."""
    values = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    found = decode(png(values)).rgb
    np.testing.assert_array_equal(found, values if len(shape) == 3 else np.repeat(values[..., None], 3, axis=2))
    assert hashlib.sha256(png(np.arange(12, dtype=np.uint8).reshape(2, 2, 3))).hexdigest() == PINNED


def test_ppm() -> None:
    values = pixels(5, 9)
    data = b"P6\n# made by hand\n9 9\n255\n" + values.tobytes()
    np.testing.assert_array_equal(decode(picture(data)).rgb, values)
    assert picture(b"other bytes") == b"other bytes"
    spaces = b"P6" + b" " * 5000  # no end of ways to divide them
    for bad in (data[:-1], b"P6\n9 9\n65535\n" + bytes(500), b"P6\n0 9\n255\n", spaces, b"P6" + b"#\n " * 5000):
        with pytest.raises(InputError):
            picture(bad)
