"""What a command line asks for, whole: every run composed, checked and placed before anything is written."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from gpt_ablate.config import registry
from gpt_ablate.config.resolve import resolve
from gpt_ablate.config.schema import ReportConfig
from gpt_ablate.launching import hydra_settings, launchers, options
from gpt_ablate.launching.compose import composer
from gpt_ablate.launching.placement import PlannedRun, place
from gpt_ablate.launching.sweeps import Sweep
from gpt_ablate.studies.records import SCHEMA_VERSION, read_plan
from gpt_ablate.studies.run_directory import STUDY_FILE, STUDY_LOCK, RunDirectory
from gpt_ablate.utils.errors import Problem, UsageError
from gpt_ablate.utils.files import expanded, misplaced, unusable, without_home, write_json

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override


@dataclass(frozen=True)
class Plan:
    """What a command line asks for, and `arguments` that ask for it again.

    Of a multirun Hydra composes `master` first, overrides that any job has; `runs` is empty where its sweeper decides
    as it goes. `notes` tell what not every run has.
    """

    arguments: list[str]
    runs: list[PlannedRun]
    root: Path
    multirun: bool
    launcher: str = "basic"
    launcher_class: str = "BasicLauncher"
    master: Sequence[str] = ()
    notes: Sequence[str] = ()


def make_plan(args: argparse.Namespace) -> Plan:
    """Compose and check every run that `args` ask for.

    Raises UsageError with the problems of all of them; nothing is written.
    """
    if args.config_path is not None:
        raise UsageError([Problem("--config-path", args.config_path, "--config-dir, which adds a folder of configs")])
    options.older_configs.cache_clear()  # launches before may have been in this process
    with composer(args.config_dir) as opened:
        name, overrides = args.config_name or "config", list(args.overrides)
        loader: Any = opened.config_loader
        searched = [override for override in overrides if override.startswith("hydra.searchpath=")]
        options_of = partial(loader.get_group_options, config_name=name, overrides=searched)
        sweep = Sweep(loader, options_of, overrides)
        composed = None if args.multirun else _of_one_run(opened, name, overrides, sweep.bare())
        if composed is not None:
            hydra_settings.check(composed.hydra, multirun=False)
            run = _planned(composed, "run.dir")
            if problems := options.unknown(run.config.report.baseline, options_of):
                raise UsageError(problems)
            path = run.directory.path
            return Plan([*sys.argv[1:], _pinned("run.dir", path)], place([run], None), path, False)
        return _of_sweep(loader, name, sweep, options_of)


def _of_sweep(loader: Any, name: str, sweep: Sweep, options_of: Callable[[str], list[str]]) -> Plan:
    """The plan of a multirun. Raises UsageError."""
    bare = loader.load_configuration(name, sweep.bare(), RunMode.MULTIRUN)
    launcher = launchers.check(bare), launchers.class_of(bare.hydra)
    hydra_settings.check(bare.hydra, multirun=True)
    basic = bare.hydra.sweeper["_target_"] == hydra_settings.BASIC_SWEEPER
    if basic:
        sweep.take_params(bare.hydra.sweeper.params)
    of_master = sweep.for_master(bare)
    master = bare if of_master == sweep.bare() else loader.load_configuration(name, of_master, RunMode.MULTIRUN)
    additions = launchers.divide(master)
    root = Path(os.path.abspath(_folder(master, "sweep.dir")))
    if problem := unusable(root):
        raise UsageError([problem])
    if taken := misplaced(files=[root / name for name in (STUDY_LOCK, STUDY_FILE, "multirun.yaml")]):
        raise UsageError(taken)
    pinned = _pinned("sweep.dir", root)
    if not basic:
        return Plan([*sys.argv[1:], *additions, pinned], [], root, True, *launcher)
    hydra_settings.few_enough(sweep.given)
    if not OmegaConf.is_list(master.cell_keys):
        raise UsageError([Problem("cell_keys", master.cell_keys, "a list of keys of the config")])
    keys = sorted({*map(str, master.cell_keys), *_swept_keys(sweep.given)})
    additions.append(f"cell_keys=[{','.join(keys)}]")
    runs = _planned_jobs(loader, master, [[*job, *additions] for job in sweep.jobs(master)], options_of)
    arguments = [*sys.argv[1:], *additions, pinned]
    return Plan(arguments, place(runs, root), root, True, *launcher, [*of_master, *additions, pinned], sweep.notes)


def _planned_jobs(
    loader: Any, master: DictConfig, jobs: Iterable[list[str]], options_of: Callable[[str], list[str]]
) -> list[PlannedRun]:
    """The run of every job. Raises UsageError with the problems of all of them."""
    runs, problems = [], []
    for job in jobs:
        composed = loader.load_sweep_config(master, job)
        try:
            runs.append(_planned(composed, "sweep.dir", "sweep.subdir"))
        except UsageError as error:
            problems += error.problems
    problems += options.unknown(runs[0].config.report.baseline, options_of) if runs else []
    if not runs and not problems:
        problems.append(Problem("--multirun", " ".join(sys.argv[1:]), "at least one run; here a range is empty"))
    if problems:
        raise UsageError(problems)
    return runs


def _of_one_run(opened: Hydra, name: str, overrides: list[str], bare: list[str]) -> DictConfig | None:
    """The config of the one run that is asked for; None if it is a multirun, by its own hydra.mode."""
    try:
        composed = opened.config_loader.load_configuration(name, overrides, RunMode.RUN)
    except HydraException:
        if opened.get_mode(name, bare) == RunMode.MULTIRUN:
            return None
        raise
    return None if composed.hydra.mode == RunMode.MULTIRUN else composed


def record_plan(plan: Plan, arguments: list[str]) -> None:
    """Note in `study.json` what this launch wants and how it was asked for, beside what earlier launches wanted.

    What the study asks is as the newest launch declares it; one that declares nothing leaves it as it was.
    """
    if not plan.runs:
        return
    plan.root.mkdir(parents=True, exist_ok=True)
    file = plan.root / STUDY_FILE
    with FileLock(plan.root / STUDY_LOCK):
        noted = read_plan(file) if file.exists() else {"report": {}, "overrides": [], "runs": []}
        places = {run["path"]: run for run in noted["runs"]} | {
            Path(os.path.relpath(run.directory.path, plan.root)).as_posix(): {
                "seed": run.config.seed,
                "levels": run.config.levels(),
                "fingerprint": run.fingerprint,
            }
            for run in plan.runs
        }
        asked = plan.runs[0].config.report
        largest = len(plan.runs) >= len(noted["runs"])
        write_json(
            file,
            {
                "schema_version": SCHEMA_VERSION,
                "study": plan.root.name,
                "report": asked.model_dump() if asked != ReportConfig() else noted["report"] or asked.model_dump(),
                "overrides": without_home(_lasting(arguments)) if largest else noted["overrides"],
                "runs": [run | {"path": path} for path, run in sorted(places.items())],
            },
        )


def _lasting(arguments: list[str]) -> list[str]:
    """Arguments less those that are about one launch."""
    return [argument for argument in arguments if not argument.startswith(("trainer.resume=", "trainer.fail_fast="))]


def _pinned(key: str, path: Path) -> str:
    """The override that keeps Hydra to the folder that was checked (its own might tell the time anew)."""
    quoted = str(path.absolute()).replace("\\", "\\\\").replace("'", "\\'")
    return f"hydra.{key}='{quoted}'"


def _swept_keys(overrides: Iterable[Override]) -> Iterator[str]:
    """The keys that take several values, less the seed; an axis by its own name."""
    axes = registry.axis_names()
    for override in overrides:
        key = override.key_or_group
        if override.is_sweep_override() and key != "seed":
            yield axis if (axis := key.removesuffix(".name")) in axes else key


def _planned(composed: DictConfig, *directory_keys: str) -> PlannedRun:
    HydraConfig.instance().set_config(composed)
    task = composed.copy()
    with open_dict(task):
        del task["hydra"]
    study = Path(_folder(composed, "sweep.dir")) if directory_keys[0] == "sweep.dir" else None
    if problems := options.hidden(composed.hydra):
        raise UsageError(problems)
    config = resolve(task, options.names(task, composed.hydra, study))
    path = Path(*(_folder(composed, key) for key in directory_keys))
    return PlannedRun(config, RunDirectory(path.absolute()), list(composed.hydra.overrides.task))


def _folder(composed: DictConfig, key: str) -> Path:
    """The folder that one of Hydra's keys names. Raises UsageError if it names none."""
    HydraConfig.instance().set_config(composed)
    folder = str(OmegaConf.select(composed, f"hydra.{key}") or "")
    if not folder.strip(". /"):
        raise UsageError([Problem(f"hydra.{key}", folder, "a folder of its own")])
    return expanded(f"hydra.{key}", folder)
