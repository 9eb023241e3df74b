"""Matching at half a million queries, from raw captions to sets of indices, one core, one cold pass over distinct captions.

    python -m tests.benchmarks.match

Beside ours, in mode `metaclip` and in mode `normalised`, stands what MetaCLIP publishes as its fast path: the spaced caption through an
Aho-Corasick automaton (pyahocorasick) of the spaced entries. The sets of mode `metaclip` are compared with the automaton's, caption by
caption. Each pass runs three times in turn with the others; figures are medians.
"""

import statistics
import time

import ahocorasick
import pyarrow as pa

from pipeline.match import Matcher
from tests.benchmarks.data.captions import captions, queries

_SPACED = str.maketrans({**{mark: f" {mark} " for mark in ",.:;?!`"}, **dict.fromkeys("\t\n\r", " ")})


class Automaton:
    """MetaCLIP's semantics by pyahocorasick."""

    def __init__(self, entries: list[str]) -> None:
        self._automaton = ahocorasick.Automaton()
        for index, entry in enumerate(entries):
            self._automaton.add_word(f" {entry} ", index)
        self._automaton.make_automaton()

    def match(self, texts: list[str]) -> list[list[int]]:
        find = self._automaton.iter
        return [sorted({index for _, index in find(f" {text} ".translate(_SPACED))}) for text in texts]


def main() -> None:
    texts = captions()
    wanted = queries(texts)
    column = pa.array(texts)
    built = {}
    started = time.perf_counter()
    automaton, built["pyahocorasick"] = Automaton(wanted), time.perf_counter() - started
    matchers = {}
    for mode in ("metaclip", "normalised"):
        Matcher(["warm"], mode).match(pa.array(["warm", "é"]))  # compiled, or read from the cache
        started = time.perf_counter()
        matchers[mode] = Matcher(wanted, mode)
        built[mode] = time.perf_counter() - started

    passes: dict[str, list[float]] = {name: [] for name in ("pyahocorasick", *matchers)}
    for _ in range(3):
        started = time.perf_counter()
        expected = automaton.match(texts)
        passes["pyahocorasick"].append(time.perf_counter() - started)
        for mode, matcher in matchers.items():
            started = time.perf_counter()
            found = matcher.match(column)
            passes[mode].append(time.perf_counter() - started)
            if mode == "metaclip" and found.to_pylist() != expected:
                raise SystemExit("mode metaclip and the automaton do not agree")

    print(f"{len(texts):,} distinct captions, {len(wanted):,} queries; mode metaclip gives the automaton's sets")
    print(f"{'':<16}{'build, s':>10}{'captions/s':>14}{'ratio':>8}{'matches a caption':>20}")
    peer = statistics.median(passes["pyahocorasick"])
    for name, seconds in passes.items():
        middle = statistics.median(seconds)
        matches = sum(map(len, expected)) if name not in matchers else len(matchers[name].match(column).values)
        print(
            f"{name:<16}{built[name]:>10.2f}{len(texts) / middle:>14,.0f}{peer / middle:>8.1f}{matches / len(texts):>20.1f}"
        )


if __name__ == "__main__":
    main()
