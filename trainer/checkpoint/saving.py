"""Writing a checkpoint: every process its own file, the first one the record, which makes it complete."""

import logging
import os
import re
from collections.abc import Callable, Iterable

import safetensors
import safetensors.torch
import torch
import torch.distributed

from pipeline.contracts import storage
from pipeline.contracts.errors import HouseError, InputError, RunError
from trainer import partitions
from trainer.checkpoint import state
from trainer.checkpoint.record import (
    RECORD,
    CheckpointRecord,
    FileRecord,
    FlatRecord,
    Identity,
    Position,
    complete_tags,
    place_of,
    rank_file,
    read_record,
    step_of,
    tag_of,
    tags,
)
from trainer.config import RunConfig
from trainer.zero import Engine, gather

log = logging.getLogger("trainer")


def save(
    engine: Engine,
    run: RunConfig,
    identity: Identity,
    position: Position,
    *,
    samples_seen: int,
    average: state.Average | None = None,
) -> None:
    """Write the checkpoint of `position`. Collective.

    Raises RunError on all processes where one of them cannot write, with what was there before untouched.
    """
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    place, tag = place_of(run), tag_of(position.step)
    folder, name = storage.join(place, tag), rank_file(rank)
    _first_process(tag, lambda: _clear(folder))
    kept = state.kept(engine)
    held = state.flats(engine, average) if rank == 0 or engine.zero_optimization_stage() else []
    tensors = {f"{number}.{key}": value for number, flat in enumerate(held) for key, value in flat.values.items()}
    written: FileRecord | HouseError
    try:
        written = _write(storage.join(folder, name), tensors | kept | state.random_states(engine.device))
    except HouseError as error:
        written = error
    mine = tuple(FlatRecord(layout=flat.layout, counts=flat.counts) for flat in held)
    everyone = gather((written, mine))
    _raise_for_all(tag, [written for written, _ in everyone])
    record = CheckpointRecord(
        position=position,
        samples_seen=samples_seen,
        world_size=world,
        zero_stage=engine.zero_optimization_stage(),
        loss_scaler=partitions.loss_scaler(engine),
        shapes=partitions.shapes(engine),
        flats=tuple(flats for _, flats in everyone if flats),
        files={rank_file(number): file for number, (file, _) in enumerate(everyone)},
        **identity.model_dump(),
    ).sealed()
    _first_process(tag, lambda: _commit(place, tag, record))
    if rank == 0:
        try:
            _retain(place, run.keep, newest=tag)
            storage.abort_uploads(place)
        except HouseError as error:
            log.warning("%s is saved, older checkpoints could not be removed: %s", tag, error)


def _write(uri: str, tensors: dict[str, torch.Tensor]) -> FileRecord:
    """Write one file whole, flushed to the disk where there is one, under its name only when it is complete."""
    storage.make_folder(storage.parent(uri))
    temporary = storage.local_temporary(uri)
    try:
        with storage.plain_errors(uri, "write"):
            try:
                safetensors.torch.save_file(tensors, temporary)
            except safetensors.SafetensorError as error:  # its text ends in the number that an OSError would have
                number = re.search(r"os error (\d+)", str(error))
                if number is None:
                    raise
                raise OSError(int(number[1]), os.strerror(int(number[1]))) from None
            with open(temporary, "rb") as file:
                storage.flush_to_disk(file)
        written = FileRecord(bytes=os.path.getsize(temporary), sha256=storage.sha256_file(temporary))
        storage.commit_file(temporary, uri)
    finally:
        storage.remove_own(temporary)
    return written


def _first_process(tag: str, work: Callable[[], None]) -> None:
    """Let process 0 do `work`; where it cannot, all of them raise. Collective."""
    trouble: HouseError | None = None
    try:
        if torch.distributed.get_rank() == 0:
            work()
    except HouseError as error:
        trouble = error
    _raise_for_all(tag, gather(trouble))


def _clear(folder: str) -> None:
    """Remove what a killed attempt left, its record first."""
    storage.remove_file(storage.join(folder, RECORD))
    storage.remove_folder(folder)


def _raise_for_all(tag: str, answers: Iterable[object]) -> None:
    for answer in answers:
        if isinstance(answer, HouseError):
            raise RunError(f"{tag} was not saved, earlier checkpoints are untouched: {answer}")


def _commit(place: str, tag: str, record: CheckpointRecord) -> None:
    """Make the checkpoint a complete one: the record is what says so."""
    folder = storage.join(place, tag)
    _flush_folder(folder)
    storage.write_atomic(storage.join(folder, RECORD), record.model_dump_json(indent=1).encode())
    _flush_folder(folder)
    _flush_folder(place)
    storage.write_atomic(storage.join(place, "latest"), tag.encode())


def _flush_folder(folder: str) -> None:
    """Bring the names in a local folder to the disk."""
    if storage.is_s3(folder):
        return
    with storage.plain_errors(folder, "flush"):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _retain(place: str, keep: int, newest: str) -> None:
    """Remove all but `keep` checkpoints, `newest` and those before it, and what kills left; the newest good one stays in any case."""
    complete = complete_tags(place)
    older = [tag for tag in complete if step_of(tag) <= step_of(newest)]
    good = next((tag for tag in older if _is_good(place, tag)), None)
    for tag in tags(place):
        left_by_a_kill = tag not in complete and step_of(tag) < step_of(newest)
        if left_by_a_kill or tag in set(older[keep:]) - {good}:
            storage.remove_file(storage.join(place, tag, RECORD))
            storage.remove_folder(storage.join(place, tag))


def _is_good(place: str, tag: str) -> bool:
    """Whether a checkpoint was saved with no bad step just before it; one whose record is damaged is not for going back to."""
    try:
        return read_record(place, tag).position.bad_steps == 0
    except InputError:
        return False
