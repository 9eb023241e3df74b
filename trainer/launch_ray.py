"""`python -m trainer.launch_ray --workers N --config FILE [key=value …]`: the same run as `deepspeed --module trainer`, under Ray Train.

Ray places one worker on each GPU, joins the workers in a process group, and calls `trainer.__main__.run` in each. A worker that is lost
ends the others, and Ray starts all of them anew: they go on from the newest checkpoint, as the same command does under any launcher. The
checkpoints are the trainer's own, so a run that another launcher began goes on here, and the other way round. It is the door to ray.

An error that the user can read is no reason to start anew. The worker that meets it says so in the log book, an actor beside the driver;
workers that Ray starts later look there first, and the driver ends with that sentence and exit code. The log book also carries a SIGTERM
of the driver's (`ray job stop`, Kubernetes) to the workers, which save and end.
"""

import contextlib
import logging
import os
import threading
import time
from typing import Any, NamedTuple

import ray
import ray.exceptions
import ray.train
from ray.train import TrainingFailedError
from ray.train.torch import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.contracts import ray_start
from pipeline.contracts.cli import config_parser, parse, run_cli
from pipeline.contracts.config import load_config
from pipeline.contracts.errors import HouseError, InputError, RunError
from trainer.batch_plan import per_device_size
from trainer.config import TrainConfig, resolve

log = logging.getLogger("trainer")

MAX_FAILURES = 10
_ASK_EVERY_S = 1.0


def main(argv: list[str]) -> int:
    """The driver's command line; returns the exit code, which is that of `python -m trainer`."""
    parser = config_parser("python -m trainer.launch_ray", "Train a CLIP model with Ray Train, one worker on each GPU.")
    parser.add_argument("--workers", type=int, required=True, metavar="N", help="processes, and GPUs, of the run")
    parser.add_argument(
        "--max-failures",
        type=int,
        default=MAX_FAILURES,
        metavar="N",
        help=f"how often a lost worker starts all of them anew, from the newest checkpoint (default: {MAX_FAILURES})",
    )
    arguments = parse(parser, argv)
    config = resolve(load_config(TrainConfig, arguments.config, arguments.overrides))
    if arguments.workers < 1:
        raise InputError(f"--workers: {arguments.workers} is not a number of processes; give 1 or more")
    if arguments.max_failures < 0:
        raise InputError(f"--max-failures: {arguments.max_failures} is not a number of failures; give 0 or more")
    per_device_size(config, arguments.workers)
    if arguments.check:
        from trainer.check import describe  # a run needs none of it

        print(describe(config, world_size=arguments.workers))
        return 0
    return launch(config, arguments.workers, arguments.max_failures)


def launch(config: TrainConfig, workers: int, max_failures: int) -> int:
    """Run to the end on the cluster of RAY_ADDRESS, or on this machine; returns 0, or 143 for a run that was told to end.

    Raises what a worker has said, and RunError where workers were lost too often.
    """
    from trainer import safety

    on_cpu = os.environ.get("DS_ACCELERATOR") == "cpu"
    if not os.environ.get("RAY_ADDRESS"):
        # Slurm and systemd tell all processes of a job. Ray's own here inherit that they do not hear it, since the save needs them;
        # at the end Ray waits a second for each of them, in vain, before it kills it.
        safety.hold_sigterm()
    try:
        _connect(workers, on_cpu)
    finally:
        if safety.sigterm_came():
            raise KeyboardInterrupt
    safety.hold_sigterm()  # on a cluster too, from here on: the workers are told of it, and save
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    book: Any = ray.remote(_LogBook).options(num_cpus=0, scheduling_strategy=here).remote()
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # a relative place means what it means to the other launchers
    trainer = TorchTrainer(
        _work,
        train_loop_config={"config": config, "book": book, "on_cpu": on_cpu},
        scaling_config=ray.train.ScalingConfig(num_workers=workers, use_gpu=not on_cpu),
        run_config=ray.train.RunConfig(
            # Ray notes here what it does; of the run it holds nothing.
            name="ray",
            storage_path=os.path.abspath(config.run.dir),
            failure_config=ray.train.FailureConfig(max_failures=max_failures),
        ),
    )
    failure = _fit(trainer, book)
    entry: _Entry | None = ray.get(book.entry.remote())
    if entry is not None and entry.sentence is not None:
        raise (InputError if entry.code == InputError.exit_code else RunError)(entry.sentence)
    if failure is not None:
        raise RunError(
            f"--max-failures: the workers failed once more than {max_failures} times, at last with: {_last_line(failure)};"
            " see the log above, then start the same command again: it goes on from the newest checkpoint"
        ) from None
    if entry is None:  # a bug, with a traceback above
        raise RunError("Ray Train ended without a word of the workers'; see the log above")
    return entry.code


def _connect(workers: int, on_cpu: bool) -> None:
    """Join the cluster that RAY_ADDRESS names, which a submitted job has, or start Ray on this machine. Raises InputError and RunError."""
    address = os.environ.get("RAY_ADDRESS") or None
    # With its dashboard, which Ray Train asks for the state of its actors.
    ray_start.connect(address, "RAY_ADDRESS", dashboard=None)
    kind = "CPU" if on_cpu else "GPU"
    there = ray.cluster_resources().get(kind, 0.0)  # type: ignore[no-untyped-call]
    if there < workers and address is None:
        hint = "" if on_cpu else ", or set DS_ACCELERATOR=cpu to train on CPUs"
        raise InputError(f"--workers: {workers} workers need as many {kind}s and there are {there:g}; give fewer{hint}")
    if there < workers:
        log.warning(
            "%d workers need as many %ss, of which the cluster has %g now; Ray waits for more", workers, kind, there
        )


def _fit(trainer: TorchTrainer, book: Any) -> Exception | None:
    """`trainer.fit()`; returns what it raised, None where the workers came to their end.

    In a thread, because Ray would answer Ctrl-C by ending with 0; and the main one has a SIGTERM to hand on.
    """
    from trainer import safety

    raised: list[Exception] = []

    def fit() -> None:
        try:
            trainer.fit()
        except (TrainingFailedError, ray.exceptions.RayError) as error:
            raised.append(error)

    thread = threading.Thread(target=fit, name="fit", daemon=True)
    thread.start()
    told = False
    while thread.is_alive():
        if safety.sigterm_came() and not told:
            told = True
            log.info("told to end (SIGTERM): the workers save after the step they are in")
            book.tell_to_end.remote()
        thread.join(_ASK_EVERY_S)
    return raised[0] if raised else None


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


# ---- between driver and workers


class _Entry(NamedTuple):
    """How the run ended: its exit code, and what there is to say of an error."""

    code: int
    sentence: str | None


class _LogBook:
    """An actor: whether the run was told to end, and how it ended. The first entry stands."""

    def __init__(self) -> None:
        self._entry: _Entry | None = None
        self._told_to_end = False

    def entry(self) -> _Entry | None:
        return self._entry

    def write(self, entry: _Entry) -> None:
        self._entry = self._entry or entry

    def tell_to_end(self) -> None:
        self._told_to_end = True

    def told_to_end(self) -> bool:
        return self._told_to_end


def _work(given: dict[str, Any]) -> None:
    """One worker of the run, in a thread of an actor of Ray's, which has set RANK, WORLD_SIZE and the rest and made the process group."""
    book = given["book"]
    if ray.get(book.entry.remote()) is not None:
        return  # Ray has started the workers anew, but the run has ended
    if given["on_cpu"]:
        os.environ["DS_ACCELERATOR"] = "cpu"
    from trainer.__main__ import run

    threading.Thread(target=_listen, args=(book,), name="told to end", daemon=True).start()
    try:
        code, sentence = run(given["config"]), None
    except HouseError as error:
        code, sentence = error.exit_code, str(error)
    ray.get(book.write.remote(_Entry(code, sentence)))


def _listen(book: Any) -> None:
    """Hand on what the driver was told. The driver ends this process if it goes."""
    from trainer import safety

    with contextlib.suppress(ray.exceptions.RayError):
        while not ray.get(book.told_to_end.remote()):
            time.sleep(_ASK_EVERY_S)
        safety.ask_to_end()


if __name__ == "__main__":
    run_cli(main)
