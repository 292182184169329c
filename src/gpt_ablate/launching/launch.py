"""From a command line to runs: plan and check all of them first, only then hand over to Hydra."""

from __future__ import annotations

import argparse
import io
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stderr, suppress
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from gpt_ablate.config.paths import CONF
from gpt_ablate.config.resolve import resolve
from gpt_ablate.launching import launchers, options, ray_tasks
from gpt_ablate.launching.compose import VERSION_BASE, composition_problem, opened
from gpt_ablate.launching.planning import Plan, make_plan, record_plan
from gpt_ablate.studies import results
from gpt_ablate.studies.run_directory import RunDirectory, find
from gpt_ablate.utils import signals, streams
from gpt_ablate.utils.errors import UsageError
from gpt_ablate.utils.files import lies_with_the_place, without_home, write_text
from gpt_ablate.utils.messages import place_told, refusals, refuse, say, visible


class Refused(BaseException):
    """The run that was asked for was refused, and why has been said."""


class FailFast(BaseException):
    """A run failed, and `trainer.fail_fast` says that no other is to start; Hydra lets only such an exception pass."""


def main() -> None:
    """The command: exit code 0 if every run is done, 1 if one is not, 2 for a request that is refused.

    128 and the signal's number if one asked it to stop.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"
    with signals.raised():
        _command()


def _command() -> None:
    args = _arguments()
    shows = bool(args.help or args.hydra_help or args.cfg or args.info or args.shell_completion)
    with streams.outlive(needed=shows):
        _launch(args, shows)


def _launch(args: argparse.Namespace, shows: bool) -> None:
    """Carry out what `args` ask for: show something (`shows`), or train. Raises SystemExit with the exit code."""
    plan: Plan | None = None
    console = streams.console()
    try:
        with refusals():
            if shows or args.experimental_rerun:
                hydra.main(version_base=VERSION_BASE, config_path=str(CONF), config_name="config")(train)()
                return
            plan = make_plan(args)
            if plan.multirun:
                record_plan(plan, sys.argv[1:])
            for note in plan.notes:
                console.print(visible(note), markup=False, highlight=False, soft_wrap=True)
            hand_over(plan, args, train)
            sys.exit(conclude(plan, console))
    except Refused:
        sys.exit(2)
    except (HydraException, OmegaConfBaseException, RecursionError) as error:
        say(str(composition_problem(error, args.overrides, args.config_dir)))
        sys.exit(2)
    except signals.Interrupted as stop:
        say(str(stop))
        if plan is not None:
            _tell_how_to_go_on(plan)
        sys.exit(128 + stop.number)


@streams.outlive(needed=True)
def _arguments() -> argparse.Namespace:
    """The command line as Hydra reads it, flags and overrides in any order; exits with 2 for what it does not know."""
    parser = get_args_parser()
    told = io.StringIO()
    try:
        with redirect_stderr(told):
            args = parser.parse_intermixed_args()
    except SystemExit as stop:
        if stop.code != 2:  # argparse's code for a refusal
            raise
        say(told.getvalue().rpartition("error: ")[2].strip() + "; flags: --help, all of Hydra's: --hydra-help")
        sys.exit(2)
    sys.argv[1:] = [*(argument for argument in sys.argv[1:] if argument not in args.overrides), *args.overrides]
    return args


def hand_over(plan: Plan, args: argparse.Namespace, task: Callable[[DictConfig], None]) -> None:
    """Let Hydra carry out the plan, with `task` for each of its runs.

    If its launcher breaks off, this is said: what is on disk tells how the runs stand.
    """
    name, overrides = args.config_name or "config", get_args_parser().parse_args(plan.arguments).overrides
    received: Sequence[int] = ()
    try:
        with (
            suppress(FailFast),
            opened(args.config_dir) as found,
            ray_tasks.stopped_after(FailFast, KeyboardInterrupt),
            launchers.waiting(plan.launcher_class, plan.root) as received,
        ):
            if plan.runs and plan.multirun:
                _run_jobs(found, name, plan, task)
            elif plan.multirun:
                found.multirun(name, task, [*overrides, "hydra.mode=MULTIRUN"])
            else:
                found.run(name, task, overrides)
    except (HydraException, OmegaConfBaseException):
        raise
    except Exception as error:
        if plan.launcher == "basic":
            raise
        reason = " ".join(str(error).split("\n")[:2])  # what submitit tells goes on with its log
        say(f"{plan.launcher} broke off: {type(error).__name__}: {reason}")
        with launchers.waiting(plan.launcher_class, plan.root) as later:
            launchers.end_jobs(plan.launcher_class, cancel=any(run.config.trainer.fail_fast for run in plan.runs))
        received = [*received, *later]
        if not received:
            _tell_how_to_go_on(plan)
    if received:
        raise signals.Interrupted("stopped; the runs have saved their states", received[0])


def _tell_how_to_go_on(plan: Plan) -> None:
    if jobs := launchers.jobs_of_slurm(plan.launcher_class):
        look = shlex.join(["python", "-m", "gpt_ablate.status", str(plan.root)])
        print(f"Slurm's jobs go on. How they stand: {look}\nTo end them: scancel {' '.join(jobs)}", file=sys.stderr)
    else:
        print(f"To go on: {_command_again(plan)}", file=sys.stderr)


def _run_jobs(found: Hydra, name: str, plan: Plan, task: Callable[[DictConfig], None]) -> None:
    """Give the planned jobs to Hydra's launcher, as its sweeper would."""
    overrides = [*plan.master, "hydra.mode=MULTIRUN"]
    master = found.compose_config(name, overrides, run_mode=RunMode.MULTIRUN, with_log_configuration=True)
    context = HydraContext(config_loader=found.config_loader, callbacks=Callbacks(master))
    launcher = Plugins.instance().instantiate_launcher(context, task, master)
    write_text(plan.root / "multirun.yaml", without_home(OmegaConf.to_yaml(master)))
    jobs = [run.overrides for run in plan.runs]
    size = master.hydra.sweeper.max_batch_size or len(jobs)
    for first in range(0, len(jobs), size):
        for job in launcher.launch(jobs[first : first + size], initial_job_idx=first):
            _ = job.return_value  # raises what the job raised


def _command_again(plan: Plan) -> str:
    again = [argument for argument in plan.arguments if not argument.startswith("trainer.resume=")]
    return shlex.join(["python", "-m", "gpt_ablate.train", *again])


def task_of(process: int, quiet: bool) -> Callable[[DictConfig], None]:
    """`train` for runs that a caller's own process, known by its id, may make: its standard output stays its own."""
    return partial(train, process=process, quiet=quiet)


def train(composed: DictConfig, process: int | None = None, quiet: bool = False) -> None:
    """Hydra's task: one run. A failure is told at once and left in run.json, so that the next job goes on."""
    # here too, since a launcher may run it in another process
    with nullcontext() if os.getpid() == process else streams.outlive(needed=False):
        _train(composed, quiet)


def _train(composed: DictConfig, quiet: bool) -> None:
    hydra_config: Any = HydraConfig.get()
    path = Path(hydra_config.runtime.output_dir)
    launcher = launchers.class_of(hydra_config)
    try:
        with launchers.stops_noted(launcher) as received:
            if received:  # in an earlier run of this process
                return
            if hydra_config.job.get("num") is not None:
                launchers.take_place(Path(hydra_config.sweep.dir) / ".places", received)
            _run(composed, hydra_config, path, quiet)
        if received and launchers.makes_all(launcher) and hydra_config.job.get("num") is not None:
            raise signals.Interrupted("stopped between two runs", received[0])
    except signals.Interrupted as stop:
        if not launchers.ends_quietly(launcher):
            raise
        say(f"{path}: {stop}")
        launchers.give_back(launcher, received)


def _run(composed: DictConfig, hydra_config: Any, path: Path, quiet: bool) -> None:
    """Make the run at `path`, and tell of a failure."""
    alone = hydra_config.runtime.choices["hydra/launcher"] == "basic"
    console = streams.console(live=alone, quiet=quiet)  # several runs cannot share a progress bar
    try:
        if "ray" in hydra_config.launcher:
            ray_tasks.arrive(hydra_config, RunDirectory(path))
        make_run(composed, hydra_config, path, console)
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


def make_run(composed: DictConfig, hydra_config: Any, path: Path, console: Console) -> None:
    """Make the run at `path`. Raises as `execution.run` does."""
    from gpt_ablate.launching import execution

    study = Path(hydra_config.sweep.dir) if hydra_config.job.get("num") is not None else None
    execution.run(
        resolve(composed, options.names(composed, hydra_config, study)),
        path,
        list(hydra_config.overrides.task),
        console,
        lambda: _write_hydra_files(composed, hydra_config, path / ".hydra"),
    )


def _write_hydra_files(composed: DictConfig, hydra_config: DictConfig, folder: Path) -> None:
    """The three files Hydra itself would write, had it not been told to leave finished runs alone."""
    folder.mkdir(exist_ok=True)
    contents = {"config": composed, "hydra": OmegaConf.create({"hydra": hydra_config})}
    for name, content in (contents | {"overrides": hydra_config.overrides.task}).items():
        write_text(folder / f"{name}.yaml", without_home(OmegaConf.to_yaml(content)))
    of_launch = Path(hydra_config.sweep.dir) / "multirun.yaml"
    if hydra_config.job.get("num") is not None and of_launch.exists():
        write_text(of_launch, without_home(of_launch.read_text(encoding="utf-8")))


def conclude(plan: Plan, console: Console) -> int:
    """Show what there is on disk now, for a multirun as its study's report; the exit code."""
    directories = [run.directory for run in plan.runs] or list(find(plan.root))
    recorded = [directory for directory in directories if directory.run_file.exists()]
    if plan.multirun and any(directory.finished() for directory in find(plan.root)):
        from gpt_ablate.reporting import report_writer

        try:
            report_writer.write(plan.root, plan.root, console, len(directories) - len(recorded), allow_missing=True)
        except UsageError as error:
            say(f"the runs are there, but no report can be made of them: {error}")
            return 1
    else:
        results.print_summary(recorded, plan.root, console, len(directories) - len(recorded))
    return 0 if all(results.status(directory) == "done" for directory in directories) else 1
