"""Which parameters decay, and which are bounded: the paper's rule as parameter groups.

Decoupled weight decay acts on all weights that are not gains or biases (paper, section 2.5): embeddings,
positions and the class token decay, the two parameters of every normalisation and all biases do not. The
logit scale is a group of its own, because its bound ln 100 must be kept in the optimizer, which sees no
names.
"""

from typing import Any

from torch import nn

from trainer.models.clip import MAX_LOGIT_SCALE

_NORMALISATIONS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups "decay", "no_decay" and "logit_scale" of the trainable parameters, in the model's order; no
    empty group.

    Each has `params`, `name`, `weight_decay`, and `max_value` (ln 100 for the logit scale, otherwise None).
    """
    gains = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, _NORMALISATIONS)
        for parameter in module.parameters(recurse=False)
    }
    decay: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    scale: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        last = name.rpartition(".")[2]
        if last == "logit_scale":
            scale.append(parameter)
        elif id(parameter) in gains or last.endswith("bias"):
            rest.append(parameter)
        else:
            decay.append(parameter)
    groups: list[dict[str, Any]] = [
        {"name": "decay", "params": decay, "weight_decay": weight_decay, "max_value": None},
        {"name": "no_decay", "params": rest, "weight_decay": 0.0, "max_value": None},
        {"name": "logit_scale", "params": scale, "weight_decay": 0.0, "max_value": MAX_LOGIT_SCALE},
    ]
    return [group for group in groups if group["params"]]
