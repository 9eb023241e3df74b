"""What a corpus is to the job: an index of every file, one root over all of it, and pictures to show.

A corpus of this project brings the indexes, in its manifest. For one that others wrote (`corpus.files`) two stages make them:

- `list`: which rows a file has, where, and SHA-256 over all of its bytes; a unit is named by its file's name, size and time;
- `index`: every picture decoded and hashed by the corpus's own rule; a unit is ROWS_PER_UNIT rows of a file, named by its number
  in the list and its SHA-256. So files that were touched are read again but not decoded again, and one that changed, or before which
  another was put, is.

Rows in the files = rows in the indexes + rows refused by a reason (`Corpus.rejected`). The content root is a digest over the files' own, in
the order in which they are given; of tars it is the one that the trainer writes into its checkpoints.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from evaluation.config import CorpusConfig
from evaluation.overlap import exposure
from evaluation.overlap.tables import CAPTIONED, INDEX_COLUMNS, KEY, PLACED_INDEX_SCHEMA, ROW_GROUP_SCHEMA
from evaluation.report import schema
from pipeline.commit import Result, Stage, Unit, matching_records, stage_digest, stage_folder
from pipeline.content import readers
from pipeline.content.hashes import HASH_SHORT_SIDE, HASH_VERSION, picture_hashes, sha256
from pipeline.content.image import ImageRejected, decode
from pipeline.content.readers import Columns, CorpusFile, Entry, Layout
from pipeline.content.text import repaired
from pipeline.contracts import manifest, parquet, storage
from pipeline.contracts.config import Json, digest_json
from pipeline.contracts.errors import InputError
from pipeline.contracts.schema import REJECTED_SCHEMA, uid
from pipeline.engine import Run

log = logging.getLogger("evaluation")

INDEX_VERSION = 2  # 2: captions are repaired as ours are
ROWS_PER_UNIT = 10_000
_ROOTS: dict[Layout, str] = {"webdataset": "tars", "parquet": "parquet", "folder": "folder"}
_TEXT_KEPT = 8192  # characters of a raw URL or caption that are looked at; the uid is over the whole

Place = tuple[str, int]
"""A shard's name and a row in it, as pairs.parquet has them."""


class IndexFile(NamedTuple):
    """A table with INDEX_COLUMNS: of which shard, where below `Corpus.folder`, and its SHA-256."""

    shard: str
    path: str
    sha256: str


@dataclass(frozen=True)
class Corpus:
    """A corpus that is ready to be joined. `pictures` gives the stored bytes at places, None where there are none; `row_groups` is
    ROW_GROUP_SCHEMA.

    `texts` takes an index's shard and path and gives its uids, URLs and captions (and rows and keys, where it has them), in its order;
    `stored` gives the stored bytes of every row of an index, each with its place in the index, in the order in which they lie.
    """

    about: schema.Corpus
    folder: str
    indexes: list[IndexFile]
    pictures: Pictures
    texts: Texts
    stored: Stored
    row_groups: pa.Table


Pictures = Callable[[Iterable[Place]], Mapping[Place, bytes | None]]
Texts = Callable[[str, str], pa.Table]
Stored = Callable[[str, str], Iterator[tuple[int, bytes | None]]]


def plan(config: CorpusConfig) -> str:
    """What there is to do, as far as a look at local names, or at a local manifest, tells. Raises InputError where that is refused."""
    if config.manifest is None:
        return _plan_of_files(config)
    place = manifest.manifest_path(config.manifest)
    if storage.is_s3(place):
        return f"one unit per shard of {place!r} (not opened by --check)"
    found = of_manifest(place).about
    size = sum(shard.index_bytes for shard in manifest.load(place).shards)
    return f"{found.shards:,} units of one shard each, {found.rows:,} rows, {size:,} bytes of indexes to read"


def _plan_of_files(config: CorpusConfig) -> str:
    places = _given(config)
    if any(storage.is_s3(place) for place in places):
        return f"one unit per {config.layout} file of {config.files!r} (not looked at by --check), listed, indexed and joined"
    found = find_files(config)
    size = sum(file.bytes for file in found)
    pictures = sum(len(file.pictures) for file in found)
    what = f"blocks of {pictures:,} pictures" if config.layout == "folder" else f"{config.layout} files"
    return f"{len(found):,} {what}, {size:,} bytes to read twice, each listed, indexed (every picture decoded once) and joined"


def pictures_of(config: CorpusConfig, work_folder: str) -> Pictures:
    """The pictures of a corpus that was searched before, with the listings that this left in `work_folder`. Raises InputError without."""
    if config.manifest is not None:
        return functools.partial(_shard_pictures, config.manifest, manifest.load(config.manifest))
    files, layout = find_files(config), _layout(config)
    lists, units = _lists(files, layout, _columns(config))
    folder = stage_folder(work_folder, lists)
    done = matching_records(folder, lists.digest, units)
    if len(done) < len(units):
        raise InputError(
            f"{work_folder}: has no listing of {len(units) - len(done):,} of {len(units):,} files, as they are now; run `overlap` again"
        )
    tables = [storage.join(folder, done[unit.id].output.name) for unit in units]
    return functools.partial(_file_pictures, _IndexWork(files, layout, _columns(config), tables, True))


# ---- a corpus of this project


def of_manifest(path: str) -> Corpus:
    """The corpus of a manifest. Raises InputError when there is none, or its hashes are of another version."""
    found = manifest.load(path)
    for name in ("phash64", "pdq256"):
        stated = found.hashes.get(name)
        if stated is not None and stated != HASH_VERSION[name]:
            raise InputError(
                f"{manifest.manifest_path(path)}: hashes.{name} is {stated!r}, this program computes "
                f"{HASH_VERSION[name]!r}; use the matching release or rebuild the corpus"
            )
    about = schema.Corpus(
        kind="shards",
        content_root=found.content_root,
        rows=found.rows,
        shards=len(found.shards),
        rows_without_hashes=0,
        rejected={},
        damaged_files=0,
        hashes=found.hashes,
        config_digest=found.config_digest,
    )
    indexes = [IndexFile(shard.path, shard.index_path, shard.index_sha256) for shard in found.shards]
    folder = folder_of(path)
    pictures = functools.partial(_shard_pictures, path, found)
    texts, stored = functools.partial(_index_texts, folder), functools.partial(_shard_stored, folder)
    return Corpus(about, folder, indexes, pictures, texts, stored, exposure.row_groups(found))


def folder_of(path: str) -> str:
    """Where a corpus of this project lies."""
    return storage.parent(manifest.manifest_path(path))


def _shard_pictures(path: str, found: manifest.Manifest, places: Iterable[Place]) -> dict[Place, bytes | None]:
    """Each row group is read once."""
    wanted = _by_shard(places)
    pictures: dict[Place, bytes | None] = {}
    for shard in found.shards:
        rows = wanted.get(shard.path, [])
        first = 0
        for number, group in enumerate(shard.row_groups):
            inside = [row for row in rows if first <= row < first + group.rows]
            if inside:
                column = parquet.read_row_group(manifest.shard_uri(path, shard), number, ["image"])["image"]
                pictures |= {(shard.path, row): column[row - first].as_py() for row in inside}
            first += group.rows
    return pictures


def _shard_stored(folder: str, shard: str, path: str) -> Iterator[tuple[int, bytes | None]]:
    """A shard has the rows of its index (at `path`) in their order; a row group is in memory at a time."""
    uri = storage.join(folder, shard)
    with parquet.open_file(uri) as source:
        groups = source.num_row_groups
    columns = (parquet.read_row_group(uri, group, ["image"])["image"] for group in range(groups))
    yield from enumerate(data.as_py() for column in columns for data in column)


def _by_shard(places: Iterable[Place]) -> dict[str, list[int]]:
    """The rows of each shard, rising."""
    rows: dict[str, set[int]] = {}
    for shard, row in places:
        rows.setdefault(shard, set()).add(row)
    return {shard: sorted(found) for shard, found in rows.items()}


# ---- a corpus that others wrote


def find_files(config: CorpusConfig) -> list[CorpusFile]:
    """What `corpus.files` names, by its names only. Raises InputError where it names nothing."""
    return readers.find_files(_layout(config), _given(config))


def _given(config: CorpusConfig) -> list[str]:
    return [config.files] if isinstance(config.files, str) else list(config.files or [])


def _lists(files: list[CorpusFile], layout: Layout, columns: Columns) -> tuple[Stage, list[Unit]]:
    work = _ListWork(files, layout, columns)
    semantic: dict[str, Json] = {"layout": layout, "columns": list(columns)}
    digest = stage_digest("list", readers.LISTING_VERSION, semantic, [])
    units = [
        Unit(f"{number:06d}-{short(file.name, file.stamp)}", (file.name, file.stamp), {"file": number})
        for number, file in enumerate(files)
    ]
    return Stage("list", digest, work.read, work.work, accounted=False), units


def of_files(driver: Run, files: list[CorpusFile], config: CorpusConfig, *, withhold: bool) -> Corpus:
    """Run the stages `list` and `index` over the files, as far as they are not done.

    `withhold`: no URL and no caption goes into an index. Raises InputError for a file that is none of the layout, or has no row at all.
    """
    layout, columns = _layout(config), _columns(config)
    lists, units = _lists(files, layout, columns)
    listed = driver.stage(lists, units)
    damaged = [(file.uri, record.notes["damage"]) for file, record in zip(files, listed, strict=True)]
    damaged = [(uri, damage) for uri, damage in damaged if damage is not None]
    for uri, damage in damaged:
        log.warning("%s: %s; the whole samples before it are searched", uri, damage)

    tables = [storage.join(stage_folder(driver.out, lists), record.output.name) for record in listed]
    digests = [str(record.notes["sha256"]) for record in listed]
    indexing = _IndexWork(files, layout, columns, tables, withhold)
    semantic: dict[str, Json] = {
        "layout": layout,
        "columns": list(columns),
        "hashes": dict(HASH_VERSION),
        "withhold": withhold,
    }
    makes = Stage(
        "index", stage_digest("index", INDEX_VERSION, semantic, []), indexing.read, indexing.work, row_wise=True
    )
    units = [
        Unit(
            f"{number:06d}-{start:07d}-{short(files[number].name, digest)}",
            (files[number].name, digest),
            {"file": number, "start": start, "rows": ROWS_PER_UNIT},
        )
        for number, (record, digest) in enumerate(zip(listed, digests, strict=True))
        for start in range(0, record.rows_out, ROWS_PER_UNIT)
    ]
    if not units:
        raise InputError(f"corpus.files: {config.files!r} holds no row at all; check the layout and the place")
    indexed = driver.stage(makes, units)
    rejected: Counter[str] = Counter()
    for record in indexed:
        rejected.update(record.rejected)
    about = schema.Corpus(
        kind=layout,
        content_root=f"{_ROOTS[layout]}:{hashlib.sha256(''.join(digests).encode()).hexdigest()}",
        rows=sum(record.rows_out for record in indexed),
        shards=len(files),
        rows_without_hashes=0,
        rejected=dict(sorted(rejected.items())),
        damaged_files=len(damaged),
        hashes=dict(HASH_VERSION),
        config_digest=None,
    )
    below = storage.join("index", makes.digest[:12])
    indexes = [
        IndexFile(
            files[int(str(unit.params["file"]))].name,
            storage.join(below, record.output.name),
            record.output.sha256,
        )
        for unit, record in zip(units, indexed, strict=True)
    ]
    texts, stored = (functools.partial(read, indexing, driver.out) for read in (_file_texts, _file_stored))
    pictures = functools.partial(_file_pictures, indexing)
    return Corpus(about, driver.out, indexes, pictures, texts, stored, ROW_GROUP_SCHEMA.empty_table())


def short(*inputs: str) -> str:
    """What a unit reads, as a part of its name: what the file was before stays committed under the name it had."""
    return digest_json(list(inputs))[:12]


def _layout(config: CorpusConfig) -> Layout:
    if config.layout is None:
        raise InputError("corpus.layout: is not set; say how corpus.files are laid out")
    return config.layout


def _columns(config: CorpusConfig) -> Columns:
    return Columns(config.image, config.caption, config.url, config.key)


@dataclass(frozen=True)
class _ListWork:
    """A file → its LISTED_SCHEMA rows; its digest, and where it is damaged, in the notes."""

    files: list[CorpusFile]
    layout: Layout
    columns: Columns

    def read(self, unit: Unit) -> pa.Table:
        return pa.table({"file": pa.array([int(str(unit.params["file"]))], pa.int64())})

    def work(self, rows: pa.Table, unit: Unit) -> Result:
        file = self.files[rows["file"][0].as_py()]
        found = readers.list_file(self.layout, file, self.columns)
        return Result(found.rows, notes={"sha256": found.sha256, "damage": found.damage})


@dataclass(frozen=True)
class _IndexWork:
    """Some listed rows of a file → PLACED_INDEX_SCHEMA rows, and those that are refused. `tables` are the listings, one a file."""

    files: list[CorpusFile]
    layout: Layout
    columns: Columns
    tables: list[str]
    withhold: bool

    def read(self, unit: Unit) -> pa.Table:
        listed = parquet.read(self.tables[int(str(unit.params["file"]))])
        return listed.slice(int(str(unit.params["start"])), int(str(unit.params["rows"])))

    def work(self, listed: pa.Table, unit: Unit) -> Result:
        file = self.files[int(str(unit.params["file"]))]
        return hash_rows(readers.read_file(self.layout, file, listed, self.columns), withhold=self.withhold)


def hash_rows(entries: Iterable[Entry], *, withhold: bool) -> Result:
    """PLACED_INDEX_SCHEMA rows of the entries whose picture can be decoded, REJECTED_SCHEMA rows of the others."""
    kept: list[dict[str, object]] = []
    refused: list[dict[str, object]] = []
    for entry in entries:
        url, caption = entry.url, entry.caption
        row: dict[str, object] = {
            "uid": uid(url, caption or "") if url is not None else uid(entry.source, ""),
            "url": None if withhold else _kept(url),
        }
        try:
            if entry.refused is not None or entry.data is None:
                raise entry.refused or ValueError(f"{entry.source}: neither a picture nor a reason")
            hashes = picture_hashes(decode(entry.data, min_short_side=HASH_SHORT_SIDE))
        except ImageRejected as rejected:
            caption_raw = None if withhold else _kept(caption)
            told = {"source": entry.source, "reason": rejected.reason.value, "detail": rejected.detail}
            refused.append({**row, "caption_raw": caption_raw, **told})
            continue
        row |= {
            "caption": None if withhold else _caption(caption),
            "source_sha256": entry.fetched,
            "image_sha256": sha256(entry.data),
            "phash64": hashes.phash64,
            "pdq256": hashes.pdq256,
            "pdq_quality": hashes.pdq_quality,
            "row": entry.row,
            "key": entry.key,
        }
        kept.append(row)
    rejected_rows = pa.Table.from_pylist(refused, REJECTED_SCHEMA)
    return Result(pa.Table.from_pylist(kept, PLACED_INDEX_SCHEMA), rejected_rows)


def _kept(text: str | None) -> str | None:
    """A text as a table can hold it: cut, and lone surrogates (JSON may escape them) spelt out."""
    return None if text is None else text[:_TEXT_KEPT].encode("utf-8", "backslashreplace").decode()


def _caption(raw: str | None) -> str | None:
    """What a raw caption says, repaired as the captions of our own corpora are: people do not write "&amp;"."""
    return None if raw is None else repaired(raw[:_TEXT_KEPT]) or None


def _file_pictures(work: _IndexWork, places: Iterable[Place]) -> dict[Place, bytes | None]:
    """Reads the samples, row groups or files that hold them; nothing else of a file."""
    numbers = {file.name: number for number, file in enumerate(work.files)}
    pictures: dict[Place, bytes | None] = {}
    for shard, rows in _by_shard(places).items():
        for entry in _entries(work, numbers[shard], pa.array(rows, pa.int64())):
            pictures[shard, entry.row] = entry.data
    return pictures


def _file_stored(work: _IndexWork, folder: str, shard: str, path: str) -> Iterator[tuple[int, bytes | None]]:
    """The index is ordered by uid, the file is read from its beginning."""
    rows = parquet.read(storage.join(folder, path), ["row"])["row"].combine_chunks()
    place_of = {row: place for place, row in enumerate(rows.to_pylist())}
    yield from ((place_of[entry.row], entry.data) for entry in _entries(work, _number(work, shard), rows))


def _number(work: _IndexWork, shard: str) -> int:
    return next(number for number, file in enumerate(work.files) if file.name == shard)


def _entries(work: _IndexWork, number: int, rows: pa.Array) -> Iterable[Entry]:
    """Some rows of a file (int64), in its own order."""
    listed = parquet.read(work.tables[number])
    chosen = listed.filter(pc.is_in(listed["row"], value_set=rows))
    return readers.read_file(work.layout, work.files[number], chosen, work.columns)


def _file_texts(work: _IndexWork, folder: str, shard: str, path: str) -> pa.Table:
    """Texts that were withheld from the index are read from the file again; nothing is decoded."""
    index = _index_texts(folder, shard, path)
    if not work.withhold:
        return index
    entries = _entries(work, _number(work, shard), index["row"].combine_chunks())
    told = {entry.row: (_kept(entry.url), _caption(entry.caption)) for entry in entries}
    said = [told[row] for row in index["row"].to_pylist()]
    texts = pa.table(
        {
            "url": pa.array([url for url, _ in said], pa.string()),
            "caption": pa.array([one for _, one in said], pa.string()),
        }
    )
    for name in texts.column_names:
        index = index.set_column(index.column_names.index(name), name, texts[name])
    return index


# ---- indexes, and places in them


def _index_texts(folder: str, shard: str, path: str) -> pa.Table:
    uri = storage.join(folder, path)
    with parquet.open_file(uri) as source:
        present = source.schema_arrow.names
    return parquet.read(uri, [name for name in ("uid", "url", "caption", "row", "key") if name in present])


def read_index(folder: str, path: str, *, withhold: bool) -> pa.Table:
    """INDEX_COLUMNS of an index, `captioned`, and `row` and `key` where it has them. `withhold`: null stands for URLs and captions.

    `captioned` is null where an index of foreign files withholds the captions itself. Raises InputError when a column is missing.
    """
    uri = storage.join(folder, path)
    with parquet.open_file(uri) as source:
        present = source.schema_arrow.names
    absent = [column for column in INDEX_COLUMNS if column not in present]
    if absent:
        raise InputError(f"{uri}: column {absent[0]!r} is missing; rebuild the corpus with this program's format")
    foreign = "row" in present
    names = [*INDEX_COLUMNS, *(name for name in ("row", "key") if name in present)]
    index = parquet.read(uri, [name for name in names if name != "url" or not withhold])
    captioned = pc.is_valid(index["caption"])
    if withhold:
        index = index.drop_columns(["caption"])
        for name in ("url", "caption"):
            index = index.append_column(name, pa.nulls(index.num_rows, pa.string()))
    return index.append_column(CAPTIONED, pa.nulls(index.num_rows, pa.bool_()) if foreign and withhold else captioned)


def expect(uri: str, sha256: str) -> None:
    """Raises InputError where a table is not the one that a manifest or a record names: the report would state the root of another."""
    if storage.sha256_file(uri) != sha256:
        raise InputError(
            f"{uri}: its sha256 is not {sha256}, that of the table which was committed there; restore it or build it again"
        )


def in_files(found: pa.Table, index: pa.Table) -> pa.Table:
    """What was found in `index`, with the `row` in the corpus's own file.

    The index of a foreign file is ordered by uid and lacks the rows that were refused; one of our shards has every row, in its order.
    """
    if "row" not in index.column_names:
        return found
    place = found.column_names.index("row")
    return found.set_column(place, found.schema.field("row"), index["row"].take(found["row"]))


def keyed(found: pa.Table, index: pa.Table) -> pa.Table:
    """`in_files`, and the corpus's own names for the rows behind (tables.KEY)."""
    keys = index["key"].take(found["row"]) if "key" in index.column_names else pa.nulls(found.num_rows, KEY.type)
    return in_files(found, index).append_column(KEY, keys)
