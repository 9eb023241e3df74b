"""Which files are sources, what kind each is, and the one table that all kinds are read into.

The kind is told by the suffix, so that a folder may hold several of them:

* `table`: URLs and captions in Parquet or text (`formats`, `url_tables`);
* `warc`: web pages as a crawler stored them, WARC or ARC (`warc`, `page`);
* `wat`: the links that Common Crawl took out of such pages (`wat`);
* `tar`: pictures with captions beside them, as webdataset writes them (`shards`);
* `img2dataset`: a shard that img2dataset wrote, recognised by the `NAME_stats.json` that lies beside its `NAME.parquet`, whether a folder,
  a pattern or the file was named. What else belongs to the shard (its tar, its folder of pictures) is then read through that Parquet file
  and is no source of its own.

`source`, the lineage of a row, begins with the name of its file: the path relative to the folder that all files share, so that the same
files on a disk and in an object store give the same candidates.
"""

import itertools
import logging
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

import pyarrow as pa
from pydantic import Field

from pipeline.contracts import storage
from pipeline.contracts.config import StrictModel, not_semantic
from pipeline.contracts.errors import InputError
from pipeline.sources import formats
from pipeline.sources.urls import cut

Kind = Literal["table", "warc", "wat", "tar", "img2dataset"]

WARC_SUFFIXES = (".warc", ".warc.gz", ".warc.zst", ".arc", ".arc.gz")
WAT_SUFFIXES = (".wat", ".wat.gz")
TAR_SUFFIXES = (".tar",)
SUFFIXES = (*formats.SUFFIXES, *WARC_SUFFIXES, *WAT_SUFFIXES, *TAR_SUFFIXES)
_STATS = "_stats.json"

logger = logging.getLogger(__name__)


class SourcesConfig(StrictModel):
    """Which files are read, which columns of tables, and how much of a web page."""

    paths: list[str] = not_semantic(min_length=1)
    """Files, patterns (`*`, `**`) and folders, local or s3://."""
    url_column: str | None = None
    """Name of the URL column; unset: recognised by name (url_tables.URL_NAMES)."""
    caption_column: str | None = None
    """Name of the caption column; unset: recognised by name (url_tables.CAPTION_NAMES)."""
    column_names: tuple[str, ...] = ()
    """Names of the columns of csv and tsv files that have no header line; unset: the first line names them."""
    rows_per_unit: int = Field(default=10_000, ge=1)
    """Rows of one unit of `candidates` from a Parquet file: what is done again after a crash. Any other file is one unit."""
    max_url_bytes: int = Field(default=4096, ge=16)
    max_caption_bytes: int = Field(default=8192, ge=1)
    max_page_bytes: int = Field(default=4 << 20, ge=1 << 10)
    """Bytes of a page's HTML that are looked at, after its Content-Encoding is undone; what follows is not."""
    max_images_per_page: int = Field(default=1000, ge=1)
    """Image references of one page that become rows; those that follow are one rejection that tells their number."""
    respect_opt_out: bool = True
    """Reject the pictures of archived pages that ask not to be used (robots meta elements and X-Robots-Tag headers)."""
    opt_out_agents: tuple[str, ...] = ()
    """Names of crawlers whose opt-outs count as well as those that address everyone: your own, or that of the archive ("ccbot")."""


class SourceFile(NamedTuple):
    """A file of sources: where it is, what its rows' `source` is called, and what it is."""

    uri: str
    name: str
    kind: Kind = "table"


SOURCE_SCHEMA = pa.schema(
    [
        pa.field("url", pa.string()),
        pa.field("caption_raw", pa.string()),
        pa.field("page_url", pa.string()),
        pa.field("source", pa.string(), nullable=False),
        pa.field("archived", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("problem", pa.string()),
    ]
)
"""A row as it stands in its file. `archived` says where in the file the picture's bytes are (see `archived`), null: they must be fetched.
A row with a `problem` is rejected with that detail, for `reason`, or as `bad_row` where that is null."""


class Row(NamedTuple):
    """A row of SOURCE_SCHEMA before it is one of a table."""

    url: str | None
    caption_raw: str | None
    page_url: str | None
    source: str
    archived: str | None = None
    reason: str | None = None
    problem: str | None = None


def bounded(rows: Iterable[Row], config: SourcesConfig) -> Iterator[Row]:
    """The rows with over-long URLs and captions cut: they will be rejected, and until then they must not fill the memory."""
    for row in rows:
        if row.url is not None and len(row.url) > config.max_url_bytes:
            row = row._replace(url=cut(row.url.strip(), config.max_url_bytes))
        if row.caption_raw is not None and len(row.caption_raw) > config.max_caption_bytes:
            row = row._replace(caption_raw=cut(row.caption_raw, config.max_caption_bytes))
        yield row


def table_of(rows: Iterable[Row]) -> pa.Table:
    """Rows as a table of SOURCE_SCHEMA; a batch at a time is held as Python objects."""
    batches = iter(rows)
    parts = [SOURCE_SCHEMA.empty_table()]
    while batch := list(itertools.islice(batches, formats.BATCH_ROWS)):
        columns = zip(*batch, strict=True)
        parts.append(pa.table([pa.array(column, pa.string()) for column in columns], schema=SOURCE_SCHEMA))
    return pa.concat_tables(parts)


def kind_of(uri: str) -> Kind | None:
    """The kind of a file by its suffix; None: it is no source."""
    lower = uri.lower()
    for kind, suffixes in (("warc", WARC_SUFFIXES), ("wat", WAT_SUFFIXES), ("tar", TAR_SUFFIXES)):
        if lower.endswith(suffixes):
            return kind  # type: ignore[return-value]  # the three are kinds
    return "table" if formats.suffix_of(uri) is not None else None


def source_name(source: str) -> str:
    """The name of the file that a row came from, taken from its `source`."""
    return source.rpartition("#")[0]


# ---- which files


def expand(config: SourcesConfig) -> list[SourceFile]:
    """The files of `config.paths`, each once, sorted by name. Raises InputError for a place without sources or an unknown suffix."""
    kinds: dict[str, Kind] = {}
    for path in config.paths:
        if not path:
            raise InputError("sources.paths: a path is empty; write a file, a folder or a pattern")
        kinds.update(_files_of(storage.rooted(path), path))
    levels = zip(*(uri.split("/")[:-1] for uri in kinds), strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda parts: len(set(parts)) == 1, levels))
    found = [SourceFile(uri, "/".join(uri.split("/")[shared:]), kind) for uri, kind in kinds.items()]
    return sorted(found, key=lambda file: (file.name, file.uri))


def _files_of(place: str, written: str) -> dict[str, Kind]:
    is_pattern = any(sign in place for sign in "*?[")
    present = storage.glob(place) if is_pattern else []
    if is_folder := not present and storage.is_folder(place):  # one may be called like a pattern
        present = storage.list_files(place, recursive=True)
    elif not is_pattern and storage.exists(place):
        present = [place]
    elif not present:
        said, at = ("nothing matches", "pattern") if is_pattern else ("no file, folder or pattern", "path")
        raise InputError(f"sources.paths: {said} {written!r}; check the {at}")
    shards = _img2dataset_shards(present, whole=is_folder)
    kinds: dict[str, Kind] = {f"{shard}.parquet": "img2dataset" for shard in shards}
    described = {uri.removesuffix(".tar") for uri in present if uri.endswith(".tar")} | set(
        map(storage.parent, present)
    )
    statistics = {uri for uri in present if uri.endswith(_STATS) and uri.removesuffix(_STATS) in described}
    rest = [uri for uri in present if uri not in statistics and not _belongs_to(uri, shards)]
    kinds |= {uri: kind for uri in rest if (kind := kind_of(uri)) is not None}
    if is_folder:
        if not kinds:
            raise InputError(f"sources.paths: no {', '.join(SUFFIXES)} file in folder {written!r}; check the path")
        if len(kinds) < len(shards) + len(rest):
            others = len(shards) + len(rest) - len(kinds)
            logger.info("%s: %d files of other kinds are not read", written, others)
        return kinds
    for uri in rest:
        if uri not in kinds:
            raise InputError(f"sources.paths: {uri!r} ends in none of {', '.join(SUFFIXES)}; rename or convert it")
    return kinds


def _img2dataset_shards(present: list[str], whole: bool) -> set[str]:
    """The places, without suffix, of the shards of img2dataset: their tables are present, and their statistics too, or, unless `present`
    is a whole folder, beside the table."""
    shards = {uri.removesuffix(".parquet") for uri in present if uri.endswith(".parquet")}
    beside = set(present)
    if not whole:
        for folder in {storage.parent(shard) for shard in shards}:
            beside.update(storage.list_files(folder))
    return {shard for shard in shards if f"{shard}{_STATS}" in beside}


def _belongs_to(uri: str, shards: set[str]) -> bool:
    """Whether a file is part of one of the shards: its table, statistics or tar, or a file of its folder."""
    if storage.parent(uri) in shards:
        return True
    endings = (".parquet", _STATS, ".tar")
    return any(uri.endswith(ending) and uri.removesuffix(ending) in shards for ending in endings)
