"""What an engine's optimizer holds on this process, which numbers of which parameters, under each stage of ZeRO.

DeepSpeed's own save and load are not used: they pickle, they need the same number of processes, and they widen moments to fp32. This reads
and writes the flat tensors themselves, which takes a few of DeepSpeed's names that are not public (others: gradient_norm.py, zero.py).
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, cast

import torch
import torch.distributed

from pipeline.contracts.config import StrictModel
from trainer.optim import HalfAdamW
from trainer.zero import Engine, gathered


class Piece(NamedTuple):
    """`length` numbers of parameter `name`, from its flat place `start` on, which lie from place `at` on in the flat tensor."""

    name: str
    start: int
    at: int
    length: int


class Layout(StrictModel):
    """What one flat tensor of `numel` numbers holds. What no piece covers is padding."""

    numel: int
    block: int
    """Numbers that share one scale in the moments."""
    pieces: tuple[Piece, ...]

    def padding(self) -> list[slice]:
        """The places that no piece covers."""
        gaps, end = [], 0
        for piece in sorted(self.pieces, key=lambda piece: piece.at):
            if piece.at > end:
                gaps.append(slice(end, piece.at))
            end = piece.at + piece.length
        return gaps if end == self.numel else [*gaps, slice(end, self.numel)]


class Partition(NamedTuple):
    """A tensor of master weights that the optimizer steps on this process, which is its key there, and what lies where in it."""

    master: torch.Tensor
    layout: Layout


def base_optimizer(engine: Engine) -> torch.optim.Optimizer:
    """The optimizer that `start_engine` was given, out of DeepSpeed's wrapping."""
    wrapped = engine.optimizer if engine.zero_optimization_stage() == 0 else cast(Any, engine.optimizer).optimizer
    return cast(torch.optim.Optimizer, wrapped)


def of(engine: Engine) -> list[Partition]:
    """The masters of this process: without ZeRO the parameters themselves, else flat tensors with this process's share of a group."""
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    groups = base_optimizer(engine).param_groups
    wrapper = cast(Any, engine.optimizer)
    stage = engine.zero_optimization_stage()
    if stage == 0:
        return [
            _partition(parameter, group, [Piece(names[id(parameter)], 0, 0, parameter.numel())])
            for group in groups
            for parameter in group["params"]
        ]
    if stage == 3:
        return [
            _partition(master, groups[wrapper.sub_group_to_group_id[number]], _stage_3_pieces(parameters, names))
            for number, (master, parameters) in enumerate(
                zip(wrapper.fp32_partitioned_groups_flat, wrapper.fp16_groups, strict=True)
            )
        ]
    pieces: list[list[Piece]] = [[] for _ in groups]
    for parameter in engine.module.parameters():
        share = getattr(parameter, "_hp_mapping", None)
        if share is not None:
            here, there = share.lp_fragment_address, share.hp_fragment_address
            pieces[share.param_group_index].append(Piece(names[id(parameter)], here.start, there.start, here.numel))
    return [_partition(group["params"][0], group, found) for group, found in zip(groups, pieces, strict=True)]


def _partition(master: torch.Tensor, group: dict[str, Any], pieces: Iterable[Piece]) -> Partition:
    return Partition(master, Layout(numel=master.numel(), block=group["block_size"], pieces=tuple(pieces)))


def _stage_3_pieces(parameters: list[Any], names: dict[int, str]) -> Iterator[Piece]:
    """Stage 3 gives each process an equal part of each parameter, the last ones padded, one after the other."""
    at = 0
    for parameter in parameters:
        part = parameter.partition_numel()
        start = torch.distributed.get_rank() * part
        count = min(part, parameter.ds_numel - start)
        if count > 0:
            yield Piece(names[id(parameter)], start, at, count)
        at += part


def masters(engine: Engine) -> list[torch.Tensor]:
    """The master weights that this process holds, in the optimizer's order: flat under ZeRO, the parameters themselves without."""
    return [part.master for part in of(engine)]


def place(engine: Engine, optimizer: HalfAdamW) -> None:
    """Tell the optimizer which numbers of the model each of its tensors holds, so that no two draw the same noise.

    Parameters lie one after the other in that order, under any stage and number of processes; padding comes after the last of them.
    """
    starts, end = {}, 0
    for name, shape in shapes(engine).items():
        starts[name] = end
        end += torch.Size(shape).numel()
    for part in of(engine):
        spans = {piece.at: (starts[piece.name] + piece.start, piece.length) for piece in part.layout.pieces}
        spans |= {gap.start: (end, gap.stop - gap.start) for gap in part.layout.padding()}
        optimizer.place(part.master, [spans[at] for at in sorted(spans)])


def publish(engine: Engine) -> None:
    """Give the module the weights that the masters have, as the end of a step does. Collective."""
    wrapper = cast(Any, engine.optimizer)
    if engine.zero_optimization_stage() == 3:
        wrapper._partition_all_parameters()
        for number in range(len(wrapper.fp16_groups)):
            wrapper._reassign_or_swap_out_partitioned_parameters(number)
        if wrapper.persistent_parameters:
            wrapper.persistent_parameters[0].all_gather(wrapper.persistent_parameters)
    elif engine.zero_optimization_stage():
        wrapper.update_lp_params()


def shapes(engine: Engine) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter that is trained, by name."""
    return {
        name: tuple(getattr(parameter, "ds_shape", parameter.shape))
        for name, parameter in engine.module.named_parameters()
        if parameter.requires_grad
    }


def frozen_and_buffers(engine: Engine) -> dict[str, torch.Tensor]:
    """Frozen parameters and buffers by name, on the CPU; {} on all processes but the first. Collective."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in _kept_tensors(engine):
        with gathered(tensor, modified=False):
            if torch.distributed.get_rank() == 0:
                found[name] = tensor.detach().to("cpu", copy=True).contiguous()
    return found


def set_frozen_and_buffers(engine: Engine, values: Mapping[str, torch.Tensor]) -> None:
    """Give frozen parameters and buffers the values that they had. Every process has all of `values`. Collective."""
    for name, tensor in _kept_tensors(engine):
        with gathered(tensor, modified=True), torch.no_grad():
            tensor.copy_(values[name])


def _kept_tensors(engine: Engine) -> Iterator[tuple[str, torch.Tensor]]:
    persistent = engine.module.state_dict(keep_vars=True).keys()
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            yield name, parameter
    for name, buffer in engine.module.named_buffers():
        if name in persistent:
            yield name, buffer


def buffers(engine: Engine) -> list[torch.Tensor]:
    """Copies of the module's buffers, on its device; each process has its own running statistics of batch norm."""
    return [buffer.detach().clone() for buffer in engine.module.buffers()]


def set_buffers(engine: Engine, values: Iterable[torch.Tensor]) -> None:
    """Give the buffers the values that `buffers` copied."""
    with torch.no_grad():
        for buffer, value in zip(engine.module.buffers(), values, strict=True):
            buffer.copy_(value)


_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis", "min_scale")


def loss_scaler(engine: Engine) -> dict[str, float] | None:
    """Where the dynamic loss scaler of fp16 stands; None in other precisions."""
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    return {key: getattr(scaler, key) for key in _SCALER} if getattr(scaler, "dynamic", False) else None


def set_loss_scaler(engine: Engine, values: dict[str, float]) -> None:
    for key in _SCALER:
        setattr(cast(Any, engine.optimizer).loss_scaler, key, values[key])
