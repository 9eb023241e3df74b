"""From `[held]` to an opened held set."""

import logging

from pipeline.contracts import manifest as manifests
from pipeline.contracts import storage
from pipeline.contracts.errors import InputError
from trainer.config import HeldConfig, TrainConfig
from trainer.data.reader import Corpus
from trainer.data.shards import ShardCorpus
from trainer.held.comparing import compare
from trainer.held.evaluating import Held, words
from trainer.held.labelled_set import open_labelled_set
from trainer.held.pairs import open_pairs

log = logging.getLogger("trainer")


def find(config: HeldConfig | None) -> ShardCorpus | None:
    """The corpus of held pairs, if the configuration names one, by a look that takes no time.

    Raises InputError where it, or the labelled set, is not there, is not a corpus or has no rows.
    """
    if config is None:
        return None
    labelled_set = None if config.zeroshot is None else config.zeroshot.path
    if labelled_set is not None and not storage.exists(labelled_set) and not storage.is_folder(labelled_set):
        raise InputError(
            f"held.zeroshot.path: {labelled_set!r}: nothing there; name a Parquet file or a folder of class folders"
        )
    if config.manifest is None:
        return None
    corpus = ShardCorpus(config.manifest, manifests.load(config.manifest))
    if not corpus.rows:
        raise InputError(
            f"held.manifest: {config.manifest!r} has no rows; name a corpus that has some, or drop the key"
        )
    return corpus


def open_held(
    config: TrainConfig, pairs: ShardCorpus | None, corpus: Corpus, vocabulary: str, rank: int, world: int
) -> Held | None:
    """Read all of the held set once, and compare it with the corpus that is trained on; None where the run has no [held]. Collective.

    pairs: what `find` found. Raises InputError, on every process, where a file is damaged or nothing can be used.
    """
    if config.held is None:
        return None
    parts = []
    if pairs is not None:
        parts.append(open_pairs(config, pairs, rank, world))
    if config.held.zeroshot is not None:
        parts.append(open_labelled_set(config, rank))
    if rank == 0:
        for part in parts:
            amount = f"{part.pictures:,} pictures and {len(part.texts):,} texts"
            log.info("held: %s of %s; guessing reaches %s", amount, part.place, words(part.chance))
    compare(parts, corpus, rank, world)
    return Held(config, parts, vocabulary, rank, world)
