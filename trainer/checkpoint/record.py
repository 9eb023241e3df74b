"""What a checkpoint says about itself: checkpoint.json, the names of checkpoints, and whether their bytes are what was written."""

import collections
import json
import math
import os
import re
from typing import Self

import pydantic

from pipeline.contracts import config as configs
from pipeline.contracts import storage
from pipeline.contracts.config import Json, StrictModel
from pipeline.contracts.errors import InputError
from trainer.config import RunConfig
from trainer.partitions import Layout

FORMAT_VERSION = 3
"""3: `config` and `record_sha256`."""
RECORD = "checkpoint.json"


class Position(StrictModel):
    """Where a run stands."""

    step: int = 0
    """Steps done."""
    shift: int = 0
    """Batches that were used up by steps which were taken back."""
    bad_steps: int = 0
    """How many of the last steps, without a good one between, changed nothing because a loss or gradient was not finite."""
    failed_at: int = 0
    """The furthest step at which there were too many of them."""
    back_at: int = 0
    """The step that the run went back to then, until it gets past `failed_at`."""

    @property
    def batch(self) -> int:
        """Number of the next batch, in the order of the run's samples."""
        return self.step + self.shift

    def after(self, *, bad: bool) -> "Position":
        """One step on."""
        return self.model_copy(update={"step": self.step + 1, "bad_steps": self.bad_steps + 1 if bad else 0})


class FileRecord(StrictModel):
    """Size and digest of one file of a checkpoint."""

    bytes: int
    sha256: str


class FlatRecord(StrictModel):
    """One flat tensor in a process's file: what it holds, and the plain integers of the optimizer's state."""

    layout: Layout
    counts: dict[str, int]


class Identity(StrictModel):
    """What a run is: a checkpoint of another identity is refused. The number of processes and the ZeRO stage are no part of it."""

    config_digest: str
    config: dict[str, Json]
    """What the digest is of, so that a version of the trainer with other keys can tell what differs."""
    content_root: str
    vocabulary_sha256: str
    init_sha256: str | None = None
    """Of the weights that the run started from (`model.init_from`); None: random ones."""


class CheckpointRecord(Identity):
    """checkpoint.json: where the run stood, what it had read, and what the checkpoint's files hold and must be."""

    format_version: int = FORMAT_VERSION
    position: Position
    samples_seen: int
    """Those of all batches that were used up, by steps that were skipped or taken back too: what an audit must take as read."""
    world_size: int
    zero_stage: int
    loss_scaler: dict[str, int | float] | None
    shapes: dict[str, tuple[int, ...]]
    """Of every parameter that is trained."""
    flats: tuple[tuple[FlatRecord, ...], ...]
    """For each process that wrote any."""
    files: dict[str, FileRecord]
    record_sha256: str = ""
    """Of all that is above, so that no edit and no broken disk changes what is made of the files."""

    @pydantic.model_validator(mode="after")
    def _files_hold_each_number_once(self) -> Self:
        if len(self.files) != self.world_size or any(
            rank_file(rank) not in self.files for rank in range(self.world_size)
        ):
            raise ValueError(f"its files are not those of {self.world_size} processes")
        if len(self.flats) > self.world_size:
            raise ValueError(f"{len(self.flats)} of its {self.world_size} processes hold something")
        held: dict[str, list[tuple[int, int]]] = collections.defaultdict(list)
        for layout in (flat.layout for flats in self.flats for flat in flats):
            if layout.block < 1 or layout.block & (layout.block - 1):
                raise ValueError(f"blocks of {layout.block} numbers, which is no power of two")
            end = 0
            for piece in sorted(layout.pieces, key=lambda piece: piece.at):
                if piece.length < 0 or piece.at < end or piece.at + piece.length > layout.numel:
                    raise ValueError(f"{piece.name} does not lie where a tensor of {layout.numel:,} numbers has room")
                end = piece.at + piece.length
                held[piece.name].append((piece.start, piece.length))
        if held.keys() != self.shapes.keys():
            raise ValueError("its tensors hold other parameters than it has shapes of")
        for name, pieces in held.items():
            end = 0
            for start, length in sorted(pieces):
                if start != end:
                    raise ValueError(f"numbers of {name} are missing or there twice")
                end += length
            if end != math.prod(self.shapes[name]):
                raise ValueError(f"{end:,} numbers of {name} for its shape {list(self.shapes[name])}")
        return self

    def digest(self) -> str:
        """What `record_sha256` must be."""
        return configs.digest_json(self.model_dump(mode="json", exclude={"record_sha256"}))

    def sealed(self) -> Self:
        """The same with its digest, ready to be written."""
        return self.model_copy(update={"record_sha256": self.digest()})

    @property
    def step(self) -> int:
        return self.position.step


def place_of(run: RunConfig) -> str:
    return run.checkpoints or os.path.join(run.dir, "checkpoints")


def tag_of(step: int) -> str:
    return f"step-{step:08d}"


def step_of(tag: str) -> int:
    return int(tag.removeprefix("step-"))


def rank_file(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


def complete_tags(place: str) -> list[str]:
    """Names of the complete checkpoints, newest first. Whether their bytes are right is for `damage` to say."""
    return [tag for tag in tags(place) if storage.exists(storage.join(place, tag, RECORD))]


def tags(place: str) -> list[str]:
    """Names of all checkpoints, newest first, those that a kill left incomplete among them."""
    found = [name for name in storage.folders(place) if re.fullmatch("step-[0-9]{8,}", name)]
    return sorted(found, key=step_of, reverse=True)


def read_record(place: str, tag: str) -> CheckpointRecord:
    """The record of a checkpoint, as it was written.

    Raises InputError where it is missing, not ours or changed, OtherVersion where another version wrote it.
    """
    uri = storage.join(place, tag, RECORD)
    text = storage.read_text(uri)
    check_version(uri, text, FORMAT_VERSION)
    try:
        record = CheckpointRecord.model_validate_json(text)
    except pydantic.ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        said = f"{where}: {problem['msg']}" if where else str(problem["msg"]).removeprefix("Value error, ")
        raise InputError(f"{uri}: not a checkpoint record ({said}); remove the folder {tag!r}") from None
    if record.record_sha256 != record.digest():
        raise InputError(
            f"{uri}: changed after it was written; bring back the file as it was or remove the folder {tag!r}"
        )
    if tag_of(record.step) != tag:
        raise InputError(f"{uri}: is the record of step {record.step}; give the folder {tag!r} its own name back")
    return record


class OtherVersion(InputError):
    """A file of another format version. It may well be whole, so that nobody may pass it over as damaged."""


def check_version(place: str, text: str, ours: int) -> None:
    """Raise OtherVersion where the JSON object `text` states another format_version; what is no such object is left to its reader."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return
    version = found.get("format_version", ours) if isinstance(found, dict) else ours
    if version != ours:
        raise OtherVersion(
            f"{place}: format_version {version!r}, this version of the trainer reads {ours}; use the version that wrote it"
        )


def vocabulary_of(place: str) -> str | None:
    """SHA-256 of the vocabulary that the newest checkpoint with a readable record was trained with; None where there is none.

    Raises OtherVersion where another version of the trainer wrote it.
    """
    for tag in complete_tags(place):
        try:
            return read_record(place, tag).vocabulary_sha256
        except OtherVersion:
            raise
        except InputError:  # damaged, as `damage` will say
            continue
    return None


def damage(place: str, tag: str, share: tuple[int, int] = (0, 1)) -> str | None:
    """What is wrong with a checkpoint, or None. With `share` (i, n) only every n-th file from the i-th on is read.

    Raises OtherVersion for one that another version of the trainer wrote.
    """
    try:
        record = read_record(place, tag)
    except OtherVersion:
        raise
    except InputError as error:
        return str(error)
    for name in sorted(record.files)[share[0] :: share[1]]:
        uri, wanted = storage.join(place, tag, name), record.files[name]
        found = storage.info(uri)
        if found is None:
            return f"{uri}: missing"
        if found.size != wanted.bytes:
            return f"{uri}: {found.size} bytes where {wanted.bytes} were written"
        if storage.sha256_file(uri) != wanted.sha256:
            return f"{uri}: its bytes changed after they were written"
    return None
