"""Batches on their way to the device: in order, each copied once, texts cut where the longest ends; and that cutting changes nothing."""

import dataclasses
import itertools
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


def feed_of(batches: Iterator[Batch], first: slice = slice(0, 2)) -> Feed:
    return Feed(batches, CPU, torch.float32, MEAN, STD, first)


@pytest.mark.parametrize(
    ("ends", "length"), [([1, 2], 16), ([15, 3], 16), ([16, 3], 32), ([63], 64), ([64], LENGTH), ([76, 1], LENGTH)]
)
def test_a_text_is_as_long_as_the_longest_and_some_more(ends: list[int], length: int) -> None:
    assert batch(0, ends).text_length == length


def test_batches_come_in_order_whether_they_were_begun_or_not() -> None:
    batches = [batch(number, [3, 20, 5]) for number in range(6)]
    feed = feed_of(iter(batches))
    for number, one in enumerate(batches):
        assert feed.next() is one
        for at in (slice(0, 2), slice(2, 3), slice(0, 2), slice(2, 3)):  # as gradient caching asks
            pixels, ids = feed.load(at)
            assert torch.equal(pixels, normalise(one.pixels[at], MEAN, STD))
            assert torch.equal(ids, one.ids[at, :32])
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
    assert feed.load(slice(0, 1))[1].shape == (1, 16)
    with pytest.raises(InputError, match="no more"):
        feed.next()


@pytest.mark.parametrize("text", ["transformer", "bag_of_words"])
def test_what_lies_behind_the_ends_has_no_part_in_features_and_gradients(text: TextTower) -> None:
    preset = Preset("small", 32, 32, ViTShape(1, 64, 16), 64, 2, 1e-3, (0.9, 0.98), 1e-6, LENGTH, 100)
    ids = ids_of([3, 17, 9, 30])
    pixels = torch.randn(4, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = []
    for length in (LENGTH, 32):
        torch.manual_seed(0)
        model = CLIP(dataclasses.replace(preset, text=text)).double()
        outputs = model(pixels, ids[:, :length])
        torch.autograd.backward(contrastive_loss(*outputs))
        found.append([outputs[1].detach(), *(parameter.grad for parameter in model.parameters())])
    for whole, cut in zip(*found, strict=True):
        assert whole is not None
        assert cut is not None
        torch.testing.assert_close(cut, whole, rtol=1e-11, atol=1e-14)


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
