"""A set's captions in a corpus's captions, one core: ours beside the same search by Python's dictionaries, and beside datasketch's
MinHashLSH.

    python -m tests.benchmarks.text_overlap [ROWS]      # 1,000,000

25,000 captions of a set, a million generated ones of a corpus (words by Zipf's law, as in real captions), 4,000 of them planted: equal but
for case and punctuation, inside a longer caption, one word changed, one word left out. First the exact matches are held against the
dictionaries', all of them and no other, on the rows that those get through. Then rates, from raw captions to pairs, and the recall of what
was planted: MinHashLSH compares sets of words and pairs of words too, with 128 permutations at a Jaccard similarity of 0.6, and is given
normal forms. Both peers are measured on fewer rows.
"""

import itertools
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
from datasketch import MinHash, MinHashLSH

from evaluation.config import TextRule
from evaluation.overlap.text import CaptionIndex, read_captions, token_forms
from pipeline.content.scripts import tokens
from pipeline.content.text import normal_form

SET = 25_000
WORDS = 30_000
PLANTED = 1000  # of each kind
PEERS_ROWS = 10_000
BATCH = 1 << 16
CORPUS = 400_000_000
KINDS: dict[str, Callable[[list[str], str], list[str]]] = {
    "equal": lambda words, _: [words[0].upper(), *words[1:-1], words[-1] + "!"],
    "inside": lambda words, other: ["stock", other, *words, "buy"],
    "changed": lambda words, other: [*words[: len(words) // 2], other, *words[len(words) // 2 + 1 :]],
    "left out": lambda words, _: [*words[: len(words) // 2], *words[len(words) // 2 + 1 :]],
}


def sentences(count: int, draws: np.random.Generator) -> list[list[str]]:
    """Captions of 8 to 16 words; the commonest word is a twelfth of all."""
    law = 1.0 / np.arange(1, WORDS + 1)
    sizes = draws.integers(8, 17, count)
    words = draws.choice(WORDS, int(sizes.sum()), p=law / law.sum())
    named = [f"w{number:x}" for number in range(WORDS)]
    ends = np.cumsum(sizes)
    return [[named[word] for word in words[end - size : end]] for end, size in zip(ends, sizes, strict=True)]


def corpus(
    ours: Sequence[list[str]], rows: int, draws: np.random.Generator
) -> tuple[list[str], dict[int, tuple[int, str]]]:
    """Captions, and what is planted: row → the set's caption and how."""
    said = [" ".join(words) for words in sentences(rows, draws)]
    planted = {}
    places = draws.choice(min(rows, PEERS_ROWS), len(KINDS) * PLANTED, replace=False)
    for number, row in enumerate(places.tolist()):
        kind = list(KINDS)[number % len(KINDS)]
        caption = int(draws.integers(len(ours)))
        said[row] = " ".join(KINDS[kind](ours[caption], f"w{int(draws.integers(WORDS)):x}"))
        planted[row] = (caption, kind)
    return said, planted


def ours_found(index: CaptionIndex, said: Sequence[str]) -> set[tuple[int, int]]:
    found: set[tuple[int, int]] = set()
    for start in range(0, len(said), BATCH):
        matches = index.search(token_forms(pa.array(said[start : start + BATCH], pa.string())))
        found |= set(zip((matches.rows + start).tolist(), matches.text.tolist(), strict=True))
    return found


class Dictionaries:
    """The same search, of near and whole captions at once, by an inverted index of Python's: runs → captions, counted caption by
    caption."""

    def __init__(self, ours: Sequence[str], rule: TextRule) -> None:
        self.rule = rule
        self.run_of = [self._runs(normal_form(caption)) for caption in ours]
        self.listed: dict[tuple[str, ...], list[int]] = {}
        for number, runs in enumerate(self.run_of):
            for run in runs:
                self.listed.setdefault(run, []).append(number)
        self.weight = {
            run: round(1e6 * float(np.log1p(len(ours) / len(numbers)))) for run, numbers in self.listed.items()
        }
        self.total = [sum(self.weight[run] for run in runs) for runs in self.run_of]

    def _runs(self, form: str) -> set[tuple[str, ...]]:
        words = tokens(form)
        sizes = range(1, self.rule.run + 1)
        return {tuple(words[at : at + size]) for size in sizes for at in range(len(words) - size + 1)}

    def found(self, said: Sequence[str]) -> set[tuple[int, int]]:
        matches = set()
        for row, caption in enumerate(said):
            shared: dict[int, int] = {}
            for run in self._runs(normal_form(caption)):
                weight = self.weight.get(run, 0)
                for number in self.listed.get(run, ()):
                    shared[number] = shared.get(number, 0) + weight
            matches |= {
                (row, number) for number, sum_ in shared.items() if sum_ / self.total[number] >= self.rule.similarity
            }
        return matches


class MinHashes:
    """datasketch: candidates of a banded index, their similarity then estimated."""

    def __init__(self, ours: Sequence[str]) -> None:
        self.index = MinHashLSH(threshold=0.6, num_perm=128)
        for number, caption in enumerate(ours):
            self.index.insert(number, self._minhash(caption))

    def _minhash(self, caption: str) -> MinHash:
        words = normal_form(caption).split()
        made = MinHash(num_perm=128)
        made.update_batch([word.encode() for word in [*words, *map(" ".join, itertools.pairwise(words))]])
        return made

    def found(self, said: Sequence[str]) -> set[tuple[int, int]]:
        return {
            (row, number) for row, caption in enumerate(said) for number in self.index.query(self._minhash(caption))
        }


def timed(
    search: Callable[[Sequence[str]], set[tuple[int, int]]], said: Sequence[str]
) -> tuple[set[tuple[int, int]], float]:
    started = time.perf_counter()
    found = search(said)
    return found, time.perf_counter() - started


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    draws = np.random.default_rng(0)
    ours = sentences(SET, draws)
    written = [" ".join(words) for words in ours]
    said, planted = corpus(ours, rows, draws)
    rule, few = TextRule(), said[:PEERS_ROWS]
    started = time.perf_counter()
    index = CaptionIndex(read_captions(written, SET), rule)
    built = time.perf_counter() - started
    ours_found(index, few[:100])  # compiled, or read from the cache
    dictionaries, minhashes = Dictionaries(written, rule), MinHashes(written)
    exact, dictionary_seconds = timed(dictionaries.found, few)
    candidates, minhash_seconds = timed(minhashes.found, few)
    if ours_found(index, few) != exact:
        raise SystemExit("not what the dictionaries find")
    print(
        f"{SET:,} captions x {len(few):,} rows: the same {len(exact):,} pairs as by dictionaries; tables in {built:.2f} s"
    )
    passes = [timed(lambda captions: ours_found(index, captions), said) for _ in range(3)]
    seconds = statistics.median(took for _, took in passes)
    rates = {
        "ours": (rows / seconds, passes[0][0]),
        "dictionaries": (len(few) / dictionary_seconds, exact),
        "MinHashLSH": (len(few) / minhash_seconds, candidates),
    }
    print(
        f"{'':<14}{'rows/s':>12}{'ratio':>9}"
        + "".join(f"{kind:>10}" for kind in KINDS)
        + "   recall of what was planted"
    )
    for name, (rate, found) in rates.items():
        recall = {
            kind: np.mean([(row, caption) in found for row, (caption, how) in planted.items() if how == kind])
            for kind in KINDS
        }
        shares = "".join(f"{recall[kind]:>10.3f}" for kind in KINDS)
        print(f"{name:<14}{rate:>12,.0f}{rates['ours'][0] / rate:>8.0f}x{shares}")
    print(f"{rows:,} rows; {CORPUS:,} rows of a corpus: {CORPUS * seconds / rows / 3600:.2f} core-hours")


if __name__ == "__main__":
    main()
