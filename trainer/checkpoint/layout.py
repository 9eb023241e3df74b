"""Where the numbers of named parameters lie in the flat tensors that an optimizer holds, and how to cut them anew.

ZeRO gives each process flat 1-D tensors of master weights, padded at the end; which parameter's numbers lie where follows from the stage
and the number of processes. A checkpoint states it, so that what one layout saved can be cut to any other: masters number by number,
moments by way of fp32, because their block scales belong to the flat order. A block's scale is a power of two, so a moment survives the
way to the bit unless it is 2^28 times smaller than the largest of its new block (`optim/blocks.py`).
"""

import collections
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.optim.blocks import dequantise, quantise
from trainer.partitions import Layout, Piece

MASTER = "master"
SCALE = "_scale"
"""A state X with another one X_scale beside it is fp16 in blocks; any other state has one number for each of the flat tensor's."""


class Flat(NamedTuple):
    """A flat tensor with the optimizer's state: `values` has MASTER and the states' tensors, `counts` the states' plain integers."""

    layout: Layout
    values: dict[str, Tensor]
    counts: dict[str, int]


class Saved(NamedTuple):
    """A flat tensor of a checkpoint, whose values are read when they are asked for."""

    layout: Layout
    counts: dict[str, int]
    read: Callable[[], dict[str, Tensor]]


def whole(shapes: dict[str, tuple[int, ...]]) -> list[Layout]:
    """The layout that holds each parameter in a tensor of its own."""
    sizes = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    return [Layout(numel=size, block=1, pieces=(Piece(name, 0, 0, size),)) for name, size in sizes.items()]


def cut(saved: Iterable[Saved], layouts: Sequence[Layout], *, only: str | None = None) -> list[Flat]:
    """The numbers of `saved`, whatever its layout, laid out as `layouts` says, on the CPU; `only` this key if given.

    Values keep the dtypes that they were saved with; padding is zero; counts, which are of steps, are the largest saved. One saved tensor
    is in memory at a time. Raises ValueError where a number is in none of the saved tensors.
    """
    wanted: dict[str, list[tuple[int, Piece]]] = collections.defaultdict(list)
    for number, layout in enumerate(layouts):
        for piece in layout.pieces:
            wanted[piece.name].append((number, piece))
    plain: list[dict[str, Tensor]] = [{} for _ in layouts]
    covered = [0] * len(layouts)
    dtypes: dict[str, torch.dtype] = {}
    latest: dict[str, int] = {}
    in_blocks: set[str] = set()
    for source in saved:
        if not any(piece.name in wanted for piece in source.layout.pieces):
            continue
        values = source.read()
        in_blocks |= {key for key in values if key + SCALE in values}
        numbers = {key: value for key, value in _dequantised(values, source.layout.block) if only in (None, key)}
        dtypes |= {key: value.dtype for key, value in numbers.items()}
        latest |= {key: max(count, latest.get(key, 0)) for key, count in source.counts.items()}
        for theirs in source.layout.pieces:
            for number, ours in wanted.get(theirs.name, ()):
                first = max(theirs.start, ours.start)
                count = min(theirs.start + theirs.length, ours.start + ours.length) - first
                if count <= 0:
                    continue
                covered[number] += count
                for key, value in numbers.items():
                    if key not in plain[number]:
                        plain[number][key] = torch.zeros(layouts[number].numel, dtype=value.dtype)
                    into = plain[number][key].narrow(0, ours.at + first - ours.start, count)
                    into.copy_(value.narrow(0, theirs.at + first - theirs.start, count))
    for layout, found in zip(layouts, covered, strict=True):
        if found != sum(piece.length for piece in layout.pieces):
            names = ", ".join(sorted({piece.name for piece in layout.pieces})[:3])
            raise ValueError(f"{found:,} of {layout.numel:,} numbers of {names} are in the checkpoint")
    flats = []
    for layout, values in zip(layouts, plain, strict=True):
        padding_only = {
            key: torch.zeros(layout.numel, dtype=dtype) for key, dtype in dtypes.items() if key not in values
        }
        quantised = _quantised(values | padding_only, in_blocks if only is None else set(), layout.block)
        flats.append(Flat(layout, quantised, dict(latest)))
    return flats


def _dequantised(values: dict[str, Tensor], block: int) -> Iterable[tuple[str, Tensor]]:
    """Each value with one number a place: those in blocks as fp32, the others as they are."""
    for key, value in values.items():
        if key + SCALE in values:
            yield key, dequantise(value, values[key + SCALE], block)
        elif not (key.endswith(SCALE) and key.removesuffix(SCALE) in values):
            yield key, value


def _quantised(values: dict[str, Tensor], in_blocks: set[str], block: int) -> dict[str, Tensor]:
    done = dict(values)
    for key in values.keys() & in_blocks:
        done[key], done[key + SCALE] = quantise(values[key], block)
    return done
