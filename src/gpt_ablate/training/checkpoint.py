"""Checkpoints: safetensors and JSON, whole or absent, each file with its SHA-256."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from gpt_ablate.config.schema import Config
from gpt_ablate.data import tokenizer_files
from gpt_ablate.data.gpt2_encoding import Gpt2
from gpt_ablate.data.tokenizers import Tokenizer
from gpt_ablate.models import sharing
from gpt_ablate.models.gpt import GPT
from gpt_ablate.studies.run_directory import RunDirectory
from gpt_ablate.training import hardware_rules
from gpt_ablate.training.optimizers import Optimizer
from gpt_ablate.utils.errors import Problem, UsageError
from gpt_ablate.utils.files import content_of, read_json, write_json

_WEIGHTS, _OPTIMIZER, _STATE = "model.safetensors", "optimizer.safetensors", "state.json"
_FINAL, _BEST, _TOKENIZER = "final", "best", "tokenizer.json"
_KEPT = 2
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


def save(
    directory: RunDirectory,
    step: int,
    model: GPT,
    optimizer: Optimizer,
    lines: dict[str, int],
    wall_time: float,
) -> None:
    """Write `checkpoint/step_<n>`, all that is needed to go on, then drop all but the newest two.

    Data order, dropout and samples need no state: their streams are derived from seed and step, and so is the
    schedule. `lines` says how far the record had come: lines of each of its files.
    """
    optimizer_state = {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }
    folder = directory.checkpoints / f"step_{step:09d}"
    _write(folder, model, optimizer_state, {"step": step, "wall_time": wall_time, "lines": lines})
    for old in _by_step(directory)[:-_KEPT]:
        shutil.rmtree(old)


def save_final(directory: RunDirectory, step: int, model: GPT) -> None:
    """Write `checkpoint/final`: weights alone."""
    _write(directory.checkpoints / _FINAL, model, None, {"step": step})


def save_best(directory: RunDirectory, step: int, model: GPT, loss: float) -> None:
    """Write `checkpoint/best`: weights alone, of the lowest validation loss so far."""
    _write(directory.checkpoints / _BEST, model, None, {"step": step, "eval/val_loss": loss})


def drop_steps(directory: RunDirectory) -> None:
    """Remove what a finished run needs no more: all checkpoints but the final and the best one."""
    for old in _by_step(directory):
        shutil.rmtree(old)


def has_steps(directory: RunDirectory) -> bool:
    """Whether there are checkpoints to go on from, whole or not."""
    return bool(_by_step(directory))


def discard(directory: RunDirectory) -> None:
    """Remove every checkpoint."""
    shutil.rmtree(directory.checkpoints, ignore_errors=True)


@dataclass(frozen=True)
class Saved:
    """A whole checkpoint to go on from, with what newer ones were passed over because they are damaged."""

    folder: Path
    step: int
    wall_time: float
    passed_over: list[Problem]


def newest(directory: RunDirectory) -> Saved | None:
    """The newest whole checkpoint to go on from, or None where none was saved.

    Raises UsageError, naming what is damaged, if there are checkpoints and none is whole.
    """
    damaged: list[Problem] = []
    for folder in reversed(_by_step(directory)):
        if problem := _damage(folder) or _unrecorded(directory, folder):
            damaged.append(problem)
            continue
        state = read_json(folder / _STATE)
        return Saved(folder, state["step"], state["wall_time"], damaged)
    if damaged:
        again = Problem("trainer.resume", "auto", f"never, to start {directory.path} at step 0 again")
        raise UsageError([*damaged, again])
    return None


def load(folder: Path, model: GPT, optimizer: Optimizer | None = None) -> None:
    """Load a whole checkpoint into model and optimizer. Raises UsageError if it is of another model."""
    try:
        sharing.load_weights(model, load_file(folder / _WEIGHTS))
        if optimizer is not None:
            _restore_optimizer(load_file(folder / _OPTIMIZER), model, optimizer)
    except (RuntimeError, ValueError, KeyError, OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError([Problem("checkpoint", str(folder), f"weights of this run's model ({reason})")]) from error


def save_tokenizer(directory: RunDirectory, tokenizer: Tokenizer) -> None:
    """Write `checkpoint/tokenizer.json`, from which `load_tokenizer` makes the tokenizer again, if it is not there."""
    file = directory.checkpoints / _TOKENIZER
    with suppress(UsageError):
        if tokenizer_files.load(file).sha256 == tokenizer.sha256:
            return
    tokenizer_files.save(tokenizer, file)


def load_tokenizer(directory: RunDirectory) -> Tokenizer:
    """The tokenizer that a run was trained with. Raises UsageError if its file is damaged or another one's."""
    file, recorded = directory.checkpoints / _TOKENIZER, directory.record()["data"].get("tokenizer_sha256")
    if recorded is None:  # such runs were made when there was no other
        return Gpt2()
    found = tokenizer_files.load(file)
    if found.sha256 != recorded:
        raise UsageError([Problem("checkpoint", str(file), f"the tokenizer of this run, with SHA-256 {recorded}")])
    return found


def load_trained(directory: RunDirectory, best: bool = False, plugins: Sequence[str] = ()) -> tuple[GPT, Tokenizer]:
    """The model of a run with the weights of its newest (or `best`) checkpoint, in evaluation mode; its tokenizer.

    A run directory may come from anyone, so the modules that its config names are imported only if `plugins` names
    them too. Raises UsageError if they are not named, or the folder holds no run, no such checkpoint or none whole.
    """
    config, tokenizer = trained_config(directory, plugins), load_tokenizer(directory)
    final, lowest = (directory.checkpoints / name for name in (_FINAL, _BEST))
    if best:
        folders = [lowest] if lowest.exists() else []
    else:
        folders = [final] if final.exists() else _by_step(directory)[::-1]
    damaged = []
    for folder in folders:
        if problem := _damage(folder):
            damaged.append(problem)
            continue
        if larger := _larger(config, tokenizer.vocab_size, folder / _WEIGHTS):
            raise UsageError([larger])
        model = GPT(config, tokenizer.vocab_size)
        load(folder, model)
        return model.eval(), tokenizer
    sought = "its best checkpoint (kept where trainer.checkpoint_every is not 0)" if best else "a checkpoint"
    raise UsageError(damaged or [Problem("run directory", str(directory.path), f"a run that has saved {sought}")])


def trained_config(directory: RunDirectory, plugins: Sequence[str]) -> Config:
    """The config that a run recorded.

    Raises UsageError if it is damaged, no model has it, or it names plugins that are not among `plugins`.
    """
    from gpt_ablate.config import registry, rules

    recorded = directory.record()["config"]
    if foreign := [name for name in recorded["plugins"] if name not in plugins]:
        allowed = "named with --plugin if you trust it: this run needs it, and importing it runs its code"
        raise UsageError([Problem("plugins", name, allowed) for name in foreign])
    registry.load(recorded["plugins"])
    config = Config.model_validate(recorded)
    problems = [Problem(axis, None, "a variant") for axis in registry.axis_names() if axis not in config.axes]
    if problems := [*problems, *rules.shape(config)]:
        raise UsageError(problems)
    return config


def _by_step(directory: RunDirectory) -> list[Path]:
    return sorted(directory.checkpoints.glob("step_*"))


def _write(folder: Path, model: GPT, optimizer: dict[str, torch.Tensor] | None, state: dict[str, Any]) -> None:
    beside = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    with _as_os_errors(beside):
        save_file(sharing.weights(model), beside / _WEIGHTS)
        if optimizer is not None:
            save_file(optimizer, beside / _OPTIMIZER)
    files = sorted(beside.iterdir())
    with ThreadPoolExecutor() as pool:  # the disk takes what is hashed meanwhile
        hashes = pool.map(_sha256, files)
        for file in files:
            _sync(file)
        write_json(
            beside / _STATE, state | {"sha256": {file.name: found for file, found in zip(files, hashes, strict=True)}}
        )
    mode = (beside / _STATE).stat().st_mode
    for file in files:
        file.chmod(mode)  # safetensors lets nobody else read
    shutil.rmtree(folder, ignore_errors=True)
    beside.replace(folder)
    _sync(folder.parent)


@contextmanager
def _as_os_errors(where: Path) -> Iterator[None]:
    """Turn what safetensors raises for a full disk and the like into the OSError that it stands for."""
    try:
        yield
    except SafetensorError as error:
        if found := _OS_ERROR.search(str(error)):
            number = int(found[1])
            raise OSError(number, os.strerror(number), str(where)) from error
        raise


def _restore_optimizer(saved: dict[str, torch.Tensor], model: GPT, optimizer: Optimizer) -> None:
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state[parameter].items():
            value.copy_(saved[f"{name}/{key}"])


def _damage(folder: Path) -> Problem | None:
    """The first file of a checkpoint that is not what was written, if any."""
    try:
        hashes = read_json(folder / _STATE)["sha256"]
        expected = {name: str(hashes[name]) for name in (_WEIGHTS, _OPTIMIZER) if name in hashes or name == _WEIGHTS}
    except (UsageError, KeyError, TypeError) as error:
        return Problem("checkpoint", str(folder / _STATE), f"damaged ({error!r})")
    for name, digest in expected.items():
        file = folder / name
        if not file.is_file() or _sha256(file) != digest:
            return Problem("checkpoint", str(file), "damaged: not the bytes that were written")
    return None


def _larger(config: Config, vocab_size: int, weights: Path) -> Problem | None:
    """A config whose model has more parameters than the file has bytes: to build it might never end."""
    if (least := hardware_rules.least_parameters(config, vocab_size)) <= (size := weights.stat().st_size):
        return None
    return Problem("checkpoint", str(weights), f"weights of this run's model ({least:,} or more, not {size:,} bytes)")


def _unrecorded(directory: RunDirectory, folder: Path) -> Problem | None:
    """The first file of the record that lacks lines which were there when the checkpoint was saved, if any."""
    lines = read_json(folder / _STATE).get("lines", {})
    for file in (directory.metrics_file, directory.samples_file):
        there = content_of(file).count(b"\n") if file.exists() else 0
        if there < (expected := lines.get(file.name, 0)):
            allowed = f"{expected} lines or more, as when {folder.name} was saved, not {there}"
            return Problem("run directory", str(file), allowed)
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
