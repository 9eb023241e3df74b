"""The same numbers under every layout: cut at random, and in real engines under every stage of ZeRO with 1, 2 and 4 processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ports import free_port
from tests.trainer.laid_out import STAGES
from trainer.checkpoint.layout import MASTER, Flat, Saved, cut, whole
from trainer.optim.blocks import dequantise, quantise
from trainer.partitions import Layout, Piece

SHAPES: dict[str, tuple[int, ...]] = {"a": (7, 3), "b": (1,), "c": (40,)}


def saved(flats: list[Flat]) -> list[Saved]:
    return [Saved(flat.layout, flat.counts, lambda flat=flat: flat.values) for flat in flats]  # type: ignore[misc]


def layout_of_processes(count: int, block: int) -> list[Layout]:
    """All parameters in one row, padded and split into equal parts, worked out number by number."""
    row = [(name, place) for name, shape in SHAPES.items() for place in range(torch.Size(shape).numel())]
    part = -(-len(row) // count)
    layouts = []
    for rank in range(count):
        pieces: list[Piece] = []
        for at, (name, place) in enumerate(row[rank * part : (rank + 1) * part]):
            if pieces and pieces[-1].name == name:
                pieces[-1] = pieces[-1]._replace(length=pieces[-1].length + 1)
            else:
                pieces.append(Piece(name, place, at, 1))
        layouts.append(Layout(numel=part, block=block, pieces=tuple(pieces)))
    return layouts


def filled(layouts: list[Layout], numbers: dict[str, torch.Tensor]) -> list[Flat]:
    """Flat tensors that hold `numbers`, filled place by place."""
    flats = []
    for layout in layouts:
        master = torch.zeros(layout.numel)
        for piece in layout.pieces:
            for step in range(piece.length):
                master[piece.at + step] = numbers[piece.name][piece.start + step]
        moment, scale = quantise(master / 64, layout.block)
        flats.append(
            Flat(layout, {MASTER: master, "moment": moment, "moment_scale": scale, "ema": master.half()}, {"step": 3})
        )
    return flats


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 4, 16]), st.sampled_from([1, 4, 16]))
@settings(max_examples=60, deadline=None)
def test_any_layout_cuts_to_any_other(before: int, after: int, block: int, other_block: int) -> None:
    numbers = {name: torch.randint(1, 1000, (torch.Size(shape).numel(),)).float() for name, shape in SHAPES.items()}
    source = filled(layout_of_processes(before, block), numbers)
    wanted = filled(layout_of_processes(after, other_block), numbers)
    for ours, theirs in zip(cut(saved(source), [flat.layout for flat in wanted]), wanted, strict=True):
        assert ours.counts == {"step": 3}
        assert ours.values.keys() == theirs.values.keys()
        for key, value in theirs.values.items():
            assert ours.values[key].dtype == value.dtype
            assert torch.equal(ours.values[key], value), key
    by_name = cut(saved(source), whole(SHAPES), only="moment")
    for flat in by_name:
        assert torch.equal(flat.values["moment"], numbers[flat.layout.pieces[0].name] / 64)


def test_moments_survive_unless_another_block_holds_far_larger_ones() -> None:
    """2^28 times smaller than its block's largest keeps all bits, 2^40 times smaller is lost."""
    values = torch.tensor([1.0, 2.0**-27 * 1.5, 2.0**-40, 3.0])
    moment, scale = quantise(values, 1)
    row = Layout(numel=4, block=1, pieces=(Piece("a", 0, 0, 4),))
    source = [Flat(row, {MASTER: values, "moment": moment, "moment_scale": scale}, {})]
    (flat,) = cut(saved(source), [row.model_copy(update={"block": 4})])
    assert dequantise(flat.values["moment"], flat.values["moment_scale"], 4).tolist() == [1.0, 2.0**-27 * 1.5, 0.0, 3.0]


def test_what_no_piece_covers_is_padding() -> None:
    pieces = (Piece("b", 0, 6, 2), Piece("a", 4, 1, 3), Piece("c", 0, 4, 1))
    assert Layout(numel=10, block=1, pieces=pieces).padding() == [slice(0, 1), slice(5, 6), slice(8, 10)]
    assert Layout(numel=8, block=1, pieces=pieces[:1]).padding() == [slice(0, 6)]
    assert Layout(numel=3, block=1, pieces=()).padding() == [slice(0, 3)]
    assert Layout(numel=3, block=1, pieces=(Piece("a", 0, 0, 3),)).padding() == []


def test_numbers_that_nobody_saved_are_missed() -> None:
    flats = filled(
        layout_of_processes(3, 4), {name: torch.ones(torch.Size(shape).numel()) for name, shape in SHAPES.items()}
    )
    with pytest.raises(ValueError, match="of 40 numbers of c are in the checkpoint"):
        cut(saved(flats[:2]), whole(SHAPES))


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("worlds", "cases"),
    [
        # fp32 under every stage, bf16 under stage 3
        pytest.param((1, 2), 5, id="1-2", marks=pytest.mark.prove),
        pytest.param((2, 1, 4), len(STAGES), id="2-1-4", marks=pytest.mark.prove),
    ],
)
def test_every_stage_finds_what_every_other_saved(worlds: tuple[int, ...], cases: int, tmp_path: Path) -> None:
    """One group after the other, each of another size; every group tries all its cases in one start."""
    done = 0
    for number, world in enumerate(worlds):
        answers = run_group(world, tmp_path, cases, worlds[:number])
        assert all(answer.endswith(" same") for answer in answers), "\n".join(answers)
        same_precision = sum(ours == theirs for _, ours in STAGES[:cases] for _, theirs in STAGES[:cases])
        assert len(answers) == 3 * cases + number * same_precision + 1
        done += len(answers)
    print(f"{done} cases")


def run_group(world: int, folder: Path, cases: int, others: tuple[int, ...]) -> list[str]:
    """What process 0 of `python -m tests.trainer.laid_out` has printed."""
    place = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "tests.trainer.laid_out",
        str(folder),
        str(cases),
        *map(str, others),
    ]
    environment = {**os.environ, **place, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    group = [
        subprocess.Popen(
            command,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    said = [process.communicate(timeout=600) for process in group]
    assert all(process.returncode == 0 for process in group), "\n".join(f"{out}\n{error}" for out, error in said)
    return [line for line in said[0][0].splitlines() if line.startswith(f"{world}: ")]
