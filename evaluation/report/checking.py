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

import pyarrow as pa
import pydantic
from scipy.stats import binomtest, fisher_exact

from evaluation.config import OverlapConfig
from evaluation.overlap.tables import KEYED_PAIR_SCHEMA, METHODS, SPLIT_SCHEMA
from evaluation.report import files, summary, twin
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
    "and predictions), the corpus's size, and the thumbnails and class names on the page"
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
    pairs = _table(directory, files.PAIRS, KEYED_PAIR_SCHEMA)
    removal = storage.read_bytes(storage.join(directory, files.REMOVAL)).decode("utf-8", "replace").split("\n")
    if removal != [*_removal(report, pairs), ""]:
        yield f"{storage.join(directory, files.REMOVAL)}: is not the list of rows in pairs.parquet; write the report again"
    splits = {one.name: _table(directory, files.split_name(one.name), SPLIT_SCHEMA) for one in report.sets}
    for stranger in sorted({str(row["set"]) for row in pairs} - set(splits)):
        yield f"{storage.join(directory, files.PAIRS)}: names a set {stranger!r} that report.json does not have"
    methods = {str(row["method"]) for row in pairs} - set(METHODS)
    if methods:
        yield f"{storage.join(directory, files.PAIRS)}: {', '.join(sorted(methods))!r} is no method of matching; write the report again"
        return
    tests = sum(_both_sides(split) for split in splits.values())
    yield from _differ(place, "statistics.tests", report.statistics.tests, max(1, tests))
    yield from _check_holm(place, report)
    over = [one.name for one in report.sets if one.over_limit]
    yield from _differ(place, "over_limit", report.over_limit, over)
    yield from _check_corpus(place, report, pairs)
    text = storage.read_bytes(storage.join(directory, files.PAGE))
    for problem in check_page(text, report, pairs, splits, _config(seal).report.pairs_shown):
        yield f"{storage.join(directory, files.PAGE)}: {problem}; write the report again"
    for one in report.sets:
        own = [row for row in pairs if row["set"] == one.name]
        yield from _check_pairs(storage.join(directory, files.PAIRS), one, own, splits[one.name])
        yield from _check_set(place, report, one, own, splits[one.name])


def _removal(report: Report, pairs: list[_Row]) -> list[str]:
    """The lines of removal_ids.txt."""
    if report.corpus.kind == "shards":
        return sorted({_digest(row["uid"]) for row in pairs})
    lines = {(str(row["shard"]), int(str(row["row"]))): str(row["key"] or "") for row in pairs}
    return ["\t".join((shard, str(row), lines[shard, row])) for shard, row in sorted(lines)]


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
    stated = [(one.name, one.limit, one.thresholds) for one in report.sets]
    asked = [(one.name, one.limit, one.thresholds or config.match) for one in config.sets]
    yield from _differ(place, "sets: name, limit, thresholds", stated, asked)


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
