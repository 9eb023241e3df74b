"""Rows that are equal in all that is compared. One of them, with the smallest choice key, stands for all: what holds for it holds for them.

So the thousand copies of one banner cost a row each, no comparison and no edge, and nothing after this step ever sees them. First within a
file, then over files, so that a partition gets a kind of row at most once from each file however many of them there are:

    kinds(table, config, seed, partitions, part)   per file: a row per kind; the copies within the file
    copies(rows, seed, partitions)                 per partition of kinds: the copies of rows of other files

A kind travels as 128 bits of BLAKE2b over all that is compared.
"""

import hashlib
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.content.kernels import text_buffers
from pipeline.dedup.compared import PURPOSE, DedupConfig, comparable, compared, has_good_pdq
from pipeline.keys import Indices, Words, choice_words, fixed_bytes, one_array, sort_order, to_binary, words

KIND_SCHEMA = pa.schema(
    [
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("kind", pa.binary(16), nullable=False),
        pa.field("uid", pa.binary(16), nullable=False),
        pa.field("part", pa.int32(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
    ]
)
"""The row that stands for its kind in its table: row `row` of the table with the number `part`."""

WITHIN_SCHEMA = pa.schema(
    [pa.field("row", pa.int32(), nullable=False), pa.field("original", pa.int32(), nullable=False)]
)
"""Row `row` of a table is a copy of its row `original`."""

COPY_SCHEMA = pa.schema(
    [pa.field("partition", pa.int32(), nullable=False), pa.field("row", pa.int32(), nullable=False)]
)
"""Row `row` of the table with the number `partition` is a copy of a row of another table."""

ORIGINAL_SCHEMA = pa.schema(
    [
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("order", pa.uint64(), nullable=False),
        pa.field("original", pa.binary(16), nullable=False),
        pa.field("uid", pa.binary(16), nullable=False),
        pa.field("part", pa.int32(), nullable=False),
    ]
)
"""The same copies as pairs: `uid`, a row of the table with the number `part`, is a copy of `original`, whose place in the order of choice
is `order` (the high half of its choice key), by which they are filed: `partition` is that modulo the number of partitions."""


class Kinds(NamedTuple):
    """What a table gives: its kinds (KIND_SCHEMA, sorted by partition and row) and its copies within (WITHIN_SCHEMA, by row)."""

    rows: pa.Table
    within: pa.Table


class Copies(NamedTuple):
    """The copies over tables, in two orders: COPY_SCHEMA by table and row, ORIGINAL_SCHEMA by partition, order and uid."""

    rows: pa.Table
    originals: pa.Table


def kinds(table: pa.Table, config: DedupConfig, seed: int, partitions: int, part: int = 0) -> Kinds:
    """The kinds of the rows (with the columns of `compared`) of table number `part`. `seed` is the corpus seed.

    A row that cannot be compared is of no kind.
    """
    rows = compared(table, config)
    places = np.flatnonzero(comparable(rows, config))
    good = has_good_pdq(rows, config)
    codes = [_codes(rows["text"]), _codes(rows["image_sha256"]), np.where(good, _codes(rows["pdq256"]), -1)]
    original = places[_firsts([code[places] for code in codes], words(rows["uid"])[places], seed)]
    within = pa.table([pa.array(column[original != places].astype(np.int32)) for column in (places, original)],
                      schema=WITHIN_SCHEMA)  # fmt: skip
    leaders = places[original == places]
    found = _hashes(rows.take(pa.array(leaders)), good[leaders])
    partition = (found[:, 0] % np.uint64(partitions)).astype(np.int32)
    order = np.argsort(partition, kind="stable")
    columns = [
        pa.array(partition[order]),
        to_binary(found[order]),
        rows["uid"].take(pa.array(leaders[order])),
        pa.array(np.full(len(order), part, np.int32)),
        pa.array(leaders[order].astype(np.int32)),
    ]
    return Kinds(pa.table(columns, schema=KIND_SCHEMA), within)


def copies(rows: pa.Table, seed: int, partitions: int) -> Copies:
    """The copies among the kinds of one partition (KIND_SCHEMA, any order), filed into `partitions` by their originals."""
    kind, uids = words(rows["kind"]), words(rows["uid"])
    part, row = (one_array(rows[name]).to_numpy(zero_copy_only=False) for name in ("part", "row"))
    original = _firsts([kind[:, 0], kind[:, 1]], uids, seed)
    copy = np.flatnonzero(original != np.arange(len(original)))
    copy = copy[np.lexsort((row[copy], part[copy]))]
    of = original[copy]
    place = choice_words(uids[of], seed, PURPOSE)[:, 0]
    partition = (place % np.uint64(partitions)).astype(np.int32)
    order = sort_order(uids[copy], partition, place)
    columns = [
        pa.array(partition[order]),
        pa.array(place[order]),
        to_binary(uids[of[order]]),
        to_binary(uids[copy[order]]),
        pa.array(part[copy[order]], pa.int32()),
    ]
    return Copies(
        pa.table([pa.array(part[copy], pa.int32()), pa.array(row[copy], pa.int32())], schema=COPY_SCHEMA),
        pa.table(columns, schema=ORIGINAL_SCHEMA),
    )


def originals(rows: int, within: pa.Table, copied: pa.Table) -> Indices:
    """The row numbers of a table of `rows` rows that are no copies: neither within it (WITHIN_SCHEMA) nor of others (COPY_SCHEMA)."""
    stands = np.ones(rows, np.bool_)
    for table in (within, copied):
        stands[one_array(table["row"]).to_numpy(zero_copy_only=False)] = False
    return np.flatnonzero(stands)


def _codes(column: pa.ChunkedArray) -> Indices:
    """A number for each distinct value; -1 for null."""
    indices = one_array(column).dictionary_encode().indices
    return cast(Indices, indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64))


def _firsts(codes: list[npt.NDArray[np.generic]], uids: Words, seed: int) -> Indices:
    """For each row the one with the smallest choice key among those that have all codes in common."""
    order = np.lexsort(codes[::-1])
    differs = np.zeros(max(0, len(order) - 1), np.bool_)
    for code in codes:
        differs |= code[order][1:] != code[order][:-1]
    group = np.empty(len(order), np.int64)
    group[order] = np.concatenate([[0], np.cumsum(differs)])[: len(order)]
    # A choice key costs a microsecond: only rows that have a copy need one.
    several = np.flatnonzero(np.bincount(group)[group] > 1)
    several = several[sort_order(choice_words(uids[several], seed, PURPOSE), group[several])]
    starts = np.concatenate([[True], group[several][1:] != group[several][:-1]])[: len(several)]
    first = np.arange(len(order))
    first[several] = several[np.flatnonzero(starts)[np.cumsum(starts) - 1]]
    return first


def _hashes(rows: pa.Table, good: npt.NDArray[np.bool_]) -> Words:
    """128 bits of each row's text, stored bytes and (where it is good) PDQ hash."""
    stored = np.asarray(one_array(rows["image_sha256"]).is_valid())
    pdq = np.where(good[:, None], fixed_bytes(rows["pdq256"], 32), np.uint8(0))
    # Widths are fixed and the text comes last, so that different rows never give the same bytes.
    head = np.concatenate(
        [stored[:, None] + 2 * good[:, None].astype(np.uint8), fixed_bytes(rows["image_sha256"], 32), pdq], axis=1
    ).astype(np.uint8)
    heads, width = head.tobytes(), head.shape[1]
    text = text_buffers(rows["text"])
    texts, starts = text.data.tobytes(), text.starts.tolist()
    found = b"".join(
        hashlib.blake2b(heads[width * row : width * row + width] + texts[starts[row] : starts[row + 1]], digest_size=16).digest()
        for row in range(len(head))
    )  # fmt: skip
    return np.frombuffer(found, ">u8").astype(np.uint64).reshape(-1, 2)
