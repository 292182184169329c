"""The training loop, from a model as initialised to its result. Knows no variant, and none of what watches it."""

from __future__ import annotations

import functools
import math
import time
from contextlib import ExitStack
from types import MappingProxyType
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from gpt_ablate.config import metrics
from gpt_ablate.config.schema import Config
from gpt_ablate.data.corpus import Corpus, Order
from gpt_ablate.models.gpt import GPT, flops_per_token
from gpt_ablate.models.objectives import Terms, auxiliary_losses, loss_per_token, objectives
from gpt_ablate.studies.run_directory import RunDirectory
from gpt_ablate.tracking.tracker import ProgressBar, Tracker
from gpt_ablate.training import budgets, builtin_callbacks, checkpoint, run_result, torch_settings
from gpt_ablate.training.builtin_callbacks import BuiltinCallback, Diverged, Line
from gpt_ablate.training.callbacks import RunView, UserCallbacks
from gpt_ablate.training.optimizers import Optimizer, optimizers
from gpt_ablate.training.schedules import schedules
from gpt_ablate.utils import devices, random_streams
from gpt_ablate.utils.signals import Interrupted, noted


class Trainer:
    """One run: model, optimiser, data and record."""

    def __init__(
        self,
        config: Config,
        corpus: Corpus,
        directory: RunDirectory,
        start: str,
        console: Console,
        saved: checkpoint.Saved | None = None,
    ) -> None:
        self.config, self.corpus, self.directory, self.console = config, corpus, directory, console
        self.settings = config.trainer
        self.device = devices.pick(config.trainer.device)
        self.peak_is_of_run = devices.reset_peak_memory(self.device)
        self.model = GPT(config, corpus.tokenizer.vocab_size).to(self.device)
        objective = objectives.bind(config.objective.node())
        self.objective = torch.compile(objective) if self.settings.compile else objective
        self.evaluated = torch.compile(loss_per_token) if self.settings.compile else loss_per_token
        """The loss that evaluations report, whatever training minimises."""
        self.user_callbacks = UserCallbacks(config)
        self.divergence: Diverged | None = None
        self.optimizer: Optimizer = optimizers.build(config.optimizer.node(), self.model, self.settings.grad_clip)
        self.schedule = schedules.bind(config.schedule.node())
        self.steps_per_epoch = corpus.train.n_windows // config.data.batch_size
        self.tokens_per_step = config.data.batch_size * config.model.context_length
        self.total_steps = budgets.total_steps(config, self.steps_per_epoch, self.flops_per_step)
        if saved:
            checkpoint.load(saved.folder, self.model, self.optimizer)
        self.step = saved.step if saved else 0
        self.elapsed_before = saved.wall_time if saved else 0.0
        self.started = time.perf_counter()
        self.tracker = Tracker(directory, config, start, self.step if saved else -1)
        self.seconds = sum(budgets.training_seconds(self.tracker.history, self.tokens_per_step))
        """Of training steps, over all launches."""
        self.flop_rate = devices.flop_rate(self.device, self.settings.dtype)
        self._order: tuple[int, Order] = (0, torch.empty(0))
        self._ahead: tuple[int, list[tuple[Tensor, Tensor]]] = (0, [])
        """A step and its batch in parts, on their way to the device while the step before is computed."""

    @functools.cached_property
    def flops_per_token(self) -> float:
        """Of forward and backward. Counted when first asked for: torch imports its compiler for it (2 s)."""
        return flops_per_token(self.model)

    def flops_per_step(self) -> float:
        """Of forward and backward."""
        return self.flops_per_token * self.tokens_per_step

    def train(self) -> dict[str, Any]:
        """All steps that are left, the last evaluation, and the result."""
        epochs = math.ceil(self.total_steps / self.steps_per_epoch)
        with ExitStack() as stack:
            stack.enter_context(torch_settings.deterministic())
            stack.enter_context(self.tracker)
            name, steps = self.directory.name, self.total_steps
            bar = stack.enter_context(ProgressBar(self.console, name, steps, self.step, epochs))
            received = stack.enter_context(noted())
            if received:  # while the model was made
                raise Interrupted(f"stopped before step {self.step + 1}", received[0])
            callbacks = self._callbacks(bar, received)
            diverged: Diverged | None = None
            self._tell_user("on_start")
            try:
                if not self.tracker.history:
                    self._call(callbacks, self.where())
                while not self.finished():
                    line = self._optimise(self.step + 1)
                    self.step += 1
                    self._call(callbacks, line)
                    _ = self.flops_per_token  # a model that cannot be counted fails now and not at its end
            except Diverged as error:
                diverged = error
                self.console.print(f"diverged: {error}", markup=False)
            self._tell_user("on_end")
            result = self._result(diverged)
            checkpoint.save_final(self.directory, self.step, self.model)
            self.tracker.end(diverged is None)
        return result

    def _callbacks(self, bar: ProgressBar, received: list[int]) -> list[BuiltinCallback]:
        """In the order in which they are called."""
        return [
            *(builtin_callbacks.EpochMean(), builtin_callbacks.Evaluation(), builtin_callbacks.CallUserCallbacks()),
            *(builtin_callbacks.BestCheckpoint(), builtin_callbacks.Record(), builtin_callbacks.Samples()),
            *(builtin_callbacks.ShownProgress(bar), builtin_callbacks.Checkpoints(received)),
        ]

    def _call(self, callbacks: list[BuiltinCallback], line: Line) -> None:
        for callback in callbacks:
            callback.on_step_end(self, line)

    def _tell_user(self, hook: str) -> None:
        if self.user_callbacks:
            self.user_callbacks.call(hook, self.view({}), self.optimizer)

    def view(self, line: Line) -> RunView:
        """This run as a user's callback sees it."""
        config = self.config.model_copy(deep=True)
        return RunView(
            *(config, self.model, self.step, self.total_steps, self.epoch_done, MappingProxyType(dict(line))),
            batch=lambda: self.corpus.train.batch(torch.arange(self.config.data.batch_size), self.device),
        )

    @property
    def epoch_done(self) -> bool:
        """Whether the step that was taken last ends an epoch or the run."""
        return self.step % self.steps_per_epoch == 0 or self.finished()

    def finished(self) -> bool:
        """Whether a limit is reached: the steps that were planned, or the seconds of training."""
        limit = self.settings.max_seconds
        return self.step >= self.total_steps or (limit is not None and self.seconds >= limit)

    def _optimise(self, step: int) -> dict[str, Any]:
        """Update the weights on the batch of `step` (counted from 1).

        Raises Diverged if loss or gradient is not finite; weights are untouched, but for those whose own gradient was
        finite and came before one that was not.
        """
        began = time.perf_counter()
        torch.manual_seed(random_streams.stream(self.config.root, f"dropout/{step}"))
        lr = self.config.optimizer.lr * self.schedule(step, self.total_steps)
        self.model.train()
        parts: list[Terms] = []
        batch = self._parts(step)
        for (inputs, targets), divisor in zip(batch, self._divisors(batch), strict=True):
            with self.autocast():
                terms = self.objective(self.model, inputs, targets)
                terms |= auxiliary_losses(self.model)
                terms = {name: term / divisor for name, term in terms.items()}
                minimised = functools.reduce(torch.add, terms.values())
            parts.append({name: term.detach() for name, term in terms.items()})
            if len(parts) == self.settings.accumulate:
                self.optimizer.begin(lr, torch.stack([functools.reduce(torch.add, it.values()) for it in parts]).sum())
            minimised.backward()
        if step < self.total_steps:
            self._ahead = (step + 1, self._parts(step + 1))
        norm = self.optimizer.finish()
        losses = {name: sum(part[name].item() for part in parts) for name in parts[0]}
        for name, loss in losses.items():
            if not math.isfinite(loss):
                raise Diverged(step, f"the {'loss' if name == 'cross_entropy' else name} is {loss}")
        if not math.isfinite(norm):
            raise Diverged(step, f"the gradient's norm is {norm.item()}")
        seconds = time.perf_counter() - began
        self.seconds += seconds
        return (
            self.where(step)
            | {"train/loss": losses.pop("cross_entropy")}
            | {f"train/{name}": loss for name, loss in losses.items()}
            | {
                "lr": lr,
                "grad_norm": norm.item(),
                "tokens_per_second": self.tokens_per_step / seconds,
            }
            | self._utilisation(seconds)
        )

    def _utilisation(self, seconds: float) -> dict[str, float]:
        """Share of the device's FLOP/s that a step of so many seconds used, where these are known."""
        if self.flop_rate is None:
            return {}
        return {"flop_utilisation": self.flops_per_step() / seconds / self.flop_rate}

    def _parts(self, step: int) -> list[tuple[Tensor, Tensor]]:
        """The batch of a step, as inputs and targets of each of its `trainer.accumulate` parts."""
        if self._ahead[0] == step:
            return self._ahead[1]
        parts = self._batch(step).chunk(self.settings.accumulate)
        return [self.corpus.train.batch(windows, self.device) for windows in parts]

    def _divisors(self, parts: list[tuple[Tensor, Tensor]]) -> list[float]:
        """By what the means over a batch's parts are divided, so that their sum is the mean over the batch."""
        if len(parts) == 1 or not self.corpus.is_task:
            return [len(parts)] * len(parts)
        counts = [max(1, int((targets >= 0).sum())) for _, targets in parts]
        return [sum(counts) / count for count in counts]

    def _batch(self, step: int) -> Tensor:
        """The windows of a step: the next in its epoch's order; an incomplete last batch is dropped."""
        epoch, position = divmod(step - 1, self.steps_per_epoch)
        if self._order[0] != epoch + 1:
            self._order = (epoch + 1, self.corpus.train.order(self.config.root, epoch + 1))
        size = self.config.data.batch_size
        return self._order[1][position * size : (position + 1) * size]

    def where(self, step: int | None = None) -> Line:
        """What every line begins with; `step` is the one taken last unless given."""
        step = self.step if step is None else step
        return {
            "step": step,
            "epoch": math.ceil(step / self.steps_per_epoch),
            "tokens": step * self.tokens_per_step,
            "wall_time": self.elapsed(),
        }

    def elapsed(self) -> float:
        """Seconds in training, over all launches of this run."""
        return round(self.elapsed_before + time.perf_counter() - self.started, 3)

    def autocast(self) -> torch.autocast:
        """The precision that `trainer.dtype` asks for."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.dtype == "bfloat16")

    def _result(self, diverged: Diverged | None) -> dict[str, Any]:
        told = str(diverged) if diverged else None
        return {
            **run_result.result(
                self.tracker.history, self.tokens_per_step, self.flops_per_token, told, metrics.of_config(self.config)
            ),
            "parameters": self.model.n_parameters(),
            "wall_time": self.elapsed(),
            **devices.peak_memory(self.device),
            "peak_rss_is_of_run": self.peak_is_of_run,
            "device": str(self.device),
        }
