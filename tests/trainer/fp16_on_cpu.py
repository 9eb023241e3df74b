"""fp16 weights and their loss scaling on any processor.

DeepSpeed refuses fp16 on a CPU for which oneDNN has no products in it, and the trainer on every CPU, where it is slow at best. torch
computes it all the same, and adds products up in fp32 as a GPU does. So tests ask of fp16 what they ask of the other precisions.
"""

from typing import Any

from trainer import zero
from trainer.config import PrecisionConfig


def allow() -> None:
    """Let this process train in fp16, on a CPU too."""
    from deepspeed.accelerator import get_accelerator  # heavy

    usual = zero.check_hardware
    accelerator: Any = type(get_accelerator())
    accelerator.is_fp16_supported = lambda _: True
    vars(zero).update(check_hardware=lambda config: usual(config.model_copy(update={"precision": PrecisionConfig()})))
