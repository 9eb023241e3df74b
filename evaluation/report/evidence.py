"""Which pairs the page shows, and what it says of each: one pair per matched picture, the weakest evidence first; then near misses.

An auditor should start with the pairs that are easiest to doubt: if those are the same picture, the exact copies are too. Where there
are more than can be shown, half of the room goes to the weakest and the rest is spread evenly over the others. Near misses are what the
search may have lost: of the sampled pictures without a match (`overlap.nearest`), those whose nearest corpus picture is nearest, by PDQ
and, where there is a descriptor, by its score. Pictures are read only here, for the shown pairs: thumbnails of both sides, re-encoded, so
that nothing of the original file (metadata, odd structures) reaches the reader's browser.
"""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
from PIL import Image

from evaluation.config import ReportConfig
from evaluation.descriptor.views import NAMES
from evaluation.overlap.measures import Measure
from evaluation.overlap.tables import METHODS
from pipeline.content.image import ImageRejected, decode
from pipeline.content.labelled import LabelledSet

Pictures = Callable[[Iterable[tuple[str, int]]], Mapping[tuple[str, int], bytes | None]]
"""The corpus's stored bytes at places, each a shard's (or file's) name and a row; None where it keeps none."""

Row = Mapping[str, object]
Ranked = TypeVar("Ranked")
_NAMES = {
    "source_sha256": "the same file, bit for bit, as it was fetched",
    "image_sha256": "the same file, bit for bit, as it is stored",
    "pdq": "nearly the same picture, by PDQ",
    "phash": "nearly the same picture, by pHash",
    "descriptor": "a changed copy, by the learned descriptor",
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
class Misses:
    """The cards of one set's near misses by a measure; `unmatched` is how many examples of the sample do not overlap."""

    measure: Measure
    unmatched: int
    cards: list[Pair]


@dataclass(frozen=True)
class SetEvidence:
    """The cards of one set; `total` is how many examples overlap. `misses`: of each measure."""

    name: str
    total: int
    pairs: list[Pair]
    misses: list[Misses]


def page_room(shown: ReportConfig, sets: int) -> ReportConfig:
    """The settings with a set's share of `page_pairs` as its room (one pair at least): a page of forty sets must open too."""
    share = max(1, shown.page_pairs // max(sets, 1))
    return shown.model_copy(update={"pairs_shown": min(shown.pairs_shown, share)})


def choose(own: Sequence[Row], room: int) -> list[Row]:
    """The rows to show of one set's pairs: the strongest pair of each example, weakest first, at most `room`."""
    best: dict[object, tuple[tuple[int, float, str, int], Row]] = {}
    for pair in own:
        key = _strength(pair)
        if pair["eval_row"] not in best or key < best[pair["eval_row"]][0]:
            best[pair["eval_row"]] = (key, pair)
    return weakest_and_spread(
        [pair for _, pair in sorted(best.values(), key=lambda entry: entry[0], reverse=True)], room
    )


def weakest_and_spread(ranked: Sequence[Ranked], room: int) -> list[Ranked]:
    """At most `room` of what is ranked weakest first: the first half of the room for the weakest, the rest spread evenly over the
    others."""
    if len(ranked) <= room:
        return list(ranked)
    weakest = room - room // 2
    spread = np.linspace(weakest, len(ranked) - 1, room // 2).round().astype(int)
    return [*ranked[:weakest], *(ranked[place] for place in sorted(set(spread.tolist())))]


def _strength(pair: Row) -> tuple[int, float, str, int]:
    """The smaller the stronger: the method, then the PDQ distance, of a descriptor's match what the score lacks."""
    distance: float = pair["pdq_distance"] if isinstance(pair["pdq_distance"], int) else 256
    if pair["method"] == "descriptor" and isinstance(pair["descriptor_score"], float):
        distance = 1 - pair["descriptor_score"]
    row = pair["row"] if isinstance(pair["row"], int) else 0
    return METHODS.index(str(pair["method"])), distance, str(pair["shard"]), row


def unmatched(split: Sequence[Row], closest: Sequence[Row], measure: Measure) -> list[Row]:
    """The sampled pictures of one set without a match, the nearest corpus picture by `measure` first; `closest` has NEAREST_SCHEMA rows of
    that set."""
    clean = {row["eval_row"] for row in split if not row["in_overlap"]}
    return sorted(
        (row for row in closest if row["eval_row"] in clean and row["measure"] == measure.name),
        key=lambda row: (measure.sign * float(str(row[measure.column])), int(str(row["eval_row"]))),
    )


def show(
    labelled: LabelledSet,
    split: pa.Table,
    own: pa.Table,
    closest: pa.Table,
    measures: Sequence[Measure],
    pictures: Pictures,
    shown: ReportConfig,
) -> SetEvidence:
    """The cards of one set, from its split, its pairs and the nearest rows of its sample by the report's measures.

    `shown.evidence` "hash-only" opens no picture and names no URL or caption of the corpus.
    """
    chosen, near = choose(own.to_pylist(), shown.pairs_shown), closest.to_pylist()
    missed = [unmatched(split.to_pylist(), near, measure) for measure in measures]
    groups = [chosen, *(rows[: shown.misses_shown] for rows in missed)]
    rows = [row for group in groups for row in group]
    sides = (
        [(Side(str(row["eval_id"])), Side(_hex(row["uid"]))) for row in rows]
        if shown.evidence == "hash-only"
        else picture_pairs(labelled, rows, pictures, shown.thumbnail)
    )
    cards = iter(
        [
            Pair(left, right, facts(row, _class(labelled, row), shown.evidence))
            for row, (left, right) in zip(rows, sides, strict=True)
        ]
    )
    pairs, *below = [list(itertools.islice(cards, len(group))) for group in groups]
    misses = [Misses(measure, len(lost), kept) for measure, lost, kept in zip(measures, missed, below, strict=True)]
    return SetEvidence(labelled.name, len(set(own["eval_row"].to_pylist())), pairs, misses)


def picture_pairs(
    labelled: LabelledSet, rows: Sequence[Row], pictures: Pictures, longest: int
) -> list[tuple[Side, Side]]:
    """Thumbnails of the evaluation and the corpus picture of each row (of pairs or nearest pictures)."""
    ours = {
        picture.row: picture.data for picture in labelled.pictures(sorted({int(str(row["eval_row"])) for row in rows}))
    }
    theirs = pictures((str(row["shard"]), int(str(row["row"]))) for row in rows)
    return [
        (
            _side(str(row["eval_id"]), ours[int(str(row["eval_row"]))], longest),
            _side(_hex(row["uid"]), theirs.get((str(row["shard"]), int(str(row["row"])))), longest),
        )
        for row in rows
    ]


def _class(labelled: LabelledSet, pair: Row) -> str | None:
    label = int(labelled.labels[int(str(pair["eval_row"]))])
    return labelled.classes[label] if label >= 0 else None


def facts(pair: Row, class_name: str | None, mode: str) -> list[tuple[str, str]]:
    """What the card says, in order; a row without a method is a near miss."""
    if "method" not in pair:
        lines = [("match", "none"), ("distance", f"PDQ {pair['pdq_distance']} of 256 bits")]
    else:
        lines = [("match", _NAMES[str(pair["method"])])]
    if pair.get("phash_distance") is not None:
        lines.append(("distance", f"PDQ {pair['pdq_distance']} of 256 bits, pHash {pair['phash_distance']} of 64 bits"))
    if isinstance(score := pair.get("descriptor_score"), float):
        part = NAMES[int(str(pair["descriptor_view"]))]
        lines.append(("descriptor", f"score {score:.3f}, cosine {pair['descriptor_cosine']:.3f}, with {part}"))
    lines.append(("example", f"{pair['eval_id']}" + ("" if class_name is None else f" ({class_name})")))
    key = pair.get("key")
    named = "" if key is None else f", {key}"
    lines.append(("corpus row", f"{_hex(pair['uid'])} ({pair['shard']}, row {pair['row']}{named})"))
    if pair.get("names_label") is not None:
        lines.append(("its caption", "names the class" if pair["names_label"] else "does not name the class"))
    if pair.get("seen") is not None:
        lines.append(("in training", _shown(pair)))
    if mode == "hash-only":
        if "method" in pair:
            lines += [("example sha256", _hex(pair["eval_sha256"])), ("corpus sha256", _hex(pair["source_sha256"]))]
        return [*lines, ("corpus PDQ", _hex(pair["pdq256"]))]
    return [*lines, ("URL", str(pair["url"] or "none")), ("caption", str(pair["caption"] or "none"))]


def _shown(pair: Row) -> str:
    """When the run of the checkpoint came to the corpus row."""
    if pair["first_sample"] is None:
        return "never shown, for it has no caption or no picture"
    sample = f"{int(str(pair['first_sample'])):,}"
    return (
        f"seen by this checkpoint, first as sample {sample}"
        if pair["seen"]
        else f"not seen yet, comes as sample {sample}"
    )


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
