"""A policy hook: a Python function that looks at fetched rows and refuses some, named in the configuration.

    [[policy]]
    name = "known bad pictures"
    hook = "pipeline.policy.block_list:source_hashes"
    options = { hashes = "s3://lists/blocked.parquet" }

The function is written in any importable module:

    @hook(columns=("caption",), version=1)
    def no_shouting(rows: pa.Table, options: Mapping[str, Json]) -> list[str | None]:
        return ["capitals" if caption and caption.isupper() else None for caption in rows["caption"].to_pylist()]

It gets a table with the columns it asks for (any of SHARD_SCHEMA; `image` are the stored bytes) and its options, and returns one verdict a
row: None keeps the row, a short text refuses it. A refused row is rejected as `policy` with the detail "NAME: VERDICT". The stage's digest
holds each hook's name, place, options and version, and the SHA-256 of the files that the options named in `files` lead to: raise the
version
when the function judges differently. A hook must be a function of its rows: no clock, no network, no random numbers.

Each hook is called once with no rows before anything starts, so that wrong options are told at once.

A refused picture is in no later stage and in no shard, but it stays where the crawl put it: in `crawl/DIGEST/UNIT-HASH.parquet` under
`run.out`, and in `retry-N/DIGEST/` where `retry` fetched it. Where even that must not be, as with unlawful pictures, delete those two
kinds of folders whole once the shards are written: `shards/` needs nothing outside itself, and `verify OUT/shards` does not miss them
(`verify OUT` does, and running the same configuration again would crawl anew). Where the bucket keeps versions or copies, delete those as
well. Nothing here deletes.
"""

import dataclasses
import functools
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
from pydantic import Field

from pipeline.contracts import storage
from pipeline.contracts.config import Json, StrictModel
from pipeline.contracts.errors import InputError, RunError
from pipeline.contracts.schema import SHARD_SCHEMA, Reason, rejected_rows

Judge = Callable[[pa.Table, Mapping[str, Json]], Sequence[str | None] | pa.Array | pa.ChunkedArray]
"""(rows, options) → a verdict per row."""

_MOST_CHARACTERS = 200


class PolicyConfig(StrictModel):
    """One hook. They are called in the order of the configuration; a row that one refuses is not shown to the next."""

    name: str = Field(min_length=1, max_length=60)
    """What rejected rows are told to have met."""
    hook: str = Field(pattern=r"^[\w.]+:\w+$")
    """package.module:function"""
    options: dict[str, Json] = Field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Hook:
    """A declared hook: its function, the columns it reads, its version, the options that name files, and all that it has (None: it looks
    at their names itself)."""

    judge: Judge
    columns: tuple[str, ...]
    version: int
    files: tuple[str, ...] = ()
    options: tuple[str, ...] | None = None


def hook(
    *, columns: Sequence[str], version: int, files: Sequence[str] = (), options: Sequence[str] | None = None
) -> Callable[[Judge], Hook]:
    """Declare the function below as a policy hook. With `options` every other name in a configuration's is refused."""
    return functools.partial(
        Hook,
        columns=tuple(columns),
        version=version,
        files=tuple(files),
        options=None if options is None else tuple(options),
    )


def load(config: PolicyConfig) -> Hook:
    """The hook that a configuration names, tried with no rows. Raises InputError when there is none, or when its options are wrong."""
    place = f"policy {config.name!r}: hook {config.hook!r}"
    module, _, name = config.hook.partition(":")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise InputError(f"{place}: cannot be imported ({_short(error)}); check the name and PYTHONPATH") from None
    except (Exception, SystemExit) as error:  # noqa: BLE001 - somebody else's code, which runs when it is imported
        raise InputError(
            f"{place}: cannot be imported ({type(error).__name__}: {_short(error)}); mend the module, or write its name as "
            "package.module:function"
        ) from None
    if not isinstance(found, Hook):
        raise InputError(f"{place}: is no policy hook; decorate the function with @hook of pipeline.policy.hook")
    unknown = sorted(set(found.columns) - set(SHARD_SCHEMA.names))
    if unknown:
        raise InputError(f"{place}: asks for unknown columns {unknown!r}; those of SHARD_SCHEMA are there")
    misspelt = sorted(set(config.options) - set(found.options)) if found.options is not None else []
    if misspelt:
        raise InputError(f"{place}: has no option {misspelt[0]!r}; its options are {', '.join(found.options or ())}")
    missing = [option for option in found.files if not isinstance(config.options.get(option), str)]
    if missing:
        raise InputError(f"{place}: needs options.{missing[0]}, the path of a file; add it")
    verdicts(config, found, SHARD_SCHEMA.empty_table())
    return found


def identity(config: PolicyConfig, found: Hook) -> dict[str, Json]:
    """What of a hook can change a verdict: for the stage's digest and the manifest. A file counts by its content, not by its place."""
    hashed = {option: storage.sha256_file(str(config.options[option])) for option in found.files}
    return {"name": config.name, "hook": config.hook, "options": {**config.options, **hashed}, "version": found.version}


def verdicts(config: PolicyConfig, found: Hook, rows: pa.Table) -> pa.Array:
    """What the hook says of each row, as strings. Raises RunError (InputError for its options) when it does not say it as agreed."""
    place = f"policy {config.name!r}: hook {config.hook!r}"
    try:
        said = found.judge(rows.select(list(found.columns)), config.options)
        if isinstance(said, (str, bytes, Mapping)) or not isinstance(said, Iterable):
            raise InputError(
                f"gave {_short(repr(said))} for {rows.num_rows:,} rows; return a list with a verdict for each"
            )
        values: list[Any] = said.to_pylist() if isinstance(said, (pa.Array, pa.ChunkedArray)) else list(said)
    except InputError as error:
        raise InputError(f"{place}: {error}") from None
    except (Exception, SystemExit) as error:  # somebody else's code: whatever it raises is told with its name
        raise RunError(
            f"{place}: raised {type(error).__name__}: {_short(error)}; mend the hook and raise its version"
        ) from error
    if len(values) != rows.num_rows:
        raise RunError(f"{place}: gave {len(values):,} verdicts for {rows.num_rows:,} rows; return one for each")
    for value in values:
        if not (value is None or _is_verdict(value)):
            raise RunError(
                f"{place}: gave the verdict {_short(repr(value))}; return None to keep a row, or 1 to {_MOST_CHARACTERS} characters"
            )
    return pa.array(values, pa.string())


def _is_verdict(value: object) -> bool:
    """Whether it is a short text that UTF-8 can write: no lone surrogates."""
    if not isinstance(value, str) or not 0 < len(value) <= _MOST_CHARACTERS:
        return False
    return value.encode(errors="ignore").decode() == value


def _short(value: object) -> str:
    return " ".join(str(value).split())[:_MOST_CHARACTERS]


def judge(configs: Sequence[PolicyConfig], table: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Rows as (those that no hook refuses, the others as REJECTED_SCHEMA), in their order within each."""
    parts = []
    for config in configs:
        said = verdicts(config, load(config), table)
        refused = said.is_valid()
        detail = pa.array([f"{config.name}: {verdict}" for verdict in said.drop_null().to_pylist()], pa.string())
        parts.append(rejected_rows(table.filter(refused), Reason.POLICY, detail))
        table = table.filter(said.is_null())
    return table, pa.concat_tables(parts)
