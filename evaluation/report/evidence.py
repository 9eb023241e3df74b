"""Which pairs the page shows, and what it says of each: one pair per overlapping example, the weakest evidence first.

An auditor should start with the pairs that are easiest to doubt: if those are the same picture, the exact copies are too. Where there
are more than can be shown, half of the room goes to the weakest and the rest is spread evenly over the others. Pictures are read only
here, for the shown pairs: thumbnails of both sides, re-encoded, so that nothing of the original file (metadata, odd
structures) reaches the reader's browser.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from PIL import Image

from evaluation.overlap.tables import METHODS
from pipeline.content.image import ImageRejected, decode
from pipeline.content.labelled import LabelledSet

Pictures = Callable[[Iterable[tuple[str, int]]], Mapping[tuple[str, int], bytes | None]]
"""The corpus's stored bytes at places, each a shard's (or file's) name and a row; None where it keeps none."""

_NAMES = {
    "source_sha256": "the same file, bit for bit, as it was fetched",
    "image_sha256": "the same file, bit for bit, as it is stored",
    "pdq": "nearly the same picture, by PDQ",
    "phash": "nearly the same picture, by pHash",
}


@dataclass(frozen=True)
class Side:
    """One picture of a pair: a `data:` URI with its size in pixels, or a word on why there is none."""

    id: str
    thumbnail: str | None = None
    width: int = 0
    height: int = 0
    missing: str | None = None


@dataclass(frozen=True)
class Pair:
    """One card of the page: two pictures and the facts beneath them (plain text; the template escapes it)."""

    left: Side
    right: Side
    facts: list[tuple[str, str]]


@dataclass(frozen=True)
class SetEvidence:
    """The cards of one set; `total` is how many examples overlap."""

    name: str
    total: int
    pairs: list[Pair] = field(default_factory=list)


def choose(own: Sequence[dict[str, object]], room: int) -> list[dict[str, object]]:
    """The rows to show of one set's pairs: the strongest pair of each example, weakest first, at most `room`."""
    best: dict[object, tuple[tuple[int, int, str, int], dict[str, object]]] = {}
    for pair in own:
        key = _strength(pair)
        if pair["eval_row"] not in best or key < best[pair["eval_row"]][0]:
            best[pair["eval_row"]] = (key, pair)
    ranked = [pair for _, pair in sorted(best.values(), key=lambda entry: entry[0], reverse=True)]
    if len(ranked) <= room:
        return ranked
    weakest = room - room // 2
    spread = np.linspace(weakest, len(ranked) - 1, room // 2).round().astype(int)
    return ranked[:weakest] + [ranked[place] for place in sorted(set(spread.tolist()))]


def _strength(pair: Mapping[str, object]) -> tuple[int, int, str, int]:
    distance = pair["pdq_distance"] if isinstance(pair["pdq_distance"], int) else 256
    row = pair["row"] if isinstance(pair["row"], int) else 0
    return METHODS.index(str(pair["method"])), distance, str(pair["shard"]), row


def show(
    labelled: LabelledSet, own: pa.Table, pictures: Pictures, *, mode: str, room: int, longest: int
) -> SetEvidence:
    """The cards of one set. `mode` "hash-only" opens no picture and names no URL or caption of the corpus."""
    chosen = choose(own.to_pylist(), room)
    total = len(set(own["eval_row"].to_pylist()))
    if mode == "hash-only":
        pairs = [
            Pair(Side(str(pair["eval_id"])), Side(""), facts(pair, _class(labelled, pair), mode)) for pair in chosen
        ]
        return SetEvidence(labelled.name, total, pairs)
    rows = sorted({int(str(pair["eval_row"])) for pair in chosen})
    ours = {picture.row: picture.data for picture in labelled.pictures(rows)}
    theirs = pictures((str(pair["shard"]), int(str(pair["row"]))) for pair in chosen)
    pairs = []
    for pair in chosen:
        left = _side(str(pair["eval_id"]), ours[int(str(pair["eval_row"]))], longest)
        right = _side(_hex(pair["uid"]), theirs.get((str(pair["shard"]), int(str(pair["row"])))), longest)
        pairs.append(Pair(left, right, facts(pair, _class(labelled, pair), mode)))
    return SetEvidence(labelled.name, total, pairs)


def _class(labelled: LabelledSet, pair: Mapping[str, object]) -> str | None:
    label = int(labelled.labels[int(str(pair["eval_row"]))])
    return labelled.classes[label] if label >= 0 else None


def facts(pair: Mapping[str, object], class_name: str | None, mode: str) -> list[tuple[str, str]]:
    """What the card says, in order."""
    lines = [("match", _NAMES[str(pair["method"])])]
    if pair["pdq_distance"] is not None:
        lines.append(("distance", f"PDQ {pair['pdq_distance']} of 256 bits, pHash {pair['phash_distance']} of 64 bits"))
    lines.append(("example", f"{pair['eval_id']}" + ("" if class_name is None else f" ({class_name})")))
    key = pair.get("key")
    named = "" if key is None else f", {key}"
    lines.append(("corpus row", f"{_hex(pair['uid'])} ({pair['shard']}, row {pair['row']}{named})"))
    if mode == "hash-only":
        lines += [("example sha256", _hex(pair["eval_sha256"])), ("corpus sha256", _hex(pair["source_sha256"]))]
        return [*lines, ("corpus PDQ", _hex(pair["pdq256"]))]
    return [*lines, ("URL", str(pair["url"] or "none")), ("caption", str(pair["caption"] or "none"))]


def _hex(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else "unknown"


def _side(name: str, data: bytes | None, longest: int) -> Side:
    if data is None:
        return Side(name, missing="the corpus keeps no picture for this row")
    try:
        picture = Image.fromarray(decode(data, min_short_side=longest).rgb)
    except ImageRejected as rejected:
        return Side(name, missing=f"the picture cannot be opened ({rejected.reason})")
    scale = longest / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    sink = io.BytesIO()
    picture.resize(size, Image.Resampling.LANCZOS).save(sink, "JPEG", quality=85)
    uri = "data:image/jpeg;base64," + base64.b64encode(sink.getvalue()).decode()
    return Side(name, uri, *size)
