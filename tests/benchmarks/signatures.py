"""MinHash signatures, k = 128, from caption string to values, shingling on every side, one core.

    python -m tests.benchmarks.signatures

Beside ours stand datasketch's `MinHash.bulk` (scheme affine32, whose values ours must equal) and rensa's matrix of token sets (values of a
scheme of its own). Both get their shingles from `content.text.shingles`, as a user of them would write it. The peers see a part of the
captions, since they are slow; each pass runs three times in turn, figures are medians.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa
from datasketch import MinHash
from rensa import RMinHash

from pipeline.dedup.signatures import minhash, shingles
from tests.benchmarks.data.captions import captions

PERMUTATIONS = 128


def datasketch(texts: list[str]) -> object:
    return MinHash.bulk([shingles(text) for text in texts], num_perm=PERMUTATIONS, seed=1, scheme="affine32")


def rensa(texts: list[str]) -> object:
    sets = [[gram.decode() for gram in shingles(text)] for text in texts]
    return RMinHash.digest_matrix_from_token_sets(sets, num_perm=PERMUTATIONS, seed=1)


def ours(texts: list[str]) -> object:
    return minhash(pa.array(texts), PERMUTATIONS)


def main() -> None:
    texts = captions()
    ours(texts[:100])  # compiled, or read from the cache
    runs: dict[str, tuple[Callable[[list[str]], object], list[str], list[float]]] = {
        "datasketch": (datasketch, texts[:6000], []),
        "rensa": (rensa, texts[:20_000], []),
        "ours": (ours, texts, []),
    }
    for _ in range(3):
        for function, part, seconds in runs.values():
            started = time.perf_counter()
            function(part)
            seconds.append(time.perf_counter() - started)
    checked = [shingles(text) for text in texts[:6000]]
    sketches = MinHash.bulk(checked, num_perm=PERMUTATIONS, seed=1, scheme="affine32")
    theirs = np.stack([sketch.hashvalues for sketch in sketches])
    if not (minhash(pa.array(texts[:6000]), PERMUTATIONS) == theirs).all():
        raise SystemExit("our values are not datasketch's")
    rates = {name: len(part) / statistics.median(seconds) for name, (_, part, seconds) in runs.items()}
    mean = sum(map(len, texts)) / len(texts)
    print(
        f"k = {PERMUTATIONS}, captions of {mean:.0f} characters on average; ours equal datasketch's affine32 bit for bit"
    )
    for name, rate in rates.items():
        print(f"{name:<12}{rate:>12,.0f} captions/s{rates['ours'] / rate:>8.1f}x")


if __name__ == "__main__":
    main()
