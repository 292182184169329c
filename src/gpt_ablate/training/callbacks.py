"""A user's callbacks: what they are given, and the guard that keeps them from changing a training value."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from gpt_ablate.config.metrics import Metric
from gpt_ablate.config.registry import Registry
from gpt_ablate.config.rules import rule
from gpt_ablate.config.schema import Config
from gpt_ablate.models.gpt import GPT
from gpt_ablate.training.optimizers import Optimizer
from gpt_ablate.utils.errors import Problem

callbacks: Registry[Callable[..., Callback]] = Registry("callbacks")
Scalars = Mapping[str, float]
"""Name -> value: what a callback adds to the line of metrics.jsonl."""


@dataclass(frozen=True)
class RunView:
    """A run as a callback sees it. The model is the one that is trained: look at it, and leave it as it is."""

    config: Config
    model: GPT
    step: int
    """Optimiser steps so far."""
    total_steps: int
    epoch_done: bool
    line: Mapping[str, Any]
    """A copy of what is about to be recorded for this step."""
    batch: Callable[[], tuple[Tensor, Tensor]]
    """The first training batch as inputs and targets, each (B, T); the same at every step."""


class Callback:
    """Base class of a user's callback; each method does nothing here.

    A plugin registers a subclass with `@callbacks.register("name")`, and `callbacks=[name]` or
    `callbacks=[{name: name, parameter: value}]` in the config adds it to a run. Callbacks are called in that order,
    after the evaluation of a step and before it is recorded.
    """

    metrics: ClassVar[tuple[Metric, ...]] = ()
    """The scalars that it returns and a study may declare in `report.metrics`, with unit and direction."""

    def on_start(self, run: RunView) -> None:
        """Before the first step of this launch, at step 0 or where an earlier launch stopped."""

    def on_step_end(self, run: RunView) -> Scalars | None:
        """After a step, and at step 0 before the first; what it returns is recorded with the step."""

    def on_end(self, run: RunView) -> None:
        """After the last step."""


@rule("callbacks")
def _known(config: Config) -> list[Problem]:
    problems = []
    for it in config.callbacks:
        for problem in callbacks.check({"name": it} if isinstance(it, str) else it):
            problems.append(replace(problem, key=problem.key.removesuffix(".name")))
    return problems


class UserCallbacks:
    """The callbacks of a run's config, each called under guard."""

    def __init__(self, config: Config) -> None:
        nodes = [{"name": it} if isinstance(it, str) else it for it in config.callbacks]
        self._named: list[tuple[str, Callback]] = [(str(node["name"]), callbacks.build(node)) for node in nodes]

    def __bool__(self) -> bool:
        return bool(self._named)

    def call(self, hook: str, run: RunView, optimizer: Optimizer) -> dict[str, float]:
        """Call one method of every callback; what they return, together.

        Raises RuntimeError for a callback that changed the training, and ValueError for one that returned anything but
        finite numbers under names of their own.
        """
        found: dict[str, float] = {}
        for name, callback in self._named:
            with _guarded(f"callback {name}, {hook}", run.model, optimizer):
                returned = getattr(callback, hook)(run)
            for key, value in dict(returned or {}).items():
                number = float(value)
                if not isinstance(key, str) or key in run.line or key in found or not math.isfinite(number):
                    told = f"callback {name} returned {key!r}: {value!r}, not a finite number under a name of its own"
                    raise ValueError(told)
                found[key] = number
        return found


@contextmanager
def _guarded(who: str, model: GPT, optimizer: Optimizer) -> Iterator[None]:
    """Restore the random state and the mode of every module; raise RuntimeError if weights or optimiser changed."""
    modes = [(module, module.training) for module in model.modules()]
    hooks = _hooks(model)
    before = _state(model, optimizer)
    with torch.random.fork_rng(enabled=True):
        yield
    for module, training in modes:
        module.training = training
    for parameter in model.parameters():
        parameter.grad = None
    if _state(model, optimizer) != before:
        raise RuntimeError(
            f"{who}: it changed weights, buffers or the optimiser's state, which would change the losses"
        )
    if _hooks(model) != hooks:
        raise RuntimeError(f"{who}: it left hooks in the model; remove them before it returns")


def _state(model: GPT, optimizer: Optimizer) -> list[tuple[int, int]]:
    """Of every tensor of training where it lies, and the sum of its bits as integers."""
    kept = [value for its in optimizer.state.values() for value in its.values()]
    return [(it.data_ptr(), _checksum(it)) for it in (*model.parameters(), *model.buffers(), *kept)]


@torch.no_grad()
def _checksum(tensor: Tensor) -> int:
    flat = tensor.detach().contiguous().flatten()
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()]
    return int(flat.view(whole).sum(dtype=torch.int64))


def _hooks(model: GPT) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)
