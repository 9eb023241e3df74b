"""Processes that end in a special way, of which test_safety.py asks how: one of them each.

    python -m tests.trainer.endings steps_aside_twice
    python -m tests.trainer.endings stopped_amid_a_beat PORT SLOW

SLOW is a port that leads to PORT, where this process has a store.
"""

import os
import signal
import sys
import time
import unittest.mock

import torch.distributed

from trainer import safety


def steps_aside_twice() -> None:
    """Told to end before it steps aside for the first time, and while it steps aside for the second."""

    def tell() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    safety.hold_sigterm()
    tell()
    safety.step_aside(0.3)
    print("has something to say", flush=True)
    with unittest.mock.patch.object(time, "sleep", side_effect=lambda _: tell()):  # between two looks
        safety.step_aside(60.0)
    print("must not be said")


def stopped_amid_a_beat(port: int, slow: int) -> None:
    safety.BEAT_S = 0.0  # the thread is in the store nearly all the time
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    safety.Heartbeat("127.0.0.1", slow, 0, 1, wait=torch.distributed.barrier).stop(failed=False)


if __name__ == "__main__":
    if sys.argv[1] == "steps_aside_twice":
        steps_aside_twice()
    else:
        stopped_amid_a_beat(*map(int, sys.argv[2:]))
