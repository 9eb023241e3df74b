"""Near-duplicate removal at size: the dedup stages on Ray, over generated rows in which near-duplicates are planted
(tests/benchmarks/data/near_duplicates.py).

    python -m tests.benchmarks.dedup [ROWS ...] [--by caption|pair]      # 250,000, 500,000, 1,000,000 and 2,000,000; both

Printed: recall by similarity, precision, seconds, peak memory of a worker, and the exponent of time over rows. A planted pair counts as
found when one of the two goes for the other.
"""

import math
import sys
import tempfile
import threading
import time
from collections import Counter
from typing import NamedTuple

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import PipelineConfig
from pipeline.contracts import storage
from pipeline.engine import EngineConfig, Result, Run, Unit
from pipeline.stages.common import run_stage
from pipeline.stages.duplicates import remove_duplicates
from tests.benchmarks.data.near_duplicates import ROWS_PER_FILE, SEED, Planted, rows

SIZES = (250_000, 500_000, 1_000_000, 2_000_000)


# ---- one run


class Measured(NamedTuple):
    seconds: float
    peak_bytes: int
    recall: float
    lowest_bin: float
    precision: float
    found: int


def measure(count: int, by: str) -> Measured:
    """Generate, remove duplicates, compare with what was planted."""
    with tempfile.TemporaryDirectory() as folder:
        config = PipelineConfig.model_validate(
            {
                "run": {"out": folder, "seed": SEED},
                "sources": {"paths": ["-"]},
                "filter": {"queries": "-"},
                "dedup": {"by": by},
            }
        )
        with Run(folder, EngineConfig(), {}, "bench") as driver:
            units = [Unit(f"{number:05d}") for number in range(-(-count // ROWS_PER_FILE))]
            fetched = run_stage(driver, "crawl", SEED, [], units, _read, _work, accounted=False)
            started = time.perf_counter()
            with PeakMemory() as memory:
                kept = remove_duplicates(driver, config, fetched)
            seconds = time.perf_counter() - started
            gone = _gone(storage.join(folder, kept.folder))
        planted = [pair for number in range(len(units)) for pair in rows(number).planted]
        return _judge(planted, gone, by, config.dedup.threshold, seconds, memory.peak)


def _read(unit: Unit) -> pa.Table:
    return rows(int(unit.id)).table


def _work(table: pa.Table, unit: Unit) -> Result:
    return Result(table)


def _gone(folder: str) -> dict[bytes, bytes]:
    """uid of each row that went → uid of the row that stays for it."""
    found = {}
    for name in storage.list_files(folder):
        if name.endswith(".rejected.parquet"):
            table = pq.read_table(name, columns=["uid", "detail"])
            for row, detail in zip(table["uid"].to_pylist(), table["detail"].to_pylist(), strict=True):
                found[row] = bytes.fromhex(detail.split(" ")[0])
    return found


def _judge(
    planted: list[Planted], gone: dict[bytes, bytes], by: str, threshold: float, seconds: float, peak: int
) -> Measured:
    wanted, caught = Counter[int](), Counter[int]()
    right = 0
    for pair in planted:
        same = pair.similarity >= threshold and (by == "caption" or pair.distance <= 31)
        found = gone.get(pair.first) == pair.second or gone.get(pair.second) == pair.first
        right += found and same
        if same:
            wanted[min(19, int(pair.similarity * 20))] += 1
            caught[min(19, int(pair.similarity * 20))] += found
    # In mode `caption` the logos are one cluster, rightly.
    logos = 0 if by == "pair" else len(gone) - sum(1 for pair in planted if pair.first in gone or pair.second in gone)
    bins = {place: caught[place] / wanted[place] for place in sorted(wanted)}
    print("  recall by similarity: " + ", ".join(f"{place / 20:.2f}+ {share:.3f}" for place, share in bins.items()))
    return Measured(
        seconds,
        peak,
        sum(caught.values()) / sum(wanted.values()),
        min(share for place, share in bins.items() if place / 20 >= threshold + 0.05 - 1e-9),
        right / max(1, len(gone) - logos),
        len(gone),
    )


class PeakMemory:
    """The largest resident size that any Ray worker below this process has while the block runs, looked at ten times a second."""

    def __enter__(self) -> "PeakMemory":
        self.peak, self._over = 0, threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watch.join()

    def _look(self) -> None:
        while not self._over.wait(0.1):
            for process in psutil.Process().children(recursive=True):
                try:
                    if process.name().startswith("ray::"):
                        # Shared pages are the object store's.
                        held = process.memory_info()
                        self.peak = max(self.peak, held.rss - held.shared)
                except psutil.NoSuchProcess:
                    continue


def main() -> None:
    arguments = sys.argv[1:]
    modes = ["caption", "pair"]
    if "--by" in arguments:
        at = arguments.index("--by")
        modes = [arguments[at + 1]]
        del arguments[at : at + 2]
    sizes = [int(text.replace(",", "")) for text in arguments] or list(SIZES)
    for by in modes:
        times = []
        for count in sizes:
            found = measure(count, by)
            times.append(found.seconds)
            print(
                f"by {by:<8}{count:>10,} rows  {found.seconds:>7.1f} s  {count / found.seconds:>9,.0f} rows/s  peak of a worker "
                f"{found.peak_bytes / 1e9:.2f} GB  recall {found.recall:.3f} (lowest bin {found.lowest_bin:.3f})  precision "
                f"{found.precision:.4f}  {found.found:,} removed",
                flush=True,
            )
        if len(sizes) > 1:
            exponent = math.log(times[-1] / times[0]) / math.log(sizes[-1] / sizes[0])
            print(f"by {by}: time grows with rows to the power of {exponent:.2f}")


if __name__ == "__main__":
    main()
