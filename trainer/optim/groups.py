"""Which parameters decay, which are bounded, which are rounded stochastically: the paper's rules as parameter groups.

Decoupled weight decay acts on all weights that are not gains or biases (paper, section 2.5): embeddings, positions and the class token
decay, the two parameters of every normalisation and all biases do not. The logit scale is a group of its own, because its bound ln 100 must
be kept in the optimizer, which sees no names. Where the text tower's weights are half precision (the same section: "half-precision
stochastically rounded text encoder weights"), the text tower's parameters are groups of their own: all that is neither under `visual` nor
the scale and the bias of the logits.
"""

from typing import Any

from torch import nn

from trainer.models.clip import MAX_LOGIT_SCALE
from trainer.optim.rounding import Grid

_NORMALISATIONS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)
_OF_THE_LOGITS = ("logit_scale", "logit_bias")


def parameter_groups(
    model: nn.Module, weight_decay: float, *, text_stochastic: Grid | None = None
) -> list[dict[str, Any]]:
    """Groups "decay", "no_decay" and "logit_scale" of the trainable parameters, in the model's order; no empty group.

    Each has `params`, `name`, `weight_decay`, and `max_value` (ln 100 for the logit scale, otherwise None). With `text_stochastic` the text
    tower's parameters are in "text_decay" and "text_no_decay" instead, whose `stochastic` is that grid.
    """
    gains = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, _NORMALISATIONS)
        for parameter in module.parameters(recurse=False)
    }
    text = {"stochastic": text_stochastic}
    groups: dict[str, dict[str, Any]] = {
        "decay": {"weight_decay": weight_decay, "max_value": None},
        "no_decay": {"weight_decay": 0.0, "max_value": None},
        "text_decay": {"weight_decay": weight_decay, "max_value": None, **text},
        "text_no_decay": {"weight_decay": 0.0, "max_value": None, **text},
        "logit_scale": {"weight_decay": 0.0, "max_value": MAX_LOGIT_SCALE},
    }
    found: dict[str, list[nn.Parameter]] = {name: [] for name in groups}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        last = name.rpartition(".")[2]
        kind = "no_decay" if id(parameter) in gains or last.endswith("bias") else "decay"
        if text_stochastic is not None and not name.startswith("visual.") and last not in _OF_THE_LOGITS:
            kind = f"text_{kind}"
        found["logit_scale" if last == "logit_scale" else kind].append(parameter)
    return [{"name": name, "params": found[name], **group} for name, group in groups.items() if found[name]]
