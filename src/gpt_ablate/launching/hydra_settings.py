"""Hydra's own section of a config: which of its keys a launch may set, and what to."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import RangeSweep
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf

from gpt_ablate.utils import files
from gpt_ablate.utils.errors import Problem, UsageError, closest

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
MOST_RUNS = 10_000
"""Runs of one launch: a range that is longer was not meant, and all are checked before the first starts."""
_NO_LOGGING = {"version": 1, "root": None, "disable_existing_loggers": False}
_LEFT_ALONE: dict[str, Any] = {
    "hydra_logging": _NO_LOGGING,  # handlers name classes and files anywhere
    "job_logging": _NO_LOGGING,
    "callbacks": {},  # they would be a second way to run a user's code, beside plugins
    "output_subdir": None,
    "job.chdir": None,
    "job.env_set": {},
}


def check(section: DictConfig, multirun: bool) -> None:
    """Raise UsageError for settings that this package does not work with, or that would run a stranger's code."""
    problems = [
        Problem(f"hydra.{key}", value, f"must be left at {default!r}")
        for key, default in _LEFT_ALONE.items()
        if (value := _plain(section, key)) != default
    ]
    if multirun:
        problems += [*_plugin(section, "launcher", Launcher), *_plugin(section, "sweeper", Sweeper)]
        problems += _basic_sweeper(section)
    if problems:
        raise UsageError(problems)


def _plain(section: DictConfig, key: str) -> Any:
    value = OmegaConf.select(section, key)
    return OmegaConf.to_container(value, resolve=False) if OmegaConf.is_config(value) else value


def _plugin(section: DictConfig, key: str, kind: type) -> list[Problem]:
    """A class that Hydra would build, and that is none of its installed plugins."""
    target = str(_plain(section, f"{key}._target_"))
    known = [f"{plugin.__module__}.{plugin.__qualname__}" for plugin in Plugins.instance().discover(kind)]
    if target in known:
        return []
    return [Problem(f"hydra.{key}._target_", target, f"one of {', '.join(sorted(known))}", closest(target, known))]


def _basic_sweeper(section: DictConfig) -> list[Problem]:
    sweeper = _plain(section, "sweeper")
    if sweeper["_target_"] != BASIC_SWEEPER:
        return []
    problems = []
    if (size := sweeper["max_batch_size"]) is not None and size < 1:
        problems.append(Problem("hydra.sweeper.max_batch_size", size, "null or an integer from 1"))
    return problems


def few_enough(overrides: Iterable[Override]) -> None:
    """Raise UsageError if these overrides ask for more runs than one launch takes; lists none of them."""
    runs = 1
    for override in overrides:
        if override.is_sweep_override():
            runs *= _length(override)
        if runs > MOST_RUNS:
            told = f"at most {MOST_RUNS:,} runs in one launch"
            raise UsageError([Problem(override.key_or_group, override.input_line or "", told)])


def _length(override: Override) -> int:
    value = override.value()
    values = value.range() if isinstance(value, RangeSweep) else override.sweep_string_iterator()
    return sum(1 for _ in itertools.islice(values, MOST_RUNS + 1))


def misplaced(run: Path, study: Path) -> list[Problem]:
    """What is wrong with the place of a run in its study's folder: it must lie below it, and behind no link."""
    place = Path(os.path.normpath(run))
    if study not in place.parents:
        return [Problem("hydra.sweep.subdir", str(run), f"a folder inside the study's, {study}")]
    return files.misplaced(folders=(parent for parent in place.parents if study in parent.parents))
