"""Files on a local disk or in an object store, behind plain functions on URIs.

A URI is a local path or `s3://bucket/key`. Reads go through pyarrow.fs; which store that is on S3, and what pyarrow cannot do there, is in
`s3.py`. No other file of the project knows about object stores.

Atomicity. A local file is written under a temporary name in the same directory, flushed to the disk and renamed; on S3 a put is atomic by
itself. `put_if_absent` is the one primitive by which two drivers are told apart: a hard link that fails when the name is
taken, or a put with `If-None-Match: *` (S3 conditional writes, 2024).
"""

import contextlib
import errno
import fnmatch
import functools
import hashlib
import itertools
import os
import posixpath
import re
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, cast

import pyarrow as pa
import pyarrow.fs

from pipeline.contracts import s3
from pipeline.contracts.errors import InputError, RunError

_BLOCK = 8 << 20
TEMPORARY_MARK = ".tmp-"
"""Every temporary name of ours contains it: `status` can count leftovers, and no reader takes one for data."""


# ---- names


_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{1,35}:")
"""What a URI begins with, as pyarrow tells it from a path."""


def is_s3(uri: str) -> bool:
    """Whether a place is in an object store, else it is a local path. Raises InputError for one that is neither, like gs://b/k."""
    _require_spelling(uri)
    if uri.startswith("s3://"):
        return True
    if _SCHEME.match(uri):
        local = "" if "://" in uri else f", ./{uri} for a file of this name"
        raise InputError(f"{uri!r}: unknown kind of place; use a local path or s3://BUCKET/KEY{local}")
    return False


def _require_spelling(uri: str) -> None:
    """Raise InputError for what is no place: pyarrow spells names in UTF-8, whatever Python does, and no name holds a NUL."""
    if not uri:
        raise InputError("'': is no place; name a file or a folder")
    if "\0" in uri:
        raise InputError(f"{uri!r}: a NUL character is in it, which no name holds; check the path")
    if uri.isascii():
        return
    if (locale := sys.getfilesystemencoding()) != "utf-8" and not uri.startswith("s3://"):
        raise InputError(f"{uri!r}: the locale spells names in {locale}, not in UTF-8; set PYTHONUTF8=1")
    try:
        uri.encode()
    except UnicodeEncodeError:
        raise InputError(f"{uri!r}: the name is no UTF-8; give it another") from None


def join(uri: str, *parts: str) -> str:
    """`join("s3://b/k", "x")` is `s3://b/k/x`; local paths likewise."""
    return posixpath.join(uri, *parts)


def parent(uri: str) -> str:
    return posixpath.dirname(uri.rstrip("/")) or "."


def name(uri: str) -> str:
    return posixpath.basename(uri.rstrip("/"))


def absolute(uri: str) -> str:
    """The place in its one spelling: no `.`, `..` or doubled slash; of a local path no link and no working directory either."""
    if not is_s3(uri):
        with _working_directory(uri):
            return os.path.realpath(uri)
    bucket, key = s3.bucket_and_key(uri)
    return f"s3://{bucket}{posixpath.normpath('/' + key.lstrip('/'))}".rstrip("/")


def rooted(uri: str) -> str:
    """The place as it is named from any working directory; its links stay."""
    if is_s3(uri):
        return uri
    with _working_directory(uri):
        return os.path.abspath(uri)


@contextlib.contextmanager
def _working_directory(uri: str) -> Iterator[None]:
    """A relative place needs a working directory, and that of a shell may have been removed under it."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(
            f"{uri!r}: the working directory is no longer there; go to another, or name the whole path"
        ) from None


def holds(folder: str, uri: str) -> bool:
    """Whether `uri` is the folder or lies in it, however the two are spelt."""
    outer, inner = absolute(folder), absolute(uri)
    return inner == outer or inner.startswith(outer.rstrip("/") + "/")


def names_below(uris: Sequence[str]) -> list[str]:
    """What files are called, wherever the folder is that holds all of them: their paths below it."""
    parts = [uri.split("/") for uri in uris]
    levels = zip(*(folders for *folders, _ in parts), strict=False)
    above = sum(1 for _ in itertools.takewhile(lambda level: len(set(level)) == 1, levels))
    return ["/".join(each[above:]) for each in parts]


# ---- stores


def filesystem(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The pyarrow filesystem of a URI and the path inside it."""
    if is_s3(uri):
        return s3.filesystem(), "/".join(s3.bucket_and_key(uri)).rstrip("/")
    return _local_filesystem(), uri


@functools.cache
def _local_filesystem() -> pyarrow.fs.LocalFileSystem:
    return pyarrow.fs.LocalFileSystem()


def is_the_stores(error: Exception) -> bool:
    """Whether disk or store failed: pyarrow's readers raise OSError for what is wrong inside a file, too."""
    if not isinstance(error, OSError):
        return False
    return type(error) is not OSError or error.errno is not None or "AWS Error" in str(error)


@contextlib.contextmanager
def plain_errors(uri: str, doing: str) -> Iterator[None]:
    """Turn an OSError (pyarrow raises them for S3 too) into one sentence with the place and the next step.

    InputError for a wrong place or right, StoreTrouble for a store that has answered before, else RunError.
    """
    try:
        yield
        if is_s3(uri):
            s3.has_answered()
    except FileNotFoundError:
        raise InputError(f"{uri}: no such file; check the path") from None
    except IsADirectoryError:
        raise InputError(f"{uri}: is a folder, not a file; name a file") from None
    except PermissionError:
        raise InputError(f"{uri}: permission to {doing} was refused; change the rights or the path") from None
    except NotADirectoryError:
        raise InputError(f"{uri}: a part of the path is a file, not a folder; check the path") from None
    except OSError as error:
        said = " ".join(str(error).split())[:300]
        if is_s3(uri):
            raise s3.error_of_arrow(uri, doing, said) from None
        if error.errno in _WRONG_PLACES:
            raise InputError(f"{uri}: {_WRONG_PLACES[error.errno]}") from None
        step = _STEPS.get(error.errno or 0, "check the disk")
        raise RunError(f"{uri}: cannot {doing} ({error.strerror or said}); {step}") from None


_WRONG_PLACES = {
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ELOOP: "its links lead in a circle; mend them or choose another path",
}
_OPEN_FILES = "raise the limit of open files (ulimit -n)"
_STEPS = {
    errno.EMFILE: _OPEN_FILES,
    errno.ENFILE: _OPEN_FILES,
    errno.EFBIG: "raise the limit of a file's size (ulimit -f), or choose a disk that holds files of this size",
}


# ---- looking


def exists(uri: str) -> bool:
    """Whether a file is there (a folder does not count)."""
    return info(uri) is not None


def info(uri: str) -> pyarrow.fs.FileInfo | None:
    """Size and time of a file; None where there is none."""
    files, path = filesystem(uri)
    with plain_errors(uri, "look at"):
        found = files.get_file_info([path])[0]
    if found.type == pyarrow.fs.FileType.Unknown:
        raise _is_no_file(uri)
    return found if found.type == pyarrow.fs.FileType.File else None


def _is_no_file(uri: str) -> InputError:
    return InputError(f"{uri}: is a pipe or a device; name a place on a disk")


def _mode(path: str) -> int | None:
    """The rights of a local file, None where nothing is. Raises for all else: to open a pipe may take for ever, and what is renamed to the
    place of a device replaces it."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(mode):  # pyarrow has no class of its own for it
        raise IsADirectoryError
    if not stat.S_ISREG(mode):
        raise _is_no_file(path)
    return stat.S_IMODE(mode)


def is_folder(uri: str) -> bool:
    files, path = filesystem(uri)
    with plain_errors(uri, "look at"):
        return bool(files.get_file_info([path])[0].type == pyarrow.fs.FileType.Directory)


def size(uri: str) -> int:
    """Bytes of a file. Raises InputError when there is none."""
    found = info(uri)
    if found is None:
        raise InputError(f"{uri}: no such file; check the path")
    return cast(int, found.size)


def list_files(folder: str, *, recursive: bool = False) -> list[str]:
    """The URIs of the files in a folder, sorted; temporary names are left out. An absent folder has no files.

    `recursive`: and in the folders below, also those that links lead to; a link to a folder that it lies in is not followed.
    """
    below = _walk(folder, frozenset()) if recursive and not is_s3(folder) else _entries(folder, recursive=recursive)
    prefix = "s3://" if is_s3(folder) else ""
    return sorted(
        prefix + entry.path
        for entry in below
        if entry.type == pyarrow.fs.FileType.File and TEMPORARY_MARK not in entry.base_name
    )


def _walk(folder: str, above: frozenset[str]) -> Iterator[pyarrow.fs.FileInfo]:
    """What is in a local folder and below: pyarrow goes round where a link leads to a folder above."""
    inside = above | {absolute(folder)}
    for entry in _entries(folder):
        yield entry
        if entry.type == pyarrow.fs.FileType.Directory and absolute(entry.path) not in inside:
            yield from _walk(entry.path, inside)


def _entries(folder: str, *, recursive: bool = False) -> list[pyarrow.fs.FileInfo]:
    """What is in a folder; nothing in an absent one. Raises InputError for a name that is no UTF-8, which pyarrow cannot open."""
    files, path = filesystem(folder)
    selector = pyarrow.fs.FileSelector(path, recursive=recursive, allow_not_found=True)
    with plain_errors(folder, "list"):
        found: list[pyarrow.fs.FileInfo] = files.get_file_info(selector)
    try:
        for entry in found:
            entry.path.encode()
    except UnicodeDecodeError as error:
        raise InputError(f"{folder}: the name {error.object!r} in it is no UTF-8; rename or move that file") from None
    return found


def sizes(folder: str) -> dict[str, int]:
    """Name and bytes of every file directly in a folder, in one listing. An absent folder has none."""
    return {entry.base_name: entry.size for entry in _entries(folder) if entry.type == pyarrow.fs.FileType.File}


def sizes_of(uris: Sequence[str]) -> list[int | None]:
    """Bytes of each of many files, None for one that is not there; by one listing of each folder they are in."""
    listed = {folder: sizes(folder) for folder in {parent(uri) for uri in uris}}
    return [listed[parent(uri)].get(name(uri)) for uri in uris]


def stamps_of(uris: Sequence[str]) -> list[tuple[int, int] | None]:
    """Bytes and time of last change (nanoseconds) of each of many files, None for one that is not there; by one listing of each folder.

    Who finds the same stamp again may take a file for unchanged, as make and rsync do; who must be sure reads it.
    """
    listed = {folder: _stamps(folder) for folder in {parent(uri) for uri in uris}}
    return [listed[parent(uri)].get(name(uri)) for uri in uris]


def _stamps(folder: str) -> dict[str, tuple[int, int]]:
    return {
        entry.base_name: (entry.size, entry.mtime_ns or 0)
        for entry in _entries(folder)
        if entry.type == pyarrow.fs.FileType.File
    }


def folders(folder: str) -> list[str]:
    """The names of the folders directly in a folder, sorted."""
    return sorted(entry.base_name for entry in _entries(folder) if entry.type == pyarrow.fs.FileType.Directory)


def glob(pattern: str) -> list[str]:
    """The files that match a pattern with `*`, `?` and `[...]` (which do not cross `/`; `**` does), sorted.

    Where something is there that is called `a[1]`, that is meant, which no pattern `a[1]` matches.
    """
    parts = pattern.split("/")
    fixed = next((place for place in range(len(parts)) if _is_wild(parts, place)), len(parts))
    if fixed == len(parts):
        return [pattern] if exists(pattern) else []
    base = "/".join(parts[:fixed]) or ("/" if pattern.startswith("/") else ".")
    prefix = "" if base == "." else base.rstrip("/") + "/"
    wanted = parts[fixed:]
    found = list_files(base, recursive=len(wanted) > 1)
    matching = [uri for uri in found if _parts_match(uri.removeprefix(prefix).removeprefix("./").split("/"), wanted)]
    return [pattern] if pattern in found and pattern not in matching else matching


def _is_wild(parts: list[str], place: int) -> bool:
    """Whether a part of a pattern is one, and not the name of what is there; of a store `glob` sees that in its listing."""
    if any(sign in parts[place] for sign in "*?"):
        return True
    there = "/".join(parts[: place + 1])
    return "[" in parts[place] and (is_s3(there) or not os.path.lexists(there))


def _parts_match(parts: list[str], wanted: list[str]) -> bool:
    if not wanted:
        return not parts
    if wanted[0] == "**":
        return any(_parts_match(parts[skip:], wanted[1:]) for skip in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], wanted[0]) and _parts_match(parts[1:], wanted[1:])


# ---- reading


def open_input(uri: str) -> pa.NativeFile:
    """A random-access file for pyarrow readers. Raises InputError when it cannot be opened."""
    files, path = filesystem(uri)
    with plain_errors(uri, "read"):
        if not is_s3(uri):
            _mode(path)
        return files.open_input_file(path)


def read_bytes(uri: str, *, limit: int = 1 << 30) -> bytes:
    """A whole small file as it was at one moment; more than `limit` bytes are refused before reading."""
    with s3.opened(uri) if is_s3(uri) else _opened(uri) as (length, source):
        if length > limit:
            raise InputError(f"{uri}: {length:,} bytes, more than the {limit:,} expected here; check the path")
        return source.read()


@contextlib.contextmanager
def _opened(uri: str) -> Iterator[tuple[int, IO[bytes]]]:
    """Bytes of a local file and what reads it."""
    with open_input(uri) as source, plain_errors(uri, "read"):
        yield source.size(), source


def read_range(uri: str, offset: int, length: int) -> bytes:
    """`length` bytes from `offset`, in one request."""
    with open_input(uri) as source, plain_errors(uri, "read"):
        return cast(bytes, source.read_at(length, offset))


MOST_TEXT_BYTES = 64 << 20


def read_text(uri: str) -> str:
    """A whole small file as UTF-8 text, of at most MOST_TEXT_BYTES."""
    try:
        return read_bytes(uri, limit=MOST_TEXT_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{uri}: byte {error.start} is not UTF-8; convert the file") from None


def sha256_file(uri: str) -> str:
    """SHA-256 of a file (64 hex digits), read in blocks."""
    hasher = hashlib.sha256()
    with open_input(uri) as source, plain_errors(uri, "read"):
        while block := source.read(_BLOCK):
            hasher.update(block)
    return hasher.hexdigest()


# ---- writing


def require_folder(uri: str) -> None:
    """Raise InputError where no folder can be written to, without writing: at a file, below one, without the right, in no store."""
    if exists(uri):
        raise _is_a_file(uri)
    if is_s3(uri):
        return
    there = rooted(uri)
    while not os.path.lexists(there):
        there = parent(there)
    with plain_errors(uri, "create"):
        if not os.path.exists(there):
            raise _leads_nowhere(uri)
        if not os.path.isdir(there):
            raise NotADirectoryError
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError


def _is_a_file(uri: str) -> InputError:
    return InputError(f"{uri}: is a file, not a folder; choose another output")


def _leads_nowhere(uri: str) -> InputError:
    """Of a link whose disk is not mounted, perhaps: the folder is not ours to make."""
    return InputError(f"{uri}: a link in this path leads nowhere; mend it or choose another output")


def make_folder(uri: str) -> None:
    """Create a local folder with its parents; on S3 there are none to create."""
    if not is_s3(uri):
        with plain_errors(uri, "create"):
            try:
                os.makedirs(uri, exist_ok=True)
            except FileExistsError:
                raise (_is_a_file if os.path.exists(uri) else _leads_nowhere)(uri) from None


def temporary_name(uri: str) -> str:
    """A name beside `uri` that no reader takes for data and no other writer chooses."""
    return f"{parent(uri)}/{_temporary(uri)}"


def _temporary(uri: str) -> str:
    """Ends as the name does, by which some writers know a format, and is no longer than the 255 bytes of a name."""
    return f"{TEMPORARY_MARK}{secrets.token_hex(6)}-{name(uri)[-50:]}"


def _write_local(path: str, data: bytes, mode: int | None = None) -> None:
    with open(path, "wb") as sink:
        if mode is not None and mode != stat.S_IMODE(os.fstat(sink.fileno()).st_mode):
            os.fchmod(sink.fileno(), mode)
        sink.write(data)
        flush_to_disk(sink)


def flush_to_disk(sink: IO[bytes]) -> None:
    """What is renamed must be on the disk first, or a power cut leaves a committed empty file."""
    sink.flush()
    os.fsync(sink.fileno())


def write_atomic(uri: str, data: bytes) -> None:
    """Write a small file so that a reader sees the old bytes or the new ones, never a part.

    A file that is there keeps its rights, and a link to it leads to it still. Raises InputError where a pipe or a device is.
    """
    if is_s3(uri):
        s3.put(uri, data)
        return
    make_folder(parent(uri))
    with plain_errors(uri, "write"):
        mode = _mode(uri)
        place = os.path.realpath(uri) if os.path.islink(uri) else uri
        temporary = temporary_name(place)
        try:
            _write_local(temporary, data, mode)
            os.replace(temporary, place)
        finally:
            remove_own(temporary)


def put_if_absent(uri: str, data: bytes) -> bool:
    """Write a small file unless the name is taken. True when written; of two writers exactly one is told True."""
    if is_s3(uri):
        return s3.put_if_absent(uri, data)
    make_folder(parent(uri))
    temporary = temporary_name(uri)
    with plain_errors(uri, "write"):
        try:
            _write_local(temporary, data)
            os.link(temporary, uri)
        except FileExistsError:
            return False
        finally:
            remove_own(temporary)
    return True


def local_temporary(uri: str) -> str:
    """A local file name to build `uri` under: beside it when it is local (so that a rename commits it), else in the temp folder."""
    if is_s3(uri):
        return os.path.join(tempfile.gettempdir(), _temporary(uri))
    return temporary_name(uri)


def remove_own(local_path: str) -> None:
    """Remove a temporary file of ours if it is still there."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(local_path)


def remove_file(uri: str) -> None:
    """Remove a file; one that is not there is no error."""
    if is_s3(uri):
        s3.remove(uri)
        return
    with plain_errors(uri, "remove"), contextlib.suppress(FileNotFoundError):
        os.unlink(uri)


def remove_folder(uri: str) -> None:
    """Remove a folder with all that is in it; one that is not there is no error. On S3 its files go one by one."""
    if is_s3(uri):
        for file in list_files(uri, recursive=True):
            remove_file(file)
        return
    with plain_errors(uri, "remove"), contextlib.suppress(FileNotFoundError):
        shutil.rmtree(uri)


def commit_file(local_path: str, uri: str) -> None:
    """Move a finished local file to its committed name: rename on the same disk, upload (multipart when large) to S3.

    Replaces a file of the same name: names of data files carry a hash of their content, so that it has the same bytes.
    """
    if is_s3(uri):
        s3.upload(local_path, uri)
        os.unlink(local_path)
        return
    with plain_errors(uri, "write"):
        os.replace(local_path, uri)


def download(uri: str, local_path: str) -> None:
    """Copy a file to the local disk in blocks."""
    with open_input(uri) as source, open(local_path, "wb") as sink, plain_errors(uri, "read"):
        while block := source.read(_BLOCK):
            sink.write(block)


def abort_uploads(folder: str, *, older_than_s: float = 86_400.0) -> int:
    """Abort multipart uploads that a killed writer left under an s3:// folder; returns how many. They cost money until aborted.

    Only old ones, so that a driver that is still alive keeps its own. On a local folder there is nothing to do.
    """
    return s3.abort_uploads(folder, older_than_s) if is_s3(folder) else 0
