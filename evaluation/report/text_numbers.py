"""The figures of a set's words: from its split, its pairs, its text pairs and its classes to what `report.json` says of them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from evaluation import intervals
from evaluation.overlap.tables import TEXT_METHODS
from evaluation.overlap.text import SetText
from evaluation.report.schema import Captions, Labels, Share, TextReport


def text_report(
    one: SetText,
    split: pa.Table,
    example: NDArray[np.int64],
    pairs: pa.Table,
    text_pairs: pa.Table,
    classes: pa.Table,
    matched: int,
    corpus_rows: int,
    confidence: float,
) -> TextReport:
    """All figures of one set; the tables are its own rows of the published ones, `example` int64[rows] the example of each row of the
    split, `matched` of the `corpus_rows` have a caption of it."""
    has_captions = split["text"].null_count < split.num_rows
    return TextReport(
        rule=one.rule,
        names_sha256=one.names_sha256,
        captions=_captions(one, split, pairs, text_pairs, matched, confidence) if has_captions else None,
        labels=_labels(split, example, pairs, classes, corpus_rows, confidence) if classes.num_rows else None,
    )


def _captions(
    one: SetText, split: pa.Table, pairs: pa.Table, text_pairs: pa.Table, matched: int, confidence: float
) -> Captions:
    searched = split.filter(pc.greater_equal(split["text_tokens"], one.rule.least))
    found = int(pc.sum(pc.is_valid(searched["text_method"])).as_py() or 0)
    # One corpus row with a picture and a caption of one example: the pair has leaked, not only its words.
    together = text_pairs.filter(text_pairs["with_picture"])
    places = set(zip(*(together[name].to_pylist() for name in ("text", "shard", "row")), strict=True))
    text_of = split["text"].to_pylist()
    rows = zip(*(pairs[name].to_pylist() for name in ("eval_row", "shard", "row")), strict=True)
    first = split.filter(pc.equal(split["text"], split["eval_row"]))  # each caption once
    return Captions(
        share=share(found, searched.num_rows, confidence),
        texts=pc.count_distinct(searched["text"]).as_py(),
        too_short=split.num_rows - split["text"].null_count - searched.num_rows,
        by_method={
            method: int(pc.sum(pc.equal(searched["text_method"], method)).as_py() or 0) for method in TEXT_METHODS
        },
        pairs=int(pc.sum(first["text_pairs"]).as_py() or 0),
        pairs_held=text_pairs.num_rows,
        corpus_rows=matched,
        with_picture=len({example for example, shard, row in rows if (text_of[example], shard, row) in places}),
    )


def _labels(
    split: pa.Table,
    example: NDArray[np.int64],
    pairs: pa.Table,
    classes: pa.Table,
    corpus_rows: int,
    confidence: float,
) -> Labels:
    asked = pairs.filter(pc.is_valid(pairs["names_label"]))
    rows = np.asarray(asked["eval_row"], np.int64)
    answers = pa.table(
        {"example": example[rows], "label": split["label"].take(pa.array(rows)), "names_label": asked["names_label"]}
    )
    by_example = answers.group_by("example").aggregate([("names_label", "any"), ("label", "min")])
    rows_of = dict(zip(classes["label"].to_pylist(), classes["rows"].to_pylist(), strict=True))
    labels = by_example["label_min"].to_pylist()
    return Labels(
        named=share(int(pc.sum(by_example["names_label_any"]).as_py() or 0), len(labels), confidence),
        expected=sum(rows_of[label] for label in labels) / (len(labels) * corpus_rows) if labels else None,
        classes=classes.num_rows,
        classes_named=int(pc.sum(pc.greater(classes["rows"], 0)).as_py()),
        mentions=int(pc.sum(classes["rows"]).as_py()),
    )


def share(hits: int, n: int, confidence: float) -> Share:
    """A share with its interval."""
    low, high = intervals.clopper_pearson(hits, n, confidence)
    return Share(n=n, hits=hits, value=hits / n if n else None, low=low, high=high)
