"""Stage `text` of the overlap job: one unit per shard, its captions against the captions and class names of all sets.

Of a shard's index it reads uids, URLs and captions, so it costs what those columns weigh, and changing a rule for texts computes no picture
search again. It comes after the picture search, because it also answers whether the captions of the matched rows name a class: the
matched rows of a shard are among the inputs of its unit. With `hash-only` evidence captions are read (there is nothing else to
compare) and none of them is written, here or later: digests, distances and answers are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from evaluation.overlap import text
from evaluation.overlap.corpus import Corpus, Texts, keyed
from evaluation.overlap.tables import CLASS_SCHEMA, KEY, PUBLISHED_TEXT_PAIR_SCHEMA, TEXT_METHODS, TEXT_PAIR_SCHEMA
from evaluation.overlap.text import CaptionIndex, ClassNames, Findings, SetText, Written
from pipeline.content.labelled import UNLABELLED, LabelledSet
from pipeline.contracts import parquet, storage
from pipeline.contracts.config import Json, digest_json
from pipeline.engine import Result, Run, Stage, Unit, stage_digest, stage_folder

_ROWS = 1 << 16  # of a shard whose token forms are held at once
_CLASSES, _MATCHED = ".classes.parquet", ".matched.parquet"
_CLASS_ROWS = pa.schema([pa.field("class", pa.int64(), nullable=False), pa.field("rows", pa.int64(), nullable=False)])
_MATCHED_ROWS = pa.schema(
    [pa.field("row", pa.int64(), nullable=False), pa.field("named", pa.list_(pa.int64()))]
)  # `named`: keys of classes; null: the row has no caption


def search(
    driver: Run,
    corpus: Corpus,
    sets: Sequence[SetText],
    labelled: Sequence[LabelledSet],
    pairs: pa.Table,
    withhold: bool,
) -> Findings:
    """Run the stage, unless no set has a caption or a name, and put its tables together; `pairs` are those of the picture search."""
    names = ClassNames([one.names for one in sets])
    counts = np.zeros(names.size, np.int64)
    matched: dict[tuple[str, int], list[int] | None] = {}
    tables = []
    if any(len(one.written.text) and one.written.text.max() >= 0 for one in sets) or any(
        given for one in sets for given in one.names
    ):
        stage, units = _stage(corpus, sets, labelled, names, _matched_rows(pairs), withhold)
        folder = stage_folder(driver.out, stage)
        for unit, record in zip(units, driver.stage(stage, units), strict=True):
            found, classes, rows = (
                parquet.read(storage.join(folder, file.name))
                for file in (record.output, record.beside[_CLASSES], record.beside[_MATCHED])
            )
            tables.append(found)
            counts[np.asarray(classes["class"], np.int64)] += np.asarray(classes["rows"], np.int64)
            shard = str(unit.params["shard"])
            matched |= {
                (shard, row): named
                for row, named in zip(rows["row"].to_pylist(), rows["named"].to_pylist(), strict=True)
            }
    text_pairs = _in_order(
        pa.concat_tables([PUBLISHED_TEXT_PAIR_SCHEMA.empty_table(), *tables]), [one.name for one in sets]
    )
    return Findings(
        text_pairs, _class_table(sets, names, counts), _with_labels(pairs, sets, labelled, names.first, matched)
    )


@dataclass(frozen=True)
class _TextWork:
    """An index's captions → what is in them. `texts` reads them (`Corpus.texts`); places stay out of every digest."""

    texts: Texts
    sets: list[tuple[str, Written, CaptionIndex]]
    names: ClassNames
    matched: dict[str, list[int]]
    withhold: bool

    def read(self, unit: Unit) -> pa.Table:
        return self.texts(str(unit.params["shard"]), str(unit.params["index"]))

    def work(self, index: pa.Table, unit: Unit) -> Result:
        shard = str(unit.params["shard"])
        places = np.asarray(index["row"]) if "row" in index.column_names else np.arange(index.num_rows)
        wanted = np.flatnonzero(np.isin(places, np.array(self.matched.get(shard, []), np.int64)))
        tables, counts = [TEXT_PAIR_SCHEMA.empty_table()], np.zeros(self.names.size, np.int64)
        answers: dict[int, list[int] | None] = {}
        for start in range(0, index.num_rows, _ROWS):
            part = index.slice(start, _ROWS)
            forms = text.token_forms(part["caption"].combine_chunks())
            for name, written, captions in self.sets:
                found = captions.search(forms)
                tables.append(text.pair_table(part, shard, start, forms, name, written, found, self.withhold))
            rows, keys = self.names.named(forms)
            counts += np.bincount(keys, minlength=self.names.size)
            for row in wanted[(wanted >= start) & (wanted < start + part.num_rows)].tolist():
                here = slice(*np.searchsorted(rows, [row - start, row - start + 1]))
                answers[int(places[row])] = keys[here].tolist() if forms[row - start].is_valid else None
        named = np.flatnonzero(counts)
        classes = pa.table({"class": named, "rows": counts[named]}, schema=_CLASS_ROWS)
        matched = pa.table({"row": list(answers), "named": list(answers.values())}, schema=_MATCHED_ROWS)
        return Result(keyed(pa.concat_tables(tables), index), beside={_CLASSES: classes, _MATCHED: matched})


def _stage(
    corpus: Corpus,
    sets: Sequence[SetText],
    labelled: Sequence[LabelledSet],
    names: ClassNames,
    matched: dict[str, list[int]],
    withhold: bool,
) -> tuple[Stage, list[Unit]]:
    indexes = [(one.name, one.written, CaptionIndex(one.written, one.rule)) for one in sets]
    work = _TextWork(corpus.texts, indexes, names, matched, withhold)
    semantic: Json = {
        "sets": [[one.name, one.rule.model_dump(), list[Json](one.names_sha256)] for one in sets],
        "withhold": withhold,
        "keys": KEY.name,
    }
    # An index of others may lack the captions: then the files say what was read.
    roots = [] if corpus.about.kind == "shards" else [corpus.about.content_root]
    digest = stage_digest("text", text.FORMAT_VERSION, semantic, [*roots, *(one.content_hash for one in labelled)])
    units = [
        Unit(
            f"{number:06d}-{index.sha256[:12]}",
            (index.sha256, digest_json(list[Json](matched.get(index.shard, [])))),
            {"shard": index.shard, "index": index.path},
        )
        for number, index in enumerate(corpus.indexes)
    ]
    return Stage("text", digest, work.read, work.work, accounted=False), units


# ---- the tables of all shards


def _matched_rows(pairs: pa.Table) -> dict[str, list[int]]:
    """The rows of each shard that show an example, ascending."""
    found: dict[str, set[int]] = {}
    for shard, row in zip(pairs["shard"].to_pylist(), pairs["row"].to_pylist(), strict=True):
        found.setdefault(shard, set()).add(row)
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
