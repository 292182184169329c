"""Learning-rate schedules: the factor on `optimizer.lr` at a step."""

from __future__ import annotations

import math
from collections.abc import Callable

from gpt_ablate.config.registry import Registry
from gpt_ablate.config.schema import Fraction, Steps

Schedule = Callable[..., float]
"""(step, total steps), step counted from 1 -> factor in [0, 1]."""

schedules: Registry[Schedule] = Registry("schedule", ["step", "total"])


@schedules.register("constant")
def constant(step: int, total: int) -> float:
    """1 throughout."""
    return 1.0


@schedules.register("warmup")
def warmup(step: int, total: int, *, warmup_steps: Steps) -> float:
    """Linear from 1/warmup_steps to 1, then constant."""
    return min(1.0, step / warmup_steps) if warmup_steps > 0 else 1.0


@schedules.register("cosine")
def cosine(step: int, total: int, *, warmup_steps: Steps, final_fraction: Fraction = 0.1) -> float:
    """Linear warm-up, then half a cosine down to `final_fraction` at the last step (Loshchilov & Hutter 2017)."""
    if step <= warmup_steps:
        return step / warmup_steps
    progress = (step - warmup_steps) / max(1, total - warmup_steps)
    return final_fraction + (1 - final_fraction) * (1 + math.cos(math.pi * progress)) / 2
