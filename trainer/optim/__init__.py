"""AdamW with fp16 moments and stochastic rounding, the paper's parameter groups, learning-rate schedules, the weights' moving average."""

from trainer.optim.ema import Ema
from trainer.optim.groups import parameter_groups
from trainer.optim.half_adamw import HalfAdamW
from trainer.optim.schedule import Schedule, constant_with_cooldown, cosine_with_warmup, learning_rate

__all__ = [
    "Ema",
    "HalfAdamW",
    "Schedule",
    "constant_with_cooldown",
    "cosine_with_warmup",
    "learning_rate",
    "parameter_groups",
]
