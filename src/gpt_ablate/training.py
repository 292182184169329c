"""The training loop, from a model as initialised to its result. Knows no variant."""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from . import budget, checkpoint, devices, outcome, process, rng
from .config import Config
from .data import Corpus, Split
from .generation import sample_text
from .model import GPT, flops_per_token, loss_per_token
from .optimizer import AdamW
from .runs import RunDirectory
from .schedule import schedules
from .stopping import Interrupted, noted
from .tracking import ProgressBar, Tracker

CHECKPOINT_SECONDS = 300
"""Least time between two checkpoints where `trainer.checkpoint_every` is null."""


class Diverged(ArithmeticError):
    """Loss or gradient stopped being finite."""

    def __init__(self, step: int, what: str) -> None:
        super().__init__(f"{what} at step {step}")
        self.step = step


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
        self.model = GPT(config).to(self.device)
        self.loss = torch.compile(loss_per_token) if self.settings.compile else loss_per_token
        self.optimizer = AdamW(self.model.parameters(), config.optimizer, self.settings.grad_clip, self.model.spare)
        self.schedule = schedules.bind(config.schedule.node())
        self.steps_per_epoch = corpus.train.n_windows // config.data.batch_size
        self.tokens_per_step = config.data.batch_size * config.model.context_length
        self.total_steps = budget.total_steps(config, self.steps_per_epoch, self.flops_per_step)
        if saved:
            checkpoint.load(saved.folder, self.model, self.optimizer)
        self.step = saved.step if saved else 0
        self.elapsed_before = saved.wall_time if saved else 0.0
        self.started = self.saved_at = time.perf_counter()
        self.tracker = Tracker(directory, config, start, self.step if saved else -1)
        self.seconds = sum(budget.training_seconds(self.tracker.history, self.tokens_per_step))
        """Of training steps, over all launches."""
        self.flop_rate = devices.flop_rate(self.device, self.settings.dtype)
        self._order: tuple[int, Tensor] = (0, torch.empty(0))
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
            stack.enter_context(process.deterministic())
            stack.enter_context(self.tracker)
            name, steps = self.directory.name, self.total_steps
            bar = stack.enter_context(ProgressBar(self.console, name, steps, self.step, epochs))
            received = stack.enter_context(noted())
            if received:  # while the model was made
                raise Interrupted(f"stopped before step {self.step + 1}", received[0])
            diverged: Diverged | None = None
            try:
                if not self.tracker.history:
                    self._record(self._where(0), self.evaluate(self.settings.eval_batches))
                while not self._finished():
                    line = self._record_step()
                    bar.show(line, "train/epoch_loss" in line)
                    _ = self.flops_per_token  # a model that cannot be counted fails now and not at its end
                    self._checkpoint_if_due(received)
            except Diverged as error:
                diverged = error
                self.console.print(f"diverged: {error}", markup=False)
            result = self._result(diverged)
            checkpoint.save_final(self.directory, self.step, self.model)
            self.tracker.end(diverged is None)
        return result

    def _finished(self) -> bool:
        """Whether a limit is reached: the steps that were planned, or the seconds of training."""
        limit = self.settings.max_seconds
        return self.step >= self.total_steps or (limit is not None and self.seconds >= limit)

    def _record_step(self) -> dict[str, Any]:
        """One optimiser step, with the evaluation and the sample that fall due after it."""
        line = self._optimise(self.step + 1)
        self.step += 1
        epoch_done = self.step % self.steps_per_epoch == 0 or self._finished()
        if epoch_done:
            earlier = [x["train/loss"] for x in self.tracker.history if x["epoch"] == line["epoch"] and x["step"]]
            line["train/epoch_loss"] = statistics.fmean([*earlier, line["train/loss"]])
        evaluated: dict[str, float] = {}
        if self._finished():
            evaluated = self.evaluate()
        elif _due(self.settings.eval_every, self.step, epoch_done):
            evaluated = self.evaluate(self.settings.eval_batches)
        line = self._record(line, evaluated)
        if _due(self.settings.sample_every, self.step, epoch_done):
            self._sample()
        return line

    def _record(self, line: dict[str, Any], evaluated: dict[str, float]) -> dict[str, Any]:
        """Write `line` with the losses of an evaluation. Raises Diverged if one of them is not finite."""
        line |= {key: loss for key, loss in evaluated.items() if math.isfinite(loss)}
        self._keep_if_best(line)
        self.tracker.metrics(line)
        for key, loss in evaluated.items():
            if not math.isfinite(loss):
                raise Diverged(line["step"], f"{key} is {loss}")
        return line

    def _keep_if_best(self, line: dict[str, Any]) -> None:
        """Save the weights if no step before had so low a validation loss, by the record: resuming decides alike."""
        loss = line.get("eval/val_loss", math.inf)
        earlier = [x["eval/val_loss"] for x in self.tracker.history if x["step"] and "eval/val_loss" in x]
        if line["step"] and loss < min(earlier, default=math.inf) and self.settings.checkpoint_every != 0:
            checkpoint.save_best(self.directory, line["step"], self.model, loss)

    def _optimise(self, step: int) -> dict[str, Any]:
        """Update the weights on the batch of `step` (counted from 1).

        Raises Diverged if loss or gradient is not finite; weights are untouched, but for those whose own gradient was
        finite and came before one that was not.
        """
        began = time.perf_counter()
        torch.manual_seed(rng.stream(self.config.root, f"dropout/{step}"))
        lr = self.config.optimizer.lr * self.schedule(step, self.total_steps)
        self.model.train()
        losses = []
        for inputs, targets in self._parts(step):
            with self._autocast():
                part = self.loss(self.model, inputs, targets) / self.settings.accumulate
            losses.append(part.detach())
            if len(losses) == self.settings.accumulate:
                self.optimizer.begin(lr, torch.stack(losses).sum())
            part.backward()
        if step < self.total_steps:
            self._ahead = (step + 1, self._parts(step + 1))
        norm = self.optimizer.finish()
        loss = sum(part.item() for part in losses)
        if not math.isfinite(loss):
            raise Diverged(step, f"the loss is {loss}")
        if not math.isfinite(norm):
            raise Diverged(step, f"the gradient's norm is {norm.item()}")
        seconds = time.perf_counter() - began
        self.seconds += seconds
        return (
            self._where(step)
            | {
                "train/loss": loss,
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

    def _batch(self, step: int) -> Tensor:
        """The windows of a step: the next in its epoch's order; an incomplete last batch is dropped."""
        epoch, position = divmod(step - 1, self.steps_per_epoch)
        if self._order[0] != epoch + 1:
            self._order = (epoch + 1, self.corpus.train.order(self.config.root, epoch + 1))
        size = self.config.data.batch_size
        return self._order[1][position * size : (position + 1) * size]

    @torch.inference_mode()
    def evaluate(self, batches: int | None = None) -> dict[str, float]:
        """Mean loss of both splits in evaluation mode, over `batches` spread evenly, or all."""
        self.model.eval()
        losses = {"eval/train_loss": self._mean_loss(self.corpus.train.for_evaluation(), batches)}
        losses["eval/val_loss"] = self._mean_loss(self.corpus.val.for_evaluation(), batches)
        return losses

    def _mean_loss(self, split: Split, batches: int | None) -> float:
        size = self.config.data.batch_size // self.settings.accumulate
        windows = torch.arange(split.n_windows)
        if batches is not None and batches * size < split.n_windows:
            windows = torch.linspace(0, split.n_windows - 1, batches * size).long()
        total = 0.0
        for chunk in windows.split(size):
            with self._autocast():
                loss = self.loss(self.model, *split.batch(chunk, self.device), reduction="sum")
            total += loss.item()
        return total / (len(windows) * split.context)

    def _sample(self) -> None:
        settings = self.config.sampling
        try:
            text = sample_text(self.model, settings, rng.generator(self.config.root, f"sampling/{self.step}"))
        except FloatingPointError as error:
            raise Diverged(self.step, str(error)) from error
        self.tracker.sample(self._where(self.step) | {"text": text} | settings.model_dump())

    def _where(self, step: int) -> dict[str, Any]:
        return {
            "step": step,
            "epoch": math.ceil(step / self.steps_per_epoch),
            "tokens": step * self.tokens_per_step,
            "wall_time": self.elapsed(),
        }

    def elapsed(self) -> float:
        """Seconds in training, over all launches of this run."""
        return round(self.elapsed_before + time.perf_counter() - self.started, 3)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.dtype == "bfloat16")

    def _checkpoint_if_due(self, received: Sequence[int]) -> None:
        """Save where it is time; after a signal, save and leave."""
        if self._finished():
            return
        every = self.settings.checkpoint_every
        if every is None:
            late = time.perf_counter() - self.saved_at >= CHECKPOINT_SECONDS
            due = late and self.step % self.steps_per_epoch == 0
        else:
            due = every > 0 and self.step % every == 0
        if due or received:
            lines, spent = self.tracker.lines(), self.elapsed()
            checkpoint.save(self.directory, self.step, self.model, self.optimizer, lines, spent)
            self.saved_at = time.perf_counter()
        if received:
            raise Interrupted(f"stopped after step {self.step}; state saved", received[0])

    def _result(self, diverged: Diverged | None) -> dict[str, Any]:
        told = str(diverged) if diverged else None
        return {
            **outcome.result(self.tracker.history, self.tokens_per_step, self.flops_per_token, told),
            "parameters": self.model.n_parameters(),
            "wall_time": self.elapsed(),
            **devices.peak_memory(self.device),
            "peak_rss_is_of_run": self.peak_is_of_run,
            "device": str(self.device),
        }


def _due(every: int | None, step: int, epoch_done: bool) -> bool:
    """Every so many steps; null: at the end of each epoch; 0: never."""
    return epoch_done if every is None else every > 0 and step % every == 0
