"""How long a run may train: the limits of `trainer`, and what has been spent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from gpt_ablate.config.schema import Config
from gpt_ablate.models.gpt import GPT, flops_per_token
from gpt_ablate.utils.errors import Problem, UsageError


def check(config: Config, vocab_size: int) -> None:
    """Raise UsageError if `trainer.max_flops` does not pay for one step, before the model is built in earnest."""
    if config.trainer.max_flops is None:
        return
    try:
        with torch.device("meta"):
            per_token = flops_per_token(GPT(config, vocab_size))
    except Exception:  # a variant that cannot be built: its own run will fail and say why
        return
    total_steps(config, 1, lambda: per_token * config.data.batch_size * config.model.context_length)


def total_steps(config: Config, steps_per_epoch: int, flops_per_step: Callable[[], float]) -> int:
    """Optimiser steps until the first of the limits in epochs, steps, tokens and FLOPs.

    Raises UsageError if `trainer.max_flops` does not pay for one step.
    """
    limits = config.trainer
    steps = [limits.max_steps] if limits.max_steps else []
    if limits.max_epochs is not None:
        steps.append(limits.max_epochs * steps_per_epoch)
    if limits.max_tokens is not None:
        steps.append(limits.max_tokens // (config.data.batch_size * config.model.context_length))
    if limits.max_flops is not None:
        if limits.max_flops < (of_step := flops_per_step()):
            allowed = f"at least one step of this model: {of_step:.4g} FLOPs"
            raise UsageError([Problem("trainer.max_flops", limits.max_flops, allowed)])
        steps.append(int(limits.max_flops // of_step))
    return min(steps)


def training_seconds(history: Iterable[Mapping[str, Any]], tokens_per_step: int) -> list[float]:
    """Seconds of each optimiser step in a run's metrics; evaluations, samples and checkpoints take none of them."""
    return [tokens_per_step / line["tokens_per_second"] for line in history if "tokens_per_second" in line]
