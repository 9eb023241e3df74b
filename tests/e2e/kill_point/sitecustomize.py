"""Kills a pipeline at one step of the commit protocol. Python imports this file by itself where its folder is on PYTHONPATH.

It belongs to test_kill.py and evaluation/test_overlap_kill.py, to nothing else: the product has no such hook.
KILL_POINT is "STAGE/UNIT/STEP" with STEP one of

    temporary   the unit's output is complete under its temporary name
    renamed     it has its committed name
    record      the record is written
    manifest    (with "publish/-") the manifest's copy is written and manifest.json is not
    file        (with "publish/NAME") the small file NAME is written

The first process, the driver, puts its number into the environment that Ray's processes inherit. Whichever process reaches the point
sends SIGKILL to the driver first and then to itself, so that neither gets to do anything more.
"""

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Value = TypeVar("Value")

WATCHED = ("pipeline.contracts.parquet", "pipeline.contracts.storage")


def die() -> None:
    # Ray asks the workers of a dead driver to end. One that is asked before its own kill comes would clean up, as no killed one does.
    with contextlib.suppress(ValueError):  # not the main thread, which alone hears of signals
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with contextlib.suppress(ProcessLookupError):  # dead already, and this worker outlived it
        os.kill(int(os.environ["KILL_POINT_DRIVER"]), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def then_die(function: Callable[Arguments, Value], at: str) -> Callable[Arguments, Value]:
    """`function`, after which the process dies when an argument is a path that matches."""
    pattern = re.compile(at)

    def wrapped(*given: Arguments.args, **named: Arguments.kwargs) -> Value:
        result = function(*given, **named)
        if any(isinstance(value, str) and pattern.search(value) for value in given):
            die()
        return result

    return wrapped


def arm(module: ModuleType) -> None:
    """Wrap the one function of `module` after which the process is to die."""
    stage, unit, step = os.environ["KILL_POINT"].split("/")
    folder = rf"/{stage}/[0-9a-f]{{12}}/"
    points = {
        "temporary": ("parquet", "write", rf"{folder}\.tmp-[0-9a-f]+-{unit}\.parquet$"),
        "renamed": ("storage", "commit_file", rf"{folder}{unit}-[0-9a-f]{{12}}\.parquet$"),
        "record": ("storage", "put_if_absent", rf"{folder}{unit}\.json$"),
        "file": ("storage", "write_atomic", rf"/{re.escape(unit)}$"),
        "manifest": ("storage", "write_atomic", r"/shards/manifest-[0-9a-f]{12}\.json$"),
    }
    place, name, at = points[step]
    if module.__name__.endswith(place):
        setattr(module, name, then_die(getattr(module, name), at))


class Loader(importlib.abc.Loader):
    """Loads a module as usual, then arms it."""

    def __init__(self, usual: importlib.abc.Loader) -> None:
        self._usual = usual

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._usual.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._usual.exec_module(module)
        arm(module)


class Finder(importlib.abc.MetaPathFinder):
    """Steps in for the watched modules."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in WATCHED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = Loader(spec.loader)
        return spec


if os.environ.get("KILL_POINT"):
    os.environ.setdefault("KILL_POINT_DRIVER", str(os.getpid()))
    sys.meta_path.insert(0, Finder())
