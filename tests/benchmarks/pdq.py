"""Perceptual hashes, one core: our PDQ beside `pdqhash`, Meta's code in a Python package, and our pHash beside `imagehash`.

    python -m tests.benchmarks.pdq [--peers FOLDER]

The pictures are photographs where the real data is, else drawn scenes, decoded once, as they are and halved; both sides get the same
uint8[h, w, 3] (imagehash gets Pillow's picture of it, made before the clock starts). Timed is hashing alone, picture after picture, in
processor seconds, in five passes in which ours and theirs take turns; the ratio is the median of the five pairs'. Hashes are compared bit
by bit: PDQ's are equal, and pHash's where no coefficient is zero but for rounding noise (see `phash64`). The peers live in an environment
of their own (--peers: where it stays for the next time).

The decision that it supports: a corpus is hashed by our kernels, and `pdqhash` and `imagehash` are what tests hold them against.
"""

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.content.hashes import halve, hamming, pdq, phash64
from pipeline.content.image import RGB, decode
from tests.benchmarks.data.peers import python_with
from tests.benchmarks.data.photographs import sources

PEERS = ["pdqhash==0.2.8", "ImageHash==4.3.2"]
PASSES = 5
BAR = 2

PEER = """
import sys, time
import imagehash, numpy as np, pdqhash
from PIL import Image
kind, pictures, found = sys.argv[1:]
with np.load(pictures) as read:
    pixels = [read[name] for name in read.files]
if kind == "phash":
    pixels = [Image.fromarray(each) for each in pixels]
one = pdqhash.compute if kind == "pdq" else imagehash.phash
one(pixels[0])
started = time.process_time()
hashes = [one(each) for each in pixels]
seconds = time.process_time() - started
bits = [each[0] if kind == "pdq" else each.hash.ravel() for each in hashes]
np.savez(found, codes=np.packbits(np.asarray(bits, np.uint8), axis=1), seconds=seconds)
"""


def ours(hashed: Callable[[RGB], bytes], pixels: Sequence[RGB]) -> tuple[NDArray[np.uint8], float]:
    hashed(pixels[0])
    started = time.process_time()
    codes = [hashed(each) for each in pixels]
    seconds = time.process_time() - started
    return np.frombuffer(b"".join(codes), np.uint8).reshape(len(codes), -1), seconds


def theirs(python: str, kind: str, pictures: Path) -> tuple[NDArray[np.uint8], float]:
    found = pictures.with_name("found.npz")
    subprocess.run([python, "-c", PEER, kind, str(pictures), str(found)], check=True)
    with np.load(found) as read:
        return read["codes"], float(read["seconds"])


KINDS: dict[str, tuple[str, Callable[[RGB], bytes]]] = {
    "pdq": ("pdqhash 0.2.8", lambda rgb: pdq(rgb)[0]),
    "phash": ("imagehash 4.3.2", lambda rgb: phash64(rgb).to_bytes(8, "big")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, help="where the peers' environment is made and stays")
    given = parser.parse_args().peers
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # the peers inherit it
    os.environ["OMP_NUM_THREADS"] = "1"
    whole = [decode(source).rgb for source in sources()]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = python_with(given or folder / "peer", PEERS, ours=False)
        for told, pixels in (("whole", whole), ("halved", [halve(each) for each in whole])):
            height, width = (statistics.median(each.shape[side] for each in pixels) for side in (0, 1))
            print(f"{len(pixels)} pictures, {told}: {width:.0f} x {height:.0f} in the middle")
            np.savez(folder / "pictures.npz", *pixels)
            for kind, (peer, hashed) in KINDS.items():
                pairs = [(ours(hashed, pixels), theirs(python, kind, folder / "pictures.npz")) for _ in range(PASSES)]
                compared(kind, peer, pairs)


def compared(
    kind: str,
    peer: str,
    pairs: Sequence[tuple[tuple[NDArray[np.uint8], float], tuple[NDArray[np.uint8], float]]],
) -> None:
    (codes, _), (others, _) = pairs[0]
    apart = Counter(hamming(codes, others).tolist())
    each, other = (statistics.median(pair[side][1] for pair in pairs) / len(codes) * 1e3 for side in (0, 1))
    ratios = sorted(them / us for (_, us), (_, them) in pairs)
    print(
        f"  {kind:<6} ours {each:7.3f} ms, {peer} {other:7.3f} ms: {ratios[PASSES // 2]:.2f} times as fast "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f}); {apart[0]} of {len(codes)} equal, bits apart: {dict(sorted(apart.items()))}"
    )
    if kind == "pdq" and ratios[PASSES // 2] < BAR:
        print(f"{'':>9}below the bar of {BAR} times")


if __name__ == "__main__":
    main()
