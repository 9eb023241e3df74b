"""Reading many files at once: an object store answers each request after some tens of milliseconds, which is mostly waiting."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Value = TypeVar("Value")

READERS = 16
"""Files that are read at once."""


def at_once(function: Callable[[Item], Value], items: Sequence[Item]) -> list[Value]:
    """`function` of each item, in their order, READERS of them at a time; what it raises first in that order is raised here."""
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(function, items))
