"""Studies by Ray, on this machine and on a cluster of two nodes: lost nodes, killed processes, launches broken off."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from harness import RUN, TEXT, record

from gpt_ablate.launching import launchers

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not launchers.installed("hydra_plugins.hydra_ray_launcher"), reason="without the extra ray: make test-ray"
    ),
]
Records = dict[str, dict[str, Any]]
Injected = Callable[[str, int], None]
STUDY = [
    *(argument for argument in RUN if not argument.startswith(("hydra.run.dir", "data.path"))),
    *("--multirun", "study=s", "seed=0,1", "plugins=[own_layers]", "data.path=${oc.env:TEXT}"),
]
# Layers whose process stops at step 4 where a file says so, or that are slow; and some that break off a launch.
PLUGIN = """
import os, signal, time
from pathlib import Path
from gpt_ablate.axes.layers import fresh, stacks

def told(name):
    Path(f"written-{os.getpid()}").write_text(str(os.getpid()))
    Path(f"written-{os.getpid()}").rename(name)

@stacks.register("watched")
def watched(context):
    layers = fresh(context)
    steps = 0
    def count(module, _):
        nonlocal steps
        if not module.training:
            return
        steps += 1
        if steps == 4 and Path("stops-" + os.environ.get("NODE", "")).exists():
            Path("stops-" + os.environ.get("NODE", "")).unlink()
            told("stopped")
            time.sleep(600)
        if Path("slow").exists():
            told("goes-on")
            time.sleep(0.5)
    layers[0].register_forward_pre_hook(count)
    return layers

@stacks.register("failing")
def failing(context):
    while not Path("goes-on").exists():
        time.sleep(0.1)
    raise RuntimeError("no such luck")

@stacks.register("dying")
def dying(context):
    os.kill(os.getpid(), signal.SIGKILL)
"""
WATCHED, TWO = "layers.name=watched", "norm=pre,post"
CLUSTER = "hydra.launcher.ray.init.address=auto"


class Launch:
    """A launch of the study as a process, in a folder of its own; what it prints goes to a file."""

    def __init__(self, folder: Path, *arguments: str, launcher: str = "ray", **environment: str) -> None:
        (folder / "text.txt").write_text(TEXT)
        (folder / "modules").mkdir(exist_ok=True)
        (folder / "modules/own_layers.py").write_text(PLUGIN)
        self.folder, self.output = folder, folder / "told"
        command = [sys.executable, "-m", "gpt_ablate.train", *STUDY, f"hydra/launcher={launcher}", *arguments]
        environment = os.environ | {"PYTHONPATH": "modules", "TEXT": "text.txt"} | environment
        with self.output.open("w") as output:
            pipes: dict[str, Any] = {"stdout": output, "stderr": output}
            hears_ctrl_c = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # even if pytest does not
            self.process = subprocess.Popen(command, cwd=folder, env=environment, preexec_fn=hears_ctrl_c, **pipes)

    def wait_for(self, name: str) -> int:
        """The process that wrote a file in the launch's folder."""
        while not (self.folder / name).exists():
            assert self.process.poll() is None, self.output.read_text()
            time.sleep(0.05)
        return int((self.folder / name).read_text())

    def wait_for_line(self, line: str) -> None:
        while line not in self.output.read_text():
            assert self.process.poll() is None, self.output.read_text()
            time.sleep(0.05)

    def end(self) -> tuple[int, str]:
        """Its exit code and what it printed."""
        return self.process.wait(), self.output.read_text()


def records(folder: Path) -> Records:
    """The runs of the study, less the launcher's own settings and the order of TensorBoard's hyperparameters."""
    found = {}
    for file in folder.glob("outputs/s/*/*/run.json"):
        run = record(file.parent)
        del run[".hydra/hydra.yaml"]
        run["events"] = [event for event in run.get("events", ()) if not event[1].startswith("_hparams_")]
        found[file.parent.relative_to(folder).as_posix()] = run
    return found


def statuses(folder: Path) -> dict[str, str]:
    return {
        "/".join(file.parts[-3:-1]): json.loads(file.read_text())["status"]
        for file in folder.glob("outputs/s/*/*/run.json")
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Records:
    """The four runs by the basic launcher."""
    folder = tmp_path_factory.mktemp("basic")
    code, told = Launch(folder, WATCHED, TWO, launcher="basic").end()
    assert code == 0, told
    made = records(folder)
    assert len(made) == 4
    return made


@pytest.fixture(scope="module")
def ray_settings() -> Iterator[dict[str, str]]:
    """Ray's settings of these tests alone: a place of their own for its files, frozen nodes found in half a minute."""
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        settings = {"RAY_TMPDIR": folder, "HOME": folder, "RAY_USAGE_STATS_ENABLED": "0"}
        settings |= {"RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "5000"}
        settings |= {"RAY_health_check_initial_delay_ms": "0", "RAY_health_check_failure_threshold": "4"}
        settings |= {"RAY_grpc_client_keepalive_time_ms": "2000", "RAY_grpc_client_keepalive_timeout_ms": "20000"}
        with pytest.MonkeyPatch.context() as patch:
            for name, value in settings.items():
                patch.setenv(name, value)
            yield settings


class Node:
    """A node of a cluster: `ray start` as a process, in a folder that has nothing."""

    def __init__(self, name: str, *arguments: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="node", dir=os.environ["RAY_TMPDIR"]))
        self.output = self.folder / "told"
        command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--num-cpus=1", *arguments]
        with self.output.open("w") as output:
            pipes: dict[str, Any] = {"stdout": output, "stderr": output, "start_new_session": True}
            self.process = subprocess.Popen(command, cwd=self.folder, env=os.environ | {"NODE": name}, **pipes)
        while "Ray runtime started" not in self.output.read_text():
            assert self.process.poll() is None, self.output.read_text()
            time.sleep(0.1)

    def signal(self, number: int) -> None:
        """To all of its processes but those of runs, which end soon after the others."""
        os.killpg(self.process.pid, number)

    def end(self) -> None:
        if self.process.poll() is None:
            self.signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def head(ray_settings: dict[str, str]) -> Iterator[str]:
    """A cluster with its first node; its address."""
    node = Node("first", "--head", "--port=0", "--include-dashboard=false")
    address = Path(os.environ["RAY_TMPDIR"]) / "ray/ray_current_cluster"
    while not (address.exists() and address.read_text()):  # written after the line that the node waits for
        assert node.process.poll() is None, node.output.read_text()
        time.sleep(0.1)
    yield address.read_text()
    node.end()


@pytest.fixture
def second(head: str) -> Iterator[Node]:
    """A second node beside the first."""
    node = Node("second", f"--address={head}")
    with ExitStack() as stack:
        stack.callback(node.end)
        yield node


@pytest.fixture
def launch(tmp_path: Path, ray_settings: dict[str, str]) -> Iterator[Callable[..., Launch]]:
    """Start a launch by Ray; none outlives its test."""
    with ExitStack() as stack:

        def begin(*arguments: str) -> Launch:
            started = Launch(tmp_path, *arguments)
            stack.callback(started.process.wait)
            stack.callback(started.process.kill)
            return started

        yield begin


def test_on_this_machine(head: str, launch: Callable[..., Launch], undisturbed: Records, tmp_path: Path) -> None:
    """With a Ray of its own, though a cluster runs here; every line of every run is told once, without colours."""
    code, told = launch(WATCHED, TWO).end()
    assert code == 0, told
    assert records(tmp_path) == undisturbed
    assert (tmp_path / "outputs/s/report.json").exists()
    assert "existing Ray cluster" not in told
    assert (told.count(": starts\n"), told.count("  done  ")) == (4, 4)
    assert "\x1b[" not in told


@pytest.mark.parametrize("lost", ["process killed", "node killed", "node frozen"])
def test_a_run_goes_on_in_another_process(
    lost: str,
    second: Node,
    launch: Callable[..., Launch],
    undisturbed: Records,
    tmp_path: Path,
    injected: Injected,
) -> None:
    """From its checkpoint, on another node if its own is lost; both nodes have the paths and modules of the launch."""
    injected(f"under Ray: {lost}", 1)
    (tmp_path / "stops-second").touch()
    launching = launch(WATCHED, TWO, CLUSTER)
    run = launching.wait_for("stopped")
    if lost == "process killed":
        os.kill(run, signal.SIGKILL)
    if lost == "node frozen":
        second.signal(signal.SIGSTOP)
        os.kill(run, signal.SIGSTOP)
        launching.wait_for_line("waits for another process that trains this run")
        os.kill(run, signal.SIGKILL)
    if lost == "node killed":
        second.signal(signal.SIGKILL)
    code, told = launching.end()
    assert code == 0, told
    assert "goes on after step 2" in told
    assert "Traceback" not in told
    assert records(tmp_path) == undisturbed


def test_the_launching_process_is_killed(
    head: str, launch: Callable[..., Launch], undisturbed: Records, tmp_path: Path, injected: Injected
) -> None:
    injected("under Ray: launch killed", 1)
    (tmp_path / "stops-first").touch()
    launching = launch(WATCHED, TWO, CLUSTER)
    run = launching.wait_for("stopped")
    launching.process.kill()
    launching.end()
    while Path(f"/proc/{run}/cmdline").exists() and Path(f"/proc/{run}/cmdline").read_bytes():
        time.sleep(0.1)
    code, told = launch(WATCHED, TWO, CLUSTER).end()
    assert code == 0, told
    assert "goes on after step 2" in told
    assert records(tmp_path) == undisturbed


@pytest.mark.parametrize("end", ["Ctrl-C", "fail_fast"])
def test_a_launch_that_ends_early_saves_what_its_runs_have_done(
    end: str, second: Node, launch: Callable[..., Launch], tmp_path: Path, undisturbed: Records, injected: Injected
) -> None:
    injected(f"under Ray: {end}", 1)
    (tmp_path / "slow").touch()
    arguments = [CLUSTER, "trainer.checkpoint_every=null"]
    if end == "Ctrl-C":
        launching = launch(WATCHED, TWO, *arguments)
        launching.wait_for("goes-on")
        launching.process.send_signal(signal.SIGINT)
        code, told = launching.end()
        assert code == 130, told
        assert "To go on: python -m gpt_ablate.train" in told
    else:
        both = "layers.name=failing,watched"  # at once, one on each node
        # norm is in the names of the folders, as in the launch that goes on
        code, told = launch(both, "seed=0", "cell_keys=[norm]", *arguments, "trainer.fail_fast=true").end()
        assert code == 1, told
        assert "RuntimeError: no such luck" in told
    (tmp_path / "slow").unlink()
    assert list(tmp_path.glob("outputs/s/*watched*/*/checkpoint/step_*"))
    code, told = launch(WATCHED, TWO, *arguments).end()
    assert code == 0, told
    assert "goes on after step" in told
    made = {name: run for name, run in records(tmp_path).items() if "watched" in name}
    losses = {name: run["metrics.jsonl"] for name, run in made.items()}
    assert losses == {name: run["metrics.jsonl"] for name, run in undisturbed.items()}


def test_a_process_that_dies_every_time_costs_its_run_alone(
    second: Node, launch: Callable[..., Launch], tmp_path: Path, injected: Injected
) -> None:
    injected("under Ray: a process that dies every time", 2)
    (tmp_path / "slow").touch()  # so that the others go on still when the launcher breaks off
    kinds = "layers.name=dying,watched,failing"
    code, told = launch(kinds, CLUSTER, "hydra.launcher.ray.remote.max_retries=0").end()
    assert code == 1, told
    assert "ray broke off: WorkerCrashedError" in told
    assert "To go on: python -m gpt_ablate.train" in told
    assert statuses(tmp_path) == {
        f"{kind}/seed_{seed}": status
        for kind, status in (("dying", "running"), ("failing", "failed"), ("watched", "done"))
        for seed in (0, 1)
    }
