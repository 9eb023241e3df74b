"""Reading many files at once: an object store answers each request after some tens of milliseconds, which is mostly waiting."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Value = TypeVar("Value")

READERS = 16
"""Files that are read at once."""


def at_once(function: Callable[[Item], Value], items: Sequence[Item]) -> list[Value]:
    """`function` of each item, in their order, READERS of them at a time; what it raises first in that order is raised here."""
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(function, items))


def in_turn(function: Callable[[Item], Value], items: Iterable[Item]) -> Iterator[Value]:
    """As `at_once`, handed over one by one: no more than READERS values are there that nobody has taken."""
    ahead: deque[Future[Value]] = deque()
    with ThreadPoolExecutor(READERS) as pool:
        for item in items:
            if len(ahead) == READERS:
                yield ahead.popleft().result()
            ahead.append(pool.submit(function, item))
        while ahead:
            yield ahead.popleft().result()
