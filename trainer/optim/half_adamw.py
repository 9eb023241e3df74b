"""AdamW whose two moments are fp16: 4 bytes a parameter and a little, instead of 8, before and after a
resume.

The arithmetic is AdamW's in fp32 (Loshchilov and Hutter, "Decoupled Weight Decay Regularization"); only
what is kept between steps is half precision, in blocks with a scale (`blocks.py`). Of the second moment its
square root is kept, which halves its range of exponents, and it is rounded stochastically: with beta2 =
0.999 a step moves it by less than half a unit of fp16, and rounding to nearest would freeze it. The noise
is a function of (seed, step, offset), so a resumed run repeats it.

What ZeRO does to an optimizer shapes the rest. It hands over flat fp32 partitions, so nothing here looks at
shapes; partitions may be empty. `torch.optim.Optimizer.load_state_dict` would cast the moments to fp32 in
silence: ours puts back what was saved, bit for bit. Plain moments of any float type under AdamW's own names
(`exp_avg`, `exp_avg_sq`), which a foreign checkpoint leaves, are taken over and quantised at the next step.
A bound on a parameter (CLIP's logit_scale <= ln 100) is kept here, in the master weights: clamping the
module's copy under ZeRO is undone by the next step.
"""

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainer.optim.blocks import block_count, dequantise, quantise, rounding_noise

_CHUNK = 1 << 20
"""Numbers handled at a time: bounds the fp32 copies of the moments to a few MiB. The result does not depend on it."""
_CPU_CHUNK = 1 << 18
"""The same on a CPU, whose caches are small and where starting an operation costs little."""
_FOREIGN = ("exp_avg", "exp_avg_sq")


class HalfAdamW(Optimizer):
    """AdamW with fp16 moments in blocks of `block_size`; 4 + 8 / block_size bytes of state a parameter.

    params: tensors or groups. A group may set any of lr, betas, eps, weight_decay, and `max_value`: its
    parameters are held at or below that value after each step.
    seed: of the rounding of the second moment. Gradients must be finite: whoever drives the optimizer skips
    the step otherwise. State of a parameter p: `step` (int), `moment` and `root` (fp16, shape of p),
    `moment_scale` and `root_scale` (fp32).
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
        block_size: int = 256,
        seed: int = 0,
    ) -> None:
        if lr < 0 or eps <= 0 or weight_decay < 0 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"out of range: lr {lr}, eps {eps}, weight_decay {weight_decay}, betas {betas}")
        if block_size < 1 or _CPU_CHUNK % block_size:
            raise ValueError(f"block_size must be a power of two up to {_CPU_CHUNK}, not {block_size}")
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "max_value": max_value,
            "block_size": block_size,
            "seed": seed,
        }
        super().__init__(params, defaults)

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
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    _prepare(state, parameter, group["block_size"])
                    _update(parameter, parameter.grad, state, group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a saved state; every tensor keeps its dtype. Raises ValueError where it does not fit the parameters."""
        saved = state_dict["state"]
        super().load_state_dict({**state_dict, "state": {}})
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=True):
            entry = saved.get(number)
            if entry is None:
                continue
            for key in ("moment", "root", *_FOREIGN):
                if key in entry and entry[key].numel() != parameter.numel():
                    raise ValueError(
                        f"optimizer state {key!r} of parameter {number} has {entry[key].numel():,} numbers, the parameter "
                        f"{parameter.numel():,}; resume on as many processes and with the ZeRO stage that saved it"
                    )
            self.state[parameter] = {
                key: value.to(parameter.device, copy=True) if isinstance(value, Tensor) else value
                for key, value in entry.items()
            }

    def state_bytes(self) -> int:
        """Bytes that the moments and their scales take now, on this process."""
        return sum(
            value.numel() * value.element_size()
            for state in self.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        )


def _prepare(state: dict[str, Any], parameter: Tensor, block: int) -> None:
    """Make the state of a new parameter, or quantise plain moments that came from elsewhere."""
    foreign = [state.pop(key, None) for key in _FOREIGN]
    state["step"] = int(state.get("step", 0))
    if "moment" in state:
        return
    for name, plain in zip(("moment", "root"), foreign, strict=True):
        half = torch.zeros(parameter.shape, dtype=torch.float16, device=parameter.device)
        blocks = block_count(parameter.numel(), block)
        scales = torch.zeros(blocks, dtype=torch.float32, device=parameter.device)
        if plain is not None:
            values = plain.to(parameter.device, torch.float32).reshape(-1)
            stored, found = quantise(values.sqrt() if name == "root" else values, block)
            half.view(-1).copy_(stored)
            scales.copy_(found)
        state[name], state[f"{name}_scale"] = half, scales


def _update(parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    """AdamW on one parameter, a chunk of its flat order at a time."""
    state["step"] += 1
    step, block = state["step"], group["block_size"]
    beta1, beta2 = group["betas"]
    lr, decay, bound = float(group["lr"]), group["weight_decay"], group["max_value"]
    step_size = lr / (1 - beta1**step)
    root_correction = (1 - beta2**step) ** 0.5
    weights = parameter.detach().reshape(-1)
    gradients = gradient.reshape(-1)
    moments, roots = state["moment"].view(-1), state["root"].view(-1)
    chunk = _CPU_CHUNK if weights.device.type == "cpu" else _CHUNK
    for start in range(0, len(weights), chunk):
        at = slice(start, min(start + chunk, len(weights)))
        blocks = slice(start // block, block_count(at.stop, block))
        g = gradients[at].float()
        m = dequantise(moments[at], state["moment_scale"][blocks], block).lerp_(g, 1 - beta1)
        r = dequantise(roots[at], state["root_scale"][blocks], block)
        r = r.square_().mul_(beta2).addcmul_(g, g, value=1 - beta2).sqrt_()
        w = weights[at].float().mul_(1 - lr * decay)  # fp32 weights are changed in place
        w.addcdiv_(m, r.div(root_correction).add_(group["eps"]), value=-step_size)
        weights[at] = w if bound is None else w.clamp_(max=bound)
        moments[at], state["moment_scale"][blocks] = quantise(m, block)
        noise = rounding_noise(group["seed"], step, start, len(w), w.device)
        roots[at], state["root_scale"][blocks] = quantise(r, block, noise)
    if weights.data_ptr() != parameter.data_ptr():
        # A parameter that is not contiguous was copied to be flattened.
        parameter.copy_(weights.view_as(parameter))
