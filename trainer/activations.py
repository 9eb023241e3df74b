"""How much memory a step needs for activations: every allocation of a forward and a backward pass is counted, and none is made.

The model is built of fake tensors (torch's own, which have a shape, a type and a storage, and no memory) and goes forward and backward
in the precision of the run. A storage counts from the operation that makes it to the moment when nothing holds it any more, and the most
that is there at one time is the answer. So everything that changes it is honoured as it is: checkpointed blocks with what is computed
again, frozen towers, patches that are dropped, the half-precision copies of weights that autocast keeps.

It is an estimate, and has not been compared with a GPU. What kernels take inside of themselves, what an allocator loses to fragments and
what torch.compile saves are not in it, and the operations are those of a CPU, from which a GPU's autocast differs in details.
"""

import functools
import weakref
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainer import models, starting
from trainer.config import ModelConfig, TrainConfig

_PAIRS = 509
"""A prime, so that a storage whose size is a multiple of it is one of so many pairs, and any other is of none."""


class Moment(NamedTuple):
    """What is there at one time, in bytes."""

    fixed: int
    """Whatever the number of pairs: autocast's copies of weights."""
    a_pair: int

    def of(self, pairs: int) -> int:
        return self.fixed + self.a_pair * pairs


class Activations(NamedTuple):
    """What is there, weights and their gradients apart, at the moments that are the fullest for some number of pairs."""

    moments: list[Moment]

    def of(self, pairs: int) -> int:
        """Bytes at the most while `pairs` pairs at a time go through the towers and back."""
        return max(moment.of(pairs) for moment in self.moments)


def estimate(config: TrainConfig) -> Activations:
    """What one process of `config` needs. Takes seconds for the largest model, and no memory of note.

    Raises InputError for a model that cannot be built.
    """
    return _estimate(config.model, config.tokenizer.train_size, config.objective.kind, config.precision.compute)


@functools.cache
def _estimate(wanted: ModelConfig, vocab_size: int | None, objective: str, compute: str) -> Activations:
    with FakeTensorMode():
        return Activations(_fullest(starting.build(wanted, vocab_size, objective), compute))


def _fullest(model: models.CLIP, compute: str) -> list[Moment]:
    """The fullest moments of one forward and backward pass of a model of fake tensors."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(compute, torch.float32)
    for parameter in model.parameters():
        parameter.data = parameter.to(dtype)  # and no buffer, as DeepSpeed does
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_drop_gradient)  # type: ignore[no-untyped-call]
    side = model.preset.image_size
    live = _Live(model)
    with live:
        pixels = torch.empty(_PAIRS, 3, side, side, dtype=dtype)
        ids = torch.zeros(_PAIRS, model.preset.context_length, dtype=torch.int64)
        with torch.autocast("cpu", torch.bfloat16, enabled=compute == "autocast_bf16"):
            outputs = model(pixels, ids)
        torch.autograd.backward([output.sum() for output in outputs if output.requires_grad])
    return live.fullest


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of storages that operations make while it lasts, until nothing holds them; the model's own are left out."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fullest: list[Moment] = []
        self._now = Moment(0, 0)
        self._known = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        place, size = storage._cdata, storage.nbytes()
        if place not in self._known:
            self._known.add(place)
            weakref.finalize(storage, self._forget, place, size)
            self._add(size)
            if not any(_covers(other, self._now) for other in self.fullest):
                self.fullest = [*(other for other in self.fullest if not _covers(self._now, other)), self._now]

    def _forget(self, place: int, size: int) -> None:
        self._known.discard(place)
        self._add(-size)

    def _add(self, size: int) -> None:
        fixed, a_pair = self._now
        of_pairs = size % _PAIRS == 0
        self._now = Moment(fixed, a_pair + size // _PAIRS) if of_pairs else Moment(fixed + size, a_pair)


def _covers(one: Moment, other: Moment) -> bool:
    """Whether no number of pairs makes `other` the fuller."""
    return one.fixed >= other.fixed and one.a_pair >= other.a_pair


def _drop_gradient(parameter: torch.Tensor) -> None:
    """Gradients of parameters are counted elsewhere, with the weights."""
    parameter.grad = None
