"""The fused kernel run by Triton's interpreter, on a CPU: what test_fused.py compares. Triton reads its switch once, so in its own process.

    TRITON_INTERPRET=1 python -m tests.trainer.fused_cases IN.pt OUT.pt

IN.pt: a list of dictionaries with "flat" (tensors in the order of `update.Flat`), "rule" (keywords of `update.Rule`) and "spans"; OUT.pt:
the tensors after the update, case by case.
"""

import sys

import torch

from trainer.optim import fused, update


def main(read: str, write: str) -> None:
    cases = torch.load(read, weights_only=True)
    for case in cases:
        fused.update(update.Flat(*case["flat"]), update.Rule(**case["rule"]), case["spans"])
    torch.save([case["flat"] for case in cases], write)


if __name__ == "__main__":
    main(*sys.argv[1:])
