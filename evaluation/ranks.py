"""Ranks as `retrieval` wrote them, read again, and two models compared on them: one row per query, and where its best right answer stood.

Recall at k is a share of queries, so two models are compared query by query, as their answers are in `compare`. From picture to caption a
picture asks once. From caption to picture the captions of one picture ask together: they are no independent evidence, and a unit of the
test is the picture. Its test is the exact one of signs (`intervals.signs`), which is McNemar's where a picture has one caption; the
interval is Tango's there, else a bootstrap over pictures. A caption that several pictures share counts with the first of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.intervals import Interval, bootstrap, clustered, paired_difference, signs
from evaluation.overlap.tables import PREDICTIONS_VERSION
from evaluation.predictions import open_table, set_name
from evaluation.retrieval import CUTOFFS, RANK_SCHEMA
from pipeline.contracts import parquet
from pipeline.contracts.errors import InputError

FOLDER = "retrieval"
DIRECTIONS = ("image_to_text", "text_to_image")
_QUERY = ("direction", "row", "eval_id", "sha256", "caption")


class Share(NamedTuple):
    """A share of `n` queries with its interval."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Ranks:
    """One model's ranks on one set: `queries` of the columns _QUERY, and `rank` int64[n], 0 is first."""

    place: str
    name: str
    model: str
    set_hash: str
    queries: list[tuple[object, ...]]
    rank: NDArray[np.int64]

    def asked(self, direction: str) -> NDArray[np.int64]:
        """The places of one direction's queries, int64[m]."""
        return np.array([place for place, query in enumerate(self.queries) if query[0] == direction], np.int64)

    def recall(self, direction: str, k: int, confidence: float) -> Share | None:
        """The share of a direction's queries that are answered among the first k; None where there is no query."""
        asked = self.asked(direction)
        if not len(asked):
            return None
        hit = self.rank[asked] < k
        return Share(float(hit.mean()), *clustered(hit, _units(self, asked), confidence), len(hit))


@dataclass(frozen=True)
class PairedRecall:
    """Two models' recall at `k` on one set: `wins` and `losses` of the second over the first among `n` queries of so many `pictures`.

    `first` and `second` are shares of all queries, `difference` is second minus first, `second_interval` is that of `second`.
    """

    name: str
    direction: str
    k: int
    n: int
    pictures: int
    first: float
    second: float
    second_interval: tuple[float, float]
    difference: Interval
    wins: int
    losses: int
    p: float


def holds_ranks(uri: str) -> bool:
    """Whether a file has ranks, and not predictions."""
    with parquet.open_file(uri) as source:
        return "rank" in source.schema_arrow.names


def read(uri: str) -> Ranks:
    """One file. Raises InputError for a missing column, another type, a missing or impossible value, another version."""
    table, metadata = open_table(uri)
    for field in RANK_SCHEMA:
        if table.column_names.count(field.name) != 1:
            found = "no column" if field.name not in table.column_names else "more than one column"
            raise InputError(f"{uri}: {found} {field.name!r}; run `retrieval` again")
        column = table[field.name]
        if column.type != field.type or column.null_count:
            wrong = f"{column.type}, not {field.type}" if column.type != field.type else "missing in some rows"
            raise InputError(f"{uri}: column {field.name!r} is {wrong}; run `retrieval` again")
    if not table.num_rows:
        raise InputError(f"{uri}: no rows; run `retrieval` first")
    version = metadata.get("format_version")
    if version != str(PREDICTIONS_VERSION):
        raise InputError(
            f"{uri}: format version {version!r}, this program reads {PREDICTIONS_VERSION}; run `retrieval` again"
        )
    queries = list(zip(*(table[name].to_pylist() for name in _QUERY), strict=True))
    strange = {str(query[0]) for query in queries} - set(DIRECTIONS)
    if strange:
        raise InputError(f"{uri}: direction {min(strange)!r} is none of {', '.join(DIRECTIONS)}; run `retrieval` again")
    if len({query[:2] for query in queries}) != len(queries):
        raise InputError(f"{uri}: a query comes twice; run `retrieval` again")
    rank = np.asarray(table["rank"], np.int64)
    if rank.min() < 0:
        raise InputError(f"{uri}: column 'rank' has {rank.min()}, and 0 is first; run `retrieval` again")
    return Ranks(
        place=uri,
        name=set_name(uri),
        model=metadata.get("model_sha256", ""),
        set_hash=metadata.get("set_content_hash", ""),
        queries=queries,
        rank=rank,
    )


def _units(ranks: Ranks, asked: NDArray[np.int64]) -> NDArray[np.int64]:
    """The picture of each of these queries, numbered from 0: int64[n]."""
    number: dict[object, int] = {}
    return np.array([number.setdefault(ranks.queries[place][3], len(number)) for place in asked], np.int64)


def pair(first: Ranks, second: Ranks, confidence: float) -> list[PairedRecall]:
    """Compare two models on one set, both directions at each cutoff.

    Raises InputError where the two files are not about the same version of the set.
    """
    if first.set_hash != second.set_hash or not first.set_hash:
        raise InputError(
            f"set {first.name!r}: {first.place} was ranked on content hash {first.set_hash[:12]!r}, {second.place} on "
            f"{second.set_hash[:12]!r}; run `retrieval` with both models on the same version of the set"
        )
    if first.queries != second.queries:
        raise InputError(
            f"set {first.name!r}: {first.place} and {second.place} do not list the same queries; run `retrieval` with both models again"
        )
    found = []
    for direction in DIRECTIONS:
        asked = first.asked(direction)
        if not len(asked):
            continue
        unit = _units(first, asked)
        found += [
            _paired(first.name, direction, k, first.rank[asked] < k, second.rank[asked] < k, unit, confidence)
            for k in CUTOFFS
        ]
    return found


def _paired(
    name: str,
    direction: str,
    k: int,
    before: NDArray[np.bool_],
    after: NDArray[np.bool_],
    unit: NDArray[np.int64],
    confidence: float,
) -> PairedRecall:
    """One cutoff, from the outcomes bool[n] of the queries and the picture of each, `unit` int64[n]."""
    sizes, n = np.bincount(unit), len(unit)
    change = after.astype(np.int64) - before
    changes = np.bincount(unit, weights=change).astype(np.int64)
    wins, losses = int((change > 0).sum()), int((change < 0).sum())
    difference = (
        paired_difference(wins, losses, n, confidence)
        if len(sizes) == n
        else bootstrap(
            lambda rows: float(changes[rows].sum() / sizes[rows].sum()), np.arange(len(sizes)), confidence=confidence
        )
    )
    return PairedRecall(
        name=name,
        direction=direction,
        k=k,
        n=n,
        pictures=len(sizes),
        first=float(before.mean()),
        second=float(after.mean()),
        second_interval=clustered(after, unit, confidence),
        difference=difference,
        wins=wins,
        losses=losses,
        p=signs(changes),
    )
