"""The descriptor at the scale of the overlap job: vectors of a corpus and of evaluation sets as committed stages of `pipeline.engine`.

A corpus's vectors are a derived artefact: one side table per shard, a row for each row of the shard in its order, committed under
FOLDER/vectors/DIGEST/ with its own SHA-256 in its record, where DIGEST covers the weights, how pictures are looked at and the corpus's
content_root. FOLDER lies beside the shards unless the user says otherwise, so the next audit, of other sets or by other thresholds, finds
the units done and opens no picture. Worker count, resumes and places change no byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from evaluation.descriptor.embed import EMBED_VERSION, VIEWS, Embedder, ViewKind, views
from evaluation.descriptor.search import Index, normalisation
from evaluation.descriptor.weights import Descriptor
from pipeline.content.image import ImageRejected
from pipeline.content.labelled import LabelledSet
from pipeline.contracts import manifest, parquet, storage
from pipeline.contracts.config import Json
from pipeline.contracts.errors import InputError
from pipeline.engine import Result, Run, Stage, Unit, stage_digest, stage_folder
from pipeline.records import Record

Int8s = NDArray[np.int8]

ROWS_PER_UNIT = 1000  # evaluation pictures; each is looked at up to sixteen times

VIEW_SCHEMA = pa.schema(
    [
        pa.field("eval_row", pa.int64(), nullable=False),
        pa.field("view", pa.int64(), nullable=False),
        pa.field("vector", pa.binary(), nullable=False),
    ]
)
"""One view of an evaluation picture; `vector` is int8[d] as bytes. Flat views have no row."""


VECTOR_SCHEMA = pa.schema([pa.field("uid", pa.binary(16), nullable=False), pa.field("vector", pa.binary())])
"""A row of a shard's side table, in the shard's order; `vector` is int8[d] as bytes, null where there is no picture, or it cannot be opened
or is flat."""


# ---- a corpus


@dataclass(frozen=True)
class _CorpusWork:
    """A shard → its vectors. `corpus_path` is a place and stays out of every digest."""

    corpus_path: str
    descriptor: Descriptor

    def read(self, unit: Unit) -> pa.Table:
        folder = storage.parent(manifest.manifest_path(self.corpus_path))
        return parquet.read(storage.join(folder, str(unit.params["index"])), ["uid"])

    def work(self, rows: pa.Table, unit: Unit) -> Result:
        folder = storage.parent(manifest.manifest_path(self.corpus_path))
        embedder = Embedder.of(self.descriptor)
        found = list(embedder.first_views(_pictures(storage.join(folder, str(unit.params["shard"])))))
        vectors = pa.array([None if vector is None else vector.tobytes() for vector in found], pa.binary())
        return Result(
            pa.table([rows["uid"], vectors], schema=VECTOR_SCHEMA), notes={"without_vector": vectors.null_count}
        )


def _pictures(uri: str) -> Iterator[bytes | None]:
    """The pictures of a shard, a row group in memory at a time."""
    with parquet.open_file(uri) as source:
        groups = source.num_row_groups
    for group in range(groups):
        yield from parquet.read_row_group(uri, group, ["image"])["image"].to_pylist()


def corpus_vectors(
    driver: Run, corpus_path: str, corpus: manifest.Manifest, descriptor: Descriptor
) -> tuple[list[str], list[Record]]:
    """Embed what is not embedded yet; returns the side tables' URIs, one a shard in the manifest's order, and their records.

    `driver` writes below its own folder: give one whose folder is beside the shards (`vectors_folder`).
    """
    work = _CorpusWork(corpus_path, descriptor)
    digest = stage_digest(
        "vectors", EMBED_VERSION, {"weights_sha256": descriptor.card.weights_sha256}, [corpus.content_root]
    )
    stage = Stage("vectors", digest, work.read, work.work)
    units = [
        Unit(f"{number:06d}-{shard.sha256[:12]}", (shard.sha256,), {"shard": shard.path, "index": shard.index_path})
        for number, shard in enumerate(corpus.shards)
    ]
    records = driver.stage(stage, units)
    folder = stage_folder(driver.out, stage)
    return [storage.join(folder, record.output.name) for record in records], records


def vectors_folder(corpus_path: str) -> str:
    """Where a corpus's vectors lie unless the user says otherwise: beside its shards."""
    return storage.join(storage.parent(manifest.manifest_path(corpus_path)), "derived")


def read_vectors(uri: str, dimension: int) -> Int8s:
    """A side table as int8[rows, d]; rows without a vector are zero. Raises InputError for a table of another dimension."""
    return as_vectors(parquet.read(uri, ["vector"])["vector"], dimension, uri)


def as_vectors(column: pa.ChunkedArray, dimension: int, place: str) -> Int8s:
    """binary values as int8[n, d], null as zero. Raises InputError for values of another length."""
    values = [bytes(dimension) if value is None else value for value in column.to_pylist()]
    wrong = next((len(value) for value in values if len(value) != dimension), None)
    if wrong is not None:
        raise InputError(
            f"{place}: a vector of {wrong} bytes, the descriptor's have {dimension}; embed with these weights again"
        )
    return np.frombuffer(b"".join(values), np.int8).reshape(len(values), dimension)


# ---- evaluation sets


@dataclass(frozen=True)
class _SetWork:
    """Rows of one set → VIEW_SCHEMA rows."""

    sets: list[LabelledSet]
    descriptor: Descriptor
    kinds: tuple[ViewKind, ...]

    def read(self, unit: Unit) -> pa.Table:
        start, stop = int(str(unit.params["start"])), int(str(unit.params["stop"]))
        return pa.table({"eval_row": pa.array(range(start, stop), pa.int64())})

    def work(self, rows: pa.Table, unit: Unit) -> Result:
        labelled = self.sets[int(str(unit.params["set"]))]
        return Result(set_views(labelled, rows["eval_row"].to_pylist(), self.descriptor, self.kinds))


def set_views(
    labelled: LabelledSet, rows: Sequence[int], descriptor: Descriptor, kinds: Sequence[ViewKind] = VIEWS
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
    driver: Run, sets: list[LabelledSet], descriptor: Descriptor, kinds: tuple[ViewKind, ...] = VIEWS
) -> list[pa.Table]:
    """VIEW_SCHEMA rows of every set, by picture and view: what the index is made of."""
    work = _SetWork(sets, descriptor, kinds)
    settings: dict[str, Json] = {"weights_sha256": descriptor.card.weights_sha256, "views": list(kinds)}
    digest = stage_digest("views", EMBED_VERSION, settings, [one.content_hash for one in sets])
    stage = Stage("views", digest, work.read, work.work, accounted=False)
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
    tables: list[list[pa.Table]] = [[VIEW_SCHEMA.empty_table()] for _ in sets]
    folder = stage_folder(driver.out, stage)
    for unit, record in zip(units, records, strict=True):
        tables[int(str(unit.params["set"]))].append(parquet.read(storage.join(folder, record.output.name)))
    return [pa.concat_tables(pieces) for pieces in tables]


def build_index(tables: Sequence[pa.Table], sizes: Sequence[int], descriptor: Descriptor, *, beta: float) -> Index:
    """All sets' views in memory. `picture` counts through the sets one after the other, `sizes` examples each, as `join.EvalCodes` does.

    `beta`: how much of a view's nearness to the background its score is lowered by (0: the score is the cosine).
    """
    dimension = descriptor.card.architecture.dimension
    starts = np.cumsum([0, *sizes[:-1]])
    picture = [np.asarray(table["eval_row"]) + start for table, start in zip(tables, starts, strict=True)]
    vectors = np.concatenate([as_vectors(table["vector"], dimension, "views") for table in tables])
    return Index(
        vectors,
        np.concatenate(picture),
        np.concatenate([np.asarray(table["view"]) for table in tables]),
        normalisation(vectors, descriptor.background, beta=beta),
    )
