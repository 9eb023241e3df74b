"""The crawl as two functions: which unit a URL belongs to, and one unit's candidates -> rows with pictures, and rejected rows.

Units are hashes of the registered domain, so that a unit owns its hosts and a limit per host means something; a domain with more rows than
a unit's share is spread over a few units, each with its part of the limit. Within a unit every distinct URL is fetched once and its picture
is given to all its captions. Nothing of the run itself (time, order of arrival, threads) is in the output: the same origin gives the same
tables.
"""

import collections
import hashlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.contracts.errors import InputError
from pipeline.contracts.schema import REJECTED_SCHEMA, SHARD_SCHEMA, Reason
from pipeline.crawl.config import CrawlConfig
from pipeline.crawl.files import require_files
from pipeline.crawl.outcome import Engine, Outcome, Refused, Stored
from pipeline.crawl.picture import store
from pipeline.crawl.urls import UrlRefused, parse, registered_domain
from pipeline.sources.archived import Unreadable, read_bytes
from pipeline.sources.files import source_name

_FETCHED_COLUMNS = (
    "format",
    "width",
    "height",
    "original_width",
    "original_height",
    "source_sha256",
    "image_sha256",
    "phash64",
    "pdq256",
    "pdq_quality",
)

# ---- units


def domain_counts(url: pa.Array | pa.ChunkedArray) -> dict[str, int]:
    """Rows by registered domain; counts of several tables may be added. Rows whose URL does not parse have no domain."""
    origins, codes = _origins(url)
    counts: collections.Counter[str] = collections.Counter()
    for origin, rows in zip(origins, np.bincount(codes, minlength=len(origins)).tolist(), strict=True):
        domain = _domain(origin)
        if domain is not None:
            counts[domain] += rows
    return dict(sorted(counts.items()))


def split_ways(counts: Mapping[str, int], units: int, host_split: int) -> dict[str, int]:
    """In how many units each domain lies, for those that lie in more than one.

    `counts` are those of the whole crawl (`domain_counts`). A domain with more rows than the mean of a unit is cut into shares
    of that mean, at most `host_split` of them.
    """
    share = max(1, -(-sum(counts.values()) // units))
    ways = {domain: min(-(-rows // share), host_split, units) for domain, rows in counts.items()}
    return {domain: number for domain, number in ways.items() if number > 1}


def partition(url: pa.Array | pa.ChunkedArray, units: int, ways: Mapping[str, int] | None = None) -> pa.Array:
    """The unit of each URL (int32 [n], 0 <= unit < units), by hash of its registered domain.

    `ways` is what `split_ways` says of the whole crawl: such a domain is spread by hash of the URL over as many neighbouring units. URLs
    that do not parse are spread over all units. Rows with the same URL share a unit.
    """
    ways = ways or {}
    origins, codes = _origins(url)
    first = np.zeros(len(origins), np.int64)
    spread = np.ones(len(origins), np.int64)
    for place, origin in enumerate(origins):
        domain = _domain(origin)
        first[place] = 0 if domain is None else _hash(domain) % units
        spread[place] = units if domain is None else ways.get(domain, 1)
    unit = first[codes]
    split = np.flatnonzero(spread[codes] > 1)
    if len(split):
        hashes = [_hash(text or "") for text in url.take(pa.array(split)).to_pylist()]
        shares = [value % ways_here for value, ways_here in zip(hashes, spread[codes[split]].tolist(), strict=True)]
        unit[split] = (unit[split] + np.array(shares)) % units
    return pa.array(unit.astype(np.int32))


def _origins(url: pa.Array | pa.ChunkedArray) -> tuple[list[str | None], np.ndarray]:
    """The distinct `scheme://authority` prefixes, and each row's place among them (None where there is none). Letters that `urls.parse`
    leaves out are left out first, so that both find the same host."""
    cleaned = pc.replace_substring_regex(url, "[\t\r\n]", "")
    found = pc.extract_regex(cleaned, r"^(?P<origin>[^/?#]*//[^/?#]*)")
    if isinstance(found, pa.ChunkedArray):
        found = found.combine_chunks()
    encoded = pc.dictionary_encode(pc.struct_field(found, "origin"), null_encoding="encode")
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)


def _domain(origin: str | None) -> str | None:
    try:
        return None if origin is None else registered_domain(parse(origin).host)
    except UrlRefused:
        return None


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


# ---- one unit


def crawl(
    table: pa.Table,
    config: CrawlConfig,
    ways: Mapping[str, int] | None = None,
    archives: Mapping[str, str] | None = None,
) -> tuple[pa.Table, pa.Table]:
    """Fetch one unit's candidates: (rows of SHARD_SCHEMA, rows of REJECTED_SCHEMA), both in order of uid; every row is in one of them.

    `table` is of MATCHED_SCHEMA. `ways` as in `partition`: the limit per host is divided by the number of units that share the domain.
    `archives` says where the sources are whose names `source` begins with: pictures that lie in them are not fetched. `query_id` stays
    null until balancing. Raises InputError where the engine cannot run here or such a source is gone.
    """
    ways = ways or {}

    def host_limit(host: str) -> int:
        return max(1, config.per_host // ways.get(registered_domain(host), 1))

    uids = table["uid"].to_pylist()
    table = table.take(pa.array(sorted(range(len(uids)), key=uids.__getitem__), pa.int64()))
    urls: list[str | None] = table["url"].to_pylist()
    distinct = sorted({url for url in urls if url is not None})
    outcomes: dict[str | None, Outcome] = {None: Refused(Reason.BAD_URL, "empty")}
    outcomes.update(_from_archives(table, config, archives or {}))
    wanted = [url for url in distinct if url not in outcomes]
    if wanted:
        outcomes.update(zip(wanted, _engine(config)(wanted, config, host_limit), strict=True))

    stored: list[tuple[int, Stored]] = []
    refused: list[tuple[int, Refused]] = []
    for row, url in enumerate(urls):
        outcome = outcomes[url]
        if isinstance(outcome, Stored):
            stored.append((row, outcome))
        else:
            refused.append((row, outcome))
    return _rows(table, stored), _rejected(table, refused)


def _from_archives(table: pa.Table, config: CrawlConfig, archives: Mapping[str, str]) -> dict[str, Outcome]:
    """What becomes of the URLs whose pictures lie in a source; of several places of one URL that of the smallest uid counts."""
    held = table.filter(pc.is_valid(table["archived"]))
    places: dict[str, tuple[str, str]] = {}
    for row in held.select(["url", "source", "archived"]).to_pylist():
        places.setdefault(row["url"], (source_name(row["source"]), row["archived"]))
    outcomes: dict[str, Outcome] = {}
    for url, (name, place) in sorted(places.items(), key=lambda item: item[1]):  # one source after the other
        if name not in archives:
            raise InputError(
                f"sources.paths: {name!r}, which holds the picture of {url!r}, is not there any more; put it back"
            )
        data = read_bytes(archives[name], place, config.max_bytes, url)
        outcomes[url] = Refused(data.reason, data.detail) if isinstance(data, Unreadable) else store(data, config)
    return outcomes


def archives_of(table: pa.Table) -> list[str]:
    """The names of the sources that hold pictures of these rows, sorted."""
    held = table.filter(pc.is_valid(table["archived"]))
    return sorted({source_name(source) for source in held["source"].to_pylist()})


def require(config: CrawlConfig) -> None:
    """Raise InputError where the engine cannot run here; cheap, for a `--check`."""
    require_files(config.at_once, config.at_once_key)
    if config.engine == "img2dataset":
        from pipeline.crawl import img2dataset

        img2dataset.require()
        return
    if importlib.util.find_spec("aiohttp") is None:
        raise InputError("crawl.engine: 'fetch' needs aiohttp; install it with pip install '.[pipeline]'")


def _engine(config: CrawlConfig) -> Engine:
    # Imported here so that reading this module never loads an engine's libraries.
    if config.engine == "img2dataset":
        from pipeline.crawl.img2dataset import fetch_pictures

        return fetch_pictures
    from pipeline.crawl.engine import fetch_pictures as fetch_by_ourselves

    return fetch_by_ourselves


def _rows(table: pa.Table, stored: Sequence[tuple[int, Stored]]) -> pa.Table:
    kept = table.take(pa.array([row for row, _ in stored], pa.int64()))
    pictures = [picture for _, picture in stored]
    columns: list[pa.Array | pa.ChunkedArray] = []
    for field in SHARD_SCHEMA:
        if field.name == "image":
            columns.append(pa.chunked_array(image_chunks(pictures), field.type))
        elif field.name in _FETCHED_COLUMNS:
            columns.append(pa.array([getattr(picture, field.name) for picture in pictures], field.type))
        elif field.name in kept.column_names:
            columns.append(kept[field.name].cast(field.type))
        else:
            columns.append(pa.nulls(len(pictures), field.type))
    return pa.table(columns, schema=SHARD_SCHEMA)


def image_chunks(pictures: Sequence[Stored], most_bytes: int = 1 << 30) -> Iterator[pa.Array]:
    """The pictures as binary arrays of at most `most_bytes` (an Arrow binary array ends at 2 GiB); at least one array."""
    chunk: list[bytes] = []
    held = 0
    for picture in pictures:
        if chunk and held + len(picture.image) > most_bytes:
            yield pa.array(chunk, pa.binary())
            chunk, held = [], 0
        chunk.append(picture.image)
        held += len(picture.image)
    yield pa.array(chunk, pa.binary())


def _rejected(table: pa.Table, refused: Sequence[tuple[int, Refused]]) -> pa.Table:
    left_out = table.take(pa.array([row for row, _ in refused], pa.int64()))
    columns: list[pa.Array | pa.ChunkedArray] = []
    for field in REJECTED_SCHEMA:
        if field.name == "reason":
            columns.append(pa.array([outcome.reason.value for _, outcome in refused], field.type))
        elif field.name == "detail":
            columns.append(pa.array([outcome.detail for _, outcome in refused], field.type))
        else:
            columns.append(left_out[field.name].cast(field.type))
    return pa.table(columns, schema=REJECTED_SCHEMA)
