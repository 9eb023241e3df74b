"""Retrieval against a slow twin, shared captions and tied scores included."""

import tracemalloc

import numpy as np
import pytest

from evaluation import retrieval
from evaluation.features import normalise
from pipeline.contracts.errors import RunError


def test_against_a_slow_twin() -> None:
    draws = np.random.default_rng(3)
    captions = [f"name {n}" for n in draws.integers(0, 40, 60)]
    names, own = retrieval.distinct(captions)
    images = normalise(draws.normal(size=(60, 8)).astype(np.float32))
    texts = normalise((draws.normal(size=(len(names), 8)) + 0.5).astype(np.float32))
    found = retrieval.retrieve(images, texts, range(60), captions)
    for one in found.text_to_image:
        hits = 0
        for t, name in enumerate(names):
            order = np.argsort(-(images @ texts[t]))[: one.k]
            hits += any(captions[row] == name for row in order)
        assert (one.found, one.n) == (hits, len(names))
        assert one.low < one.value < one.high
    for one in found.image_to_text:
        hits = sum(own[row] in np.argsort(-(texts @ images[row]))[: one.k] for row in range(60))
        assert (one.found, one.n) == (hits, 60)


def test_a_picture_with_five_captions_is_one_picture() -> None:
    """COCO's form, a row for each caption: a model that sees no difference between a picture and its captions is right every time."""
    draws = np.random.default_rng(5)
    images = normalise(draws.normal(size=(30, 64)).astype(np.float32))
    owner = np.repeat(np.arange(30), 5)
    texts = normalise((images[owner] + 0.01 * draws.normal(size=(150, 64))).astype(np.float32))
    found = retrieval.retrieve(images, texts, [f"digest {n}" for n in owner], [f"caption {n}" for n in range(150)])
    assert [(one.found, one.n) for one in found.image_to_text] == [(30, 30)] * 3
    assert [(one.found, one.n) for one in found.text_to_image] == [(150, 150)] * 3
    assert found.image_to_text[0].chance == pytest.approx(5 / 150)
    assert found.text_to_image[0].chance == pytest.approx(1 / 30)


def test_a_model_that_cannot_tell_finds_nothing() -> None:
    same = np.full((20, 4), 0.5, np.float32)
    found = retrieval.retrieve(same, same, range(20), [str(n) for n in range(20)])
    assert [one.found for one in (*found.image_to_text, *found.text_to_image)] == [0] * 6


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_broken_embeddings_are_refused(value: float) -> None:
    """NaN would be ranked first everywhere; 1e30 has no finite length in float32."""
    embeddings = np.ones((5, 4), np.float32)
    embeddings[3] = value
    with pytest.raises(RunError, match="1 of 5 are not finite"):
        normalise(embeddings)


def test_memory_is_that_of_a_block_of_scores_whatever_the_set() -> None:
    """12,000 pictures and captions: which belong together is no table of 144 million."""
    draws = np.random.default_rng(6)
    images = normalise(draws.normal(size=(12_000, 3)).astype(np.float32))
    tracemalloc.start()
    found = retrieval.retrieve(images, images, range(12_000), [str(n) for n in range(12_000)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 130 << 20
    assert found.image_to_text[0].value > 0.99


def test_chance_is_what_random_orders_reach() -> None:
    draws = np.random.default_rng(4)
    hits = np.mean([(draws.permutation(30)[:5] < 3).any() for _ in range(20_000)])
    assert retrieval.chance_recall(30, 3, 5) == pytest.approx(hits, abs=0.01)
    assert retrieval.chance_recall(30, 3, 28) == 1.0
    assert retrieval.chance_recall(4, 1, 10) == 1.0
