"""How many of what is planted, and the files: Parquet for each set, predictions, class names, the corpus in the pipeline's own shards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from evaluation.config import OverlapSet
from pipeline.content.hashes import HASH_VERSION
from pipeline.contracts import manifest
from pipeline.contracts.schema import SHARD_SCHEMA
from tests.e2e.leaks import pictures, words
from tests.e2e.leaks.ground import EXACT, METHOD_OF, SCORED, Example, Ground, Plant
from tests.e2e.leaks.growing import Growing
from tests.e2e.leaks.words import Caption, Language
from tests.evaluation import made, planted
from tests.web import views
from tests.web.dice import Dice

if TYPE_CHECKING:
    from tests.e2e.leaks.eye import Eye

PLAIN = (*EXACT, "recompressed", "resized")
EVEN, EVEN_CLEAN, FEW, FEW_CLEAN, CLEAN, BLANK = 88, 90, 4, 20, 16, 8
SAYINGS = ("exact", "contained", "near", "look-alike", "nowhere")
"""What the corpus has of a caption of the set `words`."""


class Sizes(NamedTuple):
    """Rows of the corpus; examples of each kind of copy; captions of each saying; look-alikes."""

    rows: int
    each: int
    sayings: int
    lookalikes: int

    @classmethod
    def of(cls, rows: int) -> Sizes:
        # Of more than 50 captions half are Chinese, and so few signs no longer make that many that surely differ.
        return cls(rows, min(8, max(2, rows // 500)), 2 if rows < 1000 else 3, max(30, rows // 20))


def plant(folder: Path, seed: int, sizes: Sizes, eye: Eye | None = None) -> Ground:
    """Draw sets and corpus, write them below `folder`, and say what was planted. `eye`: also what only a descriptor finds."""
    dice = Dice(seed, "captions", 0)
    captions = _captions(dice, 2 * len(SAYINGS) * sizes.sayings + sizes.each)
    said, with_picture = captions[sizes.each :], captions[: sizes.each]
    brief = [words.short(dice, 3), *_brief(dice, 2)]
    growing = Growing(seed, {"words": [*said, *brief], "effect": with_picture}, eye)
    for kind in (kind for kind, method in METHOD_OF.items() if eye is not None or method != "descriptor"):
        for number in range(sizes.each):
            growing.copied("effect", kind, with_picture[number] if kind == "bytes as fetched" else None)
    _repeats(growing)
    for name, copies in (("even", EVEN), ("few", FEW)):
        for number in range(copies):
            growing.copied(name, PLAIN[number % len(PLAIN)])
    for name, count in (("effect", 20), ("even", EVEN_CLEAN), ("few", FEW_CLEAN), ("clean", CLEAN)):
        for _ in range(count):
            growing.example(name)
    _sayings(growing, said)
    _brief_sayings(growing, brief)
    _blank_frames(growing)
    growing.lookalikes(sizes.lookalikes)
    while len(growing.ground.rows) < sizes.rows:
        growing.stranger()
    for examples in growing.ground.sets.values():  # plants are not the first ones of a set
        order = [dice.word() for _ in examples]
        examples[:] = [one for _, one in sorted(zip(order, examples, strict=True), key=lambda pair: pair[0])]
    _write(folder, growing.ground)
    return growing.ground


def _repeats(growing: Growing) -> None:
    """Pictures that `effect` has three times: two that are in the corpus, two that are not."""
    for number in range(4):
        if number % 2:
            growing.repeated(growing.example("effect"), "effect", ())
        else:
            one, uid = growing.copied("effect", "bytes as fetched")
            growing.repeated(one, "effect", (uid,))


# ---- words


def _captions(dice: Dice, count: int) -> list[Caption]:
    """English and Chinese in turn, no two alike."""
    found: list[Caption] = []
    languages: tuple[Language, ...] = ("en", "zh")
    while len(found) < count:
        one = words.sentence(dice, languages[len(found) % 2])
        if words.differ(one, found):
            found.append(one)
    return found


def _brief(dice: Dice, count: int) -> list[Caption]:
    found: list[Caption] = []
    while len(found) < count:
        one = words.short(dice, 5)
        if words.differ(one, found):
            found.append(one)
    return found


def _sayings(growing: Growing, captions: Sequence[Caption]) -> None:
    """The examples of `words`: each caption is in the corpus as its turn says, or only as a look-alike, or not at all."""
    for number, caption in enumerate(captions):
        saying = SAYINGS[number // 2 % len(SAYINGS)]
        one = growing.example("words", caption)
        if saying == "exact":
            _said(growing, one, caption, saying, words.disguised(caption, growing.dice))
        elif saying == "contained":
            _said(growing, one, caption, saying, words.within(caption, growing.dice))
        elif saying in ("near", "look-alike"):
            near, unlike = _around(growing, caption)
            growing.stranger("caption like one of a set", unlike)
            if saying == "near":
                _said(growing, one, caption, saying, str(near))


def _said(growing: Growing, one: Example, caption: Caption, method: str, text: str) -> None:
    uid = growing.stranger("other picture", text)
    growing.ground.captions.append(Plant("words", one.id, uid, f"{method}, {caption.language}", method))


def _around(growing: Growing, caption: Caption) -> tuple[Caption, Caption]:
    """The near caption and the look-alike that say nothing of any other caption."""
    while True:
        found = growing.weights["words"].around(caption, growing.dice)
        if all(growing.says_nothing(one, but=caption) for one in found):
            return found


def _brief_sayings(growing: Growing, brief: Sequence[Caption]) -> None:
    """Three words are not searched, though they stand there. Five must be there as a whole: one caption is, of another four words are."""
    three, whole, partly = brief
    growing.example("words", three)
    growing.stranger("caption of three words", three)
    _said(growing, growing.example("words", whole), whole, "contained", words.within(whole, growing.dice))
    growing.example("words", partly)
    growing.stranger("caption like one of a set", Caption("en", (*partly.words[:-1], "umbrella")))


# ---- blank frames


def _blank_frames(growing: Growing) -> None:
    """Frames without texture: the corpus has others, in another size, and two of them bit for bit; one repeats.

    Half of them are black, as those of films are: to every hash these are one picture, and only their want of texture keeps them apart.
    """
    looks = []
    for number in range(BLANK):
        black = number >= BLANK // 2
        data = _frame(growing, 100 + number, black)
        one = growing.ask("blank", data, pictures.look(data), 0)
        other = _frame(growing, 200 + number, black)
        growing.offer("blank frame", other)
        looks.append((pictures.look(data), pictures.look(other)))
        if number < len(EXACT):
            kind, method = list(EXACT.items())[number]
            uid = growing.offer(f"blank frame, {kind}", *((data, other) if number == 0 else (other, data)))
            growing.ground.copies.append(Plant("blank", one.id, uid, f"blank frame, {kind}", method))
        if number == BLANK - 1:
            growing.ask("blank", data, pictures.look(data), 0, shows=one.shows)
    growing.ground.blank_alike = sum(pictures.hash_alike(one, other) for one, _ in looks for _, other in looks)


def _frame(growing: Growing, side: int, black: bool) -> bytes:
    """Black, or of one colour, or from one to another; `side` pixels wide."""
    colours = [tuple(growing.dice.number(0, 255) for _ in range(3)) for _ in range(growing.dice.number(1, 2))]
    strip = Image.new("RGB", (1, len(colours)))
    if not black:
        strip.putdata(colours)
    data = pictures.jpeg(strip.resize((side, side * 3 // 4), Image.Resampling.BILINEAR))
    assert pictures.is_flat(pictures.look(data))
    return data


# ---- files


def set_config(folder: Path, name: str) -> dict[str, object]:
    """The table of a set in the job's configuration."""
    found: dict[str, object] = {
        "name": name,
        "path": str(folder / f"{name}.parquet"),
        "id": "id",
        "label": "label",
        "classes": list(words.CLASSES),
        "absent_classes": True,
        "names": [str(folder / "names_zh.txt")],
        "limit": 1.0,
    }
    if name in ("words", "effect"):
        found["caption"] = "caption"
    if name in SCORED:
        found["predictions"] = str(folder / "predictions" / f"{name}.parquet")
    return found


def _write(folder: Path, ground: Ground) -> None:
    (folder / "predictions").mkdir(parents=True)
    (folder / "names_zh.txt").write_text("\n".join(words.CLASSES_ZH) + "\n", "utf-8")
    for name, examples in ground.sets.items():
        columns = {
            "id": [one.id for one in examples],
            "image": pa.array([one.data for one in examples], pa.binary()),
            "label": pa.array([one.label for one in examples], pa.int32()),
            "caption": pa.array([one.caption for one in examples], pa.string()),
        }
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
        if name in SCORED:
            config = OverlapSet.model_validate(set_config(folder, name))
            made.write_predictions(folder / "predictions" / f"{name}.parquet", config, ground.right(name))
    _write_corpus(folder / "corpus", ground.rows)


def write_views(folder: Path, seed: int, count: int) -> None:
    """A corpus of views that no ground has, for a descriptor to learn from."""
    dice = Dice(seed, "learned", 0)
    kinds = [dice.number(1, len(words.CLASSES) - 1) for _ in range(count)]
    drawn = (views.draw(views.view(seed, k, "learned", kind)) for k, kind in enumerate(kinds))
    _write_corpus(folder, [planted.corpus_row(k, pictures.jpeg(picture)) for k, picture in enumerate(drawn)])


def _write_corpus(folder: Path, rows: list[dict[str, object]]) -> None:
    table = pa.Table.from_pylist(rows, schema=SHARD_SCHEMA)
    manifest.write_corpus(str(folder), [table], rows_per_shard=1000, hashes=HASH_VERSION)
