"""The benchmark `traffic`: bytes that can be said by hand, a step's products as they are computed, programs that a GPU would have."""

import json
import subprocess
import sys
import warnings
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

    def counted(graph: Any, inputs: list[Any], options: dict[str, Any]) -> list[Any]:
        graphs.append(graph)
        return kernels_of(graph, inputs, options)

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
