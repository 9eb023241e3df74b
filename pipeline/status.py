"""What a run has done, read from its records alone: `status` and `verify`. Loads no Ray.

A run's output holds `run.json` (the last driver's configuration, state and stages) and, per stage, a folder named by the
stage digest with a record per finished unit. `status` only counts what records say; `verify` reads every byte again.
"""

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor

import pydantic

from pipeline.contracts import manifest, storage
from pipeline.contracts.config import Json
from pipeline.contracts.errors import InputError
from pipeline.records import Record, count_rows, read_record, read_story


@dataclasses.dataclass(frozen=True)
class StageStatus:
    """A stage of the last run: its folder relative to the output, units planned, and the records of finished ones."""

    name: str
    folder: str
    units: int
    records: list[Record]


class _Planned(pydantic.BaseModel):
    """An entry of the stages in run.json."""

    name: str
    folder: str
    units: int


def story(out: str) -> dict[str, Json]:
    """run.json of a run's output. Raises InputError when there is none, or when it is damaged."""
    place = storage.join(out, "run.json")
    if not storage.exists(place):
        raise InputError(f"{out}: no run.json here; give the run.out of a pipeline run")
    return read_story(place)


def stages(out: str) -> list[StageStatus]:
    """The stages of the last run, in order, each with the records found now. Raises InputError when run.json is damaged."""
    try:
        planned = pydantic.TypeAdapter(list[_Planned]).validate_python(story(out).get("stages"))
    except pydantic.ValidationError:
        place = storage.join(out, "run.json")
        raise InputError(f"{place}: is damaged, no list of stages; move it away and run the pipeline again") from None
    found = []
    for stage in planned:
        folder = storage.join(out, stage.folder)
        # A record's temporary name is what a killed task leaves; it was never committed.
        names = [
            name for name in storage.sizes(folder) if name.endswith(".json") and storage.TEMPORARY_MARK not in name
        ]
        with ThreadPoolExecutor(16) as pool:
            records = list(pool.map(read_record, [storage.join(folder, name) for name in sorted(names)]))
        found.append(StageStatus(stage.name, stage.folder, stage.units, records))
    return found


def describe(out: str, now: float | None = None) -> str:
    """A table for people: a line per stage whose rows are pairs, with what was rejected and why, then the state of the run.

    While the run goes on (`now`, seconds since the epoch; unset: the clock), a stage that is not complete has its pace and the time left.
    """
    told, found = story(out), stages(out)
    running = told.get("state") == "running"
    lines = [f"{'stage':<14}{'units':>12}{'rows in':>14}{'rows out':>14}  rejected"]
    for stage in found:
        if not all(record.accounted for record in stage.records):
            continue
        counts = count_rows(stage.records)
        reasons = ", ".join(
            f"{rows:,} {reason}" for reason, rows in sorted(counts.rejected.items(), key=lambda item: -item[1])
        )
        units = f"{len(stage.records):,}/{stage.units:,}"
        lines.append(f"{stage.name:<14}{units:>12}{counts.rows_in:>14,}{counts.rows_out:>14,}  {reasons or '-'}")
    for stage in found:
        if running and (pace := _pace(stage, told.get("started"), time.time() if now is None else now)):
            lines.append(pace)
    left = sum(
        storage.TEMPORARY_MARK in name for stage in found for name in storage.sizes(storage.join(out, stage.folder))
    )
    if left:
        lines.append(f"{left} temporary files of interrupted units remain; no reader looks at them")
    lines.append(f"state: {told.get('state')}" + (f" ({told['error']})" if told.get("error") else ""))
    return "\n".join(lines)


def _pace(stage: StageStatus, run_started: Json, now: float) -> str | None:
    """Rows and units a second of a stage that goes on, since its first unit of this run began, and what is left at that pace."""
    since = run_started if isinstance(run_started, (int, float)) else 0.0
    mine = [record for record in stage.records if record.started >= since]
    waiting = stage.units - len(stage.records)
    if not waiting:
        return None
    if not mine:
        return f"{stage.name}: {waiting:,} units left, none of this run has ended yet"
    seconds = max(now - min(record.started for record in mine), 1e-3)
    rows, units = sum(record.rows_in for record in mine) / seconds, len(mine) / seconds
    return f"{stage.name}: {rows:,.1f} rows/s, {units:,.2f} units/s, {waiting:,} units left, about {waiting / units:,.0f} s"


def follow(out: str, every_s: float = 5.0) -> None:
    """Print `describe` again whenever it has changed, until the run is no longer running."""
    shown = None
    while True:
        text = describe(out)
        if text != shown:
            print(("\n" if shown else "") + text, flush=True)
            shown = text
        if story(out).get("state") != "running":
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
    found = stages(out)
    problems = [problem for stage in found for problem in _verify_stage(out, stage)]
    if story(out).get("state") == "done":
        problems += [
            f"{storage.join(out, stage.folder)}: {len(stage.records):,} records of {stage.units:,} units, but the run is done; "
            "restore them or run again"
            for stage in found
            if len(stage.records) < stage.units
        ]
    return problems


def _verify_stage(out: str, stage: StageStatus) -> list[str]:
    problems = []
    for record in stage.records:
        for file in record.files:
            uri = storage.join(out, stage.folder, file.name)
            if not storage.exists(uri):
                problems.append(f"{uri}: is missing; move its record {record.unit}.json away and run again")
            elif storage.sha256_file(uri) != file.sha256:
                problems.append(
                    f"{uri}: sha256 differs from the record; move it and {record.unit}.json away and run again"
                )
        if record.accounted and record.rows_in != record.rows_out + sum(record.rejected.values()):
            problems.append(f"{stage.name}: unit {record.unit}: rows do not add up; restore its record")
    return problems
