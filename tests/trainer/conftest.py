"""What the trainer's tests share: a small corpus of coloured shapes, and runs of the real launcher in a process group of their own."""

import hashlib
import io
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageDraw

from pipeline.contracts import manifest, schema

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


@dataclass(frozen=True)
class Finished:
    """How a launched run ended."""

    code: int
    output: str
    seconds: float


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch_environment() -> dict[str, str]:
    binaries = Path(sys.executable).parent  # ninja is there, whether or not the environment is activated
    return {
        **os.environ,
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
    }


Launch = Callable[..., Finished]


@pytest.fixture(scope="session")
def launch() -> Iterator[Launch]:
    """`launch(processes, overrides, config=…, kill_when=…)`: `deepspeed --module trainer` for real, on the CPU.

    With `kill_when` the whole process group is killed (SIGKILL) as soon as it says so.
    """
    started: list[subprocess.Popen[str]] = []

    def run(
        processes: int,
        overrides: Mapping[str, object],
        *,
        config: str = "trainer/configs/smoke.toml",
        kill_when: Callable[[], bool] | None = None,
        timeout: float = 240.0,
    ) -> Finished:
        begun = time.monotonic()
        command = [
            str(Path(sys.executable).parent / "deepspeed"),
            *("--num_gpus", str(processes), "--master_port", str(_free_port())),
            *("--module", "trainer", "--config", config),
            *(f"{key}={json.dumps(value) if isinstance(value, bool) else value}" for key, value in overrides.items()),
        ]
        with subprocess.Popen(
            command,
            env=launch_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            started.append(process)
            try:
                while kill_when is not None and process.poll() is None and time.monotonic() - begun < timeout:
                    if kill_when():
                        os.killpg(process.pid, signal.SIGKILL)
                        break
                    time.sleep(0.02)
                output, _ = process.communicate(timeout=timeout)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        return Finished(process.returncode, output, time.monotonic() - begun)

    yield run
    assert all(process.poll() is not None for process in started)
