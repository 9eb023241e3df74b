"""What a driver leaves behind: the commit record of a unit, which `commit` writes last of all and which resuming, `status` and `verify`
believe; run.json, the story of the last driver; who an owner is, that both name; and which stages there are."""

import collections
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Final, Literal

import pydantic

from pipeline.contracts import storage
from pipeline.contracts.config import Json, StrictModel, digest_json
from pipeline.contracts.errors import InputError, RunError
from pipeline.contracts.manifest import StageCounts
from pipeline.contracts.parquet import TableFile

STAGES = (
    "candidates",
    "exact",
    "filter",
    "exact-url",
    "exact-caption",
    "precap",
    "crawl",
    "policy",
    "exact-source",
    "dedup",
    "balance",
    "shards",
)
"""The stages of the pipeline whose rows are pairs, in order: each takes what the one before it left, and has its line in the manifest."""
RECORD_VERSION: Final = 3
"""2: without the row groups of the files. 3: input_digest without folders."""


class Record(StrictModel):
    """The commit record of a unit: written last, conditionally, and never changed."""

    version: Literal[2, 3] = RECORD_VERSION
    stage: str
    unit: str
    stage_digest: str
    accounted: bool
    input_digest: str
    rows_in: int
    rows_out: int
    rejected: dict[str, int]
    output: TableFile
    rejected_file: TableFile | None
    beside: dict[str, TableFile]
    notes: dict[str, Json]
    owner: dict[str, Json]
    started: float
    seconds: float
    versions: dict[str, str]

    @property
    def files(self) -> list[TableFile]:
        return [self.output, *([self.rejected_file] if self.rejected_file else []), *self.beside.values()]


def output_root(records: Sequence[Record]) -> str:
    """One digest over what a stage committed; the input root of the next stage. It holds no place and no time."""
    return digest_json([[record.unit, *(file.sha256 for file in record.files)] for record in records])


def read_record(uri: str) -> Record:
    """A commit record. Raises RunError when it is damaged."""
    try:
        return Record.model_validate_json(storage.read_bytes(uri))
    except pydantic.ValidationError:
        raise RunError(f"{uri}: not a commit record of this version; move it away and run again") from None


# ---- run.json


class StageEntry(pydantic.BaseModel):
    """A stage in run.json: its folder relative to the output, its units, and whether all of them have ended (`done`)."""

    name: str
    folder: str
    units: int
    done: bool = False


def read_story(uri: str) -> dict[str, Json]:
    """What run.json says. Raises InputError when it is damaged."""
    try:
        return pydantic.TypeAdapter(dict[str, Json]).validate_json(storage.read_bytes(uri))
    except pydantic.ValidationError:
        raise InputError(f"{uri}: is damaged, no JSON object; move it away and run the pipeline again") from None


def stage_entries(uri: str, story: Mapping[str, Json]) -> tuple[list[StageEntry], list[StageEntry]]:
    """Of run.json at `uri`: the stages of the last run, and those of earlier runs that it has not reached, both in order.

    Raises InputError when they are damaged.
    """
    entries = pydantic.TypeAdapter(list[StageEntry])
    try:
        return entries.validate_python(story.get("stages")), entries.validate_python(story.get("earlier", []))
    except pydantic.ValidationError:
        raise InputError(f"{uri}: is damaged, no list of stages; move it away and run the pipeline again") from None


# ---- who is the owner


def this_process() -> dict[str, Json]:
    """This process as the owner of what it writes."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": start_ticks(os.getpid())}


def start_ticks(pid: int) -> str | None:
    """When a process started, as /proc tells (field 22 of proc(5) stat); tells a process from a later one with its number.

    None when it is gone, or has ended and only waits for its parent to ask how (Z, X).
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as source:
            fields = source.read().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X", "x") else fields[19]


def is_here(owner: Mapping[str, Json]) -> bool:
    """Whether an owner is a process of this machine, of which we can know whether it lives."""
    return owner.get("host") == socket.gethostname()


def has_died(owner: Mapping[str, Json]) -> bool:
    """Whether an owner was a process of this machine that is gone. Of another machine we cannot know: not dead."""
    pid = owner.get("pid")
    return is_here(owner) and isinstance(pid, int) and start_ticks(pid) != owner.get("started")


# ---- counts


def count_rows(records: Sequence[Record]) -> StageCounts:
    """The accounting of a stage: the sum over its units."""
    rejected: dict[str, int] = {}
    for record in records:
        for reason, rows in record.rejected.items():
            rejected[reason] = rejected.get(reason, 0) + rows
    return StageCounts(
        rows_in=sum(record.rows_in for record in records),
        rows_out=sum(record.rows_out for record in records),
        rejected=dict(sorted(rejected.items())),
    )


def taken_up(records: Sequence[Record]) -> dict[str, int]:
    """The rejected rows that a generation of a crawl fetches again, by the reason they had; `records` are those of its `retry-N-rows`."""
    counts: collections.Counter[str] = collections.Counter()
    for record in records:
        noted = record.notes["taken_up"]
        assert isinstance(noted, dict)
        counts.update({reason: rows for reason, rows in noted.items() if isinstance(rows, int)})
    return dict(counts)


def with_generation(before: StageCounts, taken: Mapping[str, int], again: StageCounts) -> StageCounts:
    """The accounting of a crawl with one more generation: every row is counted once, by its last verdict."""
    rejected = collections.Counter(before.rejected)
    rejected.subtract(taken)
    rejected.update(again.rejected)
    return StageCounts(
        rows_in=before.rows_in,
        rows_out=before.rows_out + again.rows_out,
        rejected={reason: rows for reason, rows in sorted(rejected.items()) if rows},
    )
