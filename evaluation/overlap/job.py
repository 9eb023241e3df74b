"""`python -m evaluation overlap`, from top to bottom: evaluation sets × corpus → report.

1. Open the sets and the corpus (`corpus`); refuse what cannot be compared. The files of a corpus that others wrote are listed and
   indexed here, by two stages of their own.
2. Stage `codes`: hash every evaluation picture by the corpus's own rule (units of some thousand pictures).
   With a learned descriptor (`[descriptor]`) also stage `vectors`: look at every picture of the corpus, unless another audit did and the
   vectors lie there; and stage `views`: look at the pictures of the sets (`descriptor.stages`).
3. Stage `join`: one unit per index (of a shard, or of rows of a foreign file), against all codes and views (`join_stage`), and the
   nearest picture of some (`nearest`), by PDQ and by the descriptor's score.
4. Stage `copies`: some pictures of each set, changed in stated ways and searched (`copies`).
5. Stage `text`: captions and class names of the sets in the captions of each shard (`text_stage`).
6. Cut each set into Overlap and Clean, score the splits, choose the evidence, write the report.

Stages run on Ray through `pipeline.engine`: committed units, so that a killed job continues where it was. Their tables lie in
`report.work`, beside the report and not in it. Everything after the stages is one process and deterministic; the report's files do not
depend on what happened on the way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from evaluation.config import OverlapConfig, Thresholds
from evaluation.datasets import open_set
from evaluation.datasets.catalogue import metric_of
from evaluation.descriptor.artefact import Descriptor
from evaluation.overlap import copies, exposure, join_stage, nearest, text, text_stage, thresholds
from evaluation.overlap import corpus as corpora
from evaluation.overlap.corpus import Corpus
from evaluation.overlap.join import EvalCodes
from evaluation.overlap.join_stage import Joined
from evaluation.overlap.measures import measures
from evaluation.overlap.seen import CopyScores, Seen
from evaluation.overlap.set_stage import tables_of_sets
from evaluation.overlap.splits import Predictions, read_predictions, split_set, with_scores
from evaluation.overlap.tables import CODE_SCHEMA, COPY_SCHEMA
from evaluation.report import evidence, files, numbers, page, summary, text_evidence
from evaluation.report.schema import Report
from pipeline.commit import Result, Stage, Unit, stage_digest, stage_folder
from pipeline.content.hashes import HASH_SHORT_SIDE, HASH_VERSION, picture_hashes
from pipeline.content.image import ImageRejected, decode
from pipeline.content.labelled import LabelledSet
from pipeline.contracts import config as contracts_config
from pipeline.contracts import parquet, storage
from pipeline.contracts.config import Json
from pipeline.contracts.errors import InputError
from pipeline.engine import EngineConfig, Run

ROWS_PER_UNIT = 2000
CODES_VERSION = 1
COPIES_VERSION = 2


def run(config: OverlapConfig) -> Report:
    """Do the whole job and return the report that was written to `config.report.dir`."""
    descriptor = _descriptor(config)
    sets = [open_set(one) for one in config.sets]
    predictions = [_predictions(config, number, one) for number, one in enumerate(sets)]
    texts = [
        text.open_text(one, one.text or config.text, labelled) for one, labelled in zip(config.sets, sets, strict=True)
    ]
    corpus = _open_corpus(config)
    inputs = _inputs(config, corpus, sets, predictions, texts, descriptor)
    files.check_free(config.report.dir, inputs)
    limits = [one.thresholds or config.match for one in config.sets]
    with _driver(config) as driver:
        codes, codes_root = _hash_sets(driver, sets)
        seen = _look(driver, config, corpus, sets, descriptor)
        joined = join_stage.search(driver, config, corpus, codes, codes_root, limits, seen)
        pairs = _with_exposure(joined, corpus, sets, predictions)
        labels = thresholds.read_labels(config.labels, joined.closest)
        planted = _plant_copies(driver, config.copies.examples, sets, codes, seen)
        findings = text_stage.search(driver, corpus, texts, sets, pairs, config.report)
    results = [
        numbers.SetResult(
            one.name,
            one.content_hash,
            limits[number],
            config.sets[number].limit,
            metric_of(config.sets[number].dataset, config.sets[number].metric),
            _split(
                number, codes, one, pairs, joined.found, limits[number], known, words, findings, config.report.evidence
            ),
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
        descriptor=None if seen is None else seen.about(),
    )
    tables = {
        files.PAIRS: findings.pairs,
        files.NEAREST: joined.closest,
        files.COPIES: planted,
        files.LABELS: labels,
        files.TEXT_PAIRS: findings.text_pairs,
        files.CLASSES: findings.classes,
        files.ROW_GROUPS: corpus.row_groups,
    }
    lists = dict(zip((files.REMOVAL, files.REMOVAL_TEXT), removed, strict=True))
    _write(config, report, results, tables, lists, sets, corpus, inputs)
    return report


def run_and_tell(config: OverlapConfig) -> str:
    """`run`, and what a person should know of it: the figures, where the page is, its root, what comes next."""
    said = summary.as_text(run(config))
    return (
        f"{said}\n\nopen: {storage.join(config.report.dir, files.PAGE)}\n"
        f"root: {files.read_seal(config.report.dir).digest}   (keep it elsewhere; `verify DIR --root HEX` holds the folder against it)\n"
        f"next: python -m evaluation report {config.report.dir}   (exit code 3 when a set is over its limit)"
    )


def _split(
    number: int,
    codes: EvalCodes,
    labelled: LabelledSet,
    pairs: pa.Table,
    found: pa.Table,
    limits: Thresholds,
    known: Predictions | None,
    words: text.SetText,
    findings: text.Findings,
    evidence: str,
) -> pa.Table:
    """The published split of one set: what was found of its pictures and captions, and what the model said."""
    correct = None if known is None else known.correct
    split = split_set(number, codes, labelled, pairs, found, limits, correct)
    own, counts = (
        table.filter(pc.equal(table["set"], labelled.name)) for table in (findings.text_pairs, findings.found)
    )
    split = with_scores(text.with_text(split, words.written, own, counts, evidence == "hash-only"), known)
    return exposure.split_exposure(split, pairs.filter(pc.equal(pairs["set"], labelled.name)))


def work_folder(config: OverlapConfig) -> str:
    """Where the committed units lie."""
    return config.report.work or config.report.dir.rstrip("/") + ".work"


def _driver(config: OverlapConfig) -> Run:
    return Run(work_folder(config), _engine(config), contracts_config.semantic(config), contracts_config.digest(config))


def _engine(config: OverlapConfig) -> EngineConfig:
    return EngineConfig(address=config.engine.address, workers=config.engine.workers)


def plan(config: OverlapConfig) -> str:
    """What a run would do, for `--check`: opens a local manifest, or looks at the names of local files, and nothing else but a descriptor.

    Raises InputError where they are missing or are refused.
    """
    descriptor = _descriptor(config)
    names = ", ".join(one.name for one in config.sets)
    looks = "" if descriptor is None else _plan_of_descriptor(config, descriptor)
    end = f"report in {config.report.dir}, committed units in {work_folder(config)}"
    return f"sets: {names}; {corpora.plan(config.corpus)}{looks}; {end}"


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
    descriptor: Descriptor | None,
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
        "descriptor_sha256": None if descriptor is None else descriptor.card.weights_sha256,
    }


# ---- stage codes


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
    hashes: dict[str, Json] = dict(HASH_VERSION)
    digest = stage_digest("codes", CODES_VERSION, hashes, [one.content_hash for one in sets])
    tables, root = tables_of_sets(
        driver, "codes", digest, sets, hash_pictures, rows_per_unit=ROWS_PER_UNIT, accounted=True
    )
    return EvalCodes([one.name for one in sets], tables), root


# ---- the learned descriptor


def _descriptor(config: OverlapConfig) -> Descriptor | None:
    if config.descriptor is None:
        return None
    # Loads torch: a job without a descriptor has no use for it.
    from evaluation.descriptor.stages import open_descriptor

    return open_descriptor(config.descriptor)


def _look(
    driver: Run, config: OverlapConfig, corpus: Corpus, sets: list[LabelledSet], descriptor: Descriptor | None
) -> Seen | None:
    """Vectors of the corpus, committed in a folder of their own, and of the sets, in the job's."""
    if config.descriptor is None or descriptor is None:
        return None
    from evaluation.descriptor.stages import corpus_vectors, look

    about: dict[str, Json] = {
        "weights_sha256": descriptor.card.weights_sha256,
        "corpus_content_root": corpus.about.content_root,
    }
    digest = contracts_config.digest_json(about)
    with Run(_vectors_folder(config), _engine(config), about, digest) as embedder:
        vectors = corpus_vectors(embedder, corpus, descriptor)
    return look(driver, vectors, sets, descriptor, config.descriptor)


def _vectors_folder(config: OverlapConfig) -> str:
    """Beside our own shards; what others wrote is left as it is."""
    if config.descriptor is not None and config.descriptor.vectors is not None:
        return config.descriptor.vectors
    manifest = config.corpus.manifest
    return storage.join(work_folder(config) if manifest is None else corpora.folder_of(manifest), "derived")


def _plan_of_descriptor(config: OverlapConfig, descriptor: Descriptor) -> str:
    """For `--check`: what is looked at, and how much of the corpus was before."""
    from evaluation.descriptor.stages import corpus_done

    folder, done = _vectors_folder(config), ""
    manifest = config.corpus.manifest
    if manifest is not None and not storage.is_s3(manifest) and not storage.is_s3(folder):
        corpus = corpora.of_manifest(manifest)
        done = f" ({corpus_done(folder, corpus, descriptor):,} of {len(corpus.indexes):,} shards are there)"
    name = descriptor.card.weights_sha256[:12]
    return f"; descriptor {name} looks at every picture of the corpus once, its vectors are kept in {folder}{done}"


# ---- what a checkpoint had seen


def _with_exposure(
    joined: Joined, corpus: Corpus, sets: list[LabelledSet], predictions: list[Predictions | None]
) -> pa.Table:
    """The pairs, and whether the checkpoint behind the predictions of their set had seen the row."""
    about = corpus.about
    trainings = {
        one.name: training
        for one, known in zip(sets, predictions, strict=True)
        if known is not None and (training := known.training_over(about.content_root, about.kind)) is not None
    }
    absent = ((shard, np.asarray(parquet.read(uri)["row"], np.int64)) for shard, uri in joined.unusable)
    return exposure.with_exposure(joined.pairs, corpus.row_groups, absent, trainings)


# ---- stage copies


@dataclass(frozen=True)
class _CopiesWork:
    """Some rows of one set → their COPY_SCHEMA rows."""

    sets: list[LabelledSet]
    chosen: list[list[int]]
    scores: Callable[[int], CopyScores] | None

    def read(self, unit: Unit) -> pa.Table:
        return pa.table({"eval_row": pa.array(self.chosen[int(str(unit.params["set"]))], pa.int64())})

    def work(self, rows: pa.Table, unit: Unit) -> Result:
        number = int(str(unit.params["set"]))
        scores = None if self.scores is None else self.scores(number)
        return Result(copies.hash_copies(self.sets[number], rows["eval_row"].to_pylist(), scores))


def _plant_copies(driver: Run, examples: int, sets: list[LabelledSet], codes: EvalCodes, seen: Seen | None) -> pa.Table:
    """COPY_SCHEMA rows of all sets; flat pictures too, for a copy of one is lost as well."""
    roots = [one.content_hash for one in sets]
    chosen = [
        nearest.choose_sample(one.ids, codes.quality[codes.set_number == number], 0, examples).tolist()
        for number, one in enumerate(sets)
    ]
    semantic: dict[str, Json] = {
        **HASH_VERSION,
        "sets": [one.name for one in sets],
        "examples": examples,
        "transforms": list(copies.TRANSFORMS),
    }
    if seen is not None:
        semantic["descriptor"] = seen.identity
    work = _CopiesWork(sets, chosen, None if seen is None else seen.copies)
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
            measures(report.descriptor is not None),
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
        **{
            files.predictions_name(result.name): result.predictions.data()
            for result in results
            if result.predictions is not None
        },
    }
    files.publish(config.report.dir, content, inputs)
