"""Corpora that img2dataset or webdataset wrote, as source rows whose pictures are there already.

A shard of img2dataset is a table `NAME.parquet` with a row for each URL it tried (`url`, `caption`, `key`, `status`), and the pictures of
those that succeeded: in a column of that table (`jpg`, `png` or `webp`; its parquet format), in `NAME.tar` (webdataset), or as files
`NAME/KEY.jpg` (files). A row whose download failed there has no `archived`: it will be fetched. So will all rows of its tfrecord format,
which is not read.

A tar without such a table is read by the convention of webdataset: the members of a sample share their name up to the first dot, `.txt`
is its caption and `.json` an object with its `url` and perhaps its `caption`. `source` is `name#row`, in a tar with the sample's number.
Read off img2dataset 1.47 (writer.py, ParquetSampleWriter, WebDatasetSampleWriter and FilesSampleWriter).
"""

import contextlib
import io
from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa

from pipeline.content import tars
from pipeline.contracts import storage
from pipeline.contracts.at_once import at_once
from pipeline.contracts.config import digest_json
from pipeline.contracts.errors import InputError
from pipeline.sources import formats
from pipeline.sources.files import Row, SourceFile, SourcesConfig, bounded, table_of

PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "avif")
_MAX_TEXT = 1 << 20  # bytes of a sample's .txt or .json
_COLUMNS = ("url", "caption", "key", "status")


def read(file: SourceFile, config: SourcesConfig) -> pa.Table:
    """The rows of a shard as a table of SOURCE_SCHEMA, in its order."""
    return table_of(bounded(_tar_rows(file) if file.kind == "tar" else _shard_rows(file), config))


# ---- shards of img2dataset


def content_digest(file: SourceFile) -> str:
    """A digest over a shard's table and what lies beside it with its pictures: they may change while the table does not."""
    tar = [tar_of(file)] if storage.exists(tar_of(file)) else []
    uris = [file.uri, *tar, *_pictures_in(file.uri.removesuffix(".parquet"))]
    digests = at_once(storage.sha256_file, uris)
    return digest_json([[storage.name(uri), sha256] for uri, sha256 in zip(uris, digests, strict=True)])


def tar_of(file: SourceFile) -> str:
    """Where the pictures of a shard's table lie in webdataset's layout; in the others nothing is there."""
    return f"{file.uri.removesuffix('.parquet')}.tar"


def _shard_rows(file: SourceFile) -> Iterator[Row]:
    stem = file.uri.removesuffix(".parquet")
    with formats.open_parquet(file.uri) as parquet:
        names = parquet.schema_arrow.names
        missing = [name for name in ("url", "key", "status") if name not in names]
        if missing:
            raise InputError(
                f"{file.uri}: no column {missing[0]!r}, although {storage.name(stem)}_stats.json says that img2dataset wrote it; "
                "move that file away to have a table of URLs"
            )
        column = next((name for name in PICTURES if name in names), None)
        members = _members(f"{stem}.tar") if column is None and storage.exists(f"{stem}.tar") else {}
        beside = {} if column is not None or members else _files(stem)
        row = 0
        chosen = [name for name in _COLUMNS if name in names]
        try:
            for batch in parquet.iter_batches(formats.BATCH_ROWS, columns=chosen):
                for values in batch.to_pylist():
                    found = formats.checked(values["url"], values.get("caption"))
                    archived = None
                    if values["status"] == "success":
                        key = str(values["key"])
                        archived = f"cell:{column}/{row}" if column is not None else members.get(key) or beside.get(key)
                    yield Row(found.url, found.caption, None, f"{file.name}#{row}", archived, None, found.problem)
                    row += 1
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            said = " ".join(str(error).split())[:200]
            raise InputError(f"{file.uri}: corrupt parquet file ({said}); replace it or take it out") from None


def _files(stem: str) -> dict[str, str]:
    """Where the pictures of a shard in files are, by key."""
    names = [storage.name(uri) for uri in _pictures_in(stem)]
    return {name.rpartition(".")[0]: f"file:{storage.name(stem)}/{name}" for name in names}


def _pictures_in(stem: str) -> list[str]:
    """The pictures of a shard in files, sorted."""
    found = storage.list_files(stem) if storage.is_folder(stem) else []
    return sorted(uri for uri in found if uri.rpartition(".")[2].lower() in PICTURES)


def _members(uri: str) -> dict[str, str]:
    """Where the pictures of a tar are, by key."""
    found: dict[str, str] = {}
    with _opened(uri) as source:
        for member in _walk(source, uri):
            if member.suffix in PICTURES:
                found.setdefault(member.key, f"bytes:{member.start}+{member.size}@{storage.name(uri)}")
    return found


# ---- tars


class _Member(NamedTuple):
    """A plain file in a tar: which sample it is of, its suffix in lower case, and where its bytes are."""

    key: str
    suffix: str
    start: int
    size: int


@contextlib.contextmanager
def _opened(uri: str) -> Iterator[io.BufferedReader]:
    """A file that is read ahead, so that small members do not cost a request each."""
    with storage.plain_errors(uri, "read"), io.BufferedReader(storage.open_input(uri), 1 << 20) as source:
        yield source


def _walk(source: io.BufferedReader, uri: str) -> Iterator[_Member]:
    """The plain files of a tar in its order; the caller may seek. Raises InputError where it is no tar, is damaged, or was cut off."""
    try:
        for member in tars.plain_files(source):
            folder, _, last = member.name.rpartition("/")
            stem, _, suffix = last.partition(".")
            yield _Member(f"{folder}/{stem}" if folder else stem, suffix.lower(), member.data, member.size)
    except tars.Damaged as error:
        raise InputError(f"{uri}: not a whole tar file ({str(error)[:200]}); replace it or take it out") from None


def _tar_rows(file: SourceFile) -> Iterator[Row]:
    number = 0
    key: str | None = None
    sample: dict[str, str] = {}
    with _opened(file.uri) as source:
        for member in _walk(source, file.uri):
            if member.key != key:
                if sample:
                    yield _sample(file, number, sample)
                    number += 1
                key, sample = member.key, {}
            if member.suffix in PICTURES:
                sample.setdefault("archived", f"bytes:{member.start}+{member.size}")
            elif member.suffix in ("txt", "json"):
                source.seek(member.start)
                content = source.read(min(member.size, _MAX_TEXT))
                sample[member.suffix] = content.decode("utf-8", "surrogateescape")
    if sample:
        yield _sample(file, number, sample)


def _sample(file: SourceFile, number: int, sample: dict[str, str]) -> Row:
    told = formats.json_object(sample["json"]) if "json" in sample else {}
    if not isinstance(told, dict):
        return Row(None, None, None, f"{file.name}#{number}", sample.get("archived"), None, str(told))
    found = formats.checked(told.get("url"), sample.get("txt", told.get("caption")))
    return Row(found.url, found.caption, None, f"{file.name}#{number}", sample.get("archived"), None, found.problem)
