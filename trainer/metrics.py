"""What a run says about itself: a progress bar, one JSON line for each logged step, the same figures for TensorBoard.

    RUN_DIR/metrics.jsonl          step, epoch, samples, loss (mean over processes), learning_rate, logit_scale, gradient_norm, seconds,
                                   samples_per_second, data_wait (share of the time spent waiting for batches), replaced, skipped
    RUN_DIR/tensorboard/           the same
    RUN_DIR/replaced/rank-N.jsonl  each row that could not be used: sample, row, what stood in for it, why

Times are means over the steps since the last line, `replaced` and `skipped` are counts over them. A resumed run drops the lines after its
checkpoint, so that each step has one line. Only the first process writes metrics and speaks; every process notes its own replaced rows.
"""

import json
import logging
import os
import time
from types import TracebackType
from typing import Self

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from pipeline.contracts import storage
from pipeline.contracts.cli import Progress
from trainer.config import BatchPlan
from trainer.data.loader import Replacement

log = logging.getLogger("trainer")

METRICS = "metrics.jsonl"
_SAY_S = 30.0


class Reporter:
    """Reports the steps of one process; a context manager around the loop."""

    def __init__(
        self, run_dir: str, plan: BatchPlan, *, rank: int, first_step: int, last_step: int, log_every: int
    ) -> None:
        self._plan, self._rank, self._log_every, self._last_step = plan, rank, log_every, last_step
        self._replaced_path = os.path.join(run_dir, "replaced", f"rank-{rank:05d}.jsonl")
        os.makedirs(os.path.dirname(self._replaced_path), exist_ok=True)
        _keep_lines(self._replaced_path, "sample", first_step * plan.global_size)
        self._replaced = open(self._replaced_path, "a", encoding="utf-8")  # noqa: SIM115 (closed by __exit__)
        self._first = _FirstProcess(run_dir, plan, first_step, last_step) if rank == 0 else None
        self._started = time.perf_counter()
        self._waited = 0.0
        self._steps = self._skipped = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._replaced.close()
        if self._first is not None:
            self._first.close(kind, error, trace)

    def waited(self, seconds: float, replaced: list[Replacement]) -> None:
        """Note the wait for one batch, and which of its rows stand in for others."""
        self._waited += seconds
        for swap in replaced:
            self._replaced.write(json.dumps(swap._asdict()) + "\n")
        if replaced:
            self._replaced.flush()

    def due(self, done: int) -> bool:
        """Whether the step that makes it `done` steps is one to report."""
        return done % self._log_every == 0 or done == self._last_step

    def step(self, done: int, *, applied: bool) -> None:
        """Note that a step is over; `applied` is False where the loss scaler skipped it."""
        self._steps += 1
        self._skipped += not applied
        if self._first is not None:
            self._first.progress.update(1)

    def write(
        self, done: int, *, loss: float, learning_rate: float, logit_scale: float, gradient_norm: float, replaced: int
    ) -> None:
        """Write one line about the steps since the last one. `replaced` counts over all processes."""
        seconds = time.perf_counter() - self._started
        if self._first is not None:
            samples = self._steps * self._plan.global_size
            self._first.write(
                {
                    "step": done,
                    "epoch": done * self._plan.global_size / self._plan.rows,
                    "samples": done * self._plan.global_size,
                    "loss": loss,
                    "learning_rate": learning_rate,
                    "logit_scale": logit_scale,
                    "gradient_norm": gradient_norm,
                    "seconds": seconds / self._steps,
                    "samples_per_second": samples / seconds,
                    "data_wait": self._waited / seconds,
                    "replaced": replaced,
                    "skipped": self._skipped,
                }
            )
        self._started = time.perf_counter()
        self._waited = 0.0
        self._steps = self._skipped = 0


class _FirstProcess:
    """The files and the bar that only process 0 has."""

    def __init__(self, run_dir: str, plan: BatchPlan, first_step: int, last_step: int) -> None:
        path = os.path.join(run_dir, METRICS)
        _keep_lines(path, "step", first_step + 1)
        self._lines = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)
        self._events = EventFileWriter(os.path.join(run_dir, "tensorboard"))
        # TensorBoard forgets what it has for later steps when a session starts at this one.
        self._events.add_event(
            Event(wall_time=time.time(), step=first_step + 1, session_log=SessionLog(status=SessionLog.START))
        )
        self._last_step, self._said = last_step, -_SAY_S
        self.progress = Progress(last_step - first_step, "steps", "train")

    def write(self, line: dict[str, int | float]) -> None:
        self._lines.write(json.dumps(line) + "\n")
        self._lines.flush()
        values = [Summary.Value(tag=f"train/{key}", simple_value=value) for key, value in line.items() if key != "step"]
        self._events.add_event(Event(wall_time=time.time(), step=int(line["step"]), summary=Summary(value=values)))
        now = time.monotonic()
        if now - self._said < _SAY_S and line["step"] != self._last_step:
            return
        self._said = now
        log.info(
            "step %d: loss %.4f, lr %.2e, scale %.2f, %.1f samples/s, %.0f%% waiting for data",
            line["step"],
            line["loss"],
            line["learning_rate"],
            line["logit_scale"],
            line["samples_per_second"],
            100 * line["data_wait"],
        )

    def close(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.progress.__exit__(kind, error, trace)
        self._lines.close()
        self._events.close()


def _keep_lines(path: str, key: str, below: int) -> None:
    """Drop the lines of a JSONL file whose `key` is not below a number, and a last line that a kill cut short."""
    if not os.path.exists(path):
        return
    kept = []
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            if not line.endswith("\n"):
                break
            if json.loads(line)[key] < below:
                kept.append(line)
    storage.write_atomic(path, "".join(kept).encode())
