"""Which of a set's captions are nearly there in a text: the weighted share of their runs of tokens, found exactly.

A caption's runs are its tokens and every two (to `run`) that stand side by side, each counted once. A run weighs ln(1 + captions of the set
/ captions of the set that have it), so that "a" and "on a" say little and a rare word much. The score of a caption in a text is the weight
of its runs that stand in the text, by the weight of all of them: how much of the caption is there, whatever else the text says (the
rule of decon, allenai/decon, doc/simple-details.md, whose weights are of the evaluation side too).

The weights come from the set's own captions and from nothing else: not from the corpus, because then a caption's score would change with
the shards that are read, and would not be known before all of them were; not from other sets of the job. They are whole millionths, so a
sum of them does not depend on its order, and a score is one division.

Nothing is lost on the way: a text that reaches the threshold has at least one run of each set of runs that weighs too much to be missed.
For every caption the lightest such set of its rarest runs is listed (a prefix filter), a text's runs are looked up in the lists, and each
caption found there is scored in full. Runs are the nodes of a tree (the run, less its last token; that token), and tokens are compared as
bytes, so no hash decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.content.kernels import Bytes, Text, compiled
from pipeline.content.phrases import cut_tokens
from pipeline.content.scripts import spaceless_points

WEIGHT_UNIT = 1_000_000
_Ints = NDArray[np.int64]
_FREE = np.uint64(0xFFFFFFFFFFFFFFFF)


class NearIndex(NamedTuple):
    """The captions of a set as arrays, read-only, as they are when they come back from Ray: one compiled loop for both.

    Token i is `tokens[token_starts[i]:token_starts[i + 1]]`; `slots` is open addressing by a token's hash, 1 + token, 0 where empty. The
    node of a run is found in `keys` (the node before << 32 | token), its number in `nodes`; 0 is the root. Caption c has the nodes
    `runs[run_starts[c]:run_starts[c + 1]]`, rarest first, and weighs `totals[c]`; node g weighs `weights[g]` and lists the captions
    `listed[list_starts[g]:list_starts[g + 1]]`.
    """

    tokens: Bytes
    token_starts: _Ints
    slots: NDArray[np.int32]
    keys: NDArray[np.uint64]
    nodes: NDArray[np.int32]
    weights: _Ints
    run_starts: _Ints
    runs: NDArray[np.int32]
    totals: _Ints
    list_starts: _Ints
    listed: NDArray[np.int32]


def build(captions: Sequence[Sequence[str]], wanted: Sequence[bool], similarity: float, run: int) -> NearIndex:
    """Tables of the distinct captions of a set, as tokens. All of them give weights, the `wanted` ones are found, under their number."""
    vocabulary: dict[str, int] = {}
    tree: dict[int, int] = {}
    owned: list[list[int]] = []
    for caption in captions:
        numbers = [vocabulary.setdefault(token, len(vocabulary)) for token in caption]
        distinct: dict[int, None] = {}
        for place in range(len(numbers)):
            node = 0
            for number in numbers[place : place + run]:
                node = tree.setdefault(node << 32 | number, len(tree) + 1)
                distinct[node] = None
        owned.append(list(distinct))
    having = np.bincount([node for own in owned for node in own], minlength=len(tree) + 1)
    weights = np.rint(WEIGHT_UNIT * np.log1p(len(captions) / np.maximum(having, 1))).astype(np.int64)
    runs = [
        sorted(own, key=lambda node: (having[node], node)) if want else []
        for own, want in zip(owned, wanted, strict=True)
    ]
    totals = np.array([weights[own].sum() for own in runs], np.int64)
    lists: list[list[int]] = [[] for _ in range(len(tree) + 1)]
    for number, own in enumerate(runs):
        left = totals[number]
        for node in own:
            if left / totals[number] < similarity:  # as the search divides: what is left cannot reach the threshold
                break
            lists[node].append(number)
            left -= weights[node]
    words = [token.encode() for token in vocabulary]
    text, starts = np.frombuffer(b"".join(words), np.uint8), _starts([len(word) for word in words])
    slots = np.zeros(_room(len(words)), np.int32)
    _enter_tokens(text, starts, slots)
    keys, nodes = np.full(_room(len(tree)), _FREE, np.uint64), np.zeros(_room(len(tree)), np.int32)
    _enter_nodes(np.fromiter(tree, np.uint64, len(tree)), keys, nodes)
    index = NearIndex(
        text,
        starts,
        slots,
        keys,
        nodes,
        weights,
        _starts([len(own) for own in runs]),
        np.array([node for own in runs for node in own], np.int32),
        totals,
        _starts([len(numbers) for numbers in lists]),
        np.array([number for numbers in lists for number in numbers], np.int32),
    )
    for array in index:
        array.setflags(write=False)
    return index


def search(index: NearIndex, text: Text, similarity: float, run: int) -> tuple[_Ints, _Ints, NDArray[np.float64]]:
    """All (row of the text, which is in token form, caption, score) with score >= `similarity`: int64[m], int64[m], float64[m], by row."""
    found, count, row = np.empty((1024, 3), np.int64), 0, 0
    while True:
        row, count = _search(*text, spaceless_points(), index, similarity, run, row, found, count)
        if row == len(text.starts) - 1:
            break
        found = np.concatenate([found, np.empty_like(found)])
    rows, captions, shared = found[:count].T
    return rows.copy(), captions.copy(), shared / index.totals[captions]


def _starts(sizes: Sequence[int]) -> _Ints:
    return np.concatenate([[0], np.cumsum(np.array(sizes, np.int64))]).astype(np.int64)


def _room(count: int) -> int:
    """A power of two that `count` entries fill to two thirds at most."""
    return 1 << max(4, (3 * count // 2).bit_length())


# ---- kernels


@compiled
def _spread(value: np.uint64) -> np.uint64:
    """A bijection that brings the high bits down (the finalizer of MurmurHash3, A. Appleby, public domain)."""
    value ^= value >> np.uint64(33)
    value *= np.uint64(0xFF51AFD7ED558CCD)
    value ^= value >> np.uint64(33)
    return value


@compiled
def _token_slot(data: Bytes, begin: int, end: int, tokens: Bytes, starts: _Ints, slots: NDArray[np.int32]) -> np.uint64:
    """The slot of a token, or the empty one where it would be."""
    hashed, last = np.uint64(14695981039346656037), np.uint64(len(slots) - 1)
    for at in range(begin, end):
        hashed = (hashed ^ np.uint64(data[at])) * np.uint64(1099511628211)
    slot: np.uint64 = _spread(hashed) & last
    while slots[slot] != 0:
        first = starts[slots[slot] - 1]
        same = starts[slots[slot]] - first == end - begin
        at = 0
        while same and at < end - begin:
            same = tokens[first + at] == data[begin + at]
            at += 1
        if same:
            break
        slot = (slot + np.uint64(1)) & last
    return slot


@compiled
def _node_slot(key: np.uint64, keys: NDArray[np.uint64]) -> np.uint64:
    """The slot of a node, or the free one where it would be."""
    last = np.uint64(len(keys) - 1)
    slot: np.uint64 = _spread(key) & last
    while keys[slot] != key and keys[slot] != np.uint64(0xFFFFFFFFFFFFFFFF):
        slot = (slot + np.uint64(1)) & last
    return slot


@compiled
def _enter_tokens(tokens: Bytes, starts: _Ints, slots: NDArray[np.int32]) -> None:
    for token in range(len(starts) - 1):
        slots[_token_slot(tokens, starts[token], starts[token + 1], tokens, starts, slots)] = token + 1


@compiled
def _enter_nodes(tree: NDArray[np.uint64], keys: NDArray[np.uint64], nodes: NDArray[np.int32]) -> None:
    for number in range(len(tree)):
        slot = _node_slot(tree[number], keys)
        keys[slot], nodes[slot] = tree[number], number + 1


@compiled
def _search(
    data: Bytes,
    starts: _Ints,
    spaceless: NDArray[np.bool_],
    index: NearIndex,
    similarity: float,
    run: int,
    row: int,
    found: _Ints,
    count: int,
) -> tuple[int, int]:
    """Write (row, caption, shared weight) of rows `row`.. into `found[count:]`; returns the row that found no room, or the number of
    rows, and the new count."""
    longest = 0
    for one in range(len(starts) - 1):
        longest = max(longest, starts[one + 1] - starts[one])
    cuts, numbers = np.empty((longest + 1, 2), np.int64), np.empty(longest + 1, np.int64)
    here = np.empty(run * (longest + 1), np.int64)
    met, scored = np.full(len(index.weights), -1, np.int64), np.full(len(index.totals), -1, np.int64)  # last row
    while row < len(starts) - 1:
        size = cut_tokens(data, starts[row], starts[row + 1], spaceless, False, cuts, 0)
        for place in range(size):
            slot = _token_slot(data, cuts[place, 0], cuts[place, 1], index.tokens, index.token_starts, index.slots)
            numbers[place] = index.slots[slot] - 1
        runs = 0
        for place in range(size):
            node = np.int64(0)
            for last in range(place, min(place + run, size)):
                if numbers[last] < 0:
                    break
                slot = _node_slot(np.uint64(node) << np.uint64(32) | np.uint64(numbers[last]), index.keys)
                node = np.int64(index.nodes[slot])
                if node == 0:
                    break
                if met[node] != row:
                    met[node] = row
                    here[runs] = node
                    runs += 1
        before = count
        for place in range(runs):
            node = here[place]
            for entry in range(index.list_starts[node], index.list_starts[node + 1]):
                caption = index.listed[entry]
                if scored[caption] == row:
                    continue
                scored[caption] = row
                total = index.totals[caption]
                left = total  # what may still be there
                for own in range(index.run_starts[caption], index.run_starts[caption + 1]):
                    if met[index.runs[own]] != row:
                        left -= index.weights[index.runs[own]]
                        if left / total < similarity:
                            break
                if left / total >= similarity:
                    if count == len(found):
                        return row, before
                    found[count, 0], found[count, 1], found[count, 2] = row, caption, left
                    count += 1
        row += 1
    return row, count
