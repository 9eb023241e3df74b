"""The report in words and as a small table: what `evaluation report DIR` prints, and `summary.csv`.

Everything here reads the figures of a `Report` and computes none.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from evaluation.metrics import TITLES
from evaluation.overlap import thresholds
from evaluation.overlap.measures import MEASURES, PDQ, Measure
from evaluation.overlap.tables import METHODS, TEXT_METHODS
from evaluation.report import files
from evaluation.report.nearest_numbers import threshold_of
from evaluation.report.schema import (
    Corpus,
    DescriptorReport,
    Difference,
    Effect,
    Exposure,
    MetricEffect,
    Report,
    SetReport,
    Share,
    TextReport,
)
from pipeline.contracts import parquet, storage

COLUMNS = [
    "set",
    "verdict",
    "examples",
    "frames",
    "clusters",
    "overlap",
    "share",
    "share_low",
    "share_high",
    "limit",
    "over_limit",
    *METHODS,
    "pairs",
    "pairs_held",
    "corpus_rows",
    "accuracy_all",
    "accuracy_clean",
    "accuracy_overlap",
    "overlap_low",
    "overlap_high",
    "all_minus_clean",
    "p_value",
    "holm_p",
    "alpha",
    "detectable_gain",
    "difference",
    "difference_low",
    "difference_high",
    "largest_inflation",
    "exact_p",
    "class_difference",
    "class_low",
    "class_high",
    "class_p",
    "captions",
    "captions_found",
    "captions_share",
    "captions_low",
    "captions_high",
    *(f"captions_{method}" for method in TEXT_METHODS),
    "captions_pairs",
    "captions_corpus_rows",
    "captions_with_picture",
    "labels_asked",
    "labels_named",
    "labels_share",
    "labels_low",
    "labels_high",
    "labels_expected",
    "samples_seen",
    "seen",
    "seen_share",
    "seen_low",
    "seen_high",
    "seen_corpus_rows",
    "accuracy_seen",
    "accuracy_unseen",
    "seen_difference",
    "seen_difference_low",
    "seen_difference_high",
    "metric",
    "metric_all",
    "metric_clean",
    "metric_overlap",
    "metric_all_minus_clean",
    "metric_low",
    "metric_high",
    "metric_least",
    "metric_p",
    "metric_detectable_gain",
]


def headline(report: Report) -> str:
    """The verdict over all sets."""
    over, touched = len(report.over_limit), sum(one.found.share.hits > 0 for one in report.sets)
    sets = f"{len(report.sets)} evaluation set{'s' if len(report.sets) > 1 else ''}"
    if over and len(report.sets) == 1:
        return f"{report.over_limit[0]} is over its limit"
    if over:
        return f"{over} of {sets} {'is' if over == 1 else 'are'} over {'its' if over == 1 else 'their'} limit"
    if touched:
        return f"{touched} of {sets} {'overlaps' if touched == 1 else 'overlap'} with the corpus, within the limit"
    return f"No overlap found in {sets}"


def sentence(one: SetReport) -> str:
    """What the report says of one set."""
    share, kind = one.found.share, _examples(one)
    if share.hits == 0:
        return f"{one.name}: none of {share.n:,} {kind} was found in the corpus."
    said = (
        f"{one.name}: {share.hits:,} of {share.n:,} {kind} ({_percent(share.value)}) are in the corpus, "
        f"{'over' if one.over_limit else 'within'} the limit of {_percent(one.limit)}"
    )
    effect = one.effect
    if effect is None:
        return f"{said}; no predictions were given, so what that does to the score is not known."
    if effect.all_minus_clean is None or effect.p_value is None:
        return f"{said}; one side of the split has no scored example, so the effect cannot be tested."
    unscored = one.examples - effect.all.n
    if unscored:
        said += f" ({unscored:,} not scored)"
    test = effect if effect.own is None else effect.own
    if test.all_minus_clean is None or test.p_value is None:
        return (
            f"{said}; its {TITLES[one.metric]} is not defined on one side of the split, so the effect cannot be tested."
        )
    moved = f"they move the {_name(one)} by {_points(test.all_minus_clean)} points (p = {test.p_value:.3g})"
    if effect.own is None and effect.p_value <= effect.alpha and one.verdict != "overlap, effect":
        moved += f", but p = {effect.exact_p:.3g} where Clean is a sample too"
    if one.verdict == "not testable" and effect.own is None and effect.clean_units.n < effect.overlap_units.n:
        return f"{said}; {moved}, and {effect.clean_units.n:,} Clean examples are too few to know what to expect: not testable."
    if one.verdict == "not testable":
        gain = test.detectable_gain
        least = "any gain" if gain is None else f"a gain under {100 * gain:.0f} points"
        return f"{said}; {moved}, and so few {kind} could not show {least}: not testable."
    if one.verdict != "overlap, effect":
        return f"{said}; {moved}: no effect seen."
    if effect.own is not None:
        return f"{said}; {moved}: an effect."
    within = effect.by_class
    if within is not None and within.p_value > effect.alpha:
        return f"{said}; {moved}: an effect, but not one that is seen within classes (p = {within.p_value:.3g})."
    return f"{said}; {moved}: an effect."


def _name(one: SetReport) -> str:
    return "accuracy" if one.metric == "accuracy" else TITLES[one.metric]


def _examples(one: SetReport) -> str:
    return "examples" if one.frames is None else "videos"


def _points(value: float) -> str:
    return f"{100 * value:+.2f}".replace("-", "−")


def corpus_rows(corpus: Corpus) -> str:
    """How much of the corpus was searched, and how much could not be."""
    if corpus.kind == "shards":
        return f"{corpus.rows:,} rows in {corpus.shards:,} shards; {corpus.rows_without_hashes:,} without perceptual hashes"
    files = "blocks of pictures" if corpus.kind == "folder" else f"{corpus.kind} files"
    said = f"{corpus.rows:,} rows in {corpus.shards:,} {files}"
    refused = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in sorted(corpus.rejected.items()))
    if refused:
        said += f"; not searched: {refused}"
    if corpus.damaged_files:
        said += f"; {corpus.damaged_files:,} damaged, searched up to the damage"
    return said


def descriptor_sentence(found: DescriptorReport) -> str:
    """Which descriptor looked, and what its training says of it."""
    card = found.card
    return (
        f"descriptor {card.weights_sha256[:16]}, trained on {card.trained_on.pictures:,} pictures; of copies held out "
        f"{_percent(card.proxy.accuracy)} were nearest to their own; {found.rows_without_vector:,} corpus rows without a vector"
    )


def text_sentence(one: SetReport) -> str | None:
    """What the report says of a set's words; None where there was nothing to ask."""
    captions, labels = one.text.captions, one.text.labels
    said = []
    if captions is not None and captions.share.n:
        kinds = ", ".join(f"{captions.by_method[method]:,} {method}" for method in TEXT_METHODS)
        found = f"{captions.share.hits:,} of {captions.share.n:,} captions ({_percent(captions.share.value)})"
        said.append(
            f"{found} stand in captions of the corpus ({kinds}), {captions.with_picture:,} beside their picture"
        )
    if labels is not None and labels.named.n:
        named = f"{labels.named.hits:,} ({_percent(labels.named.value)})"
        said.append(
            f"of {labels.named.n:,} {_examples(one)} whose picture was found with a caption, {named} have one that names their class, "
            f"where any caption would in {_percent(labels.expected)}"
        )
    return f"{one.name}: {'; '.join(said)}." if said else None


def exposure_sentence(one: SetReport) -> str | None:
    """What the report says of what the checkpoint had seen; None where that is not known, or nothing was found."""
    found = one.exposure
    if found is None or not found.share.n:
        return None
    said = (
        f"{one.name}: after {found.samples_seen:,} samples of its training this checkpoint had seen {found.share.hits:,} of the "
        f"{found.share.n:,} {_examples(one)} that are in the corpus ({_percent(found.share.value)})"
    )
    if found.init_sha256 is not None:
        said += "; what the weights that it started from had seen is not known"
    return f"{said}."


def as_text(report: Report) -> str:
    """For a terminal."""
    lines = [headline(report), f"corpus {report.corpus.content_root[:16]}, {corpus_rows(report.corpus)}"]
    lines += [*([] if report.descriptor is None else [descriptor_sentence(report.descriptor)]), ""]
    lines += [f"  {'!' if one.over_limit else ' '} {sentence(one)}" for one in report.sets]
    lines += [f"    {line}" for words in (exposure_sentence, text_sentence) for line in map(words, report.sets) if line]
    return "\n".join(lines)


def thresholds_as_text(directory: str, labels: Sequence[str]) -> str:
    """What files of labels choose for each set of a report, for a terminal, with the lines for the configuration."""
    report = files.read_report(directory)
    closest, copies = (parquet.read(storage.join(directory, name)) for name in (files.NEAREST, files.COPIES))
    answers = thresholds.read_labels(labels, closest)
    lines = []
    for one in report.sets:
        given, near, changed = (table.filter(pc.equal(table["set"], one.name)) for table in (answers, closest, copies))
        if not given.num_rows:
            lines.append(f"{one.name}: no labels")
        for measure in MEASURES.values():
            found = thresholds.calibrate(given, near, measure)
            if found is not None:
                lines += calibration_lines(one, found, changed, measure)
    return "\n".join(lines)


def calibration_lines(one: SetReport, found: thresholds.Calibration, copies: pa.Table, measure: Measure) -> list[str]:
    """What labels of a set say by one measure, and how many of its planted copies the choice would find."""
    agreement = "" if found.kappa is None else f", kappa {found.kappa:.2f}"
    by = "" if measure is PDQ else f" by {measure.title}"
    lines = [f"{one.name}{by}: {found.answers:,} pairs by {len(found.raters)} raters{agreement}"]
    head = "PDQ bits" if measure is PDQ else "score"
    lines.append(f"  {head:>8}  answers  precision (at least)  recall (at least)")
    for point in found.curve:
        recall = "" if point.recall is None else f"{point.recall:8.1%} ({point.recall_low:.1%})"
        threshold = f"{point.threshold:8}" if measure is PDQ else f"{point.threshold:8.3f}"
        lines.append(f"  {threshold}  {point.answers:7}  {point.precision:9.1%} ({point.precision_low:.1%})  {recall}")
    used = threshold_of(one, measure)
    if found.band is not None:
        lines.append(f"  ambiguous: {found.band[0]} to {found.band[1]}")
    if found.chosen is None:
        lines.append(
            f"  no {measure.kind} has a precision of {thresholds.LEAST_PRECISION:.0%} by its lower bound; label more pairs, or "
            + (
                "leave it without one: the descriptor then does not decide"
                if used is None
                else f"keep {used} as a convention"
            )
        )
        return lines
    before = "the report used none" if used is None else f"the report used {used}"
    lines.append(f"  chosen: thresholds = {{ {measure.column} = {found.chosen} }}   ({before})")
    recalls = _copies_within(one, copies, measure, found.chosen)
    return [*lines, *([f"  planted copies within it: {recalls}"] if recalls else [])]


def _copies_within(one: SetReport, copies: pa.Table, measure: Measure, threshold: int | float) -> str:
    """Of a set's COPY_SCHEMA rows: how many of each change a threshold finds by this measure alone."""
    value, textured = copies[measure.column], pc.greater_equal(copies["pdq_quality"], one.thresholds.pdq_quality)
    near = pc.less_equal(value, threshold) if measure is PDQ else pc.greater_equal(value, threshold)
    found = pc.and_(textured, pc.fill_null(near, False))
    names = copies["transform"].unique().to_pylist()
    hits = [np.asarray(found)[np.asarray(pc.equal(copies["transform"], name))] for name in names]
    return ", ".join(f"{name} {int(own.sum())} of {len(own)}" for name, own in zip(names, hits, strict=True))


def as_csv(report: Report) -> bytes:
    """One line per set; numbers with all their digits, empty where unknown."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in report.sets:
        found, effect = one.found, one.effect
        writer.writerow(
            [
                one.name,
                one.verdict,
                one.examples,
                one.frames,
                one.clusters,
                found.share.hits,
                *_row(found.share),
                one.limit,
                one.over_limit,
                *(found.by_method[method] for method in METHODS),
                found.pairs,
                found.pairs_held,
                found.corpus_rows,
                *_effect(effect),
                *_text(one.text),
                *_exposure(one.exposure),
                one.metric,
                *_own(None if effect is None else effect.own),
            ]
        )
    return sink.getvalue().encode()


def _effect(effect: Effect | None) -> list[float | None]:
    """The 18 columns of the score."""
    if effect is None:
        return [None] * 18
    within = effect.by_class
    return [
        effect.all.value,
        effect.clean.value,
        *_row(effect.overlap),
        effect.all_minus_clean,
        effect.p_value,
        effect.holm_p,
        effect.alpha,
        effect.detectable_gain,
        *_row(effect.difference),
        effect.largest_inflation,
        effect.exact_p,
        *_row(None if within is None else within.difference),
        None if within is None else within.p_value,
    ]


def _text(text: TextReport) -> list[float | None]:
    """The 16 columns of words."""
    captions, labels = text.captions, text.labels
    return [
        *([None] * 5 if captions is None else [captions.share.n, captions.share.hits, *_row(captions.share)]),
        *([None] * len(TEXT_METHODS) if captions is None else [captions.by_method[method] for method in TEXT_METHODS]),
        *([None] * 3 if captions is None else [captions.pairs, captions.corpus_rows, captions.with_picture]),
        *([None] * 5 if labels is None else [labels.named.n, labels.named.hits, *_row(labels.named)]),
        None if labels is None else labels.expected,
    ]


def _exposure(exposure: Exposure | None) -> list[float | None]:
    """The 11 columns of what the checkpoint had seen."""
    if exposure is None:
        return [None] * 11
    return [
        exposure.samples_seen,
        exposure.share.hits,
        *_row(exposure.share),
        exposure.corpus_rows,
        exposure.seen.value,
        exposure.unseen.value,
        *_row(exposure.difference),
    ]


def _own(own: MetricEffect | None) -> list[float | None]:
    """The last nine columns: the set's own metric, where that is no proportion."""
    if own is None:
        return [None] * 9
    tests = (own.all_minus_clean, own.low, own.high, own.least, own.p_value, own.detectable_gain)
    return [own.all.value, own.clean.value, own.overlap.value, *tests]


def _row(figure: Share | Difference | None) -> list[float | None]:
    return [None] * 3 if figure is None else [figure.value, figure.low, figure.high]


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:.2f} %"
