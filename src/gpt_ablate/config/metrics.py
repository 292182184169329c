"""The metrics that a study can declare: name, unit, which direction is better, and the value of a run."""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from gpt_ablate.config.registry import Registry
from gpt_ablate.utils.errors import Problem, UsageError, closest

if TYPE_CHECKING:
    from gpt_ablate.config.schema import Config
    from gpt_ablate.studies.study import StudyRun

NAME = re.compile(r"[^\W_][\w./-]*")
"""What a scalar can be called: as a key on the command line, in TensorBoard and at the head of a table's column."""


Split = Literal["training", "validation"]


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
    split: Split | None = None
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
        return bits_per_byte(entropy, run.record["data"], self.split) if self.unit == BITS else entropy

    def statistical(self, run: StudyRun) -> float | None:
        """The run's value as statistics use it: its logarithm on the scale "ratio".

        Raises UsageError for a value that has none.
        """
        number = self.of(run)
        if number is None or self.scale == "difference":
            return number
        if number <= 0:
            allowed = f'a metric above 0 where differences are ratios (scale="ratio"); {run.name} has {number:g}'
            raise UsageError([Problem("report.metrics", self.key, allowed)])
        return math.log(number)

    def record(self) -> dict[str, Any]:
        """As run.json has it."""
        return asdict(self)


NATS, BITS, _SECONDS = "nats per token", "bits per byte", "seconds"
METRICS = {
    metric.key: metric
    for metric in (
        Metric("eval/train_loss", "final training loss", NATS, curve="eval/train_loss", split="training"),
        Metric("eval/val_loss", "final validation loss", NATS, curve="eval/val_loss", split="validation"),
        Metric(
            "train/epoch_loss",
            "training-batch loss of the last epoch",
            NATS,
            curve="train/epoch_loss",
            split="training",
        ),
        Metric("train_bits_per_byte", "final training loss", BITS, curve="eval/train_loss", split="training"),
        Metric("val_bits_per_byte", "final validation loss", BITS, curve="eval/val_loss", split="validation"),
        Metric("tokens_per_second", "training speed", "tokens per second", lower_is_better=False, scale="ratio"),
        Metric("seconds_per_step", "time per step", _SECONDS, scale="ratio"),
        Metric("peak_memory_bytes", "peak memory", "bytes", scale="ratio"),
        Metric("train/loss", "training-batch loss of the last step", NATS, curve="train/loss", split="training"),
        Metric("grad_norm", "gradient norm of the last step", "L2 norm"),
        Metric("parameters", "number of parameters", "parameters", scale="ratio"),
        Metric("flops_per_token", "training FLOPs per token", "FLOPs", scale="ratio"),
        Metric("flops", "training FLOPs", "FLOPs", scale="ratio"),
        Metric("training_seconds", "time of all training steps", _SECONDS, scale="ratio"),
        Metric("wall_time", "wall time", _SECONDS, scale="ratio"),
        Metric("step", "optimiser steps", "steps", scale="ratio"),
        Metric("tokens", "training tokens", "tokens", scale="ratio"),
        Metric("lr", "learning rate of the last step", "per step"),
        Metric("flop_utilisation", "share of the device's FLOP/s", "fraction", lower_is_better=False),
    )
}
"""The metrics that every run has, by key."""


def of_config(config: Config) -> dict[str, Metric]:
    """The metrics that the chosen variants and callbacks declare in their attribute `metrics`, by key."""
    return {metric.key: metric for _, _, metric in _declared_by(config) if isinstance(metric, Metric)}


def misdeclared(config: Config) -> list[Problem]:
    """What chosen variants and callbacks declare that is no metric, or one that has another meaning already."""
    problems, known = [], dict(METRICS)
    for key, name, metric in _declared_by(config):
        if not isinstance(metric, Metric):
            allowed = f"an option whose `metrics` are of gpt_ablate.config.metrics.Metric, not {metric!r}"
        elif not NAME.fullmatch(metric.key):
            allowed = f"an option whose metrics have names of letters, digits, _, ., - and /, not {metric.key!r}"
        elif known.setdefault(metric.key, metric) != metric or metric.key in METRICS:
            allowed = f"an option whose metrics have names of their own; {metric.key!r} is declared already"
        else:
            continue
        problems.append(Problem(key, name, allowed))
    return problems


def _declared_by(config: Config) -> Iterator[tuple[str, str, Any]]:
    """Key and name of each chosen option, and what it declares."""
    nodes = [(key, config.node_of(key)) for key in Registry.by_key]
    nodes += [("callbacks", {"name": it} if isinstance(it, str) else it) for it in config.callbacks]
    for key, node in nodes:
        name = (node or {}).get("name")
        builder = Registry.by_key[key].builders.get(name) if isinstance(name, str) else None
        declared = getattr(builder, "metrics", ())
        for metric in declared if isinstance(declared, list | tuple) else (declared,):
            yield key, str(name), metric


def of_records(records: Iterable[Mapping[str, Any]], wanted: Container[str]) -> dict[str, Metric]:
    """The metrics that runs declare in their run.json, by key.

    Raises UsageError for one of the `wanted` that two runs declare differently.
    """
    found: dict[str, Metric] = {}
    for metric in (Metric(**it) for record in records for it in record.get("metrics", ())):
        first = found.setdefault(metric.key, metric)
        if first != metric and metric.key in wanted:
            allowed = f"a metric that all runs declare in the same way, not both as {first} and as {metric}"
            raise UsageError([Problem("report.metrics", metric.key, allowed)])
    return found


def declared(report: Mapping[str, Any], own: Mapping[str, Metric]) -> list[tuple[Metric, float | None]]:
    """The metrics that a study declares and the margin of each, the primary one first.

    `own` are those of its runs beside `METRICS`. Raises UsageError for an unknown metric, or none declared.
    """
    known = {**own, **METRICS}
    problems = []
    if not report["metrics"]:
        problems.append(Problem("report.metrics", report["metrics"], f"at least one of {', '.join(known)}"))
    for key in report["metrics"]:
        if key not in known:
            problems.append(Problem("report.metrics", key, f"one of {', '.join(known)}", closest(key, known)))
    if problems:
        raise UsageError(problems)
    return [(known[key], margin) for key, margin in report["metrics"].items()]


def value(run: StudyRun, key: str) -> float | None:
    """A metric of a run: what speed, memory and size cost in any that came to an end; all else in runs that are done.

    A scalar that result.json does not have has its last value in metrics.jsonl.
    """
    result = run.result or {}
    final = run.last | result.get("final", {}) if run.status == "done" else {}
    metric = METRICS.get(key)
    if metric is not None and metric.unit == BITS:
        return bits_per_byte(final.get(metric.curve), run.record["data"], metric.split)
    if key == "peak_memory_bytes":
        own = result.get("peak_rss_bytes") if result.get("peak_rss_is_of_run") else None
        return result.get("peak_cuda_bytes", own)
    return result[key] if key in METRICS and key in result else final.get(key)  # a callback's may be called as another


def bits_per_byte(loss: float | None, data: Mapping[str, Any], split: Split | None = "validation") -> float | None:
    """A loss in nats per token as bits per byte of text; None where the run recorded no bytes per token."""
    per_token = data.get("val_bytes_per_token" if split == "validation" else "train_bytes_per_token")
    return None if loss is None or per_token is None else loss / math.log(2) / per_token
