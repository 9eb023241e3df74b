"""The photographs of the shared data (COCO, CC BY and CC BY-SA), as original JPEG files, each with what five people wrote about it.

http://127.0.0.5:PORT/coco/000000012280.jpg
"""

from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from tests.web import emoji

HOST = len(emoji.STYLES)
"""Its number among the hosts; those of the emoji's styles come first."""


@dataclass(frozen=True)
class Photograph:
    """One photograph. One of them has two captions only."""

    file: str
    captions: tuple[str, ...]
    jpeg: bytes

    @property
    def path(self) -> str:
        """Its place on the host."""
        return f"/coco/{self.file}"


def read(path: Path) -> list[Photograph]:
    """All of them, in the file's order."""
    rows = pq.read_table(path, columns=["file", "captions", "jpeg"]).to_pylist()
    return [Photograph(row["file"], tuple(row["captions"]), row["jpeg"]) for row in rows]


def url(one: Photograph, port: int) -> str:
    """Where the photograph is served."""
    return f"http://127.0.0.{2 + HOST}:{port}{one.path}"
