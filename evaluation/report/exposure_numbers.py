"""The figures of what a checkpoint had seen: from a set's examples and pairs to what `report.json` says of them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from evaluation import intervals
from evaluation.overlap import statistics
from evaluation.overlap.splits import Predictions
from evaluation.report.schema import Corpus, Difference, Exposure
from evaluation.report.text_numbers import share


def exposure_report(
    examples: pa.Table, own: pa.Table, predictions: Predictions | None, corpus: Corpus, confidence: float
) -> Exposure | None:
    """All figures of one set, from its examples (`overlap.examples`) and its rows of the published pairs; None where the order of its
    model's training is not known."""
    training = None if predictions is None else predictions.training_over(corpus.content_root, corpus.kind)
    if training is None:
        return None
    overlap = examples.filter(examples["in_overlap"])
    scored = overlap.filter(pc.is_valid(overlap["correct"]))
    correct, seen = (np.asarray(scored[name], np.bool_) for name in ("correct", "seen"))
    units, touched = statistics.collapse(seen, np.asarray(scored["cluster"], np.int64))
    sides = [(correct[units] & touched, touched), (correct[units] & ~touched, ~touched)]
    with_it, without = ((int(right.sum()), int(side.sum())) for right, side in sides)
    difference = intervals.newcombe(with_it, without, confidence)
    shown = own.filter(own["seen"])
    return Exposure(
        samples_seen=training.samples_seen,
        seed=training.seed,
        window_row_groups=training.window_row_groups,
        init_sha256=training.init_sha256,
        share=share(int(pc.sum(overlap["seen"]).as_py() or 0), overlap.num_rows, confidence),
        corpus_rows=shown.group_by(["shard", "row"]).aggregate([]).num_rows,
        seen=share(int(correct[seen].sum()), int(seen.sum()), confidence),
        unseen=share(int(correct[~seen].sum()), int((~seen).sum()), confidence),
        seen_units=share(*with_it, confidence),
        unseen_units=share(*without, confidence),
        difference=None
        if difference is None or difference.low is None or difference.high is None
        else Difference(value=difference.value, low=difference.low, high=difference.high),
    )
