"""What the trainer's tests share: a small corpus of coloured shapes, ways to run the trainer, and one finished run."""

import hashlib
import io
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageDraw

from pipeline.contracts import manifest, schema
from tests.trainer import launching
from tests.trainer.launching import Alone, Launch

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 70, 220),
    "yellow": (230, 210, 50),
    "purple": (150, 60, 190),
    "black": (20, 20, 20),
}
SHAPES = ("circle", "square", "triangle", "bar")
GROUNDS = {"white": (250, 250, 250), "grey": (140, 140, 140), "orange": (240, 150, 60)}


def draw(colour: str, shape: str, ground: str, draws: np.random.Generator, side: int = 72) -> bytes:
    """A PNG of one shape on a plain ground, at a random place."""
    picture = Image.new("RGB", (side, side + int(draws.integers(0, 16))), GROUNDS[ground])
    pen = ImageDraw.Draw(picture)
    left, top = (int(place) for place in draws.integers(4, side // 3, 2))
    right, bottom = left + side // 2, top + side // 2
    if shape == "circle":
        pen.ellipse((left, top, right, bottom), fill=COLOURS[colour])
    elif shape == "square":
        pen.rectangle((left, top, right, bottom), fill=COLOURS[colour])
    elif shape == "triangle":
        pen.polygon([(left, bottom), (right, bottom), ((left + right) // 2, top)], fill=COLOURS[colour])
    else:
        pen.rectangle((left, top, right, top + side // 6), fill=COLOURS[colour])
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def table_of(pairs: Sequence[tuple[str | None, bytes | None]]) -> pa.Table:
    """Rows of SHARD_SCHEMA from (caption, encoded picture) pairs; what a pair does not tell is null."""
    urls = [f"https://corpus.example/{number}.png" for number in range(len(pairs))]
    known = {
        "uid": [schema.uid(url, caption or "") for url, (caption, _) in zip(urls, pairs, strict=True)],
        "url": urls,
        "caption": [caption for caption, _ in pairs],
        "caption_raw": [caption for caption, _ in pairs],
        "image": [picture for _, picture in pairs],
        "image_sha256": [None if picture is None else hashlib.sha256(picture).digest() for _, picture in pairs],
    }
    columns = [pa.array(known.get(field.name, [None] * len(pairs)), field.type) for field in schema.SHARD_SCHEMA]
    return pa.table(columns, schema=schema.SHARD_SCHEMA)


def shape_pairs(rows: int, seed: int = 0) -> list[tuple[str | None, bytes | None]]:
    draws = np.random.default_rng(seed)
    kinds = itertools.cycle(itertools.product(COLOURS, SHAPES, GROUNDS))
    return [
        (f"a {colour} {shape} on {ground} ground", draw(colour, shape, ground, draws))
        for colour, shape, ground in itertools.islice(kinds, rows)
    ]


WriteCorpus = Callable[..., manifest.Manifest]


@pytest.fixture(scope="session")
def write_corpus() -> WriteCorpus:
    """`write_corpus(folder, pairs, rows_per_shard=…)`: a corpus of (caption, encoded picture) pairs."""

    def write(
        folder: Path, pairs: Sequence[tuple[str | None, bytes | None]], rows_per_shard: int = 100
    ) -> manifest.Manifest:
        return manifest.write_corpus(str(folder), [table_of(pairs)], rows_per_shard=rows_per_shard)

    return write


@pytest.fixture(scope="session")
def shapes() -> Callable[..., list[tuple[str | None, bytes | None]]]:
    """`shapes(rows, seed)`: captioned pictures, drawn."""
    return shape_pairs


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, write_corpus: WriteCorpus) -> Path:
    """A corpus of 330 captioned shapes in four shards, one of its pictures broken."""
    folder = tmp_path_factory.mktemp("corpus")
    pairs = shape_pairs(330)
    pairs[17] = (pairs[17][0], b"\x89PNG\r\n\x1a\nnot a picture")
    write_corpus(folder, pairs)
    return folder


@pytest.fixture(scope="session")
def launch() -> Launch:
    """`deepspeed --module trainer` for real, on the CPU; see `launching.launch`."""
    return launching.launch


@pytest.fixture(scope="session")
def alone() -> Alone:
    """`python -m trainer` for real, without the launcher; see `launching.alone`."""
    return launching.alone


@pytest.fixture(scope="session")
def short_run(corpus: Path) -> dict[str, object]:
    """Overrides of a run of six steps with a checkpoint after every second; run.dir is the caller's."""
    return {
        "data.manifest": corpus,
        "model.image_size": 32,
        "model.context_length": 16,
        "tokenizer.train_size": 600,
        "batch.global_size": 8,
        "optim.steps": 6,
        "optim.warmup_steps": 2,
        "run.save_every": 2,
    }


@pytest.fixture(scope="session")
def trained(alone: Alone, short_run: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of one process; copy it before changing it."""
    folder = tmp_path_factory.mktemp("trained")
    finished = alone(short_run | {"run.dir": folder})
    assert finished.code == 0, finished.output
    return folder
