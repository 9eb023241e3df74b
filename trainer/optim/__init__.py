"""AdamW with fp16 moments, the paper's parameter groups, and the learning-rate schedule."""

from trainer.optim.groups import parameter_groups
from trainer.optim.half_adamw import HalfAdamW
from trainer.optim.schedule import cosine_with_warmup

__all__ = ["HalfAdamW", "cosine_with_warmup", "parameter_groups"]
