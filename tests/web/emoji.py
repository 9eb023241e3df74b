"""The emoji of the shared data, in three drawing styles. Each style has a loopback host of its own (`pictures.serving`).

    http://127.0.0.2:PORT/noto/1f600.png      127.0.0.3: blobmoji      127.0.0.4: emojitwo

The captions are made of what people call them, the English name and the keywords, and of nothing else that the table knows.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

STYLES = ("noto", "blobmoji", "emojitwo")


@dataclass(frozen=True)
class Emoji:
    """A picture in one style. `subgroup` is None for the few that Unicode puts in none."""

    style: str
    codepoints: str
    name: str
    keywords: tuple[str, ...]
    subgroup: str | None
    png: bytes

    @property
    def path(self) -> str:
        """Its place on its style's host."""
        return f"/{self.style}/{self.codepoints}.png"

    @property
    def captions(self) -> list[str]:
        """A row each: the name in three settings, the name with its keywords, and thrice three of the keywords, by hash."""
        more = [word for word in self.keywords if word.lower() != self.name.lower()]
        found = [self.name, f"{self.name} emoji", f"emoji {self.name}"]
        if more:
            found.append(f"{self.name}: {', '.join(more)}")
            for turn in range(3):
                found.append(", ".join(sorted(more, key=lambda word: _mark(f"{turn} {self.name} {word}"))[:3]))
        return list(dict.fromkeys(found))


def _mark(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def read(path: Path) -> list[Emoji]:
    """Every emoji that has an English name, in the file's order."""
    found = []
    for row in pq.read_table(path).to_pylist():
        if row["name_en"]:
            keywords = tuple(row["keywords_en"] or ())
            found.append(Emoji(row["set"], row["codepoints"], row["name_en"], keywords, row["subgroup"], row["png"]))
    return found


def url(one: Emoji, port: int) -> str:
    """Where the picture is served."""
    return f"http://127.0.0.{2 + STYLES.index(one.style)}:{port}{one.path}"
