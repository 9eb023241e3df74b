"""Which corpus captions hold a caption of an evaluation set, and which name its classes: the words' side of the overlap, as pure functions.

Captions are compared token by token: the words of the one normal form of the house (`pipeline.content.text`), and single characters in
scripts that write no spaces, where a comma or a line's end is all that a space can mean. A text's tokens with one space between them are
its token form. A caption of a set is in a corpus caption, strongest first,

- `exact`: the token forms are equal;
- `contained`: it stands there as a whole, token by token, with something before or behind it;
- `near`: the weighted share of its runs of tokens that stand there reaches the set's threshold (`near_text`).

A caption of fewer than `least` tokens is not searched, one of fewer than `whole_below` must be there as a whole. All three are exact
searches: phrases by `pipeline.content.phrases`, which compares bytes, near captions by a filter that loses none. A class is named where one
of its names stands as a whole, by the same phrases: "dog" is in "a dog" and not in "dogma", 犬 is in 小犬.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from evaluation.config import OverlapSet, TextRule
from evaluation.overlap import near_text
from evaluation.overlap.tables import TEXT_METHODS, TEXT_PAIR_SCHEMA
from pipeline.content import phrases
from pipeline.content.forms import normal_forms
from pipeline.content.kernels import Bytes, code_point, compiled, text_buffers
from pipeline.content.labelled import LabelledSet
from pipeline.content.scripts import spaceless_points
from pipeline.content.text import normal_form, repaired
from pipeline.contracts import storage
from pipeline.contracts.errors import InputError

FORMAT_VERSION = 3  # of TEXT_PAIR_SCHEMA, TEXT_FOUND_SCHEMA and of the rules; part of every unit's digest
_EXACT, _CONTAINED, _NEAR = range(len(TEXT_METHODS))
_Ints = NDArray[np.int64]


def token_forms(captions: pa.Array) -> pa.Array:
    """Captions in token form: a string array of the same length; null stays null. `" ".join(tokens(normal_form(caption)))`."""
    forms = normal_forms(captions)
    data, starts = _spaced(*text_buffers(forms), spaceless_points())
    apart = pa.StringArray.from_buffers(len(forms), pa.py_buffer(starts.astype(np.int32)), pa.py_buffer(data))
    return pc.if_else(forms.is_valid(), apart, None) if forms.null_count else apart


@compiled
def _spaced(data: Bytes, starts: _Ints, spaceless: NDArray[np.bool_]) -> tuple[Bytes, _Ints]:
    """Normal forms with one space around every character of a script without spaces."""
    out, out_starts = np.empty(2 * (starts[-1] - starts[0]), np.uint8), np.zeros_like(starts)
    at = 0
    for row in range(len(starts) - 1):
        begin, place, apart = at, starts[row], False
        while place < starts[row + 1]:
            point, length = code_point(data, place, starts[row + 1])
            if point == 32:
                apart = True
                place += 1
                continue
            alone = spaceless[point]
            if at > begin and (apart or alone):
                out[at] = 32
                at += 1
            for _ in range(length):
                out[at] = data[place]
                at += 1
                place += 1
            apart = alone
        out_starts[row + 1] = at
    return out[:at], out_starts


class Written(NamedTuple):
    """The captions of a set, one entry an example: repaired, in token form (null: none, or no token in it), `text` and `sizes`.

    `text` is the first example with the same form, `sizes` its tokens; both int64[n], -1 where the form is null.
    """

    captions: pa.Array
    forms: pa.Array
    text: _Ints
    sizes: _Ints


def read_captions(captions: Sequence[str | None] | None, examples: int) -> Written:
    """The captions of a set as they are searched, repaired as those of a corpus are; None: it has none."""
    given = [None] * examples if captions is None else captions
    written = pa.array([None if one is None else repaired(one) for one in given], pa.string())
    forms = token_forms(written)
    forms = pc.if_else(pc.equal(forms, ""), pa.scalar(None, pa.string()), forms)
    listed = forms.to_pylist()
    first: dict[str, int] = {}
    text = [-1 if form is None else first.setdefault(form, row) for row, form in enumerate(listed)]
    sizes = [-1 if form is None else form.count(" ") + 1 for form in listed]
    return Written(written, forms, np.array(text, np.int64), np.array(sizes, np.int64))


class Found(NamedTuple):
    """Matches: row of the corpus, the caption's `text`, place in TEXT_METHODS, score; arrays of one length, by text and row."""

    rows: _Ints
    text: _Ints
    method: _Ints
    score: NDArray[np.float64]


class CaptionIndex:
    """The distinct captions of one set, ready to be found. Arrays only: it travels to Ray's workers without copies."""

    def __init__(self, written: Written, rule: TextRule) -> None:
        self.rule = rule
        distinct = np.flatnonzero(written.text == np.arange(len(written.text)))
        searched = written.sizes[distinct] >= rule.least
        forms = written.forms.take(pa.array(distinct))
        self.text: _Ints = distinct[searched]
        self._every: _Ints = distinct  # what `near` numbers
        kept = forms.filter(pa.array(searched))
        self._bytes = pc.binary_length(kept).to_numpy(zero_copy_only=False).astype(np.int64)
        self._phrases = phrases.build(kept, np.ones(len(kept), np.bool_), cut=False) if len(kept) else None
        loose = searched & (written.sizes[distinct] >= rule.whole_below)
        cut = [form.split(" ") for form in forms.to_pylist()]
        self._near = near_text.build(cut, loose.tolist(), rule.similarity, rule.run) if loose.any() else None

    def search(self, forms: pa.Array) -> Found:
        """The set's captions in `forms`, corpus captions in token form (null: none); each pair once, by its strongest method."""
        if self._phrases is None:
            none = np.empty(0, np.int64)
            return Found(none, none, none, np.empty(0))
        text = text_buffers(forms)
        listed = phrases.find(text, self._phrases, cut=False)
        rows = np.repeat(np.arange(len(listed)), np.diff(np.asarray(listed.offsets)))
        place = np.asarray(listed.values, np.int64)
        exact = np.diff(text.starts)[rows] == self._bytes[place]
        found = Found(rows, self.text[place], np.where(exact, _EXACT, _CONTAINED), np.ones(len(rows)))
        if self._near is not None:
            near_rows, number, score = near_text.search(self._near, text, self.rule.similarity, self.rule.run)
            near = Found(near_rows, self._every[number], np.full(len(number), _NEAR), score)
            width = int(self._every.max()) + 1
            new = ~np.isin(near.rows * width + near.text, found.rows * width + found.text)
            found = Found._make(np.concatenate([one, other[new]]) for one, other in zip(found, near, strict=True))
        order = np.lexsort((found.rows, found.text))
        return Found._make(column[order] for column in found)


class ClassNames:
    """The names of all classes of all sets, ready to be found. `names[s][c]` are those of class c of set s, which may be none.

    A class is told by its key, counted through all sets: `first[s] + c`; there are `size` of them.
    """

    def __init__(self, names: Sequence[Sequence[Sequence[str]]]) -> None:
        classes = [len(one) for one in names]
        self.first = [sum(classes[:number]) for number in range(len(classes))]
        self.size = sum(classes)
        flat = [(key, name) for key, given in enumerate(one for each in names for one in each) for name in given]
        self._keys = np.array([key for key, _ in flat], np.int64)
        forms = token_forms(pa.array([name for _, name in flat], pa.string()))
        usable = np.asarray(pc.not_equal(forms, ""), np.bool_)
        self._phrases = phrases.build(forms, usable, cut=False) if usable.any() else None

    def named(self, forms: pa.Array) -> tuple[_Ints, _Ints]:
        """(row, key) of every class that a corpus caption names, each once, by row and key."""
        if self._phrases is None:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        listed = phrases.find(text_buffers(forms), self._phrases, cut=False)
        rows = np.repeat(np.arange(len(listed)), np.diff(np.asarray(listed.offsets)))
        both = np.unique(rows * self.size + self._keys[np.asarray(listed.values, np.int64)])
        return both // self.size, both % self.size


def class_names(given: Sequence[str], further: Sequence[Sequence[Sequence[str]]]) -> list[list[str]]:
    """What each class of a set may be called: its name in the set, then those of each list of further names, each once.

    A name of which nothing is left in normal form is none, nor is one that is the class's own number: sets without a class list call their
    classes so, and a digit in a caption names nothing.
    """
    found = []
    for number, name in enumerate(given):
        candidates = [name, *(one for each in further for one in each[number])]
        distinct: dict[str, str] = {}
        for candidate in candidates:
            distinct.setdefault(normal_form(candidate), candidate.replace("|", " "))
        found.append([written for form, written in distinct.items() if form not in ("", str(number))])
    return found


def read_names(place: str, classes: Sequence[str], name: str) -> list[list[str]]:
    """Further names of the classes of set `name`, in the order of its classes.

    Either a TOML file with `classes = [["name", …], …]` (the form of `evaluation/prompts`), or a text with one class a line, its names
    between `|`; a line may be empty. Raises InputError for a file that has another form or another number of classes.
    """
    written = storage.read_text(place)
    found = (
        _listed_names(place, written) if place.endswith(".toml") else [line.split("|") for line in written.splitlines()]
    )
    if len(found) != len(classes):
        raise InputError(
            f"{place}: names {len(found):,} classes, set {name!r} has {len(classes):,}; give one line a class, in the set's order"
        )
    return [[one.strip() for one in given] for given in found]


def _listed_names(place: str, written: str) -> list[list[str]]:
    try:
        found = tomllib.loads(written).get("classes")
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{place}: not valid TOML: {error}; mend the line it names") from None
    except RecursionError:
        raise InputError(f"{place}: lists in lists, too deep to read; give one list a class") from None
    listed = isinstance(found, list) and all(isinstance(given, list) for given in found)
    if found is not None and listed and all(isinstance(name, str) for given in found for name in given):
        return list(found)
    raise InputError(f"{place}: has no `classes` that is a list of lists of names; give one list a class")


def pair_table(
    index: pa.Table,
    shard: str,
    start: int,
    forms: pa.Array,
    name: str,
    written: Written,
    found: Found,
    with_picture: NDArray[np.bool_],
    withhold: bool,
) -> pa.Table:
    """TEXT_PAIR_SCHEMA rows of what one set has in a shard's rows from `start` on (`index` and `forms` are of these rows).

    `with_picture` bool[matches] says which rows show an example with the caption. `withhold`: no URL and no caption.
    """
    rows = pa.array(found.rows)
    if withhold:
        url = caption = pa.nulls(len(found.rows), pa.string())
    else:
        url, caption = index["url"].take(rows), index["caption"].take(rows)
    return pa.table(
        {
            "set": pa.array([name] * len(found.rows), pa.string()),
            "text": pa.array(found.text),
            "text_sha256": digests(written.forms.take(pa.array(found.text))),
            "uid": index["uid"].take(rows),
            "shard": pa.array([shard] * len(found.rows), pa.string()),
            "row": pa.array(found.rows + start),
            "url": url,
            "caption": caption,
            "caption_sha256": digests(forms.take(rows)),
            "method": pa.array([TEXT_METHODS[number] for number in found.method], pa.string()),
            "score": pa.array(found.score),
            "with_picture": pa.array(with_picture),
        },
        schema=TEXT_PAIR_SCHEMA,
    )


def digests(forms: pa.Array) -> pa.Array:
    """sha256 of each token form; null stays null."""
    hashed = [None if form is None else hashlib.sha256(form.encode()).digest() for form in forms.to_pylist()]
    return pa.array(hashed, pa.binary(32))


def with_text(split: pa.Table, written: Written, own: pa.Table, found: pa.Table, withhold: bool) -> pa.Table:
    """A set's split with TEXT_COLUMNS behind; `own` are the set's TEXT_PAIR_SCHEMA rows that are held, `found` its TEXT_FOUND_SCHEMA rows.
    `withhold`: its captions are left out, for an exact match would say what the corpus has."""
    rank = pc.index_in(own["method"], value_set=pa.array(TEXT_METHODS)).to_pylist()
    pairs = np.zeros(len(written.text), np.int64)
    pairs[np.asarray(found["text"], np.int64)] = np.asarray(found["pairs"], np.int64)
    best: dict[int, tuple[int, float]] = {}
    for text, method, score in zip(own["text"].to_pylist(), rank, own["score"].to_pylist(), strict=True):
        best[text] = min(best.get(text, (method, -score)), (method, -score))
    absent = written.text < 0
    of_text = [best.get(text) for text in written.text.tolist()]
    columns = {
        "caption": pa.nulls(len(absent), pa.string()) if withhold else written.captions,
        "text": pa.array(written.text, mask=absent),
        "text_sha256": digests(written.forms),
        "text_tokens": pa.array(written.sizes.astype(np.int32), mask=absent),
        "text_method": pa.array([None if one is None else TEXT_METHODS[one[0]] for one in of_text], pa.string()),
        "text_score": pa.array([None if one is None else -one[1] for one in of_text], pa.float64()),
        "text_pairs": pa.array(pairs[written.text], mask=absent),
    }
    for name, column in columns.items():
        split = split.append_column(name, column)
    return split


# ---- a set, and what was found of all


@dataclass(frozen=True)
class SetText:
    """What is searched of one set: captions, and what each class may be called; `names_sha256` are those of its files of further names."""

    name: str
    rule: TextRule
    written: Written
    names: list[list[str]]
    names_sha256: list[str]


class Findings(NamedTuple):
    """What the stage found: TEXT_PAIR_SCHEMA rows (those that are held), CLASS_SCHEMA rows, `pairs` with `names_label`; TEXT_FOUND_SCHEMA
    rows, the matched corpus rows, and how many of these each set has."""

    text_pairs: pa.Table
    classes: pa.Table
    pairs: pa.Table
    found: pa.Table
    matched: pa.Table
    corpus_rows: dict[str, int]


def open_text(config: OverlapSet, rule: TextRule, labelled: LabelledSet) -> SetText:
    """A set's texts. Raises InputError for a file of further names that does not fit the classes."""
    further = [read_names(place, labelled.classes, labelled.name) for place in config.names]
    return SetText(
        labelled.name,
        rule,
        read_captions(labelled.captions, len(labelled)),
        class_names(labelled.class_texts, further),
        [storage.sha256_file(place) for place in config.names],
    )
