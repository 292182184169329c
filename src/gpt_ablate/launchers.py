"""Hydra's launchers that run several runs at once: how the machine is divided among them, and what ends them."""

from __future__ import annotations

import gc
import importlib.util
import os
import re
import sys
import time
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from . import ray_tasks
from .registry import Problem, UsageError
from .runs import cores

_PLACES = "GPT_ABLATE_PLACES"  # how many runs this machine takes at once
_GPUS = "GPT_ABLATE_GPUS"  # the launch's CUDA devices, as CUDA_VISIBLE_DEVICES names them
_SECONDS_BETWEEN_LOOKS = 0.5
_held: list[FileLock] = []


def check(composed: DictConfig) -> str:
    """The launcher of a composed config, by name. Raises UsageError if it is not installed or could start no run."""
    choice = str(composed.hydra.runtime.choices["hydra/launcher"])
    plugin = re.match(r"hydra_plugins\.hydra_(\w+)_launcher\.", str(composed.hydra.launcher["_target_"]))
    if plugin and not installed(plugin[0].rstrip(".")):
        raise UsageError([Problem("hydra/launcher", choice, f"not installed: pip install 'gpt_ablate[{plugin[1]}]'")])
    if "ray" in composed.hydra.launcher:
        ray_tasks.prepare(composed.hydra.launcher.ray, {"num_cpus": cores(), "num_gpus": len(gpus())})
    return choice


def installed(module: str) -> bool:
    """Whether a module can be imported here."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # nor is the package around it
        return False


def gpus() -> list[str]:
    """The CUDA devices that this launch may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(number) for number in range(count)]


def gpus_each() -> int:
    """CUDA devices of a run: one, if there is any."""
    return min(1, len(gpus()))


def processes(threads: int | None) -> int:
    """How many runs at once: one for each CUDA device; without any, as many as get `threads` (None: 1) cores each."""
    return len(gpus()) or max(1, cores() // (threads or 1))


def threads_each(threads: int | None, default: int | None = None) -> int:
    """CPU threads of a run: `threads`, else `default`, else its share of this machine's cores."""
    return threads or default or _share(processes(None))


def _share(at_once: int) -> int:
    return max(1, cores() // at_once)


def divide(composed: DictConfig) -> list[str]:
    """The override that gives each run its CPU threads under the launcher of a composed config; none if they are given.

    Leaves word for the runs on this machine of how many places there are, and which CUDA devices.
    """
    for variable in (_PLACES, _GPUS):
        os.environ.pop(variable, None)
    launcher = composed.hydra.launcher
    if "n_jobs" in launcher:
        at_once = launcher.n_jobs if launcher.n_jobs > 0 else max(1, cores() + 1 + launcher.n_jobs)
        share = _share(at_once)
    else:
        share = launcher.get("cpus_per_task") or OmegaConf.select(launcher, "ray.remote.num_cpus")
        at_once = processes(share) if "cpus_per_task" in launcher and "partition" not in launcher else None
    if at_once:
        os.environ |= {_PLACES: str(at_once), _GPUS: ",".join(gpus())}
    given = any(override.startswith("trainer.threads=") for override in composed.hydra.overrides.task)
    return [] if given or composed.trainer.threads or not share else [f"trainer.threads={share}"]


def take_place(folder: Path) -> None:
    """Take one of this machine's places for as long as the process lives, and with it one CUDA device.

    Waits until one is free, since submitit starts all runs on this machine at once. Does nothing where `divide` left no
    word. The system frees the place of a process that ends, however it ends.
    """
    if _PLACES not in os.environ or _held:
        return
    folder.mkdir(parents=True, exist_ok=True)
    while (number := _free_place(folder, int(os.environ[_PLACES]))) is None:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    devices = [device for device in os.environ[_GPUS].split(",") if device]
    if devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]


def _free_place(folder: Path, places: int) -> int | None:
    for number in range(places):
        lock = FileLock(folder / f"{number}.lock", timeout=0)
        with suppress(Timeout):
            lock.acquire()
            _held.append(lock)
            return number
    return None


def end_jobs(cancel: bool) -> None:
    """Wait for the jobs that submitit or Ray still has after one of them broke off its launcher, or cancel them."""
    ray_tasks.end(cancel)
    if "submitit" not in sys.modules:
        return
    from submitit import Job

    for job in [thing for thing in gc.get_objects() if issubclass(type(thing), Job)]:  # the launcher hands out none
        if cancel:
            job.cancel()
        job.wait()


for _resolver in (gpus_each, processes, threads_each):
    OmegaConf.register_new_resolver(_resolver.__name__, _resolver, replace=True)
