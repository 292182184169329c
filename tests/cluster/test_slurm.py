"""What Slurm does to a run: time limits, preemption, requeues, scancel; the run goes on, to the bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from slurm import Slurm

from gpt_ablate.studies.run_directory import RunDirectory
from gpt_ablate.training import checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
# Layers that take their time until somebody is in a hurry.
PLUGIN = """
import time
from pathlib import Path
from gpt_ablate.axes.layers import fresh, stacks

@stacks.register("slow")
def slow(context):
    layers = fresh(context)
    layers[0].register_forward_pre_hook(lambda *_: time.sleep(0 if Path("hurry").exists() else 3))
    return layers
"""
ARGUMENTS = [
    *("--multirun", "model=micro", "model.d_model=16", "model.n_head=2", "model.context_length=16", "study=s"),
    *("data=text", "data.path=text.txt", "trainer.device=cpu", "trainer.max_steps=45", "trainer.max_epochs=45"),
    *("trainer.eval_every=0", "trainer.sample_every=0", "plugins=[slow_layers]", "layers.name=slow"),
    "hydra/launcher=submitit_slurm",
]
TEXT = "The miller had a clock, and the clock had a voice. " * 30
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Any]]:
    """The losses of the runs by seed, when nothing interrupts them and no cluster makes them."""
    folder = tmp_path_factory.mktemp("whole")
    write_inputs(folder)
    (folder / "hurry").touch()
    command = [sys.executable, "-m", "gpt_ablate.train", *ARGUMENTS, "hydra/launcher=basic", "trainer.threads=1"]
    done = subprocess.run([*command, "seed=0,1"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {seed: losses(run_of(folder, seed)) for seed in (0, 1)}


def write_inputs(folder: Path) -> None:
    (folder / "text.txt").write_text(TEXT)
    (folder / "slow_layers.py").write_text(PLUGIN)


@pytest.fixture
def start(slurm: Slurm, tmp_path: Path) -> Iterator[Start]:
    """Start a launch in the test's folder; it does not outlive the test."""
    write_inputs(tmp_path)

    def begin(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "gpt_ablate.train", *ARGUMENTS, *arguments]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, cwd=tmp_path, env=slurm.environment, text=True, **pipes))
        return started[-1]

    started: list[subprocess.Popen[str]] = []
    yield begin
    for launching in started:
        launching.kill()
        launching.communicate()
    for job in slurm.jobs():
        slurm("scancel", job)


def run_of(folder: Path, seed: int = 0) -> RunDirectory:
    return RunDirectory(folder / f"outputs/s/slow/seed_{seed}")


def until(what: Callable[[], object], launching: subprocess.Popen[str]) -> None:
    while not what():
        assert launching.poll() is None, launching.communicate()
        time.sleep(0.2)


def has_state(state: str, slurm: Slurm) -> str | None:
    """A job in this state."""
    return next((job for job, its in slurm.jobs().items() if its == state), None)


def has_steps(run: RunDirectory, number: int) -> Callable[[], bool]:
    return lambda: run.metrics_file.exists() and len(run.metrics()) > number


def states_of(run: RunDirectory) -> list[int]:
    return [int(folder.name.removeprefix("step_")) for folder in run.checkpoints.glob("step_*")]


def losses(run: RunDirectory) -> list[Any]:
    return [(line["step"], line.get("train/loss"), line.get("grad_norm")) for line in run.metrics()]


def test_runs_side_by_side(start: Start, tmp_path: Path) -> None:
    (tmp_path / "hurry").touch()
    launching = start("trainer.max_steps=3", "seed=0,1,2,3")
    told, error = launching.communicate()
    assert launching.returncode == 0, (told, error)
    assert error == ""
    assert "Slurm's jobs: " in told
    assert told.count("  done  ") == 4
    report = json.loads((tmp_path / "outputs/s/report.json").read_text())
    assert sum(cell["status"].get("done", 0) for cell in report["cells"]) == 4


def test_a_run_longer_than_its_time_limit(
    slurm: Slurm, start: Start, whole: dict[int, list[Any]], tmp_path: Path
) -> None:
    """The terminal waits, and in between the record is that of a run that goes on.

    Slurm sends the signal up to a minute earlier than asked; a limit of one minute would have it come at the start.
    """
    limits = ("timeout_min=2", "signal_delay_s=30", "max_num_timeout=1000")
    launching = start("seed=0", *(f"hydra.launcher.{limit}" for limit in limits))
    run = run_of(tmp_path)
    for saved in range(2):
        until(lambda n=saved: has_state("PENDING", slurm) and len(states_of(run)) > n, launching)
        assert run.record()["status"] == "running"
        until(lambda: has_state("RUNNING", slurm), launching)
    (tmp_path / "hurry").touch()
    told, error = launching.communicate()
    assert launching.returncode == 0, (told, error)
    assert error == ""
    assert losses(run) == whole[0]
    (log,) = tmp_path.glob("outputs/s/.submitit/*/*_log.out")
    assert log.read_text().count("goes on after step") >= 2


def requeue(slurm: Slurm, job: str) -> None:
    slurm("scontrol", "requeue", job)


def signal_of_submitit(slurm: Slurm, job: str) -> None:
    slurm("scancel", "--signal=USR2", job)


def preempt(slurm: Slurm, job: str) -> None:
    """Slurm asks for the places of all jobs of a lower partition, and gives them time to end by themselves."""
    slurm("sbatch", "--partition=urgent", "--exclusive", "--wrap=sleep 5", "--output=/dev/null")


@pytest.mark.parametrize(
    "interruptions",
    [[requeue, signal_of_submitit], [preempt]],
    ids=lambda each: "+".join(function.__name__ for function in each),
)
def test_a_job_that_is_queued_again_goes_on(
    interruptions: list[Callable[[Slurm, str], None]],
    slurm: Slurm,
    start: Start,
    whole: dict[int, list[Any]],
    tmp_path: Path,
) -> None:
    """A run for each interruption, in a job of its own."""
    seeds = range(len(interruptions))
    launching, runs = start(f"seed={','.join(map(str, seeds))}"), [run_of(tmp_path, seed) for seed in seeds]
    until(lambda: all(has_steps(run, 2)() for run in runs), launching)
    jobs = sorted(job for job, state in slurm.jobs().items() if state == "RUNNING")
    for interrupt, job in zip(interruptions, jobs, strict=True):
        interrupt(slurm, job)
    until(lambda: all(states_of(run) for run in runs), launching)
    saved = [states_of(run) for run in runs]
    assert [run.record()["status"] for run in runs] == ["running"] * len(runs)
    (tmp_path / "hurry").touch()
    told, error = launching.communicate()
    assert launching.returncode == 0, (told, error)
    for job, run, (step,) in zip(jobs, runs, saved, strict=True):
        log = (tmp_path / f"outputs/s/.submitit/{job}/{job}_0_log.out").read_text()
        assert f"goes on after step {step}" in log
        assert losses(run) == whole[runs.index(run)]


@pytest.mark.parametrize("command", [["scancel", "--signal=TERM"], ["scancel"]], ids=" ".join)
def test_a_job_that_is_cancelled_has_saved_its_state_and_ends_the_launch(
    command: list[str], slurm: Slurm, start: Start, tmp_path: Path
) -> None:
    launching, run = start("seed=0"), run_of(tmp_path)
    until(has_steps(run, 2), launching)
    job = has_state("RUNNING", slurm)
    assert job
    slurm(*command, job)
    told, error = launching.communicate()
    assert launching.returncode == 1, (told, error)
    assert "Traceback" not in error
    assert run.record()["status"] == "running"
    saved = checkpoint.newest(run)
    assert saved is not None
    assert saved.step == run.metrics()[-1]["step"]


def test_a_job_cancelled_while_it_waits_ends_the_launch(slurm: Slurm, start: Start, tmp_path: Path) -> None:
    launching = start("seed=0", "+hydra.launcher.additional_parameters.begin=now+1hour")
    until(lambda: has_state("PENDING", slurm), launching)
    slurm("scancel", str(has_state("PENDING", slurm)))
    _, error = launching.communicate()
    assert launching.returncode == 1, error
    assert "submitit_slurm broke off: UncompletedJobError" in error


def test_a_launching_terminal_that_is_closed_leaves_the_jobs_alone(slurm: Slurm, start: Start, tmp_path: Path) -> None:
    launching, run = start("seed=0"), run_of(tmp_path)
    until(has_steps(run, 2), launching)
    job = has_state("RUNNING", slurm)
    assert job
    os.kill(launching.pid, signal.SIGHUP)
    _, error = launching.communicate()
    assert launching.returncode == 128 + signal.SIGHUP, error
    assert f"gpt_ablate.status {tmp_path / 'outputs/s'}" in error
    assert f"scancel {job}" in error
    assert slurm.jobs()[job] == "RUNNING"
    (tmp_path / "hurry").touch()
    while slurm.jobs()[job] != "COMPLETED":
        assert slurm.jobs()[job] in ("RUNNING", "COMPLETING")
        time.sleep(0.2)
    assert run.record()["status"] == "done"
