"""Evaluation while training under every ZeRO stage, on any number of processes, in one run of them: what test_held.py reads.

    python -m tests.trainer.held_cases FOLDER

FOLDER holds the corpora that test_held.py wrote. Each case builds a model, evaluates it, steps it twice so that masters and their average
differ, evaluates again, and notes the figures, the features and the weights that they come from, and whether anything of the run has
changed. Each process learns its place from the environment. Process 0 writes FOLDER/found-N.pt: a dictionary by case.
"""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed
from torch import Tensor

from pipeline.contracts.config import load_config
from pipeline.contracts.errors import InputError
from pipeline.contracts.manifest import load
from trainer import held, partitions, tokenizer, zero
from trainer.checkpoint.layout import SCALE
from trainer.checkpoint.state import flats, random_states
from trainer.config import TrainConfig, resolve
from trainer.data.shards import ShardCorpus
from trainer.held.evaluating import in_place_of_weights
from trainer.models import CLIP, build
from trainer.objectives.clip import contrastive_loss
from trainer.optim import Ema, HalfAdamW, parameter_groups

GLOBAL_BATCH = 18
MICRO = 8
"""So that pieces of pictures and texts end in an odd place, and processes have unequal numbers of them."""


PIXEL_MEAN, PIXEL_STD = (0.1, 0.6, 0.3), (0.9, 0.2, 0.5)
"""Nothing like CLIP's, which are the defaults."""
LIMIT = 10


class Case(NamedTuple):
    stage: int
    compute: str = "fp32"
    preset: str = "tiny-vit"


CASES = [
    *(Case(stage) for stage in (0, 1, 2, 3)),
    Case(1, "autocast_bf16"),
    Case(1, "bf16"),
    Case(1, preset="tiny"),
]
SLOW = [Case(3, "bf16")]
ALONE = [Case(1), Case(3), Case(1, preset="tiny")]


def cases(world: int) -> list[Case]:
    """One process has what the others are compared with; what is slow is for three, which are a proof."""
    return {1: ALONE, 2: CASES, 3: [*CASES, *SLOW]}[world]


def config_of(case: Case, folder: Path, manifest: str = "held") -> TrainConfig:
    overrides = {
        "data.manifest": folder / "corpus",
        "data.workers": 2,
        "model.preset": case.preset,
        "model.image_size": 32,
        "model.context_length": 16,
        "model.pixel_mean": list(PIXEL_MEAN),
        "model.pixel_std": list(PIXEL_STD),
        "batch.global_size": GLOBAL_BATCH,
        "batch.micro_size": MICRO,
        "optim.ema_decay": 0.9,
        "zero.stage": case.stage,
        "precision.compute": case.compute,
        "held.manifest": folder / manifest,
        "held.zeroshot.path": folder / "labelled.parquet",
        "held.zeroshot.label": "label",
        "held.zeroshot.templates": '["a {}", "one {} on a ground"]',
    }
    lines = [f"{key}={value}" for key, value in overrides.items()]
    return resolve(load_config(TrainConfig, "trainer/configs/smoke.toml", lines))


def model_of(config: TrainConfig, folder: Path) -> CLIP:
    torch.manual_seed(0)
    vocabulary = tokenizer.load("bpe", vocab=str(folder / "vocabulary"), context_length=16)
    return build(config.model.preset, vocab_size=vocabulary.vocab_size, context_length=16, image_size=32)


def run(case: Case, folder: Path, rank: int, world: int) -> dict[str, Any]:
    config = config_of(case, folder)
    model = model_of(config, folder)
    optimizer = HalfAdamW(parameter_groups(model, 0.2), lr=1e-2)
    engine = zero.start_engine(config, model, optimizer, world)
    partitions.place(engine, optimizer)
    for part in partitions.of(engine):  # stage 3 has there what was in memory, which may be anything
        for gap in part.layout.padding():
            part.master.detach()[gap] = torch.nan
    average = Ema(partitions.masters(engine), 0.9)
    dtype = torch.bfloat16 if case.compute == "bf16" else torch.float32
    draws = torch.Generator().manual_seed(rank)  # batch norm's statistics differ from process to process

    norms: list[float] = []

    def step() -> float:
        ids = torch.randint(1, 500, (GLOBAL_BATCH // world, 16), generator=draws)
        pixels = torch.randn(GLOBAL_BATCH // world, 3, 32, 32, generator=draws)
        loss = contrastive_loss(*engine(pixels.to(dtype), ids))
        engine.backward(loss)
        stepped = zero.step(engine, loss, 1e-2, stop=False, replaced=0)
        average.update(partitions.masters(engine))
        assert stepped.applied
        norms.append(stepped.gradient_norm)
        return stepped.loss

    held_set = opened(config, folder, rank, world)
    features: list[tuple[Tensor, Tensor]] = []
    unnoted = held_set._features

    def noted(*arguments: Any) -> tuple[Tensor, Tensor] | None:
        found = unnoted(*arguments)
        if found is not None:
            features.append(found)
        return found

    def scored(average: Ema | None, stop_at: int | None = None) -> tuple[dict[str, object] | None, int]:
        """An evaluation that the last process stops before some piece, and how many pieces there were until then."""
        asked = 0

        def stop() -> bool:
            nonlocal asked
            asked += 1
            return zero.any_process(asked == stop_at and rank == world - 1, engine.device)

        given = held_set.evaluate(engine, dtype, average, stop)
        assert (given is None) == (asked == stop_at)
        return (None if given is None else given.line()), asked

    vars(held_set)["_features"] = noted
    lengths: list[int] = []
    with model.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[1].shape[1])):
        found: dict[str, Any] = {"first": scored(None)[0], "text lengths": zero.gather(lengths)}
    step()
    step()
    model.get_submodule("transformer").eval()  # as a frozen tower is
    before = state(engine, average)
    found["scored"], pieces = scored(average)
    assert scored(average, stop_at=2) == (None, 2)
    assert scored(average, stop_at=pieces // 2 + 2) == (None, pieces // 2 + 2), "amid that of the average"
    after = state(engine, average)
    mine = [
        value[gap]
        for flat in flats(engine, average)
        for key, value in flat.values.items()
        if not key.endswith(SCALE) and value.numel() == flat.layout.numel
        for gap in flat.layout.padding()
    ]
    found["saved padding"] = [value for values in zero.gather(mine) for value in values]  # the last process's, mostly
    found["changed"] = [name for name in before if not same(before[name], after[name])]
    engine.module.train()
    found |= {"first_features": features[:2], "features": features[2:4], "weights": gathered_weights(engine)}
    with in_place_of_weights(engine, average):
        found["average"] = gathered_weights(engine)
    if case.stage == 0:
        parts = zip(partitions.of(engine), average.tensors, strict=True)
        found["true_average"] = {part.layout.pieces[0].name: tensor.clone() for part, tensor in parts}
    found |= {"next_loss": step(), "norm": norms[-1]}
    if case.stage == 0:
        with torch.no_grad():
            model.text_projection.fill_(torch.nan)
        found["broken"], _ = scored(None)
    engine.destroy()
    return found


def opened(config: TrainConfig, folder: Path, rank: int, world: int) -> held.Held:
    corpus = ShardCorpus(str(folder / "corpus"), load(str(folder / "corpus")))
    found = held.open_held(config, held.find(config.held), corpus, str(folder / "vocabulary"), rank, world)
    assert found is not None
    return found


def state(engine: zero.Engine, average: Ema) -> dict[str, Any]:
    """All that an evaluation must leave as it is, on this process."""
    module = engine.module
    return {
        "weights": [getattr(weight, "ds_tensor", weight).detach().clone() for weight in module.parameters()],
        "buffers": [buffer.clone() for buffer in module.buffers()],
        "masters": [master.detach().clone() for master in partitions.masters(engine)],
        "average": [tensor.clone() for tensor in average.tensors],
        "gradients": [None if weight.grad is None else weight.grad.clone() for weight in module.parameters()],
        "modes": [torch.tensor(part.training) for part in module.modules()],
        "random states": list(random_states(engine.device).values()),
    }


def same(before: list[Tensor | None], after: list[Tensor | None]) -> bool:
    return len(before) == len(after) and all(
        one is other if one is None or other is None else torch.equal(one.nan_to_num(), other.nan_to_num())
        for one, other in zip(before, after, strict=True)
    )


def gathered_weights(engine: zero.Engine) -> dict[str, Tensor]:
    """The module's state dict with whole weights; buffers are those of this process."""
    found = {}
    for name, tensor in engine.module.state_dict(keep_vars=True).items():
        with zero.gathered(tensor, modified=False):
            found[name] = tensor.detach().float().clone()
    return found


def refused(folder: Path, manifest: str, rank: int, world: int) -> str:
    """What every process says of a held set that cannot be used."""
    try:
        opened(config_of(Case(1), folder, manifest), folder, rank, world)
    except InputError as error:
        return str(error)
    return ""


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    rank, world = zero.join_processes()
    found: dict[str, Any] = {str(tuple(case)): run(case, folder, rank, world) for case in cases(world)}
    for manifest in ("damaged", "empty_rows"):
        found[manifest] = zero.gather(refused(folder, manifest, rank, world))
    limited = config_of(Case(1), folder)
    assert limited.held is not None
    few = limited.model_copy(update={"held": limited.held.model_copy(update={"limit": LIMIT})})
    # The parts of a held set are not public, and neither is which of a labelled set were taken.
    found["limited"] = [list(part.read(range(part.pictures))) for part in opened(few, folder, rank, world)._parts]
    changed = zero.gather({name: case["changed"] for name, case in found.items() if isinstance(case, dict)})
    if rank == 0:
        torch.save({**found, "changed": changed}, folder / f"found-{world}.pt")
    zero.leave_processes()


if __name__ == "__main__":
    main(Path(sys.argv[-1]))
