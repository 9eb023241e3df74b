"""Pictures and captions as a corpus stores them, for the benchmark of the loader: real photographs where the real data is, else drawn ones.

Each photograph gives several cuts of different place, size and shape; each cut is shrunk to a shorter side of 256 pixels and encoded, both
by the functions that the pipeline stores pictures with.
"""

import hashlib
import io
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.content import image as images
from pipeline.contracts import manifest as manifests
from pipeline.contracts import schema
from tests.benchmarks.data.captions import REAL_DATA, captions
from trainer import tokenizer

CUTS = 13


def sources() -> list[bytes]:
    """76 photographs of COCO under free licences, or as many scenes with edges, gradients and grain."""
    table = REAL_DATA / "photos_cc.parquet"
    if table.exists():
        found: list[bytes] = pq.read_table(table, columns=["jpeg"])["jpeg"].to_pylist()
        return found
    return [draw(seed) for seed in range(76)]


def draw(seed: int) -> bytes:
    """A scene with edges, gradients and grain: about as many bytes as a photograph of that size."""
    dice = np.random.default_rng(seed)
    y, x = np.mgrid[0:768, 0:1024].astype(np.float32)
    pixels = np.stack(
        [128 + 90 * np.sin(x / dice.uniform(60, 300) + y / dice.uniform(60, 300) + c) for c in range(3)], axis=2
    )
    for _ in range(60):
        cx, cy, radius = dice.uniform(0, 1024), dice.uniform(0, 768), dice.uniform(10, 120)
        pixels[(x - cx) ** 2 + (y - cy) ** 2 < radius**2] = dice.uniform(0, 255, 3)
    grain = dice.normal(0, 5, (768, 1024, 1))
    file = io.BytesIO()
    PIL.Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue()


def pictures() -> list[bytes]:
    """JPEGs of quality 95, shorter side 256."""
    dice = np.random.default_rng(0)
    stored = []
    for source in sources():
        rgb = images.decode(source).rgb
        for cut in range(CUTS):
            scale, stretch = (dice.uniform(0.65, 1), dice.uniform(0.9, 1.1)) if cut else (1, 1)
            height = min(rgb.shape[0], int(rgb.shape[0] * scale * stretch))
            width = min(rgb.shape[1], int(rgb.shape[1] * scale / stretch))
            top, left = int(dice.integers(rgb.shape[0] - height + 1)), int(dice.integers(rgb.shape[1] - width + 1))
            part = np.ascontiguousarray(rgb[top : top + height, left : left + width])
            stored.append(images.encode(images.resize(part, size=256, mode="keep_ratio")))
    return stored


def pairs(count: int) -> list[tuple[str, bytes]]:
    """(caption, picture): captions are distinct, pictures come again and again."""
    texts, stored = captions(), pictures()
    return [(texts[number % len(texts)], stored[number % len(stored)]) for number in range(count)]


def shard_rows(found: list[tuple[str, bytes]]) -> pa.Table:
    """The pairs as rows of SHARD_SCHEMA; what a pair does not tell is null."""
    urls = [f"https://photographs.example/{number}.jpg" for number in range(len(found))]
    known = {
        "uid": [schema.uid(url, caption) for url, (caption, _) in zip(urls, found, strict=True)],
        "url": urls,
        "caption": [caption for caption, _ in found],
        "caption_raw": [caption for caption, _ in found],
        "image": [picture for _, picture in found],
        "image_sha256": [hashlib.sha256(picture).digest() for _, picture in found],
    }
    columns = [pa.array(known.get(field.name, [None] * len(found)), field.type) for field in schema.SHARD_SCHEMA]
    return pa.table(columns, schema=schema.SHARD_SCHEMA)


def write_corpus(folder: Path, name: str, count: int, words: int) -> tuple[str, str]:
    """Shards of `count` pairs in folder/name with captions of as many words, and a vocabulary trained on them: both places."""
    found = [(" ".join((caption.split() * words)[:words]), picture) for caption, picture in pairs(min(count, 4096))]
    found = [found[number % len(found)] for number in range(count)]
    manifests.write_corpus(str(folder / name), [shard_rows(found)], rows_per_shard=2048)
    vocabulary = str(folder / "vocabulary")
    tokenizer.train_vocabulary((caption for caption, _ in found[:512]), 2048, vocabulary)
    return str(folder / name), vocabulary
