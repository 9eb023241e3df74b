"""What a stage is, and how a unit of it becomes done: the commit protocol. `engine.py` carries it out on Ray.

A stage maps units (a few input files each) to committed output files. The task of a unit reads its rows, calls the stage's `work`, checks
that no row vanished, and commits:

    1. write every output under a temporary name            (a crash here leaves a file that no reader takes for data)
    2. rename it to a name that carries its content's hash  (a crash here leaves a file that no record names)
    3. write the record, unless the name is taken           (from here on the unit is done)

Done means that the record is there and matches: same input digest, same stage digest, and every file it names has its size. A stage's
folder is named by the stage digest: its settings and the content of its input. So a changed setting never meets the output of another,
one that changed no row costs its own stage only (and what is written beside it), and nothing is ever deleted that this driver did not
write.
"""

import dataclasses
import functools
import importlib.metadata
import platform
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.contracts import parquet, storage
from pipeline.contracts.at_once import at_once
from pipeline.contracts.config import Json, digest_json
from pipeline.contracts.errors import RunError
from pipeline.contracts.schema import REJECTED_SCHEMA, Reason
from pipeline.keys import take_rows
from pipeline.records import Record, read_record

REJECTED_SUFFIX = ".rejected.parquet"


@dataclasses.dataclass(frozen=True)
class Unit:
    """One piece of a stage's work. `inputs` are file names or digests that identify what it reads."""

    id: str
    inputs: tuple[str, ...] = ()
    params: Mapping[str, Json] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Result:
    """What a unit's work gives: kept rows, rejected rows (REJECTED_SCHEMA), tables beside them by suffix, and notes for the record."""

    rows: pa.Table
    rejected: pa.Table | None = None
    beside: Mapping[str, pa.Table] = dataclasses.field(default_factory=dict)
    notes: Mapping[str, Json] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Stage:
    """A named step. `read` gets a unit's rows, `work` turns them into a Result; both run on a worker and are pure.

    digest: over the stage's semantic keys, the roots of its inputs and its format version (see `stage_digest`).
    accounted: rows in = rows out + rejected is checked. Off for steps whose rows are no pairs (blocks, counts).
    row_wise: each output row depends on one input row, so that a crashing unit can be cut in two. There are no tables beside the rows, and
    both tables are committed in the order of `in_order`, whatever the order that `work` gave them.
    partitioned: rows carry an int32 column `partition`, sorted; each partition starts a row group of its own.
    """

    name: str
    digest: str
    read: Callable[[Unit], pa.Table]
    work: Callable[[pa.Table, Unit], Result]
    accounted: bool = True
    row_wise: bool = False
    partitioned: bool = False


def stage_digest(name: str, version: int, config: Json, inputs: Sequence[str]) -> str:
    """The digest that names a stage's folder: its format version, its semantic configuration, the roots of its inputs."""
    return digest_json({"stage": name, "version": version, "config": config, "inputs": list(inputs)})


def stage_folder(out: str, stage: Stage) -> str:
    """`out`/NAME/DIGEST: a changed digest is another folder."""
    return storage.join(out, stage.name, stage.digest[:12])


def input_digest(unit: Unit) -> str:
    """Files by their names without folders: of what a stage committed the name has the content's hash, and the folder only tells which
    settings made it. A name that tells no content (a source's) stands beside a digest that does."""
    return digest_json([unit.id, [storage.name(name) for name in unit.inputs], dict(unit.params)])


# ---- what is done


def matching_records(folder: str, digest: str, units: Sequence[Unit]) -> dict[str, Record]:
    """The records in `folder` that say one of `units` is done: same digests, and every named file has its size.

    Records of version 2 digested the folders of what they read, which may have changed since; of these the stage's digest and the unit's
    name must tell what was read.
    """
    present = storage.sizes(folder)
    wanted = {unit.id: input_digest(unit) for unit in units}
    names = [f"{unit}.json" for unit in wanted if f"{unit}.json" in present]
    records = at_once(lambda name: read_record(storage.join(folder, name)), names)
    return {
        record.unit: record
        for record in records
        if record.stage_digest == digest
        and (record.version == 2 or record.input_digest == wanted[record.unit])
        and all(present.get(file.name) == file.bytes for file in record.files)
    }


# ---- becoming done


def commit(
    stage: Stage, folder: str, unit: Unit, owner: dict[str, Json], rows_in: int, result: Result, began: float
) -> tuple[Record, bool]:
    """Commit a unit's result (the three steps above); returns the record that stands and whether it is ours.

    `began` is of time.monotonic(), because the machine's clock may be set while a unit runs. Raises RunError when rows were neither kept
    nor rejected: nothing is committed then.
    """
    rejected = result.rejected if result.rejected is not None else REJECTED_SCHEMA.empty_table()
    if stage.row_wise:
        rows = in_order(result.rows, "partition", "uid")
        result, rejected = dataclasses.replace(result, rows=rows), in_order(rejected, "reason", "uid", "source")
    by_reason = _count_reasons(rejected)
    if stage.accounted and rows_in != result.rows.num_rows + rejected.num_rows:
        raise RunError(
            f"{stage.name}: unit {unit.id}: {rows_in:,} rows in, {result.rows.num_rows:,} out and {rejected.num_rows:,} rejected "
            "do not add up; this is a bug of the stage, nothing was committed"
        )
    boundaries = _partition_starts(result.rows) if stage.partitioned else ()
    output = parquet.commit(result.rows, folder, unit.id, boundaries=boundaries)
    rejected_file = parquet.commit(rejected, folder, unit.id, suffix=REJECTED_SUFFIX) if rejected.num_rows else None
    beside = {suffix: parquet.commit(table, folder, unit.id, suffix=suffix) for suffix, table in result.beside.items()}
    seconds = time.monotonic() - began
    record = Record(
        stage=stage.name,
        unit=unit.id,
        stage_digest=stage.digest,
        accounted=stage.accounted,
        input_digest=input_digest(unit),
        rows_in=rows_in,
        rows_out=result.rows.num_rows,
        rejected=by_reason,
        output=output,
        rejected_file=rejected_file,
        beside=beside,
        notes=dict(result.notes),
        owner=owner,
        started=time.time() - seconds,
        seconds=seconds,
        versions=_versions(),
    )
    uri = storage.join(folder, f"{unit.id}.json")
    if storage.put_if_absent(uri, (record.model_dump_json(indent=1) + "\n").encode()):
        return record, True
    return read_record(uri), False


@functools.cache
def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), "pyarrow": pa.__version__, "ray": importlib.metadata.version("ray")}


def in_order(table: pa.Table, *keys: str) -> pa.Table:
    """Rows by those of the keys that the table has, nulls last; rows with equal keys stay in their order.

    A row-wise stage keeps the order of its input among equals. So the parts of a cut unit, put together and sorted like this, are what the
    whole unit gives.
    """
    present = [(key, "ascending") for key in keys if key in table.column_names]
    if not present or table.num_rows < 2:
        return table
    order = pc.sort_indices(table, sort_keys=present)
    if order.equals(pa.array(range(table.num_rows), order.type)):
        return table
    return take_rows(table, order.to_numpy().astype(np.int64))


def _count_reasons(rejected: pa.Table) -> dict[str, int]:
    counted = pc.value_counts(rejected["reason"].combine_chunks()).to_pylist()
    known = {reason.value for reason in Reason}
    unknown = sorted({entry["values"] for entry in counted} - known)
    if unknown:
        raise RunError(
            f"rejection reasons {unknown!r} are not in the closed list of contracts.schema.Reason; this is a bug"
        )
    return {entry["values"]: entry["counts"] for entry in sorted(counted, key=lambda entry: str(entry["values"]))}


def _partition_starts(table: pa.Table) -> list[int]:
    partitions = table["partition"].to_numpy()
    return [int(row) + 1 for row in (partitions[1:] != partitions[:-1]).nonzero()[0]]
