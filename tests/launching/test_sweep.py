"""A whole study as a process: killed in the middle, launched again, and with a cell that cannot be built."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

STUDY = [
    *("--multirun", "experiment=factorial", "study=s", "model=micro", "data=sample", "trainer.device=cpu"),
    *("model.d_model=16", "model.n_head=2", "model.context_length=16", "trainer.max_steps=3", "trainer.eval_every=0"),
    *("sampling.max_new_tokens=3", "trainer.threads=1", "seed=0,1,2"),
]
FAILING = """
from gpt_ablate.axes.layers import clone, stacks


@stacks.register("failing")
def failing(context):
    raise RuntimeError("no such luck")
"""


def launch(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "gpt_ablate.train", *STUDY, *arguments]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finished(folder: Path) -> dict[Path, int]:
    """Every file of the finished runs and when it was last written."""
    runs = [result.parent for result in folder.glob("outputs/s/*/seed_*/result.json")]
    return {file: file.stat().st_mtime_ns for run in runs for file in run.rglob("*") if file.is_file()}


def test_a_killed_study_goes_on_where_it_was(tmp_path: Path) -> None:
    first = launch(tmp_path)
    try:
        while len(list(tmp_path.glob("outputs/s/*/seed_*/result.json"))) < 9:
            assert first.poll() is None, first.communicate()
            time.sleep(0.02)
    finally:
        first.kill()  # SIGKILL: nothing of ours runs any more
        first.communicate()
    before = finished(tmp_path)
    again = launch(tmp_path)
    told, error = again.communicate()
    assert again.returncode == 0, error
    results = list(tmp_path.glob("outputs/s/*/seed_*/result.json"))
    assert len(results) == 24
    assert told.count("finished already") == len({file for file in before if file.name == "result.json"})
    assert before.items() <= finished(tmp_path).items()
    report = json.loads((tmp_path / "outputs/s/report.json").read_text())
    assert sum(cell["status"]["done"] for cell in report["cells"]) == 24
    assert report["rests_on"]["missing"] == report["rests_on"]["failed"] == []
    kinds = [comparison["kind"] for comparison in report["comparisons"]]
    assert (kinds.count("main effect"), kinds.count("interaction")) == (3, 3)


def test_a_cell_that_fails_costs_itself_alone(tmp_path: Path) -> None:
    (tmp_path / "failing_layers.py").write_text(FAILING)
    swept = ("layers=fresh", "layers.name=fresh,failing", "report.baseline.layers=fresh")
    done = launch(tmp_path, "plugins=[failing_layers]", *swept)
    _, error = done.communicate()
    assert done.returncode == 1
    assert error.count("RuntimeError: no such luck") == 12
    report = json.loads((tmp_path / "outputs/s/report.json").read_text())
    failed = {run["name"] for run in report["rests_on"]["failed"]}
    assert failed == {
        f"{norm}-failing-{attention}/seed_{seed}"
        for norm in ("pre", "post")
        for attention in ("looped", "parallel")
        for seed in range(3)
    }
    assert all("no such luck" in run["error"] for run in report["rests_on"]["failed"])
    assert len(list(tmp_path.glob("outputs/s/*/seed_*/result.json"))) == 12
    page = (tmp_path / "outputs/s/report.html").read_text()
    assert all(name in page for name in failed)
