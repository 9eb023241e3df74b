"""A ground as it grows: each picture and caption of one side is compared with all of the other, and drawn again where there is a doubt.

The two sides are what evaluation sets ask for (`asked`) and what the corpus offers (`offered`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image

from tests.e2e.leaks import pictures, words
from tests.e2e.leaks.ground import EXACT, METHOD_OF, Example, Ground, Plant
from tests.e2e.leaks.pictures import KINDS, Gallery, Look
from tests.e2e.leaks.words import Caption, Language, Weights
from tests.evaluation import planted
from tests.web import views
from tests.web.dice import Dice
from tests.web.views import View

if TYPE_CHECKING:  # it loads torch, which a ground without a descriptor does not need
    from tests.e2e.leaks.eye import Eye, Vectors

_TRIES = 200
_STEPS = (0.01, 0.015, 0.02, 0.03, 0.05, 0.08, 0.12, 0.25, 1.0)  # of `views.moved`: how little a look-alike may differ


class Fresh(NamedTuple):
    """A view that matches nothing so far: the picture as it is read from `data`, how that looks, and what an eye sees of it."""

    view: View
    picture: Image.Image
    data: bytes
    look: Look
    parts: Vectors | None


class Growing:
    """`captions` of each set are known from the beginning, since the weights of their words are. `eye`: of a descriptor, if one is used."""

    def __init__(self, seed: int, captions: Mapping[str, Sequence[Caption]], eye: Eye | None = None) -> None:
        self.ground = Ground()
        self.dice = Dice(seed, "leaks", 0)
        self.weights = {name: Weights(one) for name, one in captions.items()}
        self._captions = [
            (self.weights[name], one)
            for name, each in captions.items()
            for one in each
            if len(one.words) >= words.RULE.least
        ]
        self._seed = seed
        self._views = 0
        self._asked, self._offered = Gallery(), Gallery()
        self._asked_views: list[View] = []
        self._eye = eye

    # ---- what is apart

    def _apart_from_asked(self, look: Look, data: bytes, but: Collection[int] = ()) -> bool:
        """Whether a corpus picture matches no example, those with the numbers `but` left out."""
        if not self._asked.apart(look, but):
            return False
        return self._eye is None or self._eye.apart_from_asked(self._eye.whole(data), but)

    def _apart_from_offered(self, look: Look, parts: Vectors | None, but: Collection[int] = ()) -> bool:
        """Whether an example matches no corpus row, those at the places `but` left out."""
        if not self._offered.apart(look, but):
            return False
        return self._eye is None or parts is None or self._eye.apart_from_offered(parts, but)

    def _parts(self, data: bytes) -> Vectors | None:
        return None if self._eye is None else self._eye.parts(data)

    # ---- what sets ask for

    def fresh(self, space: str, label: int | None = None) -> Fresh:
        """A view of a class (none: any) with texture, that matches nothing on either side."""
        for _ in range(_TRIES):
            self._views += 1
            drawn = self.dice.number(1, len(words.CLASSES) - 1)
            view = views.view(self._seed, self._views, space, drawn if label is None else label)
            data = pictures.jpeg(views.draw(view), self.dice.number(80, 95))
            look = pictures.look(data)
            if pictures.relation(look, look) == "pdq" and self._apart_from_asked(look, data):
                parts = self._parts(data) if space == "asked" else None
                if self._apart_from_offered(look, parts):
                    return Fresh(view, pictures.opened(data), data, look, parts)
        raise RuntimeError(f"seed {self._seed}: {_TRIES} views in a row look like others; `views` draws too few kinds")

    def example(self, name: str, caption: Caption | None = None) -> Example:
        """An example whose picture is not in the corpus."""
        found = self.fresh("asked")
        self._asked_views.append(found.view)
        return self.ask(name, found.data, found.look, found.view.label, caption)

    def ask(
        self, name: str, data: bytes, look: Look, label: int, caption: Caption | None = None, shows: int | None = None
    ) -> Example:
        """One more example of a set. `shows`: it shows the picture of that example again."""
        number = self._asked.add(look)
        if self._eye is not None and not pictures.is_flat(look):
            self._eye.ask(number, self._eye.parts(data))
        said = None if caption is None else str(caption)
        one = Example(f"{name}-{number:05d}", data, label, said, number, number if shows is None else shows)
        self.ground.sets[name].append(one)
        return one

    def repeated(self, one: Example, name: str, uids: Collection[bytes]) -> None:
        """Two more examples with the picture of `one`: the same bytes, and saved again. The corpus rows `uids` have it bit for bit."""
        rows = [place for place, row in enumerate(self.ground.rows) if row["uid"] in uids]
        twins = [("same bytes", one.data, "source_sha256")]
        saved = self._copy("recompressed", pictures.opened(one.data), pictures.look(one.data), None, (one.number,))
        if saved is not None and self._apart_from_offered(pictures.look(saved), self._parts(saved), rows):
            twins.append(("saved again", saved, "pdq"))
        for how, data, method in twins:
            again = self.ask(name, data, pictures.look(data), one.label, shows=one.shows)
            self.ground.copies += [Plant(name, again.id, uid, f"repeat of a leaked one, {how}", method) for uid in uids]

    # ---- what the corpus offers

    def offer(
        self, what: str, data: bytes, stored: bytes | None = None, text: str | None = None, label: int | None = None
    ) -> bytes:
        """A corpus row fetched as `data` and stored as that or as `stored`; returns its uid.

        It says `text` (none: a sentence that is near none of the sets' captions). `label`: and it names this class.
        """
        look = pictures.look(data)
        number = self._offered.add(look)
        if self._eye is not None and not pictures.is_flat(look):
            self._eye.offer(number, self._eye.whole(data if stored is None else stored))
        said = str(self.sentence()) if text is None else text
        if label is not None:
            said += (
                f" {words.CLASSES[label].title()}, {number}" if self.dice.chance(0.5) else f" {words.CLASSES_ZH[label]}"
            )
        row = planted.corpus_row(number, data, stored, said)
        uid = row["uid"]
        assert isinstance(uid, bytes)
        self.ground.rows.append(row)
        self.ground.others[uid] = what
        if label is not None:
            self.ground.names[uid] = label
        return uid

    def sentence(self) -> Caption:
        """A sentence that is near none of the sets' captions."""
        while True:
            said = words.sentence(self.dice, self.language())
            if self.says_nothing(said):
                return said

    def says_nothing(self, said: Caption, but: Caption | None = None) -> bool:
        """Whether it surely is near no caption of the sets, `but` left out."""
        there = words.runs(said.words)
        return all(weights.surely_apart(one, there) for weights, one in self._captions if one != but)

    def language(self) -> Language:
        return "zh" if self.dice.chance(0.3) else "en"

    def named(self, label: int) -> int | None:
        """Which class a caption names, if any: at times that of the picture, at times another."""
        return self.dice.pick((None, None, label, 1 + label % (len(words.CLASSES) - 1)))

    def copied(self, name: str, kind: str, caption: Caption | None = None) -> tuple[Example, bytes]:
        """An example of `name` and the uid of the corpus row that has its picture as `kind` says, and its caption where there is one."""
        for _ in range(_TRIES):
            found = self.fresh("asked")
            source: bytes | None
            if kind in EXACT:
                smaller = self._copy("resized", found.picture, found.look, None)
                source, stored = (found.data, smaller) if kind == "bytes as fetched" else (smaller, found.data)
            else:
                source = stored = self._copy(kind, found.picture, found.look, found.parts)
            if source is None or stored is None:
                self.ground.passed_over[kind] += 1
                continue
            label = found.view.label
            one = self.ask(name, found.data, found.look, label, caption)
            self._asked_views.append(found.view)
            text = None if caption is None else words.disguised(caption, self.dice)
            uid = self.offer(kind, source, stored, text, None if caption is not None else self.named(label))
            self.ground.copies.append(Plant(name, one.id, uid, kind, METHOD_OF[kind]))
            if caption is not None:
                self.ground.captions.append(Plant(name, one.id, uid, "exact, with its picture", "exact"))
            return one, uid
        raise RuntimeError(
            f"seed {self._seed}: of {_TRIES} pictures none is surely found {kind}; give that kind a lesser strength"
        )

    def _copy(
        self, kind: str, picture: Image.Image, own: Look, parts: Vectors | None, asked: Collection[int] = ()
    ) -> bytes | None:
        """The copy of the greatest strength that surely is found by the kind's method as this picture, and as no other example.

        `asked`: the examples that show this picture already.
        """
        method = KINDS[kind].method
        for strength in KINDS[kind].strengths:
            data = KINDS[kind].copy(picture, strength, self.dice)
            look = pictures.look(data)
            relation = pictures.relation(own, look)
            if method == "descriptor" and relation == "apart" and self._eye is not None and parts is not None:
                seen = self._eye.found(parts, self._eye.whole(data))
            else:
                seen = relation == method
            if seen and self._apart_from_asked(look, data, asked):
                return data
        return None

    def lookalikes(self, count: int) -> None:
        """Corpus rows with the scene of an example a moment later, moved by the least of a few steps that surely is no match.

        Where none is (a descriptor may take two views of a class for the same) there is no look-alike of that example.
        """
        for number in range(count):
            view = self._asked_views[number * 7 % len(self._asked_views)]
            for step in _STEPS:
                data = pictures.jpeg(views.draw(views.moved(view, step, number)), self.dice.number(75, 95))
                if self._apart_from_asked(pictures.look(data), data):
                    self.offer("look-alike", data, label=self.named(view.label))
                    break

    def stranger(self, what: str = "other picture", text: Caption | str | None = None) -> bytes:
        """A corpus row of the sets' classes that has nothing to do with any example, whatever its caption says."""
        found = self.fresh("offered")
        label = self.named(found.view.label) if text is None and self.dice.chance(0.2) else None
        return self.offer(what, found.data, text=None if text is None else str(text), label=label)
