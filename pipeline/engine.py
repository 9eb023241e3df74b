"""Units → Ray tasks → commit records: the one door to ray.

`Run.stage` gives each unit of a stage that is not yet done to a Ray task, which does the work and commits (`commit.py` says how). The same
command again therefore resumes.

Two drivers on one output: the record is a conditional put. Who comes second finds the other's record and stops, naming its owner, unless
that owner was a driver on this machine that has died (its last task may outlive it by a moment): then the record stands.

Crashes. A task that takes its worker process with it (a decoder's segmentation fault, the memory limit) is tried a second time. A row-wise
unit that fails twice is cut in halves, each in a worker of its own, until the row that does it stands alone; when that row ends its worker
twice, it is rejected as `decoder_crashed`. The others are kept, and committed in the order of an undisturbed run (`in_order`), so that
a worker that died for another reason leaves no trace. A task that was lost with its node says nothing about its rows: it is tried again.

Why plain Ray tasks and not Ray Data for the units: the driver must learn which unit took a worker down (Ray Data retries blocks inside
and then fails the whole dataset), and a unit's record must be written by the task that did the work. It is also cheaper: a pass over
32 units that do nothing takes a fifth of a Ray Data pass, commits included (tests/benchmarks/engine_overhead.py).
"""

import contextlib
import dataclasses
import functools
import itertools
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import pyarrow as pa
import pydantic
import ray
import ray.exceptions

from pipeline.commit import Result, Stage, Unit, commit, matching_records, stage_folder
from pipeline.contracts import ray_start, storage
from pipeline.contracts.cli import INTERRUPTED, Progress
from pipeline.contracts.config import Json, StrictModel, not_semantic
from pipeline.contracts.errors import HouseError, RunError
from pipeline.contracts.schema import Reason, rejected_rows
from pipeline.interrupts import Interrupts
from pipeline.records import (
    Record,
    StageEntry,
    has_died,
    is_here,
    read_story,
    stage_entries,
    this_process,
)

Item = TypeVar("Item")
Value = TypeVar("Value")

log = logging.getLogger("pipeline")


class EngineConfig(StrictModel):
    """Where and how widely the units run. None of it changes a result."""

    address: str | None = not_semantic(
        None, description="a running Ray cluster; unset: the one this job is in, else a local one"
    )
    workers: int | None = not_semantic(
        None, ge=1, description="units at a time; unset: one for each CPU of the cluster"
    )


# ---- the driver's side


class Run:
    """A driver: Ray connected, `run.json` kept up to date, stages run one after the other. Use as a context manager.

    run.json tells of the stages of this run and, under `earlier`, of those that runs of the same configuration did before it and that it
    has not reached: their records are as good as they were. They stay until a stage turns out to have another folder than before, so other
    input: what came after it then is no longer what comes of it.
    """

    def __init__(self, out: str, engine: EngineConfig, config: Mapping[str, Json], config_digest: str) -> None:
        self.out = out.rstrip("/")
        self._engine = engine
        self._owner = this_process()
        self._stages: list[StageEntry] = []
        self._earlier: list[StageEntry] = []
        self._cpus, self._cpus_read = 0, -_POLL_S
        self._is_ours = False
        self._story: dict[str, Json] = {
            "state": "running",
            "exit_code": None,
            "error": None,
            "config": dict(config),
            "config_digest": config_digest,
            "owner": self._owner,
            "started": time.time(),
            "ended": None,
        }

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as entered:
            entered.enter_context(Interrupts(last_words=self._last_words))
            storage.make_folder(self.out)
            self._take_over()
            self._is_ours = True
            self._tell()
            entered.push(self._end)
            storage.abort_uploads(self.out)
            connect(self._engine)
            self._entered = entered.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entered.__exit__(kind, error, trace)

    def _end(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Let run.json tell how it ended."""
        interrupted = isinstance(error, KeyboardInterrupt)
        code = 0 if error is None else error.exit_code if isinstance(error, HouseError) else 130 if interrupted else 1
        said = INTERRUPTED if interrupted else f"{type(error).__name__}: {error}"
        self._story |= {
            "state": "done" if error is None else "failed",
            "exit_code": code,
            "error": None if error is None else said,
            "ended": time.time(),
        }
        try:
            self._tell()
        except HouseError as untold:
            if error is None:
                raise
            log.warning("%s", untold)  # beside what ended the run, the same full disk perhaps

    def _last_words(self) -> None:
        """Those of a driver that is ended amid its work. As long as it has not taken over, run.json may be another's."""
        if self._is_ours:
            self._end(KeyboardInterrupt, KeyboardInterrupt(), None)

    def _take_over(self) -> None:
        """Look at the run.json of the driver before, and keep what it tells of stages with this configuration.

        Raises RunError when that driver lives: the early answer to a second one on this machine. Across machines the conditional put of
        the first record tells.
        """
        place = storage.join(self.out, "run.json")
        if not storage.exists(place):
            return
        story = read_story(place)
        owner = story.get("owner")
        alive = isinstance(owner, dict) and is_here(owner) and not has_died(owner)
        if story.get("state") == "running" and isinstance(owner, dict) and alive and owner != self._owner:
            raise RunError(
                f"{place}: process {owner.get('pid')} is writing to this output; wait for it or stop it, then run again"
            )
        if story.get("config_digest") == self._story["config_digest"]:
            self._earlier = list(itertools.chain(*stage_entries(place, story)))

    def _tell(self) -> None:
        told = {"stages": self._stages, "earlier": self._earlier}
        entries: dict[str, Json] = {key: [entry.model_dump() for entry in value] for key, value in told.items()}
        storage.write_atomic(storage.join(self.out, "run.json"), _json(self._story | entries))

    def _reach(self, entry: StageEntry) -> None:
        """Tell of a stage that begins, and no longer of what an earlier run did there."""
        folders = [earlier.folder for earlier in self._earlier]
        if entry.folder in folders:
            place = folders.index(entry.folder)
            entry.done = self._earlier[place].done
            self._earlier = self._earlier[place + 1 :]
        elif entry.name in (earlier.name for earlier in self._earlier):
            self._earlier = []
        self._stages.append(entry)
        self._tell()

    def stage(self, stage: Stage, units: Sequence[Unit]) -> list[Record]:
        """Run what is not done yet; returns the records of all units in the order given."""
        folder = stage_folder(self.out, stage)
        entry = StageEntry(name=stage.name, folder=storage.join(stage.name, stage.digest[:12]), units=len(units))
        self._reach(entry)
        storage.make_folder(folder)
        done = matching_records(folder, stage.digest, units)
        todo = [unit for unit in units if unit.id not in done]
        with Progress(len(units), "units", stage.name, initial=len(done), summary=stage.accounted) as progress:
            for record in done.values():
                progress.update(0, **_shown(record))
            for record in self._run_units(stage, folder, todo, progress.tick):
                done[record.unit] = record
                progress.update(1, **_shown(record))
        entry.done = True  # run.json tells it with the next stage, or at the end
        return [done[unit.id] for unit in units]

    def map(self, function: Callable[[Item], Value], items: Sequence[Item]) -> list[Value]:
        """`function` of each item on the workers, in order; for small facts that need no commit record."""
        references: list[Any] = []
        open_tasks: list[Any] = []
        for item in items:
            while len(open_tasks) >= self._limit():
                _, open_tasks = ray.wait(open_tasks, num_returns=1, timeout=_POLL_S)
            references.append(_apply.remote(functools.partial(function, item)))
            open_tasks.append(references[-1])
        try:
            return [_get(reference) for reference in references]
        except _LOST as error:
            raise _lost_too_often("a small task", error) from None

    def _limit(self) -> int:
        """Tasks in flight: engine.workers, else the cluster's CPUs as of this second and a few that wait, which an autoscaler sees."""
        if self._engine.workers:
            return self._engine.workers
        if time.monotonic() - self._cpus_read >= _POLL_S:
            self._cpus_read, self._cpus = time.monotonic(), int(_cluster_resources().get("CPU", 0))
        return self._cpus + _WAITING

    def _run_units(self, stage: Stage, folder: str, units: Sequence[Unit], tick: Callable[[], None]) -> Any:
        """Yield records as units finish, with a bounded number of tasks submitted; `tick` is called after each wait for them."""
        shared = ray.put(stage)
        waiting = list(reversed(units))
        running: dict[Any, Unit] = {}
        losses = {unit.id: _Losses() for unit in units}
        while waiting or running:
            while waiting and len(running) < self._limit():
                unit = waiting.pop()
                running[_run_unit.remote(shared, folder, unit, self._owner)] = unit
            finished, _ = ray.wait(list(running), num_returns=1, timeout=_POLL_S)
            tick()
            for reference in finished:
                unit = running.pop(reference)
                try:
                    yield self._settle(stage, folder, unit, *_get(reference))
                except _LOST as error:
                    log.warning("%s: unit %s lost its worker (%s)", stage.name, unit.id, type(error).__name__)
                    if not losses[unit.id].convicted(f"{stage.name}: unit {unit.id}", error):
                        waiting.append(unit)
                    elif stage.row_wise:
                        yield self._settle(stage, folder, unit, *self._bisect(stage, shared, folder, unit))
                    else:
                        raise RunError(
                            f"{stage.name}: unit {unit.id} ended its worker twice ({type(error).__name__}); "
                            "give the workers more memory, or run again with engine.workers=1"
                        ) from None

    def _settle(self, stage: Stage, folder: str, unit: Unit, record: Record, committed: bool) -> Record:
        """Accept the record that a task came back with: its own, or the one that was there first."""
        if committed:
            return record
        place = f"{storage.join(folder, record.unit)}.json"
        if record.owner != self._owner and not has_died(record.owner):
            raise RunError(
                f"{place}: another driver is writing to this output: process {record.owner['pid']} on "
                f"{record.owner['host']!r}; stop one of the two, then run the same command again"
            )
        if not matching_records(folder, stage.digest, [unit]):
            raise RunError(
                f"{place}: was made of other input, or names a file that is missing or has another size; "
                "move this record away and run again"
            )
        return record

    def _bisect(self, stage: Stage, shared: Any, folder: str, unit: Unit) -> tuple[Record, bool]:
        """Find the rows of a unit that end their worker, and commit the unit without them.

        The parts lie in the memory of the nodes that made them. When one is gone before the commit, all of them are made again.
        """
        losses, label = _Losses(), f"{stage.name}: unit {unit.id}"
        while True:
            try:
                crashed, parts = self._cut(label, shared, unit)
                committing = _commit_parts.remote(shared, folder, unit, self._owner, crashed, *parts)
                committed: tuple[Record, bool] = _get(committing)
            except _LOST as error:
                log.warning("%s: lost while it was put together (%s)", label, type(error).__name__)
                if losses.convicted(label, error):
                    raise _lost_too_often(label, error) from None
            else:
                log.warning("%s: %d rows end their worker; they are rejected", label, len(crashed))
                return committed

    def _cut(self, label: str, shared: Any, unit: Unit) -> tuple[list[int], list[Any]]:
        """The rows that ended their worker twice on their own, and what came of the slices between them, in their order."""
        parts: dict[int, Any] = {}
        crashed = []
        pieces = [(0, _get(_count_rows.remote(shared, unit)), _Losses())]
        while pieces:
            start, stop, losses = pieces.pop()
            both: Any = _run_slice.remote(shared, unit, start, stop)
            result, ended = both
            try:
                _get(ended)
                parts[start] = result
            except _LOST as error:
                convicted = losses.convicted(label, error)
                if stop - start > 1 and isinstance(error, _CRASHED):
                    middle = (start + stop) // 2
                    pieces += [(middle, stop, _Losses()), (start, middle, _Losses())]
                elif convicted:
                    crashed.append(start)
                else:
                    pieces.append((start, stop, losses))
        return crashed, [parts[start] for start in sorted(parts)]


@dataclasses.dataclass
class _Losses:
    """How often a task was lost: with its worker, which its rows may have ended, or with a node or an object, which they cannot."""

    crashes: int = 0
    others: int = 0

    def convicted(self, label: str, error: Exception) -> bool:
        """Count a loss; True when the task has ended its worker twice. Raises RunError when the cluster loses it again and again."""
        self.crashes += isinstance(error, _CRASHED)
        self.others += not isinstance(error, _CRASHED)
        if self.others > _PATIENCE:
            raise _lost_too_often(label, error) from None
        return self.crashes >= 2


def _lost_too_often(label: str, error: Exception) -> RunError:
    said = type(error).__name__
    return RunError(f"{label} was lost again and again ({said}); see to the cluster's nodes and memory, then run again")


def _get(reference: Any) -> Any:
    """What a task returned. The user's mistake comes out as itself; everything else as Ray tells it, with the worker's traceback."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, HouseError) else error) from None


def _cluster_resources() -> dict[str, float]:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources


_CRASHED = (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError)
"""What Ray raises when a task's process ended, perhaps because of what it read."""
_LOST = (*_CRASHED, ray.exceptions.NodeDiedError, ray.exceptions.ObjectLostError)
"""What Ray raises when a task's process, node or result went away, as opposed to an exception in the task."""
_PATIENCE = 3  # losses of one task that are not its own doing
_POLL_S = 1.0  # how old what we know of the cluster's CPUs may be
_WAITING = 2  # tasks submitted beyond the CPUs


def connect(engine: EngineConfig) -> None:
    """Connect to Ray: the given cluster, the one that this job was submitted to, or a local one of its own."""
    # The first unit that fails is told of, and ends the run; Ray would add a traceback of each that fails beside it.
    os.environ["RAY_IGNORE_UNHANDLED_ERRORS"] = "1"
    if ray.is_initialized():
        return
    place = "engine.address" if engine.address else "RAY_ADDRESS, because engine.address is unset"
    address = engine.address or os.environ.get("RAY_ADDRESS") or None
    ray_start.connect(address, place, dashboard=None if address else False)


def _shown(record: Record) -> dict[str, int]:
    return {
        "in": record.rows_in,
        "out": record.rows_out,
        **({"rejected": sum(record.rejected.values())} if record.rejected else {}),
    }


def _json(value: Json) -> bytes:
    return pydantic.TypeAdapter(Json).dump_json(value, indent=1) + b"\n"


# ---- the worker's side


@ray.remote(num_cpus=1)
def _apply(call: Callable[[], Any]) -> Any:
    return call()


@ray.remote(num_cpus=1, max_retries=0)
def _run_unit(stage: Stage, folder: str, unit: Unit, owner: dict[str, Json]) -> tuple[Record, bool]:
    began = time.monotonic()
    table = stage.read(unit)
    return commit(stage, folder, unit, owner, table.num_rows, stage.work(table, unit), began)


@ray.remote(num_cpus=1, max_retries=0)
def _count_rows(stage: Stage, unit: Unit) -> int:
    rows: int = stage.read(unit).num_rows
    return rows


@ray.remote(num_cpus=1, max_retries=0, num_returns=2)
def _run_slice(stage: Stage, unit: Unit, start: int, stop: int) -> tuple[Result, None]:
    """The slice's result, and nothing beside it: the driver learns from the second whether it ended well, and leaves the rows alone."""
    return stage.work(stage.read(unit).slice(start, stop - start), unit), None


@ray.remote(num_cpus=1, max_retries=0)
def _commit_parts(
    stage: Stage, folder: str, unit: Unit, owner: dict[str, Json], crashed: list[int], *parts: Result
) -> tuple[Record, bool]:
    began = time.monotonic()
    table = stage.read(unit)
    lost = rejected_rows(
        table.take(pa.array(crashed, pa.int64())), Reason.DECODER_CRASHED, "this row ended its worker process twice"
    )
    rows = pa.concat_tables([part.rows for part in parts]) if parts else stage.work(table.slice(0, 0), unit).rows
    rejected = pa.concat_tables([*(part.rejected for part in parts if part.rejected is not None), lost])
    return commit(stage, folder, unit, owner, table.num_rows, Result(rows, rejected), began)
