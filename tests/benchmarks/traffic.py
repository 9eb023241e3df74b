"""What a GPU reads, writes and multiplies for a pair, forward and backward of both towers, beside open_clip's model. Needs no GPU.

    python -m tests.benchmarks.traffic [--peer PYTHON] [--models ViT-B/32 …] [--places 77] [--kernels]

bf16 weights, compiled blocks; open_clip compiled as a whole. Inductor schedules both for an H200 and says which buffers each of its kernels
reads and writes, and how many operations a product has (`data/traffic_case.py`): counted, not timed. "floor" is the time that they take at
the rates of the data sheet, 989 TFLOP/s and 4.8 TB/s, one kernel after the other, which no GPU reaches; a product's time is that of its
operations or of its bytes, whichever is more. "times" is open_clip's floor over ours. What ours computes outside of its blocks (patches,
embeddings, the norms around the blocks) counts as elementwise, a kernel for each operation; open_clip has hardly anything there.

Not in it: attention's own operations, and what FlashAttention keeps in memory of its own, for which it is slower with short rows than its
bytes say; that open_clip would get cuDNN's attention on an H200, which should move as much; the gradient of open_clip's patch convolution
(0.2 GFLOP); loss and optimizer. Inductor counts no more than 10^9 numbers of a product's operand: larger batches than the largest of these
are counted short.

--places: of each of our texts, in one group (77 are all, which open_clip always computes). --kernels: those of ours that take longest.
open_clip is looked for in the interpreter that --peer names (by default this one). Ours runs in this one: give both the same torch. Takes
about a quarter of an hour.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

from tests.benchmarks.data.gpu_bench import versions_of_peer
from tests.benchmarks.data.gpu_case import AGAIN
from tests.benchmarks.gpu_train import BATCHES
from trainer.flops import known_peak

KINDS = ("product", "attention", "elementwise", "sum")
PEAK = known_peak("NVIDIA H200") or 0.0
"""Operations a second."""
MEMORY = 4.8e12
"""Bytes a second."""


class Kernel(NamedTuple):
    """Of a pair's share."""

    kind: str
    bytes: float
    operations: float
    what: str
    runs: int

    @property
    def seconds(self) -> float:
        return max(self.bytes / MEMORY, self.operations / PEAK)


def kernels(
    python: str, who: str, model: str, checkpoint: str, attention: str, pairs: int, places: int
) -> list[Kernel]:
    case = (who, model, checkpoint, attention, str(pairs), str(places))
    command = [python, "-m", "tests.benchmarks.data.traffic_case", *case]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[2:])}: {done.stderr[-2000:]}")
    return [
        Kernel(kind, times * moved / pairs, times * operations / pairs, what, times)
        for kind, times, moved, operations, what in json.loads(done.stdout.splitlines()[-1])
    ]


def line(name: str, found: Sequence[Kernel], peers: Sequence[Kernel] | None) -> str:
    of_kinds = [sum(one.bytes for one in found if one.kind == kind) / 1e6 for kind in KINDS]
    floor = sum(one.seconds for one in found)
    said = f"{name:<52}{sum(one.operations for one in found) / 1e9:>8.1f}"
    said += "".join(f"{megabytes:>17.1f}" for megabytes in of_kinds) + f"{1e6 * floor:>10.1f}"
    return said if peers is None else f"{said}{sum(one.seconds for one in peers) / floor:>8.2f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", default=sys.executable, help="a Python that has open_clip; '' for none")
    parser.add_argument("--models", nargs="+", default=["ViT-B/32", "ViT-B/16", "ViT-L/14"])
    parser.add_argument("--pairs", type=int, help="of a batch (default: the largest that gpu_train tries)")
    parser.add_argument("--places", type=int, default=77)
    parser.add_argument("--kernels", type=int, nargs="?", const=12, default=0)
    settings = parser.parse_args()
    if settings.peer and not versions_of_peer(settings.peer):
        print(f"no open_clip in {settings.peer}: NOT COMPARED with it (--peer names a Python that has it)", flush=True)
        settings.peer = ""
    print(
        f"{'a pair':<52}{'GFLOP':>8}"
        + "".join(f"{kind + ', MB':>17}" for kind in KINDS)
        + f"{'floor, µs':>10}{'times':>8}"
    )
    for model in settings.models:
        pairs, peers = settings.pairs or BATCHES.get(model, (64,))[0], None
        if settings.peer:
            peers = kernels(settings.peer, "open_clip", model, "none", "torch", pairs, 77)
            print(line(f"open_clip {model}", peers, None), flush=True)
        for checkpoint in ("none", *AGAIN):
            for attention in ("torch", "short"):
                found = kernels(sys.executable, "ours", model, checkpoint, attention, pairs, settings.places)
                how = ", ".join([checkpoint, *(["short attention"] if attention == "short" else [])])
                print(line(f"ours      {model}, {how}", found, peers), flush=True)
                for one in sorted(found, key=lambda one: -one.seconds)[: settings.kernels]:
                    print(f"    {1e6 * one.seconds:>8.2f} µs {one.kind:<12}{one.runs:>4} times  {one.what[:90]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
