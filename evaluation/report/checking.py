"""`verify`: every number of a report, computed a second time from its tables with arithmetic of another hand.

The report's own statistics are incomplete beta functions, closed forms and convolutions (`overlap.statistics`); here scipy's binomial and
Fisher tests and its interval searches are used instead, its hypergeometric laws for the test over classes, and sums over classes
one by one (`twin`). The splits are derived from the pairs again, every distance and the clusters from the hashes, and the page is rendered
again. Before that, every file is compared with its sha256, the manifest with its own digest, and the folder with the manifest. The answer
is a list of sentences; an empty one means that nothing differs.

What the folder does not hold it cannot prove: `NOT_RECOMPUTED`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa
import pydantic

from evaluation.config import OverlapConfig
from evaluation.datasets.catalogue import metric_of
from evaluation.overlap.exposure import known
from evaluation.overlap.measures import measures
from evaluation.overlap.tables import (
    CLASS_SCHEMA,
    COPY_SCHEMA,
    LABEL_SCHEMA,
    METHODS,
    NEAREST_SCHEMA,
    PUBLISHED_PAIR_SCHEMA,
    PUBLISHED_SPLIT_SCHEMA,
    PUBLISHED_TEXT_PAIR_SCHEMA,
    ROW_GROUP_SCHEMA,
)
from evaluation.report import exposure_check, files, summary, text_check, twin
from evaluation.report.corpus_check import check_corpus
from evaluation.report.descriptor_check import check_score_sweep, check_scores, check_settings, impossible_scores
from evaluation.report.differences import differ
from evaluation.report.nearest_check import check_histogram, check_labels, check_nearest, strangers
from evaluation.report.page_check import check_page
from evaluation.report.pair_check import check_copies, check_pairs
from evaluation.report.predictions_check import check_copy, read_copy
from evaluation.report.removal_check import check_removal
from evaluation.report.schema import Report, SetReport, Statistics
from evaluation.report.set_check import check_figures
from evaluation.report.twin import Row
from pipeline.content.hashes import HASH_VERSION
from pipeline.contracts import parquet, storage
from pipeline.contracts.config import digest_json
from pipeline.contracts.errors import HouseError, InputError

_NO_PLACE = "-"
_OF_SETS = {
    files.PAIRS: PUBLISHED_PAIR_SCHEMA,
    files.TEXT_PAIRS: PUBLISHED_TEXT_PAIR_SCHEMA,
    files.CLASSES: CLASS_SCHEMA,
    files.NEAREST: NEAREST_SCHEMA,
    files.COPIES: COPY_SCHEMA,
    files.LABELS: LABEL_SCHEMA,
}
"""The tables whose rows say which set they are of."""
NOT_RECOMPUTED = (
    "the hashes of pictures and labels in the tables (they are compared with each other, not with pictures), what the model answered (the "
    "predictions in the folder are taken as given), what people answered, what the corpus says of a row (its uid, URL and caption), how "
    "far planted copies are from their originals, what the learned descriptor says (its card, the scores in the tables), that no corpus "
    "row outside the tables is nearer than the nearest, the corpus's size, its row groups and which of its rows cannot be trained on, how "
    "many of its rows name a class, and the thumbnails and class names on the page; of an example or caption with as many pairs by a "
    "method as the tables hold, how many more it has, their corpus rows, the least pHash distance and the largest score; where captions "
    "are withheld, also near and contained captions with their scores, and whether a caption names a class"
)


def verify(directory: str, root: str | None = None) -> list[str]:
    """One sentence per difference, none when the report is whole and right. `root`: the manifest's digest as it was kept elsewhere, which
    is of this report, or of none that can be forged to look like it.

    Raises InputError when `directory` holds no report at all, and for a `root` that is no digest.
    """
    if root is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", root):
        raise InputError(
            f"--root {root!r}: is no root of a report; give the 64 digits that `overlap` and `report` print"
        )
    seal = files.read_seal(directory)
    place = storage.join(directory, files.MANIFEST)
    problems: list[str] = []
    whole = _is_whole(storage.read_bytes(place))
    if not whole:
        problems.append(f"{place}: differs from its own digest; restore it")
    if root is not None and seal.digest != root.lower():
        problems.append(
            f"{place}: the root is {seal.digest!r}, not {root.lower()!r}: this is another report; get the one that you mean"
        )
    broken = set()
    for name, entry in seal.files.items():
        uri = storage.join(directory, name)
        if not storage.exists(uri):
            problems.append(f"{uri}: is missing; restore it or write the report again")
            broken.add(name)
        elif storage.size(uri) != entry.bytes or storage.sha256_file(uri) != entry.sha256:
            problems.append(f"{uri}: sha256 differs from the manifest; restore it or write the report again")
            broken.add(name)
    inside = directory.rstrip("/") + "/"
    for uri in storage.list_files(directory, recursive=True):
        if uri.removeprefix(inside) not in {*seal.files, files.MANIFEST}:
            problems.append(f"{uri}: is not part of the report (the manifest does not name it); move it away")
    if broken or not whole:
        return problems
    try:
        return [*problems, *_check_content(directory, seal)]
    except HouseError as error:
        return [*problems, str(error)]


def _is_whole(manifest: bytes) -> bool:
    """Whether a manifest is written as one is, and its digest is over the rest of it."""
    try:
        body = json.loads(manifest)
        sealed = {key: value for key, value in body.items() if key != "digest"}
        return files.canonical(body) == manifest and digest_json(sealed) == body.get("digest")
    except (ValueError, RecursionError):  # what JSON has no word for, as NaN
        return False


class _Tables(NamedTuple):
    """The tables of a report: those of `_OF_SETS` by file, the splits by set, the row groups."""

    of_sets: dict[str, list[Row]]
    splits: dict[str, list[Row]]
    groups: list[Row]


def _check_content(directory: str, seal: files.Seal) -> list[str]:
    """The files against each other: page, tables and figures must tell one story."""
    report = files.read_report(directory)
    names = {*files.FIXED, *(files.split_name(one.name) for one in report.sets)}
    names |= {files.predictions_name(one.name) for one in report.sets if one.effect is not None}
    if set(seal.files) != names:
        wrong = sorted(set(seal.files) ^ names)
        return [
            f"{storage.join(directory, files.MANIFEST)}: {', '.join(wrong)}: named here or in report.json, not in both"
        ]
    tables, config = _read(directory, report), _config(seal)
    problems = [*_check_identity(storage.join(directory, files.REPORT), seal, report)]
    problems += _check_tables(directory, seal, report, config, tables)
    if problems:  # a page of figures that are wrong is wrong too, and may be impossible to draw
        return problems
    text = storage.read_bytes(storage.join(directory, files.PAGE))
    pairs, near, text_pairs = (tables.of_sets[name] for name in (files.PAIRS, files.NEAREST, files.TEXT_PAIRS))
    found = check_page(text, report, pairs, near, text_pairs, tables.splits, config.report)
    return [f"{storage.join(directory, files.PAGE)}: {problem}; write the report again" for problem in found]


def _read(directory: str, report: Report) -> _Tables:
    return _Tables(
        {name: _table(directory, name, schema) for name, schema in _OF_SETS.items()},
        {one.name: _table(directory, files.split_name(one.name), PUBLISHED_SPLIT_SCHEMA) for one in report.sets},
        _table(directory, files.ROW_GROUPS, ROW_GROUP_SCHEMA),
    )


def _check_tables(
    directory: str, seal: files.Seal, report: Report, config: OverlapConfig, tables: _Tables
) -> Iterator[str]:
    """Every table against the others and every figure against the tables. Ends early where a table cannot be counted."""
    place = storage.join(directory, files.REPORT)
    fixed = {
        files.SUMMARY: summary.as_csv(report),
        files.SCHEMA: files.schema_bytes(),
        files.REPORT: files.report_bytes(report),
    }
    for name, data in fixed.items():
        if data != storage.read_bytes(storage.join(directory, name)):
            yield f"{storage.join(directory, name)}: differs from what report.json says; write the report again"
    unusable = [*_check_rows(directory, report, tables)]
    yield from unusable
    if unusable:
        return
    of_sets, splits = tables.of_sets, tables.splits
    pairs, text_pairs, near = (of_sets[name] for name in (files.PAIRS, files.TEXT_PAIRS, files.NEAREST))
    yield from check_removal(directory, report, pairs, text_pairs)
    tests = max(1, sum(_both_sides(split) for split in splits.values()))
    yield from differ(place, "statistics.tests", report.statistics.tests, tests)
    # What is stated may be impossible to count with; what the settings say is not.
    levels = Statistics.model_validate({**config.statistics.model_dump(), "tests": tests})
    report = report.model_copy(update={"statistics": levels})
    yield from _check_holm(place, report)
    over = [one.name for one in report.sets if one.over_limit]
    yield from differ(place, "over_limit", report.over_limit, over)
    yield from check_corpus(
        directory, report, pairs, {files.PAIRS: pairs, files.NEAREST: near, files.TEXT_PAIRS: text_pairs}
    )
    best = max((_quality(row) for row in (*pairs, *near)), default=-1)
    for one in report.sets:
        own = {name: [row for row in rows if row["set"] == one.name] for name, rows in of_sets.items()}
        yield from _check_set(directory, seal, report, config, one, own, splits[one.name], tables.groups, best)


def _check_rows(directory: str, report: Report, tables: _Tables) -> Iterator[str]:
    """What no table of a report has, so that nothing else can be asked of it: rows of other sets and examples, no method or measure."""

    def wrong(name: str, what: str) -> str:
        return f"{storage.join(directory, name)}: {what}; write the report again"

    for name, split in tables.splits.items():
        misplaced = next((number for number, row in enumerate(split) if row["eval_row"] != number), None)
        if misplaced is not None:
            row = split[misplaced]
            said = f"example {row['eval_id']!r}: is row {row['eval_row']} of the set, in the split table {misplaced}"
            yield wrong(files.split_name(name), said)
    for name, rows in tables.of_sets.items():
        for stranger in sorted({str(row["set"]) for row in rows} - set(tables.splits)):
            yield wrong(name, f"names a set {stranger!r} that report.json does not have")
    asked = measures(report.descriptor is not None)
    pairs, near, labels = (tables.of_sets[name] for name in (files.PAIRS, files.NEAREST, files.LABELS))
    found = {
        files.PAIRS: _unknown_methods(pairs) or impossible_scores(report, pairs),
        files.TEXT_PAIRS: text_check.strangers(tables.of_sets[files.TEXT_PAIRS], tables.splits),
        files.NEAREST: strangers(near, asked) or impossible_scores(report, near),
        files.LABELS: strangers(labels, asked),
        files.ROW_GROUPS: exposure_check.check_row_groups(report.corpus, tables.groups),
    }
    yield from (wrong(name, what) for name, what in found.items() if what is not None)


def _unknown_methods(pairs: list[Row]) -> str | None:
    """Methods that no search has, so that nothing else can be asked of the pairs; None where there is none."""
    methods = {str(row["method"]) for row in pairs} - set(METHODS)
    return f"{', '.join(sorted(methods))!r} is no method of matching" if methods else None


def _check_set(
    directory: str,
    seal: files.Seal,
    report: Report,
    config: OverlapConfig,
    one: SetReport,
    own: dict[str, list[Row]],
    split: list[Row],
    groups: list[Row],
    best: int,
) -> Iterator[str]:
    """Everything that is said of one set; `own` are its rows of the tables `_OF_SETS`, `groups` the row groups of the corpus, `best` is the
    largest quality of its pictures."""
    place, table = storage.join(directory, files.REPORT), {name: storage.join(directory, name) for name in own}
    pairs, near = own[files.PAIRS], own[files.NEAREST]
    yield from check_pairs(table[files.PAIRS], one, pairs, split, report.pairs_kept)
    yield from check_scores(table[files.PAIRS], one, pairs, split)
    yield from check_figures(place, report, one, pairs, split)
    yield from check_score_sweep(place, report, one, split)
    sampled = twin.sample(split, one.thresholds.pdq_quality, config.nearest.examples)
    yield from check_nearest(table[files.NEAREST], one, near, pairs, split, sampled, report.pairs_kept, best)
    yield from check_histogram(place, one, near, measures(report.descriptor is not None))
    yield from check_labels(table[files.LABELS], place, one, own[files.LABELS], near)
    changed = twin.sample(split, 0, config.copies.examples)
    confidence = report.statistics.confidence
    yield from check_copies(table[files.COPIES], place, one, own[files.COPIES], split, changed, confidence)
    yield from _check_text(directory, report, one, pairs, own[files.TEXT_PAIRS], own[files.CLASSES], split)
    yield from _check_model(directory, seal, report, one, pairs, groups, split)


def _check_model(
    directory: str,
    seal: files.Seal,
    report: Report,
    one: SetReport,
    pairs: list[Row],
    groups: list[Row],
    split: list[Row],
) -> Iterator[str]:
    """The outcomes by `predictions_check`, and what the model had seen by `exposure_check`."""
    place, copy = storage.join(directory, files.REPORT), read_copy(directory, one)
    training = None
    if one.effect is not None and copy is not None:
        sha256 = seal.files[files.predictions_name(one.name)].sha256
        yield from check_copy(place, one, one.effect, split, copy, sha256)
        about = report.corpus
        training = known(copy.training, copy.content_root, root=about.content_root, kind=about.kind)
    withheld = report.evidence == "hash-only"
    for problem in exposure_check.check_pairs(report.corpus, pairs, split, groups, training, withheld=withheld):
        yield f"{storage.join(directory, files.PAIRS)}: set {one.name!r}: {problem}; write the report again"
    yield from exposure_check.check_figures(place, report, one, pairs, split, training)


def _check_text(
    directory: str,
    report: Report,
    one: SetReport,
    pairs: list[Row],
    words: list[Row],
    classes: list[Row],
    split: list[Row],
) -> Iterator[str]:
    """The set's captions and class names, by `text_check`."""
    place, shown = storage.join(directory, files.REPORT), report.evidence != "hash-only"
    for problem in text_check.check_pairs(one, split, pairs, words, shown, report.pairs_kept):
        yield f"{storage.join(directory, files.TEXT_PAIRS)}: set {one.name!r}: {problem}; write the report again"
    for problem in text_check.check_labels(pairs, split, classes, shown):
        yield f"{storage.join(directory, files.PAIRS)}: set {one.name!r}: {problem}; write the report again"
    rows, confidence = max(1, report.corpus.rows), report.statistics.confidence
    for name, stated, computed in text_check.check_figures(one, split, pairs, words, classes, rows, confidence):
        yield from differ(place, f"sets.{one.name}.text.{name}", stated, computed)


def _config(seal: files.Seal) -> OverlapConfig:
    """The settings that the seal states. Places are no part of a report: they get a word that no path has."""
    body = json.loads(json.dumps(seal.inputs.get("config")))
    try:
        body["corpus"]["files" if body["corpus"]["layout"] else "manifest"] = body["report"]["dir"] = _NO_PLACE
        for one in body["sets"]:
            one["path"] = _NO_PLACE
        if body["descriptor"] is not None:
            body["descriptor"]["weights"] = _NO_PLACE
        return OverlapConfig.model_validate(body)
    except (KeyError, TypeError, pydantic.ValidationError):
        raise InputError(
            f"{files.MANIFEST}: inputs.config is not the configuration of a report; write the report again"
        ) from None


def _check_identity(place: str, seal: files.Seal, report: Report) -> Iterator[str]:
    """What the seal says of the inputs, against report.json: digests, settings, predictions."""
    scored = {one.name: one.effect for one in report.sets if one.effect is not None}
    expected: dict[str, object] = {
        "corpus_content_root": report.corpus.content_root,
        "config_digest": report.config_digest,
        "sets": {one.name: one.content_hash for one in report.sets},
        "predictions": {
            name: {
                "predictions_sha256": one.predictions_sha256,
                "model": one.model,
                "content_root": one.model_content_root,
            }
            for name, one in scored.items()
        },
        "labels": report.labels,
        "names_sha256": {one.name: one.text.names_sha256 for one in report.sets if one.text.names_sha256},
        "hashes": dict(HASH_VERSION),
        "descriptor_sha256": None if report.descriptor is None else report.descriptor.card.weights_sha256,
        "config": seal.inputs.get("config"),
    }
    for name in sorted({*expected, *seal.inputs}):
        if seal.inputs.get(name) != expected.get(name):
            yield (
                f"{place}: {name} is {expected.get(name)!r}, the manifest says {seal.inputs.get(name)!r}; write the report again"
            )
    yield from differ(place, "config_digest", report.config_digest, digest_json(seal.inputs.get("config")))
    config = _config(seal)
    yield from differ(place, "evidence", report.evidence, config.report.evidence)
    yield from differ(place, "pairs_kept", report.pairs_kept, config.report.pairs_kept)
    yield from differ(place, "corpus.kind", report.corpus.kind, config.corpus.layout or "shards")
    yield from differ(place, "statistics.alpha", report.statistics.alpha, config.statistics.alpha)
    yield from differ(place, "statistics.confidence", report.statistics.confidence, config.statistics.confidence)
    yield from check_settings(place, report, config.descriptor)
    for key in ("draws", "seed"):
        yield from differ(place, f"statistics.{key}", getattr(report.statistics, key), getattr(config.statistics, key))
    stated = [(one.name, one.limit, one.thresholds, one.text.rule) for one in report.sets]
    asked = [(one.name, one.limit, one.thresholds or config.match, one.text or config.text) for one in config.sets]
    yield from differ(place, "sets: name, limit, thresholds, text", stated, asked)
    metrics = {one.name: metric_of(one.dataset, one.metric) for one in config.sets}
    for one in report.sets:
        yield from differ(place, f"sets.{one.name}.metric", one.metric, metrics.get(one.name))


def _table(directory: str, name: str, schema: pa.Schema) -> list[Row]:
    uri = storage.join(directory, name)
    table = parquet.read(uri)
    if table.schema != schema:
        raise InputError(f"{uri}: columns differ from this version of the report; write the report again")
    try:
        table.validate(full=True)
    except pa.ArrowInvalid as error:  # text that is no UTF-8
        raise InputError(f"{uri}: {str(error)[:200]!r}; write the report again") from None
    rows: list[Row] = table.to_pylist()
    return rows


def _quality(row: Row) -> int:
    return int(str(row["pdq_quality"])) if row["pdq_quality"] is not None else -1


def _both_sides(split: list[Row]) -> bool:
    clean, overlap = twin.units([row for row in twin.examples(split) if row["correct"] is not None])
    return bool(clean and overlap)


def _check_holm(place: str, report: Report) -> Iterator[str]:
    """Holm's correction by its definition: the largest of the corrected p values up to a set's own."""
    deciding = {one.name: (one.effect.own or one.effect).p_value for one in report.sets if one.effect}
    p_values = {name: p for name, p in deciding.items() if p is not None}
    for one in report.sets:
        if one.effect is None:
            continue
        own = p_values.get(one.name)
        corrected = [
            min(1.0, p * sum(other >= p for other in p_values.values()))
            for p in p_values.values()
            if own is not None and p <= own
        ]
        yield from differ(place, f"sets.{one.name}.effect.holm_p", one.effect.holm_p, max(corrected, default=None))
