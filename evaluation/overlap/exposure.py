"""Had this checkpoint seen them? When a training run came to a row of the corpus, and how far it had come.

"In the corpus" is not "seen": a run that ended early, or a checkpoint from its middle, had read a part of the corpus only. The order
in which a run reads is a pure function of its seed, the corpus's row groups and the window of its shuffle (`trainer.data.order`), and a
model's card states the first and the last beside the number of samples seen. So for every matched row there is a first sample, and it was
seen when that is below the number of samples.

The loader skips nothing: where a row has no caption or no picture it shows another one, chosen by hash of the row's number. Such a row
is never seen, and one that stands in for it may be seen earlier than its own turn; both are followed here, by the columns of the shards'
indexes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from evaluation.overlap.tables import EXPOSURE_COLUMNS, ROW_GROUP_SCHEMA
from pipeline.contracts.errors import InputError
from pipeline.contracts.manifest import Manifest
from trainer.data.order import REPLACEMENT_TRIES, SampleOrder, replacement_row

Int64s = NDArray[np.int64]

_MOST = {"samples_seen": 1 << 62, "seed": 1 << 63, "window_row_groups": 1 << 32}
_NEVER = int(np.iinfo(np.int64).max)


@dataclass(frozen=True)
class Training:
    """How far the run behind a model had come, and what its order follows from, as the model's card says it.

    `init_sha256`: of the weights that it started from; nothing is known of what those have seen. None: random ones.
    """

    samples_seen: int
    seed: int
    window_row_groups: int
    init_sha256: str | None = None

    def metadata(self) -> dict[str, str]:
        """For a predictions file; `read_training` reads it."""
        return {
            "samples_seen": str(self.samples_seen),
            "seed": str(self.seed),
            "window_row_groups": str(self.window_row_groups),
            "init_sha256": self.init_sha256 or "",
        }


def read_training(place: str, metadata: Mapping[str, str]) -> Training | None:
    """What the metadata of a predictions file says; None where the file says nothing, as one of a card older than version 4.

    Raises InputError where it says a part, or what no card says.
    """
    stated = {name: metadata[name] for name in _MOST if name in metadata}
    if not stated:
        return None
    numbers: dict[str, int] = {}
    for name, most in _MOST.items():
        text = stated.get(name, "")
        least = 1 if name == "window_row_groups" else 0
        if not re.fullmatch(r"[0-9]{1,19}", text) or not least <= int(text) <= most:
            raise InputError(f"{place}: {name} is {text!r}, no number that a model's card states; score the set again")
        numbers[name] = int(text)
    start = metadata.get("init_sha256", "")
    if not re.fullmatch(r"(?:[0-9a-f]{64})?", start):
        raise InputError(f"{place}: init_sha256 is {start[:80]!r}, no sha256; score the set again")
    return Training(**numbers, init_sha256=start or None)


def known(training: Training | None, model_root: str | None, *, root: str, kind: str) -> Training | None:
    """The training whose order over the corpus `root` is known: of a model trained on it, where it is of `kind` "shards", our own."""
    return training if kind == "shards" and model_root == root else None


# ---- the rows of a corpus


def row_groups(found: Manifest) -> pa.Table:
    """ROW_GROUP_SCHEMA: every row group, shard after shard as the manifest lists them."""
    groups = [(shard.path, group.rows) for shard in found.shards for group in shard.row_groups]
    return pa.table(
        [pa.array([shard for shard, _ in groups], pa.string()), pa.array([rows for _, rows in groups], pa.int64())],
        schema=ROW_GROUP_SCHEMA,
    )


def unusable(index: pa.Table) -> Int64s:
    """The rows of a shard's index that the loader puts others in place of: without caption or picture. int64[n], rising."""
    usable = pc.and_(index["captioned"], pc.is_valid(index["image_sha256"]))
    return np.flatnonzero(~np.asarray(usable, np.bool_)).astype(np.int64)


class Numbering:
    """Rows numbered through a corpus from 0, as a sample order numbers them."""

    def __init__(self, groups: pa.Table) -> None:
        self.group_rows: list[int] = groups["rows"].to_pylist()
        self._start: dict[str, int] = {}
        self._end: dict[str, int] = {}
        at = 0
        for shard, rows in zip(groups["shard"].to_pylist(), self.group_rows, strict=True):
            self._start.setdefault(shard, at)
            self._end[shard] = at = at + rows

    def numbers(self, shards: Sequence[str], rows: Int64s) -> Int64s:
        """int64[n] of `rows` in their shards, n each. Raises InputError for one that the manifest does not list."""
        starts, ends = (
            np.array([places.get(shard, 0) for shard in shards], np.int64) for places in (self._start, self._end)
        )
        beyond = np.flatnonzero(rows >= ends - starts)
        if len(beyond):
            first = int(beyond[0])
            raise InputError(
                f"{shards[first]}: row {rows[first]}, the manifest lists {ends[first] - starts[first]} rows; rebuild the corpus"
            )
        numbers: Int64s = starts + rows
        return numbers

    def order(self, training: Training) -> SampleOrder:
        """The order of that run over this corpus."""
        return SampleOrder(self.group_rows, seed=training.seed, window_row_groups=training.window_row_groups)


# ---- when a run came to them


def with_exposure(
    pairs: pa.Table,
    groups: pa.Table,
    absent: Iterable[tuple[str, Int64s]],
    trainings: Mapping[str, Training],
) -> pa.Table:
    """The pairs with EXPOSURE_COLUMNS behind: by the training of each pair's set, null where `trainings` has none for it.

    `groups` is ROW_GROUP_SCHEMA, `absent` the `unusable` rows of each shard that has any; without a training it is not asked for.
    """
    first = np.full(pairs.num_rows, _NEVER)
    seen: list[bool | None] = [None] * pairs.num_rows
    if trainings:
        numbering = Numbering(groups)
        gone = [numbering.numbers([shard] * len(rows), rows) for shard, rows in absent]
        never = np.sort(np.concatenate([np.empty(0, np.int64), *gone]))
        names = pairs["set"].to_pylist()
        for training in dict.fromkeys(trainings.values()):
            own = np.array([row for row, name in enumerate(names) if trainings.get(name) == training], np.int64)
            chosen = pairs.select(["shard", "row"]).take(pa.array(own))
            rows = numbering.numbers(chosen["shard"].to_pylist(), np.asarray(chosen["row"], np.int64))
            first[own] = first_samples(training, numbering, rows, never)
            for row in own.tolist():
                seen[row] = bool(first[row] < training.samples_seen)
    columns = (pa.array(first, mask=first == _NEVER), pa.array(seen, pa.bool_()))
    for field, column in zip(EXPOSURE_COLUMNS, columns, strict=True):
        pairs = pairs.append_column(field, column)
    return pairs


def first_samples(training: Training, numbering: Numbering, rows: Int64s, absent: Int64s) -> Int64s:
    """At which sample the run first shows each of `rows`, int64[n]; the largest number for one that it never shows.

    `absent` int64[m] are all rows of the corpus that cannot be used, rising. A row is shown in its turn, or in that of an unusable one.
    """
    order = numbering.order(training)
    first = np.where(np.isin(rows, absent), _NEVER, order.first_samples(rows))
    standing, turns = _stand_ins(order, training.seed, absent)
    chosen = np.isin(standing, rows)
    earliest: dict[int, int] = {}
    for row, turn in zip(standing[chosen].tolist(), turns[chosen].tolist(), strict=True):
        earliest[row] = min(turn, earliest.get(row, turn))
    return np.minimum(first, np.array([earliest.get(row, _NEVER) for row in rows.tolist()], np.int64))


def _stand_ins(order: SampleOrder, seed: int, absent: Int64s) -> tuple[Int64s, Int64s]:
    """Which row the loader shows in place of each of `absent`, and the sample at which the run first comes to that; int64[m] both.

    -1 where none of its tries is a row that can be used: such a run stops.
    """
    standing, waiting = np.full(len(absent), -1, np.int64), np.arange(len(absent))
    for attempt in range(1, REPLACEMENT_TRIES):
        asked = absent[waiting].tolist()
        standing[waiting] = [
            replacement_row(row, attempt, seed=seed, rows=order.rows_per_epoch, group=order.group_of(row))
            for row in asked
        ]
        waiting = waiting[np.isin(standing[waiting], absent)]
        if not len(waiting):
            break
    standing[waiting] = -1
    return standing, order.first_samples(absent)


def split_exposure(split: pa.Table, own: pa.Table) -> pa.Table:
    """A set's split with EXPOSURE_COLUMNS behind; `own` are the set's pairs: the first sample of any of an example's, seen when one was."""
    first: dict[int, int] = {}
    seen: dict[int, bool] = {}
    for row, sample, was in zip(*(own[name].to_pylist() for name in ("eval_row", "first_sample", "seen")), strict=True):
        if sample is not None:
            first[row] = min(sample, first.get(row, sample))
        if was is not None:
            seen[row] = was or seen.get(row, False)
    rows = split["eval_row"].to_pylist()
    columns = (pa.array(map(first.get, rows), pa.int64()), pa.array(map(seen.get, rows), pa.bool_()))
    for field, column in zip(EXPOSURE_COLUMNS, columns, strict=True):
        split = split.append_column(field, column)
    return split
