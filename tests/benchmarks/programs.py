"""What torch.compile makes of the models for a Hopper GPU, compiled to machine code without one: that all of it can be, and what spills.

    python -m tests.benchmarks.programs [--models ViT-B/32 …]
    PYTHON -m tests.benchmarks.programs        # with the torch and the Triton of that environment: those of the machine with the GPU

The steps of `gpu_train`: bf16 weights, compiled blocks, forward and backward, its largest batch and full texts, with nothing, activations
and all that is elementwise computed again; with torch's attention, and with ours for few positions where it is for them. Inductor writes
the kernels as for an H200 (`data/programs_case.py`), Triton compiles each in every configuration of which the GPU would choose. Nothing of
it runs: that a kernel is right is not asked here. Our own kernels are those of `gpu_kernels code`.

A row: programs (a graph forward or backward), different kernels in them, their configurations, how many kernels failed, how many
configurations spill registers, the most bytes that a thread of one spills, and the most registers. Those that failed or spill are
named. The exit code is 1 where a kernel failed. Takes two to six minutes a row on a slow core.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from tests.benchmarks.gpu_train import BATCHES, MODELS

WAYS = {
    "nothing again": ("none", "torch"),
    "activation again": ("activation", "torch"),
    "elementwise again": ("elementwise", "torch"),
    "nothing again, short attention": ("none", "short"),
}
MOST_AT_ONCE = 4
"""Cases; each takes some 3 GB."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--pairs", type=int, help="of a batch (default: the largest that gpu_train tries)")
    settings = parser.parse_args()
    asked = "import torch, triton; print(f'torch {torch.__version__}, Triton {triton.__version__}, sm_90')"
    versions = subprocess.run([sys.executable, "-c", asked], check=True, capture_output=True, text=True).stdout.strip()
    print(
        f"{versions:<44}{'programs':>9}{'kernels':>9}{'tried':>7}{'failed':>8}{'spill':>7}{'bytes':>7}{'registers':>11}",
        flush=True,
    )
    cases = {
        f"{model}, {way}": (model, *how, str(settings.pairs or BATCHES.get(model, (64,))[0]))
        for model in settings.models
        for way, how in WAYS.items()
    }
    failed = False
    with ThreadPoolExecutor(min(MOST_AT_ONCE, len(os.sched_getaffinity(0)))) as pool:
        for name, done in zip(cases, pool.map(compiled, cases.values()), strict=True):
            failed |= not row(name, done)
    return 1 if failed else 0


def compiled(case: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.benchmarks.data.programs_case", *case]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def row(name: str, done: subprocess.CompletedProcess[str]) -> bool:
    """Print a case. Whether all of its kernels have code."""
    if done.returncode:
        print(f"{name}: FAILED: {done.stderr.strip()[-500:]}", flush=True)
        return False
    programs, kernels = json.loads(done.stdout.splitlines()[-1])
    tried = [(kernel, *code) for kernel, codes, _ in kernels for code in codes]
    spilling = [one for one in tried if one[4]]
    failures = [(kernel, why) for kernel, _, why in kernels if why]
    print(
        f"{name:<44}{programs:>9}{len(kernels):>9}{len(tried):>7}{len(failures):>8}{len(spilling):>7}"
        f"{max((one[4] for one in tried), default=0):>7}{max((one[3] for one in tried), default=0):>11}",
        flush=True,
    )
    for kernel, why in failures:
        print(f"    FAILED {kernel}: {why[:500]}", flush=True)
    for kernel, configuration, _, registers, stack in spilling:
        print(f"    spills {stack} bytes, {registers} registers: {kernel}, {configuration}", flush=True)
    return not failures and bool(kernels)


if __name__ == "__main__":
    sys.exit(main())
