"""Rows of a corpus by number, a group of rows at a time: what was read is kept within bounds, what comes next is read ahead.

A corpus, be it Parquet shards (`shards.py`) or tars (`tars.py`), is a list of groups of a few MiB, each read whole by one request for each
column that is needed. The loader asks for the rows of a batch in rising order, so that each group that a batch touches is read once, and
says which rows it will want next, so that threads fetch their groups while this one decodes: an object store takes tens of
milliseconds to answer, a worker decodes a group in about as many.
"""

import collections
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from pipeline.contracts.errors import StoreTrouble
from trainer.data.order import Int64s

log = logging.getLogger("trainer")

Value = TypeVar("Value")

_WAITS_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
_PATIENCE_S = 75.0
"""No further wait begins that would end later than this after the first failure: a silent store takes minutes for each answer."""


class Row(NamedTuple):
    """What a row holds; None where the corpus has nothing, or nothing that can be read."""

    caption: str | None
    image: bytes | None


class Group(Protocol):
    """The rows of one group, in memory."""

    @property
    def nbytes(self) -> int: ...
    def row(self, place: int) -> Row: ...


class Source(Protocol):
    """An opened corpus, of one process."""

    def read(self, group: int) -> Group:
        """One group, whole; any thread may ask. Raises InputError where it is damaged, StoreTrouble where its store does not answer."""


class Corpus(Protocol):
    """What a run trains on. It travels to the workers, so it holds no open files."""

    @property
    def place(self) -> str:
        """Where it is, for messages."""

    @property
    def content_root(self) -> str:
        """What it is: a digest over all that it holds."""

    @property
    def rows(self) -> int: ...
    @property
    def group_rows(self) -> list[int]: ...
    @property
    def group_bytes(self) -> list[int]: ...
    def open(self) -> Source: ...
    def captions(self) -> Iterator[str]:
        """Every caption that is there. Raises InputError where the corpus is damaged."""


def patiently(read: Callable[[], Value]) -> Value:
    """What `read` returns; it is tried again, for about a minute in all, while it raises StoreTrouble."""
    failed: float | None = None
    for wait in _WAITS_S:
        try:
            return read()
        except StoreTrouble as trouble:
            now = time.monotonic()
            failed = now if failed is None else failed
            if now + wait - failed > _PATIENCE_S:
                raise
            log.warning("data is not there, next try in %g s: %s", wait, trouble)
            time.sleep(wait)
    return read()


class RowReader:
    """Random access to the rows of `corpus`, numbered from 0 through its groups.

    At most `cache_bytes` of groups are kept (but always the last one), and at most `ahead` more are on their way or waiting to be wanted.
    """

    def __init__(self, corpus: Corpus, *, cache_bytes: int, ahead: int) -> None:
        self._source = corpus.open()
        self._group_start = np.concatenate([[0], np.cumsum(np.asarray(corpus.group_rows, dtype=np.int64))])
        self._cache_bytes, self._ahead = cache_bytes, ahead
        self._kept: collections.OrderedDict[int, Group] = collections.OrderedDict()
        self._coming: dict[int, Future[Group]] = {}
        self._readers = ThreadPoolExecutor(ahead, thread_name_prefix="read-ahead") if ahead else None
        self.kept_bytes = 0
        self.groups_read = 0

    def read(self, rows: Int64s, then: Int64s | None = None) -> Iterator[Row]:
        """The rows with the given numbers (int64 [n]), in the order asked; `then` are those that will be asked for next.

        Raises InputError where a group is damaged, StoreTrouble where its store does not answer for a minute.
        """
        groups = self._groups_of(rows)
        later = [] if then is None else self._groups_of(then)
        wanted = collections.deque(dict.fromkeys([*groups, *later]))
        last, found = -1, None
        for row, number in zip(rows.tolist(), groups, strict=True):
            if number != last or found is None:
                last, found = number, self._group(number)
                self._fetch_ahead(wanted)
            yield found.row(row - int(self._group_start[number]))

    def _groups_of(self, rows: Int64s) -> list[int]:
        numbers: list[int] = (np.searchsorted(self._group_start, rows, side="right") - 1).tolist()
        return numbers

    def _fetch_ahead(self, wanted: collections.deque[int]) -> None:
        """Send for the first groups of `wanted` that are not here, as many as may be on their way, and take those off the list."""
        while self._readers is not None and wanted and len(self._coming) < self._ahead:
            number = wanted.popleft()
            if number not in self._kept and number not in self._coming:
                self._coming[number] = self._readers.submit(self._read, number)

    def _read(self, number: int) -> Group:
        return patiently(lambda: self._source.read(number))

    def _group(self, number: int) -> Group:
        kept = self._kept.get(number)
        if kept is not None:
            self._kept.move_to_end(number)
            return kept
        coming = self._coming.pop(number, None)
        found = self._read(number) if coming is None else coming.result()
        self.groups_read += 1
        self._kept[number] = found
        self.kept_bytes += found.nbytes
        while self.kept_bytes > self._cache_bytes and len(self._kept) > 1:
            self.kept_bytes -= self._kept.popitem(last=False)[1].nbytes
        return found
