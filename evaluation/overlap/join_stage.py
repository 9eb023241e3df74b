"""Stage `join`: each index of the corpus against all sets, then what its units found, put together.

A unit holds one index in memory, and writes the pairs that are held (`kept`), what there is of each example, the rows that matched, and the
nearest row of each sampled example, by every measure. The driver folds these tables as they come: it never has all pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from evaluation.config import OverlapConfig, Thresholds
from evaluation.descriptor.search import Index
from evaluation.overlap import corpus as corpora
from evaluation.overlap import exposure, join, kept, nearest
from evaluation.overlap.corpus import Corpus
from evaluation.overlap.join import EvalCodes
from evaluation.overlap.likeness import Learned
from evaluation.overlap.seen import Seen, as_vectors, with_vectors
from evaluation.overlap.tables import CAPTIONED, FOUND_SCHEMA, KEY, METHODS, PAIR_SCHEMA
from evaluation.report import files
from pipeline.commit import Result, Stage, Unit, stage_digest, stage_folder
from pipeline.contracts import parquet, storage
from pipeline.contracts.config import Json
from pipeline.engine import Run

NEAREST_SUFFIX = ".nearest.parquet"
UNUSABLE_SUFFIX = ".unusable.parquet"
FOUND_SUFFIX = ".found.parquet"
MATCHED_SUFFIX = ".matched.parquet"


@dataclass(frozen=True)
class JoinWork:
    """An index → its matches (pairs: the nearest `keep` of each example and method), and the nearest rows of the `sample`. `folder`, below
    which indexes lie, is a place and in no digest.

    `withhold`: the pairs have null for URLs and captions of the corpus. With a descriptor: its `views` of all sets, and the folder of the
    corpus's `vectors`, a place too.
    """

    folder: str
    codes: EvalCodes
    sample: NDArray[np.int64]
    limits: list[Thresholds]
    keep: int
    withhold: bool
    views: Index | None = None
    vectors: str = ""

    def read(self, unit: Unit) -> pa.Table:
        index = corpora.read_index(self.folder, str(unit.params["index"]), withhold=self.withhold)
        if self.views is not None:
            index = with_vectors(index, self.vectors, str(unit.params["vectors"]))
        for (folder, table), sha256 in zip(
            ((self.folder, "index"), (self.vectors, "vectors")), unit.inputs, strict=False
        ):
            corpora.expect(storage.join(folder, str(unit.params[table])), sha256)
        return index

    def work(self, index: pa.Table, unit: Unit) -> Result:
        hashless, shard = index["pdq256"].null_count, str(unit.params["shard"])
        learned = None
        if self.views is not None:
            vectors = as_vectors(index["vector"], self.views.vectors.shape[1], f"the vectors of {shard}")
            learned = Learned(self.views, vectors, self.sample)
        joined = join.join_shard(index, shard, self.codes, self.limits, learned, keep=self.keep)
        captioned = index["captioned"].take(joined.pairs["row"])
        closest = nearest.nearest_in_shard(index, shard, self.codes, self.sample, self.limits, learned, joined.compared)
        beside = {
            NEAREST_SUFFIX: corpora.in_files(closest, index),
            FOUND_SUFFIX: joined.found,
            MATCHED_SUFFIX: corpora.keyed(joined.matched, index),
        }
        absent = exposure.unusable(index) if "row" not in index.column_names else np.empty(0, np.int64)
        if len(absent):
            beside[UNUSABLE_SUFFIX] = pa.table({"row": absent})
        notes: dict[str, Json] = {"rows_without_hashes": hashless, "corpus_rows": dict[str, Json](joined.corpus_rows)}
        return Result(
            corpora.keyed(joined.pairs, index).append_column(CAPTIONED, captioned), beside=beside, notes=notes
        )


class Joined(NamedTuple):
    """What the stage gives of the whole corpus: the pairs that are held, in order; the nearest rows of every sampled example; FOUND_SCHEMA
    rows of every example, the matched rows as `files.matched_rows` has them, how many of them each set has, how many of the corpus's
    rows have no hashes, and for each shard that has any the URI of the rows which the trainer cannot use."""

    pairs: pa.Table
    closest: pa.Table
    found: pa.Table
    matched: pa.Table
    corpus_rows: dict[str, int]
    hashless: int
    unusable: list[tuple[str, str]]


def search(
    driver: Run,
    config: OverlapConfig,
    corpus: Corpus,
    codes: EvalCodes,
    codes_root: str,
    limits: list[Thresholds],
    seen: Seen | None,
) -> Joined:
    shown, examples, keep = config.report.evidence, config.nearest.examples, config.report.pairs_kept
    sample = nearest.sample_sets(codes, limits, examples)
    views, vectors = (None, "") if seen is None else (seen.index, seen.vectors.folder)
    work = JoinWork(corpus.folder, codes, sample, limits, keep, shown == "hash-only", views, vectors)
    levels: list[Json] = [[name, one.model_dump()] for name, one in zip(codes.names, limits, strict=True)]
    semantic: dict[str, Json] = {
        "sets": levels,
        "evidence": shown,
        "nearest": examples,
        "beside": [KEY.name, CAPTIONED.name],
        "pairs_kept": keep,
    }
    if seen is not None:
        semantic["descriptor"] = seen.identity
    digest = stage_digest("join", join.FORMAT_VERSION, semantic, [codes_root])
    stage = Stage("join", digest, work.read, work.work, accounted=False)
    units = [
        Unit(f"{number:06d}-{corpora.short(*index)}", (index.sha256,), {"shard": index.shard, "index": index.path})
        for number, index in enumerate(corpus.indexes)
    ]
    if seen is not None:
        units = [
            Unit(
                f"{unit.id}-{corpora.short(table.name, table.sha256)}",
                (*unit.inputs, table.sha256),
                {**unit.params, "vectors": table.name},
            )
            for unit, table in zip(units, seen.vectors.tables, strict=True)
        ]
    records = driver.stage(stage, units)
    folder = stage_folder(driver.out, stage)

    def beside(suffix: str) -> Iterator[pa.Table]:
        return (parquet.read(storage.join(folder, record.beside[suffix].name)) for record in records)

    tables = (parquet.read(storage.join(folder, record.output.name)) for record in records if record.rows_out)
    pairs = kept.folded(
        tables, PAIR_SCHEMA.append(KEY).append(CAPTIONED).empty_table(), lambda rows: kept.nearest_pairs(rows, keep)
    )
    unusable = [
        (index.shard, storage.join(folder, record.beside[UNUSABLE_SUFFIX].name))
        for index, record in zip(corpus.indexes, records, strict=True)
        if UNUSABLE_SUFFIX in record.beside
    ]
    return Joined(
        in_order(pairs, codes.names),
        nearest.nearest_of_all(beside(NEAREST_SUFFIX), codes.names),
        kept.folded(
            beside(FOUND_SUFFIX),
            FOUND_SCHEMA.empty_table(),
            lambda rows: kept.summed(rows, ("set", "eval_row"), ("phash_distance",), ("descriptor_score",)).cast(
                FOUND_SCHEMA
            ),
        ),
        files.matched_rows(beside(MATCHED_SUFFIX), corpus.about.kind),
        kept.added((record.notes["corpus_rows"] for record in records), codes.names),
        sum(int(str(record.notes["rows_without_hashes"])) for record in records),
        unusable,
    )


def in_order(pairs: pa.Table, names: list[str]) -> pa.Table:
    """By set (as configured), example, strength of the match, place in the corpus."""
    rank = pc.index_in(pairs["set"], value_set=pa.array(names, pa.string()))
    strength = pc.index_in(pairs["method"], value_set=pa.array(METHODS))
    keyed = pairs.append_column("set_rank", rank).append_column("method_rank", strength)
    keys = ("set_rank", "eval_row", "method_rank", "pdq_distance", "shard", "row")
    return keyed.sort_by([(key, "ascending") for key in keys]).select(pairs.column_names).combine_chunks()
