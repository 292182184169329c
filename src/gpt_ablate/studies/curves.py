"""A run's curves, read from metrics.jsonl into arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt_ablate.studies.run_directory import RunDirectory

KEYS = ("train/loss", "train/epoch_loss", "eval/train_loss", "eval/val_loss", "eval/train_accuracy", "eval/accuracy")
"""What becomes a curve under its own name; "seconds" joins them."""


@dataclass(frozen=True)
class Curve:
    """One quantity of one run against the optimiser step; both arrays have shape (points,)."""

    steps: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]


def read(directory: RunDirectory) -> tuple[dict[str, Curve], dict[str, float]]:
    """The curves of `KEYS` that a run has recorded, with "seconds", and the last value of every scalar.

    "seconds" is the time spent in training steps so far.

    Raises UsageError, naming file and line, where a line is damaged.
    """
    lines = directory.metrics()
    curves = {key: _curve(lines, key) for key in KEYS}
    # tokens / step is the same for every step of a run, so this is the time of each step
    timed = [line for line in lines if "tokens_per_second" in line]
    seconds = [line["tokens"] / line["step"] / line["tokens_per_second"] for line in timed]
    steps = np.array([line["step"] for line in timed], dtype=np.int64)
    curves["seconds"] = Curve(steps, np.cumsum(np.array(seconds, dtype=np.float64)))
    last: dict[str, float] = {}
    for line in lines:
        last.update(line)
    scalars = {key: value for key, value in last.items() if type(value) in (int, float) and math.isfinite(value)}
    return {key: curve for key, curve in curves.items() if len(curve.steps)}, scalars


def at_budget(spent: npt.ArrayLike, losses: npt.ArrayLike, budget: float) -> float | None:
    """The loss where `spent` (increasing) reaches `budget`, linear between points; None outside of them."""
    x = np.asarray(spent, dtype=np.float64)
    if not len(x) or not x[0] <= budget <= x[-1]:
        return None
    return float(np.interp(budget, x, np.asarray(losses, dtype=np.float64)))


def _curve(lines: list[dict[str, Any]], key: str) -> Curve:
    points = [(line["step"], line[key]) for line in lines if key in line]
    steps, values = zip(*points, strict=True) if points else ((), ())
    return Curve(np.array(steps, dtype=np.int64), np.array(values, dtype=np.float64))
