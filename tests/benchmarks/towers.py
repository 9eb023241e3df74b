"""Forward and backward of both towers: what a pair costs in memory and time, beside open_clip's model. On a CPU.

    python -m tests.benchmarks.towers [--peer PYTHON] [--models ViT-B/32 …] [--pairs 24 48]

bf16 weights, plain and compiled; texts of full length and texts as long as captions of the web. Memory is
what torch's allocator is asked for, of a GPU's as of a CPU's but for the buffers inside of kernels, of which attention and convolutions
have others there: read the ratios. Beside it stands the share of the whole in the largest batch of `gpu_train`, with what each of the two
keeps for a parameter (ours weights, gradients, fp32 masters, fp16 moments: 12.03 bytes; open_clip's pure_bf16 8). open_clip is looked for
in the interpreter that --peer names (by default this one). Ours runs in this one: give both the same torch.
"""

import argparse
import itertools
import subprocess
import sys
from typing import NamedTuple

from tests.benchmarks.data.gpu_bench import versions_of_peer
from tests.benchmarks.data.gpu_case import AGAIN
from tests.benchmarks.gpu_train import BATCHES

OURS_KEPT, THEIRS_KEPT = 12.03, 8.0


class Cost(NamedTuple):
    """Of a pair, in bytes and seconds; and the parameters of the model."""

    memory: float
    seconds: float
    parameters: int

    def said(self) -> str:
        return f"{self.memory / 2**20:>8.1f} MiB{1000 * self.seconds:>8.0f} ms a pair"


def cost(python: str, who: str, model: str, checkpoint: str, how: str, texts: str, pairs: list[int]) -> Cost:
    command = [python, "-m", "tests.benchmarks.data.towers_case", who, model, checkpoint, how, texts, *map(str, pairs)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[2:])}: {done.stderr[-2000:]}")
    memory, seconds, parameters = done.stdout.split()[-3:]
    return Cost(float(memory), float(seconds), int(parameters))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", default=sys.executable, help="a Python that has open_clip; '' for none")
    parser.add_argument("--models", nargs="+", default=["ViT-B/32", "ViT-B/16"])
    parser.add_argument(
        "--pairs", nargs=2, type=int, default=[24, 48], help="so many that gradients are the smaller part"
    )
    parser.add_argument("--hows", nargs="+", default=["eager", "compiled"])
    settings = parser.parse_args()
    if settings.peer and not versions_of_peer(settings.peer):
        print(f"no open_clip in {settings.peer}: NOT COMPARED with it (--peer names a Python that has it)", flush=True)
        settings.peer = ""
    for model in settings.models:
        batch = BATCHES[model][0]
        for how in settings.hows:
            theirs = None
            if settings.peer:
                theirs = cost(settings.peer, "open_clip", model, "none", how, "full", settings.pairs)
                print(f"open_clip {model:<10}{how:<10}{'':<24}{theirs.said()}", flush=True)
            for texts, checkpoint in itertools.product(("full", "captions"), ("none", *AGAIN)):
                ours = cost(sys.executable, "ours", model, checkpoint, how, texts, settings.pairs)
                line = f"ours      {model:<10}{how:<10}{checkpoint:<12}{texts:<12}{ours.said()}"
                if theirs is not None:
                    whole = (OURS_KEPT * ours.parameters + batch * ours.memory) / (
                        THEIRS_KEPT * theirs.parameters + batch * theirs.memory
                    )
                    line += f"; of its memory {ours.memory / theirs.memory:.2f}, of {batch:,} pairs and all that is kept {whole:.2f}"
                    line += f"; {theirs.seconds / ours.seconds:.2f} times as fast"
                print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
