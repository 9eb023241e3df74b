"""How a run of a given size is cut: the units of each stage, the memory that one takes, and the files that they open of each other.

Units are those of pipeline/stages, by its constants and the keys of a configuration. Between some stages rows change their units: then a
unit opens every file of the stage before, and each of these files has a row group for each unit, of which its footer tells. So the bytes
of footers grow with the square of the units, and so does the time to read them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pipeline.config import PipelineConfig
from pipeline.contracts.parquet import ROW_GROUP_BYTES
from pipeline.contracts.schema import CANDIDATE_SCHEMA, MATCHED_SCHEMA, SHARD_SCHEMA
from pipeline.dedup.blocks import KEY_SCHEMA, SHARED_SCHEMA
from pipeline.dedup.copies import COPY_SCHEMA, KIND_SCHEMA
from pipeline.shard import DEFAULT_ROWS, shard_count
from pipeline.stages.candidates import ROWS_PER_PARTITION
from pipeline.stages.common import partition_count
from pipeline.stages.duplicates import ROWS_PER_KEY_PARTITION, ROWS_PER_KIND_PARTITION

READS_PER_FILE = 4
"""Requests to open a file and read a row group: its size, the end of its footer, the rest of the footer, the row group."""
FOOTER_BYTES = 131
"""Of a column of a row group, in a footer; measured on tables of CANDIDATE_SCHEMA and MATCHED_SCHEMA."""
FOOTER_SECONDS = 20e-6
"""To read of a row group in a footer, and to look at its statistics; measured on the same tables, x86_64."""

_HELD_PER_ROW = {"candidates": 800, "exact": 650}
"""Bytes of memory a row of a unit takes: of a text table, and as pipeline/stages/candidates.py has measured it."""
_HELD_PER_FILTERED = 1_100
"""The same from the filter on, without pictures."""
_HELD_PER_STORED = 3.5
"""Bytes of memory for a byte of a stored picture: measured on a unit of the crawl, from decoding to the commit. `shards` takes less."""


class Opened(NamedTuple):
    """`files` times a file is opened, of `groups` row groups with `columns` columns."""

    files: int
    groups: int = 1
    columns: int = len(SHARD_SCHEMA)

    @property
    def footer_bytes(self) -> int:
        return self.files * self.groups * self.columns * FOOTER_BYTES

    @property
    def footer_seconds(self) -> float:
        return self.files * self.groups * FOOTER_SECONDS


class Cut(NamedTuple):
    """How one stage is cut."""

    units: int
    unit_bytes: int
    """Memory that a unit takes, on average."""
    opened: Sequence[Opened]
    """What all its units with their steps open. Steps of one unit and those a query are left out: they are few."""
    picture_bytes: int = 0
    """What it reads of the crawl's pictures, in whole row groups: where its ranges are narrower than those, each is read several times."""
    footers: Opened = Opened(0)
    """The files that it writes for the units of another stage: their footers are disk that a small run does not have."""


def cut(
    pipeline: PipelineConfig, rows: Mapping[str, tuple[int, int]], picture_bytes: int, shard_bytes: int
) -> dict[str, Cut]:
    """The cut of each stage, for `rows` (in, out) of them, `picture_bytes` of pictures in the crawl's files, `shard_bytes` in the shards.

    Sources are taken to be Parquet; what `[[policy]]` and dedup.exact add is left out.
    """
    candidates = rows["candidates"][0]
    files = math.ceil(candidates / pipeline.sources.rows_per_unit)
    parts = partition_count(candidates, *ROWS_PER_PARTITION)
    hosts = pipeline.crawl.units
    kinds = shard_count(rows["crawl"][1], ROWS_PER_KIND_PARTITION)
    keys = partition_count(rows["crawl"][1], *ROWS_PER_KEY_PARTITION)
    pictures = Opened(hosts, max(1, math.ceil(picture_bytes / hosts / ROW_GROUP_BYTES)))
    if pipeline.shard.bytes is not None:
        shards = shard_count(shard_bytes, pipeline.shard.bytes)
    else:
        shards = shard_count(rows["shards"][1], pipeline.shard.rows or DEFAULT_ROWS)

    def held(stage: str, units: int) -> int:
        return round(rows[stage][0] * _HELD_PER_ROW.get(stage, _HELD_PER_FILTERED) / units)

    # A row group a partition, where a file has so many rows.
    by_uid = Opened(files, min(parts, math.ceil(rows["candidates"][1] / files)), len(CANDIDATE_SCHEMA) + 1)
    by_host = Opened(parts, min(hosts, math.ceil(rows["crawl"][0] / parts)), len(MATCHED_SCHEMA) + 1)
    return {
        "candidates": Cut(files, held("candidates", files), [Opened(files)], footers=by_uid),
        "exact": Cut(parts, held("exact", parts), [_by_each(parts, by_uid)]),
        "filter": Cut(parts, held("filter", parts), [Opened(parts)]),
        "precap": Cut(parts, held("precap", parts), [Opened(3 * parts)]),  # counts, heads, the cap
        "crawl": Cut(
            hosts,
            round(picture_bytes * _HELD_PER_STORED / hosts),
            [Opened(2 * parts), _by_each(hosts, by_host)],  # domains, the split; a unit's rows
            footers=by_host,
        ),
        "dedup": Cut(
            hosts,
            held("dedup", hosts),
            [
                _by_each(4, pictures),  # kinds, keys, blocks, what stays
                _by_each(kinds, Opened(hosts, kinds, len(KIND_SCHEMA))),
                _by_each(2 * hosts, Opened(kinds, hosts, len(COPY_SCHEMA))),  # for the keys and for the blocks
                _by_each(keys, Opened(hosts, keys, len(KEY_SCHEMA))),
                _by_each(hosts, Opened(keys, hosts, len(SHARED_SCHEMA))),
            ],
        ),
        "balance": Cut(hosts, held("balance", hosts), [Opened(3 * hosts)]),  # counts, heads, the cap
        "shards": Cut(
            shards,
            round(shard_bytes * _HELD_PER_STORED / shards),
            [Opened(shards * hosts), _by_each(shards, pictures)],  # a range of uids lies in every file of both
            # and begins in the middle of a row group
            round(picture_bytes / pictures.groups * min(pictures.groups + shards, pictures.groups * shards)),
        ),
    }


def _by_each(units: int, opened: Opened) -> Opened:
    return opened._replace(files=units * opened.files)
