"""The benchmarks `traffic` and `programs`: bytes that can be said by hand, a step's products as they are computed, programs that a GPU
would have and their machine code."""

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from trainer import models

PAIRS, PLACES = 6, 20
WAYS = ("none torch", "none short", "elementwise torch")


class Counted(NamedTuple):
    kind: str
    times: int
    bytes: int
    operations: int
    what: str


def test_kernels_move_what_can_be_said_by_hand() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, in a module that Inductor imports
        from tests.benchmarks.data.traffic_case import Traffic

    rows, depth, width = 512, 64, 256

    def inside(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return (x @ weight).sigmoid() * 2

    found = Traffic()
    program = torch.compile(inside, backend=found.backend)
    with FakeTensorMode(), found, torch.no_grad():
        x, weight = (torch.empty(size, dtype=torch.bfloat16) for size in ((rows, depth), (depth, width)))
        for _ in range(3):
            program(x, weight)
    made = {kernel: times for kernel, times in found.runs.items() if "empty" not in kernel.what}
    product, elementwise = sorted(made, key=lambda kernel: kernel.kind, reverse=True)
    assert set(made.values()) == {3}
    assert (product.kind, elementwise.kind) == ("product", "elementwise")
    assert product.bytes == 2 * (rows * depth + depth * width + rows * width)
    assert product.operations == 2 * rows * depth * width
    assert elementwise.bytes == 2 * 2 * rows * width
    assert elementwise.what == "mul sigmoid [512, 256]"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, in a module that Inductor imports
@pytest.mark.parametrize("last", [False, pytest.param(True, marks=pytest.mark.prove)], ids=["block", "last block"])
def test_a_gpu_has_the_same_programs_for_small_and_large_groups_of_texts(
    last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left to itself Inductor has others below 5 * 2 ** 20 numbers, which no compiler for CPUs would show."""
    from tests.benchmarks.data import traffic_case

    graphs: list[Any] = []
    kernels_of = traffic_case.kernels_of

    def counted(graph: Any, *others: Any) -> list[Any]:
        graphs.append(graph)
        return kernels_of(graph, *others)

    monkeypatch.setattr(traffic_case, "kernels_of", counted)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", traffic_case.gpu_attention)
    model = traffic_case.ours("tiny-vit", "none", short=False)
    found = traffic_case.Traffic()
    torch._dynamo.reset()
    model.compile_blocks(found.backend)
    assert model.transformer is not None
    block = model.transformer.resblocks[-1 if last else 0]
    with FakeTensorMode(allow_non_fake_inputs=True), found:
        traffic_case.fake(model)
        for texts, places in ((40, 8), (4_000, 24), (300, 16)):
            x = torch.empty(texts, places, model.transformer.width, dtype=torch.bfloat16, requires_grad=True)
            block(x, torch.empty(texts, dtype=torch.int64)) if last else block(x)
    assert len(graphs) == 2, "forward and backward"


@pytest.fixture(scope="module")
def steps() -> dict[str, list[Counted]]:
    found = {}
    for way in WAYS:
        case = ("ours", "tiny-vit", *way.split(), str(PAIRS), str(PLACES))
        command = [sys.executable, "-m", "tests.benchmarks.data.traffic_case", *case]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found[way] = [Counted(*row) for row in json.loads(done.stdout)]
    return found


@pytest.mark.prove
@pytest.mark.parametrize("way", WAYS)
def test_a_steps_products_are_those_that_are_computed(way: str, steps: dict[str, list[Counted]]) -> None:
    """In whatever way: nothing is multiplied twice."""
    model = models.build("tiny-vit")
    size = model.preset.image_size
    ids = torch.ones(PAIRS, PLACES, dtype=torch.int64)
    with FlopCounterMode(display=False) as counted:
        outputs = model(torch.randn(PAIRS, 3, size, size), ids)
        torch.autograd.backward([output.sum() for output in outputs])
    products = {name: count for name, count in counted.get_flop_counts()["Global"].items() if "mm" in str(name)}
    assert len(products) >= 2
    assert sum(one.times * one.operations for one in steps[way]) == sum(products.values())


@pytest.mark.prove
def test_attention_moves_what_it_must_and_short_attention_nothing_beside(steps: dict[str, list[Counted]]) -> None:
    shape = models.PRESETS["tiny-vit"]
    vision = shape.vision
    assert isinstance(vision, models.ViTShape)
    places = (shape.image_size // vision.patch) ** 2 + 1
    # Numbers of the residual; all blocks but the last, which computes one query, by torch's attention in any case
    residual = PAIRS * (
        places * vision.width * (vision.layers - 1) + PLACES * shape.text_width * (shape.text_layers - 1)
    )
    short = [one for one in steps["none short"] if "short_attention" in one.what]
    assert sum(one.times * one.bytes for one in short) == 2 * (4 + 7) * residual
    packing = {
        way: [one for one in steps[way] if "select_scatter" in one.what and one.kind == "elementwise"] for way in WAYS
    }
    assert sum(one.times * one.bytes for one in packing["none torch"]) >= 2 * 6 * residual
    assert not [one for one in packing["none short"] if one.times > 1]


@pytest.mark.prove
def test_what_is_computed_again_moves_more(steps: dict[str, list[Counted]]) -> None:
    moved = {way: sum(one.times * one.bytes for one in steps[way]) for way in WAYS}
    assert moved["none short"] < moved["none torch"] < moved["elementwise torch"]


def test_kernels_are_compiled_once_and_one_that_cannot_be_is_named(tmp_path: Path) -> None:
    """In a process of its own: it says which driver Triton has."""
    programs = [program_with(k_3="x + y"), program_with(k_4="x + y", k_5="x * y", other_0="x + nobody")]
    asked = tmp_path / "programs.json"
    asked.write_text(json.dumps(programs))
    script = "import json, sys; from tests.benchmarks.data import programs_case as p; p.of_code(json.load(open(sys.argv[1])))"
    done = subprocess.run([sys.executable, "-c", script, str(asked)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    graphs, kernels = json.loads(done.stdout)
    assert graphs == 2
    assert sorted(name.rpartition("_")[0] for name, _, _ in kernels) == ["k", "k", "other"]
    for name, codes, why in kernels:
        if name.startswith("other"):
            assert not codes
            assert "nobody" in why
        else:
            assert not why
            assert {configuration.partition(",")[0] for configuration, *_ in codes} >= {"XBLOCK: 1024"}
            assert all(instructions > 10 and registers > 4 and not stack for _, instructions, registers, stack in codes)


def program_with(**kernels: str) -> str:
    """What Inductor writes for kernels of two inputs, by their names: what they compute of x and y."""
    return "".join(
        f"""
{name} = async_compile.triton('{name}', '''
import triton
import triton.language as tl
from torch._inductor.runtime import triton_helpers, triton_heuristics
from torch._inductor.runtime.hints import DeviceProperties
triton_helpers.set_driver_to_gpu()

@triton_heuristics.pointwise(
    size_hints={{'x': 1048576}},
    filename=__file__,
    triton_meta={{
        'signature': {{'in_ptr0': '*fp32', 'in_ptr1': '*fp32', 'out_ptr0': '*fp32', 'xnumel': 'i32', 'XBLOCK': 'constexpr'}},
        'device': DeviceProperties(type='cuda', index=0, multi_processor_count=132, cc=90, major=9,
            regs_per_multiprocessor=65536, max_threads_per_multi_processor=2048, max_threads_per_block=1024, warp_size=32),
        'constants': {{}},
        'configs': [{{(0,): [['tt.divisibility', 16]]}}],
    }},
    inductor_meta={{'kernel_name': '{name}', 'num_load': 2, 'num_store': 1, 'num_reduction': 0}},
    min_elem_per_thread=0,
)
@triton.jit
def {name}(in_ptr0, in_ptr1, out_ptr0, xnumel, XBLOCK: tl.constexpr):
    index = tl.program_id(0) * XBLOCK + tl.arange(0, XBLOCK)
    inside = index < xnumel
    x = tl.load(in_ptr0 + index, inside)
    y = tl.load(in_ptr1 + index, inside)
    tl.store(out_ptr0 + index, {what}, inside)
''', device_str='cuda')
"""
        for name, what in kernels.items()
    )


@pytest.mark.prove
def test_a_gpu_would_have_code_for_all_that_a_step_runs() -> None:
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.data.programs_case",
        "tiny-vit",
        "elementwise",
        "short",
        str(PAIRS),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    graphs, kernels = json.loads(done.stdout)
    assert graphs == 10, "of two towers a block and the last block, and the norm before the first; forward and backward"
    assert [(name, why) for name, _, why in kernels if why] == []
    assert all(codes for _, codes, _ in kernels)
    assert {kind for name, _, _ in kernels for kind in ("layer_norm", "sigmoid") if kind in name} == {
        "layer_norm",
        "sigmoid",
    }
