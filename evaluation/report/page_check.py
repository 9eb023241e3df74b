"""Is the page the one that the figures and tables give? It is rendered a second time and compared byte for byte.

Two things on it cannot be computed again from the folder: the thumbnails, and the names of the examples' classes (the tables hold class
numbers). They are taken from the page under test, in the narrow form that a page has them in (a JPEG as a `data:` URI with two numbers,
one of our sentences, a name per class number); everything else must be equal.
"""

from __future__ import annotations

import hashlib
import html
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

import matplotlib as mpl

from evaluation.config import ReportConfig
from evaluation.overlap.measures import measures
from evaluation.report import files, page
from evaluation.report.evidence import Misses, Pair, Row, SetEvidence, Side, choose, facts, page_room, unmatched
from evaluation.report.schema import Report
from evaluation.report.text_evidence import cards as text_cards

_SLOT = re.compile(
    r'<img src="(data:image/jpeg;base64,[A-Za-z0-9+/]+=*)" alt="[^"]*" width="([0-9]+)" height="([0-9]+)">'
    r'|<p class="blank">(the corpus keeps no picture for this row|the picture cannot be opened \([a-z_]+\))</p>'
)
_EXAMPLE = re.compile(r"<dt>example</dt><dd>([^<]*)</dd>")
_FIGURE = re.compile(r"<svg\b.*?</svg>", re.DOTALL)


def check_page(
    stated: bytes,
    report: Report,
    pairs: Sequence[Row],
    closest: Sequence[Row],
    text_pairs: Sequence[Row],
    splits: Mapping[str, Sequence[Row]],
    room: ReportConfig,
) -> Iterator[str]:
    """What is wrong with the page, as the end of a sentence; `room` says how many cards a set may show."""
    text, room = stated.decode("utf-8", "replace"), page_room(room, len(report.sets))
    evidence, _, misses = text.partition("<h2>The evidence</h2>")[2].partition("<h2>Near misses</h2>")
    pieces, below = ((part.split("<h3>")[1:]) for part in (evidence, misses))
    asked = measures(report.descriptor is not None)
    if (len(pieces), len(below)) != (len(report.sets), len(report.sets) * len(asked)):
        yield (
            f"shows evidence under {len(pieces)} names and near misses under {len(below)}, report.json has {len(report.sets)} sets and "
            f"{len(asked)} measures of them"
        )
        return
    shown, missed = [], iter(below)
    for one, piece in zip(report.sets, pieces, strict=True):
        own, near = ([row for row in table if row["set"] == one.name] for table in (pairs, closest))
        split = splits[one.name]
        labels = {row["eval_row"]: row["label"] for row in split}
        cards = _cards(piece, choose(own, room.pairs_shown), labels, report.evidence)
        lost = [unmatched(split, near, measure) for measure in asked]
        under = [
            Misses(measure, len(rows), _cards(next(missed), rows[: room.misses_shown], labels, report.evidence))
            for measure, rows in zip(asked, lost, strict=True)
        ]
        shown.append(SetEvidence(one.name, len({row["eval_row"] for row in own}), cards, under))
    said = [
        text_cards(
            one.name,
            splits[one.name],
            [row for row in text_pairs if row["set"] == one.name],
            report.evidence,
            room.pairs_shown,
        )
        for one in report.sets
    ]
    expected = page.render(report, shown, said, hashlib.sha256(files.report_bytes(report)).hexdigest())
    if text == expected:
        return
    if _FIGURE.sub("", text) == _FIGURE.sub("", expected):
        yield f"a figure is not the one that this release draws from report.json with matplotlib {mpl.__version__}"
        return
    lines = itertools.zip_longest(text.splitlines(), expected.splitlines())
    number = next((number for number, (left, right) in enumerate(lines, 1) if left != right), 0)
    yield f"line {number} is not what report.json and the tables give"


def _cards(piece: str, chosen: Sequence[Row], labels: Mapping[object, object], mode: str) -> list[Pair]:
    """The cards that one set must have, with the thumbnails and class names that the page states."""
    stated = [html.unescape(found) for found in _EXAMPLE.findall(piece)]
    slots = [_side(found) for found in _SLOT.finditer(piece)]
    names: dict[object, str] = {}
    cards = []
    for number, pair in enumerate(chosen):
        example = stated[number] if number < len(stated) else ""
        label = labels.get(pair["eval_row"])
        rest = example.removeprefix(str(pair["eval_id"]))
        if label is not None and rest.startswith(" (") and rest.endswith(")"):
            names.setdefault(label, rest[2:-1])
        left, right = (slots[place] if place < len(slots) else Side("") for place in (2 * number, 2 * number + 1))
        uid = pair["uid"].hex() if isinstance(pair["uid"], bytes) else "unknown"
        cards.append(
            Pair(
                Side(str(pair["eval_id"]), left.thumbnail, left.width, left.height, left.missing),
                Side(uid, right.thumbnail, right.width, right.height, right.missing),
                facts(pair, names.get(label), mode),
            )
        )
    return cards


def _side(found: re.Match[str]) -> Side:
    thumbnail, width, height, missing = found.groups()
    return Side("", thumbnail, int(width or 0), int(height or 0), missing)
