"""One corpus in the layouts of others: the rows of a planted corpus as tars, as Parquet and as plain files."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.contracts import manifest
from tests.evaluation.planted import Planted


class Pair(NamedTuple):
    """What others keep of a picture: its bytes as stored, URL and caption, and SHA-256 (hex) of the bytes as fetched."""

    image: bytes
    url: str
    caption: str
    fetched: str


def pairs_of(made: Planted) -> list[Pair]:
    """The rows of a planted corpus, in its order."""
    found = []
    for shard in manifest.load(str(made.corpus)).shards:
        for row in pq.read_table(made.corpus / shard.path).to_pylist():
            found.append(Pair(row["image"], row["url"], row["caption_raw"], row["source_sha256"].hex()))
    return found


def tar_bytes(members: Iterable[tuple[str, bytes]], links: bool = False) -> bytes:
    """A tar of files in their order; with a link and a device before each, which nobody may follow."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for name, data in members:
            if links:
                for kind in (tarfile.SYMTYPE, tarfile.CHRTYPE):
                    other = tarfile.TarInfo(f"{name.partition('.')[0]}.png")
                    other.type, other.linkname = kind, "/etc/passwd"
                    tar.addfile(other)
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return sink.getvalue()


def members_of(pairs: Sequence[Pair], first: int = 0) -> list[tuple[str, bytes]]:
    """The files of samples as img2dataset names them."""
    files = []
    for number, pair in enumerate(pairs, first):
        told = {"url": pair.url, "caption": pair.caption, "sha256": pair.fetched, "status": "success"}
        files += [
            (f"{number:09d}.jpg", pair.image),
            (f"{number:09d}.txt", pair.caption.encode()),
            (f"{number:09d}.json", json.dumps(told).encode()),
        ]
    return files


def write_webdataset(folder: Path, pairs: Sequence[Pair], per_file: int = 60) -> dict[str, Any]:
    """Tars, and the [corpus] table that names them."""
    folder.mkdir(parents=True)
    for number, start in enumerate(range(0, len(pairs), per_file)):
        members = members_of(pairs[start : start + per_file], start)
        (folder / f"{number:05d}.tar").write_bytes(tar_bytes(members, links=True))
    return {"files": f"{folder}/*.tar", "layout": "webdataset"}


def write_img2dataset_parquet(folder: Path, pairs: Sequence[Pair]) -> dict[str, Any]:
    """img2dataset's format parquet: a row for each URL it tried, null where the download failed."""
    folder.mkdir(parents=True)
    rows: list[dict[str, object]] = []
    for number, pair in enumerate(pairs):
        rows.append(
            {
                "url": pair.url,
                "caption": pair.caption,
                "key": f"{number:09d}",
                "status": "success",
                "sha256": pair.fetched,
                "jpg": pair.image,
            }
        )
        if number % 10 == 0:
            rows.append(
                {"url": pair.url + "?gone", "caption": "gone", "key": f"9{number:08d}", "status": "failed_to_download"}
            )
    names = ("url", "caption", "key", "status", "sha256")
    schema = pa.schema([*((name, pa.string()) for name in names), ("jpg", pa.binary())])
    pq.write_table(pa.Table.from_pylist(rows, schema), folder / "00000.parquet", row_group_size=50)
    (folder / "00000_stats.json").write_text(json.dumps({"successes": len(pairs)}), "utf-8")
    return {"files": str(folder), "layout": "parquet"}


def write_struct_parquet(folder: Path, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Hugging Face's layout: pictures as {bytes, path}, names of columns of one's own, no URL."""
    folder.mkdir(parents=True)
    table = pa.table(
        {
            "picture": pa.array([{"bytes": pair.image, "path": f"{number}.jpg"} for number, pair in enumerate(pairs)]),
            "text": pa.array([pair.caption for pair in pairs], pa.large_string()),
            "number": pa.array(range(len(pairs)), pa.int32()),
        }
    )
    pq.write_table(table, folder / "train-00000-of-00001.parquet", row_group_size=33)
    names = {"image": "picture", "caption": "text", "key": "number"}
    return {"files": f"{folder}/train-*.parquet", "layout": "parquet", **names}


def write_folder(folder: Path, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Plain files in folders, every third without its texts."""
    for number, pair in enumerate(pairs):
        inside = folder / f"{number % 4}"
        inside.mkdir(parents=True, exist_ok=True)
        (inside / f"p{number:05d}.JPG").write_bytes(pair.image)
        if number % 3:
            (inside / f"p{number:05d}.txt").write_text(pair.caption, "utf-8")
            told = {"url": pair.url, "sha256": pair.fetched}
            (inside / f"p{number:05d}.json").write_text(json.dumps(told), "utf-8")
    return {"files": str(folder), "layout": "folder"}


LAYOUTS = {
    "webdataset": write_webdataset,
    "img2dataset_parquet": write_img2dataset_parquet,
    "struct_parquet": write_struct_parquet,
    "folder": write_folder,
}


def by_picture(pairs: Sequence[dict[str, Any]]) -> set[tuple[str, str]]:
    """Which example matched which stored picture."""
    return {(row["eval_id"], row["image_sha256"].hex()) for row in pairs}


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
