"""What a run says about itself: a progress bar, one JSON line for each logged step, the same figures for TensorBoard.

    RUN_DIR/metrics.jsonl          step, epoch, samples, loss (mean over processes), learning_rate, logit_scale, gradient_norm, loss_scale
                                   (what fp16's loss was multiplied by), seconds, samples_per_second, data_wait (share of the time spent
                                   waiting for batches), mfu (share of the devices' peak, where that is known), memory_gib (the most that
                                   process 0 had: on its GPU, else resident), replaced, skipped
                                   and for each evaluation on the held set one line of its own: step, held (image_to_text_r1, …, _r10,
                                   text_to_image_r1, …, zeroshot_top1, …), held_ema (of the weights' average), held_chance, held_seconds
    RUN_DIR/tensorboard/           the same
    RUN_DIR/replaced/rank-N.jsonl  each row that could not be used: sample, row, what stood in for it, why

Times are means over the steps since the last line, `replaced` and `skipped` (steps that changed no weight) are counts over them; a loss or
norm that is not finite is null. A resumed run drops the lines after its checkpoint, and so does one that goes back, so that each step has
one line. Only the first process writes metrics and speaks; every process notes its own replaced rows.
"""

import io
import json
import logging
import math
import os
import re
import resource
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Self

import torch
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from pipeline.contracts import storage
from pipeline.contracts.cli import Progress
from trainer import zero
from trainer.batch_plan import BatchPlan
from trainer.checkpoint import Position
from trainer.data.loader import Batch

log = logging.getLogger("trainer")

METRICS = "metrics.jsonl"
_SAY_S = 30.0


class Reporter:
    """Reports the steps of one process; a context manager around the loop.

    first: where the run stands; flops_share: of a device's peak, for one pair a second whose text is computed with so many positions (None
    where the peak is not known).
    """

    def __init__(
        self,
        run_dir: str,
        plan: BatchPlan,
        *,
        rank: int,
        first: Position,
        last_step: int,
        log_every: int,
        flops_share: Callable[[int], float] | None,
    ) -> None:
        self._plan, self._log_every, self._last_step, self._flops_share = plan, log_every, last_step, flops_share
        self._rank, self._replaced_folder = rank, os.path.join(run_dir, "replaced")
        self._replaced = _Lines(os.path.join(self._replaced_folder, f"rank-{rank:05d}.jsonl"), "sample")
        self._first = _FirstProcess(run_dir, first.step, last_step) if rank == 0 else None
        self.start_from(first)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._replaced.close()
        if self._first is not None:
            self._first.close(kind, error, trace)

    def start_from(self, position: Position) -> None:
        """Drop what was noted of the steps after `position`: they are about to be done, for the first time or again."""
        sample = position.batch * self._plan.global_size
        self._replaced.drop_from(sample)
        # Those of processes that there were before are for the ones that there are, each some of them.
        world = self._plan.world_size
        for name in sorted(storage.sizes(self._replaced_folder)):
            number = re.fullmatch(r"rank-(\d+)\.jsonl", name)
            if number and int(number[1]) >= world and int(number[1]) % world == self._rank:
                _Lines(os.path.join(self._replaced_folder, name), "sample").drop_from(sample)
        if self._first is not None:
            self._first.start_from(position.step)
        self._begin()

    def _begin(self) -> None:
        self._started = time.perf_counter()
        self._waited = 0.0
        self._shares = 0.0
        self._steps = self._skipped = self._replaced_rows = 0

    def took(self, batch: Batch) -> None:
        """Note which rows of this process's next step stand in for others."""
        self._replaced.add(swap._asdict() for swap in batch.replaced)

    def computed(self, texts: Mapping[int, int]) -> None:
        """Note how many texts of a step were computed with how many positions each."""
        if self._flops_share is not None:
            shares = sum(count * self._flops_share(length) for length, count in texts.items())
            self._shares += shares / sum(texts.values())

    def waited(self, seconds: float) -> None:
        """Note that this process has waited for batches."""
        self._waited += seconds

    def due(self, done: int) -> bool:
        """Whether the step that makes it `done` steps is one to report."""
        return done % self._log_every == 0 or done == self._last_step

    def step(self, *, applied: bool, replaced: int) -> None:
        """Note that a step is over: whether it changed weights, and how many rows of its batch were replaced on all processes."""
        self._steps += 1
        self._skipped += not applied
        self._replaced_rows += replaced
        if self._first is not None:
            self._first.step()

    def write(
        self,
        position: Position,
        *,
        loss: float,
        learning_rate: float,
        logit_scale: float,
        gradient_norm: float,
        loss_scale: float | None,
    ) -> None:
        """Write one line about the steps since the last one."""
        seconds = time.perf_counter() - self._started
        if self._first is not None:
            per_second = self._steps * self._plan.global_size / seconds
            share = self._shares / self._steps * per_second / self._plan.world_size
            self._first.write(
                {
                    "step": position.step,
                    "epoch": position.batch * self._plan.global_size / self._plan.rows,
                    "samples": position.step * self._plan.global_size,
                    "loss": loss if math.isfinite(loss) else None,
                    "learning_rate": learning_rate,
                    "logit_scale": logit_scale,
                    "gradient_norm": gradient_norm if math.isfinite(gradient_norm) else None,
                    **({} if loss_scale is None else {"loss_scale": loss_scale}),
                    "seconds": seconds / self._steps,
                    "samples_per_second": per_second,
                    "data_wait": self._waited / seconds,
                    **({} if self._flops_share is None else {"mfu": share}),
                    "memory_gib": _memory_gib(),
                    "replaced": self._replaced_rows,
                    "skipped": self._skipped,
                }
            )
        self._begin()

    def tick(self) -> None:
        """Time passes while no step ends."""
        if self._first is not None:
            self._first.tick()

    def scored(self, step: int) -> bool:
        """Whether metrics.jsonl has the evaluation after this step, the last one done. Only the first process knows."""
        return self._first is not None and self._first.scored == step

    def held(self, step: int, line: Mapping[str, object], said: str, seconds: float) -> None:
        """Write the line of an evaluation, which took so many `seconds` that are not the steps'; `said` are its figures in words."""
        self._started += seconds
        if self._first is not None:
            self._first.held(step, line, said)


class _FirstProcess:
    """The files and the bar that only process 0 has."""

    def __init__(self, run_dir: str, first_step: int, last_step: int) -> None:
        self._lines = _Lines(os.path.join(run_dir, METRICS), "step")
        self._events = _Events(os.path.join(run_dir, "tensorboard"))
        self._last_step, self._said = last_step, -_SAY_S
        self._done = first_step
        self.scored: int | None = None
        """The step of the last line, where that is one of an evaluation."""
        self._progress = Progress(last_step - first_step, "steps", "train")

    def step(self) -> None:
        self._done += 1
        self._progress.update(1)

    def start_from(self, step: int) -> None:
        self._progress.update(step - self._done)
        self._done = step
        last = self._lines.drop_from(step + 1)
        self.scored = step if last is not None and last.get("step") == step and "held" in last else None
        # TensorBoard forgets what it has for later steps when a session starts at this one.
        self._events.add_event(
            Event(wall_time=time.time(), step=step + 1, session_log=SessionLog(status=SessionLog.START))
        )

    def write(self, line: dict[str, int | float | None]) -> None:
        self._lines.add([line])
        known = {key: value for key, value in line.items() if value is not None}
        values = [
            Summary.Value(tag=f"train/{key}", simple_value=value) for key, value in known.items() if key != "step"
        ]
        self._events.add_event(Event(wall_time=time.time(), step=int(known["step"]), summary=Summary(value=values)))
        now = time.monotonic()
        if now - self._said < _SAY_S and line["step"] != self._last_step:
            return
        self._said = now
        log.info(
            "step %d: loss %.4f, lr %.2e, scale %.2f, %.1f samples/s, %s%.1f GiB, %.0f%% waiting for data",
            known["step"],
            known.get("loss", math.nan),
            known["learning_rate"],
            known["logit_scale"],
            known["samples_per_second"],
            f"MFU {100 * known['mfu']:.1f} %, " if "mfu" in known else "",
            known["memory_gib"],
            100 * known["data_wait"],
        )

    def tick(self) -> None:
        self._progress.tick()

    def held(self, step: int, line: Mapping[str, object], said: str) -> None:
        self._lines.add([{"step": step, **line}])
        self.scored = step
        values = [
            Summary.Value(tag=f"{group}/{key}", simple_value=value)
            for group, figures in line.items()
            if group in ("held", "held_ema") and isinstance(figures, Mapping)
            for key, value in figures.items()
            if value is not None
        ]
        self._events.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
        log.info("step %d: %s", step, said)

    def close(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.__exit__(kind, error, trace)
        self._lines.close()
        self._events.close()


# Files are written without a buffer: what does not fit on a full disk any more must not be tried again when the file is closed.


class _Events:
    """The events of one session in TensorBoard's folder. Its own writer has a thread, whose errors come late and with a traceback."""

    def __init__(self, folder: str) -> None:
        self._path = os.path.join(
            folder, f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        )
        storage.make_folder(folder)
        with storage.plain_errors(self._path, "write"):
            self._file = io.FileIO(self._path, "a")
        self._records = RecordWriter(self._file)
        self.add_event(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def add_event(self, event: Event) -> None:
        with storage.plain_errors(self._path, "write"):
            self._records.write(event.SerializeToString())

    def close(self) -> None:
        self._file.close()


class _Lines:
    """A JSONL file of ours, whose lines are in the rising order of one of their keys."""

    def __init__(self, path: str, key: str) -> None:
        self._path, self._key = path, key
        self._file: io.FileIO | None = None

    def add(self, lines: Iterable[Mapping[str, object]]) -> None:
        left = memoryview("".join(json.dumps(line) + "\n" for line in lines).encode())
        if not left:
            return
        storage.make_folder(storage.parent(self._path))
        with storage.plain_errors(self._path, "write"):
            if self._file is None:
                self._file = io.FileIO(self._path, "a")
            while left:
                left = left[self._file.write(left) :]

    def drop_from(self, number: int) -> dict[str, object] | None:
        """Drop the lines from the one whose key is `number` on, a last line that a kill cut short, and what a power cut made of others.

        Returns the last one that stays.
        """
        self.close()
        if not os.path.exists(self._path):
            return None
        kept, broken, last = [], 0, None
        with open(self._path, "rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                try:
                    found = json.loads(line)
                    if int(found[self._key]) < number:
                        kept.append(line)
                        last = found
                except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
                    broken += 1
        if broken:
            log.warning("%s: %d of its lines are broken and dropped; the run does not need them", self._path, broken)
        storage.write_atomic(self._path, b"".join(kept))
        return last

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _memory_gib() -> float:
    """The most memory that this process had at once: of its GPU where it computes on one, else its resident set."""
    if not zero.on_cpu():
        return torch.cuda.max_memory_allocated() / (1 << 30)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)  # in KiB on Linux
