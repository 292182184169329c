"""The metrics that a study can declare: name, unit, which direction is better, and the value of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from . import results
from .registry import Problem, UsageError, closest
from .study import StudyRun


@dataclass(frozen=True)
class Metric:
    """One number for each finished run. On the scale "ratio" differences are fractions: 0.1 means 10 % more."""

    key: str
    name: str
    unit: str
    lower_is_better: bool = True
    scale: Literal["difference", "ratio"] = "difference"
    curve: str | None = None
    """The curve whose last value is this number, up to a factor."""
    split: Literal["training", "validation"] | None = None
    """The split that a loss is of; None for what is no loss."""

    def describe(self) -> dict[str, Any]:
        """As report.json has it."""
        return {
            "key": self.key,
            "name": self.name,
            "unit": self.unit,
            "lower_is_better": self.lower_is_better,
            "scale": self.scale,
        }

    def scaled(self, difference: float) -> float:
        """From a difference of statistical values to one in the metric's own scale (from logarithms to a fraction)."""
        return math.expm1(difference) if self.scale == "ratio" else difference

    def unscaled(self, difference: float) -> float:
        """The inverse of `scaled`."""
        return math.log1p(difference) if self.scale == "ratio" else difference

    def of(self, run: StudyRun) -> float | None:
        """The run's value; None where it has none."""
        return value(run, self.key)

    def unigram_entropy(self, run: StudyRun) -> float | None:
        """The unigram entropy of the run's training split in the unit of this loss; None where it has no such value.

        No run records the entropy of its validation split, so validation losses are compared with the same number.
        """
        if self.split is None:
            return None
        entropy = float(run.record["data"]["unigram_entropy"])
        in_bits = self.unit == "bits per byte"
        return results.bits_per_byte(entropy, run.record["data"]) if in_bits else entropy

    def statistical(self, run: StudyRun) -> float | None:
        """The run's value as statistics use it: its logarithm on the scale "ratio"."""
        number = self.of(run)
        return number if number is None or self.scale == "difference" else math.log(number)


_NATS, _SECONDS = "nats per token", "seconds"
METRICS = {
    metric.key: metric
    for metric in (
        Metric("eval/train_loss", "final training loss", _NATS, curve="eval/train_loss", split="training"),
        Metric("eval/val_loss", "final validation loss", _NATS, curve="eval/val_loss", split="validation"),
        Metric(
            "train/epoch_loss",
            "training-batch loss of the last epoch",
            _NATS,
            curve="train/epoch_loss",
            split="training",
        ),
        Metric(
            "val_bits_per_byte", "final validation loss", "bits per byte", curve="eval/val_loss", split="validation"
        ),
        Metric("tokens_per_second", "training speed", "tokens per second", lower_is_better=False, scale="ratio"),
        Metric("seconds_per_step", "time per step", _SECONDS, scale="ratio"),
        Metric("peak_memory_bytes", "peak memory", "bytes", scale="ratio"),
    )
}
"""Every metric by its key."""


def declared(report: Mapping[str, Any]) -> list[tuple[Metric, float | None]]:
    """The metrics that a study declares and the margin of each, the primary one first.

    Raises UsageError for an unknown metric, or none declared.
    """
    problems = []
    if not report["metrics"]:
        problems.append(Problem("report.metrics", report["metrics"], f"at least one of {', '.join(METRICS)}"))
    for key in report["metrics"]:
        if key not in METRICS:
            allowed = f"one of {', '.join(METRICS)}"
            problems.append(Problem("report.metrics", key, allowed, closest(key, METRICS)))
    if problems:
        raise UsageError(problems)
    return [(METRICS[key], margin) for key, margin in report["metrics"].items()]


def value(run: StudyRun, key: str) -> float | None:
    """A metric of a run: final losses of runs that are done; speed and memory of any that came to an end."""
    result = run.result or {}
    final = result.get("final", {}) if run.status == "done" else {}
    if key == "val_bits_per_byte":
        return results.bits_per_byte(final.get("eval/val_loss"), run.record["data"])
    if key == "peak_memory_bytes":
        own = result.get("peak_rss_bytes") if result.get("peak_rss_is_of_run") else None
        return result.get("peak_cuda_bytes", own)
    return result.get(key) if key in ("tokens_per_second", "seconds_per_step") else final.get(key)
