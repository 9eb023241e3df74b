"""Offload, micro-batches, clipping, bad steps, ZeRO stages and precisions in one launch, against one process in fp64 without DeepSpeed."""

import json
from pathlib import Path

import pytest

from tests.trainer.launching import launch_module
from tests.trainer.step_cases import BAD_STEPS, Case, cases

LIMITS = {"fp32": 1e-5, "autocast_bf16": 0.08, "bf16": 0.08, "fp16": 0.01}
"""Relative; bf16 has three digits."""
MOST_ASKED = 4
"""Tensors of a step that are asked alone for their norm: such as hold the norms of all. The model has 62."""


@pytest.mark.prove
@pytest.mark.timeout(1800)
def test_a_good_step_is_right_after_bad_ones_that_changed_nothing(tmp_path: Path) -> None:
    assert not wrong_cases(tmp_path, 2)


def wrong_cases(folder: Path, processes: int, *, on_gpu: bool = False) -> list[dict[str, object]]:
    """What one launch found of all cases, those that are not right."""
    out = folder / "found.jsonl"
    finished = launch_module(processes, "tests.trainer.step_cases", str(out), timeout=1700, on_gpu=on_gpu)
    assert finished.code == 0, finished.output[-4000:]
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [Case(*one["case"]) for one in found] == list(cases())
    wrong = []
    for one in found:
        case = Case(*one["case"])
        bad, before = BAD_STEPS if case.bad else 0, len(one["skipped"])
        right = one["applied"] and all(one["skipped"]) and (before == bad or (case.compute == "fp16" and before > bad))
        limit = LIMITS[case.compute]
        few = one["asked"] <= MOST_ASKED or case.offload  # DeepSpeed asks for those itself, as they travel
        if not (right and few and one["gradient_error"] <= limit and one["norm_error"] <= limit):
            wrong.append(one)
    return wrong
