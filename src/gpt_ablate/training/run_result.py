"""What came of a run: the content of result.json, from its metrics and its model."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from gpt_ablate.studies import records
from gpt_ablate.training import budgets

_LOSSES = ("train/loss", "train/epoch_loss", "eval/train_loss", "eval/val_loss")


def result(
    history: Sequence[dict[str, Any]],
    tokens_per_step: int,
    flops_per_token: float,
    diverged: str | None,
    declared: Iterable[str] = (),
) -> dict[str, Any]:
    """Final and best losses in nats per token, what reaching them cost, and the last values of `declared` scalars."""
    final: dict[str, float] = {}
    for key in dict.fromkeys([*_LOSSES, *declared]):
        values = [line[key] for line in history if key in line]
        final |= {key: values[-1]} if values else {}
    seconds = budgets.training_seconds(history, tokens_per_step)
    tokens = len(seconds) * tokens_per_step
    return {
        "schema_version": records.SCHEMA_VERSION,
        "status": "diverged" if diverged else "done",
        "diverged": diverged,
        "step": len(seconds),
        "tokens": tokens,
        "final": final,
        "best": {key: _lowest(history, key) for key in ("eval/train_loss", "eval/val_loss")},
        "flops_per_token": flops_per_token,
        "flops": flops_per_token * tokens,
        "training_seconds": sum(seconds),
        "seconds_per_step": statistics.median(seconds) if seconds else None,
        "tokens_per_second": tokens / sum(seconds) if seconds else None,
    }


def _lowest(history: Sequence[dict[str, Any]], key: str) -> dict[str, float] | None:
    """The lowest value of a metric and the step it was reached at."""
    points = [{"value": line[key], "step": line["step"]} for line in history if key in line]
    return min(points, key=lambda point: point["value"], default=None)
