"""What decides the result of a run: the config without paths, logging and device, and its hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

_WITHOUT_EFFECT = (
    *("study.", "cell_keys.", "callbacks.", "repeat.", "report."),
    *("data.path.", "data.dir.", "data.dtype.", "data.val.", "data.column.", "data.verify.", "tokenizer.path."),
    *(f"trainer.{key}." for key in ("device", "threads", "checkpoint_every", "resume", "fail_fast")),
)


IMPLIED: dict[str, dict[str, Any]] = {
    "normalizer": {"name": "layernorm", "eps": 1e-5},
    "position": {"name": "learned"},
    "mlp": {"name": "gelu"},
    "residual": {"name": "sequential"},
}
"""Axes that runs were once recorded without, and the variant that each of those runs had."""

_UNCHANGED = {
    "tokenizer.name": "gpt2",
    "data.replacement": False,
    "data.join_lines": False,
    "model.bias": True,
    "mlp.approximate": "tanh",
    "optimizer.decay": "all",
    "objective.name": "cross_entropy",
    "objective.z_loss": 0.0,
    "objective.label_smoothing": 0.0,
}
"""Other keys that runs were once recorded without, at the values that change nothing."""


def comparable(record: Mapping[str, Any]) -> dict[str, Any]:
    """`record` less paths, logging and device, flat: {"optimizer.lr": 0.0004, ...}.

    Runs that were recorded before a key existed stay comparable, with the same fingerprint. So a key that is null is
    left out, and so are the values of `IMPLIED` and `_UNCHANGED`. `normalizer.eps` has its older name, `norm.eps`.
    """
    flat = {
        key: value
        for key, value in flatten(record).items()
        if value is not None and not f"{key}.".startswith(_WITHOUT_EFFECT)
    }
    if flat.get("data.name") == "tokens":
        flat.setdefault("data.train_fraction", 0.9)  # once recorded of token files too, which no fraction divides
    if (eps := flat.pop("normalizer.eps", None)) is not None:
        flat.setdefault("norm.eps", eps)
    implied = flatten(IMPLIED) | _UNCHANGED
    return {key: value for key, value in flat.items() if value != implied.get(key)}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined with dots."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()
