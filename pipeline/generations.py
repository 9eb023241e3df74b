"""Generations of a crawl: rows that failed, fetched again by request, beside the first recording and never instead of it.

`python -m pipeline retry` writes a request, OUT/retries/CRAWL/0001.json, which names reasons of rejection; CRAWL is the digest of the
crawl's
folder, so that another crawl has requests of its own. From then on every run fetches, once, the rows that stand rejected for these
reasons, as
the stage `retry-1`, whose output goes on to deduplication beside the crawl's own. The crawl's files and records stay as they are.

A row's last verdict counts: it stands rejected when the newest generation that fetched it (or the crawl) rejected it. So over all
generations
rows in = rows out + rows that stand rejected, and no row is counted twice.
"""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pydantic

from pipeline.contracts import storage
from pipeline.contracts.config import StrictModel
from pipeline.contracts.errors import InputError, RunError

STANDING_SCHEMA = pa.schema([("uid", pa.binary(16)), ("reason", pa.string())])
"""A row that stands rejected."""


class Request(StrictModel):
    """What one generation fetches again."""

    reasons: tuple[str, ...]


def folder(out: str, crawl_folder: str) -> str:
    """Where the requests for a crawl lie; `crawl_folder` is its folder relative to the output."""
    return storage.join(out, "retries", storage.name(crawl_folder))


def requests(out: str, crawl_folder: str) -> list[Request]:
    """The requests for a crawl, in order. Raises InputError when one is damaged."""
    found = []
    for uri in storage.list_files(folder(out, crawl_folder)):
        try:
            found.append(Request.model_validate_json(storage.read_bytes(uri)))
        except pydantic.ValidationError:
            raise InputError(
                f"{uri}: is damaged, no request of `retry`; restore it, its generation depends on it"
            ) from None
    return found


def ask(out: str, crawl_folder: str, number: int, request: Request) -> None:
    """Commit request `number` (from 1). Raises RunError when somebody else was first."""
    uri = storage.join(folder(out, crawl_folder), f"{number:04d}.json")
    if not storage.put_if_absent(uri, (request.model_dump_json() + "\n").encode()):
        raise RunError(f"{uri}: another `retry` has asked for this generation; wait for it, then run again")


def stands(rejected: pa.Table, later: Sequence[tuple[pa.Table, pa.Table]]) -> pa.Table:
    """The rows of a unit that stand rejected (STANDING_SCHEMA): `rejected` are the crawl's, `later` has for each generation the rows that
    it
    was asked to fetch (`uid`) and those that it rejected (`uid`, `reason`)."""
    standing = rejected.select(STANDING_SCHEMA.names).cast(STANDING_SCHEMA)
    for asked, again in later:
        still = pc.invert(pc.is_in(standing["uid"], value_set=asked["uid"].combine_chunks()))
        standing = pa.concat_tables([standing.filter(still), again.select(STANDING_SCHEMA.names).cast(STANDING_SCHEMA)])
    return standing.combine_chunks()


def rows_to_fetch(rows: pa.Table, standing: pa.Table, reasons: Sequence[str]) -> tuple[pa.Table, dict[str, int]]:
    """Of a unit's rows those that stand rejected for one of the reasons, in their order, and how many by reason."""
    wanted = standing.filter(pc.is_in(standing["reason"], value_set=pa.array(list(reasons), pa.string())))
    counted = pc.value_counts(wanted["reason"]).to_pylist()
    counts = {entry["values"]: entry["counts"] for entry in sorted(counted, key=lambda entry: str(entry["values"]))}
    return rows.filter(pc.is_in(rows["uid"], value_set=wanted["uid"].combine_chunks())), counts
