"""exclude: a corpus without some of its rows (takedowns, opt-outs, overlaps with a test set), as a new version in a folder of its own.

    python -m pipeline exclude corpus=s3://bucket/web-v1/shards out=s3://bucket/web-v2 ids=removal_ids.txt

Rows are named by any of four lists (pipeline/lists.py has their form): `ids` (uids, hexadecimal; column uid), `urls` (of the picture or of
its page; as written, or in the one spelling that the crawl has for them), `domains` (with everything below them, of the picture or of its
page), `sha256` (of the bytes as fetched or as stored). A row that several lists name is counted for the first of them, in this order, and
stays readable in the rejected file of its shard, with the value that named it.

A takedown errs on the side of removing. The crawl refuses a URL that is not quite one; here its host is read all the same, because the page
of a picture is written down whether it could be fetched or not.

The new corpus holds every shard itself, also those that lose nothing: a takedown ends with deleting the old version, and a manifest that
pointed into it would forbid that. Shards are read, compared with their SHA-256 in the old manifest, and written again; the same rows give
the same bytes, so an untouched shard keeps its hash as long as pyarrow's writer does. Units are shards, with records: the same command
again resumes, and another one into the same folder is refused. The new manifest names the old one's content root as its parent and keeps
its counts, with a stage `exclude` after them (`exclude-2` where the old one has such a stage itself, and so on). The ledger of the run that
made the old one is copied where it is at hand, for the texts of the queries.
"""

import dataclasses
import functools
import itertools
import re
import unicodedata
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import lists, status
from pipeline.commit import Result, Unit
from pipeline.contracts import manifest, parquet, storage
from pipeline.contracts.config import Json, StrictModel, digest_json, not_semantic
from pipeline.contracts.errors import InputError
from pipeline.contracts.manifest import Manifest
from pipeline.contracts.schema import FORMAT_VERSION, REJECTED_SCHEMA, SHARD_SCHEMA, Reason, rejected_rows
from pipeline.crawl.urls import Target, UrlRefused, parse
from pipeline.engine import EngineConfig, Run
from pipeline.records import count_rows, read_story
from pipeline.stages.cap import as_read
from pipeline.stages.common import run_stage
from pipeline.stages.shards import INDEX_SUFFIX, content_root, entries

KINDS = {
    "ids": Reason.EXCLUDED_UID,
    "urls": Reason.EXCLUDED_URL,
    "domains": Reason.EXCLUDED_DOMAIN,
    "sha256": Reason.EXCLUDED_SHA256,
}
"""The lists in the order in which they are asked, and what their rows are rejected as."""
_VERSION = 2
"""Of what the stage writes for the same rows and lists."""
_NAME = re.compile(r"exclude(-\d+)?")
"""Of the stage, which counts how many takedowns a corpus has behind it."""
NAMED_SUFFIX = ".named.parquet"
NAMED_SCHEMA = pa.schema([("list", pa.string()), ("value", pa.string())])
"""What of the lists a shard has rows of, whichever list those are counted for. Hashes are hexadecimal."""


class ExcludeConfig(StrictModel):
    """Which rows go from which corpus. Lists count by their content, so no key here is semantic by itself."""

    corpus: str = not_semantic(description="a manifest.json or its folder, local or s3://")
    out: str = not_semantic(description="the folder of the new version")
    ids: str | None = not_semantic(None)
    urls: str | None = not_semantic(None)
    domains: str | None = not_semantic(None)
    sha256: str | None = not_semantic(None)
    engine: EngineConfig = not_semantic(EngineConfig())

    def given(self) -> dict[str, str]:
        """The lists that are given, by kind."""
        places = {kind: getattr(self, kind) for kind in KINDS}
        return {kind: place for kind, place in places.items() if place is not None}


@dataclasses.dataclass(frozen=True)
class Lists:
    """What the lists name: hashes, and the entries of the other two with every spelling that they may have in a row."""

    ids: pa.Array
    urls: Mapping[str, Sequence[str]]
    domains: Mapping[str, Sequence[str]]
    sha256: pa.Array

    @functools.cached_property
    def spelt_urls(self) -> frozenset[str]:
        return frozenset(itertools.chain(*self.urls.values()))

    @functools.cached_property
    def spelt_domains(self) -> frozenset[str]:
        return frozenset(itertools.chain(*self.domains.values()))


def load_lists(given: Mapping[str, str]) -> Lists:
    """Read the lists. Raises InputError for an entry that cannot name a row, with its line."""
    urls = [text for _, text in lists.texts(given["urls"], "url")] if "urls" in given else []
    return Lists(
        ids=lists.hashes(given["ids"], "uid", 16) if "ids" in given else pa.array([], pa.binary(16)),
        urls={url: url_spellings(url) for url in urls},
        domains=_domains(given["domains"]) if "domains" in given else {},
        sha256=lists.hashes(given["sha256"], "sha256", 32) if "sha256" in given else pa.array([], pa.binary(32)),
    )


def _domains(uri: str) -> dict[str, list[str]]:
    found = {}
    for number, text in lists.texts(uri, "domain"):
        url = f"http://{text.removeprefix('*.').strip('.')}/"
        if "/" in text or _parsed(url) is None:
            raise InputError(f"{uri}: line {number}: {text!r} is no domain; write it like example.org")
        found[text] = host_spellings(url)
    return found


# ---- spellings


def url_spellings(url: str) -> list[str]:
    """The URL as it is, and as the crawl spells it."""
    target = _parsed(url)
    return [url] if target is None else [url, target.url]


def _parsed(url: str) -> Target | None:
    """The crawl's reading of a URL; None for what it refuses."""
    try:
        return parse(url)
    except UrlRefused:
        return None


_DOTS = re.compile("[.\u3002\uff0e\uff61]")
_BEFORE_HOST = re.compile(r"^(?:https?:|[a-z][a-z0-9+.-]*:(?=/))?/*", re.IGNORECASE)
_LONGEST_LABEL = 63
_MOST_LABELS = 127


def host_spellings(url: str) -> list[str]:
    """The host of a URL that the crawl may well refuse: user names, bad ports, stray letters and dots, no or other schemes.

    In ASCII, by IDNA 2003 (`straße` is `strasse`) and with what that folds left as it is, as browsers have had it since IDNA 2008; and as
    the crawl spells it, which may be either. At most its last 127 labels: no name has more.
    """
    text = re.sub(r"[\t\r\n]", "", url).strip("".join(map(chr, range(0x21)))).replace("\\", "/")
    authority = _authority(_BEFORE_HOST.sub("", text, count=1))
    decoded = _authority(urllib.parse.unquote(authority, errors="replace"))
    host = decoded.partition("]")[0] + "]" if decoded.startswith("[") else decoded.partition(":")[0]
    labels = _DOTS.split(host)[-_MOST_LABELS:]
    found = [".".join(spelt).strip(".") for spelt in zip(*map(_label_spellings, labels), strict=True)]
    target = _parsed(f"http://{host}/")
    return list(dict.fromkeys(found if target is None else [*found, target.host]))


def _authority(text: str) -> str:
    """What stands before a path, query or fragment, without a user name and password."""
    return re.split("[/?#]", text, maxsplit=1)[0].rpartition("@")[2]


def _label_spellings(label: str) -> tuple[str, str]:
    """A label of a host in ASCII: folded by IDNA 2003, and not folded."""
    if label.isascii() or len(label) > _LONGEST_LABEL:
        return label.lower(), label.lower()
    plain = unicodedata.normalize("NFC", label.lower())
    unfolded = "xn--" + plain.encode("punycode").decode()
    try:
        return label.encode("idna").decode().lower(), unfolded
    except UnicodeError:
        return plain, unfolded


def domains_above(url: str) -> Iterator[str]:
    """The hosts of a URL and every domain that they lie in, the nearest first."""
    for host in host_spellings(url):
        labels = host.split(".")
        yield from (".".join(labels[place:]) for place in range(len(labels)))


# ---- rows


class Split(NamedTuple):
    """Rows of a shard that stay, those that go (REJECTED_SCHEMA, in their order within each reason), and NAMED_SCHEMA."""

    kept: pa.Table
    rejected: pa.Table
    named: pa.Table


def split(rows: pa.Table, given: Lists) -> Split:
    """Take the rows that a list names out of rows of SHARD_SCHEMA."""
    found = {
        "ids": _hashes(rows, ["uid"], given.ids),
        "urls": _texts(rows, url_spellings, given.spelt_urls),
        "domains": _texts(rows, domains_above, given.spelt_domains),
        "sha256": _hashes(rows, ["source_sha256", "image_sha256"], given.sha256),
    }
    left = pa.array([True] * rows.num_rows, pa.bool_())
    parts = [REJECTED_SCHEMA.empty_table()]
    for kind, reason in KINDS.items():
        detail = pa.array([values[0] if values else None for values in found[kind]], pa.string())
        hit = pc.and_(left, detail.is_valid())
        parts.append(rejected_rows(rows.filter(hit), reason, detail.filter(hit)))
        left = pc.and_(left, detail.is_null())
    named = sorted({(kind, value) for kind in KINDS for values in found[kind] for value in values})
    columns = list(zip(*named, strict=True)) or [(), ()]
    return Split(
        rows.filter(left), pa.concat_tables(parts), pa.table([list(each) for each in columns], schema=NAMED_SCHEMA)
    )


def _hashes(rows: pa.Table, columns: Sequence[str], values: pa.Array) -> list[list[str]]:
    """Of each row, what its columns have of the values, as hexadecimal text."""
    found: list[list[str]] = [[] for _ in range(rows.num_rows)]
    for column in columns if len(values) else ():
        places = pc.indices_nonzero(pc.is_in(rows[column], value_set=values))
        for place, value in zip(places.to_pylist(), rows[column].take(places).to_pylist(), strict=True):
            found[place].append(value.hex())
    return found


def _texts(rows: pa.Table, spellings: Callable[[str], Iterable[str]], values: frozenset[str]) -> list[list[str]]:
    """Of each row, what its two URLs spell that is among the values."""
    if not values:
        return [[] for _ in range(rows.num_rows)]
    both = zip(rows["url"].to_pylist(), rows["page_url"].to_pylist(), strict=True)
    return [[text for url in urls if url is not None for text in spellings(url) if text in values] for urls in both]


# ---- the command


def check(config: ExcludeConfig) -> tuple[Manifest, Lists]:
    """What a run would stop at, before Ray starts. Raises InputError."""
    if not config.given():
        raise InputError(f"exclude: no list is given; add one of {', '.join(f'{kind}=FILE' for kind in KINDS)}")
    found = manifest.load(config.corpus)
    named = load_lists(config.given())
    folder = storage.parent(manifest.manifest_path(config.corpus))
    if storage.absolute(config.out) == storage.absolute(folder):
        raise InputError(
            f"out={config.out!r} is the folder of the corpus itself; give the new version a folder of its own"
        )
    if storage.holds(config.out, folder) or storage.holds(folder, config.out):
        raise InputError(
            f"out={config.out!r} and the folder of the corpus, {folder!r}, lie one in the other; "
            "give the new version a folder of its own"
        )
    storage.require_folder(config.out)
    for place in (storage.join(config.out, "run.json"), manifest.manifest_path(config.out)):
        if storage.exists(place) and read_story(place).get("config_digest") != digest_json(_identity(config, found)):
            raise InputError(
                f"{place}: is of another corpus, other lists or another command; give the new version a folder of its own"
            )
    return found, named


def _identity(config: ExcludeConfig, old: Manifest) -> dict[str, Json]:
    """What the new version is made from."""
    return {"exclude": {"corpus": old.content_root, **_digests(config.given())}}


def _digests(given: Mapping[str, str]) -> dict[str, Json]:
    """The lists by their content."""
    return {kind: storage.sha256_file(place) for kind, place in given.items()}


def describe(config: ExcludeConfig) -> str:
    """The plan in lines for people."""
    found, named = check(config)
    listed = ", ".join(f"{len(getattr(named, kind)):,} {kind}" for kind in config.given())
    return (
        f"# exclude     {listed} from {found.rows:,} rows in {len(found.shards):,} shards\n"
        f"# writes      every shard again, less these rows, under {config.out}; the old corpus stays as it is"
    )


def exclude(config: ExcludeConfig) -> str:
    """Write the new version; returns the URI of its manifest."""
    old, _ = check(config)
    identity = _identity(config, old)
    before = sum(_NAME.fullmatch(name) is not None for name in old.counts)
    stage = f"exclude-{before + 1}" if before else "exclude"
    with Run(config.out, config.engine, config.model_dump(mode="json"), digest_json(identity)) as driver:
        _copy_ledger(driver, config)
        units = [Unit(f"{n:05d}", (shard.sha256,), {"shard": n}) for n, shard in enumerate(old.shards)]
        left = run_stage(
            driver,
            stage,
            [identity, FORMAT_VERSION],
            [],
            units,
            functools.partial(_read, config.corpus, old),
            functools.partial(_exclude, config.given(), digest_json(_digests(config.given()))),
            version=_VERSION,
            # The identity names the rows; the same rows may lie in other shards.
            roots=[shard.sha256 for shard in old.shards],
        )
        new = manifest.Manifest(
            format_version=FORMAT_VERSION,
            rows=left.rows,
            content_root=content_root(driver, left, config.out),
            shards=entries(driver, left, left.folder),
            hashes=old.hashes,
            config=identity,
            config_digest=digest_json(identity),
            query_list_digest=old.query_list_digest,
            parents=[old.content_root],
            counts={**old.counts, stage: count_rows(left.records)},
        )
        return manifest.publish(config.out, new)


def _copy_ledger(driver: Run, config: ExcludeConfig) -> None:
    if files := status.ledger(config.corpus):
        digests = [storage.sha256_file(uri) for uri in files]
        read = functools.partial(_read_whole, files)
        unit = Unit("all", tuple(digests))
        run_stage(driver, "ledger", None, [], [unit], read, as_read, accounted=False, roots=digests)


def _read_whole(files: Sequence[str], unit: Unit) -> pa.Table:
    return pa.concat_tables([parquet.read(uri) for uri in files])


def not_found(config: ExcludeConfig) -> dict[str, list[str]]:
    """By list, its entries that name no row of the old corpus, as they are written: for the answer to those who asked."""
    [stage] = [stage for stage in status.stages(config.out) if _NAME.fullmatch(stage.name)]
    found: dict[str, set[str]] = {kind: set() for kind in KINDS}
    for record in stage.records:
        table = parquet.read(storage.join(config.out, stage.folder, record.beside[NAMED_SUFFIX].name))
        for kind, value in zip(table["list"].to_pylist(), table["value"].to_pylist(), strict=True):
            found[kind].add(value)
    named = load_lists(config.given())
    entries: dict[str, Mapping[str, Sequence[str]]] = {
        "ids": {value.hex(): [value.hex()] for value in named.ids.to_pylist()},
        "urls": named.urls,
        "domains": named.domains,
        "sha256": {value.hex(): [value.hex()] for value in named.sha256.to_pylist()},
    }
    missing = {
        kind: [entry for entry, spelt in entries[kind].items() if found[kind].isdisjoint(spelt)] for kind in KINDS
    }
    return {kind: some for kind, some in missing.items() if some}


def _read(corpus: str, found: Manifest, unit: Unit) -> pa.Table:
    number = unit.params["shard"]
    assert isinstance(number, int)
    uri = manifest.shard_uri(corpus, found.shards[number])
    if storage.sha256_file(uri) != found.shards[number].sha256:
        raise InputError(
            f"{uri}: sha256 differs from the manifest; restore it, python -m pipeline verify shows what else differs"
        )
    # Parquet calls the values of a list `element`, our schema `item`: cast, or an untouched shard would get another footer.
    return parquet.read(uri).cast(SHARD_SCHEMA)


def _exclude(given: Mapping[str, str], listed: str, table: pa.Table, unit: Unit) -> Result:
    found = split(table, _lists(tuple(given.items()), listed))
    beside = {INDEX_SUFFIX: found.kept.drop_columns(["image"]), NAMED_SUFFIX: found.named}
    return Result(found.kept, found.rejected, beside)


@functools.lru_cache(maxsize=1)
def _lists(given: tuple[tuple[str, str], ...], listed: str) -> Lists:
    """Read once in a worker process, not once in a unit; `listed` is the digest of their contents."""
    if digest_json(_digests(dict(given))) != listed:
        raise InputError("exclude: a list changed while the command ran; run it again")
    return load_lists(dict(given))
