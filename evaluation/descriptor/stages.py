"""The descriptor at the scale of the overlap job: vectors of a corpus and of evaluation sets as committed stages of `pipeline.engine`.

A corpus's vectors are a derived artefact: one side table per index, a row for each row of the index in its order, committed under
FOLDER/vectors/DIGEST/ with its own SHA-256 in its record, where DIGEST covers the weights and how pictures are looked at, and the unit's
name the index. FOLDER lies beside the shards unless the user says otherwise, so the next audit, of other sets or by other thresholds, finds
the units done and opens no picture; of a corpus that lost rows, or grew at its end, the shards that are new are looked at. Worker count,
resumes and places change no byte.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from evaluation.config import DescriptorConfig
from evaluation.descriptor import weights
from evaluation.descriptor.artefact import Descriptor
from evaluation.descriptor.embed import EMBED_VERSION, Embedder, views
from evaluation.descriptor.search import Index, normalisation, score_pairs
from evaluation.descriptor.views import VIEWS, WHOLE_PICTURE, ViewKind
from evaluation.overlap.corpus import Corpus, IndexFile, Stored
from evaluation.overlap.seen import CopyScores, Seen, Vectors, as_vectors
from evaluation.overlap.set_stage import tables_of_sets
from evaluation.overlap.tables import VECTOR_SCHEMA, VIEW_SCHEMA
from pipeline.commit import Result, Stage, Unit, matching_records, stage_digest, stage_folder
from pipeline.content.image import ImageRejected
from pipeline.content.labelled import LabelledSet
from pipeline.contracts import parquet, storage
from pipeline.contracts.config import Json
from pipeline.contracts.errors import InputError
from pipeline.engine import Run

ROWS_PER_UNIT = 1000  # evaluation pictures; each is looked at up to thirty-two times
_NEAREST = (1, 3)  # of the background: which neighbours' mean cosine lowers a score


def open_descriptor(config: DescriptorConfig) -> Descriptor:
    """The trained descriptor. Raises InputError where it is missing, damaged, or of too few background pictures for `beta`."""
    descriptor = weights.read(config.weights)
    if config.beta and len(descriptor.background) < _NEAREST[1]:
        raise InputError(
            f"descriptor.beta: {config.beta!r} needs at least {_NEAREST[1]} background vectors, {config.weights!r} has "
            f"{len(descriptor.background)}; set it to 0 or train on more pictures"
        )
    return descriptor


def look(
    driver: Run,
    vectors: Vectors,
    sets: Sequence[LabelledSet],
    descriptor: Descriptor,
    config: DescriptorConfig,
) -> Seen:
    """Look at the sets' pictures, beside a corpus's `vectors`; everything that the rest of the job needs of the descriptor."""
    tables, root = set_vectors(driver, sets, descriptor, config.views)
    sizes = [len(one) for one in sets]
    index = build_index(tables, sizes, descriptor, beta=config.beta, part_margin=config.part_margin)
    starts = np.cumsum([0, *sizes[:-1]]).tolist()
    copies = functools.partial(copy_scores, descriptor, index, starts)
    return Seen(descriptor.card, config, index, root, vectors, copies)


# ---- a corpus


@dataclass(frozen=True)
class _CorpusWork:
    """An index → the vectors of its rows. Where it lies, `folder` and what `indexes` say, and where `stored` reads are in no digest."""

    folder: str
    indexes: Sequence[IndexFile]
    stored: Stored
    descriptor: Descriptor

    def read(self, unit: Unit) -> pa.Table:
        return parquet.read(storage.join(self.folder, self._index(unit).path), ["uid"])

    def work(self, rows: pa.Table, unit: Unit) -> Result:
        places: list[int] = []
        index = self._index(unit)

        def pictures() -> Iterator[bytes | None]:
            for place, data in self.stored(index.shard, index.path):
                places.append(place)
                yield data

        values: list[bytes | None] = [None] * rows.num_rows
        seen = list(Embedder.of(self.descriptor).first_views(pictures()))
        for place, vector in zip(places, seen, strict=True):
            values[place] = None if vector is None else vector.tobytes()
        vectors = pa.array(values, pa.binary())
        return Result(
            pa.table([rows["uid"], vectors], schema=VECTOR_SCHEMA), notes={"without_vector": vectors.null_count}
        )

    def _index(self, unit: Unit) -> IndexFile:
        return self.indexes[int(str(unit.params["number"]))]


def _corpus_stage(corpus: Corpus, descriptor: Descriptor) -> tuple[Stage, list[Unit]]:
    work = _CorpusWork(corpus.folder, corpus.indexes, corpus.stored, descriptor)
    identity: dict[str, Json] = {"weights_sha256": descriptor.card.weights_sha256}
    digest = stage_digest("vectors", EMBED_VERSION, identity, [])
    units = [
        Unit(f"{number:06d}-{index.sha256[:12]}", (index.sha256,), {"number": number})
        for number, index in enumerate(corpus.indexes)
    ]
    return Stage("vectors", digest, work.read, work.work), units


def corpus_vectors(driver: Run, corpus: Corpus, descriptor: Descriptor) -> Vectors:
    """Embed what is not embedded yet. `driver` writes below its own folder: give one whose folder is beside the shards."""
    stage, units = _corpus_stage(corpus, descriptor)
    records = driver.stage(stage, units)
    absent = sum(int(str(record.notes["without_vector"])) for record in records)
    return Vectors(stage_folder(driver.out, stage), [record.output for record in records], absent)


def corpus_done(folder: str, corpus: Corpus, descriptor: Descriptor) -> int:
    """How many of a corpus's indexes have their vectors in `folder` already."""
    stage, units = _corpus_stage(corpus, descriptor)
    return len(matching_records(stage_folder(folder, stage), stage.digest, units))


# ---- evaluation sets


def set_views(
    descriptor: Descriptor, kinds: Sequence[ViewKind], labelled: LabelledSet, rows: Sequence[int]
) -> pa.Table:
    """VIEW_SCHEMA rows of a set's pictures (ascending positions). Raises InputError for a picture that cannot be opened."""
    size = descriptor.card.architecture.size
    places: list[tuple[int, int]] = []

    def seen() -> Iterator[NDArray[np.uint8]]:
        for picture in labelled.pictures(rows):
            try:
                found = views(picture.data, size, kinds)
            except ImageRejected as rejected:
                raise InputError(
                    f"set {labelled.name!r} ({labelled.path}): picture {picture.id!r} cannot be opened ({rejected}); "
                    "mend the file or leave the row out of the set"
                ) from None
            for number, pixels in found:
                places.append((picture.row, number))
                yield pixels

    vectors = Embedder.of(descriptor).vectors(seen())
    return pa.table(
        [
            pa.array([row for row, _ in places], pa.int64()),
            pa.array([number for _, number in places], pa.int64()),
            pa.array([vector.tobytes() for vector in vectors], pa.binary()),
        ],
        schema=VIEW_SCHEMA,
    )


def set_vectors(
    driver: Run, sets: Sequence[LabelledSet], descriptor: Descriptor, kinds: Sequence[ViewKind] = VIEWS
) -> tuple[list[pa.Table], str]:
    """VIEW_SCHEMA rows of every set, by picture and view, of which the index is made, and a digest over them."""
    settings: dict[str, Json] = {"weights_sha256": descriptor.card.weights_sha256, "views": list(kinds)}
    digest = stage_digest("views", EMBED_VERSION, settings, [one.content_hash for one in sets])
    make = functools.partial(set_views, descriptor, kinds)
    return tables_of_sets(driver, "views", digest, sets, make, rows_per_unit=ROWS_PER_UNIT, accounted=False)


def build_index(
    tables: Sequence[pa.Table], sizes: Sequence[int], descriptor: Descriptor, *, beta: float, part_margin: float
) -> Index:
    """All sets' views in memory. `picture` counts through the sets one after the other, `sizes` examples each, as `join.EvalCodes` does.

    `beta`: how much of a view's nearness to the background its score is lowered by (0: not). `part_margin`: what the score of every view
    but the whole picture as it is is lowered by besides: with 31 further views an example has 31 further chances to lie near a stranger.
    """
    dimension = descriptor.card.architecture.dimension
    starts = np.cumsum([0, *sizes[:-1]])
    picture = [np.asarray(table["eval_row"]) + start for table, start in zip(tables, starts, strict=True)]
    vectors = np.concatenate([as_vectors(table["vector"], dimension, "views") for table in tables])
    view = np.concatenate([np.asarray(table["view"]) for table in tables])
    lowered = normalisation(vectors, descriptor.background, beta=beta, nearest=_NEAREST)
    return Index(vectors, np.concatenate(picture), view, lowered + np.where(view == WHOLE_PICTURE, 0.0, part_margin))


# ---- planted copies


def copy_scores(descriptor: Descriptor, index: Index, starts: Sequence[int], number: int) -> CopyScores:
    """How changed copies of pictures of set `number`, whose pictures begin at `starts` in the index, score against their originals."""
    embedder = Embedder.of(descriptor)

    def scores(row: int, copies: Sequence[bytes]) -> list[float | None]:
        seen = list(embedder.first_views(copies))
        nothing = np.zeros(descriptor.card.architecture.dimension, np.int8)
        queries = np.stack([nothing if vector is None else vector for vector in seen])
        original = np.full(len(copies), starts[number] + row, np.int64)
        hits = score_pairs(index, queries, original, np.arange(len(copies)))
        known = dict(zip(hits.query.tolist(), hits.score.tolist(), strict=True))
        return [known.get(place) for place in range(len(copies))]

    return scores
