"""The commit record of a unit: what `engine` writes last of all, and what resuming, `status` and `verify` believe. And run.json."""

from collections.abc import Sequence

import pydantic

from pipeline.contracts import storage
from pipeline.contracts.config import Json, StrictModel, digest_json
from pipeline.contracts.errors import InputError, RunError
from pipeline.contracts.manifest import StageCounts
from pipeline.contracts.parquet import TableFile

RECORD_VERSION = 1


class Record(StrictModel):
    """The commit record of a unit: written last, conditionally, and never changed."""

    version: int = RECORD_VERSION
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


def read_story(uri: str) -> dict[str, Json]:
    """What run.json says. Raises InputError when it is damaged."""
    try:
        return pydantic.TypeAdapter(dict[str, Json]).validate_json(storage.read_bytes(uri))
    except pydantic.ValidationError:
        raise InputError(f"{uri}: is damaged, no JSON object; move it away and run the pipeline again") from None


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
