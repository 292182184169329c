"""Studies made of files alone: run directories as training writes them, with outcomes that a test chooses."""

from __future__ import annotations

import copy
import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson

AXES = ("norm", "layers", "attention")
LN_VOCAB, UNIGRAM_ENTROPY = math.log(50257), 6.0079
TOKENS_PER_STEP = 512
Level = str | float | int | bool
Levels = dict[str, Level]
Outcome = float | Callable[[Levels, int], float]
"""The same number for every run, or one that depends on its levels and its seed."""

CONFIG: dict[str, Any] = {
    "norm": {"name": "pre", "eps": 1e-05},
    "layers": {"name": "fresh"},
    "attention": {"name": "parallel"},
    "seed": 0,
    "study": None,
    "plugins": [],
    "cell_keys": [],
    "arm": None,
    "repeat": 0,
    "report": {"question": None, "baseline": {}, "metrics": {"eval/train_loss": 0.05}, "within": [], "tune": []},
    "init": {"name": "gpt2"},
    "model": {
        "name": "micro",
        "n_layer": 2,
        "n_head": 2,
        "d_model": 64,
        "mlp_hidden": 256,
        "context_length": 256,
        "dropout": 0.1,
        "qkv_bias": False,
        "tie_weights": False,
    },
    "data": {
        "name": "sample",
        "path": None,
        "dir": None,
        "batch_size": 2,
        "stride": 256,
        "train_fraction": 0.9,
    },
    "optimizer": {"name": "adamw", "lr": 0.003, "weight_decay": 0.1, "betas": [0.9, 0.999]},
    "schedule": {"name": "constant"},
    "trainer": {
        "max_epochs": None,
        "max_steps": 20,
        "eval_every": None,
        "eval_batches": None,
        "sample_every": None,
        "checkpoint_every": None,
        "grad_clip": None,
        "accumulate": 1,
        "device": "cpu",
        "dtype": "float32",
        "compile": False,
        "resume": "auto",
    },
    "sampling": {"prompt": "The bridge", "temperature": 1.0, "top_k": None, "top_p": None, "max_new_tokens": 50},
}


@dataclass(frozen=True)
class Shape:
    """How long the runs are and what they report of themselves."""

    steps: int = 20
    steps_per_epoch: int = 5
    tokens_per_second: Outcome = 1000.0
    peak_rss_bytes: Outcome = 1e9
    val_bytes_per_token: float | None = 4.0
    hardware: dict[str, Any] = field(default_factory=dict)


def make_study(
    root: Path,
    cells: Mapping[str, Sequence[Level]],
    seeds: Iterable[int] = (0, 1, 2),
    loss: Outcome = 5.0,
    *,
    statuses: Mapping[str, str] | None = None,
    repeats: Sequence[int] = (0,),
    report: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    shape: Shape | None = None,
    plan: bool = True,
) -> Path:
    """Write the study `root`: every combination of the levels in `cells` with every seed; return `root`.

    `cells` maps an axis or key to its values, as a sweep does: {"norm": ["post", "pre"], "optimizer.lr": [1e-3]}.
    `loss` is a run's final eval/train_loss (eval/val_loss is 1 above it). `statuses` names the runs that are not
    done ("post-fresh-parallel/seed_1": "failed", "diverged", "running" or "missing"). `report` and `config` (keys with
    dots) change the config of all runs. Without `plan` there is no study.json.
    """
    shape = shape or Shape()
    base = copy.deepcopy(CONFIG)
    base["study"] = root.name
    base["report"] |= report or {}
    base["trainer"]["max_steps"] = shape.steps
    base["cell_keys"] = sorted(key for key in cells if key not in AXES) + (["repeat"] if len(repeats) > 1 else [])
    for key, value in (config or {}).items():
        _set(base, key, value)
    planned = []
    levels_of_runs = (dict(zip(cells, values, strict=True)) for values in itertools.product(*cells.values()))
    for levels, seed, repeat in itertools.product(levels_of_runs, list(seeds), repeats):
        own = copy.deepcopy(base) | {"seed": seed, "repeat": repeat}
        for key, value in levels.items():
            _set(own, key, value)
        name = f"{_folder(own)}/seed_{seed}"
        record = record_of(own, shape)
        status = (statuses or {}).get(name, "done")
        if status != "missing":
            _write_run(root / name, record, status, levels, loss, shape)
        every = {axis: own[axis]["name"] for axis in AXES}
        every |= {key: str(_level(own, key)) for key in base["cell_keys"]}
        planned.append({"path": name, "seed": seed, "levels": every, "fingerprint": record["fingerprint"]})
    unknown = set(statuses or {}) - {run["path"] for run in planned}
    assert not unknown, f"no such runs: {unknown}; there are {[run['path'] for run in planned]}"
    if plan:
        swept = [f"{key}={','.join(map(str, values))}" for key, values in cells.items()]
        written = {
            "schema_version": 1,
            "study": root.name,
            "report": base["report"],
            "overrides": ["--multirun", f"study={root.name}", *swept, f"seed={','.join(map(str, seeds))}"],
            "runs": planned,
        }
        root.mkdir(parents=True, exist_ok=True)
        (root / "study.json").write_bytes(orjson.dumps(written))
    return root


def _set(config: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        config = config[section]
    if isinstance(config.get(last), dict):
        config[last]["name"] = value
    else:
        config[last] = value


def _level(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config["name"] if isinstance(config, dict) else config


def _folder(config: dict[str, Any]) -> str:
    keys = [f"{key}_{_level(config, key)}" for key in config["cell_keys"]]
    return "-".join([*(config[axis]["name"] for axis in AXES), *keys])


def record_of(config: dict[str, Any], shape: Shape) -> dict[str, Any]:
    """The run.json of a run that has begun."""
    without = ("study", "cell_keys", "report", "repeat")
    identity = orjson.dumps({key: value for key, value in config.items() if key not in without})
    data = {
        "sha256": "d" * 64,
        "train_tokens": 4612,
        "val_tokens": 534,
        "train_windows": 18,
        "val_windows": 2,
        "unigram_entropy": UNIGRAM_ENTROPY,
        "ln_vocab": LN_VOCAB,
    }
    if shape.val_bytes_per_token is not None:
        data |= {"val_bytes_per_token": shape.val_bytes_per_token, "train_bytes_per_token": 4.1}
    hardware = {"system": "Linux", "machine": "x86_64", "processor": "Some CPU", "cores": 2, "threads": 1}
    return {
        "schema_version": 1,
        "status": "running",
        "start": "2026-01-01T00:00:00.000+00:00",
        "end": None,
        "fingerprint": hashlib.sha256(identity).hexdigest(),
        "config": config,
        "axes": {axis: config[axis]["name"] for axis in AXES},
        "overrides": [],
        "data": data,
        "versions": {"python": "3.11.7", "gpt_ablate": "0.1.0", "torch": "2.13.0", "numpy": "2.4.6"},
        "hardware": hardware | {"memory_bytes": 25_276_510_208} | shape.hardware,
        "git_commit": "c" * 40,
        "total_steps": shape.steps,
        "error": None,
    }


def _write_run(path: Path, record: dict[str, Any], status: str, levels: Levels, loss: Outcome, shape: Shape) -> None:
    path.mkdir(parents=True)
    seed = record["config"]["seed"]
    final = _outcome(loss, levels, seed)
    speed = _outcome(shape.tokens_per_second, levels, seed)
    done = shape.steps if status == "done" else shape.steps // 2
    lines = _lines(final, speed, done, shape, np.random.default_rng([seed, int(record["fingerprint"][:8], 16)]))
    samples = [
        {"step": line["step"], "epoch": line["epoch"], "wall_time": line["wall_time"], "text": f" was {seed}"}
        | record["config"]["sampling"]
        for line in lines
        if "train/epoch_loss" in line
    ]
    end = "2026-01-01T01:00:00.000+00:00"
    if status == "failed":
        error = 'Traceback (most recent call last):\n  File "train.py", line 1\nMemoryError: not enough\n'
        record |= {"status": status, "end": end, "error": error}
    elif status != "running":
        record |= {"status": status, "end": end}
        peak = _outcome(shape.peak_rss_bytes, levels, seed)
        (path / "result.json").write_bytes(orjson.dumps(_result(lines, status, peak)))
        (path / "checkpoint" / "final").mkdir(parents=True)
        weights = {"step": done, "sha256": {"model.safetensors": record["fingerprint"]}}
        (path / "checkpoint" / "final" / "state.json").write_bytes(orjson.dumps(weights))
    (path / "run.json").write_bytes(orjson.dumps(record))
    torn = b'{"step": 9' if status == "running" else b""
    (path / "metrics.jsonl").write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines) + torn)
    (path / "samples.jsonl").write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in samples))


def _lines(final: float, speed: float, done: int, shape: Shape, noise: np.random.Generator) -> list[dict[str, Any]]:
    """metrics.jsonl: an exponential from ln V that is at `final` at the last step."""
    lines: list[dict[str, Any]] = []
    recent: list[float] = []
    shared = {"epoch": 0, "tokens": 0, "wall_time": 0.0, "eval/train_loss": LN_VOCAB, "eval/val_loss": LN_VOCAB + 1}
    lines.append({"step": 0} | shared)
    jitter = noise.normal(scale=0.1, size=done + 1).tolist()
    for step in range(1, done + 1):
        left = (math.exp(-5 * step / shape.steps) - math.exp(-5)) / (1 - math.exp(-5))
        clean = final + (LN_VOCAB - final) * left
        recent.append(clean + jitter[step])
        line = {
            "step": step,
            "epoch": math.ceil(step / shape.steps_per_epoch),
            "tokens": step * TOKENS_PER_STEP,
            "wall_time": round(step * TOKENS_PER_STEP / speed, 3),
            "train/loss": recent[-1],
            "lr": 0.003,
            "grad_norm": 1.0 + jitter[step] ** 2,
            "tokens_per_second": speed,
        }
        if step % shape.steps_per_epoch == 0 or step == shape.steps:
            line |= {
                "train/epoch_loss": sum(recent) / len(recent),
                "eval/train_loss": clean,
                "eval/val_loss": clean + 1,
            }
            recent = []
        lines.append(line)
    return lines


def _result(lines: list[dict[str, Any]], status: str, peak: float) -> dict[str, Any]:
    last = lines[-1]
    final = {}
    for key in ("train/loss", "train/epoch_loss", "eval/train_loss", "eval/val_loss"):
        values = [line[key] for line in lines if key in line]
        final |= {key: values[-1]} if values else {}
    best = {
        key: min(({"value": line[key], "step": line["step"]} for line in lines if key in line), key=_value)
        for key in ("eval/train_loss", "eval/val_loss")
    }
    return {
        "schema_version": 1,
        "status": status,
        "diverged": f"the loss is nan at step {last['step'] + 1}" if status == "diverged" else None,
        "step": last["step"],
        "tokens": last["tokens"],
        "final": final,
        "best": best,
        "parameters": 6_548_224,
        "flops_per_token": 2e7,
        "flops": 2e7 * last["tokens"],
        "seconds_per_step": TOKENS_PER_STEP / last["tokens_per_second"],
        "tokens_per_second": last["tokens_per_second"],
        "wall_time": last["wall_time"],
        "peak_rss_bytes": int(peak),
        "peak_rss_is_of_run": True,
        "device": "cpu",
    }


def _value(point: dict[str, float]) -> float:
    return point["value"]


def _outcome(outcome: Outcome, levels: Levels, seed: int) -> float:
    return outcome(levels, seed) if callable(outcome) else outcome
