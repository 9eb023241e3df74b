"""What is planted: evaluation sets, a corpus that has some of their pictures and words, and where.

    set      pictures                                           a model that is                   what must be said of it
    effect   every kind of copy; repeats, in and out of corpus  right on copies, half right else  overlap, effect
    even     copies of the plain kinds                          right on nine of ten everywhere   overlap, no effect seen
    few      four copies                                        right on copies, half right else  not testable
    clean    none, but look-alikes                              half right                        clean
    blank    blank frames, two of them there bit for bit        -                                 overlap, not scored
    words    none; captions                                     -                                 clean

The verdicts hang on counts alone, so no seed changes them (three sets are tested, so alpha is 0.05/3). `effect`: 20 or more, all right,
where half of Clean is, p <= 0.5^20. `even`: 80 of 88 right where 81 of 90 are, p = 0.5; a gain of 0.097 would have been found by
both tests with 80 % power, and Clean has as many units. `few`: four of four are p = 0.06, whatever the model has seen.

Everything is a pure function of seed and sizes.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.e2e.leaks.pictures import KINDS

EXACT = {"bytes as fetched": "source_sha256", "bytes as stored": "image_sha256"}
METHOD_OF = {**EXACT, **{name: kind.method for name, kind in KINDS.items()}}
"""By which method each kind of copy must be found."""
VERDICTS = {
    "effect": "overlap, effect",
    "even": "overlap, no effect seen",
    "few": "not testable",
    "clean": "clean",
    "blank": "overlap, not scored",
    "words": "clean",
}
SCORED = ("effect", "even", "few", "clean")


class Plant(NamedTuple):
    """An example of a set that is in the corpus: in which row, as what kind of leak, and the method that must find it."""

    set: str
    example: str
    uid: bytes
    kind: str
    method: str


@dataclass(frozen=True)
class Example:
    """One row of a set; `number` counts those of all sets. Examples with the same `shows` show the picture of that example."""

    id: str
    data: bytes
    label: int
    caption: str | None
    number: int
    shows: int


@dataclass
class Ground:
    """What was planted. `rows` are the corpus's, `others` says of each what it is, `names` which class its caption names, if any."""

    sets: dict[str, list[Example]] = field(default_factory=lambda: {name: [] for name in VERDICTS})
    rows: list[dict[str, object]] = field(default_factory=list)
    copies: list[Plant] = field(default_factory=list)
    captions: list[Plant] = field(default_factory=list)
    others: dict[bytes, str] = field(default_factory=dict)
    names: dict[bytes, int] = field(default_factory=dict)
    blank_alike: int = 0
    """Pairs of a blank frame of the set and one of the corpus that the hashes alone would take for one picture."""
    passed_over: Counter[str] = field(default_factory=Counter)
    """Pictures that were drawn again, since no strength of a kind was surely found."""

    def clusters(self, name: str) -> list[int]:
        """For each example of a set the first that shows its picture."""
        first: dict[int, int] = {}
        return [first.setdefault(one.shows, row) for row, one in enumerate(self.sets[name])]

    def leaked(self, name: str) -> set[str]:
        """The examples of a set that are in the corpus."""
        return {plant.example for plant in self.copies if plant.set == name}

    def right(self, name: str) -> dict[str, bool]:
        """Whether the model is right on each example of a set, by the table above."""
        leaked, seen = self.leaked(name), Counter[bool]()
        answers = {}
        for one in self.sets[name]:
            inside = one.id in leaked
            seen[inside] += 1
            if name == "even":
                answers[one.id] = seen[inside] % (11 if inside else 10) != 0
            else:
                answers[one.id] = inside or seen[inside] % 2 == 0
        return answers
