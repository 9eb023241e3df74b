"""Which held pictures are trained on, by what the indexes of the training corpus say."""

import logging
from collections.abc import Collection, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.contracts import manifest as manifests
from pipeline.contracts import parquet
from pipeline.contracts.at_once import at_once
from pipeline.contracts.errors import InputError
from pipeline.contracts.manifest import Shard
from trainer.data.reader import Corpus, patiently
from trainer.data.shards import ShardCorpus, open_columns
from trainer.held.part import Part, all_or_none, progress

log = logging.getLogger("trainer")

_COMPARED_ROWS = 50_000_000
"""Of a training corpus, for each process: a minute or two of reading digests."""
_INDEXES = 64
"""Of a training corpus, that are read between two looks at the clock."""


def compare(parts: list[Part], corpus: Corpus, rank: int, world: int) -> None:
    """Warn of held pictures that are in the training corpus too, the same bytes or the same pair, by what its indexes say. Collective."""
    if not isinstance(corpus, ShardCorpus) or corpus.rows > _COMPARED_ROWS * world:
        why = "tars have no index" if not isinstance(corpus, ShardCorpus) else f"it has {corpus.rows:,} rows"
        if rank == 0:
            log.info(
                "held: not compared with the training corpus (%s); `python -m evaluation overlap` finds what is in both",
                why,
            )
        return
    known: dict[bytes, set[tuple[int, int]]] = {}
    for number, part in enumerate(parts):
        for mark, picture in part.marks:
            known.setdefault(mark, set()).add((number, picture))
    everyone = all_or_none(lambda: _known_in_shards(corpus, corpus.manifest.shards[rank::world], known))
    both = {picture for found in everyone for marks in found for mark in marks for picture in known[mark]}
    for number, part in enumerate(parts):
        count = sum(one == number for one, _ in both)
        if count and rank == 0:
            log.warning(
                "%s: %s of its %s pictures are in the training corpus too, so that its scores flatter; take them out of the corpus with"
                " `python -m pipeline exclude`",
                part.name,
                f"{count:,}",
                f"{part.pictures:,}",
            )


def _known_in_shards(corpus: ShardCorpus, shards: Sequence[Shard], known: Collection[bytes]) -> list[set[bytes]]:
    """Those of the marks that each of these shards' indexes has."""
    found: list[set[bytes]] = []
    with progress(len(shards), "indexes", "comparing with the training corpus") as done:
        for start in range(0, len(shards), _INDEXES):
            some = shards[start : start + _INDEXES]
            found += at_once(lambda shard: known_in(corpus.place, shard, known), some)
            done(len(some))
    return found


def known_in(place: str, shard: Shard, known: Collection[bytes]) -> set[bytes]:
    found: set[bytes] = set()
    for column in index_of(place, shard, ["uid", "image_sha256", "source_sha256"]).columns:
        wanted = pa.array([mark for mark in known if len(mark) == column.type.byte_width], column.type)
        found |= set(column.filter(pc.is_in(column, value_set=wanted)).to_pylist())
    return found


def index_of(place: str, shard: Shard, columns: list[str]) -> pa.Table:
    """These columns of a shard's index. Raises InputError where it is not that of a corpus, or not this shard's."""
    uri = manifests.index_uri(place, shard)

    def read() -> pa.Table:
        with open_columns(uri, columns) as source, parquet.plain_errors(uri):
            return source.read(columns=columns)

    index = patiently(read)
    if index.num_rows != shard.rows:
        raise InputError(
            f"{uri}: has {index.num_rows} rows, the manifest says {shard.rows}; run `python -m pipeline verify {place}`"
        )
    return index
