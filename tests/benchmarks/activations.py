"""Memory that a pair takes while a step computes, by what blocks compute again, beside open_clip's step. On a CPU.

    python -m tests.benchmarks.activations [--peer PYTHON] [--models ViT-B/32 …] [--pairs 24 48]

bf16 weights, plain and compiled, texts of full length and texts as long as captions of the web. What torch's allocator is asked for is what
a GPU's is asked for but for the buffers inside of kernels, of which attention and convolutions have others there: read the ratios. Beside
each of ours stands the share of open_clip's in the same manner, and that of the whole in the largest batch of `gpu_train` with what each of
the two keeps for a parameter (ours weights, gradients, fp32 masters, fp16 moments: 12.03 bytes; open_clip's pure_bf16 8).
open_clip is looked for in the interpreter that --peer names (by default this one).
"""

import argparse
import subprocess
import sys

from tests.benchmarks.gpu_train import BATCHES, has_peer

OURS_KEPT, THEIRS_KEPT = 12.03, 8.0


def measured(
    python: str, who: str, model: str, checkpoint: str, how: str, texts: str, pairs: list[int]
) -> tuple[int, int]:
    """Bytes a pair, and parameters."""
    command = [python, "-m", "tests.benchmarks.data.step_memory", who, model, checkpoint, how, texts, *map(str, pairs)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[2:])}: {done.stderr[-2000:]}")
    each, parameters = map(int, done.stdout.split()[-2:])
    return each, parameters


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", default=sys.executable, help="a Python that has open_clip; '' for none")
    parser.add_argument("--models", nargs="+", default=["ViT-B/32", "ViT-B/16"])
    parser.add_argument(
        "--pairs", nargs=2, type=int, default=[24, 48], help="so many that gradients are the smaller part"
    )
    parser.add_argument("--hows", nargs="+", default=["eager", "compiled"])
    settings = parser.parse_args()
    if settings.peer and not has_peer(settings.peer):
        print(f"no open_clip in {settings.peer}: NOT COMPARED with it (--peer names a Python that has it)", flush=True)
        settings.peer = ""
    for model in settings.models:
        batch = BATCHES[model][0]
        for how in settings.hows:
            theirs = whole_theirs = 0.0
            if settings.peer:
                theirs, parameters = measured(settings.peer, "open_clip", model, "none", how, "full", settings.pairs)
                whole_theirs = theirs * batch + THEIRS_KEPT * parameters
                print(f"open_clip {model:<10}{how:<10}{'':<24}{theirs / 2**20:>8.1f} MiB a pair", flush=True)
            for checkpoint, texts in (("none", "full"), ("elementwise", "full"), ("elementwise", "captions")):
                each, parameters = measured(sys.executable, "ours", model, checkpoint, how, texts, settings.pairs)
                line = f"ours      {model:<10}{how:<10}{checkpoint:<12}{texts:<12}{each / 2**20:>8.1f} MiB a pair"
                if theirs:
                    whole = each * batch + OURS_KEPT * parameters
                    line += f", {each / theirs:.2f} of open_clip's; with all that is kept, {batch:,} pairs {whole / whole_theirs:.2f}"
                print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
