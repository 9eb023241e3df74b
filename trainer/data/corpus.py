"""The corpus that a configuration names: Parquet shards by their manifest, or tars."""

import os
from collections.abc import Callable

from pipeline.contracts import manifest as manifests
from pipeline.contracts import storage
from pipeline.contracts.errors import InputError
from trainer.config import DataConfig
from trainer.data import tars
from trainer.data.reader import Corpus
from trainer.data.shards import ShardCorpus


def locate(data: DataConfig) -> ShardCorpus | list[str]:
    """What `data` names, by a look that takes no time: the corpus, or the URIs of tars, which `open_corpus` makes one of.

    Raises InputError where it names nothing, or what it names is not there, is not a corpus, or lacks a shard of the manifest's size.
    """
    if data.manifest is not None:
        corpus = ShardCorpus(data.manifest, manifests.load(data.manifest))
        corpus.check_sizes()
        return corpus
    if data.tars is not None:
        return tars.find(data.tars)
    raise InputError("data.manifest: is not set, and no data.tars either; give data.manifest=PLACE or data.tars=PLACE")


def open_corpus(
    located: ShardCorpus | list[str], run_dir: str, *, rank: int, world_size: int, wait: Callable[[], object]
) -> Corpus:
    """The corpus that `locate` found. Collective, because all processes index tars together: `wait` returns when each has called it.

    Raises InputError where a tar is none, or where tars are not those that the run has an index of.
    """
    if isinstance(located, ShardCorpus):
        return located
    return tars.open_tars(located, run_dir, rank=rank, world_size=world_size, wait=wait)


def missing(data: DataConfig) -> str | None:
    """For a plan of a run whose corpus need not be there yet: which place it lacks; None where `locate` can look."""
    if data.manifest is not None:
        place = manifests.manifest_path(data.manifest)
        return None if storage.exists(place) else f"{place}: no such file"
    if data.tars is None:
        return "neither data.manifest nor data.tars is set"
    entries = (data.tars,) if isinstance(data.tars, str) else data.tars
    absent = next((entry for entry in entries if not storage.is_folder(entry) and not storage.glob(entry)), None)
    return None if absent is None else f"{absent}: no such tar or folder"


def known(located: ShardCorpus | list[str], run_dir: str) -> Corpus | None:
    """The corpus as far as it is known without reading it: None for tars that the run has no index of yet."""
    if isinstance(located, ShardCorpus):
        return located
    place = os.path.join(run_dir, tars.INDEX)
    return tars.known_tars(located, place) if os.path.exists(place) else None
