"""Tars as a corpus: members and samples against Python's own tarfile, the index, the batches, and tars that lie."""

import dataclasses
import io
import itertools
import json
import os
import random
import shutil
import tarfile
import threading
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import numpy as np
import pytest
import torch

from pipeline.content import image as images
from pipeline.content import webdataset
from pipeline.contracts import storage
from pipeline.contracts.errors import InputError
from tests.trainer.launching import Alone
from tests.trainer.plans import small_plan
from trainer import tokenizer
from trainer.config import DataConfig
from trainer.data import corpus as corpora
from trainer.data import loader, tars, transforms
from trainer.data.order import SampleOrder, replacement_row
from trainer.data.reader import Corpus, Row, RowReader

Pairs = list[tuple[str | None, bytes | None]]
Files = Sequence[tuple[str, bytes]]
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def write_tar(path: Path, files: Files, format: int = tarfile.PAX_FORMAT, mtime: float = 0) -> None:
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in files:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime = len(data), mtime
            tar.addfile(entry, io.BytesIO(data))


def files_of(pairs: Pairs, first: int = 0) -> list[tuple[str, bytes]]:
    """As img2dataset names them: a picture, a text and a JSON of each pair."""
    files: list[tuple[str, bytes]] = []
    for number, (caption, picture) in enumerate(pairs, start=first):
        if picture is not None:
            files.append((f"{number:08d}.jpg", picture))
        if caption is not None:
            files.append((f"{number:08d}.txt", caption.encode()))
        files.append((f"{number:08d}.json", json.dumps({"caption": "of the JSON", "key": number}).encode()))
    return files


def nobody() -> object:
    """What a process that is alone waits for."""
    return None


def opened(places: str | tuple[str, ...], run_dir: Path) -> tars.TarCorpus:
    run_dir.mkdir(exist_ok=True)
    return tars.open_tars(tars.find(places), str(run_dir), rank=0, world_size=1, wait=nobody)


def all_rows(corpus: Corpus) -> list[Row]:
    return list(RowReader(corpus, cache_bytes=1 << 30, ahead=0).read(np.arange(sum(corpus.group_rows))))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, shapes: Callable[..., Pairs]) -> Path:
    """Four tars of 330 captioned shapes, one of its pictures broken, one caption missing."""
    folder = tmp_path_factory.mktemp("tars")
    pairs = shapes(330)
    pairs[17] = (pairs[17][0], b"not a picture")
    for number in range(4):
        files = files_of(pairs[100 * number : 100 * (number + 1)], first=100 * number)
        gone = [name for name, _ in files if not name.startswith("00000250") or name.endswith(".jpg")]
        write_tar(folder / f"{number:05d}.tar", [(name, data) for name, data in files if name in gone])
    return folder


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of 4 kB: the tars of tests are small, and must have many."""
    monkeypatch.setattr(tars, "ROW_GROUP_BYTES", 1 << 12)


# ---- members and samples


@pytest.mark.parametrize("format", FORMATS)
def test_members_are_those_that_tarfile_finds(format: str, tmp_path: Path) -> None:
    long = "a/" * 40 + "x" * 30 + ".jpg" if format == "ustar" else "folder/" * 40 + "name-of-many-letters.jpg"
    names = ["0.jpg", "ordner/grün.txt", long, "empty.txt", "after.png"]
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=FORMATS[format]) as tar:
        for number, name in enumerate(names):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime = (0 if name == "empty.txt" else 100 * number + 500), number + 0.25
            tar.addfile(entry, io.BytesIO(bytes([number]) * entry.size))
            for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
                other = tarfile.TarInfo(f"other-{number}.jpg")
                other.type, other.linkname = kind, "/etc/passwd" if kind != tarfile.LNKTYPE else names[0]
                tar.addfile(other)
    data = path.read_bytes()
    with tarfile.open(path) as tar:
        expected = [(each.name, each.offset_data, each.size) for each in tar if each.isreg() and not each.islnk()]
    found = list(webdataset.members(lambda at, size: data[at : at + size], 0, len(data)))
    assert [(each.name, each.data, each.size) for each in found] == expected
    assert [each.name for each in found] == names


def test_a_size_in_base_256_and_one_in_a_pax_header(tmp_path: Path) -> None:
    data = b"some bytes"
    entry = tarfile.TarInfo("large.jpg")
    entry.size = len(data)
    header = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\x80" + len(data).to_bytes(11, "big")
    header[148:156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 256)
    entry.pax_headers = {"size": str(len(data))}
    pax = bytearray(entry.tobuf(tarfile.PAX_FORMAT))
    assert b"size=10\n" in pax
    pax[1024 + 124 : 1024 + 136] = b"00000000000\0"  # a field that is too small says nothing
    body = pax[1024:]
    pax[1024 + 148 : 1024 + 156] = b"%06o\0 " % (sum(body) - sum(body[148:156]) + 256)
    padded = data.ljust(512, b"\0")
    whole = bytes(header) + padded + bytes(pax) + padded
    found = list(webdataset.members(lambda at, size: whole[at : at + size], 0, len(whole)))
    assert [(each.name, each.size, whole[each.data : each.data + each.size]) for each in found] == [
        ("large.jpg", 10, data)
    ] * 2
    assert [each.start for each in found] == [0, 1024]


def test_samples_are_neighbours_of_one_name(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "x.tar",
        [
            ("README", b"no dot"),
            (".hidden", b"no name"),
            ("a/1.jpg", b"picture 1"),
            ("a/1.txt", b"caption 1"),
            ("b/1.TXT", b"caption of b"),
            ("b/1.PNG", b"picture of b"),
            ("b/1.png", b"a second one"),
            ("b/1.seg.png", b"of another kind"),
            ("v1.2/3.webp", b"a folder with a dot"),
            ("v1.2/3.json", json.dumps({"caption": "from JSON"}).encode()),
            ("4.txt", b"no picture"),
            ("5.jpeg", b"no caption"),
            ("1.jpg", b"the same name in another folder"),
        ],
    )
    assert all_rows(opened(str(tmp_path), tmp_path / "run")) == [
        Row("caption 1", b"picture 1"),
        Row("caption of b", b"picture of b"),
        Row("from JSON", b"a folder with a dot"),
        Row("no picture", None),
        Row(None, b"no caption"),
        Row(None, b"the same name in another folder"),
    ]


@pytest.mark.parametrize(
    ("name", "data", "caption"),
    [
        ("txt", "Straße 日本".encode(), "Straße 日本"),
        ("txt", b"\xff\xfe", None),
        ("txt", b"", None),
        ("txt", b" \n", None),
        ("json", b'{"caption": ""}', None),
        ("txt", b"x" * (webdataset.MAX_CAPTION_BYTES + 1), None),
        ("json", b"{", None),
        ("json", b"[" * 200_000, None),
        ("json", b'["caption"]', None),
        ("json", b'{"caption": 7}', None),
        ("json", b'{"text": "x"}', None),
        ("json", b'{"caption": ' + b"9" * 10_000 + b"}", None),
        ("json", json.dumps({"caption": "süß"}).encode(), "süß"),
    ],
)
def test_a_caption_is_text_or_it_is_none(name: str, data: bytes, caption: str | None, tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", [("1.jpg", b"picture"), (f"1.{name}", data), ("2.jpg", b""), ("2.txt", b"two")])
    assert all_rows(opened(str(tmp_path), tmp_path / "run")) == [Row(caption, b"picture"), Row("two", b"")]


@pytest.mark.parametrize("text", [b"", b"\n", b"\xff\xfe", b"x" * (webdataset.MAX_CAPTION_BYTES + 1)])
def test_a_text_that_says_nothing_leaves_it_to_the_json(text: bytes, tmp_path: Path) -> None:
    said = json.dumps({"caption": "good"}).encode()
    write_tar(tmp_path / "x.tar", [("1.jpg", b"picture"), ("1.txt", text), ("1.json", said)])
    assert all_rows(opened(str(tmp_path), tmp_path / "run")) == [Row("good", b"picture")]


# ---- the index


@pytest.mark.usefixtures("small_groups")
def test_every_sample_is_in_one_group_of_bounded_size(folder: Path, tmp_path: Path) -> None:
    corpus = opened(str(folder), tmp_path)
    assert sum(corpus.group_rows) == 330
    assert len(corpus.group_rows) > 60
    assert max(corpus.group_bytes) <= 1 << 12
    expected = []
    for path in sorted(folder.iterdir()):
        with tarfile.open(path) as tar:
            found = {entry.name: tar.extractfile(entry) for entry in tar}
            contents = {name: file.read() for name, file in found.items() if file is not None}
        for stem in dict.fromkeys(name.split(".")[0] for name in contents):
            caption = contents.get(f"{stem}.txt")
            expected.append(Row(None if caption is None else caption.decode(), contents.get(f"{stem}.jpg")))
    assert all_rows(corpus) == expected
    assert list(corpus.captions()) == [row.caption for row in expected if row.caption is not None]


@pytest.mark.usefixtures("small_groups")
def test_processes_index_together_what_one_indexes_alone(folder: Path, tmp_path: Path) -> None:
    alone = opened(str(folder), tmp_path / "alone")
    together = tmp_path / "together"
    together.mkdir()
    barrier = threading.Barrier(3)
    with ThreadPoolExecutor(3) as pool:
        found = list(
            pool.map(
                lambda rank: tars.open_tars(
                    tars.find(str(folder)), str(together), rank=rank, world_size=3, wait=lambda: barrier.wait(20)
                ),
                range(3),
            )
        )
    assert {(corpus.content_root, tuple(corpus.group_rows)) for corpus in found} == {
        (alone.content_root, tuple(alone.group_rows))
    }
    assert sorted(path.name for path in together.iterdir()) == [tars.INDEX]
    assert (together / tars.INDEX).read_bytes() == (tmp_path / "alone" / tars.INDEX).read_bytes()


def test_the_digest_is_of_the_bytes_and_their_order_and_of_no_place(folder: Path, tmp_path: Path) -> None:
    first = opened(str(folder), tmp_path / "1").content_root
    shutil.copytree(folder, tmp_path / "moved")
    assert opened(f"{tmp_path}/moved/*.tar", tmp_path / "2").content_root == first
    names = [str(path) for path in sorted((tmp_path / "moved").iterdir())]
    assert opened(tuple(names), tmp_path / "3").content_root == first
    assert opened(tuple(reversed(names)), tmp_path / "4").content_root != first
    data = bytearray(Path(names[2]).read_bytes())
    data[700] ^= 1
    Path(names[2]).write_bytes(data)
    assert opened(tuple(names), tmp_path / "5").content_root != first


def test_a_run_goes_on_with_its_index_and_with_no_other_tars(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "tars")
    first = opened(str(tmp_path / "tars"), tmp_path / "run")
    written = (tmp_path / "run" / tars.INDEX).stat().st_mtime_ns
    (tmp_path / "tars").rename(tmp_path / "elsewhere")
    again = opened(str(tmp_path / "elsewhere"), tmp_path / "run")
    assert again.content_root == first.content_root
    assert (tmp_path / "run" / tars.INDEX).stat().st_mtime_ns == written
    tar = tmp_path / "elsewhere" / "00002.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole + bytes(512))
    with pytest.raises(InputError, match=r"00002\.tar' of \d+ bytes stands where .*tars\.json has '00002\.tar' of"):
        opened(str(tmp_path / "elsewhere"), tmp_path / "run")
    tar.unlink()
    with pytest.raises(InputError, match=r"names 3 tars, .*tars\.json was made of 4"):
        opened(str(tmp_path / "elsewhere"), tmp_path / "run")
    write_tar(tar, [("1.jpg", b""), ("1.txt", b"")])
    tar.write_bytes(tar.read_bytes().ljust(len(whole), b"\0"))
    with pytest.raises(InputError, match=r"00002\.tar: its samples from byte .* are not those"):
        all_rows(opened(str(tmp_path / "elsewhere"), tmp_path / "run"))
    (tmp_path / "run" / tars.INDEX).write_text("{}")
    with pytest.raises(InputError, match=r"tars\.json: tars: Field required; remove the file"):
        opened(str(tmp_path / "elsewhere"), tmp_path / "run")


def test_other_content_of_the_same_size_is_refused_by_name(tmp_path: Path) -> None:
    for name in "xyz":
        (tmp_path / name).mkdir()
        write_tar(tmp_path / name / "0.tar", [("1.jpg", b"picture"), ("1.txt", f"caption {name}".encode())])
    first, second, third = (str(tmp_path / name / "0.tar") for name in "xyz")
    run = tmp_path / "run"
    rows = all_rows(opened((first, second), run))
    assert [row.caption for row in rows] == ["caption x", "caption y"]
    with pytest.raises(InputError, match=r"y/0\.tar' of \d+ bytes stands where .* has 'x/0\.tar'.*in the same order"):
        opened((second, first), run)
    whole = Path(second).read_bytes()
    for other in (Path(third).read_bytes(), whole.replace(b"picture", b"Picture"), whole.replace(b"1.jpg", b"1.png")):
        assert len(other) == len(whole)
        Path(second).write_bytes(other)
        corpus = opened((first, second), run)
        with pytest.raises(InputError, match=rf"{second}: (its samples from byte 0 on are not those)"):
            all_rows(corpus)
    Path(second).write_bytes(whole)
    assert all_rows(opened((first, second), run)) == rows


@pytest.mark.parametrize(
    ("places", "said"),
    [
        ("nowhere", "'nowhere' names no tar; give a .tar, a folder of them, a glob"),
        ("{folder}/9*.tar", "names no tar"),
        ("{folder}/{{00000..00003}}.tar", "names no tar"),
        ("{folder}/00000.tar.gz", "is compressed"),
        (("{folder}", "{folder}/00001.tar"), "00001.tar' is named twice"),
    ],
)
def test_places_that_name_no_tars(folder: Path, places: str | tuple[str, ...], said: str) -> None:
    listed = (places,) if isinstance(places, str) else places
    with pytest.raises(InputError, match=said):
        tars.find(tuple(place.format(folder=folder) for place in listed))


def test_a_corpus_is_named_once() -> None:
    with pytest.raises(ValueError, match="a run reads one of them; drop the other"):
        DataConfig(manifest="x", tars="y")
    with pytest.raises(InputError, match=r"give data.manifest=PLACE or data.tars=PLACE"):
        corpora.locate(DataConfig())


# ---- tars that lie


def test_a_tar_that_is_cut_gives_the_samples_before_the_cut(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The last one that has begun is left out: it may lack its JSON, its text or its picture."""
    whole = (folder / "00000.tar").read_bytes()
    rows = all_rows(opened(str(folder / "00000.tar"), tmp_path / "whole"))
    with tarfile.open(folder / "00000.tar") as tar:
        starts = [entry.offset for entry in tar][7::29]
    counts = set()
    for number, start in enumerate(starts):
        inside = 100 if number % 2 else 513  # a header, a file
        (tmp_path / f"{number}.tar").write_bytes(whole[: start + inside])
        caplog.clear()
        found = all_rows(opened(str(tmp_path / f"{number}.tar"), tmp_path / f"run-{number}"))
        assert found == rows[: len(found)]
        assert f"the {len(found)} whole samples before it are used" in caplog.text
        counts.add(len(found))
    assert len(counts) > 8


@pytest.mark.parametrize("data", [b"", b"GIF89a" * 300, b"\x1f\x8b" + bytes(600), bytes(100)])
def test_what_is_no_tar(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(data)
    if data:
        with pytest.raises(
            InputError, match=r"x\.tar: (has no header|has a header|ends inside a header).*give tars as"
        ):
            opened(str(tmp_path), tmp_path / "run")
    else:
        assert opened(str(tmp_path), tmp_path / "run").group_rows == []


def test_what_follows_the_mark_of_the_end_is_said(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A header that became zeros, and two tars in one file."""
    whole = (folder / "00000.tar").read_bytes()
    rows = all_rows(opened(str(folder / "00000.tar"), tmp_path / "whole"))
    with tarfile.open(folder / "00000.tar") as tar:
        hole = [entry.offset for entry in tar][12]  # the fifth sample's picture
        end = tar.offset
    caplog.clear()
    (tmp_path / "hole.tar").write_bytes(whole[:hole] + bytes(512) + whole[hole + 512 :])
    (tmp_path / "two.tar").write_bytes(whole + whole)
    assert all_rows(opened(str(tmp_path / "hole.tar"), tmp_path / "hole")) == rows[:3]
    assert (
        f"hole.tar: goes on at byte {hole + 512:,} after the mark of its end at byte {hole:,}; the 3 whole"
        in caplog.text
    )
    assert all_rows(opened(str(tmp_path / "two.tar"), tmp_path / "two")) == rows[:99]
    assert f"two.tar: goes on at byte {len(whole):,} after the mark of its end at byte {end:,}" in caplog.text
    (tmp_path / "first.tar").write_bytes(bytes(512) + whole)
    with pytest.raises(InputError, match=r"first\.tar: goes on at byte 512 after the mark of its end at byte 0"):
        opened(str(tmp_path / "first.tar"), tmp_path / "first")


@pytest.mark.parametrize("data", [b"", bytes(65536)])
def test_a_tar_without_samples_is_said(
    data: bytes, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "0.tar").write_bytes(data)
    shutil.copy(folder / "00003.tar", tmp_path / "1.tar")
    assert sum(opened(str(tmp_path), tmp_path / "run").group_rows) == 30
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        f"{tmp_path}/0.tar: {len(data):,} bytes without a sample; nothing of it is used"
    ]


@pytest.mark.parametrize(
    "keys",
    [
        {"GNU.sparse.size": "1000", "GNU.sparse.numblocks": "1"},
        {"GNU.sparse.map": "0,7", "GNU.sparse.size": "1000"},
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "1.jpg", "GNU.sparse.realsize": "1000"},
    ],
)
def test_a_sparse_file_of_any_kind_ends_the_tar(
    keys: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in (("0.jpg", b"picture"), ("0.txt", b"zero"), ("1.txt", b"one"), ("1.jpg", b"picture")):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            entry.pax_headers = keys if name == "1.jpg" else {}
            tar.addfile(entry, io.BytesIO(data))
    assert all_rows(opened(str(tmp_path), tmp_path / "run")) == [Row("zero", b"picture")]
    assert "has a sparse file at byte 3,072, which is not read" in caplog.text


def lying_header(name: str, size: bytes, kind: bytes = b"0") -> bytes:
    header = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    header[124:136], header[156:157] = size, kind
    header[148:156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 256)
    return bytes(header)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (lying_header("1.jpg", b"77777777777\0"), "ends inside the file at byte 3,072"),
        (lying_header("1.jpg", b"\x80" + b"\xff" * 11), "ends inside the file at byte 3,072"),
        (lying_header("1.jpg", b"\xff" * 12), "has a header with the number"),
        (lying_header("1.jpg", b"-0000000001\0"), "has a header with the number"),
        (lying_header("x", b"00004000000\0", b"L") + bytes(1 << 20), "bytes of names at byte 3,072, more than"),
        (
            lying_header("x", b"00000001000\0", b"x") + b"99999 path=y\n".ljust(512, b"\0"),
            "pax header that cannot be read",
        ),
        (lying_header("x", b"00000001000\0", b"x") + b"0 path=y\n".ljust(512, b"\0"), "pax header that cannot be read"),
        (lying_header("x", b"00000001000\0", b"x") + b"12 size=-1\n ".ljust(512, b"\0"), "the size b'-1"),
        (lying_header("1.jpg", b"00000000000\0", b"S"), "sparse file"),
    ],
)
def test_headers_that_lie_end_the_tar_there(
    header: bytes, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_tar(
        tmp_path / "x.tar", [("0.txt", b"caption"), ("0.jpg", b"picture"), ("1.txt", b"other")], tarfile.USTAR_FORMAT
    )
    (tmp_path / "x.tar").write_bytes((tmp_path / "x.tar").read_bytes()[:3072] + header + bytes(1024))
    assert all_rows(opened(str(tmp_path), tmp_path / "run")) == [Row("caption", b"picture")]
    assert said in caplog.text


def test_a_sample_too_large_to_read_is_a_row_that_cannot_be_used(tmp_path: Path) -> None:
    """70 MB of picture, of which the disk and the memory hold nothing."""
    with open(tmp_path / "x.tar", "wb") as out:
        for name, size in (("0.jpg", 3), ("0.txt", 3), ("1.jpg", 70_000_000), ("1.txt", 3), ("2.jpg", 3), ("2.txt", 3)):
            out.write(lying_header(name, b"%011o\0" % size) + b"abc")
            out.seek(-3 + -(-size // 512) * 512, os.SEEK_CUR)
        out.truncate()
    corpus = opened(str(tmp_path), tmp_path / "run")
    assert corpus.group_rows == [1, 1, 1]
    assert corpus.group_bytes[1] == 0
    tracemalloc.start()
    assert all_rows(corpus) == [Row("abc", b"abc"), Row(None, None), Row("abc", b"abc")]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_whatever_the_bytes_are_it_is_read_or_refused(folder: Path, tmp_path: Path) -> None:
    """Bytes of the headers changed at random: nothing but InputError comes out, and nothing is written but the index."""
    whole = (folder / "00000.tar").read_bytes()[: 40 * 1024]
    rng = random.Random(3)
    (tmp_path / "in").mkdir()
    outcomes = Counter[str]()
    for number in range(300):
        broken = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            header = rng.randrange(0, len(broken), 512)
            broken[header + rng.choice((0, 124, 130, 135, 148, 156, 257, 345, rng.randrange(512)))] = rng.randrange(256)
        at = rng.randrange(0, len(broken), 512)  # and a header whose sum is right
        broken[at : at + 512] = lying_header(
            "x.jpg", rng.randbytes(11) + b"\0", rng.choice((b"0", b"x", b"L", b"1", b"\0"))
        )
        (tmp_path / "in" / "x.tar").write_bytes(broken)
        try:
            rows = all_rows(opened(str(tmp_path / "in"), tmp_path / f"run-{number}"))
        except InputError:
            outcomes["refused"] += 1
        else:
            outcomes["read"] += bool(rows)
    assert outcomes["read"] > 100
    assert outcomes["refused"] > 3
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} <= {"x.tar", tars.INDEX}


# ---- batches


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> str:
    path = tmp_path_factory.mktemp("vocabulary")
    tokenizer.train_vocabulary(opened(str(folder), path).captions(), 600, str(path / "vocabulary"))
    return str(path / "vocabulary")


@pytest.fixture
def plan(folder: Path, vocabulary: str, tmp_path: Path, small_groups: None) -> loader.LoaderPlan:
    return small_plan(opened(str(folder), tmp_path / "run"), vocabulary, window_row_groups=20)


def whole(plan: loader.LoaderPlan, world: int, workers: int, first: int, last: int) -> list[list[object]]:
    """Samples, rows, ids and pixels of the batches of all ranks, joined."""
    ranks = [
        list(loader.batches(dataclasses.replace(plan, rank=rank, world_size=world, workers=workers), first, last))
        for rank in range(world)
    ]
    return [
        [torch.cat([getattr(part, name) for part in parts]).tolist() for name in ("samples", "rows", "ids", "pixels")]
        for parts in zip(*ranks, strict=True)
    ]


def test_batches_of_tars_keep_the_promises(plan: loader.LoaderPlan) -> None:
    """Each sample once an epoch, in the order of `SampleOrder`, its own pixels; unusable ones replaced by hash; seek; ranks, workers."""
    rows = all_rows(plan.corpus)
    order = SampleOrder(plan.corpus.group_rows, seed=11, window_row_groups=20)
    seen: list[int] = []
    replaced: dict[int, int] = {}
    for batch in loader.batches(plan, 0, 14):
        assert batch.rows.tolist() == order.rows(batch.samples.numpy()).tolist()
        seen += batch.rows.tolist()
        by = {swap.sample: swap.by for swap in batch.replaced}
        replaced |= {swap.row: swap.by for swap in batch.replaced}
        for sample, row, pixels in zip(batch.samples.tolist(), batch.rows.tolist(), batch.pixels, strict=True):
            picture = rows[by.get(sample, row)].image
            assert picture is not None
            expected = np.empty((3, 32, 32), np.uint8)
            rgb = images.decode(picture, min_short_side=32).rgb
            transforms.training_pixels(rgb, plan.augmentation, seed=11, sample=sample, into=expected)
            assert np.array_equal(pixels.numpy(), expected)
    assert sorted(seen[:330])[0] == 0
    assert Counter(seen).most_common()[-1][1] == 1
    assert len(set(seen)) == 330
    starts = np.concatenate([[0], np.cumsum(plan.corpus.group_rows)]).tolist()
    groups = {
        row: next(group for group in itertools.pairwise(starts) if group[0] <= row < group[1]) for row in (17, 250)
    }
    assert replaced == {row: replacement_row(row, 1, seed=11, rows=330, group=groups[row]) for row in (17, 250)}
    assert whole(plan, 1, 0, 9, 12) == whole(plan, 1, 0, 0, 14)[9:12]
    assert whole(plan, 2, 0, 0, 4) == whole(plan, 4, 0, 0, 4) == whole(plan, 1, 2, 0, 4) == whole(plan, 1, 0, 0, 4)


@pytest.mark.usefixtures("s3_endpoint")
def test_s3_gives_the_same_batches(plan: loader.LoaderPlan, folder: Path, tmp_path: Path) -> None:
    boto3.client("s3").create_bucket(Bucket="trainer-tars")
    for path in sorted(folder.iterdir()):
        storage.write_atomic(f"s3://trainer-tars/tars/{path.name}", path.read_bytes())
    for places in ("s3://trainer-tars/tars", "s3://trainer-tars/tars/0000?.tar"):
        remote = dataclasses.replace(plan, corpus=opened(places, tmp_path / "remote"))
        assert remote.corpus.content_root == plan.corpus.content_root
        assert whole(remote, 1, 0, 3, 5) == whole(plan, 1, 0, 3, 5)


def test_a_run_on_tars(alone: Alone, short_run: dict[str, object], folder: Path, tmp_path: Path) -> None:
    """Trains, goes on, and says what it was trained on."""
    overrides = {key: value for key, value in short_run.items() if key != "data.manifest"}
    overrides |= {"data.tars": folder, "run.dir": tmp_path / "run", "run.stop_after": 2}
    first = alone(overrides)
    assert first.code == 0, first.output
    assert "reading 4 tars once" in first.output
    again = alone(overrides | {"run.stop_after": 6})
    assert again.code == 0, again.output
    assert "reading 4 tars once" not in again.output
    root = opened(str(folder), tmp_path / "run").content_root
    record = next((tmp_path / "run" / "checkpoints").glob("step-00000006/checkpoint.json"))
    assert json.loads(record.read_text())["content_root"] == root
    assert f"content_root {root[:12]}" in again.output
