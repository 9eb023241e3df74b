"""`deepspeed --num_gpus N --module trainer --config FILE [key=value …]`: one process of a training run.

`--check` prints what would happen, reads the manifest if it is there, and touches nothing: no GPU, no DeepSpeed, no process group.
The launcher puts `--local_rank=N` before everything else; the places in the run come from the environment, so it is accepted and hidden.
"""

import argparse
import atexit
import multiprocessing.util  # registers its end with atexit, so that ours comes first
import os
import signal
from typing import NoReturn

from pipeline.contracts.cli import config_parser, parse, run_cli
from pipeline.contracts.config import load_config
from pipeline.contracts.errors import HouseError
from trainer.config import TrainConfig, resolve

TOLD_TO_END = 128 + signal.SIGTERM
"""143: the exit code of a run that SIGTERM has ended before its last step. It is saved, and the same command goes on."""
_FIRST_PROCESS_SPEAKS_S = 8.0


def enter() -> NoReturn:
    """`run_cli(main)`, and workers that an error left are killed."""
    atexit.register(_kill_workers)
    run_cli(main)


def _kill_workers() -> None:
    """Before multiprocessing sends a SIGTERM that they do not hear, and waits."""
    for worker in multiprocessing.active_children():
        worker.kill()


def main(argv: list[str]) -> int:
    """The command line of one process; returns the exit code."""
    parser = config_parser("deepspeed --module trainer", "Train a CLIP model on a corpus of image-text pairs.")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parse(parser, argv)
    try:
        config = resolve(load_config(TrainConfig, arguments.config, arguments.overrides))
    except HouseError:
        _let_first_process_speak()
        raise
    if arguments.check:
        from trainer import zero  # torch: seconds that a refused configuration must not cost
        from trainer.check import describe  # a training process needs none of it

        print(describe(config, world_size=zero.world_size_or_one()))
        return 0
    return run(config)


def run(config: TrainConfig) -> int:
    """Train, as one process of a run; on the way out the others learn how it went, so that none of them hangs.

    Returns 0, or TOLD_TO_END: for a SIGTERM, or after `safety.ask_to_end` from a thread.
    """
    from trainer import train, zero  # DeepSpeed and the rest of the trainer

    try:
        done = train.train(config)
    except HouseError:
        _let_first_process_speak()
        zero.leave_processes(failed=True)
        raise
    except BaseException as error:
        if isinstance(error, RuntimeError):
            zero.explain(error)
        zero.leave_processes(failed=True)
        raise
    zero.leave_processes()
    return 0 if done else TOLD_TO_END


def _let_first_process_speak() -> None:
    """Wait before leaving with an error, unless this is process 0.

    The launcher ends all processes as soon as one has gone. Of an error that all have, process 0 speaks and the others are ended in their
    wait; an error that only this one has is said when the wait is over.
    """
    if os.environ.get("RANK", "0") != "0":
        from trainer import safety  # loads torch, which a first process with a wrong configuration does without

        safety.step_aside(_FIRST_PROCESS_SPEAKS_S)


if __name__ == "__main__":
    enter()
