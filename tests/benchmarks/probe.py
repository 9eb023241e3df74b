"""The linear probe's 15-fit search: ours beside scikit-learn's LogisticRegression, on features like a CLIP model's.

    python -m tests.benchmarks.probe [--rows 50000] [--features 768] [--classes 100] [--device cpu]

Both search the same grid by the same rule from the same features, each with its default tolerance (ours 1e-5, scikit-learn's 1e-4)
and 1,000 iterations at most.
scikit-learn is run twice: on float32, in which it computes then, and on float64. Printed are seconds of the clock and of the processors
(which a busy machine changes less), passes over the data (and those of each fit), the strength that each chose, and its accuracy on
validation and, after the refit, on test. The features have a decaying spectrum, an offset, and classes that overlap. --tolerance 1e-9 shows
what the optimum itself costs us, and whether it chooses the same.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from evaluation import probe

Array = NDArray[Any]

SEPARATION = 3.0


class Peer(NamedTuple):
    """One side's search."""

    seconds: float
    processor: float
    passes: int
    best: int
    validation: float
    per_fit: list[tuple[int, int, float]]


def world(rows: int, width: int, classes: int) -> list[tuple[Array, NDArray[np.int64]]]:
    """(features float32, labels) to learn from, to choose by and to report on."""
    draws = np.random.default_rng(0)
    spread = (1.0 + np.arange(width)) ** -0.6
    turn = np.linalg.qr(draws.normal(size=(width, width)))[0]
    # Classes differ mostly where features vary much; the distance between two is the same for every width.
    means = draws.normal(size=(classes, width)) * (1.0 + np.arange(width)) ** -0.3
    means *= SEPARATION / np.sqrt((means**2).sum(axis=1).mean())
    offset = 0.3 * draws.normal(size=width)
    found = []
    for n in (rows, rows // 5, rows // 5):
        labels = draws.integers(0, classes, n)
        features = 3 * ((means[labels] + draws.normal(size=(n, width))) * spread) @ turn + offset
        found.append((features.astype(np.float32), labels))
    return found


def scikit_learn(data: list[tuple[Array, NDArray[np.int64]]], dtype: type) -> Peer:
    from sklearn.linear_model import LogisticRegression, _logistic

    (x, y), (held, wanted) = data[:2]
    x, held = x.astype(dtype), held.astype(dtype)
    loss = _logistic.LinearModelLoss
    plain, passes = loss.loss_gradient, 0

    def counted(self: Any, *given: Any, **named: Any) -> Any:
        nonlocal passes
        passes += 1
        return plain(self, *given, **named)

    fits = []

    def score_at(index: int) -> float:
        before, begun = passes, time.process_time()
        model = LogisticRegression(C=probe.INVERSE_STRENGTHS[index], max_iter=probe.MOST_ITERATIONS).fit(x, y)
        right = float(model.score(held, wanted))
        fits.append((index, passes - before, right))
        print(
            f"{'':22} {index}: {passes - before:,} passes, {time.process_time() - begun:.1f} s of the processors",
            flush=True,
        )
        return right

    loss.loss_gradient = counted
    try:
        started, begun = time.perf_counter(), time.process_time()
        best = probe.halving(score_at)
        seconds, processor = time.perf_counter() - started, time.process_time() - begun
    finally:
        loss.loss_gradient = plain
    return Peer(seconds, processor, passes, best, next(right for index, _, right in fits if index == best), fits)


def ours(data: list[tuple[Array, NDArray[np.int64]]], device: str, tolerance: float) -> Peer:
    (x, y), (held, wanted) = data[:2]
    started, begun = time.perf_counter(), time.process_time()
    found = probe.search(x, y, held, wanted, device=device, tolerance=tolerance)
    seconds, processor = time.perf_counter() - started, time.process_time() - begun
    fits = [(trial.index, trial.probe.evaluations, trial.score) for trial in found.trials]
    return Peer(seconds, processor, sum(passes for _, passes, _ in fits), found.best.index, found.best.score, fits)


def show(name: str, found: Peer, seconds: list[float], test: Callable[[int], float]) -> None:
    print(
        f"{name:22} {statistics.median(seconds):8.1f} s  {found.processor:8.1f} s of the processors  {found.passes:6,} passes  "
        f"best {found.best} (C = {probe.INVERSE_STRENGTHS[found.best]:.3g})  "
        f"validation {found.validation:.2%}  test {test(found.best):.2%}"
    )
    print(" " * 22, " ".join(f"{index}:{passes}" for index, passes, _ in sorted(found.per_fit)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--features", type=int, default=768)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--tolerance", type=float, default=probe.SEARCH_TOLERANCE, help="ours; scikit-learn keeps its own"
    )
    parser.add_argument("--times", type=int, default=1, help="how often our search is timed; the median is shown")
    parser.add_argument("--peers", nargs="*", choices=["float32", "float64"], default=["float32", "float64"])
    given = parser.parse_args()
    warnings.simplefilter("ignore")  # of fits that end at the limit of iterations
    data = world(given.rows, given.features, given.classes)
    both = np.concatenate([data[0][0], data[1][0]]), np.concatenate([data[0][1], data[1][1]])
    print(f"{given.rows:,} x {given.features} x {given.classes} classes, {torch.get_num_threads()} threads", flush=True)

    def refit(index: int) -> float:
        model = probe.fit(*both, 1 / probe.INVERSE_STRENGTHS[index], tolerance=given.tolerance, device=given.device)
        return float((model.predict(data[2][0]) == data[2][1]).mean())

    runs = [ours(data, given.device, given.tolerance) for _ in range(given.times)]
    show(f"ours ({given.device})", runs[0], [run.seconds for run in runs], refit)
    mine = statistics.median(run.seconds for run in runs)
    for name in given.peers:
        peer = scikit_learn(data, np.dtype(name).type)
        show(f"scikit-learn {name}", peer, [peer.seconds], refit)
        print(
            f"{'':22} {peer.seconds / mine:.1f}x our time, {peer.processor / runs[0].processor:.1f}x our processor time, "
            f"{peer.passes / runs[0].passes:.1f}x our passes",
            flush=True,
        )


if __name__ == "__main__":
    main()
