"""The files of a report: written by name and content, sealed by a manifest that is written last.

`manifest.json` names every file with its sha256 and size and the inputs with their digests, and carries a digest over itself. It is the
commit: a folder without it is no report. Nothing in these files depends on time, place or worker count, so writing the same report again
gives the same bytes, and a run that was killed between two files is completed by the next one.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from typing import Annotated, cast

import numpy as np
import pyarrow as pa
import pydantic
from numpy.typing import NDArray
from pydantic import Field

from evaluation.overlap.tables import KEY, MATCHED_SCHEMA
from evaluation.report.schema import SCHEMA_NAME, SCHEMA_VERSION, Report
from pipeline.content.labelled import SET_NAME
from pipeline.contracts import parquet, storage
from pipeline.contracts.config import Json, StrictModel, digest_json
from pipeline.contracts.errors import InputError

MANIFEST = "manifest.json"
REPORT = "report.json"
PAGE = "report.html"
PAIRS = "pairs.parquet"
NEAREST = "nearest.parquet"
COPIES = "copies.parquet"
LABELS = "labels.parquet"
TEXT_PAIRS = "text_pairs.parquet"
CLASSES = "classes.parquet"
ROW_GROUPS = "row_groups.parquet"
SUMMARY = "summary.csv"
REMOVAL = "removal_ids.txt"
REMOVAL_TEXT = "removal_ids_text.txt"
SCHEMA = "report.schema.json"


FIXED = (
    PAGE,
    REPORT,
    SCHEMA,
    SUMMARY,
    PAIRS,
    NEAREST,
    COPIES,
    LABELS,
    TEXT_PAIRS,
    CLASSES,
    ROW_GROUPS,
    REMOVAL,
    REMOVAL_TEXT,
)
"""What every report has; beside these, a split table per set, the predictions of each scored one, and nothing else."""

_FILE_NAME = rf"^(?:{'|'.join(re.escape(name) for name in FIXED)}|(?:splits|predictions)/{SET_NAME[1:-1]}\.parquet)$"


class FileEntry(StrictModel):
    """One sealed file."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int


class Seal(StrictModel):
    """manifest.json. `digest` covers everything else in it.

    A report may come from a stranger: a name that no report has is refused before it becomes a path.
    """

    kind: str
    version: int
    inputs: dict[str, Json]
    files: dict[Annotated[str, Field(pattern=_FILE_NAME)], FileEntry]
    digest: str


def split_name(set_name: str) -> str:
    """The file of one set's split table."""
    return f"splits/{set_name}.parquet"


def predictions_name(set_name: str) -> str:
    """The copy of the predictions that one set was scored by."""
    return f"predictions/{set_name}.parquet"


def table_bytes(table: pa.Table) -> bytes:
    """A table as Parquet, written by the one writer of the house (same rows, same bytes)."""
    temporary = tempfile.gettempdir()
    with (
        storage.plain_errors(temporary, "write to"),
        tempfile.TemporaryDirectory(prefix="report-", dir=temporary) as folder,
    ):
        place = os.path.join(folder, "table.parquet")
        parquet.write(table, place)
        return storage.read_bytes(place, limit=1 << 40)


def matched_rows(tables: Iterable[pa.Table], kind: str) -> pa.Table:
    """MATCHED_SCHEMA rows (with the key) of all units, with the columns that name a row of such a corpus, and no others."""
    names = _names_of_rows(kind)
    empty = MATCHED_SCHEMA.append(KEY).empty_table()
    return pa.concat_tables(table.select(names) for table in itertools.chain([empty], tables))


def _names_of_rows(kind: str) -> list[str]:
    return ["uid"] if kind == "shards" else ["shard", "row", "key"]


def removal_bytes(rows: pa.Table, kind: str, without: pa.Table | None = None) -> bytes:
    """removal_ids.txt: which rows to take out of the corpus, sorted, each once; less those of `without` (both come from `matched_rows`).

    Of a corpus of this project their uids, one a line, as `pipeline exclude --ids` takes them; of another one the file, the row in it and
    the corpus's own name for it (empty where it has none), separated by tabs. The corpus may have millions of them: they stay columns.
    """
    if kind == "shards":
        mine, theirs = (_uids(rows["uid"]), _uids(without["uid"] if without is not None else rows["uid"].slice(0, 0)))
        left = np.setdiff1d(mine, theirs)  # sorted, each once
        lines = np.empty((len(left), 33), np.uint8)
        lines[:, :32] = _HEX[left.view(np.uint8)].reshape(-1, 32)
        lines[:, 32] = ord("\n")
        return lines.tobytes()
    names, place = _names_of_rows(kind), ["shard", "row"]
    rows = rows.group_by(names).aggregate([])
    if without is not None:
        rows = rows.join(without.select(place).group_by(place).aggregate([]), keys=place, join_type="left anti")
    rows = rows.sort_by([(name, "ascending") for name in place])
    columns = (rows[name].to_pylist() for name in names)
    return "".join(f"{shard}\t{row}\t{key or ''}\n" for shard, row, key in zip(*columns, strict=True)).encode()


_HEX = np.array([list(b"%02x" % value) for value in range(256)], np.uint8)


def _uids(column: pa.ChunkedArray) -> NDArray[np.bytes_]:
    """Arrow's own memory, where it is one chunk; bytes16[n]."""
    whole = column.combine_chunks()
    data = whole.buffers()[1] if len(whole) else None
    return np.empty(0, "S16") if data is None else np.frombuffer(data, "S16")[whole.offset : whole.offset + len(whole)]


def canonical(value: Json) -> bytes:
    """JSON for people and for hashes: two-space indent, sorted keys, every digit of a number."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def report_bytes(report: Report) -> bytes:
    """report.json."""
    return canonical(report.model_dump(mode="json"))


def schema_bytes() -> bytes:
    """The JSON Schema of report.json."""
    return canonical({"$schema": "https://json-schema.org/draft/2020-12/schema", **Report.model_json_schema()})


def seal(files: Mapping[str, bytes], inputs: Mapping[str, Json]) -> bytes:
    """The manifest of `files`."""
    body: dict[str, Json] = {
        "kind": SCHEMA_NAME,
        "version": SCHEMA_VERSION,
        "inputs": dict(inputs),
        "files": {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in files.items()
        },
    }
    return canonical({**body, "digest": digest_json(body)})


def check_free(folder: str, inputs: Mapping[str, Json]) -> None:
    """Refuse a folder that already holds a report about other inputs, for evidence is not overwritten, or files of no report, which
    `verify` would find there for ever. What a killed job has published of these sets without its manifest is no obstacle."""
    place = storage.join(folder, MANIFEST)
    if not storage.exists(place):
        inside = folder.rstrip("/") + "/"
        there = (uri.removeprefix(inside) for uri in storage.list_files(folder, recursive=True))
        sets, scored = (cast(Mapping[str, Json], inputs[name]) for name in ("sets", "predictions"))
        own = {*FIXED, *map(split_name, sets), *map(predictions_name, scored)}
        stranger = next((name for name in there if name not in own), None)
        if stranger is not None:
            raise InputError(
                f"report.dir: {folder!r} holds {stranger!r}, which this report will not have; give it a folder of its own"
            )
        return
    before = read_seal(folder)
    names = {*before.inputs, *inputs} - {"config"}  # it has a digest
    changed = sorted(name for name in names if before.inputs.get(name) != inputs.get(name))
    if changed:
        raise InputError(
            f"report.dir: {folder!r} already holds a report with another {', '.join(changed)}; give a new report.dir"
        )


def publish(folder: str, files: Mapping[str, bytes], inputs: Mapping[str, Json]) -> None:
    """Write every file atomically, the manifest last."""
    for name in sorted(files):
        storage.write_atomic(storage.join(folder, name), files[name])
    storage.write_atomic(storage.join(folder, MANIFEST), seal(files, inputs))


def read_seal(folder: str) -> Seal:
    """The manifest of a report; InputError when there is none or it is not ours."""
    place = storage.join(folder, MANIFEST)
    if not storage.exists(place):
        raise InputError(
            f"{folder}: no {MANIFEST}, so no finished report is here; run `python -m evaluation overlap` again"
        )
    try:
        found = Seal.model_validate_json(storage.read_bytes(place))
    except pydantic.ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"] if part != "[key]") or "the file"
        raise InputError(
            f"{place}: not the manifest of a report ({where!r}: {problem['msg']}); write the report again in a new folder"
        ) from None
    if found.kind != SCHEMA_NAME or found.version != SCHEMA_VERSION:
        raise InputError(
            f"{place}: kind {found.kind!r} version {found.version!r}, this program reads {SCHEMA_NAME!r} version "
            f"{SCHEMA_VERSION}; use the matching release"
        )
    return found


def read_report(folder: str) -> Report:
    """report.json of a finished report. Raises InputError when it is missing, damaged, of another version, or not what was sealed."""
    seal, place = read_seal(folder), storage.join(folder, REPORT)
    if not storage.exists(place):
        raise InputError(f"{folder}: no {REPORT}; give the folder that `python -m evaluation overlap` wrote")
    data = storage.read_bytes(place)
    if REPORT not in seal.files or seal.files[REPORT].sha256 != hashlib.sha256(data).hexdigest():
        raise InputError(
            f"{place}: sha256 differs from the manifest; restore it, or run `python -m evaluation overlap` again"
        )
    try:
        return Report.model_validate_json(data)
    except pydantic.ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"]) or "the file"
        raise InputError(
            f"{place}: {where}: {problem['msg']}; restore it, or run `python -m evaluation overlap` again"
        ) from None
