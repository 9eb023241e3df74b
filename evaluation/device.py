"""Where torch computes: a name of a configuration to a device that is there."""

from __future__ import annotations

import torch

from pipeline.contracts.errors import InputError


def usable(name: str, key: str = "device") -> torch.device:
    """The device `name`, as torch spells it, that the setting `key` asks for. Raises InputError where it is none, or torch cannot compute
    there."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"{key}: {name!r} is no device of torch; use for example 'cpu' or 'cuda'") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"{key}: {name!r} is not there (torch sees no GPU); use {key}=cpu")
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError):
        raise InputError(f"{key}: {name!r} is not there (this torch cannot compute on it); use {key}=cpu") from None
    return device
