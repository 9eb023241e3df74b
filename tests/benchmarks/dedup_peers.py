"""Near-duplicate removal of whole tables beside datatrove's four MinHash steps, on the same captions and both cores.

    python -m tests.benchmarks.dedup_peers [ROWS]      # 100,000

datatrove brings a good many packages, so it lives in an environment of its own, build/peers, which is made at the first call (a minute). It
runs with 14 buckets of 9 hashes, which is what our threshold of 0.8 comes to, and with word bigrams: its usual word 5-grams give captions
of fewer words no signature. It compares no captions, so a pair that met in a bucket counts. Time is from the tables to the rows that stay,
Ray's start included for us, the interpreter's for it.
"""

import gzip
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.data import peers
from tests.benchmarks.data.near_duplicates import ROWS_PER_FILE, Planted, rows
from tests.benchmarks.dedup import measure

PEERS = Path(__file__).resolve().parents[2] / "build" / "peers"
NEEDS = ("datatrove[io,processing]==0.10.1", "spacy")

SCRIPT = """
import sys

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter

if __name__ == "__main__":
    folder = sys.argv[1]
    config = MinhashConfig(n_grams=2, num_buckets=14, hashes_per_bucket=9)
    reader = JsonlReader(f"{folder}/in")
    steps = [
        ([reader, MinhashDedupSignature(f"{folder}/signatures", config)], 2),
        ([MinhashDedupBuckets(f"{folder}/signatures", f"{folder}/buckets", config=config)], 14),
        ([MinhashDedupCluster(f"{folder}/buckets", f"{folder}/remove", config=config)], 1),
        ([reader, MinhashDedupFilter(f"{folder}/remove"), JsonlWriter(f"{folder}/out")], 2),
    ]
    for number, (pipeline, tasks) in enumerate(steps):
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=2, logging_dir=f"{folder}/logs/{number}").run()
"""


class Peer(NamedTuple):
    seconds: float
    recall: float
    lost: int
    """Pairs below the threshold of which a row went."""
    below: int


def datatrove(count: int) -> Peer:
    python = peers.python_with(PEERS, NEEDS, ours=False)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "in").mkdir()
        (place / "steps.py").write_text(SCRIPT)
        planted: list[Planted] = []
        for number in range(-(-count // ROWS_PER_FILE)):
            made = rows(number)
            planted += made.planted
            with gzip.open(place / "in" / f"{number:05d}.jsonl.gz", "wt", encoding="utf-8") as lines:
                for uid, caption in zip(made.table["uid"].to_pylist(), made.table["caption"].to_pylist(), strict=True):
                    lines.write(json.dumps({"text": caption, "id": uid.hex()}) + "\n")
        started = time.perf_counter()
        done = subprocess.run([python, place / "steps.py", folder], capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - started
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        stay = set()
        for path in (place / "out").glob("*.gz"):
            with gzip.open(path, "rt", encoding="utf-8") as lines:
                stay |= {json.loads(line)["id"] for line in lines}
    alike = [pair for pair in planted if pair.similarity >= 0.8]
    caught = sum(pair.first.hex() not in stay or pair.second.hex() not in stay for pair in alike)
    wrong = sum(
        pair.first.hex() not in stay or pair.second.hex() not in stay for pair in planted if pair.similarity < 0.8
    )
    return Peer(seconds, caught / len(alike), wrong, len(planted) - len(alike))


def main() -> None:
    count = int(sys.argv[1].replace(",", "")) if len(sys.argv) > 1 else 100_000
    theirs = datatrove(count)
    print(
        f"datatrove   {count:>9,} rows  {theirs.seconds:>6.1f} s  {count / theirs.seconds:>8,.0f} rows/s  recall {theirs.recall:.3f}  "
        f"{theirs.lost:,} of {theirs.below:,} pairs below the threshold lost a row"
    )
    started = time.perf_counter()
    ours = measure(count, "caption")
    whole, seconds = time.perf_counter() - started, ours.ray_seconds + ours.seconds
    print(
        f"ours        {count:>9,} rows  {seconds:>6.1f} s  {count / seconds:>8,.0f} rows/s  recall {ours.recall:.3f}  "
        f"precision {ours.precision:.4f}  (generating and judging took {whole - seconds:.0f} s more)"
    )
    print(f"ratio       {theirs.seconds / seconds:.2f} times datatrove's rows per second")


if __name__ == "__main__":
    main()
