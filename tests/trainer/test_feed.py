"""Batches on their way to the device: in order, each copied once, texts in groups by length; and that grouping changes nothing."""

import dataclasses
import itertools
import math
import types
from collections.abc import Iterator

import pytest
import torch

from pipeline.contracts.errors import InputError
from trainer.data.feed import Feed
from trainer.data.loader import Batch
from trainer.data.shared import SharedArrays
from trainer.data.transforms import normalise
from trainer.models import CLIP, Preset, ViTShape
from trainer.models.presets import TextTower
from trainer.objectives.clip import contrastive_loss

CPU = torch.device("cpu")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
LENGTH, LARGEST = 77, 99


def ids_of(ends: list[int]) -> torch.Tensor:
    """Drawn ids, the largest at the end of each text, zeros behind."""
    ids = torch.randint(1, LARGEST, (len(ends), LENGTH), generator=torch.Generator().manual_seed(len(ends)))
    for row, end in zip(ids, ends, strict=True):
        row[end], row[end + 1 :] = LARGEST, 0
    return ids


def batch(number: int, ends: list[int]) -> Batch:
    pixels = torch.full((len(ends), 3, 4, 4), number, dtype=torch.uint8)
    rows = torch.arange(len(ends))
    return Batch(pixels, ids_of(ends), rows, rows, [])


def feed_of(batches: Iterator[Batch], first: slice = slice(0, 2), a_group: float = 0) -> Feed:
    return Feed(batches, CPU, torch.float32, MEAN, STD, first, a_group)


def test_pairs_come_by_the_length_of_their_texts() -> None:
    one = batch(7, [76, 5, 20, 5, 1])
    one.pixels += torch.arange(5, dtype=torch.uint8)[:, None, None, None]
    feed = feed_of(iter([one]))
    feed.next()
    pixels, *texts = feed.load(slice(0, 5))
    order = [4, 1, 3, 2, 0]
    assert torch.equal(pixels, normalise(one.pixels[order], MEAN, STD))
    assert [tuple(text.shape) for text in texts] == [(1, 2), (2, 6), (1, 21), (1, 77)]
    for text, rows in zip(texts, ([4], [1, 3], [2], [0]), strict=True):
        assert torch.equal(text, one.ids[rows, : text.shape[1]])
    assert [tuple(text.shape) for text in feed.load(slice(1, 4))[1:]] == [(2, 6), (1, 21)]
    assert feed.texts_since() == {2: 1, 6: 4, 21: 2, 77: 1}
    assert feed.texts_since() == {}


def test_texts_are_all_as_long_as_the_longest_where_groups_cost_too_much() -> None:
    one = batch(7, [5, 20, 3])
    feed = feed_of(iter([one]), a_group=math.inf)
    feed.next()
    pixels, *texts = feed.load(slice(0, 3))
    assert torch.equal(pixels, normalise(one.pixels, MEAN, STD)), "in their own order"
    assert len(texts) == 1
    assert torch.equal(texts[0], one.ids[:, :21])


def test_batches_come_in_order_whether_they_were_begun_or_not() -> None:
    batches = [batch(number, [3, 20, 5]) for number in range(6)]
    feed = feed_of(iter(batches))
    for number, one in enumerate(batches):
        assert feed.next() is one
        for at in (slice(0, 2), slice(2, 3), slice(0, 2), slice(2, 3)):  # as gradient caching asks
            pixels, *texts = feed.load(at)
            assert torch.equal(pixels, normalise(one.pixels[at], MEAN, STD))
            rows = range(*at.indices(3))
            assert [text.tolist() for text in texts] == [
                one.ids[row : row + 1, : [4, 21, 6][row]].tolist() for row in rows
            ]
        if number % 2:
            feed.begin()
    assert feed.waited_since() > 0
    assert feed.waited_since() == 0


def test_no_batch_is_taken_after_the_last() -> None:
    taken = itertools.count()
    feed = feed_of(batch(next(taken), [3]) for _ in range(2))
    feed.next()
    feed.begin()
    assert next(taken) == 2
    feed.next()
    feed.begin()


def test_an_error_of_the_loader_arrives_where_the_batch_is_asked_for() -> None:
    """And not in the step before, which read it ahead: that one is to be applied and saved."""

    def broken() -> Iterator[Batch]:
        yield batch(0, [3])
        raise InputError("no more")

    feed = feed_of(broken())
    feed.next()
    feed.begin()
    assert feed.load(slice(0, 1))[1].shape == (1, 4)
    with pytest.raises(InputError, match="no more"):
        feed.next()


@pytest.mark.parametrize("text", ["transformer", "bag_of_words"])
def test_what_lies_behind_the_ends_has_no_part_in_features_and_gradients(text: TextTower) -> None:
    preset = Preset("small", 32, 32, ViTShape(1, 64, 16), 64, 2, 1e-3, (0.9, 0.98), 1e-6, LENGTH, 100)
    ids = ids_of([3, 17, 9, 30])
    pixels = torch.randn(4, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = []
    for texts in ((ids,), (ids[:, :31],), (ids[:1, :4], ids[1:3, :18], ids[3:, :31])):
        torch.manual_seed(0)
        model = CLIP(dataclasses.replace(preset, text=text)).double()
        outputs = model(pixels, *texts)
        torch.autograd.backward(contrastive_loss(*outputs))
        found.append([outputs[1].detach(), *(parameter.grad for parameter in model.parameters())])
    for whole, *others in zip(*found, strict=True):
        assert whole is not None
        for other in others:
            assert other is not None
            torch.testing.assert_close(other, whole, rtol=1e-11, atol=1e-14)


def test_where_memory_cannot_be_page_locked_the_refusal_is_not_taken_for_anothers_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """CUDA's rule: a call that fails is the last error until someone asks, and torch asks after each launch of a kernel."""
    last_error = 0

    def register(address: int, size: int, flags: int) -> int:
        nonlocal last_error
        last_error = 801
        return last_error

    def launch(*shape: int, device: str) -> None:
        nonlocal last_error
        assert device == "cuda"
        error, last_error = last_error, 0
        if error:
            raise RuntimeError("CUDA error: operation not supported")

    monkeypatch.setattr(torch.cuda, "cudart", lambda: types.SimpleNamespace(cudaHostRegister=register))
    monkeypatch.setattr(torch, "ones", launch)
    SharedArrays(2, (3, 4)).page_lock()
    assert "cannot be page-locked (CUDA error 801)" in caplog.text
    launch(1, device="cuda")  # the first kernel of the model
