"""Which matched captions the page shows: one pair for each caption of a set, the weakest first, both texts side by side.

As with pictures, who doubts should begin with what is easiest to doubt: near captions of the lowest score, then those that stand inside a
longer text, then equal ones. With `hash-only` evidence there are no texts to show, only digests and places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from evaluation.config import ReportConfig
from evaluation.overlap.tables import TEXT_METHODS
from evaluation.report.evidence import weakest_and_spread

_NAMES = {
    "exact": "the same caption, in normal form",
    "contained": "the whole caption, inside a longer one",
    "near": "nearly the same caption",
}


@dataclass(frozen=True)
class TextCard:
    """One pair of captions (none where they are withheld) and the facts beneath; plain text, the template escapes it."""

    ours: str | None
    theirs: str | None
    facts: list[tuple[str, str]]


@dataclass(frozen=True)
class TextEvidence:
    """The cards of one set; `total` is how many different captions of it were found."""

    name: str
    total: int
    cards: list[TextCard]


def show(split: pa.Table, text_pairs: pa.Table, name: str, config: ReportConfig) -> TextEvidence:
    """The cards of one set, from its split and the TEXT_PAIR_SCHEMA rows of all sets."""
    own = text_pairs.filter(pc.equal(text_pairs["set"], name))
    return cards(name, split.to_pylist(), own.to_pylist(), config.evidence, config.pairs_shown)


def cards(
    name: str, split: Sequence[Mapping[str, object]], own: Sequence[Mapping[str, object]], mode: str, room: int
) -> TextEvidence:
    """The same from rows; `own` are in the order of the table, so that the first of a caption is its strongest."""
    best: dict[object, Mapping[str, object]] = {}
    for pair in own:
        best.setdefault(pair["text"], pair)
    ranked = sorted(best.values(), key=_strength)
    alike: dict[object, int] = {}
    for row in split:
        alike[row["text"]] = alike.get(row["text"], 0) + 1
    found = []
    for pair in weakest_and_spread(ranked, room):
        example = split[int(str(pair["text"]))]
        more = alike[pair["text"]] - 1
        facts = [
            ("match", f"{_NAMES[str(pair['method'])]} (score {float(str(pair['score'])):.3f})"),
            ("example", str(example["eval_id"]) + (f" and {more:,} more" if more else "")),
            ("corpus row", f"{_hex(pair['uid'])} ({pair['shard']}, row {pair['row']})"),
        ]
        if mode == "hash-only":
            facts += [("caption sha256", _hex(pair["text_sha256"])), ("corpus sha256", _hex(pair["caption_sha256"]))]
            found.append(TextCard(None, None, facts))
        else:
            facts.append(("URL", str(pair["url"] or "none")))
            found.append(TextCard(str(example["caption"]), str(pair["caption"]), facts))
    return TextEvidence(name, len(best), found)


def _strength(pair: Mapping[str, object]) -> tuple[int, float, int]:
    """Weakest first."""
    return -TEXT_METHODS.index(str(pair["method"])), float(str(pair["score"])), int(str(pair["text"]))


def _hex(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else "unknown"
