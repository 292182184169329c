"""From a command line to runs: compose and check every cell first, only then hand over to Hydra."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_automatic_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from . import registry, results
from .config import Config, flatten, resolve
from .registry import Problem, UsageError, closest
from .runs import RunDirectory, find

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

PACKAGED = Path(__file__).parent / "conf"
CONF = PACKAGED if PACKAGED.is_dir() else Path(__file__).parents[2] / "conf"
_VERSION_BASE = "1.3"
_BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


@dataclass(frozen=True)
class PlannedRun:
    """One run of a launch: its checked config and its place."""

    config: Config
    directory: RunDirectory


@dataclass(frozen=True)
class Plan:
    """What a command line asks for; `arguments` are for Hydra, `runs` is empty where its sweeper decides as it goes."""

    arguments: list[str]
    runs: list[PlannedRun]
    root: Path
    multirun: bool


def main() -> None:
    """The command: exit code 0 if every run is done, 1 if one is not, 2 for a request that is refused."""
    os.environ["HYDRA_FULL_ERROR"] = "1"
    console = Console()
    parser = get_args_parser()
    args = parser.parse_args()
    plan: Plan | None = None
    shows = args.help or args.hydra_help or args.cfg or args.info or args.shell_completion
    try:
        if shows or args.experimental_rerun:
            _train_with_hydra()
            return
        plan = make_plan(args)
        sys.argv[1:] = plan.arguments
        _train_with_hydra()
        sys.exit(_conclude(plan, console))
    except UsageError as error:
        for problem in error.problems:
            print(f"gpt_ablate: {problem}", file=sys.stderr)
        sys.exit(2)
    except (HydraException, OmegaConfBaseException) as error:
        print(f"gpt_ablate: {_composition_problem(error, args.overrides)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as error:
        print(f"gpt_ablate: {str(error) or 'stopped'}", file=sys.stderr)
        if plan is not None:
            again = [argument for argument in plan.arguments if not argument.startswith("trainer.resume=")]
            command = shlex.join(["python", "-m", "gpt_ablate.train", *again])
            print(f"To go on: {command}", file=sys.stderr)
        sys.exit(130)


@hydra.main(version_base=_VERSION_BASE, config_path=str(CONF), config_name="config")
def _train_with_hydra(composed: DictConfig) -> None:
    """Hydra's task: one run. A failure is told at once and left in run.json, so that the next job goes on."""
    from . import training

    console = Console()
    hydra_config: Any = HydraConfig.get()
    path = Path(hydra_config.runtime.output_dir)
    if hydra_config.job.get("num") is not None:
        console.rule(f"{path.parent.name}/{path.name}", style="dim")
    try:
        training.run(
            resolve(composed),
            path,
            list(hydra_config.overrides.task),
            console,
            lambda: _write_hydra_files(composed, hydra_config, path / ".hydra"),
        )
    except UsageError as error:
        print(f"gpt_ablate: {error}", file=sys.stderr)
    except Exception:
        traceback.print_exc()
        print(f"gpt_ablate: failed: {path}", file=sys.stderr)


def _write_hydra_files(composed: DictConfig, hydra_config: DictConfig, folder: Path) -> None:
    """The three files Hydra itself would write, had it not been told to leave finished runs alone."""
    folder.mkdir(exist_ok=True)
    OmegaConf.save(composed, folder / "config.yaml")
    OmegaConf.save(OmegaConf.create({"hydra": hydra_config}), folder / "hydra.yaml")
    OmegaConf.save(hydra_config.overrides.task, folder / "overrides.yaml")


def make_plan(args: argparse.Namespace) -> Plan:
    """Compose and check every run that `args` ask for.

    Raises UsageError with the problems of all of them; nothing is written.
    """
    with _composer(args.config_dir) as composer:
        name, overrides = args.config_name or "config", list(args.overrides)
        loader = composer.config_loader
        if not (args.multirun or composer.get_mode(name, overrides) == RunMode.MULTIRUN):
            composed = loader.load_configuration(name, overrides, RunMode.RUN)
            run = _planned(composed, "run.dir")
            _check([run])
            return Plan([*sys.argv[1:], _pinned("run.dir", run.directory.path)], [run], run.directory.path, False)
        master = loader.load_configuration(name, overrides, RunMode.MULTIRUN)
        root = Path(_select(master, "sweep.dir")).absolute()
        if master.hydra.sweeper["_target_"] != _BASIC_SWEEPER:
            return Plan([*sys.argv[1:], _pinned("sweep.dir", root)], [], root, True)
        sweeps = [f"{key}={value}" for key, value in (master.hydra.sweeper.params or {}).items()]
        given = OverridesParser.create(config_loader=loader).parse_overrides([*sweeps, *master.hydra.overrides.task])
        keys = sorted({*(str(key) for key in master.cell_keys), *_swept_keys(given)})
        addition = f"cell_keys=[{','.join(keys)}]"
        (jobs,) = BasicSweeper.split_arguments(given, None)
        runs, problems = [], []
        for job in jobs:
            composed = loader.load_sweep_config(master, [*job, addition])
            try:
                runs.append(_planned(composed, "sweep.dir", "sweep.subdir"))
            except UsageError as error:
                problems += error.problems
        if problems:
            raise UsageError(problems)
        _check(runs)
        return Plan([*sys.argv[1:], addition, _pinned("sweep.dir", root)], runs, root, True)


def _pinned(key: str, path: Path) -> str:
    """The override that keeps Hydra to the folder that was checked (its own might tell the time anew)."""
    quoted = str(path.absolute()).replace("\\", "\\\\").replace("'", "\\'")
    return f"hydra.{key}='{quoted}'"


def _swept_keys(overrides: list[Override]) -> Iterator[str]:
    """The keys that take several values, less those that the folders name anyway."""
    axes = registry.axis_names()
    named = {"seed", *axes, *(f"{axis}.name" for axis in axes)}
    for override in overrides:
        key = override.key_or_group
        if override.is_sweep_override() and key not in named:
            yield key


def _planned(composed: DictConfig, *directory_keys: str) -> PlannedRun:
    HydraConfig.instance().set_config(composed)
    task = composed.copy()
    with open_dict(task):
        del task["hydra"]
    config = resolve(task)
    path = Path(*(_select(composed, key) for key in directory_keys))
    return PlannedRun(config, RunDirectory(path.absolute()))


def _select(composed: DictConfig, key: str) -> str:
    HydraConfig.instance().set_config(composed)
    return str(OmegaConf.select(composed, f"hydra.{key}"))


def _check(runs: list[PlannedRun]) -> None:
    """Raise UsageError if data is lacking, two runs share a folder, or another run lives in one."""
    from . import data, training

    problems: list[Problem] = []
    places: dict[Path, PlannedRun] = {}
    for run in runs:
        first = places.setdefault(run.directory.path, run)
        if first is not run:
            keys = _differing(first.config, run.config)
            allowed = f"two runs would share this folder; name what differs: 'cell_keys=[{','.join(keys)}]'"
            problems.append(Problem("cell_keys", str(run.directory.path), allowed))
        try:
            corpus = data.load(run.config)
            if run.config.trainer.resume != "restart":
                run.directory.check(training.fingerprint(run.config, corpus), run.config)
        except UsageError as error:
            problems += error.problems
    if problems:
        raise UsageError(problems)


def _differing(one: Config, other: Config) -> list[str]:
    first, second = flatten(one.record()), flatten(other.record())
    return sorted(key for key in first.keys() | second.keys() if first.get(key) != second.get(key))


def _conclude(plan: Plan, console: Console) -> int:
    """Show what there is on disk now, for a multirun as its study's report; the exit code."""
    directories = [run.directory for run in plan.runs] or list(find(plan.root))
    recorded = [directory for directory in directories if directory.run_file.exists()]
    if plan.multirun and any(directory.finished() for directory in find(plan.root)):
        from . import report

        report.write(plan.root, plan.root, console, len(directories) - len(recorded))
    else:
        results.print_summary(recorded, plan.root, console, len(directories) - len(recorded))
    return 0 if all(results.status(directory) == "done" for directory in directories) else 1


@contextmanager
def _composer(config_dir: str | None) -> Iterator[Hydra]:
    """Hydra over our configs and the user's `--config-dir`, as `hydra.main` sets it up."""
    hydra.version.setbase(_VERSION_BASE)
    search_path = create_automatic_config_search_path(None, None, str(CONF))
    if config_dir is not None:
        folder = os.path.abspath(config_dir)
        if not os.path.isdir(folder):
            raise UsageError([Problem("--config-dir", config_dir, "a folder")])
        search_path.prepend("command-line", f"file://{folder}", anchor=SearchPathQuery(provider="schema"))
    try:
        yield Hydra.create_main_hydra2("gpt_ablate", search_path)
    finally:
        GlobalHydra.instance().clear()


def _composition_problem(error: Exception, overrides: list[str]) -> Problem:
    """What Hydra could not compose, in our form."""
    given = dict(override.split("=", 1) for override in overrides if "=" in override)
    message = str(error) or str(error.__cause__)
    if isinstance(error, OverrideParseException):
        return Problem("override", error.override, f"key=value in Hydra's syntax ({' '.join(error.message.split())})")
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, option = error.missing_cfg_file.rpartition("/")
        options = sorted(error.options)
        return Problem(group, option, f"one of {', '.join(options)}", closest(option, options))
    if found := re.search(r"Could not override '([^'@]+)", message):
        key = found[1]
        groups = [path.name for path in CONF.iterdir() if path.is_dir()]
        known = [*groups, *_known_keys()]
        near = closest(key, known)
        return Problem(key, given.get(key), "no such key (all of them: --help)", near)
    if found := re.search(r"Ambiguous value for argument '([^=]+)=([^']*)'", message):
        return Problem(
            found[1], found[2], f"one value, or --multirun for each of them, or {found[1]}=[{found[2]}] for a list"
        )
    return Problem("config", " ".join(overrides), " ".join(message.split()))


def _known_keys() -> list[str]:
    with _composer(None) as composer:
        composed = composer.config_loader.load_configuration("config", [], RunMode.RUN)
    plain = OmegaConf.to_container(composed, resolve=False)
    assert isinstance(plain, dict)
    return list(flatten({str(k): v for k, v in plain.items() if k != "hydra"}))


def _cell_folder(*, _root_: DictConfig) -> str:
    """`<norm>-<layers>-<attention>` and, for each of `cell_keys`, `-<key>_<value>`."""
    parts = [str(_root_[axis].name) for axis in _root_ if axis in registry.axis_names()]
    for key in _root_.cell_keys:
        choice = _root_.hydra.runtime.choices.get(key)
        parts.append(f"{key}_{OmegaConf.select(_root_, key) if choice is None else choice}")
    return re.sub(r"[^\w.+=,\[\]-]", lambda match: f"%{ord(match[0]):02x}", "-".join(parts))


def _study_folder(default: str, *, _root_: DictConfig) -> str:
    """The study's name, or `default` where it has none."""
    return str(_root_.study or default)


_RESOLVERS: dict[str, Callable[..., Any]] = {"cell_folder": _cell_folder, "study_folder": _study_folder}
for _name, _resolver in _RESOLVERS.items():
    OmegaConf.register_new_resolver(_name, _resolver, replace=True)
