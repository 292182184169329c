"""What a run tells while it goes: metrics.jsonl and samples.jsonl, TensorBoard made from them, a progress bar."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from gpt_ablate.config.schema import Config
from gpt_ablate.studies import hparams
from gpt_ablate.studies.run_directory import RunDirectory, described
from gpt_ablate.utils.files import write_text

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary

TAGS = {
    "lr": "optim/lr",
    "grad_norm": "optim/grad_norm",
    "tokens_per_second": "perf/tokens_per_second",
    "flop_utilisation": "perf/flop_utilisation",
}
"""What TensorBoard calls a scalar where that is not its name in metrics.jsonl."""
_SECONDS_PER_LINE = 30
_NOT_SCALARS = ("step", "epoch", "tokens", "wall_time")


class Tracker:
    """The record of one run, and its TensorBoard view, which is made anew from the record on resuming."""

    def __init__(self, directory: RunDirectory, config: Config, start: str, step: int) -> None:
        """Open the record at `step`: later lines, from steps that will be taken again, are dropped."""
        from torch.utils.tensorboard import SummaryWriter

        self._start = datetime.fromisoformat(start).timestamp()
        for events in directory.path.glob("events.out.tfevents.*"):
            events.unlink()
        self._writer = SummaryWriter(str(directory.path))
        self._tell(hparams.start(described(config, []), self._start))
        self.history = _kept(directory.metrics_file, directory.metrics(), step)
        samples = _kept(directory.samples_file, directory.samples(), step)
        for line in self.history:
            self._show_metrics(line)
        for line in samples:
            self._show_sample(line)
        self._n_samples = len(samples)
        self._metrics = directory.metrics_file.open("a", encoding="utf-8")
        self._samples = directory.samples_file.open("a", encoding="utf-8")

    def metrics(self, line: dict[str, Any]) -> None:
        """Record one line of metrics; `step` names its optimiser step."""
        self.history.append(line)
        _append(self._metrics, line)
        self._show_metrics(line)

    def sample(self, line: dict[str, Any]) -> None:
        """Record one sample."""
        self._n_samples += 1
        _append(self._samples, line)
        self._show_sample(line)

    def end(self, done: bool) -> None:
        """Tell TensorBoard that the run came to its end, and whether as it should."""
        self._tell(hparams.end(done, time.time()))

    def lines(self) -> dict[str, int]:
        """How many lines each file of the record has, all of them on disk."""
        for file in (self._metrics, self._samples):
            os.fsync(file.fileno())
        return {Path(self._metrics.name).name: len(self.history), Path(self._samples.name).name: self._n_samples}

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in (self._metrics, self._samples):
            file.flush()
            os.fsync(file.fileno())
            file.close()
        self._writer.close()

    def _tell(self, summary: Summary) -> None:
        self._writer._get_file_writer().add_summary(summary)

    def _show_metrics(self, line: Mapping[str, Any]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        scalars = {TAGS.get(key, key): value for key, value in line.items() if key not in _NOT_SCALARS}
        # one event for all: `add_scalar` writes one for each, and takes several times as long
        event = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()])
        self._writer._get_file_writer().add_summary(event, line["step"], self._start + line["wall_time"])

    def _show_sample(self, line: Mapping[str, Any]) -> None:
        text = f"**{line['prompt']}**{line['text']}".replace("\n", "\n\n")
        self._writer.add_text("samples", text, line["step"], self._start + line["wall_time"])


def _append(file: IO[str], line: Mapping[str, Any]) -> None:
    """Raises FileNotFoundError if the file was removed: what is written to it would be lost."""
    file.write(_json_line(line))
    file.flush()
    if os.fstat(file.fileno()).st_nlink == 0:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), file.name)


def _json_line(line: Mapping[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"


def _kept(path: Path, lines: list[dict[str, Any]], step: int) -> list[dict[str, Any]]:
    """Lines of steps up to `step`; the file is cut to them."""
    lines = [line for line in lines if line["step"] <= step]
    if path.exists():
        write_text(path, "".join(map(_json_line, lines)))
    return lines


class ProgressBar:
    """Epoch, step, losses, tokens/s and time left; where there is no terminal, a line an epoch.

    In a log, an epoch that takes longer than half a minute has a line for each half minute too.
    """

    def __init__(self, console: Console, name: str, steps: int, done: int, epochs: int) -> None:
        self.console, self.steps, self.epochs = console, steps, epochs
        self._head = "" if console.is_terminal else f"{name}: "  # in a log, runs may take turns
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(),
            TextColumn("step {task.completed}/{task.total}  {task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=steps, completed=done, epoch=0, epochs=epochs, figures="")
        self._evaluated = ""
        self._printed = 0.0

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, line: Mapping[str, Any], epoch_done: bool) -> None:
        """Show a line of metrics."""
        if "eval/train_loss" in line:
            self._evaluated = f"  eval train {line['eval/train_loss']:.3f} val {line['eval/val_loss']:.3f}"
        if "train/loss" not in line:
            return
        figures = f"train {line['train/loss']:.3f}{self._evaluated}  {line['tokens_per_second']:,.0f} tokens/s"
        self._bar.update(self._task, completed=line["step"], epoch=line["epoch"], figures=figures)
        if epoch_done:
            self._print(line, f"train {line['train/epoch_loss']:.4f} (mean of the epoch)")
        elif not self.console.is_terminal and line["wall_time"] - self._printed >= _SECONDS_PER_LINE:
            self._print(line, f"train {line['train/loss']:.4f}")

    def _print(self, line: Mapping[str, Any], loss: str) -> None:
        self._printed = line["wall_time"]
        self.console.print(
            f"{self._head}epoch {line['epoch']}/{self.epochs}  step {line['step']}/{self.steps}  {loss}"
            f"{self._evaluated}  {line['tokens_per_second']:,.0f} tokens/s  {line['wall_time']:.0f} s",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
