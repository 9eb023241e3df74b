"""One driver at a time in a run's folder: two of them would write each other's checkpoints and metrics."""

import errno
import fcntl
import logging
import os
import socket
import time
from typing import IO

from pipeline.contracts import storage
from pipeline.contracts.errors import RunError

log = logging.getLogger("trainer")

LOCK = "lock"
_PATIENCE_S = 10.0
"""A run that was just killed or told to end may need a moment to be gone."""


def take(run_dir: str, patience_s: float = _PATIENCE_S) -> IO[str]:
    """Lock `run_dir` for this process, which holds it until the file that is returned is closed or the process ends, however it ends.

    The lock is the kernel's (POSIX), which NFS knows too and child processes do not inherit; the file says who holds it. Raises RunError
    where another process does, after waiting for it so many seconds.
    """
    storage.make_folder(run_dir)
    path = os.path.join(run_dir, LOCK)
    with storage.plain_errors(path, "write"):
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (held open)
    until = time.monotonic() + patience_s
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                log.warning(
                    "%s: no locks there (%s); see to it that no second run uses this folder", path, error.strerror
                )
                return file
        if time.monotonic() >= until:
            file.seek(0)
            holder = file.read(500).strip() or "another process"
            file.close()
            raise RunError(
                f"run.dir: {run_dir!r} is in use by {holder}; wait for it or end it, or choose another run.dir"
                f" (a lock that outlived its machine: remove {path})"
            )
        time.sleep(0.2)
    with storage.plain_errors(path, "write"):
        file.truncate(0)
        file.write(f"{socket.gethostname()}, process {os.getpid()}\n")
        file.flush()
    return file
