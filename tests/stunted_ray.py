"""A Ray whose node does not come up, in the process that calls `stunt` and has IMPATIENT; for those who want to see what is said then."""

import time
import types
from typing import Final

from ray._private import node, services

IMPATIENT: Final = {"RAY_raylet_start_wait_time_s": "1"}
"""Of the environment, where Ray reads it once: its C++ code waits for the raylet for a second instead of 30."""


def stunt() -> None:
    """The raylet ends at once, as it does where it gets no memory or can write no log; Ray's Python code waits for a second, too."""
    services.RAYLET_EXECUTABLE = "/bin/false"
    vars(node)["time"] = types.SimpleNamespace(
        monotonic=lambda: 30 * time.monotonic(), time=time.time, sleep=time.sleep
    )
