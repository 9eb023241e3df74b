"""The learning rate as a pure function of the step, so that a resumed run needs no scheduler state."""

import math
from typing import Literal

Schedule = Literal["cosine", "constant"]


def learning_rate(
    step: int, schedule: Schedule, *, base_lr: float, warmup_steps: int, cooldown_steps: int, total_steps: int
) -> float:
    """The rate of step `step` (from 0) of a run under `schedule`; only "constant" has a cooldown."""
    if schedule == "cosine":
        return cosine_with_warmup(step, base_lr=base_lr, warmup_steps=warmup_steps, total_steps=total_steps)
    return constant_with_cooldown(
        step, base_lr=base_lr, warmup_steps=warmup_steps, cooldown_steps=cooldown_steps, total_steps=total_steps
    )


def cosine_with_warmup(step: int, *, base_lr: float, warmup_steps: int, total_steps: int) -> float:
    """A straight line up to base_lr, then half a cosine that would reach 0 at total_steps.

    Step warmup_steps - 1 and step warmup_steps both run at base_lr; from total_steps on the rate is 0.
    Raises ValueError for a negative step or a warm-up longer than the run.
    """
    if step < 0 or not 0 <= warmup_steps <= total_steps:
        raise ValueError(f"step {step}, warmup_steps {warmup_steps}, total_steps {total_steps} do not fit together")
    if step < warmup_steps:
        return base_lr * (step + 1) / warmup_steps
    if step >= total_steps:
        return 0.0
    done = (step - warmup_steps) / (total_steps - warmup_steps)
    return base_lr * 0.5 * (1 + math.cos(math.pi * done))


def constant_with_cooldown(
    step: int, *, base_lr: float, warmup_steps: int, cooldown_steps: int, total_steps: int
) -> float:
    """A straight line up to base_lr, base_lr, and over the last cooldown_steps a straight line that would reach 0 at total_steps.

    Step total_steps - cooldown_steps still runs at base_lr; from total_steps on the rate is 0.
    Raises ValueError for a negative step or parts longer than the run.
    """
    if step < 0 or warmup_steps < 0 or cooldown_steps < 0 or warmup_steps + cooldown_steps > total_steps:
        raise ValueError(
            f"step {step}, warmup_steps {warmup_steps}, cooldown_steps {cooldown_steps}, total_steps {total_steps} do not fit together"
        )
    if step < warmup_steps:
        return base_lr * (step + 1) / warmup_steps
    if step >= total_steps:
        return 0.0
    return base_lr * min(1.0, (total_steps - step) / cooldown_steps) if cooldown_steps else base_lr
