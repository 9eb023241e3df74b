"""Checkpoints: written whole or not at all, verified before they are used, resumed to the bit.

    RUN_DIR/checkpoints/step-00000100/
        checkpoint.json         what it is, and size and sha256 of every other file; written last
        weights.safetensors     fp32 master weights and buffers by name: what `trainer.export` reads
        rank-00000.pt           random number states of process 0 (one file for each process)
        *_states.pt             what DeepSpeed needs to go on: its shards of masters and moments
    RUN_DIR/checkpoints/latest  the name of the newest complete one

All processes write into a folder with a temporary name; every file and the folder are flushed to the disk; then the folder is renamed, and
only then `latest` is written and older ones are removed. So a folder with a final name is complete, and a kill at any moment costs only
the steps since the last one. On resume every byte is compared with checkpoint.json; a checkpoint that fails is named, put aside, and the
one before it is taken. "To the bit" is proved on CPUs; kernels of GPUs need not repeat their own bits.

DeepSpeed's shards are pickles. They are read only after their digests match the record beside them, which protects against damage, not
against a stranger who can write into the run's folder: resume only from folders that you trust.
"""

import json
import logging
import os
import random
import shutil
from typing import TypeVar, cast

import numpy as np
import safetensors.torch
import torch
import torch.distributed

from pipeline.contracts import storage
from pipeline.contracts.config import StrictModel
from pipeline.contracts.errors import InputError, RunError
from trainer import zero
from trainer.config import TrainConfig

log = logging.getLogger("trainer")

FORMAT_VERSION = 1
RECORD = "checkpoint.json"
WEIGHTS = "weights.safetensors"
_TEMPORARY = ".writing-"

T = TypeVar("T")


class FileRecord(StrictModel):
    """Size and digest of one file of a checkpoint."""

    bytes: int
    sha256: str


class CheckpointRecord(StrictModel):
    """checkpoint.json: where the run stood, what it had read, and what the checkpoint's files must be."""

    format_version: int = FORMAT_VERSION
    step: int
    samples_seen: int
    world_size: int
    config_digest: str
    content_root: str
    vocabulary_sha256: str
    files: dict[str, FileRecord]


class Identity(StrictModel):
    """What a run is, beside its configuration: a checkpoint of another identity is refused."""

    config_digest: str
    content_root: str
    vocabulary_sha256: str


def folder_of(run_dir: str) -> str:
    return os.path.join(run_dir, "checkpoints")


def complete_tags(run_dir: str) -> list[str]:
    """Names of the complete checkpoints of a run, newest first. Whether their bytes are right is for `damage` to say."""
    folder = folder_of(run_dir)
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return sorted((name for name in names if name.startswith("step-") and name[5:].isdigit()), reverse=True)


def read_record(run_dir: str, tag: str) -> CheckpointRecord:
    """The record of a checkpoint. Raises InputError where it is missing or not ours, OtherVersion where another version wrote it."""
    place = os.path.join(folder_of(run_dir), tag, RECORD)
    text = storage.read_text(place)
    check_version(place, text, FORMAT_VERSION)
    try:
        return CheckpointRecord.model_validate_json(text)
    except ValueError as error:
        raise InputError(
            f"{place}: not a checkpoint record ({str(error).splitlines()[0]}); remove the folder {tag!r}"
        ) from None


class OtherVersion(InputError):
    """A file of another format version. It may well be whole, so that nobody may pass it over as damaged."""


def check_version(place: str, text: str, ours: int) -> None:
    """Raise OtherVersion where the JSON object `text` states another format_version; what is no such object is left to its reader."""
    try:
        found = json.loads(text)
    except ValueError:
        return
    version = found.get("format_version", ours) if isinstance(found, dict) else ours
    if version != ours:
        raise OtherVersion(
            f"{place}: format_version {version!r}, this version of the trainer reads {ours}; use the version that wrote it"
        )


def damage(run_dir: str, tag: str, share: tuple[int, int] = (0, 1)) -> str | None:
    """What is wrong with a checkpoint, or None. With `share` (i, n) only every n-th file from the i-th on is read.

    Raises OtherVersion for one that another version of the trainer wrote.
    """
    try:
        record = read_record(run_dir, tag)
    except OtherVersion:
        raise
    except InputError as error:
        return str(error)
    for name in sorted(record.files)[share[0] :: share[1]]:
        path = os.path.join(folder_of(run_dir), tag, name)
        wanted = record.files[name]
        found = os.path.getsize(path) if os.path.isfile(path) else None
        if found is None:
            return f"{path}: missing"
        if found != wanted.bytes:
            return f"{path}: {found} bytes where {wanted.bytes} were written"
        if storage.sha256_file(path) != wanted.sha256:
            return f"{path}: its bytes changed after they were written"
    return None


# ---- saving


def save(engine: zero.Engine, config: TrainConfig, identity: Identity, step: int) -> str:
    """Write the checkpoint of `step` (steps done so far) and return its name. Collective."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    folder = folder_of(config.run.dir)
    tag = f"step-{step:08d}"
    temporary = os.path.join(folder, _TEMPORARY + tag)
    if rank == 0:
        shutil.rmtree(temporary, ignore_errors=True)  # what a killed attempt left
        os.makedirs(temporary)
    torch.distributed.barrier()
    weights = zero.master_weights(engine)
    engine.save_checkpoint(folder, tag=_TEMPORARY + tag, client_state={"step": step}, save_latest=False)
    if rank == 0:
        safetensors.torch.save_file(weights, os.path.join(temporary, WEIGHTS))
    torch.save(_random_states(engine.device), os.path.join(temporary, _rank_file(rank)))
    torch.distributed.barrier()
    files = _flush_and_digest(temporary, rank, world)
    if rank == 0:
        record = CheckpointRecord(
            step=step,
            samples_seen=step * config.batch.global_size,
            world_size=world,
            files=files,
            **identity.model_dump(),
        )
        _commit(folder, temporary, tag, record)
        _retain(config.run.dir, config.run.keep, newest=tag)
    torch.distributed.barrier()
    return tag


def _flush_and_digest(folder: str, rank: int, world: int) -> dict[str, FileRecord]:
    """Bring every file to the disk and take its digest, the work shared by all processes; all get the whole answer."""
    mine: dict[str, FileRecord] = {}
    for name in sorted(os.listdir(folder))[rank::world]:
        path = os.path.join(folder, name)
        _flush(path)
        mine[name] = FileRecord(bytes=os.path.getsize(path), sha256=storage.sha256_file(path))
    shares = _gather(mine)
    return {name: record for share in shares for name, record in sorted(share.items())}


def _commit(folder: str, temporary: str, tag: str, record: CheckpointRecord) -> None:
    storage.write_atomic(os.path.join(temporary, RECORD), record.model_dump_json(indent=1).encode())
    _flush(temporary)
    final = os.path.join(folder, tag)
    if os.path.isdir(final):
        _put_aside(final)
    os.rename(temporary, final)
    _flush(folder)
    storage.write_atomic(os.path.join(folder, "latest"), tag.encode())


def _retain(run_dir: str, keep: int, newest: str) -> None:
    """Remove all but `keep` checkpoints: `newest`, which was just written, and those before it."""
    for tag in [tag for tag in complete_tags(run_dir) if tag <= newest][keep:]:
        shutil.rmtree(os.path.join(folder_of(run_dir), tag))


def _put_aside(folder: str) -> str:
    """Rename a damaged checkpoint to the first free name, so that nothing is lost and nothing takes it for a checkpoint."""
    aside = f"{folder}.damaged"
    number = 2
    while os.path.exists(aside):
        aside, number = f"{folder}.damaged-{number}", number + 1
    os.rename(folder, aside)
    return aside


def _flush(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ---- resuming


def find(run_dir: str, identity: Identity) -> tuple[str, CheckpointRecord] | None:
    """The newest checkpoint whose every byte is right; None for a fresh run. Collective.

    Damaged ones are named in a warning and passed over. Raises InputError when a checkpoint is whole but belongs to another configuration,
    corpus, vocabulary, number of processes or format version, and RunError when there are checkpoints and none is whole.
    """
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    tags = _gather(complete_tags(run_dir))[0]
    for tag in tags:
        troubles = [trouble for trouble in _gather(damage(run_dir, tag, (rank, world))) if trouble is not None]
        if troubles:
            if rank == 0:
                log.warning("checkpoint %s is damaged and passed over: %s", tag, troubles[0])
            continue
        record = read_record(run_dir, tag)
        _check_identity(run_dir, tag, record, identity, world)
        return tag, record
    if tags:
        raise RunError(
            f"{folder_of(run_dir)}: none of its {len(tags)} checkpoints is whole (see the lines above);"
            " bring back an undamaged copy or choose another run.dir"
        )
    return None


def _check_identity(run_dir: str, tag: str, record: CheckpointRecord, identity: Identity, world: int) -> None:
    place = os.path.join(folder_of(run_dir), tag)
    if record.content_root != identity.content_root:
        raise InputError(
            f"{place}: trained on the corpus with content_root {record.content_root[:16]!r}, data.manifest has"
            f" {identity.content_root[:16]!r}; name the first corpus or another run.dir"
        )
    if record.config_digest != identity.config_digest:
        raise InputError(
            f"{place}: written under a configuration with digest {record.config_digest[:16]!r}, this one has"
            f" {identity.config_digest[:16]!r}; compare with {os.path.join(run_dir, 'config.toml')} or choose another run.dir"
        )
    if record.vocabulary_sha256 != identity.vocabulary_sha256:
        raise InputError(
            f"{place}: trained with another vocabulary file than tokenizer.vocab names (sha256 {record.vocabulary_sha256[:16]!r});"
            " give the first one or choose another run.dir"
        )
    if record.world_size != world:
        raise InputError(
            f"{place}: written by {record.world_size} processes, this run has {world}; start {record.world_size} of them"
        )


def resume(engine: zero.Engine, run_dir: str, tag: str) -> None:
    """Bring weights, optimizer and random states to where checkpoint `tag` (found by `find`) left them. Collective.

    Checkpoints newer than `tag` are the damaged ones that `find` passed over; the run is about to write their steps again, and they are put
    aside, so that they are neither counted among those to keep nor in the way.
    """
    loaded, client_state = engine.load_checkpoint(folder_of(run_dir), tag=tag)
    record = read_record(run_dir, tag)
    if loaded is None or client_state["step"] != record.step:
        raise RunError(
            f"{os.path.join(folder_of(run_dir), tag)}: DeepSpeed could not load it; remove it to take the one before"
        )
    path = os.path.join(folder_of(run_dir), tag, _rank_file(torch.distributed.get_rank()))
    _restore_random_states(torch.load(path, weights_only=True), engine.device)
    if torch.distributed.get_rank() == 0:
        _put_aside_newer(run_dir, tag)


def _put_aside_newer(run_dir: str, tag: str) -> None:
    for newer in [found for found in complete_tags(run_dir) if found > tag]:
        aside = _put_aside(os.path.join(folder_of(run_dir), newer))
        log.warning("checkpoint %s is kept as %s; remove it when nobody needs it", newer, aside)


def _rank_file(rank: int) -> str:
    return f"rank-{rank:05d}.pt"


RandomStates = dict[str, torch.Tensor | str]


def _random_states(device: torch.device) -> RandomStates:
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    states: RandomStates = {
        "torch": torch.get_rng_state(),
        "numpy_keys": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
        "numpy": json.dumps([kind, int(position), int(has_gauss), float(gauss)]),
        "python": json.dumps(random.getstate()),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _restore_random_states(states: RandomStates, device: torch.device) -> None:
    torch.set_rng_state(cast(torch.Tensor, states["torch"]))
    kind, position, has_gauss, gauss = json.loads(cast(str, states["numpy"]))
    keys = cast(torch.Tensor, states["numpy_keys"]).numpy().astype(np.uint32)
    np.random.set_state((kind, keys, position, has_gauss, gauss))
    version, words, gauss_next = json.loads(cast(str, states["python"]))
    random.setstate((version, tuple(words), gauss_next))
    if device.type == "cuda":
        torch.cuda.set_rng_state(cast(torch.Tensor, states["cuda"]), device)


def _gather(mine: T) -> list[T]:
    everyone: list[T] = [mine] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, mine)
    return everyone
