"""The Python API for training: `train` makes the runs of a command in the caller's process."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import RLock
from typing import TYPE_CHECKING, Any, Literal, overload

from gpt_ablate.launching.api import Run, Study, load_run, load_study
from gpt_ablate.utils.errors import Problem, UsageError

if TYPE_CHECKING:
    from omegaconf import DictConfig

_one_at_a_time = RLock()  # Hydra, torch's threads and signals are settings of the whole process
_planned_at = 0


@overload
def train(
    overrides: Sequence[str] = (),
    *,
    multirun: Literal[False] = False,
    config_dir: str | os.PathLike[str] | None = None,
    quiet: bool = False,
) -> Run: ...


@overload
def train(
    overrides: Sequence[str] = (),
    *,
    multirun: Literal[True],
    config_dir: str | os.PathLike[str] | None = None,
    quiet: bool = False,
) -> Study: ...


def train(
    overrides: Sequence[str] = (),
    *,
    multirun: bool = False,
    config_dir: str | os.PathLike[str] | None = None,
    quiet: bool = False,
) -> Run | Study:
    """Train what the command `python -m gpt_ablate.train` trains with these overrides, and return it.

    Args:
        overrides: Hydra overrides such as `["norm=post", "model=micro"]`.
        multirun: Train every combination of swept values such as `norm=pre,post`, as `--multirun` does.
        config_dir: A folder with YAML files of your own, as `--config-dir`.
        quiet: Do not print progress and results. Errors are told all the same.

    Returns:
        The finished `Run`. Its status is `done` or `diverged`. A run that is finished already is returned as it is, and
        an interrupted one is continued; since a single run gets a new folder for each launch, this needs
        `hydra.run.dir=FOLDER`. With `multirun` the `Study`, whose report is written; a run that fails does not stop the
        others, and has the status `failed` in `Study.runs`.

    Raises:
        UsageError: A ValueError with all problems of the request. Nothing was written.
        KeyboardInterrupt: The run was interrupted (Ctrl-C, a notebook's stop button, SIGTERM). Its state is saved.
        Exception: What made a single run fail. The traceback is in its run.json as well.

    Several calls in one process wait for each other, also those in several threads. Outside the main thread, signals
    remain the caller's. A launcher that starts Python processes needs `if __name__ == "__main__":` in a script.
    """
    arguments = [
        *(["--multirun"] if multirun else []),
        *([f"--config-dir={os.fspath(config_dir)}"] if config_dir else []),
    ]
    arguments += (given := _checked(overrides, multirun))
    with _one_at_a_time, _own_hydra(), _as_command(arguments):
        return _train(given, arguments, multirun, quiet)


def _train(given: list[str], arguments: list[str], multirun: bool, quiet: bool) -> Run | Study:
    from hydra._internal.utils import get_args_parser
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from rich.console import Console

    from gpt_ablate.launching import launch
    from gpt_ablate.launching.compose import composition_problem
    from gpt_ablate.launching.planning import make_plan, record_plan
    from gpt_ablate.utils.messages import visible

    global _planned_at
    args = get_args_parser().parse_args(arguments)
    console = Console(quiet=quiet, force_jupyter=False)
    try:
        while int(time.time()) == _planned_at and not multirun:
            time.sleep(0.05)  # the folder of a single run tells the second
        plan = make_plan(args)
        _planned_at = int(time.time())
        if plan.multirun != multirun:
            raise UsageError([Problem("hydra.mode", "MULTIRUN", "multirun=True, which gives a Study")])
        for note in plan.notes:
            console.print(visible(note), markup=False, highlight=False, soft_wrap=True)
        if multirun:
            record_plan(plan, arguments)
            launch.hand_over(plan, args, launch.task_of(os.getpid(), quiet))
        else:
            _train_one(plan, args, console)
    except (HydraException, OmegaConfBaseException, RecursionError) as error:
        raise UsageError([composition_problem(error, given, args.config_dir)]) from error
    launch.conclude(plan, console)
    return load_study(plan.root) if multirun else load_run(plan.root)


def _train_one(plan: Any, args: Any, console: Any) -> None:
    """Carry out a plan of one run. Raises what made it fail, past Hydra, which would print it."""
    from hydra.core.hydra_config import HydraConfig

    from gpt_ablate.launching import launch

    failures: list[Exception] = []

    def task(composed: DictConfig) -> None:
        try:
            launch.make_run(composed, HydraConfig.get(), plan.root, console)
        except Exception as error:
            failures.append(error)

    launch.hand_over(plan, args, task)
    for failure in failures:
        raise failure


def _checked(overrides: Sequence[str], multirun: bool) -> list[str]:
    """The overrides as a list. Raises UsageError for what is none, and for a swept value where one run is asked for."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if isinstance(overrides, str | Mapping):
        raise UsageError([Problem("overrides", overrides, 'a list such as ["norm=post", "model=micro"]')])
    given, problems = list(overrides), []
    for override in given:
        if not isinstance(override, str):
            problems.append(Problem("overrides", override, 'text such as "norm=post"'))
        elif override.startswith("-"):
            problems.append(Problem("overrides", override, "key=value; flags are arguments, such as multirun=True"))
        elif not multirun:
            try:
                parsed = OverridesParser.create().parse_override(override)
            except HydraException:  # told with what Hydra says of it, where the config is composed
                continue
            if parsed.is_sweep_override():
                told = "one value; multirun=True trains a run for each of several"
                problems.append(Problem(parsed.key_or_group, override.partition("=")[2], told))
    if problems:
        raise UsageError(problems)
    return given


@contextmanager
def _own_hydra() -> Iterator[None]:
    """Leave the Hydra that the caller may have set up as it was."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    opened, composed = GlobalHydra.instance(), HydraConfig.instance()
    before = opened.hydra, composed.cfg
    opened.clear()
    try:
        yield
    finally:
        opened.hydra, composed.cfg = before


@contextmanager
def _as_command(arguments: list[str]) -> Iterator[None]:
    """Stand as the command line of this process, from which a launch is planned, recorded and told of."""
    before = sys.argv
    sys.argv = ["gpt_ablate.train", *arguments]
    try:
        yield
    finally:
        sys.argv = before
