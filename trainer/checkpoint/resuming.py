"""Finding the newest whole checkpoint, and bringing a running engine to where it stood, on any number of processes."""

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator
from typing import Protocol, cast

import safetensors
import torch
import torch.distributed

from pipeline.contracts import storage
from pipeline.contracts.errors import InputError, RunError
from trainer import partitions
from trainer.checkpoint import state
from trainer.checkpoint.layout import MASTER, Flat, Saved, cut, whole
from trainer.checkpoint.record import (
    RECORD,
    CheckpointRecord,
    FlatRecord,
    Identity,
    Position,
    complete_tags,
    damage,
    place_of,
    rank_file,
    read_record,
    step_of,
)
from trainer.config import RunConfig, differences
from trainer.zero import Engine, gather, wait_for_all

log = logging.getLogger("trainer")

Found = tuple[str, CheckpointRecord]


class _File(Protocol):
    """An open safetensors file."""

    def keys(self) -> list[str]: ...
    def get_tensor(self, name: str) -> torch.Tensor: ...


def find(place: str, identity: Identity, *, good_before: int | None = None) -> Found | None:
    """The newest checkpoint whose every byte is right; None where there is none. Collective.

    With `good_before`, a step: only those before it that were not saved amid bad steps.
    Damaged ones are named in a warning and passed over. Raises InputError when a checkpoint is whole but belongs to another configuration,
    corpus, vocabulary or format version, and RunError when there are checkpoints and none is whole.
    """
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    tags = gather(complete_tags(place) if rank == 0 else [])[0]
    any_whole = False
    for tag in tags:
        if good_before is not None and step_of(tag) >= good_before:
            continue
        troubles = [trouble for trouble in gather(damage(place, tag, (rank, world))) if trouble is not None]
        if troubles:
            if rank == 0:
                log.warning("checkpoint %s is damaged and passed over: %s", tag, troubles[0])
            continue
        any_whole = True
        record = read_record(place, tag)
        _check_identity(place, tag, record, identity)
        if good_before is None or record.position.bad_steps == 0:
            return tag, record
    if tags and not any_whole and good_before is None:
        raise RunError(
            f"{place}: none of its {len(tags)} checkpoints is whole (see the lines above);"
            " bring back an undamaged copy or choose another run.dir"
        )
    return None


def _check_identity(place: str, tag: str, record: CheckpointRecord, identity: Identity) -> None:
    folder = storage.join(place, tag)
    if record.content_root != identity.content_root:
        raise InputError(
            f"{folder}: trained on the corpus with content_root {record.content_root[:16]!r}, data.manifest has"
            f" {identity.content_root[:16]!r}; name the first corpus or another run.dir"
        )
    if record.config_digest != identity.config_digest:
        changed = differences(record.config, identity.config)
        if changed or record.config == identity.config:
            raise InputError(
                f"{folder}: written under a configuration with digest {record.config_digest[:16]!r}, this one has"
                f" {identity.config_digest[:16]!r}: {', '.join(changed) or 'compare it with the config.toml of the run'};"
                " set back what differs or choose another run.dir"
            )
        if torch.distributed.get_rank() == 0:
            log.warning(
                "%s was written by a version of the trainer that did not know all of today's keys; they are at their defaults, and the"
                " run goes on",
                folder,
            )
    if record.vocabulary_sha256 != identity.vocabulary_sha256:
        raise InputError(
            f"{folder}: trained with another vocabulary file than tokenizer.vocab names (sha256 {record.vocabulary_sha256[:16]!r});"
            " give the first one or choose another run.dir"
        )
    if record.init_sha256 != identity.init_sha256:
        was, now = (
            f"weights with sha256 {sha[:16]!r}" if sha else "random weights"
            for sha in (record.init_sha256, identity.init_sha256)
        )
        raise InputError(
            f"{folder}: started from {was}, model.init_from says {now}; name the first ones or choose another run.dir"
        )


def resume(engine: Engine, place: str, found: Found, average: state.Average | None = None) -> Position:
    """Bring weights, optimizer and random states to where a checkpoint (found by `find`) left them. Collective.

    Random states come back where as many processes go on as had saved; another number gets new ones that follow from the first's.
    Checkpoints newer than this one are those that were passed over; the run is about to write their steps again, and they are put aside.
    """
    tag, record = found
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    folder = storage.join(place, tag)
    layouts = state.layouts(engine)
    own = rank if record.zero_stage else 0
    if own < len(record.flats) and [flat.layout for flat in record.flats[own]] == layouts:
        with _opened(folder, own) as file:
            held = [Flat(saved.layout, saved.read(), saved.counts) for saved in _saved(file, record.flats[own])]
    else:
        held = cut(_all_saved(folder, record), layouts)
    state.put_back(engine, held, average)
    with _opened(folder, 0) as file:
        kept = {name: file.get_tensor(key) for key, name in state.kept_names(file.keys()).items()}
        partitions.set_frozen_and_buffers(engine, kept)
    with _opened(folder, rank if world == record.world_size else 0) as file:
        states = {key: file.get_tensor(key) for key in state.random_names(file.keys())}
    if world == record.world_size:
        state.restore_random_states(states, engine.device)
    else:
        state.seed_from(states, rank)
    if record.loss_scaler is not None:
        partitions.set_loss_scaler(engine, record.loss_scaler)
    wait_for_all()
    if rank == 0:
        _put_aside_newer(place, tag)
    wait_for_all()
    return record.position


def go_back(
    engine: Engine, run: RunConfig, identity: Identity, position: Position, average: state.Average | None = None
) -> Position:
    """After too many bad steps: the state of the last good checkpoint, with the data that comes next. Collective.

    A run that fails again before it gets past the step where it failed goes back further than the last time. Raises RunError where there is
    nothing to go back to.
    """
    past = position.step > position.failed_at
    place = place_of(run)
    found = find(place, identity, good_before=position.step if past else position.back_at)
    first = position.step - position.bad_steps + 1
    what = f"steps {first} to {position.step}: a loss or gradient was not finite in all {position.bad_steps} of them"
    if found is None:
        raise RunError(
            f"{what}, and there is no earlier good checkpoint to go back to; lower optim.lr, which is another run and needs another"
            " run.dir, or mend the rows of these steps"
        )
    back = resume(engine, place, found, average)
    if torch.distributed.get_rank() == 0:
        log.warning("%s; the run goes back to %s and on with the next data", what, found[0])
    failed_at = max(position.step, position.failed_at)
    return back.model_copy(update={"shift": position.batch - back.step, "failed_at": failed_at, "back_at": back.step})


def named_weights(place: str, tag: str, record: CheckpointRecord, key: str = MASTER) -> dict[str, torch.Tensor]:
    """Every parameter and buffer of a checkpoint by name, in its shape, whoever held it; all but integers in fp32.

    `key`: MASTER, or EMA for their moving average. Raises InputError where the checkpoint has no such numbers.
    """
    folder = storage.join(place, tag)
    flats = cut(_all_saved(folder, record), whole(record.shapes), only=key)
    weights = {}
    for flat in flats:
        name = flat.layout.pieces[0].name
        if key not in flat.values:
            raise InputError(f"{folder}: has no {key!r} of {name!r}; the run did not keep one, export without --ema")
        weights[name] = flat.values[key].float().view(record.shapes[name])
    with _opened(folder, 0) as file:
        kept = {name: file.get_tensor(key) for key, name in state.kept_names(file.keys()).items()}
    return weights | {name: value.float() if value.is_floating_point() else value for name, value in kept.items()}


def _all_saved(folder: str, record: CheckpointRecord) -> Iterator[Saved]:
    """The flat tensors of all processes, one file open at a time."""
    for rank, flats in enumerate(record.flats):
        with _opened(folder, rank) as file:
            yield from _saved(file, flats)


def _saved(file: _File, flats: Iterable[FlatRecord]) -> Iterator[Saved]:
    every = file.keys()
    for number, flat in enumerate(flats):
        prefix = f"{number}."
        names = [name for name in every if name.startswith(prefix)]

        def read(prefix: str = prefix, names: list[str] = names) -> dict[str, torch.Tensor]:
            return {name.removeprefix(prefix): file.get_tensor(name) for name in names}

        yield Saved(flat.layout, flat.counts, read)


@contextlib.contextmanager
def _opened(folder: str, rank: int) -> Iterator[_File]:
    """A process's file, read where it lies; one on s3:// is fetched first."""
    uri = storage.join(folder, rank_file(rank))
    with contextlib.ExitStack() as stack:
        if storage.is_s3(uri):
            local = os.path.join(stack.enter_context(tempfile.TemporaryDirectory()), storage.name(uri))
            storage.download(uri, local)
        else:
            local = uri
        with storage.plain_errors(uri, "read"):
            file = stack.enter_context(safetensors.safe_open(local, framework="pt"))
        yield cast(_File, file)


def _put_aside_newer(place: str, tag: str) -> None:
    """Checkpoints after `tag` get another name: nothing is lost, and nothing takes them for checkpoints. On s3:// their record goes."""
    given_up = [found for found in complete_tags(place) if step_of(found) > step_of(tag)]
    if given_up:
        storage.write_atomic(storage.join(place, "latest"), tag.encode())
    for newer in given_up:
        folder = storage.join(place, newer)
        if storage.is_s3(folder):
            storage.remove_file(storage.join(folder, RECORD))
            log.warning("checkpoint %s is given up: its %s is removed, its files are written anew", newer, RECORD)
            continue
        aside, number = f"{folder}.aside", 2
        while os.path.exists(aside):
            aside, number = f"{folder}.aside-{number}", number + 1
        os.rename(folder, aside)
        log.warning("checkpoint %s is kept as %s; remove it when nobody needs it", newer, aside)
