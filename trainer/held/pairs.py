"""Held pairs, a corpus in the shard format: retrieval both ways."""

import hashlib
import itertools
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed
from torch import Tensor

from pipeline.contracts.errors import InputError
from trainer.config import TrainConfig
from trainer.data.reader import RowReader
from trainer.data.shards import ShardCorpus
from trainer.held import scores
from trainer.held.comparing import index_of
from trainer.held.part import AT_ONCE, Part, Trouble, all_or_none, given, progress, threads, trouble_with

log = logging.getLogger("trainer")

_CACHE_BYTES = 64 << 20
Usable = tuple[int, str, bytes, list[bytes]]
"""Row, caption, SHA-256 of the picture as it is stored; uid, and SHA-256 of the picture as it was fetched where that is known."""


def open_pairs(config: TrainConfig, corpus: ShardCorpus, rank: int, world: int) -> Part:
    """Each process decodes its share of the pictures once. Collective; raises InputError where none of the rows can be used."""
    rows = min(corpus.rows, given(config).limit or corpus.rows)
    mine = np.array_split(np.arange(rows), world)[rank]
    everyone = all_or_none(lambda: _usable_rows(config, corpus, mine))
    usable = [row for part, _ in everyone for row in part]
    troubles = [trouble for _, part in everyone for trouble in part]
    if not usable:
        raise InputError(
            f"held.manifest: none of the {rows:,} rows of {corpus.place!r} can be used (row {troubles[0][0]}: {troubles[0][1]}); name a"
            " corpus of pictures with captions"
        )
    if troubles and rank == 0:
        log.warning(
            "held: %d of %d rows of %s cannot be used and are left out; the first is row %d: %s",
            len(troubles),
            rows,
            corpus.place,
            *troubles[0],
        )
    pictures: dict[bytes, int] = {}
    texts: dict[str, int] = {}
    first_rows: list[int] = []
    pairs = []
    marks = []
    for row, caption, sha256, others in usable:
        if sha256 not in pictures:
            first_rows.append(row)
        picture = pictures.setdefault(sha256, len(pictures))
        pairs.append((picture, texts.setdefault(caption, len(texts))))
        marks += [(mark, picture) for mark in (sha256, *others)]
    by_picture = scores.relation(torch.tensor(pairs))
    by_text = scores.relation(torch.tensor(pairs)[:, [1, 0]])

    def read(places: Sequence[int]) -> Iterator[bytes]:
        reader = RowReader(corpus, cache_bytes=_CACHE_BYTES, ahead=config.data.read_ahead)
        for found in reader.read(np.array([first_rows[place] for place in places], dtype=np.int64)):
            yield found.image or b""

    def score(of_pictures: Tensor, of_texts: Tensor, rank: int, world: int) -> dict[str, float]:
        there = _recall("image_to_text", of_pictures, of_texts, by_picture, rank, world)
        return there | _recall("text_to_image", of_texts, of_pictures, by_text, rank, world)

    chance = {f"image_to_text_r{cutoff}": scores.chance(len(texts), by_picture, cutoff) for cutoff in scores.CUTOFFS}
    chance |= {f"text_to_image_r{cutoff}": scores.chance(len(pictures), by_text, cutoff) for cutoff in scores.CUTOFFS}
    return Part("held.manifest", corpus.place, len(pictures), read, list(texts), score, chance, marks)


def _recall(
    name: str, queries: Tensor, candidates: Tensor, right: scores.Relation, rank: int, world: int
) -> dict[str, float]:
    """Recall one way; each process takes every so many-th block of queries. Collective."""
    right = scores.Relation(*(tensor.to(queries.device) for tensor in right))
    counts = torch.zeros(len(scores.CUTOFFS), dtype=torch.int64, device=queries.device)
    for block in scores.blocks(len(queries), len(candidates))[rank::world]:
        ranks = scores.ranks(queries, candidates, right, block)
        counts += torch.stack([(ranks < cutoff).sum() for cutoff in scores.CUTOFFS])
    torch.distributed.all_reduce(counts)
    shares = (count / len(queries) for count in counts.tolist())
    return {f"{name}_r{cutoff}": share for cutoff, share in zip(scores.CUTOFFS, shares, strict=True)}


def _usable_rows(
    config: TrainConfig, corpus: ShardCorpus, rows: npt.NDArray[np.int64]
) -> tuple[list[Usable], list[Trouble]]:
    """What is in these rows (rising, without a gap), and which of them cannot be used. Every picture is decoded once."""
    usable: list[Usable] = []
    troubles: list[Trouble] = []
    known: dict[bytes, str | None] = {}

    def look_at(image: bytes | None) -> tuple[bytes, str | None]:
        digest = hashlib.sha256(image or b"").digest()
        if digest not in known:
            known[digest] = "no picture" if image is None else trouble_with(image, config)
        return digest, known[digest]

    if not len(rows):
        return usable, troubles
    marks = marks_of(corpus, int(rows[0]), int(rows[-1]) + 1)
    reader = RowReader(corpus, cache_bytes=_CACHE_BYTES, ahead=config.data.read_ahead)
    with ThreadPoolExecutor(threads(config)) as pool, progress(len(rows), "pairs", "opening held pairs") as done:
        found = zip(rows.tolist(), marks, reader.read(rows), strict=True)
        while batch := list(itertools.islice(found, AT_ONCE)):
            said = pool.map(look_at, [row.image for _, _, row in batch])
            for (number, others, row), (digest, trouble) in zip(batch, said, strict=True):
                if row.caption is None or not row.caption.strip():
                    troubles.append((number, "no caption"))
                elif trouble is not None:
                    troubles.append((number, trouble))
                else:
                    usable.append((number, row.caption, digest, others))
            done(len(batch))
    return usable, troubles


def marks_of(corpus: ShardCorpus, start: int, stop: int) -> list[list[bytes]]:
    """uid and, where there is one, source_sha256 of rows start to stop - 1, from the indexes."""
    found: list[list[bytes]] = []
    first = 0
    for shard in corpus.manifest.shards:
        if first < stop and first + shard.rows > start:
            index = index_of(corpus.place, shard, ["uid", "source_sha256"])
            part = index.slice(max(0, start - first), stop - max(start, first))
            rows = zip(*(column.to_pylist() for column in part.columns), strict=True)
            found += [[mark for mark in row if mark is not None] for row in rows]
        first += shard.rows
    return found
