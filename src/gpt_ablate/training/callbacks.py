"""A user's callbacks: what they are given, and what they may return."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, ClassVar

from torch import Tensor

from gpt_ablate.config.metrics import METRICS, NAME, Metric
from gpt_ablate.config.registry import Registry
from gpt_ablate.config.rules import rule
from gpt_ablate.config.schema import Config
from gpt_ablate.models.gpt import GPT
from gpt_ablate.studies.records import LARGEST
from gpt_ablate.tracking.tracker import TAGS
from gpt_ablate.training import torch_settings
from gpt_ablate.training.callback_guard import CallbackError, Guard
from gpt_ablate.training.optimizers import Optimizer
from gpt_ablate.utils.errors import Problem

callbacks: Registry[Callable[..., Callback]] = Registry("callbacks")
Scalars = Mapping[str, float]
"""Name -> value: what a callback adds to the line of metrics.jsonl."""


_TAKEN = {*METRICS, *TAGS, *TAGS.values(), "epoch", "samples"}
"""Names that the record, TensorBoard and the report give a meaning, whether or not a step has them."""


@dataclass(frozen=True)
class RunView:
    """A run as a callback sees it. The model is the one that is trained: look at it, and leave it as it is."""

    config: Config
    """A copy."""
    model: GPT
    """In training or evaluation mode, as the step before left it."""
    step: int
    """Optimiser steps so far."""
    total_steps: int
    epoch_done: bool
    line: Mapping[str, Any]
    """What is about to be recorded for this step; it cannot be changed. Empty for `on_start` and `on_end`."""
    batch: Callable[[], tuple[Tensor, Tensor]]
    """The first training batch as inputs and targets, each (B, T); a copy, the same at every step."""


class Callback:
    """Base class of a user's callback; each method does nothing here.

    A plugin registers a subclass with `@callbacks.register("name")`, and `callbacks=[name]` or
    `callbacks=[{name: name, parameter: value}]` in the config adds it to a run. Callbacks are called in that order,
    after the evaluation of a step and before it is recorded. One that raises ends the run, which is then failed.
    """

    metrics: ClassVar[tuple[Metric, ...]] = ()
    """The scalars that it returns and a study may declare in `report.metrics`, with unit and direction."""

    def on_start(self, run: RunView) -> None:
        """Before the first step of this launch, at step 0 or where an earlier launch stopped."""

    def on_step_end(self, run: RunView) -> Scalars | None:
        """After a step, and at step 0 before the first; what it returns is recorded with the step."""

    def on_end(self, run: RunView) -> None:
        """After the last step; not in a launch that is interrupted or fails."""


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
        """Raises CallbackError for one that cannot be made."""
        nodes = [{"name": it} if isinstance(it, str) else it for it in config.callbacks]
        self._named = [(str(node["name"]), _made(node)) for node in nodes]

    def __bool__(self) -> bool:
        return bool(self._named)

    def call(self, hook: str, run: RunView, optimizer: Optimizer) -> dict[str, float]:
        """Call one method of every callback; what they return, together.

        Raises CallbackError for a callback that raised, changed the training, or returned anything but finite numbers
        under names of their own.
        """
        guard = Guard(run.model, optimizer)
        found: dict[str, float] = {}
        for name, callback in self._named:
            who = f"callback {name}: {hook}"
            with guard.around(who):
                returned = getattr(callback, hook)(run)
                if returned is None:
                    continue
                if hook != "on_step_end":
                    raise CallbackError(f"{who} returned {returned!r}, which is recorded nowhere")
                if not isinstance(returned, Mapping):
                    raise CallbackError(f"{who} returned {returned!r}, not a mapping of names to numbers")
                for key, value in returned.items():
                    found[_new(key, {*_TAKEN, *run.line, *found}, who)] = _number(value, key, who)
        return found


def _made(node: Mapping[str, Any]) -> Callback:
    who = f"callback {node['name']}"
    with torch_settings.process_kept():
        try:
            made = callbacks.build(node)
        except (Exception, SystemExit) as error:
            raise CallbackError(f"{who} could not be made: {type(error).__name__}: {error}") from error
    if not isinstance(made, Callback):
        raise CallbackError(f"{who} is {made!r}, not an instance of gpt_ablate.training.callbacks.Callback")
    return made


def _new(key: Any, taken: set[str], who: str) -> str:
    if not isinstance(key, str) or not NAME.fullmatch(key):
        raise CallbackError(f"{who} returned the name {key!r}: a name has letters, digits, _, ., - and /")
    if key in taken:
        raise CallbackError(f"{who} returned the name {key!r}, which is taken")
    return key


def _number(value: Any, key: str, who: str) -> float:
    """As it can be recorded: also of a tensor that holds one number, as of 0-d arrays of numpy."""
    number = value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value
    if not isinstance(number, Real) or isinstance(number, bool) or not abs(float(number)) <= LARGEST:
        raise CallbackError(f"{who} returned {key!r}: {value!r}, not a finite number")
    return float(number)
