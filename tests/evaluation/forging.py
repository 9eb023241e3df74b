"""What a forger would do to the tables and figures of a report."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from evaluation.report import files
from pipeline.contracts import parquet

Change = Callable[[pa.Table], pa.Table]


def with_value(eval_id: str, column: str, value: object) -> Change:
    """The same table but for one value of one example."""

    def change(table: pa.Table) -> pa.Table:
        rows = [row | {column: value} if row["eval_id"] == eval_id else row for row in table.to_pylist()]
        return pa.Table.from_pylist(rows, table.schema)

    return change


def stated(key: str, value: str) -> Change:
    """The same table with one thing said otherwise in its metadata."""
    return lambda table: table.replace_schema_metadata({**(table.schema.metadata or {}), key.encode(): value})


def restate(report: Any, path: Sequence[str | int], value: object) -> None:
    """Put another value at a place of report.json; that it is another one is asserted."""
    for key in path[:-1]:
        report = report[key]
    assert report[path[-1]] != value
    report[path[-1]] = value


def reseal(folder: Path) -> None:
    """Every hash of the manifest as the files now are."""
    seal = files.read_seal(str(folder))
    inside = {one: (folder / one).read_bytes() for one in seal.files}
    (folder / "manifest.json").write_bytes(files.seal(inside, seal.inputs))


def replace(folder: Path, name: str, change: Change) -> None:
    """Another table in its place, written as the job writes them."""
    (folder / name).write_bytes(files.table_bytes(change(parquet.read(str(folder / name)))))
    reseal(folder)
