"""The learning rate as a pure function of the step, so that a resumed run needs no scheduler state."""

import math


def cosine_with_warmup(step: int, *, base_lr: float, warmup_steps: int, total_steps: int) -> float:
    """The rate of step `step` (from 0): a straight line up to base_lr, then half a cosine that would reach
    0 at total_steps.

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
