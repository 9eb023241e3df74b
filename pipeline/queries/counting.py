"""Counts by text, from many units to one sum: each unit's table is cut into partitions by a hash of the text, and summed a partition at
a time.

So no process holds more than a unit's or a partition's texts. A unit's counters are emptied into Arrow columns (a tenth of the memory
of a dictionary) whenever they hold a million entries.
"""

import zlib
from collections.abc import Iterable, Mapping

import pyarrow as pa
import pyarrow.compute as pc

COUNT_SCHEMA = pa.schema([("key", pa.string()), ("count", pa.int64())])
FULL = 1 << 20
"""Entries of a counter that is to be emptied."""


class Counts:
    """Sums by text that may be many."""

    def __init__(self) -> None:
        self._tables: list[pa.Table] = [COUNT_SCHEMA.empty_table()]

    def empty(self, counter: dict[str, int]) -> None:
        """Take over what a counter holds, and clear it."""
        columns = [pa.array(list(counter), pa.string()), pa.array(list(counter.values()), pa.int64())]
        self._tables.append(pa.table(columns, schema=COUNT_SCHEMA))
        counter.clear()

    def partitioned(self, partitions: int) -> pa.Table:
        """The sums with their `partition` in front, sorted by partition and text."""
        return in_partitions(_added(pa.concat_tables(self._tables)), "key", partitions)


def summed(table: pa.Table) -> pa.Table:
    """Rows of COUNT_SCHEMA, each text once with its sum, in the order of their bytes."""
    return _added(table).sort_by("key")


def _added(table: pa.Table) -> pa.Table:
    """The sums in any order."""
    found = table.group_by("key").aggregate([("count", "sum")])
    return found.select(["key", "count_sum"]).rename_columns(COUNT_SCHEMA.names).cast(COUNT_SCHEMA)


def partition_of(text: str, partitions: int) -> int:
    """Where a text is summed. CRC-32, because Python's own hash differs from process to process."""
    return zlib.crc32(text.encode()) % partitions


def in_partitions(table: pa.Table, column: str, partitions: int) -> pa.Table:
    """Rows with an int32 `partition` in front, that of the text in `column`; sorted by both."""
    found = pa.array((partition_of(text, partitions) for text in table[column].to_pylist()), pa.int32())
    table = table.add_column(0, "partition", found)
    return table.take(pc.sort_indices(table, sort_keys=[("partition", "ascending"), (column, "ascending")]))


def add_up(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The sum of small tables of counts, by name."""
    total: dict[str, int] = {}
    for part in parts:
        for name, number in part.items():
            total[name] = total.get(name, 0) + number
    return dict(sorted(total.items()))
