"""Places that a text of the web takes in its tower, in groups of like length and without, and what is left of a model's operations.

    python -m tests.benchmarks.lengths

Lengths are drawn between LAION's percentiles (`data/gpu_case.py`), forty batches of each size. Without groups a batch is as long as its
longest text, which a batch of a few hundred has nearly always fill all 77 places; that is how open_clip computes all of them.
"""

import statistics

import numpy as np
import torch

from tests.benchmarks.data.gpu_case import FULL_LENGTH, Case, text_lengths
from tests.benchmarks.gpu_train import MODELS
from trainer import models
from trainer.data.lengths import cost_of_a_group, grouped
from trainer.flops import training_flops_of_length

BATCHES = 40


def main() -> None:
    operations = {}
    for name in MODELS:
        with torch.device("meta"):
            operations[name] = training_flops_of_length(models.build(name))
    print(
        f"{'pairs':>6} {'blocks':<10}{'longest':>8}{'places':>8}{'groups':>8}   operations of full texts / of these:",
        *MODELS,
    )
    for pairs in (128, 512, 1024, 4096):
        batches = [np.array(text_lengths(Case("", pairs, "", captions=True), step)) for step in range(BATCHES)]
        for compiled in (True, False):
            a_group = cost_of_a_group("cuda", compiled=compiled, as_many_on_all=False)
            groups = [grouped(lengths, a_group) for lengths in batches]
            places = statistics.fmean(sum(len(one.rows) * one.length for one in batch) / pairs for batch in groups)
            shares = []
            for of_length in operations.values():
                spent = statistics.fmean(
                    sum(len(one.rows) * of_length(one.length) for one in batch) / pairs for batch in groups
                )
                shares.append(f"{of_length(FULL_LENGTH) / spent:.2f}")
            longest = statistics.fmean(float(lengths.max()) for lengths in batches)
            count = statistics.fmean(map(len, groups))
            print(
                f"{pairs:>6,} {'compiled' if compiled else 'plain':<10}{longest:>8.1f}{places:>8.1f}{count:>8.1f}  ",
                *shares,
            )


if __name__ == "__main__":
    main()
