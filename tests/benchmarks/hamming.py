"""Hamming search over 256-bit codes at distance 31, one core: ours beside faiss, which compares every code.

    python -m tests.benchmarks.hamming [--peers FOLDER]

First a proof: on 100 million pairs (100,000 codes, 1,000 queries, half of them planted 0 to 40 bits from a code) the pairs found are
those of faiss's flat index, all of them and no other. Then rates: random queries against 100,000 and 1,000,000 codes, three passes each in
turn, medians. The peer is faiss's `IndexBinaryFlat` with one thread, which is exact as ours is. The last figures say what 400 million
corpus rows cost, by the rate just measured. faiss lives in an environment of its own (--peers: where it stays for the next time).
"""

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluation.overlap.index import HammingIndex
from tests.benchmarks.data.peers import python_with

FAISS = ["faiss-cpu==1.15.1"]
DISTANCE = 31
CODES = (100_000, 1_000_000)
QUERIES = 20_000
PEERS_QUERIES = 300
BAR = 50_000
CORPUS = 400_000_000

PEER = """
import sys, time
import faiss, numpy as np
faiss.omp_set_num_threads(1)
data = np.load(sys.argv[1])
index = faiss.IndexBinaryFlat(256)
index.add(data["codes"])
started = time.perf_counter()
limits, distances, found = index.range_search(data["queries"], int(sys.argv[2]) + 1)
seconds = time.perf_counter() - started
query = np.repeat(np.arange(len(data["queries"])), np.diff(limits.astype(np.int64)))
order = np.lexsort((found, query))
np.savez(sys.argv[3], query=query[order], code=found[order], bits=distances[order].astype(np.int64), seconds=seconds)
"""


def planted(codes: NDArray[np.uint8], queries: int, draws: np.random.Generator) -> NDArray[np.uint8]:
    """Queries of which each second one is a code with 0 to 40 bits flipped."""
    asked = draws.integers(0, 256, (queries, codes.shape[1]), dtype=np.uint8)
    for row in range(0, queries, 2):
        bits = np.unpackbits(codes[int(draws.integers(len(codes)))])
        bits[draws.choice(256, int(draws.integers(0, 41)), replace=False)] ^= 1
        asked[row] = np.packbits(bits)
    return asked


def faiss(
    python: str, folder: Path, codes: NDArray[np.uint8], queries: NDArray[np.uint8]
) -> dict[str, NDArray[np.int64]]:
    np.savez(folder / "asked.npz", codes=codes, queries=queries)
    command = [python, "-c", PEER, str(folder / "asked.npz"), str(DISTANCE), str(folder / "found.npz")]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    with np.load(folder / "found.npz") as found:
        return dict(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, help="where faiss's environment is made and stays")
    given = parser.parse_args().peers
    draws = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = python_with(given or folder / "peer", FAISS, ours=False)
        codes = draws.integers(0, 256, (CODES[0], 32), dtype=np.uint8)
        asked = planted(codes, 1000, draws)
        theirs = faiss(python, folder, codes, asked)
        ours = HammingIndex(codes).search(asked, DISTANCE)
        for number, key in enumerate(("query", "code", "bits")):
            if not np.array_equal(ours[number], theirs[key]):
                raise SystemExit(f"{key}: not what faiss finds")
        print(
            f"{len(codes) * len(asked):,} pairs compared: the same {len(ours[0]):,} within {DISTANCE} bits as faiss's flat index"
        )

        for count in CODES:
            codes = draws.integers(0, 256, (count, 32), dtype=np.uint8)
            queries = draws.integers(0, 256, (QUERIES, 32), dtype=np.uint8)
            index = HammingIndex(codes)
            started = time.perf_counter()
            index.search(queries[:1], DISTANCE)
            built = time.perf_counter() - started
            seconds: dict[str, list[float]] = {"ours": [], "faiss": []}
            for _ in range(3):
                started = time.perf_counter()
                index.search(queries, DISTANCE)
                seconds["ours"].append((time.perf_counter() - started) / len(queries))
                took = faiss(python, folder, codes, queries[:PEERS_QUERIES])["seconds"]
                seconds["faiss"].append(float(took) / PEERS_QUERIES)
            rate, peers = (1 / statistics.median(seconds[side]) for side in ("ours", "faiss"))
            print(
                f"{count:>9,} codes: ours {rate:>9,.0f} queries/s, faiss flat {peers:>7,.0f}, {rate / peers:,.0f}x; tables in {built:.2f} s"
            )
            print(
                f"{'':>9} {CORPUS:,} corpus rows x {count:,} codes at this rate: {CORPUS / rate / 3600:,.1f} core-hours"
            )
            if count == CODES[0] and rate < BAR:
                print(f"{'':>9} below the bar of {BAR:,} queries/s")


if __name__ == "__main__":
    main()
