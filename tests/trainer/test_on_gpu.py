"""What the CPU suite asks of gradients, steps and resumes, on a GPU: fp16 with its loss scaling, the fused step, page-locked batches.

    python -m pytest -W default -n 8 --dist loadgroup -m "prove or not prove" tests/trainer/test_on_gpu.py

One process on one GPU for each test; -n has several tests beside each other, because most of their time goes into starting. A GPU's image
may have plugins of pytest and libraries that warn, which is no error of ours: pytest-benchmark does as soon as -n is given. Without a GPU
the CPU is asked, as a rehearsal, all that does not concern a GPU's own kernels and memory. test_gradients.py, test_gradient_cache.py,
test_step_cases.py, test_train.py and test_fused.py ask the same of several processes, which one GPU cannot be asked.
"""

import math
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from tests.trainer import launching
from tests.trainer import short_attention_cases as attention
from tests.trainer.gradients import Case, compiled_cases, exact_cases, half_cases, truth
from tests.trainer.test_fused import CASES, rule_of, spans_of, tensors_of
from tests.trainer.test_gradient_cache import held_graphs, relative, step, vit
from tests.trainer.test_step_cases import wrong_cases
from tests.trainer.test_train import SAVE_EVERY, SMALL, figures, final_files, lines_of
from trainer.data.feed import Feed
from trainer.data.loader import Batch
from trainer.data.shared import SharedArrays
from trainer.models import leave_out_cudnn_attention
from trainer.models.checkpointing import Checkpointing
from trainer.models.short_attention import short_attention
from trainer.optim import update

pytestmark = [pytest.mark.prove, pytest.mark.timeout(900)]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
of_a_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="no GPU here")
Found = dict[str, Tensor]
Change = dict[str, object]
DETERMINISTIC = {"run.deterministic": "true"}
reads_plain = pytest.mark.xdist_group("plain")  # what it reads is computed once


def launched(out: Path, *arguments: str) -> Found:
    finished = launching.launch_module(1, "tests.trainer.gradients", *arguments, str(out), timeout=800, on_gpu=True)
    assert finished.code == 0, finished.output
    return safetensors.torch.load_file(out)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return launched(tmp_path_factory.mktemp("gradients") / "plain")


def worst(found: Found, case: Case) -> float:
    """The largest relative error of the loss and of each gradient."""
    true = truth(case.kind, 1)
    pairs = ((found[f"{case.name} {name}"].double(), expected) for name, expected in true.items())
    return max(float((one - expected).norm() / expected.norm()) for one, expected in pairs)


@reads_plain
def test_gradients_are_those_of_fp64_on_a_cpu(plain: Found) -> None:
    limits = {"fp32": 1e-5, "fp64": 1e-10}
    errors = {case.name: (worst(plain, case), limits[case.compute]) for case in exact_cases()}
    assert not {name: error for name, (error, limit) in errors.items() if not error <= limit}


def test_compiled_blocks_give_the_same_gradients(tmp_path: Path) -> None:
    found = launched(tmp_path / "found", "--compiled")
    assert max(worst(found, case) for case in compiled_cases()) <= 1e-5


@reads_plain
def test_half_precision_gradients_are_right_to_its_digits(plain: Found) -> None:
    """fp16 among them: the loss scale was found, and taken off once."""
    limits = {"fp16": 0.01, "bf16": 0.06, "autocast_bf16": 0.06}
    errors = {case.name: (worst(plain, case), limits[case.compute]) for case in half_cases()}
    assert not {name: error for name, (error, limit) in errors.items() if not error <= limit}


@reads_plain
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_step_whose_loss_scale_grows_applies_the_whole_gradient(stage: int, plain: Found) -> None:
    true = truth("clip", 1)
    norm = math.sqrt(sum(float(tensor.square().sum()) for name, tensor in true.items() if name != "loss"))
    before, after, applied, said = plain[f"scaled {stage}"].T.tolist()
    assert before[1:] == after[:-1]
    assert after[-1] >= 4 * before[0], "it has grown twice"
    assert applied == pytest.approx([norm] * len(applied), rel=1e-5)
    assert said == pytest.approx([norm] * len(said), rel=1e-5)


@of_a_gpu
@pytest.mark.parametrize("name", CASES)
def test_the_fused_step_has_the_bits_of_the_pytorch_version(name: str) -> None:
    from trainer.optim import fused

    case = CASES[name]
    ours, plain = (update.Flat(*(tensor.cuda() for tensor in tensors_of(case))) for _ in range(2))
    fused.update(ours, update.Rule(**rule_of(case)), spans_of(case))
    update.update(plain, update.Rule(**rule_of(case)), spans_of(case))
    for part, one, other in zip(update.Flat._fields, ours, plain, strict=True):
        assert torch.equal(one, other), part


@of_a_gpu
@pytest.mark.parametrize("case", attention.CASES, ids=str)
def test_short_attention_is_attention_to_the_digits_of_its_numbers(case: attention.Case) -> None:
    given = attention.tensors_of(case)
    packed = given["packed"].cuda().requires_grad_()
    out = short_attention(packed, case.causal)
    (gradient,) = torch.autograd.grad(out, packed, given["gradient"].cuda())
    true = attention.truth(given["packed"], given["gradient"], causal=case.causal)
    digits = torch.finfo(case.dtype).eps / 2
    assert attention.apart(out.detach().cpu(), true["out"]) < digits
    for part in range(3):
        where = true["gradient"][:, :, part]
        assert float((gradient.cpu()[:, :, part].double() - where).norm()) <= 2 * digits * float(where.norm())
    assert torch.equal(short_attention(packed, case.causal), out), "the same bits each time"


@of_a_gpu
@pytest.mark.parametrize(("dtype", "most_apart"), [(torch.float16, 0.02), (torch.bfloat16, 0.12)])
def test_models_with_short_attention_have_the_gradients_of_torchs(dtype: torch.dtype, most_apart: float) -> None:
    leave_out_cudnn_attention()
    found = attention.of_model(attention.model_inputs(), dtype, "cuda")
    attention.check_models(
        {way: {name: part.cpu() for name, part in parts.items()} for way, parts in found.items()},
        most_apart,
        exact=False,
    )


@pytest.mark.parametrize("checkpointed", ["none", "activation", "elementwise", "blocks"])
def test_patches_that_the_first_pass_dropped_the_second_drops_again(checkpointed: Checkpointing) -> None:
    """Gradient caching in fp64, with numbers that the device draws: as if all micro-batches' graphs had been held at once."""

    _, load = vit(patch_dropout=0.5)

    def loaded(at: slice) -> tuple[Tensor, Tensor]:
        pixels, ids = load(at)
        return pixels.to(DEVICE), ids.to(DEVICE)

    true_loss, true = held_graphs(vit(patch_dropout=0.5)[0].to(DEVICE), loaded, 4, pairs=10)
    loss, cached = step(vit(patch_dropout=0.5, checkpointed=checkpointed)[0], loaded, 4, pairs=10)
    assert float(loss) == pytest.approx(float(true_loss), rel=1e-10)
    assert relative(cached, true) < 1e-10
    assert relative(step(vit(patch_dropout=0.0)[0], loaded, 4, pairs=10)[1], true) > 0.1


@pytest.mark.timeout(1800)
def test_a_good_step_is_right_after_bad_ones_that_changed_nothing(tmp_path: Path) -> None:
    assert not wrong_cases(tmp_path, 1, on_gpu=True)


def changes() -> Iterator[Change]:
    for stage in (0, 1, 2, 3):
        for compute in ("fp32", "autocast_bf16", *(("bf16", "fp16") if stage else ())):
            yield {"precision.compute": compute, "zero.stage": stage}
        yield {"batch.micro_size": 3, "model.patch_dropout": 0.5, "zero.stage": stage}
        if stage:
            yield {"zero.offload": "true", "zero.stage": stage}
    yield {"model.preset": "tiny"}
    yield {"model.short_attention": "true", "model.compile": "true", "precision.compute": "bf16"}
    yield {"model.preset": "tiny", "batch.micro_size": 3, "precision.compute": "autocast_bf16"}
    yield {"precision.compute": "bf16", "precision.master": "bf16"}
    yield {"precision.text_weights": "fp16_stochastic"}


def trained(overrides: Change) -> launching.Finished:
    """A run of one process, which a CPU does not refuse to be in fp16."""
    if DEVICE == "cuda":
        return launching.alone(overrides, on_gpu=True)
    return launching.together(1, overrides, module=launching.INSTRUMENTED, environment={"FP16_ON_CPU": "1"})


@pytest.mark.parametrize("change", list(changes()), ids=lambda change: " ".join(map(str, change.values())))
def test_a_stopped_run_resumes_to_the_bit(change: Change, corpus: Path, tmp_path: Path) -> None:
    change = {"optim.steps": 12} | change | DETERMINISTIC
    runs = {name: tmp_path / name for name in ("undisturbed", "stopped")}
    for name, stops in (("undisturbed", [12]), ("stopped", [5, 12])):
        for stop in stops:
            overrides = SMALL | change | {"data.manifest": corpus, "run.dir": runs[name], "run.stop_after": stop}
            finished = trained(overrides)
            assert finished.code == 0, finished.output
            assert "Guessing device" not in finished.output, "NCCL is told whose GPU a process has"
    assert figures(lines_of(runs["stopped"])) == figures(lines_of(runs["undisturbed"]))
    assert final_files(runs["stopped"], 12) == final_files(runs["undisturbed"], 12)


def test_a_killed_run_resumes_to_the_bit(corpus: Path, tmp_path: Path) -> None:
    steps = 25 * SAVE_EVERY
    common = SMALL | DETERMINISTIC | {"data.manifest": corpus, "optim.steps": steps, "batch.micro_size": 3}
    runs = {name: tmp_path / name for name in ("undisturbed", "killed")}
    killed = common | {"run.dir": runs["killed"]}
    finished = launching.launch_module(
        1,
        "trainer",
        *launching.arguments_of(killed),
        kill_when=lambda: len(lines_of(runs["killed"])) > SAVE_EVERY,
        on_gpu=True,
    )
    assert finished.code == -signal.SIGKILL, finished.output
    for overrides in (killed, common | {"run.dir": runs["undisturbed"]}):
        finished = trained(overrides)
        assert finished.code == 0, finished.output
        assert ("steps 1 to" in finished.output) == (overrides is not killed), "it resumed"
    assert figures(lines_of(runs["killed"])) == figures(lines_of(runs["undisturbed"]))
    assert final_files(runs["killed"], steps) == final_files(runs["undisturbed"], steps)


@of_a_gpu
def test_page_locked_batches_arrive_whole_while_the_gpu_is_busy() -> None:
    """Texts of even and odd rows have two lengths, and their pictures two colours: each group of texts comes with its own pictures."""
    pairs, side, count, more = 64, 32, 8, 32
    shared = SharedArrays(count, (pairs, 3, side, side))
    shared.page_lock()
    assert torch.from_numpy(shared[0]).is_pinned()

    def batches() -> Iterator[Batch]:
        for number in range(count):
            shared[number][0::2], shared[number][1::2] = number, number + 100
            ids = torch.zeros(pairs, 77, dtype=torch.int64)
            ids[0::2, number], ids[1::2, number + more] = 5, 5
            yield Batch(torch.from_numpy(shared[number]), ids, torch.arange(pairs), torch.arange(pairs), [])

    feed = Feed(batches(), torch.device("cuda"), torch.float32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), slice(0, 48), 0)
    busy = torch.randn(4096, 4096, device="cuda")
    for number in range(count):
        feed.next()
        for at in (slice(0, 48), slice(48, pairs)):
            for _ in range(20):
                torch.mm(busy, busy)
            pixels, *texts = feed.load(at)
            half = (at.stop - at.start) // 2
            assert [tuple(text.shape) for text in texts] == [(half, number + 1), (half, number + more + 1)]
            # A GPU multiplies with 1 / 255, which is not always the nearest number to a division.
            for part, value in zip(torch.split((pixels * 255).round(), half), (number, number + 100), strict=True):
                assert torch.equal(part, torch.full_like(part, value))
        feed.begin()


@of_a_gpu
def test_a_refused_page_lock_is_not_the_next_kernels_error(caplog: pytest.LogCaptureFixture) -> None:
    shared = SharedArrays(2, (1 << 20,))
    for _ in range(2):  # CUDA refuses memory that it has already
        shared.page_lock()
    assert "cannot be page-locked" in caplog.text
    assert float((torch.ones(3, device="cuda") + 1).sum()) == 6
