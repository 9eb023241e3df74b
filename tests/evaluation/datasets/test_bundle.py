"""Archives of strangers: damaged, hostile, changed behind our back; webdataset tars; the sizes that the catalogue knows."""

import gzip
import io
import pickle
import random
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from evaluation.config import EvaluationSet
from evaluation.datasets import READERS, open_set
from evaluation.datasets.bundle import open_bundle
from evaluation.datasets.catalogue import catalogue, check_size, known
from evaluation.datasets.pickled import PickleRefused, read_pickle
from evaluation.overlap.job import hash_pictures
from pipeline.contracts.errors import InputError
from tests.evaluation.datasets.packing import MANNERS, encoded, opened, pack, python2_pickle

FILES = {f"2750/{name}/{k}.jpg": encoded(10 * k + len(name)) for name in ("Forest", "River") for k in range(3)}


@pytest.mark.parametrize("manner", MANNERS)
def test_a_set_travels_to_the_workers_of_the_overlap_job(tmp_path: Path, manner: str) -> None:
    """It is pickled with places only, opened there again, and hashed in pieces."""
    found = opened(pack(FILES, tmp_path / "set", manner), "eurosat", "all")
    there = pickle.loads(pickle.dumps(found))
    pieces = [hash_pictures(there, [0, 1]), hash_pictures(there, [2, 3, 4, 5])]
    whole = hash_pictures(found, list(range(6)))
    assert pa.concat_tables(pieces).equals(whole)
    assert whole["sha256"].to_pylist() == found.sha256


@pytest.mark.parametrize("manner", ["tar", "tar.gz", "zip"])
def test_a_cut_or_flipped_archive_is_one_sentence(tmp_path: Path, manner: str) -> None:
    """Every cut and many flipped bits: what is read is what was packed, or nothing is."""
    path = pack(FILES, tmp_path / "whole", manner)
    whole = path.read_bytes()
    truth = sorted(one.data for one in opened(path, "eurosat", "all").pictures())
    bad = tmp_path / f"bad.{manner}"
    broken = [whole[: len(whole) * k // 20] for k in range(20)]
    for k in range(0, len(whole), max(1, len(whole) // 60)):
        flipped = bytearray(whole)
        flipped[k] ^= 0x55
        broken.append(bytes(flipped))
    refused = []
    for data in broken:
        bad.write_bytes(data)
        try:
            found = sorted(one.data for one in opened(bad, "eurosat", "all").pictures())
        except InputError as error:
            refused.append(str(error))
            continue
        if manner != "tar":  # a tar has no checksum over its files
            assert set(found) <= set(truth)
    assert len(refused) >= 19  # of the cuts
    assert not any("\n" in said for said in refused)


def test_a_damaged_member_is_one_sentence_whatever_the_compression(tmp_path: Path) -> None:
    bad, refused = tmp_path / "bad.zip", 0
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as archive:
            archive.writestr("a/1.jpg", encoded(1, size=40))
        whole = buffer.getvalue()
        for place in range(30, len(whole) - 80, len(whole) // 40):
            flipped = bytearray(whole)
            flipped[place : place + 3] = bytes(255 - value for value in flipped[place : place + 3])
            bad.write_bytes(flipped)
            try:
                list(opened(bad, "eurosat", "all").pictures())
            except InputError as error:
                refused += "\n" not in str(error)
    assert refused > 120


def test_a_member_larger_than_any_picture_is_not_read(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/1.jpg", bytes(65 << 20))
    with pytest.raises(InputError, match=r"'a/1\.jpg' has more than the 67,108,864 bytes"):
        opened(bomb, "eurosat", "all")
    header = tarfile.TarInfo("a/1.jpg")
    header.size = 7 << 40
    (tmp_path / "long.tar").write_bytes(header.tobuf() + bytes(512))
    (tmp_path / "long.tar.gz").write_bytes(gzip.compress(header.tobuf() + bytes(512)))
    for name in ("long.tar", "long.tar.gz"):
        with pytest.raises(InputError, match="not a whole archive"):
            opened(tmp_path / name, "eurosat", "all")


def test_mangled_pickles() -> None:
    whole = python2_pickle({"labels": [1, 2, 300], "data": np.zeros((2, 4), np.uint8), "names": [b"a", b"b" * 300]})
    refused = 0
    for seed in range(1000):
        draws = random.Random(seed)
        data = bytearray(whole)
        for _ in range(draws.choice((1, 2, 8))):
            data[draws.randrange(len(data))] = draws.randrange(256)
        try:
            read_pickle(bytes(data))
        except PickleRefused:
            refused += 1
    assert refused > 300


def test_nothing_outside_is_read_or_written(tmp_path: Path) -> None:
    """Links and climbing names are not followed: a bundle opens its own members only, by position."""
    (tmp_path / "secret.jpg").write_bytes(encoded(1))
    path = tmp_path / "in" / "evil.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("x/a/1.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "../../secret.jpg"
        tar.addfile(link)
        climbing = tarfile.TarInfo("../secret.jpg")
        climbing.size = 3
        tar.addfile(climbing, io.BytesIO(b"abc"))
    assert [member.name for member in open_bundle(str(path)).members] == ["../secret.jpg"]
    assert [one.data for one in opened(path, "eurosat", "all").pictures()] == [b"abc"]
    assert sorted(one.name for one in tmp_path.rglob("*") if one.is_file()) == ["evil.tar", "secret.jpg"]


def test_an_archive_that_changed_is_refused(tmp_path: Path) -> None:
    for manner in ("tar", "tar.gz", "zip"):
        path = pack(FILES, tmp_path / "set", manner)
        found = opened(path, "eurosat", "all")
        pack({name: encoded(99 + k) for k, name in enumerate(FILES)}, tmp_path / "set", manner)
        with pytest.raises(
            InputError, match=r"has changed since it was opened|is not there any more|not a whole archive"
        ):
            list(found.pictures())


def test_webdataset(tmp_path: Path) -> None:
    for shard in range(2):
        files = {}
        for k in range(2):
            files[f"s{k}.jpg"] = encoded(10 * shard + k)
            files[f"s{k}.cls"] = str((shard + k) % 2).encode()
            files[f"s{k}.txt"] = f"a picture {shard}{k}".encode()
        pack(files, tmp_path / "wds" / "test" / str(shard), "tar")
    (tmp_path / "wds" / "classnames.txt").write_text("cat\ndog\n")
    found = opened(tmp_path / "wds" / "test", None)
    assert sorted(found.ids) == ["0.tar/s0", "0.tar/s1", "1.tar/s0", "1.tar/s1"]
    rows = {one.id: (int(found.labels[one.row]), one.data) for one in found.pictures()}
    assert rows["1.tar/s0"] == (1, encoded(10))
    assert found.captions is not None
    assert found.captions[found.ids.index("1.tar/s1")] == "a picture 11"
    (tmp_path / "wds" / "test" / "classnames.txt").write_text("cat\ndog\n")
    assert opened(tmp_path / "wds" / "test", "cifar10").classes == ["cat", "dog"]
    (tmp_path / "wds" / "test" / "classnames.txt").unlink()
    pack({"s0.jpg": encoded(50), "s0.cls": b"0"}, tmp_path / "wds" / "train" / "0", "tar")
    assert len(opened(tmp_path / "wds", "cifar10")) == 4
    assert opened(tmp_path / "wds", "cifar10", "train").ids == ["train/s0"]
    assert len(opened(tmp_path / "wds", "cifar10", "all")) == 5
    for word in ("dog", "²", "9" * 5000):
        pack({"a.jpg": encoded(1), "a.cls": word.encode()}, tmp_path / "bad", "tar")
        with pytest.raises(InputError, match=rf"'a\.cls' holds '{word[:40]}', no class number"):
            opened(tmp_path / "bad.tar", None)
    pack({"a.jpg": encoded(1)}, tmp_path / "bare", "tar")
    with pytest.raises(InputError, match=r"no webdataset tar .a member NAME\.cls"):
        opened(tmp_path / "bare.tar", None)


def test_a_split_of_webdataset_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """Tars in another folder are no answer; tars in no folder are the split that they are said to be."""
    files = {"s0.jpg": encoded(50), "s0.cls": b"0", "s1.jpg": encoded(51), "s1.cls": b"1"}
    pack(files, tmp_path / "wds" / "train1" / "0", "tar")
    for split in ("test", "val", "train"):
        with pytest.raises(InputError, match=rf"no split '{split}'; its splits are all .every tar., train1$"):
            opened(tmp_path / "wds", "dtd", split)
    for split in ("train1", "all"):
        assert len(opened(tmp_path / "wds", "dtd", split)) == 2
    assert len(opened(tmp_path / "wds" / "train1" / "0.tar", "dtd", "test")) == 2
    assert len(opened(tmp_path / "wds" / "train1", "dtd", "val")) == 2


# ---- the catalogue


def test_the_catalogue_has_the_papers_sets() -> None:
    groups = [one.group for one in catalogue().values()]
    assert (groups.count("paper"), groups.count("shift"), groups.count("retrieval")) == (27, 7, 2)
    metrics = {name: one.metric for name, one in catalogue().items() if one.metric not in ("accuracy", "recall")}
    assert metrics == {
        "voc2007": "map11",
        "fgvc_aircraft": "mean_per_class",
        "oxford_pets": "mean_per_class",
        "caltech101": "mean_per_class",
        "flowers102": "mean_per_class",
        "kinetics700": "mean_top1_top5",
        "hateful_memes": "roc_auc",
    }
    assert set(READERS) <= set(catalogue())
    assert all(one.classes for one in catalogue().values() if one.metric != "recall")
    assert all(size > 0 for one in catalogue().values() for sizes in one.splits.values() for size in sizes.values())


def test_sizes() -> None:
    def check(examples: int, classes: int = 10, split: str = "test", accept: bool = False) -> str | None:
        return check_size(known("eurosat"), split, place="set 'x'", examples=examples, classes=classes, accept=accept)

    assert (check(5000), check(5400), check(27000, split="all")) == ("paper", "vtab", "publisher")
    assert check(7, classes=3, accept=True) is None
    assert check(7, split="fifth") is None
    with pytest.raises(
        InputError, match=r"5,001 examples where EuroSAT, split 'test', has 5,000 .paper., 5,400 .vtab."
    ):
        check(5001)
    with pytest.raises(InputError, match="9 classes where EuroSAT has 10"):
        check(5000, classes=9)
    with pytest.raises(InputError, match="'cifar' is not in the catalogue; known are food101, cifar10"):
        known("cifar")


def test_a_set_of_another_size_is_refused(tmp_path: Path) -> None:
    path = pack(FILES, tmp_path / "set", "zip")
    with pytest.raises(InputError, match=r"2 classes where EuroSAT has 10; .* other_counts = true"):
        opened(path, "eurosat", "all", other_counts=False)
    with pytest.raises(InputError, match="label 'class' names a column, and an archive has none"):
        opened(path, "eurosat", "all", label="class")
    with pytest.raises(ValueError, match="other_counts has no meaning without dataset"):
        EvaluationSet(name="x", path=str(path), other_counts=True)
    folders = pack(FILES, tmp_path / "plain", "folder")
    found = opened(folders / "2750", "cifar10", layout="folders")
    assert (found.classes, found.labels.tolist()) == (["Forest", "River"], [0, 0, 0, 1, 1, 1])
    with pytest.raises(InputError, match="nothing there"):
        open_set(EvaluationSet(name="x", path=str(tmp_path / "absent.zip"), dataset="eurosat"))
