"""Settings that meet by chance: a run that was stopped and resumed against one that was not, each with one bad batch on one process.

Other tests turn one setting at a time. What only a combination shows (a resume, then a skipped step, under stage 3) is looked for here.
"""

import random
from pathlib import Path

import pytest

from pipeline.contracts.config import load_config
from pipeline.contracts.errors import InputError
from tests.trainer.launching import INSTRUMENTED, SMOKE, together
from tests.trainer.test_train import figures, final_files, lines_of
from trainer.config import TrainConfig, resolve

pytestmark = [pytest.mark.prove, pytest.mark.timeout(900)]

STEPS, STOPS_AT, BAD_BATCH = 8, 3, 4
SETTINGS: dict[str, tuple[object, ...]] = {
    "model.preset": ("tiny-vit", "tiny-vit", "tiny"),
    "model.patch_dropout": (0, 0.5),
    "model.text": ("transformer", "transformer", "bag_of_words"),
    "model.checkpoint_activations": ("none", "elementwise", "blocks"),
    "model.freeze": ("[]", "[]", '["image"]', '["text"]'),
    "precision.compute": ("fp16", "fp16", "bf16", "autocast_bf16", "fp32"),
    "precision.master": ("fp32", "fp32", "bf16"),
    "precision.text_weights": ("plain", "fp16_stochastic"),
    "zero.stage": (0, 1, 2, 3, 3),
    "zero.offload": ("false", "false", "true"),
    "batch.micro_size": (4, 3, 2),
    "objective.kind": ("clip", "siglip"),
    "objective.chunk_size": (4, 3),
    "optim.ema_decay": (0.9, 0.99),
    "optim.gradient_clipping": (0, 0.5),
    "run.deterministic": ("false", "true"),
    "augmentation.flip": (0, 0.5),
}


def drawn(draws: random.Random) -> dict[str, object]:
    """Of each setting one of its values, so that the trainer accepts them together."""
    while True:
        change = {key: draws.choice(values) for key, values in SETTINGS.items()}
        try:
            resolve(load_config(TrainConfig, SMOKE, [f"{key}={value}" for key, value in change.items()]))
        except InputError:
            continue
        return change


@pytest.mark.parametrize("seed", range(12))
def test_settings_that_meet_by_chance_resume_to_the_bit(
    seed: int, short_run: dict[str, object], corpus: Path, tmp_path: Path
) -> None:
    draws = random.Random(seed)
    change = short_run | drawn(draws) | {"optim.steps": STEPS}
    if draws.random() < 0.5:
        change |= {"held.manifest": corpus, "held.every": 2, "held.limit": 20}
    processes = draws.choice((1, 2))
    bad = {draws.choice(("NOT_A_NUMBER", "NOT_A_LOSS")): f"{processes - 1}:{BAD_BATCH}-{BAD_BATCH}", "FP16_ON_CPU": "1"}
    runs = {name: tmp_path / name for name in ("undisturbed", "stopped")}
    for name, stops in (("undisturbed", [STEPS]), ("stopped", [STOPS_AT, STEPS])):
        for stop in stops:
            overrides = change | {"run.dir": runs[name], "run.stop_after": stop}
            finished = together(processes, overrides, module=INSTRUMENTED, environment=bad)
            assert finished.code == 0, (change, finished.output)
    steps = {name: [line for line in lines_of(run) if "loss" in line] for name, run in runs.items()}
    assert figures(steps["stopped"]) == figures(steps["undisturbed"]), change
    assert final_files(runs["stopped"], STEPS) == final_files(runs["undisturbed"], STEPS), change
    skipped = [line["step"] for line in steps["stopped"] if line["skipped"]]
    assert BAD_BATCH + 1 in skipped
    assert skipped == [BAD_BATCH + 1] or change["precision.compute"] == "fp16", "else a loss scaler looks for its scale"
    assert len(skipped) < STEPS
