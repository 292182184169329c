"""Several runs at once: equal numbers under every launcher, and what a failure or a kill costs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from omegaconf import OmegaConf
from rich.console import Console

from gpt_ablate.config.paths import CONF
from gpt_ablate.launching import execution, launch, launchers, ray_tasks
from gpt_ablate.launching.hydra_settings import BASIC_SWEEPER
from gpt_ablate.launching.planning import make_plan
from gpt_ablate.studies.run_directory import RunDirectory
from gpt_ablate.utils.errors import UsageError

STUDY = [
    *("--multirun", "model=micro", "model.d_model=16", "model.n_head=2", "model.context_length=16", "study=s"),
    *("data=text", "data.path=text.txt", "trainer.device=cpu", "trainer.max_steps=3", "trainer.eval_every=0"),
    *("sampling.max_new_tokens=3", "plugins=[own_layers]", "seed=0,1"),
]
TEXT = "The miller had a clock, and the clock had a voice. " * 30
# Layers of a user's own: some that cannot be built, and some whose process waits to be killed, the first time.
PLUGIN = """
import os, time
from pathlib import Path
from gpt_ablate.axes.layers import fresh, stacks

@stacks.register("failing")
def failing(context):
    raise RuntimeError("no such luck")

@stacks.register("waiting")
def waiting(context):
    if not Path("waiting.pid").exists():
        Path("written").write_text(str(os.getpid()))
        Path("written").rename("waiting.pid")
        time.sleep(600)
    return fresh(context)
"""
EVERY_KIND = "layers.name=waiting,fresh,clone,failing"
Numbers = dict[str, list[dict[str, Any]]]


def needs(extra: str) -> pytest.MarkDecorator:
    missing = not launchers.installed(f"hydra_plugins.hydra_{extra}_launcher")
    return pytest.mark.skipif(missing, reason=f"without the extra {extra}")


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """A launch of the study as a process."""
    (folder / "text.txt").write_text(TEXT)
    (folder / "own_layers.py").write_text(PLUGIN)
    command = [sys.executable, "-m", "gpt_ablate.train", *STUDY, *arguments]
    environment = os.environ | {"HOME": str(folder)}  # Ray leaves a file there
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True)


def kill_the_waiting_run(launching: subprocess.Popen[str], folder: Path) -> None:
    while not (folder / "waiting.pid").exists():
        assert launching.poll() is None, launching.communicate()
        time.sleep(0.05)
    os.kill(int((folder / "waiting.pid").read_text()), signal.SIGKILL)


def finish(launching: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Its exit code, and what it told on both streams."""
    told, error = launching.communicate()
    return launching.returncode, told, error


def numbers(folder: Path) -> Numbers:
    """What the ordinary runs of the study recorded, less the times."""
    files = [file for kind in ("fresh", "clone") for file in folder.glob(f"outputs/s/*{kind}*/seed_*/metrics.jsonl")]
    return {
        file.parent.relative_to(folder).as_posix(): [
            {key: value for key, value in json.loads(line).items() if key not in ("wall_time", "tokens_per_second")}
            for line in file.read_text().splitlines()
        ]
        for file in files
    }


def statuses(folder: Path) -> list[str]:
    """The kind of layers and the status of every run that is not done; each ran on one thread."""
    found = []
    for file in folder.glob("outputs/s/*/seed_*/run.json"):
        record = json.loads(file.read_text())
        assert record["hardware"]["threads"] == record["config"]["trainer"]["threads"] == 1
        found.append(f"{record['axes']['layers']} {record['status']}")
    return sorted(each for each in found if not each.endswith("done"))


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory: pytest.TempPathFactory) -> Numbers:
    """The four ordinary runs, made one after the other in this process."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "text.txt").write_text(TEXT)
    arguments = [*STUDY, "plugins=[]", "layers.name=fresh,clone", "trainer.threads=1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["train", *arguments])
        for run in make_plan(get_args_parser().parse_args(arguments)).runs:
            execution.run(run.config, run.directory.path, [], Console(quiet=True))
    made = numbers(folder)
    assert len(made) == 4
    return made


@pytest.mark.slow
@needs("submitit")
def test_under_submitit_a_kill_costs_one_run(one_by_one: Numbers, tmp_path: Path) -> None:
    launching = start(tmp_path, "layers.name=waiting,fresh,clone", "hydra/launcher=submitit_local")
    kill_the_waiting_run(launching, tmp_path)
    code, told, error = finish(launching)
    assert code == 1, error
    assert "Traceback" not in error
    assert "deprecated" not in error
    assert error.count("submitit_local broke off: UncompletedJobError") == 1
    assert "To go on: python -m gpt_ablate.train" in error
    assert statuses(tmp_path) == ["waiting running"]
    assert numbers(tmp_path) == one_by_one
    assert told.count("  done  ") == 5
    report = json.loads((tmp_path / "outputs/s/report.json").read_text())
    assert sum(cell["status"].get("done", 0) for cell in report["cells"]) == 5


@pytest.mark.slow
@needs("joblib")
def test_under_joblib_a_kill_ends_the_launch_and_the_next_goes_on(one_by_one: Numbers, tmp_path: Path) -> None:
    launching = start(tmp_path, EVERY_KIND, "hydra/launcher=joblib")
    kill_the_waiting_run(launching, tmp_path)
    code, _, error = finish(launching)
    assert code == 1, error
    assert "Traceback" not in error
    assert "joblib broke off: TerminatedWorkerError" in error
    code, told, error = finish(start(tmp_path, EVERY_KIND, "hydra/launcher=joblib"))
    assert code == 1, error
    assert error.count("RuntimeError: no such luck") == 2
    assert "deprecated" not in error
    assert statuses(tmp_path) == ["failing failed", "failing failed"]
    assert numbers(tmp_path) == one_by_one
    assert (told.count("  done  "), told.count("  failed  ")) == (6, 2)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make believe that the machine has so many cores and CUDA devices."""
    for variable in ("GPT_ABLATE_PLACES", "GPT_ABLATE_GPUS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(variable, "")  # so that what is set in the test is taken back
        monkeypatch.delenv(variable)

    def pretend(cpus: int, devices: int, visible: str | None = None) -> None:
        monkeypatch.setattr(launchers, "cores", lambda: cpus)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    return pretend


# (overrides, cores, CUDA devices) -> (what the launcher is told, the threads of a run, the places, their devices)
DIVISIONS = [
    (["joblib"], 8, 0, {"n_jobs": 8}, 1, "8", ""),
    (["joblib", "trainer.threads=3"], 8, 0, {"n_jobs": 2}, 3, "2", ""),
    (["joblib", "hydra.launcher.n_jobs=2"], 8, 0, {"n_jobs": 2}, 4, "2", ""),
    (["joblib", "hydra.launcher.n_jobs=-2"], 8, 0, {"n_jobs": -2}, 1, "7", ""),
    (["joblib"], 8, 2, {"n_jobs": 2}, 4, "2", "0,1"),
    (["submitit_local"], 8, 0, {"cpus_per_task": 1}, 1, "8", ""),
    (["submitit_local", "hydra.launcher.cpus_per_task=4"], 8, 0, {"cpus_per_task": 4}, 4, "2", ""),
    (["submitit_local", "trainer.threads=16"], 8, 0, {"cpus_per_task": 16}, 16, "1", ""),
    (["submitit_local"], 8, 4, {"cpus_per_task": 2}, 2, "4", "0,1,2,3"),
    (["submitit_slurm"], 64, 8, {"cpus_per_task": 1, "gpus_per_node": None}, 1, None, None),
    (["submitit_slurm", "trainer.threads=6"], 64, 0, {"cpus_per_task": 6}, 6, None, None),
    (["ray"], 8, 0, {"num_cpus": 1, "num_gpus": 0}, 1, None, None),
    (["ray", "trainer.threads=2"], 8, 4, {"num_cpus": 2, "num_gpus": 1}, 2, None, None),
    (["ray"], 8, 4, {"num_cpus": 2, "num_gpus": 1}, 2, None, None),
    (["basic"], 8, 2, {}, None, None, None),
]


@pytest.mark.parametrize(("overrides", "cpus", "devices", "told", "threads", "places", "gpus"), DIVISIONS)
@pytest.mark.fast_cases(6)
def test_cores_and_devices_are_divided(
    overrides: list[str],
    cpus: int,
    devices: int,
    told: dict[str, Any],
    threads: int | None,
    places: str | None,
    gpus: str | None,
    machine: Any,
) -> None:
    machine(cpus, devices)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose("config", [f"hydra/launcher={overrides[0]}", *overrides[1:]], return_hydra_config=True)
    launcher = OmegaConf.to_container(composed.hydra.launcher, resolve=True)
    assert isinstance(launcher, dict)
    assert told.items() <= (launcher | launcher.get("ray", {}).get("remote", {})).items()
    added = launchers.divide(composed)
    assert added == ([f"trainer.threads={threads}"] if threads and composed.trainer.threads is None else [])
    assert composed.trainer.threads in (None, threads)
    assert (os.environ.get("GPT_ABLATE_PLACES"), os.environ.get("GPT_ABLATE_GPUS")) == (places, gpus)


PLACED = """
import os, sys
from pathlib import Path
from gpt_ablate.launching import launchers
for _ in range(2):  # a process that makes several runs keeps its place
    launchers.take_place(Path("places"), ())
print(os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
sys.stdin.read()
"""


def test_a_process_has_a_device_of_its_own_until_it_ends(machine: Any, tmp_path: Path) -> None:
    machine(8, 2, visible="3,GPU-5e")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        launchers.divide(compose("config", ["hydra/launcher=submitit_local"], return_hydra_config=True))
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # submitit hides all of them
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "cwd": tmp_path, "text": True}
    with ExitStack() as stack:
        processes = []
        for _ in range(3):
            processes.append(stack.enter_context(subprocess.Popen([sys.executable, "-c", PLACED], **pipes)))
            stack.callback(processes[-1].kill)
            if len(processes) < 3:
                assert processes[-1].stdout.readline() == ["3\n", "GPU-5e\n"][len(processes) - 1]
        time.sleep(1)
        assert processes[2].poll() is None
        processes[1].kill()
        assert processes[2].stdout.readline() == "GPU-5e\n"


def test_a_launcher_that_is_not_installed_is_refused_by_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    monkeypatch.setattr("sys.argv", ["train", "--multirun", "data=sample", "hydra/launcher=ray"])
    with pytest.raises(SystemExit) as stop:
        launch.main()
    told = capfd.readouterr()
    assert stop.value.code == 2
    assert told.err == "gpt_ablate: hydra/launcher = 'ray': not installed: pip install 'gpt_ablate[ray]'.\n"
    assert list(tmp_path.iterdir()) == []


RAY_ASKS = [
    (["trainer.threads=4"], "num_cpus = 4: at most 2"),
    (["hydra.launcher.ray.remote.num_gpus=1"], "num_gpus = 1: at most 0"),
    (["trainer.threads=2"], None),
    (["trainer.threads=4", "+hydra.launcher.ray.init.num_cpus=4"], None),
    (["trainer.threads=4", "hydra.launcher.ray.init.address=auto"], None),
]


@pytest.mark.parametrize(("overrides", "refused"), RAY_ASKS)
def test_what_ray_would_wait_for_without_end_is_refused(
    overrides: list[str], refused: str | None, machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(2, 0)
    monkeypatch.setattr(launchers, "installed", lambda module: True)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose("config", ["hydra/launcher=ray", *overrides], return_hydra_config=True)
    if refused is None:
        assert launchers.check(composed) == "ray"
    else:
        with pytest.raises(UsageError, match=refused):
            launchers.check(composed)


def test_ray_takes_what_a_run_needs_of_the_environment_to_all_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPT_ABLATE_DATA", "/data")
    monkeypatch.setenv("PYTHONPATH", f"mine{os.pathsep}/theirs")
    monkeypatch.setenv("TEXTS", "texts")
    monkeypatch.setenv("SECRET", "not asked for")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        overrides = ["hydra/launcher=ray", "data=text", "data.path=${oc.env:TEXTS}/one.txt"]
        composed = compose("config", overrides, return_hydra_config=True)
    assert composed.hydra.launcher.ray.init.runtime_env.env_vars == {
        "GPT_ABLATE_DATA": "/data",
        "PYTHONPATH": f"{tmp_path}/mine{os.pathsep}/theirs",
        "TEXTS": "texts",
    }


def test_a_node_without_the_study_refuses_its_runs(tmp_path: Path) -> None:
    place = {"sweep": {"dir": str(tmp_path)}, "sweeper": {"_target_": BASIC_SWEEPER}, "runtime": {"cwd": str(tmp_path)}}
    with pytest.raises(UsageError, match=r"hydra\.sweep\.dir = .*: a folder that all of Ray's nodes share"):
        ray_tasks.arrive(OmegaConf.create(place), RunDirectory(tmp_path / "cell/seed_0"))
