"""The gradient of every combination against one process that sees the whole batch, without DeepSpeed, in fp64 and with naive losses.

Every objective x dense and chunked x ZeRO 0 to 3 x 1, 2 and 4 micro-batches x 1, 2 and 4 processes; `tests/trainer/gradients.py` runs them.
In the suite, of two processes, each two of these meet; that all of them do is a proof.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from tests.trainer.gradients import Case, compiled_cases, exact_cases, half_cases, truth
from tests.trainer.launching import RUNS, Run, together_module
from trainer.objectives import OBJECTIVES

pytestmark = pytest.mark.timeout(900)

Found = dict[str, Tensor]


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Run], Found]:
    """What the processes of a run found; each run is made once."""
    known: dict[Run, Found] = {}

    def make(run: Run) -> Found:
        if run not in known:
            out = tmp_path_factory.mktemp("gradients") / "found.safetensors"
            arguments = [*(["--few"] if run.few else []), str(out)]
            finished = together_module(run.world, "tests.trainer.gradients", *arguments, timeout=800)
            assert finished.code == 0, finished.output
            known[run] = safetensors.torch.load_file(out)
        return known[run]

    return make


def errors(found: Found, case: Case, true: Found) -> dict[str, float]:
    """Relative L2 error of the loss and of each gradient of a case."""
    return {
        name: float((found[f"{case.name} {name}"].double() - expected).norm() / expected.norm())
        for name, expected in true.items()
    }


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_gradients_are_those_of_one_process_with_the_whole_batch(run: Run, launched: Callable[[Run], Found]) -> None:
    found = launched(run)
    limits = {"fp32": 1e-5, "fp64": 1e-10}
    worst = dict.fromkeys(limits, 0.0)
    wrong = []
    for kind in OBJECTIVES:
        true = truth(kind, run.world)
        assert {"logit_scale", *(["logit_bias"] if kind == "siglip" else [])} <= true.keys()
        for case in exact_cases(few=run.few):
            if case.kind == kind:
                found_errors = errors(found, case, true)
                worst[case.compute] = max(worst[case.compute], *found_errors.values())
                wrong += [
                    f"{case.name} {name}: {error:.1e}"
                    for name, error in found_errors.items()
                    if not error <= limits[case.compute]
                ]
    print(f"{run.world} processes, largest relative error: {worst}")
    assert not wrong


@pytest.mark.prove
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="there is no C++ compiler")
def test_compiled_blocks_give_the_same_gradients(tmp_path: Path) -> None:
    finished = together_module(2, "tests.trainer.gradients", "--compiled", str(tmp_path / "found"), timeout=800)
    assert finished.code == 0, finished.output
    found, true = safetensors.torch.load_file(tmp_path / "found"), truth("clip", 2)
    for case in compiled_cases():
        assert max(errors(found, case, true).values()) <= 1e-5, case.name


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_the_norm_that_is_reported_is_that_of_the_whole_gradient(
    run: Run, launched: Callable[[Run], Found], tmp_path: Path
) -> None:
    """Also without ZeRO and with micro-batches, where gradients of one process or of one micro-batch lie about."""
    found = launched(run)
    for kind in OBJECTIVES:
        true = truth(kind, run.world)
        norm = float(get_total_norm([tensor for name, tensor in true.items() if name != "loss"]))
        for case in exact_cases(few=run.few):
            if case.kind == kind and case.stage is not None:
                assert float(found[f"{case.name} norm"]) == pytest.approx(norm, rel=1e-5), case.name


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_half_precision_gradients_are_right_to_its_digits(run: Run, launched: Callable[[Run], Found]) -> None:
    """bf16 rounds to 3 digits; with fp16 the loss scale must have been taken off once, not twice and not by micro-batch."""
    found = launched(run)
    true = truth("siglip", run.world)
    wrong = []
    for case in half_cases(few=run.few):
        limit = 0.01 if case.compute == "fp16" else 0.06
        wrong += [
            f"{case.name} {name}: {error:.1e}"
            for name, error in errors(found, case, true).items()
            if not error <= limit
        ]
    assert not wrong


@pytest.mark.parametrize("run", RUNS, ids=str)
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_step_whose_loss_scale_grows_applies_the_whole_gradient(
    run: Run, stage: int, launched: Callable[[Run], Found]
) -> None:
    true = truth("clip", run.world)
    norm = float(get_total_norm([tensor for name, tensor in true.items() if name != "loss"]))
    before, after, applied, said = launched(run)[f"scaled {stage}"].T.tolist()
    assert before[1:] == after[:-1]
    assert after[-1] >= 4 * before[0], "it has grown twice"
    assert applied == pytest.approx([norm] * len(applied), rel=1e-5)
    assert said == pytest.approx([norm] * len(said), rel=1e-5)
