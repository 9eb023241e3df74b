"""precap and balance (balance.mode = "hard_cap"): at most N pairs a query, over a corpus that no one process holds.

The arithmetic is pipeline/balance.py's. The ledger of both modes is written here.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import balance
from pipeline.commit import Result, Unit
from pipeline.contracts import parquet, storage
from pipeline.contracts.config import Json, digest_json
from pipeline.engine import Run
from pipeline.keys import one_array
from pipeline.match import QUERY_COLUMNS, QueryList
from pipeline.shard import shard_count
from pipeline.stages.common import Output, part_units, partition_units, read_all, read_part, read_partition, run_stage

ASSIGNED_SUFFIX = ".assigned.parquet"
COUNT_SCHEMA = pa.schema([("query_id", pa.int32()), ("rows", pa.int64())])
_ROWS_PER_PARTITION = 4_000_000
"""Rows whose queries make a partition of `heads`, on average: 4 million keys of 20 bytes, 0.8 GB while they are merged."""
_KEYS_AT_ONCE = 1_000_000
"""Keys that wait at least until they are merged."""


def at_most(
    driver: Run, name: str, cap: int, seed: int, parts: Output, queries: QueryList, sources: Sequence[str | None] = ()
) -> Output:
    """At most `cap` pairs a query. Four small steps give every query its limit; the last applies them to each file on its own.

    `sources` (a value per query) go into the ledger of `balance`. Memory: a count per query, and the `cap` smallest keys of the queries of
    one partition, twice; the files of the step before are read one after the other.
    """
    number = len(queries.queries)
    units = part_units(parts)
    matches = functools.partial(read_part, driver.out, ["uid", "query_ids"])
    counted = run_stage(
        driver, f"{name}-counts", number, [parts], units, matches, functools.partial(_counts, number), accounted=False
    )
    matched = summed(driver, f"{name}-matched", counted, counted.files)
    partitions = shard_count(parts.rows, _ROWS_PER_PARTITION)
    heads = run_stage(
        driver,
        f"{name}-heads",
        [cap, seed, partitions],
        [parts, matched],
        units,
        matches,
        functools.partial(_heads, driver.out, matched.files[0], number, cap, seed, partitions),
        accounted=False,
        partitioned=True,
    )
    assigned = summed(driver, f"{name}-assigned", heads, heads.beside(ASSIGNED_SUFFIX))
    limits = run_stage(
        driver,
        f"{name}-limits",
        [cap, partitions],
        [heads, assigned],
        partition_units(partitions),
        functools.partial(_read_heads, driver.out, heads.files, cap),
        functools.partial(_limits, driver.out, assigned.files[0], number, cap),
        accounted=False,
    )
    kept = run_stage(
        driver,
        name,
        [cap, seed],
        [parts, matched, limits],
        units,
        functools.partial(read_part, driver.out, None),
        functools.partial(_keep, driver.out, matched.files[0], limits.files, number, seed),
    )
    if name == "balance":
        work = functools.partial(_ledger, driver.out, matched.files[0], assigned.files[0], queries, sources, cap)
        write_ledger(driver, ["hard_cap", cap], [matched, assigned], queries, sources, work)
    return kept


def write_ledger(
    driver: Run,
    config: Json,
    inputs: Sequence[Output],
    queries: QueryList,
    sources: Sequence[str | None],
    work: Callable[[pa.Table, Unit], Result],
) -> None:
    """The stage `ledger`, of both modes: one unit that reads nothing but the counts which `work` knows of."""
    told = [config, queries.digest, digest_json(list(sources))]
    run_stage(driver, "ledger", told, inputs, [Unit("all")], nothing, work, accounted=False, version=2)


def query_sources(uri: str, queries: QueryList) -> list[str | None]:
    """Where each query comes from: the column `source` of a Parquet list; null for lists that have none."""
    if not uri.lower().endswith(".parquet"):
        return [None] * len(queries.queries)
    with parquet.open_file(uri) as source:
        names = source.schema_arrow.names
    text = next((name for name in QUERY_COLUMNS if name in names), None)
    if text is None or "source" not in names:
        return [None] * len(queries.queries)
    table = parquet.read(uri, [text, "source"])
    origins = table["source"].to_pylist()
    told = [", ".join(map(str, value)) if isinstance(value, list) else value and str(value) for value in origins]
    # The first of several spellings is the one that load_queries keeps.
    found = dict(
        reversed([((query or "").strip(), origin) for query, origin in zip(table[text].to_pylist(), told, strict=True)])
    )
    return [found.get(query) for query in queries.queries]


def summed(driver: Run, name: str, counted: Output, files: list[str]) -> Output:
    """A step that adds up the counts (COUNT_SCHEMA) in `files`, which `counted` committed, a file at a time."""
    read = functools.partial(_read_sum, driver.out, files)
    return run_stage(driver, name, None, [counted], [Unit("all")], read, as_read, accounted=False)


def nothing(unit: Unit) -> pa.Table:
    """The rows of a unit whose work reads committed counts by itself."""
    return COUNT_SCHEMA.empty_table()


def count_table(counts: npt.NDArray[np.int64]) -> pa.Table:
    """Counts per query without the zeros."""
    present = np.flatnonzero(counts)
    return pa.table([pa.array(present.astype(np.int32)), pa.array(counts[present])], schema=COUNT_SCHEMA)


def _dense(table: pa.Table, number: int) -> npt.NDArray[np.int64]:
    """Counts per query, int64 of shape (number,), summed over rows of COUNT_SCHEMA."""
    ids, rows = (one_array(table[name]).to_numpy(zero_copy_only=False) for name in COUNT_SCHEMA.names)
    dense = np.zeros(number, np.int64)
    np.add.at(dense, ids, rows)
    return dense


def _counts(number: int, table: pa.Table, unit: Unit) -> Result:
    return Result(count_table(balance.counts(table, number)))


def _read_sum(out: str, files: Sequence[str], unit: Unit) -> pa.Table:
    total = np.zeros(0, np.int64)
    for name in files:
        table = parquet.read(storage.join(out, name))
        if table.num_rows:
            total.resize(max(len(total), 1 + pc.max(table["query_id"]).as_py()), refcheck=False)
            total += _dense(table, len(total))
    return count_table(total)


def as_read(table: pa.Table, unit: Unit) -> Result:
    """The work of a unit whose reading does it all."""
    return Result(table)


def read_counts(out: str, name: str, number: int) -> npt.NDArray[np.int64]:
    """Counts per query, int64 of shape (number,), from a committed table of COUNT_SCHEMA."""
    return _dense(parquet.read(storage.join(out, name)), number)


def _heads(
    out: str, matched: str, number: int, cap: int, seed: int, partitions: int, table: pa.Table, unit: Unit
) -> Result:
    assigned = balance.assign(table, read_counts(out, matched, number))
    heads = balance.heads(table["uid"], assigned, cap, seed)
    partition = (one_array(heads["query_id"]).to_numpy(zero_copy_only=False) % partitions).astype(np.int32)
    order = pa.array(np.argsort(partition, kind="stable"))
    rows = heads.take(order).add_column(0, "partition", pa.array(partition).take(order))
    return Result(rows, beside={ASSIGNED_SUFFIX: count_table(balance.totals(assigned, number))})


def _read_heads(out: str, files: Sequence[str], cap: int, unit: Unit) -> pa.Table:
    """The heads of all files in one partition of queries: never more at once than twice those that are left of them."""
    merged, waiting, rows = balance.HEAD_SCHEMA.empty_table(), [], 0
    for name in files:
        waiting.append(read_partition(out, [name], unit))
        rows += waiting[-1].num_rows
        if rows > max(_KEYS_AT_ONCE, merged.num_rows):
            merged, waiting, rows = balance.merge_heads(pa.concat_tables([merged, *waiting]), cap), [], 0
    return balance.merge_heads(pa.concat_tables([merged, *waiting]), cap)


def _limits(out: str, assigned: str, number: int, cap: int, table: pa.Table, unit: Unit) -> Result:
    return Result(balance.selection(table, cap, read_counts(out, assigned, number)))


def _keep(
    out: str, matched: str, limit_files: Sequence[str], number: int, seed: int, table: pa.Table, unit: Unit
) -> Result:
    assigned = balance.assign(table, read_counts(out, matched, number))
    kept, rejected = balance.apply(table, assigned, read_all(out, limit_files, unit), seed)
    return Result(kept, rejected)


def _ledger(
    out: str,
    matched: str,
    assigned: str,
    queries: QueryList,
    sources: Sequence[str | None],
    cap: int,
    table: pa.Table,
    unit: Unit,
) -> Result:
    number = len(queries.queries)
    counted = read_counts(out, assigned, number)
    kept = np.minimum(counted, cap)
    return Result(balance.ledger(queries.queries, sources, read_counts(out, matched, number), counted, kept, kept))
