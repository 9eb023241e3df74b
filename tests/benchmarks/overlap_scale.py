"""The overlap join at size: a generated corpus against 100,000 evaluation codes, its memory, its growth, and a kill in the middle.

    python -m tests.benchmarks.overlap_scale [ROWS ...] [--shard-rows N] [--folder DIR]

Without ROWS: 1, 2, 5 and 10 million. The corpus (tests/benchmarks/data/overlap_corpus.py: indexes of 500,000 rows, no pictures) is
generated once, the smaller ones are its first shards. What runs is the audit's own stage `join` through the engine, on two workers, in a
process of its own. Pictures of 100,000 evaluation examples would be hashed by the stage before it at some 350 a second and core, whatever
the corpus; here their codes are given. The stage also looks for the nearest row of 500 examples of each set, as it does by default.

Printed for each size: seconds of the stage (with what starting two workers costs it), rows a second, seconds that units took a million
rows, the kernel's own peak of resident bytes (VmHWM, the object store's shared pages included) of the driver and of the largest worker,
and whether the pairs found are those planted, each by its method and distances. At last the largest is run again, its driver is killed
(SIGKILL) when half of its units are committed, and the same command resumes it: the files of its units and the pairs must have the same
bytes. The exit code is 1 when a bar is missed: the lines that begin with MISSED say which.
"""

import argparse
import concurrent.futures
import json
import math
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from evaluation.config import OverlapConfig
from evaluation.overlap import join_stage
from evaluation.overlap.corpus import of_manifest
from evaluation.overlap.join import EvalCodes
from pipeline.contracts import parquet
from pipeline.engine import EngineConfig, Run
from pipeline.records import read_record
from tests.benchmarks.data import overlap_corpus
from tests.benchmarks.data.overlap_corpus import PAIR_COLUMNS, SETS, Codes, Written
from tests.e2e import pipelines

SIZES = (1_000_000, 2_000_000, 5_000_000, 10_000_000)
CODES, SHARD_ROWS, WORKERS = 100_000, 500_000, 2
PEAK_BYTES, EXPONENT = 2e9, 1.1
"""The bars: memory of a worker, seconds in units over rows."""


# ---- the driver, a process of its own


def join(corpus_path: str, out: str) -> None:
    """The stage `join` from manifest and codes to the pairs in the report's order, `out`/pairs.parquet."""
    corpus = of_manifest(corpus_path)
    folder = Path(corpus_path).parent
    codes = EvalCodes(SETS, [parquet.read(str(folder / f"{name}.parquet")) for name in SETS])
    sets = [{"name": name, "path": "given as codes"} for name in SETS]
    values = {"corpus": {"manifest": corpus_path}, "sets": sets, "report": {"dir": out}}
    config = OverlapConfig.model_validate(values)
    with Run(out, EngineConfig(workers=WORKERS), {}, "overlap-scale") as driver:
        started = time.perf_counter()
        limits = [config.match] * len(SETS)
        joined = join_stage.search(driver, config, corpus, codes, "generated", limits, None)
        seconds = time.perf_counter() - started
    pq.write_table(joined.pairs, f"{out}/pairs.parquet")
    pq.write_table(joined.closest, f"{out}/nearest.parquet")
    Path(out, "told.json").write_text(
        json.dumps({"seconds": seconds, "hashless": joined.hashless, "peak": _peak(Path("/proc/self"))})
    )


def _peak(process: Path) -> int:
    """The most resident bytes that a process had so far."""
    lines = (process / "status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


# ---- one run


class Measured(NamedTuple):
    rows: int
    seconds: float
    in_units: float
    driver: int
    worker: int
    pairs: int
    right: bool

    def told(self) -> str:
        return (
            f"{self.rows:>11,} rows  {self.seconds:>6.1f} s  {self.rows / self.seconds:>8,.0f} rows/s  "
            f"{self.in_units / self.rows * 1e6:>5.2f} s in units a million  peak: driver {self.driver / 1e9:.2f} GB, worker "
            f"{self.worker / 1e9:.2f} GB  {self.pairs:,} pairs, {'as' if self.right else 'NOT as'} planted"
        )

    def missed(self) -> list[str]:
        said = [] if self.right else ["the pairs are not those planted"]
        if self.worker > PEAK_BYTES:
            said.append(f"a worker's peak is {self.worker / 1e9:.2f} GB, above {PEAK_BYTES / 1e9} GB")
        return [f"{self.rows:,} rows: {one}" for one in said]


def generate(folder: Path, sizes: list[int], shard_rows: int, codes: Codes) -> list[Written]:
    """Shards for the largest size, a manifest for each, the codes; what must be found, shard by shard."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in zip(SETS, codes.tables(), strict=True):
        pq.write_table(table, folder / f"{name}.parquet")
    numbers = range(max(sizes) // shard_rows)
    with concurrent.futures.ProcessPoolExecutor(WORKERS) as pool:
        tasks = [pool.submit(overlap_corpus.write_shard, str(folder), one, shard_rows, codes) for one in numbers]
        written = [task.result() for task in tasks]
    for rows in sizes:
        overlap_corpus.write_manifest(str(place(folder, rows)), written[: rows // shard_rows])
    return written


def place(folder: Path, rows: int) -> Path:
    return folder / f"{rows}.json"


class Bench:
    """A corpus, a folder for outputs, and the launches of the driver."""

    def __init__(self, folder: Path, ray: Path, written: list[Written]) -> None:
        self._folder, self._env, self._written = folder, pipelines.environment(ray), written

    def _start(self, rows: int, out: Path) -> pipelines.Launch:
        out.mkdir(exist_ok=True)
        command = [
            sys.executable,
            "-m",
            "tests.benchmarks.overlap_scale",
            "--join",
            str(place(self._folder, rows)),
            str(out),
        ]
        return pipelines.start(command, out.with_suffix(".log"), self._env)

    def measure(self, rows: int, out: Path) -> Measured:
        """An undisturbed run, watched."""
        launch = self._start(rows, out)
        worker = 0
        while launch.process.poll() is None:
            for pid, title in pipelines.titles(launch).items():
                if title.startswith("ray::"):
                    try:
                        worker = max(worker, _peak(Path(f"/proc/{pid}")))
                    except (OSError, StopIteration):  # it has just ended
                        continue
            time.sleep(0.1)
        if launch.wait() != 0:
            raise SystemExit(launch.text())
        told = json.loads((out / "told.json").read_text())
        records = [read_record(str(one)) for one in _records(out)]
        found = pq.read_table(out / "pairs.parquet")
        right = found.select(PAIR_COLUMNS).equals(self._expected(rows)) and told["hashless"] == self._hashless(rows)
        in_units = sum(record.seconds for record in records)
        return Measured(rows, told["seconds"], in_units, told["peak"], worker, found.num_rows, right)

    def kill_and_resume(self, rows: int, out: Path) -> int:
        """Kill the driver when half of the units are committed, run the same again; returns how many were."""
        units = rows // self._written[0].shard.rows
        launch = self._start(rows, out)
        while len(_records(out)) < units // 2 and launch.process.poll() is None:
            time.sleep(0.01)
        launch.kill(group=True)
        committed = len(_records(out))
        if launch.process.returncode != -signal.SIGKILL or committed >= units:
            raise SystemExit(
                f"not killed in the middle: {launch.process.returncode}, {committed} of {units} units\n{launch.text()}"
            )
        if self._start(rows, out).wait() != 0:
            raise SystemExit(out.with_suffix(".log").read_text())
        return committed

    def _expected(self, rows: int) -> pa.Table:
        """All that was planted, in the report's order."""
        tables = [
            one.pairs.append_column("shard", pa.array([one.shard.path] * one.pairs.num_rows))
            for one in self._written[: rows // self._written[0].shard.rows]
        ]
        return join_stage.in_order(pa.concat_tables(tables), list(SETS)).select(PAIR_COLUMNS)

    def _hashless(self, rows: int) -> int:
        return sum(one.hashless for one in self._written[: rows // self._written[0].shard.rows])


def _records(out: Path) -> list[Path]:
    return sorted(out.glob("join/*/*.json"))


def data(out: Path) -> dict[str, bytes]:
    """Every byte that a run committed, by file; records tell of times, so they are left out."""
    found = [*out.glob("join/*/*.parquet"), out / "pairs.parquet"]
    return {str(one.relative_to(out)): one.read_bytes() for one in found if ".tmp-" not in one.name}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", type=int, default=list(SIZES))
    parser.add_argument("--shard-rows", type=int, default=SHARD_ROWS)
    parser.add_argument(
        "--folder", type=Path, help="where the corpus is generated (3 GB for 10 million rows); else a temporary one"
    )
    parser.add_argument("--join", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.join:
        join(*given.join)
        return 0
    sizes = sorted(given.rows)
    if any(rows % given.shard_rows for rows in sizes) or sizes[-1] < 8 * given.shard_rows:
        parser.error("ROWS must be multiples of --shard-rows, the largest at least eight times it")
    with tempfile.TemporaryDirectory() as temporary, pipelines.ray_folder() as ray:
        folder = given.folder or Path(temporary) / "corpus"
        started = time.perf_counter()
        written = generate(folder, sizes, given.shard_rows, overlap_corpus.codes(CODES))
        size = sum(one.shard.index_bytes for one in written)
        print(
            f"generated {sizes[-1]:,} rows, {size:,} bytes of indexes, in {time.perf_counter() - started:.0f} s",
            flush=True,
        )
        bench = Bench(folder, ray, written)
        missed, found = [], []
        for rows in sizes:
            found.append(bench.measure(rows, Path(temporary, f"whole-{rows}")))
            print(found[-1].told(), flush=True)
            missed += found[-1].missed()
        if len(sizes) > 1:
            exponent = math.log(found[-1].in_units / found[0].in_units) / math.log(sizes[-1] / sizes[0])
            print(
                f"seconds in units grow with rows to the power of {exponent:.2f}, {sizes[0]:,} to {sizes[-1]:,} rows",
                flush=True,
            )
            missed += [f"the exponent is {exponent:.2f}, above {EXPONENT}"] if exponent > EXPONENT else []
        committed = bench.kill_and_resume(sizes[-1], Path(temporary, "killed"))
        same = data(Path(temporary, "killed")) == data(Path(temporary, f"whole-{sizes[-1]}"))
        units = sizes[-1] // given.shard_rows
        print(
            f"driver killed with {committed} of {units} units committed, run again: {'the same' if same else 'OTHER'} bytes"
        )
        missed += [] if same else ["the bytes differ after a kill"]
    for said in missed:
        print(f"MISSED {said}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
