"""What a row costs in each stage: the whole pipeline on a generated web, from its own records.

    python -m tests.benchmarks.rates [--pairs 20000] [--seed 5] [--write FILE --note TEXT]

The server is a process of its own on the same machine and takes a part of its cores; seconds are those that units took, not those of the
wall. `--write pipeline/tools/rates.toml` makes the table that `python -m pipeline plan` reads. Run it when nothing else runs, or say in
the note what did.
"""

import argparse
import os
import platform
import tempfile
from pathlib import Path

import tomli_w

from pipeline.tools import plan
from tests.e2e.pipelines import NO_WAITING, environment, finish, ray_folder, write_config, write_inputs
from tests.web import server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--write", metavar="FILE")
    parser.add_argument("--note", default="nothing else ran on the machine")
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as name,
        ray_folder() as ray,
        server.running(given.seed, given.pairs, NO_WAITING) as web,
    ):
        folder = Path(name)
        write_inputs(web, folder)
        config = write_config(web, name, folder / "config.toml", shard_rows=1000)
        env = environment(ray)
        more = [f"sources.rows_per_unit={max(1000, given.pairs // 8)}", "crawl.units=8"]
        seconds = finish(config, str(folder / "out"), folder / "log", env, *more)
        found = plan.from_run(str(folder / "out"))
    note = f"{given.pairs:,} pairs of a generated web, seed {given.seed}, its server on the same cores; {given.note}"
    found = found.model_copy(update={"machine": f"{os.cpu_count()} cores, {platform.machine()}", "note": note})
    print(f"{given.pairs:,} pairs in {seconds:,.1f} s")
    print(f"{'stage':<12}{'rows/s/core':>14}{'bytes/row':>12}{'units':>8}")
    for stage, rate in found.stages.items():
        size = (rate.bytes_rows + rate.bytes_more) / max(1, rate.rows_in)
        print(f"{stage:<12}{rate.rows_in / max(rate.core_seconds, 1e-9):>14,.0f}{size:>12,.0f}{rate.units:>8,}")
    if given.write:
        Path(given.write).write_text(
            "# Written by tests/benchmarks/rates.py; read by pipeline/tools/plan.py.\n"
            + tomli_w.dumps(found.model_dump())
        )


if __name__ == "__main__":
    main()
