"""Open files of the process: how many it may have, how many a crawl needs, and whether a failure was only for want of them.

A process that has no file left for a socket says nothing about a URL, and what a unit records is never fetched again. So a crawl starts
only where there are enough, and where they run out all the same a URL is tried again, until the run ends with a sentence.
"""

import contextlib
import errno
import os
import resource

from pipeline.contracts.errors import InputError, RunError

OURS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Errors that say something about this machine and nothing about a server."""

_FILES_WANTED = 65_536  # the soft limit is raised to this, where the hard one lets it
_FILES_BESIDE = 128  # of the process itself: libraries, pipes, the store
_FILES_A_FETCH = 6  # sockets to four addresses tried beside each other, two for the look-up of a name
_MOST_IDLE = 4096
WAIT_S = 0.1
"""Until files are looked for again."""


def most_files() -> int:
    """How many files this process may have open, once the soft limit is raised towards the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES_WANTED if hard == resource.RLIM_INFINITY else min(hard, _FILES_WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # macOS promises more than it gives
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return _FILES_WANTED if soft == resource.RLIM_INFINITY else soft


def require_files(at_once: int, key: str) -> int:
    """Idle connections that there is room for beside `at_once` fetches, a number that `key` of the configuration gave.

    Raises InputError where the process may not even open what these need.
    """
    most, needed = most_files(), _FILES_BESIDE + _FILES_A_FETCH * at_once
    if most < needed:
        raise InputError(
            f"{key}: {at_once!r} fetches at once need {needed:,} open files and this process may have {most:,} "
            "(RLIMIT_NOFILE); lower it, or raise the limit (ulimit -n)"
        )
    return min(most - needed, _MOST_IDLE)


def no_file_to_open() -> bool:
    """Whether the process can open nothing just now: what failed then may have failed for that, whatever it was said to be."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error.errno in OURS
    return False


def starved(seconds: float, key: str) -> RunError:
    """What a run ends with that found no file for one URL in all its time."""
    return RunError(
        f"crawl: no file could be opened for {seconds:g} s (this process may have "
        f"{resource.getrlimit(resource.RLIMIT_NOFILE)[0]:,}, RLIMIT_NOFILE); "
        f"raise the limit (ulimit -n) or lower {key}, then run again"
    )
