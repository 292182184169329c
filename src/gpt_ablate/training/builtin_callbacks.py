"""The callbacks that every run has, in their fixed order: evaluation, records, samples, progress, checkpoints."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gpt_ablate.data.corpus import Examples
from gpt_ablate.models.objectives import answers
from gpt_ablate.tracking.tracker import ProgressBar
from gpt_ablate.training import checkpoint
from gpt_ablate.training.sampling import sample_text
from gpt_ablate.utils import random_streams
from gpt_ablate.utils.signals import Interrupted

if TYPE_CHECKING:
    from gpt_ablate.training.trainer import Trainer

CHECKPOINT_SECONDS = 300
"""Least time between two checkpoints where `trainer.checkpoint_every` is null."""
Line = dict[str, Any]
"""What is recorded of a step; the line of step 0 has no training loss."""


class Diverged(ArithmeticError):
    """Loss or gradient stopped being finite."""

    def __init__(self, step: int, what: str) -> None:
        super().__init__(f"{what} at step {step}")
        self.step = step


def due(every: int | None, trainer: Trainer) -> bool:
    """Every so many steps; null: at the end of each epoch; 0: never."""
    return trainer.epoch_done if every is None else every > 0 and trainer.step % every == 0


class BuiltinCallback:
    """A callback of the framework: it may add to the line of a step, until `Record` has written it."""

    def on_step_end(self, trainer: Trainer, line: Line) -> None:
        """After each step, and at step 0 before the first."""


class EpochMean(BuiltinCallback):
    """Adds the mean training loss of an epoch that is done."""

    def on_step_end(self, trainer: Trainer, line: Line) -> None:
        """At the end of an epoch."""
        if trainer.epoch_done and trainer.step:
            history = trainer.tracker.history
            earlier = [it["train/loss"] for it in history if it["epoch"] == line["epoch"] and it["step"]]
            line["train/epoch_loss"] = statistics.fmean([*earlier, line["train/loss"]])


class Evaluation(BuiltinCallback):
    """Adds the losses of both splits, and of a task the accuracies."""

    def on_step_end(self, trainer: Trainer, line: Line) -> None:
        """At step 0, where `trainer.eval_every` says so, and after the last step."""
        settings = trainer.settings
        finished = trainer.finished()
        if not (finished or trainer.step == 0 or due(settings.eval_every, trainer)):
            return
        batches = settings.final_eval_batches if finished and trainer.step else settings.eval_batches
        for key, value in evaluate(trainer, batches).items():
            if math.isfinite(value):
                line[key] = value
            elif trainer.divergence is None:
                trainer.divergence = Diverged(trainer.step, f"{key} is {value}")


@torch.inference_mode()
def evaluate(trainer: Trainer, batches: int | None = None) -> dict[str, float]:
    """Mean cross-entropy of both splits in evaluation mode, over `batches` spread evenly, or all.

    For a task also the accuracies: the fraction of targets for which the likeliest token is right.
    """
    trainer.model.eval()
    corpus, evaluated = trainer.corpus, _accuracy if trainer.corpus.is_task else _mean_loss
    train = evaluated(trainer, corpus.train.for_evaluation(), batches)
    val = evaluated(trainer, corpus.val.for_evaluation(), batches)
    of_train = zip(("eval/train_loss", "eval/train_accuracy"), train, strict=False)
    of_val = zip(("eval/val_loss", "eval/accuracy"), val, strict=False)
    return dict(of_train) | dict(of_val)


def _mean_loss(trainer: Trainer, split: Examples, batches: int | None) -> tuple[float]:
    total, count = 0.0, 0
    for inputs, targets in _batches(trainer, split, batches):
        with trainer.autocast():
            loss = trainer.evaluated(trainer.model, inputs, targets, reduction="sum")
        total, count = total + loss.item(), count + targets.numel()
    return (total / count,)


def _accuracy(trainer: Trainer, split: Examples, batches: int | None) -> tuple[float, float]:
    total, right, count = 0.0, 0, 0
    for inputs, targets in _batches(trainer, split, batches):
        with trainer.autocast():
            loss, correct = answers(trainer.model, inputs, targets)
        total, right, count = total + loss.item(), right + int(correct), count + int((targets >= 0).sum())
    return total / count, right / count


def _batches(trainer: Trainer, split: Examples, batches: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    """All examples, or `batches` of them spread evenly; so many at a time as in a part of a training batch."""
    size, n = trainer.config.data.batch_size // trainer.settings.accumulate, split.n_windows
    if batches is None or batches * size >= n:
        chosen: Iterable[Tensor] = (torch.arange(i, min(i + size, n)) for i in range(0, n, size))
    else:
        precision = torch.float32 if n < 1 << 24 else torch.float64
        chosen = torch.linspace(0, n - 1, batches * size, dtype=precision).long().split(size)
    for windows in chosen:
        yield split.batch(windows, trainer.device)


class CallUserCallbacks(BuiltinCallback):
    """The callbacks of the config."""

    def on_step_end(self, trainer: Trainer, line: Line) -> None:
        """Each in its turn, under guard."""
        if trainer.user_callbacks:
            line |= trainer.user_callbacks.call("on_step_end", trainer.view(line), trainer.optimizer)


class BestCheckpoint(BuiltinCallback):
    """Saves the weights if no step before had so low a validation loss, by the record: resuming decides alike."""

    def on_step_end(self, trainer: Trainer, line: Line) -> None:
        """After an evaluation."""
        if "eval/val_loss" not in line:
            return
        loss = line["eval/val_loss"]
        earlier = [it["eval/val_loss"] for it in trainer.tracker.history if it["step"] and "eval/val_loss" in it]
        if trainer.step and loss < min(earlier, default=math.inf) and trainer.settings.checkpoint_every != 0:
            checkpoint.save_best(trainer.directory, trainer.step, trainer.model, loss)


class Record(BuiltinCallback):
    """Writes the line to metrics.jsonl and TensorBoard."""

    def on_step_end(self, trainer: Trainer, line: Line) -> None:
        """Raises Diverged, once the line is written, if an evaluation was not finite."""
        trainer.tracker.metrics(line)
        if trainer.divergence is not None:
            raise trainer.divergence


class Samples(BuiltinCallback):
    """Writes what the model says after the prompt; a task has no text to continue."""

    def on_step_end(self, trainer: Trainer, line: Line) -> None:
        """Where `trainer.sample_every` says so. Raises Diverged if the logits are not finite."""
        if not trainer.step or trainer.corpus.is_task or not due(trainer.settings.sample_every, trainer):
            return
        settings = trainer.config.sampling
        draws = random_streams.generator(trainer.config.root, f"sampling/{trainer.step}")
        try:
            text = sample_text(trainer.model, trainer.corpus.tokenizer, settings, draws)
        except FloatingPointError as error:
            raise Diverged(trainer.step, str(error)) from error
        trainer.tracker.sample(trainer.where() | {"text": text} | settings.model_dump())


class ShownProgress(BuiltinCallback):
    """The progress bar."""

    def __init__(self, bar: ProgressBar) -> None:
        self.bar = bar

    def on_step_end(self, trainer: Trainer, line: Line) -> None:
        """The losses of the step."""
        if trainer.step:
            self.bar.show(line, "train/epoch_loss" in line)


class Checkpoints(BuiltinCallback):
    """Saves the state where it is time; after a signal, saves and leaves."""

    def __init__(self, received: Sequence[int]) -> None:
        """`received` fills with the signals that ask the run to stop."""
        self.received, self.saved_at = received, time.perf_counter()

    def on_step_end(self, trainer: Trainer, line: Line) -> None:
        """Raises Interrupted after a signal."""
        if trainer.finished() or not trainer.step:
            return
        every = trainer.settings.checkpoint_every
        if every is None:
            now = time.perf_counter() - self.saved_at >= CHECKPOINT_SECONDS and trainer.epoch_done
        else:
            now = due(every, trainer)
        if now or self.received:
            lines, spent = trainer.tracker.lines(), trainer.elapsed()
            checkpoint.save(trainer.directory, trainer.step, trainer.model, trainer.optimizer, lines, spent)
            self.saved_at = time.perf_counter()
        if self.received:
            raise Interrupted(f"stopped after step {trainer.step}; state saved", self.received[0])
