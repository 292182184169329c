"""Hydra's launchers that run several runs at once: how the machine is divided among them, and what ends them."""

from __future__ import annotations

import functools
import gc
import importlib.util
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from gpt_ablate.launching import ray_tasks
from gpt_ablate.launching.environment import cores
from gpt_ablate.utils import signals
from gpt_ablate.utils.errors import Problem, UsageError

_PLACES = "GPT_ABLATE_PLACES"  # how many runs this machine takes at once
_GPUS = "GPT_ABLATE_GPUS"  # the launch's CUDA devices, as CUDA_VISIBLE_DEVICES names them
_SECONDS_BETWEEN_LOOKS = 0.5
_BASIC, _JOBLIB, _LOCAL, _SLURM = "BasicLauncher", "JoblibLauncher", "LocalLauncher", "SlurmLauncher"
_RAY = "RayLauncher"
_held: list[FileLock] = []
_until_exit = ExitStack()


def class_of(section: DictConfig) -> str:
    """The class of the launcher in Hydra's section of a config, by name."""
    return str(section.launcher["_target_"]).rpartition(".")[2]


def check(composed: DictConfig) -> str:
    """The launcher of a composed config, by name.

    Raises UsageError if it is not installed, could start no run, or would ask its jobs to stop before they start.
    """
    choice = str(composed.hydra.runtime.choices["hydra/launcher"])
    plugin = re.match(r"hydra_plugins\.hydra_(\w+)_launcher\.", str(composed.hydra.launcher["_target_"]))
    if plugin and not installed(plugin[0].rstrip(".")):
        raise UsageError([Problem("hydra/launcher", choice, f"not installed: pip install 'gpt_ablate[{plugin[1]}]'")])
    launcher = composed.hydra.launcher
    delay, minutes = launcher.get("signal_delay_s"), launcher.get("timeout_min")
    if delay is not None and minutes is not None and not 0 < delay < 60 * minutes:
        allowed = f"seconds between 0 and timeout_min ({minutes} min)"
        raise UsageError([Problem("hydra.launcher.signal_delay_s", delay, allowed)])
    if "ray" in launcher:
        ray_tasks.prepare(launcher.ray, {"num_cpus": cores(), "num_gpus": len(gpus())})
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


def take_place(folder: Path, stop: Sequence[int]) -> None:
    """Take one of this machine's places for as long as the process lives, and with it one CUDA device.

    Waits until one is free, since submitit starts all runs on this machine at once. Does nothing where `divide` left no
    word. The system frees the place of a process that ends, however it ends. Raises Interrupted once `stop` holds a
    signal.
    """
    if _PLACES not in os.environ or _held:
        return
    folder.mkdir(parents=True, exist_ok=True)
    while (number := _free_place(folder, int(os.environ[_PLACES]))) is None:
        if stop:
            raise signals.Interrupted("stopped before it started", stop[0])
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


@contextmanager
def waiting(launcher: str, study: Path) -> Iterator[Sequence[int]]:
    """While a launcher waits for runs in other processes: the signals that asked this one to stop; those stop then.

    Slurm's jobs need no process here, so they go on: there Interrupted is raised at once, as where runs are made here.
    """
    if launcher == _SLURM:
        from gpt_ablate.launching import slurm

        slurm.watch(study / ".submitit" / "launch.log")
        yield ()
    elif launcher in (_JOBLIB, _LOCAL):
        with signals.noted() as received, _passed_on(received, _workers if launcher == _JOBLIB else _controllers):
            if launcher == _LOCAL:
                with _not_for_children("SIGINT", "SIGHUP"):
                    yield received
            else:
                yield received
    elif launcher == _RAY:
        try:
            yield ()
        except KeyboardInterrupt:  # Ray raises one of its own in the place of ours
            raise signals.Interrupted("stopped", signal.SIGINT) from None
    else:
        yield ()


@contextmanager
def _passed_on(received: Sequence[int], processes: Callable[[], list[int]]) -> Iterator[None]:
    """Once there is a signal, send SIGTERM to these processes, again and again: one that begins may not hear it yet."""
    over = Event()

    def pass_on() -> None:
        while not over.wait(_SECONDS_BETWEEN_LOOKS):
            for number in processes() if received else ():
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGTERM)

    thread = Thread(target=pass_on, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def _not_for_children(*names: str) -> Iterator[None]:
    """Keep what a terminal sends to all its processes from those that start now; another thread takes it for this one.

    submitit's process beside each run answers SIGINT with SIGKILL for the run a second later.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [getattr(signal, name) for name in names])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _workers() -> list[int]:
    return [child.pid for child in multiprocessing.active_children() if child.pid]


def _controllers() -> list[int]:
    return [int(job.job_id) for job in jobs() if not job.done()]


@functools.cache
def _note_until_exit() -> None:
    _until_exit.enter_context(signals.noted())


@contextmanager
def stops_noted(launcher: str) -> Iterator[Sequence[int]]:
    """In the process of a run: what asks it to stop. A worker of joblib's, which makes other runs later, keeps it."""
    if launcher == _JOBLIB:
        _note_until_exit()
    if launcher == _LOCAL:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.SIGNALS)
    with signals.noted() as received:
        yield received


def makes_all(launcher: str) -> bool:
    """Whether all runs of a launch are made in its own process, one after the other."""
    return launcher == _BASIC


def ends_quietly(launcher: str) -> bool:
    """Whether the job of a run that was stopped ends without an exception, which would end the other runs at once."""
    return launcher in (_JOBLIB, _LOCAL, _SLURM)


def give_back(launcher: str, received: Sequence[int]) -> None:
    """After a run was stopped and has saved its state: see to it that its job comes again, if that was meant.

    Ends this process then. Raises what submitit does where a job was queued too often.
    """
    if launcher not in (_LOCAL, _SLURM):
        return
    from submitit import JobEnvironment

    environment: Any = JobEnvironment()
    queue_again = getattr(signal, f"SIG{environment.USR_SIG}")
    with _not_for_children("SIGTERM"):  # Slurm ends a job that it queues again, and with it the scontrol that asked so
        if launcher == _SLURM and queue_again not in received:
            from gpt_ablate.launching import slurm

            if slurm.queued_again(environment.job_id):
                sys.exit(1)  # without the result that would tell the launch that the job is over
            wanted = slurm.preempted(environment.job_id)
        else:
            wanted = queue_again in received
        if wanted:
            signal.raise_signal(queue_again)  # submitit's own handler stands there again


def jobs() -> list[Any]:
    """The jobs that this process has submitted by submitit; its launcher hands out none."""
    if "submitit" not in sys.modules:
        return []
    from submitit import Job

    return [thing for thing in gc.get_objects() if issubclass(type(thing), Job)]


def jobs_of_slurm(launcher: str) -> list[str]:
    """The ids of the jobs that this process has with Slurm still, an array as one."""
    return sorted({job.job_id.partition("_")[0] for job in jobs() if not job.done()}) if launcher == _SLURM else []


def end_jobs(launcher: str, cancel: bool) -> None:
    """Wait for the jobs that submitit or Ray still has after one of them broke off its launcher, or cancel them."""
    ray_tasks.end(cancel)
    with _passed_on([signal.SIGTERM] if cancel else [], _controllers if launcher == _LOCAL else list):
        for job in jobs():
            if cancel and launcher == _SLURM:
                job.cancel()
            job.wait()


for _resolver in (gpus_each, processes, threads_each):
    OmegaConf.register_new_resolver(_resolver.__name__, _resolver, replace=True)
