"""Whatever asks a launch to stop, its runs save their states and the next launch goes on to the same numbers."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.utils import get_args_parser
from rich.console import Console
from small_runs import timeless, train
from test_checkpoint import files, small  # noqa: F401
from test_launchers import TEXT, needs

from gpt_ablate.config.schema import Config
from gpt_ablate.launching import execution, launch
from gpt_ablate.launching.planning import make_plan
from gpt_ablate.studies.run_directory import RunDirectory, find
from gpt_ablate.training import checkpoint, trainer
from gpt_ablate.utils.signals import SIGNALS, Interrupted

Small = Callable[..., Config]
# Layers that take their time until somebody is in a hurry.
PLUGIN = """
import time
from pathlib import Path
from gpt_ablate.axes.layers import fresh, stacks

@stacks.register("slow")
def slow(context):
    layers = fresh(context)
    layers[0].register_forward_pre_hook(lambda *_: time.sleep(0 if Path("hurry").exists() else 1))
    return layers
"""
ARGUMENTS = [
    *("--multirun", "model=micro", "model.d_model=16", "model.n_head=2", "model.context_length=16", "study=s"),
    *("data=text", "data.path=text.txt", "trainer.device=cpu", "trainer.max_steps=12", "trainer.max_epochs=12"),
    *("trainer.eval_every=0", "trainer.sample_every=0", "plugins=[slow_layers]", "layers.name=slow"),
    *("trainer.threads=1", "seed=0,1,2"),
]
"""Three runs that take 12 s each at least, as long as nobody is in a hurry."""
# Become a command as a shell starts it: with no signal ignored, and its terminal, if any, the one that rules it.
BEGIN = """
import fcntl, os, signal, sys, termios
for number in (signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
if os.isatty(0):
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture
def stoppable() -> Iterator[None]:
    """As a process begins that nobody told to ignore a signal, as nohup does."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def signals_in(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, *numbers: int, at: int = 2) -> None:
    """Have this process receive signals while a function is called the `at`th time."""
    original, calls = getattr(owner, name), iter(range(1, 1000))

    def call(*arguments: Any) -> Any:
        if next(calls) == at:
            for number in numbers:
                signal.raise_signal(number)
        return original(*arguments)

    monkeypatch.setattr(owner, name, call)


@pytest.mark.parametrize(
    "numbers",
    [
        *([number] for number in SIGNALS),
        [signal.SIGINT, signal.SIGINT],
        [signal.SIGTERM, signal.SIGCONT, signal.SIGHUP],
        [signal.SIGHUP, signal.SIGTERM],
    ],
    ids=lambda numbers: "+".join(signal.Signals(number).name for number in numbers),
)
@pytest.mark.fast_cases(3)
def test_a_step_that_is_asked_to_stop_is_the_last_and_saved(
    numbers: list[int],
    small: Small,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stoppable: None,
) -> None:
    signals_in(monkeypatch, trainer.Trainer, "_optimise", *numbers)
    with pytest.raises(Interrupted, match="after step 2; state saved") as stop:
        train(small(), tmp_path / "run")
    assert stop.value.number == numbers[0]
    directory = RunDirectory(tmp_path / "run")
    assert directory.record()["status"] == "running"
    saved = checkpoint.newest(directory)
    assert saved is not None
    assert saved.step == 2
    assert all(signal.getsignal(number) == signal.SIG_DFL for number in SIGNALS)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: signal.Signals(number).name)
def test_a_signal_while_the_state_is_saved_costs_nothing(
    number: int,
    small: Small,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stoppable: None,
) -> None:
    signals_in(monkeypatch, trainer.Trainer, "_optimise", signal.SIGTERM)
    for name in ("save_file", "write_json"):
        signals_in(monkeypatch, checkpoint, name, number, at=1)
    with pytest.raises(Interrupted, match="after step 2; state saved"):
        train(small(), tmp_path / "run")
    saved = checkpoint.newest(RunDirectory(tmp_path / "run"))
    assert saved is not None
    assert (saved.step, saved.passed_over) == (2, [])


def test_a_signal_while_the_model_is_made_leaves_what_was_there(
    small: Small,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stoppable: None,
) -> None:
    with monkeypatch.context() as patch:
        signals_in(patch, trainer.Trainer, "_optimise", signal.SIGTERM)
        with pytest.raises(Interrupted):
            train(small(), tmp_path / "run")
    folder = tmp_path / "run/checkpoint"
    before = files(folder)
    with monkeypatch.context() as patch:
        signals_in(patch, execution, "Trainer", signal.SIGTERM, at=1)
        with pytest.raises(Interrupted, match="before step 3"):
            train(small(), tmp_path / "run")
    assert files(folder) == before
    assert RunDirectory(tmp_path / "run").record()["status"] == "running"


def test_a_signal_that_is_ignored_stays_so(
    small: Small,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stoppable: None,
) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signals_in(monkeypatch, trainer.Trainer, "_optimise", signal.SIGHUP)
    assert train(small(), tmp_path / "run").record()["status"] == "done"
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_a_signal_at_the_end_of_a_run_keeps_the_next_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stoppable: None
) -> None:
    write_inputs(tmp_path)
    (tmp_path / "hurry").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sys.argv", ["train", *ARGUMENTS, "trainer.max_steps=1"])
    signals_in(monkeypatch, checkpoint, "save_final", signal.SIGTERM, at=1)
    with pytest.raises(SystemExit) as stop:
        launch.main()
    assert stop.value.code == 128 + signal.SIGTERM
    assert [run.record()["status"] for run in find(tmp_path)] == ["done"]


def write_inputs(folder: Path) -> None:
    (folder / "text.txt").write_text(TEXT)
    (folder / "slow_layers.py").write_text(PLUGIN)


def start(folder: Path, *arguments: str, **how: Any) -> subprocess.Popen[str]:
    """A launch as the leader of a group of processes, as a shell starts one, that no signal is ignored in."""
    write_inputs(folder)
    command = [sys.executable, "-m", "gpt_ablate.train", *ARGUMENTS, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | how
    begin = [sys.executable, "-c", BEGIN, *command]
    return subprocess.Popen(begin, cwd=folder, text=True, start_new_session=True, **pipes)


def steps(folder: Path) -> dict[str, int]:
    """The last step that each run has recorded."""
    found = folder.glob("outputs/s/*/seed_*/metrics.jsonl")
    return {file.parent.name: max(0, len(file.read_text().splitlines()) - 1) for file in found}


def wait_for_steps(launching: subprocess.Popen[str], folder: Path, runs: int) -> None:
    while sum(step >= 2 for step in steps(folder).values()) < runs:
        assert launching.poll() is None, launching.communicate()
        time.sleep(0.05)


def losses(folder: Path) -> dict[str, Any]:
    return {
        file.parent.name: timeless([json.loads(line) for line in file.read_text().splitlines()])
        for file in folder.glob("outputs/s/*/seed_*/metrics.jsonl")
    }


def make_runs(folder: Path) -> None:
    """Make the runs in this process, in a hurry, from where they stand."""
    write_inputs(folder)
    (folder / "hurry").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        patch.setattr("sys.argv", ["train", *ARGUMENTS])
        for run in make_plan(get_args_parser().parse_args(ARGUMENTS)).runs:
            execution.run(run.config, run.directory.path, [], Console(quiet=True))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The losses of the runs that nothing stops."""
    folder = tmp_path_factory.mktemp("whole")
    make_runs(folder)
    return losses(folder)


def check_saved(folder: Path, whole: dict[str, Any]) -> None:
    """Every run that has begun has saved its last step, and goes on to the numbers of a run that nothing stops."""
    begun = steps(folder)
    assert begun
    for run in (file.parent for file in folder.glob("outputs/s/*/seed_*/run.json")):
        directory = RunDirectory(run)
        assert directory.record()["status"] == "running", directory.record()["error"]
        saved = checkpoint.newest(directory)
        assert (saved.step if saved else 0) == begun.get(run.name, 0)
        assert begun.get(run.name, 0) < 12
    make_runs(folder)
    assert losses(folder) == whole


# (launcher, runs at once, signals, whether they go to all its processes, as a terminal's do)
STOPS = [
    ("basic", 1, [signal.SIGHUP, signal.SIGTERM], False),
    ("joblib", 2, [signal.SIGINT, signal.SIGINT], True),
    ("joblib", 2, [signal.SIGTERM], False),
    ("submitit_local", 2, [signal.SIGINT], True),
    ("submitit_local", 2, [signal.SIGTERM, signal.SIGCONT, signal.SIGHUP], False),
]


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "at_once", "numbers", "to_all"), STOPS)
def test_a_launch_that_is_stopped_lets_its_runs_save(
    launcher: str, at_once: int, numbers: list[int], to_all: bool, whole: dict[str, Any], tmp_path: Path
) -> None:
    if launcher != "basic":
        needs_it = needs(launcher.partition("_")[0])
        if needs_it.args[0]:
            pytest.skip(needs_it.kwargs["reason"])
    launching = start(tmp_path, f"hydra/launcher={launcher}")
    wait_for_steps(launching, tmp_path, min(at_once, os.cpu_count() or 1))
    for number in numbers:
        (os.killpg if to_all else os.kill)(launching.pid, number)
    _, error = launching.communicate()
    assert launching.returncode - 128 in numbers, error  # of two at once the kernel may deliver either first
    assert "Traceback" not in error
    assert "To go on: python -m gpt_ablate.train" in error
    assert "broke off" not in error
    check_saved(tmp_path, whole)


@pytest.mark.slow
def test_a_terminal_that_is_closed(whole: dict[str, Any], tmp_path: Path) -> None:
    terminal, of_launch = pty.openpty()
    how = {"stdin": of_launch, "stdout": of_launch, "stderr": of_launch}
    launching = start(tmp_path, **how)
    os.close(of_launch)
    wait_for_steps(launching, tmp_path, 1)
    os.close(terminal)  # what is printed fails from now on
    assert launching.wait() == 128 + signal.SIGHUP
    check_saved(tmp_path, whole)
