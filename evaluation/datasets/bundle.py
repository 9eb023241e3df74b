"""Files by name, wherever they lie: in a folder, in a tar, tar.gz or zip, or in such archives in a folder. Nothing is ever extracted.

A dataset is published as one archive or several, and people keep them packed, unpacked, or half of each; a reader asks for
`annotations/test.txt` and for the pictures under `images` and need not know. Members are found by the end of their path, so
one folder more or less above them does not matter.

Archives are a stranger's: sizes are bounded before bytes are read, and what is damaged is one sentence.
A tar.gz has no random access; its members are read forwards, in its own order.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Literal, cast

from evaluation.datasets.raw import picture
from pipeline.content import tars
from pipeline.contracts import storage
from pipeline.contracts.errors import InputError

Kind = Literal["file", "gz", "tar", "tar.gz", "zip"]

MOST_MEMBERS = 4_000_000
MOST_PICTURE = 64 << 20
MOST_TEXT = 1 << 20
MOST_FILE = 128 << 20
"""Bytes of a list, a table or another small file of a dataset."""
_BLOCK = 1 << 20
_MOST_INFLATED = 512 << 30  # bytes of a tar.gz behind which nothing is looked for
_ENDINGS: tuple[tuple[str, Kind], ...] = (
    (".tar.gz", "tar.gz"),
    (".tgz", "tar.gz"),
    (".tar", "tar"),
    (".zip", "zip"),
    (".gz", "gz"),
)


@dataclass(frozen=True)
class Member:
    """One file: its path in the bundle, and where its bytes are.

    `start` is the first byte in a tar (uncompressed) or the number in a zip's directory; `size` is None where only reading tells.
    """

    name: str
    container: str
    kind: Kind
    start: int = 0
    size: int | None = None


@dataclass(frozen=True)
class Bundle:
    """The files of a dataset, in the order of their names; those of a tar.gz in the order in which it has them."""

    path: str
    members: list[Member]

    def find(self, ending: str) -> Member | None:
        """The one member whose path ends so. Raises InputError where there are several."""
        found = [member for member in self.members if f"/{member.name}".endswith(f"/{ending}")]
        if len(found) > 1:
            raise InputError(
                f"{self.path}: holds {ending!r} {len(found)} times ({found[0].name!r}, {found[1].name!r}); name the folder of one dataset"
            )
        return found[0] if found else None

    def data(self, *endings: str, limit: int = MOST_FILE) -> bytes:
        """The bytes of the first of these files that is there. Raises InputError where none is, or it is larger than `limit`."""
        for ending in endings:
            member = self.find(ending)
            if member is not None:
                return next(_read([member], limit))
        raise InputError(
            f"{self.path}: holds no {' or '.join(map(repr, endings))}; name the folder or archive of the dataset"
        )

    def lines(self, *endings: str) -> list[str]:
        """The lines of a UTF-8 text that are not empty."""
        try:
            text = self.data(*endings).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{self.path}: {endings[0]!r}: byte {error.start} is not UTF-8; restore the file"
            ) from None
        return [line.strip() for line in text.splitlines() if line.strip()]

    def under(self, folder: str) -> dict[str, Member]:
        """The members below a folder, by the rest of their path; of two with the same rest the first."""
        found: dict[str, Member] = {}
        for member in self.members:
            _, sign, rest = f"/{member.name}".partition(f"/{folder}/")
            if sign:
                found.setdefault(rest, member)
        return found


@dataclass(frozen=True)
class Members:
    """Pictures that are files of a bundle, one a row."""

    members: list[Member]

    def read(self, rows: Sequence[int]) -> Iterator[bytes]:
        return map(picture, _read((self.members[row] for row in rows), MOST_PICTURE))


def small_texts(members: Sequence[Member | None]) -> list[str | None]:
    """The text of each member, None where there is none; of at most MOST_TEXT bytes each."""
    data = _read((member for member in members if member is not None), MOST_TEXT)
    return [None if member is None else next(data).decode("utf-8", "replace") for member in members]


def open_bundle(path: str) -> Bundle:
    """List what lies at `path`, a folder or an archive. Raises InputError where nothing is, or an archive is damaged."""
    if storage.is_folder(path):
        prefix = path.rstrip("/") + "/"
        files = storage.list_files(path, recursive=True)
    elif storage.exists(path):
        prefix, files = path.removesuffix(storage.name(path)), [path]
    else:
        raise InputError(f"{path}: nothing there; name the folder or the archive of the dataset")
    plain: list[Member] = []
    archived: list[Member] = []
    for uri in files:
        name = uri.removeprefix(prefix)
        kind: Kind = next((kind for ending, kind in _ENDINGS if name.lower().endswith(ending)), "file")
        if kind == "file":
            plain.append(Member(name, uri, kind))
        elif kind == "gz":
            plain.append(Member(name[:-3], uri, kind))
        else:
            folder = name.removesuffix(storage.name(name))
            archived += _listed(uri, kind, folder)
    if not any(member.kind == "tar.gz" for member in archived):
        archived.sort(key=lambda member: member.name)
    return Bundle(path, [member for member in plain + archived if not _is_litter(member.name)])


def _is_litter(name: str) -> bool:
    """What macOS leaves in archives."""
    return name.startswith("__MACOSX/") or name.rpartition("/")[2].startswith("._")


def _listed(uri: str, kind: Kind, folder: str) -> list[Member]:
    with _archive(uri) as source:
        if kind == "zip":
            with zipfile.ZipFile(source) as archive:
                directory = archive.infolist()
            found = [
                Member(folder + info.filename, uri, kind, number, info.file_size)
                for number, info in enumerate(directory)
                if not info.is_dir()
            ]
        else:
            stream = cast("IO[bytes]", gzip.GzipFile(fileobj=source)) if kind == "tar.gz" else source
            found = []
            for file in tars.plain_files(stream, most=None if kind == "tar" else _MOST_INFLATED):
                if file.end > _MOST_INFLATED or len(found) >= MOST_MEMBERS:
                    raise tars.Damaged("is larger than any dataset")
                found.append(Member(folder + file.name.removeprefix("./"), uri, kind, file.data, file.size))
            if kind == "tar.gz":  # its checksum is at its end, behind the tar's
                _drain(stream)
    return found


def _drain(stream: IO[bytes]) -> None:
    while stream.read(_BLOCK):
        if stream.tell() > _MOST_INFLATED:
            raise tars.Damaged("is larger than any dataset")


def _read(members: Iterable[Member], limit: int) -> Iterator[bytes]:
    """The bytes of members one after the other; an archive stays open while they come from it."""
    for (uri, kind), run in itertools.groupby(members, key=lambda member: (member.container, member.kind)):
        if kind == "file":
            yield from (storage.read_bytes(uri, limit=limit) for _ in run)
            continue
        with _archive(uri) as source:
            if kind == "zip":
                with zipfile.ZipFile(source) as archive:
                    directory = archive.infolist()
                    for member in run:
                        yield _zipped(archive, directory, member, limit)
            else:
                stream: IO[bytes] = source if kind == "tar" else cast("IO[bytes]", gzip.GzipFile(fileobj=source))
                for member in run:
                    if (member.size or 0) > limit:
                        raise _too_large(member, limit)
                    stream.seek(member.start)
                    data = stream.read(limit + 1 if member.size is None else member.size)
                    if len(data) > limit:
                        raise _too_large(member, limit)
                    if member.size is not None and len(data) < member.size:
                        raise EOFError(f"{member.name!r} ends early")
                    yield data


def _zipped(archive: zipfile.ZipFile, directory: list[zipfile.ZipInfo], member: Member, limit: int) -> bytes:
    if member.start >= len(directory) or directory[member.start].file_size != member.size:
        raise zipfile.BadZipFile(f"{member.name!r} is not there any more")
    if member.size > limit:
        raise _too_large(member, limit)
    if directory[member.start].flag_bits & 1:
        raise zipfile.BadZipFile(f"{member.name!r} is encrypted")
    with archive.open(directory[member.start]) as source:
        return source.read(member.size)  # checks the CRC at its end


def _too_large(member: Member, limit: int) -> InputError:
    return InputError(f"{member.container}: {member.name!r} has more than the {limit:,} bytes expected here; check it")


@contextlib.contextmanager
def _archive(uri: str) -> Iterator[io.BufferedReader]:
    """An archive that is read ahead. Raises InputError for what its reader finds wrong."""
    try:
        with storage.plain_errors(uri, "read"), io.BufferedReader(storage.open_input(uri), 1 << 20) as source:
            try:
                yield source
            except OSError as error:
                if storage.is_the_stores(error) and not isinstance(error, gzip.BadGzipFile):
                    raise
                raise tars.Damaged(str(error)) from None
    except (
        tars.Damaged,
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        struct.error,
        EOFError,
        NotImplementedError,
        ValueError,
    ) as error:
        said = " ".join(str(error).split())[:200]
        raise InputError(f"{uri}: not a whole archive ({said}); replace it") from None
