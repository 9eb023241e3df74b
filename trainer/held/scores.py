"""Features to figures: recall at k both ways, zero-shot accuracy, and what guessing reaches. The arithmetic, and no more.

The rules are those of `evaluation/retrieval.py` and `evaluation/zeroshot.py`, so that the scores of a run and those of its export agree.
A picture's query is answered by any text that stands beside it in the held set, a text's by any picture. Its rank is the number of wrong
candidates that score at least as high as its best right one: ties count against the model, and one that gives all candidates the same
score finds nothing. In zero-shot the lower class number wins a tie.

Similarities are computed block by block, and the borders of blocks depend on the number of candidates only: whoever computes a block, its
numbers are the same.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

CUTOFFS = (1, 5, 10)
_BLOCK_SCORES = 1 << 24
"""Similarities in memory at a time, at most; of one query where there are more candidates."""


class Relation(NamedTuple):
    """Which candidates are right for which queries: entry i says that `candidates[i]` is right for `queries[i]`; int64, by rising query.

    Each query has at least one.
    """

    queries: Tensor
    candidates: Tensor


def relation(pairs: Tensor) -> Relation:
    """From int64 [n, 2] of (query, candidate), in any order, repeated or not."""
    queries, candidates = torch.unique(pairs, dim=0).unbind(1)
    return Relation(queries.contiguous(), candidates.contiguous())


def blocks(queries: int, candidates: int) -> list[slice]:
    """All queries, cut so that a block's similarities to all candidates fit the bound."""
    size = max(1, _BLOCK_SCORES // candidates)
    return [slice(start, min(start + size, queries)) for start in range(0, queries, size)]


def ranks(queries: Tensor, candidates: Tensor, right: Relation, block: slice) -> Tensor:
    """For each query of a block, how many wrong candidates score at least as high as its best right one: int64 [queries in the block].

    queries [q, E] and candidates [c, E] are L2-normalised features.
    """
    scores = queries[block] @ candidates.T
    first, last = torch.searchsorted(right.queries, torch.tensor([block.start, block.stop], device=scores.device))
    is_right = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    is_right[right.queries[first:last] - block.start, right.candidates[first:last]] = True
    best = scores.masked_fill(~is_right, -math.inf).amax(dim=1, keepdim=True)
    return ((scores >= best) & ~is_right).sum(dim=1)


def chance(candidates: int, right: Relation, k: int) -> float:
    """The recall at `k` that a random order of the candidates reaches, in the mean over the queries."""
    sizes, repeats = torch.unique(torch.bincount(right.queries), return_counts=True)
    found = sum(
        _chance_of_one(candidates, size, k) * times
        for size, times in zip(sizes.tolist(), repeats.tolist(), strict=True)
    )
    return float(found / repeats.sum())


def _chance_of_one(candidates: int, right: int, k: int) -> float:
    """That one of `right` answers is among the first `k`: 1 - C(candidates - right, k) / C(candidates, k)."""
    if candidates - right < k:
        return 1.0
    missed = sum(math.log1p(-right / (candidates - place)) for place in range(k))
    return -math.expm1(missed)


def class_weights(prompts: Tensor, classes: int) -> Tensor:
    """The classifier [classes, E]: for each class the normalised mean of its prompts' normalised features [classes * templates, E]."""
    means = prompts.view(classes, -1, prompts.shape[1]).mean(dim=1)
    return functional.normalize(means, dim=-1)


def zeroshot(pictures: Tensor, weights: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracies of pictures [n, E] against `class_weights`, labels int64 [n]: top 1, top 5, and the mean over classes of top 1."""
    hit, among_five = [], []
    for block in blocks(len(pictures), len(weights)):
        order = torch.sort(pictures[block] @ weights.T, dim=1, descending=True, stable=True).indices
        right = order == labels[block, None]
        hit.append(right[:, 0])
        among_five.append(right[:, :5].any(dim=1))
    hits = torch.cat(hit)
    sizes = torch.bincount(labels, minlength=len(weights))
    of_class = torch.bincount(labels[hits], minlength=len(weights))[sizes > 0].double() / sizes[sizes > 0]
    return {
        "zeroshot_top1": float(hits.double().mean()),
        "zeroshot_top5": float(torch.cat(among_five).double().mean()),
        "zeroshot_mean_per_class": float(of_class.mean()),
    }
