"""The files that a query list is made of: found and looked at before any work, and cut into units."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

from pipeline.commit import Unit
from pipeline.contracts import storage
from pipeline.contracts.config import Json
from pipeline.contracts.errors import InputError
from pipeline.queries import views, wordnet
from pipeline.queries.config import QueriesConfig
from pipeline.queries.dump import read_site


class File(NamedTuple):
    uri: str
    name: str
    bytes: int


class Inputs(NamedTuple):
    """The files of a configuration, looked at but not read through."""

    dumps: list[File]
    pageviews: list[File]
    wordnet: list[File]
    namespaces: tuple[str, ...]  # of the dumps, sorted


def look(config: QueriesConfig) -> Inputs:
    """What there is to read. Raises InputError for what can be seen without reading dumps and page views through: a missing file, another
    format. WordNet, which is read last, is read here: nobody waits for a dump to be told that."""
    dumps = _expand(config.wikipedia.dumps, "wikipedia.dumps") if config.wikipedia else []
    pageviews = _expand(config.titles.pageviews, "titles.pageviews") if config.titles else []
    names = {name for file in dumps for name in read_site(file.uri).namespaces}
    for file in pageviews:
        views.check_format(file.uri)
    folder: list[str] = []
    if config.wordnet:
        folder = wordnet.check_folder(config.wordnet.folder)
        wordnet.read_lemmas(config.wordnet.folder, config.wordnet.lemmas)
    return Inputs(dumps, pageviews, _files(folder), tuple(sorted(names)))


def _expand(paths: Sequence[str], key: str) -> list[File]:
    """The files of paths, patterns and folders, each once, sorted by name."""
    uris: set[str] = set()
    for path in paths:
        if not path:
            raise InputError(f"{key}: a path is empty; write a file, a folder or a pattern")
        place = storage.rooted(path)
        if any(sign in place for sign in "*?["):
            found = storage.glob(place)
        else:
            found = storage.list_files(place) if storage.is_folder(place) else [place] * storage.exists(place)
        if not found and storage.is_folder(place):
            raise InputError(f"{key}: the folder {path!r} holds no file; check the path")
        if not found:
            raise InputError(f"{key}: no file, folder or pattern {path!r}; check the path")
        uris.update(found)
    return _files(sorted(uris))


def _files(uris: Sequence[str]) -> list[File]:
    return sorted(
        (File(uri, storage.name(uri), storage.size(uri)) for uri in uris), key=lambda file: (file.name, file.uri)
    )


# ---- for the stages


def sha256_of(file: File) -> str:
    return storage.sha256_file(file.uri)


def refuse_copies(files: Sequence[File], sha256: Mapping[File, str]) -> None:
    """Raise InputError where two files have the same bytes: all that they hold would be counted twice."""
    seen: dict[str, File] = {}
    for file in files:
        first = seen.setdefault(sha256[file], file)
        if first != file:
            raise InputError(
                f"{file.uri}: has the bytes of {first.uri} and would be counted twice; name one of the two"
            )


def ranges(files: Sequence[File], sha256: Mapping[File, str], unit_bytes: int, whole: frozenset[str]) -> list[Unit]:
    """A unit per `unit_bytes` of each file; one for a file whose URI is in `whole`."""
    units = []
    for number, file in enumerate(files):
        step = file.bytes if file.uri in whole else unit_bytes
        for place, start in enumerate(range(0, file.bytes, step)):
            params: dict[str, Json] = {"file": number, "start": start, "stop": min(file.bytes, start + step)}
            units.append(Unit(f"{number:05d}-{place:06d}", (file.name, sha256[file]), params))
    return units


def place_of(files: Sequence[File], unit: Unit) -> tuple[str, int, int]:
    number, start, stop = (cast(int, unit.params[name]) for name in ("file", "start", "stop"))
    return files[number].uri, start, stop
