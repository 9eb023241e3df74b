"""AdamW whose two moments are fp16: 4 bytes a parameter and a little, instead of 8, before and after a resume.

The arithmetic is AdamW's in fp32 (Loshchilov and Hutter, "Decoupled Weight Decay Regularization"); only what is kept between steps is half
precision, in blocks with a scale (`blocks.py`). Of the second moment its square root is kept, which halves its range of exponents, and it
is rounded stochastically: with beta2 = 0.999 a step moves it by less than half a unit of fp16, and rounding to nearest would freeze it. The
weights of a group with `stochastic` are rounded in the same way, onto the grid of a half-precision type (`rounding.py`), inside the step:
whatever copies them to that type afterwards copies them exactly.

What ZeRO does to an optimizer shapes the rest. It hands over flat partitions, so nothing here looks at shapes; partitions may be empty, and
whoever made them says by `place` which numbers of the model they hold, because the random numbers hang on that.
`torch.optim.Optimizer.load_state_dict` would cast the moments to fp32 in silence: ours puts back what was saved, bit for bit, and what
comes in any other type, under our names or AdamW's own (`exp_avg`, `exp_avg_sq`), is quantised. A bound on a parameter (CLIP's
logit_scale <= ln 100) is kept here, in the master weights: clamping the module's copy under ZeRO is undone by the next step.
"""

import functools
import logging
import subprocess
from collections.abc import Callable, Iterable, Sequence
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainer.optim import update
from trainer.optim.blocks import block_count, quantise
from trainer.optim.rounding import Grid, Span, largest_on

log = logging.getLogger("trainer")

_ADAMW_NAMES = {"moment": "exp_avg", "root": "exp_avg_sq"}
"""What torch's AdamW calls what we keep; of the second it keeps the square."""
_DTYPES = {
    name + suffix: dtype for name in _ADAMW_NAMES for suffix, dtype in (("", torch.float16), ("_scale", torch.float32))
}


class HalfAdamW(Optimizer):
    """AdamW with fp16 moments in blocks of `block_size`; 4 + 8 / block_size bytes of state a parameter.

    params: tensors or groups. A group may set any of lr, betas, eps, weight_decay, and
      max_value: its parameters are held at or below that value after each step;
      stochastic: its parameters are rounded stochastically onto the grid of "fp16" or "bf16" numbers; None writes them in their own type,
        to nearest.
    seed: of all rounding. Gradients must be finite: whoever drives the optimizer skips the step otherwise. State of a parameter p: `step`
    (int), `moment` and `root` (fp16, shape of p), `moment_scale` and `root_scale` (fp32).

    A group's `flat_offset` is the place of its first number in the flat order of all parameters, as given here: groups one after the other.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 5e-4,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-6,
        weight_decay: float = 0.2,
        *,
        max_value: float | None = None,
        stochastic: Grid | None = None,
        block_size: int = 256,
        seed: int = 0,
    ) -> None:
        if lr < 0 or eps <= 0 or weight_decay < 0 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"out of range: lr {lr}, eps {eps}, weight_decay {weight_decay}, betas {betas}")
        if block_size < 1 or update.CPU_CHUNK % block_size:
            raise ValueError(f"block_size must be a power of two up to {update.CPU_CHUNK}, not {block_size}")
        if stochastic not in (None, "fp16", "bf16"):
            raise ValueError(f"stochastic must be 'fp16', 'bf16' or None, not {stochastic!r}")
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "max_value": max_value,
            "stochastic": stochastic,
            "block_size": block_size,
            "seed": seed,
        }
        self._places: dict[Tensor, tuple[Span, ...]] = {}
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch.optim; a group without `flat_offset` comes after all others."""
        taken = sum(parameter.numel() for group in self.param_groups for parameter in group["params"])
        super().add_param_group(param_group)
        self.param_groups[-1].setdefault("flat_offset", taken)

    def place(self, partition: Tensor, spans: Sequence[Span]) -> None:
        """Say which numbers of the flat order `partition` holds, one span after the other. Kept in no state: it is ZeRO's doing.

        Raises ValueError where the counts do not add up to the partition's.
        """
        if sum(count for _, count in spans) != partition.numel():
            raise ValueError(
                f"spans {list(spans)!r} do not add up to the {partition.numel():,} numbers of the partition"
            )
        self._places[partition] = tuple(spans)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every parameter that has a gradient; `closure` as in torch.optim."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            first = group["flat_offset"]
            for parameter in group["params"]:
                spans = self._places.get(parameter, ((first, parameter.numel()),))
                first += parameter.numel()
                if parameter.grad is None:
                    continue
                if not _is_ours(self.state[parameter]):
                    self.state[parameter] = _adopt(self.state[parameter], parameter, group["block_size"])
                _update(parameter, parameter.grad, self.state[parameter], group, spans)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a saved state, its moments as fp16 whatever they were. Raises ValueError where it does not fit the parameters."""
        ours = [dict(group) for group in self.param_groups]
        saved = state_dict["state"]
        super().load_state_dict({**state_dict, "state": {}})
        for group, before in zip(self.param_groups, ours, strict=True):
            for key, value in before.items():
                group.setdefault(key, value)  # what an AdamW that is not ours does not save
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        places = [(parameter, group) for group in self.param_groups for parameter in group["params"]]
        for number, (parameter, group) in zip(numbers, places, strict=True):
            if number in saved:
                self.state[parameter] = _adopt(saved[number], parameter, group["block_size"], f" of parameter {number}")

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_places", {})  # a copy of an optimizer is one of other tensors

    def state_bytes(self) -> int:
        """Bytes that the moments and their scales take now, on this process."""
        return sum(
            value.numel() * value.element_size()
            for state in self.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        )


def _is_ours(state: dict[str, Any]) -> bool:
    return all(key in state and state[key].dtype == dtype for key, dtype in _DTYPES.items())


def _adopt(entry: dict[str, Any], parameter: Tensor, block: int, whose: str = "") -> dict[str, Any]:
    """The state of `parameter` from what there is: nothing, ours, ours in other types, or that of torch's AdamW.

    All of it is copied, ours as it is, the rest as fp16: no moment is ever wider. Raises ValueError for other shapes, and for what AdamW
    does not keep.
    """
    held = set(entry) - {"step"}
    if held and held not in (set(_DTYPES), set(_ADAMW_NAMES.values())):
        raise ValueError(
            f"optimizer state{whose} has {sorted(held)!r}; known are {sorted(_DTYPES)!r} and {sorted(_ADAMW_NAMES.values())!r}"
        )
    state: dict[str, Any] = {"step": int(entry.get("step", 0))}
    for name, theirs in _ADAMW_NAMES.items():
        scale = f"{name}_scale"
        half = torch.zeros(parameter.shape, dtype=torch.float16, device=parameter.device)
        scales = torch.zeros(block_count(parameter.numel(), block), dtype=torch.float32, device=parameter.device)
        if name in entry:
            _check(entry[name], parameter.shape, f"{name!r}{whose}")
            _check(entry[scale], scales.shape, f"{scale!r}{whose}")
            if entry[scale].dtype == torch.float16:
                raise ValueError(
                    f"optimizer state {scale!r}{whose} is fp16, which cannot hold it; take a checkpoint with fp32"
                )
            # Where the types differ, the values are still fp16 numbers (or fewer bits of them) and powers of two.
            half.copy_(entry[name])
            scales.copy_(entry[scale])
        elif theirs in entry:
            _check(entry[theirs], parameter.shape, f"{theirs!r}{whose}")
            values = entry[theirs].to(parameter.device).reshape(-1)
            values = values.to(torch.promote_types(values.dtype, torch.float32))
            quantise((values.sqrt() if name == "root" else values).float(), block, out=(half.view(-1), scales))
        state[name], state[scale] = half, scales
    return state


def _check(found: Tensor, wanted: torch.Size, what: str) -> None:
    if found.shape != wanted:
        raise ValueError(
            f"optimizer state {what} has {found.numel():,} numbers, the parameter {wanted.numel():,}: shapes {list(found.shape)} and"
            f" {list(wanted)}; resume on as many processes and with the ZeRO stage that saved it"
        )


def _update(
    parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any], spans: Sequence[Span]
) -> None:
    """AdamW on one parameter."""
    state["step"] += 1
    step, grid = state["step"], group["stochastic"]
    if grid == "fp16" and parameter.dtype == torch.bfloat16:
        raise ValueError("stochastic='fp16' needs parameters of fp32 or fp16: bf16 would round them a second time")
    beta1, beta2 = group["betas"]
    # The correction of the second moment is taken to the step's size and to eps, which are numbers, and not to the moment.
    root_correction = (1 - beta2**step) ** 0.5
    rule = update.Rule(
        beta1=beta1,
        beta2=beta2,
        shrink=1 - float(group["lr"]) * group["weight_decay"],
        step_size=float(group["lr"]) * root_correction / (1 - beta1**step),
        eps=group["eps"] * root_correction,
        bound=_bound(group["max_value"], grid, parameter.dtype),
        grid=grid,
        block=group["block_size"],
        seed=group["seed"],
        step=step,
    )
    weights = parameter.detach().reshape(-1)
    moments = state["moment"].view(-1), state["moment_scale"], state["root"].view(-1), state["root_scale"]
    flat = update.Flat(weights, gradient.reshape(-1), *moments)
    fused = _fused() if weights.is_cuda else None
    if fused is not None and rule.block <= fused.LARGEST_BLOCK:
        fused.update(flat, rule, spans)
    else:
        update.update(flat, rule, spans)
    if weights.data_ptr() != parameter.data_ptr():
        # A parameter that is not contiguous was copied to be flattened.
        parameter.copy_(weights.view_as(parameter))


@functools.cache
def _fused() -> Any:
    """The fused kernel, or None where there is no Triton, or nothing that Triton could compile with."""
    try:
        from trainer.optim import fused  # heavy

        fused.start()
    except (ImportError, RuntimeError, OSError, subprocess.CalledProcessError) as error:
        log.warning(
            "no Triton kernel can be run (%s): the optimizer steps in plain PyTorch, which takes about ten times as long; it needs triton,"
            " a C compiler, Python's headers and a folder that can be written (TRITON_CACHE_DIR, by default in ~/.triton)",
            error,
        )
        return None
    return fused


def _bound(bound: float | None, grid: Grid | None, dtype: torch.dtype) -> float | None:
    """The largest number at or below the bound that the grid, or else the parameter's own type, has."""
    own: dict[torch.dtype, Grid] = {torch.float16: "fp16", torch.bfloat16: "bf16"}
    grid = grid or own.get(dtype)
    return bound if bound is None or grid is None else largest_on(grid, bound)
