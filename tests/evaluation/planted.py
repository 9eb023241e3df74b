"""A small corpus and an evaluation set with known overlap: what the join and the report must find, and must not."""

import io
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from evaluation.config import OverlapConfig
from evaluation.overlap.copies import copy_of
from pipeline.content.hashes import HASH_SHORT_SIDE, HASH_VERSION, picture_hashes, sha256
from pipeline.content.image import decode
from pipeline.contracts import manifest
from pipeline.contracts.schema import SHARD_SCHEMA, uid
from tests.web import scenes

HOSTILE = "<script>alert('x')</script> \"quoted\" & <img src=x onerror=alert(1)>"
SEED = 11
CLASSES = (
    "blank frame", "wren", "tit", "heron", "crane", "stork", "ibis", "gull", "tern", "skua", "petrel", "gannet", "cormorant",
)  # fmt: skip
NAMES_ZH = "空白|白屏\n鹪鹩\n山雀\n苍鹭\n鹤\n鹳\n朱鹭\n海鸥\n燕鸥\n贼鸥\n海燕\n鲣鸟\n鸬鹚\n"
_COLOURS = ("brown", "scarlet", "teal", "ochre", "violet", "silver", "crimson")
_THINGS = (
    "kettle",
    "ladder",
    "violin",
    "lantern",
    "barrel",
    "anchor",
    "saddle",
    "compass",
    "bellows",
    "trowel",
    "spindle",
)
_PLACES = ("harbour", "meadow", "library", "workshop", "cellar", "orchard", "chapel", "quarry", "tavern")
_CHINESE = {23: "一只棕色的狗在公园里追逐红色的球", 24: "两个孩子坐在海边的长椅上看日落"}
CHANGES = ("crop, half of the area", "crop, a quarter of the area")
"""Of `copies.TRANSFORMS`: what hashes of whole pictures lose, and even a descriptor that learned for seconds does not."""
MANNERS = ("source_exact", "stored_exact", "recompressed", "resized", "png")


@dataclass(frozen=True)
class Planted:
    """Where things are, and the planted answers.

    `answers`: evaluation id → how its picture got into the corpus; `texts`: → how its caption did; `named`: whose class stands in
    the caption beside its picture. `changed`: id → the change by which the corpus has a copy that bytes and hashes lose.
    """

    corpus: Path
    evaluation: Path
    answers: dict[str, str]
    texts: dict[str, str]
    named: set[str]
    changed: dict[str, str]


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


def sentence(k: int) -> str:
    """The caption of example k: one frame, other words."""
    if k in _CHINESE:
        return _CHINESE[k]
    colour, thing, place = (words[k % len(words)] for words in (_COLOURS, _THINGS, _PLACES))
    return f"A {colour} {thing} stands on a table in the old {place}."


def other_words(k: int) -> str:
    """What someone else would say of the same scene: a look-alike, and no leak."""
    if k in _CHINESE:
        return {23: "公园里有一只狗和一个红球", 24: "日落时海边长椅上的两个小孩"}[k]
    colour, thing, place = (words[k % len(words)] for words in (_COLOURS, _THINGS, _PLACES))
    return f"An old {place} with a {colour} {thing} left on some table"


TEXT_LEAKS = {
    20: ("contained", f"Stock photo No. 7: {sentence(20)[:-1].upper()} - buy now!"),
    21: ("near", sentence(21).replace("table", "bench")),
    22: ("exact", "\uff21 " + sentence(22)[2:-1].replace(" ", "  ") + "\u2026"),  # a full-width A
    23: ("exact", "一只棕色的狗，在公园里追逐红色的球！"),
    24: ("near", _CHINESE[24].replace("长椅", "椅子")),
}
"""Captions that leak without their picture: example → how, and what the corpus says."""


def leak(k: int, manner: str, data: bytes, smaller: bytes, label: int) -> dict[str, object]:
    """The corpus row that shows the picture `data` in the given manner, and says something of it."""
    if manner == "source_exact":
        return corpus_row(k, data, reencoded(data, "JPEG", 0.9, 85), sentence(k).upper())
    if manner == "stored_exact":
        return corpus_row(k, smaller, data, f"picture number {k}: Two {CLASSES[label].title()}, seen from afar")
    if manner == "recompressed":
        name = NAMES_ZH.splitlines()[label].split("|")[-1]
        return corpus_row(k, reencoded(data, "JPEG", 1.0, 40), caption=f"picture number {k} 湖边的{name}照片")
    if manner == "resized":
        return corpus_row(k, smaller)
    return corpus_row(k, reencoded(data, "PNG", 0.8, 0), caption=HOSTILE)


def plant(
    folder: Path, *, examples: int = 40, leaks: int = 15, others: int = 120, repeats: int = 0, changed: bool = False
) -> Planted:
    """Write the set and the corpus. Look-alikes: for every example a corpus picture of the same class, with a caption of the same scene
    in other words.

    The last `repeats` examples are smaller copies of the first ones: repeats inside the set, which leak with them. `changed`: the corpus
    has a cropped copy of each example that does not leak.
    """
    rows, answers, images, labels = [], {}, [], []
    texts: dict[str, str] = {}
    named: set[str] = set()
    for k in range(examples):
        label = 1 + k % 12
        data = picture(k, "evaluation", label)
        images.append(data)
        labels.append(label)
        rows.append(corpus_row(1000 + k, picture(5000 + k, "web", label), caption=other_words(k)))
        if k < leaks:
            manner = MANNERS[k % len(MANNERS)]
            answers[f"e{k:03d}"] = manner
            smaller = reencoded(data, "JPEG", 0.5, 70)
            rows.append(leak(k, manner, data, smaller, label))
            texts |= {f"e{k:03d}": "exact"} if manner == "source_exact" else {}
            named |= {f"e{k:03d}"} if manner in ("stored_exact", "recompressed") else set()
    leaked = {k: said for k, said in TEXT_LEAKS.items() if k < min(examples, others)}
    texts |= {f"e{k:03d}": how for k, (how, _) in leaked.items()}
    rows += [
        corpus_row(2000 + k, picture(9000 + k, "web"), caption=leaked[k][1] if k in leaked else None)
        for k in range(others)
    ]
    rows += [corpus_row(3000 + k, flat(200 + 10 * k)) for k in range(3)]
    changes = {f"e{k:03d}": CHANGES[k % len(CHANGES)] for k in range(leaks, examples)} if changed else {}
    for k, change in zip(range(leaks, examples), changes.values(), strict=False):
        rows.append(corpus_row(4000 + k, copy_of(Image.fromarray(decode(images[k]).rgb), change)))
    for k in range(repeats):
        answers[f"r{k:03d}"] = "resized"
        images.append(reencoded(images[k], "JPEG", 0.6, 80))
        labels.append(labels[k])
    # A blank frame in the set, of another grey and size than the corpus's blank frames: alike to any hash, not the same.
    ids = [f"e{k:03d}" for k in range(examples)] + [f"r{k:03d}" for k in range(repeats)] + ["blank"]
    table = pa.table(
        {
            "id": ids,
            "image": [*images, flat(128, 160)],
            "label": pa.array([*labels, 0], pa.int32()),
            "caption": [*(sentence(k) for k in range(examples)), *["A repeat"] * repeats, None],
        },
    )
    evaluation = folder / "evaluation.parquet"
    pq.write_table(table, evaluation)
    corpus = folder / "corpus"
    pieces = [pa.Table.from_pylist(rows, schema=SHARD_SCHEMA)]
    manifest.write_corpus(str(corpus), pieces, rows_per_shard=50, hashes=HASH_VERSION)
    return Planted(corpus, evaluation, answers, texts, named, changes)


def set_table(planted: Planted, **more: object) -> dict[str, object]:
    """The table of the planted set in a config; `more` adds keys or replaces them."""
    return {
        "name": "scenes",
        "path": str(planted.evaluation),
        "id": "id",
        "label": "label",
        "limit": 0.1,
        **more,
    }


def overlap_config(planted: Planted, report: Path, **more: object) -> OverlapConfig:
    """A config of one set; `more` replaces whole tables."""
    values: dict[str, object] = {
        "corpus": {"manifest": str(planted.corpus)},
        "sets": [set_table(planted)],
        "report": {"dir": str(report)},
        "engine": {"workers": 2},
        "copies": {"examples": 3},
    }
    return OverlapConfig.model_validate({**values, **more})
