"""From a command line to runs: plan and check all of them first, only then hand over to Hydra."""

from __future__ import annotations

import argparse
import io
import os
import shlex
import sys
import traceback
from contextlib import redirect_stderr, suppress
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from . import launchers, ray_tasks, results
from .composing import CONF, VERSION_BASE, composition_problem, opened
from .config import resolve
from .files import lies_with_the_place, without_home, write_text
from .planning import Plan, make_plan, record_plan
from .refusal import place_told, refusals, refuse, say
from .registry import UsageError
from .runs import RunDirectory, find


class Refused(BaseException):
    """The run that was asked for was refused, and why has been said."""


class FailFast(BaseException):
    """A run failed, and `trainer.fail_fast` says that no other is to start; Hydra lets only such an exception pass."""


def main() -> None:
    """The command: exit code 0 if every run is done, 1 if one is not, 2 for a request that is refused."""
    os.environ["HYDRA_FULL_ERROR"] = "1"
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a log file tells at once, as a terminal does
    console = Console()
    plan: Plan | None = None
    args = _arguments()
    shows = args.help or args.hydra_help or args.cfg or args.info or args.shell_completion
    try:
        with refusals():
            if shows or args.experimental_rerun:
                hydra.main(version_base=VERSION_BASE, config_path=str(CONF), config_name="config")(_train)()
                return
            plan = make_plan(args)
            if plan.multirun:
                record_plan(plan, sys.argv[1:])
            _hand_over(plan, args)
            sys.exit(_conclude(plan, console))
    except Refused:
        sys.exit(2)
    except (HydraException, OmegaConfBaseException) as error:
        say(str(composition_problem(error, args.overrides)))
        sys.exit(2)
    except KeyboardInterrupt as error:
        say(str(error) or "stopped")
        if plan is not None:
            print(f"To go on: {_command_again(plan)}", file=sys.stderr)
        sys.exit(130)


def _arguments() -> argparse.Namespace:
    """The command line as Hydra reads it, flags and overrides in any order; exits with 2 for what it does not know."""
    parser = get_args_parser()
    told = io.StringIO()
    try:
        with redirect_stderr(told):
            args = parser.parse_intermixed_args()
    except SystemExit as stop:
        if not stop.code:
            raise
        say(told.getvalue().rpartition("error: ")[2].strip() + "; flags: --help, all of Hydra's: --hydra-help")
        sys.exit(2)
    sys.argv[1:] = [*(argument for argument in sys.argv[1:] if argument not in args.overrides), *args.overrides]
    return args


def _hand_over(plan: Plan, args: argparse.Namespace) -> None:
    """Let Hydra carry out the plan. If its launcher breaks off, say so: what is on disk tells how the runs stand."""
    overrides = get_args_parser().parse_args(plan.arguments).overrides
    try:
        with (
            suppress(FailFast),
            opened(args.config_dir) as found,
            ray_tasks.stopped_after(FailFast, KeyboardInterrupt),
        ):
            if plan.multirun:
                found.multirun(args.config_name or "config", _train, [*overrides, "hydra.mode=MULTIRUN"])
            else:
                found.run(args.config_name or "config", _train, overrides)
    except (HydraException, OmegaConfBaseException):
        raise
    except Exception as error:
        if plan.launcher == "basic":
            raise
        reason = " ".join(str(error).split("\n")[:2])  # what submitit tells goes on with its log
        say(f"{plan.launcher} broke off: {type(error).__name__}: {reason}")
        launchers.end_jobs(cancel=any(run.config.trainer.fail_fast for run in plan.runs))
        print(f"To go on: {_command_again(plan)}", file=sys.stderr)


def _command_again(plan: Plan) -> str:
    again = [argument for argument in plan.arguments if not argument.startswith("trainer.resume=")]
    return shlex.join(["python", "-m", "gpt_ablate.train", *again])


def _train(composed: DictConfig) -> None:
    """Hydra's task: one run. A failure is told at once and left in run.json, so that the next job goes on."""
    hydra_config: Any = HydraConfig.get()
    path = Path(hydra_config.runtime.output_dir)
    alone = hydra_config.runtime.choices["hydra/launcher"] == "basic"
    console = Console() if alone else Console(force_terminal=False)  # several runs cannot share a progress bar
    if hydra_config.job.get("num") is not None:
        launchers.take_place(Path(hydra_config.sweep.dir) / ".places")
    from . import execution

    try:
        if "ray" in hydra_config.launcher:
            ray_tasks.arrive(hydra_config, RunDirectory(path))
        execution.run(
            resolve(composed),
            path,
            list(hydra_config.overrides.task),
            console,
            lambda: _write_hydra_files(composed, hydra_config, path / ".hydra"),
        )
    except UsageError as error:
        refuse(error)
        if hydra_config.job.get("num") is None:
            raise Refused from None
    except Exception as error:
        if isinstance(error, OSError) and lies_with_the_place(error):
            say(f"{place_told(error)}; what was written before is whole")
        else:
            traceback.print_exc()
        say(f"failed: {path}")
        if composed.trainer.fail_fast:
            raise FailFast from None


def _write_hydra_files(composed: DictConfig, hydra_config: DictConfig, folder: Path) -> None:
    """The three files Hydra itself would write, had it not been told to leave finished runs alone."""
    folder.mkdir(exist_ok=True)
    contents = {"config": composed, "hydra": OmegaConf.create({"hydra": hydra_config})}
    for name, content in (contents | {"overrides": hydra_config.overrides.task}).items():
        write_text(folder / f"{name}.yaml", without_home(OmegaConf.to_yaml(content)))
    of_launch = Path(hydra_config.sweep.dir) / "multirun.yaml"
    if hydra_config.job.get("num") is not None and of_launch.exists():
        write_text(of_launch, without_home(of_launch.read_text(encoding="utf-8")))


def _conclude(plan: Plan, console: Console) -> int:
    """Show what there is on disk now, for a multirun as its study's report; the exit code."""
    directories = [run.directory for run in plan.runs] or list(find(plan.root))
    recorded = [directory for directory in directories if directory.run_file.exists()]
    if plan.multirun and any(directory.finished() for directory in find(plan.root)):
        from . import report

        try:
            report.write(plan.root, plan.root, console, len(directories) - len(recorded), allow_missing=True)
        except UsageError as error:
            say(f"the runs are there, but no report can be made of them: {error}")
            return 1
    else:
        results.print_summary(recorded, plan.root, console, len(directories) - len(recorded))
    return 0 if all(results.status(directory) == "done" for directory in directories) else 1
