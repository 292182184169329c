"""Runs as tasks of Ray's: what they need on another node, and an end in order when their launch is broken off."""

from __future__ import annotations

import gc
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from gpt_ablate.launching.hydra_settings import BASIC_SWEEPER
from gpt_ablate.studies.run_directory import STUDY_FILE, RunDirectory
from gpt_ablate.utils.errors import Problem, UsageError
from gpt_ablate.utils.messages import say

_SECONDS_BETWEEN_LOOKS = 0.5
_PRINTED = {"RAY_DEDUP_LOGS": "0", "RAY_COLOR_PREFIX": "0"}
"""Every line of every run, and no colours in a log file. Ray reads these when it is imported."""


def prepare(settings: DictConfig, here: dict[str, int]) -> None:
    """Before Ray starts. Raises UsageError if a run would wait without end for what this machine does not have.

    here: the cores and CUDA devices, as Ray's options call them.
    """
    os.environ |= _PRINTED | os.environ
    if settings.init.get("address") != "local":
        return
    problems = [
        Problem(f"hydra.launcher.ray.remote.{key}", wanted, f"at most {there}: all that Ray has on this machine")
        for key, number in here.items()
        if (wanted := settings.remote.get(key) or 0) > (there := settings.init.get(key) or number)
    ]
    if problems:
        raise UsageError(problems)


def launch_environment(*, _root_: DictConfig) -> dict[str, str]:
    """The variables of this process that a run may read: the package's own, and those that the config asks for.

    Places of modules are made absolute, since a process of Ray's starts in a folder of its own.
    """
    asked = re.findall(r"\boc\.env:\s*(\w+)", OmegaConf.to_yaml(_root_))
    found = {name: os.environ[name] for name in ("GPT_ABLATE_DATA", "PYTHONPATH", *asked) if name in os.environ}
    modules = [os.path.abspath(entry) for entry in found.get("PYTHONPATH", "").split(os.pathsep) if entry]
    return found | ({"PYTHONPATH": os.pathsep.join(modules)} if modules else {})


def arrive(section: DictConfig, directory: RunDirectory) -> None:
    """Before a run: be in the folder of the launch, to which paths are relative, and have the run for oneself.

    Waits for the run's earlier process, which lives for a while on a node that Ray has given up. Raises UsageError on a
    node that does not have the study's folder.
    """
    planned = section.sweeper["_target_"] == BASIC_SWEEPER  # another decides as it goes, and leaves no such file
    if planned and not (Path(section.sweep.dir) / STUDY_FILE).exists():
        raise UsageError([Problem("hydra.sweep.dir", section.sweep.dir, "a folder that all of Ray's nodes share")])
    with suppress(FileNotFoundError):  # then no path may be relative, and one that is will be refused
        os.chdir(section.runtime.cwd)
    if directory.busy():
        say(f"{directory.name}: waits for another process that trains this run")
        while directory.busy():
            time.sleep(_SECONDS_BETWEEN_LOOKS)


@contextmanager
def stopped_after(*ends: type[BaseException]) -> Iterator[None]:
    """After one of these exceptions, which end a launch, have the runs save their states and stop.

    Ray raises what ended a task as an Exception too, whatever it was in the task.
    """
    try:
        yield
    except ends:
        end(cancel=True)
        raise


def end(cancel: bool) -> None:
    """Wait for the tasks that Ray still has, which would die with this process.

    cancel: a run that goes on saves its state and stops, one that waits does not start.
    """
    if "ray" not in sys.modules:
        return
    import ray

    # the launcher hands out none
    tasks = [thing for thing in gc.get_objects() if issubclass(type(thing), ray.ObjectRef)]
    if cancel:
        for task in tasks:
            ray.cancel(task)
    for task in tasks:
        with suppress(ray.exceptions.RayError):  # what became of its run stands in the record
            ray.get(task)


OmegaConf.register_new_resolver("launch_environment", launch_environment, replace=True)
