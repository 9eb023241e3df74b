"""What the trainer's tests share: a small corpus of coloured shapes, ways to run the trainer, and one finished run."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pipeline.contracts import manifest
from tests.trainer import launching
from tests.trainer.launching import Alone, Launch
from tests.trainer.shapes import shape_pairs, table_of

WriteCorpus = Callable[..., manifest.Manifest]


@pytest.fixture(scope="session")
def write_corpus() -> WriteCorpus:
    """`write_corpus(folder, pairs, rows_per_shard=…)`: a corpus of (caption, encoded picture) pairs."""

    def write(
        folder: Path, pairs: Sequence[tuple[str | None, bytes | None]], rows_per_shard: int = 100
    ) -> manifest.Manifest:
        return manifest.write_corpus(str(folder), [table_of(pairs)], rows_per_shard=rows_per_shard)

    return write


@pytest.fixture(scope="session")
def shapes() -> Callable[..., list[tuple[str | None, bytes | None]]]:
    """`shapes(rows, seed)`: captioned pictures, drawn."""
    return shape_pairs


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, write_corpus: WriteCorpus) -> Path:
    """A corpus of 330 captioned shapes in four shards, one of its pictures broken."""
    folder = tmp_path_factory.mktemp("corpus")
    pairs = shape_pairs(330)
    pairs[17] = (pairs[17][0], b"\x89PNG\r\n\x1a\nnot a picture")
    write_corpus(folder, pairs)
    return folder


@pytest.fixture(scope="session")
def launch() -> Launch:
    """`deepspeed --module trainer` for real, on the CPU; see `launching.launch`."""
    return launching.launch


@pytest.fixture(scope="session")
def alone() -> Alone:
    """A run of one process without the launcher; see `launching.forked`."""
    return launching.forked


@pytest.fixture(scope="session")
def short_run(corpus: Path) -> dict[str, object]:
    """Overrides of a run of six steps with a checkpoint after every second; run.dir is the caller's."""
    return {
        "data.manifest": corpus,
        "model.image_size": 32,
        "model.context_length": 16,
        "tokenizer.train_size": 600,
        "batch.global_size": 8,
        "optim.steps": 6,
        "optim.warmup_steps": 2,
        "run.save_every": 2,
    }


@pytest.fixture(scope="session")
def trained(alone: Alone, short_run: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of one process; copy it before changing it."""
    folder = tmp_path_factory.mktemp("trained")
    finished = alone(short_run | {"run.dir": folder})
    assert finished.code == 0, finished.output
    return folder
