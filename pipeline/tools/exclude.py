"""exclude: a corpus without some of its rows (takedowns, opt-outs, overlaps with a test set), as a new version in a folder of its own.

    python -m pipeline exclude corpus=s3://bucket/web-v1/shards out=s3://bucket/web-v2 ids=removal_ids.txt

Rows are named by any of four lists (pipeline/lists.py has their form): `ids` (uids, hexadecimal; column uid), `urls` (of the picture or
of its
page), `domains` (with everything below them, of the picture or of its page), `sha256` (of the bytes as fetched or as stored). A row that
several lists name is counted for the first of them, in this order, and stays readable in the rejected file of its shard, with the entry
that named it.

The new corpus holds every shard itself, also those that lose nothing: a takedown ends with deleting the old version, and a manifest that
pointed into it would forbid that. Shards are read, compared with their SHA-256 in the old manifest, and written again; the same rows give
the same
bytes, so an untouched shard keeps its hash as long as pyarrow's writer does. Units are shards, with records: the same command again
resumes. The new manifest names the old one's content root as its parent and keeps its counts, with a stage `exclude` after them.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple, cast

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import lists, status
from pipeline.contracts import manifest, parquet, storage
from pipeline.contracts.config import Json, StrictModel, digest_json, not_semantic
from pipeline.contracts.errors import InputError
from pipeline.contracts.manifest import Manifest
from pipeline.contracts.schema import FORMAT_VERSION, REJECTED_SCHEMA, SHARD_SCHEMA, Reason, rejected_rows
from pipeline.crawl.urls import UrlRefused, parse
from pipeline.engine import EngineConfig, Result, Run, Unit
from pipeline.records import count_rows
from pipeline.stages.common import run_stage
from pipeline.stages.shards import INDEX_SUFFIX, content_root, entries

KINDS = {
    "ids": Reason.EXCLUDED_UID,
    "urls": Reason.EXCLUDED_URL,
    "domains": Reason.EXCLUDED_DOMAIN,
    "sha256": Reason.EXCLUDED_SHA256,
}
"""The lists in the order in which they are asked, and what their rows are rejected as."""


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


class Lists(NamedTuple):
    """What the lists name: values to look up, and hosts."""

    ids: pa.Array
    urls: pa.Array
    domains: frozenset[str]
    sha256: pa.Array


def load_lists(given: Mapping[str, str]) -> Lists:
    """Read the lists. Raises InputError for an entry that cannot name a row, with its line."""
    return Lists(
        ids=lists.hashes(given["ids"], "uid", 16) if "ids" in given else pa.array([], pa.binary(16)),
        urls=pa.array(
            sorted({text for _, text in lists.texts(given["urls"], "url")}) if "urls" in given else [], pa.string()
        ),
        domains=frozenset(_domains(given["domains"]) if "domains" in given else ()),
        sha256=lists.hashes(given["sha256"], "sha256", 32) if "sha256" in given else pa.array([], pa.binary(32)),
    )


def _domains(uri: str) -> list[str]:
    found = []
    for number, text in lists.texts(uri, "domain"):
        host = _host(f"http://{text.removeprefix('*.').strip('.')}/")
        if host is None or "/" in text:
            raise InputError(f"{uri}: line {number}: {text!r} is no domain; write it like example.org")
        found.append(host)
    return found


def _host(url: str | None) -> str | None:
    """The host of a URL in the one spelling that the crawl uses; None where it has none."""
    try:
        return None if url is None else parse(url).host
    except UrlRefused:
        return None


def split(rows: pa.Table, named: Lists) -> tuple[pa.Table, pa.Table]:
    """Rows of SHARD_SCHEMA as (those that no list names, the others as REJECTED_SCHEMA), in their order within each reason."""
    found: list[list[str | None]] = [
        [uid.hex() if hit else None for uid, hit in _looked_up(rows, "uid", named.ids)],
        _first(rows, ("url", "page_url"), named.urls),
        [
            _below(named.domains, *urls)
            for urls in zip(*(rows[name].to_pylist() for name in ("url", "page_url")), strict=True)
        ],
        _first(rows, ("source_sha256", "image_sha256"), named.sha256),
    ]
    left = pa.array([True] * rows.num_rows, pa.bool_())
    parts = [REJECTED_SCHEMA.empty_table()]
    for reason, details in zip(KINDS.values(), found, strict=True):
        detail = pa.array(details, pa.string())
        hit = pc.and_(left, detail.is_valid())
        parts.append(rejected_rows(rows.filter(hit), reason, detail.filter(hit)))
        left = pc.and_(left, detail.is_null())
    return rows.filter(left), pa.concat_tables(parts)


def _looked_up(rows: pa.Table, column: str, values: pa.Array) -> list[tuple[bytes, bool]]:
    hits = pc.is_in(rows[column], value_set=values).to_pylist() if len(values) else [False] * rows.num_rows
    return list(zip(rows[column].to_pylist(), hits, strict=True))


def _first(rows: pa.Table, columns: tuple[str, str], values: pa.Array) -> list[str | None]:
    """The value of the first of two columns that is among `values`, as text."""
    both = [_looked_up(rows, column, values) for column in columns]
    return [
        _text(one) if first else _text(other) if second else None
        for (one, first), (other, second) in zip(*both, strict=True)
    ]


def _text(value: str | bytes) -> str:
    return value.hex() if isinstance(value, bytes) else value


def _below(domains: frozenset[str], *urls: str | None) -> str | None:
    """The domain of the list that one of the URLs lies in."""
    if not domains:
        return None
    for host in map(_host, urls):
        labels = host.split(".") if host else []
        for place in range(len(labels)):
            if (domain := ".".join(labels[place:])) in domains:
                return domain
    return None


# ---- the command


def check(config: ExcludeConfig) -> tuple[Manifest, Lists]:
    """What a run would stop at, before Ray starts. Raises InputError."""
    if not config.given():
        raise InputError(f"exclude: no list is given; add one of {', '.join(f'{kind}=FILE' for kind in KINDS)}")
    found = manifest.load(config.corpus)
    if storage.parent(manifest.manifest_path(config.corpus)).rstrip("/") == config.out.rstrip("/"):
        raise InputError(
            f"out={config.out!r} is the folder of the corpus itself; give the new version a folder of its own"
        )
    return found, load_lists(config.given())


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
    hashed: dict[str, Json] = {kind: storage.sha256_file(place) for kind, place in config.given().items()}
    identity: dict[str, Json] = {"exclude": {"corpus": old.content_root, **hashed}}
    with Run(config.out, config.engine, config.model_dump(mode="json"), digest_json(identity)) as driver:
        units = [Unit(f"{n:05d}", (shard.sha256,), {"shard": n}) for n, shard in enumerate(old.shards)]
        left = run_stage(
            driver,
            "exclude",
            [identity, FORMAT_VERSION],
            [],
            units,
            functools.partial(_read, config.corpus, old),
            functools.partial(_exclude, config.given(), digest_json(hashed)),
        )
        new = manifest.Manifest(
            format_version=FORMAT_VERSION,
            rows=left.rows,
            content_root=content_root(driver, left, config.out),
            shards=entries(left, left.folder),
            hashes=old.hashes,
            config=identity,
            config_digest=digest_json(identity),
            query_list_digest=old.query_list_digest,
            parents=[old.content_root],
            counts={**old.counts, "exclude": count_rows(left.records)},
        )
        return manifest.publish(config.out, new)


def not_found(config: ExcludeConfig) -> list[bytes]:
    """The uids of the list `ids` that the old corpus does not have, in order: for the answer to those who asked."""
    if config.ids is None:
        return []
    wanted = lists.hashes(config.ids, "uid", 16)
    [stage] = [stage for stage in status.stages(config.out) if stage.name == "exclude"]
    gone = [
        storage.join(config.out, stage.folder, record.rejected_file.name)
        for record in stage.records
        if record.rejected_file
    ]
    removed = [parquet.read(uri, ["uid"])["uid"] for uri in gone]
    found = pa.chunked_array([chunk for column in removed for chunk in column.chunks], pa.binary(16)).combine_chunks()
    return cast(list[bytes], wanted.filter(pc.invert(pc.is_in(wanted, value_set=found))).to_pylist())


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
    kept, rejected = split(table, _lists(tuple(sorted(given.items())), listed))
    return Result(kept, rejected, {INDEX_SUFFIX: kept.drop_columns(["image"])})


@functools.lru_cache(maxsize=1)
def _lists(given: tuple[tuple[str, str], ...], listed: str) -> Lists:
    """Read once in a worker process, not once in a unit; `listed` is the digest of their contents."""
    if digest_json({kind: storage.sha256_file(place) for kind, place in given}) != listed:
        raise InputError("exclude: a list changed while the command ran; run it again")
    return load_lists(dict(given))
