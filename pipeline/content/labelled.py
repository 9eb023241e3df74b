"""Labelled sets: where the pictures of an evaluation come from, what they are called, and what exactly was evaluated.

Two layouts are opened here: a Parquet file with a column of encoded pictures, or a folder with one folder per class;
`evaluation.datasets` puts sets together from the published archives (`assemble`). Opening a set reads every small column, and the
pictures once (for the content hash); pictures are read again when they are needed, in order, so that a set larger than memory can be
evaluated, and one that is not what it was then is refused. A row keeps its id through every table that comes out of an evaluation.

A row has one class, or, in a set of several labels a picture, a mark for each class (`marks`); rows with the same `group` are frames of one
video, which is scored once.

The content hash covers the row ids, the bytes of every picture, labels, class names, captions, subgroups, groups and marks, in order: two
sets with the same hash give the same scores, and a set that changed in any of these has another one.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pipeline.content.text import has_half
from pipeline.contracts import parquet, storage
from pipeline.contracts.cli import Progress
from pipeline.contracts.config import StrictModel, not_semantic
from pipeline.contracts.errors import InputError

PICTURE_ENDINGS = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
UNLABELLED = -1
IGNORED = -1
"""Of a class's mark: 1 is in the picture, 0 is not, IGNORED does not count for this class (VOC's difficult objects)."""
_BATCH = 256
_DAMAGED = "is damaged or cannot be read"
_MOST_UNNAMED = 10_000  # classes numbered without a list, however few rows: above it a number is an id or a hash

SET_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # it becomes a file name


class LabelledSetConfig(StrictModel):
    """A labelled set: a Parquet file with a column of encoded pictures, or a folder with one folder per class."""

    name: str = Field(pattern=SET_NAME, max_length=100)
    path: str = not_semantic(...)
    image: str = "image"  # column of encoded picture bytes (Parquet only, like the next five)
    label: str | None = (
        None  # column of class numbers or class names; none: no labels (in a folder: the folders' names)
    )
    id: str | None = None  # column that names a row; none: its position in the file
    caption: str | None = None  # column with the picture's name or caption
    subgroup: str | None = None  # column by which scores are also given group by group
    group: str | None = None  # column that names the video whose frame a row is; a video is scored once
    where: dict[str, str | int | list[str | int]] = Field(
        default_factory=dict
    )  # keep rows whose column has this value, or one of these
    classes: list[str] = Field(
        default_factory=list
    )  # the class list; empty: from `classes_file`, or from the set, sorted
    classes_file: str | None = not_semantic(None)  # one class name a line (its content enters the set's hash)
    absent_classes: bool = False  # accept a class list some of whose classes have no example in the set
    separators: str = "_"  # signs of a class name that a prompt reads as a space

    @model_validator(mode="after")
    def _one_class_list(self) -> LabelledSetConfig:
        if self.classes and self.classes_file is not None:
            raise ValueError("give classes or classes_file, not both")
        return self


def check_template(template: str) -> None:
    """A template holds `{}` exactly once, and no other brace."""
    if template.count("{}") != 1 or re.search(r"[{}]", template.replace("{}", "")):
        raise ValueError(f"template {template!r} must hold {{}} exactly once, where the class name goes")


@dataclass(frozen=True)
class Picture:
    """One example as it is stored: its position in the set, its id, its encoded bytes."""

    row: int
    id: str
    data: bytes


class Pictures(Protocol):
    """Where the encoded pictures of a set are; travels to the workers, so it holds places and no pictures."""

    def read(self, rows: Sequence[int]) -> Iterator[bytes]:
        """The bytes of ascending rows, one after the other; fewer where the place has become shorter."""
        ...


@dataclass(frozen=True)
class LabelledSet:
    """An opened set. `labels` is int32[n] with -1 where a row has none; the lists have one entry a row or are None.

    `marks` int8[n, classes] (1, 0, IGNORED) is of sets with several labels a picture; `labels` is -1 there.
    """

    name: str
    path: str
    ids: list[str]
    labels: NDArray[np.int32]
    classes: list[str]
    class_texts: list[str]
    captions: list[str | None] | None
    subgroups: list[str | None] | None
    sha256: list[bytes]
    content_hash: str
    _pictures: Pictures = field(repr=False)
    groups: list[str] | None = None
    marks: NDArray[np.int8] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    def pictures(self, rows: Sequence[int] | None = None) -> Iterator[Picture]:
        """The pictures of `rows` (ascending positions; none: all), one after the other.

        Raises InputError for one that is not there any more or is another than when the set was opened: labels and names are of then.
        """
        wanted = range(len(self)) if rows is None else rows
        found = self._pictures.read(wanted)
        for row in wanted:
            data = next(found, None)
            if data is None or hashlib.sha256(data).digest() != self.sha256[row]:
                raise InputError(
                    f"{self.path}: has changed since it was opened (picture {self.ids[row]!r}); bring back what was there or start again"
                )
            yield Picture(row, self.ids[row], data)


def open_set(config: LabelledSetConfig) -> LabelledSet:
    """Open what `config` names.

    Raises InputError: nothing there, a missing column, no picture at all, a label outside of the class list, a class list of another
    length, an id that is used twice.
    """
    if storage.is_folder(config.path):
        return _open_folder(config)
    return _open_parquet(config)


def _place(config: LabelledSetConfig) -> str:
    return f"set {config.name!r} ({config.path})"


def of_files(name: str, files: Sequence[str]) -> LabelledSet:
    """Pictures without labels, by their places, which are their ids. Raises InputError for one that is not there or comes twice."""
    config = LabelledSetConfig(name=name, path="command line")
    return assemble(config, list(files), [None] * len(files), _Files(list(files)))


# ---- folders


@dataclass(frozen=True)
class _Files:
    """One file a row."""

    files: list[str]

    def read(self, rows: Sequence[int]) -> Iterator[bytes]:
        return (storage.read_bytes(self.files[row]) for row in rows)


def _open_folder(config: LabelledSetConfig) -> LabelledSet:
    prefix = config.path.rstrip("/") + "/"
    files = [uri for uri in storage.list_files(config.path, recursive=True) if uri.lower().endswith(PICTURE_ENDINGS)]
    if not files:
        raise InputError(
            f"{_place(config)} has no picture ({', '.join(PICTURE_ENDINGS)}); expected one folder per class with pictures in it"
        )
    ids = [uri.removeprefix(prefix) for uri in files]
    folders = [row_id.split("/")[0] if "/" in row_id else None for row_id in ids]
    return assemble(config, ids, folders, _Files(files))


# ---- Parquet


@dataclass(frozen=True)
class _Column:
    """A column of a Parquet file; `places` int64[n] are the rows' positions there."""

    path: str
    column: str
    places: NDArray[np.int64]

    def read(self, rows: Sequence[int]) -> Iterator[bytes]:
        return _picture_bytes(self.path, self.column, self.places[np.asarray(rows, np.int64)])


def _open_parquet(config: LabelledSetConfig) -> LabelledSet:
    source = _parquet(config.path)
    present = source.schema_arrow.names
    wanted = [config.image, config.label, config.id, config.caption, config.subgroup, config.group, *config.where]
    for column in wanted:
        if column is not None and column not in present:
            raise InputError(f"{_place(config)} has no column {column!r}; its columns are {', '.join(present)}")
        if column is not None and present.count(column) > 1:
            raise InputError(f"{_place(config)} has {present.count(column)} columns {column!r}; rename one of them")
    small = sorted({column for column in wanted if column is not None} - {config.image})
    with parquet.plain_errors(config.path, _DAMAGED):
        table = source.read(columns=small)
        table.validate(full=True)  # texts are UTF-8: until then pyarrow believes the file
    table = table.append_column("", pa.array(np.arange(source.metadata.num_rows)))
    for column, value in config.where.items():
        try:
            allowed = pa.array(value if isinstance(value, list) else [value])
            table = table.filter(pc.is_in(table[column], value_set=allowed.cast(table[column].type)))
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
            raise InputError(
                f"{_place(config)}: where.{column}: {value!r} is not of the column's type {table[column].type}"
            ) from None
    if not table.num_rows:
        kept = f" where {config.where!r}" if config.where else ""
        raise InputError(f"{_place(config)} has no picture{kept}; check the file and the `where` table")
    places = np.asarray(table[""])
    ids = [str(value) for value in (table[config.id].to_pylist() if config.id else places.tolist())]
    values = table[config.label].to_pylist() if config.label else [None] * len(ids)
    captions, subgroups, groups = (_texts(table, column) for column in (config.caption, config.subgroup, config.group))
    source = _Column(config.path, config.image, places)
    return assemble(config, ids, values, source, captions=captions, subgroups=subgroups, groups=groups)


def _parquet(path: str) -> Any:
    """A pyarrow.parquet.ParquetFile. Raises InputError when the file is not Parquet."""
    with parquet.plain_errors(path, "no readable Parquet file, nor a folder of pictures"):
        return pq.ParquetFile(storage.open_input(path))


def _texts(table: pa.Table, column: str | None) -> list[str | None] | None:
    if column is None:
        return None
    return [None if value is None else str(value) for value in table[column].to_pylist()]


def _picture_bytes(path: str, column: str, places: NDArray[np.int64]) -> Iterator[bytes]:
    """The pictures at ascending `places` of a Parquet file, row group by row group."""
    source = _parquet(path)
    if column not in source.schema_arrow.names:
        raise InputError(f"{path}: has no column {column!r} any more; bring back the file that was opened")
    first = 0
    for group in range(source.num_row_groups):
        rows = source.metadata.row_group(group).num_rows
        inside = places[(places >= first) & (places < first + rows)] - first
        if len(inside):
            # The row group in slices: a group may hold gigabytes of pictures.
            start = 0
            batches = source.iter_batches(batch_size=_BATCH, row_groups=[group], columns=[column])
            while True:
                with parquet.plain_errors(path, _DAMAGED):
                    batch = next(batches, None)
                    if batch is None:
                        break
                    taken = inside[(inside >= start) & (inside < start + batch.num_rows)] - start
                    pictures = batch.column(0).take(pa.array(taken))
                for data in pictures.to_pylist():
                    yield _as_bytes(path, column, data)
                start += batch.num_rows
        first += rows


def _as_bytes(path: str, column: str, data: object) -> bytes:
    if isinstance(data, dict):  # the layout of Hugging Face's Image feature: {"bytes": ..., "path": ...}
        data = data.get("bytes")
    if not isinstance(data, bytes) or not data:
        raise InputError(
            f"{path}: column {column!r} has a row without picture bytes; drop it or filter it with `where`"
        )
    return data


# ---- labels


def _labels(
    config: LabelledSetConfig, values: Sequence[str | int | None], known_classes: Sequence[str]
) -> tuple[NDArray[np.int32], list[str]]:
    """Class numbers and the class list, from numbers with a given list (the configuration's, else the dataset's own) or from names."""
    given = list(config.classes or known_classes)
    if not any(value is not None for value in values):
        if config.label is not None:
            raise InputError(
                f"{_place(config)}: column {config.label!r} is empty; name the column that holds the classes"
            )
        return np.full(len(values), UNLABELLED, np.int32), given
    if config.classes_file is not None:
        given = [line.strip() for line in storage.read_text(config.classes_file).splitlines() if line.strip()]
    known = [value for value in values if value is not None]
    if all(isinstance(value, str) for value in known):
        return _labels_by_name(config, values, given)
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in known):
        raise InputError(f"{_place(config)}: column {config.label!r} holds neither class numbers nor class names")
    numbers = [int(value) for value in known]
    largest, most = max(numbers), max(_MOST_UNNAMED, 100 * len(values))
    if not given and largest >= most:
        raise InputError(
            f"{_place(config)}: label {largest} without a class list would make {largest + 1:,} classes of {len(values):,} rows; name the "
            "column of class numbers, or give the class list"
        )
    classes = given or [str(number) for number in range(largest + 1)]
    for row, value in enumerate(values):
        if value is not None and not 0 <= int(value) < len(classes):
            raise InputError(
                f"{_place(config)}: row {row}: label {value!r} is out of range for {len(classes)} classes; "
                "check the label column and the class list"
            )
    if given and not config.absent_classes and len(set(numbers)) != len(given):
        raise InputError(
            f"{_place(config)}: the class list has {len(given)} names but the set has {len(set(numbers))} classes, numbered "
            f"{min(numbers)} to {max(numbers)}; give the list that belongs to this set, or allow it with absent_classes = true"
        )
    return np.array([UNLABELLED if value is None else int(value) for value in values], np.int32), classes


def _short(value: object) -> str:
    """A value for a message, however long it is."""
    return repr(value) if len(repr(value)) <= 100 else f"{repr(value)[:80]}…"


def _labels_by_name(
    config: LabelledSetConfig, values: Sequence[str | int | None], given: list[str]
) -> tuple[NDArray[np.int32], list[str]]:
    present = sorted({str(value) for value in values if value is not None})
    classes = given or present
    if len(set(classes)) != len(classes):
        raise InputError(f"{_place(config)}: the class list names a class twice; labels by name need distinct names")
    number = {name: place for place, name in enumerate(classes)}
    for row, value in enumerate(values):
        if value is not None and value not in number:
            raise InputError(
                f"{_place(config)}: row {row}: label {_short(value)} is not in the class list of {len(classes)} names; "
                "add it to the list or mend the label"
            )
    if given and not config.absent_classes and len(present) != len(given):
        absent = next(name for name in given if name not in present)
        raise InputError(
            f"{_place(config)}: the class list has {len(given)} names but the set has {len(present)} classes "
            f"({absent!r} has no example); give the list that belongs to this set, or allow it with absent_classes = true"
        )
    return np.array([UNLABELLED if value is None else number[str(value)] for value in values], np.int32), classes


# ---- putting together


def assemble(
    config: LabelledSetConfig,
    ids: list[str],
    values: Sequence[Any],
    source: Pictures,
    *,
    classes: Sequence[str] = (),
    captions: list[str | None] | None = None,
    subgroups: list[str | None] | None = None,
    groups: Sequence[str | None] | None = None,
    marks: NDArray[np.int8] | None = None,
) -> LabelledSet:
    """A set from its rows: reads every picture once, for the hashes.

    `values` are class numbers, class names or None, one a row; lists of these make a set of several labels a picture, and so do ready
    `marks` int8[n, classes]. `classes` is the list that belongs to the numbers, where the configuration gives none.
    Raises InputError for what `open_set` says, and for a row without its group.
    """
    if marks is None and any(isinstance(value, list) for value in values):
        labels, named, marks = _several_labels(config, values, classes)
    else:
        labels, named = _labels(config, values, classes)
    broken = next((name for name in named if has_half(name)), None)
    if broken is not None:
        raise InputError(
            f"{_place(config)}: class {_short(broken)} has half of a character; write its name again as UTF-8"
        )
    if groups is not None and None in groups:
        row = list(groups).index(None)
        raise InputError(f"{_place(config)}: row {row} has no group; name its video in column {config.group!r}")
    if len(set(ids)) != len(ids):
        twice = Counter(ids).most_common(1)[0][0]
        raise InputError(
            f"{_place(config)}: the id {_short(twice)} is used twice; choose an id column whose values differ"
        )
    hashes = []
    with Progress(len(ids), "pictures", f"opening {config.name}", summary=False) as progress:
        for data in source.read(range(len(ids))):
            hashes.append(hashlib.sha256(data).digest())
            progress.update()
    if len(hashes) < len(ids):
        raise InputError(f"{_place(config)}: {len(hashes):,} pictures where {len(ids):,} were listed; it is cut short")
    videos = None if groups is None else [str(group) for group in groups]
    return LabelledSet(
        name=config.name,
        path=config.path,
        ids=ids,
        labels=labels,
        classes=named,
        class_texts=[name.translate({ord(sign): " " for sign in config.separators}) for name in named],
        captions=captions,
        subgroups=subgroups,
        sha256=hashes,
        content_hash=_content_hash(config, ids, hashes, labels, named, (captions, subgroups), videos, marks),
        _pictures=source,
        groups=videos,
        marks=marks,
    )


def _several_labels(
    config: LabelledSetConfig, values: Sequence[Any], known_classes: Sequence[str]
) -> tuple[NDArray[np.int32], list[str], NDArray[np.int8]]:
    """Marks from a list of labels a row, which may be empty: none of the classes is in the picture.

    Raises InputError for a row without a list: of it nothing is known, and it would count as a picture of none.
    """
    bare = next((row for row, value in enumerate(values) if not isinstance(value, list)), None)
    if bare is not None:
        raise InputError(
            f"{_place(config)}: row {bare} has no list in column {config.label!r}; write an empty one for a picture of none of the "
            "classes, or leave the row out with `where`"
        )
    lists = [[label for label in value if label is not None] for value in values]
    flat, classes = _labels(config, [label for one in lists for label in one], known_classes)
    marks = np.zeros((len(values), len(classes)), np.int8)
    marks[np.repeat(np.arange(len(lists)), [len(one) for one in lists]), flat] = 1
    return np.full(len(values), UNLABELLED, np.int32), classes, marks


def _content_hash(
    config: LabelledSetConfig,
    ids: list[str],
    hashes: list[bytes],
    labels: NDArray[np.int32],
    classes: list[str],
    texts: tuple[list[str | None] | None, ...],
    groups: list[str] | None,
    marks: NDArray[np.int8] | None,
) -> str:
    hasher = hashlib.sha256()
    parts = [*classes, "", config.separators]
    told = "=" if texts[0] is not None else "subgroup="  # of a text that stands alone one must see which it is
    for row, row_id in enumerate(ids):
        extras = [column[row] for column in texts if column is not None]
        parts += [
            row_id,
            hashes[row].hex(),
            str(labels[row]),
            *("" if extra is None else told + extra for extra in extras),
        ]
        if groups is not None:
            parts.append("group=" + groups[row])
        if marks is not None:
            parts.append("marks=" + marks[row].tobytes().hex())
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")
        hasher.update(len(encoded).to_bytes(8, "little") + encoded)
    return hasher.hexdigest()
