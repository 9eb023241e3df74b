"""`python -m evaluation overlap`, from top to bottom: evaluation sets × corpus → report.

1. Open the sets and the corpus (`corpus`); refuse what cannot be compared. The files of a corpus that others wrote are listed and
   indexed here, by two stages of their own.
2. Stage `codes`: hash every evaluation picture by the corpus's own rule (units of some thousand pictures).
3. Stage `join`: one unit per index (of a shard, or of rows of a foreign file), against all codes (`join.join_shard`), and the nearest
   picture of some (`nearest`).
4. Stage `copies`: some pictures of each set, changed in stated ways and searched (`copies`).
5. Stage `text`: captions and class names of the sets in the captions of each shard (`text_stage`).
6. Cut each set into Overlap and Clean, score the splits, choose the evidence, write the report.

Stages run on Ray through `pipeline.engine`: committed units, so that a killed job continues where it was. Their tables lie in
`report.work`, beside the report and not in it. Everything after the stages is one process and deterministic; the report's files do not
depend on what happened on the way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from evaluation.config import OverlapConfig, Thresholds
from evaluation.datasets import open_set
from evaluation.datasets.catalogue import metric_of
from evaluation.overlap import copies, join, kept, nearest, text, text_stage, thresholds
from evaluation.overlap import corpus as corpora
from evaluation.overlap.corpus import Corpus
from evaluation.overlap.join import EvalCodes
from evaluation.overlap.splits import Predictions, read_predictions, split_set, with_scores
from evaluation.overlap.tables import CODE_SCHEMA, COPY_SCHEMA, FOUND_SCHEMA, KEY, METHODS, PAIR_SCHEMA
from evaluation.report import evidence, files, numbers, page, summary, text_evidence
from evaluation.report.schema import Report
from pipeline.content.hashes import HASH_SHORT_SIDE, HASH_VERSION, picture_hashes
from pipeline.content.image import ImageRejected, decode
from pipeline.content.labelled import LabelledSet
from pipeline.contracts import config as contracts_config
from pipeline.contracts import parquet, storage
from pipeline.contracts.config import Json
from pipeline.contracts.errors import InputError
from pipeline.engine import EngineConfig, Result, Run, Stage, Unit, stage_digest, stage_folder

NEAREST_SUFFIX = ".nearest.parquet"
FOUND_SUFFIX = ".found.parquet"
MATCHED_SUFFIX = ".matched.parquet"
ROWS_PER_UNIT = 2000
CODES_VERSION = 1
COPIES_VERSION = 1


def run(config: OverlapConfig) -> Report:
    """Do the whole job and return the report that was written to `config.report.dir`."""
    sets = [open_set(one) for one in config.sets]
    predictions = [_predictions(config, number, one) for number, one in enumerate(sets)]
    texts = [
        text.open_text(one, one.text or config.text, labelled) for one, labelled in zip(config.sets, sets, strict=True)
    ]
    corpus = _open_corpus(config)
    inputs = _inputs(config, corpus, sets, predictions, texts)
    files.check_free(config.report.dir, inputs)
    limits = [one.thresholds or config.match for one in config.sets]
    with _driver(config) as driver:
        codes, codes_root = _hash_sets(driver, sets)
        joined = _join(driver, config, corpus, codes, codes_root, limits)
        labels = thresholds.read_labels(config.labels, joined.closest)
        planted = _plant_copies(driver, config.copies.examples, sets, codes)
        findings = text_stage.search(driver, corpus, texts, sets, joined.pairs, config.report)
    results = [
        numbers.SetResult(
            one.name,
            one.content_hash,
            limits[number],
            config.sets[number].limit,
            metric_of(config.sets[number].dataset, config.sets[number].metric),
            _split(number, codes, one, joined, limits[number], known, words, findings, config.report.evidence),
            known,
            words,
            joined.corpus_rows[one.name],
            findings.corpus_rows[one.name],
        )
        for number, (one, known, words) in enumerate(zip(sets, predictions, texts, strict=True))
    ]
    kind = corpus.about.kind
    removed = files.removal_bytes(joined.matched, kind), files.removal_bytes(findings.matched, kind, joined.matched)
    report = numbers.build_report(
        results,
        numbers.Tables(joined.closest, planted, labels),
        findings,
        corpus.about.model_copy(update={"rows_without_hashes": joined.hashless}),
        config.statistics,
        config_digest=contracts_config.digest(config),
        evidence=config.report.evidence,
        pairs_kept=config.report.pairs_kept,
        removed=[lines.count(b"\n") for lines in removed],
        labels=[storage.sha256_file(place) for place in config.labels],
    )
    tables = {
        files.PAIRS: findings.pairs,
        files.NEAREST: joined.closest,
        files.COPIES: planted,
        files.LABELS: labels,
        files.TEXT_PAIRS: findings.text_pairs,
        files.CLASSES: findings.classes,
    }
    lists = dict(zip((files.REMOVAL, files.REMOVAL_TEXT), removed, strict=True))
    _write(config, report, results, tables, lists, sets, corpus, inputs)
    return report


def _split(
    number: int,
    codes: EvalCodes,
    labelled: LabelledSet,
    joined: Joined,
    limits: Thresholds,
    known: Predictions | None,
    words: text.SetText,
    findings: text.Findings,
    evidence: str,
) -> pa.Table:
    """The published split of one set: what was found of its pictures and captions, and what the model said."""
    correct = None if known is None else known.correct
    split = split_set(number, codes, labelled.labels, joined.pairs, joined.found, limits, correct)
    own, counts = (
        table.filter(pc.equal(table["set"], labelled.name)) for table in (findings.text_pairs, findings.found)
    )
    return with_scores(text.with_text(split, words.written, own, counts, evidence == "hash-only"), known)


def work_folder(config: OverlapConfig) -> str:
    """Where the committed units lie."""
    return config.report.work or config.report.dir.rstrip("/") + ".work"


def _driver(config: OverlapConfig) -> Run:
    engine = EngineConfig(address=config.engine.address, workers=config.engine.workers)
    return Run(work_folder(config), engine, contracts_config.semantic(config), contracts_config.digest(config))


def plan(config: OverlapConfig) -> str:
    """What a run would do, for `--check`: opens a local manifest, or looks at the names of local files, and nothing else.

    Raises InputError where they are missing or are refused.
    """
    names = ", ".join(one.name for one in config.sets)
    end = f"report in {config.report.dir}, committed units in {work_folder(config)}"
    return f"sets: {names}; {corpora.plan(config.corpus)}; {end}"


def _open_corpus(config: OverlapConfig) -> Corpus:
    if config.corpus.manifest is not None:
        return corpora.of_manifest(config.corpus.manifest)
    found = corpora.find_files(config.corpus)
    with _driver(config) as driver:
        return corpora.of_files(driver, found, config.corpus, withhold=config.report.evidence == "hash-only")


# ---- what must fit together


def _predictions(config: OverlapConfig, number: int, labelled: LabelledSet) -> Predictions | None:
    uri = config.sets[number].predictions
    if uri is None:
        return None
    one = config.sets[number]
    return read_predictions(uri, labelled, storage.sha256_file(uri), metric_of(one.dataset, one.metric))


def _inputs(
    config: OverlapConfig,
    corpus: Corpus,
    sets: list[LabelledSet],
    predictions: list[Predictions | None],
    texts: list[text.SetText],
) -> dict[str, Json]:
    return {
        "corpus_content_root": corpus.about.content_root,
        "config": contracts_config.semantic(config),
        "config_digest": contracts_config.digest(config),
        "sets": {one.name: one.content_hash for one in sets},
        "predictions": {
            one.name: {"predictions_sha256": known.sha256, "model": known.model, "content_root": known.content_root}
            for one, known in zip(sets, predictions, strict=True)
            if known is not None
        },
        "labels": [storage.sha256_file(place) for place in config.labels],
        "names_sha256": {one.name: list[Json](one.names_sha256) for one in texts if one.names_sha256},
        "hashes": dict(HASH_VERSION),
    }


# ---- stage codes


@dataclass(frozen=True)
class _CodesWork:
    """Rows of one set → their CODE_SCHEMA rows."""

    sets: list[LabelledSet]

    def read(self, unit: Unit) -> pa.Table:
        start, stop = int(str(unit.params["start"])), int(str(unit.params["stop"]))
        return pa.table({"eval_row": pa.array(range(start, stop), pa.int64())})

    def work(self, rows: pa.Table, unit: Unit) -> Result:
        labelled = self.sets[int(str(unit.params["set"]))]
        return Result(hash_pictures(labelled, rows["eval_row"].to_pylist()))


def hash_pictures(labelled: LabelledSet, rows: list[int]) -> pa.Table:
    """CODE_SCHEMA rows of a set's pictures. Raises InputError for a picture that cannot be opened."""
    found = []
    for picture in labelled.pictures(rows):
        try:
            hashes = picture_hashes(decode(picture.data, min_short_side=HASH_SHORT_SIDE))
        except ImageRejected as rejected:
            raise InputError(
                f"set {labelled.name!r} ({labelled.path}): picture {picture.id!r} cannot be opened ({rejected}); "
                "mend the file or leave the row out of the set"
            ) from None
        found.append((picture.row, picture.id, labelled.sha256[picture.row], hashes))
    return pa.table(
        [
            pa.array([row for row, _, _, _ in found], pa.int64()),
            pa.array([name for _, name, _, _ in found], pa.string()),
            pa.array([digest for _, _, digest, _ in found], pa.binary(32)),
            pa.array([hashes.phash64 for _, _, _, hashes in found], pa.uint64()),
            pa.array([hashes.pdq256 for _, _, _, hashes in found], pa.binary(32)),
            pa.array([hashes.pdq_quality for _, _, _, hashes in found], pa.uint8()),
        ],
        schema=CODE_SCHEMA,
    )


def _hash_sets(driver: Run, sets: list[LabelledSet]) -> tuple[EvalCodes, str]:
    roots = [one.content_hash for one in sets]
    hashes: dict[str, Json] = dict(HASH_VERSION)
    work = _CodesWork(sets)
    stage = Stage("codes", stage_digest("codes", CODES_VERSION, hashes, roots), work.read, work.work)
    units = [
        Unit(
            f"{number:04d}-{start:08d}",
            (labelled.content_hash,),
            {"set": number, "start": start, "stop": min(start + ROWS_PER_UNIT, len(labelled))},
        )
        for number, labelled in enumerate(sets)
        for start in range(0, len(labelled), ROWS_PER_UNIT)
    ]
    records = driver.stage(stage, units)
    tables: list[list[pa.Table]] = [[] for _ in sets]
    folder = stage_folder(driver.out, stage)
    for unit, record in zip(units, records, strict=True):
        tables[int(str(unit.params["set"]))].append(parquet.read(storage.join(folder, record.output.name)))
    codes = EvalCodes([one.name for one in sets], [pa.concat_tables(pieces) for pieces in tables])
    return codes, contracts_config.digest_json([record.output.sha256 for record in records])


# ---- stage join


@dataclass(frozen=True)
class _JoinWork:
    """An index → its matches (pairs: the nearest `keep` of each example and method), and the nearest rows of the `sample`. `folder`, below
    which indexes lie, is a place and in no digest.

    `withhold`: URLs and captions of the corpus are not even read, the pairs have null there.
    """

    folder: str
    codes: EvalCodes
    sample: NDArray[np.int64]
    limits: list[Thresholds]
    keep: int
    withhold: bool

    def read(self, unit: Unit) -> pa.Table:
        return corpora.read_index(self.folder, str(unit.params["index"]), withhold=self.withhold)

    def work(self, index: pa.Table, unit: Unit) -> Result:
        hashless, shard = index["pdq256"].null_count, str(unit.params["shard"])
        joined = join.join_shard(index, shard, self.codes, self.limits, keep=self.keep)
        closest = nearest.nearest_in_shard(index, shard, self.codes, self.sample, self.limits)
        beside = {
            NEAREST_SUFFIX: corpora.in_files(closest, index),
            FOUND_SUFFIX: joined.found,
            MATCHED_SUFFIX: corpora.keyed(joined.matched, index),
        }
        notes: dict[str, Json] = {"rows_without_hashes": hashless, "corpus_rows": dict[str, Json](joined.corpus_rows)}
        return Result(corpora.keyed(joined.pairs, index), beside=beside, notes=notes)


class Joined(NamedTuple):
    """What the stage gives of the whole corpus: the pairs that are held, in order; the nearest row of every sampled example; FOUND_SCHEMA
    rows of every example, the matched rows as `files.matched_rows` has them, how many of them each set has, and how many of the corpus's
    rows have no hashes."""

    pairs: pa.Table
    closest: pa.Table
    found: pa.Table
    matched: pa.Table
    corpus_rows: dict[str, int]
    hashless: int


def _join(
    driver: Run,
    config: OverlapConfig,
    corpus: Corpus,
    codes: EvalCodes,
    codes_root: str,
    limits: list[Thresholds],
) -> Joined:
    shown, examples, keep = config.report.evidence, config.nearest.examples, config.report.pairs_kept
    sample = nearest.sample_sets(codes, limits, examples)
    work = _JoinWork(corpus.folder, codes, sample, limits, keep, withhold=shown == "hash-only")
    levels: list[Json] = [[name, one.model_dump()] for name, one in zip(codes.names, limits, strict=True)]
    semantic: dict[str, Json] = {
        "sets": levels,
        "evidence": shown,
        "nearest": examples,
        "keys": KEY.name,
        "pairs_kept": keep,
    }
    digest = stage_digest("join", join.FORMAT_VERSION, semantic, [codes_root])
    stage = Stage("join", digest, work.read, work.work, accounted=False)
    units = [
        Unit(
            f"{number:06d}-{index.sha256[:12]}",
            (index.sha256,),
            {"shard": index.shard, "index": index.path},
        )
        for number, index in enumerate(corpus.indexes)
    ]
    records = driver.stage(stage, units)
    folder = stage_folder(driver.out, stage)

    def beside(suffix: str) -> Iterator[pa.Table]:
        return (parquet.read(storage.join(folder, record.beside[suffix].name)) for record in records)

    tables = (parquet.read(storage.join(folder, record.output.name)) for record in records if record.rows_out)
    pairs = kept.folded(tables, PAIR_SCHEMA.append(KEY).empty_table(), lambda rows: kept.nearest_pairs(rows, keep))
    return Joined(
        _in_order(pairs, codes.names),
        nearest.nearest_of_all(beside(NEAREST_SUFFIX), codes.names),
        kept.folded(
            beside(FOUND_SUFFIX),
            FOUND_SCHEMA.empty_table(),
            lambda rows: kept.summed(rows, ("set", "eval_row"), ("phash_distance",)).cast(FOUND_SCHEMA),
        ),
        files.matched_rows(beside(MATCHED_SUFFIX), corpus.about.kind),
        kept.added((record.notes["corpus_rows"] for record in records), codes.names),
        sum(int(str(record.notes["rows_without_hashes"])) for record in records),
    )


# ---- stage copies


@dataclass(frozen=True)
class _CopiesWork:
    """Some rows of one set → their COPY_SCHEMA rows."""

    sets: list[LabelledSet]
    chosen: list[list[int]]

    def read(self, unit: Unit) -> pa.Table:
        return pa.table({"eval_row": pa.array(self.chosen[int(str(unit.params["set"]))], pa.int64())})

    def work(self, rows: pa.Table, unit: Unit) -> Result:
        return Result(copies.hash_copies(self.sets[int(str(unit.params["set"]))], rows["eval_row"].to_pylist()))


def _plant_copies(driver: Run, examples: int, sets: list[LabelledSet], codes: EvalCodes) -> pa.Table:
    """COPY_SCHEMA rows of all sets; flat pictures too, for a copy of one is lost as well."""
    roots = [one.content_hash for one in sets]
    chosen = [
        nearest.choose_sample(one.ids, codes.quality[codes.set_number == number], 0, examples).tolist()
        for number, one in enumerate(sets)
    ]
    semantic: dict[str, Json] = {**HASH_VERSION, "examples": examples, "transforms": list(copies.TRANSFORMS)}
    work = _CopiesWork(sets, chosen)
    stage = Stage(
        "copies", stage_digest("copies", COPIES_VERSION, semantic, roots), work.read, work.work, accounted=False
    )
    units = [
        Unit(f"{number:04d}", (one.content_hash,), {"set": number}) for number, one in enumerate(sets) if chosen[number]
    ]
    records = driver.stage(stage, units)
    folder = stage_folder(driver.out, stage)
    tables = [parquet.read(storage.join(folder, record.output.name)) for record in records]
    return pa.concat_tables([COPY_SCHEMA.empty_table(), *tables])


# ---- the pairs of all shards


def _in_order(pairs: pa.Table, names: list[str]) -> pa.Table:
    """By set (as configured), example, strength of the match, place in the corpus."""
    rank = pc.index_in(pairs["set"], value_set=pa.array(names, pa.string()))
    strength = pc.index_in(pairs["method"], value_set=pa.array(METHODS))
    keyed = pairs.append_column("set_rank", rank).append_column("method_rank", strength)
    keys = ("set_rank", "eval_row", "method_rank", "pdq_distance", "shard", "row")
    return keyed.sort_by([(key, "ascending") for key in keys]).select(pairs.column_names).combine_chunks()


# ---- writing


def _write(
    config: OverlapConfig,
    report: Report,
    results: list[numbers.SetResult],
    tables: dict[str, pa.Table],
    lists: dict[str, bytes],
    sets: list[LabelledSet],
    corpus: Corpus,
    inputs: dict[str, Json],
) -> None:
    def of_set(name: str, wanted: str) -> pa.Table:
        return tables[name].filter(pc.equal(tables[name]["set"], wanted))

    figures, room = files.report_bytes(report), evidence.page_room(config.report, len(sets))
    shown = [
        evidence.show(
            labelled,
            result.split,
            of_set(files.PAIRS, labelled.name),
            of_set(files.NEAREST, labelled.name),
            corpus.pictures,
            room,
        )
        for labelled, result in zip(sets, results, strict=True)
    ]
    said = [text_evidence.show(result.split, tables[files.TEXT_PAIRS], result.name, room) for result in results]
    content = {
        files.REPORT: figures,
        files.SCHEMA: files.schema_bytes(),
        files.PAGE: page.render(report, shown, said, hashlib.sha256(figures).hexdigest()).encode(),
        **{name: files.table_bytes(table) for name, table in tables.items()},
        files.SUMMARY: summary.as_csv(report),
        **lists,
        **{files.split_name(result.name): files.table_bytes(result.split) for result in results},
    }
    files.publish(config.report.dir, content, inputs)
