"""Too little memory, numbers that are none, a clock that jumps, many runs in a process, several processes at once."""

from __future__ import annotations

import gc
import itertools
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import RUN, TEXT, Start, record
from rich.console import Console

from gpt_ablate.config.schema import Config
from gpt_ablate.launching import execution
from gpt_ablate.studies import run_directory
from gpt_ablate.studies.run_directory import RunDirectory
from gpt_ablate.training import trainer

pytestmark = pytest.mark.slow
Injected = Callable[[str, int], None]
SWEEP = [argument for argument in RUN if not argument.startswith("hydra.run.dir")]
CELLS = ("norm=pre,post", "seed=0,1", "study=s")


def statuses(root: Path) -> dict[str, str]:
    return {file.parent.parent.name: json.loads(file.read_text())["status"] for file in root.rglob("run.json")}


def test_too_little_memory_costs_its_run_alone(start: Start, tmp_path: Path, injected: Injected) -> None:
    injected("out of memory", 1)
    code, told = start(tmp_path, "--multirun", "model.d_model=8,1024,16", memory=400 << 20).wait()
    assert code == 1, told
    assert statuses(tmp_path) == {
        "model.d_model_8": "done",
        "model.d_model_1024": "failed",
        "model.d_model_16": "done",
    }
    (failed,) = tmp_path.rglob("*_1024/*/run.json")
    assert "memory" in json.loads(failed.read_text())["error"].lower()
    assert "memory" in told.lower()


@pytest.fixture
def small(tmp_path: Path, configure: Callable[..., Config]) -> Callable[..., Config]:
    """The run of this suite with other overrides, as a config."""
    (tmp_path / "text.txt").write_text(TEXT)
    fixed = [override for override in SWEEP if not override.startswith(("data.path", "model=", "trainer.device"))]
    return lambda *overrides: configure(*fixed, f"data.path={tmp_path}/text.txt", *overrides)


def train(config: Config, path: Path) -> RunDirectory:
    execution.run(config, path, [], Console(quiet=True))
    return RunDirectory(path)


def test_a_weight_that_is_no_number(
    small: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, injected: Injected
) -> None:
    original = trainer.Trainer._optimise

    def optimise(self: trainer.Trainer, step: int) -> dict[str, Any]:
        if step == 3:
            with torch.no_grad():
                next(iter(self.model.parameters()))[:] = float("nan")
        return original(self, step)

    injected("NaN in a weight", 1)
    monkeypatch.setattr(trainer.Trainer, "_optimise", optimise)
    directory = train(small(), tmp_path / "run")
    result = directory.result()
    assert directory.record()["status"] == "diverged"
    assert result is not None
    assert "nan at step 3" in result["diverged"]
    assert [line["step"] for line in directory.metrics()] == [0, 1, 2]


def test_a_loss_that_explodes(small: Callable[..., Config], tmp_path: Path, injected: Injected) -> None:
    injected("exploding loss (lr=1e3)", 1)
    directory = train(small("optimizer.lr=1e3"), tmp_path / "run")
    assert directory.record()["status"] in ("diverged", "done")
    result = directory.result()
    assert result is not None
    assert result["status"] == directory.record()["status"]
    assert all(line.get("train/loss", 0) < float("inf") for line in directory.metrics())


def test_a_clock_that_jumps(
    small: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: dict[str, Any],
    injected: Injected,
) -> None:
    injected("clock that jumps", 1)
    draws, real = random.Random(0), time.time
    monkeypatch.setattr(time, "time", lambda: real() + draws.choice([-1e8, 1e8, -1, 3600]))
    monkeypatch.setattr(execution, "now", lambda: f"{draws.choice([1970, 2026, 2100])}-01-01T00:00:00.000+00:00")
    directory = train(small(), tmp_path / "run")
    found = record(directory.path)
    for name in ("metrics.jsonl", "samples.jsonl", "checkpoint/final/model.safetensors"):
        assert found[name] == whole[name]
    times = [line["wall_time"] for line in directory.metrics()]
    assert times == sorted(times)
    assert times[-1] < 600


def test_many_runs_in_a_process(small: Callable[..., Config], tmp_path: Path, injected: Injected) -> None:
    """Memory, open files and threads after 200 runs are what they were after 20."""
    injected("200 runs in one process", 1)

    def taken() -> tuple[int, int, int]:
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd")), threading.active_count()

    quick = ("trainer.max_steps=1", "trainer.eval_every=0", "trainer.sample_every=0", "trainer.checkpoint_every=0")
    after: dict[int, tuple[int, int, int]] = {}
    for i in range(1, 201):
        train(small(*quick), tmp_path / f"run{i}")
        if i in (20, 200):
            after[i] = taken()
    assert after[200][1:] == after[20][1:]
    assert after[200][0] - after[20][0] < 32 << 20


def begin(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    (folder / "text.txt").write_text(TEXT)
    command = [sys.executable, "-m", "gpt_ablate.train", "--multirun", *SWEEP, *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_two_launches_of_one_study(tmp_path: Path, injected: Injected) -> None:
    """Each run is made once; what the second cannot have it names, and a later launch finds all done."""
    injected("two launches of one study at once", 1)
    together = [begin(tmp_path, *CELLS) for _ in range(2)]
    told = [process.communicate()[0] for process in together]
    assert not any("Traceback" in each for each in told), told
    assert {process.returncode for process in together} <= {0, 1, 2}
    last = begin(tmp_path, *CELLS)
    after = last.communicate()[0]
    assert last.returncode == 0, after
    assert after.count("finished already") == 4
    results = [file.parent for file in tmp_path.rglob("result.json")]
    assert len(results) == 4
    for run in results:
        assert [line["step"] for line in RunDirectory(run).metrics()] == list(range(7))


def test_reading_and_reporting_while_runs_go_on(tmp_path: Path, injected: Injected) -> None:
    """Whoever reads any file at any time finds whole lines and whole objects, and a report never breaks."""
    launch = begin(tmp_path, *CELLS, "trainer.max_steps=40", "trainer.max_epochs=40")
    study, reports, reads = tmp_path / "outputs/s", 0, 0
    command = [sys.executable, "-m", "gpt_ablate.report", str(study), "--allow-missing"]
    reporting: subprocess.Popen[str] | None = None
    try:
        for _ in itertools.takewhile(lambda _: launch.poll() is None, itertools.count()):
            for run in run_directory.find(study) if study.exists() else ():
                run.record(), run.metrics(), run.samples(), run.result()
                reads += 1
            if reporting is not None and reporting.poll() is not None:
                told = reporting.communicate()[0]
                assert reporting.returncode in (0, 2), told
                assert "Traceback" not in told
                reports, reporting = reports + 1, None
            if study.exists() and reporting is None:
                reporting = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            time.sleep(0.005)
    finally:
        if reporting is not None:
            reporting.communicate()
        told = launch.communicate()[0]
    assert launch.returncode == 0, told
    injected("reading every file while it is written", reads)
    injected("a report while runs go on", reports)
    assert reads > 20
    assert reports > 0
