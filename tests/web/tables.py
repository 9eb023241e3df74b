"""The files of a web: its URL table in four formats, the query list, and a labelled evaluation set with planted leaks.

The evaluation set shows scenes that are on no page of the web, but for a stated number of leaked ones: pictures of plain rows, as
the same bytes, recompressed, or smaller. Which they are is the return value, and nowhere in the files.
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from tests.web import answers, scenes
from tests.web.dice import Dice
from tests.web.site import Kind, Row, Web

TABLE_SCHEMA = pa.schema([("url", pa.string()), ("caption", pa.string())])
_CHUNK = 10_000
_DECOYS = (
    "mountain lake", "steam engine", "oak tree", "city skyline", "orchestra", "lighthouse", "wedding cake", "polar bear",
    "vintage car", "coral reef", "chess board", "sand dune", "hot air balloon", "violin", "waterfall", "pink flamingo",
)  # fmt: skip
Manner = Literal["exact", "recompressed", "smaller"]
_MANNERS: tuple[Manner, ...] = ("exact", "recompressed", "smaller")


def write_tables(web: Web, folder: Path, broken_lines: int = 0) -> list[Path]:
    """Write the URL table as two Parquet files, a CSV and a JSON-lines file; together they hold every row once, in order.

    `broken_lines` lines that are no JSON are put at the end of the last file. An absent URL or caption is null, in the CSV an
    empty field. Returns the paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    marks = [web.pairs * share // 100 for share in (0, 40, 80, 90, 100)]
    paths = [folder / name for name in ("part-0.parquet", "part-1.parquet", "part-2.csv", "part-3.jsonl")]
    for path, start, stop in zip(paths[:2], marks[:2], marks[1:3], strict=True):
        with pq.ParquetWriter(path, TABLE_SCHEMA) as writer:
            for chunk in _chunks(web, start, stop):
                columns = [[row.url for row in chunk], [row.caption for row in chunk]]
                writer.write_table(pa.table(columns, schema=TABLE_SCHEMA))
    with paths[2].open("w", encoding="utf-8", newline="") as text:
        lines = csv.writer(text)
        lines.writerow(TABLE_SCHEMA.names)
        lines.writerows((row.url, row.caption) for row in web.rows(marks[2], marks[3]))
    with paths[3].open("w", encoding="utf-8") as text:
        for row in web.rows(marks[3], marks[4]):
            text.write(json.dumps({"url": row.url, "caption": row.caption}, ensure_ascii=False) + "\n")
        text.writelines(f'{{"url": "http://127.0.0.2/{number}\n' for number in range(broken_lines))
    return paths


def _chunks(web: Web, start: int, stop: int) -> Iterator[list[Row]]:
    for first in range(start, stop, _CHUNK):
        yield list(web.rows(first, min(stop, first + _CHUNK)))


def write_queries(path: Path) -> None:
    """The query list, one a line: every class, every plural, and some that nothing on the web matches."""
    path.write_text("\n".join([*scenes.queries(), *_DECOYS]) + "\n", encoding="utf-8")


class Leak(NamedTuple):
    """A picture of the evaluation set that is also on the web: the set's row, the web's row, and what was done to it."""

    row: int
    k: int
    manner: Manner


EVALUATION_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("name", pa.string(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
    ]
)
"""`label` indexes scenes.CLASSES, `name` is that class in words."""


def write_evaluation(web: Web, path: Path, rows: int, leaks: int) -> list[Leak]:
    """Write a labelled set of `rows` pictures, `leaks` of which are also on the web, in equal thirds of each manner.

    Every scene shows a single main object, so that its class is the whole answer. Leaked rows are spread over the set, and
    are such as survive a pipeline with the web's own cap. Returns the planted answers, sorted by row.
    """
    sources = _leakable(web)
    planted: list[Leak] = []
    ids, images, labels, captions = [], [], [], []
    for number in range(rows):
        if (number + 1) * leaks // rows > number * leaks // rows:
            leak = Leak(number, next(sources), _MANNERS[len(planted) % 3])
            planted.append(leak)
            scene, data = web.scene(leak.k), _leaked(web, leak)
        else:
            label = Dice(web.seed, "evaluation-label", number).number(1, len(scenes.CLASSES) - 1)
            scene = scenes.scene(web.seed, number, "evaluation", label, single=True)
            data = scenes.picture_bytes(scene)
        ids.append(f"scene-{number:05d}")
        images.append(data)
        labels.append(scene.label)
        captions.append(scene.caption)
    names = [scenes.CLASSES[label] for label in labels]
    pq.write_table(pa.table([ids, images, labels, names, captions], schema=EVALUATION_SCHEMA), path)
    return planted


def _leaked(web: Web, leak: Leak) -> bytes:
    if leak.manner == "exact":
        return answers.picture(web, leak.k)
    scale, quality = (1.0, 65) if leak.manner == "recompressed" else (0.85, 80)
    return scenes.smaller_copy(web.scene(leak.k), scale, quality)


def _leakable(web: Web) -> Iterator[int]:
    """Plain rows with one main object, in a seeded order, each at most once."""
    start = Dice(web.seed, "leaks", 0).number(0, web.pairs - 1)
    for i in range(web.pairs):
        k = (start + i) % web.pairs
        if web.kind(k) is Kind.PLAIN and web.scene(k).count == 1:
            yield k
    raise ValueError(f"leaks: a web of {web.pairs} pairs has too few plain pictures; plant fewer or make it larger")
