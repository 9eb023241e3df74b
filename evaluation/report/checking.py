"""`verify`: every number of a report, computed a second time from its tables with arithmetic of another hand.

The report's own statistics are incomplete beta functions, closed forms and convolutions (`overlap.statistics`); here scipy's binomial and
Fisher tests and its interval searches are used instead, characteristic functions for the test over classes, and sums over classes
one by one (`twin`). The splits are derived from the pairs again, every distance and the clusters from the hashes, and the page is rendered
again. Before that, every file is compared with its sha256, the manifest with its own digest, and the folder with the manifest. The answer
is a list of sentences; an empty one means that nothing differs.

What the folder does not hold it cannot prove: `NOT_RECOMPUTED`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from statistics import median

import pyarrow as pa
import pydantic
from scipy.stats import binomtest, fisher_exact

from evaluation.config import OverlapConfig
from evaluation.overlap.tables import (
    CLASS_SCHEMA,
    COPY_SCHEMA,
    EXACT,
    LABEL_SCHEMA,
    METHODS,
    NEAREST_SCHEMA,
    PUBLISHED_PAIR_SCHEMA,
    PUBLISHED_SPLIT_SCHEMA,
    PUBLISHED_TEXT_PAIR_SCHEMA,
)
from evaluation.report import files, summary, text_check, twin
from evaluation.report.numbers import NOT_CHECKED
from evaluation.report.page_check import check_page
from evaluation.report.schema import Difference, Effect, Report, SetReport, Share
from pipeline.content.hashes import HASH_VERSION
from pipeline.contracts import parquet, storage
from pipeline.contracts.config import digest_json
from pipeline.contracts.errors import HouseError, InputError
from pipeline.contracts.schema import Reason

_NO_PLACE = "-"
TOLERANCE = 1e-9  # of scipy's interval search; the report's own figures are good to 1e-12
NOT_RECOMPUTED = (
    "the hashes of pictures, the outcomes of the model and labels in the tables (they are compared with each other, not with pictures "
    "and predictions), the corpus's size, how many of its rows name a class, and the thumbnails and class names on the page; where "
    "captions are withheld, also near and contained captions with their scores, and whether a caption names a class"
)
_Row = dict[str, object]


def verify(directory: str) -> list[str]:
    """One sentence per difference, none when the report is whole and right.

    Raises InputError when `directory` holds no report at all.
    """
    seal = files.read_seal(directory)
    place = storage.join(directory, files.MANIFEST)
    problems: list[str] = []
    body = json.loads(storage.read_bytes(place))
    if files.canonical(body) != storage.read_bytes(place) or digest_json(
        {key: value for key, value in body.items() if key != "digest"}
    ) != body.get("digest"):
        problems.append(f"{place}: differs from its own digest; restore it")
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
    if broken:
        return problems
    try:
        return [*problems, *_check_content(directory, seal)]
    except HouseError as error:
        return [*problems, str(error)]


def _check_content(directory: str, seal: files.Seal) -> Iterator[str]:
    """The files against each other: page, tables and figures must tell one story."""
    report = files.read_report(directory)
    place = storage.join(directory, files.REPORT)
    names = {*files.FIXED, *(files.split_name(one.name) for one in report.sets)}
    if set(seal.files) != names:
        wrong = sorted(set(seal.files) ^ names)
        yield f"{storage.join(directory, files.MANIFEST)}: {', '.join(wrong)}: named here or in report.json, not in both"
        return
    yield from _check_identity(place, seal, report)
    fixed = {
        files.SUMMARY: summary.as_csv(report),
        files.SCHEMA: files.schema_bytes(),
        files.REPORT: files.report_bytes(report),
    }
    for name, data in fixed.items():
        if data != storage.read_bytes(storage.join(directory, name)):
            yield f"{storage.join(directory, name)}: differs from what report.json says; write the report again"
    pairs = _table(directory, files.PAIRS, PUBLISHED_PAIR_SCHEMA)
    text_pairs = _table(directory, files.TEXT_PAIRS, PUBLISHED_TEXT_PAIR_SCHEMA)
    classes = _table(directory, files.CLASSES, CLASS_SCHEMA)
    matched = _removal(report, pairs)
    by_text = {row: line for row, line in _removal(report, text_pairs).items() if row not in matched}
    what = "uids" if report.corpus.kind == "shards" else "rows"
    for name, lines in {files.REMOVAL: matched, files.REMOVAL_TEXT: by_text}.items():
        stated = storage.read_bytes(storage.join(directory, name)).decode("utf-8", "replace").split("\n")
        if stated != [*(lines[row] for row in sorted(lines)), ""]:
            yield f"{storage.join(directory, name)}: is not the list of {what} that the pairs give; write the report again"
    splits = {one.name: _table(directory, files.split_name(one.name), PUBLISHED_SPLIT_SCHEMA) for one in report.sets}
    for name, rows in {files.PAIRS: pairs, files.TEXT_PAIRS: text_pairs, files.CLASSES: classes}.items():
        for stranger in sorted({str(row["set"]) for row in rows} - set(splits)):
            yield f"{storage.join(directory, name)}: names a set {stranger!r} that report.json does not have"
    methods = {str(row["method"]) for row in pairs} - set(METHODS)
    if methods:
        yield f"{storage.join(directory, files.PAIRS)}: {', '.join(sorted(methods))!r} is no method of matching; write the report again"
        return
    unknown = text_check.strangers(text_pairs, splits)
    if unknown:
        yield f"{storage.join(directory, files.TEXT_PAIRS)}: {unknown}; write the report again"
        return
    tests = sum(_both_sides(split) for split in splits.values())
    yield from _differ(place, "statistics.tests", report.statistics.tests, max(1, tests))
    yield from _check_holm(place, report)
    over = [one.name for one in report.sets if one.over_limit]
    yield from _differ(place, "over_limit", report.over_limit, over)
    yield from _check_corpus(place, report, pairs)
    text = storage.read_bytes(storage.join(directory, files.PAGE))
    config = _config(seal)
    closest, copies, labels = (
        _table(directory, name, schema)
        for name, schema in (
            (files.NEAREST, NEAREST_SCHEMA),
            (files.COPIES, COPY_SCHEMA),
            (files.LABELS, LABEL_SCHEMA),
        )
    )
    for name, rows in ((files.NEAREST, closest), (files.COPIES, copies), (files.LABELS, labels)):
        for stranger in sorted({str(row["set"]) for row in rows} - set(splits)):
            yield f"{storage.join(directory, name)}: names a set {stranger!r} that report.json does not have"
    for problem in check_page(text, report, pairs, closest, text_pairs, splits, config.report):
        yield f"{storage.join(directory, files.PAGE)}: {problem}; write the report again"
    for one in report.sets:
        own = [row for row in pairs if row["set"] == one.name]
        yield from _check_pairs(storage.join(directory, files.PAIRS), one, own, splits[one.name])
        yield from _check_set(place, report, one, own, splits[one.name])
        near = [row for row in closest if row["set"] == one.name]
        sampled = twin.sample(splits[one.name], one.thresholds.pdq_quality, config.nearest.examples)
        yield from _check_nearest(storage.join(directory, files.NEAREST), one, near, own, splits[one.name], sampled)
        yield from _check_histogram(place, one, near)
        answers = [row for row in labels if row["set"] == one.name]
        yield from _check_labels(storage.join(directory, files.LABELS), place, one, answers, near)
        copied = [row for row in copies if row["set"] == one.name]
        asked = set(twin.sample(splits[one.name], 0, config.copies.examples))
        yield from _check_copies(
            storage.join(directory, files.COPIES), place, one, copied, asked, report.statistics.confidence
        )
        words, named = ([row for row in rows if row["set"] == one.name] for rows in (text_pairs, classes))
        yield from _check_text(directory, report, one, own, words, named, splits[one.name])


def _check_text(
    directory: str,
    report: Report,
    one: SetReport,
    pairs: list[_Row],
    words: list[_Row],
    classes: list[_Row],
    split: list[_Row],
) -> Iterator[str]:
    """The set's captions and class names, by `text_check`."""
    place, shown = storage.join(directory, files.REPORT), report.evidence != "hash-only"
    for problem in text_check.check_pairs(one, split, words, shown):
        yield f"{storage.join(directory, files.TEXT_PAIRS)}: set {one.name!r}: {problem}; write the report again"
    for problem in text_check.check_labels(pairs, split, classes, shown):
        yield f"{storage.join(directory, files.PAIRS)}: set {one.name!r}: {problem}; write the report again"
    rows, confidence = report.corpus.rows, report.statistics.confidence
    for name, stated, computed in text_check.check_figures(one, split, pairs, words, classes, rows, confidence):
        yield from _differ(place, f"sets.{one.name}.text.{name}", stated, computed)


def _removal(report: Report, pairs: list[_Row]) -> dict[tuple[str, int], str]:
    """The lines of removal_ids.txt, by what they are sorted by."""
    if report.corpus.kind == "shards":
        return {(_digest(row["uid"]), 0): _digest(row["uid"]) for row in pairs}
    places = {(str(row["shard"]), int(str(row["row"]))): str(row["key"] or "") for row in pairs}
    return {place: "\t".join((place[0], str(place[1]), key)) for place, key in places.items()}


def _config(seal: files.Seal) -> OverlapConfig:
    """The settings that the seal states. Places are no part of a report: they get a word that no path has."""
    body = json.loads(json.dumps(seal.inputs.get("config")))
    try:
        body["corpus"]["files" if body["corpus"]["layout"] else "manifest"] = body["report"]["dir"] = _NO_PLACE
        for one in body["sets"]:
            one["path"] = _NO_PLACE
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
        "config": seal.inputs.get("config"),
    }
    for name in sorted({*expected, *seal.inputs}):
        if seal.inputs.get(name) != expected.get(name):
            yield (
                f"{place}: {name} is {expected.get(name)!r}, the manifest says {seal.inputs.get(name)!r}; write the report again"
            )
    yield from _differ(place, "config_digest", report.config_digest, digest_json(seal.inputs.get("config")))
    config = _config(seal)
    yield from _differ(place, "evidence", report.evidence, config.report.evidence)
    yield from _differ(place, "corpus.kind", report.corpus.kind, config.corpus.layout or "shards")
    yield from _differ(place, "statistics.alpha", report.statistics.alpha, config.statistics.alpha)
    yield from _differ(place, "statistics.confidence", report.statistics.confidence, config.statistics.confidence)
    stated = [(one.name, one.limit, one.thresholds, one.text.rule) for one in report.sets]
    asked = [(one.name, one.limit, one.thresholds or config.match, one.text or config.text) for one in config.sets]
    yield from _differ(place, "sets: name, limit, thresholds, text", stated, asked)


def _check_corpus(place: str, report: Report, pairs: list[_Row]) -> Iterator[str]:
    """The corpus is not in the folder: its sizes are only held against the rows that the pairs name."""
    corpus = report.corpus
    yield from _differ(place, "not_checked", report.not_checked, NOT_CHECKED)
    refused = sum(corpus.rejected.values()) + corpus.damaged_files
    if set(corpus.rejected) - set(Reason) or min(corpus.rejected.values(), default=1) < 1 or corpus.damaged_files < 0:
        yield f"{place}: corpus.rejected is {corpus.rejected!r}, no count by the reasons of a corpus; write the report again"
    elif refused and corpus.kind == "shards":
        yield f"{place}: corpus.rejected counts {refused} rows, and a corpus of this project has none; write the report again"
    for name, version in corpus.hashes.items():
        yield from _differ(place, f"corpus.hashes.{name}", version, HASH_VERSION.get(name))
    rows = {(row["shard"], row["row"]): row["pdq256"] for row in pairs}
    hashless = sum(pdq is None for pdq in rows.values())
    known = {"rows": len(rows), "shards": len({shard for shard, _ in rows}), "rows_without_hashes": hashless}
    for name, least in known.items():
        if getattr(corpus, name) < least:
            yield f"{place}: corpus.{name} is {getattr(corpus, name)!r}, the pairs name {least}; write the report again"
    if corpus.rows_without_hashes > corpus.rows - len(rows) + hashless:
        yield f"{place}: corpus.rows_without_hashes is {corpus.rows_without_hashes}, more than the rows left; write the report again"
    if len({(row["set"], row["eval_row"], row["shard"], row["row"]) for row in pairs}) != len(pairs):
        yield f"{place}: a pair comes twice in {files.PAIRS}; write the report again"
    if report.evidence == "hash-only" and any(row["url"] is not None or row["caption"] is not None for row in pairs):
        yield f"{place}: evidence is 'hash-only', and {files.PAIRS} has URLs or captions; write the report again"


def _table(directory: str, name: str, schema: pa.Schema) -> list[_Row]:
    uri = storage.join(directory, name)
    table = parquet.read(uri)
    if table.schema != schema:
        raise InputError(f"{uri}: columns differ from this version of the report; write the report again")
    rows: list[_Row] = table.to_pylist()
    return rows


def _both_sides(split: list[_Row]) -> bool:
    clean, overlap = twin.units([row for row in split if row["correct"] is not None])
    return bool(clean and overlap)


def _digest(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else ""


def _bits(left: object, right: object) -> int | None:
    """Differing bits of two hashes; None where one is unknown."""
    if isinstance(left, bytes) and isinstance(right, bytes):
        return (int.from_bytes(left) ^ int.from_bytes(right)).bit_count()
    if isinstance(left, int) and isinstance(right, int):
        return (left ^ right).bit_count()
    return None


def _check_pairs(place: str, one: SetReport, own: list[_Row], split: list[_Row]) -> Iterator[str]:
    """Each pair must hold what it claims, and the split must follow from the pairs."""
    limits = one.thresholds
    best: dict[object, tuple[int, str]] = {}
    rows = {row["eval_row"]: row for row in split}
    for pair in own:
        example = rows.get(pair["eval_row"], {})
        where = f"{place}: set {one.name!r}: example {pair['eval_id']!r} with {_digest(pair['uid'])}"
        if (example.get("eval_id"), example.get("sha256")) != (pair["eval_id"], pair["eval_sha256"]):
            yield f"{where}: is another example, or none, in the split table"
            continue
        pdq, phash = _bits(example["pdq256"], pair["pdq256"]), _bits(example["phash64"], pair["phash64"])
        known = pdq is not None and phash is not None and pair["pdq_quality"] is not None
        if ((pdq, phash) if known else (None, None)) != (pair["pdq_distance"], pair["phash_distance"]):
            yield f"{where}: its distances are not those of its hashes"
        textured = known and min(int(str(example["pdq_quality"])), int(str(pair["pdq_quality"]))) >= limits.pdq_quality
        holds = {
            "source_sha256": pair["source_sha256"] == pair["eval_sha256"],
            "image_sha256": pair["image_sha256"] == pair["eval_sha256"],
            "pdq": textured and pdq is not None and pdq <= limits.pdq_distance,
            "phash": textured
            and (phash is not None and phash <= limits.phash_distance)
            and (pdq is not None and pdq <= limits.phash_pdq_distance),
        }
        if (pair["source_exact"], pair["stored_exact"]) != (holds["source_sha256"], holds["image_sha256"]):
            yield f"{where}: source_exact and stored_exact are not what its sha256 say"
        strongest = next((method for method in METHODS if holds[method]), None)
        if strongest != pair["method"]:
            yield f"{where}: is a match by {strongest or 'no method'}, not by {pair['method']}"
        rank = METHODS.index(str(pair["method"]))
        best[pair["eval_row"]] = min(best.get(pair["eval_row"], (rank, "")), (rank, ""))
    yield from _check_distances(place, one, own, split)
    for row in split:
        method = METHODS[best[row["eval_row"]][0]] if row["eval_row"] in best else None
        if row["in_overlap"] != (method is not None) or row["method"] != method:
            yield f"{place}: set {one.name!r}: example {row['eval_id']!r}: its pairs say {method}, its split {row['method']}"


def _check_distances(place: str, one: SetReport, own: list[_Row], split: list[_Row]) -> Iterator[str]:
    """How many pairs an example has, and the smallest distances over them."""
    of_row: dict[object, list[_Row]] = {}
    for pair in own:
        of_row.setdefault(pair["eval_row"], []).append(pair)
    for number, row in enumerate(split):
        pairs = of_row.get(row["eval_row"], [])
        where = f"{place}: set {one.name!r}: example {row['eval_id']!r}"
        if row["eval_row"] != number:
            yield f"{where}: is row {row['eval_row']} of the set, in the split table {number}"
        if row["pairs"] != len(pairs):
            yield f"{where}: has {len(pairs)} pairs, its split says {row['pairs']}"
        for name in ("pdq_distance", "phash_distance"):
            least = min((int(str(pair[name])) for pair in pairs if pair[name] is not None), default=None)
            if row[name] != least:
                yield f"{where}: the least {name} of its pairs is {least}, its split says {row[name]}"


def _check_set(place: str, report: Report, one: SetReport, own: list[_Row], split: list[_Row]) -> Iterator[str]:
    """Every figure of one set."""
    name = f"sets.{one.name}"
    overlap = sum(row["in_overlap"] is True for row in split)
    methods = Counter(row["method"] for row in split)
    confidence = report.statistics.confidence
    yield from _differ(place, f"{name}.examples", one.examples, len(split))
    yield from _differ(
        place, f"{name}.repeated_pictures", one.repeated_pictures, len(split) - len({row["sha256"] for row in split})
    )
    limits = one.thresholds
    found = twin.clusters(
        split, limits.pdq_distance, limits.pdq_quality, limits.phash_distance, limits.phash_pdq_distance
    )
    yield from _differ(place, f"{name}.clusters", one.clusters, len(set(found)))
    wrong = next((row for row, first in zip(split, found, strict=True) if row["cluster"] != first), None)
    if wrong is not None:
        where = f"{place}: set {one.name!r}: example {wrong['eval_id']!r}"
        yield f"{where}: its hashes put it into another cluster than its split; write the report again"
    flat = sum(int(str(row["pdq_quality"])) < limits.pdq_quality for row in split)
    yield from _differ(place, f"{name}.too_flat", one.too_flat, flat)
    yield from _check_share(place, f"{name}.found.share", one.found.share, overlap, len(split), confidence)
    yield from _differ(place, f"{name}.found.by_method", one.found.by_method, {key: methods[key] for key in METHODS})
    yield from _differ(place, f"{name}.found.pairs", one.found.pairs, len(own))
    yield from _differ(
        place, f"{name}.found.corpus_rows", one.found.corpus_rows, len({(row["shard"], row["row"]) for row in own})
    )
    yield from _differ(place, f"{name}.over_limit", one.over_limit, overlap > one.limit * len(split))
    scored = [row for row in split if row["correct"] is not None]
    if one.effect is None:
        yield from _differ(place, f"{name}.effect", None, None if not scored else "scored examples in the split")
    else:
        yield from _check_effect(place, f"{name}.effect", report, one.effect, scored)
    yield from _differ(place, f"{name}.verdict", one.verdict, _verdict(one, overlap))
    yield from _check_sweep(place, f"{name}.sweep", report, one, split)


def _check_sweep(place: str, name: str, report: Report, one: SetReport, split: list[_Row]) -> Iterator[str]:
    """The set, cut anew at each distance."""
    limit = one.thresholds.pdq_distance
    distances = [step.distance for step in one.sweep]
    expected = sorted({*(k for k in range(limit) if k % max(1, limit // 8) == 0), limit})
    yield from _differ(place, f"{name}.distance", distances, expected)
    for step in one.sweep:
        cut = [
            {**row, "in_overlap": row["method"] in EXACT or (row["method"] == "pdq" and _at_most(row, step.distance))}
            for row in split
        ]
        where = f"{name}.{step.distance}"
        overlap = sum(row["in_overlap"] is True for row in cut)
        yield from _differ(place, f"{where}.overlapping", step.overlapping, overlap)
        scored = [row for row in cut if row["correct"] is not None] if one.effect is not None else []
        touched = [row for row in scored if row["in_overlap"]]
        rest = [row for row in scored if not row["in_overlap"]]
        yield from _differ(place, f"{where}.scored", step.scored, len(touched))
        (k_all, n_all), (k_clean, n_clean) = twin.right_of(scored), twin.right_of(rest)
        inflation = k_all / n_all - k_clean / n_clean if n_clean and touched else None
        yield from _differ(place, f"{where}.all_minus_clean", step.all_minus_clean, inflation)
        clean_units, overlap_units = (twin.right_of(rows) for rows in twin.units(scored))
        both = clean_units[1] > 0 and overlap_units[1] > 0
        difference = twin.difference(overlap_units, clean_units, report.statistics.confidence) if both else None
        yield from _check_difference(place, f"{where}.difference", step.difference, difference)
        p_value = (
            binomtest(*overlap_units, clean_units[0] / clean_units[1], alternative="greater").pvalue if both else None
        )
        yield from _differ(place, f"{where}.p_value", step.p_value, p_value)


def _at_most(row: _Row, distance: int) -> bool:
    return isinstance(row["pdq_distance"], int) and row["pdq_distance"] <= distance


def _check_nearest(
    place: str, one: SetReport, near: list[_Row], own: list[_Row], split: list[_Row], sampled: list[int]
) -> Iterator[str]:
    """The sample is the one that the ids choose, distances are those of the hashes, and no match is nearer than the nearest."""
    rows = [row["eval_row"] for row in near]
    if rows not in (sampled, []):
        yield f"{place}: set {one.name!r}: holds other examples than the sample that their ids choose; write the report again"
        return
    matched: dict[object, int] = {}
    for pair in own:
        least = one.thresholds.pdq_quality
        if pair["pdq_distance"] is not None and int(str(pair["pdq_quality"])) >= least:
            bits = int(str(pair["pdq_distance"]))
            matched[pair["eval_row"]] = min(bits, matched.get(pair["eval_row"], bits))
    for row in near:
        example = split[int(str(row["eval_row"]))]
        where = f"{place}: set {one.name!r}: example {row['eval_id']!r}"
        if example["eval_id"] != row["eval_id"] or int(str(row["pdq_quality"])) < one.thresholds.pdq_quality:
            yield f"{where}: is another example in the split table, or its nearest picture has too little texture"
        if _bits(example["pdq256"], row["pdq256"]) != row["pdq_distance"]:
            yield f"{where}: its distance is not that of its hashes"
        bits, match = int(str(row["pdq_distance"])), matched.get(row["eval_row"])
        if match is not None and match < bits:
            yield f"{where}: a pair of it is nearer than the nearest picture"
        if bits <= one.thresholds.pdq_distance and match != bits:
            yield f"{where}: its nearest picture is within the threshold and not among its pairs"


def _check_histogram(place: str, one: SetReport, near: list[_Row]) -> Iterator[str]:
    name = f"sets.{one.name}.nearest"
    distances = [int(str(row["pdq_distance"])) for row in near]
    counts = Counter(bits >> 3 for bits in distances)
    yield from _differ(place, f"{name}.sampled", one.nearest.sampled, len(distances))
    yield from _differ(place, f"{name}.counts", one.nearest.counts, [counts[bin] for bin in range(33)])
    yield from _differ(place, f"{name}.median", one.nearest.median, float(median(distances)) if distances else None)


def _check_effect(place: str, name: str, report: Report, effect: Effect, scored: list[_Row]) -> Iterator[str]:
    """The splits by examples, and the tests by units."""
    confidence, alpha = report.statistics.confidence, report.statistics.alpha / report.statistics.tests
    clean_units, overlap_units = twin.units(scored)
    sides = {
        "all": scored,
        "clean": [row for row in scored if not row["in_overlap"]],
        "overlap": [row for row in scored if row["in_overlap"]],
        "clean_units": clean_units,
        "overlap_units": overlap_units,
    }
    counts = {key: twin.right_of(rows) for key, rows in sides.items()}
    for key, (hits, n) in counts.items():
        yield from _check_share(place, f"{name}.{key}", getattr(effect, key), hits, n, confidence)
    (k_all, n_all), (k_clean, n_clean) = counts["all"], counts["clean"]
    inflation = k_all / n_all - k_clean / n_clean if n_clean else None
    yield from _differ(place, f"{name}.all_minus_clean", effect.all_minus_clean, inflation)
    yield from _differ(place, f"{name}.alpha", effect.alpha, alpha)
    root = effect.model_content_root
    same_corpus = None if root is None else root == report.corpus.content_root
    yield from _differ(place, f"{name}.same_corpus", effect.same_corpus, same_corpus)
    clean, overlap = counts["clean_units"], counts["overlap_units"]
    if clean[1] and overlap[1]:
        null = clean[0] / clean[1]
        yield from _differ(
            place, f"{name}.p_value", effect.p_value, binomtest(*overlap, null, alternative="greater").pvalue
        )
        gain = twin.detectable_gain(overlap[1], null, alpha)
        yield from _differ(place, f"{name}.detectable_gain", effect.detectable_gain, gain)
        difference = twin.difference(overlap, clean, confidence)
        yield from _check_difference(place, f"{name}.difference", effect.difference, difference)
        largest = max(0.0, difference[2]) * counts["overlap"][1] / n_all
        yield from _differ(place, f"{name}.largest_inflation", effect.largest_inflation, largest)
        table = [[hits, n - hits] for hits, n in (overlap, clean)]
        yield from _differ(
            place, f"{name}.exact_p", effect.exact_p, float(fisher_exact(table, alternative="greater").pvalue)
        )
        tables = twin.strata(clean_units, overlap_units)
        within = effect.by_class
        stated = None if within is None else (within.classes, within.units)
        yield from _differ(place, f"{name}.by_class", stated, (len(tables), sum(sum(one) for one in tables)))
        if within is not None:
            yield from _differ(place, f"{name}.by_class.p_value", within.p_value, twin.exact_p(tables))
            adjusted = twin.common_difference(tables, confidence)
            yield from _check_difference(place, f"{name}.by_class.difference", within.difference, adjusted)
    else:
        for key in ("p_value", "detectable_gain", "difference", "largest_inflation", "exact_p", "by_class"):
            yield from _differ(place, f"{name}.{key}", getattr(effect, key), None)


def _check_difference(
    place: str, name: str, stated: Difference | None, computed: tuple[float, float, float] | None
) -> Iterator[str]:
    if stated is None or computed is None:
        yield from _differ(place, name, stated, computed)
        return
    for key, value in zip(("value", "low", "high"), computed, strict=True):
        yield from _differ(place, f"{name}.{key}", getattr(stated, key), value)


def _check_holm(place: str, report: Report) -> Iterator[str]:
    """Holm's correction by its definition: the largest of the corrected p values up to a set's own."""
    p_values = {one.name: one.effect.p_value for one in report.sets if one.effect and one.effect.p_value is not None}
    for one in report.sets:
        if one.effect is None:
            continue
        own = p_values.get(one.name)
        corrected = [
            min(1.0, p * sum(other >= p for other in p_values.values()))
            for p in p_values.values()
            if own is not None and p <= own
        ]
        yield from _differ(place, f"sets.{one.name}.effect.holm_p", one.effect.holm_p, max(corrected, default=None))


def _check_labels(table: str, place: str, one: SetReport, answers: list[_Row], near: list[_Row]) -> Iterator[str]:
    """Answers are to pairs of the sample, and the curve, the agreement, the choice and the band follow from them."""
    asked = {(row["eval_row"], row["eval_id"], row["uid"], row["pdq_distance"]) for row in near}
    for row in answers:
        if (row["eval_row"], row["eval_id"], row["uid"], row["pdq_distance"]) not in asked:
            yield f"{table}: set {one.name!r}: example {row['eval_id']!r} is not among the nearest pictures; write the report again"
            return
    if len({(row["eval_row"], row["rater"]) for row in answers}) != len(answers):
        yield f"{table}: set {one.name!r}: a rater answers a pair twice; write the report again"
        return
    name, stated = f"sets.{one.name}.calibration", one.calibration
    if stated is None or not answers:
        yield from _differ(place, name, stated is None, not answers)
        return
    found = twin.calibration(answers, near)
    for key in ("raters", "answers", "kappa", "chosen", "band"):
        yield from _differ(place, f"{name}.{key}", getattr(stated, key), found[key])
    curve = found["curve"]
    yield from _differ(
        place, f"{name}.curve", [point.distance for point in stated.curve], [row["distance"] for row in curve]
    )
    for point, row in zip(stated.curve, curve, strict=False):
        for key, value in row.items():
            yield from _differ(place, f"{name}.curve.{point.distance}.{key}", getattr(point, key), value)


def _check_copies(
    table: str, place: str, one: SetReport, copied: list[_Row], asked: set[int], confidence: float
) -> Iterator[str]:
    """The recalls from the distances of the copies, counted one by one; the copies are of the sampled examples only."""
    if not {row["eval_row"] for row in copied} <= asked:
        yield f"{table}: set {one.name!r}: holds other examples than the sample that their ids choose; write the report again"
    if len({(row["eval_row"], row["transform"]) for row in copied}) != len(copied):
        yield f"{table}: set {one.name!r}: a copy comes twice; write the report again"
    limits, name = one.thresholds, f"sets.{one.name}.copies"
    counts: dict[str, list[int]] = {}
    for row in copied:
        pdq, phash, quality = (int(str(row[key])) for key in ("pdq_distance", "phash_distance", "pdq_quality"))
        near = quality >= limits.pdq_quality and pdq <= limits.pdq_distance
        alike = quality >= limits.pdq_quality and phash <= limits.phash_distance and pdq <= limits.phash_pdq_distance
        before = counts.setdefault(str(row["transform"]), [0, 0, 0, 0])
        for slot, value in enumerate((1, near or alike, near, alike)):
            before[slot] += value
    yield from _differ(place, f"{name}.transform", [recall.transform for recall in one.copies], list(counts))
    for recall in one.copies:
        n, both, near_, alike_ = counts.get(recall.transform, [0, 0, 0, 0])
        yield from _check_share(place, f"{name}.{recall.transform}.found", recall.found, both, n, confidence)
        yield from _differ(place, f"{name}.{recall.transform}.pdq", recall.pdq, near_)
        yield from _differ(place, f"{name}.{recall.transform}.phash", recall.phash, alike_)


def _verdict(one: SetReport, overlap: int) -> str:
    effect = one.effect
    if overlap == 0:
        return "clean"
    if effect is None:
        return "overlap, not scored"
    if effect.p_value is not None and effect.p_value <= effect.alpha:
        return "overlap, effect"
    blind = effect.p_value is None or effect.detectable_gain is None or effect.detectable_gain > 0.1
    return "not testable" if blind else "overlap, no effect seen"


def _check_share(place: str, name: str, stated: Share, hits: int, n: int, confidence: float) -> Iterator[str]:
    yield from _differ(place, f"{name}.n", stated.n, n)
    yield from _differ(place, f"{name}.hits", stated.hits, hits)
    yield from _differ(place, f"{name}.value", stated.value, hits / n if n else None)
    interval = binomtest(hits, n).proportion_ci(confidence, method="exact") if n else (0.0, 1.0)
    yield from _differ(place, f"{name}.low", stated.low, float(interval[0]))
    yield from _differ(place, f"{name}.high", stated.high, float(interval[1]))


def _differ(place: str, name: str, stated: object, computed: object) -> Iterator[str]:
    """A sentence when two values differ; numbers may differ by the tolerance."""
    if isinstance(stated, float) and isinstance(computed, (int, float)):
        same = abs(stated - computed) <= TOLERANCE
    else:
        same = stated == computed
    if not same:
        yield f"{place}: {name} is {stated!r}, the tables give {computed!r}; write the report again"
