"""Errors that a user sees, and the exit code each kind of them ends a command with.

    HouseError            1   the run failed
    ├── InputError        2   wrong input or configuration: the user can mend it
    ├── RunError          1   the run failed for another reason that we can name
    │   └── StoreTrouble  1   the store does not answer, or says that it is busy: the same request may succeed later
    └── AuditFinding      3   the audit did its work and found something

A message is one sentence that a stranger can act on: the place, the value (`!r`), the next step. `contracts.cli.exit_code` prints
it on stderr without a traceback. Anything else that escapes is a bug of ours and keeps its traceback.
"""


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
