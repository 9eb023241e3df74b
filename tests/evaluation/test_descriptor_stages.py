"""Vectors of pictures, sets and corpora: what is looked at, that bytes do not depend on batches or workers, and what has no vector."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from evaluation.config import DescriptorConfig
from evaluation.descriptor import embed, model, stages, weights
from evaluation.descriptor.artefact import Card, Descriptor, Proxy, TrainedOn
from evaluation.descriptor.config import ArchitectureConfig, AugmentationConfig, OptimiserConfig
from evaluation.descriptor.embed import BATCH, Embedder
from evaluation.descriptor.search import search
from evaluation.descriptor.views import MIRRORED, NAMES, VIEWS, boxes
from evaluation.overlap import corpus as corpora
from evaluation.overlap.seen import as_vectors, with_vectors
from evaluation.overlap.tables import VECTOR_SCHEMA
from pipeline.commit import Unit
from pipeline.content.labelled import LabelledSetConfig, open_set
from pipeline.contracts.errors import InputError, RunError
from pipeline.engine import EngineConfig, Run
from pipeline.tools.exclude import ExcludeConfig, exclude
from tests.evaluation.descriptor_cases import corpus_of, png, scene, write_set
from tests.evaluation.planted import flat


@pytest.fixture(scope="module")
def descriptor() -> Descriptor:
    """Random weights: what is tested here does not need good ones."""
    shape = ArchitectureConfig(size=32, width=8, blocks=[1, 1], dimension=16)
    network = model.build(shape, 1)
    background = Embedder(network, 32).vectors(scene(seed, 32, 32) for seed in range(900, 910))
    data = weights.weights_bytes(network, background)
    card = Card(
        architecture=shape,
        parameters=sum(weight.numel() for weight in network.parameters()),
        trained_on=TrainedOn(kind="set", root="", digest="", pictures=1, held_out=2, unusable=0),
        augmentation=AugmentationConfig(),
        augmentation_version="1",
        optimiser=OptimiserConfig(),
        half=False,
        seed=1,
        threads=1,
        steps=0,
        stopped_by="steps",
        proxy=Proxy(accuracy=0, pairs=2, largest_unrelated=0, rate_bound=1),
        background=len(background),
        versions={},
        config_digest="",
        weights_sha256=hashlib.sha256(data).hexdigest(),
    )
    return Descriptor(card, data, background)


# ---- what is looked at


def test_views_of_a_picture() -> None:
    every = boxes(VIEWS, 200, 100)
    assert list(every) == list(range(2 * (1 + 1 + 5 + 9)))
    parts = {number: box for number, box in every.items() if number < MIRRORED}
    assert [every[number + MIRRORED] for number in parts] == list(parts.values())
    assert list(parts[0]) == [0, 0, 1, 1]
    assert list(parts[1]) == [0.25, 0, 0.75, 1]
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in parts.values()]
    np.testing.assert_allclose(areas[2:7], 0.5)
    np.testing.assert_allclose(areas[7:], 0.25)
    assert all(
        0 <= left < right <= 1 + 1e-12 and 0 <= top < bottom <= 1 + 1e-12 for left, top, right, bottom in parts.values()
    )
    assert set(every) - set(boxes(VIEWS, 100, 100)) == {1, 17}, "a square has no centre square"
    for kind in ("whole", "square", "halves", "quarters"):
        assert boxes([kind], 200, 100).items() <= parts.items(), "a part has one number"
    assert len(NAMES) == len(set(NAMES)) == 32
    places = {name: parts[number][:2] for number, name in enumerate(NAMES[:MIRRORED])}
    assert places["a quarter of it, upper right"] == (0.5, 0.0)
    assert places["a quarter of it, lower middle"] == (0.25, 0.5)
    assert places["half of it, lower left"] == (0.0, 1 - 0.5**0.5)


def test_a_view_is_the_part_resized() -> None:
    """A part whose pixels are the network's is taken as it is."""
    rgb = scene(1, 64, 64)
    seen = embed.view(rgb, (0.5, 0.25, 1.0, 0.75), 32)
    np.testing.assert_array_equal(seen, rgb[16:48, 32:64])


def test_a_mirrored_part_is_the_mirror_image() -> None:
    found = dict(embed.views(png(scene(1, 64, 64)), 32, VIEWS))
    assert set(found) == set(boxes(VIEWS, 64, 64))
    for number in boxes(("whole", "halves", "quarters"), 64, 64):
        np.testing.assert_array_equal(found[number + MIRRORED], found[number][:, ::-1])


def test_flat_parts_are_not_looked_at() -> None:
    rgb = scene(1, 64, 64)
    rgb[:40, :40] = 90
    found = embed.views(png(rgb), 32, ("whole", "quarters"))
    assert [number for number, _ in found] == [0, *range(8, 16)]
    assert embed.views(flat(90), 32, VIEWS) == []


# ---- vectors


def test_batches_change_no_byte(descriptor: Descriptor) -> None:
    pixels = [scene(seed, 32, 32) for seed in range(2 * BATCH + 3)]
    together = Embedder.of(descriptor).vectors(pixels)
    for size in (1, 7, BATCH, BATCH + 1):
        parts = [Embedder.of(descriptor).vectors(pixels[at : at + size]) for at in range(0, len(pixels), size)]
        np.testing.assert_array_equal(np.concatenate(parts), together)
    assert together.dtype == np.int8
    assert (np.abs(together).max(axis=1) == 127).all()
    assert Embedder.of(descriptor).vectors([]).shape == (0, 16)


def test_threads_change_no_byte(descriptor: Descriptor) -> None:
    pixels = [scene(seed, 32, 32) for seed in range(BATCH)]
    threads, found = torch.get_num_threads(), []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        found.append(Embedder.of(descriptor).vectors(pixels).tobytes())
        assert torch.get_num_threads() == count
    torch.set_num_threads(threads)
    assert found[0] == found[1] == found[2]


def test_rounding_keeps_the_direction() -> None:
    draws = np.random.default_rng(1)
    exact = draws.normal(size=(50, 192)).astype(np.float32)
    rounded = embed.quantised(exact).astype(float)
    cosine = (exact * rounded).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(rounded, axis=1)
    assert cosine.min() > 0.9999
    for wrong in (np.zeros((1, 4)), np.array([[1, np.nan]]), np.array([[1, np.inf]])):
        with pytest.raises(RunError, match="not finite"):
            embed.quantised(wrong.astype(np.float32))


def test_views_of_a_set_make_the_index(descriptor: Descriptor, tmp_path: Path) -> None:
    stored = [png(scene(seed)) for seed in range(4)]
    stored[2] = flat(70)
    write_set(tmp_path / "set.parquet", stored)
    labelled = open_set(LabelledSetConfig(name="set", path=str(tmp_path / "set.parquet")))
    table = stages.set_views(descriptor, VIEWS, labelled, [0, 1, 2, 3])
    assert set(table["eval_row"].to_pylist()) == {0, 1, 3}
    index = stages.build_index([table, table], [4, 4], descriptor, beta=0.0, part_margin=0.0)
    assert sorted(set(index.picture.tolist())) == [0, 1, 3, 4, 5, 7]
    # Each whole picture is its own nearest, with a cosine of 1 but for the last bit, in both sets.
    queries = np.stack([vector for vector in Embedder.of(descriptor).first_views(stored) if vector is not None])
    hits, _ = search(index, queries, np.full(len(index.vectors), 1 - 1e-9))
    found = set(zip(hits.picture.tolist(), hits.query.tolist(), strict=True))
    assert {(0, 0), (1, 1), (3, 2), (4, 0), (5, 1), (7, 2)} <= found
    assert set(hits.view.tolist()) == {0}
    lowered = stages.build_index([table], [4], descriptor, beta=1.0, part_margin=0.0).lowered
    assert (lowered > 0).all()
    # The margin is for parts alone, and comes on top of what nearness to the background takes.
    with_margin = stages.build_index([table], [4], descriptor, beta=1.0, part_margin=0.25)
    assert np.array_equal(with_margin.lowered - lowered > 0.2, with_margin.view != 0)
    assert np.array_equal(with_margin.lowered[with_margin.view == 0], lowered[with_margin.view == 0])


def test_a_picture_of_a_set_that_cannot_be_opened(descriptor: Descriptor, tmp_path: Path) -> None:
    write_set(tmp_path / "set.parquet", [b"no picture"])
    labelled = open_set(LabelledSetConfig(name="set", path=str(tmp_path / "set.parquet")))
    with pytest.raises(InputError, match="picture '0' cannot be opened"):
        stages.set_views(descriptor, VIEWS, labelled, [0])


# ---- a corpus


def test_a_shards_vectors(descriptor: Descriptor, tmp_path: Path) -> None:
    stored = [*(png(scene(seed)) for seed in range(40)), flat(70), b"no picture", None]
    corpus = corpus_of(tmp_path, stored, 100)
    shard = corpus.shards[0]
    opened = corpora.of_manifest(str(tmp_path))
    work = stages._CorpusWork(str(tmp_path), opened.indexes, opened.stored, descriptor)
    unit = Unit("0", (), {"number": 0})
    result = work.work(work.read(unit), unit)
    assert result.notes == {"without_vector": 3}
    images = pq.read_table(tmp_path / shard.path)
    assert result.rows["uid"].to_pylist() == images["uid"].to_pylist()
    vectors = as_vectors(result.rows["vector"], 16, "here")
    for row, data in enumerate(images["image"].to_pylist()):
        alone = next(Embedder.of(descriptor).first_views([data]))
        assert (alone is None) == (data in (flat(70), b"no picture", None))
        np.testing.assert_array_equal(vectors[row], np.zeros(16) if alone is None else alone)
    with pytest.raises(InputError, match="a vector of 16 bytes, the descriptor's have 24"):
        as_vectors(result.rows["vector"].slice(0, 1), 24, "here")


def test_vectors_of_other_rows_are_refused(tmp_path: Path) -> None:
    index = pa.table({"uid": pa.array([bytes(16), bytes(15) + b"1"], pa.binary(16)), "row": [0, 1]})
    vectors = pa.array([bytes(4), None], pa.binary())
    pq.write_table(pa.table([index["uid"], vectors], schema=VECTOR_SCHEMA), tmp_path / "same.parquet")
    pq.write_table(pa.table([index["uid"][::-1], vectors], schema=VECTOR_SCHEMA), tmp_path / "other.parquet")
    assert with_vectors(index, str(tmp_path), "same.parquet")["vector"].to_pylist() == [bytes(4), None]
    with pytest.raises(InputError, match="has the vectors of other rows than its index"):
        with_vectors(index, str(tmp_path), "other.parquet")


def test_normalisation_needs_a_background(descriptor: Descriptor, tmp_path: Path) -> None:
    data = weights.weights_bytes(weights.network(descriptor), descriptor.background[:2])
    few = {"background": 2, "weights_sha256": hashlib.sha256(data).hexdigest()}
    weights.write(str(tmp_path), descriptor.card.model_copy(update=few), data)
    with pytest.raises(InputError, match=r"descriptor\.beta: 0\.5 needs at least 3 background vectors"):
        stages.open_descriptor(DescriptorConfig(weights=str(tmp_path), beta=0.5))
    found = stages.open_descriptor(DescriptorConfig(weights=str(tmp_path), beta=0.0))
    np.testing.assert_array_equal(found.background, descriptor.background[:2])


@pytest.mark.prove
def test_workers_and_resumes_change_no_byte(descriptor: Descriptor, tmp_path: Path) -> None:
    corpus_of(tmp_path / "corpus", [png(scene(seed)) for seed in range(60)], 10)
    corpus = corpora.of_manifest(str(tmp_path / "corpus"))
    written, started = [], []
    for name, workers in (("one", 1), ("two", 2), ("two", 1)):
        with Run(str(tmp_path / name), EngineConfig(workers=workers), {}, "digest") as driver:
            vectors = stages.corpus_vectors(driver, corpus, descriptor)
        uris = [Path(vectors.folder) / table.name for table in vectors.tables]
        written.append([uri.read_bytes() for uri in uris])
        started.append([path.stat().st_mtime_ns for path in sorted(Path(vectors.folder).glob("*.json"))])
        assert [table.rows for table in vectors.tables] == [10] * 6
        assert vectors.absent == 0
        assert stages.corpus_done(str(tmp_path / name), corpus, descriptor) == 6
    assert started[1] == started[2]  # done already: nothing was embedded again
    assert written[0] == written[1] == written[2]


@pytest.mark.prove
def test_a_takedown_has_only_the_shards_that_it_changed_looked_at(descriptor: Descriptor, tmp_path: Path) -> None:
    """The others have the same index under another name; where the vectors of both versions are kept, theirs are there."""
    places = {name: str(tmp_path / name) for name in ("corpus", "less", "vectors", "own")}
    shards = corpus_of(tmp_path / "corpus", [png(scene(seed)) for seed in range(60)], 10).shards
    taken = pq.read_table(tmp_path / "corpus" / shards[2].index_path)["uid"][4].as_py()
    (tmp_path / "ids.txt").write_text(taken.hex() + "\n")
    exclude(ExcludeConfig(corpus=places["corpus"], out=places["less"], ids=str(tmp_path / "ids.txt")))
    old, new = (corpora.of_manifest(places[name]) for name in ("corpus", "less"))
    assert {one.path for one in old.indexes}.isdisjoint(one.path for one in new.indexes)
    with Run(places["vectors"], EngineConfig(workers=1), {}, "digest") as driver:
        stages.corpus_vectors(driver, old, descriptor)
        assert stages.corpus_done(places["vectors"], new, descriptor) == 5
        shared = stages.corpus_vectors(driver, new, descriptor)
    with Run(places["own"], EngineConfig(workers=1), {}, "digest") as driver:
        assert stages.corpus_vectors(driver, new, descriptor).tables == shared.tables
