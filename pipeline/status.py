"""What a run has done, read from its records alone: `status` and `verify`. Loads no Ray.

A run's output holds `run.json` (the last driver's configuration, state and stages; the stages that it did not reach, as earlier runs of
the same configuration left them) and, per stage, a folder named by the stage digest with a record per finished unit. `status` only counts
what records say; `verify` reads every byte again, and holds what records say of rows against the files, each other and the manifest.
"""

import dataclasses
import itertools
import logging
import time
from collections.abc import Iterator, Mapping, Sequence

import pyarrow.compute as pc
import pydantic

from pipeline.contracts import manifest, parquet, storage
from pipeline.contracts.at_once import at_once
from pipeline.contracts.cli import stdout_lost
from pipeline.contracts.config import Json
from pipeline.contracts.errors import HouseError, InputError
from pipeline.contracts.manifest import StageCounts
from pipeline.records import (
    STAGES,
    Record,
    count_rows,
    has_died,
    is_here,
    read_record,
    read_story,
    stage_entries,
    taken_up,
    with_generation,
)

log = logging.getLogger("pipeline")


@dataclasses.dataclass(frozen=True)
class StageStatus:
    """A stage: its folder relative to the output, units planned, and the records of finished ones.

    done: every unit had ended, so that a record which is not there was lost. earlier: the last run has not reached it; an earlier one of
    the same configuration has.
    """

    name: str
    folder: str
    units: int
    records: list[Record]
    done: bool
    earlier: bool


class _Listed(pydantic.BaseModel):
    """The part of queries.json by which the files of a query list are told to be whole: names and SHA-256."""

    sha256: dict[str, str]


def story(out: str) -> dict[str, Json]:
    """run.json of a run's output. Raises InputError when there is none, or when it is damaged."""
    place = storage.join(out, "run.json")
    if not storage.exists(place):
        raise InputError(f"{out}: no run.json here; give the run.out of a pipeline run")
    return read_story(place)


def stages(out: str, name: str | None = None) -> list[StageStatus]:
    """The stages of the last run, then what earlier runs left of later ones, each with the records found now; `name`: only that stage.

    Raises InputError when run.json is damaged.
    """
    told = story(out)
    own, earlier = stage_entries(storage.join(out, "run.json"), told)
    found = []
    for stage, is_earlier in [*((entry, False) for entry in own), *((entry, True) for entry in earlier)]:
        if name not in (None, stage.name):
            continue
        folder = storage.join(out, stage.folder)
        # A record's temporary name is what a killed task leaves; it was never committed.
        names = [
            name for name in storage.sizes(folder) if name.endswith(".json") and storage.TEMPORARY_MARK not in name
        ]
        records = at_once(read_record, [storage.join(folder, name) for name in sorted(names)])
        done = stage.done or (told.get("state") == "done" and not is_earlier)
        found.append(StageStatus(stage.name, stage.folder, stage.units, records, done, is_earlier))
    return found


def corpus(path: str) -> str:
    """The corpus at `path`: the one in `shards` of a run, else `path` itself (also where `exclude` left it, beside its run.json)."""
    inside = storage.join(path, "shards")
    is_itself = path.endswith(".json") or storage.exists(manifest.manifest_path(path))
    return inside if not is_itself and storage.exists(manifest.manifest_path(inside)) else path


def ledger(corpus: str) -> list[str]:
    """The ledger of the last run that worked on a corpus, where it is at hand: beside the manifest (`exclude`), or above its `shards`.

    It is a help, which tells the texts of queries: of one that is damaged a warning is logged.
    """
    folder = storage.parent(manifest.manifest_path(corpus))
    out = next((out for out in (folder, storage.parent(folder)) if storage.exists(storage.join(out, "run.json"))), None)
    if out is None:
        return []
    try:
        found = [
            (storage.join(out, stage.folder), record) for stage in stages(out, "ledger") for record in stage.records
        ]
        files = {storage.join(place, record.output.name): record.output.sha256 for place, record in found}
        if all(storage.sha256_file(uri) == sha256 for uri, sha256 in files.items()):
            return list(files)
        said = "its sha256 differs from the record"
    except HouseError as error:
        said = str(error)
    log.warning("%s: no ledger is read from it, so that queries have no texts (%s)", out, said)
    return []


def is_running(told: Mapping[str, Json]) -> bool:
    """Whether the driver of run.json goes on, as far as this machine can tell: a process that was killed could not say so there."""
    owner = told.get("owner")
    return told.get("state") == "running" and not (isinstance(owner, dict) and has_died(owner))


def describe(out: str, now: float | None = None) -> str:
    """A table for people: a line per stage whose rows are pairs, with what was rejected and why, then the state of the run.

    While the run goes on (`now`, seconds since the epoch; unset: the clock), a stage that is not complete has its pace and the time left.
    """
    told, found = story(out), stages(out)
    lines = [f"{'stage':<14}{'units':>12}{'rows in':>14}{'rows out':>14}  rejected"]
    lines += [_line(stage) for stage in found if not stage.earlier and _has_pairs(stage)]
    if earlier := [_line(stage) for stage in found if stage.earlier and _has_pairs(stage)]:
        lines += ["not reached by the last run, as an earlier one of this configuration left them:", *earlier]
    for stage in found:
        if is_running(told) and not stage.earlier:
            lines += _pace(stage, told.get("started"), time.time() if now is None else now)
    left = sum(
        storage.TEMPORARY_MARK in name for stage in found for name in storage.sizes(storage.join(out, stage.folder))
    )
    if left:
        lines.append(f"{left} temporary files of interrupted units remain; no reader looks at them")
    return "\n".join([*lines, _state(told)])


def _has_pairs(stage: StageStatus) -> bool:
    return all(record.accounted for record in stage.records)


def _line(stage: StageStatus) -> str:
    counts = count_rows(stage.records)
    reasons = ", ".join(
        f"{rows:,} {reason}" for reason, rows in sorted(counts.rejected.items(), key=lambda item: -item[1])
    )
    units = f"{len(stage.records):,}/{stage.units:,}"
    return f"{stage.name:<14}{units:>12}{counts.rows_in:>14,}{counts.rows_out:>14,}  {reasons or '-'}"


def _state(told: Mapping[str, Json]) -> str:
    """The state of the run in words."""
    owner = told.get("owner")
    if told.get("state") == "running" and not is_running(told):
        return "state: ended without a word (killed); the same command again resumes"
    if told.get("state") == "running" and isinstance(owner, dict) and not is_here(owner):
        return f"state: running (process {owner.get('pid')} of {owner.get('host')}, of which nothing is known here)"
    return f"state: {told.get('state')}" + (f" ({told['error']})" if told.get("error") else "")


def _pace(stage: StageStatus, run_started: Json, now: float) -> list[str]:
    """A line about a stage that is not complete: rows and units a second since its first unit of this run began, and what is left at
    that pace."""
    since = run_started if isinstance(run_started, (int, float)) else 0.0
    mine = [record for record in stage.records if record.started >= since]
    waiting = stage.units - len(stage.records)
    if not waiting:
        return []
    if not mine:
        return [f"{stage.name}: {waiting:,} units left, none of this run has ended yet"]
    seconds = max(now - min(record.started for record in mine), 1e-3)
    rows, units = sum(record.rows_in for record in mine) / seconds, len(mine) / seconds
    return [
        f"{stage.name}: {rows:,.1f} rows/s, {units:,.2f} units/s, {waiting:,} units left, about {waiting / units:,.0f} s"
    ]


def follow(out: str, every_s: float = 5.0) -> None:
    """Print `describe` again whenever it has changed, until the run no longer runs, as far as this machine can tell, or nobody reads on."""
    shown = None
    while True:
        text = describe(out)
        if text != shown:
            print(("\n" if shown else "") + text)
            shown = text
        if stdout_lost() or not is_running(story(out)):
            return
        time.sleep(every_s)


def verify(path: str) -> list[str]:
    """One sentence per difference: of a corpus (manifest or its folder), or of a run's whole output."""
    out = storage.parent(path) if storage.name(path) == "run.json" else path
    is_corpus = path.endswith(".json") or storage.exists(manifest.manifest_path(path))
    if out == path and is_corpus:
        # `exclude` leaves a corpus and the records of its making in one folder: both are looked at.
        folder = storage.parent(manifest.manifest_path(path))
        return manifest.verify(path) + (_verify_run(folder) if storage.exists(storage.join(folder, "run.json")) else [])
    problems = _verify_run(out)
    shards = storage.join(out, "shards")
    return problems + (manifest.verify(shards) if storage.exists(manifest.manifest_path(shards)) else [])


def _verify_run(out: str) -> list[str]:
    told, found = story(out), stages(out)
    problems = [problem for stage in found for problem in _verify_stage(out, stage)]
    problems += [
        f"{storage.join(out, stage.folder)}: {len(stage.records):,} records of {stage.units:,} units, but the stage was done; "
        "restore them or run again"
        for stage in found
        if stage.done and len(stage.records) < stage.units
    ]
    problems += [*_verify_order(found), *_verify_manifest(out, told, found)]
    makes_a_list = told.get("state") == "done" and any(stage.name == "queries-list" for stage in found)
    return problems + (_verify_list(out) if makes_a_list else [])


def _counted(found: Sequence[StageStatus]) -> list[tuple[StageStatus, list[StageCounts]]]:
    """The stages of the pipeline and of `exclude` with their accounting; of a crawl also that with each generation of `retry`.

    A stage of which records are missing has none.
    """
    counted: list[tuple[StageStatus, list[StageCounts]]] = []
    taken: dict[str, int] = {}
    for stage in found:
        complete = bool(stage.records) and len(stage.records) == stage.units
        if stage.name.startswith("retry-"):
            if complete and stage.name.endswith("-rows"):
                taken = taken_up(stage.records)
            elif complete and counted and counted[-1][1]:
                generations = counted[-1][1]
                generations.append(with_generation(generations[-1], taken, count_rows(stage.records)))
        elif stage.name in STAGES or stage.name.startswith("exclude"):
            counted.append((stage, [count_rows(stage.records)] if complete else []))
    return counted


def _verify_order(found: Sequence[StageStatus]) -> Iterator[str]:
    """Every stage takes what the one before it left: after `retry`, what is left of an earlier run took fewer generations."""
    for (one, left), (two, took) in itertools.pairwise(_counted(found)):
        if left and took and took[0].rows_in not in [count.rows_out for count in (left if two.earlier else left[-1:])]:
            yield (
                f"{two.name}: {took[0].rows_in:,} rows in, but {one.name} left {left[-1].rows_out:,}; "
                "restore the records of both"
            )


def _verify_manifest(out: str, told: Mapping[str, Json], found: Sequence[StageStatus]) -> Iterator[str]:
    """Of a run that made a corpus: that its manifest is there, is this run's, and counts what the records count."""
    last = next(
        (stage for stage in reversed(found) if stage.name == "shards" or stage.name.startswith("exclude")), None
    )
    if last is None or not last.done:
        return
    place = manifest.manifest_path(storage.join(out, "shards") if last.name == "shards" else out)
    if not storage.exists(place):
        yield f"{place}: is missing, but the stage {last.name} was done; restore it, or run the same command again"
        return
    listed = manifest.load(place)
    if listed.config_digest != told.get("config_digest"):
        yield f"{place}: config_digest is not that of run.json; restore the manifest, or run the same command again"
    counted = {stage.name: counts if last.earlier else counts[-1:] for stage, counts in _counted(found)}
    for name, count in listed.counts.items():
        right = counted.get(name)
        # What `exclude` wrote also has the counts of the corpus that it started from; a stage that lacks records was told of above.
        if count not in right if right else right is None and last.name == "shards":
            yield f"{place}: counts.{name} is not what the records add up to; restore the manifest from its run"


def _verify_list(out: str) -> list[str]:
    """Of the output of `queries`: the list in its two forms, against the SHA-256 that queries.json has of them."""
    again = "run python -m pipeline queries again"
    place = storage.join(out, "queries.json")
    try:
        listed = _Listed.model_validate_json(storage.read_bytes(place)) if storage.exists(place) else None
    except pydantic.ValidationError:
        return [f"{place}: is damaged, no record of a query list; {again}"]
    if listed is None:
        return [f"{place}: is missing; {again}"]
    problems = []
    for name, sha256 in listed.sha256.items():
        uri = storage.join(out, name)
        if not storage.exists(uri):
            problems.append(f"{uri}: is missing; {again}")
        elif storage.sha256_file(uri) != sha256:
            problems.append(f"{uri}: sha256 differs from queries.json; {again}")
    return problems


def _verify_stage(out: str, stage: StageStatus) -> Iterator[str]:
    for record in stage.records:
        broken = list(_verify_files(out, stage, record))
        yield from broken
        if record.accounted and record.rows_in != record.rows_out + sum(record.rejected.values()):
            yield f"{stage.name}: unit {record.unit}: rows do not add up; restore its record"
        elif not broken and not _counts_its_files(storage.join(out, stage.folder), record):
            yield f"{stage.name}: unit {record.unit}: counts other rows than its files hold; restore its record"


def _verify_files(out: str, stage: StageStatus, record: Record) -> Iterator[str]:
    for file in record.files:
        uri = storage.join(out, stage.folder, file.name)
        found = storage.info(uri)
        if found is None:
            yield f"{uri}: is missing; move its record {record.unit}.json away and run again"
        elif storage.sha256_file(uri) != file.sha256:
            yield f"{uri}: sha256 differs from the record; move it and {record.unit}.json away and run again"
        elif found.size != file.bytes:  # the hash is right, so it is the record that was edited
            yield f"{uri}: {found.size:,} bytes, its record {record.unit}.json says {file.bytes:,}; restore the record"


def _counts_its_files(folder: str, record: Record) -> bool:
    """Whether what the record says of rows, and of rejected ones by reason, is what its files hold."""
    reasons: dict[str, int] = {}
    for file in record.files:
        with parquet.open_file(storage.join(folder, file.name)) as source:
            if source.metadata.num_rows != file.rows:
                return False
            if file is record.rejected_file:
                counted = pc.value_counts(source.read(["reason"])["reason"]).to_pylist()
                reasons = {entry["values"]: entry["counts"] for entry in counted}
    return record.rows_out == record.output.rows and record.rejected == reasons
