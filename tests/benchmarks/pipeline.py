"""The whole pipeline on a generated web, with every trouble of the real one planted in it: rates, memory of the driver, and the accounting.

    python -m tests.benchmarks.pipeline [PAIRS ...] [seed=N]      # 20,000 and 200,000 pairs; seed 1

The web (tests/web) is served on the loopback by two processes of its own, which share the cores. Printed for each size: rows a second and a
core for every stage, from the commit records (seconds in units, without what starting tasks costs); the peak memory of the driver; and,
stage by stage, rows in = rows out + rejected, each reason as often as it was planted. With several sizes, the driver's memory of the last
over that of the first. The exit code is 1 when a count is not as planted.
"""

import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import psutil

from pipeline import status
from pipeline.contracts import manifest
from pipeline.run import STAGES
from tests.e2e import pipelines
from tests.web import server
from tests.web.site import Web, total_rejected

SIZES = (20_000, 200_000)


def run(pairs: int, seed: int) -> tuple[int, int]:
    """One web from its tables to its manifest. Returns the driver's peak memory in bytes, and how many counts were wrong."""
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
        return memory[0], _wrong_counts(web, place / "out")


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
    for stage in STAGES:
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


def main() -> int:
    seeds = [int(word.removeprefix("seed=")) for word in sys.argv[1:] if word.startswith("seed=")] or [1]
    sizes = [int(word.replace(",", "")) for word in sys.argv[1:] if not word.startswith("seed=")] or list(SIZES)
    runs = [run(pairs, seeds[0]) for pairs in sizes]
    if len(runs) > 1:
        print(f"\nthe driver's memory at {sizes[-1]:,} pairs is {runs[-1][0] / runs[0][0]:.2f} of that at {sizes[0]:,}")
    return 1 if any(wrong for _, wrong in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
