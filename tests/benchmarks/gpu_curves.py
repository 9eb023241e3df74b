"""500 steps in fp32, bf16, autocast and fp16, and of torch's AdamW in fp32: one figure of their losses.

    python -m tests.benchmarks.gpu_curves [--steps 500] [--out curves.png]

The small CLIP and the pictures of `tests/benchmarks/optim.py`, the same batches for all, on whatever DeepSpeed computes on; fp16 with
dynamic loss scaling, which a CPU takes minutes for. Printed: the mean loss of the last fifth and its distance from AdamW's. The exit code
is 1 when fp16 moments in fp32, where nothing else differs, end more than 0.5 % from AdamW.
"""

import argparse
import statistics
import sys
from pathlib import Path

from tests.benchmarks.optim import ADAMW, MOST_APART, OURS, Arm, corpus, train
from tests.trainer import fp16_on_cpu
from trainer import zero

ARMS = (
    ADAMW,
    OURS,
    Arm("fp16 moments, autocast to bf16", compute="autocast_bf16"),
    Arm("fp16 moments, bf16 weights", compute="bf16"),
    Arm("fp16 moments, fp16 weights, loss scaling", compute="fp16"),
)


def draw(curves: dict[Arm, list[float]], window: int, out: Path) -> None:
    """Moving means over `window` steps."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for arm, losses in curves.items():
        means = [statistics.fmean(losses[max(0, step - window) : step + 1]) for step in range(len(losses))]
        axes.plot(means, label=arm.name, linewidth=1)
    axes.set(xlabel="step", ylabel=f"loss, mean of {window} steps")
    axes.legend()
    figure.savefig(out)
    pyplot.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--out", type=Path, help="a figure: .png, .svg or .pdf")
    settings = parser.parse_args()
    learned, unseen, what = corpus()
    zero.join_processes()
    fp16_on_cpu.allow()
    tail = max(1, settings.steps // 5)
    print(f"{what}, {settings.steps} steps, on {'a CPU' if zero.on_cpu() else 'a GPU'}; mean loss of the last {tail}")
    curves: dict[Arm, list[float]] = {}
    for arm in ARMS:
        curves[arm], _ = train(arm, learned, unseen, settings.steps)
        last, first = (statistics.fmean(curves[one][-tail:]) for one in (arm, ADAMW))
        print(f"{arm.name:<44}{last:>9.4f}{last / first - 1:>+9.2%}", flush=True)
    zero.leave_processes()
    if settings.out is not None:
        draw(curves, max(1, settings.steps // 50), settings.out)
    apart = abs(statistics.fmean(curves[OURS][-tail:]) / statistics.fmean(curves[ADAMW][-tail:]) - 1)
    return 0 if apart <= MOST_APART else 1


if __name__ == "__main__":
    sys.exit(main())
