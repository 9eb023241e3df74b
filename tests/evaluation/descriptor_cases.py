"""Small pictures that differ, and a tiny descriptor, for the tests of the descriptor."""

import hashlib
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from evaluation.descriptor.config import TrainDescriptorConfig
from pipeline.contracts import manifest
from pipeline.contracts.schema import SHARD_SCHEMA, uid


def scene(seed: int, width: int = 72, height: int = 64) -> NDArray[np.uint8]:
    """uint8[height, width, 3]: a few soft patches of colour and hard rectangles; another seed, another picture."""
    draws = np.random.default_rng(seed)
    coarse = draws.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).copy()
    for _ in range(4):
        top, left = int(draws.integers(height - 8)), int(draws.integers(width - 8))
        tall, wide = int(draws.integers(4, height // 2)), int(draws.integers(4, width // 2))
        pixels[top : top + tall, left : left + wide] = draws.integers(0, 256, 3)
    return pixels


def png(pixels: NDArray[np.uint8]) -> bytes:
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()


def write_set(path: Path, pictures: Iterable[bytes]) -> None:
    pq.write_table(pa.table({"image": pa.array(list(pictures), pa.binary())}), path)


def tiny(pictures: Path, out: Path, **optimiser: object) -> TrainDescriptorConfig:
    """A training of seconds: 48 pixels, 8 channels, 16 dimensions."""
    return TrainDescriptorConfig.model_validate(
        {
            "data": {"set": {"name": "scenes", "path": str(pictures)}, "short_side": 48, "least_short_side": 16},
            "architecture": {"size": 48, "width": 8, "blocks": [1, 1], "dimension": 16},
            "optimiser": {"batch": 16, "steps": 30, "warmup": 5, **optimiser},
            "run": {"out": str(out), "threads": 1, "checkpoint_every": 10},
        }
    )


def corpus_of(folder: Path, stored: Sequence[bytes | None], rows_per_shard: int) -> manifest.Manifest:
    """A corpus of these pictures."""
    rows = [
        {
            "uid": uid(f"https://example.org/{number}", "a scene"),
            "url": f"https://example.org/{number}",
            "caption": "a scene",
            "image": data,
            "image_sha256": None if data is None else hashlib.sha256(data).digest(),
        }
        for number, data in enumerate(stored)
    ]
    columns = [pa.array([row.get(field.name) for row in rows], field.type) for field in SHARD_SCHEMA]
    return manifest.write_corpus(str(folder), [pa.table(columns, SHARD_SCHEMA)], rows_per_shard=rows_per_shard)
