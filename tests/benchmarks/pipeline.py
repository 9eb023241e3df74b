"""The whole pipeline on a generated web, with every trouble of the real one planted in it: rates, memory of the driver, and the accounting.

    python -m tests.benchmarks.pipeline [PAIRS ...] [--seed N]      # 20,000 and 200,000 pairs; seed 1
    python -m tests.benchmarks.pipeline --write pipeline/tools/rates.toml

The web (tests/web) is served on the loopback by two processes of its own, which share the cores. Printed for each size: rows a second and a
core for every stage, from the commit records (seconds in units, without what starting tasks costs); the peak memory of the driver; and,
stage by stage, rows in = rows out + rejected, each reason as often as it was planted. With several sizes, the driver's memory of the last
over that of the first. The exit code is 1 when a count is not as planted.

`--write` makes the table that `python -m pipeline plan` reads, of the last size. Say in `--note` what else ran.
"""

import argparse
import os
import platform
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import psutil
import tomli_w

from pipeline import status
from pipeline.contracts import manifest
from pipeline.records import STAGES
from pipeline.tools import plan
from pipeline.tools.plan import Rates
from tests.e2e import pipelines
from tests.web import server
from tests.web.site import Web, total_rejected

SIZES = (20_000, 200_000)


class Measured(NamedTuple):
    pairs: int
    driver_bytes: int
    """Peak resident size of the driver."""
    wrong: int
    """Counts that are not as planted."""
    rates: Rates


def run(pairs: int, seed: int) -> Measured:
    """One web from its tables to its manifest."""
    with (
        tempfile.TemporaryDirectory() as folder,
        server.running(seed, pairs, pipelines.NO_WAITING) as web,
        pipelines.ray_folder() as ray,
    ):
        place = Path(folder)
        pipelines.write_inputs(web, place)
        units = max(8, pairs // 2500)
        config = pipelines.write_config(web, folder, place / "config.toml", crawl_units=units, shard_rows=5000)
        overrides = ["sources.rows_per_unit=10000", f"precap.per_query={2 * web.cap}"]
        command = pipelines.command(config, str(place / "out"), *overrides)
        started = time.perf_counter()
        launch = pipelines.start(command, place / "log", pipelines.environment(ray))
        memory = _peak(launch)
        code = launch.wait(7200)
        seconds = time.perf_counter() - started
        if code:
            raise SystemExit(launch.text())
        print(
            f"\n{pairs:,} pairs, seed {seed}: {seconds:.0f} s, {pairs / seconds:,.0f} pairs/s; peak of the driver {memory[0] / 1e6:.0f} MB"
        )
        _print_rates(place / "out")
        return Measured(pairs, memory[0], _wrong_counts(web, place / "out"), plan.from_run(str(place / "out")))


def _peak(launch: pipelines.Launch) -> list[int]:
    """A list whose one number grows to the largest resident size that the driver has."""
    peak = [0]

    def look() -> None:
        while launch.process.poll() is None:
            try:
                peak[0] = max(peak[0], psutil.Process(launch.process.pid).memory_info().rss)
            except psutil.NoSuchProcess:
                return
            time.sleep(0.1)

    threading.Thread(target=look, daemon=True).start()
    return peak


def _print_rates(out: Path) -> None:
    print(f"{'stage':<18}{'units':>7}{'rows in':>12}{'core-seconds':>14}{'rows/s/core':>14}")
    for stage in status.stages(str(out)):
        seconds = sum(record.seconds for record in stage.records)
        rows = sum(record.rows_in for record in stage.records)
        print(f"{stage.name:<18}{len(stage.records):>7}{rows:>12,}{seconds:>14.1f}{rows / max(seconds, 1e-9):>14,.0f}")


def _wrong_counts(web: Web, out: Path) -> int:
    """Holds the manifest's counts against what was planted; a pair over the cap may go at either of the two caps."""
    found, planted = manifest.load(str(out / "shards")).counts, web.expected()
    wrong = 0
    for stage in (stage for stage in STAGES if stage in found):
        counted = found[stage]
        gone = sum(counted.rejected.values())
        adds_up = counted.rows_in == counted.rows_out + gone
        due = {reason: rows for reason, rows in planted[stage].rejected.items() if reason != "over_cap"}
        as_planted = {reason: rows for reason, rows in counted.rejected.items() if reason != "over_cap"} == due
        wrong += (not adds_up) + (not as_planted)
        verdict = "" if adds_up and as_planted else f"   WRONG: planted {due}"
        print(
            f"  {stage:<12}{counted.rows_in:>10,} in = {counted.rows_out:>10,} out + {gone:>8,} {dict(counted.rejected)}{verdict}"
        )
    total: Counter[str] = Counter()
    for counted in found.values():
        total.update(counted.rejected)
    if dict(total) != total_rejected(planted):
        print("  WRONG: the reasons over all stages are not those planted")
        wrong += 1
    return wrong


def _write(measured: Measured, seed: int, note: str, place: str) -> None:
    told = f"{measured.pairs:,} pairs of a generated web, seed {seed}, its server on the same cores; {note}"
    rates = measured.rates.model_copy(update={"machine": f"{os.cpu_count()} cores, {platform.machine()}", "note": told})
    Path(place).write_text(
        f"# Written by tests/benchmarks/pipeline.py; read by pipeline/tools/plan.py.\n{tomli_w.dumps(rates.model_dump())}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("sizes", nargs="*", type=int, default=list(SIZES), metavar="PAIRS")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", metavar="FILE")
    parser.add_argument("--note", default="nothing else ran on the machine")
    given = parser.parse_args()
    runs = [run(pairs, given.seed) for pairs in given.sizes]
    if len(runs) > 1:
        ratio = runs[-1].driver_bytes / runs[0].driver_bytes
        print(f"\nthe driver's memory at {runs[-1].pairs:,} pairs is {ratio:.2f} of that at {runs[0].pairs:,}")
    if given.write:
        _write(runs[-1], given.seed, given.note, given.write)
    return 1 if any(one.wrong for one in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
