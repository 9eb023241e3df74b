"""The kernels of `short_attention.py`, in Triton: a program has one head of one row, whose keys all fit into one tile.

So a row of the attention matrix is whole when it is made: its softmax needs no running maximum, and the backward pass makes it again from
queries and keys instead of reading sums of the forward pass, and takes no output either. Products take the numbers' own dtype and are
summed in fp32, as in FlashAttention (Dao et al., 2022, algorithm 4, of which this is the case of one tile). No two programs write to one
place: the same bits each time.

Lengths are numbers that a program is given, and tiles are powers of two: four programs serve all lengths of a tower.
"""

import triton
import triton.language as tl
from torch import Tensor

from trainer.models import presets

HEAD_WIDTH = tl.constexpr(presets.HEAD_WIDTH)
_LOG2_E = tl.constexpr(1.4426950408889634)
_SMALLEST = 16
"""The least side of a product in Triton."""


def forward(packed: Tensor, out: Tensor, *, causal: bool) -> None:
    """packed [n, L, 3, heads, 64] to out [n, L, heads * 64], both contiguous."""
    n, length, _, heads, _ = packed.shape
    if n * length:
        tile = _tile(length)
        _forward[(n * heads,)](packed, out, length, heads, causal=causal, tile=tile, num_warps=_warps(tile))


def backward(gradient: Tensor, packed: Tensor, out: Tensor, *, causal: bool) -> None:
    """The gradient of `forward`'s output, [n, L, heads * 64], and its input, to that of its input, all contiguous."""
    n, length, _, heads, _ = packed.shape
    if n * length:
        tile = _tile(length)
        _backward[(n * heads,)](gradient, packed, out, length, heads, causal=causal, tile=tile, num_warps=_warps(tile))


def _tile(length: int) -> int:
    return max(_SMALLEST, 1 << (length - 1).bit_length())


def _warps(tile: int) -> int:
    """One for every 16 queries, which is what a warp multiplies on a Hopper GPU."""
    return tile // 16


@triton.jit(do_not_specialize=["length"])
def _forward(packed, out, length, heads, causal: tl.constexpr, tile: tl.constexpr):
    row, place, there, width, lane = _own(length, heads, tile)
    q, k, v = _packed_at(packed + row * 3 * width, place, there, width, lane)
    powers, sums = _powers(q, k, place, length, causal)
    mixed = tl.dot(powers.to(v.dtype), v) / sums[:, None]
    tl.store(out + row * width + place[:, None] * width + lane, mixed.to(v.dtype), mask=there)


@triton.jit(do_not_specialize=["length"])
def _backward(gradient, packed, out, length, heads, causal: tl.constexpr, tile: tl.constexpr):
    row, place, there, width, lane = _own(length, heads, tile)
    q, k, v = _packed_at(packed + row * 3 * width, place, there, width, lane)
    # Queries beyond the end have no gradient, and so give none.
    g = tl.load(gradient + row * width + place[:, None] * width + lane, mask=there, other=0.0)
    powers, sums = _powers(q, k, place, length, causal)
    weights = powers / sums[:, None]
    out += row * 3 * width
    at = place[:, None] * (3 * width) + lane
    tl.store(out + 2 * width + at, tl.dot(tl.trans(weights.to(g.dtype)), g).to(v.dtype), mask=there)
    of_weights = tl.dot(g, tl.trans(v))
    of_scores = weights * (of_weights - tl.sum(weights * of_weights, axis=1)[:, None])
    of_scores = of_scores.to(q.dtype)  # scaled after the products, for fp16 has few digits of small numbers
    scale = HEAD_WIDTH**-0.5
    tl.store(out + at, (tl.dot(of_scores, k) * scale).to(q.dtype), mask=there)
    tl.store(out + width + at, (tl.dot(tl.trans(of_scores), q) * scale).to(k.dtype), mask=there)


@triton.jit
def _own(length, heads, tile: tl.constexpr):
    """The program's own: places before its row, its places, which of them exist, the numbers of a place, and those that are its head's."""
    row = (tl.program_id(0) // heads).to(tl.int64) * length
    place = tl.arange(0, tile)
    lane = (tl.program_id(0) % heads) * HEAD_WIDTH + tl.arange(0, HEAD_WIDTH)[None, :]
    return row, place, (place < length)[:, None], heads * HEAD_WIDTH, lane


@triton.jit
def _packed_at(packed, place, there, width, lane):
    """Queries, keys and values of one row and head, [tile, 64] each; zeros beyond its end."""
    at = place[:, None] * (3 * width) + lane
    q = tl.load(packed + at, mask=there, other=0.0)
    k = tl.load(packed + width + at, mask=there, other=0.0)
    v = tl.load(packed + 2 * width + at, mask=there, other=0.0)
    return q, k, v


@triton.jit
def _powers(q, k, place, length, causal: tl.constexpr):
    """exp(q k^T / 8) over the largest of each query, of keys that it may see, fp32 [queries, keys]; and the sum of each query's."""
    scores = tl.dot(q, tl.trans(k)) * (HEAD_WIDTH**-0.5 * _LOG2_E)
    seen = (place < length)[None, :]
    if causal:
        seen &= place[None, :] <= place[:, None]
    scores = tl.where(seen, scores, float("-inf"))
    powers = tl.exp2(scores - tl.max(scores, axis=1)[:, None])
    return powers, tl.sum(powers, axis=1)
