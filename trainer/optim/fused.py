"""The update of `update.py` as one Triton kernel: every number is read once and written once, nothing in between touches memory.

With fp32 weights and gradients that is 20 bytes a number (weight and both moments read and written, the gradient read) and 16 for each
block of 256: 8.6 GB for a ViT-L/14, against some 200 bytes a number of the PyTorch version. The numbers are those of the PyTorch version
on a GPU to the bit: products and sums are not contracted (`enable_fp_fusion=False`), division and square root round to nearest.
`TRITON_INTERPRET=1` runs the kernel on a CPU, which is how the tests compare both.

A program handles one tile: some rows, each of them a block with its own scale. Random numbers hang on the places that numbers have in the
model's flat order, and which places a tile has is a table (`_Tiles`), made once for each partition. Nearly all tiles lie in one parameter,
where adding a number to an index gives its place; those with a border between two in them, and the last one, which may be short, have
a program of their own.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from trainer.optim.rounding import Span, random_key
from trainer.optim.update import Flat, Rule

_TILE = 2048
"""Numbers of a program: 16 for each of its 128 threads, so that a thread's loads are of 16 bytes and several are under way at a time."""
_WARPS = 4
LARGEST_BLOCK = 2 * _TILE
"""Numbers that share a scale must be in one program; with more of them its registers would not do."""
_GRIDS = {None: 0, "fp16": 1, "bf16": 2}


class _Tiles(NamedTuple):
    """The tiles of a partition, and where they are in the flat order of the model. A shift takes an index to its place, modulo 2^32."""

    plain: Tensor
    """int32 [tiles, 2]: number and shift of each tile that is whole and lies in one span."""
    other: Tensor
    """int32 [tiles, 2]: number and first span of each other one."""
    starts: Tensor
    """int64 [spans + 1]: the first number of each span, counted in the partition; the last one is beyond all."""
    shifts: Tensor
    """int32 [spans]."""


def start() -> None:
    """Have Triton build what it launches kernels with. Raises RuntimeError, OSError or CalledProcessError where this machine cannot."""
    triton.runtime.driver.active.utils  # noqa: B018  # for it, a C compiler and Python's headers are needed


def update(flat: Flat, rule: Rule, spans: Sequence[Span]) -> None:
    """`update.update` on a GPU, in one launch or two. A block has at most LARGEST_BLOCK numbers."""
    n = len(flat.weights)
    if n == 0:
        return
    tile = max(_TILE, rule.block)
    tiles = _tiles(tuple(spans), tile, flat.weights.device)
    for some, is_plain in ((tiles.plain, True), (tiles.other, False)):
        if len(some):
            _kernel[(len(some),)](
                *flat,
                some,
                tiles.starts,
                tiles.shifts,
                n,
                rule.beta1,
                1 - rule.beta1,
                rule.beta2,
                1 - rule.beta2,
                rule.shrink,
                rule.step_size,
                rule.eps,
                0.0 if rule.bound is None else rule.bound,
                random_key(rule.seed, rule.step),
                block=rule.block,
                rows=tile // rule.block,
                is_plain=is_plain,
                onto=_GRIDS[rule.grid],
                is_bounded=rule.bound is not None,
                num_warps=_WARPS,
                enable_fp_fusion=False,
            )


@functools.lru_cache(maxsize=4096)
def _tiles(spans: tuple[Span, ...], tile: int, device: torch.device) -> _Tiles:
    counts = torch.tensor([count for _, count in spans])
    ends = counts.cumsum(0)
    n, starts = int(ends[-1]), ends - counts
    shifts = (torch.tensor([first for first, _ in spans]) - starts).to(torch.int32)
    firsts = torch.arange(0, n, tile)
    span = torch.searchsorted(ends, firsts, right=True)
    is_plain = firsts + tile <= ends[span]
    number = torch.arange(len(firsts))
    plain = torch.stack([number, shifts[span]], dim=1)[is_plain]
    other = torch.stack([number, span], dim=1)[~is_plain]
    beyond = torch.tensor([torch.iinfo(torch.int64).max])
    tables = plain.to(torch.int32), other.to(torch.int32), torch.cat([starts, beyond]), shifts
    return _Tiles(*(table.to(device) for table in tables))


@triton.jit(do_not_specialize=["n", "key"])
def _kernel(
    weights,
    gradients,
    moments,
    moment_scales,
    roots,
    root_scales,
    tiles,
    starts,
    shifts,
    n,
    beta1,
    rest1,
    beta2,
    rest2,
    shrink,
    step_size,
    eps,
    bound,
    key,
    block: tl.constexpr,
    rows: tl.constexpr,
    is_plain: tl.constexpr,
    onto: tl.constexpr,
    is_bounded: tl.constexpr,
):
    # Masks would keep loads from being wide ones: only the other tiles have them.
    entry = tiles + 2 * tl.program_id(0)
    tile = tl.load(entry)
    start = tile.to(tl.int64) * (rows * block)
    row = tl.arange(0, rows)
    lane = row[:, None] * block + tl.arange(0, block)[None, :]
    first_row = tile.to(tl.int64) * rows
    left = rows * block if is_plain else tl.minimum(n - start, rows * block).to(tl.int32)
    there = None if is_plain else lane < left
    row_there = None if is_plain else row * block < left
    fill = None if is_plain else 0.0

    g = tl.load(gradients + start + lane, mask=there, other=fill).to(tl.float32)
    m = tl.load(moments + start + lane, mask=there, other=fill).to(tl.float32)
    r = tl.load(roots + start + lane, mask=there, other=fill).to(tl.float32)
    w = tl.load(weights + start + lane, mask=there, other=fill).to(tl.float32)
    m *= tl.load(moment_scales + first_row + row, mask=row_there)[:, None]
    r *= tl.load(root_scales + first_row + row, mask=row_there)[:, None]

    # AdamW
    m = m * beta1 + g * rest1
    r = tl.sqrt_rn(r * r * beta2 + g * g * rest2)
    w = w * shrink - tl.div_rn(m * step_size, r + eps)

    # 32 random bits for each place
    shift = tl.load(entry + 1) if is_plain else _shifts(tl.load(entry + 1), starts, shifts, start, left, lane)
    bits = _mixed((lane + (start.to(tl.int32) + shift)) ^ key)

    # moments, to the nearest; roots, stochastically (`blocks.quantise`)
    scale, inverse, _ = _block_scale(m)
    tl.store(moments + start + lane, (m * inverse[:, None]).to(tl.float16), mask=there)
    tl.store(moment_scales + first_row + row, scale, mask=row_there)
    scale, inverse, broken = _block_scale(r)
    noisy = (r * inverse[:, None]).to(tl.int32, bitcast=True) + ((bits >> 19) & 0x1FFF)
    noisy &= -0x2000
    tl.store(roots + start + lane, noisy.to(tl.float32, bitcast=True).to(tl.float16), mask=there)
    tl.store(root_scales + first_row + row, tl.where(broken, float("nan"), scale), mask=row_there)

    # weights, onto their grid and below their bound
    w = _round_onto(w, bits, onto)
    if is_bounded:
        w = tl.where(w > bound, bound, w)
    tl.store(weights + start + lane, w.to(weights.dtype.element_ty), mask=there)


@triton.jit
def _block_scale(values):
    """Of fp32 [rows, block]: each row's scale and its inverse, powers of two, and whether the row has a not-a-number."""
    # As bits, magnitudes are ordered as they are as numbers, with infinity above them and not-a-number above that.
    largest = tl.max(values.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=1)
    exponent = tl.minimum(tl.maximum((largest >> 23) - 126, -100), 128) - 15
    scale = ((exponent + 127) << 23).to(tl.float32, bitcast=True)
    inverse = ((127 - exponent) << 23).to(tl.float32, bitcast=True)
    return scale, inverse, largest > 0x7F800000


@triton.jit
def _shifts(span, starts, shifts, start, left, lane):
    """int32 [rows, block]: of a tile that begins in `span`, the shift of each number to its place."""
    shift = tl.load(shifts + span) + tl.zeros_like(lane)
    span_end = tl.load(starts + span + 1)
    while span_end < start + left:
        span += 1
        shift = tl.where(start + lane >= span_end, tl.load(shifts + span), shift)
        span_end = tl.load(starts + span + 1)
    return shift


@triton.jit
def _mixed(bits):
    """`rounding.random_bits`, of places that the step's key is in."""
    bits ^= (bits >> 16) & 0xFFFF
    bits *= 0x21F0AAAD
    bits ^= (bits >> 15) & 0x1FFFF
    bits *= 0x735A2D97
    bits ^= (bits >> 15) & 0x1FFFF
    return bits


@triton.jit
def _round_onto(w, bits, onto: tl.constexpr):
    """`rounding.round_onto`; `onto` is of _GRIDS."""
    if onto == 1:
        power = tl.maximum(w.to(tl.int32, bitcast=True) & 0x7F800000, 113 << 23)
        unit = (power - (10 << 23)).to(tl.float32, bitcast=True)
        units = ((264 - (power >> 23)) << 23).to(tl.float32, bitcast=True)
        noise = (bits & 0x1FFF).to(tl.float32) * (1.0 / 8192)
        w = tl.floor(w * units + noise) * unit
    if onto == 2:
        carried = (w.to(tl.int32, bitcast=True) + (bits & 0xFFFF)) & -0x10000
        w += carried.to(tl.float32, bitcast=True) - w
    return w
