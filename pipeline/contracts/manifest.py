"""The manifest of a corpus: which shards it has, what is in them, how they came about, and one root over all rows.

`load` is what every consumer calls first. The pipeline's last stage commits shards on its workers and calls `publish` on its driver;
`write_corpus` does both for small corpora that fit in memory (tests, conversions, exclusions).
"""

import contextlib
import hashlib
import itertools
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pydantic

from pipeline.contracts import config, merkle, parquet, storage
from pipeline.contracts.config import Json, StrictModel
from pipeline.contracts.errors import InputError
from pipeline.contracts.parquet import RowGroup, Size, TableFile
from pipeline.contracts.schema import FORMAT_VERSION, INDEX_SCHEMA, SHARD_SCHEMA

log = logging.getLogger("pipeline")

FILE_NAME = "manifest.json"


class Shard(StrictModel):
    """One Parquet file of pairs and its index (every column but the picture, same order). Paths are relative to the manifest."""

    path: str
    rows: Size
    bytes: Size
    sha256: str
    row_groups: list[RowGroup]
    index_path: str
    index_bytes: Size
    index_sha256: str

    @pydantic.field_validator("path", "index_path")
    @classmethod
    def _stays_inside(cls, path: str) -> str:
        if path.startswith("/") or "://" in path or ".." in path.split("/"):
            raise ValueError(f"{path!r} leaves the folder of the manifest; the manifest is not ours")
        return path


class StageCounts(StrictModel):
    """The accounting of one stage: rows_in = rows_out + the sum of rejected."""

    rows_in: int
    rows_out: int
    rejected: dict[str, int]


class Manifest(StrictModel):
    """What is in a corpus. `config` holds the semantic keys only, so that the same corpus has the same manifest anywhere."""

    kind: Literal["corpus"] = "corpus"
    format_version: int
    rows: Size
    content_root: str
    shards: list[Shard]
    hashes: dict[str, str] = pydantic.Field(default_factory=dict)
    config: dict[str, Json] = pydantic.Field(default_factory=dict)
    config_digest: str | None = None
    query_list_digest: str | None = None
    parents: list[str] = pydantic.Field(default_factory=list)
    counts: dict[str, StageCounts] = pydantic.Field(default_factory=dict)


# ---- reading


def manifest_path(path: str) -> str:
    """The manifest's own URI, from it or from its folder."""
    return path if path.endswith(".json") else storage.join(path, FILE_NAME)


def load(path: str) -> Manifest:
    """The manifest at `path` (a manifest.json or its folder, local or s3://).

    Raises InputError when it is missing, is not a manifest, has another format version, or counts rows that its shards do not have.
    """
    found = _read(path)
    unequal = next(_sums_that_differ(found), None)
    if unequal is not None:
        raise InputError(f"{manifest_path(path)}: {unequal}; restore the manifest from its run")
    return found


def _sums_that_differ(manifest: Manifest) -> Iterator[str]:
    for number, shard in enumerate(manifest.shards):
        in_groups = sum(group.rows for group in shard.row_groups)
        if in_groups != shard.rows:
            yield f"shards.{number}.rows is {shard.rows:,} but its row groups list {in_groups:,}"
    in_shards = sum(shard.rows for shard in manifest.shards)
    if in_shards != manifest.rows:
        yield f"rows is {manifest.rows:,} but the shards list {in_shards:,}"


def _read(path: str) -> Manifest:
    """What `load` reads, before its sums are looked at."""
    place = manifest_path(path)
    text = storage.read_bytes(place)
    try:
        found = pydantic.TypeAdapter(dict[str, Json]).validate_json(text)
    except pydantic.ValidationError:
        raise InputError(f"{place}: not a corpus manifest; give the manifest.json that `pipeline run` wrote") from None
    version = found.get("format_version")
    if found.get("kind") != "corpus" or version is None:
        raise InputError(f"{place}: not a corpus manifest; give the manifest.json that `pipeline run` wrote")
    if version != FORMAT_VERSION:
        raise InputError(
            f"{place}: format version {version!r}, this program reads {FORMAT_VERSION}; use the matching release or rebuild"
        )
    try:
        return Manifest.model_validate(found)
    except pydantic.ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise InputError(f"{place}: {where}: {problem['msg']}; restore the manifest from its run") from None


def shard_uri(path: str, shard: Shard) -> str:
    """The URI of a shard of the corpus at `path`."""
    return storage.join(storage.parent(manifest_path(path)), shard.path)


def index_uri(path: str, shard: Shard) -> str:
    """The URI of a shard's index of the corpus at `path`."""
    return storage.join(storage.parent(manifest_path(path)), shard.index_path)


# ---- writing


def write_shard(rows: pa.Table, folder: str, stem: str) -> Shard:
    """Write one shard and its index under `folder` (created when missing); `rows` follow SHARD_SCHEMA and are sorted by uid.

    Each file is committed by rename or single upload; the same rows give the same bytes. Returned paths are relative to `folder`.
    """
    if rows.schema != SHARD_SCHEMA:
        raise ValueError(f"a shard must follow SHARD_SCHEMA, got {rows.schema}")
    shard = parquet.commit(rows, folder, stem)
    index = parquet.commit(rows.drop_columns(["image"]), folder, stem, suffix=".index.parquet")
    return shard_entry(shard, parquet.layout(storage.join(folder, shard.name)), index)


def shard_entry(shard: TableFile, row_groups: list[RowGroup], index: TableFile, *, below: str = "") -> Shard:
    """The manifest's line for a committed shard and its index; `below` is their folder relative to the manifest."""
    return Shard(
        path=storage.join(below, shard.name),
        rows=shard.rows,
        bytes=shard.bytes,
        sha256=shard.sha256,
        row_groups=row_groups,
        index_path=storage.join(below, index.name),
        index_bytes=index.bytes,
        index_sha256=index.sha256,
    )


def leaves(index_rows: pa.Table) -> Iterator[bytes]:
    """The row digests of a table with uid, caption and image_sha256, in its order."""
    columns = (index_rows[name].to_pylist() for name in ("uid", "caption", "image_sha256"))
    for uid, caption, image_sha256 in zip(*columns, strict=True):
        yield merkle.row_digest(uid, caption, image_sha256)


def shard_leaves(uri: str) -> Iterator[bytes]:
    """The row digests of an index file (or a shard), a row group at a time."""
    with parquet.open_file(uri) as source:
        for number in range(source.num_row_groups):
            yield from leaves(source.read_row_group(number, columns=["uid", "caption", "image_sha256"]))


SUBTREE_SCHEMA = pa.schema([("start", pa.int64()), ("size", pa.int64()), ("digest", pa.binary(32))])


def subtrees_uri(folder: str, root: str, rows: Iterable[int]) -> str:
    """Where the parts of a corpus's Merkle tree are kept, if they are: a help for proofs, named by the root that they must give and by the
    rows of each shard, for the same rows in other shards have other parts."""
    return storage.join(folder, f"subtrees-{root[:12]}-{config.digest_json(list(rows))[:12]}.parquet")


def write_subtrees(folder: str, root: str, shards: Sequence[Sequence[merkle.Subtree]]) -> None:
    """Keep the parts of the tree that each shard gave, so that a proof reads one shard and not all of them."""
    uri = subtrees_uri(folder, root, (sum(part.size for part in parts) for parts in shards))
    if storage.exists(uri):
        return
    columns = list(zip(*itertools.chain.from_iterable(shards), strict=True)) or [(), (), ()]
    storage.make_folder(folder)
    temporary = storage.local_temporary(uri)
    try:
        with storage.plain_errors(folder, "write"):
            parquet.write(pa.table([list(column) for column in columns], schema=SUBTREE_SCHEMA), temporary)
        storage.commit_file(temporary, uri)
    finally:
        storage.remove_own(temporary)


def read_subtrees(path: str) -> list[merkle.Subtree]:
    """The parts of the tree of the corpus at `path`: from the file beside its manifest when it gives the root, else from all indexes.

    The file is a help: of one that is damaged a warning is logged.
    """
    found = load(path)
    uri = _subtrees_of(path, found)
    if storage.exists(uri):
        parts = _parts_in(uri)
        with contextlib.suppress(ValueError):
            if merkle.root_of_subtrees(parts) == found.content_root:
                return parts
        log.warning("%s: is damaged or of other rows; all indexes are read instead; delete it", uri)
    parts, start = [], 0
    for shard in found.shards:
        parts += merkle.subtrees(shard_leaves(index_uri(path, shard)), start)
        start += shard.rows
    return parts


def _subtrees_of(path: str, found: Manifest) -> str:
    return subtrees_uri(storage.parent(manifest_path(path)), found.content_root, (shard.rows for shard in found.shards))


def _parts_in(uri: str) -> list[merkle.Subtree]:
    """What the file says; of one that cannot be read nothing."""
    try:
        table = parquet.read(uri)
    except InputError:
        return []
    if table.schema != SUBTREE_SCHEMA or any(column.null_count for column in table.columns):
        return []
    columns = (table[name].to_pylist() for name in SUBTREE_SCHEMA.names)
    return [merkle.Subtree(*row) for row in zip(*columns, strict=True)]


def publish(folder: str, manifest: Manifest) -> str:
    """Write `manifest` as `folder`/manifest.json, atomically, last of all; returns its URI.

    A copy named by its own hash stays beside it, so that an earlier corpus in the same folder remains readable.
    """
    data = to_json(manifest)
    storage.write_atomic(storage.join(folder, _copy_name(data)), data)
    uri = storage.join(folder, FILE_NAME)
    storage.write_atomic(uri, data)
    return uri


_COPY = re.compile(r"manifest-[0-9a-f]{12}\.json")


def _copy_name(data: bytes) -> str:
    return f"manifest-{hashlib.sha256(data).hexdigest()[:12]}.json"


def to_json(manifest: Manifest) -> bytes:
    """The manifest's bytes: JSON with one line a key and one line a shard, so that a person can read and compare it."""
    values = manifest.model_dump(mode="json")
    shards = ",\n".join("  " + json.dumps(shard) for shard in values.pop("shards"))
    lines = [f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    return ("{\n" + ",\n".join(lines) + ',\n"shards": [\n' + shards + "\n]\n}\n").encode()


def write_corpus(
    folder: str,
    tables: Iterable[pa.Table],
    *,
    rows_per_shard: int = 10_000,
    config_values: Mapping[str, Json] | None = None,
    counts: Mapping[str, StageCounts] | None = None,
    hashes: Mapping[str, str] | None = None,
    parents: Iterable[str] = (),
) -> Manifest:
    """Write a small corpus that fits in memory: rows of SHARD_SCHEMA in any order → shards, indexes, manifest."""
    rows = pa.concat_tables([table.select(SHARD_SCHEMA.names).cast(SHARD_SCHEMA) for table in tables])
    rows = rows.take(pc.sort_indices(rows["uid"])).combine_chunks()
    if rows.num_rows and pc.count_distinct(rows["uid"]).as_py() != rows.num_rows:
        raise InputError(f"{folder}: two rows have the same uid; remove duplicates before writing a corpus")
    pieces = [rows.slice(start, rows_per_shard) for start in range(0, max(rows.num_rows, 1), rows_per_shard)]
    shards = [write_shard(piece, folder, f"{number:05d}") for number, piece in enumerate(pieces)]
    values = dict(config_values or {})
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        rows=rows.num_rows,
        content_root=merkle.merkle_root(leaves(rows)),
        shards=shards,
        hashes=dict(hashes or {}),
        config=values,
        config_digest=config.digest_json(values),
        counts=dict(counts or {}),
        parents=list(parents),
    )
    publish(folder, manifest)
    return manifest


# ---- verifying


def verify(path: str) -> list[str]:
    """Re-hash a corpus against its manifest: one sentence per difference, none when all is as written.

    The manifest is checked too: its sizes and row groups against the files, its counts by their own sum, its config against config_digest,
    and all of it against the copies beside it, where there are any.
    """
    manifest = _read(path)
    problems: list[str] = []
    parts: list[merkle.Subtree] = []
    rows = 0
    last_uid = b""
    for shard in manifest.shards:
        found = _verify_files(path, shard)
        if not found:
            table = parquet.read(index_uri(path, shard))
            found = _verify_rows(path, shard, table, last_uid)
            parts += merkle.subtrees(leaves(table), rows)
            last_uid = table["uid"][-1].as_py() if table.num_rows else last_uid
        problems += found
        rows += shard.rows
    if rows != manifest.rows:
        problems.append(
            f"{manifest_path(path)}: rows is {manifest.rows:,} but the shards list {rows:,}; restore the manifest"
        )
    if not problems and merkle.root_of_subtrees(parts) != manifest.content_root:
        problems.append(f"{manifest_path(path)}: content_root differs from the rows; restore the manifest from its run")
    kept = _subtrees_of(path, manifest)
    if not problems and storage.exists(kept) and _parts_in(kept) != parts:
        problems.append(f"{kept}: differs from the rows; delete it, proofs then read the indexes")
    problems += [
        f"{manifest_path(path)}: counts.{name}: {count.rows_in:,} rows in are not {count.rows_out:,} out and "
        f"{sum(count.rejected.values()):,} rejected; restore the manifest from its run"
        for name, count in manifest.counts.items()
        if count.rows_in != count.rows_out + sum(count.rejected.values())
    ]
    if manifest.config_digest not in (None, config.digest_json(manifest.config)):
        problems.append(f"{manifest_path(path)}: config_digest differs from config; restore the manifest from its run")
    return problems or _verify_copies(manifest_path(path))


def _verify_copies(place: str) -> list[str]:
    """A manifest that none of the copies beside it equals was edited. Who moves a corpus may leave the copies behind."""
    folder = storage.parent(place)
    copies = sorted(name for name in storage.sizes(folder) if _COPY.fullmatch(name))
    if not copies or _copy_name(storage.read_bytes(place)) in copies:
        return []
    return [f"{place}: differs from every copy beside it, like {copies[-1]}; restore it from the one of its run"]


def _verify_files(path: str, shard: Shard) -> list[str]:
    problems = []
    for uri, sha256, size in (
        (shard_uri(path, shard), shard.sha256, shard.bytes),
        (index_uri(path, shard), shard.index_sha256, shard.index_bytes),
    ):
        found = storage.info(uri)
        if found is None:
            problems.append(f"{uri}: is missing; restore it or run the pipeline again")
        elif storage.sha256_file(uri) != sha256:
            problems.append(f"{uri}: sha256 differs from the manifest; restore it or run the pipeline again")
        elif found.size != size:  # the hash is right, so it is the manifest that was edited
            problems.append(
                f"{uri}: {found.size:,} bytes, the manifest says {size:,}; restore the manifest from its run"
            )
    return problems


def _verify_rows(path: str, shard: Shard, index: pa.Table, last_uid: bytes) -> list[str]:
    """What the hashes of the files cannot tell: that index and shard say the same, that pictures are the ones named, the order."""
    uri = shard_uri(path, shard)
    problems = []
    if index.schema != INDEX_SCHEMA:
        problems.append(
            f"{index_uri(path, shard)}: columns differ from format version {FORMAT_VERSION}; rebuild the corpus"
        )
        return problems
    if parquet.layout(uri) != shard.row_groups:
        # Who seeks by the manifest would read other bytes; nothing below can be compared group by group.
        problems.append(
            f"{uri}: row_groups (rows, offsets, bytes) differ from the file's footer; restore the manifest from its run"
        )
        return problems
    uids = [last_uid, *index["uid"].to_pylist()]
    if any(first >= second for first, second in itertools.pairwise(uids)):
        problems.append(f"{uri}: rows are not in strictly rising uid order; rebuild the corpus")
    start = 0
    for number, group in enumerate(shard.row_groups):
        rows = parquet.read_row_group(uri, number)
        if rows.num_rows != group.rows or not rows.drop_columns(["image"]).equals(index.slice(start, group.rows)):
            problems.append(f"{uri}: row group {number} differs from the index; rebuild the corpus")
        pictures = zip(rows["image"].to_pylist(), rows["image_sha256"].to_pylist(), strict=True)
        if any(image is not None and hashlib.sha256(image).digest() != sha256 for image, sha256 in pictures):
            problems.append(
                f"{uri}: row group {number} holds a picture that is not its image_sha256; rebuild the corpus"
            )
        start += group.rows
    if start != shard.rows or index.num_rows != shard.rows:
        problems.append(f"{uri}: {index.num_rows:,} rows, the manifest says {shard.rows:,}; rebuild the corpus")
    return problems
