"""Stage `text` of the overlap job: one unit per shard, its captions against the captions and class names of all sets.

Of a shard's index it reads uids, URLs and captions, so it costs what those columns weigh, and changing a rule for texts computes no picture
search again. It comes after the picture search, because it also answers whether the captions of the matched rows name a class, and which
captions stand with their picture: the matched rows of a shard are among the inputs of its unit, and in its name. With `hash-only` evidence
captions are read (there is nothing else to compare) and none of them is written, here or later: digests, distances and answers are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from evaluation.config import ReportConfig
from evaluation.overlap import kept, text
from evaluation.overlap.corpus import Corpus, Texts, keyed, short
from evaluation.overlap.join import matched_table
from evaluation.overlap.kept import first_of_each
from evaluation.overlap.tables import (
    CLASS_SCHEMA,
    KEY,
    PUBLISHED_TEXT_PAIR_SCHEMA,
    TEXT_FOUND_SCHEMA,
    TEXT_METHODS,
    TEXT_PAIR_SCHEMA,
)
from evaluation.overlap.text import CaptionIndex, ClassNames, Findings, Found, SetText, Written
from evaluation.report.files import matched_rows
from pipeline.commit import Result, Stage, Unit, stage_digest, stage_folder
from pipeline.content.labelled import UNLABELLED, LabelledSet
from pipeline.contracts import parquet, storage
from pipeline.contracts.config import Json, digest_json
from pipeline.engine import Run
from pipeline.records import Record

_ROWS, _BYTES = 1 << 16, 1 << 24  # captions whose token forms are held at once; one byte may become twenty and more
_CLASSES, _NAMED, _FOUND, _MATCHED = ".classes.parquet", ".named.parquet", ".found.parquet", ".matched.parquet"
_CLASS_ROWS = pa.schema([pa.field("class", pa.int64(), nullable=False), pa.field("rows", pa.int64(), nullable=False)])
_NAMED_ROWS = pa.schema(
    [pa.field("row", pa.int64(), nullable=False), pa.field("named", pa.list_(pa.int64()))]
)  # `named`: keys of classes; null: the row has no caption


def search(
    driver: Run,
    corpus: Corpus,
    sets: Sequence[SetText],
    labelled: Sequence[LabelledSet],
    pairs: pa.Table,
    shown: ReportConfig,
) -> Findings:
    """Run the stage, unless no set has a caption or a name, and put its tables together; `pairs` are those held of the picture search."""
    names, of_sets = ClassNames([one.names for one in sets]), [one.name for one in sets]
    units: list[Unit] = []
    records: list[Record] = []
    folder = ""
    if any(len(one.written.text) and one.written.text.max() >= 0 for one in sets) or any(
        given for one in sets for given in one.names
    ):
        stage, units = _stage(corpus, sets, labelled, names, _matched_rows(pairs, sets), shown)
        folder, records = stage_folder(driver.out, stage), driver.stage(stage, units)

    def beside(suffix: str) -> Iterator[pa.Table]:
        return (parquet.read(storage.join(folder, record.beside[suffix].name)) for record in records)

    counts = np.zeros(names.size, np.int64)
    for classes in beside(_CLASSES):
        counts[np.asarray(classes["class"], np.int64)] += np.asarray(classes["rows"], np.int64)
    answers: dict[tuple[str, int], list[int] | None] = {}
    for unit, rows in zip(units, beside(_NAMED), strict=True):
        shard = str(unit.params["shard"])
        named = zip(rows["row"].to_pylist(), rows["named"].to_pylist(), strict=True)
        answers |= {(shard, row): keys for row, keys in named}
    held = kept.folded(
        (parquet.read(storage.join(folder, record.output.name)) for record in records if record.rows_out),
        PUBLISHED_TEXT_PAIR_SCHEMA.empty_table(),
        lambda rows: kept.best_text_pairs(rows, shown.pairs_kept),
    )
    return Findings(
        _in_order(held, of_sets),
        _class_table(sets, names, counts),
        _with_labels(pairs, sets, labelled, names.first, answers),
        kept.folded(
            beside(_FOUND),
            TEXT_FOUND_SCHEMA.empty_table(),
            lambda rows: kept.summed(rows, ("set", "text")).cast(TEXT_FOUND_SCHEMA),
        ),
        matched_rows(beside(_MATCHED), corpus.about.kind),
        kept.added((record.notes["corpus_rows"] for record in records), of_sets),
    )


@dataclass(frozen=True)
class _TextWork:
    """An index's captions → what is in them. `texts` reads them (`Corpus.texts`); places stay out of every digest."""

    texts: Texts
    sets: list[tuple[str, Written, CaptionIndex]]
    names: ClassNames
    matched: dict[str, list[tuple[int, int, int]]]
    keep: int
    withhold: bool

    def read(self, unit: Unit) -> pa.Table:
        return self.texts(str(unit.params["shard"]), str(unit.params["index"]))

    def work(self, index: pa.Table, unit: Unit) -> Result:
        shard = str(unit.params["shard"])
        places = np.asarray(index["row"]) if "row" in index.column_names else np.arange(index.num_rows)
        matched = np.array(self.matched.get(shard, []), np.int64).reshape(-1, 3)
        wanted = np.flatnonzero(np.isin(places, matched[:, 0]))
        tables, counts = [TEXT_PAIR_SCHEMA.empty_table()], np.zeros(self.names.size, np.int64)
        pairs = [np.zeros(len(written.text), np.int64) for _, written, _ in self.sets]
        hit = np.zeros((len(self.sets), index.num_rows), np.bool_)
        answers: dict[int, list[int] | None] = {}
        for start, rows_together in _blocks(index["caption"]):
            part = index.slice(start, rows_together)
            forms = text.token_forms(part["caption"].combine_chunks())
            for number, (name, written, captions) in enumerate(self.sets):
                found = captions.search(forms)
                pairs[number] += np.bincount(found.text, minlength=len(written.text))
                hit[number, start + found.rows] = True
                row = places[start + found.rows]
                beside = _among(row, found.text, matched[(matched[:, 1] == number) & (matched[:, 2] >= 0)])
                best = first_of_each([found.text, found.method], [-found.score, row], self.keep)
                held = np.flatnonzero(best | beside)
                some = Found._make(column[held] for column in found)
                tables.append(
                    text.pair_table(part, shard, start, forms, name, written, some, beside[held], self.withhold)
                )
            rows, keys = self.names.named(forms)
            counts += np.bincount(keys, minlength=self.names.size)
            for row in wanted[(wanted >= start) & (wanted < start + part.num_rows)].tolist():
                here = slice(*np.searchsorted(rows, [row - start, row - start + 1]))
                answers[int(places[row])] = keys[here].tolist() if forms[row - start].is_valid else None
        named = np.flatnonzero(counts)
        classes = pa.table({"class": named, "rows": counts[named]}, schema=_CLASS_ROWS)
        asked = pa.table({"row": list(answers), "named": list(answers.values())}, schema=_NAMED_ROWS)
        rows = np.flatnonzero(hit.any(axis=0))
        tables_beside = {
            _CLASSES: classes,
            _NAMED: asked,
            _FOUND: _found_table([name for name, _, _ in self.sets], pairs),
            _MATCHED: keyed(matched_table(index, shard, rows), index),
        }
        of_sets = {name: int(one.sum()) for (name, _, _), one in zip(self.sets, hit, strict=True)}
        held = kept.best_text_pairs(keyed(pa.concat_tables(tables), index), self.keep)
        return Result(held, beside=tables_beside, notes={"corpus_rows": dict[str, Json](of_sets)})


def _blocks(captions: pa.ChunkedArray) -> Iterator[tuple[int, int]]:
    """The captions in blocks, as (first, how many): of at most _ROWS of them and, but for a single one, _BYTES."""
    ends = np.cumsum(np.asarray(pc.fill_null(pc.binary_length(captions), 0), np.int64))
    start = 0
    while start < len(ends):
        before = ends[start - 1] if start else 0
        stop = min(start + _ROWS, int(np.searchsorted(ends, before + _BYTES, "right")))
        stop = max(stop, start + 1)
        yield start, stop - start
        start = stop


def _among(rows: NDArray[np.int64], texts: NDArray[np.int64], pairs: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the corpus row of each match shows an example with its caption; `pairs` int64[m, 3] are (row, set, text) of the pictures."""
    width = int(max(texts.max(initial=0), pairs[:, 2].max(initial=0))) + 1
    return np.isin(rows * width + texts, pairs[:, 0] * width + pairs[:, 2])


def _found_table(names: Sequence[str], pairs: Sequence[NDArray[np.int64]]) -> pa.Table:
    tables = [TEXT_FOUND_SCHEMA.empty_table()]
    for name, counts in zip(names, pairs, strict=True):
        texts = np.flatnonzero(counts)
        columns = [pa.array([name] * len(texts), pa.string()), pa.array(texts), pa.array(counts[texts])]
        tables.append(pa.table(columns, schema=TEXT_FOUND_SCHEMA))
    return pa.concat_tables(tables)


def _stage(
    corpus: Corpus,
    sets: Sequence[SetText],
    labelled: Sequence[LabelledSet],
    names: ClassNames,
    matched: dict[str, list[tuple[int, int, int]]],
    shown: ReportConfig,
) -> tuple[Stage, list[Unit]]:
    indexes = [(one.name, one.written, CaptionIndex(one.written, one.rule)) for one in sets]
    withhold = shown.evidence == "hash-only"
    work = _TextWork(corpus.texts, indexes, names, matched, shown.pairs_kept, withhold)
    semantic: Json = {
        "sets": [[one.name, one.rule.model_dump(), list[Json](one.names_sha256)] for one in sets],
        "withhold": withhold,
        "keys": KEY.name,
        "pairs_kept": shown.pairs_kept,
    }
    # An index of others may lack the captions: then the files say what was read.
    roots = [] if corpus.about.kind == "shards" else [corpus.about.content_root]
    digest = stage_digest("text", text.FORMAT_VERSION, semantic, [*roots, *(one.content_hash for one in labelled)])
    matches = [digest_json([list[Json](one) for one in matched.get(index.shard, [])]) for index in corpus.indexes]
    units = [
        Unit(
            f"{number:06d}-{short(*index, match)}",
            (index.sha256, match),
            {"shard": index.shard, "index": index.path},
        )
        for number, (index, match) in enumerate(zip(corpus.indexes, matches, strict=True))
    ]
    return Stage("text", digest, work.read, work.work, accounted=False), units


# ---- the tables of all shards


def _matched_rows(pairs: pa.Table, sets: Sequence[SetText]) -> dict[str, list[tuple[int, int, int]]]:
    """The rows of each shard that show an example, by the pairs that are held, with the number of its set and its caption's `text`."""
    number_of = {one.name: number for number, one in enumerate(sets)}
    found: dict[str, set[tuple[int, int, int]]] = {}
    columns = (pairs[name].to_pylist() for name in ("set", "eval_row", "shard", "row"))
    for name, example, shard, row in zip(*columns, strict=True):
        number = number_of[name]
        found.setdefault(shard, set()).add((row, number, int(sets[number].written.text[example])))
    return {shard: sorted(rows) for shard, rows in found.items()}


def _in_order(pairs: pa.Table, names: list[str]) -> pa.Table:
    """By set (as configured), caption, strength of the match, place in the corpus."""
    ranks = {
        "set_rank": pc.index_in(pairs["set"], value_set=pa.array(names, pa.string())),
        "method_rank": pc.index_in(pairs["method"], value_set=pa.array(TEXT_METHODS)),
        "distance": pc.negate(pairs["score"]),
    }
    keyed = pairs
    for name, column in ranks.items():
        keyed = keyed.append_column(name, column)
    keys = ("set_rank", "text", "method_rank", "distance", "shard", "row")
    return keyed.sort_by([(key, "ascending") for key in keys]).select(pairs.column_names).combine_chunks()


def _class_table(sets: Sequence[SetText], names: ClassNames, counts: NDArray[np.int64]) -> pa.Table:
    rows = [
        (one.name, label, "|".join(given), int(counts[first + label]))
        for one, first in zip(sets, names.first, strict=True)
        for label, given in enumerate(one.names)
        if given
    ]
    columns = zip(*rows, strict=True) if rows else [[]] * len(CLASS_SCHEMA)
    return pa.table(
        [pa.array(list(column), field.type) for column, field in zip(columns, CLASS_SCHEMA, strict=True)],
        schema=CLASS_SCHEMA,
    )


def _with_labels(
    pairs: pa.Table,
    sets: Sequence[SetText],
    labelled: Sequence[LabelledSet],
    first: Sequence[int],
    matched: Mapping[tuple[str, int], list[int] | None],
) -> pa.Table:
    """The pairs with `names_label`: whether the row's caption names the example's class."""
    number_of = {one.name: number for number, one in enumerate(sets)}
    answers: list[bool | None] = []
    columns = (pairs[name].to_pylist() for name in ("set", "eval_row", "shard", "row"))
    for name, example, shard, row in zip(*columns, strict=True):
        number = number_of[name]
        label, named = int(labelled[number].labels[example]), matched.get((shard, row))
        asked = named is not None and label != UNLABELLED and bool(sets[number].names[label])
        answers.append(first[number] + label in named if asked and named is not None else None)
    return pairs.append_column("names_label", pa.array(answers, pa.bool_()))
