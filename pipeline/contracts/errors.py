"""Errors that a user sees, and the exit code each kind of them ends a command with.

    HouseError            1   the run failed
    ├── InputError        2   wrong input or configuration: the user can mend it
    ├── RunError          1   the run failed for another reason that we can name
    │   └── StoreTrouble  1   the store does not answer, or says that it is busy: the same request may succeed later
    └── AuditFinding      3   the audit did its work and found something

A message is one sentence that a stranger can act on: the place, the value (`!r`), the next step. `contracts.cli.run_cli` prints
it on stderr without a traceback. Anything else that escapes is a bug of ours and keeps its traceback.
"""

import os


class HouseError(Exception):
    """Base of every error that is shown to the user as one sentence."""

    exit_code = 1


class InputError(HouseError):
    """The configuration or the input data is wrong."""

    exit_code = 2


class RunError(HouseError):
    """The run failed although the input was accepted: a lost worker, another driver, a broken store."""

    exit_code = 1


class StoreTrouble(RunError):
    """An object store that has answered before is silent or busy; who can wait may ask again."""


class AuditFinding(HouseError):
    """The audit is complete and its answer is not clean."""

    exit_code = 3


def ray_said(error: Exception) -> str:
    """What Ray gives as the reason why it does not start or no cluster answers. It has no class for that: it raises Python's own, some of
    them bare. Any other error is a bug and raised again."""
    if type(error) is not Exception and not isinstance(error, OSError | RuntimeError | ValueError):
        raise error
    return " ".join(str(error).split())[:200]


def ray_cannot_start(error: Exception) -> Exception:
    """What is raised where Ray was to be started on this machine: it has no place for its files, or a process of its node does not come up.
    An error that tells of neither stays as it is."""
    said = ray_said(error)
    if isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError):
        return InputError(
            f"Ray cannot start on this machine ({said}); it needs a folder for its files (RAY_TMPDIR, by default /tmp, "
            "a short name) and keeps a token in ~/.ray: set HOME to a folder that can be written, or RAY_AUTH_TOKEN to a long random word"
        )
    if isinstance(error, ValueError):
        return error
    folder = os.environ.get("RAY_TMPDIR", os.environ.get("TMPDIR", "/tmp"))
    return RunError(
        f"Ray does not come up on this machine ({said}); see {f'{folder}/ray/session_latest/logs'!r} (raylet.err first), the memory, "
        "the disk of RAY_TMPDIR, `ulimit -v` and `ulimit -f`, and run without PYTHONOPTIMIZE and PYTHONWARNINGS"
    )
