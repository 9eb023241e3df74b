"""Where torch computes: a name of a configuration to a device that is there."""

from __future__ import annotations

import torch

from pipeline.contracts.errors import InputError


def usable(name: str) -> torch.device:
    """The device `name`, as torch spells it. Raises InputError where it is none, or torch sees no such GPU."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device: {name!r} is no device of torch; use for example 'cpu' or 'cuda'") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device: {name!r} is not there (torch sees no GPU); use device=cpu")
    return device
