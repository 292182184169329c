"""The cells of a study in numbers: means and standard deviations, at the end, at equal budgets, at best settings."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from gpt_ablate.config import metrics
from gpt_ablate.config.metrics import METRICS, Metric
from gpt_ablate.reporting import sentences
from gpt_ablate.studies import curves, stats
from gpt_ablate.studies.comparisons import candidates, cells_of_arms, settings
from gpt_ablate.studies.factors import label
from gpt_ablate.studies.study import Study, StudyRun

Floats: TypeAlias = npt.NDArray[np.float64]
UNITS = ("tokens", "FLOPs", "seconds")
_COLUMNS = {
    "train_epoch_loss": "train/epoch_loss",
    "eval_train_loss": "eval/train_loss",
    "eval_val_loss": "eval/val_loss",
    "val_bits_per_byte": "val_bits_per_byte",
    "tokens_per_second": "tokens_per_second",
    "seconds_per_step": "seconds_per_step",
    "peak_memory_bytes": "peak_memory_bytes",
}


def cells(study: Study, declared: Sequence[Metric]) -> list[dict[str, Any]]:
    """One entry for each cell, the baseline first; `n` is the number of runs that a mean is over."""
    absent = Counter(run.cell for run in study.absent if run.repeat == 0)
    return [_cell(study, cell, runs, absent[cell], declared) for cell, runs in study.cells().items()]


def _cell(study: Study, cell: str, runs: list[StudyRun], absent: int, declared: Sequence[Metric]) -> dict[str, Any]:
    statuses = Counter(run.status for run in runs) + Counter({"missing": absent})
    ended = [run.result for run in runs if run.result is not None]
    early = [run.curves["train/epoch_loss"] for run in runs if "train/epoch_loss" in run.curves]
    return {
        "name": cell,
        "label": study.label(cell),
        "levels": study.levels[cell],
        "baseline": cell == study.baseline,
        "status": dict(statuses),
        "parameters": ended[0]["parameters"] if ended else None,
        "flops_per_token": ended[0]["flops_per_token"] if ended else None,
        "early_step": int(early[0].steps[0]) if early else None,
        "early_loss": _summary(float(curve.values[0]) for curve in early),
        **{column: _summary(METRICS[key].of(run) for run in runs) for column, key in _COLUMNS.items()},
        "metrics": {metric.key: _summary(metric.of(run) for run in runs) for metric in declared},
    }


def _summary(values: Iterable[float | None]) -> dict[str, Any]:
    return asdict(stats.summarise([value for value in values if value is not None]))


def unigram_check(study: Study, metric: Metric) -> dict[str, Any] | None:
    """For each arm, how many runs end with a loss that is not below the unigram entropy of the training split.

    Such a model has learned token frequencies at most. The runs are those that stand for the arm in comparisons: of
    an arm with tuned settings, those at its best setting. None for a metric that is no loss. Arms without a run that
    has the metric, or without a known entropy in its unit, are left out.
    """
    if metric.split is None:
        return None
    runs = {(run.cell, run.seed): run for of_cell in study.cells().values() for run in of_cell}
    arms = []
    for arm, cells in cells_of_arms(study, metric).items():
        known = []
        for seed, cell in cells.items():
            loss, entropy = metric.of(runs[cell, seed]), metric.unigram_entropy(runs[cell, seed])
            if loss is not None and entropy is not None:
                known.append((loss, entropy))
        if known:
            name = label(dict(arm)) or ("all" if study.tuned_keys else study.label(study.baseline))
            not_below = sum(loss >= entropy for loss, entropy in known)
            arms.append({"label": name, "runs": len(known), "not_below": not_below, "unigram_entropy": known[0][1]})
    return {"metric": metric.key, "arms": arms, "sentence": sentences.token_frequencies_only(metric, arms)}


def budgets(study: Study, metric: Metric) -> list[dict[str, Any]]:
    """The metric at equal tokens, FLOPs and seconds of training; each budget is the largest that all runs reached.

    The curve of the metric is interpolated linearly between evaluations. A metric without a curve is replaced by
    eval/train_loss.
    """
    shown = metric if metric.curve else METRICS["eval/train_loss"]
    assert shown.curve is not None
    needed = {shown.curve, "seconds"}
    finished = [run for run in study.runs if run.status == "done" and run.repeat == 0 and needed <= run.curves.keys()]
    found = []
    for unit in UNITS if finished else ():
        budget = min(float(spent(run, run.curves[shown.curve].steps, unit)[-1]) for run in finished)
        of_cells: dict[str, list[float | None]] = {cell: [] for cell in study.levels}
        for run in finished:
            of_cells[run.cell].append(_at(run, shown, unit, budget))
        listed = [{"label": study.label(cell)} | _summary(values) for cell, values in of_cells.items()]
        found.append({"unit": unit, "budget": budget, "metric": shown.key, "cells": listed})
    return found


def spent(run: StudyRun, steps: npt.NDArray[np.int64], unit: str) -> Floats:
    """What a finished run had used after each of `steps`, shape (steps,): tokens, FLOPs or seconds of training."""
    assert run.result is not None
    if unit == "seconds":
        seconds = run.curves["seconds"]
        return np.interp(steps, np.append(0, seconds.steps), np.append(0.0, seconds.values))
    tokens = steps * (run.result["tokens"] / run.result["step"])
    return tokens * run.result["flops_per_token"] if unit == "FLOPs" else tokens


def _at(run: StudyRun, metric: Metric, unit: str, budget: float) -> float | None:
    assert metric.curve is not None
    curve = run.curves[metric.curve]
    value = curves.at_budget(spent(run, curve.steps, unit), curve.values, budget)
    return metrics.bits_per_byte(value, run.record["data"], metric.split) if metric.unit == metrics.BITS else value


def tuned_settings(study: Study, metric: Metric) -> list[dict[str, Any]] | None:
    """For each arm the number of settings tried, the setting with the best mean, and the learning-rate sensitivity.

    None where the study tunes nothing. A setting with a diverged run counts as tried but cannot be the best. The
    sensitivity follows Wortsman et al. 2023, section 2; for each learning rate it takes the best of the other tuned
    keys. It is None without a tuned learning rate and for metrics that are not losses.
    """
    if not study.tuned_keys:
        return None
    allowed = candidates(study)
    runs = study.cells()
    found = []
    for arm, tried in settings(study).items():
        means = {setting: _mean(runs[cell], metric) for setting, cell in allowed[arm].items()}
        known = {setting: mean for setting, mean in means.items() if mean is not None}
        best = (min if metric.lower_is_better else max)(known, key=lambda setting: known[setting]) if known else None
        found.append(
            {
                "arm": label(dict(arm)) or "all",
                "trials": sum(any(run.result is not None for run in runs[cell]) for cell in tried.values()),
                "best": None if best is None else dict(best),
                "mean": None if best is None else known[best],
                "lr_sensitivity": _sensitivity([run for cell in tried.values() for run in runs[cell]], metric),
            }
        )
    return found


def _mean(runs: list[StudyRun], metric: Metric) -> float | None:
    return stats.summarise([value for run in runs if (value := metric.of(run)) is not None]).mean


def _sensitivity(runs: list[StudyRun], metric: Metric) -> float | None:
    """A diverged run counts with its initial loss: the definition limits losses to that."""
    ended = [run for run in runs if run.result is not None and metric.curve in run.curves]
    if metric.curve is None or not ended or "optimizer.lr" not in ended[0].levels:
        return None
    started = [float(run.curves[metric.curve].values[0]) for run in ended if run.curves[metric.curve].steps[0] == 0]
    if not started:
        return None
    start = math.fsum(started) / len(started)
    of_settings: dict[tuple[float, str], list[float]] = {}
    for run in ended:
        value = metrics.value(run, metric.curve)
        others = {key: level for key, level in run.levels.items() if key != "optimizer.lr"}
        of_settings.setdefault((float(run.levels["optimizer.lr"]), label(others)), []).append(
            start if value is None else value
        )
    of_rates: dict[float, float] = {}
    for (rate, _), values in of_settings.items():
        of_rates[rate] = min(of_rates.get(rate, math.inf), math.fsum(values) / len(values))
    return stats.lr_sensitivity(of_rates, start)
