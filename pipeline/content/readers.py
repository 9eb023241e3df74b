"""Corpora that others wrote: where the pictures of a file lie, and the pictures, with what is said of them.

Three layouts, each read in place and never unpacked to a disk:

* `webdataset`: tars (`webdataset.py`). A row is a sample, its number the sample's.
* `parquet`: tables with a column of encoded pictures, of bytes or of Hugging Face's `{bytes, path}`.
* `folder`: picture files, with `KEY.txt` (a caption) and `KEY.json` beside `KEY.jpg` or not.

Three formats of img2dataset are among them: its JSON and its columns `url`, `caption`, `key` and `sha256` (of the bytes as fetched) are
understood. `list_file` reads a file from end to end, once: which rows it has, where, and SHA-256 of all of it. `read_file` reads some of
those rows, and raises InputError where the bytes are not those that were listed.

A row without a picture that can be used is refused by a reason, never lost. What is refused for its size is not read: MAX_PICTURE_BYTES a
picture (a sample, in tars; a cell of Parquet shows its size only when it is read), MAX_ROWS a file. A caption longer than a MiB, a URL
longer than 64 KiB and a fetched hash that is none count as absent.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.content import webdataset
from pipeline.content.formats import ImageRejected
from pipeline.content.labelled import PICTURE_ENDINGS
from pipeline.content.tars import Damaged, Member
from pipeline.contracts import parquet, storage
from pipeline.contracts.at_once import at_once, in_turn
from pipeline.contracts.errors import InputError
from pipeline.contracts.schema import Reason

Layout = Literal["webdataset", "parquet", "folder"]

LISTING_VERSION = 2
"""Of LISTED_SCHEMA and of the rules by which rows are found and numbered."""
MAX_PICTURE_BYTES = webdataset.MAX_SAMPLE_BYTES
MAX_ROWS = 1_000_000
PICTURES_PER_BLOCK = 1000
_MAX_TEXT_BYTES = webdataset.MAX_CAPTION_BYTES
_MAX_URL = 64 << 10
_MAX_KEY = 1000  # characters; a longer one is cut, the row's number still names it
_BATCH = 16  # rows of a Parquet file that are in memory at once
_RANGE_BYTES = 8 << 20  # neighbours in a tar that are read by one request
_BUFFER_BYTES = 4 << 20  # of a Parquet column that is streamed
_DAMAGED = "is damaged or cannot be read"
_ENDINGS = {"webdataset": ".tar", "parquet": ".parquet"}
_COMPRESSED = (".gz", ".tgz", ".zst", ".bz2", ".xz")
_IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp")  # the last four are img2dataset's
_TAR_PICTURES = tuple(dict.fromkeys((*webdataset.PICTURES, *(ending[1:] for ending in PICTURE_ENDINGS))))
"""By extension, the one that counts first: the trainer's own, in its order, then all others that can be decoded."""

LISTED_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("key", pa.string()),
        pa.field("start", pa.int64()),
        pa.field("stop", pa.int64()),
        pa.field("sha256", pa.binary(32), nullable=False),
    ]
)
"""One row of a file. `row` counts from 0, `source` names the row wherever the corpus lies, `key` is what the corpus calls it (`plain`),
null where only the file says. `start` and `stop` are bytes of a tar; `sha256` is over what `read_file` will find there (in Parquet: the
footer)."""


class Columns(NamedTuple):
    """The columns of a Parquet layout; None: the usual name, where there is one of it."""

    image: str | None = None
    caption: str | None = None
    url: str | None = None
    key: str | None = None


Packed = bytes
"""Pictures of a block: zlib over JSON of [name, URI, URIs of the texts]."""


class FolderPicture(NamedTuple):
    """A picture file: its path below the folder, where it is, and which of `webdataset.CAPTIONS` lie beside it."""

    name: str
    uri: str
    texts: tuple[str, ...]


@dataclass(frozen=True)
class CorpusFile:
    """A tar, a Parquet file, or a block of neighbouring pictures of a folder. `stamp` changes with its bytes, very probably.

    Every unit of work takes all files of a corpus to its worker, so the pictures of a block are packed: a million of them as 11 MB and not
    as millions of objects.
    """

    name: str
    uri: str
    stamp: str
    bytes: int
    packed: Packed = b""

    @property
    def pictures(self) -> list[FolderPicture]:
        """Those of a block; unpacked anew each time."""
        found = json.loads(zlib.decompress(self.packed)) if self.packed else []
        return [FolderPicture(name, uri, tuple(texts)) for name, uri, texts in found]


class Listing(NamedTuple):
    """What is in a file: LISTED_SCHEMA rows, SHA-256 (hex) of its bytes, and where it is damaged: rows behind that place are unknown."""

    rows: pa.Table
    sha256: str
    damage: str | None = None


class Entry(NamedTuple):
    """A row as it was read. `fetched` is the SHA-256 that the corpus states of the bytes as they were fetched; `data` is None when
    `refused` says why.
    """

    row: int
    source: str
    key: str | None
    data: bytes | None
    url: str | None = None
    caption: str | None = None
    fetched: bytes | None = None
    refused: ImageRejected | None = None


# ---- which files


def find_files(layout: Layout, places: Sequence[str]) -> list[CorpusFile]:
    """The files that `places` name (files, folders, patterns with `*`, `?`, `[...]` and `**`): in the order of the list, each sorted.

    Only looks at names, sizes and times. Raises InputError where a place names none, or a file comes twice.
    """
    if layout == "folder":
        return _find_pictures(places)
    ending = _ENDINGS[layout]
    uris: list[str] = []
    for place in places:
        if storage.name(place).endswith(_COMPRESSED):
            raise InputError(f"corpus.files: {place!r} is compressed as a whole; unpack it to {ending}")
        if storage.is_folder(place):
            found = [uri for uri in storage.list_files(place) if uri.endswith(ending)]
        else:
            found = storage.glob(place)
        if not found:
            raise InputError(
                f"corpus.files: {place!r} names no {ending} file; give a file, a folder of them or a pattern with *, ? or [0-9]"
            )
        uris += found
    _refuse_twice(uris)
    return [
        CorpusFile(plain(name), uri, f"{stamp[0]}-{stamp[1]}", stamp[0])
        for name, uri, stamp in zip(storage.names_below(uris), uris, _stamps(uris), strict=True)
    ]


def _find_pictures(places: Sequence[str]) -> list[CorpusFile]:
    """A folder's pictures in blocks: a unit of work must be worth its record."""
    uris: list[str] = []
    for place in places:
        present = storage.list_files(place, recursive=True) if storage.is_folder(place) else storage.glob(place)
        if not any(uri.lower().endswith(PICTURE_ENDINGS) for uri in present):
            raise InputError(
                f"corpus.files: {place!r} names no picture ({', '.join(PICTURE_ENDINGS)}); give a folder of pictures or a pattern"
            )
        uris += present
    _refuse_twice(uris)
    stamps = dict(zip(uris, _stamps(uris), strict=True))
    uris = [uri for uri in uris if uri.lower().endswith(PICTURE_ENDINGS)]
    pictures = []
    for name, uri in zip(storage.names_below(uris), uris, strict=True):
        stem = uri.rpartition(".")[0]
        texts = tuple(kind for kind in webdataset.CAPTIONS if f"{stem}.{kind}" in stamps)
        pictures.append(FolderPicture(name, uri, tuple(f"{stem}.{kind}" for kind in texts)))
    return [
        _block(start // PICTURES_PER_BLOCK, pictures[start : start + PICTURES_PER_BLOCK], stamps)
        for start in range(0, len(pictures), PICTURES_PER_BLOCK)
    ]


def _block(number: int, pictures: list[FolderPicture], stamps: dict[str, tuple[int, int]]) -> CorpusFile:
    said = [(one.name, [(uri.rpartition(".")[2], stamps[uri]) for uri in (one.uri, *one.texts)]) for one in pictures]
    stamp = hashlib.sha256(repr(said).encode()).hexdigest()
    size = sum(stamps[one.uri][0] for one in pictures)
    packed = zlib.compress(json.dumps(pictures).encode())
    return CorpusFile(f"block-{number:06d}", storage.parent(pictures[0].uri), stamp, size, packed)


def _refuse_twice(uris: list[str]) -> None:
    places = list(map(storage.rooted, uris))
    seen = Counter(places)
    twice = next((uri for uri, place in zip(uris, places, strict=True) if seen[place] > 1), None)
    if twice is not None:
        raise InputError(f"corpus.files: {twice!r} is named twice; name each file once")


def _stamps(uris: list[str]) -> list[tuple[int, int]]:
    found = []
    for uri, stamp in zip(uris, storage.stamps_of(uris), strict=True):
        if stamp is None:
            raise InputError(f"{uri}: no such file; it went away while the corpus was looked at")
        found.append(stamp)
    return found


# ---- what is in a file


def list_file(layout: Layout, file: CorpusFile, columns: Columns) -> Listing:
    """The rows of a file, and its digest: reads all of it once, and decodes nothing.

    Raises InputError for a file that is none of its layout, lacks a column or has more than MAX_ROWS rows. A tar that is damaged gives the
    whole samples before that place and says so; one that is damaged before its first sample is refused.
    """
    if layout == "webdataset":
        return _list_tar(file)
    return _list_parquet(file, columns) if layout == "parquet" else _list_block(file)


def read_file(layout: Layout, file: CorpusFile, listed: pa.Table, columns: Columns) -> Iterator[Entry]:
    """An entry for each of the `listed` rows (LISTED_SCHEMA, rising), in their order.

    Raises InputError where the file is not the one that was listed.
    """
    if layout == "webdataset":
        return _read_tar(file, listed)
    return _read_parquet(file, listed, columns) if layout == "parquet" else _read_block(file, listed)


def plain(name: str) -> str:
    """A name as one line of printable text, no two alike: other characters, and the backslash, as Python escapes them."""
    escaped = (sign if sign.isprintable() and sign != "\\" else sign.encode("unicode_escape").decode() for sign in name)
    return "".join(escaped)


def _key(name: str) -> str:
    """What the corpus calls a row, to be read; its file and number name it."""
    return plain(name[:_MAX_KEY])


def _listed(rows: Sequence[tuple[int, str, str | None, int | None, int | None, bytes]]) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [[]] * len(LISTED_SCHEMA)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, LISTED_SCHEMA, strict=True)]
    return pa.table(arrays, schema=LISTED_SCHEMA)


def _changed(uri: str, source: str) -> InputError:
    return InputError(f"{uri}: {source!r} has changed since it was listed; run the same command again")


def _too_many_bytes(size: int) -> ImageRejected:
    return ImageRejected(Reason.TOO_MANY_BYTES, f"{size:,} bytes, more than {MAX_PICTURE_BYTES:,}")


def _no_image(what: str) -> ImageRejected:
    return ImageRejected(Reason.NO_IMAGE, what)


def _refuse_rows(uri: str, rows: int) -> None:
    if rows > MAX_ROWS:
        raise InputError(f"{uri}: more than {MAX_ROWS:,} rows in one file; cut it into smaller ones")


# ---- tars


def _list_tar(file: CorpusFile) -> Listing:
    rows: list[tuple[int, str, str | None, int | None, int | None, bytes]] = []
    damage = None
    with storage.open_input(file.uri) as source:

        def read_at(offset: int, length: int) -> bytes:
            with storage.plain_errors(file.uri, "read"):
                block: bytes = source.read_at(length, offset)
            return block

        stream = webdataset.Stream(int(source.size()), read_at)
        marked = False

        def members() -> Iterator[Member]:
            nonlocal marked
            marked = yield from webdataset.members(stream.read, 0, stream.size)

        try:
            for number, sample in enumerate(webdataset.samples(members(), stream.read, _TAR_PICTURES)):
                _refuse_rows(file.uri, number + 1)
                place = f"{file.name}#{number}"
                rows.append((number, place, _key(sample.name), sample.start, sample.end, sample.digest))
            if not marked:  # some writers leave it out; so does a copy that was cut between two files
                raise Damaged("ends without the mark of its end")
        except Damaged as error:
            if not rows:
                raise InputError(
                    f"{file.uri}: {error}; give tars as webdataset writes them, or leave this one out"
                ) from None
            damage = str(error)
        return Listing(_listed(rows), stream.digest(), damage)


def _read_tar(file: CorpusFile, listed: pa.Table) -> Iterator[Entry]:
    with storage.open_input(file.uri) as source:
        for rows in _neighbours(listed.to_pylist()):
            first, last = rows[0]["start"], rows[-1]["stop"]
            if last - first > MAX_PICTURE_BYTES:  # only ever a row of its own
                yield Entry(
                    rows[0]["row"], rows[0]["source"], rows[0]["key"], None, refused=_too_many_bytes(last - first)
                )
                continue
            with storage.plain_errors(file.uri, "read"):
                data: bytes = source.read_at(last - first, first)
            for row in rows:
                yield _sample(file, row, data[row["start"] - first : row["stop"] - first])


def _neighbours(rows: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Rows in runs that one request reads: of at most _RANGE_BYTES, unless it is a single row, and without large gaps."""
    run: list[dict[str, Any]] = []
    for row in rows:
        if run and (row["start"] - run[-1]["stop"] > _RANGE_BYTES // 8 or row["stop"] - run[0]["start"] > _RANGE_BYTES):
            yield run
            run = []
        run.append(row)
    if run:
        yield run


def _sample(file: CorpusFile, row: dict[str, Any], data: bytes) -> Entry:
    def read(offset: int, length: int) -> bytes:
        return data[offset : offset + length]

    try:
        found = list(webdataset.samples(webdataset.members(read, 0, len(data)), read, _TAR_PICTURES))
    except Damaged:
        found = []
    if len(found) != 1 or found[0].digest != row["sha256"]:
        raise _changed(file.uri, row["source"])
    files = {kind: read(*place) for kind, place in found[0].files.items()}
    picture = next((files[kind] for kind in _TAR_PICTURES if kind in files), None)
    texts = [(kind, files[kind]) for kind in webdataset.CAPTIONS if kind in files]
    return _with_texts(row, picture, "a sample without a picture", texts)


def _with_texts(row: dict[str, Any], picture: bytes | None, absent: str, texts: Sequence[tuple[str, bytes]]) -> Entry:
    """A row from its files: the caption is the first that says something, URL and fetched hash are of the JSON."""
    caption = next((said for kind, data in texts if (said := webdataset.caption(kind, data)) is not None), None)
    told = next((webdataset.json_object(data) for kind, data in texts if kind == "json"), {})
    refused = None if picture else _no_image(absent if picture is None else "a picture file without bytes")
    return Entry(
        row["row"],
        row["source"],
        row["key"],
        picture or None,
        _url(told.get("url")),
        caption,
        _fetched(told.get("sha256")),
        refused,
    )


def _url(value: object) -> str | None:
    stripped = value.strip() if isinstance(value, str) else ""
    return stripped if 0 < len(stripped) <= _MAX_URL else None


def _fetched(value: object) -> bytes | None:
    known = isinstance(value, str) and re.fullmatch(r"[0-9a-fA-F]{64}", value)
    return bytes.fromhex(str(value)) if known else None


# ---- Parquet


def _open_table(uri: str) -> Any:
    """A pyarrow.parquet.ParquetFile whose columns are streamed: a row group may hold gigabytes of pictures."""
    with parquet.plain_errors(uri):
        return pq.ParquetFile(storage.open_input(uri), buffer_size=_BUFFER_BYTES)


def _footer(file: CorpusFile, source: Any) -> bytes:
    """SHA-256 of the footer, which names every place and size in the file."""
    length = source.metadata.serialized_size + 8
    return hashlib.sha256(storage.read_range(file.uri, max(0, storage.size(file.uri) - length), length)).digest()


def _list_parquet(file: CorpusFile, columns: Columns) -> Listing:
    with _open_table(file.uri) as source:
        _resolved(file.uri, source.schema_arrow, columns)
        rows = source.metadata.num_rows
        _refuse_rows(file.uri, rows)
        footer = _footer(file, source)
    listed = _listed([(row, f"{file.name}#{row}", None, None, None, footer) for row in range(rows)])
    return Listing(listed, storage.sha256_file(file.uri))


def _resolved(uri: str, schema: pa.Schema, columns: Columns) -> dict[str, str]:
    """Which column is the picture, and which are there of the others. Raises InputError for one that is missing or of another type."""
    twice = next((name for name, count in Counter(schema.names).items() if count > 1), None)
    if twice is not None:
        raise InputError(f"{uri}: column {twice!r} is there twice; write the table with a name for each column")
    images = (columns.image,) if columns.image is not None else _IMAGE_COLUMNS
    image = next((name for name in images if name in schema.names), None)
    if image is None:
        step = (
            "; the pictures of img2dataset's format webdataset are in its tars: give those, with layout = 'webdataset'"
        )
        raise InputError(
            f"{uri}: no column {' or '.join(repr(name) for name in images)}; name the column of pictures as corpus.image"
            + (step if {"key", "status"} <= set(schema.names) else "")
        )
    _check_type(uri, schema, image, _is_pictures(schema.field(image).type), "encoded pictures")
    found = {"image": image}
    for role in ("caption", "url", "key", "sha256"):
        asked: str | None = getattr(columns, role, None)
        if asked is not None and asked not in schema.names:
            raise InputError(f"{uri}: no column {asked!r}; its columns are {', '.join(schema.names)}")
        name = asked or role
        if name not in schema.names:
            continue
        kind = schema.field(name).type
        if role == "key":
            _check_type(uri, schema, name, _is_text(kind) or pa.types.is_integer(kind), "text or numbers")
        elif asked is not None:
            _check_type(uri, schema, name, _is_text(kind), "text")
        if role == "key" or _is_text(kind):
            found[role] = name
    return found


def _check_type(uri: str, schema: pa.Schema, name: str, good: bool, wanted: str) -> None:
    if not good:
        raise InputError(f"{uri}: column {name!r} holds {schema.field(name).type}, not {wanted}; name another column")


def _is_pictures(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _is_pictures(kind.field(place).type)
    if pa.types.is_dictionary(kind):
        return _is_pictures(kind.value_type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):  # as pandas writes a categorical column
        return _is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _read_parquet(file: CorpusFile, listed: pa.Table, columns: Columns) -> Iterator[Entry]:
    wanted = {row["row"]: row for row in listed.to_pylist()}
    read = 0
    with _open_table(file.uri) as source:
        if wanted and _footer(file, source) != listed["sha256"][0].as_py():
            raise _changed(file.uri, listed["source"][0].as_py())
        names = _resolved(file.uri, source.schema_arrow, columns)
        for number, batch in _batches(file.uri, source, sorted(wanted), list(names.values())):
            for place in range(batch.num_rows):
                if number + place in wanted:
                    read += 1
                    values = {role: batch.column(name)[place] for role, name in names.items()}
                    yield _cells(wanted[number + place], values)
    if read != len(wanted):
        raise InputError(f"{file.uri}: holds fewer rows than its footer says; restore it or leave it out")


def _batches(uri: str, source: Any, wanted: list[int], names: list[str]) -> Iterator[tuple[int, Any]]:
    """Batches of the row groups that hold `wanted` rows (rising), each with the number of its first row."""
    first = 0
    for group in range(source.num_row_groups):
        rows = source.metadata.row_group(group).num_rows
        if bisect.bisect_left(wanted, first) < bisect.bisect_left(wanted, first + rows):
            batches, number = source.iter_batches(batch_size=_BATCH, row_groups=[group], columns=names), first
            while True:
                with parquet.plain_errors(uri, _DAMAGED):
                    batch = next(batches, None)
                if batch is None:
                    break
                yield number, batch
                number += batch.num_rows
        first += rows


def _cells(row: dict[str, Any], values: dict[str, Any]) -> Entry:
    said = {role: value.as_py() for role, value in values.items()}
    image = said["image"].get("bytes") if isinstance(said["image"], dict) else said["image"]
    refused = _no_image("null, or no bytes, in the column of pictures") if not image else None
    if image and len(image) > MAX_PICTURE_BYTES:
        refused = _too_many_bytes(len(image))
    text, key = said.get("caption"), said.get("key")
    short = isinstance(text, str) and len(text) <= _MAX_TEXT_BYTES and text.strip()
    return Entry(
        row["row"],
        row["source"],
        None if key is None else _key(str(key)),
        None if refused else image,
        _url(said.get("url")),
        text if short else None,
        _fetched(said.get("sha256")),
        refused,
    )


# ---- folders


class _Loaded(NamedTuple):
    """A picture file in memory (None: too large) with its texts, and a digest over all of it; `size` is the picture's."""

    data: bytes | None
    size: int
    texts: list[tuple[str, bytes]]
    digest: bytes


def _load(one: FolderPicture) -> _Loaded:
    size = storage.size(one.uri)
    data = storage.read_bytes(one.uri) if size <= MAX_PICTURE_BYTES else None
    parts = [storage.sha256_file(one.uri) if data is None else hashlib.sha256(data).hexdigest()]
    texts = []
    for uri in one.texts:
        # One byte more than may be: a text that is longer counts as none.
        text = storage.read_range(uri, 0, _MAX_TEXT_BYTES + 1)
        texts.append((uri.rpartition(".")[2], text))
        parts.append(hashlib.sha256(text).hexdigest())
    return _Loaded(data, size, texts, hashlib.sha256(" ".join(parts).encode()).digest())


def _list_block(file: CorpusFile) -> Listing:
    pictures = file.pictures
    digests = at_once(lambda one: _load(one).digest, pictures)
    rows = [
        (row, plain(one.name), _key(one.name), None, None, digest)
        for row, (one, digest) in enumerate(zip(pictures, digests, strict=True))
    ]
    hasher = hashlib.sha256()
    for one, digest in zip(pictures, digests, strict=True):
        name = one.name.encode("utf-8", "surrogateescape")
        hasher.update(len(name).to_bytes(8, "little") + name + digest)
    return Listing(_listed(rows), hasher.hexdigest())


def _read_block(file: CorpusFile, listed: pa.Table) -> Iterator[Entry]:
    rows = listed.to_pylist()
    pictures = file.pictures
    loaded = in_turn(_load, [pictures[row["row"]] for row in rows])
    for row, (data, size, texts, digest) in zip(rows, loaded, strict=True):
        if digest != row["sha256"]:
            raise _changed(pictures[row["row"]].uri, row["source"])
        entry = _with_texts(row, data, "", texts)
        yield entry if data is not None else entry._replace(refused=_too_many_bytes(size))
