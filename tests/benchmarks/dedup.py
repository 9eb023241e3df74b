"""Near-duplicate removal at size: the dedup stages on Ray, over generated rows in which near-duplicates are planted
(tests/benchmarks/data/near_duplicates.py).

    python -m tests.benchmarks.dedup [ROWS ...] [--by caption|pair]      # 250,000, 500,000, 1,000,000 and 2,000,000; both

Printed for each mode and size: seconds, peak memory of a worker, recall overall and in each bin of similarity, precision; for each mode
the exponent of time over rows. A planted pair counts as found when one of the two goes for the other. The exit code is 1 when a bar is
missed (that of the exponent holds from 250,000 rows): the lines that begin with MISSED say which.
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

from pipeline.commit import Result, Unit
from pipeline.config import PipelineConfig
from pipeline.contracts import storage
from pipeline.engine import EngineConfig, Run
from pipeline.stages.common import run_stage
from pipeline.stages.duplicates import remove_duplicates
from tests.benchmarks.data.near_duplicates import ROWS_PER_FILE, SEED, Planted, rows

SIZES = (250_000, 500_000, 1_000_000, 2_000_000)
RECALL, PRECISION, PEAK_BYTES, EXPONENT = 0.95, 0.99, 1.5e9, 1.1
"""The bars: recall overall and in each bin from threshold + 0.05, precision, memory of a worker, time over rows."""


# ---- one run


class Measured(NamedTuple):
    ray_seconds: float
    """What Ray took to start, which `seconds` leaves out."""
    seconds: float
    peak_bytes: int
    recall: float
    bins: dict[float, float]
    """Recall by similarity: bins of 0.05, by their lower end."""
    threshold: float
    precision: float
    removed: int

    def missed(self) -> list[str]:
        """The bars that it misses, in words."""
        low = {f"recall from {start:.2f}": share for start, share in self.bins.items() if start > self.threshold + 0.04}
        shares = {"recall": self.recall, **low}
        said = [f"{name} is {share:.3f}, below {RECALL}" for name, share in shares.items() if share < RECALL]
        if self.precision < PRECISION:
            said.append(f"precision is {self.precision:.4f}, below {PRECISION}")
        if self.peak_bytes > PEAK_BYTES:
            said.append(f"a worker's peak is {self.peak_bytes / 1e9:.2f} GB, above {PEAK_BYTES / 1e9} GB")
        return said


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
        started = time.perf_counter()
        with Run(folder, EngineConfig(), {}, "bench") as driver:
            ray_seconds = time.perf_counter() - started
            units = [Unit(f"{number:05d}") for number in range(-(-count // ROWS_PER_FILE))]
            fetched = run_stage(driver, "crawl", SEED, [], units, _read, _work, accounted=False)
            started = time.perf_counter()
            with PeakMemory() as memory:
                kept = remove_duplicates(driver, config, fetched)
            seconds = time.perf_counter() - started
            gone = _gone(storage.join(folder, kept.folder))
        made = [rows(number) for number in range(len(units))]
        planted = [pair for one in made for pair in one.planted]
        logos = {uid for one in made for uid in one.logos}
        return _judge(planted, logos, gone, by, config.dedup.threshold, ray_seconds, seconds, memory.peak)


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
    planted: list[Planted],
    logos: set[bytes],
    gone: dict[bytes, bytes],
    by: str,
    threshold: float,
    ray_seconds: float,
    seconds: float,
    peak: int,
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
    # In mode `caption` a logo goes for another one, rightly. So many of them would hide errors: they are left out of the precision.
    copies = sum(by == "caption" and uid in logos and stays in logos for uid, stays in gone.items())
    return Measured(
        ray_seconds,
        seconds,
        peak,
        sum(caught.values()) / sum(wanted.values()),
        {place / 20: caught[place] / wanted[place] for place in sorted(wanted)},
        threshold,
        right / max(1, len(gone) - copies),
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


def main() -> int:
    arguments = sys.argv[1:]
    modes = ["caption", "pair"]
    if "--by" in arguments:
        at = arguments.index("--by")
        modes = [arguments[at + 1]]
        del arguments[at : at + 2]
    sizes = [int(text.replace(",", "")) for text in arguments] or list(SIZES)
    missed = []
    for by in modes:
        times = []
        for count in sizes:
            found = measure(count, by)
            times.append(found.seconds)
            bins = "  ".join(f"{start:.2f}+ {share:.3f}" for start, share in found.bins.items())
            print(
                f"by {by:<8}{count:>10,} rows  {found.seconds:>7.1f} s  {count / found.seconds:>9,.0f} rows/s  peak of a worker "
                f"{found.peak_bytes / 1e9:.2f} GB  recall {found.recall:.3f} ({bins})  precision {found.precision:.4f}  "
                f"{found.removed:,} removed",
                flush=True,
            )
            missed += [f"by {by}, {count:,} rows: {said}" for said in found.missed()]
        if len(sizes) > 1:
            exponent = math.log(times[-1] / times[0]) / math.log(sizes[-1] / sizes[0])
            print(
                f"by {by:<8}time grows with rows to the power of {exponent:.2f}, {sizes[0]:,} to {sizes[-1]:,} rows",
                flush=True,
            )
            if exponent > EXPONENT and sizes[0] >= SIZES[0]:  # of fewer rows the start of the workers is what grows
                missed.append(f"by {by}: the exponent is {exponent:.2f}, above {EXPONENT}")
    for said in missed:
        print(f"MISSED {said}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
