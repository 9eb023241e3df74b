"""`python -m evaluation human`: pages on which people do what a zero-shot classifier does (the CLIP paper's section 4).

The paper had five people classify the 3,669 test pictures of Oxford-IIIT Pets into 37 breeds, without looking anything up: first
without an example, then with one picture of each breed beside the list, then with two (`shots`). Whoever could not tell answered "I
don't know". They reached 53.7, 75.7 and 75.7 %, where CLIP reached 93.5.

    out/participant-1.html …   one page a participant: a picture, the list of classes (with their samples), "I don't know", progress,
                               export
    out/pictures/NAME.jpg      the pictures, re-encoded, under names that say nothing of the class

The folder is copied to every participant as a whole; a page needs no network. Every participant has an order of their own, by a hash of
the seed, the participant and the picture. A page keeps its answers in the browser and exports `answers-N.jsonl`, one line a picture:
{"sheet", "participant", "picture", "answer"}, the answer being a class number or null for "I don't know". `human-scores`
(`human_scores.py`) reads these.

A picture that the set repeats is shown once; samples are never pictures of the set.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from evaluation.config import HumanConfig
from evaluation.datasets import open_set
from evaluation.datasets.catalogue import check_known
from pipeline.content.image import ImageRejected, decode, encode, resize
from pipeline.content.labelled import UNLABELLED, LabelledSet
from pipeline.contracts import storage
from pipeline.contracts.config import Json, digest_json
from pipeline.contracts.errors import InputError

PICTURES = "pictures"
_HERE = Path(__file__).parent
_VERSION = 1
_QUALITY = 90


@dataclass(frozen=True)
class Sheet:
    """What is asked: `rows` of the set, and their `names` on the page; `samples` are rows of the other set, some for each class.

    `digest` is over all that a participant sees but the pictures' size; answers carry it.
    """

    digest: str
    labelled: LabelledSet
    rows: list[int]
    names: list[str]
    sampled: LabelledSet | None
    samples: list[list[int]]

    @property
    def labels(self) -> list[int]:
        """The class of each asked picture."""
        return [int(self.labelled.labels[row]) for row in self.rows]


def sheet_of(config: HumanConfig) -> Sheet:
    """Open the sets and choose what is asked. Raises InputError: no labels, samples of other classes or too few of one."""
    labelled = open_set(config.set)
    if len(labelled.classes) < 2:
        raise InputError(
            f"set {labelled.name!r} ({labelled.path}) has no classes to choose from; name the column with `label`"
        )
    first: dict[bytes, int] = {}
    for row in np.flatnonzero(labelled.labels != UNLABELLED).tolist():
        first.setdefault(labelled.sha256[row], row)
    if not first:
        raise InputError(
            f"set {labelled.name!r} ({labelled.path}) has no picture with one label; people choose one class of each picture"
        )
    key = config.seed.to_bytes(8, "little")
    chosen = sorted(first.values(), key=lambda row: _hash(b"chosen" + key, labelled.sha256[row]))[: config.pictures]
    rows = sorted(chosen)
    names = [_hash(b"name" + key, labelled.sha256[row])[:12].hex() for row in rows]
    sampled, samples = None, []
    if config.samples is not None:
        sampled = open_set(config.samples)
        if sampled.classes != labelled.classes:
            raise InputError(
                f"samples: {sampled.path} has other classes than {labelled.path}; give both one class list"
            )
        samples = _choose_samples(sampled, set(labelled.sha256), config.shots, b"sample" + key)
    asked: dict[str, Json] = {
        "version": _VERSION,
        "set": labelled.content_hash,
        "classes": list(labelled.class_texts),
        "names": list(names),
        "samples": [[sampled.sha256[row].hex() for row in some] for some in samples] if sampled is not None else [],
    }
    return Sheet(digest_json(asked), labelled, rows, names, sampled, samples)


def _choose_samples(sampled: LabelledSet, asked: set[bytes], shots: int, key: bytes) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in sampled.classes]
    for row in sorted(range(len(sampled)), key=lambda row: _hash(key, sampled.sha256[row])):
        label = int(sampled.labels[row])
        if label != UNLABELLED and len(found[label]) < shots and sampled.sha256[row] not in asked:
            found[label].append(row)
    for name, some in zip(sampled.classes, found, strict=True):
        if len(some) < shots:
            raise InputError(
                f"samples: class {name!r} has {len(some)} pictures that are not asked about, {shots} are needed ({sampled.path}); "
                "add some, or lower shots"
            )
    return found


def order(config: HumanConfig, sheet: Sheet, participant: int) -> list[str]:
    """The names of the pictures in the order in which a participant (from 1 on) sees them."""
    key = config.seed.to_bytes(8, "little") + participant.to_bytes(4, "little")
    return sorted(sheet.names, key=lambda name: _hash(key, name.encode()))


def _hash(key: bytes, value: bytes) -> bytes:
    return hashlib.blake2b(value, key=key).digest()


# ---- the pages


def run(config: HumanConfig) -> str:
    """Write the pictures, then the pages; returns the lines for the terminal."""
    sheet = sheet_of(config)
    for name, data in _pictures(sheet.labelled, sheet.rows, sheet.names, config.longest):
        storage.write_atomic(storage.join(config.out, PICTURES, f"{name}.jpg"), data)
    shown: list[list[str]] = []
    if sheet.sampled is not None:
        shown = [
            [f"sample-{label}-{number}" for number in range(len(some))] for label, some in enumerate(sheet.samples)
        ]
        pairs = sorted(
            (row, name)
            for some, names in zip(sheet.samples, shown, strict=True)
            for row, name in zip(some, names, strict=True)
        )
        for name, data in _pictures(
            sheet.sampled, [row for row, _ in pairs], [name for _, name in pairs], config.longest
        ):
            storage.write_atomic(storage.join(config.out, PICTURES, f"{name}.jpg"), data)
    for participant in range(1, config.participants + 1):
        asked: Json = {
            "sheet": sheet.digest,
            "participant": participant,
            "order": list(order(config, sheet, participant)),
            "classes": list(sheet.labelled.class_texts),
            "samples": [list(some) for some in shown],
        }
        page = render(sheet.labelled.name, asked, len(sheet.names), config.shots)
        storage.write_atomic(storage.join(config.out, f"participant-{participant}.html"), page.encode())
    return (
        f"{config.out}: {config.participants} pages on {len(sheet.names):,} pictures of {len(sheet.labelled.classes):,} classes, "
        f"{config.shots} samples of each\nnext: copy the folder to each participant, collect the exported files, then "
        "python -m evaluation human-scores --config … answers=[…]"
    )


def plan(config: HumanConfig) -> str:
    """What a run would do, for `--check`."""
    check_known([config.set.dataset, None if config.samples is None else config.samples.dataset])
    asked = "all pictures" if config.pictures is None else f"{config.pictures:,} pictures"
    return f"{asked} of {config.set.name!r} for {config.participants} people, {config.shots} samples a class; in {config.out!r}"


def render(name: str, asked: Json, total: int, shots: int) -> str:
    """One participant's page."""
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    # "<" is written as an escape of JSON, so that no class name can end the script.
    data = json.dumps(asked, ensure_ascii=False, sort_keys=True).replace("<", "\\u003c")
    program = f"\nconst asked = {data};\n{(_HERE / 'human.js').read_text('utf-8')}"
    policy = base64.b64encode(hashlib.sha256(program.encode()).digest()).decode()
    return environment.get_template("human.html.j2").render(
        name=name, total=total, shots=shots, program=Markup(program), policy=policy
    )


def _pictures(
    labelled: LabelledSet, rows: Sequence[int], names: Sequence[str], longest: int
) -> Iterator[tuple[str, bytes]]:
    """JPEGs of at most `longest` pixels a side, for ascending rows. Raises InputError for a picture that cannot be opened."""
    for name, picture in zip(names, labelled.pictures(rows), strict=True):
        try:
            rgb = decode(picture.data, min_long_side=longest).rgb
        except ImageRejected as rejected:
            raise InputError(
                f"set {labelled.name!r} ({labelled.path}): picture {picture.id!r} cannot be opened ({rejected}); mend it or leave it out"
            ) from None
        yield name, encode(resize(rgb, size=longest, mode="keep_ratio_largest", only_if_bigger=True), quality=_QUALITY)
