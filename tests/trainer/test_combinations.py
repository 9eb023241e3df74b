"""Settings that meet by chance: a run that was stopped and resumed against one that was not, each with one bad batch on one process.

Other tests turn one setting at a time. What only a combination shows (a resume, then a skipped step, under stage 3) is looked for here.
"""

import random
from pathlib import Path
from typing import NamedTuple

import pytest

from pipeline.contracts.config import load_config
from pipeline.contracts.errors import InputError
from tests.trainer.launching import INSTRUMENTED, SMOKE, together
from tests.trainer.test_train import figures, final_files, lines_of
from trainer.config import TrainConfig, resolve

pytestmark = pytest.mark.timeout(900)

STEPS, STOPS_AT, BAD_BATCH = 10, 3, 7
"""A loss scaler has its scale before the bad batch."""
PAIRS = [("fp16", 1), ("fp16", 2), ("fp16", 3), ("bf16", 1), ("bf16", 2), ("bf16", 3)]
PAIRS += [(compute, stage) for compute in ("autocast_bf16", "fp32") for stage in (0, 1, 2, 3)]
"""Of precision.compute and zero.stage, all that the trainer accepts. The rest is drawn for each of them, twice."""
SEEDS = range(132, 132 + 2 * len(PAIRS))
"""Whose draws have every value, under stage 3 and in half precision of two processes too."""
SETTINGS: dict[str, tuple[object, ...]] = {
    "model.preset": ("tiny-vit", "tiny-vit", "tiny"),
    "model.patch_dropout": (0, 0.5),
    "model.text": ("transformer", "transformer", "bag_of_words"),
    "model.checkpoint_activations": ("none", "activation", "elementwise", "blocks"),
    "model.freeze": ("[]", "[]", '["image"]', '["text"]'),
    "precision.master": ("fp32", "bf16"),
    "precision.text_weights": ("plain", "fp16_stochastic"),
    "zero.offload": ("false", "true"),
    "batch.micro_size": (4, 3, 2),
    "objective.kind": ("clip", "siglip"),
    "objective.chunk_size": (4, 3),
    "optim.ema_decay": (0.9, 0.99),
    "optim.gradient_clipping": (0, 0.5),
    "run.deterministic": ("false", "true"),
    "augmentation.flip": (0, 0.5),
}


class Drawn(NamedTuple):
    change: dict[str, object]
    processes: int
    bad: str
    """What is no number: a batch's pixels, or its loss."""
    has_held: bool


def drawn(seed: int) -> Drawn:
    """Of each setting one of its values, so that the trainer accepts them together."""
    draws = random.Random(seed)
    compute, stage = PAIRS[seed % len(PAIRS)]
    processes, bad = draws.choice((1, 2, 2)), draws.choice(("NOT_A_NUMBER", "NOT_A_LOSS"))
    while True:
        change = {key: draws.choice(values) for key, values in SETTINGS.items()}
        change |= {"precision.compute": compute, "zero.stage": stage}
        try:
            resolve(load_config(TrainConfig, SMOKE, [f"{key}={value}" for key, value in change.items()]))
        except InputError:
            continue
        return Drawn(change, processes, bad, draws.random() < 0.5)


def test_every_value_is_drawn_under_stage_3_and_in_half_precision() -> None:
    every = {(key, value) for key, values in SETTINGS.items() for value in values}
    runs = [one for one in map(drawn, SEEDS) if one.processes == 2]
    under_stage_3 = {pair for one in runs if one.change["zero.stage"] == 3 for pair in one.change.items()}
    in_half = {
        pair for one in runs if one.change["precision.compute"] in ("bf16", "fp16") for pair in one.change.items()
    }
    refused = {("model.checkpoint_activations", value) for value in ("activation", "elementwise")}
    assert every - under_stage_3 == refused
    assert every <= in_half


@pytest.mark.prove
@pytest.mark.parametrize("seed", SEEDS)
def test_settings_that_meet_by_chance_resume_to_the_bit(
    seed: int, short_run: dict[str, object], corpus: Path, tmp_path: Path
) -> None:
    change, processes, bad, has_held = drawn(seed)
    change = short_run | change | {"optim.steps": STEPS}
    change |= {"held.manifest": corpus, "held.every": 2, "held.limit": 20} if has_held else {}
    environment = {bad: f"{processes - 1}:{BAD_BATCH}-{BAD_BATCH}", "FP16_ON_CPU": "1"}
    runs = {name: tmp_path / name for name in ("undisturbed", "stopped")}
    for name, stops in (("undisturbed", [STEPS]), ("stopped", [STOPS_AT, STEPS])):
        for stop in stops:
            overrides = change | {"run.dir": runs[name], "run.stop_after": stop}
            finished = together(processes, overrides, module=INSTRUMENTED, environment=environment)
            assert finished.code == 0, (change, finished.output)
    steps = {name: [line for line in lines_of(run) if "loss" in line] for name, run in runs.items()}
    assert figures(steps["stopped"]) == figures(steps["undisturbed"]), change
    assert final_files(runs["stopped"], STEPS) == final_files(runs["undisturbed"], STEPS), change
    assert [line["step"] for line in steps["stopped"] if line["loss"] is None] == [BAD_BATCH + 1]
    skipped = [line["step"] for line in steps["stopped"] if line["skipped"]]
    assert BAD_BATCH + 1 in skipped
    assert skipped == [BAD_BATCH + 1] or change["precision.compute"] == "fp16", "else a loss scaler looks for its scale"
    assert len(skipped) < STEPS
