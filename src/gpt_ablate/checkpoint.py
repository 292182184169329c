"""Checkpoints: safetensors and JSON, whole or absent, each file with its SHA-256."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, load_model, save_file, save_model

from .config import Config
from .model import GPT
from .registry import Problem, UsageError
from .runs import RunDirectory, read_json, write_json

_WEIGHTS, _OPTIMIZER, _STATE = "model.safetensors", "optimizer.safetensors", "state.json"
_KEPT = 2


def save(
    directory: RunDirectory, step: int, model: GPT, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """Write `checkpoint/step_<n>`: all that is needed to go on, then drop all but the newest two."""
    optimizer_state = {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }
    folder = directory.checkpoints / f"step_{step:09d}"
    _write(folder, model, optimizer_state, state | {"step": step})
    for old in _by_step(directory)[:-_KEPT]:
        shutil.rmtree(old)


def save_final(directory: RunDirectory, step: int, model: GPT) -> None:
    """Write `checkpoint/final`: weights alone."""
    _write(directory.checkpoints / "final", model, None, {"step": step})


def drop_steps(directory: RunDirectory) -> None:
    """Remove what a finished run needs no more: all checkpoints but the final one."""
    for old in _by_step(directory):
        shutil.rmtree(old)


def discard(directory: RunDirectory) -> None:
    """Remove every checkpoint."""
    shutil.rmtree(directory.checkpoints, ignore_errors=True)


def restore(directory: RunDirectory, model: GPT, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
    """Load the newest whole checkpoint into model and optimizer; its state, or None where there is no checkpoint.

    Raises UsageError, naming what is damaged, if there are checkpoints and none is whole.
    """
    damaged = []
    for folder in reversed(_by_step(directory)):
        if problem := _damage(folder):
            damaged.append(problem)
            continue
        load_model(model, folder / _WEIGHTS)
        _restore_optimizer(load_file(folder / _OPTIMIZER), model, optimizer)
        return read_json(folder / _STATE) | {"damaged": [str(problem) for problem in damaged]}
    if damaged:
        raise UsageError(damaged)
    return None


def load_trained(directory: RunDirectory) -> tuple[GPT, Config]:
    """The model of a run with the weights of its newest checkpoint, in evaluation mode.

    Raises UsageError if the folder holds no run or no whole checkpoint.
    """
    from . import registry

    config_record = directory.record()["config"]
    registry.load(config_record["plugins"])
    config = Config.model_validate(config_record)
    final = directory.checkpoints / "final"
    folders = [final] if final.exists() else _by_step(directory)[::-1]
    damaged = []
    for folder in folders:
        if problem := _damage(folder):
            damaged.append(problem)
            continue
        model = GPT(config)
        load_model(model, folder / _WEIGHTS)
        return model.eval(), config
    raise UsageError(damaged or [Problem("run directory", str(directory.path), "a run that has saved a checkpoint")])


def _by_step(directory: RunDirectory) -> list[Path]:
    return sorted(directory.checkpoints.glob("step_*"))


def _write(folder: Path, model: GPT, optimizer: dict[str, torch.Tensor] | None, state: dict[str, Any]) -> None:
    beside = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    save_model(model, str(beside / _WEIGHTS))
    if optimizer is not None:
        save_file(optimizer, beside / _OPTIMIZER)
    hashes = {file.name: _sha256(file) for file in sorted(beside.iterdir())}
    write_json(beside / _STATE, state | {"sha256": hashes})
    for file in beside.iterdir():
        _sync(file)
    shutil.rmtree(folder, ignore_errors=True)
    beside.replace(folder)
    _sync(folder.parent)


def _restore_optimizer(saved: dict[str, torch.Tensor], model: GPT, optimizer: torch.optim.Optimizer) -> None:
    state: dict[int, dict[str, torch.Tensor]] = {i: {} for i, _ in enumerate(model.parameters())}
    index = {name: i for i, (name, _) in enumerate(model.named_parameters())}
    for key, value in saved.items():
        name, _, entry = key.rpartition("/")
        state[index[name]][entry] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def _damage(folder: Path) -> Problem | None:
    """The first file of a checkpoint that is not what was written, if any."""
    try:
        hashes = json.loads((folder / _STATE).read_text(encoding="utf-8"))["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Problem("checkpoint", str(folder / _STATE), f"damaged ({error})")
    for name, expected in hashes.items():
        file = folder / Path(name).name
        if not file.is_file() or _sha256(file) != expected:
            return Problem("checkpoint", str(file), "damaged: not the bytes that were written")
    return None


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        digest = hashlib.sha256()
        while block := opened.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
