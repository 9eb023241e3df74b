"""The steps of `gpu_train` on a hollow GPU: memory, what is started, and the host's time, beside open_clip's own step, without a GPU.

    PYTHON -m tests.hollow_gpu PYTHON -m tests.benchmarks.rehearsal [--models ViT-B/32 …]    # PYTHON has torch for CUDA 13, and open_clip

Each case is the process that `gpu_train` starts, in the largest batch that it tries: drawn numbers, texts of full length unless "captions"
is said, bf16 weights, compiled. GB are what PyTorch's allocator gives out, as on a GPU, but for what cuDNN takes to work with (RN50).
Launches are kernels, products and copies of one step, by phase. Host ms is what a step keeps the host busy, the median of five: no GPU's
step is shorter, and one that is longer hides it. No kernel runs: nothing here says how long a GPU takes, or what is right.

The exit code is 1 where a case failed. Takes one to five minutes a case on two cores, most of it for compiling.
"""

import argparse
import sys

from tests.benchmarks.data.gpu_bench import how, of_theirs, run, versions_of_ours, versions_of_peer
from tests.benchmarks.data.gpu_case import AGAIN, PHASES, Case, Measured
from tests.benchmarks.gpu_train import BATCHES, LARGE, MODELS
from tests.hollow_gpu import launched

SECONDS = 1800
"""The longest that a case may take."""


def cases_of(model: str) -> list[Case]:
    """The model's largest batch in each way, with captions of the web, and LARGE pairs in pieces of it where it is a ViT."""
    pairs = BATCHES[model][0]
    cases = [Case(model, pairs, "bf16", checkpoint=again, warmup=2, steps=5) for again in ("none", *AGAIN)]
    cases += [Case(model, pairs, "bf16", captions=True, warmup=4, steps=5)]
    if model.startswith("ViT"):
        cases += [Case(model, LARGE, "bf16", checkpoint="elementwise", micro=pairs, warmup=0, steps=2)]
    return cases


def row(who: str, case: Case, found: Measured, theirs: Measured | None) -> str:
    memory = f"{found.peak_bytes / theirs.peak_bytes:.2f}" if theirs and theirs.pairs == found.pairs else ""
    phases = [f"{found.launches[name]:,}" if name in found.launches else "" for name in PHASES]
    in_all = f"{sum(found.launches.values()):,}" if found.launches else ""
    return (
        f"{who:<10}{case.preset:<10}{how(case):<44}{case.pairs:>7,}{found.peak_bytes / 1e9:>8.1f}{memory:>7}{in_all:>10}"
        f"{1000 * found.seconds:>9.1f}  {''.join(f'{phase:>11}' for phase in phases)}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    settings = parser.parse_args()
    if not launched.is_hollow():
        print(
            "no hollow GPU here: nothing was rehearsed (PYTHON -m tests.hollow_gpu PYTHON -m tests.benchmarks.rehearsal)"
        )
        return 0
    columns = "".join(f"{name:>11}" for name in PHASES)
    print(f"torch {versions_of_ours()}; open_clip {versions_of_peer(sys.executable) or 'none'}")
    print(f"{'':<64}{'pairs':>7}{'GB':>8}{'to its':>7}{'launches':>10}{'host ms':>9}  {columns}", flush=True)
    failed = False
    for model in settings.models:
        cases = cases_of(model)
        theirs = rehearsed("open_clip", "gpu_peer", of_theirs(cases[0]), None)
        failed |= theirs is None
        for case in cases:
            failed |= rehearsed("ours", "gpu_ours", case, theirs) is None
    return 1 if failed else 0


def rehearsed(who: str, module: str, case: Case, theirs: Measured | None) -> Measured | None:
    """Run a case and print its row; None where it failed."""
    found, why, _ = run(sys.executable, module, case, SECONDS)
    if found is None:
        print(f"{who:<10}{case.preset:<10}{how(case)}: {why}", flush=True)
    else:
        print(row(who, case, found, theirs), flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
