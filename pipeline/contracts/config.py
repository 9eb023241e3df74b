"""Configuration: a TOML file plus `key=value` overrides, loaded into frozen pydantic models, with a digest over what matters.

TOML because its values have no surprises (`1e-4` is a number, `no` is not false), because an override is the same language, and
because a file of it can be hashed, compared and attached to an audit. Nothing here reads the environment or the hardware.

A field made with `not_semantic(...)` does not change what a stage computes (places, worker counts, logging): it is left out of
`digest`, so that the same work has the same digest on a laptop and on a cluster.
"""

import copy
import difflib
import hashlib
import itertools
import json
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import pydantic
import tomli_w

from pipeline.contracts import storage
from pipeline.contracts.errors import InputError

Json = pydantic.JsonValue
"""A JSON value: what a configuration, a record or a manifest may hold."""


class StrictModel(pydantic.BaseModel):
    """A table of the configuration: unknown keys are errors, values never change after loading."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Model = TypeVar("Model", bound=StrictModel)


def not_semantic(default: Any = ..., **field: Any) -> Any:
    """A pydantic field that does not change the result: it is left out of every digest."""
    return pydantic.Field(default, json_schema_extra={"semantic": False}, **field)


def load_config(model: type[Model], path: str | None, overrides: Sequence[str] = ()) -> Model:
    """Read the TOML file at `path` (local or s3://; None: everything comes from overrides), apply `table.key=value` overrides, validate.

    Raises InputError with one line per problem; each names the key, the value and what would be right, and says whether the file or an
    override is to blame.
    """
    try:
        table = {} if path is None else tomllib.loads(storage.read_text(path))
        written = copy.deepcopy(table)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: not valid TOML: {error}; mend the line it names") from None
    except RecursionError:
        raise InputError(f"{path}: lists or tables in one another, too deep to read; take some away") from None
    overridden: dict[tuple[str, ...], str] = {}
    for override in overrides:
        keys, text = _split_override(override)
        _assign(table, keys, _toml_value(text, ".".join(keys)), override)
        overridden[keys] = text
    for location, value in _booleans_for_numbers(model, table):
        place = (
            f"override {location!r}"
            if tuple(location.split(".")) in overridden
            else f"{path or 'command line'}: {location}"
        )
        raise InputError(f"{place}: should be a number (got {value!r}); change it")
    try:
        return model.model_validate(table)
    except pydantic.ValidationError as error:
        if not _restore_plain_strings(table, overridden, error):
            raise InputError("\n".join(_sentences(model, path, written, overridden, error))) from None
    try:
        return model.model_validate(table)
    except pydantic.ValidationError as error:
        raise InputError("\n".join(_sentences(model, path, written, overridden, error))) from None


def digest(model: pydantic.BaseModel) -> str:
    """SHA-256 (64 hex digits) of the canonical JSON of the semantic fields of `model`."""
    return digest_json(semantic(model))


def digest_json(value: Json) -> str:
    """SHA-256 (64 hex digits) of a JSON value: sorted keys, no spaces, UTF-8."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def semantic(model: pydantic.BaseModel) -> dict[str, Json]:
    """The fields of `model` that can change a result, as JSON values."""
    dumped: dict[str, Json] = model.model_dump(mode="json")
    kept: dict[str, Json] = {}
    for name, field in type(model).model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("semantic") is False:
            continue
        value = getattr(model, name)
        if isinstance(value, pydantic.BaseModel):
            kept[name] = semantic(value)
        elif isinstance(value, (list, tuple)) and any(isinstance(item, pydantic.BaseModel) for item in value):
            kept[name] = [semantic(item) for item in value]
        else:
            kept[name] = dumped[name]
    return kept


def to_toml(model: pydantic.BaseModel) -> str:
    """The resolved configuration as TOML. TOML has no null: a key whose value is unset is left out."""
    return tomli_w.dumps(_without_none(model.model_dump(mode="json")))


def _without_none(value: dict[str, Json]) -> dict[str, Json]:
    return {key: _kept(item) for key, item in value.items() if item is not None}


def _kept(value: Json) -> Json:
    if isinstance(value, dict):
        return _without_none(value)
    return [_kept(item) for item in value] if isinstance(value, list) else value


# ---- overrides


def _split_override(override: str) -> tuple[tuple[str, ...], str]:
    key, equals, text = override.partition("=")
    keys = tuple(part.strip() for part in key.split("."))
    if not equals or not all(keys):
        raise InputError(f"override {override!r}: expected table.key=value, for example run.seed=17")
    return keys, text.strip()


def _toml_value(text: str, key: str) -> Json:
    """An override's value is TOML; what is not TOML (`s3://bucket/x`, `ViT-B/32`) is taken as a plain string."""
    try:
        value: Json = tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, KeyError):
        return text
    except RecursionError:
        raise InputError(f"override {key!r}: brackets in one another, too deep to read; take some away") from None
    return value if isinstance(value, (bool, int, float, str, list, dict)) else text


def _assign(table: dict[str, Json], keys: tuple[str, ...], value: Json, override: str) -> None:
    place = table
    for key in keys[:-1]:
        inner = place.setdefault(key, {})
        if not isinstance(inner, dict):
            raise InputError(f"override {override!r}: {key!r} is a value, not a table; name a key of a table")
        place = inner
    place[keys[-1]] = value


def _restore_plain_strings(
    table: dict[str, Json], overridden: Mapping[tuple[str, ...], str], error: pydantic.ValidationError
) -> bool:
    """Where a string was wanted and an override gave `2026` or `true`, take its text as it was typed."""
    changed = False
    for problem in error.errors():
        keys = tuple(str(part) for part in problem["loc"])
        if problem["type"] == "string_type" and keys in overridden:
            _assign(table, keys, overridden[keys], overridden[keys])
            changed = True
    return changed


def _booleans_for_numbers(model: type[pydantic.BaseModel], table: Mapping[str, Json]) -> Iterator[tuple[str, bool]]:
    """Keys of numbers that were given true or false, which pydantic would take for 1 and 0."""
    for key, value in table.items():
        annotation = model.model_fields[key].annotation if key in model.model_fields else None
        number_wanted = not {bool, str} & _kinds(annotation) and {int, float} & _kinds(annotation)
        if isinstance(value, bool) and number_wanted:
            yield key, value
        tables = {key: value} if isinstance(value, dict) else {}
        if isinstance(value, list):
            tables = {f"{key}.{number}": one for number, one in enumerate(value) if isinstance(one, dict)}
        for place, inner in itertools.product(tables, _models_in(annotation)):
            yield from ((f"{place}.{below}", found) for below, found in _booleans_for_numbers(inner, tables[place]))


def _kinds(annotation: Any) -> set[type]:
    """The types of single values that an annotation takes."""
    if isinstance(annotation, type):
        return {annotation}
    if typing.get_origin(annotation) is typing.Literal:
        return {type(value) for value in typing.get_args(annotation)}
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return set().union(*map(_kinds, typing.get_args(annotation)))
    return _kinds(typing.get_args(annotation)[0]) if typing.get_origin(annotation) is typing.Annotated else set()


# ---- sentences


def _sentences(
    model: type[StrictModel],
    path: str | None,
    written: Json,
    overridden: Mapping[tuple[str, ...], str],
    error: pydantic.ValidationError,
) -> Iterator[str]:
    for problem in error.errors(include_url=False):
        location = tuple(str(part) for part in problem["loc"])
        by_override = any(location[: len(keys)] == keys for keys in overridden) or (
            not _holds(written, location) and any(keys[: len(location)] == location for keys in overridden)
        )
        place = f"{path or 'command line'}: {'.'.join(location) or 'config'}"
        if by_override:
            place = f"override {'.'.join(location)!r}"
        kind, value = problem["type"], problem.get("input")
        if kind == "extra_forbidden":
            yield f"{place}: unknown key{_nearest(model, location)}"
        elif kind == "missing":
            yield f"{place}: missing; {'add it to the file or ' if path else ''}give {'.'.join(location)}=VALUE"
        elif kind == "value_error":
            yield f"{place}: {str(problem['msg']).removeprefix('Value error, ')}"
        else:
            yield f"{place}: {_lower_first(str(problem['msg']))} (got {value!r}); change it"


def _holds(value: Json, location: tuple[str, ...]) -> bool:
    """Whether the file itself has something at `location`."""
    for part in location:
        if not isinstance(value, dict) or part not in value:
            return False
        value = value[part]
    return True


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def _nearest(model: type[pydantic.BaseModel], location: tuple[str, ...]) -> str:
    known = _fields_at(model, location[:-1])
    close = difflib.get_close_matches(location[-1], known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known keys: {', '.join(known)}"


def _fields_at(model: type[pydantic.BaseModel], location: tuple[str, ...]) -> list[str]:
    """The keys of the table at `location`, found by walking the annotations (through lists and unions)."""
    for part in location:
        if part.isdigit():
            continue
        field = model.model_fields.get(part)
        inner = next(_models_in(field.annotation), None) if field is not None else None
        if inner is None:
            break
        model = inner
    return list(model.model_fields)


def _models_in(annotation: Any) -> Iterator[type[pydantic.BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        yield annotation
    elif typing.get_origin(annotation) in (
        list,
        tuple,
        dict,
        typing.Union,
        types.UnionType,
        typing.Annotated,
    ):
        for argument in typing.get_args(annotation):
            yield from _models_in(argument)
