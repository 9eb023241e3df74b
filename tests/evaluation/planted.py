"""A small corpus and an evaluation set with known overlap: what the join and the report must find, and must not."""

import io
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from evaluation.config import OverlapConfig
from pipeline.content.hashes import HASH_SHORT_SIDE, HASH_VERSION, picture_hashes, sha256
from pipeline.content.image import decode
from pipeline.contracts import manifest
from pipeline.contracts.schema import SHARD_SCHEMA, uid
from tests.web import scenes

HOSTILE = "<script>alert('x')</script> \"quoted\" & <img src=x onerror=alert(1)>"
SEED = 11
MANNERS = ("source_exact", "stored_exact", "recompressed", "resized", "png")


@dataclass(frozen=True)
class Planted:
    """Where things are, and the planted answers: evaluation id → how its picture got into the corpus."""

    corpus: Path
    evaluation: Path
    answers: dict[str, str]


def flat(level: int, size: int = 200) -> bytes:
    """A blank frame."""
    return scenes.encode(Image.new("RGB", (size, size), (level, level, level)), "jpeg", 90)


def picture(k: int, space: str, label: int | None = None) -> bytes:
    return scenes.picture_bytes(scenes.scene(SEED, k, space, label, single=True))


def corpus_row(
    number: int, source: bytes, stored: bytes | None = None, caption: str | None = None
) -> dict[str, object]:
    """One shard row as the pipeline writes it: hashes of the source's pixels, sha256 of both byte strings."""
    stored = source if stored is None else stored
    opened = decode(source, min_short_side=HASH_SHORT_SIDE)
    hashes = picture_hashes(opened)
    url = f"https://example.org/{number}.jpg"
    text = caption or f"picture number {number}"
    return {
        "uid": uid(url, text),
        "url": url,
        "caption": text,
        "caption_raw": text,
        "image": stored,
        "format": "jpeg",
        "width": opened.original_width,
        "height": opened.original_height,
        "source_sha256": sha256(source),
        "image_sha256": sha256(stored),
        "phash64": hashes.phash64,
        "pdq256": hashes.pdq256,
        "pdq_quality": hashes.pdq_quality,
        "source": f"planted#{number}",
    }


def reencoded(data: bytes, kind: str, scale: float, quality: int) -> bytes:
    opened = Image.fromarray(decode(data).rgb)
    size = (round(opened.width * scale), round(opened.height * scale))
    buffer = io.BytesIO()
    opened.resize(size, Image.Resampling.LANCZOS).save(buffer, kind, quality=quality)
    return buffer.getvalue()


def leak(k: int, manner: str, data: bytes, smaller: bytes) -> dict[str, object]:
    """The corpus row that shows the picture `data` in the given manner."""
    if manner == "source_exact":
        return corpus_row(k, data, reencoded(data, "JPEG", 0.9, 85))
    if manner == "stored_exact":
        return corpus_row(k, smaller, data)
    if manner == "recompressed":
        return corpus_row(k, reencoded(data, "JPEG", 1.0, 40))
    if manner == "resized":
        return corpus_row(k, smaller)
    return corpus_row(k, reencoded(data, "PNG", 0.8, 0), caption=HOSTILE)


def plant(folder: Path, *, examples: int = 40, leaks: int = 15, others: int = 120, repeats: int = 0) -> Planted:
    """Write the set and the corpus. Look-alikes: for every example a corpus picture of the same class.

    The last `repeats` examples are smaller copies of the first ones: repeats inside the set, which leak with them.
    """
    rows, answers, images, labels = [], {}, [], []
    for k in range(examples):
        label = 1 + k % 12
        data = picture(k, "evaluation", label)
        images.append(data)
        labels.append(label)
        rows.append(corpus_row(1000 + k, picture(5000 + k, "web", label)))
        if k < leaks:
            manner = MANNERS[k % len(MANNERS)]
            answers[f"e{k:03d}"] = manner
            smaller = reencoded(data, "JPEG", 0.5, 70)
            rows.append(leak(k, manner, data, smaller))
    rows += [corpus_row(2000 + k, picture(9000 + k, "web")) for k in range(others)]
    rows += [corpus_row(3000 + k, flat(200 + 10 * k)) for k in range(3)]
    for k in range(repeats):
        answers[f"r{k:03d}"] = "resized"
        images.append(reencoded(images[k], "JPEG", 0.6, 80))
        labels.append(labels[k])
    # A blank frame in the set, of another grey and size than the corpus's blank frames: alike to any hash, not the same.
    ids = [f"e{k:03d}" for k in range(examples)] + [f"r{k:03d}" for k in range(repeats)] + ["blank"]
    table = pa.table(
        {"id": ids, "image": [*images, flat(128, 160)], "label": pa.array([*labels, 0], pa.int32())},
    )
    evaluation = folder / "evaluation.parquet"
    pq.write_table(table, evaluation)
    corpus = folder / "corpus"
    pieces = [pa.Table.from_pylist(rows, schema=SHARD_SCHEMA)]
    manifest.write_corpus(str(corpus), pieces, rows_per_shard=50, hashes=HASH_VERSION)
    return Planted(corpus, evaluation, answers)


def overlap_config(planted: Planted, report: Path, **more: object) -> OverlapConfig:
    """A config of one set; `more` replaces whole tables."""
    values: dict[str, object] = {
        "corpus": {"manifest": str(planted.corpus)},
        "sets": [{"name": "scenes", "path": str(planted.evaluation), "id": "id", "label": "label", "limit": 0.1}],
        "report": {"dir": str(report)},
        "engine": {"workers": 2},
        "copies": {"examples": 3},
    }
    return OverlapConfig.model_validate({**values, **more})
