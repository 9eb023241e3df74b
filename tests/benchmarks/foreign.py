"""Corpora that others wrote, one core: reading and indexing tars, tables and folders, beside the usual readers with the same hashing.

    python -m tests.benchmarks.foreign [PICTURES] [PEERS]

20,000 JPEGs of 128 pixels (small, so that reading costs as much beside decoding as it ever will), each with a caption and img2dataset's
JSON: as tars of 1,000, as img2dataset's Parquet, and as files in folders. The overlap job reads such a file twice: `list` says which rows
it has, with SHA-256 over each of them and over all of it, and `index` reads the rows again, refuses what changed, decodes and hashes. The
peers read once and believe what they read: webdataset's own reader, pyarrow's batches, plain files. Behind them stands the same code (JSON
and texts, decoding, `hash_rows`), so that only reading differs, and the hashes must be the same. "read" is without decoding; "listed" is
the part of our whole time that the listing takes, which is what reading twice costs from a local disk whose files are in memory. Each side
in a process of its own, three rounds in turn, medians.

PEERS is a folder for webdataset's environment (made once; by default in the folder for temporary files). The decision that it supports: a
file is read from end to end before it is cut into units of work, which are then named by its digest.
"""

import hashlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from evaluation.overlap.corpus import hash_rows
from pipeline.content import image as images
from pipeline.content import readers, webdataset
from pipeline.content.readers import Columns, Entry, Layout
from tests.evaluation.foreign import Pair, members_of, tar_bytes, write_folder, write_img2dataset_parquet

ROOT = Path(__file__).parents[2]
WEBDATASET = "webdataset==1.0.2"
PER_TAR = 1000
SIDE, QUALITY = 128, 85
ROUNDS = 3


class Figures(NamedTuple):
    """Seconds of reading alone, of listing alone (0 for a peer), and of the whole; a digest over the hashes of all rows."""

    read: float
    listed: float
    whole: float
    hashes: str


# ---- the corpus


def small_pairs(count: int) -> list[Pair]:
    """Cuts of photographs, again and again, with real captions where the real data is."""
    from tests.benchmarks.data.photographs import pairs  # not in the processes that are measured

    small: dict[bytes, bytes] = {}
    made = []
    for number, (caption, picture) in enumerate(pairs(count)):
        if picture not in small:
            rgb = images.resize(images.decode(picture).rgb, size=SIDE, mode="keep_ratio")
            small[picture] = images.encode(rgb, quality=QUALITY)
        data = small[picture]
        url = f"https://photographs.example/{number}.jpg"
        made.append(Pair(data, url, caption, hashlib.sha256(data).hexdigest()))
    return made


def write(folder: Path, count: int) -> dict[str, int]:
    """The corpus in each layout, below `folder`; bytes of each."""
    found = small_pairs(count)
    (folder / "webdataset").mkdir()
    for first in range(0, count, PER_TAR):
        tar = tar_bytes(members_of(found[first : first + PER_TAR], first))
        (folder / "webdataset" / f"{first // PER_TAR:05d}.tar").write_bytes(tar)
    write_img2dataset_parquet(folder / "parquet", found)
    write_folder(folder / "folder", found)
    return {
        layout: sum(path.stat().st_size for path in (folder / layout).rglob("*") if path.is_file()) for layout in PEERS
    }


# ---- ours


def ours(layout: Layout, place: str) -> Figures:
    files = readers.find_files(layout, [place])
    readers.list_file(layout, files[0], Columns())  # what is loaded once
    started = time.process_time()
    listings = [readers.list_file(layout, file, Columns()).rows for file in files]
    listed = time.process_time() - started

    def rows() -> Iterator[Entry]:
        for file, listing in zip(files, listings, strict=True):
            yield from readers.read_file(layout, file, listing, Columns())

    read, hashed, hashes = timed(rows)
    return Figures(listed + read, listed, listed + hashed, hashes)


def timed(rows: Callable[[], Iterable[Entry]]) -> tuple[float, float, str]:
    """Seconds of going through the rows, and of hashing them; a digest over the hashes."""
    hash_rows(itertools.islice(rows(), 1), withhold=False)  # the kernels are compiled, or read from the cache
    started = time.process_time()
    for _ in rows():
        pass
    read = time.process_time() - started
    started = time.process_time()
    index = hash_rows(rows(), withhold=False).rows
    hashed = time.process_time() - started
    said = index.select(["uid", "url", "caption", "source_sha256", "image_sha256", "phash64", "pdq256"]).sort_by("uid")
    return read, hashed, hashlib.sha256(repr(said.to_pylist()).encode()).hexdigest()


# ---- peers: each row of what they read, as an entry


def by_webdataset(place: str) -> Iterator[Entry]:
    import webdataset as library

    tars = sorted(str(path) for path in Path(place).glob("*.tar"))
    for number, sample in enumerate(library.WebDataset(tars, shardshuffle=False)):
        yield entry(number, sample["__key__"], sample["jpg"], sample["txt"], sample["json"])


def by_pyarrow(place: str) -> Iterator[Entry]:
    names = ["url", "caption", "key", "sha256", "jpg"]
    number = itertools.count()
    for path in sorted(Path(place).glob("*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches(columns=names, batch_size=256):
            for row in batch.to_pylist():
                if row["jpg"] is not None:
                    fetched = bytes.fromhex(row["sha256"])
                    yield Entry(next(number), "", row["key"], row["jpg"], row["url"], row["caption"], fetched)


def by_files(place: str) -> Iterator[Entry]:
    for number, path in enumerate(sorted(Path(place).rglob("*.JPG"))):
        texts = [path.with_suffix(ending) for ending in (".txt", ".json")]
        said = [text.read_bytes() if text.exists() else b"" for text in texts]
        yield entry(number, str(path.relative_to(place)), path.read_bytes(), *said)


def entry(number: int, key: str, picture: bytes, text: bytes, told: bytes) -> Entry:
    known = json.loads(told) if told else {}
    fetched = bytes.fromhex(known["sha256"]) if told else None
    return Entry(number, key, key, picture, known.get("url"), webdataset.caption("txt", text), fetched)


PEERS: dict[Layout, tuple[str, Callable[[str], Iterator[Entry]]]] = {
    "webdataset": (WEBDATASET.replace("==", " "), by_webdataset),
    "parquet": (f"pyarrow {pa.__version__}", by_pyarrow),
    "folder": ("plain files", by_files),
}


# ---- both


def one(side: str, asked: str, place: str) -> None:
    """One side, in a process of its own, on one core; its files are in memory."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    layout = next(layout for layout in PEERS if layout == asked)
    for path in Path(place).rglob("*"):
        if path.is_file():
            path.read_bytes()
    if side == "ours":
        found = ours(layout, place)
    else:
        read, whole, hashes = timed(lambda: PEERS[layout][1](place))
        found = Figures(read, 0.0, whole, hashes)
    print(json.dumps(found))


def child(python: str, side: str, layout: Layout, place: Path) -> Figures:
    command = [python, "-m", "tests.benchmarks.foreign", "--one", side, layout, str(place)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return Figures(*json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    from tests.benchmarks.data.peers import python_with  # loads torch

    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    default = Path(tempfile.gettempdir()) / "corpus-and-clip-foreign-peers"
    python = python_with(Path(sys.argv[2]) if len(sys.argv) > 2 else default, [WEBDATASET], ours=True)
    with tempfile.TemporaryDirectory() as name:
        sizes = write(Path(name), count)
        print(f"{'':<28}{'read, pictures/s':>18}{'MB/s':>7}{'whole, pictures/s':>19}{'MB/s':>7}{'listed':>8}")
        for layout, (peer, _) in PEERS.items():
            sides = {peer: python, "ours": sys.executable}
            found: dict[str, list[Figures]] = {side: [] for side in sides}
            for _ in range(ROUNDS):
                for side, interpreter in sides.items():
                    found[side].append(child(interpreter, side, layout, Path(name) / layout))
            if len({figures.hashes for each in found.values() for figures in each}) != 1:
                raise SystemExit(f"{layout}: the hashes of both sides differ")
            told(layout, count, sizes[layout], found)


def told(layout: Layout, count: int, size: int, found: dict[str, list[Figures]]) -> None:
    rates = []
    for side, each in found.items():
        read, listed, whole = (
            statistics.median(getattr(figures, name) for figures in each) for name in ("read", "listed", "whole")
        )
        rates.append((count / read, count / whole))
        print(
            f"{layout + ', ' + side:<28}{count / read:>18,.0f}{size / read / 1e6:>7.0f}{count / whole:>19,.0f}{size / whole / 1e6:>7.1f}"
            + (f"{listed / whole:>8.1%}" if listed else "")
        )
    (their_reads, theirs), (our_reads, ours) = rates
    print(
        f"{'':<28}ours: {our_reads / their_reads:.2f} times the peer's rate of reading, {ours / theirs:.2f} of the whole"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(*sys.argv[2:])
    else:
        main()
