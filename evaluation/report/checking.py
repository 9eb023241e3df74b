"""`verify`: every number of a report, computed a second time from its tables with arithmetic of another hand.

The report's own statistics are incomplete beta functions (`overlap.statistics`); here scipy's binomial test and its interval search are
used instead, the splits are derived from the pairs again, and every distance from the hashes. Before that, every file is compared with
its sha256, the manifest with its own digest, and the folder with the manifest. The answer is a list of sentences; an empty one
means that nothing differs.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from scipy.optimize import brentq
from scipy.stats import binom, binomtest

from evaluation.overlap.tables import METHODS, PAIR_SCHEMA, SPLIT_SCHEMA
from evaluation.report import files, summary
from evaluation.report.schema import Effect, Report, SetReport, Share
from pipeline.contracts import parquet, storage
from pipeline.contracts.config import digest_json
from pipeline.contracts.errors import HouseError, InputError

TOLERANCE = 1e-9  # of scipy's interval search; the report's own figures are good to 1e-12
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
    expected = {
        "corpus_content_root": report.corpus.content_root,
        "config_digest": report.config_digest,
        "sets": {one.name: one.content_hash for one in report.sets},
    }
    for name, value in expected.items():
        if seal.inputs.get(name) != value:
            yield f"{place}: {name} is {value!r}, the manifest says {seal.inputs.get(name)!r}; write the report again"
    if summary.as_csv(report) != storage.read_bytes(storage.join(directory, files.SUMMARY)):
        yield f"{storage.join(directory, files.SUMMARY)}: differs from report.json; write the report again"
    digest = hashlib.sha256(storage.read_bytes(place)).hexdigest()
    if digest not in storage.read_text(storage.join(directory, files.PAGE)):
        yield f"{storage.join(directory, files.PAGE)}: was made from another report.json; write the report again"
    pairs = _table(directory, files.PAIRS, PAIR_SCHEMA)
    removal = storage.read_text(storage.join(directory, files.REMOVAL)).split()
    if removal != sorted({_digest(row["uid"]) for row in pairs}):
        yield f"{storage.join(directory, files.REMOVAL)}: is not the list of uids in pairs.parquet; write the report again"
    splits = {one.name: _table(directory, files.split_name(one.name), SPLIT_SCHEMA) for one in report.sets}
    for wrong in sorted({str(row["set"]) for row in pairs} - set(splits)):
        yield f"{storage.join(directory, files.PAIRS)}: names a set {wrong!r} that report.json does not have"
    tests = sum(_both_sides(split) for split in splits.values())
    yield from _differ(place, "statistics.tests", report.statistics.tests, max(1, tests))
    over = [one.name for one in report.sets if one.over_limit]
    yield from _differ(place, "over_limit", report.over_limit, over)
    for one in report.sets:
        own = [row for row in pairs if row["set"] == one.name]
        yield from _check_pairs(storage.join(directory, files.PAIRS), one, own, splits[one.name])
        yield from _check_set(place, report, one, own, splits[one.name])


def _table(directory: str, name: str, schema: pa.Schema) -> list[_Row]:
    uri = storage.join(directory, name)
    table = parquet.read(uri)
    if table.schema != schema:
        raise InputError(f"{uri}: columns differ from this version of the report; write the report again")
    rows: list[_Row] = table.to_pylist()
    return rows


def _both_sides(split: list[_Row]) -> bool:
    return {row["in_overlap"] for row in split if row["correct"] is not None} == {True, False}


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
        if known and (pdq, phash) != (pair["pdq_distance"], pair["phash_distance"]):
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
        strongest = next((method for method in METHODS if holds[method]), None)
        if strongest != pair["method"]:
            yield f"{where}: is a match by {strongest or 'no method'}, not by {pair['method']}"
        rank = METHODS.index(str(pair["method"]))
        best[pair["eval_row"]] = min(best.get(pair["eval_row"], (rank, "")), (rank, ""))
    for row in split:
        method = METHODS[best[row["eval_row"]][0]] if row["eval_row"] in best else None
        if row["in_overlap"] != (method is not None) or row["method"] != method:
            yield f"{place}: set {one.name!r}: example {row['eval_id']!r}: its pairs say {method}, its split {row['method']}"


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
    flat = sum(int(str(row["pdq_quality"])) < one.thresholds.pdq_quality for row in split)
    yield from _differ(place, f"{name}.too_flat", one.too_flat, flat)
    yield from _check_share(place, f"{name}.found.share", one.found.share, overlap, len(split), confidence)
    yield from _differ(place, f"{name}.found.by_method", one.found.by_method, {key: methods[key] for key in METHODS})
    yield from _differ(place, f"{name}.found.pairs", one.found.pairs, len(own))
    yield from _differ(place, f"{name}.found.corpus_rows", one.found.corpus_rows, len({row["uid"] for row in own}))
    yield from _differ(place, f"{name}.over_limit", one.over_limit, overlap > one.limit * len(split))
    scored = [row for row in split if row["correct"] is not None]
    if one.effect is None:
        yield from _differ(place, f"{name}.effect", None, None if not scored else "scored examples in the split")
    else:
        yield from _check_effect(place, f"{name}.effect", report, one.effect, scored)
    yield from _differ(place, f"{name}.verdict", one.verdict, _verdict(one, overlap))


def _check_effect(place: str, name: str, report: Report, effect: Effect, scored: list[_Row]) -> Iterator[str]:
    confidence, alpha = report.statistics.confidence, report.statistics.alpha / report.statistics.tests
    sides = {
        "all": scored,
        "clean": [row for row in scored if not row["in_overlap"]],
        "overlap": [row for row in scored if row["in_overlap"]],
    }
    counts = {key: (sum(row["correct"] is True for row in rows), len(rows)) for key, rows in sides.items()}
    for key, (hits, n) in counts.items():
        yield from _check_share(place, f"{name}.{key}", getattr(effect, key), hits, n, confidence)
    (k_all, n_all), (k_clean, n_clean), (k, n) = (counts[key] for key in ("all", "clean", "overlap"))
    yield from _differ(
        place, f"{name}.all_minus_clean", effect.all_minus_clean, k_all / n_all - k_clean / n_clean if n_clean else None
    )
    yield from _differ(place, f"{name}.alpha", effect.alpha, alpha)
    yield from _differ(
        place,
        f"{name}.same_corpus",
        effect.same_corpus,
        None if effect.model_content_root is None else effect.model_content_root == report.corpus.content_root,
    )
    p_value = binomtest(k, n, k_clean / n_clean, alternative="greater").pvalue if n and n_clean else None
    yield from _differ(place, f"{name}.p_value", effect.p_value, p_value)
    gain = detectable_gain(n, k_clean / n_clean, alpha) if n and n_clean else None
    yield from _differ(place, f"{name}.detectable_gain", effect.detectable_gain, gain)


def detectable_gain(n: int, null: float, alpha: float) -> float | None:
    """The gain at which the test rejects four times in five, by root finding on the binomial tail; None where it never rejects."""
    rejecting = np.flatnonzero(
        binom.sf(np.arange(n), n, null) <= alpha
    )  # place k: the test rejects from k + 1 right answers on
    if not len(rejecting):
        return None
    last = int(rejecting[0])
    truth = brentq(lambda accuracy: float(binom.sf(last, n, accuracy)) - 0.8, 0.0, 1.0, xtol=1e-13)
    return max(0.0, float(truth) - null)


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
